"""Fold one batch of 256 rows x 12 features (10 numeric, 2 categorical) and its scores into a profile.

    python benchmarks/fold.py

Prints microseconds: aim at less than 200.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2000)
    options = parser.parse_args()
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from mlops_ray.data.profile import Bins, Profile, fold

    rng = np.random.default_rng()
    names = np.array([f"category-{i:02d}" for i in range(22)], dtype=object)
    bins = Bins(
        {f"x{i}": tuple(np.linspace(-1.5, 1.5, 9)) for i in range(10)},
        {f"c{i}": tuple(names[:20]) for i in range(2)},
    )
    batch = {f"x{i}": rng.normal(size=options.rows).astype(np.float32) for i in range(10)}
    # One cell in fifty is missing, and two categories are not among the bins.
    for column in batch.values():
        column[rng.random(options.rows) < 0.02] = np.nan
    batch |= {f"c{i}": names[rng.integers(0, 22, options.rows)] for i in range(2)}
    scores = rng.random(options.rows)
    profile = fold(bins, batch, scores)
    data = profile.to_bytes()
    table = Table(title=f"profiles of {options.rows} rows x 12 features", title_justify="left")
    for column in ("", "fastest µs", "median µs"):
        table.add_column(column, justify="right" if column else "left")
    for name, work in {
        "fold a batch": lambda: fold(bins, batch, scores),
        "add two profiles": lambda: profile + profile,
        "to bytes": profile.to_bytes,
        "from bytes": lambda: Profile.from_bytes(data),
    }.items():
        took = []
        for _ in range(options.repeats):
            begun = time.perf_counter()
            work()
            took.append((time.perf_counter() - begun) * 1e6)
        table.add_row(name, f"{min(took):.0f}", f"{statistics.median(took):.0f}")
    Console(width=100).print(table)
    print(f"{len(data) / 12:.0f} bytes per feature")


if __name__ == "__main__":
    main()
