"""What is named about a window without calling anybody, and whom an ignored feature calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlops_ray.config import DAY_S, Monitoring
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring.drift import by_time
from mlops_ray.monitoring.flight import in_flight
from mlops_ray.monitoring.heeded import IGNORED, change
from mlops_ray.monitoring.judgement import judge_drift
from mlops_ray.training.artifact.model import Reference

BINS = Bins({"x": (-1.0, 0.0, 1.0)}, {"c": ("red", "blue")})


def columns(rng: np.random.Generator, n: int = 100, **of: Any) -> dict[str, Any]:
    found = {"x": rng.normal(0, 1, n).astype(np.float32), "c": rng.choice(["red", "blue"], n).astype(object)}
    return found | of


def day(rng: np.random.Generator, **of: Any) -> Profile:
    return fold(BINS, columns(rng, **of))


def reference() -> Reference:
    rng = np.random.default_rng(0)
    return Reference(BINS, DAY_S, tuple((i * DAY_S, day(rng)) for i in range(140)), ())


def week(seed: int = 1, **of: Any) -> Profile:
    rng = np.random.default_rng(seed)
    return sum((day(rng, **of) for _ in range(7)), empty(BINS))


def flown(window: Profile, *, first: bool = False) -> dict[str, Any]:
    return in_flight(reference(), by_time(140, 7), window, first=first)


def test_a_week_like_the_others_has_no_findings() -> None:
    for seed in range(20):
        found = flown(week(seed), first=True)
        assert (found["findings"], found["skew"]) == ([], False)
        assert found["why"].startswith("nothing")


def test_what_is_missing_unknown_or_out_of_range_is_named() -> None:
    x = np.linspace(-1, 1, 100).astype(np.float32)
    x[:20], c = np.nan, np.array(["green"] * 30 + ["red"] * 70, dtype=object)
    x[-40:] = 9.5
    found = flown(week(x=x, c=c))
    assert {(f["feature"], f["what"]) for f in found["findings"]} == {("x", "missing"), ("x", "high"), ("c", "unknown")}
    assert "x: 20 % missing, before 0 % at most" in found["why"]
    assert "c: 30 % of unknown categories, before 0 % at most" in found["why"]
    assert [(b["feature"], b["high"]) for b in found["beyond"]] == [("x", 9.5)]


def test_findings_of_a_version_s_first_window_are_called_skew() -> None:
    found = flown(week(c=np.full(100, "green", dtype=object)), first=True)
    assert found["skew"]
    assert "difference between training and serving" in found["why"]
    assert not flown(week(c=np.full(100, "green", dtype=object)))["skew"]


def test_a_window_without_rows_has_no_findings() -> None:
    assert flown(empty(BINS))["findings"] == []


@pytest.mark.parametrize(("feature", "heeded"), [("x", True), ("c", False)])
def test_a_feature_that_moved_calls_nobody_where_the_model_ignores_it(feature: str, heeded: bool) -> None:
    """The model looks at x alone. What moved is constant in the window, so shuffling its rows would show nothing."""

    def score(rows: Any) -> Any:
        return 1 / (1 + np.exp(-np.nan_to_num(rows["x"]).astype(np.float64)))

    moved = {"x": np.full(100, 3.0, dtype=np.float32)} if feature == "x" else {"c": np.full(100, "green", dtype=object)}
    known, rng = reference(), np.random.default_rng(2)
    rows = columns(rng, 500) | {name: np.resize(values, 500) for name, values in moved.items()}

    def ask(name: str) -> float:
        return change(score, BINS, known.total, rows, name, np.random.default_rng(3))

    assert (ask(feature) > IGNORED) == heeded
    of = {"start": 0.0, "end": 7 * DAY_S}
    window = week(4, **moved)
    assert judge_drift(Monitoring(), known, window, **of).alarm
    found = judge_drift(Monitoring(), known, window, change=ask, **of)
    assert found.alarm == heeded
    assert found.detail["ignored"] == ([] if heeded else ["c"])
    if not heeded:
        assert found.why.endswith("; the model's answers do not change with c")
