"""What a rollout does next, given what is known of the world: one order of steps, live and simulated. Pure.

Whoever carries a rollout asks people and schedule, evidence and replicas, together or one after the other, and has the
next state from here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mlops_ray.config import RolloutPlan
from mlops_ray.rollout import canary, experiment, schedule
from mlops_ray.rollout.analysis import Analysis
from mlops_ray.rollout.approval import Standing
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.looks import due
from mlops_ray.training.gates.verdict import Verdict


@dataclass(frozen=True)
class Looked:
    """A look at the evidence at decision time `at`; again: one that was taken before, over rows that came late since.
    It may take a version back, and hurries no step."""

    analysis: Analysis
    at: float
    again: bool = False


@dataclass(frozen=True)
class Replicas:
    """What replicas show. ready, crashed: versions on trial. answering: whether all of stable's answer with the version
    that is promoted. trouble: why stable's cannot live with it, in words; None: they can."""

    ready: Collection[int] = ()
    crashed: Collection[int] = ()
    answering: bool = False
    trouble: str | None = None


@dataclass(frozen=True)
class Known:
    """What was asked, each None where it was not."""

    said: Standing | None = None
    looked: Looked | None = None
    replicas: Replicas | None = None


def compares(plan: RolloutPlan, state: CanaryState) -> bool:
    """Whether evidence is looked at in this state."""
    return state.is_looked_at and (plan.mode != "immediate" or state.phase is Phase.BAKING)


def look_at(plan: RolloutPlan, state: CanaryState, *, created: float, now: float) -> float | None:
    """Decision time of the look at the evidence that is due by `now`, taken before or not; None: there is none."""
    at = due(plan.look_s, now)
    return at if compares(plan, state) and at > created else None


def kind(plan: RolloutPlan, after: CanaryState) -> str:
    """What the ledger calls the step that led to this state."""
    share = canary.canary_share(plan, after)
    return f"rollout {after.phase}" + (f" at {share:g}" if share and after.phase is Phase.RAMPING else "")


def following(plan: RolloutPlan, state: CanaryState, known: Known, *, now: float) -> tuple[CanaryState, str]:
    """The state after the first step that leads on, and why in words; the same state where none does.

    People and schedule come first, then evidence, then replicas. A state that has changed may be asked about again at
    once; a look is taken once. Args: now: decision time, seconds since the epoch."""
    after, why = state, ""
    if known.said is not None:
        after, why = _heard(plan, state, known.said, now)
    if after == state and known.looked is not None:
        after, why = _judged(plan, state, known.looked)
    if after == state and known.replicas is not None:
        after, why = _observed(plan, state, known.replicas, now)
    return after, why


def _heard(plan: RolloutPlan, state: CanaryState, said: Standing, now: float) -> tuple[CanaryState, str]:
    shut, since = schedule.closed(plan.schedule, now), max(now, state.since)
    after = canary.heard(plan, state, approved=said.approved, rejected=said.rejected, may_go=shut is None, now=since)
    if after != state:
        asked = plan.approval != "none" and state.phase is Phase.PENDING
        return after, str(said) if asked else "the schedule is open"
    return canary.at_once(plan, state), "the plan compares nothing: `mode: immediate`"


def _judged(plan: RolloutPlan, state: CanaryState, looked: Looked) -> tuple[CanaryState, str]:
    found, again = looked.analysis, looked.again
    now = max(looked.at, state.changed) if again else looked.at
    may_go = not again and schedule.closed(plan.schedule, looked.at) is None
    if state.arms:
        after = experiment.advance(plan, state, found, now=now, may_go=may_go)
        return after, experiment.in_words(state, after, found)
    if again and found.verdict is not Verdict.FAIL:
        return state, ""
    after = canary.advance(plan, state, found.verdict, now=now, may_go=may_go, exhausted=found.exhausted)
    return after, "; ".join(metric.in_words() for metric in found.metrics)


def _observed(plan: RolloutPlan, state: CanaryState, seen: Replicas, now: float) -> tuple[CanaryState, str]:
    if state.phase in (Phase.PROMOTING, Phase.BAKING):
        if seen.trouble is not None:
            return canary.fell(state, now=now), seen.trouble
        return canary.flipped(plan, state, answering=seen.answering, now=now), "every replica answers with it"
    if state.arms:
        after = experiment.started(plan, state, ready=seen.ready, crashed=seen.crashed, now=now)
        return after, experiment.in_words(state, after)
    after = canary.started(plan, state, ready=bool(seen.ready), crashed=bool(seen.crashed), now=now)
    return after, str(after.reason) or "the canary is ready"
