"""Which message a channel hands over next, and what an attempt comes to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from mlops_ray.monitoring.alerts.book import Attempt, Posted, Status

_MOST_SAID = 300


class Result(StrEnum):
    """How an attempt went. REFUSED is for good; BUSY: the receiver answered and may take it later; UNREACHABLE: it did
    not answer, so that nothing else goes there for a while."""

    SENT = "sent"
    REFUSED = "refused"
    BUSY = "busy"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Outcome:
    """An attempt's result, what came back in words, and how many seconds the receiver asked us to wait, if it did."""

    result: Result
    said: str
    wait_s: float | None = None


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts: they double from `base_s` up to `most_s`, each shortened by up to a half at random.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter"): senders that failed
    together do not come back together.
    """

    base_s: float = 2.0
    most_s: float = 600.0

    def pause_s(self, n_attempts: int, rng: np.random.Generator) -> float:
        """Seconds to wait after so many attempts, at least one."""
        whole = min(self.most_s, self.base_s * 2.0 ** min(n_attempts - 1, 60))
        return float(whole * (0.5 + 0.5 * rng.random()))


def upcoming(queue: Iterable[Posted]) -> Posted | None:
    """The message that is due first, of those that no earlier one about the same alert has to go before.

    So a channel hears that an alert has resolved after it heard that it fires, and a message which its receiver will
    not take holds up no others. Args: queue: the channel's waiting messages, in the order in which they came about.
    """
    held = set[str]()
    able = []
    for one in queue:
        about = {alert.id for _, alert in one.message.notices}
        if not about & held:
            able.append(one)
        held |= about
    return min(able, key=lambda one: (one.due, one.number), default=None)


def concluded(
    posted: Posted,
    outcome: Outcome,
    *,
    most_attempts: int,
    backoff: Backoff,
    secrets: Collection[str],
    at: float,
    took_s: float,
    rng: np.random.Generator,
) -> Posted:
    """The message after an attempt that began at `at` (seconds since the epoch) and took `took_s`.

    secrets: texts that do not stay in what is recorded, whoever repeated them."""
    said = Attempt(at, str(outcome.result), scrubbed(outcome.said, secrets), took_s)
    after = replace(posted, attempts=(*posted.attempts, said))
    if outcome.result is Result.SENT:
        return replace(after, status=Status.SENT)
    if outcome.result is Result.REFUSED or len(after.attempts) >= most_attempts:
        return replace(after, status=Status.FAILED)
    pause_s = backoff.pause_s(len(after.attempts), rng)
    if outcome.wait_s is not None:
        pause_s = max(pause_s, min(outcome.wait_s, backoff.most_s))
    return replace(after, due=at + took_s + pause_s)


def scrubbed(text: str, secrets: Collection[str]) -> str:
    """`text` in one line, without secrets, and no longer than anybody reads."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MOST_SAID else line[: _MOST_SAID - 1] + "…"
