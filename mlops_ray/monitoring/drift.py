"""Input drift: how far a window of live rows lies from the reference, judged at a false-alarm rate that was chosen.

Rows of an hour or a day are alike (weather, season), so a threshold from resampled *rows* alarms all the time. Here
whole contiguous runs of reference blocks are resampled, on both sides, in windows as long as the live ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlops_ray.data.distance import psi
from mlops_ray.data.profile import Profile

MONTH_S = 30.4375 * 86_400.0
"""A mean month."""

# Resamples behind a threshold: the standard error of a 90 % quantile's level is then below 0.7 %.
_RESAMPLES = 2000
# Features are brought to one scale by this quantile of their own statistic before the maximum is taken.
_SCALE_QUANTILE = 0.9


@dataclass(frozen=True)
class Thresholds:
    """Alarm limit per feature for windows of `n_blocks`; None where the reference supports none (`uncalibrated`)."""

    limits: dict[str, float] | None
    why: str


@dataclass(frozen=True)
class Drift:
    """One feature of one window: its statistic (population stability index, nats) and limit."""

    feature: str
    psi: float
    limit: float

    @property
    def alarm(self) -> bool:
        """Whether the statistic is above its limit."""
        return self.psi > self.limit


def level(false_alarms_per_month: float, window_s: float, n_detectors: int) -> float:
    """Probability of a false alarm that one detector may spend on one window, in (0, 1).

    The budget is divided evenly over the windows of a month and over the detectors (Bonferroni).
    >>> round(level(1.0, 7 * 86_400.0, 2), 3)
    0.115
    """
    return min(0.5, false_alarms_per_month * window_s / MONTH_S / n_detectors)


def calibrate(
    blocks: Sequence[Profile], n_blocks: int, alarm_level: float, *, min_blocks: int, rng: np.random.Generator
) -> Thresholds:
    """Limits such that a window drawn from the reference itself alarms with probability `alarm_level`.

    Args: blocks: contiguous blocks of the reference, oldest first; n_blocks: blocks in a live window; alarm_level: of
        the whole detector, over all features together.
    Returns: a limit per feature. Features are scaled by their own 90 % quantile and the maximum's quantile is taken,
        which accounts for dependence between features (resampled max-statistic, Westfall & Young 1993). Both sides
        are resampled by the moving block bootstrap (Künsch 1989), so that the reference's own sampling error counts.
    """
    if len(blocks) < max(min_blocks, 2 * n_blocks):
        return Thresholds(None, f"the reference has {len(blocks)} blocks, {max(min_blocks, 2 * n_blocks)} are needed")
    # As many independent windows as fit into the reference say how far out a quantile it supports: the bound that a
    # new window passes with the wanted probability is the (n + 1)(1 - level)-th of n (split conformal, Vovk 2005).
    n_windows = len(blocks) / n_blocks
    quantile = (n_windows + 1) * (1 - alarm_level) / n_windows
    if quantile > 1:
        return Thresholds(None, f"{len(blocks)} blocks support no alarm level of {alarm_level:.3f}")
    n_runs = len(blocks) - n_blocks + 1
    live = rng.integers(0, n_runs, _RESAMPLES)
    base = rng.integers(0, n_runs, (_RESAMPLES, max(1, round(len(blocks) / n_blocks))))
    found = {}
    for name in blocks[0].counts:
        counts = np.stack([block.counts[name] for block in blocks])
        sums = np.concatenate([np.zeros((1, counts.shape[1]), dtype=np.int64), counts.cumsum(axis=0)])
        runs = sums[n_blocks:] - sums[:-n_blocks]
        if not (runs.sum(axis=1) > 0).all():
            return Thresholds(None, "the reference has windows without rows")
        found[name] = psi(runs[base].sum(axis=1), runs[live])
    scales = {name: max(float(np.quantile(values, _SCALE_QUANTILE)), 1e-9) for name, values in found.items()}
    largest = np.max([values / scales[name] for name, values in found.items()], axis=0)
    factor = float(np.quantile(largest, quantile, method="higher"))
    return Thresholds({name: scale * factor for name, scale in scales.items()}, f"{len(blocks)} blocks resampled")


def compare(reference: Profile, window: Profile, thresholds: Mapping[str, float]) -> tuple[Drift, ...]:
    """Every feature's drift in this window, the worst relative to its limit first."""
    drifts = (
        Drift(name, float(psi(reference.counts[name], window.counts[name])), limit)
        for name, limit in thresholds.items()
    )
    return tuple(sorted(drifts, key=lambda d: d.psi / d.limit, reverse=True))


def in_words(drift: Drift) -> str:
    """One line for people.

    >>> in_words(Drift("temp", 0.5, 0.25))
    'temp: PSI 0.500 against a limit of 0.250'
    """
    return f"{drift.feature}: PSI {drift.psi:.3f} against a limit of {drift.limit:.3f}"
