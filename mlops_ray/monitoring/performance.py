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

from mlops_ray.config import Task
from mlops_ray.training import target
from mlops_ray.training.target import CLIP

Block = tuple[float, int, float, float]
"""Start (s), rows, summed loss (nats, or squared errors), summed labels: one block of the holdout."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Quality:
    """Realised quality of one cohort: rows, labelled rows, mean log-loss (nats), ROC AUC (binary, None with one class);
    of a regression the mean squared and absolute errors instead."""

    n_rows: int
    n_labelled: int
    log_loss: float | None
    roc_auc: float | None
    mse: float | None = None
    mae: float | None = None

    @property
    def loss(self) -> float | None:
        """What the limit is about: log-loss, or mean squared error; None without labels."""
        return self.mse if self.log_loss is None else self.log_loss

    @property
    def coverage(self) -> float:
        """Share of rows whose label is known."""
        return self.n_labelled / self.n_rows if self.n_rows else 0.0


def quality(labels: NDArray[np.float64], scores: NDArray[np.float64], task: Task = "binary") -> Quality:
    """Quality of scored rows. Args: labels: shape (n,), as in `target`, NaN for not known; scores: as in `target`."""
    known = ~np.isnan(labels)
    y, p = labels[known], scores[known]
    if not len(y):
        return Quality(len(labels), 0, None, None)
    loss = float(np.nanmean(row_losses(labels, scores, task)))
    if task == "regression":
        return Quality(len(labels), len(y), None, None, loss, float(np.abs(y - p).mean()))
    auc = float(roc_auc_score(y, p)) if task == "binary" and 0 < y.sum() < len(y) else None
    return Quality(len(labels), len(y), loss, auc)


def row_losses(labels: NDArray[np.float64], scores: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Loss of each row, shape (n,), as in `target`; NaN where no label is known."""
    known, found = ~np.isnan(labels), np.full(len(labels), np.nan)
    y = labels[known] if task == "regression" else labels[known].astype(np.int64)
    found[known] = target.losses(task, y, scores[known])
    return found


def losses(labels: NDArray[Any], scores: NDArray[np.float64], *, clip: float = CLIP) -> NDArray[np.float64]:
    """Log-loss of each row in nats, shape (n,); probabilities are clipped to [clip, 1 - clip]."""
    p = np.clip(scores, clip, 1 - clip)
    return np.asarray(-np.where(labels > 0.5, np.log(p), np.log1p(-p)))


def limit(
    holdout: Sequence[Block], n_blocks: int, alarm_level: float, *, min_blocks: int, rng: np.random.Generator
) -> float | None:
    """Mean loss above which a window of `n_blocks` blocks alarms; None when the holdout is too short.

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
