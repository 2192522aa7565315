"""Which message goes next, and what an attempt comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase
from mlops_ray.monitoring.alerts.book import Posted, Status
from mlops_ray.monitoring.alerts.delivering import Backoff, Outcome, Result, concluded, scrubbed, upcoming

BACKOFF = Backoff(base_s=2.0, most_s=600.0)


def posted(number: int, *alerts: str, due: float = 0.0) -> Posted:
    notices = tuple((Kind.FIRING, Alert(a, "drift", "v3", "info", Phase.FIRING, 0.0, "x")) for a in alerts)
    return Posted(Message(f"m{number}", "team", notices), number, Status.WAITING, 0.0, due)


def after(one: Posted, outcome: Outcome, *, most_attempts: int = 5, at: float = 100.0) -> Posted:
    return concluded(
        one,
        outcome,
        most_attempts=most_attempts,
        backoff=BACKOFF,
        secrets={"geheim"},
        at=at,
        took_s=1.0,
        rng=np.random.default_rng(0),
    )


def test_an_earlier_message_about_the_same_alert_goes_first() -> None:
    queue = [posted(1, "a", "b", due=50.0), posted(2, "b"), posted(3, "b", "c"), posted(4, "d")]
    found = upcoming(queue)
    assert found is not None
    assert found.number == 4  # not held up
    assert upcoming(queue[:3]) == queue[0]
    assert upcoming([]) is None


def test_of_those_that_are_due_the_oldest_goes_first() -> None:
    found = upcoming([posted(1, "a", due=3.0), posted(2, "b", due=1.0), posted(3, "c", due=1.0)])
    assert found is not None
    assert found.number == 2


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result.SENT, Status.SENT),
        (Result.REFUSED, Status.FAILED),
        (Result.BUSY, Status.WAITING),
        (Result.UNREACHABLE, Status.WAITING),
    ],
)
def test_what_an_attempt_comes_to(result: Result, status: Status) -> None:
    found = after(posted(1, "a"), Outcome(result, "the word is geheim\nHTTP 500"))
    assert found.status is status
    assert [(a.at, a.said) for a in found.attempts] == [(100.0, "the word is *** HTTP 500")]


def test_it_is_given_up_after_so_many_attempts() -> None:
    one = posted(1, "a")
    for n in range(1, 6):
        assert one.status is Status.WAITING
        one = after(one, Outcome(Result.BUSY, ""), at=100.0 * n)
    assert one.status is Status.FAILED
    assert len(one.attempts) == 5


def test_the_receiver_may_ask_for_more_time_but_not_for_ever() -> None:
    assert after(posted(1, "a"), Outcome(Result.BUSY, "", wait_s=60.0)).due == 161.0
    assert after(posted(1, "a"), Outcome(Result.BUSY, "", wait_s=1e9)).due == 701.0


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_pauses_double_up_to_a_limit(n: int, seed: int) -> None:
    pause = BACKOFF.pause_s(n, np.random.default_rng(seed))
    whole = min(600.0, 2.0 * 2.0 ** min(n - 1, 100))
    assert whole / 2 <= pause <= whole


def test_what_is_said_is_one_short_line() -> None:
    assert scrubbed("a\x1b[31m\r\nb " + "x" * 1000, ()).startswith("a [31m b xxx")
    assert len(scrubbed("x" * 1000, ())) == 300
