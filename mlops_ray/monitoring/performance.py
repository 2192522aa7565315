"""Realised quality of a window against what the holdout promised, at a false-alarm rate that was chosen.

Only cohorts older than the label horizon are levels: labels come late and not at random. The limit comes from
resampling runs of contiguous holdout blocks, on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mlops_ray.training.target import CLIP

Block = tuple[float, int, float, float]
"""Start (s), rows, summed log-loss (nats), positives: one block of the holdout."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Quality:
    """Realised quality of one cohort: rows, labelled rows, mean log-loss (nats), ROC AUC (None with one class)."""

    n_rows: int
    n_labelled: int
    log_loss: float | None
    roc_auc: float | None

    @property
    def coverage(self) -> float:
        """Share of rows whose label is known."""
        return self.n_labelled / self.n_rows if self.n_rows else 0.0


def quality(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> Quality:
    """Quality of scored rows. Args: labels shape (n,), 0, 1 or NaN for not known; scores shape (n,), P(1)."""
    known = ~np.isnan(labels)
    y, p = labels[known], scores[known]
    if not len(y):
        return Quality(len(labels), 0, None, None)
    auc = float(roc_auc_score(y, p)) if 0 < y.sum() < len(y) else None
    return Quality(len(labels), len(y), float(losses(y, p).mean()), auc)


def losses(labels: NDArray[Any], scores: NDArray[np.float64], *, clip: float = CLIP) -> NDArray[np.float64]:
    """Log-loss of each row in nats, shape (n,); probabilities are clipped to [clip, 1 - clip]."""
    p = np.clip(scores, clip, 1 - clip)
    return np.asarray(-np.where(labels > 0.5, np.log(p), np.log1p(-p)))


def limit(
    holdout: Sequence[Block], n_blocks: int, alarm_level: float, *, min_blocks: int, rng: np.random.Generator
) -> float | None:
    """Mean log-loss (nats) above which a window of `n_blocks` alarms; None when the holdout is too short.

    Runs of contiguous blocks (a quarter of the holdout long, at least 2: outcomes of neighbouring days are alike) are
    drawn to the length of a window and to that of the holdout; the limit is the holdout's mean plus the
    (1 - alarm_level) quantile of the difference of the two means. Source: moving block bootstrap (Künsch 1989).
    """
    if len(holdout) < max(2, min_blocks):
        return None
    rows = np.array([b[1] for b in holdout], dtype=np.float64)
    sums = np.array([b[2] for b in holdout])
    run = max(2, len(holdout) // 4)
    starts = len(holdout) - run + 1

    def means(length: int) -> NDArray[np.float64]:
        first = rng.integers(0, starts, (_RESAMPLES, -(-length // run)))
        picked = (first[:, :, None] + np.arange(run)).reshape(_RESAMPLES, -1)[:, :length]
        return np.asarray(sums[picked].sum(axis=1) / rows[picked].sum(axis=1))

    gap = np.quantile(means(n_blocks) - means(len(holdout)), 1 - alarm_level, method="higher")
    return float(sums.sum() / rows.sum() + gap)
