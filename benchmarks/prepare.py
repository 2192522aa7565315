"""`mlops-ray prepare` on a year of flights beside the same work in one pandas + scikit-learn process.

    python benchmarks/prepare.py

Both get the same table of 327,000 labelled flights from `mlops_ray.demo.flights`, hold it to the rules of
configs/flights.yaml, look for repeated keys, hash the rows' content, write Parquet, and learn the file's features. The
start of Ray stands apart; so does reading the CSV files, which both do with the same function.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

OVERLAY = """
storage: {{root: {root}}}
source: {{options: {{start: "2013-01-01", end: "2014-01-01"}}}}
validation: {{max_bad_share: 0.5}}
"""


def _project(scratch: Path) -> Any:
    from mlops_ray.config import load_project

    overlay = scratch / "year.yaml"
    overlay.write_text(OVERLAY.format(root=scratch / "root"))
    return load_project(["configs/flights.yaml", overlay], env={})


def peer(project: Any, rows: Any, scratch: Path) -> int:
    """The same in pandas and scikit-learn; returns the number of rows kept."""
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = rows.to_pandas()
    bad = np.zeros(len(frame), dtype=bool)
    for column in project.columns:
        cells = frame[column.name]
        if not column.nullable:
            bad |= cells.isna().to_numpy()
        if column.min is not None:
            bad |= (cells < column.min).to_numpy()
        if column.max is not None:
            bad |= (cells > column.max).to_numpy()
        if column.values is not None:
            bad |= ~cells.isin(column.values).to_numpy()
        if column.pattern is not None:
            bad |= ~cells.str.fullmatch(re.compile(column.pattern)).to_numpy(dtype=bool)
    bad |= frame[project.key].duplicated().to_numpy()
    good = frame[~bad]
    frame[bad].to_parquet(scratch / "bad.parquet")
    names = [column.name for column in project.columns]
    int(pd.util.hash_pandas_object(good[names], index=False).sum())
    good[names].to_parquet(scratch / "good.parquet", compression="zstd")
    ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(), StandardScaler()), list(project.features.numbers)),
            (
                "categorical",
                OneHotEncoder(handle_unknown="ignore", min_frequency=0.001),
                list(project.features.texts),
            ),
        ]
    ).fit(good)
    return len(good)


def main() -> None:
    """Runs both in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import ray

    from benchmarks.measure import show, start_ray
    from mlops_ray.data import lake
    from mlops_ray.data.features.transformer import transformer
    from mlops_ray.data.on_ray import fit_features, prepare
    from mlops_ray.data.splits import TRAIN, TimeCut
    from mlops_ray.demo import flights

    everything = TimeCut("event_time", 2**62, 2**62)  # all rows train, as they do in the other script
    started = start_ray()
    times: dict[str, list[float]] = {"prepare": [], "fit": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        project = _project(scratch)
        rows = flights.history(**project.source.options)  # kept by the function: what follows reads no CSV
        for _ in range(args.rounds):
            shutil.rmtree(scratch / "root", ignore_errors=True)
            start = time.perf_counter()
            done = prepare(project, now=time.time())
            prepared = time.perf_counter()
            transformer(project.features, fit_features(project, done.dataset, everything, (TRAIN,))[0])
            times["prepare"].append(prepared - start)
            times["fit"].append(time.perf_counter() - prepared)
            start = time.perf_counter()
            kept = peer(project, rows, scratch)
            times["peer"].append(time.perf_counter() - start)
            assert kept == done.report.n_kept == lake.read(done.dataset).num_rows
        ray.shutdown()
    ours = [a + b for a, b in zip(times["prepare"], times["fit"], strict=True)]
    ratios = [a / b for a, b in zip(ours, times["peer"], strict=True)]
    show(
        f"{rows.num_rows:,} flights: median of {args.rounds} rounds in turns (the first one warms up)",
        ("who", "start of Ray", "first round", "median", "of it prepare", "of it fit", "ours / pandas"),
        [
            (
                "mlops_ray",
                f"{started:.1f} s",
                f"{ours[0]:.2f} s",
                f"{statistics.median(ours):.2f} s",
                f"{statistics.median(times['prepare']):.2f} s",
                f"{statistics.median(times['fit']):.2f} s",
                f"{statistics.median(ratios):.2f}",
            ),
            (
                "pandas + scikit-learn",
                "",
                f"{times['peer'][0]:.2f} s",
                f"{statistics.median(times['peer']):.2f} s",
                "",
                "",
                "",
            ),
        ],
    )


if __name__ == "__main__":
    main()
