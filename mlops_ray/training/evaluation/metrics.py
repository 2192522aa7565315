"""Metrics of probabilistic binary classifiers, with intervals that respect time, and calibration.

Rows of an hour or a day share weather and crowds, so intervals come from resampling whole blocks of time. Every
statistic here is a function of sums per block (AUC: of sums per pair of blocks), so a resample is a row of block
weights and all resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_ray.config import Metric
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats, blocks, resample, resolves, tail
from mlops_ray.training.target import CLIP


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of similar score: what was said on average and what happened."""

    n: int
    mean_score: float
    rate: float


def log_losses(y: ArrayLike, scores: ArrayLike) -> Floats:
    """Log-loss per row in nats, shape (n,); scores clipped by `CLIP`."""
    p = np.clip(np.asarray(scores, dtype=np.float64), CLIP, 1 - CLIP)
    losses: Floats = -np.log(np.where(np.asarray(y) == 1, p, 1 - p))
    return losses


def evaluate(
    y: ArrayLike,
    scores: ArrayLike,
    times: ArrayLike,
    *,
    block_s: float,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
) -> dict[Metric, Estimate]:
    """The four metrics, each with a two-sided 1 - 2 * `alpha` interval (so either end is a one-sided 1 - alpha bound).

    Args: y: 0 or 1; scores: P(1); times: seconds since epoch; all of shape (n,), n >= 1.
    Returns: log_loss (nats), brier, roc_auc (NaN when one class is missing), accuracy at 0.5.
    Raises: DataError when shapes differ, labels are not 0 and 1, or a score is no probability.
    """
    labels, p = checked(y, scores)
    grouped = blocks(times, block_s)
    weights = resample(len(grouped), resamples, rng)
    counts = grouped.sums(np.ones(len(p)))
    share = tail(alpha, len(grouped)) if resolves(alpha, len(grouped), resamples) else 0.0

    def estimate(value: float, drawn: Floats) -> Estimate:
        low = high = float("nan")
        drawn = drawn[np.isfinite(drawn)]
        if share and len(drawn) and np.isfinite(value):
            low, high = (float(q) for q in np.quantile(drawn, [share, 1 - share]))
        return Estimate(value, low, high, len(p), len(grouped))

    def mean(values: Floats) -> Estimate:
        return estimate(float(values.mean()), (weights @ grouped.sums(values)) / (weights @ counts))

    concordant = _concordance(labels, p, grouped)
    positives, negatives = grouped.sums(labels), grouped.sums(1 - labels)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = float(concordant.sum() / np.float64(positives.sum() * negatives.sum()))
        drawn_auc = ((weights @ concordant) * weights).sum(axis=1) / ((weights @ positives) * (weights @ negatives))
    return {
        "log_loss": mean(log_losses(labels, p)),
        "brier": mean((p - labels) ** 2),
        "roc_auc": estimate(auc, drawn_auc),
        "accuracy": mean(((p >= 0.5) == (labels == 1)).astype(np.float64)),
    }


def _concordance(y: Floats, scores: Floats, grouped: Blocks) -> Floats:
    """Pairs (positive of block i, negative of block j) that the scores order rightly, ties a half: (blocks, blocks).

    AUC of a resample with block weights w is w' C w over its positives times its negatives: Mann and Whitney 1947."""
    positive = y == 1
    pos, pos_block = scores[positive], grouped.index[positive]
    result = np.zeros((len(grouped), len(grouped)))
    for j in range(len(grouped)):
        negatives = np.sort(scores[~positive & (grouped.index == j)])
        if len(negatives):
            wins = (np.searchsorted(negatives, pos, "left") + np.searchsorted(negatives, pos, "right")) / 2.0
            result[:, j] = np.bincount(pos_block, weights=wins, minlength=len(grouped))
    return result


def calibration(y: ArrayLike, scores: ArrayLike, *, n_bins: int = 10) -> tuple[CalibrationBin, ...]:
    """Rows sorted by score and cut into `n_bins` groups of equal size, lowest scores first."""
    labels, p = checked(y, scores)
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, n_bins) if len(part)]
    return tuple(CalibrationBin(len(i), float(p[i].mean()), float(labels[i].mean())) for i in parts)


def checked(y: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Labels and scores as float64 of shape (n,). Raises: DataError for what is no label or no probability."""
    labels, p = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != p.shape or len(labels) == 0:
        raise DataError("evaluation", f"labels {labels.shape} and scores {p.shape} must be equally long and not empty")
    rules: Sequence[tuple[str, NDArray[np.float64], Callable[[Floats], NDArray[np.bool_]]]] = (
        ("labels must be 0 or 1", labels, lambda v: (v != 0) & (v != 1)),
        ("scores must be in [0, 1]", p, lambda v: ~((v >= 0) & (v <= 1))),
    )
    for rule, values, breaks in rules:
        bad = np.flatnonzero(breaks(values))
        if len(bad):
            raise DataError("evaluation", f"{rule}; row {bad[0]} has {values[bad[0]]:g} ({len(bad)} such rows)")
    return labels, p
