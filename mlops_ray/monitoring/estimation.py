"""Quality of a window before its labels come, from its scores and what such scores meant on the holdout.

Classification (confidence-based, CBPE as NannyML defines it): the calibrated scores say how likely each label is, and a
metric's estimate is its value with the labels' probabilities in their place. Regression (direct loss estimation): a
model of the loss says what such rows cost on the holdout.

Each estimate has the interval in which the value realised later lies, from two independent parts:

- *labels given scores*: independent draws by their probabilities, whose variance is known in closed form for mean
  losses, and to first order for ROC AUC (the influence of each label on it, as in DeLong et al. 1988). Where outcomes
  of a block are alike, the holdout's own blocks strayed further from their estimates than that: by their ratio
  (overdispersion, McCullagh & Nelder 1989) the variance is raised.
- *the calibration*: the holdout's blocks might have been others. What each of them adds to the rates goes through the
  metric's gradient, and the squares are summed: the bootstrap over blocks in closed form, to first order (infinitesimal
  jackknife, Efron 1982; with independent blocks the sandwich of Liang & Zeger 1986).

The assumption behind it all: rows like these turn out as they did on the holdout. That inputs move is allowed for, that
their meaning does (concept drift) is not, and no estimate without labels can see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.training import target
from mlops_ray.training.calibration import Calibration, Cells, Indices
from mlops_ray.training.evaluation.intervals import Estimate, Floats
from mlops_ray.training.target import Labels, Scores

COVERAGE = 0.95
"""Of the intervals."""
RECORD = 20
"""Scored windows that trust remembers."""
MAX_NUMBERS = 4_000_000
"""Rows times classes that are looked at; of more, rows evenly spread."""


@dataclass(frozen=True)
class _Metric:
    """A metric at the labels' probabilities: its value, and what a little more of each probability adds to it.

    gradient: shape (n, classes). low, high: between which the metric lies."""

    value: float
    gradient: Floats
    low: float = -math.inf
    high: float = math.inf


def estimate(known: Calibration, scores: Scores, codes: NDArray[np.uint16], *, threshold: float) -> dict[str, Estimate]:
    """What quality the rows of a window will turn out to have.

    Args: scores as in `target`, n >= 1; codes: bins of the inputs, (n, features), as `profile.codes` gives them, which
        a regression needs; threshold: binary only.
    Returns: by metric: `log_loss` (nats), `brier`, `accuracy`, `roc_auc` (multiclass: one against the rest, averaged),
        and of a binary task the rows of its confusion matrix `tn`, `fp`, `fn`, `tp`; of a regression `mae` and `mse`.
        Left out is a metric that is not defined, such as the AUC of one class. Bounds are NaN when the holdout is a
        single block.
    """
    some = thinned(len(scores), scores.size)
    placed = known.place(scores[some], codes[some] if known.tree is not None else codes)
    if known.tree is not None:
        return _losses(known, placed[:, 0])
    raw = known.cells.rates[0][placed]
    p, total = _probabilities(known.task, raw)
    counts = np.bincount(placed.ravel(), minlength=known.cells.n.shape[1]).astype(np.float64)
    doubt = _Doubt.of(known.cells, counts)
    found = {}
    for name, metric in _metrics(known.task, p, _wide(known.task, scores[some]), threshold, len(scores)).items():
        pull = _pulled(known.task, metric.gradient, p, total)
        mean = np.einsum("ij,ij->i", p, metric.gradient)
        drawn = float(np.einsum("ij,ij,ij->", p, metric.gradient, metric.gradient) - mean @ mean)
        masses = np.bincount(placed.ravel(), pull.ravel(), len(counts)).astype(np.float64, copy=False)
        half = doubt.half_width(0, masses, drawn)
        low, high = max(metric.value - half, metric.low), min(metric.value + half, metric.high)
        found[name] = Estimate(metric.value, low, high, len(some), known.n_blocks)
    return found


def realised(task: Task, y: Labels, scores: Scores, *, threshold: float) -> dict[str, float]:
    """The same metrics of rows whose labels are known, n >= 1. Args: as in `target`."""
    if task == "regression":
        error = np.abs(np.asarray(y, dtype=np.float64) - scores)
        return {"mae": float(error.mean()), "mse": float((error**2).mean())}
    wide = _wide(task, scores)
    p = np.zeros(wide.shape)
    p[np.arange(len(p)), np.asarray(y, dtype=np.int64)] = 1.0
    return {name: metric.value for name, metric in _metrics(task, p, wide, threshold, len(p)).items()}


def thinned(n: int, numbers: int) -> Indices:
    """Rows of `n` that are looked at, when all of them hold so many `numbers`."""
    most = max(1, min(n, n * MAX_NUMBERS // max(numbers, 1)))
    return np.unique(np.linspace(0, n - 1, most).astype(np.int64))


# What the labels' probabilities make of each metric ------------------------------------------------------------------


def _wide(task: Task, scores: Scores) -> Scores:
    """Scores by class, shape (n, classes)."""
    return np.stack([1 - scores, scores], axis=1) if task == "binary" else scores


def _probabilities(task: Task, raw: Floats) -> tuple[Floats, Floats]:
    """P(class), shape (n, classes), of the maps' rates (n, maps), and what each row was divided by, (n, 1).

    Multiclass: each class against the others, normalised; a row that no class has a rate for may be of any."""
    if task == "binary":
        return np.concatenate([1 - raw, raw], axis=1), np.ones((len(raw), 1))
    total = raw.sum(axis=1, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1.0), 1 / raw.shape[1]), total


def _pulled(task: Task, gradient: Floats, p: Floats, total: Floats) -> Floats:
    """The gradient by the maps' rates, (n, maps), from that by the classes' probabilities."""
    if task == "binary":
        return gradient[:, 1:] - gradient[:, :1]
    centred = gradient - np.einsum("ij,ij->i", gradient, p)[:, None]
    return np.where(total > 0, centred / np.where(total > 0, total, 1.0), 0.0)


def _metrics(task: Task, p: Floats, s: Floats, threshold: float, n_rows: int) -> dict[str, _Metric]:
    """Args: p: probabilities of the labels, s: scores, (n, classes); n_rows: that the confusion matrix is scaled to."""
    n, found = len(p), {}

    def mean(cost: Floats, *, scale: float = 1.0, low: float = 0.0, high: float = math.inf) -> _Metric:
        return _Metric(float((p * cost).sum() * scale / n), cost * scale / n, low, high)

    found["log_loss"] = mean(-np.log(np.clip(s, target.CLIP, 1 - target.CLIP)))
    squares = np.einsum("ij,ij->i", s, s)[:, None] - 2 * s + 1
    found["brier"] = mean(squares / 2 if task == "binary" else squares)
    decided = (s[:, 1] >= threshold).astype(np.int64) if task == "binary" else np.argmax(s, axis=1)
    right = np.zeros(s.shape)
    right[np.arange(n), decided] = 1.0
    found["accuracy"] = mean(right, high=1.0)
    areas = [_area(p[:, k], s[:, k]) for k in range(s.shape[1])] if task == "multiclass" else [_area(p[:, 1], s[:, 1])]
    defined = [area for area in areas if area is not None]
    if defined:
        columns = [np.zeros(n) if area is None else area[1] / len(defined) for area in areas]
        gradient = np.stack(columns if task == "multiclass" else [np.zeros(n), *columns], axis=1)
        found["roc_auc"] = _Metric(float(np.mean([area[0] for area in defined])), gradient, 0.0, 1.0)
    if task == "binary":
        for name, label, says in (("tn", 0, 0), ("fp", 0, 1), ("fn", 1, 0), ("tp", 1, 1)):
            cell = np.zeros(s.shape)
            cell[decided == says, label] = 1.0
            found[name] = mean(cell, scale=n_rows, high=n_rows)
    return found


def _area(p: Floats, s: Floats) -> tuple[float, Floats] | None:
    """Expected ROC AUC of one class against the others, and what each row's probability `p` (n,) adds to it.

    A pair counts by the product of its probabilities, half where its scores tie. None when the class is certain
    everywhere, or nowhere possible."""
    positives, negatives = float(p.sum()), float(len(p) - p.sum())
    if positives <= 0 or negatives <= 0:
        return None
    levels, index = np.unique(s, return_inverse=True)
    here_p = np.bincount(index, p, len(levels))
    here_q = np.bincount(index, 1 - p, len(levels))
    below = (np.cumsum(here_q) - here_q / 2)[index]
    above = (positives - np.cumsum(here_p) + here_p / 2)[index]
    pairs = positives * negatives
    area = float(p @ below / pairs)
    return area, (below - above) / pairs - area * (1 / positives - 1 / negatives)


# How far they may be off ---------------------------------------------------------------------------------------------


def _losses(known: Calibration, leaf: Indices) -> dict[str, Estimate]:
    """Mean absolute and squared error of a regression's rows that fell to these leaves."""
    cells, n = known.cells, len(leaf)
    counts = np.bincount(leaf, minlength=cells.n.shape[1]).astype(np.float64)
    doubt = _Doubt.of(cells, counts)
    found = {}
    for i, name in enumerate(("mae", "mse")):
        value = float(counts @ cells.rates[i] / n)
        half = doubt.half_width(i, counts / n, float(counts @ cells.variances[i] / n**2))
        found[name] = Estimate(value, max(value - half, 0.0), value + half, n, known.n_blocks)
    return found


@dataclass(frozen=True, eq=False)
class _Doubt:
    """How far estimates may be off that rest on `cells`, for a window with `counts` rows in each of them.

    strayed: outcomes of each block beyond what the rates say, (outcomes, blocks, cells); quantile: of Student's t, for
    what the blocks tell about variances; unbiased: n / (n - 1) of the blocks."""

    cells: Cells
    counts: Floats
    strayed: Floats
    quantile: float
    unbiased: float

    @staticmethod
    def of(cells: Cells, counts: Floats) -> _Doubt:
        from scipy import stats  # here, as in `intervals.tail`

        n_blocks = len(cells.n)
        strayed = cells.sums - cells.n * cells.rates[:, None, :]
        if n_blocks < 2:
            return _Doubt(cells, counts, strayed, math.nan, 1.0)
        quantile = float(stats.t.ppf((1 + COVERAGE) / 2, n_blocks - 1))
        return _Doubt(cells, counts, strayed, quantile, n_blocks / (n_blocks - 1))

    def half_width(self, outcome: int, masses: Floats, drawn: float) -> float:
        """Half of the interval of a metric with the gradient `masses` by the cells' rates; NaN for a single block.

        Args: drawn: variance of the metric as independent labels are drawn given the scores."""
        n = self.cells.n.sum(axis=0)
        calibration = self._squared(outcome, masses / np.where(n > 0, n, np.inf))
        each = masses / np.maximum(self.counts, 1.0)
        expected = float(self.cells.squares.sum(axis=0) @ (each**2 * self.cells.variances[outcome]))
        overdispersion = self._squared(outcome, each) / expected if expected > 0 else 1.0
        return self.quantile * math.sqrt(max(overdispersion, 1.0) * max(drawn, 0.0) + calibration)

    def _squared(self, outcome: int, masses: Floats) -> float:
        """Sum over the blocks of the square of what they stray by."""
        return float(((self.strayed[outcome] @ masses) ** 2).sum()) * self.unbiased


# Whether to believe them ---------------------------------------------------------------------------------------------


def trust(inside: Sequence[bool]) -> float:
    """How far a version's estimates deserve belief, in [0, 1): the share of its last `RECORD` scored windows whose
    realised value lay in its interval, with two windows of doubt, so that none is due without a record.

    >>> trust([]), trust([True] * 6), trust([True] * 18)
    (0.0, 0.75, 0.9)
    """
    last = list(inside)[-RECORD:]
    return sum(last) / (len(last) + 2)
