"""How soon a change is seen, beside river's ADWIN, Page-Hinkley, DDM and KSWIN (0.22, BSD-3).

    python benchmarks/monitor/detection.py          # some ten minutes on a core
    python benchmarks/monitor/detection.py --quick

An error rate that rises from 0.15 to 0.30 at row 2,000, row by row: false alarms within 20,000 quiet rows, and the
median delay of those that see it later (a detector that calls before is begun anew), with river's defaults.

Planted shifts of one of five numeric columns and a category: median delay in rows, at no more than one false alarm in
20,000 quiet rows. Ours and Kolmogorov-Smirnov (chi-square for the category; its cut is simulated, so that it keeps the
same rate) judge windows of 200 rows over all six columns; a detector of river's watches the shifted column alone, a
favour, its threshold the most sensitive of a few that keeps the rate. Categories are numbers there, a new one the next
of them; a missing value is 5. `-`: not seen within 10,000 rows by half of the streams (KSWIN, which is slow: 4,000
rows, fewer streams).

River lives in an environment of its own below .bench/, made by the first run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

WANTED = ("river==0.22.0",)
QUIET, JUMP = 20_000, 2_000
# Of ours: a promise of twice the quiet stretch is false within it in less than a run of twenty.
RUN_LENGTH = 2.0 * QUIET
WINDOW, HORIZON, SLOW_HORIZON = 200, 10_000, 4_000
NUMERIC, KINDS = 5, 4

Floats = NDArray[np.float64]
Rng = np.random.Generator
Shift = Callable[[Rng, Floats, Floats], None]


# Streams --------------------------------------------------------------------------------------------------------------


def errors(seed: int, i: int, n: int, rate: float) -> NDArray[np.bool_]:
    return np.random.default_rng([seed, i, int(1000 * rate)]).random(n) < rate


def _mean(size: float) -> Shift:
    def shift(rng: Rng, x: Floats, done: Floats) -> None:
        x[:, 0] += size

    return shift


def _spread(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] *= 1.5


def _new_category(rng: Rng, x: Floats, done: Floats) -> None:
    x[rng.random(len(x)) < 0.04, NUMERIC] = KINDS


def _missing(rng: Rng, x: Floats, done: Floats) -> None:
    x[rng.random(len(x)) < 0.06, 0] = np.nan


def _gradual(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] += np.minimum(done / (20 * WINDOW), 1.0)


def _correlation(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] = 0.8 * x[:, 1] + 0.6 * x[:, 0]


# Name, the column that river watches, and what is done to rows after the change.
SHIFTS: dict[str, tuple[int, Shift]] = {
    "mean 0.1": (0, _mean(0.1)),
    "mean 0.25": (0, _mean(0.25)),
    "mean 0.5": (0, _mean(0.5)),
    "mean 1": (0, _mean(1.0)),
    "variance x 2.25": (0, _spread),
    "new category, 4 %": (NUMERIC, _new_category),
    "missing 0 to 6 %": (0, _missing),
    "mean 0 to 1 over 20 windows": (0, _gradual),
    "correlation 0 to 0.8": (0, _correlation),
}


def stream(seed: int, i: int, before: int, after: int, shift: Shift | None) -> Floats:
    """Rows of five standard normal columns and a category of four, shifted from row `before` on."""
    rng = np.random.default_rng([seed, i])
    x = rng.normal(size=(before + after, NUMERIC + 1))
    x[:, NUMERIC] = rng.choice(KINDS, before + after, p=(0.4, 0.3, 0.2, 0.1))
    if shift:
        shift(rng, x[before:], np.arange(after, dtype=np.float64))
    return x


# River ----------------------------------------------------------------------------------------------------------------


def river(plan: dict[str, Any]) -> dict[str, Any]:
    """Runs inside river's environment."""
    from river import drift
    from river.drift.binary import DDM, HDDM_A

    seed, runs = plan["seed"], plan["runs"]

    def first(detector: Any, rows: Any) -> int | None:
        for i, row in enumerate(rows, start=1):
            detector.update(row)
            if detector.drift_detected:
                return i
        return None

    of_errors: dict[str, tuple[Callable[[], Any], int]] = {
        "ADWIN": (drift.ADWIN, runs),
        "Page-Hinkley": (drift.PageHinkley, runs),
        "DDM": (DDM, runs),
        "HDDM_A": (HDDM_A, runs),
        "KSWIN": (lambda: drift.KSWIN(seed=1), plan["slow_runs"]),
    }
    found: dict[str, Any] = {"errors": {}, "shifts": {}, "settings": {}}
    for name, (make, n) in of_errors.items():
        calls, delays = 0, []
        for i in range(n):
            calls += first(make(), errors(seed, i, QUIET, 0.15).tolist()) is not None
            detector = make()
            for row in errors(seed, i, JUMP, 0.15).tolist():
                detector.update(row)
                if detector.drift_detected:
                    detector = make()
            delays.append(first(detector, errors(seed, i, HORIZON, 0.30).tolist()) or HORIZON)
        found["errors"][name] = (calls / n, float(np.median(delays)), n)
    choices: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "ADWIN": [(f"delta {d}", lambda d=d: drift.ADWIN(delta=d)) for d in (0.5, 0.2, 0.05, 0.01, 0.002)],
        "Page-Hinkley": [
            (f"threshold {t}", lambda t=t: drift.PageHinkley(threshold=t)) for t in (10, 20, 40, 80, 160, 320, 640)
        ],
        "KSWIN": [(f"alpha {a}", lambda a=a: drift.KSWIN(alpha=a, seed=1)) for a in (1e-3, 1e-4, 1e-5, 1e-6)],
    }
    for name, makes in choices.items():
        slow = name == "KSWIN"
        n = plan["slow_runs"] if slow else runs
        for column in (0, NUMERIC):  # numbers, then the category
            chosen = None
            for said, make in makes:
                quiet = [stream(seed + 1, i, 2_000 if slow else QUIET, 0, None)[:, column].tolist() for i in range(n)]
                share = _alarms(make, quiet) / sum(map(len, quiet))
                if share <= 1 / QUIET:
                    chosen = make
                    found["settings"][f"{name}, {'numbers' if column == 0 else 'category'}"] = said
                    break
            for kind, (watched, shift) in SHIFTS.items():
                if watched != column:
                    continue
                delays = []
                for i in range(n if chosen else 0):
                    horizon = SLOW_HORIZON if slow else HORIZON
                    rows = np.nan_to_num(stream(seed, i, JUMP, horizon, shift)[:, column], nan=5.0).tolist()
                    detector = chosen()
                    for row in rows[:JUMP]:
                        detector.update(row)
                        if detector.drift_detected:
                            detector = chosen()
                    delays.append(first(detector, rows[JUMP:]) or horizon)
                median = float(np.median(delays)) if delays else float(HORIZON)
                seen = bool(delays) and median < (SLOW_HORIZON if slow else HORIZON)
                found["shifts"].setdefault(kind, {})[name] = median if seen else None
    return found


def _alarms(make: Callable[[], Any], streams: list[list[float]]) -> int:
    count = 0
    for rows in streams:
        detector = make()
        for row in rows:
            detector.update(row)
            if detector.drift_detected:
                count += 1
                detector = make()
    return count


# Ours -----------------------------------------------------------------------------------------------------------------


def our_errors(seed: int, runs: int) -> tuple[float, float, int]:
    from mlops_ray.monitoring.sequential import State, Watch, update

    watch = Watch(0.15, RUN_LENGTH)
    calls, delays = 0, []
    for i in range(runs):
        calls += update(watch, State(), errors(seed, i, QUIET, 0.15)).alarm is not None
        before = update(watch, State(), errors(seed, i, JUMP, 0.15))
        before = State() if before.alarm else before
        after = update(watch, before, errors(seed, i, HORIZON, 0.30))
        delays.append((after.alarm or before.n + HORIZON) - before.n)
    return calls / runs, float(np.median(delays)), runs


def histograms(rows: Floats, edges: Floats) -> list[NDArray[np.int64]]:
    """Per column, rows per bin in every window of 200: shape (windows, bins); numbers in bins and missing."""
    n = len(rows) // WINDOW
    out = []
    for column in range(NUMERIC + 1):
        x = rows[: n * WINDOW, column]
        bins = len(edges) + 2 if column < NUMERIC else KINDS + 2
        codes = np.searchsorted(edges, x, side="right") if column < NUMERIC else x
        codes = np.where(np.isnan(x), bins - 1, codes).astype(np.int64) + bins * (np.arange(len(x)) // WINDOW)
        out.append(np.bincount(codes, minlength=n * bins).reshape(n, bins))
    return out


def our_windows(seed: int, runs: int) -> Iterator[tuple[str, float | None, float | None]]:
    """Shift, our median delay and that of KS per window. The change comes at any row of a window."""
    from scipy.special import chdtrc, kolmogorov, ndtri

    from mlops_ray.data.distance import psi
    from mlops_ray.monitoring import drift

    edges = ndtri(np.arange(1, 10) / 10)
    alarm_level = WINDOW / QUIET
    n_reference = 60_000

    def tests(reference: Floats, rows: Floats) -> Floats:
        """Smallest p-value of each window, times nothing: its cut is simulated."""
        n = len(rows) // WINDOW
        windows = rows[: n * WINDOW].reshape(n, WINDOW, NUMERIC + 1)
        found = np.ones((n, NUMERIC + 1))
        for column in range(NUMERIC):
            whole = np.sort(reference[:, column])
            for w in range(n):
                x = np.sort(windows[w, :, column])
                x = x[~np.isnan(x)]
                cdf = np.searchsorted(whole, x, side="right") / len(whole)
                steps = np.arange(len(x) + 1) / len(x)
                gap = max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1]))
                found[w, column] = kolmogorov(np.sqrt(len(x) * len(whole) / (len(x) + len(whole))) * gap)
        kinds = np.stack([(windows[:, :, NUMERIC] == k).sum(axis=1) for k in range(KINDS + 1)], axis=1)
        base = np.array([(reference[:, NUMERIC] == k).sum() for k in range(KINDS + 1)]) / len(reference) * WINDOW
        found[:, NUMERIC] = chdtrc(KINDS - 1, ((kinds - base) ** 2 / np.maximum(base, 0.5)).sum(axis=1))
        return found.min(axis=1)

    smallest = np.concatenate(
        [tests(stream(seed + 2, i, n_reference, 0, None), stream(seed + 3, i, QUIET, 0, None)) for i in range(10)]
    )
    cut = float(np.quantile(smallest, alarm_level))
    for kind, (_, shift) in SHIFTS.items():
        delays: dict[str, list[int]] = {"ours": [], "KS": []}
        for i in range(runs):
            reference = stream(seed + 4, i, n_reference, 0, None)
            known = {str(c): counts for c, counts in enumerate(histograms(reference, edges))}
            n = n_reference // WINDOW
            found = drift.measure(known, drift.by_time(n, 1), drift.alike(n, WINDOW, 8))
            limits = found.limits(alarm_level) if found else None
            assert limits is not None
            into = 1 + (i * WINDOW) // runs  # so many rows of the first window are as before
            rows = stream(seed + 5, i, into, HORIZON, shift)
            alarms = np.zeros(len(rows) // WINDOW, np.bool_)
            for c, counts in enumerate(histograms(rows, edges)):
                alarms |= psi(known[str(c)].sum(axis=0), counts) > limits[str(c)]
            for name, said in (("ours", alarms), ("KS", tests(reference, rows) < cut)):
                delays[name].append((int(said.argmax()) + 1) * WINDOW - into if said.any() else HORIZON)
        ours, ks = (float(np.median(delays[name])) for name in ("ours", "KS"))
        yield kind, *(x if x < HORIZON else None for x in (ours, ks))


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
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--slow-runs", type=int, default=10, help="of KSWIN, at a third of a millisecond a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="for the environment")
    parser.add_argument("--quick", action="store_true", help="10 streams, one of KSWIN's")
    parser.add_argument("--river", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.river:
        print(json.dumps(river(json.loads(given.river))))
        return
    runs, slow = (10, 1) if given.quick else (given.runs, given.slow_runs)
    plan = json.dumps({"seed": given.seed, "runs": runs, "slow_runs": slow})
    argv = [str(environment(given.folder / "river")), __file__, "--river", plan]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    theirs = json.loads(said.splitlines()[-1])
    print("| error rate 0.15 to 0.30 | false alarms in 20,000 | median delay | streams |", "|---" * 4 + "|", sep="\n")
    ours = our_errors(given.seed, 100 if given.quick else 2_000)
    for name, (share, delay, n) in {"ours": ours, **theirs["errors"]}.items():
        print(f"| {name} | {share:.1%} | {delay:,.0f} | {n} |")
    names = ("ADWIN", "Page-Hinkley", "KSWIN")
    print(f"\n| shift | ours | KS per window | {' | '.join(names)} |", "|---" * 6 + "|", sep="\n")
    for kind, mine, ks in our_windows(given.seed, max(10, runs // 2)):
        cells = [mine, ks, *(theirs["shifts"].get(kind, {}).get(name) for name in names)]
        print(f"| {kind} | {' | '.join('-' if c is None else f'{c:,.0f}' for c in cells)} |", flush=True)
    print(f"\nSettings of river's: {theirs['settings']}")


if __name__ == "__main__":
    main()
