"""The rollout's state machine: plan, state, verdict and time in, the next state out. No I/O, no clock.

STARTING   the canary's replica is being started; no traffic yet
RAMPING    the canary answers `shares[step]` of the keys
PROMOTING  decided; stable's replicas are loading the version, and flip together
PROMOTED, ROLLED_BACK  ended
PAUSED     an operator (or the plan) holds the step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from mlops_ray.config import RolloutPlan
from mlops_ray.errors import IllegalMove
from mlops_ray.training.gates.verdict import Verdict


class Phase(StrEnum):
    """Where a rollout stands."""

    STARTING = "starting"
    RAMPING = "ramping"
    PAUSED = "paused"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"


class Reason(StrEnum):
    """Why a rollout ended or paused."""

    NONE = ""
    EVIDENCE = "evidence"
    TIME_OUT = "time-out"
    CRASH = "crash"
    OPERATOR = "operator"


class Move(StrEnum):
    """What an operator can order."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLLBACK = "rollback"


LEGAL: Mapping[Phase, tuple[Move, ...]] = {
    Phase.STARTING: (Move.ABORT,),
    Phase.RAMPING: (Move.PAUSE, Move.PROMOTE, Move.ABORT),
    Phase.PAUSED: (Move.RESUME, Move.PROMOTE, Move.ABORT),
    Phase.PROMOTING: (Move.ABORT,),
    Phase.PROMOTED: (Move.ROLLBACK,),
    Phase.ROLLED_BACK: (),
}
ENDED = (Phase.PROMOTED, Phase.ROLLED_BACK)


@dataclass(frozen=True)
class CanaryState:
    """State of a rollout. `since` is the decision time at which the present phase or step began."""

    phase: Phase
    step: int
    since: float
    reason: Reason = Reason.NONE

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the state database."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> CanaryState:
        """The state that `to_dict` wrote."""
        return cls(Phase(body["phase"]), int(body["step"]), float(body["since"]), Reason(body["reason"]))


def advance(plan: RolloutPlan, state: CanaryState, verdict: Verdict, *, now: float) -> CanaryState:
    """State after one look at the canary's evidence. Calling it twice changes nothing more.

    Missing data is INCONCLUSIVE and never counts as a pass.
    """
    if state.phase is not Phase.RAMPING:
        return state
    waited = now - state.since
    if verdict is Verdict.FAIL:
        return CanaryState(Phase.ROLLED_BACK, state.step, now, Reason.EVIDENCE)
    if verdict is Verdict.INCONCLUSIVE:
        return state if waited <= plan.step_max_s else _undecided(plan, state, now)
    if waited <= 0 or waited < plan.step_min_s:  # one look is one step, even when `step_min_s` is 0
        return state
    if state.step + 1 == len(plan.shares):
        return CanaryState(Phase.PROMOTING, state.step, now, Reason.EVIDENCE)
    return replace(state, step=state.step + 1, since=now)


def _undecided(plan: RolloutPlan, state: CanaryState, now: float) -> CanaryState:
    if plan.on_inconclusive == "rollback":
        return CanaryState(Phase.ROLLED_BACK, state.step, now, Reason.TIME_OUT)
    if plan.on_inconclusive == "pause":
        return CanaryState(Phase.PAUSED, state.step, now, Reason.TIME_OUT)
    return state


def started(state: CanaryState, *, ready: bool, crashed: bool) -> CanaryState:
    """State after a look at the canary's replica. A crash ends the rollout in any phase that needs the replica."""
    if crashed and state.phase in (Phase.STARTING, Phase.RAMPING, Phase.PAUSED):
        return replace(state, phase=Phase.ROLLED_BACK, reason=Reason.CRASH)
    if ready and state.phase is Phase.STARTING:
        return replace(state, phase=Phase.RAMPING)
    return state


def flipped(state: CanaryState, *, answering: bool) -> CanaryState:
    """State after a look at stable's replicas: promoted once all of them answer with the new version."""
    return replace(state, phase=Phase.PROMOTED) if answering and state.phase is Phase.PROMOTING else state


def move(state: CanaryState, order: Move, *, now: float) -> CanaryState:
    """State after an operator's order. Raises: IllegalMove, with what is legal now."""
    if order not in LEGAL[state.phase]:
        raise IllegalMove(order, state.phase, tuple(LEGAL[state.phase]))
    phase = {
        Move.PAUSE: Phase.PAUSED,
        Move.RESUME: Phase.RAMPING,
        Move.PROMOTE: Phase.PROMOTING,
        Move.ABORT: Phase.ROLLED_BACK,
        Move.ROLLBACK: Phase.ROLLED_BACK,
    }[order]
    return CanaryState(phase, state.step, now, Reason.OPERATOR)


def canary_share(plan: RolloutPlan, state: CanaryState) -> float:
    """Share of keys that the canary answers in this state."""
    return plan.shares[state.step] if state.phase in (Phase.RAMPING, Phase.PAUSED) else 0.0
