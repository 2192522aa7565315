"""Traffic without drift in three worlds, as counts per window: what a detector may not cry wolf over.

A reference, and one or more months of live windows, are drawn afresh each time. Independent rows, and rows whose latent
means wander, are drawn as histograms straight away (multinomial: the same law as that of rows that are counted);
flights are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from mlops_ray.data.distance import FINE_BINS, N_BINS, Sample
from mlops_ray.demo.flights import flights
from mlops_ray.monitoring import drift
from mlops_ray.monitoring.yardstick import Tiling

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Rng = np.random.Generator

MONTH_DAYS = 30
MISSING = 0.01
FEW, MANY = 5, 50


@dataclass(frozen=True)
class Month:
    """Counts are of the same bins, the last of them the missing, shape (..., features, bins); the last of the features
    is the scores.

    reference: per block. live: per block too, of one month or more, after those of which windows still begin: the month
    itself begins with block `begins`. spans: of each live window its first block and the one after its last. per_month:
    how many windows a month has in the mean. tiling, block_s: of the reference, as `drift.calibrate` takes them.
    outcomes, live_outcomes: rows of each block by loss, shape (blocks, losses); losses: shape (losses,).
    """

    reference: Counts
    live: Counts
    spans: Tiling
    begins: int
    per_month: float
    tiling: Tiling
    block_s: float
    outcomes: Counts
    live_outcomes: Counts
    losses: Floats

    @property
    def windows(self) -> Counts:
        """Live ones, shape (windows, features, bins)."""
        return summed(self.live, self.spans)

    def first(self, features: int) -> Month:
        """The same month, seen by so many features, and the scores."""
        kept = np.append(np.arange(features), -1)
        return replace(self, reference=self.reference[:, kept], live=self.live[:, kept])


def summed(blocks: Counts, spans: Tiling) -> Counts:
    """Blocks added up to windows."""
    until = np.concatenate([np.zeros_like(blocks[:1]), blocks.cumsum(axis=0)])
    return np.asarray(until[spans[:, 1]] - until[spans[:, 0]])


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


# A model whose scores, in ten bins about equally full, are right on average.
_SAID = (np.arange(10) + 0.5) / 20


def _of_a_model(said: Floats) -> Floats:
    """Losses of the rows of each bin of scores: those whose outcome is 1, then the others. In nats."""
    return np.concatenate([-np.log(said), -np.log1p(-said)])


def _outcomes(rng: Rng, scores: Counts, chance: Floats) -> Counts:
    """Rows by loss. Args: scores: per block and bin; chance: of the outcome 1 in each."""
    ones = rng.binomial(scores, chance)
    return np.concatenate([ones, scores - ones], axis=1)


def independent(rng: Rng, rows: int, days: int, live: int, bins: int) -> Month:
    """Windows of a day, every row drawn alike and alone."""
    n = days + live * MONTH_DAYS
    chances = np.append(np.full(bins, (1 - MISSING) / bins), MISSING)
    drawn = rng.multinomial(rows, chances, (n, MANY + 1))
    scores = rng.multinomial(rows, np.full(10, 0.1), n)
    drawn[:, -1] = 0
    drawn[:, -1, : min(10, bins)] = scores[:, :bins]
    return _daily(drawn, days, _outcomes(rng, scores, _SAID))


def wandering(rng: Rng, rows: int, days: int, live: int, bins: int) -> Month:
    """Windows of a day whose means wander: AR(1) of four steps a day and a correlation time of a day, 0.3 standard
    deviations wide, half of the variance common to all features, and so do the scores, and the log-odds of the outcome
    beside them."""
    phi, steps = np.exp(-1 / 4), 4
    drawn, outcomes = [], []
    for n in (days, *[MONTH_DAYS] * live):
        noise = rng.normal(0, 1, (n * steps, MANY + 3))
        noise[1:] *= np.sqrt(1 - phi**2)
        latent = lfilter([1.0], [1.0, -phi], noise, axis=0)
        mean = 0.3 * (latent[:, :1] + latent[:, 1:]) / np.sqrt(2)
        chances = _wandered(mean[:, :MANY], bins).reshape(n, steps, MANY, bins).mean(axis=1)
        chances = np.concatenate([chances * (1 - MISSING), np.full((n, MANY, 1), MISSING)], axis=2)
        drawn.append(rng.multinomial(rows, chances / chances.sum(axis=2, keepdims=True)))
        of_scores = _wandered(mean[:, MANY : MANY + 1], 10).reshape(n, steps, 10).mean(axis=1)
        scores = rng.multinomial(rows, of_scores / of_scores.sum(axis=1, keepdims=True))
        drawn[-1] = np.concatenate([drawn[-1], np.zeros((n, 1, bins + 1), np.int64)], axis=1)
        drawn[-1][:, -1, : min(10, bins)] = scores[:, :bins]
        odds = np.log(_SAID / (1 - _SAID)) + mean[:, -1].reshape(n, steps).mean(axis=1)[:, None]
        outcomes.append(_outcomes(rng, scores, 1 / (1 + np.exp(-odds))))
    return _daily(np.concatenate(drawn), days, np.concatenate(outcomes))


def _wandered(mean: Floats, bins: int) -> Floats:
    """Chances of bins that are equally full in the long run, shape (..., bins)."""
    edges = ndtri(np.arange(1, bins) / bins) * np.sqrt(1 + 0.3**2)
    cdf, ends = ndtr(edges - mean[..., None]), np.zeros((*mean.shape, 1))
    return np.diff(cdf, axis=-1, prepend=ends, append=ends + 1)


def _daily(drawn: Counts, days: int, outcomes: Counts) -> Month:
    now = len(drawn) - days
    spans = np.stack([np.arange(now), np.arange(1, now + 1)], axis=1)
    return Month(
        drawn[:days],
        drawn[days:],
        spans,
        0,
        MONTH_DAYS,
        drift.by_time(days, 1),
        drift.DAY_S,
        outcomes[:days],
        outcomes[days:],
        _of_a_model(_SAID),
    )


# Flights --------------------------------------------------------------------------------------------------------------

_CHUNK = 200
# Seen first, so that few features are of every kind: schedule, two places, and the weather.
_ORDER = ("sched_dep_min", "temp", "carrier", "pressure", "dest", "origin", "sched_arr_min", "day_of_week", "distance")
_WEATHER = ("dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "visib")
_KINDS = 40


@dataclass(frozen=True)
class Flights:
    """Bins of every flight of the year: codes, shape (rows, 50 features), in ten and in fifty bins.

    days: first row of each day, and the end. weekday: of each day. 34 of the features are combinations of the others;
    the last of all are the scores of a logistic regression, whether a flight is late. outcome: number of each row's
    loss among `losses`; one beyond where it never landed.
    """

    coarse: NDArray[np.uint8]
    fine: NDArray[np.uint8]
    days: NDArray[np.int64]
    weekday: NDArray[np.int64]
    scale: Scale
    outcome: NDArray[np.uint8]
    losses: Floats


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
    late = table["late"].to_numpy(zero_copy_only=False)
    scores, outcome, losses = _scored(np.stack(standard, axis=1), late)
    for found in (coarse, fine):
        found.append(scores)
    means.append(np.zeros(FINE_BINS + 10))
    numeric.append(False)
    day = table["event_time"].cast("int64").to_numpy() // 1_000_000 // 86_400
    first = np.flatnonzero(np.diff(day, prepend=-1))
    return Flights(
        np.stack(coarse, axis=1),
        np.stack(fine, axis=1),
        np.append(first, len(day)),
        (day[first] + 3) % 7,
        Scale(np.stack(means), np.array(numeric)),
        outcome,
        losses,
    )


def _scored(inputs: Floats, late: Floats) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Floats]:
    """Bin of each row's score, its loss's number, and the losses."""
    from sklearn.linear_model import LogisticRegression

    landed = ~np.isnan(late)
    model = LogisticRegression().fit(inputs[landed], late[landed])
    said = model.predict_proba(inputs)[:, 1]
    bins = np.searchsorted(np.quantile(said, np.arange(1, 10) / 10), said, side="right")
    rate = np.array([late[landed & (bins == k)].mean() for k in range(10)])
    outcome = np.where(landed, bins + np.where(late == 1, 0, 10), 20)
    return bins.astype(np.uint8), outcome.astype(np.uint8), _of_a_model(rate)


def _stretch(rng: Rng, codes: NDArray[np.uint8], year: Flights, days: int) -> tuple[Counts, Counts, NDArray[np.int64]]:
    """Counts and outcomes per 200 rows of so many days, each any day of the year of its weekday; rows until each day's
    end."""
    by_weekday = [np.flatnonzero(year.weekday == d) for d in range(7)]
    start = rng.integers(7)
    picked = [int(rng.choice(by_weekday[(start + i) % 7])) for i in range(days)]
    rows = np.concatenate([np.arange(year.days[d], year.days[d + 1]) for d in picked])
    n = len(rows) // _CHUNK
    bins, features, n_losses = FINE_BINS + 11, codes.shape[1], len(year.losses)
    which = codes[rows[: n * _CHUNK]].reshape(n, _CHUNK, features).astype(np.int64)
    which += (np.arange(n)[:, None, None] * features + np.arange(features)) * bins
    counts = np.bincount(which.ravel(), minlength=n * features * bins).reshape(n, features, bins)
    lost = year.outcome[rows[: n * _CHUNK]].astype(np.int64) + np.repeat(np.arange(n), _CHUNK) * (n_losses + 1)
    outcomes = np.bincount(lost, minlength=n * (n_losses + 1)).reshape(n, n_losses + 1)[:, :-1]
    return counts, outcomes, np.cumsum([year.days[d + 1] - year.days[d] for d in picked])


def flown(rng: Rng, days: int, live: int, *, fine: bool) -> Iterator[tuple[int, Month]]:
    """The same month in windows of 200, 2,000 and 20,000 rows. A window counts in the month in which it ends."""
    year = of_the_year()
    codes = year.fine if fine else year.coarse
    before = 22  # as many days as the largest window needs, so that one may end at any day of the month
    reference, outcomes, _ = _stretch(rng, codes, year, days)
    now, live_outcomes, until = _stretch(rng, codes, year, before + live * MONTH_DAYS)
    per_month = MONTH_DAYS * len(codes) / (len(year.days) - 1)
    used = (reference.sum(axis=(0, 1)) + now.sum(axis=(0, 1))) > 0
    for rows in (200, 2_000, 20_000):
        size = rows // _CHUNK
        block = max(1, size // 10)

        def blocks(chunks: Counts, block: int = block) -> Counts:
            n = len(chunks) // block
            return np.asarray(chunks[: n * block].reshape(n, block, *chunks.shape[1:]).sum(axis=1))

        known, live_blocks = blocks(reference)[:, :, used], blocks(now)[:, :, used]
        spans = drift.by_time(len(live_blocks), size // block)
        begins = int(until[before - 1]) // (block * _CHUNK)
        yield (
            rows,
            Month(
                known,
                live_blocks,
                spans[spans[:, 1] > begins],
                begins,
                per_month / rows,
                drift.by_rows(np.full(len(known), block * _CHUNK), rows),
                days * drift.DAY_S / len(known),
                blocks(outcomes),
                blocks(live_outcomes),
                year.losses,
            ),
        )
