from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.rollout.trail import MOST, MOST_METRICS, trailed


def look(at: float, n_metrics: int = 1) -> dict[str, Any]:
    metrics = [{"name": f"m{k}", "n_keys": 7, "estimate": 0.1, "verdict": "pass"} for k in range(n_metrics)]
    return {"at": at, "analysis": {"metrics": metrics}}


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300))
def test_a_trail_is_short_in_order_and_keeps_both_ends(gaps: list[float]) -> None:
    trail: list[Any] = []
    at = 0.0
    for gap in gaps:
        at += gap
        trail = trailed(trail, look(at))
        times = [point[0] for point in trail]
        assert len(trail) <= MOST
        assert times == sorted(set(times))
        assert (times[0], times[-1]) == (gaps[0], at)


@given(st.integers(MOST, 2000))
def test_looks_at_an_even_pace_leave_no_large_gap(n: int) -> None:
    trail: list[Any] = []
    for k in range(n):
        trail = trailed(trail, look(float(k)))
    times = [point[0] for point in trail]
    assert max(b - a for a, b in itertools.pairwise(times)) <= 0.3 * n


def test_a_look_that_is_repeated_takes_its_own_place() -> None:
    trail = trailed(trailed([], look(1.0)), look(2.0))
    assert trailed(trail, look(2.0)) == trail


def test_of_many_metrics_the_first_are_kept() -> None:
    (point,) = trailed([], look(1.0, n_metrics=100))
    assert len(point[1]) == MOST_METRICS
