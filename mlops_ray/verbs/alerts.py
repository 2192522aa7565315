"""Alerts: listed, shown, acknowledged, silenced, and a channel tried."""

from __future__ import annotations

import secrets
import time
from typing import Any

from mlops_ray.errors import DataError
from mlops_ray.verbs import Env, Paths, known_store, load


def alerts(paths: Paths, env: Env, *, resolved: bool = False) -> dict[str, Any]:
    """The open alerts, worst first, the silences that last, and how many messages could not be delivered, by channel.

    Args: resolved: the last hundred that have resolved too.
    """
    from mlops_ray.config.alerts import SEVERITIES
    from mlops_ray.monitoring.alerts import book

    project = load(paths, env).project
    now = time.time()
    with known_store(project).read() as tx:
        found = sorted(book.opened(tx, project.project), key=lambda a: -SEVERITIES.index(a.severity))
        found += book.resolved(tx, project.project) if resolved else []
        silences = book.silences(tx, project.project, now)
        counts = book.counts(tx, project.project)
    return {
        "alerts": [alert.to_dict() | {"state": alert.state} for alert in found],
        "silences": [vars(silence) for silence in silences],
        "undelivered": {channel: n for (channel, status), n in counts.items() if status == book.Status.FAILED},
        "waiting": {channel: n for (channel, status), n in counts.items() if status == book.Status.WAITING},
    }


def show(paths: Paths, env: Env, which: str) -> dict[str, Any]:
    """One alert, and each message about it with its attempts. Args: which: its id, or how that begins.

    Raises: DataError when there is no such alert."""
    from mlops_ray.monitoring.alerts import book

    project = load(paths, env).project
    with known_store(project).read() as tx:
        alert = book.alert(tx, project.project, which)
        messages = book.posted(tx, project.project, alert.id)
    return {
        "alert": alert.to_dict() | {"state": alert.state},
        "messages": [one.to_dict() for one in reversed(messages)],
    }


def ack(paths: Paths, env: Env, which: str, why: str) -> dict[str, Any]:
    """Take an alert on: it is neither repeated nor escalated any more; that it has resolved is still told.

    Raises: DataError when there is no such alert, or it has resolved."""
    from dataclasses import replace

    from mlops_ray import ledger
    from mlops_ray.monitoring.alerts import book
    from mlops_ray.monitoring.alerts.alerting import Ack, Alert, Phase
    from mlops_ray.rollout.orders import decision_time
    from mlops_ray.state import Tx
    from mlops_ray.verbs.subjects import orderer

    project = load(paths, env).project
    store = known_store(project)
    who, now = orderer(project, store, env), time.time()

    def save(tx: Tx) -> Alert:
        alert = book.alert(tx, project.project, which)
        if alert.phase is not Phase.FIRING:
            says = f"is {alert.phase}: only what fires can be acknowledged; `mlops-ray alerts list` shows that"
            raise DataError(f"alert {alert.id}", says)
        after = replace(alert, ack=Ack(who, why, now))
        book.save(tx, project.project, after)
        evidence = {"alert": alert.id, "rule": alert.rule, "subject": alert.subject}
        at = decision_time(tx, project, now)
        ledger.append(tx, project.project, "alert acknowledged", alert.id, who, why, evidence, at)
        return after

    after = store.run(save)
    return {"alert": after.to_dict() | {"state": after.state}}


def silence(paths: Paths, env: Env, *, rule: str, subject: str, for_s: float, why: str) -> dict[str, Any]:
    """Tell nobody of a rule's alerts, or a subject's, for so many seconds; they are recorded.

    Args: rule, subject: "" stands for any.
    Raises: DataError for a rule that the project does not have.
    """
    from mlops_ray import ledger
    from mlops_ray.monitoring.alerts import book
    from mlops_ray.monitoring.alerts.alerting import Silence
    from mlops_ray.rollout.orders import decision_time
    from mlops_ray.state import Tx
    from mlops_ray.verbs.subjects import orderer

    project = load(paths, env).project
    known = [each.name for each in project.alerts.in_force]
    if rule and rule not in known:
        raise DataError(f"rule {rule!r}", f"is none of the project's; there are {', '.join(known)}")
    store = known_store(project)
    who, now = orderer(project, store, env), time.time()
    made = Silence(secrets.token_hex(4), rule, subject, who, why, now, now + for_s)

    def save(tx: Tx) -> None:
        book.save_silence(tx, project.project, made)
        evidence = {"rule": rule, "subject": subject, "ends": made.ends}
        at = decision_time(tx, project, now)
        ledger.append(tx, project.project, "alerts silenced", made.id, who, why, evidence, at)

    store.run(save)
    return {"silence": vars(made)}


def unsilence(paths: Paths, env: Env, which: str) -> dict[str, Any]:
    """End a silence before its time; what still fires is told. Raises: DataError when there is no such silence."""
    from mlops_ray import ledger
    from mlops_ray.monitoring.alerts import book
    from mlops_ray.monitoring.alerts.alerting import Silence
    from mlops_ray.rollout.orders import decision_time
    from mlops_ray.state import Tx
    from mlops_ray.verbs.subjects import orderer

    project = load(paths, env).project
    store = known_store(project)
    who, now = orderer(project, store, env), time.time()

    def save(tx: Tx) -> Silence:
        ended = book.end_silence(tx, project.project, which, now)
        at = decision_time(tx, project, now)
        ledger.append(tx, project.project, "silence ended", which, who, "ended by hand", {}, at)
        return ended

    return {"silence": vars(store.run(save))}


def try_channel(paths: Paths, env: Env, channel: str) -> dict[str, Any]:
    """Send a test notice through a channel, once, from this machine, and say what came back. Records nothing.

    Raises: DataError for a channel that the project does not have."""
    from mlops_ray.config.alerts import describe
    from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase
    from mlops_ray.monitoring.alerts.delivering import Result
    from mlops_ray.monitoring.on_delivery import hand_over
    from mlops_ray.verbs.subjects import os_user

    project = load(paths, env).project
    known = project.alerts.channels
    if channel not in known:
        says = f"is none of the project's; there are {', '.join(known) or 'none'}: see `alerts.channels`"
        raise DataError(f"channel {channel!r}", says)
    now, identity = time.time(), secrets.token_hex(6)
    why = f"{os_user()} tries this channel; nothing is wrong"
    alert = Alert(identity, "test", project.project, "info", Phase.FIRING, now, why, fired=now)
    message = Message(identity, channel, ((Kind.TEST, alert),))
    outcome = hand_over(project.project, known[channel], message, now)
    return {
        "channel": channel,
        **describe(known[channel]),
        "message": identity,
        "ok": outcome.result is Result.SENT,
        "result": str(outcome.result),
        "said": outcome.said,
        "took_s": time.time() - now,
    }
