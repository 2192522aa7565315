"""Features and final fit on Ray: what `train` and `reproduce` do alike.

The matrix of features lies in the object store once; fits read it without copying.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from mlops_ray.config import Project
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.splits import TRAIN, VALIDATION, FoldCut
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.rows import Rows
from mlops_ray.training.search import candidates, decision
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.trials import FoldData
from mlops_ray.training.target import Labels, Scores

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

FOLDS = 3
"""Cross-fitting of the scores of rows that train: each third is scored by a fit on the other two. Two would compare
with models of half the rows; five cost two more fits and change little."""


@dataclass(frozen=True)
class Prepared:
    """The search's matrices, one per fold; and of all rows before the holdout the statistics and the transform."""

    folds: list[FoldData]
    every: Partial
    fitted: ColumnTransformer


@dataclass(frozen=True)
class Winner:
    """The pipeline fitted on all rows before the holdout; for each of those rows, oldest first, the score of a fit that
    did not see it; and the decision threshold chosen on these scores (None: the project's)."""

    pipeline: Pipeline
    scores: Scores
    threshold: float | None


def features(project: Project, dataset: DatasetVersion, rows: Rows, y: Labels) -> Prepared:
    """Fit the features: one pass over the shards, whatever the number of folds. Raises: DataError."""
    cut = rows.search_cut(project)
    parts = tuple(range(cut.n)) if isinstance(cut, FoldCut) else (TRAIN, VALIDATION)
    partials = dict(zip(parts, fit_features(project, dataset, cut, parts), strict=True))
    every = reduce(add, partials.values())
    return Prepared(rows.folds(project, cut, y, partials), every, transformer(project.features, every))


def refit(project: Project, rows: Rows, y: Labels, prepared: Prepared, choice: Choice) -> Winner:
    """The winner of the search on all rows before the holdout, calibrated where the project asks for it.

    Scores of the fit itself would be sharper than any it will give live, and every live window would look drifted: so
    calibration, threshold and reference use scores of folds that did not see the row.
    Two tasks, the fit and the folds: each further one is a worker that imports scikit-learn for more than a second.
    """
    from sklearn.pipeline import Pipeline

    plan, seen = project.search, rows.of(TRAIN, VALIDATION)
    made = rows.matrix(project, y, seen, np.empty(0, dtype=np.int64), prepared.every)
    data = {"matrix": ray.put(made.matrix), "y": ray.put(made.y), "weights": ray.put(made.weights)}
    given = {
        "seed": project.seed,
        "task": project.task,
        "class_weight": candidates.class_weights(plan.class_weight, rows.classes),
    }
    task: Any = ray.remote(num_cpus=1, max_retries=2)
    whole = task(_fit).remote(choice, given, **data)
    folds = task(_crossed).remote(choice, given | {"n_folds": FOLDS, "n_classes": len(rows.classes)}, **data)
    estimator, crossed = ray.get([whole, folds])
    scores = crossed.scores
    if plan.calibrate != "none":
        method, known = plan.calibrate, estimator.classes_
        scores = decision.cross_calibrated(method, known, crossed, made.y, weights=made.weights)
        estimator = decision.calibrated(estimator, method, crossed.raw, made.y, weights=made.weights)
    threshold = None
    if plan.threshold is not None:
        threshold = decision.best_threshold(plan.threshold, made.y, scores, made.weights)
    return Winner(Pipeline([("features", prepared.fitted), ("model", estimator)]), scores, threshold)


def _fit(choice: Choice, given: dict[str, Any], *, matrix: Floats, y: Labels, weights: Floats | None) -> Any:
    return candidates.fit(choice, matrix, y, weights=weights, **given)


def _crossed(choice: Choice, given: dict[str, Any], *, matrix: Floats, y: Labels, weights: Floats | None) -> Any:
    return candidates.crossed(choice, matrix, y, weights=weights, **given)
