"""Calls to a version apart: which rows travel together, who is given up on when, and when nobody is asked any more."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from mlops_ray.serving import canary
from mlops_ray.serving.canary import Apart, Breaker, Outcome, Told
from tests.fakes import FakeLine


def columns(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, dtype=np.float32)}


class Held(FakeLine):
    """Answers each row with its own value, once it may."""

    def __init__(self) -> None:
        super().__init__(None)
        self.may = asyncio.Event()
        self.cancelled = 0

    async def call(self, columns: Any) -> Any:
        self.calls.append(len(columns["x"]))
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Told(columns["x"].astype(np.float64), (0, 1))


def apart(line: Any, deadline_s: float = 30.0) -> Apart:
    return Apart(line, "binary", deadline_s=deadline_s)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_rows_that_come_while_a_call_is_under_way_share_the_next_one() -> None:
    async def run() -> None:
        line = Held()
        calls = apart(line)
        first = calls.ask(columns(0.1, 0.2), 2)
        await settled()
        assert line.calls == [2]
        others = [calls.ask(columns(0.3), 1), calls.ask(columns(0.4, 0.5), 2), calls.ask(columns(0.6), 1)]
        await settled()
        assert line.calls == [2]
        line.may.set()
        found = [(await future).told for future in (first, *others)]
        assert line.calls == [2, 4]
        scores = [told.scores.tolist() for told in found if told is not None]
        assert [np.float32(s).tolist() for s in scores] == [
            np.float32(s).tolist() for s in ([0.1, 0.2], [0.3], [0.4, 0.5], [0.6])
        ]
        assert calls.status() == {"asked": True, "rows_under_way": 0}

    asyncio.run(run())


def test_dear_calls_keep_their_distance() -> None:
    async def run() -> None:
        line = FakeLine(lambda n: np.full(n, 0.5))
        line.apart_s = 0.02
        calls = apart(line)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await calls.ask(columns(0.1), 1)
        at_once = loop.time() - began
        await asyncio.gather(*(calls.ask(columns(0.1), 1) for _ in range(5)))
        assert line.calls == [1, 5]
        assert loop.time() - began >= 0.02
        assert at_once < 0.02

    asyncio.run(run())


def test_a_row_is_given_up_on_after_its_own_deadline() -> None:
    async def run() -> None:
        line = Held()
        calls = apart(line, deadline_s=0.06)
        first = calls.ask(columns(0.1), 1)
        await asyncio.sleep(0.03)
        second = calls.ask(columns(0.2), 1)
        assert await first == Outcome(None, "deadline")
        assert not second.done()
        assert await second == Outcome(None, "deadline")
        await asyncio.sleep(0.1)
        assert line.cancelled == len(line.calls) == 2
        assert calls.status()["rows_under_way"] == 0

    asyncio.run(run())


def test_a_line_that_cannot_be_cancelled_holds_nobody_up() -> None:
    class Stubborn(FakeLine):
        async def call(self, columns: Any) -> Any:
            while True:
                try:
                    await release.wait()
                    return None
                except asyncio.CancelledError:
                    continue

    async def run() -> None:
        calls = apart(Stubborn(None), deadline_s=0.02)
        assert (await calls.ask(columns(0.1), 1)).failure == "deadline"
        release.set()
        await settled()

    release = asyncio.Event()
    asyncio.run(run())


def test_a_slow_version_that_comes_back_in_time_keeps_up() -> None:
    """Calls overlap: rows do not wait for one call after the other until their deadline has passed."""

    class Slow(FakeLine):
        async def call(self, columns: Any) -> Any:
            self.calls.append(len(columns["x"]))
            await asyncio.sleep(0.6)
            return Told(np.full(len(columns["x"]), 0.5), (0, 1))

    async def run() -> None:
        calls = apart(Slow(None), deadline_s=1.0)
        futures = []
        for _ in range(30):
            futures.append(calls.ask(columns(0.1), 1))
            await asyncio.sleep(0.01)
        assert {o.failure for o in await asyncio.gather(*futures)} == {""}

    asyncio.run(run())


def test_what_a_hanging_version_holds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_MOST_ROWS", 10)

    async def run() -> None:
        line = Held()
        calls = apart(line)
        futures = [calls.ask(columns(0.1, 0.2), 2) for _ in range(8)]
        await settled()
        assert [f.done() for f in futures] == [False] * 5 + [True] * 3
        assert futures[-1].result() == Outcome(None, "deadline")
        assert calls.status()["rows_under_way"] == 10
        line.may.set()
        await asyncio.gather(*futures)

    asyncio.run(run())


def test_clients_that_wait_for_a_hanging_version_leave_room_for_others() -> None:
    async def run() -> None:
        line = Held()
        calls = Apart(line, "binary", deadline_s=30.0, most_waiting=3)
        futures = [calls.ask(columns(0.1), 1) for _ in range(5)]
        assert [f.done() for f in futures] == [False] * 3 + [True] * 2
        assert futures[-1].result() == Outcome(None, "deadline")
        futures[0].cancel()  # its client has hung up
        await settled()
        copies = [calls.ask(columns(0.1), 1, for_client=False) for _ in range(2)]
        futures.append(calls.ask(columns(0.1), 1))
        assert not any(f.done() for f in (*copies, futures[-1]))
        line.may.set()
        assert all(o.told for o in await asyncio.gather(*futures[1:3], *copies, futures[-1]))

    asyncio.run(run())


def test_one_large_request_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_MOST_ROWS", 10)
    monkeypatch.setattr(canary, "_ROWS_PER_CALL", 5)

    async def run() -> None:
        line = FakeLine(lambda n: np.full(n, 0.5))
        outcome = await apart(line).ask(columns(*[0.1] * 50), 50)
        assert outcome.told is not None
        assert line.calls == [50]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "n_asked"), [(RuntimeError("broken"), 5), (lambda n: np.full(n, np.nan), 5), (None, 2)]
)
def test_a_version_that_keeps_failing_is_asked_no_more(answer: Any, n_asked: int) -> None:
    async def run() -> None:
        line = FakeLine(answer)
        calls = apart(line, deadline_s=0.01)
        failures = [(await calls.ask(columns(0.1), 1)).failure for _ in range(8)]
        await settled()
        assert len(line.calls) == n_asked + 1  # one of them a copy, for which nobody waits
        assert "open" not in failures[:n_asked]
        assert set(failures[n_asked:]) == {"open"}
        assert not calls.status()["asked"]

    asyncio.run(run())


def test_a_copy_tries_whether_it_is_back_and_nobody_waits_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_PAUSE_S", 0.0)

    async def run() -> None:
        line = FakeLine(RuntimeError("broken"))
        calls = apart(line)
        for _ in range(5):
            await calls.ask(columns(0.1), 1)
        line.answer = lambda n: np.full(n, 0.5)
        trial = calls.ask(columns(0.1), 1)
        assert trial.result() == Outcome(None, "open")  # at once
        await settled()
        assert (await calls.ask(columns(0.1), 1)).told is not None
        assert calls.status() == {"asked": True, "rows_under_way": 0}

    asyncio.run(run())


def test_each_failed_trial_doubles_the_pause() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0, late=False)
    assert breaker.closed
    breaker.failed(0.0, late=False)
    assert not breaker.closed
    due, pauses = 0.0, []
    for _ in range(7):
        at = next(t for t in np.arange(due, due + 100, 0.5) if breaker.trial(float(t)))
        assert not breaker.trial(float(at))
        breaker.failed(float(at), late=True, trial=True)
        pauses.append(float(at) - due)
        due = float(at)
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    breaker.passed()
    assert breaker.closed


def test_successes_between_failures_keep_it_asked() -> None:
    """A version that fails now and then is judged by its failures, not silenced."""
    breaker = Breaker()
    for _ in range(100):
        breaker.failed(0.0, late=False)
        breaker.failed(0.0, late=True)
        breaker.passed()
    assert breaker.closed


def test_a_client_that_hung_up_is_not_asked_for() -> None:
    async def run() -> None:
        line = Held()
        calls = apart(line)
        first = calls.ask(columns(0.1), 1)
        await settled()
        gone, other = calls.ask(columns(0.2), 1), calls.ask(columns(0.3), 1)
        gone.cancel()
        line.may.set()
        await asyncio.gather(first, other)
        assert line.calls == [1, 1]

    asyncio.run(run())


def test_a_line_that_raises_before_it_asks_is_a_failure() -> None:
    class Down(FakeLine):
        def call(self, columns: Any) -> Any:
            raise ConnectionResetError("no process at the moment")

    async def run() -> None:
        assert await apart(Down(None)).ask(columns(0.1), 1) == Outcome(None, "error")

    asyncio.run(run())
