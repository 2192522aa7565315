"""Alarms without drift: months of three worlds against budgets of 0.2, 1 and 5 alarms a month.

    python benchmarks/monitor/false_alarms.py  # 200 months, two minutes on a core; too few to bound a budget of 0.2
    python benchmarks/monitor/false_alarms.py --months 800 --live-months 5
    python benchmarks/monitor/false_alarms.py --quick  # 40 months

Reference and live windows are drawn afresh in every month (with `--live-months 5`, live ones in every month and the
reference in every fifth: of rare events that says more in the same time). `ours`: alarming windows a month where
thresholds are calibrated, over all features together; in brackets the simultaneous upper 95 % bound over all cells
(Bonferroni; of each cell the larger of Poisson's exact bound and the normal bound over references, for alarms against
one reference are not independent), and the share of references that are `uncalibrated`. The budget is all the drift
detector's.

Beside it, any column of a window: PSI above 0.1 and 0.2; Kolmogorov-Smirnov (of categories chi-square) with p < 0.05,
not corrected; Evidently's and NannyML's defaults *as documented*, computed here from histograms of fifty bins and not
by their packages. Evidently: normed Wasserstein distance of a number or Jensen-Shannon of a category at least 0.1; of
the table, in half of the columns. NannyML: Jensen-Shannon beyond three standard deviations around the mean of the
reference's chunks. The peers are asked in a part of the months: theirs are no rare events.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.special import chdtrc, chdtri, kolmogorov
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.monitor import worlds
from benchmarks.monitor.worlds import FEW, FINE_BINS, MANY, N_BINS, Counts, Floats, Month, Scale
from mlops_ray.data.distance import psi
from mlops_ray.monitoring import drift

BUDGETS = (0.2, 1.0, 5.0)
SIZES = (200, 2_000, 20_000)
PEERS = ("PSI > 0.1", "PSI > 0.2", "KS p < 0.05", "Evidently column", "Evidently table", "NannyML")
CELLS = 3 * len(SIZES) * 2 * len(BUDGETS)


@dataclass
class Cell:
    """What was found of one world, size of window and number of features. alarms: per budget, against each reference;
    None where uncalibrated. peers: alarms of each, per month of theirs."""

    alarms: dict[float, list[int | None]] = field(default_factory=lambda: defaultdict(list))
    peers: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Rate:
    """Alarms a month where calibrated, the simultaneous upper bound, and the share of references that were not."""

    mean: float
    upper: float
    uncalibrated: float

    @classmethod
    def of(cls, alarms: list[int | None], live: int) -> Rate:
        """Args: alarms: of `live` months each. Without two calibrated references mean and bound are NaN."""
        found = np.array([a for a in alarms if a is not None]) / live
        without = 1 - len(found) / len(alarms)
        if len(found) < 2:
            return cls(np.nan, np.nan, without)
        miss = 0.05 / CELLS
        poisson = chdtri(2 * (found.sum() * live + 1), miss) / 2 / len(found) / live
        normal = found.mean() + norm.ppf(1 - miss) * found.std(ddof=1) / np.sqrt(len(found))
        return cls(float(found.mean()), float(max(poisson, normal)), without)


# Contestants ----------------------------------------------------------------------------------------------------------


def ours(month: Month) -> dict[float, int | None]:
    """Alarming windows under each budget; None where there are no thresholds."""
    names = [str(i) for i in range(month.reference.shape[1])]
    counts = {name: month.reference[:, i] for i, name in enumerate(names)}
    together = drift.alike(len(month.reference), month.block_s, 8)
    found = drift.measure(counts, month.tiling, together)
    statistics = psi(month.reference.sum(axis=0), month.windows)
    alarms: dict[float, int | None] = {}
    for budget in BUDGETS:
        limits = found.limits(drift.level(budget, drift.MONTH_S / month.per_month)) if found else None
        over = None if limits is None else (statistics > np.array([limits[name] for name in names])).any(axis=1)
        alarms[budget] = None if over is None else int(over.sum())
    return alarms


def peers(month: Month, scale: Scale, coarse: Counts | None) -> list[int]:
    """Alarming windows of a month by each of `PEERS`, from fine bins. Args: coarse: fine bins to one of the ten, where
    they are that; else PSI is left to a month of coarse bins."""
    features = month.reference.shape[1]
    numeric, total = scale.numeric[:features], month.reference.sum(axis=0)
    if coarse is not None:
        over_ten = psi(np.add.reduceat(total, coarse, axis=-1), np.add.reduceat(month.windows, coarse, axis=-1))
        by_psi = [int((over_ten > cut).any(axis=1).sum()) for cut in (0.1, 0.2)]
    else:
        by_psi = []
    p, q = (_shares(x[..., :-1]) for x in (total, month.windows))
    gap = np.abs(p.cumsum(axis=-1) - q.cumsum(axis=-1))
    n, m = total[..., :-1].sum(axis=-1), month.windows[..., :-1].sum(axis=-1)
    tested = np.where(
        numeric, kolmogorov(np.sqrt(n * m / (n + m)) * gap.max(axis=-1)), _chi_square(total, month.windows)
    )
    means = scale.means[:features, : p.shape[-1]]
    area = (gap[..., :-1] * np.abs(np.diff(means))).sum(axis=-1)
    spread = np.sqrt((p * (means - (p * means).sum(axis=-1, keepdims=True)) ** 2).sum(axis=-1))
    js = _jensen_shannon(total, month.windows)
    # Evidently takes the natural logarithm.
    drifted = np.where(numeric, area / np.where(spread > 0, spread, 1), np.sqrt(np.log(2)) * js) >= 0.1
    chunks = _chunks(month)
    usual = _jensen_shannon(total, chunks)
    low, high = (usual.mean(axis=0) + side * 3 * usual.std(axis=0) for side in (-1, 1))
    nannyml = ((js > high) | (js < low)).any(axis=1)
    tables = (drifted.mean(axis=1) >= 0.5).sum()
    columns = [(tested < 0.05).any(axis=1).sum(), drifted.any(axis=1).sum(), tables, nannyml.sum()]
    return [*by_psi, *map(int, columns)]


def _shares(counts: Counts) -> Floats:
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1))


def _chunks(month: Month) -> Counts:
    tiling = month.tiling
    until = np.concatenate([np.zeros_like(month.reference[:1]), month.reference.cumsum(axis=0)])
    return np.asarray(until[tiling[:, 1]] - until[tiling[:, 0]])


def _jensen_shannon(reference: Counts, windows: Counts) -> Floats:
    p, q = np.broadcast_arrays(_shares(reference), _shares(windows))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.nan_to_num(p * np.log2(p / middle)) + np.nan_to_num(q * np.log2(q / middle))
    return np.asarray(np.sqrt(np.maximum(parts.sum(axis=-1) / 2, 0)))


def _chi_square(reference: Counts, windows: Counts) -> Floats:
    both = reference + windows
    share = windows.sum(axis=-1, keepdims=True) / both.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = (windows - share * both) ** 2 / (share * (1 - share) * both)
    freedom = np.maximum((both > 0).sum(axis=-1) - 1, 1)
    return np.asarray(chdtrc(freedom, np.nan_to_num(parts).sum(axis=-1)))


# Months ---------------------------------------------------------------------------------------------------------------


def drawn(
    months: int, asked: int, days: int, live: int, seed: int, worlds_of: str
) -> Iterator[tuple[str, int, int, Cell]]:
    """World, rows of a window, features and what was found, one after the other."""
    scale = worlds.normal_scale()
    tenths = np.append(np.arange(0, FINE_BINS, FINE_BINS // N_BINS), FINE_BINS)
    for world, draw in (("(a) independent", worlds.independent), ("(c) AR(1)", worlds.wandering)):
        for rows in SIZES if world[1] in worlds_of else ():
            rng = np.random.default_rng([seed, rows, len(world)])
            found = {FEW: Cell(), MANY: Cell()}
            for i in range(months):
                month = draw(rng, rows, days, live, N_BINS)
                fine = draw(rng, rows, days, 1, FINE_BINS) if i < asked else None
                for features, cell in found.items():
                    for budget, alarms in ours(month.first(features)).items():
                        cell.alarms[budget].append(alarms)
                    if fine is not None:
                        cell.peers.append(peers(fine.first(features), scale, tenths))
            for features, cell in found.items():
                yield world, rows, features, cell


def counted(months: int, asked: int, days: int, live: int, seed: int) -> Iterator[tuple[str, int, int, Cell]]:
    """The same of flights: one month is cut into windows of every size."""
    rng = np.random.default_rng([seed, 2013])
    flown = {(rows, features): Cell() for rows in SIZES for features in (FEW, MANY)}
    for i in range(months):
        for rows, month in worlds.flown(rng, days, live, fine=False):
            for features in (FEW, MANY):
                for budget, alarms in ours(month.first(features)).items():
                    flown[rows, features].alarms[budget].append(alarms)
        if i < asked:
            state = rng.bit_generator.state
            tens = list(worlds.flown(rng, days, 1, fine=False))
            rng.bit_generator.state = state
            for (rows, month), (_, ten) in zip(worlds.flown(rng, days, 1, fine=True), tens, strict=True):
                for features in (FEW, MANY):
                    statistics = psi(ten.reference.sum(axis=0), ten.windows)[:, :features]
                    by_psi = [int((statistics > cut).any(axis=1).sum()) for cut in (0.1, 0.2)]
                    others = peers(month.first(features), worlds.of_the_year().scale, None)
                    flown[rows, features].peers.append([*by_psi, *others])
    for (rows, features), cell in flown.items():
        yield "(b) flights", rows, features, cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=200, help="references; a budget of 0.2 needs 3,000 for a bound")
    parser.add_argument("--live-months", type=int, default=1, help="against each reference; 5 make 800 of them enough")
    parser.add_argument("--worlds", default="abc")
    parser.add_argument("--peer-months", type=int, default=20)
    parser.add_argument("--reference-days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="40 months, 2 of the peers'")
    given = parser.parse_args()
    months, asked = (40, 2) if given.quick else (given.months, given.peer_months)
    start = time.perf_counter()
    worst, least = 0.0, np.inf
    ours_of = " | ".join(f"ours, {budget:g} a month" for budget in BUDGETS)
    print(f"| world | rows | features | {ours_of} | {' | '.join(PEERS)} |", "|---" * 12 + "|", sep="\n", flush=True)
    sizes = (months, asked, given.reference_days, given.live_months, given.seed)
    found = chain(drawn(*sizes, given.worlds), counted(*sizes) if "b" in given.worlds else ())
    for world, rows, features, cell in found:
        said = []
        for budget, alarms in cell.alarms.items():
            rate = Rate.of(alarms, given.live_months)
            said.append(f"{rate.mean:.2f} [{rate.upper:.2f}] {rate.uncalibrated:.0%}")
            if not np.isnan(rate.mean):
                worst = max(worst, rate.upper / budget)
            if world.startswith("(a)") and not np.isnan(rate.mean):
                least = min(least, rate.mean / budget)
        others = [f"{x:.1f}" for x in np.mean(cell.peers, axis=0)] if cell.peers else [""] * len(PEERS)
        print(f"| {world} | {rows:,} | {features} | {' | '.join([*said, *others])} |", flush=True)
    took = time.perf_counter() - start
    print(
        f"\n{months} references of {given.reference_days} days, {given.live_months} months against each, {took:.0f} s."
    )
    print(f"Largest upper bound: {worst:.2f} of the budget (wanted: at most 1.25).")
    print(f"Fewest alarms of independent rows: {least:.2f} of the budget (wanted: at least 0.5).")


if __name__ == "__main__":
    main()
