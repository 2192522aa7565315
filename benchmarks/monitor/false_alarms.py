"""Alarms without drift: months of three worlds against budgets of 0.2, 1 and 5 alarms a month, all detectors together.

    python benchmarks/monitor/false_alarms.py  # 200 references, five months against each
    python benchmarks/monitor/false_alarms.py --quick  # 20 references, one month

Reference and live rows are drawn afresh for every reference, and live ones for each of its months. `ours` counts, under
the project's whole budget, every alarm of: drift of the features and scores when a window ends; evidence gathered about
them block by block; realised quality of each window, against the newest fifth of the reference as the holdout; the
sequential detector of the loss; and the domain classifier once a week. The last is not run here: its test is exact, so
it alarms in each week with the probability that is its level (`together.py` runs it). In brackets stands the
simultaneous upper 95 % bound over all cells (Bonferroni; of each cell the larger of Poisson's exact bound and the
normal bound over references, for alarms against one reference are not independent), and where it is not 0 the share of
references whose drift limits are `uncalibrated`: there the other detectors count alone. `parts`: alarms a month by
detector, at a budget of 1.

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
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.special import chdtrc, chdtri, kolmogorov
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.monitor import worlds
from benchmarks.monitor.worlds import FEW, FINE_BINS, MANY, N_BINS, Counts, Floats, Month, Scale
from mlops_ray.config import Monitoring
from mlops_ray.data.distance import psi
from mlops_ray.monitoring import drift, evidence, performance, sequential, watching
from mlops_ray.monitoring.budget import share
from mlops_ray.monitoring.yardstick import Gathering, measure

BUDGETS = (0.2, 1.0, 5.0)
SIZES = (200, 2_000, 20_000)
PEERS = ("PSI > 0.1", "PSI > 0.2", "KS p < 0.05", "Evidently column", "Evidently table", "NannyML")
MIN_BLOCKS = 8
Alarms = dict[str, int | None]
CELLS = 3 * len(SIZES) * 2 * len(BUDGETS)


@dataclass
class Cell:
    """What was found of one world, size of window and number of features. alarms: per budget, by detector, against each
    reference; drift's is None where uncalibrated. peers: alarms of each, per month of theirs."""

    alarms: dict[float, list[Alarms]] = field(default_factory=lambda: defaultdict(list))
    peers: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Rate:
    """Alarms a month, the simultaneous upper bound, and the share of references whose drift was not calibrated."""

    mean: float
    upper: float
    uncalibrated: float

    @classmethod
    def of(cls, alarms: list[Alarms], live: int) -> Rate:
        """Args: alarms: of `live` months each."""
        found = np.array([sum(a or 0 for a in each.values()) for each in alarms]) / live
        without = float(np.mean([each["windows"] is None for each in alarms]))
        miss = 0.05 / CELLS
        poisson = chdtri(2 * (found.sum() * live + 1), miss) / 2 / len(found) / live
        normal = found.mean() + norm.ppf(1 - miss) * found.std(ddof=1) / np.sqrt(len(found))
        return cls(float(found.mean()), float(max(poisson, normal)), without)


# Contestants ----------------------------------------------------------------------------------------------------------


def ours(month: Month, of_losses: dict[float, Alarms]) -> dict[float, Alarms]:
    """Alarms under each budget, by detector. Args: of_losses: those of detectors that look at no feature."""
    known = {}
    for i in range(month.reference.shape[1]):
        used = (month.reference[:, i].any(axis=0)) | (month.live[:, i].any(axis=0))
        name = str(i) if i < month.reference.shape[1] - 1 else drift.SCORES
        known[name] = (month.reference[:, i][:, used], month.live[:, i][:, used])
    together = drift.alike(len(month.reference), month.block_s, MIN_BLOCKS)
    found = measure({name: r for name, (r, _) in known.items()}, month.tiling, together, gather=True)
    statistics = {name: psi(r.sum(axis=0), worlds.summed(now, month.spans)) for name, (r, now) in known.items()}
    gained = {
        name: (evidence.gains(evidence.bets(r.sum(axis=0)[None])[0], now[:, None]), evidence.weights(r.shape[1]))
        for name, (r, now) in known.items()
    }
    alarms: dict[float, Alarms] = {}
    for budget in BUDGETS:
        level = drift.level(share(plan(budget, month), "drift"), drift.MONTH_S / month.per_month)
        limits = found.limits(level) if found else None
        windows, blocks = None, None
        if found is not None and limits is not None:
            windows = int(np.any([statistics[name] > limit for name, limit in limits.items()], axis=0).sum())
            gathering = found.gathering(level)
            assert gathering is not None
            blocks = gathered(gained, gathering, month.begins)
        alarms[budget] = {"windows": windows, "evidence": blocks, **of_losses[budget]}
    return alarms


def plan(budget: float, month: Month) -> Monitoring:
    """A project's, with so large a budget."""
    return Monitoring(
        block_s=month.block_s,
        window_s=month.block_s,
        multivariate_s=month.block_s,
        min_blocks=MIN_BLOCKS,
        false_alarms_per_month=budget,
    )


def gathered(gained: dict[str, tuple[Floats, Floats]], gathering: dict[str, Gathering], begins: int) -> int:
    """Alarms of evidence since block `begins`; after each it is begun anew. Args: gained: in each block by each bet,
    and the bets' weights."""
    alarms, start, n = 0, 0, len(gained[drift.SCORES][0])
    while start < n:
        firsts = [n]
        for name, how in gathering.items():
            found, weight = gained[name]
            over = evidence.gathered(found[start:] / how.effects, weight)[0][:, 0] > how.limit
            firsts += [start + int(over.argmax())] if over.any() else []
        at = min(firsts)
        alarms += begins <= at < n
        start = at + 1
    return alarms


def by_loss(rng: np.random.Generator, month: Month, live: int) -> dict[float, Alarms]:
    """Alarms of the detectors that look at no feature, under each budget."""
    n = len(month.outcomes)
    kept = month.outcomes[n - n // 5 :]
    start = np.arange(len(kept)) * month.block_s
    rows, sums = kept.sum(axis=1), kept @ month.losses
    holdout = [(float(t), int(r), float(s), 0.0) for t, r, s in zip(start, rows, sums, strict=True)]
    some = rng.choice(month.losses, 4_000, p=kept.sum(axis=0) / kept.sum())
    windows = worlds.summed(month.live_outcomes, month.spans)
    means = windows @ month.losses / np.maximum(windows.sum(axis=1), 1)
    size = int(np.median(np.diff(month.spans, axis=1)))
    alarms: dict[float, Alarms] = {}
    for budget in BUDGETS:
        mine = plan(budget, month)
        level = drift.level(share(mine, "quality"), drift.MONTH_S / month.per_month)
        limit = performance.limit(holdout, size, level, min_blocks=MIN_BLOCKS)
        quality = 0 if limit is None else int((means > limit).sum())
        scale = watching.measured(mine, holdout, some)
        losses = 0 if isinstance(scale, str) else sequential_alarms(scale, month)
        told = rng.poisson(share(mine, "multivariate") * live)
        alarms[budget] = {"quality": quality, "losses": losses, "multivariate": int(told)}
    return alarms


def sequential_alarms(scale: watching.Scale, month: Month) -> int:
    """Alarms of the sequential detector, begun anew after each."""
    each = sequential.gains(scale.watch, np.minimum(month.losses / scale.bound, 1.0))
    gained = each @ month.live_outcomes.T / scale.watch.design_effect
    alarms, start = 0, 0
    while start < gained.shape[1]:
        at = sequential.step(scale.watch, sequential.State(), gained[:, start:]).alarm
        if at is None:
            break
        start += at
        alarms += start > month.begins
    return alarms


def peers(month: Month, scale: Scale, coarse: Counts | None) -> list[int]:
    """Alarming windows of a month by each of `PEERS`, from fine bins. Args: coarse: fine bins to one of the ten, where
    they are that; else PSI is left to a month of coarse bins."""
    month = replace(month, reference=month.reference[:, :-1], live=month.live[:, :-1])  # they know no scores
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
                of_losses = by_loss(rng, month, live)
                for features, cell in found.items():
                    for budget, alarms in ours(month.first(features), of_losses).items():
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
            of_losses = by_loss(rng, month, live)
            for features in (FEW, MANY):
                for budget, alarms in ours(month.first(features), of_losses).items():
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
    parser.add_argument("--months", type=int, default=200, help="references")
    parser.add_argument("--live-months", type=int, default=5, help="against each reference")
    parser.add_argument("--worlds", default="abc")
    parser.add_argument("--peer-months", type=int, default=5)
    parser.add_argument("--reference-days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 references, a month against each, 2 of the peers'")
    given = parser.parse_args()
    months, asked, live = (20, 2, 1) if given.quick else (given.months, given.peer_months, given.live_months)
    start = time.perf_counter()
    worst, least = 0.0, np.inf
    ours_of = " | ".join(f"ours, {budget:g} a month" for budget in BUDGETS)
    print(
        f"| world | rows | features | {ours_of} | parts | {' | '.join(PEERS)} |",
        "|---" * 13 + "|",
        sep="\n",
        flush=True,
    )
    sizes = (months, asked, given.reference_days, live, given.seed)
    found = chain(drawn(*sizes, given.worlds), counted(*sizes) if "b" in given.worlds else ())
    for world, rows, features, cell in found:
        said = []
        for budget, alarms in cell.alarms.items():
            rate = Rate.of(alarms, live)
            said.append(
                f"{rate.mean:.2f} [{rate.upper:.2f}]" + (f" {rate.uncalibrated:.0%}" if rate.uncalibrated else "")
            )
            worst = max(worst, rate.upper / budget)
            if world.startswith("(a)"):
                least = min(least, rate.mean / budget)
        of_one = cell.alarms[1.0]
        said.append(" ".join(f"{np.mean([each[k] or 0 for each in of_one]) / live:.2f}" for k in of_one[0]))
        others = [f"{x:.1f}" for x in np.mean(cell.peers, axis=0)] if cell.peers else [""] * len(PEERS)
        print(f"| {world} | {rows:,} | {features} | {' | '.join([*said, *others])} |", flush=True)
    took = time.perf_counter() - start
    print(f"\nparts: {' '.join(of_one[0])}")
    print(f"{months} references of {given.reference_days} days, {live} months against each, {took:.0f} s.")
    print(f"Largest upper bound: {worst:.2f} of the budget (wanted: at most 1.25).")
    print(f"Fewest alarms of independent rows: {least:.2f} of the budget (wanted: at least 0.5).")


if __name__ == "__main__":
    main()
