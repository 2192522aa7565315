"""What windows of the reference do against the rest of it, and the limits that follow from it at any level. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.distance import psi
from mlops_ray.monitoring import evidence

# Features are brought to one scale by this quantile of their own statistic before the maximum is taken.
_SCALE_QUANTILE = 0.9
# Nats that evidence is ahead of its scale: more would leave more of the budget to the index; with so many, evidence of
# blocks of few rows has most of it, which is where it is quicker.
_AHEAD = 2.0
# Nats of evidence that no limit lies below: fifty times the capital is something.
_LEAST_EVIDENCE = 4.0
# Highest ranks by which it is told how far windows clump: extreme enough to matter, many enough to tell.
_CLUMP_RANKS = 10

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Tiling = Whole
"""Windows side by side: of each its first block and the one after its last, shape (windows, 2)."""


@dataclass(frozen=True, eq=False)
class Gathering:
    """How evidence about one feature is gathered block by block, and how much of it alarms (nats).

    effects: `evidence.effects`, shape (bets,); most_rows: of a block of the reference; one with more counts as one of
    so many."""

    effects: Floats
    most_rows: int
    limit: float


@dataclass(frozen=True, eq=False)
class Peaks:
    """Peaks of the evidence in windows of the reference. scales: per feature, nats above -_AHEAD. effects: shape
    (features, bets). most_rows: of a block, shape (features,)."""

    scales: Floats
    effects: tuple[Floats, ...]
    most_rows: Whole


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What windows of the reference do against the rest of it: from that follow limits at any level.

    scales: per feature, nats, shape (features,). least: the statistic of a window like the reference but for two rows.
    largest: of each window the maximum over features of the statistic by the scale that windows alike had no part in,
    shape (n,). together: number of the windows alike, shape (n,), rising. peaks: of evidence, where it is gathered.
    """

    features: tuple[str, ...]
    scales: Floats
    least: Floats
    largest: Floats
    together: Whole
    peaks: Peaks | None = None

    def limits(self, alarm_level: float) -> dict[str, float] | None:
        """Limit per feature such that a window like the reference's passes any of them, or has more evidence than
        `gathering` allows, with probability `alarm_level`; None where the reference supports no such limits."""
        factor = self._factor(alarm_level)
        if factor is None:
            return None
        limits = np.maximum(self.scales * factor, self.least)
        return dict(zip(self.features, limits.tolist(), strict=True))

    def gathering(self, alarm_level: float) -> dict[str, Gathering] | None:
        """How evidence is gathered, and its limits, as `limits`; None where there are none, or it is not gathered."""
        factor, known = self._factor(alarm_level), self.peaks
        if factor is None or known is None:
            return None
        limits = np.maximum(known.scales * factor - _AHEAD, _LEAST_EVIDENCE)
        return {
            name: Gathering(known.effects[i], int(known.most_rows[i]), float(limits[i]))
            for i, name in enumerate(self.features)
        }

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


def measure(
    counts: Mapping[str, Whole], tiling: Tiling, together: int, per: int = 1, *, gather: bool = False
) -> Yardstick | None:
    """The reference measured by itself; None when one of its windows has no rows.

    Args: counts: rows per bin of each feature, shape (blocks, bins); tiling: at least two windows; together: so many
        blocks are alike (`alike`); per: so many windows in a row overlap, and the largest statistic of them counts:
        what one bad day does to all windows that hold it is one alarm; gather: whether live blocks are looked at one by
        one as well (`evidence`).
    """
    features: list[str] = []
    statistics, least, peaks, most_rows = [], [], [], []
    spread: list[Floats] = []
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
        if gather:
            found, effects = _replayed(blocks, together)
            peaks.append(_peaks(found, tiling))
            spread += [*effects]
            most_rows.append(blocks.sum(axis=2).max(axis=0))
    found, floor = np.concatenate(statistics, axis=1), np.concatenate(least)
    groups = np.unique(tiling[:, 0] // together, return_inverse=True)[1]
    largest = (found / np.maximum(_scales_without(found, groups), floor)[groups]).max(axis=1)
    known = None
    if gather:
        ahead = np.concatenate(peaks, axis=1) + _AHEAD
        others = _together(_scales_without(ahead, groups))
        # What no limit lies below takes no rank from the index.
        counting = np.where(ahead > _LEAST_EVIDENCE + _AHEAD, ahead / others[groups], 0.0)
        largest = np.maximum(largest, counting.max(axis=1))
        known = Peaks(_together(_scale(ahead)), tuple(spread), np.concatenate(most_rows))
    if per > 1:
        n = len(largest) // per
        largest, groups = largest[-n * per :].reshape(n, per).max(axis=1), groups[-n * per :: per]
    return Yardstick(tuple(features), np.maximum(_scale(found), floor), floor, largest, groups, known)


def _replayed(blocks: Whole, together: int) -> tuple[Floats, Floats]:
    """Evidence after each block of the reference, each held against those that are not like it, shape (blocks,
    features); and the bets' effects. Args: blocks: shape (blocks, features, bins)."""
    total = blocks.sum(axis=0)
    parts = []
    for first in range(0, len(blocks), together):
        mine = blocks[first : first + together]
        parts.append(evidence.gains(evidence.bets(total - mine.sum(axis=0))[0], mine))
    found = np.concatenate(parts)
    effects = evidence.effects(found, blocks.sum(axis=2), evidence.bets(total)[1])
    return evidence.gathered(found / effects, evidence.weights(blocks.shape[2]))[0], effects


def _together(scales: Floats) -> Floats:
    """Evidence has one unit: a feature whose own windows strayed less than those of most is held to be like them."""
    return np.maximum(scales, np.median(scales, axis=-1, keepdims=True))


def _peaks(found: Floats, tiling: Tiling) -> Floats:
    """Highest evidence in each window, shape (windows, features): 0 where a window beside it has more, for what goes on
    through many windows is one alarm."""
    padded = np.concatenate([found, found[-1:]])  # an end may be the end of all
    tops = np.maximum(np.maximum.reduceat(padded, tiling.ravel(), axis=0)[::2], 0.0)
    around = np.pad(tops, ((1, 1), (0, 0)))
    return np.asarray(np.where(tops >= np.maximum(around[:-2], around[2:]), tops, 0.0))


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
