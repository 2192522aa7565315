from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import Monitoring
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.record import METHODS, estimated, numbered, record, scored
from mlops_ray.training import calibration
from mlops_ray.training.evaluation.intervals import blocks

PLAN = Monitoring(min_rows=100, min_blocks=8)


def drawn(n: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return (rng.random(n) < 0.25 + 0.5 * scores).astype(np.int64), scores


def known(days: int = 40) -> calibration.Calibration:
    y, scores = drawn(100 * days, 0)
    return calibration.fit("binary", y, scores, blocks(np.arange(len(y)), 100.0), Bins({}, {}), {})


def entry(kept: calibration.Calibration | None, n: int = 700, plan: Monitoring = PLAN, **more: Any) -> dict[str, Any]:
    _, scores = drawn(n, 1)
    codes, rng = np.empty((n, 0), dtype=np.uint16), np.random.default_rng(0)
    return estimated(plan, kept, scores, codes, **({"threshold": 0.5, "before": [], "at": 5.0, "rng": rng} | more))


def test_a_window_is_told_by_both_methods_and_once_more_the_same() -> None:
    found = entry(known())
    assert (found["at"], found["rows"]) == (5.0, 700)
    assert found["why"].startswith("log_loss 0.75")
    assert found["why"].endswith("estimated from 700 rows")
    assert found["direct"]["metrics"].keys() == found["weighted"]["metrics"].keys()
    assert "of 4000 rows of the holdout" in found["weighted"]["why"]
    json.dumps(found, allow_nan=False)
    assert entry(known()) == found


@pytest.mark.parametrize(
    ("kept", "n", "why"),
    [
        (None, 700, "uncalibrated: the version was trained by a release that kept no calibration"),
        (known(7), 700, "uncalibrated: the holdout has 7 blocks; 8 are needed"),
        (known(), 99, "99 rows; 100 are needed"),
        (known(), 0, "0 rows; 100 are needed"),
    ],
)
def test_what_is_missing_is_said(kept: calibration.Calibration | None, n: int, why: str) -> None:
    found = entry(kept, n)
    assert found["why"] == why
    assert all(found[method] == {"metrics": {}, "why": why} for method in METHODS)


def test_one_block_is_too_few_whatever_the_plan() -> None:
    assert entry(known(1), plan=Monitoring(min_rows=100, min_blocks=1))["why"].endswith("1 blocks; 2 are needed")


def test_a_window_is_scored_by_the_rows_whose_labels_are_known() -> None:
    y, scores = drawn(700, 1)
    labels = np.where(np.arange(700) < 350, y, math.nan)
    found = scored(entry(known()), PLAN, "binary", labels, scores, threshold=0.5)
    assert found["labelled"] == 350
    told = found["realised"]
    # Of all rows, as the estimates are.
    assert sum(told[name] for name in ("tn", "fp", "fn", "tp")) == pytest.approx(700)
    assert told["accuracy"] == pytest.approx(((scores >= 0.5) == y)[:350].mean())
    few = scored(entry(known()), PLAN, "binary", np.where(np.arange(700) < 99, y, math.nan), scores, threshold=0.5)
    assert (few["labelled"], few["realised"]) == (99, {})


def told(value: float, half: float | None, realised: float | None) -> dict[str, Any]:
    low, high = (None, None) if half is None else (value - half, value + half)
    direct = {"metrics": {"log_loss": {"value": value, "low": low, "high": high}}}
    return {
        "direct": direct,
        "weighted": {"metrics": {}},
        "realised": {} if realised is None else {"log_loss": realised},
    }


def test_the_record_is_made_of_scored_windows_alone() -> None:
    entries = [told(0.5, 0.1, 0.6), told(0.5, 0.1, 0.7), told(0.5, 0.1, None), told(0.5, None, 0.5)]
    found = record(entries, "direct")
    assert found["windows"] == 2
    assert found["trust"] == pytest.approx(1 / 4)
    assert found["rmse"] == pytest.approx(math.sqrt((0.01 + 0.04) / 2))
    assert record(entries, "weighted") == {"windows": 0, "trust": 0.0, "rmse": None}
    assert record([{"at": 1.0, "direct": {"metrics": {}}}], "direct")["windows"] == 0


def test_labels_of_the_log_as_numbers() -> None:
    found = numbered("multiclass", (3, 1), pa.chunked_array([["1", None, "3", "never seen"]]))
    assert np.array_equal(found, [1.0, math.nan, 0.0, math.nan], equal_nan=True)
    found = numbered("binary", (0, 1), pa.chunked_array([[1.0, None, 0.0]]))
    assert np.array_equal(found, [1.0, math.nan, 0.0], equal_nan=True)
