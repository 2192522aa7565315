"""Validation metrics of rows that no single process holds: each shard adds up its own, sums add, the metric follows.

What is a mean over rows (log-loss, Brier, squared and absolute errors) is exact up to rounding. Areas under curves come
from counts of float32 scores by their upper bits: scores that agree in them count as tied, which are those within one
part in 512 of each other (fewer bits where there are many classes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import SearchMetric, Task
from mlops_ray.training.search.measures import MAXIMISED
from mlops_ray.training.target import Labels, Scores, losses

Sums = NDArray[np.float64]

_ONE = int(np.float32(1.0).view(np.uint32))
"""The bits of 1.0: floats of one sign are in the order of their bits (IEEE 754), so no probability's exceed them."""
_FINE, _COARSE, _FEW = 14, 17, 8
"""Bits that are dropped: 65,025 bins for up to `_FEW` curves, 8,129 each for more, so that a sum stays in megabytes."""


def sums(
    metric: SearchMetric, task: Task, n_classes: int, y: Labels, scores: Scores, weights: NDArray[np.floating] | None
) -> Sums:
    """What these rows add to `metric`: the same shape for any rows, none included.

    Args: y: labels (n,); scores: (n,) or (n, n_classes), see `target`; weights: (n,), or None for 1 each.
    """
    weight = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    if metric in MAXIMISED:
        return _histograms(n_classes, y, scores, weight)
    return np.array([float(np.dot(weight, _errors(metric, task, y, scores))), float(weight.sum())])


def value(metric: SearchMetric, added: Sums) -> float:
    """The metric that the `added` sums of all shards make; NaN where they hold no rows, or one class only.

    Multiclass curves are one-vs-rest, averaged over the classes that have rows on both sides."""
    if metric in MAXIMISED:
        area = _roc_auc if metric == "roc_auc" else _average_precision
        known = [area(one) for one in _curves(added) if one.sum(axis=1).all()]
        return float(np.mean(known)) if known else float("nan")
    total, weight = added.tolist()
    mean = total / weight if weight > 0 else float("nan")
    return float(np.sqrt(mean)) if metric == "rmse" else mean


def _errors(metric: SearchMetric, task: Task, y: Labels, scores: Scores) -> Scores:
    if metric == "log_loss":
        return losses(task, y, scores)
    if metric == "brier" and task == "multiclass":
        hot = np.zeros(scores.shape)
        hot[np.arange(len(y)), y] = 1.0
        return np.asarray(((scores - hot) ** 2).sum(axis=1))
    gap = np.asarray(y, dtype=np.float64) - scores
    if metric in ("brier", "rmse"):
        return np.asarray(gap**2)
    return np.abs(gap) / (2.0 if metric == "pinball" else 1.0)


def _dropped(n_curves: int) -> int:
    return _FINE if n_curves <= _FEW else _COARSE


def _histograms(n_classes: int, y: Labels, scores: Scores, weight: NDArray[np.float64]) -> Sums:
    """Weights by class membership and score, flattened from shape (curves, 2, bins)."""
    listed = scores[:, None] if scores.ndim == 1 else scores
    n_curves = 1 if n_classes <= 2 else n_classes
    dropped = _dropped(n_curves)
    width = (_ONE >> dropped) + 1
    made = np.empty((n_curves, 2, width))
    for k in range(n_curves):
        place = np.clip(listed[:, k], 0.0, 1.0).astype(np.float32).view(np.uint32) >> dropped
        inside = y == (1 if n_curves == 1 else k)
        for side in (0, 1):
            rows = inside == bool(side)
            made[k, side] = np.bincount(place[rows], weights=weight[rows], minlength=width)
    return made.ravel()


def _curves(added: Sums) -> NDArray[np.float64]:
    for dropped in (_FINE, _COARSE):
        width = (_ONE >> dropped) + 1
        if added.size % (2 * width) == 0:
            return added.reshape(-1, 2, width)
    raise ValueError(f"{added.size} sums are of no curve")


def _roc_auc(one: NDArray[np.float64]) -> float:
    """Share of pairs in order, ties counted half (Mann and Whitney 1947)."""
    negatives, positives = one
    below = np.cumsum(negatives) - negatives
    return float(np.dot(positives, below + negatives / 2) / (positives.sum() * negatives.sum()))


def _average_precision(one: NDArray[np.float64]) -> float:
    """Sum of precision times the step in recall, as scikit-learn's `average_precision_score`."""
    negatives, positives = one[:, ::-1]
    hits, all_rows = np.cumsum(positives), np.cumsum(positives + negatives)
    filled = positives > 0
    return float(np.dot(positives[filled], hits[filled] / all_rows[filled]) / hits[-1])
