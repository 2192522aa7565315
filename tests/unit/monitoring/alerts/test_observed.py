"""What the state database says that rules may ask about."""

from __future__ import annotations

from typing import Any

import pytest

from mlops_ray.monitoring.alerts.alerting import Condition
from mlops_ray.monitoring.alerts.observed import Observer, of_windows
from mlops_ray.state import RetrainRow, Store, WindowRow
from tests.fakes import project

SMALL = project()
BAD: dict[str, Any] = {"alarm": True, "why": "bad", "limit": 0.5, "features": []}
GOOD: dict[str, Any] = {"alarm": False, "why": "good", "limit": 0.5, "features": []}
SILENT: dict[str, Any] = {"alarm": False, "why": "3 rows; 500 are needed", "limit": None, "features": []}


def windows(*entries: dict[str, Any] | None, kind: str = "quality", version: int = 3) -> list[WindowRow]:
    """Newest first."""
    return [
        WindowRow("small", 100.0 - i, 101.0 - i, version, {} if entry is None else {kind: entry})
        for i, entry in enumerate(entries)
    ]


@pytest.mark.parametrize(
    ("entries", "n"),
    [
        ((), 0),
        ((GOOD, BAD), 0),
        ((BAD,), 1),
        ((BAD, BAD, GOOD, BAD), 2),
        ((None, BAD, None, BAD), 2),  # quality lags behind drift
        ((SILENT, BAD, SILENT, BAD, GOOD), 2),  # too few rows say nothing, neither that it is well
        ((SILENT, GOOD), 0),
    ],
)
def test_runs_of_alarms(entries: tuple[dict[str, Any] | None, ...], n: int) -> None:
    found = of_windows(windows(*entries), 3)
    assert found == ([Condition("quality", "v3", "bad", n)] if n else [])


def test_each_kind_is_apart_and_other_versions_play_no_part() -> None:
    rows = [*windows(BAD, kind="drift"), *windows(BAD, kind="estimated"), *windows(BAD, version=2)]
    assert {(c.when, c.subject) for c in of_windows(rows, 3)} == {("drift", "v3"), ("estimated_quality", "v3")}


def test_drift_of_a_judged_window_has_features() -> None:
    good = {"alarm": False, "why": "x: PSI 0.0", "features": [{"feature": "x"}], "rows": 9}
    assert of_windows(windows(good, BAD, kind="drift"), 3) == []


def test_the_classifier_alarms_in_runs_and_says_nothing_where_it_was_not_asked() -> None:
    bad = {"alarm": True, "why": "told apart", "auc": 0.7, "p": 0.01}
    good, silent = bad | {"alarm": False, "auc": 0.5}, bad | {"alarm": False, "auc": None}
    found = of_windows(windows(silent, bad, silent, bad, good, kind="multivariate"), 3)
    assert found == [Condition("multivariate", "v3", "told apart", 2)]
    assert of_windows(windows(good, bad, kind="multivariate"), 3) == []


def test_an_alarm_of_the_sequential_detector_stands_until_a_whole_window_after_it_is_well() -> None:
    alarm = WindowRow("small", 10.0, 20.0, 3, {"sequential": {"alarm": True, "why": "risen", "at": 22.0}})
    during, after = (WindowRow("small", at, at + 7.0, 3, {"quality": GOOD}) for at in (14.0, 21.0))
    stands = [Condition("sequential", "v3", "risen")]
    assert of_windows([alarm], 3) == stands
    assert of_windows([during, alarm], 3) == stands
    assert of_windows([after, during, alarm], 3) == []
    silent = WindowRow("small", 21.0, 28.0, 3, {"quality": SILENT})
    assert of_windows([silent, alarm], 3) == stands
    assert of_windows([alarm], 4) == []


def test_data_quality_in_flight_alarms_in_runs_of_windows_with_findings() -> None:
    def drift(*findings: str) -> dict[str, Any]:
        return GOOD | {"features": [{"feature": "x"}], "in_flight": {"findings": list(findings), "why": "x: missing"}}

    found = of_windows(windows(drift("x"), SILENT, drift("x"), drift(), kind="drift"), 3)
    assert found == [Condition("data_quality", "v3", "x: missing", 2)]
    assert of_windows(windows(drift(), drift("x"), kind="drift"), 3) == []


def test_before_anything_happened(store: Store) -> None:
    with store.read() as tx:
        assert Observer(SMALL).observe(tx, 1e9) == []


def test_traffic_that_stays_away(store: Store) -> None:
    with store.begin() as tx:
        tx.save_serving("small", {"stable": {"version": 3}}, 0)
        tx.save_window(WindowRow("small", 0.0, 7.0, 3, {"quality": BAD}))
        tx.save_cursor("small", "watermark", 0, 1e9)
        tx.save_cursor("small", "seen", 0, 1e9 + 5)
    with store.read() as tx:
        assert [c.when for c in Observer(SMALL).observe(tx, 1e9 + 905)] == ["quality"]
        found = Observer(SMALL).observe(tx, 1e9 + 906)
        assert [c.when for c in found] == ["quality", "no_traffic"]
        assert "no rows since 2001-09-09 01:46 UTC" in found[1].why
        assert Observer(SMALL).observe(tx, 1e9 + 5000) == found  # words that do not change are no change
    # A retrain keeps decision time from going on: that is no traffic.
    with store.begin() as tx:
        tx.save_cursor("small", "decision time", 0, 1e9 + 1)
        tx.save_retrain(RetrainRow("r", "small", "drift", "x", 1e9, "s", "submitted", {}, 1e9))
        tx.save_cursor("small", "seen", 0, 1e9 + 906)
    with store.read() as tx:
        assert [c.when for c in Observer(SMALL).observe(tx, 1e9 + 907)] == ["quality", "no_traffic"]
    with store.begin() as tx:
        tx.save_cursor("small", "watermark", 0, 1e9 + 950)
        tx.save_cursor("small", "seen", 0, 1e9 + 951)
    with store.read() as tx:
        assert [c.when for c in Observer(SMALL).observe(tx, 1e9 + 952)] == ["quality"]


def test_windows_are_read_again_when_one_is_judged_or_another_version_is_stable(store: Store) -> None:
    observer = Observer(SMALL)

    def seen() -> list[str]:
        with store.read() as tx:
            return [c.subject for c in observer.observe(tx, 1e9)]

    with store.begin() as tx:
        tx.save_serving("small", {"stable": {"version": 3}}, 0)
    assert seen() == []
    with store.begin() as tx:
        tx.save_window(WindowRow("small", 0.0, 7.0, 3, {"quality": BAD}))
        tx.save_window(WindowRow("small", 0.0, 7.0, 4, {"quality": BAD}))
        tx.save_cursor("small", "judged", 1, 7.0)
    assert seen() == ["v3"]
    with store.begin() as tx:
        tx.save_serving("small", {"stable": {"version": 4}}, 0)
    assert seen() == ["v4"]
    with store.begin() as tx:
        tx.save_window(WindowRow("small", 7.0, 14.0, 4, {"quality": GOOD}))
        tx.save_cursor("small", "judged", 1, 14.0)
    assert seen() == []
