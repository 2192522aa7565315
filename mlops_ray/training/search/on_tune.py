"""The search on Ray Tune.

Tune runs `concurrency` long-lived *lanes*, one Tune trial of one CPU each, and not one Tune trial per point: a Tune
trial costs 0.12 s to 1.6 s, a point of a lane some milliseconds. Lanes ask an actor without a CPU of its own, the desk,
for the next point, evaluate it on folds that lie in the object store once, and report through Tune, whose callbacks run
in the driver. Each finished trial is a file before anything else hears of it, so a driver that dies loses only what was
running.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from mlops_ray import config
from mlops_ray.config import Task
from mlops_ray.errors import BackendUnavailable, ConfigError, DataError
from mlops_ray.training import target
from mlops_ray.training.search import candidates, lane, measures
from mlops_ray.training.search.book import Book, Progress, winner
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.desk import Desk
from mlops_ray.training.search.presets import Searched
from mlops_ray.training.search.stages import wants_single
from mlops_ray.training.search.study import Study
from mlops_ray.training.search.trials import FoldData, Folder, Job, Order, TrialEnded, digest
from mlops_ray.training.target import Classes

IDLE_DEATHS = 3
"""Lanes that die without a trial, one after the other, until the search gives up: then it is not the trials' fault."""

GRACE_S = 1.0
"""Until lanes that have nothing left to do are ended from outside."""
_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables even with verbose=0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would swallow an interrupt and return as if the search had ended
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and JSON per lane; only Tune's own restore would read them
}


@dataclass(frozen=True)
class Found:
    """The winner: `choice` has the number of rounds at which it was best, `score` is in the metric's own unit.

    `trials` are all that ended, also those of earlier attempts, by number."""

    choice: Choice
    score: float
    rounds: int | None
    trials: tuple[TrialEnded, ...]

    @classmethod
    def of(cls, metric: config.SearchMetric, trials: Sequence[TrialEnded], reason: str | None = None) -> Found:
        """By `book.winner`, which see."""
        best = winner(metric, trials, reason)
        ordered = tuple(sorted(trials, key=lambda trial: trial.number))
        return cls(best.fitting, float(best.score or 0.0), best.rounds, ordered)


def search(
    plan: config.Search,
    task: Task,
    folds: Sequence[FoldData],
    *,
    seed: int,
    storage: str,
    name: str,
    classes: Classes = (0, 1),
    warm: Sequence[Choice] = (),
    on_trial: Callable[[TrialEnded], None] = lambda trial: None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Found:
    """The best of the points that the plan's budget reaches. Ray must be initialised.

    Args: folds: one, whose other rows validate, or several of a cross-validation, whose mean counts.
        storage, name: finished trials are kept in `<storage>/<name>`; a search that finds some there goes on from them
        with what is left of the budget. classes: of a multiclass target, by place. warm: points to begin with, see
        `Study`.
        on_trial: called with each trial that ends in this attempt, after it was kept, from a thread of ours, one at a
        time (and so is on_progress). What it raises ends the search and is raised here.
    Returns: the best trial that ran to its end; one that was stopped only where none did.
    Raises: ConfigError for candidates that cannot be built; DataError for labels that nothing can be learnt from, for a
        folder of another search, and when no trial succeeds; BackendUnavailable when lanes do not start.
    """
    candidates.check(plan.candidates, seed=seed, task=task, plan=plan)
    _check_rows(task, folds)
    listed = candidates.resolved(plan.candidates, task)
    metric = measures.metric_of(plan.metric, task)
    job = Job(
        task=task,
        metric=metric,
        seed=seed,
        n_classes=len(classes) if task == "multiclass" else None,
        class_weight=candidates.class_weights(plan.class_weight, () if task == "regression" else classes),
        early_stopping=plan.early_stopping,
    )
    folder = Folder(f"{storage.rstrip('/')}/{name}")
    kept = folder.open(_fingerprint(plan, listed, job, folds, warm))
    spent = max((trial.at_s for trial in kept), default=0.0)
    book = Book(folder, plan.trials, kept, on_trial, on_progress)
    if len(kept) < plan.trials and spent < plan.max_s:
        others = [_foreign(callback) for callback in plan.callbacks]
        with book:
            _run(plan, listed, job, folds, book, spent, storage, others, warm)
    return Found.of(metric, book.trials, book.reason)


def _check_rows(task: Task, folds: Sequence[FoldData]) -> None:
    for number, fold in enumerate(folds, 1):
        which = "" if len(folds) == 1 else f" of fold {number}"
        target.learnable(task, fold.y[: fold.n_train], side=f"train{which}")
        if len(fold.y) <= fold.n_train:
            raise DataError("search", f"the validation side{which} has no rows; give more, or fewer folds")
    if not folds:
        raise DataError("search", "there is no fold to search on")


def _fingerprint(
    plan: config.Search, listed: Sequence[Searched], job: Job, folds: Sequence[FoldData], warm: Sequence[Choice]
) -> dict[str, Any]:
    """What makes two searches the same: all but budgets and concurrency, which may differ when one is resumed."""
    begun = {"warm": repr([(c.candidate, sorted(c.params.items())) for c in warm])} if warm else {}
    return begun | {
        "candidates": repr([(c.path, sorted(c.params.items()), sorted(c.space.items())) for c in listed]),
        "job": repr(job),
        "rows": digest(folds),
    }


# --- the driver ----------------------------------------------------------------------------------------------------


class _Clerk(tune.Callback):
    """Takes what lanes report, and clears up after those that die."""

    def __init__(self, desk: Any, book: Book, spent: float) -> None:
        self._desk, self._book, self._spent = desk, book, spent
        self._began = time.monotonic()
        self._last: dict[str, TrialEnded] = {}
        self._idle_deaths = 0

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for a restore that we never ask for; threads and databases do not pickle."""
        return {}

    @property
    def hopeless(self) -> bool:
        return self._idle_deaths >= IDLE_DEATHS

    def add(self, trial: TrialEnded) -> None:
        now = time.time()
        if not trial.ended:
            trial = replace(trial, started=now - trial.seconds, ended=now)
        self._book.add(replace(trial, at_s=self._spent + time.monotonic() - self._began))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A lane has finished a trial."""
        ended = TrialEnded.from_json(result["trial"])
        self._last[trial.trial_id] = ended
        self._idle_deaths = 0
        self.add(ended)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A lane died and will be started again."""
        said = Path(trial.error_file)  # a local file, which reaches the storage only later
        reason = _reason(said.read_text(encoding="utf-8") if said.is_file() else "")
        last = self._last.get(trial.trial_id)
        lost = ray.get(self._desk.lost.remote(trial.trial_id, reason, last))
        if lost is not None:
            self._idle_deaths = 0
            self.add(lost)
        else:
            self._idle_deaths += 1
            self._book.reason = f"lanes end before they begin: {reason}"

    on_trial_error = on_trial_recover


class _Until(tune.Stopper):
    """Ends the lanes when the time is up, when all is done, or when it cannot go on."""

    def __init__(self, deadline: float, book: Book, clerk: _Clerk) -> None:
        self._deadline, self._book, self._clerk = deadline, book, clerk
        self._full_at: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        # Lanes end by themselves, and their loggers with them; what hangs, or waits for a CPU, does not.
        now = time.monotonic()
        if self._book.full and self._full_at is None:
            self._full_at = now
        slow = now > self._deadline + GRACE_S or (self._full_at is not None and now > self._full_at + GRACE_S)
        return slow or self._clerk.hopeless or self._book.failure is not None


def _run(
    plan: config.Search,
    listed: Sequence[Searched],
    job: Job,
    folds: Sequence[FoldData],
    book: Book,
    spent: float,
    storage: str,
    others: Sequence[Any],
    warm: Sequence[Choice],
) -> None:
    left = plan.max_s - spent
    # The desk holds the rows, and not Tune, which would keep them for as long as the driver lives.
    data = [put(folds, [c.path for c in listed])]
    desk = _DeskActor.remote(plan, tuple(listed), job, data, book.trials, time.time() + left, warm)
    clerk = _Clerk(desk, book, spent)
    try:
        _tune(plan, desk, job, clerk, _Until(time.monotonic() + left, book, clerk), storage, others)
        for trial in ray.get(desk.rest.remote()):
            clerk.add(trial)
    except (tune.TuneError, ray.exceptions.RayError) as exc:
        detail = f"{str(exc).strip().splitlines()[-1]}; finished trials are kept, so search again by the same name"
        raise BackendUnavailable("the search", detail) from exc
    finally:
        ray.kill(desk)
    if clerk.hopeless and not book.trials:
        raise BackendUnavailable("the search", book.reason or "its lanes end before they begin")


def _tune(
    plan: config.Search, desk: Any, job: Job, clerk: _Clerk, until: _Until, storage: str, others: Sequence[Any]
) -> None:
    with _settings(), tempfile.TemporaryDirectory() as local:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_lane, desk=desk, job=job), {"cpu": 1}),
            tune_config=tune.TuneConfig(num_samples=plan.concurrency, max_concurrent_trials=plan.concurrency),
            run_config=tune.RunConfig(
                name="lanes",
                storage_path=f"{storage.rstrip('/')}/tune" if "://" in storage else local,
                stop=until,
                # Each death uses up a trial, or counts as idle.
                failure_config=tune.FailureConfig(max_failures=plan.trials + IDLE_DEATHS),
                verbose=0,
                callbacks=[clerk, *others],
            ),
        )
        # Tune prints when a lane has completed, whatever its verbosity; standard output is for our one document.
        with redirect_stdout(sys.stderr):
            tuner.fit()


def put(folds: Sequence[FoldData], paths: Sequence[str]) -> Any:
    """A reference to the folds in the object store, in float32 too where one of the estimators at `paths` works so."""
    if any(wants_single(path) for path in paths):
        folds = [replace(fold, single=fold.matrix.astype("float32")) for fold in folds]
    return ray.put(tuple(folds))


@contextmanager
def _settings() -> Iterator[None]:
    """Tune's settings, which it reads from the environment, for the time of a search."""
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    # They print the stack of each lane whose death our log records, and miss the CSV of lanes that we switch off.
    for name in ("tune", "execution.tune_controller", "analysis.experiment_analysis"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)
    before = {name: os.environ.get(name) for name in _TUNE}
    os.environ.update(_TUNE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _foreign(wanted: config.Callback) -> Any:
    """Somebody else's callback. Raises: ConfigError when it cannot be made."""
    module, name = re.split(r"[.:](?=\w+$)", wanted.callback)
    try:
        return getattr(importlib.import_module(module), name)(**wanted.options)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        problem = f"{wanted.callback} cannot be made ({exc}); install its package or fix its options"
        raise ConfigError("search.callbacks", (problem,)) from exc


def _reason(error: str) -> str:
    """Why a lane died, in a sentence, of what Ray says about it in many."""
    if "OutOfMemory" in error or "memory monitor" in error:
        return "ran out of memory: Ray ended its process; lower search.concurrency, or give the machine more"
    if "died" in error or "ActorUnavailable" in error:
        return "its process died: killed (out of memory?), exited, or crashed in native code"
    lines = error.strip().splitlines()
    return lines[-1].strip() if lines else "failed without a message"


# --- what workers run ----------------------------------------------------------------------------------------------


class _Actor:
    """The desk as an actor: lanes that must wait for one another do so here."""

    def __init__(
        self,
        plan: config.Search,
        listed: Sequence[Searched],
        job: Job,
        data: Sequence[Any],
        finished: Sequence[TrialEnded],
        until: float,
        warm: Sequence[Choice],
    ) -> None:
        """data: one reference to the folds; until: when the time is up, seconds since the epoch."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = Study(plan, listed, job.metric, seed=job.seed, warm=warm)
        self._desk = Desk(plan, study, finished, deadline=time.monotonic() + until - time.time())
        self._data, self._paths = data, tuple(candidate.path for candidate in listed)
        self._changed = asyncio.Condition()

    async def data(self) -> tuple[Any, tuple[str, ...]]:
        """The reference to the folds, and the paths of the estimators that there will be."""
        return self._data[0], self._paths

    async def order(self, who: str, ended: TrialEnded | None) -> Order | None:
        if ended is not None:
            self._desk.end(who, ended)
            await self._wake()
        while (found := self._desk.take(who, time.monotonic())) is False:
            async with self._changed:
                with suppress(TimeoutError):  # the search's time may be up while nobody ends
                    await asyncio.wait_for(self._changed.wait(), timeout=1.0)
        asyncio.get_running_loop().call_soon(self._desk.prepare)
        return found or None

    async def step(self, who: str, steps: lane.Steps) -> None:
        self._desk.step(who, steps)

    async def lost(self, who: str, reason: str, last: TrialEnded | None) -> TrialEnded | None:
        lost = self._desk.lost(who, reason, time.monotonic(), last)
        await self._wake()
        return lost

    async def rest(self) -> list[TrialEnded]:
        return self._desk.rest(time.monotonic())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


_DeskActor: Any = ray.remote(num_cpus=0)(_Actor)


def _lane(given: dict[str, Any], *, desk: Any, job: Job) -> None:
    """Evaluates one point after the other until the desk has no more."""
    # Before NumPy's and scikit-learn's libraries are loaded: one lane, one thread.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    data, paths = ray.get(desk.data.remote())
    folds: tuple[FoldData, ...] = ray.get(data)
    for path in paths:  # imports take seconds, and are no part of a trial's time
        candidates.imported(path)
    me = tune.get_context().get_trial_id()
    ended: TrialEnded | None = None
    while (order := ray.get(desk.order.remote(me, ended))) is not None:
        # A fit that hangs may hold the interpreter's lock: this timer runs outside of it, and ends the process.
        faulthandler.dump_traceback_later(order.limit_s, exit=True, file=sys.__stderr__ or sys.stderr)
        ended = lane.ended(order, folds, job, clock=time.time, on_step=lambda steps: desk.step.remote(me, steps))
        faulthandler.cancel_dump_traceback_later()
        shown: dict[str, Any] = {"number": ended.number, "candidate": ended.choice.label, "status": ended.status}
        if ended.score is not None:
            shown[job.metric] = ended.score
        tune.report({**shown, "seconds": ended.seconds, "trial": ended.to_json()})
