"""What plots and reports show of a model's answers, as plain values: at most `MAX_POINTS` a curve.

scikit-learn has these curves too; ours come downsampled, with ties kept together, and without a warning where a class
is missing (there is no curve then).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_ray.config import Task
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Classes, Labels, Scores

MAX_POINTS = 200
"""Of one curve: a plot 600 pixels wide shows no more, and a report stays small."""
MAX_CURVES = 10
"""Classes that get curves of their own, the most frequent ones."""
MAX_CLASSES = 20
"""Classes of a confusion matrix, the most frequent ones; the others are one."""
_Z = 1.959963984540054  # two-sided 95 %


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of similar score: what was said on average, what happened, and how surely.

    `low` and `high` bound the rate at 95 % if rows are independent (Wilson 1927): a guide for the eye. The interval
    that respects blocks is that of the metric `calibration_error`."""

    n: int
    mean_score: float
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Points of a curve from the highest threshold down; `threshold` (score) is where each point is reached."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    threshold: tuple[float, ...]


@dataclass(frozen=True)
class Lift:
    """What contacting the highest scores first yields.

    share: of all rows that are contacted; gain: share of all positives among them; lift: their rate over the base rate.
    """

    share: tuple[float, ...]
    gain: tuple[float, ...]
    lift: tuple[float, ...]


@dataclass(frozen=True)
class Confusion:
    """Rows by what they are and what the model decides: `counts[true][decided]`."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Residuals:
    """Residuals, label minus prediction, of a regression, in the target's unit.

    predicted, residual: an even sample of the rows by predicted value. normal, quantile: standardised residuals at
    evenly spaced probabilities beside those of a normal distribution. edges, counts: histogram; the outermost bins hold
    what lies beyond the 0.5 % and 99.5 % quantiles. mean, sd: of all rows.
    """

    predicted: tuple[float, ...]
    residual: tuple[float, ...]
    normal: tuple[float, ...]
    quantile: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    sd: float


@dataclass(frozen=True)
class Curves:
    """All curves of one task; those that another task has are empty or None.

    roc (x: false positive rate, y: true positive rate) and precision_recall (x: recall, y: precision) by class, binary
    only of class 1; classes that are missing, or are all there is, have none. rates: share of rows of these classes.
    """

    calibration: tuple[CalibrationBin, ...] = ()
    roc: Mapping[str, Curve] = field(default_factory=dict)
    precision_recall: Mapping[str, Curve] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    lift: Lift | None = None
    confusion: Confusion | None = None
    residuals: Residuals | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        return asdict(self)


def curves(task: Task, y: ArrayLike, scores: ArrayLike, known: Classes, *, threshold: float = 0.5) -> Curves:
    """Everything there is to draw of these rows.

    Args: y: labels (n,); scores (n,), multiclass (n, classes); known: the classes' names; threshold: binary only.
    Raises: DataError when shapes differ, or labels or scores are none (`target.checked`)."""
    labels, found = target.checked(task, y, scores)
    if task == "regression":
        return Curves(residuals=residuals(labels, found))
    if task == "binary":
        sides = {"1": (labels == 1, found)}
    else:
        often = np.argsort(-np.bincount(labels, minlength=len(known)), kind="stable")[:MAX_CURVES]
        sides = {str(known[k]): (labels == k, found[:, k]) for k in sorted(often)}
    sides = {name: (hit, score) for name, (hit, score) in sides.items() if 0 < hit.sum() < len(hit)}
    return Curves(
        calibration=reliability(task, labels, found),
        roc={name: roc(*side) for name, side in sides.items()},
        precision_recall={name: precision_recall(*side) for name, side in sides.items()},
        rates={name: float(hit.mean()) for name, (hit, _) in sides.items()},
        lift=lift(*sides["1"]) if task == "binary" and sides else None,
        confusion=confusion(task, labels, found, known, threshold=threshold),
    )


# --- calibration ---------------------------------------------------------------------------------------------------


def equal_bins(values: Floats, n_bins: int) -> NDArray[np.int64]:
    """Bin of each value, shape (n,): bins of equal size by rank, except that equal values share a bin (the lowest)."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    first = np.searchsorted(ranked, ranked, "left")
    # Bin i of `array_split`: the first n % bins of them hold one more.
    size, more = divmod(len(values), n_bins)
    starts = np.arange(n_bins) * size + np.minimum(np.arange(n_bins), more)
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.searchsorted(starts, first, "right") - 1 if size else first
    return result


def confidence(task: Task, y: Labels, scores: Scores) -> tuple[Floats, Floats]:
    """What calibration compares, shape (n,) each: what was said, and 1 where it happened.

    Binary P(1); multiclass the probability of the class that is decided for (top-label, Guo et al. 2017)."""
    if task == "binary":
        return scores, (y == 1).astype(np.float64)
    decided = np.argmax(scores, axis=1)
    return scores[np.arange(len(y)), decided], (decided == y).astype(np.float64)


def calibration(y: ArrayLike, scores: ArrayLike, *, n_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """`reliability` of a binary task."""
    return reliability("binary", y, scores, n_bins=n_bins)


def reliability(task: Task, y: ArrayLike, scores: ArrayLike, *, n_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Rows sorted by what was said (`confidence`) and cut into `n_bins` groups of equal size, lowest first.

    Rows of equal score share a group, so there can be fewer. Raises: DataError as `curves`; for regression."""
    labels, found = target.checked(task, y, scores)
    said, happened = confidence(task, labels, found)
    bins = equal_bins(said, n_bins)
    result = []
    for i in np.unique(bins):
        inside = bins == i
        n, rate = int(inside.sum()), float(happened[inside].mean())
        low, high = wilson(rate, n)
        result.append(CalibrationBin(n, float(said[inside].mean()), rate, low, high))
    return tuple(result)


def wilson(rate: float, n: int) -> tuple[float, float]:
    """95 % score interval of a rate seen in `n` independent rows. Source: E. B. Wilson 1927."""
    centre = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


# --- ranking -------------------------------------------------------------------------------------------------------


def _cumulated(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Thresholds from the highest down, and positives and negatives at or above each."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(positive[order], dtype=np.float64)[last]
    return ranked[last], hits, (last + 1) - hits


def _thin(x: Floats, y: Floats) -> NDArray[np.int64]:
    """Up to `MAX_POINTS` points evenly along the curve's length, with both ends: steep parts keep their shape."""
    if len(x) <= MAX_POINTS:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    wanted = np.linspace(0, length[-1], MAX_POINTS)
    return np.unique(np.append(np.searchsorted(length, wanted), [0, len(x) - 1]).clip(0, len(x) - 1))


def _curve(x: Floats, y: Floats, threshold: Floats) -> Curve:
    kept = _thin(x, y)
    return Curve(*(tuple(float(v) for v in values[kept]) for values in (x, y, threshold)))


def roc(positive: ArrayLike, scores: ArrayLike) -> Curve:
    """True positive rate (y) over false positive rate (x), from (0, 0), whose threshold is 1, to (1, 1).

    Args: positive: 1 or True for positives, both kinds present; scores: P(positive); shape (n,) each."""
    threshold, hits, wrong = _cumulated(np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64))
    x, y = np.append(0.0, wrong / wrong[-1]), np.append(0.0, hits / hits[-1])
    return _curve(x, y, np.append(1.0, threshold))


def precision_recall(positive: ArrayLike, scores: ArrayLike) -> Curve:
    """Precision (y) over recall (x), from the highest score down. Args: as `roc`."""
    threshold, hits, wrong = _cumulated(np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64))
    return _curve(hits / hits[-1], hits / (hits + wrong), threshold)


def lift(positive: ArrayLike, scores: ArrayLike) -> Lift:
    """Gain and lift over the share of rows contacted, highest scores first; ties are contacted together.

    Args: as `roc`."""
    _, hits, wrong = _cumulated(np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64))
    share, gain = (hits + wrong) / (hits[-1] + wrong[-1]), hits / hits[-1]
    kept = _thin(share, gain)
    return Lift(*(tuple(float(v) for v in values[kept]) for values in (share, gain, gain / share)))


# --- decisions and residuals ---------------------------------------------------------------------------------------


def confusion(task: Task, y: ArrayLike, scores: ArrayLike, known: Classes, *, threshold: float = 0.5) -> Confusion:
    """Rows by true and decided class. Beyond `MAX_CLASSES` classes the rarer ones are counted as "other"."""
    labels, found = target.checked(task, y, scores)
    names = [str(k) for k in known] if task == "multiclass" else ["0", "1"]
    decided = np.argmax(found, axis=1) if task == "multiclass" else (found >= threshold).astype(np.int64)
    if len(names) > MAX_CLASSES:
        often = np.sort(np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")[: MAX_CLASSES - 1])
        place = np.full(len(names), MAX_CLASSES - 1)
        place[often] = np.arange(MAX_CLASSES - 1)
        labels, decided = place[labels], place[decided]
        names = [*(names[k] for k in often), "other"]
    k = len(names)
    cells = np.bincount(labels * k + decided, minlength=k * k).reshape(k, k)
    return Confusion(tuple(names), tuple(tuple(int(c) for c in row) for row in cells))


def residuals(y: ArrayLike, scores: ArrayLike, *, n_bins: int = 40) -> Residuals:
    """Residuals of a regression over predictions, over a normal distribution, and as a histogram."""
    from scipy import stats  # here, as in `intervals.tail`

    labels, found = target.checked("regression", y, scores)
    residual = labels - found
    order = np.argsort(found, kind="stable")
    kept = order[np.unique(np.linspace(0, len(order) - 1, 2 * MAX_POINTS).round().astype(np.int64))]
    mean, sd = float(residual.mean()), float(residual.std())
    probabilities = (np.arange(min(MAX_POINTS, len(residual))) + 0.5) / min(MAX_POINTS, len(residual))
    quantile = (np.quantile(residual, probabilities) - mean) / (sd or 1.0)
    inner = np.quantile(residual, [0.005, 0.995])
    low, high = (inner[0], inner[1]) if inner[0] < inner[1] else (inner[0] - 0.5, inner[0] + 0.5)
    counts, edges = np.histogram(np.clip(residual, low, high), bins=n_bins, range=(low, high))
    return Residuals(
        predicted=tuple(float(v) for v in found[kept]),
        residual=tuple(float(v) for v in residual[kept]),
        normal=tuple(float(v) for v in stats.norm.ppf(probabilities)),
        quantile=tuple(float(v) for v in quantile),
        edges=tuple(float(v) for v in edges),
        counts=tuple(int(c) for c in counts),
        mean=mean,
        sd=sd,
    )
