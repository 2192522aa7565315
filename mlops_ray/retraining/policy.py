"""When to retrain: evidence and history in, a decision with its reason out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlops_ray.config import Retraining


@dataclass(frozen=True)
class Judged:
    """One judged window of one trigger, newest last in a sequence: whether it alarmed, and why in words."""

    trigger: str
    at: float
    alarm: bool
    why: str


@dataclass(frozen=True)
class History:
    """What the policy remembers: decision times of retrains, and how the last ones ended (newest first)."""

    last_decided: float | None = None
    endings: tuple[str, ...] = ()
    open_retrain: bool = False
    open_rollout: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether to retrain now, which trigger says so, and the reason in words (also of a refusal)."""

    retrain: bool
    trigger: str = ""
    reason: str = ""


def decide(plan: Retraining, judged: Sequence[Judged], history: History, *, now: float) -> Decision:
    """The decision after the newest window was judged.

    Args: judged: windows of the present stable version, oldest first; a trigger fires when its last
        `debounce_windows` all alarmed.
    """
    firing = [alarms[-1] for t in plan.triggers if (alarms := _run(judged, t)) and len(alarms) >= plan.debounce_windows]
    if not firing:
        return Decision(False)
    trigger, why = firing[0].trigger, "; ".join(j.why for j in firing)
    if history.open_retrain:
        return Decision(False, trigger, f"held back: a retrain is under way ({why})")
    if history.open_rollout:
        return Decision(False, trigger, f"held back: a rollout is under way ({why})")
    if history.last_decided is not None:
        waited = now - history.last_decided
        if waited < plan.cooldown_s:
            left = (plan.cooldown_s - waited) / 86_400
            return Decision(False, trigger, f"held back: cooldown for {left:.1f} more days ({why})")
        failures = next((i for i, e in enumerate(history.endings) if e == "succeeded"), len(history.endings))
        if failures >= plan.max_failures and waited < plan.backoff_s:
            return Decision(False, trigger, f"held back: circuit open after {failures} failed retrains ({why})")
    return Decision(True, trigger, why)


def _run(judged: Sequence[Judged], trigger: str) -> list[Judged]:
    """The unbroken run of alarms of `trigger` up to its newest window."""
    run: list[Judged] = []
    for one in reversed([j for j in judged if j.trigger == trigger]):
        if not one.alarm:
            break
        run.append(one)
    return run[::-1]
