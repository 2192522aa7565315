"""Alerts on their way: a thread that looks, and one for each channel that hands messages over, so that a receiver that
is slow or gone holds up neither the monitor nor other channels.

At least once: an attempt is recorded after it was made, so whoever is killed in between makes it again, with the same
id in the message.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import secrets
import signal
import smtplib
import ssl
import subprocess
import tempfile
import threading
import time
from contextlib import suppress

import httpx
import numpy as np

from mlops_ray.cluster.background import Doing, keep_doing
from mlops_ray.config import Project
from mlops_ray.config.alerts import Command, Email, Webhook
from mlops_ray.monitoring.alerts import book, wording
from mlops_ray.monitoring.alerts.alerting import Message
from mlops_ray.monitoring.alerts.delivering import Backoff, Outcome, Result, concluded, scrubbed, upcoming
from mlops_ray.monitoring.alerts.observed import Conditions
from mlops_ray.monitoring.alerts.watching import Watcher
from mlops_ray.state import Store

_log = logging.getLogger(__name__)

# How often the state database is looked at, and a channel's queue when nobody wakes it; and after how long a thread
# tries again that could not reach the database.
_LOOK_S = 10.0
_IDLE_S = 30.0
_AGAIN_S = 5.0
# Of what a receiver answers, bytes that are read.
_MOST_READ = 4096
# For what a program has said when it ended; what it left running may say more, to nobody.
_LISTEN_S = 1.0
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")

AnyChannel = Webhook | Email | Command


class Alerting:
    """What the monitor keeps running; `soon` asks for a look now."""

    def __init__(
        self,
        store: Store,
        project: Project,
        others: Conditions,
        *,
        rng: np.random.Generator | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """Args: others: conditions that rooms further down know."""
        self._watcher = Watcher(store, project, others, new_id=lambda: secrets.token_hex(6))
        name, channels = project.project, project.alerts.channels
        store.run(lambda tx: book.give_up_on(tx, name, list(channels), time.time()))
        # A generator each: they are not for several threads.
        rngs = (rng or np.random.default_rng()).spawn(len(channels))
        lanes = [
            Lane(store, project, one, backoff=backoff or Backoff(), rng=own)
            for one, own in zip(channels, rngs, strict=True)
        ]
        self._lanes = [keep_doing(lane.turn, every_s=lane.rest_s, what=f"alerts to {lane.name}") for lane in lanes]
        self._looking = keep_doing(self._look, every_s=_LOOK_S, what=f"alerts of {name}")

    def soon(self) -> None:
        """Look now, or right after the look under way."""
        self._looking.soon()

    def end(self, wait_s: float = 0.0) -> bool:
        """Nothing further is begun; whether what was under way ended, each within `wait_s`."""
        threads: list[Doing] = [self._looking, *self._lanes]
        ended = [thread.end(wait_s) for thread in threads]
        return all(ended)

    def _look(self) -> None:
        if self._watcher.look(time.time()):
            for lane in self._lanes:
                lane.soon()


class Lane:
    """The way to one channel."""

    def __init__(
        self, store: Store, project: Project, name: str, *, backoff: Backoff, rng: np.random.Generator
    ) -> None:
        self.name = name
        self._store, self._project = store, project
        self._channel = project.alerts.channels[name]
        self._backoff, self._rng = backoff, rng
        self._next = self._shut_until = 0.0
        self._unsaved: book.Posted | None = None

    def rest_s(self) -> float:
        """Seconds until there is something to do, unless somebody says so before."""
        return min(_IDLE_S, max(0.0, self._next - time.time()))

    def turn(self) -> None:
        """Hand over what is due, one message after another."""
        self._next = time.time() + _AGAIN_S  # should the state database be away
        while True:
            self._save()
            with self._store.read() as tx:
                one = upcoming(book.waiting(tx, self._project.project, self.name))
            self._next = time.time() + _IDLE_S if one is None else max(one.due, self._shut_until)
            if one is None or self._next > time.time():
                return
            self._attempt(one)

    def _attempt(self, one: book.Posted) -> None:
        at = time.time()
        outcome = hand_over(self._project.project, self._channel, one.message, at)
        after = concluded(
            one,
            outcome,
            most_attempts=self._channel.attempts,
            backoff=self._backoff,
            secrets=self._channel.secrets,
            at=at,
            took_s=time.time() - at,
            rng=self._rng,
        )
        if outcome.result is Result.UNREACHABLE:
            self._shut_until = after.due
        if after.status is book.Status.FAILED:
            _log.error(
                "alerts to %s: message %s is given up after %d attempts: %s",
                self.name,
                one.message.id,
                len(after.attempts),
                after.attempts[-1].said,
            )
        self._unsaved = after
        self._save()

    def _save(self) -> None:
        """What was attempted is recorded before anything else is: nobody is flooded while the database is away."""
        if (one := self._unsaved) is not None:
            self._store.run(lambda tx: book.save_posted(tx, self._project.project, one))
            self._unsaved = None


def hand_over(project: str, channel: AnyChannel, message: Message, now: float) -> Outcome:
    """Try to hand a message over, for `timeout_s` of the channel at most. What is said holds no secrets of it."""
    try:
        if isinstance(channel, Webhook):
            outcome = asyncio.run(_posted(project, channel, message))
        elif isinstance(channel, Email):
            outcome = _mailed(project, channel, message, now)
        else:
            outcome = _executed(project, channel, message)
    except Exception as exc:  # noqa: BLE001 - whatever a client raises, the message stays and is tried again
        outcome = Outcome(Result.UNREACHABLE, f"{type(exc).__name__}: {exc}")
    return Outcome(outcome.result, scrubbed(outcome.said, channel.secrets), outcome.wait_s)


# webhook

_secretive = contextvars.ContextVar("_secretive", default=False)


class _NotOurs(logging.Filter):
    """httpx logs the address of each request, and that of a webhook is a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _secretive.get()


_NOT_OURS = _NotOurs()


async def _posted(project: str, channel: Webhook, message: Message) -> Outcome:
    body = (wording.slack if channel.format == "slack" else wording.alertmanager)(project, message)
    headers = {name: value.get_secret_value() for name, value in channel.headers.items()}
    headers |= {"Content-Type": "application/json", "User-Agent": "mlops_ray", "Idempotency-Key": message.id}
    headers["Accept-Encoding"] = "identity"  # what is read of an answer is not unpacked
    logging.getLogger("httpx").addFilter(_NOT_OURS)  # once, however often
    _secretive.set(True)  # for this task only
    try:
        # httpx counts its time-outs per read: a receiver that answers a byte at a time would never reach one.
        async with (
            asyncio.timeout(channel.timeout_s),
            httpx.AsyncClient(follow_redirects=False, timeout=None) as client,
        ):
            url = channel.url.get_secret_value()
            async with client.stream("POST", url, content=json.dumps(body), headers=headers) as answer:
                said = b""
                async for part in answer.aiter_raw():
                    said = (said + part)[:_MOST_READ]
                    if len(said) == _MOST_READ:
                        break
    except TimeoutError:
        return Outcome(Result.UNREACHABLE, f"no answer within {channel.timeout_s:g} s")
    except httpx.TransportError as exc:
        return Outcome(Result.UNREACHABLE, f"{type(exc).__name__}: {exc}")
    words = f"HTTP {answer.status_code} {said.decode('utf-8', 'replace')}".strip()
    if answer.is_success:
        return Outcome(Result.SENT, words)
    if answer.is_redirect:
        return Outcome(Result.REFUSED, f"{words}; redirects are not followed: give the address that it leads to")
    # RFC 9110, 15.5.9 (408), RFC 6585, 4 (429), RFC 8470, 5.2 (425): what may succeed later.
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        asked = answer.headers.get("Retry-After", "")
        return Outcome(Result.BUSY, words, float(asked) if asked.isdecimal() else None)
    return Outcome(Result.REFUSED, words)


# mail


def _mailed(project: str, channel: Email, message: Message, now: float) -> Outcome:
    letter = wording.letter(project, channel, message, now)
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if channel.tls == "implicit":
        server = smtplib.SMTP_SSL(timeout=channel.timeout_s, context=context)
    else:
        server = smtplib.SMTP(timeout=channel.timeout_s)
    over = threading.Event()

    def cut() -> None:
        over.set()
        if server.sock is not None:
            with suppress(OSError):
                server.sock.shutdown(2)

    # smtplib's time-out is per read, as httpx's is.
    limit = threading.Timer(channel.timeout_s, cut)
    limit.daemon = True
    limit.start()
    try:
        server._host = channel.host  # type: ignore[attr-defined]  # what STARTTLS checks the certificate against
        server.connect(channel.host, channel.port)
        if channel.tls == "starttls":
            server.starttls(context=context)
        if channel.user is not None and channel.password is not None:
            server.login(channel.user, channel.password.get_secret_value())
        refused = server.send_message(letter)
        with suppress(smtplib.SMTPException, OSError):
            server.quit()  # the letter is taken, whatever comes of this
    except smtplib.SMTPRecipientsRefused as exc:
        return _answered(next(iter(exc.recipients.values()))[0], str(exc.recipients))
    except smtplib.SMTPResponseException as exc:
        return _answered(exc.smtp_code, str(exc.smtp_error))
    except smtplib.SMTPNotSupportedError as exc:
        return Outcome(Result.REFUSED, str(exc))
    except (smtplib.SMTPException, OSError) as exc:
        late = f"no answer within {channel.timeout_s:g} s"
        return Outcome(Result.UNREACHABLE, late if over.is_set() else f"{type(exc).__name__}: {exc}")
    finally:
        limit.cancel()
        server.close()
    return Outcome(Result.SENT, f"taken, but not for {', '.join(refused)}" if refused else "taken")


def _answered(code: int, said: str) -> Outcome:
    """RFC 5321, 4.2.1: 4yz may succeed later, 5yz will not. smtplib says -1 where the connection was lost."""
    result = Result.BUSY if 400 <= code < 500 else Result.REFUSED if code >= 500 else Result.UNREACHABLE
    return Outcome(result, f"SMTP {code} {said}")


# command


def _executed(project: str, channel: Command, message: Message) -> Outcome:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {name: value.get_secret_value() for name, value in channel.env.items()}
    try:
        # A file, since a program need not read what it is given.
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(wording.alertmanager(project, message)).encode())
            given.seek(0)
            process = subprocess.Popen(
                channel.argv,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that it is stopped with all that it started
            )
    except OSError as exc:
        return Outcome(Result.UNREACHABLE, f"{channel.argv[0]} does not start: {exc.strerror}")
    said = bytearray()
    listening = threading.Thread(target=_listen, args=(process, said), daemon=True)
    listening.start()
    try:
        process.wait(channel.timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Outcome(Result.BUSY, f"stopped after {channel.timeout_s:g} s {_words(said)}")
    listening.join(_LISTEN_S)
    code = process.returncode
    return Outcome(Result.SENT if code == 0 else Result.BUSY, f"exit code {code} {_words(said)}")


def _listen(process: subprocess.Popen[bytes], said: bytearray) -> None:
    """Read all that the program says, so that it never waits for a reader, and keep its beginning."""
    assert process.stdout is not None
    with process.stdout as output:
        while part := os.read(output.fileno(), _MOST_READ):
            said += part[: _MOST_READ - len(said)]


def _words(said: bytearray) -> str:
    return bytes(said).decode("utf-8", "replace")
