"""The driver's record of a search: what has ended is kept first, and then told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from mlops_ray.config import SearchMetric
from mlops_ray.errors import DataError
from mlops_ray.training.search import measures
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.trials import Folder, TrialEnded

Progress = Callable[[str, int, int], None]
"""Called with stage, done and total."""


def winner(metric: SearchMetric, trials: Sequence[TrialEnded], reason: str | None = None) -> TrialEnded:
    """The best trial that ran to its end, the first of equal ones; one that was stopped only where none did.

    reason: why there may be none, when that is known. Raises: DataError when no trial has a score."""
    scored = [(measures.loss(metric, t.score), t) for t in trials if t.score is not None and t.status != "failed"]
    full = [(loss, trial) for loss, trial in scored if trial.status == "done"] or scored
    if not full:
        said = reason or next((trial.error for trial in trials if trial.error), None)
        raise DataError("search", f"no trial succeeded; {said or 'give search.max_s more seconds'}")
    return min(full, key=lambda one: (one[0], one[1].number))[1]


def best(metric: SearchMetric, trials: Sequence[TrialEnded], n: int) -> list[Choice]:
    """The points of the `n` best trials that ran to their end, best first."""
    done = [(measures.loss(metric, t.score), t.number, t) for t in trials if t.score is not None and t.status == "done"]
    return [trial.choice for *_, trial in sorted(done, key=lambda one: one[:2])[:n]]


class Book:
    """Keeps and announces the trials that end, in a thread of its own: lanes need not wait for a slow tracker.

    A context manager: the thread ends with the block, which then raises what the listeners raised. `failure` is that;
    `reason` is why no lane starts, where none does.
    """

    def __init__(
        self,
        folder: Folder,
        total: int,
        kept: Sequence[TrialEnded],
        on_trial: Callable[[TrialEnded], None],
        on_progress: Progress,
    ) -> None:
        self._folder, self._total, self._on_trial, self._on_progress = folder, total, on_trial, on_progress
        self._trials = {trial.number: trial for trial in kept}
        self._queue: queue.SimpleQueue[TrialEnded | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="search-book")
        self.failure: BaseException | None = None
        self.reason: str | None = None

    @property
    def trials(self) -> tuple[TrialEnded, ...]:
        """All that have ended, by number."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    @property
    def full(self) -> bool:
        """Whether the budget of trials is used up."""
        return len(self._trials) >= self._total

    def __enter__(self) -> None:
        self._on_progress("search", len(self._trials), self._total)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def add(self, trial: TrialEnded) -> None:
        """A trial has ended: it is kept, unless the budget cut it short, and then told."""
        self._trials[trial.number] = trial
        self._queue.put(trial)

    def _write(self) -> None:
        done = len(self._trials)
        while (trial := self._queue.get()) is not None:
            if self.failure is not None:
                continue
            try:
                if not trial.cut_short:
                    self._folder.keep(trial)
                self._on_trial(trial)
                done += 1
                self._on_progress("search", done, self._total)
            except BaseException as exc:  # noqa: BLE001 - raised again by __exit__, in the caller's thread
                self.failure = exc
