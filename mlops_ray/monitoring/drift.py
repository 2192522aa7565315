"""Input drift: how far a window of live rows lies from the reference, judged at a false-alarm rate that was chosen.

Rows of an hour or a day are alike (weather, season), so a threshold from resampled *rows* alarms all the time. Here
the reference is cut into windows as long as the live ones, and each is compared with the rest of it, as a live window
is compared with all of it: so the sampling error of both sides counts, and what neighbours in time share. How often a
limit is passed is told from windows that had no part in it: those of the same week (or day, or hour) are left out
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.distance import psi
from mlops_ray.data.profile import Profile

DAY_S = 86_400.0
MONTH_S = 30.4375 * DAY_S
"""A mean month."""

# What rows have in common ends with these, by the calendar that people live by: longest first.
_SPANS_S = (7 * DAY_S, DAY_S, 3600.0)
# Features are brought to one scale by this quantile of their own statistic before the maximum is taken.
_SCALE_QUANTILE = 0.9
# Highest ranks by which it is told how far windows clump: extreme enough to matter, many enough to tell.
_CLUMP_RANKS = 10

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Tiling = Whole
"""Windows side by side: of each its first block and the one after its last, shape (windows, 2)."""


@dataclass(frozen=True)
class Thresholds:
    """Alarm limit per feature; None where the reference supports none (`uncalibrated`)."""

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


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What windows of the reference do against the rest of it: from that follow limits at any level.

    scales: per feature, nats, shape (features,). least: the statistic of a window like the reference but for two rows.
    largest: of each window the maximum over features of the statistic by the scale that windows alike had no part in,
    shape (n,). together: number of the windows alike, shape (n,), rising.
    """

    features: tuple[str, ...]
    scales: Floats
    least: Floats
    largest: Floats
    together: Whole

    def limits(self, alarm_level: float) -> dict[str, float] | None:
        """Limit per feature such that a window like the reference's passes any of them with probability `alarm_level`;
        None where the reference supports no such limits."""
        factor = self._factor(alarm_level)
        if factor is None:
            return None
        limits = np.maximum(self.scales * factor, self.least)
        return dict(zip(self.features, limits.tolist(), strict=True))

    def _factor(self, alarm_level: float) -> float | None:
        """Of all scales: what a new window's maximum passes with probability `alarm_level`; None where no maximum of
        the reference is so rarely passed.

        The k-th largest of n is passed by a new one with probability k / (n + 1) when windows are exchangeable (split
        conformal, Vovk 2005). Windows alike pass it together: so it is counted how many windows pass the k-th largest
        of those that are not like them. That count is one lucky or unlucky week for the highest limits; how far windows
        clump is told by the first few ranks together, and no rate may be below what that says. Between two such rates
        the limit is read by a straight line.
        """
        n, folds = len(self.largest), np.unique(self.together)
        # Where windows may clump, one passing does not tell a lucky reference from a calm one.
        if len(folds) < 2 or alarm_level * (n + 1) < (1 if len(folds) == n else 2):
            return None
        ranks = np.arange(1, max(int(alarm_level * (n + 1)) + 3, _CLUMP_RANKS + 1))
        passed = np.zeros(len(ranks))
        rising = np.sort(self.largest)
        for which in folds:
            mine = self.together == which
            others = np.sort(self.largest[~mine])
            limits = others[-np.minimum(np.ceil(ranks * len(others) / n).astype(np.int64), len(others))]
            passed += mine.sum() - np.searchsorted(np.sort(self.largest[mine]), limits, side="right")
        first = slice(0, min(_CLUMP_RANKS, max(1, n // 2)))
        by_chance = ranks * n / (n - n / len(folds) + 1)
        clumped = float((passed - by_chance)[first].mean())
        rates = np.maximum.accumulate(np.maximum(passed, ranks + clumped)) / (n + 1)
        k = int(np.searchsorted(rates, alarm_level, side="right"))  # ranks whose rate is at most the level
        if k == 0:
            return None
        at, beyond = rising[-min(k, n)], rising[-min(k + 1, n)]
        if k == len(rates):
            return float(at)
        return float(at + (beyond - at) * (alarm_level - rates[k - 1]) / (rates[k] - rates[k - 1]))


def measure(counts: Mapping[str, Whole], tiling: Tiling, together: int, per: int = 1) -> Yardstick | None:
    """The reference measured by itself; None when one of its windows has no rows.

    Args: counts: rows per bin of each feature, shape (blocks, bins); tiling: at least two windows; together: so many
        blocks are alike (`alike`); per: so many windows in a row overlap, and the largest statistic of them counts:
        what one bad day does to all windows that hold it is one alarm.
    """
    features: list[str] = []
    statistics, least = [], []
    # Features of as many bins are computed side by side.
    for _, names in groupby(sorted(counts, key=lambda f: counts[f].shape[1]), lambda f: counts[f].shape[1]):
        group = list(names)
        blocks = np.stack([counts[name] for name in group], axis=1)
        until = np.concatenate([np.zeros_like(blocks[:1]), blocks.cumsum(axis=0)])
        windows, total = until[tiling[:, 1]] - until[tiling[:, 0]], until[-1]
        rows, all_rows = windows.sum(axis=2), total.sum(axis=1)
        if not ((rows > 0) & (rows < all_rows)).all():
            return None
        # A live window stands against all of the reference, this one against what is left of it: the variance of the
        # difference is larger by the inverse of this factor.
        statistics.append(psi(total - windows, windows) * (1 - (rows / all_rows) ** 2))
        least.append(_stray(total, (rows / all_rows).min(axis=0)))
        features += group
    found, floor = np.concatenate(statistics, axis=1), np.concatenate(least)
    groups = np.unique(tiling[:, 0] // together, return_inverse=True)[1]
    others = np.maximum(_scales_without(found, groups), floor)
    largest = (found / others[groups]).max(axis=1)
    if per > 1:
        n = len(largest) // per
        largest, groups = largest[-n * per :].reshape(n, per).max(axis=1), groups[-n * per :: per]
    return Yardstick(tuple(features), np.maximum(_scale(found), floor), floor, largest, groups)


def _stray(total: Whole, share: Floats) -> Floats:
    """Statistic of a window, `share` of the reference, that has two rows too many in each feature's emptiest bin.

    What is constant in the reference has statistics of almost 0, and one row of a new kind is no drift. Two, because a
    live window may be a little smaller than those of the reference.
    """
    window = total * share[:, None]
    emptiest = total.argmin(axis=1)[:, None]
    np.put_along_axis(window, emptiest, np.take_along_axis(window, emptiest, axis=1) + 2, axis=1)
    return psi(total, window)


def _scale(statistics: Floats) -> Floats:
    return np.asarray(np.quantile(statistics, _SCALE_QUANTILE, axis=0, method="higher"))


def _scales_without(statistics: Floats, groups: Whole) -> Floats:
    """`_scale` without the windows of each group, shape (groups, features): a live window has no part in it either."""
    n, sizes = len(statistics), np.bincount(groups)
    left = np.maximum(n - sizes, 1)
    above = left - 1 - np.ceil(_SCALE_QUANTILE * (left - 1)).astype(np.int64)  # of those left, so many lie above it
    top = min(n, int((above + sizes).max()) + 1)
    falling = np.argsort(-statistics, axis=0)[:top]
    values, whose = np.take_along_axis(statistics, falling, axis=0), groups[falling]
    at = [((whose != group).cumsum(axis=0) > above[group]).argmax(axis=0) for group in range(len(sizes))]
    return np.asarray(np.take_along_axis(values, np.stack(at), axis=0))


def calibrate(
    blocks: Sequence[Profile],
    tiling: Tiling,
    alarm_level: float,
    *,
    block_s: float,
    min_blocks: int,
    together: int | None = None,
    per: int = 1,
) -> Thresholds:
    """Limits such that a window like the reference's own alarms with probability `alarm_level`.

    Args: blocks: contiguous blocks of the reference, oldest first, each about `block_s` long; tiling: `by_time` or
        `by_rows`, or `sliding` with `per` windows that overlap; alarm_level: of the whole detector, over all features
        together, and over the `per` windows; together: blocks that are alike, where that is known.
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
    found = measure(counts, tiling, together, per)
    if found is None:
        return Thresholds(None, "the reference has windows without rows")
    limits = found.limits(alarm_level)
    if limits is None:
        return Thresholds(None, f"{len(blocks)} blocks support no alarm level of {alarm_level:.3f}")
    return Thresholds(limits, f"{len(tiling)} windows of the reference")


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
