"""Copies of answered rows to a version that answers nobody, and what it says of them, for the log.

A copy waits in a bounded queue, from where one call at a time takes what has gathered. What the queue has no room for
is dropped and counted: a shadow that is slow costs its own evidence, and nobody's answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.profile import Columns
from mlops_ray.serving.canary import Apart, Outcome
from mlops_ray.serving.records import Record, Shadowed, Trial, Uncaptured
from mlops_ray.serving.scores import aligned

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


class Shadow:
    """The queue, and the one task that empties it. All methods run on one event loop."""

    def __init__(
        self,
        apart: Callable[[int], Apart],
        record: Callable[[Record], object],
        *,
        most_rows: int,
        now: Callable[[], float],
    ) -> None:
        """Args: apart: the calls to a version. record: where comparisons and counts go.

        now: the wall clock, in seconds since the epoch."""
        self._apart, self._record, self._most_rows, self._now = apart, record, most_rows, now
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
        apart = self._apart(batch[0].trial.version)
        outcomes = await asyncio.gather(*(apart.ask(copy.columns, copy.n_rows, for_client=False) for copy in batch))
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
