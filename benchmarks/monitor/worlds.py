"""Traffic without drift in three worlds, as counts per window: what a detector may not cry wolf over.

A reference, and one or more months of live windows, are drawn afresh each time. Independent rows, and rows whose latent
means wander, are drawn as histograms straight away (multinomial: the same law as that of rows that are counted);
flights are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from mlops_ray.data.distance import FINE_BINS, N_BINS, Sample
from mlops_ray.demo.flights import flights
from mlops_ray.monitoring import drift

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Rng = np.random.Generator

MONTH_DAYS = 30
MISSING = 0.01
FEW, MANY = 5, 50


@dataclass(frozen=True)
class Month:
    """Counts are of the same bins, the last of them the missing, shape (..., features, bins).

    reference: per block. windows: live ones, of one month or more. per_month: how many windows a month has in the mean,
    from which the level of one follows. tiling, block_s: of the reference, as `drift.calibrate` takes them.
    """

    reference: Counts
    windows: Counts
    per_month: float
    tiling: drift.Tiling
    block_s: float

    def first(self, features: int) -> Month:
        """The same month, seen by so many features."""
        return Month(
            self.reference[:, :features], self.windows[:, :features], self.per_month, self.tiling, self.block_s
        )


@dataclass(frozen=True)
class Scale:
    """What the values of each fine bin mean: their mean, and which features are numbers at all."""

    means: Floats
    numeric: NDArray[np.bool_]


# Drawn ----------------------------------------------------------------------------------------------------------------


def normal_scale() -> Scale:
    edges = np.concatenate([[-np.inf], ndtri(np.arange(1, FINE_BINS) / FINE_BINS), [np.inf]])
    density = np.exp(-(edges**2) / 2) / np.sqrt(2 * np.pi)
    means = (density[:-1] - density[1:]) * FINE_BINS
    return Scale(np.tile(means, (MANY, 1)), np.ones(MANY, np.bool_))


def independent(rng: Rng, rows: int, days: int, live: int, bins: int) -> Month:
    """Windows of a day, every row drawn alike and alone."""
    chances = np.append(np.full(bins, (1 - MISSING) / bins), MISSING)
    drawn = rng.multinomial(rows, chances, (days + live * MONTH_DAYS, MANY))
    return _daily(drawn, days)


def wandering(rng: Rng, rows: int, days: int, live: int, bins: int) -> Month:
    """Windows of a day whose means wander: AR(1) of four steps a day and a correlation time of a day, 0.3 standard
    deviations wide, half of the variance common to all features."""
    phi, steps = np.exp(-1 / 4), 4
    edges = ndtri(np.arange(1, bins) / bins) * np.sqrt(1 + 0.3**2)
    drawn = []
    for n in (days, *[MONTH_DAYS] * live):
        noise = rng.normal(0, 1, (n * steps, MANY + 1))
        noise[1:] *= np.sqrt(1 - phi**2)
        latent = lfilter([1.0], [1.0, -phi], noise, axis=0)
        mean = 0.3 * (latent[:, :1] + latent[:, 1:]) / np.sqrt(2)
        cdf = ndtr(edges - mean[:, :, None])
        ends = np.zeros((*mean.shape, 1))
        chances = np.diff(cdf, axis=2, prepend=ends, append=ends + 1).reshape(n, steps, MANY, bins).mean(axis=1)
        chances = np.concatenate([chances * (1 - MISSING), np.full((n, MANY, 1), MISSING)], axis=2)
        drawn.append(rng.multinomial(rows, chances / chances.sum(axis=2, keepdims=True)))
    return _daily(np.concatenate(drawn), days)


def _daily(drawn: Counts, days: int) -> Month:
    return Month(drawn[:days], drawn[days:], MONTH_DAYS, drift.by_time(days, 1), drift.DAY_S)


# Flights --------------------------------------------------------------------------------------------------------------

_CHUNK = 200
# Seen first, so that few features are of every kind: schedule, two places, and the weather.
_ORDER = ("sched_dep_min", "temp", "carrier", "pressure", "dest", "origin", "sched_arr_min", "day_of_week", "distance")
_WEATHER = ("dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "visib")
_KINDS = 40


@dataclass(frozen=True)
class Flights:
    """Bins of every flight of the year: codes, shape (rows, 50 features), in ten and in fifty bins.

    days: first row of each day, and the end. weekday: of each day. 34 of the features are combinations of the others.
    """

    coarse: NDArray[np.uint8]
    fine: NDArray[np.uint8]
    days: NDArray[np.int64]
    weekday: NDArray[np.int64]
    scale: Scale


@cache
def of_the_year() -> Flights:
    table = flights()
    coarse, fine, means, numeric, standard = [], [], [], [], []

    def count(values: Floats) -> None:
        sample = Sample.of(values)
        for codes, n_bins in ((coarse, N_BINS), (fine, FINE_BINS)):
            found = np.searchsorted(sample.edges(n_bins), values, side="right")
            # The last bin of all is that of the missing.
            codes.append(np.where(np.isnan(values), FINE_BINS + 10, found).astype(np.uint8))
        known = ~np.isnan(values)
        rows = np.bincount(fine[-1][known], minlength=FINE_BINS + 10)
        total = np.bincount(fine[-1][known], weights=values[known], minlength=FINE_BINS + 10)
        # Bins that hold nothing lie where their neighbour does: they add no area.
        filled = np.maximum.accumulate(np.where(rows > 0, np.arange(len(rows)), 0))
        means.append((total / np.maximum(rows, 1))[filled])
        numeric.append(True)

    for name in (*_ORDER, *_WEATHER):
        column = table[name]
        if column.type in ("string", "large_string"):
            kinds = [k.as_py() for k in sorted(pc.value_counts(column), key=lambda k: -k["counts"].as_py())]
            rank = {kind["values"]: min(i, _KINDS) for i, kind in enumerate(kinds)}
            codes = np.array([rank[v] for v in column.to_pylist()], np.uint8)
            coarse.append(codes)
            fine.append(codes)
            means.append(np.zeros(FINE_BINS + 10))
            numeric.append(False)
        else:
            values = column.to_numpy().astype(np.float64)
            count(values)
            standard.append(np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values)))
    mix = np.random.default_rng(50).normal(size=(MANY - len(coarse), len(standard)))
    for weights in mix:
        count(weights @ np.stack(standard))
    day = table["event_time"].cast("int64").to_numpy() // 1_000_000 // 86_400
    first = np.flatnonzero(np.diff(day, prepend=-1))
    return Flights(
        np.stack(coarse, axis=1),
        np.stack(fine, axis=1),
        np.append(first, len(day)),
        (day[first] + 3) % 7,
        Scale(np.stack(means), np.array(numeric)),
    )


def _stretch(rng: Rng, codes: NDArray[np.uint8], year: Flights, days: int) -> tuple[Counts, NDArray[np.int64]]:
    """Counts per 200 rows of so many days, each any day of the year of its weekday; rows until each day's end."""
    by_weekday = [np.flatnonzero(year.weekday == d) for d in range(7)]
    start = rng.integers(7)
    picked = [int(rng.choice(by_weekday[(start + i) % 7])) for i in range(days)]
    rows = np.concatenate([np.arange(year.days[d], year.days[d + 1]) for d in picked])
    n = len(rows) // _CHUNK
    bins = FINE_BINS + 11
    which = codes[rows[: n * _CHUNK]].reshape(n, _CHUNK, MANY).astype(np.int64)
    which += (np.arange(n)[:, None, None] * MANY + np.arange(MANY)) * bins
    counts = np.bincount(which.ravel(), minlength=n * MANY * bins).reshape(n, MANY, bins)
    return counts, np.cumsum([year.days[d + 1] - year.days[d] for d in picked])


def flown(rng: Rng, days: int, live: int, *, fine: bool) -> Iterator[tuple[int, Month]]:
    """The same month in windows of 200, 2,000 and 20,000 rows. A window counts in the month in which it ends."""
    year = of_the_year()
    codes = year.fine if fine else year.coarse
    before = 22  # as many days as the largest window needs, so that one may end at any day of the month
    reference, _ = _stretch(rng, codes, year, days)
    now, until = _stretch(rng, codes, year, before + live * MONTH_DAYS)
    per_month = MONTH_DAYS * len(codes) / (len(year.days) - 1)
    used = (reference.sum(axis=(0, 1)) + now.sum(axis=(0, 1))) > 0
    for rows in (200, 2_000, 20_000):
        size = rows // _CHUNK
        block = max(1, size // 10)
        n = len(reference) // block
        blocks = reference[: n * block].reshape(n, block, *reference.shape[1:]).sum(axis=1)
        m = len(now) // size
        windows = now[: m * size].reshape(m, size, *now.shape[1:]).sum(axis=1)
        ended = np.arange(1, m + 1) * rows > until[before - 1]
        filled = np.full(n, block * _CHUNK)
        tiling = drift.by_rows(filled, rows)
        yield (
            rows,
            Month(
                blocks[:, :, used],
                windows[ended][:, :, used],
                per_month / rows,
                tiling,
                days * drift.DAY_S / n,
            ),
        )
