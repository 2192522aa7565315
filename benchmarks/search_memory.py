"""Memory of one trial, and of four at a time, over the same training data.

    python benchmarks/search_memory.py

Proportional set size, at its peak, of Ray and all its workers, and not of the driver, whose own copy of the rows is its
caller's: a page that several processes share counts once. Trials get the matrix from the object store without copying.
What an estimator makes of it is its own: histogram boosting one byte per value, a forest one float32 per value (which
is why the search lays a float32 matrix beside the other when there are forests).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

PARAMS = {
    "linear": {"max_iter": 20},
    "hist_gradient_boosting": {"max_iter": 3},
    "extra_trees": {"n_estimators": 2, "min_samples_leaf": 1000, "max_features": 0.1},
}
MIB = 2**20


def child(family: str, concurrency: int, n_rows: int, width: int, num_cpus: int) -> None:
    """One search whose trials all run at once, on a cluster of the same size whatever their number."""
    import ray

    from mlops_ray.config import Search
    from mlops_ray.training.search.on_tune import search
    from mlops_ray.training.search.trials import FoldData

    rng = np.random.default_rng(0)
    matrix = rng.random((n_rows, width))
    y = (matrix[:, 0] > rng.random(n_rows)).astype(np.int64)
    store = int(matrix.nbytes * 1.7) + 200 * MIB
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, object_store_memory=store,
        runtime_env={"env_vars": path},
    )  # fmt: skip
    listed = [{"estimator": family, "params": {**PARAMS[family], "random_state": i}} for i in range(concurrency)]
    plan = Search.model_validate(
        {"trials": concurrency, "max_s": 3600, "concurrency": concurrency, "candidates": listed, "early_stopping": None}
    )
    with tempfile.TemporaryDirectory() as folder:
        found = search(plan, "binary", [FoldData(matrix, int(n_rows * 0.8), y)], seed=0, storage=folder, name="bench")
    assert [trial.status for trial in found.trials] == ["done"] * concurrency
    ends = sorted(trial.ended for trial in found.trials)
    begins = sorted(trial.started for trial in found.trials)
    assert begins[-1] < ends[0], "the trials did not run at the same time; give more rows"


def peak(family: str, concurrency: int, n_rows: int, width: int, num_cpus: int) -> float:
    """MiB that the search holds at its peak."""
    numbers = [str(n) for n in (concurrency, n_rows, width, num_cpus)]
    process = subprocess.Popen([sys.executable, __file__, "--child", family, *numbers])
    found = 0.0
    while process.poll() is None:
        found = max(found, _held(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    return found / MIB


def _held(pid: int) -> int:
    total = 0
    try:
        driver = psutil.Process(pid)
        total -= driver.memory_full_info().uss
        for process in [driver, *driver.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended while we looked
    except psutil.NoSuchProcess:
        return 0
    return total


def main() -> None:
    """Measures each family at one and at several trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--families", default=",".join(PARAMS))
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        family, *numbers = args.child
        child(family, *(int(n) for n in numbers))
        return
    from benchmarks.measure import show

    data = args.rows * args.width * 8 / MIB
    lines = []
    for family in args.families.split(","):
        one, many = (peak(family, n, args.rows, args.width, args.trials) for n in (1, args.trials))
        lines.append((family, f"{data:.0f}", f"{one:.0f}", f"{many:.0f}", f"{many / one:.2f}"))
        print(*lines[-1], flush=True)
    title = f"Peak memory of 1 and of {args.trials} trials at a time, {args.rows:,} rows x {args.width}"
    show(title, ("", "data MiB", "1 trial", f"{args.trials} trials", "ratio"), lines)


if __name__ == "__main__":
    main()
