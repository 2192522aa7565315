"""Distances between two sets of rows, feature by feature: over histograms, over the values themselves, over profiles.

Pure statistics; which distance is too large is the monitor's to say. Definitions are those of scipy where it has one,
and each docstring names the peers that compute the same.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.profile import Bins, Profile, Range
from mlops_ray.errors import DataError

Values = NDArray[np.float64]

N_BINS = 10
"""Bins of a numeric feature's histogram, about equally full in the reference: deciles are what PSI is read over."""


FINE_BINS = 50
"""Bins of a profile that is made to be compared: five in each of those that PSI is read over. What lies within a bin,
and so the error of a CDF, is 2 % of the rows."""
# Long tails make for the error of an area: they are cut twice more.
_TAILS = (0.001, 0.005, 0.995, 0.999)


EXACT_ROWS = 100
"""Values a side up to which the p-value of Kolmogorov-Smirnov is exact: at most 200 steps over 100 numbers, 6 ms."""


class Tested(NamedTuple):
    """A test's statistic, and the probability of one as large if both sets of rows were drawn alike and independent."""

    statistic: float
    p_value: float


class Bounded(NamedTuple):
    """An estimate, and by how much at most it is off."""

    value: float
    error: float


# Histograms -----------------------------------------------------------------------------------------------------------


def psi(reference: NDArray[Any], current: NDArray[Any]) -> NDArray[np.float64]:
    """Population stability index of histograms over the same bins.

    Args: both are rows per bin, shape (..., bins); leading axes are histograms side by side and broadcast.
    Returns: index in nats, at least 0, shape of the leading axes; half a row is added per bin, so that empty bins
        stay finite.
    Raises: DataError when the bins differ or a histogram holds no rows.
    Source: symmetrised Kullback-Leibler divergence (Jeffreys 1946).
    >>> float(psi(np.array([10, 10]), np.array([10, 10])))
    0.0
    """
    if reference.shape[-1] != current.shape[-1]:
        raise DataError("psi", f"{reference.shape[-1]} and {current.shape[-1]} bins cannot be compared")
    if not (reference.sum(axis=-1) > 0).all() or not (current.sum(axis=-1) > 0).all():
        raise DataError("psi", "a histogram without rows cannot be compared")
    bins = reference.shape[-1]
    p = (reference + 0.5) / (reference.sum(axis=-1, keepdims=True) + 0.5 * bins)
    q = (current + 0.5) / (current.sum(axis=-1, keepdims=True) + 0.5 * bins)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def jensen_shannon(reference: NDArray[Any], current: NDArray[Any]) -> float:
    """Jensen-Shannon distance of two histograms (rows per bin, shape (bins,)), in [0, 1].

    The square root of the divergence to base 2, as NannyML; Evidently takes base e, which is sqrt(ln 2) = 0.833 of it.
    Source: Lin 1991; Endres and Schindelin 2003. Same as scipy.spatial.distance.jensenshannon(base=2).
    >>> jensen_shannon(np.array([1, 0]), np.array([0, 1]))
    1.0
    """
    p, q = _shares(reference), _shares(current)
    middle = (p + q) / 2

    def divergence(a: Values) -> float:
        seen = a > 0
        return float((a[seen] * np.log2(a[seen] / middle[seen])).sum())

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def chi_square(reference: NDArray[Any], current: NDArray[Any]) -> Tested:
    """Pearson's chi-square test that two histograms (rows per bin, shape (bins,)) come from one distribution.

    Bins that are empty in both do not count; two bins take Yates' correction. With one bin there is nothing to test:
    (0, 1). Same as scipy.stats.chi2_contingency, which NannyML uses.
    """
    from scipy.special import chdtrc

    both = np.stack([reference, current]).astype(np.float64)
    both = both[:, both.sum(axis=0) > 0]
    if both.shape[1] < 2:
        return Tested(0.0, 1.0)
    expected = both.sum(axis=1, keepdims=True) * both.sum(axis=0, keepdims=True) / both.sum()
    gap = np.abs(both - expected)
    if both.shape[1] == 2:
        gap -= np.minimum(0.5, gap)
    statistic = float((gap**2 / expected).sum())
    return Tested(statistic, float(chdtrc(both.shape[1] - 1, statistic)))


def l_infinity(reference: NDArray[Any], current: NDArray[Any]) -> float:
    """Largest difference of a bin's shares, in [0, 1]; the distance of TFDV for categories, and of NannyML."""
    return float(np.abs(_shares(reference) - _shares(current)).max())


def total_variation(reference: NDArray[Any], current: NDArray[Any]) -> float:
    """Half the sum of all differences of shares, in [0, 1]: the share of rows that would have to change their bin."""
    return float(np.abs(_shares(reference) - _shares(current)).sum() / 2)


def hellinger(reference: NDArray[Any], current: NDArray[Any]) -> float:
    """Hellinger distance of two histograms, in [0, 1]."""
    gap = np.sqrt(_shares(reference)) - np.sqrt(_shares(current))
    return min(1.0, float(np.sqrt((gap**2).sum() / 2)))


def _shares(counts: NDArray[Any]) -> Values:
    total = counts.sum()
    if not total > 0:
        raise DataError("distance", "a histogram without rows cannot be compared")
    return np.asarray(counts / total, dtype=np.float64)


# Values ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sample:
    """Values of one numeric column in rising order, and how many rows have none.

    `values` float64 shape (n,), without NaN; infinite ones count in histograms and in Kolmogorov-Smirnov's statistic.
    """

    values: Values
    missing: int

    @classmethod
    def of(cls, values: NDArray[Any]) -> Sample:
        """Sorts once what every statistic below needs in order; NaN means missing."""
        rising = np.sort(values).astype(np.float64, copy=False)
        valid = int(rising.searchsorted(np.nan))
        return cls(rising[:valid], rising.size - valid)

    @property
    def finite(self) -> Values:
        """The finite values."""
        first, last = self.values.searchsorted([-sys.float_info.max, np.inf])
        return self.values[first:last]

    def edges(self, n_bins: int = N_BINS) -> tuple[float, ...]:
        """Inner edges of about equally full bins.

        A value that fills more than one of them (no rain at all, say) gets a bin of its own, so that the rest is seen.
        """
        finite = self.finite
        if not finite.size:
            return ()
        found, times = np.unique(finite[np.arange(1, n_bins) * finite.size // n_bins], return_counts=True)
        alone = found[((times > 1) | (found == finite[0])) & (found < sys.float_info.max)]
        lowest = finite[0] if finite[0] < finite[-1] else -np.inf
        return tuple(np.unique(np.concatenate([found[found > lowest], np.nextafter(alone, np.inf)])).tolist())

    def fine_edges(self) -> tuple[float, ...]:
        """`edges`, and between and beyond them so many more that a profile over them says most of what values say."""
        finite = self.finite
        ends = [float(finite[int(share * finite.size)]) for share in _TAILS] if finite.size else []
        return tuple(sorted({*self.edges(FINE_BINS), *ends}))

    def scale(self, n_bins: int, *others: Sample) -> tuple[float, ...]:
        """Inner edges of equally wide bins for the eye, over the middle 98 % of this sample and of the `others`."""
        if not self.finite.size:
            return ()
        ends = [
            [float(s.finite[int(share * (s.finite.size - 1))]) for share in (0.01, 0.99)]
            for s in (self, *others)
            if s.finite.size
        ]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        wide = low < high and math.isfinite(2 * (high - low))
        return tuple(np.linspace(low, high, n_bins - 1).tolist()) if wide else self.edges()

    def histogram(self, edges: NDArray[Any] | tuple[float, ...]) -> NDArray[np.int64]:
        """Rows per bin: below the first of the inner `edges`, between them, from the last on; shape (edges + 1,)."""
        below = self.values.searchsorted(edges)
        return np.diff(below, prepend=0, append=self.values.size)


class Distances(NamedTuple):
    """What lies between two samples in order: both statistics come from the same steps of the empirical CDFs."""

    kolmogorov_smirnov: Tested
    wasserstein: float


def distances(reference: Sample, current: Sample) -> Distances:
    """Two-sample Kolmogorov-Smirnov test and Wasserstein-1 distance.

    The test's statistic is the largest difference of the empirical CDFs, its p-value that of `ks_p_value`. The distance
    is the area between the CDFs of the finite values, in the feature's unit (scipy.stats.wasserstein_distance,
    Evidently's before it divides by the reference's standard deviation, NannyML's in its exact mode); NaN when a side
    has none.
    Raises: DataError when a side has no values.
    """
    n, m = reference.values.size, current.values.size
    if not n or not m:
        raise DataError("distance", "a sample without values cannot be compared")
    gaps, widths = _steps(reference.values, current.values)
    # Within ties the order says nothing: only where a value is passed whole.
    passed = widths > 0
    largest = gaps.max() if passed.all() else gaps.max(where=passed, initial=0.0)
    statistic = float(largest) / n / m
    low, high = reference.finite, current.finite
    if low.size < n or high.size < m:
        gaps, widths = _steps(low, high)
    area = float(np.dot(gaps, widths)) / low.size / high.size if low.size and high.size else math.nan
    return Distances(Tested(statistic, ks_p_value(statistic, n, m)), area)


def _steps(reference: Values, current: Values) -> tuple[Values, Values]:
    """Between neighbours of both samples in order: how far apart the CDFs are (times both sizes), and the values.

    Arrays are written over where they can be: with some hundred thousand values, new memory costs more than sums.
    """
    both = np.concatenate([reference, current])
    # Two runs in order: a stable sort merges them.
    order = np.argsort(both, kind="stable")
    n, m = reference.size, current.size
    # Exact: floats are whole up to 2**53.
    kind = np.float64 if n * m < 2**53 else np.longdouble
    gaps = np.where(order < n, kind(m), kind(-n))
    np.cumsum(gaps, out=gaps)
    np.abs(gaps, out=gaps)
    values = both[order]
    with np.errstate(invalid="ignore"):  # infinite neighbours are equal, and their difference is no number
        widths = np.subtract(values[1:], values[:-1], out=both[1:])
    return gaps[:-1], widths


def ks_p_value(statistic: float, n: int, m: int) -> float:
    """Two-sided p-value of the Kolmogorov-Smirnov statistic of samples of `n` and `m` values.

    Up to `EXACT_ROWS` values a side it is exact where no value repeats (scipy.stats.ks_2samp(method="exact")); for
    large samples it is n m / (n + m) values against a given CDF (Hodges 1958; method="asymp"), which would call one
    value against another significant. Below 1e-15 it is Kolmogorov's first term; scipy's sum has a term per value.
    """
    if max(n, m) <= EXACT_ROWS:
        return _exact_p_value(statistic, n, m)
    size = max(1, round(n * m / (n + m)))
    if size * statistic**2 > 18.0:
        return 2.0 * math.exp(-2.0 * size * statistic**2)
    from scipy.stats import kstwo

    return float(min(1.0, max(0.0, kstwo.sf(statistic, size))))


def _exact_p_value(statistic: float, n: int, m: int) -> float:
    """Share of the orders of `n` and `m` different values in which the CDFs come so far apart. Source: Hodges 1958.

    Walks through all orders at once: after t values, i of them of the first sample, the CDFs lie |i/n - (t - i)/m|
    apart. Orders that came as far as the statistic are counted and leave.
    """
    far = math.ceil(statistic * n * m - 1e-6)
    i = np.arange(n + 1)
    orders = np.zeros(n + 1)
    orders[0] = 1.0
    gone = float(far <= 0)
    for t in range(1, n + m + 1):
        j = t - i
        # Of the values that are left, each is as likely to be next.
        next_first = np.append(0.0, orders[:-1] * (n - i[:-1]))
        orders = (next_first + orders * np.clip(m - j + 1, 0, None)) / (n + m - t + 1)
        out = (j >= 0) & (np.abs(i * m - j * n) >= far)
        gone += float(orders[out].sum())
        orders[out] = 0.0
    return min(1.0, gone)


def doane_edges(reference: Sample) -> Values:
    """All edges, outer ones too, of equally wide bins as many as Doane's rule says, shape (bins + 1,).

    NannyML's bins of the Jensen-Shannon distance; the same as numpy.histogram_bin_edges(bins="doane"), whose cubes by
    `power` take most of the time of a comparison. Source: Doane 1976.
    Raises: DataError when the reference has no finite values.
    """
    finite = reference.finite
    n = finite.size
    if not n:
        raise DataError("distance", "a sample without finite values has no range to cut into bins")
    low, high = float(finite[0]), float(finite[-1])
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    spread = float(finite.std())
    n_bins = 1
    if n > 2 and spread > 0:
        scaled = (finite - finite.mean()) / spread
        skewness = float(np.dot(scaled * scaled, scaled)) / n
        sigma = math.sqrt(6.0 * (n - 2) / ((n + 1.0) * (n + 3)))
        n_bins = math.ceil(1.0 + math.log2(n) + math.log2(1.0 + abs(skewness) / sigma))
    return np.linspace(low, high, n_bins + 1)


def outside_and_in(sample: Sample, edges: Values) -> NDArray[np.int64]:
    """Rows per bin between the outer ones of `edges` (the last bin holds its right edge), and last the rows outside."""
    cuts = np.append(sample.values.searchsorted(edges[:-1]), sample.values.searchsorted(edges[-1], "right"))
    inside = np.diff(cuts)
    return np.append(inside, sample.values.size - inside.sum())


# Profiles -------------------------------------------------------------------------------------------------------------


def between(bins: Bins, reference: Profile, current: Profile, name: str) -> tuple[Bounded, Bounded]:
    """Kolmogorov-Smirnov statistic and Wasserstein-1 distance of one numeric feature, from profiles over the same bins.

    The CDFs are known at the edges and at the extremes; between them they rise from one known value to the next. So the
    true statistic lies between the largest difference at the edges (the value given) and the largest that any rise
    allows; the distance is that of values spread evenly in their bins, and cannot be less than the difference of the
    means, which profiles know exactly; it is NaN where a side holds infinite values or no finite ones.
    Raises: DataError when a side has no values.
    """
    one, two = reference.counts[name][:-1], current.counts[name][:-1]
    f = np.concatenate([[0.0], _shares(one).cumsum()])
    g = np.concatenate([[0.0], _shares(two).cumsum()])
    at_edges = np.abs(f - g)[1:-1].max(initial=0.0)
    most = np.maximum(f[1:] - g[:-1], g[1:] - f[:-1])
    # A bin of one value has no inside: both CDFs step at once.
    edges = np.asarray(bins.numeric[name])
    most[1:-1][np.nextafter(edges[:-1], np.inf) == edges[1:]] = 0.0
    ks = Bounded(float(at_edges), max(0.0, float(most.max() - at_edges)))
    return ks, _area(bins.numeric[name], (f, reference), (g, current), name)


def _area(edges: tuple[float, ...], one: tuple[Values, Profile], two: tuple[Values, Profile], name: str) -> Bounded:
    """Area between two CDFs, each known before every bin and after the last, of profiles that hold their extremes."""
    ranges = [profile.ranges.get(name, Range()) for _, profile in (one, two)]
    for (_, profile), reach in zip((one, two), ranges, strict=True):
        if reach.low > reach.high or profile.moments[name].n < profile.n - profile.missing(name):
            return Bounded(math.nan, math.nan)
    # Between two knots a CDF is 0, or 1, or rises within one bin.
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    knots = np.unique([x for r in ranges for x in r] + [x for x in edges if low < x < high])
    first, second = (_rises(knots, edges, cdf, reach) for (cdf, _), reach in zip((one, two), ranges, strict=True))
    widths = np.diff(knots)
    left, right = first.left - second.left, first.right - second.right
    # Between two straight lines lies a trapezium, or two triangles where they cross.
    total = np.abs(left) + np.abs(right)
    crossed = (left**2 + right**2) / np.where(total > 0, total, 1.0)
    estimate = float(np.dot(np.where(left * right < 0, crossed, total) / 2, widths))
    least = np.maximum(np.maximum(first.least - second.most, second.least - first.most), 0.0)
    most = np.maximum(first.most - second.least, second.most - first.least)
    upper = float(np.dot(most, widths))
    means = abs(one[1].moments[name].mean - two[1].moments[name].mean)
    lower = min(max(float(np.dot(least, widths)), means), upper)
    estimate = min(max(estimate, lower), upper)
    return Bounded(estimate, max(upper - estimate, estimate - lower))


class _Rises(NamedTuple):
    """Of a CDF between neighbouring knots: where it starts and ends if values are spread evenly, and its bounds."""

    left: Values
    right: Values
    least: Values
    most: Values


def _rises(knots: Values, edges: tuple[float, ...], cdf: Values, reach: Range) -> _Rises:
    middle = knots[1:] / 2 + knots[:-1] / 2
    bin_of = np.searchsorted(edges, middle, "right")
    least, most = cdf[bin_of], cdf[bin_of + 1]
    start = np.maximum(np.array([-np.inf, *edges])[bin_of], reach.low)
    stop = np.minimum(np.array([*edges, np.inf])[bin_of], reach.high)
    inside = (middle > reach.low) & (middle < reach.high)
    width = np.where(inside, stop - start, 1.0)
    outside = (middle > reach.high).astype(np.float64)
    left, right = (least + (most - least) * np.clip((x - start) / width, 0, 1) for x in (knots[:-1], knots[1:]))
    return _Rises(*(np.where(inside, x, outside) for x in (left, right, least, most)))
