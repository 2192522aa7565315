"""What baking finds, what it costs the trial, and whether both together keep alpha.

    python benchmarks/rollout/baking.py            # 2,000 runs a row
    python benchmarks/rollout/baking.py --runs 200

One metric at alpha 5 %, compared on the same row, a look after each key; brackets are 95 % Clopper-Pearson intervals.
First: versions that are as good as the one before them in trial and baking, and how many are rolled back on evidence in
either; the trial ends where the gambler on "fine" has won, at `--trial` keys otherwise, and baking hears as many keys
again. Second: what the part of the coin that is kept costs a trial, on the canary of `power.py`. Third: versions that
are fine in a trial and turn bad when they are promoted: keys that it takes while they bake, with the coin that was
kept, and with one gambler for trial and baking.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout import power, worlds
from benchmarks.rollout.worlds import BOUND, Floats, Found, Rng
from mlops_ray.rollout.analysis import KEPT, LEAST, SPENT
from mlops_ray.rollout.evidence import capital, within

ALPHA = 0.05
BAR = 1 / (SPENT * ALPHA)
CHUNK = 20
LIMIT = 431 * 1.15

Draw = Callable[[Rng, tuple[int, int], float], Floats]


def errors(rng: Rng, shape: tuple[int, int], worse: float) -> Floats:
    """Differences of wrong labels, 1 % of stable's, of versions that err by themselves; in [-1, 1]."""
    return (rng.random(shape) < 0.01 + worse).astype(np.float64) - (rng.random(shape) < 0.01)


def losses(rng: Rng, shape: tuple[int, int], worse: float) -> Floats:
    """Differences of log-losses; `worse`: share of stable's log-loss."""
    label, stable, canary = worlds.scores(rng, shape, extra=power.extra_for(worse)[0] if worse else 0.0)
    return worlds.loss(label, canary) - worlds.loss(label, stable)


WORLDS: dict[str, tuple[Draw, float, float]] = {"errors 1 %": (errors, 1.0, 0.01), "log-loss": (losses, BOUND, 0.02)}
"""Each with its bound and margin."""


def together(trial: Floats, baking: Floats, bound: float) -> tuple[Floats, Floats, Floats]:
    """Capital on "worse" after each key: of all, of those while baking (1 in the trial), and what is judged by.

    Both of shape (runs, keys); returns of shape (runs, keys of both + 1)."""
    of_all = capital(within(np.concatenate([trial, baking], axis=1), -bound, bound), 0.0)
    later = capital(within(baking, -bound, bound), 0.0)
    later[:, :LEAST] = np.minimum(later[:, :LEAST], 1.0)
    later = np.concatenate([np.ones(trial.shape), later], axis=1)
    return of_all, later, (1 - KEPT) * of_all + KEPT * later


def promoted(trial: Floats, bound: float, margin: float) -> np.ndarray:
    """Keys of each run until "fine" has won, all of them where it has not: shape (runs,)."""
    won = capital(within(-trial, -bound, bound), -margin)[:, 100:] >= BAR
    return np.where(won.any(axis=1), won.argmax(axis=1) + 100, trial.shape[1])


def chunks(runs: int) -> Iterator[int]:
    yield from (min(CHUNK, runs - start) for start in range(0, runs, CHUNK))


def equal_row(rng: Rng, name: str, *, runs: int, n: int) -> str:
    draw, bound, margin = WORLDS[name]
    found: list[tuple[bool, bool]] = []
    for size in chunks(runs):
        trial, baking = draw(rng, (size, n), 0.0), draw(rng, (size, n), 0.0)
        for run, end in enumerate(promoted(trial, bound, margin)):
            held = together(trial[run : run + 1, :end], baking[run : run + 1], bound)[2][0] >= BAR
            in_trial = bool(held[: end + 1].any())
            found.append((in_trial, not in_trial and bool(held.any())))
    in_trial, in_baking = (Found(int(sum(one)), runs) for one in zip(*found, strict=True))
    both = Found(in_trial.k + in_baking.k, runs)
    kept = "keeps" if both.upper <= ALPHA else "breaks" if both.lower > ALPHA else "may keep"
    return f"| {name} | {in_trial} | {in_baking} | {both} | {kept} |"


def price(rng: Rng, *, runs: int, seed_share: float = 0.5) -> None:
    counts = worlds.events(rng, runs, 4000, np.full(4000, seed_share), 0.05, 0.10)
    path = worlds.capital_of_counts(counts, 0.0, fine=False)
    print("\n| 5 to 10 % errors, 1:1 | canary's outcomes, median (10 to 90 %) |\n|---|---|")
    print(f"| nothing kept | {power.told(power.first(path) + 1)} |")
    with_kept = power.first((1 - KEPT) * path + KEPT) + 1
    print(f"| {100 * KEPT:g} % kept for baking (limit {LIMIT:.0f}) | {power.told(with_kept)} |", flush=True)


def bad_row(rng: Rng, name: str, worse: float, says: str, *, runs: int, trial_keys: int, n: int) -> str:
    draw, bound, _ = WORLDS[name]
    ours, alone = [], []
    for size in chunks(runs):
        trial, baking = draw(rng, (size, trial_keys), 0.0), draw(rng, (size, n), worse)
        of_all, _, held = together(trial, baking, bound)
        for found, path in ((ours, held), (alone, of_all)):
            found.append(power.first(path[:, trial_keys + 1 :]) + 1)
    return f"| {says} | {trial_keys:,} | {power.told(np.concatenate(ours))} | {power.told(np.concatenate(alone))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--trial", type=int, default=3000, help="most keys of a trial (default 3000)")
    parser.add_argument("--seed", type=int, default=8)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    print("| equal, by | in the trial | while it bakes | together | alpha |\n|---|---|---|---|---|")
    for name in WORLDS:
        print(equal_row(rng, name, runs=given.runs, n=given.trial), flush=True)
    price(rng, runs=given.runs)
    print("\n| turns bad | keys of the trial | keys while it bakes, median (10 to 90 %) | one gambler for both |")
    print("|---|---|---|---|")
    for trial_keys in (1000, 5000):
        for name, worse, says in (("errors 1 %", 0.04, "errors 1 to 5 %"), ("log-loss", 0.1, "log-loss 10 % worse")):
            line = bad_row(rng, name, worse, says, runs=given.runs // 4, trial_keys=trial_keys, n=6000)
            print(line, flush=True)


if __name__ == "__main__":
    main()
