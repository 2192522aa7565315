"""What a version's answer must be like before anybody is told it, and before it stands in the log."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task

# Of a row's sum of class probabilities from 1: float32 sums of a few hundred classes stay far below.
_SUM_TOLERANCE = 1e-3


def sound(scores: Any, task: Task, n: int, n_classes: int) -> bool:
    """Whether `scores` are an answer to `n` rows: the task's shape, finite, and probabilities where they must be.

    Anything else would stop the collector later, or be told to a client as if it meant something.
    """
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f":
        return False
    if scores.shape != ((n, n_classes) if task == "multiclass" else (n,)):
        return False
    if n == 0:
        return True
    if task == "regression":
        return bool(np.isfinite(scores).all())
    if n == 1 and task == "binary":
        return bool(0.0 <= scores.item() <= 1.0)  # NaN compares to nothing
    if not (scores.min() >= 0.0 and scores.max() <= 1.0):  # NaN is what min and max of it are
        return False
    return task == "binary" or bool((np.abs(scores.sum(axis=1) - 1.0) <= _SUM_TOLERANCE).all())


def aligned(scores: NDArray[np.float64], theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> NDArray[np.float64] | None:
    """Another version's scores with their columns in our order of classes; None when it knows other classes.

    >>> aligned(np.array([[0.1, 0.9]]), ("b", "a"), ("a", "b"))
    array([[0.9, 0.1]])
    """
    if scores.ndim == 1 or theirs == ours:
        return scores
    if set(theirs) != set(ours):
        return None
    return scores[:, [theirs.index(name) for name in ours]]
