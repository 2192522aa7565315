"""What a fit of the search's winner comes to: the pipeline, its answers, and what monitoring compares with.

The same for fits that ran on Ray and for those of a simulation in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.profile import Bins
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION
from mlops_ray.errors import DataError
from mlops_ray.training import packaging
from mlops_ray.training import rows as rows_of
from mlops_ray.training.artifact import engines
from mlops_ray.training.artifact.model import Model, Reference
from mlops_ray.training.gates.case import Case, Fitted
from mlops_ray.training.rows import Rows
from mlops_ray.training.search import decision
from mlops_ray.training.search.candidates import Crossed
from mlops_ray.training.search.trials import FoldData
from mlops_ray.training.target import Scores

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

FOLDS = 3
"""Cross-fitting of the scores of rows that train: each third is scored by a fit on the other two. Two would compare
with models of half the rows; five cost two more fits and change little."""
SHOWN_ROWS = 20_000
"""Rows before the holdout that the gates are shown, evenly spread: enough for a gap of 0.01 nats."""


@dataclass(frozen=True)
class Winner:
    """The pipeline fitted on all rows before the holdout, and its answers to the holdout, oldest first.

    threshold: chosen on scores of fits that did not see the row (None: the project's). reference: what monitoring
    compares with, profiled by these bins; the scores in it are of such fits as well, for those of the fit itself would
    be sharper than any it will give live, and every live window would look drifted.
    """

    pipeline: Pipeline
    answers: Scores
    threshold: float | None
    reference: Callable[[Bins], Reference]


def concluded(
    project: Project, rows: Rows, fitted: ColumnTransformer, made: FoldData, estimator: Any, crossed: Crossed
) -> Winner:
    """The winner that `estimator` is, calibrated where the project asks for it.

    Args: made: the rows before the holdout, which the estimator was fitted on; crossed: their scores by fits that did
        not see them. Calibration, threshold and reference use these."""
    plan, seen, scores = project.search, rows.of(TRAIN, VALIDATION), crossed.scores
    if plan.calibrate != "none" and crossed.raw is not None:
        method, known = plan.calibrate, estimator.classes_
        scores = decision.cross_calibrated(method, known, crossed, made.y, weights=made.weights)
        estimator = decision.calibrated(estimator, method, crossed.raw, made.y, weights=made.weights)
    threshold = None
    if plan.threshold is not None:
        threshold = decision.best_threshold(plan.threshold, made.y, scores, made.weights)
    pipeline, answers = completed(project, rows, fitted, estimator)
    every = np.empty((len(rows.y), *answers.shape[1:]))
    every[seen], every[rows.of(HOLDOUT)] = scores, answers
    return Winner(pipeline, answers, threshold, lambda edges: packaging.reference(project, edges, rows, every))


def completed(project: Project, rows: Rows, fitted: ColumnTransformer, estimator: Any) -> tuple[Pipeline, Scores]:
    """The pipeline of transform and estimator, both fitted, and its answers to the holdout of `rows`, oldest first."""
    from sklearn.pipeline import Pipeline

    pipeline = Pipeline([("features", fitted), ("model", estimator)])
    score = engines.sklearn_scorer(pipeline, project.features, project.task)
    return pipeline, score(rows.inputs(rows.of(HOLDOUT)))


def on_all_rows(project: Project, rows: Rows, every: Partial) -> FoldData:
    """What `retraining.refit` fits on: the holdout's rows too. Args: every: the feature statistics of all rows."""
    return rows.matrix(project, rows.y, np.arange(len(rows.y)), np.empty(0, dtype=np.int64), every)


def served(
    project: Project, rows: Rows, every: Partial, made: FoldData, estimator: Any, crossed: Crossed | None
) -> tuple[Pipeline, Scores]:
    """The pipeline that serves under `retraining.refit`, and its answers to the holdout, which it was fitted on.

    Args: made: all rows, which the estimator was fitted on; crossed: their scores by fits that did not see them, where
        the project calibrates. Threshold and reference stay those of the winner that was judged: its scores of the
        holdout are of rows that it never saw."""
    plan = project.search
    if plan.calibrate != "none" and crossed is not None and crossed.raw is not None:
        estimator = decision.calibrated(estimator, plan.calibrate, crossed.raw, made.y, weights=made.weights)
    return completed(project, rows, transformer(project.features, every), estimator)


def case_of(project: Project, rows: Rows, rival: Model | None, candidate: Model, threshold: float | None) -> Case:
    """What the gates are shown. Args: rival: the champion, as it was loaded; threshold: of the winner.

    Raises: DataError when the champion knows other classes."""
    holdout = rows.of(HOLDOUT)
    columns = rows.inputs(holdout)
    said = None
    if rival is not None:
        if rival.classes != rows.classes:
            raise DataError("target", f"the champion knows {rival.classes}, the rows {rows.classes}; deploy anew")
        said = rival.score(rows.columns_for(rival.features, holdout))
    shown = rows_of.even(rows.of(TRAIN, VALIDATION), SHOWN_ROWS)
    fitted = Fitted(rows.inputs(shown), rows.y[shown], candidate.score(rows.inputs(shown)), rows.times[shown])
    return Case(
        task=project.task,
        classes=rows.classes,
        features=project.features,
        columns=columns,
        y=rows.y[holdout],
        scores=candidate.score(columns),
        rival=said,
        times=rows.times[holdout],
        score=candidate.score,
        groups=rows.groups(holdout),
        fitted=fitted,
        threshold=project.serving.threshold if threshold is None else threshold,
        nullable=frozenset(column.name for column in project.columns if column.nullable),
        newest=project.split.by == "time",
    )
