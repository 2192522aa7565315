"""Messages as their receivers want them: Slack's JSON, Alertmanager's JSON, a letter. Pure.

Words may come from the data (a category's name stands in the cause of drift): nothing in them may call people, begin a
header or hide text.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from mlops_ray.config.alerts import SEVERITIES, Email
from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message

# Slack shows twenty attachments well; programs get more, and a count of what is left out.
_MOST_SHOWN, _MOST_LISTED = 20, 500
_MOST_CHARACTERS = 600
_COLOURS = {"info": "#439fe0", "warning": "#daa038", "critical": "#a30200"}
_WELL = "#2eb67d"


def headline(project: str, message: Message) -> str:
    """The message in one line: `flights: 2 firing, 1 resolved`."""
    counts = Counter(str(kind) for kind, _ in message.notices)
    return f"{project}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())


def lines(message: Message) -> list[str]:
    """A line for each notice, worst first, and one for those that are left out."""
    listed = _worst_first(message)
    said = [f"{_title(kind, alert)}: {_clean(alert.why)}" for kind, alert in listed[:_MOST_SHOWN]]
    return [*said, *_more(len(listed))]


def slack(project: str, message: Message) -> dict[str, Any]:
    """As Slack's incoming webhooks take it, and Mattermost's and Rocket.Chat's.

    Source: Slack's documentation of incoming webhooks, attachments, and of escaping text (&, <, >)."""
    listed = _worst_first(message)
    attachments: list[dict[str, Any]] = [
        {
            "fallback": _escaped(f"{_title(kind, alert)}: {_clean(alert.why)}"),
            "color": _WELL if kind is Kind.RESOLVED else _COLOURS[alert.severity],
            "title": _escaped(_title(kind, alert)),
            "text": _escaped(_clean(alert.why)),
            "footer": f"alert {alert.id}, message {message.id}",
            "ts": int(alert.ended or alert.fired or alert.since),
        }
        for kind, alert in listed[:_MOST_SHOWN]
    ]
    return {
        "text": _escaped("\n".join([headline(project, message), *_more(len(listed))])),
        "attachments": attachments,
    }


def alertmanager(project: str, message: Message) -> dict[str, Any]:
    """As version 4 of Alertmanager's webhook has it, and the message's id as `message`.

    Source: Prometheus Alertmanager's configuration, <webhook_config>."""
    listed = _worst_first(message)
    alerts = [_as_alertmanager(project, kind, alert) for kind, alert in listed[:_MOST_LISTED]]
    firing = any(kind is not Kind.RESOLVED for kind, _ in listed)
    labels = [alert["labels"] for alert in alerts]
    return {
        "version": "4",
        "groupKey": f'{{}}:{{project="{project}"}}',
        "truncatedAlerts": len(listed) - len(alerts),
        "status": "firing" if firing else "resolved",
        "receiver": message.channel,
        "groupLabels": {"project": project},
        "commonLabels": {k: v for k, v in labels[0].items() if all(other.get(k) == v for other in labels)},
        "commonAnnotations": {},
        "externalURL": "",
        "alerts": alerts,
        "message": message.id,
    }


def letter(project: str, channel: Email, message: Message, sent: float) -> EmailMessage:
    """As a mail (RFC 5322), whose `Message-ID` stays through all attempts. Args: sent: seconds since the epoch."""
    domain = channel.sender.rpartition("@")[2]
    body = EmailMessage()
    body["From"], body["To"] = channel.sender, ", ".join(channel.to)
    body["Subject"] = f"[mlops_ray] {headline(project, message)}"
    body["Date"] = format_datetime(datetime.fromtimestamp(sent, UTC))
    body["Message-ID"] = f"<{message.id}.{project}@{domain}>"
    body["X-Mlops-Ray-Message"] = message.id
    body["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    body.set_content("\n\n".join([*lines(message), f"message {message.id}"]) + "\n")
    return body


def _as_alertmanager(project: str, kind: Kind, alert: Alert) -> Mapping[str, Any]:
    return {
        "status": "resolved" if kind is Kind.RESOLVED else "firing",
        "labels": {
            "alertname": alert.rule,
            "project": project,
            "severity": alert.severity,
            "subject": _clean(alert.subject),
        },
        "annotations": {"summary": _clean(alert.why), "notice": str(kind)},
        "startsAt": _rfc3339(alert.fired or alert.since),
        "endsAt": "0001-01-01T00:00:00Z" if alert.ended is None else _rfc3339(alert.ended),
        "generatorURL": "",
        "fingerprint": alert.id,
    }


def _title(kind: Kind, alert: Alert) -> str:
    return f"[{kind}] {alert.severity} {alert.rule} of {_clean(alert.subject)}"


def _worst_first(message: Message) -> list[tuple[Kind, Alert]]:
    """Firing before resolved, critical before the rest, else as they came."""
    worst: list[str] = [*SEVERITIES[::-1]]
    return sorted(message.notices, key=lambda one: (one[0] is Kind.RESOLVED, worst.index(one[1].severity)))


def _more(n: int) -> list[str]:
    return [f"and {n - _MOST_SHOWN} more: mlops-ray alerts list"] if n > _MOST_SHOWN else []


def _clean(words: str) -> str:
    """One line without characters that steer terminals or the direction of text."""
    plain = "".join(" " if _steers(unicodedata.category(c)) else c for c in words)
    return plain if len(plain) <= _MOST_CHARACTERS else plain[: _MOST_CHARACTERS - 1] + "…"


def _steers(category: str) -> bool:
    return category[0] == "C" or category in ("Zl", "Zp")


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
