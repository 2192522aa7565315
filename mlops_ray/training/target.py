"""What is predicted, for each task, and what a mistake costs.

| task | labels `y`, shape (n,) | scores | loss per row |
|---|---|---|---|
| binary | int64, 0 or 1 | P(1), shape (n,) | log-loss, nats |
| multiclass | int64, place of the class | P(class), shape (n, classes) | log-loss, nats |
| regression | float64 | the prediction, shape (n,) | squared error |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mlops_ray.config import Task
from mlops_ray.errors import DataError

Labels = NDArray[Any]
Scores = NDArray[np.float64]
Classes = tuple[str | int, ...]
"""Of a multiclass task, sorted: the order of the scores' columns. Binary (0, 1), regression ()."""

CLIP = 1e-6
"""Scores are clipped to [CLIP, 1 - CLIP] before the log: a float32 graph answers exactly 1 where float64 does not."""
_SUM = 1e-3  # single precision sums of a few hundred probabilities
MAX_CLASSES = 1000


def classes(task: Task, values: pa.ChunkedArray) -> Classes:
    """The classes among `values`, the target's column.

    Raises: DataError for nulls, for fewer than two classes, or more than `MAX_CLASSES` (a number is no class)."""
    if task == "regression":
        return ()
    if task == "binary":
        return (0, 1)
    if values.null_count:
        raise DataError("target", f"{values.null_count} rows have none; run prepare again")
    found = sorted(values.unique().to_pylist())
    if len(found) < 2:
        raise DataError("target", f"all rows are of class {found[0]!r}; a multiclass task needs two or more")
    if len(found) > MAX_CLASSES:
        raise DataError("target", f"has {len(found)} classes; at most {MAX_CLASSES} are supported, or use regression")
    return tuple(found)


def encode(task: Task, known: Classes, values: pa.ChunkedArray) -> Labels:
    """The labels of a target's column, shape (n,).

    Raises: DataError for nulls and NaN, a binary label that is not 0 or 1, a class that is not among `known`, an
    infinite number."""
    if values.null_count:
        raise DataError("target", f"{values.null_count} rows have none; run prepare again")
    if task == "multiclass":
        cells = np.array(values.to_pylist(), dtype=object)
        place = {label: i for i, label in enumerate(known)}
        labels = np.array([place.get(cell, -1) for cell in cells], dtype=np.int64)
        if (labels < 0).any():
            row = int(np.argmax(labels < 0))
            raise DataError("target", f"row {row} is of class {cells[row]!r}, which is not among {list(known)[:20]}")
        return labels
    numbers: Labels = values.cast(pa.float64()).to_numpy()
    wrong = ~np.isfinite(numbers) if task == "regression" else (numbers != 0) & (numbers != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = "a finite number" if task == "regression" else "0 or 1"
        raise DataError(
            "target", f"labels must be {what}; row {row} has {numbers[row]:g} ({int(wrong.sum())} such rows)"
        )
    return numbers.astype(np.int64) if task == "binary" else numbers.astype(np.float64)


def learnable(task: Task, y: Labels, *, side: str) -> None:
    """Refuse labels that nothing can be learnt from: one class only, a constant target.

    Raises: DataError naming `side` (train, validation, holdout)."""
    if len(y) == 0:
        raise DataError("target", f"the {side} side has no rows")
    if (y == y[0]).all():
        what = "one value" if task == "regression" else "one class"
        raise DataError("target", f"all {len(y)} rows of the {side} side have {what}, {y[0]:g}; give more varied rows")


def checked(task: Task, y: ArrayLike, scores: ArrayLike) -> tuple[Labels, Scores]:
    """Labels and scores in their task's types and shapes.

    Raises: DataError when they are not equally long, are empty, or hold what is no label, probability or number."""
    labels, found = np.asarray(y), np.asarray(scores, dtype=np.float64)
    flat = found.ndim == (2 if task == "multiclass" else 1)
    if labels.ndim != 1 or not flat or len(labels) != len(found) or len(labels) == 0:
        raise DataError("evaluation", f"labels {labels.shape} and scores {found.shape} must be equally long, not empty")
    if task == "regression":
        labels = labels.astype(np.float64)
        _refuse("labels must be finite", labels, ~np.isfinite(labels))
        _refuse("predictions must be finite", found, ~np.isfinite(found))
        return labels, found
    width = 2 if task == "binary" else found.shape[1]
    real = labels.astype(np.float64)
    says = "labels must be 0 or 1" if width == 2 else f"labels must be whole numbers from 0 to {width - 1}"
    _refuse(says, real, ~(np.isfinite(real) & (real >= 0) & (real < width) & (real == np.floor(real))))
    outside = ~((found >= 0) & (found <= 1))
    _refuse("scores must be in [0, 1]", found, outside)
    if task == "multiclass":
        sums = found.sum(axis=1)
        _refuse("scores of a row must add up to 1", sums, ~(np.abs(sums - 1) <= _SUM))
    return labels.astype(np.int64), found


def _refuse(rule: str, values: NDArray[np.float64], wrong: NDArray[np.bool_]) -> None:
    rows = np.flatnonzero(wrong if wrong.ndim == 1 else wrong.any(axis=1))
    if len(rows):
        bad = values[rows[0]] if values.ndim == 1 else values[rows[0]][wrong[rows[0]]][0]
        raise DataError("evaluation", f"{rule}; row {rows[0]} has {bad:g} ({len(rows)} such rows)")


def losses(task: Task, y: ArrayLike, scores: ArrayLike) -> Scores:
    """Loss per row, shape (n,): log-loss in nats (scores clipped by `CLIP`), or the squared error."""
    labels, found = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if task == "regression":
        return np.asarray((labels - found) ** 2, dtype=np.float64)
    said = np.where(labels == 1, found, 1 - found) if task == "binary" else found[np.arange(len(found)), labels]
    return np.asarray(-np.log(np.clip(said, CLIP, 1 - CLIP)), dtype=np.float64)


def counted(task: Task, scores: Scores) -> Scores | None:
    """The probabilities that a profile counts, shape (n,): of 1 (binary), of the likeliest class (multiclass); a
    regression has none."""
    if task == "regression":
        return None
    return scores if task == "binary" else np.asarray(scores.max(axis=-1), dtype=np.float64)


def constant(task: Task, y: Labels, n_classes: int) -> Scores:
    """The best answer that looks at no feature, for every row: the base rates, or the mean."""
    if task == "multiclass":
        return np.tile(np.bincount(y, minlength=n_classes) / len(y), (len(y), 1))
    return np.full(len(y), float(np.mean(y)))
