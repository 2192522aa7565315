"""Realised quality of a window against what the holdout promised, at a false-alarm rate that was chosen.

Only cohorts older than the label horizon are levels: labels come late and not at random. The limit comes from windows
of the holdout, and reaches further than they do: a few dozen days have no day that comes once in five months.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from mlops_ray.config import DAY_S, Task
from mlops_ray.training import target
from mlops_ray.training.target import CLIP

Block = tuple[float, int, float, float]
"""Start (s), rows, summed loss (nats, or squared errors), summed labels: one block of the holdout."""

# Windows of a holdout from which on they are many, and the share of them that are its tail.
_MANY, _TAIL = 16, 0.15


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


def limit(holdout: Sequence[Block], n_blocks: int, alarm_level: float, *, min_blocks: int) -> float | None:
    """Mean loss above which a window of `n_blocks` blocks alarms; None when the holdout is too short.

    A holdout of many windows shows how they stray: where it has windows as rare as the level, the limit is a rank among
    them (split conformal, Vovk 2005); beyond, their tail goes on as it began (peaks over threshold: Davison and Smith
    1990), exponential, and heavier by what few days of peaks do not know. Of a holdout of few windows, it is Student's
    t for the next window's mean, from runs of whichever length strays most: as many short ones sum up to a window, its
    mean is all the more normal.
    """
    if len(holdout) < max(2, min_blocks):
        return None
    found = np.array(holdout)
    day, rows, sums = (found[:, 0] // DAY_S).astype(np.int64), found[:, 1], found[:, 2]
    mean, n = float(sums.sum() / rows.sum()), len(rows) // n_blocks
    if n >= _MANY:
        kept = slice(len(rows) - n * n_blocks, None)
        of_rows, of_sums, days = (x[kept].reshape(n, n_blocks) for x in (rows, sums, day))
        some = of_rows.sum(axis=1) > 0
        if some.sum() >= _MANY:
            means = of_sums.sum(axis=1)[some] / of_rows.sum(axis=1)[some]
            return _beyond(means, days[some, -1], alarm_level)
    strayed, wide = sums - mean * rows, 0.0
    for run in (2**k for k in range(n_blocks.bit_length())):
        k = len(rows) // run
        if run > 1 and k < max(2, min_blocks):
            break
        of_runs, of_rows = (x[len(x) - k * run :].reshape(k, run).sum(axis=1) for x in (strayed, rows))
        error = np.sqrt((of_runs**2).sum() / (k - 1)) / of_rows.mean() * np.sqrt(run / n_blocks + run / len(rows))
        wide = max(wide, float(error * stats.t.ppf(1 - alarm_level, k - 1)))
    return mean + wide


def _beyond(means: NDArray[np.float64], days: NDArray[np.int64], alarm_level: float) -> float:
    """What the next window's mean passes with probability `alarm_level`. Args: means: of windows, days: of each; of
    those of a day, which are alike, the highest tells how far beyond the threshold peaks lie."""
    n = len(means)
    order = np.argsort(-means)
    rank = alarm_level * (n + 1)
    k = max(2, int(_TAIL * n))
    if rank >= k:
        return float(means[order[int(rank) - 1]])
    threshold, peaks = means[order[k]], means[order[:k]]
    of_days = [peaks[days[order[:k]] == day].max() - threshold for day in np.unique(days[order[:k]])]
    m = len(of_days)
    return float(threshold + m * np.mean(of_days) * ((rank / k) ** (-1 / m) - 1))
