"""The loop in virtual time: traffic of one block after the other, and after each what monitor, policy, training and
controller make of it.

State lives in a state database of the simulation's own, and what is decided is decided and written by the functions
that a live project uses: `monitoring.loop`, `retraining.deciding`, `rollout.canary`, `rollout.orders`. What takes
time in life and none here: training, starting replicas, people who approve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlops_ray import ledger
from mlops_ray.config import DAY_S, Project, RolloutPlan
from mlops_ray.errors import DataError, MlopsRayError
from mlops_ray.monitoring import apart
from mlops_ray.monitoring.loop import judged, pending
from mlops_ray.monitoring.sources import Sources, Yardstick
from mlops_ray.retraining import deciding, window
from mlops_ray.rollout import orders, steps, traffic
from mlops_ray.rollout.approval import Standing
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.serving import routing
from mlops_ray.simulation import captured, training, trial
from mlops_ray.simulation.history import History
from mlops_ray.simulation.training import Candidate
from mlops_ray.simulation.trial import Answers
from mlops_ray.state import RetrainRow, RolloutRow, Store, VersionRow
from mlops_ray.training.artifact.model import Model
from mlops_ray.training.search.book import best
from mlops_ray.training.search.measures import metric_of

Progress = Callable[[str, int, int], None]
Train = Callable[..., Candidate]
"""What `training.train` is."""

_AGREED = Standing(approved=True, rejected=False, missing=0)


class Loop:
    """One simulated project. `answers` and `store` hold all that happened."""

    def __init__(
        self,
        project: Project,
        history: History,
        store: Store,
        folder: Path,
        first: Candidate,
        *,
        start: float,
        train: Train = training.train,
    ) -> None:
        """Args: store: an empty state database. folder: where artifacts go. first: the version that serves at first.
        start: when traffic begins, seconds since the epoch; rows before it are the source's. train: for those who keep
        what was trained before.

        Raises: DataError when the gates refused the first version; ConfigError for what no simulation knows."""
        trial.demand_mode(project.rollout)
        if first.version is None:
            says = f"the gates refuse the first version: {'; '.join(first.result.reasons)}"
            raise DataError(project.project, says)
        self.project, self.history, self.store = project, history, store
        self._folder, self._start, self._train = folder, start, train
        self.models: dict[int, Model] = {first.version.version: first.model}
        self.candidates: dict[int, Candidate] = {first.version.version: first}
        self.answers = Answers(len(history.times))
        self._now = start
        self._sources = Sources(self._rows, self._yardstick, self._labels_since)
        self._decide = partial(deciding.on_window, make=self._decided)
        version = first.version
        store.run(lambda tx: tx.save_version(version))
        orders.first_version(store, project, now=start)

    def until(self, end: float, on_progress: Progress = lambda stage, done, total: None) -> None:
        """Live through [start, end), a block of the monitor at a time."""
        block_s = self.project.monitoring.block_s
        ticks, what = list(_ticks(self._start, end, block_s)), "days" if block_s == DAY_S else "blocks"
        for i, now in enumerate(ticks):
            on_progress(what, i, len(ticks))
            self._now = now
            self._answer(max(self._start, now - block_s), now)
            self._judge(now)
            self._consider(now)
            self._retrain()
            self._steer(now)
        on_progress(what, len(ticks), len(ticks))

    # traffic

    def _answer(self, since: float, until: float) -> None:
        rows = self.history.between(since, until)
        if rows.start == rows.stop:
            return
        with self.store.read() as tx:
            served = tx.serving(self.project.project)
        if served is None:
            return
        spec, columns, said = served.spec, self.history.inputs(rows), self.answers
        stable = spec["stable"]["version"]
        said.stable[rows] = stable
        said.stable_score[rows] = self.models[stable].score(columns)
        model = self.models[stable]
        self.store.run(lambda tx: captured.keep(tx, self.project, self.history, said, rows, model))
        version, share = spec.get("canary"), spec.get("share", 0.0)
        if version is None or share <= 0:
            return
        keys = self.history.keys[rows]
        theirs = np.flatnonzero(routing.to_canary(keys, spec["salt"], share))
        places = rows.start + theirs
        if len(theirs):
            scores = self.models[version].score({name: values[theirs] for name, values in columns.items()})
            said.canary[places], said.canary_score[places], said.share[places] = version, scores, share
            said.trial[places] = said.number_of(spec["salt"])

    # monitor and policy

    def _judge(self, now: float) -> None:
        for one in pending(self.store, self.project, now) or ():
            conclude = judged(self.store, self.project, self._sources, self._decide, one)
            if conclude is not None:
                self.store.run(conclude)
        while (due := apart.pending(self.store, self.project, now)) is not None:
            asked = apart.ask(self.store, self.project, self._sources, due)
            told = None if asked is None else asked.told()
            if asked is None or told is None:
                return
            self.store.run(partial(apart.conclude, project=self.project, decide=self._decide, asked=asked, told=told))

    def _rows(self, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
        return captured.rows(self.project, self.history, self.answers, start, end, known_by)

    def _yardstick(self, version: VersionRow) -> Yardstick:
        model = self.models[version.version]
        threshold = self.project.serving.threshold if model.threshold is None else model.threshold
        return Yardstick(model.reference, model.classes, threshold, model.score)

    def _labels_since(self, last: float) -> int:
        labelled = self.history.labelled[self.history.times >= self._start]
        return int(((labelled > last) & (labelled <= self._now)).sum())

    def _consider(self, now: float) -> None:
        triggers = self.project.retraining.triggers
        if not {"schedule", "new_rows"} & set(triggers):
            return
        with self.store.read() as tx:
            last = max((row.decided for row in tx.retrains(self.project.project)), default=0.0)
        n = self._sources.labels_since(last)
        self.store.run(lambda tx: deciding.on_time(tx, self.project, now, n, make=self._decided))

    def _decided(self, project: str, trigger: str, reason: str, at: float) -> RetrainRow:
        identity = f"{project}-{int(at)}"
        return RetrainRow(identity, project, trigger, reason, at, f"retrain-{identity}", "decided", {}, at)

    # training

    def _retrain(self) -> None:
        name = self.project.project
        with self.store.read() as tx:
            row, stable = tx.open_retrain(name), deciding.champion_of(tx, name)
        if row is None or stable is None:
            return
        try:
            candidate = self._trained(row, self.candidates[stable.version])
        except MlopsRayError as exc:
            why = str(exc)
            close = (row, "failed", {"error": why}, "retrain failed", why)
            self.store.run(lambda tx: deciding.close(tx, *close, machine_now=row.decided))
            return

        def conclude(tx: Any) -> None:
            if candidate.version is not None:
                tx.save_version(candidate.version)
            deciding.conclude(tx, self.project, row, candidate, machine_now=row.decided)

        if candidate.version is not None:
            self.models[candidate.version.version] = candidate.model
            self.candidates[candidate.version.version] = candidate
        self.store.run(conclude)

    def _trained(self, row: RetrainRow, champion: Candidate) -> Candidate:
        project, plan = self.project, self.project.retraining
        metric = metric_of(project.search.metric, project.task)
        return self._train(
            project,
            training_set(project, self.history, self._start, row.decided, row.outcome.get(deciding.BEGAN)),
            folder=self._folder,
            number=max(self.candidates) + 1,
            rival=champion.model,
            warm=best(metric, champion.trials, plan.warm_start),
            refit=plan.refit,
            now=row.decided,
        )

    # rollout

    def _steer(self, now: float) -> None:
        """Have the rollout go as far as it can at decision time `now`: replicas are ready at once."""
        name, looked = self.project.project, False
        while True:
            with self.store.read() as tx:
                row = tx.open_rollout(name)
            if row is None:
                break
            plan, before = orders.plan_of(row), CanaryState.from_dict(row.state)
            if before.phase is Phase.PROMOTING:
                self.store.run(partial(traffic.flip, rollout=row.id))
            at = None if looked else steps.look_at(plan, before, created=row.created, now=now)
            found = None if at is None else self._look(row, plan, at)
            after, why = steps.following(plan, before, steps.Known(_AGREED, found, _ready(row)), now=now)
            looked = looked or found is not None
            if after == before and found is None:
                break
            self._save(row, before, after, found, why, now)
        self.store.run(lambda tx: orders.save_wanted(tx, name, now=now))

    def _look(self, row: RolloutRow, plan: RolloutPlan, at: float) -> steps.Looked:
        models = self.models[row.stable], self.models[row.version]
        return steps.Looked(trial.look(self.project, row, plan, self.history, self.answers, models, at), at)

    def _save(
        self,
        row: RolloutRow,
        before: CanaryState,
        after: CanaryState,
        looked: steps.Looked | None,
        why: str,
        now: float,
    ) -> None:
        seen = None if looked is None else {"at": looked.at, "analysis": looked.analysis.to_dict()}

        def save(tx: Any) -> None:
            if after == before:
                orders.keep_look(tx, row, seen)
                return
            kind = steps.kind(orders.plan_of(row), after)
            evidence = {} if seen is None else {"analysis": seen["analysis"]}
            orders.transition(
                tx, row, after, kind=kind, who=orders.US, why=why, machine_now=now, evidence=evidence, look=seen
            )

        self.store.run(save)


def _ready(row: RolloutRow) -> steps.Replicas:
    """What replicas show that are ready at once."""
    return steps.Replicas(ready=(row.version,), answering=True)


def training_set(project: Project, history: History, start: float, decided: float, began: float | None) -> pa.Table:
    """What a retrain learns from: rows before `start` are the source's, with all labels; later ones were answered live.

    Raises: DataError when there are too few."""
    there = np.where(history.times < start, np.isfinite(history.labelled), history.labelled <= decided)
    table = history.table.filter(pa.array(there))
    names = [c.name for c in project.columns_in("serving")] + [project.target]
    specs = [project.column(name) for name in names]
    return window.choose(project, specs, table.select(names), decided, began=began).rows


def first_version(
    project: Project, history: History, folder: Path, *, start: float, train: Train = training.train
) -> Candidate:
    """The version that the project's `run` would make of the rows before `start`. Raises: as `training.train`."""
    table = history.table.filter(pa.array((history.times < start) & np.isfinite(history.labelled)))
    if not table.num_rows:
        raise DataError(project.project, "no labelled rows before the simulation begins; begin later")
    return train(project, table, folder=folder, number=1, rival=None, now=start)


def entries(loop: Loop) -> list[ledger.Entry]:
    """The simulation's ledger."""
    with loop.store.read() as tx:
        return list(ledger.entries(tx, loop.project.project))


def retrains(loop: Loop) -> Sequence[RetrainRow]:
    """Its decisions to retrain, oldest first."""
    with loop.store.read() as tx:
        return sorted(tx.retrains(loop.project.project), key=lambda row: row.decided)


def _ticks(start: float, end: float, every_s: float) -> Iterator[float]:
    at = (start // every_s + 1) * every_s
    while at <= end + 1e-6:
        yield at
        at += every_s
