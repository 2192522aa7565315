"""What alerts may be about, of retrains, rollouts and versions."""

from __future__ import annotations

from typing import Any

import pytest

from mlops_ray.retraining.conditions import of_retrains, of_rollouts, of_versions
from mlops_ray.rollout.approval import Standing
from mlops_ray.state import RetrainRow, RolloutRow, VersionRow


def retrain(name: str, status: str, updated: float, **outcome: Any) -> RetrainRow:
    return RetrainRow(name, "small", "drift", "x", updated, "s", status, outcome, updated)


def rollout(phase: str, reason: str = "evidence", **state: Any) -> RolloutRow:
    body = {"phase": phase, "step": 1, "since": 0.0, "reason": reason} | state
    return RolloutRow("r7", "small", 7, 3, {}, body, 0.0)


def test_the_last_retrain_that_ended_counts() -> None:
    failed = retrain("t1", "failed", 1.0, error="no rows")
    rejected = retrain("t2", "rejected", 2.0, gates={"reasons": ["worse by 0.1"]})
    well, under_way = retrain("t3", "succeeded", 3.0), retrain("t4", "submitted", 4.0)
    assert [(c.when, c.why) for c in of_retrains([failed], None)] == [("retrain_failed", "t1 (drift): no rows")]
    assert [c.when for c in of_retrains([under_way, rejected, failed], None)] == ["retrain_rejected"]
    assert "worse by 0.1" in of_retrains([rejected], None)[0].why
    assert of_retrains([under_way, well, rejected, failed], None) == []
    assert of_retrains([], None) == []


def test_an_open_circuit() -> None:
    (found,) = of_retrains([], "circuit open after 3 failed retrains")
    assert (found.when, found.subject) == ("breaker_open", "retraining")


@pytest.mark.parametrize(
    ("row", "when"),
    [
        (rollout("rolled back"), "rollout_rolled_back"),
        (rollout("rolled back", "time-out"), "rollout_rolled_back"),
        (rollout("rolled back", "operator"), None),
        (rollout("paused", "plan"), "rollout_paused"),
        (rollout("ramping", ""), None),
        (rollout("promoted"), None),
        (rollout("aborted", "operator"), None),
    ],
)
def test_the_newest_rollout_counts(row: RolloutRow, when: str | None) -> None:
    assert [c.when for c in of_rollouts([row, rollout("rolled back")], None)] == ([when] if when else [])


def test_a_rollout_of_several_versions_names_them() -> None:
    arms = [{"version": v, "out": "", "since": None} for v in (7, 8)]
    (found,) = of_rollouts([rollout("paused", "plan", arms=arms)], None)
    assert found.subject == "v7+v8"


@pytest.mark.parametrize(
    ("said", "n"),
    [
        (Standing(False, False, 1), 1),
        (Standing(True, False, 0, ("ann",)), 0),  # it waits for its schedule
        (Standing(False, True, 1, (), ("ben",)), 0),
        (None, 0),
    ],
)
def test_a_rollout_that_waits_for_people(said: Standing | None, n: int) -> None:
    found = of_rollouts([rollout("pending", "")], said)
    assert [c.when for c in found] == ["rollout_waiting_approval"] * n


def test_versions_that_wait_for_people() -> None:
    rows = [
        VersionRow("small", v, "run", "/m", "sha", "data", status, 0.0, {})
        for v, status in ((2, "pending"), (3, "registered"), (4, "pending"), (5, "rejected"))
    ]
    assert [c.subject for c in of_versions(rows, 3)] == ["v4"]
