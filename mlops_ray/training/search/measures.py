"""What the search minimises or maximises on validation rows, with weights of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import SearchMetric, Task
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Labels, Scores, losses

MAXIMISED: frozenset[SearchMetric] = frozenset({"roc_auc", "pr_auc"})
QUANTILE = 0.5
"""Of the pinball loss."""


def metric_of(wanted: SearchMetric | None, task: Task) -> SearchMetric:
    """The metric of a search that may name none."""
    return wanted or ("rmse" if task == "regression" else "log_loss")


def loss(metric: SearchMetric, score: float) -> float:
    """The score as something to minimise; its own inverse."""
    return -score if metric in MAXIMISED else score


def best(metric: SearchMetric, scores: Iterable[float]) -> float:
    """The best of some scores."""
    return loss(metric, min(loss(metric, score) for score in scores))


def measure(metric: SearchMetric, task: Task, y: Labels, scores: Scores, weights: Floats | None = None) -> float:
    """The metric in its own unit; see `config.Metric` for multiclass averages.

    Args: y: labels (n,); scores: (n,), or (n, classes); weights: of rows, (n,), None for equal ones.
    Raises: DataError when it cannot be computed: scores that are no numbers, an AUC of one class.
    """
    if not np.isfinite(scores).all():
        raise DataError("search", "the estimator gave scores that are no finite numbers")
    if metric in MAXIMISED:
        return _area(metric, task, y, scores, weights)
    value = float(np.average(_per_row(metric, task, y, scores), weights=weights))
    return float(np.sqrt(value)) if metric == "rmse" else value


def _per_row(metric: SearchMetric, task: Task, y: Labels, scores: Scores) -> Floats:
    if metric == "log_loss":
        return losses(task, y, scores)
    if metric == "brier":
        gap = scores - (y if task == "binary" else np.eye(scores.shape[1])[y])
        squared: Floats = gap**2
        return squared if task == "binary" else squared.sum(axis=1)
    gap = y - scores
    if metric == "rmse":
        return np.asarray(gap**2)
    if metric == "mae":
        return np.abs(gap)
    return np.maximum(QUANTILE * gap, (QUANTILE - 1) * gap)


def _area(metric: SearchMetric, task: Task, y: Labels, scores: Scores, weights: Floats | None) -> float:
    from sklearn.metrics import average_precision_score, roc_auc_score

    area: Any = roc_auc_score if metric == "roc_auc" else average_precision_score
    columns: list[tuple[NDArray[np.bool_], Floats]] = (
        [(y == 1, scores)] if task == "binary" else [(y == i, scores[:, i]) for i in range(scores.shape[1])]
    )
    # A class without rows, or of all rows, has no area; the mean is over the others.
    found = [float(area(is_it, said, sample_weight=weights)) for is_it, said in columns if 0 < is_it.sum() < len(y)]
    if not found:
        raise DataError("search", f"{metric} needs two classes among the validation rows; split otherwise")
    return float(np.mean(found))
