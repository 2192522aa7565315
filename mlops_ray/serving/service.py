"""What one ingress replica does with a request, without Ray: the split, the scores, the record, the answer.

The stable version is scored here, in-process: by ONNX Runtime between two requests, since a row takes it microseconds;
by scikit-learn, or many rows at once, in a bounded pool of threads, so that the other requests go on. A canary lives
apart (`canary`): when it fails or is late, stable's score answers and the row counts as the canary's failure. Each
canary row is scored by stable too, so that the log holds paired evidence.

Configuration arrives through `want`, which only stores it (`versions`).
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Project, Task
from mlops_ray.data.profile import Columns
from mlops_ray.errors import BackendUnavailable, BadRequest, DataError
from mlops_ray.serving.canary import Apart, Outcome, Told
from mlops_ray.serving.exchange import Answer, Asked, Batch, Labels
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.records import Labelled, Record, Scored, Trial, Watermark
from mlops_ray.serving.repeats import Repeats
from mlops_ray.serving.routing import chosen
from mlops_ray.serving.scores import sound
from mlops_ray.serving.shadow import Copy, Shadow, judged
from mlops_ray.serving.versions import Answering, Held, Load, Scorer, Versions, Wanted

__all__ = ["Ask", "Held", "Load", "Log", "Scorer", "Service", "Told", "Wanted"]

# Rows that ONNX Runtime scores between two requests. A thread's detour costs 100 microseconds, and 400 rows of a
# 100-tree graph take a millisecond, which is what the other requests may be held up for.
_INLINE_ROWS = 400
# scikit-learn's own threads use the other cores.
_THREADS = min(4, os.cpu_count() or 1)

Ask = Callable[[int, Columns], Awaitable[Told]]
Role = Literal["stable", "canary", "shadow", "warm"]


class Log(Protocol):
    """The prediction log; `capture.Capture` is one."""

    def append(self, record: Record) -> bool:
        """Keep a record. False: not all rows of this one stand in the log, which is counted there.

        Raises: BackendUnavailable for labels and watermarks that cannot be written; BadRequest (422) for labels that
            the log cannot hold.
        """
        ...

    async def durable(self) -> bool:
        """Returns when all that was appended so far is as safe as `capture.durability` says; False when it is not."""
        ...


@dataclass(frozen=True)
class Known:
    """A version that may be asked for by number, and what it does."""

    version: int
    role: Role
    task: Task
    classes: tuple[Any, ...]


class Service:
    """One replica's state and work. All methods but `want` and `status` run on the replica's event loop."""

    def __init__(self, project: Project, log: Log, load: Load, ask: Ask, *, first: Wanted | None = None) -> None:
        """Args: load: a version's artifact to a scorer, checked. ask: the scores of a version that lives apart.

        first: its stable version is loaded before this returns. Raises what `load` raises."""
        self.project, self._log, self._ask = project, log, ask
        self.form = Form.of(project)
        self.versions = Versions(load, first)
        self._threads = ThreadPoolExecutor(_THREADS, "scorer")
        self._repeats = Repeats()
        self._apart: dict[int, Apart] = {}
        self._shadow = Shadow(self._calls_of, log.append, most_rows=project.serving.shadow_rows, now=time.time)
        self._to_disk = project.capture.durability == "disk"

    def want(self, wanted: Wanted) -> None:
        """Store a newer configuration; an older one is ignored. Returns at once and never raises."""
        self.versions.want(wanted)

    def ready(self) -> bool:
        """Whether predictions can be answered."""
        return self.versions.answering is not None

    def status(self) -> dict[str, Any]:
        """What this replica has and does: see `Versions.status`; `apart` of each version asked, `shadow`'s queue."""
        apart = {str(version): calls.status() for version, calls in list(self._apart.items())}
        return {**self.versions.status(), "apart": apart, "shadow": self._shadow.status()}

    def models(self) -> tuple[Known, ...]:
        """The versions that a request may ask for: stable, the one on trial, those kept warm."""
        answering = self.versions.answering
        if answering is None:
            return ()
        stable, wanted = answering.version, answering.wanted
        known = [Known(stable, "stable", answering.scorer.task, answering.scorer.classes)]
        if wanted.canary is not None:
            role: Role = "shadow" if wanted.shadow else "canary"
            known.append(Known(wanted.canary, role, answering.scorer.task, answering.scorer.classes))
        loaded = self.versions.loaded
        known += [Known(v, "warm", loaded[v].task, loaded[v].classes) for v in sorted(loaded) if v != stable]
        return tuple(known)

    async def predict(self, request_id: str, asked: Asked, *, repeatable: bool = False, fingerprint: int = 0) -> Answer:
        """Score, record, answer.

        Args: repeatable: the id is the client's: the same again gets the same answer, and is one prediction.
            fingerprint: a hash of what was asked, so that another question under the same id is noticed.
        Raises: BadRequest: 404 for a version that is not here, 422 for what cannot be scored or for an id that was used
            for something else. BackendUnavailable when no version is loaded yet, or when the version that was asked for
            does not answer.
        """
        if not repeatable:
            return await self._predict(request_id, asked, repeatable)
        work = functools.partial(self._predict, request_id, asked, repeatable)
        return await self._repeats.once(request_id, fingerprint, work)

    async def feedback(self, labels: Labels) -> int:
        """Record late labels; returns how many. Raises: BackendUnavailable when they cannot be written."""
        await self._acknowledge(Labelled(time.time(), labels))
        return len(labels.ids)

    async def watermark(self, time_s: float) -> None:
        """Record that nothing older than `time_s` will come. Raises: BackendUnavailable when it cannot be written."""
        await self._acknowledge(Watermark(time.time(), time_s))

    async def _predict(self, request_id: str, asked: Asked, repeatable: bool) -> Answer:
        answering, options = self.versions.answering, asked.options
        if answering is None:
            raise BackendUnavailable(f"project {self.project.project!r}", "no version is loaded yet; try again shortly")
        if options.version is not None and options.version != answering.version:
            return await self._predict_pinned(request_id, asked, answering, options.version, repeatable)
        batch, wanted = asked.batch, answering.wanted
        keys = batch.keys or tuple([f"{request_id}:{i}" for i in range(batch.n_rows)])
        rows: Sequence[int] = ()
        if wanted.canary is not None and wanted.share > 0 and options.version is None:
            rows = chosen(keys, wanted.salt, wanted.share)
        coming = None
        if rows and wanted.canary is not None and not wanted.shadow:
            coming = self._calls_of(wanted.canary).ask(_taken(batch, rows), len(rows))
        scores, score_us = await self._scored(answering.version, answering.scorer, batch)
        trial = theirs = None
        if rows and wanted.canary is not None:
            trial = Trial(wanted.canary, wanted.salt, wanted.share, np.array(rows, dtype=np.int64), None)
        if coming is not None and trial is not None:
            outcome = await coming
            trial, theirs = judged(trial, outcome, answering.scorer.classes), outcome.told
        record = Scored(
            id=request_id,
            at=time.time(),
            keys=keys,
            times=batch.times,
            columns=batch.columns,
            stable=answering.version,
            scores=scores,
            score_us=score_us,
            repeatable=repeatable,
            canary=trial if coming is not None else None,
        )
        captured = await self._kept(record)
        if trial is not None and coming is None and captured:
            classes = answering.scorer.classes
            self._shadow.show(
                Copy(request_id, answering.version, scores[trial.rows], classes, _taken(batch, rows), trial)
            )
        return self._answer(
            request_id, asked, answering, scores, captured, trial if coming is not None else None, theirs
        )

    def _answer(
        self,
        request_id: str,
        asked: Asked,
        answering: Answering,
        scores: NDArray[np.float64],
        captured: bool,
        trial: Trial | None,
        theirs: Told | None,
    ) -> Answer:
        """The answer, rows of the canary with its scores where it has any."""
        n = asked.batch.n_rows
        threshold: float | NDArray[np.float64] = self._threshold(asked, answering.scorer.threshold)
        versions, canary = np.full(n, answering.version, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        if trial is not None:
            canary[trial.rows] = True
            if trial.scores is not None and theirs is not None:
                scores = scores.copy()
                scores[trial.rows] = trial.scores
                versions[trial.rows] = trial.version
                own = self._threshold(asked, theirs.threshold)
                if own != threshold:
                    threshold = np.full(n, threshold)
                    threshold[trial.rows] = own
        return Answer(
            request_id=request_id,
            task=answering.scorer.task,
            classes=answering.scorer.classes,
            threshold=threshold,
            scores=scores,
            versions=versions,
            canary=canary,
            captured=captured,
        )

    async def _predict_pinned(
        self, request_id: str, asked: Asked, answering: Answering, version: int, repeatable: bool
    ) -> Answer:
        """All rows by one version that was asked for by number; they are no evidence of a rollout."""
        batch, classes = asked.batch, answering.scorer.classes
        scorer = self.versions.loaded.get(version)
        if scorer is not None:
            scores, score_us = await self._scored(version, scorer, batch)
            classes, own = scorer.classes, scorer.threshold
        elif version == answering.wanted.canary:
            started = time.perf_counter()
            outcome: Outcome = await self._calls_of(version).ask(batch.columns, batch.n_rows)
            score_us = (time.perf_counter() - started) * 1e6
            if outcome.told is None:
                raise BackendUnavailable(f"version {version}", f"it did not answer ({outcome.failure})")
            scores, classes, own = outcome.told.scores, outcome.told.classes, outcome.told.threshold
        else:
            there = ", ".join(f"{known.version} ({known.role})" for known in self.models())
            raise BadRequest(404, "no such version", f"version {version} is not loaded; there are {there}")
        keys = batch.keys or tuple([f"{request_id}:{i}" for i in range(batch.n_rows)])
        record = Scored(
            id=request_id,
            at=time.time(),
            keys=keys,
            times=batch.times,
            columns=batch.columns,
            stable=version,
            scores=scores,
            score_us=score_us,
            repeatable=repeatable,
        )
        return Answer(
            request_id=request_id,
            task=answering.scorer.task,
            classes=classes,
            threshold=self._threshold(asked, own),
            scores=scores,
            versions=np.full(batch.n_rows, version, dtype=np.int64),
            canary=np.zeros(batch.n_rows, dtype=np.bool_),
            captured=await self._kept(record),
        )

    def _threshold(self, asked: Asked, own: float | None) -> float:
        """From which probability on a label is 1: the request's, else the version's own, else the project's."""
        if asked.options.threshold is not None:
            return asked.options.threshold
        return self.project.serving.threshold if own is None else own

    async def _scored(self, version: int, scorer: Scorer, batch: Batch) -> tuple[NDArray[np.float64], float]:
        """The version's scores, and the microseconds that they took. Raises: BadRequest, BackendUnavailable."""
        started = time.perf_counter()
        try:
            if scorer.engine == "onnx" and batch.n_rows <= _INLINE_ROWS:
                scores = scorer.score(batch.columns)
            else:
                loop = asyncio.get_running_loop()
                started, scores = await loop.run_in_executor(self._threads, _timed, scorer, batch.columns)
        except DataError as exc:
            raise BadRequest(422, "cannot be scored", str(exc)) from exc
        score_us = (time.perf_counter() - started) * 1e6
        if not sound(scores, scorer.task, batch.n_rows, len(scorer.classes)):
            raise BackendUnavailable(f"version {version}", "it answered with something that is no prediction")
        return scores, score_us

    def _calls_of(self, version: int) -> Apart:
        """The calls to a version apart. Those to versions of earlier rollouts are let go of."""
        if (found := self._apart.get(version)) is None:
            call = functools.partial(self._ask, version)
            found = Apart(call, self.project.task, deadline_s=self.project.serving.canary_deadline_s)
            self._apart = {version: found}
        return found

    async def _kept(self, record: Scored) -> bool:
        """Whether the record stands in the log, as safely as was promised."""
        captured = self._log.append(record)
        return captured and (not self._to_disk or await self._log.durable())

    async def _acknowledge(self, record: Labelled | Watermark) -> None:
        """Record what nobody would send a second time. Raises: BackendUnavailable."""
        self._log.append(record)
        if self._to_disk and not await self._log.durable():
            raise BackendUnavailable("the prediction log", "its disk did not take an fsync; send this again later")


def _timed(scorer: Scorer, columns: Columns) -> tuple[float, NDArray[np.float64]]:
    """When the scoring itself began, after the wait for a thread, and the scores."""
    return time.perf_counter(), scorer.score(columns)


def _taken(batch: Batch, rows: Sequence[int]) -> Columns:
    """The model's inputs of some rows."""
    if len(rows) == batch.n_rows:
        return batch.columns
    return {name: values[rows] for name, values in batch.columns.items()}
