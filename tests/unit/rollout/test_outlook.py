from __future__ import annotations

from typing import Any

import pytest

from mlops_ray.config import RolloutPlan
from mlops_ray.rollout.analysis import Analysis, Metric
from mlops_ray.rollout.approval import Standing
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.orders import LOOK
from mlops_ray.rollout.outlook import outlook
from mlops_ray.state import RolloutRow
from mlops_ray.training.gates.verdict import Verdict

OPEN, PASS = Verdict.INCONCLUSIVE, Verdict.PASS
NOBODY = Standing(approved=False, rejected=False, missing=2)
FINE = Metric("failures", 0.01, 900, 0.0, 1.0, 50.0, PASS, 1000, 0.01, -0.01, 0.004, 0)
SLOW = Metric("log_loss", 0.02, 300, 0.004, 1.0, 3.0, OPEN, 320, 0.02, -0.01, 0.03, 450)


def row(state: CanaryState, *metrics: Metric, **plan: Any) -> RolloutRow:
    body = RolloutPlan(shares=(0.1, 0.5), step_min_s=100, step_max_s=1000, **plan).model_dump(mode="json")
    look = {LOOK: {"at": 30.0, "analysis": Analysis(OPEN, metrics, 1000).to_dict()}} if metrics else {}
    return RolloutRow("small-v2-r1", "small", 2, 1, body, state.to_dict() | look, 0.0)


def test_a_ramp_says_what_is_missing_and_for_how_long() -> None:
    found = outlook(row(CanaryState(Phase.RAMPING, 1, 20.0), FINE, SLOW), said=NOBODY, now=60.0)
    assert (found.phase, found.step, found.share, found.steps) == ("ramping", 1, 0.5, (0.1, 0.5))
    assert (found.least_s, found.most_s, found.keys, found.looked) == (60.0, 960.0, 450, 30.0)
    assert found.waits == ("evidence on log_loss", "the least time of the step")
    assert [m["name"] for m in found.metrics] == ["failures", "log_loss"]


def test_keys_to_go_are_unknown_where_one_metric_does_not_know() -> None:
    lost = Metric("brier", 0.02, 3, 0.0, 1.0, 1.0, OPEN)
    found = outlook(row(CanaryState(Phase.RAMPING, 0, 0.0), SLOW, lost), said=NOBODY, now=200.0)
    assert (found.keys, found.waits) == (None, ("evidence on log_loss, brier",))


@pytest.mark.parametrize(
    ("state", "plan", "waits"),
    [
        (CanaryState(Phase.RAMPING, 0, 0.0), {"step_min_s": 0}, ("the first look",)),
        (CanaryState(Phase.STARTING, 0, 0.0), {}, ("its replica to start",)),
        (CanaryState(Phase.PAUSED, 0, 0.0), {}, ("an operator: resume, promote or abort",)),
        (CanaryState(Phase.PROMOTING, 1, 0.0), {}, ("stable's replicas to load the version and flip",)),
        (CanaryState(Phase.BAKING, 1, 0.0), {"bake_s": 9.0}, ("the end of baking",)),
        (CanaryState(Phase.PROMOTED, 1, 0.0), {}, ()),
        (
            CanaryState(Phase.PENDING, 0, 0.0, origin=Phase.STARTING),
            {"approval": "before_start", "approvers": 2},
            ("approval: approved by nobody yet; 2 more must (asked of 2 people who may approve)",),
        ),
        (
            CanaryState(Phase.PENDING, 0, 0.0, origin=Phase.STARTING),
            {"schedule": {"hours": [9, 16]}},
            ("the schedule: only from 9:00 to 16:00 UTC",),
        ),
    ],
)
def test_what_each_phase_waits_for(state: CanaryState, plan: dict[str, Any], waits: tuple[str, ...]) -> None:
    body = RolloutPlan.model_validate(plan).model_dump(mode="json")
    found = outlook(RolloutRow("r", "small", 2, 1, body, state.to_dict(), 0.0), said=NOBODY, now=200.0)
    assert found.waits == waits


def test_a_state_of_the_release_before_is_shown_too() -> None:
    plan = {"shares": [0.1], "margins": {"log_loss": 0.02, "failures": 0.01}, "clip": 0.01}
    state = {"phase": "ramping", "step": 0, "since": 0.0, "reason": ""}
    found = outlook(RolloutRow("r", "small", 2, 1, plan, state, 0.0), said=NOBODY, now=200.0)
    assert (found.mode, found.share, found.metrics) == ("canary", 0.1, ())
