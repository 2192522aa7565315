"""What is made of the state database's rows for a scrape: counts once, states of detectors, few versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.monitoring.folding import fold
from mlops_ray.monitoring.prometheus.exposed import LAST_VERSIONS, STATES, Family, families, gather, shown, standing
from mlops_ray.state import RetrainRow, RolloutRow, ServingRow, Store, VersionRow, WindowRow

PUSH: dict[str, Any] = {"spool": "s", "base": -1, "number": 0, "profiles": [], "watermark": None, "newest": None}
PUSH |= {"node": None, "passed": None, "nodes": ()}
LIMIT = {"limit": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


def version(number: int) -> VersionRow:
    return VersionRow("small", number, "run", "/model", "sha", "data", "registered", 0.0, {})


def exposed(store: Store) -> dict[str, Family]:
    with store.read() as tx:
        return {family.name: family for family in families(gather(tx, "small"))}


def samples(store: Store, name: str) -> dict[tuple[str, ...], Any]:
    return {tuple(labels.values()): value for labels, value in exposed(store)[f"mlops_ray_{name}"].samples}


def pushed(store: Store, base: int, counted: Mapping[str, tuple[int, float]], now: float = 50.0) -> bool:
    push = PUSH | {"base": base, "number": base + 1, "counted": dict(counted)}
    return store.run(lambda tx: fold(tx, "small", push, now))


def test_counts_of_a_push_are_added_once_and_another_projects_are_not_ours(store: Store) -> None:
    with store.begin() as tx:
        tx.save_version(version(4))
    first = {"failed:4:error": (2, 0.0), "tried:4": (9, 0.0), "labels": (3, 40.0), "uncaptured:disk": (7, 0.0)}
    assert pushed(store, -1, first)
    assert not pushed(store, -1, first)  # repeated
    assert pushed(store, 0, {"failed:4:error": (1, 0.0), "labels": (1, 30.0)})
    store.run(lambda tx: fold(tx, "other", PUSH | {"counted": {"labels": (100, 1.0)}}, 50.0))
    assert samples(store, "canary_failures") == {("4", "error"): 3}
    assert samples(store, "canary_rows") == {("4",): 9}
    assert samples(store, "uncaptured_rows") == {("disk",): 7}
    assert samples(store, "labels") == {(): 4}
    assert samples(store, "label_seconds") == {(): 40.0}


def test_no_label_comes_from_the_future(store: Store) -> None:
    pushed(store, -1, {"labels": (1, 9e9)}, now=50.0)
    assert samples(store, "label_seconds") == {(): 50.0}


def test_a_collector_of_the_release_before_counts_nothing_and_is_folded(store: Store) -> None:
    assert store.run(lambda tx: fold(tx, "small", PUSH, 50.0))
    assert samples(store, "labels") == {}


def test_buckets_are_cumulative_and_their_last_is_all_rows(store: Store) -> None:
    with store.begin() as tx:
        tx.save_version(version(4))
    pushed(store, -1, {"score:4:1": (5, 0.0), "score:4:3": (2, 0.0), "score_us:4": (1_500, 0.0)})
    buckets, total = samples(store, "score_seconds")[("4",)]
    counts = [n for _, n in buckets]
    assert counts[:5] == [0, 5, 5, 7, 7]
    assert counts[-1] == 7
    assert buckets[-1][0] == float("inf")
    assert total == pytest.approx(0.0015)


def test_versions_are_those_that_serve_and_the_last_few() -> None:
    rows = [version(n) for n in range(1, 41)]
    held = [{"version": 7}, {"version": 5}]
    spec = {"stable": {"version": 9}, "canary": None, "warm": held, "arms": [{"version": 3}]}
    assert shown(ServingRow("small", 1, 0, spec), rows) == [3, 5, 7, 9, *range(41 - LAST_VERSIONS, 41)]
    assert shown(None, []) == []


@pytest.mark.parametrize(
    ("entry", "state"),
    [
        ({"alarm": True, "why": "PSI"} | LIMIT, "alarm"),
        ({"alarm": False, "why": "log-loss 0.4 against a limit of 0.5"} | LIMIT, "ok"),
        ({"alarm": False, "why": "x: PSI 0.1", "features": [{"feature": "x"}]}, "ok"),
        ({"alarm": False, "why": "uncalibrated: the holdout has 3 blocks", "limit": None}, "uncalibrated"),
        ({"alarm": False, "why": "12 rows; 500 are needed", "features": []}, "silent"),
        ({"alarm": False, "why": "warming up: 3 labelled rows of 500", "limit": None}, "silent"),
    ],
)
def test_what_a_detector_says(entry: dict[str, Any], state: str) -> None:
    assert standing(entry) == state


def test_each_detector_shows_its_newest_window_in_exactly_one_state(store: Store) -> None:
    fine = {"alarm": False, "why": ""} | LIMIT
    with store.begin() as tx:
        tx.save_window(WindowRow("small", 0.0, 7.0, 1, {"drift": fine, "quality": fine | {"alarm": True}}))
        tx.save_window(WindowRow("small", 7.0, 14.0, 1, {"drift": fine | {"alarm": True}, "note": "no detector"}))
    found = samples(store, "detector_state")
    assert {key for key, value in found.items() if value} == {("drift", "alarm"), ("quality", "alarm")}
    assert len(found) == 2 * len(STATES)
    assert samples(store, "detector_window_end_seconds") == {("drift",): 14.0, ("quality",): 7.0}
    assert samples(store, "windows") == {(): 2}


def test_arms_have_versions_of_their_own(store: Store) -> None:
    metric = {"name": "failures", "margin": 0.01, "estimate": 0.0, "low": None, "high": None}
    metric |= {"evidence_worse": 1.0, "evidence_fine": 2.0}
    look = {"at": 5.0, "analysis": {"metrics": [metric | {"arm": 4}, metric | {"arm": 6}]}}
    state = {"phase": "ramping", "step": 0, "since": 1.0, "look": look}
    with store.begin() as tx:
        tx.save_rollout(RolloutRow("r", "small", 4, 3, {}, state, 1.0))
    assert samples(store, "rollout_difference") == {("4", "failures"): 0.0, ("6", "failures"): 0.0}
    assert samples(store, "rollout_difference_low") == {}
    assert samples(store, "rollout_since_seconds") == {("4", "ramping"): 1.0}


def test_failures_in_a_row_are_the_policys_own(store: Store) -> None:
    endings = ["succeeded", "failed", "rejected", "failed"]
    with store.begin() as tx:
        for i, status in enumerate(endings):
            tx.save_retrain(RetrainRow(f"t{i}", "small", "drift", "", float(i), "j", status, {}, 100.0 + i))
        tx.save_retrain(RetrainRow("t9", "small", "manual", "", 9.0, "j", "succeeded", {}, 109.0))
    assert samples(store, "retrain_failures") == {(): 3.0}
    found = samples(store, "retrain_updated_timestamp_seconds")
    assert found == {("failed",): 103.0, ("rejected",): 102.0, ("succeeded",): 109.0}
