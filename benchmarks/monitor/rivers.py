"""The part of the benchmark of detection that runs inside river's environment: prints JSON.

Its detectors are river's own; only the p-value that KSWIN asks scipy for is read from a table of the same numbers,
for scipy computes it anew in a third of a millisecond.
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_right
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from river import drift
from river.drift import kswin
from river.drift.binary import DDM, HDDM_A
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.monitor.shifts import (
    BEFORE,
    HORIZON,
    JUMP,
    MISSING_IS,
    NUMERIC,
    QUIET,
    SHIFTS,
    SLOW_HORIZON,
    errors,
    stream,
)

# A detector stands on each of the six columns, and all of them together may be false once in QUIET rows.
COLUMN_RATE = 1 / QUIET / (NUMERIC + 1)
# Least and most of a setting that is searched, and whether larger is more sensitive.
RANGES: dict[str, tuple[float, float, bool]] = {
    "ADWIN": (1e-3, 1e4, True),
    "Page-Hinkley": (5.0, 1e3, False),
    "KSWIN": (1e-9, 5e-3, True),
}
STEPS = 8


@cache
def _p_value(n: int, m: int, steps: int) -> float:
    """Of the statistic steps / lcm(n, m)."""
    unit = math.lcm(n, m)
    a = np.repeat(0.0, n)
    # Two samples with this gap: so many of the second lie below all of the first, the others level with it.
    below = round(steps * m / unit)
    return float(stats.ks_2samp(a, np.r_[np.full(below, -1.0), np.zeros(m - below)], method="auto").pvalue)


def _two_samples(a: list[float], b: list[float], method: str = "auto") -> tuple[float, float]:
    a, b = sorted(a), sorted(b)
    gap = max(abs(bisect_right(a, x) * len(b) - bisect_right(b, x) * len(a)) for x in {*a, *b})
    return gap / len(a) / len(b), _p_value(len(a), len(b), round(gap * math.lcm(len(a), len(b)) / len(a) / len(b)))


class _Stats:
    ks_2samp = staticmethod(_two_samples)


kswin.stats = _Stats


def make(name: str, setting: float) -> Any:
    if name == "ADWIN":
        return drift.ADWIN(delta=setting)
    return drift.PageHinkley(threshold=setting) if name == "Page-Hinkley" else drift.KSWIN(alpha=setting, seed=1)


def first(detector: Any, rows: Any) -> int | None:
    for i, row in enumerate(rows, start=1):
        detector.update(row)
        if detector.drift_detected:
            return i
    return None


def ran(build: Callable[[], Any], rows: Any) -> tuple[Any, int]:
    """The detector after these rows, begun anew at each of its alarms, and how many there were."""
    detector, alarms = build(), 0
    for row in rows:
        detector.update(row)
        if detector.drift_detected:
            detector, alarms = build(), alarms + 1
    return detector, alarms


def setting(name: str, column: int, seed: int, rows: int) -> float:
    """The most sensitive one that keeps the rate on so many quiet rows, by halving the interval of its logarithm."""
    low, high, rises = RANGES[name]
    quiet = [stream(seed + 1, i, QUIET, 0, None)[:, column].tolist() for i in range(max(1, rows // QUIET))]
    allowed = COLUMN_RATE * len(quiet) * QUIET
    least, most = (math.log(low), math.log(high)) if rises else (math.log(high), math.log(low))
    for _ in range(STEPS):
        middle = (least + most) / 2
        alarms = 0
        for one in quiet:
            alarms += ran(partial(make, name, math.exp(middle)), one)[1]
            if alarms > allowed:
                break
        if alarms <= allowed:
            least = middle
        else:
            most = middle
    return math.exp(least)


def main() -> None:
    plan = json.loads(sys.argv[1])
    seed, runs, quiet = plan["seed"], plan["runs"], plan["quiet"]
    of_errors: dict[str, Callable[[], Any]] = {
        "ADWIN": drift.ADWIN,
        "Page-Hinkley": drift.PageHinkley,
        "DDM": DDM,
        "HDDM_A": HDDM_A,
        "KSWIN": lambda: drift.KSWIN(seed=1),
    }
    found: dict[str, Any] = {"errors": {}, "shifts": {}, "settings": {}}
    for name, build in of_errors.items():
        calls, delays, n = 0, [], max(1, runs // 4) if name == "KSWIN" else runs
        for i in range(n):
            calls += first(build(), errors(seed, i, QUIET, 0.15).tolist()) is not None
            detector, _ = ran(build, errors(seed, i, JUMP, 0.15).tolist())
            delays.append(first(detector, errors(seed, i, HORIZON, 0.30).tolist()) or HORIZON)
        found["errors"][name] = (calls / n, float(np.median(delays)), n)
    for name in RANGES:
        slow = name == "KSWIN"
        n, before, horizon = (max(1, runs // 4), 200, SLOW_HORIZON) if slow else (runs, BEFORE, HORIZON)
        for column in (0, NUMERIC):  # numbers, then the category
            chosen = setting(name, column, seed, quiet // 8 if slow else quiet)
            found["settings"][f"{name}, {'numbers' if column == 0 else 'category'}"] = chosen
            for kind, (watched, shift) in SHIFTS.items():
                if watched != column:
                    continue
                delays = []
                for i in range(n):
                    rows = np.nan_to_num(stream(seed, i, before, horizon, shift)[:, column], nan=MISSING_IS).tolist()
                    detector, _ = ran(partial(make, name, chosen), rows[:before])
                    delays.append(first(detector, rows[before:]) or horizon)
                median = float(np.median(delays))
                found["shifts"].setdefault(kind, {})[name] = median if median < horizon else None
            print(name, column, chosen, found["shifts"], file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
