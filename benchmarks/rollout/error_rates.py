"""How often a canary that is as good as stable is rolled back, and one that is worse by its margin promoted.

    python benchmarks/rollout/error_rates.py            # 5,000 runs a cell, looks after each of 20,000 canary outcomes
    python benchmarks/rollout/error_rates.py --runs 200 --outcomes 2000

One metric at alpha 5 %. `rolled back`: the canary is equal; `with bake_s`: the same in the trial of a plan that bakes,
which keeps a fifth of the coin for that; `promoted`: it is worse by exactly the margin. Brackets are 95 %
Clopper-Pearson intervals; a row `keeps` alpha where all upper ends are at most alpha, `may keep` it where alpha lies
within one of them, `breaks` it else. Beside ours, on the same equal canaries: a z-test for two shares (rows, one-sided
5 %) looked at after each outcome from the 100th on; a fixed threshold as in Flagger's default (at most 1 % of an
interval's requests failed, out after 5 bad intervals; an interval is 100 of the canary's requests); Mann-Whitney as in
Kayenta (error rates of those intervals, 98 % interval of the Hodges-Lehmann shift beyond 25 % of it), looked at after
every 10 intervals, in 400 of the runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.rollout import worlds
from benchmarks.rollout.worlds import BOUND, RAMP, Counts, Floats, Found, Rng
from mlops_ray.rollout.analysis import KEPT, SPENT, first_rows, per_key
from mlops_ray.rollout.evidence import by_assignment, capital, within

ALPHA = 0.05
LEVEL = SPENT * ALPHA
CHUNK = 50
INTERVAL = 100


@dataclass(frozen=True)
class Row:
    """A line of the table; what a contestant cannot be asked is None."""

    what: str
    share: str
    rolled_back: Found
    bakes: Found
    promoted: Found
    others: tuple[Found | None, ...] = (None, None, None)

    def __str__(self) -> str:
        ours = (self.rolled_back, self.bakes, self.promoted)
        kept = "keeps" if all(f.upper <= ALPHA for f in ours) else "may keep"
        kept = "breaks" if any(f.lower > ALPHA for f in ours) else kept
        cells = [str(f) for f in ours]
        cells += [f"{100 * f.k / f.n:.1f} %" if f else "" for f in self.others]
        return f"| {self.what} | {self.share} | " + " | ".join(cells) + f" | {kept} |"


HEAD = "| outcomes | share | rolled back | with `bake_s` | promoted | z-test | threshold | Mann-Whitney | alpha |"


def shares_of(name: str, n: int) -> Floats:
    if name == "ramp":
        return np.repeat(RAMP, -(-n // len(RAMP)))[:n]
    return np.full(n, float(name))


def chunks(runs: int) -> Iterator[int]:
    yield from (min(CHUNK, runs - start) for start in range(0, runs, CHUNK))


def count(found: list[np.ndarray]) -> Found:
    hit = np.concatenate(found)
    return Found(int(hit.sum()), len(hit))


def reached(most: list[Floats]) -> Found:
    """Runs in which a gambler decided. Args: most: the largest capital of each run that was looked at."""
    return count([each >= 1 / LEVEL for each in most])


def of_both(most: list[Floats]) -> tuple[Found, Found]:
    """Runs in which the gambler on "worse" decided, by a plan that does not bake, and by one that does."""
    return reached(most), reached([(1 - KEPT) * each + KEPT for each in most])


# Errors by assignment -------------------------------------------------------------------------------------------------


def error_row(rng: Rng, name: str, rate: float, *, runs: int, n: int) -> Row:
    """Error rates of both arms by assignment, unique keys; the margin is 1 % of rows, or a tenth of the rate."""
    share, margin = shares_of(name, n), max(0.01, rate / 10)
    back: list[Floats] = []
    forth: list[Floats] = []
    others: tuple[list[np.ndarray], ...] = ([], [], [])
    for size in chunks(runs):
        equal = worlds.events(rng, size, n, share, rate, rate)
        back.append(worlds.largest_capital(equal, 0.0, fine=False))
        worse = worlds.events(rng, size, n, share, rate, rate + margin)
        forth.append(worlds.largest_capital(worse, margin, fine=True))
        for found, test in zip(others, (z_test, threshold), strict=False):
            found.append(test(equal))
        if len(back) * CHUNK <= 400:  # sorts every pair of intervals: a quarter of the runs tells enough
            others[2].append(mann_whitney(equal))
    return Row(f"errors {100 * rate:g} %", name, *of_both(back), reached(forth), tuple(count(f) for f in others))


def z_test(counts: Counts) -> np.ndarray:
    """Whether a pooled z-test for two shares ever said "worse"."""
    k = np.arange(1, counts.canary.shape[1] + 1)
    rows = np.cumsum(counts.rows, axis=1)
    errors, other = np.cumsum(counts.canary, axis=1), np.cumsum(counts.stable, axis=1)
    pooled = (errors + other) / (k + rows)
    with np.errstate(all="ignore"):
        z = (errors / k - other / rows) / np.sqrt(pooled * (1 - pooled) * (1 / k + 1 / rows))
    return np.asarray((np.nan_to_num(z)[:, 99:] > norm.ppf(1 - ALPHA)).any(axis=1))


def by_interval(counts: Counts) -> tuple[Floats, Floats]:
    """Error rates of canary and stable in each interval, shape (runs, intervals)."""
    runs = len(counts.canary)
    errors, other, rows = (
        a[:, : a.shape[1] // INTERVAL * INTERVAL].reshape(runs, -1, INTERVAL).sum(axis=2)
        for a in (counts.canary, counts.stable, counts.rows)
    )
    return errors / INTERVAL, other / np.maximum(rows, 1)


def threshold(counts: Counts) -> np.ndarray:
    return np.asarray((by_interval(counts)[0] > 0.01).sum(axis=1) >= 5)


def mann_whitney(counts: Counts) -> np.ndarray:
    canary, stable = by_interval(counts)
    said = np.zeros(len(canary), np.bool_)
    for n in range(10, canary.shape[1] + 1, 10):
        for run in np.flatnonzero(~said):
            shifts = (canary[run, :n, None] - stable[run, None, :n]).ravel()
            # Normal approximation of the interval's rank, as wilcox.test does it for so many.
            lower = int(n * n / 2 - norm.ppf(0.99) * math.sqrt(n * n * (2 * n + 1) / 12))
            if lower < 0:
                continue
            least = float(np.partition(shifts, lower)[lower])
            said[run] = least > 0 and least > 0.25 * abs(float(np.median(shifts)))
    return said


# Losses on the same row, and keys that repeat -------------------------------------------------------------------------


def loss_row(rng: Rng, *, runs: int, n: int, margin: float = 0.02) -> Row:
    """Paired log-loss, one row per key. Only the canary's rows are used, so the share does not enter."""
    back, forth = [], []
    for size in chunks(runs):
        back.append(capital(within(worlds.gaps(rng, (size, n)), -BOUND, BOUND), 0.0).max(axis=1))
        worse = worlds.gaps(rng, (size, n), worse=margin)
        forth.append(capital(within(-worse, -BOUND, BOUND), -margin).max(axis=1))
    return Row("log-loss, paired", "any", *of_both(back), reached(forth))


def repeated_loss_row(rng: Rng, *, runs: int, n: int, margin: float = 0.02, as_rows: bool = False) -> Row:
    """Paired log-loss of rows whose keys repeat: a key's rows share their true logit, outcome and both errors."""
    back, forth = [], []
    looks = np.arange(n) // 50
    for _ in range(runs):
        keys = worlds.heavy_keys(rng, n)
        for found, worse in ((back, 0.0), (forth, margin)):
            rows = worlds.gaps(rng, (2000,), worse=worse)[keys]
            x = rows if as_rows else per_key(keys, looks, rows)
            sided = within(-x, -BOUND, BOUND) if worse else within(x, -BOUND, BOUND)
            found.append(capital(sided, -worse).max(keepdims=True))
    what = "log-loss, heavy keys" + (", taken as rows" if as_rows else "")
    return Row(what, "any", *of_both(back), reached(forth))


def repeated_error_row(rng: Rng, rate: float, *, runs: int, n: int) -> Row:
    """Errors by assignment at 50 %, rows whose keys repeat, stick to an arm, and have rates of their own (Beta, as
    uneven as 1 in 5); 2 * n rows, of which about n are the canary's."""
    back, forth = [], []
    margin = max(0.01, rate / 10)
    for _ in range(runs):
        keys = worlds.heavy_keys(rng, 2 * n)
        canary = (rng.random(2000) < 0.5)[keys]
        of_key = rng.beta(rate / 5, (1 - rate) / 5, 2000)
        chosen = first_rows(keys, np.arange(2 * n))
        for found, worse in ((back, 0.0), (forth, margin)):
            y = rng.random(2 * n) < of_key[keys]
            if worse:  # the rest of the canary's rows fail as well with the chance that makes it worse by the margin
                y |= canary & (rng.random(2 * n) < worse / (1 - rate))
            share = np.full(len(chosen), 0.5)
            x = by_assignment(y[chosen].astype(float), canary[chosen], share, low=0.0, high=1.0)
            path = capital(-x, -worse) if worse else capital(x, 0.0)
            found.append(path.max(keepdims=True))
    return Row(f"errors {100 * rate:g} %, heavy keys", "0.5", *of_both(back), reached(forth))


def rows(*, runs: int, n: int, seed: int = 0) -> Iterator[Row]:
    """All lines of the table, one after the other."""
    rng = np.random.default_rng(seed)
    yield loss_row(rng, runs=runs, n=n)
    yield repeated_loss_row(rng, runs=runs, n=n)
    yield repeated_loss_row(rng, runs=min(runs, 200), n=n, as_rows=True)
    for rate in (0.001, 0.01, 0.1):
        for name in ("0.01", "0.05", "0.5", "ramp"):
            yield error_row(rng, name, rate, runs=runs, n=n)
        yield repeated_error_row(rng, rate, runs=runs, n=n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--outcomes", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(HEAD, "|---" * 9 + "|", sep="\n", flush=True)
    for row in rows(runs=given.runs, n=given.outcomes, seed=given.seed):
        print(row, flush=True)


if __name__ == "__main__":
    main()
