"""When to retrain: evidence, what is due by the clock, and history in; a decision with its reason out. Pure."""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cronsim import CronSim

from mlops_ray.config import DAY_S, Retraining

# So often the breaker's wait doubles, once with each further failure.
_DOUBLINGS = 2


@dataclass(frozen=True)
class Judged:
    """One judged window of one trigger, newest last in a sequence: whether it alarmed, and why in words; `began`: since
    when what it shows has been so (its own start, unless a detector knows better), seconds since the epoch."""

    trigger: str
    at: float
    alarm: bool
    why: str
    began: float | None = None


@dataclass(frozen=True)
class Due:
    """What asks for a retrain without a window: an instant of the schedule, or enough new labels; why in words."""

    trigger: str
    why: str


@dataclass(frozen=True)
class History:
    """What the policy remembers of the retrains that it decided itself: decision times and how they ended, both newest
    first; and whether a retrain or a rollout is open, whoever asked for it. new_rows: that came since the last one was
    decided, or since traffic began; None where the plan does not ask."""

    decided: tuple[float, ...] = ()
    endings: tuple[str, ...] = ()
    open_retrain: bool = False
    open_rollout: bool = False
    new_rows: int | None = None


@dataclass(frozen=True)
class Decision:
    """Whether to retrain now, which trigger says so, and the reason in words (also of a refusal). began: since when the
    windows show what led to it, None where none did."""

    retrain: bool
    trigger: str = ""
    reason: str = ""
    began: float | None = None


def decide(plan: Retraining, judged: Sequence[Judged], history: History, *, now: float) -> Decision:
    """The decision after the newest window was judged.

    Args: judged: windows of the present stable version, oldest first; a trigger fires when its last
        `debounce_windows` all alarmed. now: decision time, seconds since the epoch.
    """
    runs = [run for t in plan.triggers if (run := _run(judged, t)) and len(run) >= plan.debounce_windows]
    if not runs:
        return Decision(False)
    why, fired = "; ".join(run[-1].why for run in runs), [run[0].trigger for run in runs]
    asked = next((t for t in fired if _held_back(plan, t, history, now) is None), fired[0])
    found = _unless_held(plan, asked, why, history, now)
    begun = [one.began for run in runs for one in run if one.began is not None]
    return replace(found, began=min(begun, default=None))


def decide_due(plan: Retraining, due: Sequence[Due], history: History, *, now: float) -> Decision:
    """The decision about what `scheduled` and `new_labels` say, at decision time `now`.

    What is held back stays due: whoever asks again once nothing holds it back gets it then, once."""
    if not due:
        return Decision(False)
    return _unless_held(plan, due[0].trigger, "; ".join(d.why for d in due), history, now)


def scheduled(plan: Retraining, *, after: float, now: float) -> Due | None:
    """The newest instant of the schedule in (after, now], if there is one; times are seconds since the epoch.

    Changes to and from summer time are dealt with as Debian's cron(8) does.
    >>> scheduled(Retraining(triggers=("schedule",), schedule="0 3 * * *"), after=0.0, now=DAY_S).why
    'schedule "0 3 * * *": 1970-01-01 03:00 UTC'
    """
    if plan.schedule is None or now <= after:
        return None
    zone = zoneinfo.ZoneInfo(plan.timezone)
    # Backwards from the next minute: an instant that is this very moment has come.
    back = CronSim(plan.schedule, datetime.fromtimestamp(now + 60, UTC).astimezone(zone), reverse=True)
    last = next(at for at in back if at.timestamp() <= now)
    if last.timestamp() <= after:
        return None
    return Due("schedule", f'schedule "{plan.schedule}": {last:%Y-%m-%d %H:%M} {plan.timezone}')


def new_labels(plan: Retraining, *, n: int) -> Due | None:
    """Args: n: labels that have come since the last retrain was decided."""
    if plan.new_rows is None or n < plan.new_rows:
        return None
    return Due("new_rows", f"{n:,} new labels of {plan.new_rows:,}")


def _unless_held(plan: Retraining, trigger: str, why: str, history: History, now: float) -> Decision:
    held = _held_back(plan, trigger, history, now)
    return Decision(held is None, trigger, why if held is None else f"held back: {held} ({why})")


def _held_back(plan: Retraining, trigger: str, history: History, now: float) -> str | None:
    """What holds a firing trigger back, in words; None: nothing."""
    if history.open_retrain:
        return "a retrain is under way"
    if history.open_rollout:
        return "a rollout is under way"
    if trigger == "drift" and history.new_rows is not None and history.new_rows < plan.least_new_rows:
        return f"{history.new_rows:,} new rows of {plan.least_new_rows:,} that drift waits for"
    if not history.decided:
        return None
    waited = now - history.decided[0]
    if trigger != "schedule" and waited < plan.cooldown_s:
        return f"cooldown for {(plan.cooldown_s - waited) / DAY_S:.1f} more days"
    if sum(now - at < DAY_S for at in history.decided) >= plan.most_per_day:
        return f"{plan.most_per_day} retrains in 24 hours are the most"
    return open_circuit(plan, history, now=now)


def open_circuit(plan: Retraining, history: History, *, now: float) -> str | None:
    """In words that the circuit breaker holds retrains back at decision time `now`; None: it does not."""
    failures = next((i for i, e in enumerate(history.endings) if e == "succeeded"), len(history.endings))
    further = failures - plan.max_failures
    if not history.decided or further < 0:
        return None
    if now - history.decided[0] >= plan.backoff_s * 2 ** min(further, _DOUBLINGS):
        return None
    return f"circuit open after {failures} failed retrains"


def _run(judged: Sequence[Judged], trigger: str) -> list[Judged]:
    """The unbroken run of alarms of `trigger` up to its newest window."""
    run: list[Judged] = []
    for one in reversed([j for j in judged if j.trigger == trigger]):
        if not one.alarm:
            break
        run.append(one)
    return run[::-1]
