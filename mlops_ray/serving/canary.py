"""Calls to a version that lives apart, in a process of its own that may hang, leak or die.

A call to another process costs as much as fifty rows, so rows share one: the first goes at once, those that come while
a call is under way, or within a few milliseconds of the last one, wait for the next. Each row is given up on after
its own deadline. A version that keeps failing is asked no more (a circuit breaker: Nygard, "Release It!", 2007): its
rows are answered by stable at once and count as its failures, while copies of some rows, for which nobody waits, try
now and then whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns
from mlops_ray.serving.scores import sound

_log = logging.getLogger(__name__)

# Least time from the start of one call to the start of the next.
_APART_S = 0.008
# Calls under way at once, so that a version whose calls take long but come back in time keeps up.
_MOST_CALLS = 4
# Rows that wait or are under way, however long the version hangs; one request may bring more alone.
_MOST_ROWS = 20_000
# Rows of one call, but for one request that brings more alone.
_ROWS_PER_CALL = 4_096
# Failed calls in a row after which a version is asked no more. One that is late costs its clients the whole deadline.
_STRIKES, _LATE_STRIKES = 5, 3
# How long it is left alone then: after each trial that fails as well, twice as long.
_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True)
class Told:
    """What a version answers: scores in its task's shape, the order of their columns, and its own threshold."""

    scores: NDArray[np.float64]
    classes: tuple[Any, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of asking: `told` of these rows, or why there is none, in the words of `records.Trial`."""

    told: Told | None
    failure: str = ""


Call = Callable[[Columns], Awaitable[Told]]

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
        """Whether a trial is due; when it is, the next one is due only after another pause."""
        if self._next_trial is None or now < self._next_trial:
            return False
        self._next_trial = now + self._pause_s
        return True

    def passed(self) -> None:
        """A call was answered: the version is asked again."""
        self._strikes, self._pause_s, self._next_trial = 0, _PAUSE_S, None

    def failed(self, now: float, *, late: bool, trial: bool = False) -> None:
        """A call failed, or was late."""
        if trial:
            self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
            self._next_trial = now + self._pause_s
            return
        self._strikes += _LATE_STRIKES if late else 1
        if self._strikes >= _STRIKES and self._next_trial is None:
            self._next_trial = now + self._pause_s


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


class Apart:
    """Calls to one version. All methods run on one event loop."""

    def __init__(self, call: Call, task: Task, *, deadline_s: float) -> None:
        """`call` asks the version for the scores of some columns; whatever it raises counts as a failure."""
        self._call, self._task, self._deadline_s = call, task, deadline_s
        self._breaker = Breaker()
        self._waiting: deque[_Rows] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._n_held = 0
        self._last_start = -_APART_S
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, columns: Columns, n: int) -> asyncio.Future[Outcome]:
        """The version's scores of these `n` rows; done at the latest after the deadline, and never with an error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        if not self._breaker.closed:
            future.set_result(_OPEN)
            if self._breaker.trial(loop.time()):
                self._n_held += n
                self._start(loop, [_Rows(columns, n, future)], trial=True)
        elif self._n_held and self._n_held + n > _MOST_ROWS:
            future.set_result(_LATE)  # it cannot keep up: these would only wait for their deadline
        else:
            rows = _Rows(columns, n, future, loop.call_later(self._deadline_s, _expire, future))
            self._waiting.append(rows)
            self._n_held += n
            self._schedule(loop)
        return future

    def status(self) -> dict[str, Any]:
        """Whether it is asked, and how many rows wait or are under way."""
        return {"asked": self._breaker.closed, "rows_under_way": self._n_held}

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            earliest = self._last_start + (self._deadline_s / _MOST_CALLS if self._under_way else _APART_S)
            self._timer = loop.call_at(max(earliest, loop.time()), self._due, loop)

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if len(self._under_way) < _MOST_CALLS and (batch := self._next()):
            self._start(loop, batch)
        if self._waiting and len(self._under_way) < _MOST_CALLS:
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
        task = loop.create_task(self._run(loop, batch, trial))
        self._under_way.add(task)
        task.add_done_callback(lambda done: self._ended(loop, done))

    def _ended(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._schedule(loop)

    async def _run(self, loop: asyncio.AbstractEventLoop, batch: Sequence[_Rows], trial: bool) -> None:
        n = sum(rows.n for rows in batch)
        outcome = await self._asked([rows.columns for rows in batch], n)
        if outcome.told is not None:
            self._breaker.passed()
        else:
            self._breaker.failed(loop.time(), late=outcome.failure == "deadline", trial=trial)
        start = 0
        for rows in batch:
            if not rows.future.done():
                rows.let_go()
                rows.future.set_result(_part(outcome, start, start + rows.n))
            start += rows.n
            self._n_held -= rows.n

    async def _asked(self, parts: Sequence[Columns], n: int) -> Outcome:
        task = asyncio.ensure_future(self._call(together(parts)))
        try:
            done, _ = await asyncio.wait((task,), timeout=self._deadline_s)
        finally:
            if not task.done():
                task.add_done_callback(_seen)
                task.cancel()
        if not done:
            return _LATE
        if task.cancelled() or task.exception() is not None:
            _log.debug("a version apart failed: %r", None if task.cancelled() else task.exception())
            return Outcome(None, "error")
        told = task.result()
        if not isinstance(told, Told) or not sound(told.scores, self._task, n, len(told.classes)):
            return Outcome(None, "nonsense")
        return Outcome(told)


def together(parts: Sequence[Columns]) -> Columns:
    """Rows of several requests as one batch of columns."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(outcome: Outcome, start: int, stop: int) -> Outcome:
    told = outcome.told
    if told is None:
        return outcome
    return Outcome(Told(told.scores[start:stop], told.classes, told.threshold))


def _expire(future: asyncio.Future[Outcome]) -> None:
    if not future.done():
        future.set_result(_LATE)


def _seen(task: asyncio.Future[Any]) -> None:
    """Of a call that nobody waits for any more: whatever it ends in is no news."""
    if not task.cancelled():
        task.exception()
