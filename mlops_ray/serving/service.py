"""What one ingress replica does with a request, without Ray: the split, the scores, the record, the answer.

The stable version is scored here, in-process (`scoring`). A canary lives apart (`canary`): when it fails or is late,
stable's score answers and the row counts as the canary's failure. Each canary row is scored by stable too, so that the
log holds paired evidence. Several canaries side by side are asked at once, each for its own rows. A shadow sees copies
of rows that were answered (`shadow`), and so does the version before stable while stable bakes; what stable fails then
that version answers, and the log has it as stable's failure.

Configuration arrives through `want`, which only stores it (`versions`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Project, Task
from mlops_ray.data.profile import Columns
from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving import explain
from mlops_ray.serving.canary import Apart, Line, Outcome
from mlops_ray.serving.exchange import Answer, Asked, Batch, Labels
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.records import Labelled, Record, Scored, Trial, Watermark
from mlops_ray.serving.repeats import Repeats
from mlops_ray.serving.routing import chosen, spread
from mlops_ray.serving.scores import aligned
from mlops_ray.serving.scoring import Scoring
from mlops_ray.serving.shadow import Calls, Copy, Shadow, Within, judged
from mlops_ray.serving.versions import Answering, Held, Load, Scorer, Versions, Wanted

__all__ = ["Held", "Lines", "Load", "Log", "Scorer", "Service", "Wanted"]

Lines = Callable[[int], Line]
Role = Literal["stable", "canary", "shadow", "warm"]


class Log(Protocol):
    """The prediction log; `capture.Capture` is one."""

    def append(self, record: Record) -> bool:
        """Keep a record. False: not all rows of this one stand in the log, which is counted there.

        Raises: BackendUnavailable for labels and watermarks that cannot be written; BadRequest (422) for labels that
            the log cannot hold.
        """
        ...

    async def keep(self, record: Scored) -> bool:
        """The same for an answered request; what comes in one round of the event loop may share a write."""
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

    def __init__(self, project: Project, log: Log, load: Load, lines: Lines, *, first: Wanted | None = None) -> None:
        """Args: load: a version's artifact to a scorer, checked. lines: the way to a version that lives apart.

        first: its stable version is loaded before this returns. Raises what `load` raises."""
        self.project, self._log, self._lines = project, log, lines
        self.form = Form.of(project)
        self.versions = Versions(load, first)
        self._scoring = Scoring(project)
        self._repeats = Repeats()
        self._apart: dict[int, tuple[str, Apart]] = {}  # by version, with the salt of the rollout that they are for
        self._shadow = Shadow(self._copied_to, log.append, most_rows=project.serving.shadow_rows, now=time.time)
        self._to_disk = project.capture.durability == "disk"

    def want(self, wanted: Wanted) -> None:
        """Store a newer configuration; an older one is ignored. Returns at once and never raises."""
        self.versions.want(wanted)

    def ready(self) -> bool:
        """Whether predictions can be answered."""
        return self.versions.answering is not None

    def status(self) -> dict[str, Any]:
        """What this replica has and does: see `Versions.status`; `apart` of each version asked, `shadow`'s queue."""
        apart = {str(version): calls.status() for version, (_, calls) in list(self._apart.items())}
        return {**self.versions.status(), "apart": apart, "shadow": self._shadow.status()}

    def models(self) -> tuple[Known, ...]:
        """The versions that a request may ask for: stable, those on trial, those kept warm."""
        answering = self.versions.answering
        if answering is None:
            return ()
        stable, wanted = answering.version, answering.wanted
        known = [Known(stable, "stable", answering.scorer.task, answering.scorer.classes)]
        role: Role = "shadow" if wanted.shadow else "canary"
        known += [Known(v, role, answering.scorer.task, answering.scorer.classes) for v in wanted.on_trial]
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
        answering, batch, options = self.versions.answering, asked.batch, asked.options
        if answering is None:
            raise BackendUnavailable(f"project {self.project.project!r}", "no version is loaded yet; try again shortly")
        if options.explain:
            explain.demand_few(batch.n_rows, len(batch.columns))
        if options.version is not None and options.version != answering.version:
            return await self._predict_pinned(request_id, asked, answering, options.version, repeatable)
        keys = batch.keys or tuple([f"{request_id}:{i}" for i in range(batch.n_rows)])
        trials = () if options.version is not None else _trials(answering, keys)
        coming: list[Awaitable[Outcome]] = []
        if options.version is None:
            for version in self.versions.wanted.on_trial:
                self._calls_of(version)  # which looks for one that starts
        if trials and not answering.wanted.copies:
            coming = [self._calls_of(trial.version).ask(_taken(batch, trial), len(trial.rows)) for trial in trials]
        served, scores, score_us = await self._scored(answering, batch, falls_back=options.version is None)
        failed = _failed(answering, batch.n_rows) if served.version != answering.version else ()
        found: tuple[Trial, ...] = ()
        if coming:
            outcomes = [await one for one in coming]
            classes = answering.scorer.classes
            found = tuple([judged(trial, one, classes) for trial, one in zip(trials, outcomes, strict=True)])
        record = Scored(
            id=request_id,
            at=time.time(),
            keys=keys,
            times=batch.times,
            columns=batch.columns,
            stable=served.version,
            scores=scores,
            score_us=score_us,
            repeatable=repeatable,
            trials=found or failed,
        )
        answer = self._answer(request_id, asked, served, scores, await self._kept(record))
        if found:
            answer = self._with_canaries(answer, asked, found, outcomes)
        elif trials and answer.captured and not failed:
            for trial in trials:
                self._copy(record, trial, answering.scorer.classes, batch)
        return await self._explained(answer, asked, served) if options.explain else answer

    async def _scored(
        self, answering: Answering, batch: Batch, *, falls_back: bool
    ) -> tuple[Answering, NDArray[np.float64], float]:
        """Who answers, its scores, and the microseconds that they took: stable or, where that fails while it bakes, the
        version before it, which is loaded still. Where both fail it is the request's fault as much as stable's.

        Args: falls_back: not where this very version was asked for. Raises: what `Scoring.scored` raises."""
        before, columns, n = answering.wanted.before, batch.columns, batch.n_rows
        scorer = None if before is None else self.versions.loaded.get(before.version)
        if before is not None and scorer is not None and falls_back and before.version != answering.version:
            outcome = await Within(answering.version, answering.scorer, self._scoring).ask(columns, n, for_client=True)
            if outcome.told is not None:
                return answering, outcome.told.scores, (outcome.told.row_us or 0.0) * n
            answering = replace(answering, version=before.version, scorer=scorer)
        return answering, *await self._scoring.scored(answering.version, answering.scorer, columns, n)

    def _answer(
        self, request_id: str, asked: Asked, answering: Answering, scores: NDArray[np.float64], captured: bool
    ) -> Answer:
        """The answer by stable alone."""
        n = asked.batch.n_rows
        return Answer(
            request_id=request_id,
            task=answering.scorer.task,
            classes=answering.scorer.classes,
            threshold=self._threshold(asked, answering.scorer.threshold),
            scores=scores,
            versions=np.full(n, answering.version, dtype=np.int64),
            canary=np.zeros(n, dtype=np.bool_),
            captured=captured,
        )

    def _with_canaries(
        self, answer: Answer, asked: Asked, trials: Sequence[Trial], outcomes: Sequence[Outcome]
    ) -> Answer:
        """The answer with the rows of each canary marked, and with its scores where it has any."""
        scores, stables = answer.scores.copy(), answer.threshold
        threshold = stables
        for trial, outcome in zip(trials, outcomes, strict=True):
            answer.canary[trial.rows] = True
            if trial.scores is None or outcome.told is None:
                continue
            scores[trial.rows] = trial.scores
            answer.versions[trial.rows] = trial.version
            own = self._threshold(asked, outcome.told.threshold)
            if own != stables:
                if not isinstance(threshold, np.ndarray):
                    threshold = np.full(answer.n_rows, threshold)
                threshold[trial.rows] = own
        return replace(answer, scores=scores, threshold=threshold)

    def _copy(self, record: Scored, trial: Trial, classes: tuple[Any, ...], batch: Batch) -> None:
        """Have the shadow see the rows that are its."""
        seen = Copy(record.id, record.stable, record.scores[trial.rows], classes, _taken(batch, trial), trial)
        self._shadow.show(seen)

    async def _explained(self, answer: Answer, asked: Asked, answering: Answering) -> Answer:
        """The answer with contributions, each row's from the version that answered it.

        A canary is asked for its scores of the replaced rows as for any others; where it does not answer, its rows have
        no contributions.
        """
        ordinary = await self._scoring.ordinary(answering.scorer)
        told: list[tuple[tuple[str, float], ...]] = [()] * answer.n_rows
        for version in np.unique(answer.versions).tolist():
            rows = np.flatnonzero(answer.versions == version)
            varied = explain.variations({name: v[rows] for name, v in asked.batch.columns.items()}, ordinary)
            n = len(rows) * len(ordinary)
            scorer = answering.scorer if version == answering.version else self.versions.loaded.get(version)
            if scorer is not None:
                scores, _ = await self._scoring.scored(version, scorer, varied, n)
            else:
                theirs = (await self._calls_of(version).ask(varied, n)).told
                lined = None if theirs is None else aligned(theirs.scores, theirs.classes, answer.classes)
                if lined is None:
                    continue
                scores = lined
            found = explain.contributions(
                tuple(ordinary), answer.scores[rows], scores, task=answer.task, top=asked.options.explain
            )
            for row, contributions in zip(rows.tolist(), found, strict=True):
                told[row] = contributions
        return replace(answer, contributions=tuple(told))

    async def _predict_pinned(
        self, request_id: str, asked: Asked, answering: Answering, version: int, repeatable: bool
    ) -> Answer:
        """All rows by one version that was asked for by number; they are no evidence of a rollout."""
        batch = asked.batch
        scorer = self.versions.loaded.get(version)
        if scorer is not None:
            scores, score_us = await self._scoring.scored(version, scorer, batch.columns, batch.n_rows)
            classes, own = scorer.classes, scorer.threshold
        elif version in answering.wanted.on_trial:
            started = time.perf_counter()
            outcome: Outcome = await self._calls_of(version).ask(batch.columns, batch.n_rows)
            score_us = (time.perf_counter() - started) * 1e6
            if outcome.told is None:
                raise BackendUnavailable(f"version {version}", f"it did not answer ({outcome.failure})")
            scores, classes, own = outcome.told.scores, outcome.told.classes, outcome.told.threshold
        else:
            there = ", ".join(f"{known.version} ({known.role})" for known in self.models())
            raise BadRequest(404, "no such version", f"version {version} is not loaded; there are {there}")
        record = Scored(
            id=request_id,
            at=time.time(),
            keys=batch.keys or tuple([f"{request_id}:{i}" for i in range(batch.n_rows)]),
            times=batch.times,
            columns=batch.columns,
            stable=version,
            scores=scores,
            score_us=score_us,
            repeatable=repeatable,
        )
        answer = Answer(
            request_id=request_id,
            task=answering.scorer.task,
            classes=classes,
            threshold=self._threshold(asked, own),
            scores=scores,
            versions=np.full(batch.n_rows, version, dtype=np.int64),
            canary=np.zeros(batch.n_rows, dtype=np.bool_),
            captured=await self._kept(record),
        )
        return await self._explained(answer, asked, answering) if asked.options.explain else answer

    def _threshold(self, asked: Asked, own: float | None) -> float:
        """From which probability on a label is 1: the request's, else the version's own, else the project's."""
        if asked.options.threshold is not None:
            return asked.options.threshold
        return self.project.serving.threshold if own is None else own

    def _copied_to(self, version: int) -> Calls:
        """The calls to a version that sees copies."""
        if version in self.versions.wanted.on_trial:
            return self._calls_of(version)
        return Within(version, self.versions.loaded.get(version), self._scoring)

    def _calls_of(self, version: int) -> Apart:
        """The calls to a version apart. Those of earlier rollouts are let go of, to the same version too: its
        application has been taken down since, and what was heard of the old one is nothing that the new one did."""
        wanted, known = self.versions.wanted, self._apart.get(version)
        if known is not None and (known[0] == wanted.salt or version not in wanted.on_trial):
            return known[1]
        serving, on_trial = self.project.serving, wanted.on_trial
        line = self._lines(version)
        line.find()
        found = Apart(
            line,
            self.project.task,
            deadline_s=serving.canary_deadline_s,
            # The other half is there for rows of stable, however many wait for canaries that hang.
            most_waiting=max(1, serving.max_ongoing_requests // 2 // max(1, len(on_trial))),
        )
        kept = {v: of for v, of in self._apart.items() if v in on_trial and v != version and of[0] == wanted.salt}
        for earlier, (_, calls) in self._apart.items():
            if earlier not in kept:
                calls.close()
        self._apart = kept | {version: (wanted.salt, found)}
        return found

    async def _kept(self, record: Scored) -> bool:
        """Whether the record stands in the log, as safely as was promised."""
        captured = await self._log.keep(record)
        return captured and (not self._to_disk or await self._log.durable())

    async def _acknowledge(self, record: Labelled | Watermark) -> None:
        """Record what nobody would send a second time. Raises: BackendUnavailable."""
        self._log.append(record)
        if self._to_disk and not await self._log.durable():
            raise BackendUnavailable("the prediction log", "its disk did not take an fsync; send this again later")


def _trials(answering: Answering, keys: tuple[str, ...]) -> tuple[Trial, ...]:
    """The rows that are a canary's, or that a shadow sees, by their keys, for each version that has any."""
    wanted, before = answering.wanted, answering.wanted.before
    if before is not None:
        if answering.version == before.version:  # this replica has not flipped yet, or is back already
            return ()
        rows = chosen(keys, before.salt, before.share)
        return (Trial(before.version, before.salt, before.share, np.array(rows, np.int64), None),) if rows else ()
    if wanted.share <= 0:
        return ()
    if wanted.canary is not None:
        rows = chosen(keys, wanted.salt, wanted.share)
        return (Trial(wanted.canary, wanted.salt, wanted.share, np.array(rows, np.int64), None),) if rows else ()
    found = spread(keys, wanted.salt, [arm.span for arm in wanted.arms])
    return tuple(
        Trial(arm.version, wanted.salt, arm.share, np.array(rows, np.int64), None)
        for arm, rows in zip(wanted.arms, found, strict=True)
        if rows
    )


def _failed(answering: Answering, n: int) -> tuple[Trial, ...]:
    """That stable failed all rows of a request while it bakes: as a canary's, but for a share that nobody was assigned
    by."""
    before = answering.wanted.before
    return () if before is None else (Trial(answering.version, before.salt, None, np.arange(n), None, "error"),)


def _taken(batch: Batch, trial: Trial) -> Columns:
    """The model's inputs of the rows on trial."""
    if len(trial.rows) == batch.n_rows:
        return batch.columns
    return {name: values[trial.rows] for name, values in batch.columns.items()}
