"""Copies of answered rows to a version that answers nobody, and what it says of them, for the log.

A copy waits in a bounded queue, from where one call at a time takes what has gathered. What the queue has no room for
is dropped and counted: a shadow that is slow costs its own evidence, and nobody's answer.

A shadow lives apart, but for the version before stable: that one has answered everybody, is still loaded, and is scored
here (`Within`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.profile import Columns
from mlops_ray.serving.canary import Outcome, Told
from mlops_ray.serving.records import Record, Shadowed, Trial, Uncaptured
from mlops_ray.serving.scores import aligned
from mlops_ray.serving.scoring import Scoring
from mlops_ray.serving.versions import Scorer

_log = logging.getLogger(__name__)

# How long the first copy waits: its answer has left by then, and others come along.
_GATHER_S = 0.02
# Rows of one call, but for one request that brings more alone.
_ROWS_PER_CALL = 512
# Least time between two counts of what was dropped.
_COUNT_S = 1.0


@dataclass(frozen=True)
class Copy:
    """Rows of an answered request. trial: which version is to see them, and their places; without scores yet.

    columns: of these rows alone. stable_scores: what their client got. classes: the order of its columns.
    """

    id: str
    stable: int
    stable_scores: NDArray[np.float64]
    classes: tuple[object, ...]
    columns: Columns
    trial: Trial

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.trial.rows)


class Calls(Protocol):
    """The way to one version; `canary.Apart` is one."""

    def ask(self, columns: Columns, n: int, *, for_client: bool) -> Awaitable[Outcome]:
        """Its scores of `n` rows, or why there are none; never an error."""
        ...


class Within:
    """Calls to a version that this replica has loaded."""

    def __init__(self, version: int, scorer: Scorer | None, scoring: Scoring) -> None:
        """Args: scorer: None: it is loaded no more."""
        self._version, self._scorer, self._scoring = version, scorer, scoring

    async def ask(self, columns: Columns, n: int, *, for_client: bool) -> Outcome:
        """Its scores; whatever goes wrong is a failure of this version and nothing else."""
        scorer = self._scorer
        if scorer is None:
            return Outcome(None, "open")
        try:
            scores, took_us = await self._scoring.scored(self._version, scorer, columns, n)
        except Exception as exc:  # noqa: BLE001 - any model may raise anything, and the log keeps that it failed
            _log.debug("version %s failed: %r", self._version, exc)
            return Outcome(None, "error")
        return Outcome(Told(scores, scorer.classes, scorer.threshold, took_us / max(1, n)))


class Shadow:
    """The queue, and the one task that empties it. All methods run on one event loop."""

    def __init__(
        self,
        calls: Callable[[int], Calls],
        record: Callable[[Record], object],
        *,
        most_rows: int,
        now: Callable[[], float],
    ) -> None:
        """Args: calls: those to a version. record: where comparisons and counts go.

        now: the wall clock, in seconds since the epoch."""
        self._calls, self._record, self._most_rows, self._now = calls, record, most_rows, now
        self._queue: deque[Copy] = deque()
        self._n_rows = 0
        self._n_dropped = 0
        self._counted = -_COUNT_S
        self._task: asyncio.Task[None] | None = None

    def show(self, copy: Copy) -> None:
        """Have the shadow see these rows, later and if there is room. Never waits, never raises."""
        if self._n_rows + copy.n_rows > self._most_rows:
            self._n_dropped += copy.n_rows
        else:
            self._queue.append(copy)
            self._n_rows += copy.n_rows
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._empty())

    def status(self) -> dict[str, int]:
        """Rows that wait or are under way, and rows that were dropped and are not in the log's count yet."""
        return {"rows_waiting": self._n_rows, "rows_dropped": self._n_dropped}

    async def _empty(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue or self._n_dropped:
            await asyncio.sleep(_GATHER_S)  # not for an event: for company
            if self._n_dropped and loop.time() - self._counted >= _COUNT_S:
                self._counted = loop.time()
                dropped, self._n_dropped = self._n_dropped, 0
                self._record(Uncaptured(self._now(), "shadow", dropped))
            if batch := self._next():
                await self._show(batch)

    def _next(self) -> list[Copy]:
        """The oldest copies that one version is to see."""
        batch: list[Copy] = []
        n = 0
        while self._queue:
            copy = self._queue[0]
            if batch and (n + copy.n_rows > _ROWS_PER_CALL or copy.trial.version != batch[0].trial.version):
                break
            batch.append(self._queue.popleft())
            n += copy.n_rows
        return batch

    async def _show(self, batch: list[Copy]) -> None:
        calls = self._calls(batch[0].trial.version)
        outcomes = await asyncio.gather(*(calls.ask(copy.columns, copy.n_rows, for_client=False) for copy in batch))
        self._n_rows -= sum(copy.n_rows for copy in batch)  # whatever becomes of the records, their room is free
        for copy, outcome in zip(batch, outcomes, strict=True):
            trial = judged(copy.trial, outcome, copy.classes)
            self._record(Shadowed(copy.id, self._now(), copy.stable, copy.stable_scores, trial))


def judged(trial: Trial, outcome: Outcome, classes: tuple[object, ...]) -> Trial:
    """The trial with what came of it: scores with their columns in the order of `classes`, or why there are none."""
    if outcome.told is None:
        return replace(trial, failure=outcome.failure)
    scores = aligned(outcome.told.scores, outcome.told.classes, classes)
    if scores is None:  # it knows other classes: row by row there is nothing to compare
        return replace(trial, failure="nonsense")
    return replace(trial, scores=scores, row_us=outcome.told.row_us)
