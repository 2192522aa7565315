"""Estimates with intervals from resampling whole blocks: of time, or of a declared group.

Rows of an hour or a day share weather and crowds, rows of a patient or a store their habits, so intervals come from
resampling whole blocks. A statistic that is a function of sums per block needs no rows for it: a resample is a row of
block weights, and all resamples are one matrix product.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MAX_BLOCKS = 500
"""More blocks than these are bundled before they are resampled. The standard error of an interval from so many has
itself a relative error of 1 / sqrt(2 * 500) = 3 %, and weights of 2,000 resamples stay at 8 MB."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `low` and `high` are NaN where too few blocks carry one."""

    value: float
    low: float
    high: float
    n: int
    n_blocks: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly: NaN becomes None."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Blocks:
    """Rows grouped into blocks that are drawn whole.

    index: block of each row, shape (n,), 0..len-1; starts: shape (blocks,). Blocks of time lie in time order and start
    at these seconds since the epoch. Blocks of a column's values, and bundles, have no place in time: their starts are
    NaN, and no result depends on their order.
    """

    index: NDArray[np.int64]
    starts: Floats

    def __len__(self) -> int:
        return len(self.starts)

    def sums(self, values: ArrayLike) -> Floats:
        """Sum of `values`, shape (n,), per block: shape (blocks,)."""
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(self.index, weights=weights, minlength=len(self.starts)).astype(np.float64, copy=False)


def blocks(times: ArrayLike, block_s: float) -> Blocks:
    """Blocks of `block_s` seconds that hold at least one of `times` (n,); they begin at multiples of `block_s`."""
    numbers = np.floor(np.asarray(times, dtype=np.float64) / block_s).astype(np.int64)
    present, index = np.unique(numbers, return_inverse=True)
    return Blocks(index.astype(np.int64), present.astype(np.float64) * block_s)


def grouped(values: ArrayLike) -> Blocks:
    """Blocks of the rows that share one of `values`, shape (n,), wherever they stand.

    Rows without a value (None, "" or NaN) form one block together: nothing tells them apart.
    """
    cells = np.asarray(values)
    if cells.dtype == object:
        place: dict[Any, int] = {}
        keys = ("" if v is None or v != v else v for v in cells.tolist())
        index = np.fromiter((place.setdefault(key, len(place)) for key in keys), dtype=np.int64, count=len(cells))
        return Blocks(index, np.full(len(place), np.nan))
    present, inverse = np.unique(cells, return_inverse=True)  # all NaN are one
    return Blocks(inverse.astype(np.int64), np.full(len(present), np.nan))


def bundled(given: Blocks, rng: np.random.Generator, limit: int = MAX_BLOCKS) -> Blocks:
    """At most `limit` blocks, each of about equally many of the `given` ones, drawn at random.

    Independent blocks stay independent in bundles, so intervals keep their coverage; what they lose is a little of
    their own precision (see `MAX_BLOCKS`). A resample of 100,000 patients one by one would be a matrix of gigabytes.
    """
    if len(given) <= limit:
        return given
    bundle = rng.permutation(np.arange(len(given)) % limit)
    return Blocks(bundle[given.index], np.full(limit, np.nan))


def interval(value: float, drawn: Floats, *, n: int, n_blocks: int, alpha: float) -> Estimate:
    """The estimate `value` from `n` rows in `n_blocks` blocks, with a two-sided 1 - 2 * `alpha` interval.

    Args: drawn: the statistic of each resample, shape (resamples,); undefined ones (NaN) are left out.
    Returns: bounds by expanded percentiles (`tail`), so that either is a one-sided 1 - alpha bound; NaN when `value`
    is, where blocks and resamples are too few (`resolves`), or when half of the resamples are undefined."""
    known = drawn[np.isfinite(drawn)]
    low = high = float("nan")
    if np.isfinite(value) and 2 * len(known) > len(drawn) and resolves(alpha, n_blocks, len(known)):
        share = tail(alpha, n_blocks)
        low, high = (float(q) for q in np.quantile(known, [share, 1 - share]))
    return Estimate(float(value), low, high, n, n_blocks)


def resample(n_blocks: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each block is drawn in each resample of `n_blocks` blocks, with replacement: (resamples, n_blocks)."""
    return rng.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks), size=resamples).astype(np.float64)


def tail(alpha: float, n_blocks: int) -> float:
    """Share of resamples to cut off for a one-sided 1 - `alpha` bound of a mean over `n_blocks` blocks.

    The bootstrap's percentiles are too narrow for few blocks: they miss the factor sqrt(n / (n - 1)) and the step from
    the normal to Student's t. Cutting at Phi(-t * sqrt(n / (n - 1))) restores both; for 12 blocks and alpha 0.05 that
    is 0.030. Source: T. Hesterberg, What Teachers Should Know About the Bootstrap, 2015 (expanded percentiles).
    """
    from scipy import stats  # here, for workers that only need losses should not wait half a second for it

    if n_blocks < 2:
        return 0.0
    return float(stats.norm.cdf(-stats.t.ppf(1 - alpha, n_blocks - 1) * np.sqrt(n_blocks / (n_blocks - 1))))


def resolves(alpha: float, n_blocks: int, resamples: int) -> bool:
    """Whether so many blocks and resamples carry a bound: ten resamples beyond it, or its place is noise.

    With alpha 0.05 and 2,000 resamples that takes five blocks."""
    return tail(alpha, n_blocks) * resamples >= 10
