"""A/B/n: what a look decides about the arms, and how often that is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import RolloutPlan
from mlops_ray.errors import DataError
from mlops_ray.rollout import canary, experiment
from mlops_ray.rollout.analysis import SPENT, Analysis, Metric, OfArm
from mlops_ray.rollout.canary import Arm, CanaryState, Move, Phase, Reason
from mlops_ray.rollout.evidence import capital, within
from mlops_ray.training.gates.verdict import Verdict

PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
DAY = 86_400.0
PLAN = RolloutPlan.model_validate({"mode": "ab", "ab": {"share": 0.2}})
ARMS = (Arm(7), Arm(8), Arm(9))
RAMPING = CanaryState(Phase.RAMPING, 0, 0.0, arms=ARMS)


def plan(**changes: Any) -> RolloutPlan:
    return RolloutPlan.model_validate({**PLAN.model_dump(), **changes})


def seen(**of_arms: Any) -> Analysis:
    """A look: of each arm, as `v7`, its verdict, or its gain where it has won. Exhausted: `over`."""
    over = of_arms.pop("over", False)
    arms = []
    for name, said in of_arms.items():
        won = not isinstance(said, Verdict)
        verdict = PASS if won else said
        arms.append(OfArm(int(name[1:]), verdict, won, said if won else 0.0, 500, over))
    return Analysis(OPEN, (), 1500, over, tuple(arms))


def advance(analysis: Analysis, state: CanaryState = RAMPING, by: RolloutPlan = PLAN, **more: Any) -> CanaryState:
    after = experiment.advance(by, state, analysis, **({"now": 2 * DAY} | more))
    assert experiment.advance(by, after, analysis, **({"now": 2 * DAY} | more)) == after
    return after


# The state machine ----------------------------------------------------------------------------------------------------


def test_an_arm_that_is_worse_is_dropped_and_the_others_stay() -> None:
    after = advance(seen(v7=OPEN, v8=FAIL, v9=OPEN))
    assert (after.phase, after.since) == (Phase.RAMPING, 0.0)
    assert after.arms == (Arm(7), Arm(8, Reason.EVIDENCE, 2 * DAY), Arm(9))
    assert (after.live, after.changed) == ((7, 9), 2 * DAY)
    assert CanaryState.from_dict(after.to_dict()) == after
    assert experiment.in_words(RAMPING, after).startswith("v8 gave its keys back to stable (evidence)")


def test_the_last_arm_that_is_dropped_ends_the_rollout() -> None:
    after = advance(seen(v7=FAIL, v8=FAIL, v9=FAIL))
    assert (after.phase, after.reason, after.live) == (Phase.ROLLED_BACK, Reason.EVIDENCE, ())


def test_the_best_of_several_winners_is_promoted_once_none_is_undecided() -> None:
    assert advance(seen(v7=0.01, v8=0.02, v9=OPEN)) == RAMPING
    after = advance(seen(v7=0.01, v8=0.02, v9=FAIL))
    assert (after.phase, after.reason, after.chosen) == (Phase.PROMOTING, Reason.EVIDENCE, 8)
    asked = advance(seen(v7=0.01, v8=0.02, v9=0.0), by=plan(approval="before_promotion"))
    assert (asked.phase, asked.origin, asked.chosen, asked.live) == (Phase.PENDING, Phase.RAMPING, 8, (7, 8, 9))


@pytest.mark.parametrize("over", [{"now": 15 * DAY}, {"rows": True}])
def test_an_undecided_arm_is_waited_for_until_time_or_rows_are_up(over: dict[str, Any]) -> None:
    analysis = seen(v7=OPEN, v8=0.02, v9=OPEN, over="rows" in over)
    after = advance(analysis, now=over.get("now", 2 * DAY))
    assert (after.phase, after.chosen) == (Phase.PROMOTING, 8)


@pytest.mark.parametrize(
    ("then", "phase"), [("rollback", Phase.ROLLED_BACK), ("pause", Phase.PAUSED), ("wait", Phase.RAMPING)]
)
def test_without_a_winner_the_end_is_the_plans(then: str, phase: Phase) -> None:
    """An arm that passes is fine, but nobody has shown that it is better."""
    after = experiment.advance(plan(on_inconclusive=then), RAMPING, seen(v7=OPEN, v8=PASS, v9=OPEN), now=15 * DAY)
    assert after.phase is phase
    assert after.chosen is None


def test_a_step_takes_its_least_time_and_waits_for_the_schedule() -> None:
    won = seen(v7=0.01, v8=FAIL, v9=FAIL)
    assert advance(won, now=DAY / 2).phase is Phase.RAMPING
    assert advance(won, may_go=False).phase is Phase.RAMPING
    assert advance(won, may_go=False).live == (7,), "what is worse waits for nothing"


def test_by_command_a_winner_waits_for_the_order() -> None:
    ordered = plan(ab={"share": 0.2, "winner": "by_command"})
    won = seen(v7=0.01, v8=OPEN, v9=0.02)
    assert advance(won, by=ordered, now=30 * DAY) == RAMPING
    after = canary.move(ordered, RAMPING, Move.PROMOTE, now=DAY, version=experiment.promoted(RAMPING, 7, 9))
    assert (after.phase, after.chosen, after.reason) == (Phase.PROMOTING, 9, Reason.OPERATOR)


def test_what_is_held_still_drops_what_is_worse_and_a_choice_that_turns_bad_ends_it() -> None:
    paused = replace(RAMPING, phase=Phase.PAUSED)
    assert advance(seen(v7=FAIL, v8=0.1, v9=0.1), paused) == replace(
        paused, arms=(Arm(7, Reason.EVIDENCE, 2 * DAY), *ARMS[1:])
    )
    asked = advance(seen(v7=0.01, v8=0.02, v9=0.0), by=plan(approval="before_promotion"))
    assert advance(seen(v7=FAIL, v8=OPEN, v9=OPEN), asked, now=3 * DAY).phase is Phase.PENDING
    assert advance(seen(v7=OPEN, v8=FAIL, v9=OPEN), asked, now=3 * DAY).phase is Phase.ROLLED_BACK


def test_while_it_bakes_the_winner_alone_is_watched() -> None:
    baking = replace(RAMPING, phase=Phase.BAKING, chosen=8)
    assert experiment.watched(baking) == (8,)
    found = experiment.together({8: Analysis(FAIL, (Metric("log_loss", 0.02, 100, 0.1, 1e4, 0.1, FAIL),), 100)})
    assert experiment.advance(PLAN, baking, found, now=DAY).phase is Phase.ROLLED_BACK


def test_arms_start_together_and_a_crash_costs_its_own_keys_only() -> None:
    starting = CanaryState(Phase.STARTING, 0, 0.0, arms=ARMS)
    assert experiment.started(PLAN, starting, ready={7, 8}, crashed=(), now=9.0) == starting
    after = experiment.started(PLAN, starting, ready={7, 8}, crashed={9}, now=9.0)
    assert (after.phase, after.live, after.arms[2]) == (Phase.RAMPING, (7, 8), Arm(9, Reason.CRASH, 9.0))
    later = experiment.started(PLAN, after, ready=(), crashed={7, 8}, now=99.0)
    assert (later.phase, later.reason) == (Phase.ROLLED_BACK, Reason.CRASH)


def test_states_without_arms_are_stored_as_before() -> None:
    state = CanaryState(Phase.RAMPING, 1, 5.0)
    assert state.to_dict() == {"phase": "ramping", "step": 1, "since": 5.0, "reason": "", "origin": "ramping"}


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "versions", "says"),
    [
        (RolloutPlan(), (7, 8), "set `rollout.mode: ab`"),
        (PLAN, (7, 7), "named twice"),
        (PLAN, (5, 6, 7, 8, 9), "rollout.ab.share 0.2 for each leaves stable nothing; set it below 0.2"),
    ],
)
def test_versions_that_the_plan_has_no_room_for(by: RolloutPlan, versions: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        experiment.demand_shares(by, versions)


def test_an_order_to_promote_says_which() -> None:
    with pytest.raises(DataError, match="v7, v8, v9 are on trial; say which"):
        experiment.promoted(RAMPING, 7, None)
    with pytest.raises(DataError, match="it is not on trial; v7, v8, v9 can be promoted"):
        experiment.promoted(RAMPING, 7, 3)
    with pytest.raises(DataError, match="it is not on trial; v7 can be promoted"):
        experiment.promoted(CanaryState(Phase.RAMPING, 0, 0.0), 7, 8)
    assert experiment.promoted(replace(RAMPING, arms=(Arm(7, Reason.CRASH, 1.0), Arm(8))), 7, None) == 8
    assert experiment.promoted(CanaryState(Phase.RAMPING, 0, 0.0), 7, 7) is None


# Evidence -------------------------------------------------------------------------------------------------------------


def metric(verdict: Verdict, *, better: bool | None = None, estimate: float = 0.0) -> Metric:
    return Metric("m", 0.02, 500, estimate, 1.0, 1.0, verdict, better=better, evidence_better=1.0 if better else None)


def test_a_winner_is_better_in_the_objective_and_fine_in_all_else() -> None:
    found = experiment.together(
        {
            7: Analysis(PASS, (metric(PASS, better=True, estimate=-0.03), metric(PASS)), 500),
            8: Analysis(OPEN, (metric(PASS, better=True), metric(OPEN)), 500),
            9: Analysis(PASS, (metric(PASS, better=False), metric(PASS)), 500),
        }
    )
    assert [(arm.version, arm.won) for arm in found.arms] == [(7, True), (8, False), (9, False)]
    assert found.arms[0].gain == 0.03
    assert [m.arm for m in found.metrics] == [7, 7, 8, 8, 9, 9]
    assert Analysis.from_dict(found.to_dict()) == found
    plain = Analysis(PASS, (metric(PASS),), 500)
    assert not {"arms", "arm", "better", "evidence_better"} & {*plain.to_dict(), *plain.to_dict()["metrics"][0]}


def test_equal_arms_are_seldom_dropped_and_seldom_win() -> None:
    """400 experiments with 3 arms, looked at after each of 600 keys: both promises, at alpha 10 %."""
    rng, k, alpha = np.random.default_rng(5), 3, 0.1
    gaps = np.clip(rng.normal(0, 0.3, (400, k, 600)), -1, 1)
    bar = k / (SPENT * alpha)
    dropped = (capital(within(gaps, -1, 1), 0.0).max(axis=-1) >= bar).any(axis=1)
    won = (capital(within(-gaps, -1, 1), 0.0).max(axis=-1) >= bar).any(axis=1)
    assert dropped.mean() <= alpha
    assert won.mean() <= alpha
    better = np.clip(rng.normal(-0.08, 0.3, (50, 600)), -1, 1)
    assert (capital(within(-better, -1, 1), 0.0).max(axis=-1) >= bar).mean() > 0.8


def test_the_objective_is_something_a_version_can_be_better_in() -> None:
    with pytest.raises(ValueError, match="nobody can be better than stable in failures; put first"):
        plan(analyses=[{"metric": "failures"}, {"metric": "log_loss"}])
    with pytest.raises(ValueError, match=r"ab\.share"):
        plan(ab={"share": 1.0})
