"""The rollout's state machine: plan, state, verdict and time in, the next state out. No I/O, no clock.

PENDING    waits for people's approval, or, before the start, for the schedule
STARTING   the version is being started apart from stable; no traffic yet
SHADOWING  it sees copies of requests and answers nobody
RAMPING    it answers `shares[step]` of the keys
PAUSED     an operator (or the plan) holds the step
PROMOTING  decided; stable's replicas are loading the version, and flip together
BAKING     it is stable; what is learnt now still takes it back by itself
PROMOTED, ROLLED_BACK, ABORTED, SUPERSEDED  ended
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from mlops_ray.config.rollout import SHADOWS, RolloutPlan
from mlops_ray.errors import IllegalMove
from mlops_ray.training.gates.verdict import Verdict


class Phase(StrEnum):
    """Where a rollout stands."""

    PENDING = "pending"
    STARTING = "starting"
    SHADOWING = "shadowing"
    RAMPING = "ramping"
    PAUSED = "paused"
    PROMOTING = "promoting"
    BAKING = "baking"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"


class Reason(StrEnum):
    """Why a rollout ended, paused or was decided."""

    NONE = ""
    EVIDENCE = "evidence"
    TIME_OUT = "time-out"
    CRASH = "crash"
    OPERATOR = "operator"
    REJECTED = "rejected"
    NEWER = "newer candidate"
    PLAN = "plan"


class Move(StrEnum):
    """What an operator can order."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLLBACK = "rollback"


LEGAL: Mapping[Phase, tuple[Move, ...]] = {
    Phase.PENDING: (Move.ABORT,),
    Phase.STARTING: (Move.ABORT,),
    Phase.SHADOWING: (Move.PAUSE, Move.PROMOTE, Move.ABORT),
    Phase.RAMPING: (Move.PAUSE, Move.PROMOTE, Move.ABORT),
    Phase.PAUSED: (Move.RESUME, Move.PROMOTE, Move.ABORT),
    Phase.PROMOTING: (Move.ABORT,),
    Phase.BAKING: (Move.PROMOTE, Move.ROLLBACK),
    Phase.PROMOTED: (Move.ROLLBACK,),
    Phase.ROLLED_BACK: (),
    Phase.ABORTED: (),
    Phase.SUPERSEDED: (),
}
ENDED = (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED, Phase.SUPERSEDED)
TAKEN_BACK = (Phase.ROLLED_BACK, Phase.ABORTED, Phase.SUPERSEDED)
"""Ends after which the version serves nobody."""
SUPERSEDABLE = (Phase.PENDING, Phase.STARTING, Phase.SHADOWING, Phase.RAMPING, Phase.PAUSED)
"""Phases in which nothing is decided yet, so that a newer candidate may take the place."""


@dataclass(frozen=True)
class CanaryState:
    """State of a rollout. `since` is the decision time at which the present phase or step began.

    origin: where PAUSED resumes, and what PENDING waits in front of (STARTING) or came from (RAMPING, SHADOWING).
    """

    phase: Phase
    step: int
    since: float
    reason: Reason = Reason.NONE
    origin: Phase = Phase.RAMPING

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the state database."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CanaryState:
        """The state that `to_dict` wrote, here or in the release before `origin`. Other keys are not looked at."""
        phase, reason = Phase(body["phase"]), Reason(body["reason"])
        origin = Phase(body.get("origin", Phase.RAMPING))
        return cls(phase, int(body["step"]), float(body["since"]), reason, origin)

    @property
    def on_trial(self) -> Phase | None:
        """SHADOWING or RAMPING while the version is being compared with stable, also where that is held; else None."""
        phase = self.origin if self.phase in (Phase.PAUSED, Phase.PENDING) else self.phase
        return phase if phase in (Phase.SHADOWING, Phase.RAMPING) else None

    @property
    def is_looked_at(self) -> bool:
        """Whether evidence can change anything: during the trial, and after it while the version bakes."""
        return self.on_trial is not None or self.phase is Phase.BAKING


def first(plan: RolloutPlan, *, may_go: bool, now: float) -> CanaryState:
    """State of a new rollout. may_go: whether the schedule allows a start now."""
    if plan.asks_before_start or not may_go:
        return CanaryState(Phase.PENDING, 0, now, origin=Phase.STARTING)
    return CanaryState(Phase.STARTING, 0, now)


def heard(
    plan: RolloutPlan, state: CanaryState, *, approved: bool, rejected: bool, may_go: bool, now: float
) -> CanaryState:
    """State after a look at the approvals and the schedule, which is what a PENDING rollout waits for."""
    if state.phase is not Phase.PENDING:
        return state
    if rejected:
        return replace(state, phase=Phase.ABORTED, since=now, reason=Reason.REJECTED)
    asked = plan.asks_before_start if state.origin is Phase.STARTING else plan.approval == "before_promotion"
    if not may_go or (asked and not approved):
        return state
    if state.origin is Phase.STARTING:
        return CanaryState(Phase.STARTING, 0, now)
    return CanaryState(Phase.PROMOTING, state.step, now, state.reason)


def advance(
    plan: RolloutPlan,
    state: CanaryState,
    verdict: Verdict,
    *,
    now: float,
    may_go: bool = True,
    exhausted: bool = False,
) -> CanaryState:
    """State after one look at the evidence. Calling it twice changes nothing more.

    Missing data is INCONCLUSIVE and never counts as a pass. A FAIL ends the rollout whatever holds it: the schedule, a
    pause, a missing approval.
    Args: may_go: whether the schedule allows a step now. exhausted: whether `max_requests` rows were seen.
    """
    if not state.is_looked_at:
        return state
    if verdict is Verdict.FAIL:
        return replace(state, phase=Phase.ROLLED_BACK, since=now, reason=Reason.EVIDENCE)
    waited = now - state.since
    if state.phase is Phase.BAKING:
        return replace(state, phase=Phase.PROMOTED, since=now) if waited > 0 and waited >= plan.bake_s else state
    if state.phase not in (Phase.SHADOWING, Phase.RAMPING):
        return state
    if verdict is Verdict.INCONCLUSIVE:
        return _undecided(plan, state, now) if waited > plan.step_max_s or exhausted else state
    # One look is one step, even when `step_min_s` is 0.
    if waited <= 0 or waited < plan.step_min_s or not may_go:
        return state
    if state.phase is Phase.SHADOWING and plan.mode == "shadow_then_canary":
        return CanaryState(Phase.RAMPING, 0, now)
    if state.phase is Phase.RAMPING and state.step + 1 < len(plan.shares):
        return replace(state, step=state.step + 1, since=now, reason=Reason.NONE)
    if plan.approval == "before_promotion":
        return CanaryState(Phase.PENDING, state.step, now, Reason.EVIDENCE, origin=state.phase)
    return CanaryState(Phase.PROMOTING, state.step, now, Reason.EVIDENCE)


def _undecided(plan: RolloutPlan, state: CanaryState, now: float) -> CanaryState:
    if plan.on_inconclusive == "rollback":
        return CanaryState(Phase.ROLLED_BACK, state.step, now, Reason.TIME_OUT)
    if plan.on_inconclusive == "pause":
        return CanaryState(Phase.PAUSED, state.step, now, Reason.TIME_OUT, origin=state.phase)
    return state


def started(plan: RolloutPlan, state: CanaryState, *, ready: bool, crashed: bool, now: float) -> CanaryState:
    """State after a look at the version's own replica. A crash ends the rollout in any phase that needs the replica."""
    needs_replica = state.phase is Phase.STARTING or state.on_trial is not None
    if crashed and needs_replica:
        return replace(state, phase=Phase.ROLLED_BACK, since=max(now, state.since), reason=Reason.CRASH)
    if ready and state.phase is Phase.STARTING:
        return replace(state, phase=Phase.SHADOWING if plan.mode in SHADOWS else Phase.RAMPING)
    return state


def at_once(plan: RolloutPlan, state: CanaryState) -> CanaryState:
    """State of a rollout whose plan compares nothing (`mode: immediate`): decided as soon as it may start."""
    if plan.mode == "immediate" and state.phase is Phase.STARTING:
        return replace(state, phase=Phase.PROMOTING, reason=Reason.PLAN)
    return state


def flipped(plan: RolloutPlan, state: CanaryState, *, answering: bool, now: float) -> CanaryState:
    """State after a look at stable's replicas: out of PROMOTING once all of them answer with the new version."""
    if not answering or state.phase is not Phase.PROMOTING:
        return state
    return replace(state, phase=Phase.BAKING if plan.bake_s else Phase.PROMOTED, since=max(now, state.since))


def fell(state: CanaryState, *, now: float) -> CanaryState:
    """State after stable's replicas could not load the version, or do not live with it: the previous one comes back."""
    if state.phase not in (Phase.PROMOTING, Phase.BAKING):
        return state
    return replace(state, phase=Phase.ROLLED_BACK, since=max(now, state.since), reason=Reason.CRASH)


def move(plan: RolloutPlan, state: CanaryState, order: Move, *, now: float) -> CanaryState:
    """State after an operator's order. Raises: IllegalMove, with what is legal now."""
    if order not in LEGAL[state.phase]:
        raise IllegalMove(order, state.phase, tuple(LEGAL[state.phase]))
    origin = state.phase if order is Move.PAUSE else Phase.RAMPING
    if order is Move.PROMOTE and state.phase is not Phase.BAKING and plan.approval == "before_promotion":
        # The order replaces the evidence, never the people who must agree.
        return CanaryState(Phase.PENDING, state.step, now, Reason.OPERATOR, origin=state.on_trial or Phase.RAMPING)
    phase = {
        Move.PAUSE: Phase.PAUSED,
        Move.RESUME: state.origin,
        Move.PROMOTE: Phase.PROMOTED if state.phase is Phase.BAKING else Phase.PROMOTING,
        Move.ABORT: Phase.ABORTED,
        Move.ROLLBACK: Phase.ROLLED_BACK,
    }[order]
    return CanaryState(phase, state.step, now, Reason.OPERATOR, origin)


def superseded(state: CanaryState, *, now: float) -> CanaryState:
    """State after a newer candidate took the place. Raises: IllegalMove where something is decided already."""
    if state.phase not in SUPERSEDABLE:
        raise IllegalMove("be superseded", state.phase, tuple(LEGAL[state.phase]))
    return CanaryState(Phase.SUPERSEDED, state.step, now, Reason.NEWER)


def canary_share(plan: RolloutPlan, state: CanaryState) -> float:
    """Share of keys that the canary answers in this state."""
    return plan.shares[state.step] if state.on_trial is Phase.RAMPING else 0.0
