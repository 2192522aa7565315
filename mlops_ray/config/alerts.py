"""The `alerts:` block: who is told, when, by which channel.

Words and behaviour are Prometheus Alertmanager's where it has them (firing, resolved, repeat interval, silence), and
PagerDuty's for what it lacks (acknowledged, escalation).
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator

from mlops_ray.config.base import DAY_S, Config, Name

OfWindow = Literal["drift", "quality", "estimated_quality", "multivariate", "data_quality"]
When = Literal[
    OfWindow,
    "sequential",
    "no_traffic",
    "retrain_failed",
    "retrain_rejected",
    "breaker_open",
    "rollout_rolled_back",
    "rollout_paused",
    "rollout_waiting_approval",
    "version_waiting_approval",
]
Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Least first."""

_OF_WINDOW: tuple[str, ...] = get_args(OfWindow)
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$"  # a token of RFC 9110, 5.6.2
_ADDRESS = r"^[^\s@<>,;\"]+@[^\s@<>,;\"]+$"
_BY_US = ("content-type", "content-length", "host", "idempotency-key", "user-agent")
# Paths of Slack's, Discord's and Teams' webhooks hold words of 20 and more letters and digits; those of people do not.
_LOOKS_SECRET = re.compile(r"(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}")
_REFERENCE = re.compile(r"\$\{\w+\}")


class Webhook(Config):
    """A POST of JSON to `url`. Redirects are not followed: they would carry alerts to whom nobody has named."""

    kind: Literal["webhook"]
    url: SecretStr
    """With `${NAME}` for what nobody else may know of it."""
    format: Literal["slack", "alertmanager"] = "slack"
    """`slack`: what Slack, Mattermost and Rocket.Chat show; `alertmanager`: version 4 of Alertmanager's webhook."""
    headers: Mapping[Annotated[str, Field(pattern=_HEADER)], SecretStr] = Field(default={}, validate_default=True)
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    attempts: PositiveInt = 50
    """How often a notice is tried before it counts as undeliverable: with pauses of up to ten minutes, some five
    hours."""

    @field_validator("url")
    @classmethod
    def _http(cls, value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            well = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            well = False
        if not well or any(c.isspace() for c in value.get_secret_value()):
            raise ValueError("is no address of a webhook; write https://host/path")  # the value may be the secret
        return value

    @field_validator("headers")
    @classmethod
    def _sound(cls, value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, text in value.items():
            if name.lower() in _BY_US:
                raise ValueError(f"{name} is set by us; remove it")
            if not text.get_secret_value().isascii() or not text.get_secret_value().isprintable():
                raise ValueError(f"the value of {name} holds what no header may; take printable ASCII")
        return value

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message, log or row may hold."""
        url = self.url.get_secret_value()
        parts = urlsplit(url)
        within = {parts.path.strip("/"), parts.query, parts.password or "", *parts.path.split("/")}
        words = {word for value in self.headers.values() for word in value.get_secret_value().split()}
        found = {url, *within, *(v.get_secret_value() for v in self.headers.values()), *words}
        return frozenset(text for one in found for text in (one, unquote(one)) if len(text) > 5)


class Email(Config):
    """A letter through an SMTP server."""

    kind: Literal["email"]
    host: str = Field(pattern=r"^[A-Za-z0-9.:-]+$")
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    """`starttls` (port 587) and `implicit` (port 465) check the server's certificate; `none` sends in the clear."""
    user: str | None = None
    password: SecretStr | None = None
    sender: Annotated[str, Field(pattern=_ADDRESS)]
    to: tuple[Annotated[str, Field(pattern=_ADDRESS)], ...] = Field(min_length=1)
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 30.0
    attempts: PositiveInt = 50

    @model_validator(mode="after")
    def _guarded(self) -> Email:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together; give both or none")
        if self.tls == "none" and self.password is not None and not _is_loopback(self.host):
            raise ValueError(f"tls: none would show the password to whoever listens on the way to {self.host}")
        return self

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message, log or row may hold."""
        return frozenset({self.password.get_secret_value()} if self.password else ())


class Command(Config):
    """A program that gets the notice on its standard input, as `format: alertmanager` has it; 0 means told."""

    kind: Literal["command"]
    argv: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments, as they are: no shell reads them. Others on the machine see them."""
    env: Mapping[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], SecretStr] = {}
    """What it finds in its environment, besides PATH, HOME, LANG and TZ. Secrets belong here."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 30.0
    attempts: PositiveInt = 50

    @field_validator("argv")
    @classmethod
    def _runs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].strip() or any("\0" in word for word in value):
            raise ValueError("names no program; write [/usr/local/bin/page, --urgent]")
        return value

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message, log or row may hold."""
        return frozenset(v.get_secret_value() for v in self.env.values() if len(v.get_secret_value()) > 5)


Channel = Annotated[Webhook | Email | Command, Field(discriminator="kind")]


class Rule(Config):
    """One rule: while its condition holds, an alert fires for each subject that the condition names."""

    name: Name
    when: When
    for_windows: Annotated[int, Field(ge=1, le=20)] = 1
    """Windows in a row that must alarm, of the conditions that windows are judged by."""
    for_s: NonNegativeFloat = 0.0
    """How long the condition must hold, on the clock on the wall, before the alert fires; it is pending till then."""
    severity: Severity = "warning"
    notify: tuple[str, ...] | None = None
    """Channels that are told at once; all of them where nothing is said, nobody with []."""
    escalate_to: tuple[str, ...] = ()
    """Who is told besides, one after another, each time `escalate_after_s` has passed and nobody has acknowledged."""
    escalate_after_s: PositiveFloat | None = None
    repeat_s: Annotated[float, Field(ge=60)] | None = DAY_S
    """How often channels are told again of what still fires and nobody has acknowledged; null: never. A day, since the
    conditions are of days and weeks."""


def _default(when: When, severity: Severity) -> Rule:
    return Rule(name=when, when=when, severity=severity)


DEFAULT_RULES = (
    _default("drift", "warning"),
    _default("quality", "critical"),
    _default("estimated_quality", "warning"),
    _default("sequential", "critical"),
    # It has no part of the budget of false alarms, so it is listed and shown, and nobody is told unless a rule says so.
    Rule(name="data_quality", when="data_quality", severity="info", notify=()),
    _default("multivariate", "warning"),
    _default("no_traffic", "warning"),
    _default("retrain_failed", "warning"),
    _default("retrain_rejected", "info"),
    _default("breaker_open", "critical"),
    _default("rollout_rolled_back", "warning"),
    _default("rollout_paused", "warning"),
    _default("rollout_waiting_approval", "info"),
    _default("version_waiting_approval", "info"),
)
"""In force where the project file has no `rules`: every condition, told to every channel, repeated daily."""


class Alerts(Config):
    """Rules and channels. Without channels alerts are recorded, listed and counted, and nobody is told."""

    channels: Mapping[Name, Channel] = Field(default={}, max_length=16)
    rules: tuple[Rule, ...] | None = Field(default=None, max_length=200)
    """In place of the default rules, which are one for each condition."""

    @property
    def in_force(self) -> tuple[Rule, ...]:
        """The rules that hold, each with the channels that it tells."""
        everybody = tuple(self.channels)
        rules = DEFAULT_RULES if self.rules is None else self.rules
        return tuple(r if r.notify is not None else r.model_copy(update={"notify": everybody}) for r in rules)


def alert_checks(block: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What rules may say about each other and about channels, over the raw block: place and sentence."""
    body = block if isinstance(block, Mapping) else {}
    channels, rules = body.get("channels"), body.get("rules")
    known = list(channels) if isinstance(channels, Mapping) else []
    names = set[object]()
    for i, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
        if not isinstance(rule, Mapping):
            continue
        if rule.get("name") in names:
            yield (i, "name"), f"{rule['name']!r} is another rule's name too; rename one"
        names.add(rule.get("name"))
        if rule.get("for_windows", 1) != 1 and rule.get("when") not in _OF_WINDOW:
            yield (i, "for_windows"), f"{rule.get('when')} is not of windows; use for_s"
        told = rule.get("notify")
        later = rule.get("escalate_to")
        listed = {"notify": told if told is not None else [], "escalate_to": later if later is not None else []}
        for field, value in listed.items():
            for j, channel in enumerate(value if isinstance(value, list | tuple) else ()):
                if channel not in known:
                    near = difflib.get_close_matches(str(channel), map(str, known), 1)
                    hint = f"did you mean {near[0]!r}?" if near else "add it to `alerts.channels`"
                    yield (i, field, j), f"{channel!r} is no channel; {hint}"
                elif field == "escalate_to" and channel in (known if told is None else told):
                    yield (i, field, j), f"{channel!r} is told at once already; take it out here or give `notify`"
        if bool(later) != (rule.get("escalate_after_s") is not None):
            missing = "escalate_after_s" if later else "escalate_to"
            yield (i, missing), "is missing: who is told later, and after how long, go together"


def bare_secrets(written: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Secrets that stand in the file itself, over the block as written, before `${NAME}` is filled in."""
    body = written if isinstance(written, Mapping) else {}
    channels = body.get("channels")
    for name, channel in channels.items() if isinstance(channels, Mapping) else ():
        if not isinstance(channel, Mapping):
            continue
        password = channel.get("password")
        if isinstance(password, str) and not _REFERENCE.fullmatch(password):
            yield (name, "password"), "a password does not stand in a file; write ${NAME} and export NAME"
        url = channel.get("url")
        if isinstance(url, str) and _shows_secret(_REFERENCE.sub("", url)):
            yield (name, "url"), "looks as if it held a secret, which does not stand in a file; write ${NAME} for it"
        headers = channel.get("headers")
        for header, value in headers.items() if isinstance(headers, Mapping) else ():
            if isinstance(value, str) and header.lower() in ("authorization", "x-api-key") and "${" not in value:
                yield (name, "headers", header), "is a secret, which does not stand in a file; write ${NAME} for it"


def _shows_secret(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # complained of elsewhere
    return bool(parts.password) or bool(_LOOKS_SECRET.search(f"{parts.path}?{parts.query}"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def describe(channel: Webhook | Email | Command) -> dict[str, Any]:
    """What may be shown of a channel: its kind, and where it leads without what is secret."""
    if isinstance(channel, Webhook):
        return {"kind": channel.kind, "to": urlsplit(channel.url.get_secret_value()).hostname, "format": channel.format}
    if isinstance(channel, Email):
        return {"kind": channel.kind, "to": ", ".join(channel.to), "through": f"{channel.host}:{channel.port}"}
    return {"kind": channel.kind, "to": channel.argv[0]}
