"""How soon a canary that is worse is found out.

    python benchmarks/rollout/power.py

Error rates by assignment, one metric at alpha 5 %: outcomes of the canary until it is rolled back, by a plan that does
not bake, and by one that does and so keeps a fifth of the coin for that. A canary that fails every row: rows until
`analyse` says so, with one metric and with alpha shared over four. Log-loss: keys of the canary
until one that is 2, 5 and 10 % worse is rolled back, compared on the same row and by assignment at 50 %, where the
canary's keys are half of all. A fixed test with 80 % power stands beside where its size is known beforehand.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout import worlds
from benchmarks.rollout.worlds import BOUND, CLIP, Floats, Rng
from mlops_ray.config.analyses import Disagreement, Failures, Latency, LogLoss
from mlops_ray.rollout.analysis import KEPT, SPENT, analyse
from mlops_ray.rollout.evidence import by_assignment, capital, within
from mlops_ray.rollout.outcomes import Answers, Outcomes
from mlops_ray.training.gates.verdict import Verdict

ALPHA = 0.05
LEVEL = SPENT * ALPHA
LOW = -math.log1p(-CLIP)


def first(path: Floats) -> Floats:
    """Outcomes until the capital decides, infinite where it does not: shape (runs,)."""
    hit = path >= 1 / LEVEL
    return np.where(hit.any(axis=1), hit.argmax(axis=1), np.inf)


def kept(path: Floats) -> Floats:
    """What a gambler holds in the trial of a plan that bakes."""
    return np.asarray((1 - KEPT) * path + KEPT)


def told(found: Floats) -> str:
    """Median, and the tenth and ninetieth percentile."""
    low, middle, high = (
        f"{q:,.0f}" if np.isfinite(q) else "never" for q in np.quantile(found, (0.1, 0.5, 0.9), method="lower")
    )
    return f"{middle} ({low} to {high})"


def fixed(stable: float, canary: float, share: float) -> float:
    """Canary outcomes of a z-test for two shares, one look, two-sided 5 %, 80 % power."""
    z = norm.ppf(1 - ALPHA / 2) + norm.ppf(0.8)
    spread = canary * (1 - canary) + stable * (1 - stable) * share / (1 - share)
    return float(z**2 * spread / (canary - stable) ** 2)


def errors(rng: Rng, runs: int) -> None:
    print("\n| errors, stable to canary | share | median (10 to 90 %) | with `bake_s` | fixed test |")
    print("|---|---|---|---|---|")
    for stable, canary, share, n in (
        (0.05, 0.10, 0.5, 4000),
        (0.05, 0.10, 0.01, 4000),
        (0.05, 0.07, 0.5, 16_000),
        (0.20, 0.25, 0.5, 8000),
        (0.01, 0.02, 0.05, 12_000),
    ):
        counts = worlds.events(rng, runs, n, np.full(n, share), stable, canary)
        path = worlds.capital_of_counts(counts, 0.0, fine=False)
        found, bakes = first(path) + 1, first(kept(path)) + 1
        alone = fixed(stable, canary, share)
        rates = f"{100 * stable:g} to {100 * canary:g} %"
        print(f"| {rates} | {share:g} | {told(found)} | {told(bakes)} | {alone:,.0f} |", flush=True)


def always_failing() -> None:
    one = (Failures(),)
    four = (LogLoss(), Failures(), Latency(above_ms=10), Disagreement(margin=0.05))
    for name, plan in (("one metric", one), ("alpha shared over four", four)):
        for keeps, says in ((0.0, ""), (KEPT, ", bakes")):
            found = (analyse(plan, failing(n), alpha=ALPHA, min_keys=100, kept=keeps) for n in range(1, 51))
            n = next(n for n, one in enumerate(found, start=1) if one.verdict is Verdict.FAIL)
            print(f"A canary that fails every row, {name}{says}: out after {n} of its rows")


def failing(n: int) -> Outcomes:
    nothing, zeros = np.full(n, np.nan), np.zeros(n)
    stable = Answers(zeros, nothing, np.full(n, 0.7), np.full(n, 100.0))
    looks = np.arange(n)
    none = Answers(nothing, nothing, nothing, nothing)
    return Outcomes(looks, looks, looks, nothing, np.ones(n, np.bool_), np.full(n, 0.1), stable, none)


def extra_for(worse: float) -> tuple[float, float]:
    """Noise of the canary's logits that makes its log-loss worse by that share, and stable's log-loss."""

    def excess(extra: float) -> float:
        label, stable, canary = worlds.scores(np.random.default_rng(1), (400_000,), extra=extra)
        return float(worlds.loss(label, canary).mean() / worlds.loss(label, stable).mean() - 1 - worse)

    label, stable, _ = worlds.scores(np.random.default_rng(1), (400_000,))
    return float(brentq(excess, 0.0, 3.0, xtol=1e-3)), float(worlds.loss(label, stable).mean())


def losses(rng: Rng, runs: int) -> None:
    print("\n| log-loss worse by | same row: canary's keys, median (10 to 90 %) | with `bake_s` ", end="")
    print("| by assignment | ratio of medians |\n|---|---|---|---|---|")
    for worse, n_paired, n_apart in ((0.02, 60_000, 700_000), (0.05, 4000, 160_000), (0.10, 2000, 40_000)):
        extra, level = extra_for(worse)
        paired, bakes, apart = [], [], []
        for _ in range(runs):
            label, stable, canary = worlds.scores(rng, (1, n_paired), extra=extra)
            gap = worlds.loss(label, canary) - worlds.loss(label, stable)
            path = capital(within(gap, -BOUND, BOUND), 0.0)
            paired.append(first(path))
            bakes.append(first(kept(path)))
        for _ in range(max(runs // 4, 1)):
            label, stable, canary = worlds.scores(rng, (1, n_apart), extra=extra)
            mine = rng.random(label.shape) < 0.5
            served = worlds.loss(label, np.where(mine, canary, stable))
            centre = np.clip(-np.log(stable**2 + (1 - stable) ** 2), LOW, LOW + BOUND)
            x = by_assignment(served, mine, np.full(mine.shape, 0.5), low=LOW, high=LOW + BOUND, centre=centre)
            apart.append(first(capital(x, 0.0)) / 2)
        same, baked, other = (np.concatenate(each) for each in (paired, bakes, apart))
        ratio = np.median(other) / np.median(same)
        cells = f"{told(same)} | {told(baked)} | {told(other)} | {ratio:.0f}"
        print(f"| {100 * worse:g} % of {level:.3f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    always_failing()
    errors(rng, given.runs)
    losses(rng, max(given.runs // 2, 1))


if __name__ == "__main__":
    main()
