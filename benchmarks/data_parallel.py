"""One XGBoost fit over the files of a dataset version: data-parallel on Ray Train, and in one process.

    python benchmarks/data_parallel.py

Each row is a worker process of its own; its memory is the most that it had resident, libraries included. The process
alone reads all rows, transforms them and calls scikit-learn's `fit`, as training does while the data fits. Loss is on
the validation side. The team's second fit is what each further trial of a search costs.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

N_FILES = 16
NUMERIC = tuple(f"x{i}" for i in range(18))
HOUR_US = 3_600_000_000
GIB = 1024**3


def commit(uri: str, n_rows: int) -> Any:
    """The rows as a dataset version, a file at a time, in order of time."""
    import pyarrow as pa

    from mlops_ray.data import lake
    from mlops_ray.data.content import row_hash

    files, hashes, n = [], [], n_rows // N_FILES
    for number in range(N_FILES):
        rng = np.random.default_rng([7, number])
        columns: dict[str, Any] = {name: rng.normal(size=n).astype(np.float32) for name in NUMERIC}
        columns["kind"] = rng.choice([f"k{i:02d}" for i in range(12)], n)
        signal = columns["x0"] + columns["x1"] * columns["x2"] + (columns["kind"] < "k04")
        columns["y"] = (rng.random(n) < 1 / (1 + np.exp(-signal))).astype(np.int64)
        columns["at"] = pa.array((np.arange(n) + number * n) * HOUR_US // 100).cast(pa.timestamp("us", "UTC"))
        table = pa.table(columns)
        files.append(lake.write_file(uri, f"run/part-{number:02d}.parquet", table))
        hashes.append(row_hash(table))
    return lake.commit(uri, files, table.schema, sum(hashes[1:], hashes[0]).hex(), {})


def shards_of(dataset: Any, n_rows: int) -> Any:
    """The rows cut by time, with features fitted on the training files."""
    from mlops_ray.config import Features
    from mlops_ray.data import lake
    from mlops_ray.data.features.statistics import fold
    from mlops_ray.data.features.transformer import transformer
    from mlops_ray.data.splits import TimeCut
    from mlops_ray.training.search.shards import Shards

    features = Features.model_validate(
        {"numeric": {"columns": NUMERIC, "impute": "none", "scale": "none"}, "categorical": {"columns": ["kind"]}}
    )
    cut = TimeCut("at", n_rows * 6 // 10 * HOUR_US // 100, n_rows * 8 // 10 * HOUR_US // 100)
    first = lake.read_file(dataset.uri, lake.files(dataset)[0])
    return Shards(dataset, cut, features, transformer(features, fold(features, first)), "y", "binary", (0, 1))


def alone(shards: Any, choice: Any) -> dict[str, float]:
    """In one process, all rows at once."""
    from mlops_ray.data import lake, splits
    from mlops_ray.data.features.matrix import transformed
    from mlops_ray.training import target
    from mlops_ray.training.search import candidates

    began = time.perf_counter()
    table = lake.read(shards.dataset, list(shards.columns))
    matrix = transformed(shards.features, shards.fitted, table)
    y, sides = table["y"].to_numpy(), splits.assign(shards.cut, table)
    fit, judge = sides == splits.TRAIN, sides == splits.VALIDATION
    read = time.perf_counter() - began
    estimator = candidates.fit(choice, matrix[fit], y[fit], seed=0)
    seconds = time.perf_counter() - began
    loss = target.losses("binary", y[judge], estimator.predict_proba(matrix[judge])[:, 1]).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"read": read, "seconds": seconds, "loss": float(loss), "peak": peak, "n_fit": int(fit.sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the dataset version (default 2 million)")
    parser.add_argument("--rounds", type=int, default=50, help="boosting rounds (default 50)")
    parser.add_argument("--workers", type=int, default=2, help="data-parallel workers (default 2)")
    args = parser.parse_args()
    import ray

    from benchmarks.measure import show, start_ray
    from mlops_ray.training.search.candidates import Choice
    from mlops_ray.training.search.on_team import Team
    from mlops_ray.training.search.on_train import surveyed

    choice = Choice(0, "xgboost:XGBClassifier", {"n_estimators": args.rounds, "tree_method": "hist"})
    with tempfile.TemporaryDirectory(prefix="mlops_ray-parallel-") as scratch:
        shards = shards_of(commit(f"{scratch}/table", args.rows), args.rows)
        start_ray()
        single = ray.get(ray.remote(max_calls=1)(alone).remote(shards, choice))
        began = time.perf_counter()
        seen = surveyed(shards, args.workers)
        looked = time.perf_counter() - began
        with Team(shards, seen, args.workers, scratch=f"{scratch}/checkpoints", fits=2) as team:
            asked: dict[str, Any] = {"seed": 0, "metric": "log_loss", "timeout_s": 3600.0}
            first, second = team.fit(choice, **asked), team.fit(choice, **asked)
        ray.shutdown()
    rows = [("alone", f"{single['n_fit']:,}", f"{single['peak']:.2f} GiB", "1.00")]
    rows += [
        (
            f"worker {w.rank}",
            f"{w.n_fit:,}",
            f"{w.peak_bytes / GIB:.2f} GiB",
            f"{w.peak_bytes / GIB / single['peak']:.2f}",
        )
        for w in second.workers
    ]
    show(f"{args.rows:,} rows, {args.rounds} rounds: who held what", ("process", "rows to fit", "peak", "ratio"), rows)
    times = [
        ("alone", f"{single['read']:.1f} s", f"{single['seconds']:.1f} s", "1.00", f"{single['loss']:.5f}"),
        (
            "team, first fit",
            f"{looked:.1f} s",
            f"{first.seconds:.1f} s",
            f"{first.seconds / single['seconds']:.2f}",
            f"{first.boosted.value:.5f}",
        ),
        (
            "team, second fit",
            "",
            f"{second.seconds:.1f} s",
            f"{second.seconds / single['seconds']:.2f}",
            f"{second.boosted.value:.5f}",
        ),
    ]
    show("How long", ("what", "read or survey", "in all", "ratio", "log-loss"), times)


if __name__ == "__main__":
    main()
