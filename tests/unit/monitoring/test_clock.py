from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mlops_ray.monitoring.clock import decision_time, passed

moments = st.integers(0, 10**9).map(float)


@given(moments, moments, moments, st.integers(0, 10_000).map(float))
def test_decision_time_never_lies_before_the_watermark(watermark: float, seen: float, now: float, idle: float) -> None:
    found = decision_time(watermark, seen, now, idle_s=idle)
    assert found >= watermark
    if now <= seen + idle:  # also when the machine's clock was set back
        assert found == watermark


@given(moments, moments, st.integers(0, 10_000).map(float), st.integers(0, 10_000).map(float))
def test_idle_time_runs_at_the_machines_pace(watermark: float, seen: float, idle: float, more: float) -> None:
    now = seen + idle + more
    assert decision_time(watermark, seen, now, idle_s=idle) == watermark + more


@given(
    st.integers(-1000, 1000), st.lists(st.integers(0, 200), min_size=1, max_size=6), st.sampled_from([1.0, 7.0, 60.0])
)
def test_however_time_is_cut_each_instant_passes_once(start: int, steps: list[int], every: float) -> None:
    times = [float(start)]
    for step in steps:
        times.append(times[-1] + step)
    pieces = [t for a, b in pairwise(times) for t in passed(a, b, every_s=every)]
    assert pieces == passed(times[0], times[-1], every_s=every)
    assert pieces == sorted(set(pieces))
    assert all(times[0] < t <= times[-1] and t % every == 0 for t in pieces)


@pytest.mark.parametrize(
    ("after", "until", "expected"), [(10, 10, []), (9, 10, [10]), (10, 19, []), (30, 10, []), (-1, 0, [0])]
)
def test_the_ends_of_a_span(after: float, until: float, expected: list[float]) -> None:
    assert passed(after, until, every_s=10.0) == expected
