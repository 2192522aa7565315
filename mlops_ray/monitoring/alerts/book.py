"""Alerts, silences and messages in the state database, each saved in the transaction that decided it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, RowMapping, Table, Text, func, select, text

from mlops_ray.errors import DataError
from mlops_ray.monitoring.alerts.alerting import OPEN, Alert, Kind, Message, Phase, Silence, Step
from mlops_ray.state import METADATA, Tx

KEEP_S = 90 * 86_400.0
"""Resolved alerts, ended silences and messages that are done are kept for so long."""

ALERTS = Table(
    "alerts",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("ended", Double, nullable=True),
    Column("body", Text, nullable=False),
)
_IS_OPEN = text("phase IN ('pending', 'firing')")
Index(
    "one_open_alert",
    ALERTS.c.project,
    ALERTS.c.rule,
    ALERTS.c.subject,
    unique=True,
    sqlite_where=_IS_OPEN,
    postgresql_where=_IS_OPEN,
)
SILENCES = Table(
    "silences",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    *(Column(name, Text, nullable=False) for name in ("rule", "subject", "who", "why")),
    Column("created", Double, nullable=False),
    Column("ends", Double, nullable=False),
)
MESSAGES = Table(
    "alert_messages",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("channel", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("body", Text, nullable=False),
)
Index("alert_messages_by_status", MESSAGES.c.project, MESSAGES.c.status, MESSAGES.c.channel)


class Status(StrEnum):
    """Where a message stands: it waits, was taken by its receiver, or is given up."""

    WAITING = "waiting"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True)
class Attempt:
    """One try to hand a message over: when, how it went (a `delivering.Result`), and what came back, in words."""

    at: float
    result: str
    said: str
    took_s: float


@dataclass(frozen=True)
class Posted:
    """A message with its place among those of its project, and what became of it. `due`: when it is tried next."""

    message: Message
    number: int
    status: Status
    created: float
    due: float
    attempts: tuple[Attempt, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly, for people and programs."""
        return {
            "id": self.message.id,
            "channel": self.message.channel,
            "status": str(self.status),
            "created": self.created,
            "due": self.due if self.status is Status.WAITING else None,
            "notices": [{"kind": str(kind), "alert": alert.id} for kind, alert in self.message.notices],
            "attempts": [vars(attempt) for attempt in self.attempts],
        }


def save_step(tx: Tx, project: str, step: Step, messages: Collection[Message], now: float) -> None:
    """Save a look: its alerts, and the messages of its notices, so that none is without the other."""
    for alert in step.changed:
        save(tx, project, alert)
    c = ALERTS.c
    tx.connection.execute(ALERTS.delete().where(c.project == project, c.id.in_(step.forgotten)))
    post(tx, project, messages, now)


def opened(tx: Tx, project: str) -> list[Alert]:
    """Alerts that are pending or firing, oldest first."""
    c = ALERTS.c
    query = select(c.body).where(c.project == project, c.phase.in_(OPEN)).order_by(c.since, c.rule, c.subject)
    return [Alert.from_dict(json.loads(body)) for body in tx.connection.execute(query).scalars()]


def resolved(tx: Tx, project: str, limit: int = 100) -> list[Alert]:
    """The last alerts that have resolved, newest first."""
    c = ALERTS.c
    where = (c.project == project, c.phase == Phase.RESOLVED)
    query = select(c.body).where(*where).order_by(c.ended.desc(), c.id).limit(limit)
    return [Alert.from_dict(json.loads(body)) for body in tx.connection.execute(query).scalars()]


def alert(tx: Tx, project: str, which: str) -> Alert:
    """The alert whose id is, or alone begins with, `which`.

    Raises: DataError when none or several do."""
    c = ALERTS.c
    query = select(c.body).where(c.project == project, func.substr(c.id, 1, len(which)) == which).limit(2)
    found = [Alert.from_dict(json.loads(body)) for body in tx.connection.execute(query).scalars()]
    if len(found) != 1 or not which:
        says = "begins the ids of several alerts" if found else "is no alert of this project's"
        raise DataError(f"alert {which!r}", f"{says}; `mlops-ray alerts list --all` names them")
    return found[0]


def save(tx: Tx, project: str, alert: Alert) -> None:
    """Insert or replace an alert."""
    columns = ("id", "rule", "subject", "phase", "since", "ended")
    values = {name: getattr(alert, name) for name in columns} | {"project": project}
    values |= {"phase": str(alert.phase), "body": alert.to_dict()}
    tx.upsert(ALERTS, values)


# silences


def silences(tx: Tx, project: str, now: float) -> list[Silence]:
    """Those that have not ended, oldest first."""
    c = SILENCES.c
    query = select(SILENCES).where(c.project == project, c.ends > now).order_by(c.created, c.id)
    return [_silence(row) for row in tx.connection.execute(query).mappings()]


def save_silence(tx: Tx, project: str, silence: Silence) -> None:
    """Insert or replace a silence. Raises: DataError for texts that cannot be stored."""
    tx.upsert(SILENCES, {"project": project, **vars(silence)})


def end_silence(tx: Tx, project: str, which: str, now: float) -> Silence:
    """The silence with this id, which has ended. Raises: DataError when there is none that lasts."""
    found = next((s for s in silences(tx, project, now) if s.id == which), None)
    if found is None:
        raise DataError(f"silence {which}", "there is none that lasts; `mlops-ray alerts list` names them")
    ended = replace(found, ends=now)
    save_silence(tx, project, ended)
    return ended


# messages


def post(tx: Tx, project: str, messages: Collection[Message], now: float) -> None:
    """Keep messages until their receivers have taken them."""
    last = select(func.max(MESSAGES.c.number)).where(MESSAGES.c.project == project)
    number = tx.connection.execute(last).scalar_one() or 0
    for i, message in enumerate(messages, number + 1):
        save_posted(tx, project, Posted(message, i, Status.WAITING, now, now))


def save_posted(tx: Tx, project: str, posted: Posted) -> None:
    """Insert or replace a message."""
    message = posted.message
    body = {
        "notices": [[str(kind), alert.to_dict()] for kind, alert in message.notices],
        "attempts": [vars(attempt) for attempt in posted.attempts],
    }
    values = {"id": message.id, "channel": message.channel, "project": project, "status": str(posted.status)}
    values |= {name: getattr(posted, name) for name in ("number", "created", "due")}
    tx.upsert(MESSAGES, values | {"body": body})


def waiting(tx: Tx, project: str, channel: str) -> list[Posted]:
    """Messages that a channel has still to hand over, in the order in which they came about."""
    c = MESSAGES.c
    where = (c.project == project, c.status == Status.WAITING, c.channel == channel)
    found = tx.connection.execute(select(MESSAGES).where(*where).order_by(c.number)).mappings()
    return [_posted(row) for row in found]


def posted(tx: Tx, project: str, alert: str | None = None, limit: int = 500) -> list[Posted]:
    """The last messages, newest first; only those about one alert when its id is given."""
    query = select(MESSAGES).where(MESSAGES.c.project == project).order_by(MESSAGES.c.number.desc()).limit(limit)
    if alert is not None:
        query = query.where(MESSAGES.c.body.contains(f'"{alert}"', autoescape=True))
    found = [_posted(row) for row in tx.connection.execute(query).mappings()]
    return [one for one in found if alert is None or alert in (a.id for _, a in one.message.notices)]


def counts(tx: Tx, project: str) -> dict[tuple[str, str], int]:
    """How many messages stand where, by channel and status."""
    c = MESSAGES.c
    query = select(c.channel, c.status, func.count()).where(c.project == project).group_by(c.channel, c.status)
    return {(channel, status): n for channel, status, n in tx.connection.execute(query)}


def give_up_on(tx: Tx, project: str, channels: Collection[str], now: float) -> None:
    """Messages for channels that are none of `channels` any more will not be tried."""
    c = MESSAGES.c
    query = select(MESSAGES).where(c.project == project, c.status == Status.WAITING, c.channel.not_in(list(channels)))
    for row in tx.connection.execute(query).mappings().all():
        one = _posted(row)
        said = Attempt(now, "given up", "the project file has no such channel any more", 0.0)
        save_posted(tx, project, replace(one, status=Status.FAILED, attempts=(*one.attempts, said)))


def forget_old(tx: Tx, project: str, now: float) -> None:
    """Take out what has been over for `KEEP_S`."""
    before = now - KEEP_S
    a, s, m = ALERTS.c, SILENCES.c, MESSAGES.c
    tx.connection.execute(ALERTS.delete().where(a.project == project, a.phase == Phase.RESOLVED, a.ended < before))
    tx.connection.execute(SILENCES.delete().where(s.project == project, s.ends < before))
    done = (m.project == project, m.status != Status.WAITING, m.created < before)
    tx.connection.execute(MESSAGES.delete().where(*done))


def _silence(row: RowMapping) -> Silence:
    return Silence(**{name: value for name, value in row.items() if name != "project"})


def _posted(row: RowMapping) -> Posted:
    body = json.loads(row["body"])
    notices = tuple((Kind(kind), Alert.from_dict(alert)) for kind, alert in body["notices"])
    attempts = tuple(Attempt(**attempt) for attempt in body["attempts"])
    message = Message(row["id"], row["channel"], notices)
    return Posted(message, row["number"], Status(row["status"]), row["created"], row["due"], attempts)
