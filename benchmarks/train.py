"""Where the seconds of `mlops-ray train` go on the flights of January and February.

    python benchmarks/train.py

Trains configs/flights.yaml as it stands (50,000 rows, eight trials), twice on one Ray: the first run pays for workers
that import scikit-learn, the second is what a retrain on a running cluster costs. Search and final fits are the work
that any framework would do; the rest is what this one adds, and its goal is to stay below ten seconds. Then the same
winner is made again by `reproduce`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

FITTING = ("search", "refit")


def _project(scratch: Path) -> Any:
    from mlops_ray.config import load_project

    overlay = scratch / "here.yaml"
    overlay.write_text(f"storage: {{root: {scratch / 'root'}}}\n")
    return load_project(["configs/flights.yaml", overlay], env={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="runs of train (default 2)")
    args = parser.parse_args()
    from benchmarks.measure import show, start_ray

    scratch = Path(tempfile.mkdtemp(prefix="mlops_ray-train-"))
    try:
        started = start_ray()
        rows = _measured(_project(scratch), args.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show(
        f"mlops-ray train, flights January and February (Ray started in {started:.1f} s)", ("stage", *rows[0]), rows[1]
    )


def _measured(project: Any, rounds: int) -> tuple[list[str], list[tuple[str, ...]]]:
    from mlops_ray.data.on_ray import prepare
    from mlops_ray.state import Store
    from mlops_ray.training.on_ray import train
    from mlops_ray.training.on_reproduce import reproduce

    dataset = prepare(project, now=time.time()).dataset
    store = Store.open(project.storage.state)
    champion, runs = None, []
    for _ in range(rounds):
        began = time.perf_counter()
        done = train(project, dataset, store=store, champion=champion, now=time.time())
        runs.append({**done.seconds, "in all": time.perf_counter() - began})
        champion = done.version or champion
    table = [(stage, *(f"{run.get(stage, 0.0):.2f} s" for run in runs)) for stage in runs[-1]]
    added = [run["in all"] - sum(run[stage] for stage in FITTING) for run in runs]
    table.append(("besides fitting", *(f"{seconds:.2f} s" for seconds in added)))
    if champion is not None:
        began = time.perf_counter()
        again = reproduce(project, champion, search=False, on_progress=lambda stage, done, total: None)
        took = f"{time.perf_counter() - began:.2f} s"
        table.append((f"reproduce: {again.same}", *[""] * (rounds - 1), took))
    return [f"run {i + 1}" for i in range(rounds)], table


if __name__ == "__main__":
    main()
