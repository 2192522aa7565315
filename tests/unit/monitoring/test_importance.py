"""Estimates under covariate shift: where weighing helps, and where it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlops_ray.data import profile
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.estimation import estimate, realised
from mlops_ray.monitoring.importance import Weighed, weigh
from mlops_ray.training import calibration
from mlops_ray.training.calibration import Calibration
from mlops_ray.training.evaluation.intervals import blocks

BINS = Bins({"x": tuple(np.linspace(-2, 2, 19)), "z": tuple(np.linspace(-2, 2, 19))}, {})


def rows(rng: np.random.Generator, n: int, x: float = 0.0, z: float = 0.0) -> tuple[Any, Any, dict[str, Any]]:
    """The model looks at x alone; what its scores mean depends on z as well."""
    columns = {"x": rng.normal(x, 1, n), "z": rng.normal(z, 1, n)}
    p = 1 / (1 + np.exp(-columns["x"] - 1.5 * columns["z"]))
    scores = 1 / (1 + np.exp(-columns["x"]))
    return (rng.random(n) < p).astype(np.int64), scores, {k: v.astype(np.float32) for k, v in columns.items()}


def holdout(n: int = 5000) -> Calibration:
    y, scores, columns = rows(np.random.default_rng(0), n)
    return calibration.fit("binary", y, scores, blocks(np.arange(n), 100.0), BINS, columns)


def weighed(known: Calibration, scores: Any, columns: Any, min_rows: int = 500) -> Weighed:
    codes = profile.codes(BINS, columns)
    return weigh(known, known.place(scores, codes), codes, min_rows=min_rows, rng=np.random.default_rng(1))


def test_a_window_like_the_holdout_keeps_nearly_all_of_it() -> None:
    _, scores, columns = rows(np.random.default_rng(1), 3000)
    found = weighed(holdout(), scores, columns)
    assert found.weights is not None
    assert found.effective > 4000
    assert found.weights.mean() == pytest.approx(1.0)


def test_where_the_meaning_of_scores_hangs_on_inputs_that_moved_weighing_corrects() -> None:
    known = holdout()
    y, scores, columns = rows(np.random.default_rng(1), 5000, z=0.8)
    codes, found = profile.codes(BINS, columns), weighed(known, scores, columns)
    assert found.weights is not None
    assert 500 < found.effective < 3500
    plain, corrected = (
        estimate(c, scores, codes, threshold=0.5)["log_loss"] for c in (known, known.reweighted(found.weights))
    )
    truth = realised("binary", y, scores, threshold=0.5)["log_loss"]
    assert abs(corrected.value - truth) < 0.5 * abs(plain.value - truth)
    assert corrected.low <= truth <= corrected.high
    assert not plain.low <= truth <= plain.high
    assert corrected.high - corrected.low > plain.high - plain.low  # fewer effective rows say less


def test_a_window_that_lies_elsewhere_is_refused() -> None:
    _, scores, columns = rows(np.random.default_rng(1), 3000, x=4.0)
    found = weighed(holdout(), scores, columns)
    assert found.weights is None
    assert found.effective < 500
    assert found.why.endswith("of 5000 rows of the holdout; 500 are needed")


@pytest.mark.parametrize(
    ("n_holdout", "n_window", "why"),
    [(400, 900, "the sample of the holdout has 400 rows; 500 are needed"), (900, 4, "the window has 4 rows; 500 are")],
)
def test_too_few_rows_are_refused(n_holdout: int, n_window: int, why: str) -> None:
    _, scores, columns = rows(np.random.default_rng(1), n_window)
    found = weighed(holdout(n_holdout), scores, columns)
    assert found.weights is None
    assert found.why.startswith(why)
