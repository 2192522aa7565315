"""Which features a row's score hangs on: by occlusion.

A feature's contribution is the row's score minus the score of the same row with that feature replaced by an ordinary
value: the median of the version's training rows, the most frequent category, the middle of the training time. One call
to the model scores every row with every feature replaced in turn.

What it is not: contributions do not add up to the score, and of two features that say the same each may show none,
since the other still speaks. It says what the model does with this row, nothing about what causes what.
Source: Zeiler and Fergus 2014, section 4.2 (occlusion); Robnik-Sikonja and Kononenko 2008, where one value is left out
at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns, Profile
from mlops_ray.errors import BadRequest
from mlops_ray.training.artifact.model import Reference

Contributions = tuple[tuple[tuple[str, float], ...], ...]

# Rows with a replaced feature that one request may have scored: half a second of a 100-tree graph.
MOST_VARIATIONS = 200_000


def baseline(reference: Reference, kinds: Mapping[str, str]) -> dict[str, Any]:
    """An ordinary row: per input its median (numbers), its most frequent category (strings), its median time.

    Args: kinds: `number`, `string` or `time` of each input.
    An input that the reference did not count, or that never had a value, is missing in the ordinary row too.
    """
    total = reference.total
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        if kind == "time":
            found[name] = _median_time(reference)
        elif kind == "string":
            found[name] = _mode(total, name, reference.bins.categorical.get(name, ()))
        else:
            found[name] = _median(total, name, reference.bins.numeric.get(name, ()))
    return found


def demand_few(n_rows: int, n_features: int) -> None:
    """Raises: BadRequest (422) when explaining so many rows would hold up everybody else."""
    if n_rows * n_features > MOST_VARIATIONS:
        most = MOST_VARIATIONS // n_features
        detail = f"{n_rows} rows of {n_features} features are too many to explain; send at most {most}"
        raise BadRequest(422, "too many rows to explain", detail, {"expected": most, "received": n_rows})


def variations(columns: Columns, ordinary: Mapping[str, Any]) -> Columns:
    """What is to be scored: the n rows k times, the i-th time with the i-th feature replaced; shape (k * n,) each.

    Args: ordinary: see `baseline`; the k features that it names are replaced.
    """
    n, k = len(next(iter(columns.values()))), len(ordinary)
    varied = {name: np.tile(values, k) for name, values in columns.items()}
    for i, (name, value) in enumerate(ordinary.items()):
        varied[name][i * n : (i + 1) * n] = value
    return varied


def contributions(
    names: Sequence[str], scores: NDArray[np.float64], varied: NDArray[np.float64], *, task: Task, top: int
) -> Contributions:
    """The `top` features of each row with the largest absolute contribution, largest first; those of none left out.

    Args: names: the features, as `ordinary` has them. scores: of the rows, in the task's shape for n. varied: of their
        `variations`, in the task's shape for k * n.
    In units of the score: probability of label 1, of the row's winning class, or the prediction's own unit.
    """
    n, k = len(scores), len(names)
    if task == "multiclass":
        winners = np.argmax(scores, axis=1)
        scores = scores[np.arange(n), winners]
        varied = varied[np.arange(n * k), np.tile(winners, k)]
    gaps = scores - varied.reshape(k, n)
    order = np.argsort(-np.abs(gaps), axis=0, kind="stable")[:top]
    return tuple(_told(names, order[:, row], gaps[:, row]) for row in range(n))


def _told(names: Sequence[str], order: NDArray[np.int64], gaps: NDArray[np.float64]) -> tuple[tuple[str, float], ...]:
    return tuple((names[i], float(gaps[i])) for i in order if gaps[i] != 0.0)


def _median(total: Profile, name: str, edges: Sequence[float]) -> float:
    """The median by linear interpolation within its bin; NaN where no value was counted."""
    if name not in total.counts:
        return float("nan")
    counts = total.counts[name][:-1].astype(np.float64)
    if not counts.sum():
        return float("nan")
    low, high = total.ranges.get(name, (-np.inf, np.inf))
    marks = np.array([low, *edges, high])
    reached = np.cumsum(counts)
    at = int(np.searchsorted(reached, reached[-1] / 2))
    left, right = max(marks[at], low), min(marks[at + 1], high)
    if not np.isfinite(left) or not np.isfinite(right):  # an outermost bin whose extreme nobody saw
        return float(left if np.isfinite(left) else right)
    share = (reached[-1] / 2 - (reached[at] - counts[at])) / counts[at]
    return float(left + share * (right - left))


def _mode(total: Profile, name: str, categories: Sequence[str]) -> str:
    """The most frequent of the known categories, or "" (missing) where that is more frequent still."""
    if name not in total.counts:
        return ""
    counts = total.counts[name]
    known, missing = counts[: len(categories)], counts[-1]
    if not len(known) or known.max() < missing:
        return ""
    return categories[int(np.argmax(known))]


def _median_time(reference: Reference) -> float:
    """The middle of the block of time that holds the middle row; NaN without rows."""
    rows = np.array([profile.n for _, profile in reference.blocks])
    if not rows.sum():
        return float("nan")
    at = int(np.searchsorted(np.cumsum(rows), rows.sum() / 2))
    return reference.blocks[at][0] + reference.block_s / 2
