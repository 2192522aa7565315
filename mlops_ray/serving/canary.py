"""Calls to a version that lives apart, in a process of its own that may hang, leak or die.

A call to another process costs more than a row's scoring, so rows share one: the first goes at once, those that come
while a call is under way wait for the next, and where calls are dear (`Line.apart_s`) also those that come within a few
milliseconds of the last. Each row is given up on after its own deadline. A version that keeps failing is asked no more
(a circuit breaker: Nygard, "Release It!", 2007): its rows are answered by stable at once and count as its failures,
while copies of some rows, for which nobody waits, try now and then whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns
from mlops_ray.serving.scores import sound

_log = logging.getLogger(__name__)

# Calls under way at once, so that a version whose calls take long but come back in time keeps up.
_MOST_CALLS = 4
# Rows that wait or are under way, however long the version hangs; one request may bring more alone.
_MOST_ROWS = 20_000
# Rows of one call, but for one request that brings more alone.
_ROWS_PER_CALL = 4_096
# Failed calls in a row after which a version is asked no more. One that is late costs its clients the whole deadline.
_STRIKES, _LATE_STRIKES = 5, 3
# How long it is left alone after a trial that fails as well: twice as long each time. The first trial is made at once,
# so that a moment in which the whole machine stood still costs a version no second of evidence.
_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True)
class Told:
    """What a version answers: scores in its task's shape, the order of their columns, its own threshold, and the
    microseconds that the scoring took inside its process for each row, None where it does not say."""

    scores: NDArray[np.float64]
    classes: tuple[Any, ...] = ()
    threshold: float | None = None
    row_us: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of asking: `told` of these rows, or why there is none, in the words of `records.Trial`."""

    told: Told | None
    failure: str = ""


class Line(Protocol):
    """The way to one version."""

    @property
    def apart_s(self) -> float:
        """Least time from the start of one call to the start of the next: what calls cost decides."""
        ...

    def find(self) -> None:
        """Look for the version, so that no call has to wait until it is found. Returns at once."""
        ...

    def call(self, columns: Columns) -> Awaitable[Told]:
        """Ask for the scores of these rows. Whatever it raises counts as the version's failure; it may be cancelled."""
        ...

    def close(self) -> None:
        """Nobody will be asked any more."""
        ...


_LATE, _OPEN = Outcome(None, "deadline"), Outcome(None, "open")


class Breaker:
    """Whether a version is still asked. Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self._strikes = 0
        self._pause_s = _PAUSE_S
        self._next_trial: float | None = None

    @property
    def closed(self) -> bool:
        """Whether it is asked; while it is not, only trials are."""
        return self._next_trial is None

    def trial(self, now: float) -> bool:
        """Whether a trial is due; when it is, none is until this one has failed and a pause has passed."""
        if self._next_trial is None or now < self._next_trial:
            return False
        self._next_trial = math.inf
        return True

    def passed(self) -> None:
        """A call was answered: the version is asked again."""
        self._strikes, self._pause_s, self._next_trial = 0, _PAUSE_S, None

    def failed(self, now: float, *, late: bool, trial: bool = False) -> None:
        """A call failed, or was late."""
        if trial:
            self._next_trial = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
            return
        self._strikes += _LATE_STRIKES if late else 1
        if self._strikes >= _STRIKES and self._next_trial is None:
            self._next_trial = now


@dataclass(eq=False)
class _Rows:
    """Rows of one request, and who waits for them."""

    columns: Columns
    n: int
    future: asyncio.Future[Outcome]
    expiry: asyncio.TimerHandle | None = None
    """None of a trial, for which nobody waits."""

    def let_go(self) -> None:
        """The deadline means nothing any more."""
        if self.expiry is not None:
            self.expiry.cancel()


@dataclass(eq=False)
class _UnderWay:
    """A call, until its end or its deadline has settled it."""

    batch: list[_Rows]
    trial: bool
    late: asyncio.TimerHandle | None = None
    settled: bool = False


class Apart:
    """Calls to one version. All methods run on one event loop."""

    def __init__(self, line: Line, task: Task, *, deadline_s: float, most_waiting: int = _MOST_ROWS) -> None:
        """Args: most_waiting: clients that wait at once; for those beyond the version is late as soon as they ask."""
        self._line, self._task, self._deadline_s, self._most_waiting = line, task, deadline_s, most_waiting
        self._breaker = Breaker()
        self._waiting: deque[_Rows] = deque()
        self._n_calls = 0
        self._n_held = 0
        self._n_waiting = 0
        self._last_start = -math.inf
        self._timer: asyncio.Handle | None = None

    def ask(self, columns: Columns, n: int, *, for_client: bool = True) -> asyncio.Future[Outcome]:
        """The version's scores of these `n` rows; done at the latest after the deadline, and never with an error.

        Args: for_client: a client's request waits for it, which keeps a place that others may need."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if not self._breaker.closed:
            future.set_result(_OPEN)
            if self._breaker.trial(loop.time()):
                self._n_held += n
                self._start(loop, [_Rows(columns, n, future)], trial=True)
        elif (for_client and self._n_waiting >= self._most_waiting) or (self._n_held and self._n_held + n > _MOST_ROWS):
            future.set_result(_LATE)  # it cannot keep up: these would only wait for their deadline
        else:
            if for_client:
                self._n_waiting += 1
                future.add_done_callback(self._waits_no_more)
            rows = _Rows(columns, n, future, loop.call_later(self._deadline_s, _expire, future))
            self._waiting.append(rows)
            self._n_held += n
            if self._timer is None:
                self._schedule(loop)
        return future

    def _waits_no_more(self, _: object) -> None:
        self._n_waiting -= 1

    def close(self) -> None:
        """The version is asked no more; what is under way ends as it may."""
        self._line.close()

    def status(self) -> dict[str, Any]:
        """Whether it is asked, and how many rows wait or are under way."""
        return {"asked": self._breaker.closed, "rows_under_way": self._n_held}

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the next call made as early as may be. One that is under way is waited for, within reason."""
        apart_s = self._deadline_s / _MOST_CALLS if self._n_calls else self._line.apart_s
        wait_s = self._last_start + apart_s - loop.time()
        # Even at once is a moment later: what else is at the door comes along.
        self._timer = loop.call_later(wait_s, self._due, loop) if wait_s > 0 else loop.call_soon(self._due, loop)

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._n_calls < _MOST_CALLS and (batch := self._next()):
            self._start(loop, batch)
        if self._waiting and self._n_calls < _MOST_CALLS:
            self._schedule(loop)

    def _next(self) -> list[_Rows]:
        batch: list[_Rows] = []
        n = 0
        while self._waiting and (not batch or n + self._waiting[0].n <= _ROWS_PER_CALL):
            rows = self._waiting.popleft()
            if rows.future.done():  # its deadline has passed, or its client has hung up
                self._n_held -= rows.n
                rows.let_go()
            else:
                batch.append(rows)
                n += rows.n
        return batch

    def _start(self, loop: asyncio.AbstractEventLoop, batch: list[_Rows], *, trial: bool = False) -> None:
        self._last_start = loop.time()
        self._n_calls += 1
        call: asyncio.Future[Told]
        try:
            call = asyncio.ensure_future(self._line.call(together([rows.columns for rows in batch])))
        except Exception as exc:  # noqa: BLE001 - whatever the way to a version does, stable answers
            call = loop.create_future()
            call.set_exception(exc)
        under_way = _UnderWay(batch, trial)
        under_way.late = loop.call_later(self._deadline_s, self._give_up, loop, call, under_way)
        call.add_done_callback(lambda done: self._ended(loop, done, under_way))

    def _give_up(self, loop: asyncio.AbstractEventLoop, call: asyncio.Future[Told], under_way: _UnderWay) -> None:
        """The deadline has passed: nobody waits for this call any more, whether it can be cancelled or not."""
        self._settle(loop, _LATE, under_way)
        call.cancel()

    def _ended(self, loop: asyncio.AbstractEventLoop, call: asyncio.Future[Told], under_way: _UnderWay) -> None:
        outcome = self._judged(call, sum(rows.n for rows in under_way.batch))  # also sees what a late one ended in
        if not under_way.settled:
            self._settle(loop, outcome, under_way)

    def _judged(self, call: asyncio.Future[Told], n: int) -> Outcome:
        if call.cancelled():
            return Outcome(None, "error")
        if (exc := call.exception()) is not None:
            _log.debug("a version apart failed: %r", exc)
            return Outcome(None, "error")
        told = call.result()
        if not isinstance(told, Told) or not sound(told.scores, self._task, n, len(told.classes)):
            return Outcome(None, "nonsense")
        return Outcome(told)

    def _settle(self, loop: asyncio.AbstractEventLoop, outcome: Outcome, under_way: _UnderWay) -> None:
        """A call is over: whoever waits gets its part, and the next one may go."""
        under_way.settled = True
        if under_way.late is not None:
            under_way.late.cancel()
        self._n_calls -= 1
        if outcome.told is not None:
            self._breaker.passed()
        else:
            self._breaker.failed(loop.time(), late=outcome.failure == "deadline", trial=under_way.trial)
        start = 0
        for rows in under_way.batch:
            if not rows.future.done():
                rows.let_go()
                rows.future.set_result(_part(outcome, start, start + rows.n))
            start += rows.n
            self._n_held -= rows.n
        if self._waiting:
            if self._timer is not None:
                self._timer.cancel()
            self._schedule(loop)


def together(parts: Sequence[Columns]) -> Columns:
    """Rows of several requests as one batch of columns."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(outcome: Outcome, start: int, stop: int) -> Outcome:
    told = outcome.told
    if told is None or (start == 0 and stop == len(told.scores)):
        return outcome
    return Outcome(replace(told, scores=told.scores[start:stop]))


def _expire(future: asyncio.Future[Outcome]) -> None:
    if not future.done():
        future.set_result(_LATE)
