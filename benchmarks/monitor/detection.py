"""How soon a change is seen, beside river's ADWIN, Page-Hinkley, DDM and KSWIN (0.22, BSD-3).

    python benchmarks/monitor/detection.py          # some ten minutes on a core
    python benchmarks/monitor/detection.py --quick

An error rate that rises from 0.15 to 0.30 at row 2,000, row by row: false alarms within 20,000 quiet rows, and the
median delay of those that see it later (a detector that calls before is begun anew), with river's defaults.

Planted shifts of one of five numeric columns and a category: median delay in rows, at one false alarm in 20,000 quiet
rows over all six columns. Ours: profiles of ten rows, windows of 200, limits from a reference of 120,000 rows; the
sooner of evidence and the window's index; and a classifier every 2,000 rows, which alone is asked about the correlation
(few streams: each is some hundred permutations). What is asked of the budget is set so that the rate found is that.
Kolmogorov-Smirnov per window of 200 (chi-square for the category): its cut is simulated. River's: a detector on each
column after 10,000 rows without a change, the setting found by bisection, the delay that of the column that shifts; a
missing value is 5, categories are numbers, a new one the next of them. `-`: not seen within 10,000 rows (KSWIN 4,000)
by half of the streams.

River lives in an environment of its own below .bench/, made by the first run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov, ndtri

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.monitor.shifts import (
    HORIZON,
    JUMP,
    KINDS,
    NUMERIC,
    QUIET,
    SHIFTS,
    WINDOW,
    Floats,
    Shift,
    errors,
    stream,
)
from mlops_ray.data.distance import psi
from mlops_ray.monitoring import drift, evidence
from mlops_ray.monitoring.multivariate import tell
from mlops_ray.monitoring.sequential import State, Watch, update
from mlops_ray.monitoring.yardstick import Gathering, measure

ROOT = Path(__file__).parents[2]
WANTED = ("river==0.22.0",)
# Of ours: a promise of twice the quiet stretch is false within it in less than a run of twenty.
RUN_LENGTH = 2.0 * QUIET
BLOCK, REFERENCE, SPAN = 10, 120_000, 2_000
# Of the rate, the classifier's part (as in `budget`), and what drift is asked for so that it alarms as often as is
# left: limits from a reference are careful.
TOLD_APART, ASKED = 0.075, 1.15
EDGES = ndtri(np.arange(1, 10) / 10)
TOGETHER = "correlation 0 to 0.8"

Whole = NDArray[np.int64]


def our_errors(seed: int, runs: int) -> tuple[float, float, int]:
    watch = Watch(0.15, RUN_LENGTH)
    calls, delays = 0, []
    for i in range(runs):
        calls += update(watch, State(), errors(seed, i, QUIET, 0.15)).alarm is not None
        before = update(watch, State(), errors(seed, i, JUMP, 0.15))
        before = State() if before.alarm else before
        after = update(watch, before, errors(seed, i, HORIZON, 0.30))
        delays.append((after.alarm or before.n + HORIZON) - before.n)
    return calls / runs, float(np.median(delays)), runs


def codes(rows: Floats) -> list[Whole]:
    """Bin of each row by column: numbers in ten bins, and last the missing."""
    found = [np.searchsorted(EDGES, rows[:, c], side="right") for c in range(NUMERIC)] + [rows[:, NUMERIC]]
    bins = _bins()
    return [np.where(np.isnan(rows[:, c]), bins[c] - 1, found[c]).astype(np.int64) for c in range(NUMERIC + 1)]


def _bins() -> list[int]:
    return [len(EDGES) + 2] * NUMERIC + [KINDS + 2]


def histograms(rows: Floats) -> dict[str, Whole]:
    """Per column, rows per bin in every block, shape (blocks, bins)."""
    n, out = len(rows) // BLOCK, {}
    for column, (found, bins) in enumerate(zip(codes(rows[: n * BLOCK]), _bins(), strict=True)):
        out[str(column)] = np.bincount(found + bins * (np.arange(n * BLOCK) // BLOCK), minlength=n * bins)
        out[str(column)] = out[str(column)].reshape(n, bins)
    return out


@dataclass(frozen=True)
class Ours:
    """What a reference says: its counts, limits of windows, and how evidence is gathered."""

    counts: dict[str, Whole]
    limits: dict[str, float]
    gathering: dict[str, Gathering]

    @classmethod
    def of(cls, seed: int, i: int) -> Ours:
        counts = histograms(stream(seed, i, REFERENCE, 0, None))
        n = REFERENCE // BLOCK
        found = measure(counts, drift.by_time(n, WINDOW // BLOCK), drift.alike(n, BLOCK, 8), gather=True)
        level = (1 - TOLD_APART) * ASKED * WINDOW / QUIET
        limits, how = (None, None) if found is None else (found.limits(level), found.gathering(level))
        assert limits is not None
        assert how is not None
        return cls({name: c.sum(axis=0) for name, c in counts.items()}, limits, how)

    def alarms(self, rows: Floats) -> tuple[list[int], list[int]]:
        """Rows after which evidence, begun anew after each, and windows alarm."""
        live = histograms(rows)
        gained = {}
        for name, counts in live.items():
            found = evidence.gains(evidence.bets(self.counts[name][None])[0], counts[:, None])
            gained[name] = found / self.gathering[name].effects
        n, start, early = len(rows) // BLOCK, 0, []
        while start < n:
            firsts = [n]
            for name, found in gained.items():
                enough = evidence.gathered(found[start:], evidence.weights(live[name].shape[1]))[0][:, 0]
                over = enough > self.gathering[name].limit
                firsts += [start + int(over.argmax())] if over.any() else []
            start = min(firsts) + 1
            early += [start * BLOCK] if start <= n else []
        per, late = WINDOW // BLOCK, np.zeros(n * BLOCK // WINDOW, np.bool_)
        for name, counts in live.items():
            windows = counts[: len(late) * per].reshape(len(late), per, -1).sum(axis=1)
            late |= psi(self.counts[name], windows) > self.limits[name]
        return early, [(int(w) + 1) * WINDOW for w in np.flatnonzero(late)]


def tests(whole: Floats, rows: Floats) -> Floats:
    """Smallest p-value of each window over its columns. Args: whole: the reference, each column sorted."""
    n = len(rows) // WINDOW
    windows = rows[: n * WINDOW].reshape(n, WINDOW, NUMERIC + 1)
    found = np.ones((n, NUMERIC + 1))
    for column in range(NUMERIC):
        x = np.sort(windows[:, :, column], axis=1)  # the missing last
        known = ~np.isnan(x)
        size = known.sum(axis=1, keepdims=True)
        cdf = np.searchsorted(whole[:, column], x, side="right") / len(whole)
        steps = np.arange(WINDOW + 1) / size
        gap = np.maximum(np.abs(steps[:, 1:] - cdf), np.abs(cdf - steps[:, :-1]))
        gap = np.where(known, gap, 0).max(axis=1)
        m = size[:, 0]
        found[:, column] = kolmogorov(np.sqrt(m * len(whole) / (m + len(whole))) * gap)
    kinds = np.stack([(windows[:, :, NUMERIC] == k).sum(axis=1) for k in range(KINDS + 1)], axis=1)
    base = np.array([(whole[:, NUMERIC] == k).sum() for k in range(KINDS + 1)]) / len(whole) * WINDOW
    found[:, NUMERIC] = chdtrc(KINDS - 1, ((kinds - base) ** 2 / np.maximum(base, 0.5)).sum(axis=1))
    return np.asarray(found.min(axis=1))


def told_apart(seed: int, i: int, shift: Shift) -> int:
    """Rows until a classifier tells a span from the holdout; blocks of 200 rows on either side."""
    rng = np.random.default_rng([seed, i])
    into = int(rng.integers(SPAN))
    known = np.stack(codes(stream(seed + 6, i, 4_000, 0, None)), axis=1).astype(np.uint16)
    rows = np.stack(codes(stream(seed + 5, i, into, HORIZON, shift)), axis=1).astype(np.uint16)
    for end in range(SPAN, len(rows) + 1, SPAN):
        span, blocks = rows[end - SPAN : end], np.arange(SPAN) // WINDOW
        level = TOLD_APART * SPAN / QUIET
        told = tell(known, np.arange(4_000) // WINDOW, span, blocks, alarm_level=level, min_rows=WINDOW, rng=rng)
        if told.alarm and end > into:
            return end - into
    return HORIZON


def our_windows(seed: int, runs: int) -> Iterator[tuple[str, float | None, float | None]]:
    """Shift, our median delay and that of KS per window. The change comes at any row of a window. First comes the rate:
    false alarms of drift in 20,000 rows."""
    references = [Ours.of(seed + 3, i) for i in range(max(4, runs // 4))]
    whole = np.sort(stream(seed + 3, 0, REFERENCE, 0, None), axis=0)
    quiet, n = [stream(seed + 4, i, 5 * QUIET, 0, None) for i in range(len(references))], 0
    for ours, rows in zip(references, quiet, strict=True):
        n += sum(map(len, ours.alarms(rows)))
    yield "rate", n / 5 / len(references), None
    p = np.sort(np.concatenate([tests(whole, rows) for rows in quiet]))
    cut = p[int(len(p) * WINDOW / QUIET)]
    for kind, (_, shift) in SHIFTS.items():
        delays, of_ks = [], []
        for i in range(runs):
            into = 2_000 + (7 * i) % WINDOW  # so many rows of a window are as before
            rows = stream(seed + 5, i, into, HORIZON, shift)
            if kind != TOGETHER:
                seen = [at - into for said in references[i % len(references)].alarms(rows) for at in said if at > into]
                delays.append(min([*seen, HORIZON]))
            low = np.flatnonzero(tests(whole, rows) < cut)
            of_ks.append(min([(int(w) + 1) * WINDOW - into for w in low if (w + 1) * WINDOW > into] + [HORIZON]))
        if kind == TOGETHER:
            delays = [told_apart(seed, i, shift) for i in range(max(1, runs // 10))]
        yield kind, *(x if x < HORIZON else None for x in (float(np.median(delays)), float(np.median(of_ks))))


def environment(folder: Path) -> Path:
    """The Python of an environment with river; made when it is not there."""
    python, done = folder / "bin/python", folder / "installed.json"
    if not done.exists() or json.loads(done.read_text(encoding="utf-8")) != list(WANTED):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *WANTED], check=True)
        done.write_text(json.dumps(WANTED), encoding="utf-8")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--quiet", type=int, default=1_200_000, help="rows on which a setting of river's is judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="for the environment")
    parser.add_argument("--quick", action="store_true", help="10 streams, and settings from 40,000 rows")
    parser.add_argument("--river", type=Path, help="what rivers.py printed before, instead of a new run")
    given = parser.parse_args()
    runs, quiet = (10, 40_000) if given.quick else (given.runs, given.quiet)
    if given.river is None:
        plan = json.dumps({"seed": given.seed, "runs": runs, "quiet": quiet})
        argv = [str(environment(given.folder / "river")), str(Path(__file__).parent / "rivers.py"), plan]
        said = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    else:
        said = given.river.read_text(encoding="utf-8")
    theirs = json.loads(said.splitlines()[-1])
    print("| error rate 0.15 to 0.30 | false alarms in 20,000 | median delay | streams |", "|---" * 4 + "|", sep="\n")
    ours = our_errors(given.seed, 100 if given.quick else 2_000)
    for name, (share, delay, n) in {"ours": ours, **theirs["errors"]}.items():
        print(f"| {name} | {share:.1%} | {delay:,.0f} | {n} |")
    names = ("ADWIN", "Page-Hinkley", "KSWIN")
    print(f"\n| shift | ours | KS per window | {' | '.join(names)} |", "|---" * 6 + "|", sep="\n")
    for kind, mine, ks in our_windows(given.seed, runs):
        if kind == "rate":
            print(f"| (false alarms in 20,000 rows) | {mine:.2f} | 1 | 1 | 1 | 1 |", flush=True)
            continue
        cells = [mine, ks, *(theirs["shifts"].get(kind, {}).get(name) for name in names)]
        print(f"| {kind} | {' | '.join('-' if c is None else f'{c:,.0f}' for c in cells)} |", flush=True)
    print(f"\nSettings of river's: {theirs['settings']}")


if __name__ == "__main__":
    main()
