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
class Arm:
    """One of the versions of `mode: ab`; its place among them is that of its keys.

    out: why its keys went back to stable, and `since` which decision time; none while it is on trial.
    """

    version: int
    out: Reason = Reason.NONE
    since: float | None = None


@dataclass(frozen=True)
class CanaryState:
    """State of a rollout. `since` is the decision time at which the present phase or step began.

    origin: where PAUSED resumes, and what PENDING waits in front of (STARTING) or came from (RAMPING, SHADOWING).
    arms: of `mode: ab`, else none. chosen: which of them is promoted, once that is decided.
    """

    phase: Phase
    step: int
    since: float
    reason: Reason = Reason.NONE
    origin: Phase = Phase.RAMPING
    arms: tuple[Arm, ...] = ()
    chosen: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the state database."""
        body = asdict(self) | {"arms": [asdict(arm) for arm in self.arms]}
        return body if self.arms else {name: body[name] for name in ("phase", "step", "since", "reason", "origin")}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CanaryState:
        """The state that `to_dict` wrote, here or in an earlier release. Other keys are not looked at."""
        phase, reason = Phase(body["phase"]), Reason(body["reason"])
        origin = Phase(body.get("origin", Phase.RAMPING))
        arms = tuple(Arm(arm["version"], Reason(arm["out"]), arm["since"]) for arm in body.get("arms", ()))
        return cls(phase, int(body["step"]), float(body["since"]), reason, origin, arms, body.get("chosen"))

    @property
    def live(self) -> tuple[int, ...]:
        """Versions of the arms that are on trial still."""
        return tuple(arm.version for arm in self.arms if not arm.out)

    @property
    def changed(self) -> float:
        """Decision time of the last change: of the phase, the step, or an arm."""
        return max([self.since, *(arm.since for arm in self.arms if arm.since is not None)])

    @property
    def on_trial(self) -> Phase | None:
        """SHADOWING or RAMPING while the version is being compared with stable, also where that is held; else None."""
        phase = self.origin if self.phase in (Phase.PAUSED, Phase.PENDING) else self.phase
        return phase if phase in (Phase.SHADOWING, Phase.RAMPING) else None

    @property
    def is_looked_at(self) -> bool:
        """Whether evidence can change anything: during the trial, and after it while the version bakes."""
        return self.on_trial is not None or self.phase is Phase.BAKING


def first(plan: RolloutPlan, *, may_go: bool, now: float, arms: tuple[Arm, ...] = ()) -> CanaryState:
    """State of a new rollout. may_go: whether the schedule allows a start now. arms: of `mode: ab`."""
    if plan.asks_before_start or not may_go:
        return CanaryState(Phase.PENDING, 0, now, origin=Phase.STARTING, arms=arms)
    return CanaryState(Phase.STARTING, 0, now, arms=arms)


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
        return replace(state, phase=Phase.STARTING, since=now, origin=Phase.RAMPING)
    return replace(state, phase=Phase.PROMOTING, since=now, origin=Phase.RAMPING)


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
        return undecided(plan, state, now=now) if waited > plan.step_max_s or exhausted else state
    # One look is one step, even when `step_min_s` is 0.
    if waited <= 0 or waited < plan.step_min_s or not may_go:
        return state
    if state.phase is Phase.SHADOWING and plan.mode == "shadow_then_canary":
        return CanaryState(Phase.RAMPING, 0, now)
    if state.phase is Phase.RAMPING and state.step + 1 < len(plan.shares):
        return replace(state, step=state.step + 1, since=now, reason=Reason.NONE)
    return passed(plan, state, now=now)


def passed(plan: RolloutPlan, state: CanaryState, *, now: float) -> CanaryState:
    """State after the evidence has decided for the version: promoted, or first shown to people."""
    if plan.approval == "before_promotion":
        return replace(state, phase=Phase.PENDING, since=now, reason=Reason.EVIDENCE, origin=state.phase)
    return replace(state, phase=Phase.PROMOTING, since=now, reason=Reason.EVIDENCE, origin=Phase.RAMPING)


def undecided(plan: RolloutPlan, state: CanaryState, *, now: float) -> CanaryState:
    """State after a step that has had its time and its rows, and is undecided: `on_inconclusive`."""
    if plan.on_inconclusive == "rollback":
        return replace(state, phase=Phase.ROLLED_BACK, since=now, reason=Reason.TIME_OUT, origin=Phase.RAMPING)
    if plan.on_inconclusive == "pause":
        return replace(state, phase=Phase.PAUSED, since=now, reason=Reason.TIME_OUT, origin=state.phase)
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


def move(plan: RolloutPlan, state: CanaryState, order: Move, *, now: float, version: int | None = None) -> CanaryState:
    """State after an operator's order. Args: version: the arm that is promoted.

    Raises: IllegalMove, with what is legal now."""
    if order not in LEGAL[state.phase]:
        raise IllegalMove(order, state.phase, tuple(LEGAL[state.phase]))
    origin = state.phase if order is Move.PAUSE else Phase.RAMPING
    if order is Move.PROMOTE and version is not None:
        state = replace(state, chosen=version)
    if order is Move.PROMOTE and state.phase is not Phase.BAKING and plan.approval == "before_promotion":
        # The order replaces the evidence, never the people who must agree.
        origin = state.on_trial or Phase.RAMPING
        return replace(state, phase=Phase.PENDING, since=now, reason=Reason.OPERATOR, origin=origin)
    phase = {
        Move.PAUSE: Phase.PAUSED,
        Move.RESUME: state.origin,
        Move.PROMOTE: Phase.PROMOTED if state.phase is Phase.BAKING else Phase.PROMOTING,
        Move.ABORT: Phase.ABORTED,
        Move.ROLLBACK: Phase.ROLLED_BACK,
    }[order]
    return replace(state, phase=phase, since=now, reason=Reason.OPERATOR, origin=origin)


def superseded(state: CanaryState, *, now: float) -> CanaryState:
    """State after a newer candidate took the place. Raises: IllegalMove where something is decided already."""
    if state.phase not in SUPERSEDABLE:
        raise IllegalMove("be superseded", state.phase, tuple(LEGAL[state.phase]))
    return replace(state, phase=Phase.SUPERSEDED, since=now, reason=Reason.NEWER, origin=Phase.RAMPING)


def canary_share(plan: RolloutPlan, state: CanaryState) -> float:
    """Share of keys that the canary, or each arm on trial, answers in this state."""
    if state.on_trial is not Phase.RAMPING:
        return 0.0
    return plan.ab.share if plan.mode == "ab" else plan.shares[state.step]
