"""How often equal arms of an A/B/n experiment are dropped, or one of them is said to be better.

    python benchmarks/rollout/arms.py            # 2,000 experiments a row, a look after each of 5,000 keys of each arm
    python benchmarks/rollout/arms.py --runs 200 --keys 1000

One metric at alpha 5 %, shared by the arms. `false drop`: some arm that is as good as stable was dropped; `false
winner`: some such arm was said to be better. Brackets are 95 % Clopper-Pearson intervals; a row `keeps` alpha where
both upper ends are at most alpha. `same row`: log-loss differences to stable on the arm's own rows. `by assignment`:
errors (10 %) of the arm's keys against those of stable, where all arms are compared with the same keys of stable, so
that their luck is shared. The last table: one arm of several is better, and how many of its keys that takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout import worlds
from benchmarks.rollout.worlds import BOUND, Floats, Found, Rng
from mlops_ray.rollout.analysis import SPENT
from mlops_ray.rollout.evidence import Differences, by_assignment, capital, within

ALPHA = 0.05
CHUNK = 20
ERRORS = 0.1


def same_row(rng: Rng, runs: int, k: int, n: int) -> Iterator[Differences]:
    """Each arm's differences, of equal arms: shape (runs, n)."""
    for _ in range(k):
        yield within(worlds.gaps(rng, (runs, n)), -BOUND, BOUND)


def assigned(rng: Rng, runs: int, k: int, n: int) -> Iterator[Differences]:
    """The same by assignment: k arms and stable have equal shares of the keys, each arm about n of them."""
    who = rng.integers(0, k + 1, (runs, n * (k + 1)))
    error = (rng.random(who.shape) < ERRORS).astype(np.float64)
    for arm in range(1, k + 1):
        # The others' keys are not in the comparison: no outcome, which changes no capital.
        found = by_assignment(error, who == arm, np.full(who.shape, 0.5), low=0.0, high=1.0)
        yield Differences(np.where((who == arm) | (who == 0), found.value, 0.0), found.low, found.high)


def reached(differences: Differences, k: int) -> np.ndarray:
    return np.asarray(capital(differences, 0.0).max(axis=-1) >= k / (SPENT * ALPHA))


def row(rng: Rng, what: str, k: int, *, runs: int, n: int) -> str:
    worlds_of = {"same row": same_row, "by assignment": assigned}[what]
    dropped, won = [], []
    for start in range(0, runs, CHUNK):
        size = min(CHUNK, runs - start)
        arms = list(worlds_of(rng, size, k, n))
        dropped.append(np.any([reached(arm, k) for arm in arms], axis=0))
        won.append(np.any([reached(-arm, k) for arm in arms], axis=0))
    found = [Found(int(np.concatenate(one).sum()), runs) for one in (dropped, won)]
    kept = "keeps" if all(f.upper <= ALPHA for f in found) else "may keep"
    kept = "breaks" if any(f.lower > ALPHA for f in found) else kept
    return f"| {what} | {k} | {found[0]} | {found[1]} | {kept} |"


def power_row(rng: Rng, k: int, better: float, *, runs: int, n: int) -> str:
    """Keys of the better arm until it is proven, on the same rows."""
    when: list[Floats] = []
    for start in range(0, runs, CHUNK):
        gaps = within(worlds.gaps(rng, (min(CHUNK, runs - start), n), worse=-better), -BOUND, BOUND)
        proven = capital(-gaps, 0.0)[:, 1:] >= k / (SPENT * ALPHA)
        when.append(np.where(proven.any(axis=1), proven.argmax(axis=1) + 1.0, np.inf))
    low, middle, high = np.quantile(np.concatenate(when), (0.1, 0.5, 0.9), method="higher")
    shown = [f"{v:,.0f}" if np.isfinite(v) else f"never within {n:,}" for v in (middle, low, high)]
    return f"| {better:g} | {k} | {shown[0]} ({shown[1]} to {shown[2]}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=6)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    print("| compared | arms | false drop | false winner | alpha |\n|---|---|---|---|---|")
    for what in ("same row", "by assignment"):
        for k in (1, 3, 5):
            print(row(rng, what, k, runs=given.runs, n=given.keys), flush=True)
    print("\n| log-loss better by | arms | its keys until it has won, median (10 to 90 %) |\n|---|---|---|")
    for better in (0.02, 0.05):
        for k in (1, 3, 5):
            print(power_row(rng, k, better, runs=given.runs // 10, n=2 * given.keys), flush=True)


if __name__ == "__main__":
    main()
