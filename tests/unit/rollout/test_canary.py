from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mlops_ray.config import RolloutPlan
from mlops_ray.errors import IllegalMove
from mlops_ray.rollout.canary import (
    ENDED,
    LEGAL,
    SUPERSEDABLE,
    TAKEN_BACK,
    CanaryState,
    Move,
    Phase,
    Reason,
    advance,
    at_once,
    canary_share,
    fell,
    first,
    flipped,
    heard,
    move,
    started,
    superseded,
)
from mlops_ray.training.gates.verdict import Verdict

PLAN = RolloutPlan(shares=(0.1, 0.5), step_min_s=10, step_max_s=100)
CHOICES: tuple[Literal["rollback", "pause", "wait"], ...] = ("rollback", "pause", "wait")
MODES: tuple[Literal["canary", "shadow", "shadow_then_canary", "immediate"], ...] = (
    "canary",
    "shadow",
    "shadow_then_canary",
    "immediate",
)
PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


def planned(**unlike: Any) -> RolloutPlan:
    return PLAN.model_copy(update=unlike)


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
    plan = planned(on_inconclusive=choice)
    assert advance(plan, ramping(), OPEN, now=101) == after
    early = advance(plan, ramping(), OPEN, now=5, exhausted=True)  # more rows would tell nothing
    assert (early.phase, early.reason) == (after.phase, after.reason)


def test_one_look_is_one_step_even_without_a_least_wait() -> None:
    """Found: with `step_min_s: 0` a repeated look took another step, and promoted without evidence of that step."""
    plan = planned(step_min_s=0.0)
    once = advance(plan, ramping(), PASS, now=5)
    assert once == advance(plan, once, PASS, now=5) == ramping(1, since=5)
    assert advance(plan, once, PASS, now=6).phase is Phase.PROMOTING


# --- the modes ---


def way(plan: RolloutPlan, *, approved: bool = True) -> list[Phase]:
    """Phases of a rollout in which everything goes well and everybody agrees, or nobody has said anything."""
    state, now = first(plan, may_go=True, now=0.0), 0.0
    phases = [state.phase]
    for _ in range(20):
        now += 1000
        steps: tuple[Callable[[CanaryState, float], CanaryState], ...] = (
            lambda s, at: heard(plan, s, approved=approved, rejected=False, may_go=True, now=at),
            lambda s, at: at_once(plan, s),
            lambda s, at: started(plan, s, ready=True, crashed=False, now=at),
            lambda s, at: advance(plan, s, PASS, now=at),
            lambda s, at: flipped(plan, s, answering=True, now=at),
        )
        for step in steps:
            after = step(state, now)
            if after.phase is not state.phase:
                phases.append(after.phase)
            state = after
    return phases


@pytest.mark.parametrize(
    ("mode", "phases"),
    [
        ("canary", "starting ramping promoting promoted"),
        ("shadow", "starting shadowing promoting promoted"),
        ("shadow_then_canary", "starting shadowing ramping promoting promoted"),
        ("immediate", "starting promoting promoted"),
    ],
)
def test_the_way_of_each_mode(mode: Any, phases: str) -> None:
    assert way(planned(mode=mode)) == phases.split()
    baked = phases.replace("promoting promoted", "promoting baking promoted")
    assert way(planned(mode=mode, bake_s=50.0)) == baked.split()
    assert way(planned(mode=mode, approval="before_start")) == ["pending", *phases.split()]
    # Nothing lies between the start of an immediate rollout and its promotion: people agree before both.
    asked = f"pending {phases}" if mode == "immediate" else phases.replace("promoting", "pending promoting")
    assert way(planned(mode=mode, approval="before_promotion")) == asked.split()


@pytest.mark.parametrize("approval", ["before_start", "before_promotion"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_promoted_that_people_have_not_approved(mode: Any, approval: Any) -> None:
    """Found: an immediate rollout went past `before_promotion`."""
    found = way(planned(mode=mode, approval=approval), approved=False)
    assert found[-1] is Phase.PENDING
    assert Phase.PROMOTING not in found


def test_a_shadow_that_passed_starts_the_ramp_at_its_first_step_and_answers_nobody_before() -> None:
    plan = planned(mode="shadow_then_canary")
    shadow = CanaryState(Phase.SHADOWING, 0, 0.0)
    assert canary_share(plan, shadow) == 0.0
    assert advance(plan, shadow, OPEN, now=50) == shadow
    ramp = advance(plan, shadow, PASS, now=50)
    assert ramp == ramping(0, since=50)
    assert canary_share(plan, ramp) == 0.1


# --- laws ---

states = st.builds(
    CanaryState,
    st.sampled_from(Phase),
    st.integers(0, 1),
    st.integers(0, 300).map(float),
    st.sampled_from(Reason),
    st.sampled_from((Phase.RAMPING, Phase.SHADOWING, Phase.STARTING)),
)
plans = st.builds(
    lambda least, choice, mode, approval, bake: RolloutPlan(
        shares=(0.1, 0.5),
        step_min_s=least,
        step_max_s=100,
        on_inconclusive=choice,
        mode=mode,
        approval=approval,
        bake_s=bake,
    ),
    st.sampled_from((0.0, 10.0, 100.0)),
    st.sampled_from(CHOICES),
    st.sampled_from(MODES),
    st.sampled_from(("none", "before_start", "before_promotion")),
    st.sampled_from((0.0, 50.0)),
)
verdicts = st.sampled_from(Verdict)
times = st.integers(0, 300).map(float)


@given(plans, states, verdicts, times, st.booleans(), st.booleans())
def test_the_same_look_again_changes_nothing_more(
    plan: RolloutPlan, state: CanaryState, verdict: Verdict, now: float, may_go: bool, exhausted: bool
) -> None:
    once = advance(plan, state, verdict, now=now, may_go=may_go, exhausted=exhausted)
    assert advance(plan, once, verdict, now=now, may_go=may_go, exhausted=exhausted) == once


@given(plans, states, times, st.booleans(), st.booleans(), st.booleans())
def test_the_same_news_again_change_nothing_more(
    plan: RolloutPlan, state: CanaryState, now: float, one: bool, two: bool, three: bool
) -> None:
    def hear(s: CanaryState) -> CanaryState:
        return heard(plan, s, approved=one, rejected=two, may_go=three, now=now)

    def start(s: CanaryState) -> CanaryState:
        return started(plan, s, ready=one, crashed=two, now=now)

    def flip(s: CanaryState) -> CanaryState:
        return flipped(plan, s, answering=one, now=now)

    for news in (hear, start, flip, lambda s: at_once(plan, s), lambda s: fell(s, now=now)):
        once = news(state)
        assert news(once) == once


@given(plans, st.sampled_from(ENDED), verdicts, times, st.booleans(), st.booleans())
def test_what_has_ended_stays_so(
    plan: RolloutPlan, phase: Phase, verdict: Verdict, now: float, one: bool, two: bool
) -> None:
    end = CanaryState(phase, 1, 5.0)
    assert advance(plan, end, verdict, now=now, may_go=one, exhausted=two) == end
    assert heard(plan, end, approved=one, rejected=two, may_go=True, now=now) == end
    assert started(plan, end, ready=one, crashed=two, now=now) == end
    assert flipped(plan, end, answering=one, now=now) == end
    assert fell(end, now=now) == end
    assert at_once(plan, end) == end
    for order in Move:
        if phase is not Phase.PROMOTED:
            with pytest.raises(IllegalMove):
                move(plan, end, order, now=now)
    with pytest.raises(IllegalMove):
        superseded(end, now=now)


looks = st.lists(st.tuples(verdicts, st.integers(0, 60), st.booleans(), st.booleans()), max_size=12)


@given(plans, states, looks)
def test_a_rollout_only_goes_forward(
    plan: RolloutPlan, state: CanaryState, looks: list[tuple[Verdict, int, bool, bool]]
) -> None:
    """Nobody gives orders here: the share never falls but to nothing, and only passes carry on."""
    now, began = state.since, state
    passes = 0
    for verdict, step_s, may_go, exhausted in looks:
        now, before = now + step_s, state
        state = advance(plan, before, verdict, now=now, may_go=may_go, exhausted=exhausted)
        share, was = canary_share(plan, state), canary_share(plan, before)
        if state.on_trial is not None:
            assert share >= was
        if share > was or (state.phase in (Phase.PROMOTING, Phase.PENDING) and state.phase is not before.phase):
            assert verdict is PASS
            assert may_go
        if before.phase in (Phase.PAUSED, Phase.PENDING) and verdict is not FAIL:
            assert state == before
        passes += verdict is PASS
    if state.phase is Phase.PROMOTING and began.phase is Phase.RAMPING:
        assert passes >= len(plan.shares) - began.step


@given(plans, times, st.sampled_from((Phase.RAMPING, Phase.SHADOWING)), st.booleans())
def test_missing_evidence_never_promotes(plan: RolloutPlan, now: float, phase: Phase, exhausted: bool) -> None:
    state = CanaryState(phase, 1, 0.0)
    for at in (now, now + 1000, now + 10**9):
        state = advance(plan, state, OPEN, now=at, exhausted=exhausted)
    assert state.phase not in (Phase.PROMOTING, Phase.PROMOTED, Phase.PENDING, Phase.BAKING)
    assert state.phase in (phase, Phase.PAUSED, Phase.ROLLED_BACK)


@given(plans, states, times, st.booleans())
def test_proof_that_it_is_worse_ends_whatever_holds_the_step(
    plan: RolloutPlan, state: CanaryState, now: float, may_go: bool
) -> None:
    after = advance(plan, state, FAIL, now=now, may_go=may_go)
    if state.is_looked_at:
        assert (after.phase, after.reason) == (Phase.ROLLED_BACK, Reason.EVIDENCE)
        assert canary_share(plan, after) == 0.0
    else:
        assert after == state


@given(plans, states, verdicts, times)
def test_a_closed_schedule_neither_starts_nor_steps(
    plan: RolloutPlan, state: CanaryState, verdict: Verdict, now: float
) -> None:
    after = advance(plan, state, verdict, now=now, may_go=False)
    assert canary_share(plan, after) <= canary_share(plan, state)
    if state.phase is not Phase.BAKING:
        assert after.phase in (state.phase, Phase.ROLLED_BACK, Phase.PAUSED)
    waiting = heard(plan, state, approved=True, rejected=False, may_go=False, now=now)
    assert waiting == state
    assert first(plan, may_go=False, now=now).phase is Phase.PENDING


# --- approvals ---


def test_approved_by_too_few_waits_and_one_rejection_ends_it() -> None:
    plan = planned(approval="before_start")
    waiting = first(plan, may_go=True, now=1.0)
    assert waiting == CanaryState(Phase.PENDING, 0, 1.0, origin=Phase.STARTING)
    assert heard(plan, waiting, approved=False, rejected=False, may_go=True, now=2.0) == waiting
    assert heard(plan, waiting, approved=True, rejected=False, may_go=True, now=2.0).phase is Phase.STARTING
    ended = heard(plan, waiting, approved=True, rejected=True, may_go=True, now=2.0)
    assert (ended.phase, ended.reason) == (Phase.ABORTED, Reason.REJECTED)


def test_while_people_think_it_over_the_canary_keeps_its_share_and_can_still_fail() -> None:
    plan = planned(approval="before_promotion")
    waiting = advance(plan, ramping(1), PASS, now=50)
    assert (waiting.phase, canary_share(plan, waiting)) == (Phase.PENDING, 0.5)
    assert advance(plan, waiting, OPEN, now=10**9) == waiting
    assert advance(plan, waiting, FAIL, now=60).phase is Phase.ROLLED_BACK
    agreed = heard(plan, waiting, approved=True, rejected=False, may_go=True, now=70)
    assert (agreed.phase, agreed.reason) == (Phase.PROMOTING, Reason.EVIDENCE)


def test_an_order_to_promote_replaces_the_evidence_but_not_the_approval() -> None:
    plan = planned(approval="before_promotion")
    ordered = move(plan, ramping(0), Move.PROMOTE, now=5.0)
    assert (ordered.phase, ordered.reason, canary_share(plan, ordered)) == (Phase.PENDING, Reason.OPERATOR, 0.1)


# --- what is seen of the replicas ---


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("ready", "crashed"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_the_versions_own_replica_shows(phase: Phase, ready: bool, crashed: bool) -> None:
    state = CanaryState(phase, 1, 5.0)
    after = started(PLAN, state, ready=ready, crashed=crashed, now=9.0)
    needs_it = (Phase.STARTING, Phase.SHADOWING, Phase.RAMPING, Phase.PAUSED, Phase.PENDING)
    if crashed and phase in needs_it:
        assert after == CanaryState(Phase.ROLLED_BACK, 1, 9.0, Reason.CRASH)
    elif ready and not crashed and phase is Phase.STARTING:
        assert after == CanaryState(Phase.RAMPING, 1, 5.0)
    else:
        assert after == state


def test_one_that_waits_for_its_start_has_no_replica_that_could_crash() -> None:
    waiting = CanaryState(Phase.PENDING, 0, 5.0, origin=Phase.STARTING)
    assert started(PLAN, waiting, ready=False, crashed=True, now=9.0) == waiting


@pytest.mark.parametrize("phase", Phase)
def test_promoted_only_when_all_replicas_answer_with_it(phase: Phase) -> None:
    state = CanaryState(phase, 1, 5.0, Reason.EVIDENCE)
    assert flipped(PLAN, state, answering=False, now=9.0) == state
    for plan, end in ((PLAN, Phase.PROMOTED), (planned(bake_s=50.0), Phase.BAKING)):
        after = flipped(plan, state, answering=True, now=9.0)
        there = CanaryState(end, 1, 9.0, Reason.EVIDENCE)
        assert after == (there if phase is Phase.PROMOTING else state)


def test_a_version_that_stables_replicas_do_not_live_with_goes_back() -> None:
    for phase in Phase:
        after = fell(CanaryState(phase, 1, 5.0), now=9.0)
        assert (after.phase is Phase.ROLLED_BACK) == (phase in (Phase.PROMOTING, Phase.BAKING, Phase.ROLLED_BACK))


# --- baking ---


def test_late_proof_takes_back_what_bakes_and_time_without_it_promotes() -> None:
    plan = planned(bake_s=50.0)
    baking = CanaryState(Phase.BAKING, 1, 0.0, Reason.EVIDENCE)
    assert advance(plan, baking, PASS, now=49) == baking
    assert advance(plan, baking, OPEN, now=50) == CanaryState(Phase.PROMOTED, 1, 50, Reason.EVIDENCE)
    late = advance(plan, baking, FAIL, now=60)
    assert (late.phase, late.reason) == (Phase.ROLLED_BACK, Reason.EVIDENCE)


# --- orders ---

MOVES = {
    (Phase.PENDING, Move.ABORT): Phase.ABORTED,
    (Phase.STARTING, Move.ABORT): Phase.ABORTED,
    (Phase.SHADOWING, Move.PAUSE): Phase.PAUSED,
    (Phase.SHADOWING, Move.PROMOTE): Phase.PROMOTING,
    (Phase.SHADOWING, Move.ABORT): Phase.ABORTED,
    (Phase.RAMPING, Move.PAUSE): Phase.PAUSED,
    (Phase.RAMPING, Move.PROMOTE): Phase.PROMOTING,
    (Phase.RAMPING, Move.ABORT): Phase.ABORTED,
    (Phase.PAUSED, Move.RESUME): Phase.RAMPING,
    (Phase.PAUSED, Move.PROMOTE): Phase.PROMOTING,
    (Phase.PAUSED, Move.ABORT): Phase.ABORTED,
    (Phase.PROMOTING, Move.ABORT): Phase.ABORTED,
    (Phase.BAKING, Move.PROMOTE): Phase.PROMOTED,
    (Phase.BAKING, Move.ROLLBACK): Phase.ROLLED_BACK,
    (Phase.PROMOTED, Move.ROLLBACK): Phase.ROLLED_BACK,
}


@pytest.mark.parametrize("order", Move)
@pytest.mark.parametrize("phase", Phase)
def test_every_order_in_every_phase(phase: Phase, order: Move) -> None:
    state = CanaryState(phase, 1, 5.0)
    assert (order in LEGAL[phase]) == ((phase, order) in MOVES)
    if (phase, order) in MOVES:
        after = move(PLAN, state, order, now=9.0)
        assert (after.phase, after.step, after.since, after.reason) == (MOVES[phase, order], 1, 9.0, Reason.OPERATOR)
    else:
        with pytest.raises(IllegalMove) as caught:
            move(PLAN, state, order, now=9.0)
        assert caught.value.legal == tuple(o for p, o in MOVES if p is phase)
        assert phase.value in str(caught.value)


@given(plans, states, st.sampled_from(Move), times)
def test_an_order_is_carried_out_or_refused_with_what_is_possible(
    plan: RolloutPlan, state: CanaryState, order: Move, now: float
) -> None:
    if order in LEGAL[state.phase]:
        assert move(plan, state, order, now=now) != state
    else:
        with pytest.raises(IllegalMove):
            move(plan, state, order, now=now)


def test_a_paused_step_starts_its_wait_anew() -> None:
    paused = move(PLAN, ramping(1), Move.PAUSE, now=50)
    assert advance(PLAN, paused, PASS, now=60) == paused
    resumed = move(PLAN, paused, Move.RESUME, now=70)
    assert advance(PLAN, resumed, PASS, now=75) == resumed
    assert advance(PLAN, resumed, PASS, now=80).phase is Phase.PROMOTING


def test_a_paused_shadow_resumes_as_one() -> None:
    paused = move(PLAN, CanaryState(Phase.SHADOWING, 0, 0.0), Move.PAUSE, now=5)
    assert canary_share(PLAN, paused) == 0.0
    assert move(PLAN, paused, Move.RESUME, now=6).phase is Phase.SHADOWING


@pytest.mark.parametrize("phase", Phase)
def test_a_newer_candidate_takes_the_place_of_what_is_not_decided(phase: Phase) -> None:
    state = CanaryState(phase, 1, 5.0)
    if phase in SUPERSEDABLE:
        after = superseded(state, now=9.0)
        assert (after.phase, after.reason, after.since) == (Phase.SUPERSEDED, Reason.NEWER, 9.0)
    else:
        with pytest.raises(IllegalMove):
            superseded(state, now=9.0)


@pytest.mark.parametrize("phase", Phase)
def test_traffic_only_while_on_trial(phase: Phase) -> None:
    shares = [canary_share(PLAN, CanaryState(phase, step, 0.0)) for step in (0, 1)]
    on_trial = phase in (Phase.RAMPING, Phase.PAUSED, Phase.PENDING)
    assert shares == ([0.1, 0.5] if on_trial else [0.0, 0.0])


# --- what is stored ---


@given(states)
def test_a_state_survives_the_state_database(state: CanaryState) -> None:
    assert CanaryState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize("phase", ["starting", "ramping", "paused", "promoting", "promoted", "rolled back"])
def test_states_of_the_release_before_are_read(phase: str) -> None:
    stored = {"phase": phase, "step": 1, "since": 5.0, "reason": "time-out"}
    assert CanaryState.from_dict(stored) == CanaryState(Phase(phase), 1, 5.0, Reason.TIME_OUT)
    if phase == "paused":
        assert move(PLAN, CanaryState.from_dict(stored), Move.RESUME, now=6).phase is Phase.RAMPING


def test_every_phase_has_its_orders_and_the_ends_that_take_back_none() -> None:
    assert LEGAL.keys() == set(Phase)
    assert not set(SUPERSEDABLE) & set(ENDED)
    assert [LEGAL[phase] for phase in TAKEN_BACK] == [(), (), ()]
