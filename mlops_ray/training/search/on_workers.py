"""The workers of a team, and the relay between them and the caller: what runs in processes of Ray's.

The workers read and bin their own shards once, then carry out one fit after the other, as the relay hands them out. A
worker that dies takes the group with it (the others cannot go on without its rows); Ray Train starts it again, and the
fit goes on from its last checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import ray
import ray.train
from ray.util.placement_group import get_current_placement_group

from mlops_ray.config import SearchMetric
from mlops_ray.errors import BackendUnavailable, MlopsRayError
from mlops_ray.training.search import boosting
from mlops_ray.training.search.boosting import Boosted, Plan
from mlops_ray.training.search.shards import Piece, Shards, reader

if TYPE_CHECKING:
    from xgboost import QuantileDMatrix

RETRIES = 2
"""Times that a fit is begun again after its workers died; three deaths of one fit are its own doing."""
SAVE_S = 20.0
"""Between two checkpoints: what a death costs at most, besides the start of new workers and their reading."""
_POLL_S = "0.2"
"""Ray Train looks at its workers every two seconds unless told otherwise, and a report waits for that look."""
THREADS = 1
"""CPUs of a worker: with one, histograms are summed in one order, so a fit repeats to the bit."""


@dataclass(frozen=True)
class Worker:
    """What one worker held: rows to fit and to judge, and the most memory its process had (resident, bytes)."""

    rank: int
    n_fit: int
    n_judge: int
    peak_bytes: int


@dataclass(frozen=True)
class Wanted:
    """One fit to carry out; `watched` when the caller wants to see each round, `sides` which rows are to fit."""

    number: int
    plan: Plan
    metric: SearchMetric
    watched: bool
    sides: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a group of workers runs: its placement group, and the handle of its first worker."""

    group: Any
    first: Any


@dataclass(frozen=True)
class Event:
    """What the workers say: that they `began` and where, a `round` with its metric, that a fit is `done`, that it
    `failed`, or that the run is `broken` for any fit."""

    kind: Literal["began", "round", "done", "failed", "broken"]
    order: int = -1
    ticket: int = 0
    round: int = 0
    value: float = float("nan")
    boosted: Boosted | None = None
    workers: tuple[Worker, ...] = ()
    starts: int = 0
    error: MlopsRayError | None = None
    place: Place | None = None


class Relay:
    """The actor between the caller and the workers, which also owns the run."""

    def __init__(self) -> None:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = _POLL_S  # of this process, which Ray Train hands on
        self._order: Wanted | None = None
        self._starts = 0
        self._closed = False
        self._death = ""
        self._changed = asyncio.Condition()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._said = 0
        self._replies: dict[int, asyncio.Future[bool]] = {}

    async def run(self, job: Job, relay: Any) -> None:
        """Carries out orders until there are no more. Raises: what Ray Train raises when the workers died too often."""
        await asyncio.to_thread(run, job, relay)

    async def put(self, order: Wanted | None) -> None:
        """The next fit; None ends the run."""
        async with self._changed:
            self._order, self._starts, self._death, self._closed = order, 0, "", order is None
            self._changed.notify_all()

    async def take(self) -> Wanted | None:
        """For the first worker: the fit that is wanted, as soon as there is one; None at the end."""
        async with self._changed:
            if self._order is not None and self._starts > RETRIES:
                await self._events.put(Event("failed", self._order.number, starts=self._starts, error=self._given_up()))
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

    async def say(self, event: Event) -> bool:
        """For workers: tells the caller; of a round, whether to stop there."""
        if event.kind != "round":
            self._order = None if event.kind == "done" else self._order
            await self._events.put(replace(event, starts=self._starts))
            return False
        self._said += 1
        reply: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._replies[self._said] = reply
        await self._events.put(replace(event, ticket=self._said))
        return await reply

    async def hear(self, ticket: int, stop: bool) -> Event:
        """For the caller: the answer to the round with that ticket (0 for none), and the next event."""
        if (reply := self._replies.pop(ticket, None)) is not None:
            reply.set_result(stop)
        return await self._events.get()


# What workers do ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Job:
    """What every worker is told: whose rows are whose, and how wide the matrix is."""

    shards: Any
    dealt: tuple[tuple[Piece, ...], ...]
    width: int
    judged: bool
    scratch: str
    name: str
    deaths: int
    """Times that workers may die in the whole run: the relay counts those of each fit."""
    save_s: float
    """Between two checkpoints."""


class _Deaths(ray.train.UserCallback):
    """Tells the relay why workers died."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """In Ray Train's controller, before it starts new workers. Those that lived on only saw their peer go."""
        reasons = [f"worker {rank} {reason_of(exc)}" for rank, exc in sorted(worker_exceptions.items())]
        ray.get(self._relay.died.remote(tuple(sorted(reasons, key=lambda reason: "lost touch" in reason))))


def reason_of(exc: Exception) -> str:
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


def run(job: Job, relay: Any) -> None:
    """One Ray Train run, to its end."""
    from ray.train.xgboost import XGBoostTrainer

    train: Any = ray.train  # its names are chosen at import: a type checker sees those of the older interface
    trainer = XGBoostTrainer(
        _work,
        train_loop_config={"job": job, "relay": relay},
        # Spread: the point is that no node holds all rows.
        scaling_config=train.ScalingConfig(
            num_workers=len(job.dealt), resources_per_worker={"CPU": THREADS}, placement_strategy="SPREAD"
        ),
        run_config=train.RunConfig(
            name=job.name,
            storage_path=job.scratch,
            failure_config=train.FailureConfig(max_failures=job.deaths, controller_failure_limit=RETRIES),
            callbacks=[_Deaths(relay)],
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()


def _work(told: dict[str, Any]) -> None:
    """What each worker runs: its matrices once, then fit after fit."""
    job, relay = told["job"], told["relay"]
    rank = ray.train.get_context().get_world_rank()
    try:
        if rank == 0:
            place = Place(get_current_placement_group(), ray.get_runtime_context().current_actor)
            ray.get(relay.say.remote(Event("began", place=place)))
        shard = _Shard(ray.get(job.shards), job, rank)
        while True:
            order = _told((ray.get(relay.take.remote()),) if rank == 0 else None, 0)[0]
            if order is None:
                return
            boosted = _fit(shard, order, relay)
            held = shard.held()
            every = [_told(held if rank == r else None, r) for r in range(len(job.dealt))]
            if rank == 0:
                ray.get(relay.say.remote(Event("done", order.number, boosted=boosted, workers=tuple(every))))
    except MlopsRayError as exc:  # of the rows, hence raised at every start: the caller ends the run
        ray.get(relay.say.remote(Event("broken", error=exc)))
        raise


def _told(said: Any, by: int) -> Any:
    """What worker `by` says, on all workers."""
    from xgboost import collective

    return collective.broadcast(said, by)


class _Shard:
    """A worker's own rows as XGBoost holds them: made at the first fit, and again when one wants others."""

    def __init__(self, shards: Shards, job: Job, rank: int) -> None:
        self.shards, self.rank, self.save_s, self._job = shards, rank, job.save_s, job
        self._made_for: tuple[int, tuple[int, ...]] | None = None
        self._matrices: tuple[QuantileDMatrix, QuantileDMatrix | None] | None = None

    def matrices(self, max_bin: int, sides: tuple[int, ...]) -> tuple[QuantileDMatrix, QuantileDMatrix | None]:
        """Rows of these `sides` to fit, and rows that judge. All workers must ask at once."""
        if self._matrices is None or self._made_for != (max_bin, sides):
            self._matrices = None  # before the next ones are made: not both at once
            pieces, width = self._job.dealt[self.rank], self._job.width
            fit = boosting.quantised(reader(replace(self.shards, fit=sides), pieces, "fit"), width, max_bin)
            judge = None
            if self._job.judged:
                judge = boosting.quantised(reader(self.shards, pieces, "judge"), width, max_bin, ref=fit)
            self._matrices, self._made_for = (fit, judge), (max_bin, sides)
        return self._matrices

    def held(self) -> Worker:
        """What this worker holds."""
        fit, judge = self._matrices if self._matrices is not None else (None, None)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        return Worker(self.rank, fit.num_row() if fit else 0, judge.num_row() if judge else 0, peak)


def _fit(shard: _Shard, order: Wanted, relay: Any) -> Boosted:
    """One fit, from its last checkpoint if there is one."""
    from xgboost import collective

    fit, judge = shard.matrices(order.plan.max_bin, order.sides)
    saved = time.monotonic()

    def after_round(done: int, value: float, model: Callable[[], bytes]) -> bool:
        """The first worker's word, for all: they must do the same."""
        nonlocal saved
        said = np.zeros(2, dtype=np.int32)
        if shard.rank == 0:
            said[0] = order.watched and ray.get(relay.say.remote(Event("round", order.number, round=done, value=value)))
            said[1] = time.monotonic() - saved > shard.save_s
        stop, save = collective.allreduce(said, collective.Op.SUM).astype(bool).tolist()
        if save:
            _save(order, model() if shard.rank == 0 else None)
            saved = time.monotonic()
        return bool(stop)

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


def _save(order: Wanted, model: bytes | None) -> None:
    """A checkpoint, of the first worker's `model`; all workers report."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if model is not None:
            Path(folder, "model.ubj").write_bytes(model)
            Path(folder, "order.json").write_text(json.dumps({"order": order.number}), encoding="utf-8")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"order": order.number}, checkpoint=checkpoint)


def _saved(order: Wanted) -> bytes | None:
    """The model of the last checkpoint, if it is of this fit."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        if json.loads(Path(folder, "order.json").read_text(encoding="utf-8"))["order"] != order.number:
            return None
        return Path(folder, "model.ubj").read_bytes()
