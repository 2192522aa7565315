"""Training in this process: the project's own split, features, search, fit, package and gates, without Ray and MLflow.

The search hands out the same points as one on Ray (`search.study` depends on numbers and not on timing), the artifact
is packaged and loaded again, and the gates judge it. Left out is `gates.infrastructure`, which needs a replica.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data import splits
from mlops_ray.data.features import statistics
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, FoldCut
from mlops_ray.state import VersionRow
from mlops_ray.training import packaging, recipe
from mlops_ray.training import rows as rows_of
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.lock import distributions_of, environment_lock
from mlops_ray.training.artifact.model import Model
from mlops_ray.training.fitting import FOLDS, case_of, concluded, on_all_rows, served
from mlops_ray.training.gates import judgement
from mlops_ray.training.gates.verdict import GateResult, Verdict
from mlops_ray.training.rows import Rows
from mlops_ray.training.search import book, candidates, lane, measures
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.desk import Desk
from mlops_ray.training.search.stages import wants_single
from mlops_ray.training.search.study import Study
from mlops_ray.training.search.trials import FoldData, Job, TrialEnded

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_LANE = "simulation"


@dataclass(frozen=True)
class Candidate:
    """A trained version: `deciding.Judgeable` with the loaded model and the trials of its search."""

    run_id: str
    verdict: Verdict
    result: GateResult
    version: VersionRow | None
    metrics: dict[str, float]
    seconds: dict[str, float]
    model: Model
    choice: Choice
    trials: tuple[TrialEnded, ...]


def train(
    project: Project,
    table: pa.Table,
    *,
    folder: Path,
    number: int,
    rival: Model | None,
    warm: Sequence[Choice] = (),
    refit: bool = False,
    now: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Candidate:
    """Train on `table`, package under `folder`, judge against `rival`; `version` is set where the gates passed.

    Args: number: of the version that it becomes. refit: see `retraining.refit`. now: decision time. clock: machine
        seconds, for the search's budget.
    Raises: DataError, ConfigError as training does.
    """
    began = clock()
    run_id = f"simulated-{number}-{int(now)}"
    project = project.model_copy(update={"storage": project.storage.model_copy(update={"root": str(folder)})})
    rows = rows_of.of_table(project, table, rows_of.gate_columns(project), named="the simulated training set")
    cut = rows.search_cut(project)
    parts = tuple(range(cut.n)) if isinstance(cut, FoldCut) else (TRAIN, VALIDATION)
    sides, ends = splits.assign(cut, rows.table), {"target": project.target, "key": project.key}
    partials = {
        part: statistics.fold(project.features, rows.table.filter(pa.array(sides == part)), **ends) for part in parts
    }
    every = reduce(add, partials.values())
    trials = search(project, rows, rows.folds(project, cut, rows.y, partials), warm=warm, now=now, clock=clock)
    best = book.winner(measures.metric_of(project.search.metric, project.task), trials)
    seen = rows.of(TRAIN, VALIDATION)
    made = rows.matrix(project, rows.y, seen, np.empty(0, dtype=np.int64), every)
    weigh = candidates.class_weights(project.search.class_weight, rows.classes)
    choice = best.fitting
    estimator = candidates.fit(
        choice, made.matrix, made.y, seed=project.seed, weights=made.weights, task=project.task, class_weight=weigh
    )
    crossed = candidates.crossed(
        choice,
        made.matrix,
        made.y,
        n_folds=FOLDS,
        seed=project.seed,
        weights=made.weights,
        task=project.task,
        class_weight=weigh,
        n_classes=len(rows.classes) or None,
    )
    winner = concluded(project, rows, transformer(project.features, every), made, estimator, crossed)
    reference = winner.reference(packaging.bins_for(project, every, rival))
    packed = partial(
        packaging.package,
        project,
        holdout=rows.inputs(rows.of(HOLDOUT)),
        run_id=run_id,
        classes=rows.classes,
        reference=packaging.calibrated(project, reference, rows, winner.answers),
        lock=environment_lock(distributions_of(winner.pipeline)),
        threshold=winner.threshold,
        recipe={"project": recipe.shaping(project), "simulated": now},
    )
    artifact, sha256 = packed(winner.pipeline)
    loaded = model.load(artifact, sha256, trusted=project.features.trusted_types)
    case = case_of(project, rows, rival, loaded, winner.threshold)
    result = judgement.judge(project.gates, case, rng=np.random.default_rng(project.seed))
    version = None
    if result.verdict is Verdict.PASS and refit:
        held_back = statistics.fold(project.features, rows.table.filter(pa.array(rows.sides == HOLDOUT)), **ends)
        artifact, sha256 = packed(_refitted(project, rows, every + held_back, choice))
        loaded = model.load(artifact, sha256, trusted=project.features.trusted_types)
    if result.verdict is Verdict.PASS:
        version = VersionRow(project.project, number, run_id, artifact, sha256, "", VersionRow.REGISTERED, now, {})
    metrics: dict[str, float] = {name: estimate.value for name, estimate in result.metrics.items()}
    seconds = {"train": clock() - began}
    return Candidate(run_id, result.verdict, result, version, metrics, seconds, loaded, choice, trials)


def _refitted(project: Project, rows: Rows, every: Partial, choice: Choice) -> Pipeline:
    """The choice fitted on all rows, the holdout's too. Args: every: the feature statistics of all rows."""
    made, plan = on_all_rows(project, rows, every), project.search
    given: dict[str, Any] = {
        "seed": project.seed,
        "weights": made.weights,
        "task": project.task,
        "class_weight": candidates.class_weights(plan.class_weight, rows.classes),
    }
    estimator, crossed = candidates.fit(choice, made.matrix, made.y, **given), None
    if plan.calibrate != "none":
        n_classes = len(rows.classes) or None
        crossed = candidates.crossed(choice, made.matrix, made.y, n_folds=FOLDS, n_classes=n_classes, **given)
    return served(project, rows, every, made, estimator, crossed)[0]


def search(
    project: Project,
    rows: Rows,
    folds: Sequence[FoldData],
    *,
    warm: Sequence[Choice],
    now: float,
    clock: Callable[[], float],
) -> tuple[TrialEnded, ...]:
    """The trials of the project's search, one after the other, however long they take: no result depends on that."""
    import optuna  # here, as in `study`

    plan, task = project.search, project.task
    listed, metric = candidates.resolved(plan.candidates, task), measures.metric_of(plan.metric, task)
    job = Job(
        task=task,
        metric=metric,
        seed=project.seed,
        n_classes=None,
        class_weight=candidates.class_weights(plan.class_weight, rows.classes),
        early_stopping=plan.early_stopping,
    )
    if any(wants_single(one.path) for one in listed):
        folds = [replace(fold, single=fold.matrix.astype("float32")) for fold in folds]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = Study(plan, listed, metric, seed=project.seed, warm=warm)
    desk, ended = Desk(plan, study, (), deadline=math.inf), list[TrialEnded]()
    while order := desk.take(_LANE, clock()):
        ended.append(lane.ended(order, folds, job, clock=lambda: now))
        desk.end(_LANE, ended[-1])
    return tuple(ended)
