"""Data-parallel XGBoost by Ray Train: for rows that fit no single process.

A *team* is one Ray Train run. Its workers read and bin their own shards once, then carry out one fit after the other,
so that a search pays for reading once. Between the caller and the team's first worker stands the *desk*, an actor: it
holds the fit that is wanted, passes on what each round showed, and starts the run, so that ending the desk ends the
run with all its processes, hung ones too. A worker that dies takes the group with it (the others cannot go on without
its rows); Ray Train starts it again, and the fit goes on from the last checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import resource
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import ray
import ray.train
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group

from mlops_ray.config import SearchMetric, Task
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.data.sources.shards import ROWS_PER_BATCH, filesystem_of
from mlops_ray.data.splits import FoldCut
from mlops_ray.errors import BackendUnavailable, DataError, MlopsRayError
from mlops_ray.training.search import boosting
from mlops_ray.training.search.boosting import Boosted, Plan, Signal
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.references import Folded, Score, folded
from mlops_ray.training.search.shards import Piece, Shards, Survey, deal, reader, survey

if TYPE_CHECKING:
    from xgboost import QuantileDMatrix, XGBClassifier, XGBRegressor

RETRIES = 2
"""Times that a fit is begun again after its workers died; three deaths of one fit are its own doing."""
SAVE_S = 20.0
"""Between two checkpoints: what a death costs at most, besides the start of new workers and their reading."""
_POLL_S = "0.2"
"""Ray Train looks at its workers every two seconds unless told otherwise, and a report waits for that look."""
_THREADS = 1

OnRound = Callable[[int, float], bool | None]
"""Called with the rounds so far and the validation metric (NaN without rows that judge); True stops the fit there. A
fit that went on from a checkpoint tells some rounds again."""


@dataclass(frozen=True)
class Worker:
    """What one worker held: rows to fit and to judge, and the most memory its process had (resident, bytes)."""

    rank: int
    n_fit: int
    n_judge: int
    peak_bytes: int


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


# Between the caller and the workers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Order:
    """One fit to carry out; `watched` when the caller wants to see each round."""

    number: int
    plan: Plan
    metric: SearchMetric
    watched: bool


@dataclass(frozen=True)
class _Event:
    """What the workers say: a `round` with its metric, that a fit is `done`, that it `failed`, or that the run is
    `broken` for any fit."""

    kind: Literal["round", "done", "failed", "broken"]
    order: int = -1
    round: int = 0
    value: float = float("nan")
    boosted: Boosted | None = None
    workers: tuple[Worker, ...] = ()
    starts: int = 0
    error: MlopsRayError | None = None


class _Desk:
    """The actor between the caller and the workers, which also owns the run."""

    def __init__(self) -> None:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _POLL_S  # of this process, which Ray Train hands on
        self._order: _Order | None = None
        self._starts = 0
        self._closed = False
        self._death = ""
        self._place: Any = None
        self._changed = asyncio.Condition()
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._reply: asyncio.Future[bool] | None = None

    async def run(self, job: _Job, desk: Any) -> None:
        """Carries out orders until `close`. Raises: what Ray Train raises when the workers died too often."""
        await asyncio.to_thread(_run, job, desk)

    async def put(self, order: _Order | None) -> None:
        """The next fit; None ends the run."""
        async with self._changed:
            self._order, self._starts, self._closed = order, 0, order is None
            self._changed.notify_all()

    async def take(self, place: Any) -> _Order | None:
        """For the first worker, at its `place`ment group: the fit that is wanted, as soon as there is one; None at the
        end."""
        async with self._changed:
            self._place = place
            if self._order is not None and self._starts > RETRIES:
                await self._events.put(
                    _Event("failed", self._order.number, starts=self._starts, error=self._given_up())
                )
                self._order = None
            await self._changed.wait_for(lambda: self._order is not None or self._closed)
            self._starts += 1
            return self._order

    def _given_up(self) -> MlopsRayError:
        why = f"; the last: {self._death}" if self._death else ""
        return BackendUnavailable("Ray Train", f"a fit lost its workers {self._starts} times{why}")

    async def died(self, reasons: tuple[str, ...]) -> None:
        """For the run: why workers died, last of all."""
        self._death = reasons[0] if reasons else ""

    async def place(self) -> Any:
        """The placement group of the workers, None before they asked for a fit."""
        return self._place

    async def say(self, event: _Event) -> bool:
        """For workers: tells the caller; of a round, whether to stop there."""
        if event.kind != "round":
            self._order = None
            await self._events.put(replace(event, starts=self._starts))
            return False
        self._reply = asyncio.get_running_loop().create_future()
        await self._events.put(event)
        return await self._reply

    async def hear(self, stop: bool) -> _Event:
        """For the caller: the answer to the last round, and the next event."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(stop)
        return await self._events.get()


# What workers do ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Job:
    """What every worker is told: whose rows are whose, and how wide the matrix is."""

    shards: Any
    dealt: tuple[tuple[Piece, ...], ...]
    width: int
    judged: bool
    scratch: str
    name: str
    deaths: int
    """Times that workers may die in the whole run: the desk counts those of each fit."""


class _Deaths(ray.train.UserCallback):
    """Tells the desk why workers died."""

    def __init__(self, desk: Any) -> None:
        self._desk = desk

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """In Ray Train's controller, before it starts new workers. Those that lived on only saw their peer go."""
        reasons = [f"worker {rank} {_reason(exc)}" for rank, exc in sorted(worker_exceptions.items())]
        ray.get(self._desk.died.remote(tuple(sorted(reasons, key=lambda reason: "lost touch" in reason))))


def _reason(exc: Exception) -> str:
    """Why a worker ended, in a sentence, of what Ray and XGBoost say about it in many."""
    said = str(exc)
    if "OutOfMemory" in said or "memory monitor" in said:
        return "ran out of memory; give it more workers, fewer bins (max_bin), or the machine more"
    if "died" in said or "unexpectedly" in said:
        return "was killed (out of memory?), exited, or crashed in native code"
    if "rabit" in said or "collective" in said or "socket" in said.lower():
        return "lost touch with the others"
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    return f"ended: {lines[-1][:300]}" if lines else f"ended: {type(exc).__name__}"


def _run(job: _Job, desk: Any) -> None:
    """One Ray Train run, to its end."""
    from ray.train.xgboost import XGBoostTrainer

    train: Any = ray.train  # its names are chosen at import: a type checker sees those of the older interface
    trainer = XGBoostTrainer(
        _work,
        train_loop_config={"job": job, "desk": desk},
        # Spread: the point is that no node holds all rows.
        scaling_config=train.ScalingConfig(
            num_workers=len(job.dealt), resources_per_worker={"CPU": _THREADS}, placement_strategy="SPREAD"
        ),
        run_config=train.RunConfig(
            name=job.name,
            storage_path=job.scratch,
            failure_config=train.FailureConfig(max_failures=job.deaths, controller_failure_limit=RETRIES),
            callbacks=[_Deaths(desk)],
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()


def _work(told: dict[str, Any]) -> None:
    """What each worker runs: its matrices once, then fit after fit."""
    job, desk = told["job"], told["desk"]
    rank, place = ray.train.get_context().get_world_rank(), get_current_placement_group()
    try:
        shard = _Shard(ray.get(job.shards), job, rank)
        while True:
            order = _told((ray.get(desk.take.remote(place)),) if rank == 0 else None, 0)[0]
            if order is None:
                return
            boosted = _fit(shard, order, desk)
            held = shard.held()
            every = [_told(held if rank == r else None, r) for r in range(len(job.dealt))]
            if rank == 0:
                ray.get(desk.say.remote(_Event("done", order.number, boosted=boosted, workers=tuple(every))))
    except MlopsRayError as exc:  # of the rows, hence raised at every start: the caller ends the run
        ray.get(desk.say.remote(_Event("broken", error=exc)))
        raise


def _told(said: Any, by: int) -> Any:
    """What worker `by` says, on all workers."""
    from xgboost import collective

    return collective.broadcast(said, by)


class _Shard:
    """A worker's own rows as XGBoost holds them: made at the first fit, and again when a fit wants other bins."""

    def __init__(self, shards: Shards, job: _Job, rank: int) -> None:
        self.shards, self.rank, self._job = shards, rank, job
        self._bins = 0
        self._matrices: tuple[QuantileDMatrix, QuantileDMatrix | None] | None = None

    def matrices(self, max_bin: int) -> tuple[QuantileDMatrix, QuantileDMatrix | None]:
        """Rows to fit and rows that judge. All workers must ask at once."""
        if self._matrices is None or self._bins != max_bin:
            self._matrices = None  # before the next ones are made: not both at once
            pieces, width = self._job.dealt[self.rank], self._job.width
            fit = boosting.quantised(reader(self.shards, pieces, "fit"), width, max_bin)
            judge = None
            if self._job.judged:
                judge = boosting.quantised(reader(self.shards, pieces, "judge"), width, max_bin, ref=fit)
            self._matrices, self._bins = (fit, judge), max_bin
        return self._matrices

    def held(self) -> Worker:
        """What this worker holds."""
        fit, judge = self._matrices if self._matrices is not None else (None, None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        return Worker(self.rank, fit.num_row() if fit else 0, judge.num_row() if judge else 0, peak)


def _fit(shard: _Shard, order: _Order, desk: Any) -> Boosted:
    """One fit, from its last checkpoint if there is one."""
    from xgboost import collective

    fit, judge = shard.matrices(order.plan.max_bin)
    saved = time.monotonic()

    def after_round(done: int, value: float, model: Callable[[], bytes]) -> Signal:
        """The first worker's word, for all: they must do the same."""
        nonlocal saved
        said = np.zeros(2, dtype=np.int32)
        if shard.rank == 0:
            said[0] = order.watched and ray.get(desk.say.remote(_Event("round", order.number, done, value)))
            said[1] = time.monotonic() - saved > SAVE_S
        stop, save = collective.allreduce(said, collective.Op.SUM).astype(bool).tolist()
        if save:
            _save(order, model() if shard.rank == 0 else None)
            saved = time.monotonic()
        return Signal(stop, save)

    return boosting.boost(
        order.plan,
        fit,
        judge,
        metric=order.metric,
        task=shard.shards.task,
        n_classes=len(shard.shards.classes),
        after_round=after_round,
        begin=_saved(order),
    )


def _save(order: _Order, model: bytes | None) -> None:
    """A checkpoint, of the first worker's `model`; all workers report."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if model is not None:
            Path(folder, "model.ubj").write_bytes(model)
            Path(folder, "order.json").write_text(json.dumps({"order": order.number}), encoding="utf-8")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"order": order.number}, checkpoint=checkpoint)


def _saved(order: _Order) -> bytes | None:
    """The model of the last checkpoint, if it is of this fit."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        if json.loads(Path(folder, "order.json").read_text(encoding="utf-8"))["order"] != order.number:
            return None
        return Path(folder, "model.ubj").read_bytes()


# What the caller sees -------------------------------------------------------------------------------------------------


def surveyed(shards: Shards, workers: int) -> Survey:
    """What all files of the dataset hold, looked at by one Ray task each: only columns that decide are read.

    Raises: DataError for labels or weights that are none, and when nothing can be learnt from the rows to fit."""
    shared = ray.put(shards)
    tasks = [_survey.remote(shared, path, workers) for path in lake.files(shards.dataset)]
    found: list[Survey] = _got(tasks)
    whole = functools.reduce(lambda a, b: a + b, found)
    for n, role in ((whole.n_fit, "fit"), (whole.n_judge, "judge")):
        if not n and (role == "fit" or shards.judge):
            raise DataError(
                shards.dataset.uri, f"version {shards.dataset.version} has no row to {role} on; see `split:`"
            )
    if whole.low == whole.high:
        what = "one value" if shards.task == "regression" else "one class"
        raise DataError("target", f"all {whole.n_fit} rows to fit have {what}; give more varied rows")
    return whole


@ray.remote
def _survey(shards: Shards, path: str, workers: int) -> Survey:
    return survey(shards, path, workers)


def _got(refs: Any) -> Any:
    """`ray.get`, with errors of ours as they were raised."""
    try:
        return ray.get(refs)
    except RayTaskError as exc:
        if isinstance(exc.cause, MlopsRayError):
            raise exc.cause from exc
        raise


class Team:
    """Workers that hold the `shards`, and carry out one fit after the other.

    Args: seen: what `surveyed` found, for as many workers. scratch: a folder or address that all nodes reach, for
    checkpoints; what is written there goes at the end. fits: how many may be asked for.
    Used as a context. Workers start with the first fit, and anew after one that took too long. Ray must be running.
    """

    def __init__(self, shards: Shards, seen: Survey, workers: int, *, scratch: str, fits: int = 1) -> None:
        name = f"parallel-{uuid.uuid4().hex[:16]}"
        dealt = deal(seen.pieces, workers)
        if not all(any(piece.n_fit for piece in pieces) for pieces in dealt):
            raise DataError("search", f"{seen.n_fit} rows to fit do not go round {workers} workers; lower workers")
        self._shards, self._workers, self._number = shards, workers, 0
        width = max(place.stop for label, place in shards.fitted.output_indices_.items() if label != "remainder")
        shared = ray.put(shards)
        self._job = _Job(shared, dealt, width, bool(shards.judge), scratch, name, fits * (RETRIES + 1))
        self._desk: Any = None
        self._end: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._desk is not None:
            with contextlib.suppress(RayActorError):
                self._desk.put.remote(None)
                ray.wait([self._end], timeout=_GOODBYE_S)
        self._kill()

    def _start(self, timeout_s: float) -> None:
        """Begins the run, once there is room: Ray Train would ask for it again and again, and leave its last request
        behind when it is ended in between."""
        room = placement_group([{"CPU": _THREADS}] * self._workers, strategy="SPREAD")
        try:
            ready, _ = ray.wait([room.ready()], timeout=timeout_s)
        finally:
            remove_placement_group(room)
        if not ready:
            detail = f"{self._workers} workers found no {self._workers} free CPUs within {timeout_s:g} s"
            raise BackendUnavailable("Ray Train", f"{detail}; lower workers, or add nodes")
        self._desk = ray.remote(num_cpus=0)(_Desk).remote()
        self._end = self._desk.run.remote(self._job, self._desk)

    def _kill(self) -> None:
        """Ends the run and its processes, whatever they do: Ray ends what an actor owns when it ends."""
        if self._desk is None:
            return
        place = None
        with contextlib.suppress(RayActorError, GetTimeoutError):
            place = ray.get(self._desk.place.remote(), timeout=5)
        ray.kill(self._desk)
        self._desk = None
        if place is not None:  # Ray keeps the room of an actor that was killed until the driver ends
            remove_placement_group(place)
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
    ) -> Fit:
        """One fit of `choice` on all rows.

        Raises: ConfigError for what cannot be built; DataError for rows that cannot be read; BackendUnavailable when
        it takes longer than `timeout_s`, or loses its workers more than `RETRIES` times."""
        began = time.monotonic()
        n_classes = len(self._shards.classes)
        plan = boosting.plan(choice, self._shards.task, n_classes, seed=seed, threads=_THREADS)
        if self._desk is None:
            self._start(timeout_s)
        self._number += 1
        ray.get(self._desk.put.remote(_Order(self._number, plan, metric, on_round is not None)))
        stop = False
        while True:
            left = began + timeout_s - time.monotonic()
            event = self._heard(stop, left, timeout_s)
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
            stop = bool(on_round(event.round, event.value)) if on_round is not None else False

    def _heard(self, stop: bool, left: float, timeout_s: float) -> _Event:
        said = self._desk.hear.remote(stop)
        ready, _ = ray.wait([said, self._end], num_returns=1, timeout=max(0.0, left))
        if not ready:
            self._kill()
            detail = (
                f"{self._workers} workers did not finish a fit within {timeout_s:g} s, and were ended; give it more "
                "time, or more workers"
            )
            raise BackendUnavailable("Ray Train", detail)
        if ready == [said]:
            event: _Event = ray.get(said)
            return event
        try:
            ray.get(self._end)
        except (RayTaskError, RayActorError) as exc:
            self._kill()
            raise BackendUnavailable("Ray Train", f"the run {_reason(exc)}") from exc
        raise BackendUnavailable("Ray Train", "the run ended before the fit did; run again")


_GOODBYE_S = 15.0
"""For workers to end by themselves: Ray Train waits up to 5 s for XGBoost's tracker."""


def fit_parallel(
    shards: Shards,
    choice: Choice,
    *,
    workers: int,
    seed: int,
    scratch: str,
    timeout_s: float,
    metric: SearchMetric | None = None,
    on_round: OnRound | None = None,
) -> Fit:
    """One data-parallel fit, see `Team`. `metric` is by default the task's."""
    with Team(shards, surveyed(shards, workers), workers, scratch=scratch) as team:
        wanted = metric or default_metric(shards)
        return team.fit(choice, seed=seed, metric=wanted, timeout_s=timeout_s, on_round=on_round)


def default_metric(shards: Shards) -> SearchMetric:
    """What a search goes by that names no metric."""
    return "rmse" if shards.task == "regression" else "log_loss"


# Beside the fit -------------------------------------------------------------------------------------------------------


def crossed_parallel(
    shards: Shards, cut: FoldCut, choice: Choice, *, workers: int, seed: int, scratch: str, timeout_s: float
) -> dict[int, XGBClassifier | XGBRegressor]:
    """For each part of `cut` the estimator that was fitted on all other parts before the holdout, one after the other.

    With them `references.Crossed` scores rows that no process holds together by models that have not seen them.
    Raises: as `fit_parallel`; `timeout_s` is for all together."""
    began, found = time.monotonic(), {}
    for part in range(cut.n):
        others = tuple(other for other in range(cut.n) if other != part)
        rest = replace(shards, cut=cut, fit=others, judge=())
        left = began + timeout_s - time.monotonic()
        fit = fit_parallel(rest, choice, workers=workers, seed=seed, scratch=scratch, timeout_s=left)
        found[part] = fit.estimator
    return found


def reference_profiles(shards: Shards, bins: Bins, score: Score, *, event_time: str, block_s: float) -> Folded:
    """Profiles of all rows per block of `block_s` seconds, and losses of the holdout's: one Ray task per file.

    Args: score: as `references.Crossed`, say. Equal to folding all rows at once: profiles add exactly.
    Raises: DataError for labels that are none, or when a file is gone."""
    shared = ray.put((shards, bins, score))
    left = [_fold_file.remote(shared, path, event_time, block_s) for path in lake.files(shards.dataset)]
    whole = Folded()
    while left:  # merged as they come: the parts of all files need not lie in one process either
        ready, left = ray.wait(left, num_returns=1)
        for each in _got(ready):
            whole += each
    return whole


@ray.remote
def _fold_file(shared: tuple[Shards, Bins, Score], path: str, event_time: str, block_s: float) -> Folded:
    shards, bins, score = shared
    columns = list(dict.fromkeys([*shards.columns, event_time]))
    batches = lake.opened(shards.dataset, path).iter_batches(batch_size=ROWS_PER_BATCH, columns=columns)
    tables = (pa.Table.from_batches([batch]) for batch in batches)
    each = (folded(shards, t, bins, score, event_time=event_time, block_s=block_s) for t in tables)
    return functools.reduce(lambda a, b: a + b, each, Folded())
