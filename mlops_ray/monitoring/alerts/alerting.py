"""From rules and what is observed now to alerts and notices that are due. Pure, and level-triggered.

An alert is of one rule and one subject, and at most one of them is open:

PENDING   the condition holds, not yet for the rule's `for_s`; it leaves no trace when it stops holding
FIRING    it holds; channels are told, again after `repeat_s`, and further ones as long as nobody acknowledges
RESOLVED  it holds no more; the channels that were told it fires are told so

All times are of the machine's clock, seconds since the epoch: alerts are for people, whose hours no replay speeds up.
Source: Prometheus Alertmanager's documentation for firing, resolving, repeating, silencing; PagerDuty's for
acknowledging and escalating.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from mlops_ray.config.alerts import Rule


class Phase(StrEnum):
    """Where an alert stands."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


OPEN = (Phase.PENDING, Phase.FIRING)


class Kind(StrEnum):
    """What a notice is."""

    FIRING = "firing"
    REPEATED = "repeated"
    ESCALATED = "escalated"
    RESOLVED = "resolved"
    TEST = "test"


@dataclass(frozen=True)
class Condition:
    """Something that holds now: what rules call it, which subject it is about ("v3"), and why in words.

    n_windows: how many windows in a row say so, where windows do.
    """

    when: str
    subject: str
    why: str
    n_windows: int = 1


@dataclass(frozen=True)
class Ack:
    """Somebody has taken the alert on."""

    who: str
    why: str
    at: float


@dataclass(frozen=True)
class Silence:
    """From `created` until `ends`, alerts of `rule` and `subject` ("" means any) are recorded, and nobody is told."""

    id: str
    rule: str
    subject: str
    who: str
    why: str
    created: float
    ends: float

    def covers(self, rule: str, subject: str, now: float) -> bool:
        """Whether an alert is silenced by it now."""
        fits = self.rule in ("", rule) and self.subject in ("", subject)
        return fits and self.created <= now < self.ends


@dataclass(frozen=True)
class Alert:
    """One alert. `since`: when its condition was first seen; `fired` and `ended`: when it did, None before.

    told: by channel, when a notice that it fires was last due. unheard_since: from when on it fires without anybody
    having acknowledged it; None before it fires, and while it is silenced. silence: the id of what silences it.
    """

    id: str
    rule: str
    subject: str
    severity: str
    phase: Phase
    since: float
    why: str
    fired: float | None = None
    ended: float | None = None
    ack: Ack | None = None
    told: Mapping[str, float] = field(default_factory=dict)
    unheard_since: float | None = None
    silence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss."""
        return {**vars(self), "told": dict(self.told), "ack": vars(self.ack) if self.ack else None}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Alert:
        """The alert that `to_dict` wrote."""
        ack = Ack(**body["ack"]) if body["ack"] else None
        return Alert(**{**body, "phase": Phase(body["phase"]), "ack": ack})

    @property
    def state(self) -> str:
        """What people call its state: its phase, or that a firing one is acknowledged or silenced."""
        if self.phase is not Phase.FIRING:
            return str(self.phase)
        return "silenced" if self.silence else "acknowledged" if self.ack else "firing"


@dataclass(frozen=True)
class Notice:
    """A channel is to be told something about an alert, as it is now."""

    channel: str
    kind: Kind
    alert: Alert


@dataclass(frozen=True)
class Step:
    """What one look comes to: alerts that are new or have changed, ids of pending ones that are to be forgotten, and
    notices that are due, by rule and subject."""

    changed: tuple[Alert, ...]
    forgotten: tuple[str, ...]
    notices: tuple[Notice, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.forgotten or self.notices)


def step(
    rules: Sequence[Rule],
    channels: Collection[str],
    conditions: Iterable[Condition],
    opened: Iterable[Alert],
    silences: Iterable[Silence],
    *,
    new_id: Callable[[], str],
    now: float,
) -> Step:
    """The look at `now`. Once it is saved, looking again at the same time changes nothing.

    Args: rules: in force, each with its `notify`. channels: names of those that there are. conditions: all that hold.
        opened: the alerts that are open. new_id: gives an id that no alert has yet.
    An alert whose rule is gone resolves, as one does whose condition is.
    """
    holding = list(conditions)
    known = {(alert.rule, alert.subject): alert for alert in opened}
    matched = {
        (rule.name, one.subject): (rule, one)
        for rule in rules
        for one in holding
        if one.when == rule.when and one.n_windows >= rule.for_windows
    }
    quiet = list(silences)
    changed, forgotten, notices = list[Alert](), list[str](), list[Notice]()
    for key in sorted(known.keys() | matched.keys()):
        before = known.get(key)
        silence = next((s.id for s in quiet if s.covers(*key, now)), "")
        if key in matched:
            after, due = _holds(*matched[key], before, silence, channels, new_id, now)
        else:
            assert before is not None
            if before.phase is Phase.PENDING:
                forgotten.append(before.id)
                continue
            after = replace(before, phase=Phase.RESOLVED, ended=now, silence=silence)
            told = () if silence else (name for name in before.told if name in channels)
            due = [Notice(name, Kind.RESOLVED, after) for name in told]
        if after != before:
            changed.append(after)
        notices += due
    return Step(tuple(changed), tuple(forgotten), tuple(notices))


def _holds(
    rule: Rule,
    one: Condition,
    before: Alert | None,
    silence: str,
    channels: Collection[str],
    new_id: Callable[[], str],
    now: float,
) -> tuple[Alert, list[Notice]]:
    """The alert of a condition that holds, and the notices that it makes due."""
    if before is None:
        before = Alert(new_id(), rule.name, one.subject, rule.severity, Phase.PENDING, now, one.why)
    after = replace(before, why=one.why, severity=rule.severity)
    if after.phase is Phase.PENDING and now - after.since >= rule.for_s:
        after = replace(after, phase=Phase.FIRING, fired=now)
    if after.phase is Phase.PENDING:
        return after, []
    after = replace(after, silence=silence)
    if silence or after.ack:
        return replace(after, unheard_since=None), []
    since = now if after.unheard_since is None else after.unheard_since
    due = [(name, kind) for name, kind in _due(rule, after, since, now) if name in channels]
    after = replace(after, unheard_since=since, told={**after.told, **dict.fromkeys((n for n, _ in due), now)})
    return after, [Notice(name, kind, after) for name, kind in due]


def _due(rule: Rule, alert: Alert, since: float, now: float) -> Iterator[tuple[str, Kind]]:
    """Channels to tell of a firing alert that nobody has acknowledged `since` then, and what the notice is."""
    n_steps = 0
    if rule.escalate_after_s is not None:
        n_steps = min(len(rule.escalate_to), int(max(0.0, now - since) // rule.escalate_after_s))
    later = rule.escalate_to[:n_steps]
    for name in dict.fromkeys((*(rule.notify or ()), *later, *alert.told)):
        if name not in alert.told:
            yield name, Kind.ESCALATED if name in later else Kind.FIRING
        elif rule.repeat_s is not None and now - alert.told[name] >= rule.repeat_s:
            yield name, Kind.REPEATED


@dataclass(frozen=True)
class Message:
    """Notices of one look that go to one channel together (Alertmanager's group). `id` stays through all attempts."""

    id: str
    channel: str
    notices: tuple[tuple[Kind, Alert], ...]


def grouped(notices: Iterable[Notice], *, new_id: Callable[[], str]) -> tuple[Message, ...]:
    """A message for each channel that is told something. Args: new_id: gives an id that no message has yet."""
    by_channel: dict[str, list[tuple[Kind, Alert]]] = {}
    for notice in notices:
        by_channel.setdefault(notice.channel, []).append((notice.kind, notice.alert))
    return tuple(Message(new_id(), channel, tuple(listed)) for channel, listed in by_channel.items())
