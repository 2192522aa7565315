"""The domain classifier: how often it alarms without a change, and how often it sees a correlation alone.

    python benchmarks/monitor/together.py            # 200 quiet windows, 50 changed ones, of three kinds of blocks
    python benchmarks/monitor/together.py --runs 40

Five standard normal columns in ten bins; a holdout of 30 blocks and windows of 7, of 60 rows each. `alike`: standard
deviation of what rows of a block have in common. Changed: the first column hangs on the second with a correlation of
0.8, which shows in no column alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlops_ray.monitoring.multivariate import tell

LEVEL = 0.05
ROWS = 60
EDGES = np.linspace(-1.6, 1.6, 9)


def rows(rng: np.random.Generator, n_blocks: int, alike: float, together: float) -> tuple[Any, Any]:
    """Bins of the columns, and the block of each row."""
    block = np.repeat(np.arange(n_blocks), ROWS)
    x = rng.normal(size=(len(block), 5)) + alike * rng.normal(size=(n_blocks, 5))[block]
    x[:, 0] = together * x[:, 1] + np.sqrt(1 - together**2) * x[:, 0]
    return np.searchsorted(EDGES, x).astype(np.uint16), block


def alarms(runs: int, alike: float, together: float) -> float:
    """Share of windows that alarm."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng([seed, int(10 * alike), int(10 * together)])
        known, live = rows(rng, 30, alike, 0.0), rows(rng, 7, alike, together)
        found.append(tell(*known, *live, alarm_level=LEVEL, min_rows=ROWS, rng=rng).alarm)
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="quiet windows; a quarter as many changed ones")
    given = parser.parse_args()
    print(f"level {LEVEL}\n| alike | quiet windows that alarm | changed windows that alarm |\n|---|---|---|")
    for alike in (0.0, 0.3, 1.0):
        quiet, changed = alarms(given.runs, alike, 0.0), alarms(max(1, given.runs // 4), alike, 0.8)
        print(f"| {alike} | {quiet:.3f} | {changed:.2f} |", flush=True)


if __name__ == "__main__":
    main()
