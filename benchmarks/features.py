"""Fit and transform 2 million rows x 12 columns (impute, standardise, one-hot) from Parquet files.

    python benchmarks/features.py

Beside ours: polars in one process, in turns; then Ray Data's own chain of preprocessors on the same cluster. All end in
the sum of each transformed column, so that nobody pays for a place to put the result. The start of Ray stands apart;
the first round starts its workers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

N_FILES = 8
NUMERIC = tuple(f"x{i}" for i in range(10))
CATEGORICAL = ("colour", "size")
COLOURS = ("blue", "green", "red", "white", "yellow")
SIZES = tuple(f"size-{i:02d}" for i in range(40))


def generate(folder: Path, n_rows: int) -> None:
    """Writes the rows; a finished set stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    n = n_rows // N_FILES
    for number in range(N_FILES):
        path = folder / f"part-{number}.parquet"
        if path.exists():
            continue
        rng = np.random.default_rng([3, number])
        rows = {name: pa.array(rng.normal(5, 2, n), mask=rng.random(n) < 0.02) for name in NUMERIC}
        rows |= {"colour": pa.array(rng.choice(COLOURS, n)), "size": pa.array(rng.choice(SIZES, n))}
        pq.write_table(pa.table(rows), path)


def ray_chain(folder: Path) -> dict[str, float]:
    """Ray Data's SimpleImputer, StandardScaler and OneHotEncoder, one after the other, as its documentation does."""
    import ray.data
    from ray.data.preprocessors import Chain, OneHotEncoder, SimpleImputer, StandardScaler

    dataset = ray.data.read_parquet(str(folder))
    chain = Chain(
        SimpleImputer(columns=list(NUMERIC), strategy="mean"),
        StandardScaler(columns=list(NUMERIC)),
        OneHotEncoder(columns=list(CATEGORICAL)),
    )

    def sums(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray([np.stack(values).sum(axis=0).sum()]) for name, values in batch.items()}

    totals: dict[str, float] = {}
    for row in chain.fit_transform(dataset).map_batches(sums, batch_size=None).iter_rows():
        for name, value in row.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def in_polars(folder: Path) -> dict[str, float]:
    """One process, lazy scan; means and deviations first, then the transformed columns."""
    import polars as pl

    rows = pl.scan_parquet(folder / "*.parquet").collect()
    means = rows.select(pl.col(name).mean() for name in NUMERIC).row(0, named=True)
    filled = rows.with_columns(pl.col(name).fill_null(mean) for name, mean in means.items())
    scales = filled.select(pl.col(name).std(ddof=0) for name in NUMERIC).row(0, named=True)
    scaled = filled.with_columns((pl.col(name) - means[name]) / scales[name] for name in NUMERIC)
    sums = scaled.to_dummies(list(CATEGORICAL)).select(pl.all().sum()).row(0, named=True)
    return {name: float(value) for name, value in sums.items()}


def _sums(matrix: np.ndarray) -> np.ndarray:
    return matrix.sum(axis=0)


def main() -> None:
    """Runs all, checks that they agree, prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(".bench/features"))
    args = parser.parse_args()
    import ray

    from benchmarks.measure import show, start_ray
    from mlops_ray.config import Column, Features, Source
    from mlops_ray.data.features import on_ray as on_features

    folder = args.folder.absolute()
    generate(folder, args.rows)
    features = Features.model_validate({"numeric": {"columns": NUMERIC}, "categorical": {"columns": CATEGORICAL}})
    columns = [Column(name=name, dtype="float", nullable=True) for name in NUMERIC]
    columns += [Column(name=name, dtype="string") for name in CATEGORICAL]
    source = Source.model_validate({"kind": "parquet", "path": str(folder)})
    started = start_ray()
    fit_s: list[float] = []
    transform_s: list[float] = []

    def ours(_: Path) -> dict[str, float]:
        begin = time.perf_counter()
        fitted = on_features.fit(features, columns, source)
        middle = time.perf_counter()
        parts = on_features.each_transformed(features, columns, fitted, source, _sums)
        total = sum(sums for shard in parts for sums in shard)
        fit_s.append(middle - begin)
        transform_s.append(time.perf_counter() - middle)
        names = [name.partition("__")[2] for name in fitted.get_feature_names_out()]
        return dict(zip(names, total.tolist(), strict=True))

    contenders = {"mlops_ray": ours, "polars, one process": in_polars, "Ray Data's preprocessors": ray_chain}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    results = {}
    for turn in (("mlops_ray", "polars, one process"), ("Ray Data's preprocessors",)):
        # Ray Data's run ends the workers that it finds idle, and whoever comes next would pay for new ones.
        for _ in range(args.rounds):
            for name in turn:
                begin = time.perf_counter()
                results[name] = contenders[name](folder)
                times[name].append(time.perf_counter() - begin)
    mine, theirs = results["mlops_ray"], results["polars, one process"]
    for category in (*(f"colour_{c}" for c in COLOURS), *(f"size_{s}" for s in SIZES)):
        assert mine[category] == theirs[category], (category, mine[category], theirs[category])
    ray.shutdown()
    median = {name: statistics.median(took) for name, took in times.items()}
    show(
        f"fit and transform {args.rows:,} rows x 12 columns, {args.rounds} rounds; Ray's start {started:.1f} s",
        ("who", "first round", "median", "of it fit", "of it transform", "ratio to ours"),
        [
            (
                name,
                f"{times[name][0]:.2f} s",
                f"{median[name]:.2f} s",
                f"{statistics.median(fit_s):.2f} s" if name == "mlops_ray" else "",
                f"{statistics.median(transform_s):.2f} s" if name == "mlops_ray" else "",
                f"{median[name] / median['mlops_ray']:.2f}",
            )
            for name in contenders
        ],
    )


if __name__ == "__main__":
    main()
