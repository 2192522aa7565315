"""Score rows in bulk with `mlops-ray score`'s tasks, against calling `Model.score` on them in this process.

    python benchmarks/score.py

One million rows of 10 numeric and 2 categorical columns in Parquet, a 100-tree histogram gradient boosting as an ONNX
graph. Prints rows per second of: the model alone on columns that are ready; one process that reads, checks, scores and
writes as a task does; the whole batch on a local Ray (started before the clock), its workers cold and warm.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics as stats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

N_NUMERIC = 10
Took = tuple[float, float]
"""Seconds by the clock, and of all processes' CPU time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # Without it Ray makes a token in the home directory, which every later cluster would ask for.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        project, row = prepared(root, options.rows, options.files)
        took: dict[str, list[Took]] = {}
        for _ in range(options.rounds):
            for name, found in alone(project, row, root).items():
                took.setdefault(name, []).append(found)
        ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
        for round_ in range(options.rounds + 1):
            name = f"on Ray, {options.cpus} CPUs, " + ("new workers" if round_ == 0 else "warm workers")
            took.setdefault(name, []).append(on_ray(project, row, root, round_))
        ray.shutdown()
    table = Table(title=f"{options.rows:,} rows in {options.files} files", title_justify="left")
    for column in ("", "s (median)", "rows/s", "of the model alone", "CPU s"):
        table.add_column(column, justify="right" if column else "left")
    best = stats.median(seconds for seconds, _ in took["model alone, one process"])
    for name, found in took.items():
        middle, cpu = (stats.median(of) for of in zip(*found, strict=True))
        figures = (f"{middle:.2f}", f"{options.rows / middle:,.0f}", f"{best / middle:.2f}", f"{cpu:.2f}")
        table.add_row(name, *figures)
    Console(width=100).print(table)


def clock() -> Took:
    """Wall clock, and CPU seconds of this process and all that it has started; the latter hardly hang on what else the
    machine does."""
    import psutil

    me = psutil.Process()
    cpu = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            cpu += times.user + times.system
    return time.perf_counter(), cpu


def since(started: Took) -> Took:
    """What has gone by."""
    wall, cpu = clock()
    return wall - started[0], cpu - started[1]


def prepared(root: Path, n_rows: int, n_files: int) -> tuple[Any, Any]:
    """Rows in `root/rows`, a project, and a version trained on some of them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import Pipeline

    from mlops_ray.config import Project
    from mlops_ray.data import profile
    from mlops_ray.data.features import statistics, transformer
    from mlops_ray.state import VersionRow
    from mlops_ray.training.artifact import model
    from mlops_ray.training.artifact.model import Reference

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": [f"row-{i}" for i in range(n_rows)]}
    columns["at"] = pa.array(np.arange(n_rows) * 1_000_000).cast(pa.timestamp("us", "UTC"))
    for i in range(N_NUMERIC):
        columns[f"x{i}"] = pa.array(rng.normal(size=n_rows), mask=rng.random(n_rows) < 0.02)
    for i in range(2):
        columns[f"c{i}"] = np.array([f"category-{k:02d}" for k in range(20)])[rng.integers(0, 20, n_rows)]
    rows = pa.table(columns)
    (root / "rows").mkdir()
    size = -(-n_rows // n_files)
    for i in range(n_files):
        pq.write_table(rows.slice(i * size, size), root / f"rows/part-{i}.parquet")
    declared = [{"name": "id", "dtype": "string"}, {"name": "at", "dtype": "timestamp"}, {"name": "y", "dtype": "int"}]
    declared += [{"name": f"x{i}", "dtype": "float", "nullable": True} for i in range(N_NUMERIC)]
    declared += [{"name": f"c{i}", "dtype": "string"} for i in range(2)]
    body = {
        "project": "bulk",
        "task": "binary",
        "target": "y",
        "key": "id",
        "event_time": "at",
        "storage": {"root": str(root / "root")},
        "source": {"kind": "parquet", "path": str(root / "rows")},
        "columns": declared,
        "features": {
            "numeric": {"columns": [f"x{i}" for i in range(N_NUMERIC)]},
            "categorical": {"columns": ["c0", "c1"]},
        },
        "search": {"candidates": [{"estimator": "sklearn.ensemble:HistGradientBoostingClassifier"}]},
    }
    project = Project.model_validate(body)
    some = rows.slice(0, 20_000)
    batch = statistics.to_columns(project.features, some)
    partial = statistics.fold(project.features, some)
    fitted = transformer.transformer(project.features, partial)
    matrix = fitted.transform(statistics.to_frame(project.features, batch))
    y = (np.nan_to_num(batch["x0"]) + np.nan_to_num(batch["x1"]) > rng.normal(size=len(some))).astype(int)
    pipeline = Pipeline([("features", fitted), ("model", HistGradientBoostingClassifier(max_iter=100).fit(matrix, y))])
    bins = transformer.bins(project.features, partial)
    reference = Reference(bins, 86_400.0, ((0.0, profile.fold(bins, batch, np.linspace(0, 1, len(some)))),), ())
    sha256 = model.save(
        root / "artifact",
        pipeline,
        task="binary",
        classes=(0, 1),
        features=project.features,
        target="y",
        reference=reference,
        holdout=batch,
        lock={},
        recipe={},
    )
    return project, VersionRow("bulk", 1, "run", str(root / "artifact"), sha256, "/d@1", "registered", 1.0, {})


def alone(project: Any, row: Any, root: Path) -> dict[str, Took]:
    """Of the model on ready columns, and of a task's work without Ray."""
    import shutil

    import pyarrow.parquet as pq

    from mlops_ray.data.features import statistics
    from mlops_ray.data.sources import shards
    from mlops_ray.serving.bulk import blocks as bulk
    from mlops_ray.serving.bulk.batch import Output, Plan
    from mlops_ray.training.artifact import model

    loaded = model.load(row.artifact, row.sha256)
    assert loaded.engine == "onnx"
    rows = pq.read_table(root / "rows")
    starts = range(0, rows.num_rows, shards.ROWS_PER_BATCH)
    batches = [statistics.to_columns(project.features, rows.slice(i, shards.ROWS_PER_BATCH)) for i in starts]
    started = clock()
    for columns in batches:
        loaded.score(columns)
    took = {"model alone, one process": since(started)}
    del rows, batches
    plan, output = Plan("bulk", 1, row.artifact, row.sha256, "", (), 0.0), Output(str(root / "one"), delta=False)
    names = [column.name for column in bulk.columns_of(project, loaded)]
    started = clock()
    for number, shard in enumerate(shards.file_shards(project.source, names) or ()):
        bulk.score(project, loaded, plan, output, number, shards.read(shard, names))
    took["read, check, score, fold, write; one process"] = since(started)
    shutil.rmtree(root / "one")
    return took


def on_ray(project: Any, row: Any, root: Path, round_: int) -> Took:
    """Of the whole batch."""
    from mlops_ray.serving.bulk.batch import Output
    from mlops_ray.serving.bulk.on_score import score

    output = Output(str(root / f"scores-{round_}"), delta=False)
    started = clock()
    done = score(project, project.source, row, output, now=0.0, on_progress=lambda stage, n, of: None)
    took = since(started)
    assert done.manifest["scored"] == done.manifest["read"]
    return took


if __name__ == "__main__":
    main()
