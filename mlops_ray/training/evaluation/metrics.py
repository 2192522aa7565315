"""The field's metrics for each task, with intervals that respect blocks of rows (`intervals.Blocks`).

Nearly every metric here is a function of sums per block: a resample is a row of block weights, and all resamples are
one matrix product. ROC AUC is a function of sums per *pair* of blocks, the pairs that the scores order rightly. Average
precision and the median absolute error depend on the order of all rows; they get by with cumulated sums per block at
the places where they can change. The first row of weights is all ones, so value and resamples come from the same lines.

| metric | definition |
|---|---|
| `log_loss` | mean loss per row in nats, scores clipped by `target.CLIP` |
| `brier` | mean squared error of P(1); multiclass: summed over classes |
| `calibration_error` | mean distance of what was said and what happened, per bin, weighted by rows (see below) |
| `roc_auc`, `pr_auc` | multiclass: one against the rest, averaged over the classes that occur |
| `balanced_accuracy` | mean recall of the classes that occur |
| `precision`, `recall`, `f1` | of class 1, or averaged over the classes that occur or are decided for; 0/0 counts 0 |
| `r2` | 1 - squared error over that of the rows' own mean |

Bins of the calibration error are ten of equal size over P(1), or over the probability of the class that is decided for.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_ray.config import Metric, Task
from mlops_ray.training import target
from mlops_ray.training.evaluation.curves import CalibrationBin as CalibrationBin
from mlops_ray.training.evaluation.curves import calibration as calibration
from mlops_ray.training.evaluation.curves import confidence, equal_bins
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats, bundled, interval, resample
from mlops_ray.training.target import Labels, Scores

N_BINS = 10
"""Of the calibration error, as the project file promises."""
_ORDER_CELLS = 20_000_000
"""Thresholds times resamples of average precision, some 0.5 s."""
_MIN_DRAWS = 200
_CHUNK = 512
"""Thresholds at a time: with 2,000 resamples 8 MB per array, which stay in the cache."""

Drawn = dict[Metric, Floats]
"""Per metric its values, shape (1 + resamples,): first that of the rows themselves. NaN where undefined."""


def evaluate(
    task: Task,
    y: ArrayLike,
    scores: ArrayLike,
    grouped: Blocks,
    *,
    threshold: float = 0.5,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
) -> dict[Metric, Estimate]:
    """All metrics of the task, each with a two-sided 1 - 2 * `alpha` interval (either end is a one-sided 1 - alpha
    bound).

    Undefined is NaN and no error: `roc_auc`, `pr_auc` and `balanced_accuracy` where fewer than two classes occur,
    `recall` without a positive row, `precision` and `f1` where nothing is or is called positive, `r2` of a constant
    target. Resamples where a metric is undefined are left out.

    `pr_auc` takes fewer resamples on many rows (from 10,000 positives on; at least 200), which roughens its interval
    and moves nothing. Noise within bins makes `calibration_error` too large, and that of a resample twice so. Its lower
    bound is therefore value - q, where q bounds the sum of the bins' noise: by the triangle inequality it holds for a
    perfectly calibrated model as for a bad one. Its upper bound is the plain percentile, and cautious.

    Args: y: labels (n,); scores (n,), multiclass (n, classes); grouped: blocks of the n rows; threshold: from which on
        P(1) is decided as 1, binary only.
    Raises: DataError when shapes differ, or labels or scores are none (`target.checked`).
    """
    labels, found = target.checked(task, y, scores)
    few = bundled(grouped, rng)
    weights = np.vstack([np.ones(len(few)), resample(len(few), resamples, rng)])
    if task == "regression":
        drawn = _errors(labels, found, few, weights)
    else:
        drawn = _probabilities(task, labels, found, few, weights) | _decisions(
            task, labels, found, threshold, few, weights
        )
    n, n_blocks = len(labels), len(grouped)
    found_of: dict[Metric, Estimate] = {
        name: interval(float(v[0]), v[1:], n=n, n_blocks=n_blocks, alpha=alpha) for name, v in drawn.items()
    }
    if task != "regression":
        errors, noise = _calibration_error(*confidence(task, labels, found), few, weights)
        value = float(errors[0])
        above, below = (
            interval(value, v, n=n, n_blocks=n_blocks, alpha=alpha) for v in (errors[1:], value - noise[1:])
        )
        low = float(np.maximum(below.low, 0.0))
        found_of["calibration_error"] = Estimate(value, low, float(np.maximum(above.high, value)), n, n_blocks)
    return {name: found_of[name] for name in get_args(Metric) if name in found_of}


def unit(task: Task, y: ArrayLike) -> float:
    """What losses are divided by to be in the unit of `gates.margin`: for regression the variance of the holdout's
    target `y`, so that 0.01 is a point of R² (1 for a constant one); else 1, for they are nats already."""
    if task != "regression" or _constant(np.asarray(y)):
        return 1.0
    return float(np.var(np.asarray(y, dtype=np.float64)))


def _constant(y: Labels) -> bool:
    return bool((y == y[:1]).all())


def row_losses(task: Task, y: ArrayLike, scores: ArrayLike, scale: float) -> Floats:
    """Loss per row, shape (n,), in the unit of `gates.margin`; `scale` is the holdout's `unit`."""
    return np.asarray(target.losses(task, y, scores) / scale, dtype=np.float64)


# --- functions of sums per block -----------------------------------------------------------------------------------


def _share(above: Floats, below: Floats) -> Floats:
    """`above` / `below`, NaN for 0/0."""
    quotient: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)
    return quotient


def _mean(values: Floats, few: Blocks, weights: Floats) -> Floats:
    return _share(weights @ few.sums(values), weights @ few.sums(np.ones(len(values))))


def _errors(y: Labels, found: Scores, few: Blocks, weights: Floats) -> Drawn:
    error = y - found
    centred = y - y.mean()  # so that the sum of squares does not cancel
    squared = _mean(error**2, few, weights)
    spread = _mean(centred**2, few, weights) - _mean(centred, few, weights) ** 2
    # What is left of a constant is rounding; so is the spread of a resample whose blocks all hold one value.
    spread[spread <= 1e-12 * np.mean(centred**2)] = 0.0
    if _constant(y):
        spread[:] = 0.0
    absolute = _mean(np.abs(error), few, weights)
    return {
        "mae": absolute,
        "rmse": np.sqrt(squared),
        "r2": 1 - _share(squared, spread),
        "median_absolute_error": _median(np.abs(error), few, weights),
        "pinball": absolute / 2,
    }


def _probabilities(task: Task, y: Labels, found: Scores, few: Blocks, weights: Floats) -> Drawn:
    one = found if task == "multiclass" else np.column_stack([1 - found, found])
    squares = ((one - (y[:, None] == np.arange(one.shape[1]))) ** 2).sum(axis=1)
    sides = [(y == k, one[:, k]) for k in (np.unique(y) if task == "multiclass" else (1,))]
    thresholds = sum(len(np.unique(s[hit])) for hit, s in sides)
    draws = 1 + max(_MIN_DRAWS, _ORDER_CELLS // max(thresholds, 1))
    aucs, precisions = zip(*(_ranking(hit, s, few, weights, draws) for hit, s in sides), strict=True)
    return {
        "log_loss": _mean(target.losses(task, y, found), few, weights),
        "brier": _mean(squares if task == "multiclass" else squares / 2, few, weights),
        "roc_auc": _mean_known(np.column_stack(aucs)),
        "pr_auc": _mean_known(np.column_stack(precisions)),
    }


def _calibration_error(said: Floats, happened: Floats, few: Blocks, weights: Floats) -> tuple[Floats, Floats]:
    """The error of each resample, and its noise: the distances of the bins' gaps from those of all rows, added up.

    Bins stay those of all rows in every resample."""
    bins = equal_bins(said, N_BINS)
    cells = np.bincount(few.index * N_BINS + bins, weights=said - happened, minlength=len(few) * N_BINS)
    gaps = (weights @ cells.reshape(len(few), N_BINS)) / (weights @ few.sums(np.ones(len(said))))[:, None]
    return np.abs(gaps).sum(axis=1), np.abs(gaps - gaps[0]).sum(axis=1)


def _decisions(task: Task, y: Labels, found: Scores, threshold: float, few: Blocks, weights: Floats) -> Drawn:
    """From the confusion matrix, of which rows, columns and diagonal are enough."""
    decided = np.argmax(found, axis=1) if task == "multiclass" else (found >= threshold).astype(np.int64)
    k = found.shape[1] if task == "multiclass" else 2

    def per_class(labels: Labels, rows: NDArray[np.bool_]) -> Floats:
        cells = np.bincount(few.index[rows] * k + labels[rows], minlength=len(few) * k)
        counted: Floats = weights @ cells.reshape(len(few), k).astype(np.float64)
        return counted

    every = np.ones(len(y), dtype=bool)
    right, true, said = per_class(y, y == decided), per_class(y, every), per_class(decided, every)
    several = (true > 0).sum(axis=1) > 1
    recall_of_each = _share(right, true)
    shown = true + said
    ratios: dict[Metric, Floats] = {"precision": said, "recall": true, "f1": shown / 2}
    result: Drawn = {
        "accuracy": _share(right.sum(axis=1), true.sum(axis=1)),
        "balanced_accuracy": np.where(several, _mean_known(recall_of_each), np.nan),
    }
    for name, below in ratios.items():
        # A class that is never decided for has precision 0, one that neither occurs nor is decided for has none.
        part = np.where(shown > 0, np.nan_to_num(_share(right, below)), np.nan)
        if task == "binary":
            result[name] = np.where((true[:, 1] == 0) & (name == "recall"), np.nan, part[:, 1])
        else:
            result[name] = _mean_known(part)
    return result


def _mean_known(parts: Floats) -> Floats:
    """Mean over the columns that are not NaN, shape (rows,)."""
    return _share(np.nansum(parts, axis=1), np.isfinite(parts).sum(axis=1).astype(np.float64))


# --- functions of the order of rows --------------------------------------------------------------------------------


def _ranking(
    positive: NDArray[np.bool_], scores: Floats, few: Blocks, weights: Floats, n_draws: int
) -> tuple[Floats, Floats]:
    """ROC AUC for every row of `weights`, and average precision for the first `n_draws`.

    AUC of block weights w is 1 - w' L w / (positives * negatives), where L[i, j] are the pairs (positive of block i,
    negative of block j) in which the negative scores higher, ties a half: Mann and Whitney 1947. Average precision is
    the sum over thresholds of (gain in recall) * precision, as scikit-learn has it. Both change only at scores of
    positives, so sums per block are cumulated there, a chunk of thresholds at a time, from the highest down.
    """
    n = len(few)
    thresholds = np.unique(scores[positive])
    places = np.searchsorted(thresholds, scores, "right"), np.searchsorted(thresholds, scores, "left")
    draws = weights[:n_draws]
    lost, precision = np.zeros((n, n)), np.zeros(len(draws))
    above = np.zeros((3, n))  # per block: positives, and negatives counted from either side of ties
    parts = (positive, places[0]), (~positive, places[0]), (~positive, places[1])
    sorted_parts = [_by_place(few.index[rows], place[rows]) for rows, place in parts]
    for end in range(len(thresholds), 0, -_CHUNK):
        start = max(end - _CHUNK, 0)
        added = [_between(part, start, end, n) for part in sorted_parts]
        hits, wrong, wrong_left = (a + carried for a, carried in zip(map(_from_above, added), above, strict=True))
        above = np.stack([hits[0], wrong[0], wrong_left[0]])
        lost += added[0].T @ ((wrong + wrong_left) / 2)
        gained, right = draws @ added[0].T, draws @ hits.T
        said = right + draws @ wrong.T
        precision += np.einsum("ij,ij->i", gained, np.divide(right, said, out=right, where=said > 0))
    positives, negatives = weights @ few.sums(positive), weights @ few.sums(~positive)
    auc = 1 - _share(((weights @ lost) * weights).sum(axis=1), positives * negatives)
    average = np.where(negatives[: len(draws)] > 0, _share(precision, positives[: len(draws)]), np.nan)
    return auc, average


def _by_place(block: NDArray[np.int64], place: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(place, kind="stable")
    return block[order], place[order]


def _between(part: tuple[NDArray[np.int64], NDArray[np.int64]], start: int, end: int, n: int) -> Floats:
    """Rows per threshold and block whose highest threshold is `start`..`end` - 1: (thresholds, blocks)."""
    block, place = part
    a, b = np.searchsorted(place, [start + 1, end + 1])
    cells = (place[a:b] - 1 - start) * n + block[a:b]
    return np.bincount(cells, minlength=(end - start) * n).reshape(end - start, n).astype(np.float64)


def _from_above(added: Floats) -> Floats:
    return np.cumsum(added[::-1], axis=0)[::-1]


def _median(values: Floats, few: Blocks, weights: Floats) -> Floats:
    """Median of the rows of each resample, the mean of the middle two where they are even.

    Sums per block are cumulated at every so many sorted rows; between two of those places rows are counted one by one.
    """
    order = np.argsort(values, kind="stable")
    index, ordered = few.index[order], values[order]
    step = int(np.ceil(np.sqrt(len(values))))
    stripes = -(-len(values) // step)
    cells = np.bincount((np.arange(len(values)) // step) * len(few) + index, minlength=stripes * len(few))
    until = np.cumsum(weights @ cells.reshape(stripes, len(few)).T.astype(np.float64), axis=1)
    half = until[:, -1] / 2
    index = np.append(index, np.zeros(stripes * step - len(values), dtype=np.int64))

    def reached(count: Floats) -> Floats:
        stripe = (until < count[:, None]).sum(axis=1)
        rows = stripe[:, None] * step + np.arange(step)
        before = np.where(stripe > 0, np.take_along_axis(until, np.maximum(stripe - 1, 0)[:, None], axis=1)[:, 0], 0.0)
        counted = before[:, None] + np.cumsum(np.take_along_axis(weights, index[rows], axis=1), axis=1)
        place = stripe * step + (counted < count[:, None]).sum(axis=1)
        return np.asarray(ordered[place], dtype=np.float64)

    return (reached(half) + reached(half + 0.5)) / 2
