from __future__ import annotations

import json
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mlops_ray.config import RolloutPlan
from mlops_ray.errors import IllegalMove
from mlops_ray.rollout.canary import (
    ENDED,
    LEGAL,
    CanaryState,
    Move,
    Phase,
    Reason,
    advance,
    canary_share,
    flipped,
    move,
    started,
)
from mlops_ray.training.gates.verdict import Verdict

PLAN = RolloutPlan(shares=(0.1, 0.5), step_min_s=10, step_max_s=100)
CHOICES: tuple[Literal["rollback", "pause", "wait"], ...] = ("rollback", "pause", "wait")
PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def ramping(step: int = 0, since: float = 0.0) -> CanaryState:
    return CanaryState(Phase.RAMPING, step, since)


@pytest.mark.parametrize(
    ("step", "verdict", "now", "after"),
    [
        (0, OPEN, 5, ramping(0)),
        (0, OPEN, 100, ramping(0)),
        (0, OPEN, 101, CanaryState(Phase.ROLLED_BACK, 0, 101, Reason.TIME_OUT)),
        (0, PASS, 9.9, ramping(0)),
        (0, PASS, 10, ramping(1, since=10)),
        (0, PASS, 500, ramping(1, since=500)),
        (1, PASS, 9.9, ramping(1)),
        (1, PASS, 10, CanaryState(Phase.PROMOTING, 1, 10, Reason.EVIDENCE)),
        (0, FAIL, 0, CanaryState(Phase.ROLLED_BACK, 0, 0, Reason.EVIDENCE)),
        (1, FAIL, 500, CanaryState(Phase.ROLLED_BACK, 1, 500, Reason.EVIDENCE)),
    ],
)
def test_one_look(step: int, verdict: Verdict, now: float, after: CanaryState) -> None:
    assert advance(PLAN, ramping(step), verdict, now=now) == after


@pytest.mark.parametrize(
    ("choice", "after"),
    [
        ("rollback", CanaryState(Phase.ROLLED_BACK, 0, 101, Reason.TIME_OUT)),
        ("pause", CanaryState(Phase.PAUSED, 0, 101, Reason.TIME_OUT)),
        ("wait", ramping(0)),
    ],
)
def test_a_step_without_a_verdict_ends_as_planned(choice: Any, after: CanaryState) -> None:
    assert advance(PLAN.model_copy(update={"on_inconclusive": choice}), ramping(), OPEN, now=101) == after


def test_one_look_is_one_step_even_without_a_least_wait() -> None:
    """Found: with `step_min_s: 0` a repeated look took another step, and promoted without evidence of that step."""
    plan = PLAN.model_copy(update={"step_min_s": 0.0})
    once = advance(plan, ramping(), PASS, now=5)
    assert once == advance(plan, once, PASS, now=5) == ramping(1, since=5)
    assert advance(plan, once, PASS, now=6).phase is Phase.PROMOTING


states = st.builds(
    CanaryState, st.sampled_from(Phase), st.integers(0, 1), st.integers(0, 300).map(float), st.sampled_from(Reason)
)
plans = st.sampled_from(
    [
        RolloutPlan(shares=(0.1, 0.5), step_min_s=least, step_max_s=100, on_inconclusive=choice)
        for least in (0.0, 10.0, 100.0)
        for choice in CHOICES
    ]
)
verdicts = st.sampled_from(Verdict)
times = st.integers(0, 300).map(float)


@given(plans, states, verdicts, times)
def test_the_same_look_again_changes_nothing_more(
    plan: RolloutPlan, state: CanaryState, verdict: Verdict, now: float
) -> None:
    once = advance(plan, state, verdict, now=now)
    assert advance(plan, once, verdict, now=now) == once


@given(plans, states, st.lists(st.tuples(verdicts, st.integers(0, 60)), max_size=12))
def test_a_rollout_only_goes_forward(plan: RolloutPlan, state: CanaryState, looks: list[tuple[Verdict, int]]) -> None:
    now, passes = state.since, 0
    for verdict, step_s in looks:
        now, before = now + step_s, state
        state = advance(plan, before, verdict, now=now)
        if before.phase is not Phase.RAMPING:
            assert state == before  # ended, paused and promoting are for others to leave
        assert state.step in (before.step, before.step + 1)
        assert state.since in (before.since, now)
        if state.phase in (Phase.PROMOTING, Phase.PROMOTED) and state != before:
            assert verdict is PASS
            assert before.step == len(plan.shares) - 1
        passes += verdict is PASS
    assert state.step <= 1 + passes


@given(plans, times)
def test_missing_evidence_never_promotes(plan: RolloutPlan, now: float) -> None:
    state = ramping(1)
    for at in (now, now + 1000, now + 10**9):
        state = advance(plan, state, OPEN, now=at)
    assert state.phase not in (Phase.PROMOTING, Phase.PROMOTED)


# --- what is seen of the replicas ---


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("ready", "crashed"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_the_canarys_replica_shows(phase: Phase, ready: bool, crashed: bool) -> None:
    state = CanaryState(phase, 1, 5.0)
    after = started(state, ready=ready, crashed=crashed)
    if crashed and phase in (Phase.STARTING, Phase.RAMPING, Phase.PAUSED):
        assert after == CanaryState(Phase.ROLLED_BACK, 1, 5.0, Reason.CRASH)
    elif ready and not crashed and phase is Phase.STARTING:
        assert after == CanaryState(Phase.RAMPING, 1, 5.0)
    else:
        assert after == state
    assert started(after, ready=ready, crashed=crashed) == after


@pytest.mark.parametrize("phase", Phase)
def test_promoted_only_when_all_replicas_answer_with_it(phase: Phase) -> None:
    state = CanaryState(phase, 1, 5.0, Reason.EVIDENCE)
    assert flipped(state, answering=False) == state
    expected = Phase.PROMOTED if phase is Phase.PROMOTING else phase
    assert flipped(state, answering=True) == CanaryState(expected, 1, 5.0, Reason.EVIDENCE)


# --- orders ---

MOVES = {
    (Phase.STARTING, Move.ABORT): Phase.ROLLED_BACK,
    (Phase.RAMPING, Move.PAUSE): Phase.PAUSED,
    (Phase.RAMPING, Move.PROMOTE): Phase.PROMOTING,
    (Phase.RAMPING, Move.ABORT): Phase.ROLLED_BACK,
    (Phase.PAUSED, Move.RESUME): Phase.RAMPING,
    (Phase.PAUSED, Move.PROMOTE): Phase.PROMOTING,
    (Phase.PAUSED, Move.ABORT): Phase.ROLLED_BACK,
    (Phase.PROMOTING, Move.ABORT): Phase.ROLLED_BACK,
    (Phase.PROMOTED, Move.ROLLBACK): Phase.ROLLED_BACK,
}


@pytest.mark.parametrize("order", Move)
@pytest.mark.parametrize("phase", Phase)
def test_every_order_in_every_phase(phase: Phase, order: Move) -> None:
    state = CanaryState(phase, 1, 5.0)
    assert (order in LEGAL[phase]) == ((phase, order) in MOVES)
    if (phase, order) in MOVES:
        assert move(state, order, now=9.0) == CanaryState(MOVES[phase, order], 1, 9.0, Reason.OPERATOR)
    else:
        with pytest.raises(IllegalMove) as caught:
            move(state, order, now=9.0)
        assert caught.value.legal == tuple(o for p, o in MOVES if p is phase)
        assert phase.value in str(caught.value)


def test_a_paused_step_starts_its_wait_anew() -> None:
    paused = move(ramping(1), Move.PAUSE, now=50)
    assert advance(PLAN, paused, PASS, now=60) == paused
    resumed = move(paused, Move.RESUME, now=70)
    assert advance(PLAN, resumed, PASS, now=75) == resumed
    assert advance(PLAN, resumed, PASS, now=80).phase is Phase.PROMOTING


@pytest.mark.parametrize("phase", Phase)
def test_traffic_only_while_on_trial(phase: Phase) -> None:
    shares = [canary_share(PLAN, CanaryState(phase, step, 0.0)) for step in (0, 1)]
    assert shares == ([0.1, 0.5] if phase in (Phase.RAMPING, Phase.PAUSED) else [0.0, 0.0])


@given(states)
def test_a_state_survives_the_state_database(state: CanaryState) -> None:
    assert CanaryState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_every_phase_has_its_orders_and_the_last_one_none() -> None:
    assert LEGAL.keys() == set(Phase)
    assert set(ENDED) == {Phase.PROMOTED, Phase.ROLLED_BACK}
    assert LEGAL[Phase.ROLLED_BACK] == ()
