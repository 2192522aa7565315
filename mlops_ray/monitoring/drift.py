"""Input drift: how far a window of live rows lies from the reference, judged at a false-alarm rate that was chosen.

Rows of an hour or a day are alike (weather, season), so a threshold from resampled *rows* alarms all the time. Here
the reference is cut into windows as long as the live ones, and each is compared with the rest of it, as a live window
is compared with all of it: so the sampling error of both sides counts, and what neighbours in time share. How often a
limit is passed is told from windows that had no part in it: those of the same week (or day, or hour) are left out
together.

Beside the windows' statistics stand, in the same maximum, the peaks of what `evidence` gathers block by block: so both
share one budget, and the reference's own blocks say how far either strays without drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlops_ray.data.distance import psi
from mlops_ray.data.profile import Profile
from mlops_ray.monitoring.yardstick import Gathering, Tiling, Whole, measure

DAY_S = 86_400.0
MONTH_S = 30.4375 * DAY_S
"""A mean month."""

# What rows have in common ends with these, by the calendar that people live by: longest first.
_SPANS_S = (7 * DAY_S, DAY_S, 3600.0)


@dataclass(frozen=True)
class Thresholds:
    """Alarm limit per feature; None where the reference supports none (`uncalibrated`). gathering: per feature, where
    evidence is gathered between the ends of windows."""

    limits: dict[str, float] | None
    why: str
    gathering: Mapping[str, Gathering] | None = field(default=None, compare=False)


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


def level(false_alarms_per_month: float, span_s: float) -> float:
    """Probability of a false alarm that one detector may spend on one window of `span_s` seconds, in (0, 1).

    Its part of the budget (`budget.share`) is divided evenly over time (Bonferroni).
    >>> round(level(0.5, 7 * 86_400.0), 3)
    0.115
    """
    return min(0.5, false_alarms_per_month * span_s / MONTH_S)


SCORES = "(scores)"
"""What the scores are called beside the features: no column is."""


# Windows of the reference ---------------------------------------------------------------------------------------------


def by_time(n_blocks: int, window: int) -> Tiling:
    """As many windows of `window` blocks as fit, the last of them with the newest block.

    >>> by_time(5, 2).tolist()
    [[1, 3], [3, 5]]
    """
    starts = np.arange(n_blocks % window, n_blocks - window + 1, window)
    return np.stack([starts, starts + window], axis=1)


def sliding(n_blocks: int, window: int, slide: int) -> Tiling:
    """Windows of `window` blocks that begin every `slide` blocks, the last of them with the newest block.

    >>> sliding(5, 3, 1).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    starts = np.arange((n_blocks - window) % slide, n_blocks - window + 1, slide)
    return np.stack([starts, starts + window], axis=1)


def by_rows(rows: Whole, window: int) -> Tiling:
    """Windows of at least `window` rows, each ending with the block that fills it, as live ones by rows do.

    Args: rows: of each block, shape (blocks,).
    >>> by_rows(np.array([3, 1, 2, 2, 9]), 4).tolist()
    [[0, 2], [2, 4], [4, 5]]
    """
    until = np.concatenate([[0], rows.cumsum()])
    ends = [0]
    while (end := int(np.searchsorted(until, until[ends[-1]] + window))) <= len(rows):
        ends.append(end)
    return np.stack([ends[:-1], ends[1:]], axis=1)


def alike(n_blocks: int, block_s: float, min_blocks: int) -> int:
    """Blocks whose windows are left out together: the longest of a week, a day, an hour and a block of which the
    reference holds at least `min_blocks`; 0 when it holds too few of any.

    >>> alike(60, 86_400.0, 8), alike(20, 86_400.0, 8), alike(20, 600.0, 8), alike(7, 86_400.0, 8)
    (7, 1, 1, 0)
    """
    for span_s in (*_SPANS_S, block_s):
        blocks = round(span_s / block_s)
        if blocks >= 1 and n_blocks >= min_blocks * blocks:
            return blocks
    return 0


def calibrate(
    blocks: Sequence[Profile],
    tiling: Tiling,
    alarm_level: float,
    *,
    block_s: float,
    min_blocks: int,
    together: int | None = None,
    per: int = 1,
    gather: bool = False,
) -> Thresholds:
    """Limits such that a window like the reference's own alarms with probability `alarm_level`.

    Args: blocks: contiguous blocks of the reference, oldest first, each about `block_s` long; tiling: `by_time` or
        `by_rows`, or `sliding` with `per` windows that overlap; alarm_level: of the whole detector, over all features
        together, and over the `per` windows; together: blocks that are alike, where that is known; gather: whether
        evidence is gathered between the ends of windows, and shares the level.
    Returns: a limit per feature. Features are scaled by their own 90 % quantile and the maximum's quantile is taken,
        which accounts for dependence between features (max-statistic, Westfall & Young 1993). The scores, where every
        block has them, count as one feature more, `SCORES`.
    """
    together = together or alike(len(blocks), block_s, max(2, min_blocks))
    if not together:
        return Thresholds(None, f"the reference has {len(blocks)} blocks, {max(2, min_blocks)} are needed")
    if len(tiling) < 2 * per:
        return Thresholds(None, f"the {len(blocks)} blocks of the reference are too few for two windows")
    counts = {name: np.stack([block.counts[name] for block in blocks]) for name in blocks[0].counts}
    scored = np.stack([block.scores for block in blocks])
    if (scored.sum(axis=1) == [block.n for block in blocks]).all():
        counts[SCORES] = scored
    found = measure(counts, tiling, together, per, gather=gather)
    if found is None:
        return Thresholds(None, "the reference has windows without rows")
    limits = found.limits(alarm_level)
    if limits is None:
        return Thresholds(None, f"{len(blocks)} blocks support no alarm level of {alarm_level:.3f}")
    return Thresholds(limits, f"{len(tiling)} windows of the reference", found.gathering(alarm_level))


def compare(reference: Profile, window: Profile, thresholds: Mapping[str, float]) -> tuple[Drift, ...]:
    """Every feature's drift in this window, the worst relative to its limit first."""
    drifts = (
        Drift(name, float(psi(reference.counts[name], window.counts[name])), limit)
        for name, limit in thresholds.items()
        if name != SCORES
    )
    return tuple(sorted(drifts, key=lambda d: d.psi / d.limit, reverse=True))


def compare_scores(reference: Profile, own: Profile, n_rows: int, limit: float) -> Drift:
    """Drift of a version's scores in a window of `n_rows` rows, of which the version answered `own` (at least one).

    The limit is of windows of all rows, and the index of fewer rows is larger by chance, in proportion: so it is taken
    down by as much."""
    return Drift(SCORES, float(psi(reference.scores, own.scores)) * min(1.0, own.n / n_rows), limit)


def in_words(drift: Drift) -> str:
    """One line for people.

    >>> in_words(Drift("temp", 0.5, 0.25))
    'temp: PSI 0.500 against a limit of 0.250'
    """
    return f"{drift.feature}: PSI {drift.psi:.3f} against a limit of {drift.limit:.3f}"
