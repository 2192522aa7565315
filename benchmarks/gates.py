"""What the comparison with the champion promises and what it costs, by simulation.

    python benchmarks/gates.py

First table: how often a candidate passes that is worse than the champion by exactly the margin, in per cent, for the
bound alone and for the gate (which also asks for planned power). Every generator has that true mean; the margin is
large beside the noise, so that the demand for power, which lets fewer pass, hides nothing unless a row says so. Beside
it what other bounds on the same draws would let through: Student's t with the errors that are usual for clusters, and
the percentiles of a block bootstrap. `upper` is the 95 % Clopper-Pearson bound of the gate's share. A row `keeps`
alpha where that bound is below alpha, `may keep` it where the share is not significantly above, and `breaks` it else.

Second table: how often an equal candidate passes, by blocks, correlation within blocks and margin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

Floats = np.ndarray
ALPHA, POWER, PILOT = 0.05, 0.8, 20


@dataclass(frozen=True)
class World:
    """How differences of losses come about, centred: rows (n,) and, shared by a block's rows, blocks (n_blocks,).

    within: weight of the rows beside the blocks'. promised: whether the documentation promises alpha here."""

    name: str
    row: Callable[[np.random.Generator, int], Floats]
    block: Callable[[np.random.Generator, int], Floats] | None = None
    within: float = 1.0
    promised: bool = True


def normal(rng: np.random.Generator, n: int) -> Floats:
    return rng.normal(size=n)


def student(rng: np.random.Generator, n: int) -> Floats:
    return rng.standard_t(3, n)


def exponential(rng: np.random.Generator, n: int) -> Floats:
    return rng.exponential(size=n) - 1.0


def lognormal(rng: np.random.Generator, n: int) -> Floats:
    return rng.lognormal(0.0, 1.0, n) - np.exp(0.5)


def storms(rng: np.random.Generator, n: int) -> Floats:
    """One block in ten is bad, and all others are alike."""
    return (rng.random(n) < 0.1) - 0.1


def sure(rng: np.random.Generator, n: int) -> Floats:
    """Log-loss of a candidate whose logits are twice the truth's, less that of the truth: rare and large when wrong."""
    logit = rng.normal(-1.0, 1.5, n)
    happened = rng.random(n) < 1 / (1 + np.exp(-logit))
    return np.where(happened, _excess(-logit), _excess(logit)) - _SURE


def _excess(logit: Floats) -> Floats:
    """Of log-loss where a row's outcome speaks against `logit`."""
    return np.logaddexp(0, 2 * logit) - np.logaddexp(0, logit)


def _sure_mean() -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    logit = -1.0 + 1.5 * nodes
    p = 1 / (1 + np.exp(-logit))
    return float((weights * (p * _excess(-logit) + (1 - p) * _excess(logit))).sum() / weights.sum())


_SURE = _sure_mean()

WORLDS = (
    World("rows normal", normal),
    World("rows t, 3 df", student),
    World("rows lognormal", lognormal),
    World("rows: too sure a model", sure),
    World("days normal", normal, normal, 0.5),
    World("days t, 3 df", normal, student, 0.5),
    World("days exponential", normal, exponential, 0.5),
    World("days lognormal", normal, lognormal, 0.5, promised=False),
    World("one day in ten bad", normal, storms, 0.05, promised=False),
)


def sizes(kind: str, n_blocks: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of each block: the same, lognormal (some ten times others), or half of all rows in one block."""
    if kind == "equal":
        return np.full(n_blocks, rows)
    if kind == "unequal":
        return np.maximum(1, rows * rng.lognormal(-0.32, 0.8, n_blocks)).astype(np.int64)
    return np.array([rows * (n_blocks - 1), *([rows] * (n_blocks - 1))])


def draw(world: World, index: np.ndarray, n_blocks: int, rng: np.random.Generator) -> Floats:
    """Differences of mean 0 for rows whose block is `index`."""
    noise = world.within * world.row(rng, len(index))
    return noise if world.block is None else noise + world.block(rng, n_blocks)[index]


def size_table(repetitions: int, resamples: int) -> list[tuple[str, ...]]:
    """Candidates worse by exactly the margin."""
    from scipy import stats

    from mlops_ray.training.evaluation.intervals import Blocks
    from mlops_ray.training.gates.comparison import compare

    lines = []
    for number, world in enumerate(WORLDS):
        for n_blocks in (5, 8, 12, 60):
            for place, kind in enumerate(("equal", "unequal", "one of half")):
                rng = np.random.default_rng([7, number, n_blocks, place])
                bound = gate = 0
                others = {"t": 0, "CR2": 0, "percentile": 0}
                margin = float("nan")
                for run in range(-PILOT, repetitions):
                    counts = sizes(kind, n_blocks, 40, rng)
                    index = np.repeat(np.arange(n_blocks), counts)
                    centred = draw(world, index, n_blocks, rng)
                    found = compare(
                        centred, Blocks(index, np.zeros(n_blocks)), alpha=ALPHA, resamples=resamples, rng=rng
                    )
                    if run < 0:  # the margin, from draws that count for nothing else
                        margin = np.nanmax([margin, 3 * found.se])
                        continue
                    # A true mean of 0 against 0 is one of `margin` against `margin`.
                    bound += found.upper < 0
                    gate += found.upper < 0 and found.power(margin) >= POWER
                    for name, upper in rivals(centred, index, counts, resamples, rng).items():
                        others[name] += upper < 0
                most = stats.beta.ppf(0.95, gate + 1, repetitions - gate) if gate < repetitions else 1.0
                least = stats.beta.ppf(0.05, gate, repetitions - gate + 1) if gate else 0.0
                says = "keeps" if most <= ALPHA else "may keep" if least <= ALPHA else "BREAKS"
                lines.append(
                    (
                        world.name,
                        str(n_blocks),
                        kind,
                        *(f"{100 * k / repetitions:.1f}" for k in (bound, gate)),
                        f"{100 * most:.1f}",
                        says if world.promised else f"{says} (not promised)",
                        *(f"{100 * k / repetitions:.1f}" for k in others.values()),
                    )
                )
    return lines


def rivals(
    values: Floats, index: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator
) -> dict[str, float]:
    """Upper bounds of others: Student's t with the linearised error; with CR2's and Satterthwaite's degrees of freedom
    (R. M. Bell and D. F. McCaffrey 2002); expanded percentiles of a block bootstrap."""
    from scipy import stats

    from mlops_ray.training.evaluation.intervals import resample, tail

    n, total, sums = len(counts), counts.sum(), np.bincount(index, weights=values)
    mean = sums.sum() / total
    residual, leverage = sums - mean * counts, counts / total
    error = np.sqrt(n / (n - 1) * (residual**2).sum()) / total
    adjusted = np.sqrt((residual**2 / (1 - leverage)).sum()) / total
    # tr(QV)^2 / tr(QVQV) of the quadratic form whose root is `adjusted`, for independent rows (V = counts).
    centre = np.eye(n) - np.outer(np.ones(n), counts) / total
    form = centre.T @ np.diag(1 / (1 - leverage)) @ centre
    spread = form * counts
    freedom = np.trace(spread) ** 2 / np.trace(spread @ spread)
    weights = resample(n, resamples, rng)
    means = (weights @ sums) / (weights @ counts)
    return {
        "t": mean + stats.t.isf(ALPHA, n - 1) * error,
        "CR2": mean + stats.t.isf(ALPHA, freedom) * adjusted,
        "percentile": float(np.quantile(means, 1 - tail(ALPHA, n))),
    }


def acceptance_table(repetitions: int, resamples: int) -> list[tuple[str, ...]]:
    """Equal candidates; a row's difference has standard deviation 0.15, of which days hold 0 or a tenth."""
    from mlops_ray.training.evaluation.intervals import Blocks
    from mlops_ray.training.gates.comparison import compare

    margins = (0.005, 0.01, 0.02, 0.05)
    lines = []
    for share in (0.0, 0.1):
        for n_blocks, rows in (
            (12, 50),
            (12, 200),
            (12, 1000),
            (30, 200),
            (30, 1000),
            (60, 200),
            (60, 1000),
            (365, 50),
        ):
            rng = np.random.default_rng([11, n_blocks, rows, int(100 * share)])
            index = np.repeat(np.arange(n_blocks), rows)
            grouped = Blocks(index, np.zeros(n_blocks))
            passed, enough = np.zeros(len(margins)), np.zeros(len(margins))
            for _ in range(repetitions):
                # Variance within: rows' sums are normal, so blocks' sums are drawn at once and spread over rows.
                days = rng.normal(0, 0.15 * share**0.5, n_blocks)
                days += rng.normal(0, 0.15 * ((1 - share) / rows) ** 0.5, n_blocks)
                found = compare(days[index], grouped, alpha=ALPHA, resamples=resamples, rng=rng)
                planned = np.array([found.power(margin) >= POWER for margin in margins])
                enough += planned
                passed += planned & np.array([found.upper < margin for margin in margins])
            lines.append(
                (
                    f"{share:g}",
                    str(n_blocks),
                    f"{n_blocks * rows:,}",
                    *(
                        f"{100 * p / repetitions:.0f} ({100 * e / repetitions:.0f})"
                        for p, e in zip(passed, enough, strict=True)
                    ),
                )
            )
    return lines


def main() -> None:
    """Runs both simulations and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()

    from benchmarks.measure import show

    what = "passes of a candidate worse by exactly the margin, %"
    show(
        f"{what}; alpha {100 * ALPHA:g} %, {args.repetitions:,} repetitions",
        ("differences", "blocks", "sizes", "bound", "gate", "upper", "alpha", "Student's t", "CR2", "percentiles"),
        size_table(args.repetitions, args.resamples),
    )
    show(
        "passes of an equal candidate, % (in brackets: has the planned power); standard deviation of a row 0.15",
        ("share of days", "blocks", "rows", "margin 0.005", "0.01", "0.02", "0.05"),
        acceptance_table(args.repetitions, args.resamples),
    )


if __name__ == "__main__":
    main()
