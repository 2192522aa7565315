"""A team: one Ray Train run whose workers hold the shards of a dataset version, and fit one choice after the other.

So a search pays for the start of workers, and for reading, once. The team's relay is an actor that starts the run
and owns it: ending the relay ends the run with all its processes, hung ones too.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow.fs as fs
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from mlops_ray.config import SearchMetric, Task
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.training.search import boosting
from mlops_ray.training.search.boosting import Boosted
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_workers import (
    RETRIES,
    SAVE_S,
    THREADS,
    Event,
    Job,
    Place,
    Relay,
    Wanted,
    Worker,
    reason_of,
)
from mlops_ray.training.search.shards import Shards, Survey, deal

if TYPE_CHECKING:
    from xgboost import XGBClassifier, XGBRegressor

GOODBYE_S = 15.0
"""For workers to end by themselves: Ray Train waits up to 5 s for XGBoost's tracker."""

OnRound = Callable[[int, float], bool | None]
"""Called with the rounds so far and the validation metric (NaN without rows that judge); True stops the fit there. A
fit that went on from a checkpoint tells some rounds again."""


@dataclass(frozen=True)
class Fit:
    """A finished fit: `starts` says how often workers began it, `seconds` is machine time."""

    choice: Choice
    task: Task
    seed: int
    boosted: Boosted
    workers: tuple[Worker, ...]
    starts: int
    seconds: float

    @property
    def estimator(self) -> XGBClassifier | XGBRegressor:
        """The plain scikit-learn estimator, fitted; a new one each time."""
        return boosting.finished(self.choice, self.task, self.boosted.raw, seed=self.seed)


class Team:
    """Workers that hold the `shards`, and carry out one fit after the other.

    Args: seen: what `shards.survey` found, for as many workers. scratch: a folder or address that all nodes reach, for
    checkpoints, one every `save_s` seconds; what is written there goes at the end. fits: how many may be asked for.
    Used as a context. Workers start with the first fit, and anew after one that took too long. Ray must be running.
    """

    def __init__(
        self, shards: Shards, seen: Survey, workers: int, *, scratch: str, fits: int = 1, save_s: float = SAVE_S
    ) -> None:
        dealt = deal(seen.pieces, workers)
        if not all(any(piece.n_fit for piece in pieces) for pieces in dealt):
            raise DataError("search", f"{seen.n_fit} rows to fit do not go round {workers} workers; lower workers")
        self._shards, self._workers, self._number = shards, workers, 0
        width = max(place.stop for label, place in shards.fitted.output_indices_.items() if label != "remainder")
        shared = ray.put(shards)
        deaths = fits * (RETRIES + 1)
        self._job = Job(shared, dealt, width, bool(shards.judge), scratch, "", deaths, save_s)
        self._relay: Any = None
        self._end: Any = None
        self._place: Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._relay is not None:
            with contextlib.suppress(RayActorError):
                self._relay.put.remote(None)
                ray.wait([self._end], timeout=GOODBYE_S)
        self._kill()

    def _start(self, timeout_s: float) -> None:
        """Begins the run, once there is room: Ray Train would ask for it again and again, and leave its last request
        behind when it is ended in between."""
        room = placement_group([{"CPU": THREADS}] * self._workers, strategy="SPREAD")
        try:
            ready = room.wait(timeout_s)
        finally:
            remove_placement_group(room)
        if not ready:
            detail = f"{self._workers} workers found no {self._workers} free CPUs within {timeout_s:g} s"
            raise BackendUnavailable("Ray Train", f"{detail}; lower workers, or add nodes")
        self._job = replace(self._job, name=f"parallel-{uuid.uuid4().hex[:16]}")
        self._relay = ray.remote(num_cpus=0)(Relay).remote()
        self._end = self._relay.run.remote(self._job, self._relay)

    def _kill(self) -> None:
        """Ends the run and its processes, whatever they do: Ray ends what an actor owns when it ends."""
        if self._relay is None:
            return
        ray.kill(self._relay)
        self._relay = None
        if self._place is not None:
            # Their room is nobody's then, and Ray would keep it until the driver ends. Not before they are gone: while
            # Ray Train lives, it would make another.
            _gone(self._place.first, GOODBYE_S)
            remove_placement_group(self._place.group)
            self._place = None
        filesystem, root = filesystem_of(self._job.scratch)
        folder = f"{root}/{self._job.name}"
        if filesystem.get_file_info(folder).type == fs.FileType.Directory:
            filesystem.delete_dir(folder)

    def fit(
        self,
        choice: Choice,
        *,
        seed: int,
        metric: SearchMetric,
        timeout_s: float,
        on_round: OnRound | None = None,
        sides: tuple[int, ...] | None = None,
    ) -> Fit:
        """One fit of `choice` on all rows to fit, or on those of some of their `sides`.

        Raises: ConfigError for what cannot be built; DataError for rows that cannot be read; BackendUnavailable when
        it takes longer than `timeout_s`, or loses its workers more than `RETRIES` times."""
        began = time.monotonic()
        n_classes = len(self._shards.classes)
        plan = boosting.plan(choice, self._shards.task, n_classes, seed=seed, threads=THREADS)
        if self._relay is None:
            self._start(timeout_s)
        self._number += 1
        order = Wanted(self._number, plan, metric, on_round is not None, sides or self._shards.fit)
        ray.get(self._relay.put.remote(order))
        ticket, stop = 0, False
        while True:
            left = began + timeout_s - time.monotonic()
            event = self._heard(ticket, stop, left, timeout_s)
            self._place = event.place or self._place
            if event.kind == "broken" and event.error is not None:
                self._kill()
                raise event.error
            if event.order != self._number:
                continue
            if event.kind == "failed" and event.error is not None:
                raise event.error
            if event.boosted is not None:
                spent = time.monotonic() - began
                return Fit(choice, self._shards.task, seed, event.boosted, event.workers, event.starts, spent)
            ticket, stop = event.ticket, bool(on_round is not None and on_round(event.round, event.value))

    def _heard(self, ticket: int, stop: bool, left: float, timeout_s: float) -> Event:
        said = self._relay.hear.remote(ticket, stop)
        ready, _ = ray.wait([said, self._end], num_returns=1, timeout=max(0.0, left))
        if not ready:
            self._kill()
            detail = (
                f"{self._workers} workers did not finish a fit within {timeout_s:g} s, and were ended; give it more "
                "time, or more workers"
            )
            raise BackendUnavailable("Ray Train", detail)
        if ready == [said]:
            event: Event = ray.get(said)
            return event
        try:
            ray.get(self._end)
        except (RayTaskError, RayActorError) as exc:
            self._kill()
            raise BackendUnavailable("Ray Train", f"the run {reason_of(exc)}") from exc
        raise BackendUnavailable("Ray Train", "the run ended before the fit did; run again")


def _gone(actor: Any, timeout_s: float) -> None:
    """Waits until an actor that was ended is not there any more, at most so long."""
    end = time.monotonic() + timeout_s
    with contextlib.suppress(RayActorError):
        while time.monotonic() < end:
            with contextlib.suppress(GetTimeoutError):
                ray.get(actor.__ray_ready__.remote(), timeout=1)
            time.sleep(0.1)
