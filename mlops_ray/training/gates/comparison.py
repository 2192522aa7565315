"""Is the mean of paired differences surely below a margin, surely above it, or neither?

Rows of a block (a day, a store) are correlated, so blocks are the units. The estimate is the mean over rows, a ratio
of sums per block; its standard error is the linearised one over blocks, and both bounds are studentised:
`value -+ critical * se`. Two critical values are drawn, and the larger one counts:

- *bootstrap-t*: the studentised statistic over resampled blocks, which knows the skewness that these blocks show
  (B. Efron 1982; P. Hall, On the Bootstrap and Confidence Intervals, 1986).
- *guard*: the same statistic over blocks whose effects are exponential (skewness 2), with these very block sizes, once
  with effects that all rows of a block share and once with independent rows. A dozen days cannot show how skewed days
  are: a candidate that fails on storms only looks fine until one comes. Student's t lets such a candidate, worse by
  exactly the margin, pass 12 % of the time at 12 days and alpha 0.05, percentiles 11 %, bootstrap-t alone 8 %; the
  two together 4 %. That real days are so skewed is what flights show: the daily differences of two models had a
  skewness from -2.4 to 0.1.

What no critical value can do: a kind of day rarer than 1 - alpha ** (1 / blocks), 22 % for 12 days, may have no day
among these (Bahadur and Savage 1956). `benchmarks/gates.py` measures all this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.training.evaluation.intervals import Blocks, Floats, resample
from mlops_ray.training.gates.verdict import plain

MIN_BLOCKS = 5
"""With fewer, one block decides: four ask for 5.5 standard errors."""
_MAX_BLOCKS_ASKED = 1_000_000
_EXACT = 1e-12
"""Standard errors below this share of the differences' size are rounding, not noise."""
_ROUNDING = 1e-7
"""The same of a resample, whose squares cancel (a root of float64's 1e-16, and some)."""


@dataclass(frozen=True)
class Comparison:
    """A mean difference per row with one-sided bounds, each of level 1 - alpha; NaN where nothing carries a bound.

    value: over all rows. se: its standard error over blocks. critical: of the upper bound, in standard errors. n,
    n_blocks: rows and blocks that count.
    """

    value: float
    se: float
    lower: float
    upper: float
    critical: float
    n: int
    n_blocks: int
    alpha: float
    _draws: tuple[Floats, ...] = field(default=(), repr=False, compare=False)

    @property
    def resolved(self) -> bool:
        """Whether there are bounds at all."""
        return bool(np.isfinite(self.upper))

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly: what cannot be told is None."""
        names = ("value", "se", "lower", "upper", "critical", "n", "n_blocks")
        return {name: plain(getattr(self, name)) for name in names}

    def p_above(self, margin: float) -> float:
        """P-value of "the true mean is at most `margin`", small when it is above; 1 where nothing carries a bound."""
        return self._p(-1.0, margin)

    def p_below(self, margin: float) -> float:
        """P-value of "the true mean is at least `margin`", small when it is below; at most alpha where `upper` is."""
        return self._p(1.0, margin)

    def _p(self, sign: float, margin: float) -> float:
        if not self.resolved:
            return 1.0
        if self.se == 0:
            return 0.0 if sign * (self.value - margin) < 0 else 1.0
        t = sign * (self.value - margin) / self.se
        guards, studentised = self._draws[:-1], self._draws[-1]
        return max(float((1 + np.sum(drawn <= t)) / (1 + len(drawn))) for drawn in (*guards, sign * studentised))

    def power(self, margin: float) -> float:
        """Probability that a candidate of true difference 0 gets an upper bound below `margin`, with this standard
        error: P(T > critical), T noncentral t with blocks - 1 degrees of freedom and noncentrality margin / se.

        Source: D. B. Owen 1965; S. A. Julious, Sample sizes for clinical trials with Normal data, 2004 (section 5)."""
        if not self.resolved or margin <= 0:
            return 0.0
        return 1.0 if self.se == 0 else _power(margin / self.se, self.critical, self.n_blocks)

    def blocks_needed(self, margin: float, power: float) -> int | None:
        """How many blocks like these give `power`; None where that cannot be told, or is over a million.

        The standard error shrinks with the root of the blocks, and so does what skewness adds to Student's critical
        value (first term of the Edgeworth expansion: P. Hall, The Bootstrap and Edgeworth Expansion, 1992)."""
        from scipy import stats

        if not self.resolved or margin <= 0:
            return None
        if self.se == 0:
            return self.n_blocks
        extra = max(self.critical - float(stats.t.isf(self.alpha, self.n_blocks - 1)), 0.0)

        def enough(n: int) -> bool:
            shrink = (self.n_blocks / n) ** 0.5
            critical = float(stats.t.isf(self.alpha, n - 1)) + extra * shrink
            return _power(margin / (self.se * shrink), critical, n) >= power

        low, high = MIN_BLOCKS - 1, MIN_BLOCKS
        while not enough(high):
            low, high = high, high * 2
            if low > _MAX_BLOCKS_ASKED:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high


def compare(
    differences: Floats,
    grouped: Blocks,
    *,
    alpha: float,
    resamples: int,
    rng: np.random.Generator,
    rows: NDArray[np.bool_] | None = None,
) -> Comparison:
    """Bounds of the mean of `differences`, shape (n,), whose block of each row is `grouped`.

    Args: rows: which rows count, shape (n,); default all. Bounds are NaN below `MIN_BLOCKS` blocks, and where fewer
        than ten of `resamples` lie beyond alpha, for then their place is noise."""
    if rows is None:
        rows = np.ones(len(differences), dtype=bool)
    present, index = np.unique(grouped.index[rows], return_inverse=True)
    values, n, n_blocks = differences[rows], int(rows.sum()), len(present)
    nan = float("nan")
    value = float(values.mean()) if n else nan
    if n_blocks < MIN_BLOCKS or alpha * resamples < 10:
        return Comparison(value, nan, nan, nan, nan, n, n_blocks, alpha)
    # Around the mean: squares cancel less.
    sums = np.bincount(index, weights=values - value, minlength=n_blocks).astype(np.float64)
    sizes = np.bincount(index, minlength=n_blocks).astype(np.float64)
    _, error = _studentise(sums, sizes, np.ones((1, n_blocks)))
    se = float(error[0])
    if se <= _EXACT * float(np.abs(values).max(initial=0.0)):
        return Comparison(value, 0.0, value, value, 0.0, n, n_blocks, alpha)
    draws = (*_guards(sizes, resamples, rng), _bootstrap_t(sums, sizes, resamples, rng))
    place = int(alpha * (resamples + 1)) - 1
    high = max(-float(np.partition(drawn, place)[place]) for drawn in draws)
    low = max(-float(np.partition(drawn, place)[place]) for drawn in (*draws[:-1], -draws[-1]))
    return Comparison(value, se, value - low * se, value + high * se, high, n, n_blocks, alpha, draws)


def _studentise(sums: Floats, sizes: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Mean per row and its standard error, shape (k,) each, of blocks drawn `weights` times, shape (k, blocks).

    Linearised variance of a ratio of sums, with the factor blocks / (blocks - 1): W. G. Cochran, Sampling Techniques,
    1977, section 6.4."""
    n = sums.shape[-1]
    total = weights @ sizes
    mean = (weights @ sums) / total
    squares = weights @ sums**2 - 2 * mean * (weights @ (sums * sizes)) + mean**2 * (weights @ sizes**2)
    return mean, np.sqrt(np.maximum(squares, 0.0) * n / (n - 1)) / total


def _bootstrap_t(sums: Floats, sizes: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Studentised means of resampled blocks, whose truth is 0: `sums` are of values less their mean."""
    n = len(sums)
    mean, se = _studentise(sums, sizes, resample(n, resamples, rng))
    floor = _ROUNDING * float(np.sqrt((sums**2).sum())) / float(sizes.sum())
    # A resample of one block over and over has no spread: infinitely far, on its side.
    return np.where(se > floor, mean / np.maximum(se, floor), np.copysign(np.inf, mean))


def _guards(sizes: Floats, resamples: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """The statistic where the truth is 0 and block effects are exponential, shared by a block's rows or not."""
    n = len(sizes)
    effects = rng.exponential(size=(resamples, n)) - 1.0
    total = sizes.sum()

    def statistic(sums: Floats) -> Floats:
        mean = sums.sum(axis=1) / total
        residuals = sums - mean[:, None] * sizes
        drawn: Floats = mean / (np.sqrt((residuals**2).sum(axis=1) * n / (n - 1)) / total)
        return drawn

    return statistic(effects * sizes), statistic(effects * np.sqrt(sizes))


def _power(noncentrality: float, critical: float, n_blocks: int) -> float:
    from scipy import stats

    if noncentrality > critical + 10:
        return 1.0  # where scipy's noncentral t loses its digits
    return float(stats.nct.sf(critical, n_blocks - 1, noncentrality))
