from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import Monitoring
from mlops_ray.monitoring.due import Due, Kind, by_rows, due
from mlops_ray.state import Cursor

PLAN = Monitoring(window_s=40.0, block_s=10.0, label_horizon_s=15.0)


def test_windows_close_and_mature_and_blocks_mature() -> None:
    of_all = due(PLAN, first=0.0, judged=Cursor(), now=56.0)
    found = [d for d in of_all if d.kind is not Kind.INPUTS]
    assert [d for d in of_all if d.kind is Kind.INPUTS] == [
        Due(end, Kind.INPUTS, end - 10.0, end) for end in (10.0, 20.0, 30.0, 40.0, 50.0)
    ]
    assert found == [
        *(Due(end + 15.0, Kind.SEQUENTIAL, end - 10.0, end) for end in (10.0, 20.0)),
        Due(40.0, Kind.DRIFT, 0.0, 40.0),
        Due(45.0, Kind.SEQUENTIAL, 20.0, 30.0),
        Due(55.0, Kind.QUALITY, 0.0, 40.0),
        Due(55.0, Kind.SEQUENTIAL, 30.0, 40.0),
    ]


def test_a_window_that_began_before_the_traffic_is_not_judged() -> None:
    windows = [d for d in due(PLAN, first=10.0, judged=Cursor(), now=200.0) if d.kind in (Kind.DRIFT, Kind.QUALITY)]
    assert min(d.start for d in windows) == 40.0


@given(st.lists(st.integers(0, 400), max_size=12))
def test_each_instant_comes_once_however_time_is_cut(looks: list[int]) -> None:
    """The cursor stands at what was judged last; a look that is cut off there goes on behind it."""
    judged, found = Cursor(), []
    for now in [*sorted(looks), 400]:
        some = due(PLAN, first=0.0, judged=judged, now=float(now))
        some = some[: 1 + now % 5] if now < 400 else some  # cut off
        found += some
        if some:
            judged = Cursor(some[-1].kind, some[-1].at)
    assert found == due(PLAN, first=0.0, judged=Cursor(), now=400.0)


def test_a_row_dated_long_ago_does_not_hold_up_the_monitor() -> None:
    found = due(PLAN, first=0.0, judged=Cursor(), now=1e6)
    assert len(found) == pytest.approx(4 * 520, abs=4)
    assert found[-1].at > 1e6 - 20


def test_sliding_windows_close_every_slide_and_quality_is_of_those_side_by_side() -> None:
    plan = Monitoring(window_s=40.0, block_s=10.0, slide_s=10.0, label_horizon_s=15.0)
    found = [d for d in due(plan, first=0.0, judged=Cursor(), now=85.0) if d.kind in (Kind.DRIFT, Kind.QUALITY)]
    assert [(d.start, d.end) for d in found if d.kind is Kind.DRIFT] == [(s, s + 40.0) for s in (0, 10, 20, 30, 40)]
    assert [(d.start, d.end) for d in found if d.kind is Kind.QUALITY] == [(0.0, 40.0)]


def test_windows_by_rows_end_with_the_block_that_fills_them() -> None:
    plan = Monitoring(window_s=40.0, block_s=10.0, window_rows=25, label_horizon_s=15.0)
    rows = [(0.0, 10), (10.0, 10), (20.0, 10), (50.0, 30), (60.0, 5)]
    filled = by_rows(plan, rows, now=65.0)
    assert filled == [(0.0, 30.0), (50.0, 60.0)]
    assert by_rows(plan, rows, now=59.0) == filled[:1]  # its last block is not over
    found = [
        d
        for d in due(plan, first=0.0, judged=Cursor(), now=65.0, filled=filled)
        if d.kind in (Kind.DRIFT, Kind.QUALITY)
    ]
    assert found == [
        Due(30.0, Kind.DRIFT, 0.0, 30.0),
        Due(45.0, Kind.QUALITY, 0.0, 30.0),
        Due(60.0, Kind.DRIFT, 50.0, 60.0),
    ]
