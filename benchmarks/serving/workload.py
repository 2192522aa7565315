"""What is served: generated rows of ten numbers and two categories, and the project that learns from them.

The project is an ordinary one, trained by `mlops-ray prepare` and `train`: an imputer, a scaler, a one-hot encoder and
a histogram gradient boosting of 100 trees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAME = "bench"
NUMBERS = tuple(f"x{i}" for i in range(10))
CATEGORIES = {"plan": ("basic", "plus", "pro", "team"), "region": tuple(f"r{i:02d}" for i in range(12))}
INPUTS = (*NUMBERS, *CATEGORIES)
Table = Mapping[str, list[Any]]
KEY, TIME, TARGET = "customer", "at", "left"
# 2025-01-01 in seconds since the epoch; rows follow each other by ten minutes: 139 days, blocks enough for every gate.
_FIRST_S, _STEP_S = 1_735_689_600, 600


def rows(n: int, seed: int) -> dict[str, list[Any]]:
    """`n` labelled rows by column. Every tenth value of the first three numbers is missing (None)."""
    draw = np.random.default_rng(seed)
    numbers = draw.standard_normal((n, len(NUMBERS)))
    places = {name: draw.integers(0, len(values), n) for name, values in CATEGORIES.items()}
    logit = numbers[:, 0] - 0.8 * numbers[:, 1] * numbers[:, 2] + 0.5 * np.sin(3 * numbers[:, 3])
    logit += 0.4 * places["plan"] - 0.1 * places["region"] + 0.3 * draw.standard_normal(n)
    table: dict[str, list[Any]] = {KEY: [f"c{i:07d}" for i in range(n)]}
    for i, name in enumerate(NUMBERS):
        values = numbers[:, i].round(6).tolist()
        gaps = draw.random(n) < (0.1 if i < 3 else 0.0)
        table[name] = [None if gap else value for value, gap in zip(values, gaps, strict=True)]
    for name, values in CATEGORIES.items():
        table[name] = [values[place] for place in places[name]]
    table[TARGET] = (logit > 0).astype(int).tolist()
    return table


def write_source(path: Path, n: int, seed: int) -> None:
    """The training rows as a Parquet file, with their times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = (np.arange(n, dtype=np.int64) * _STEP_S + _FIRST_S) * 1_000_000
    table = {**rows(n, seed), TIME: pa.array(times, pa.timestamp("us", tz="UTC"))}
    pq.write_table(pa.table(table), path)


def project(source: Path, root: Path, *, http_port: int, metrics_port: int) -> dict[str, Any]:
    """The project file's content."""
    columns: list[dict[str, Any]] = [
        {"name": KEY, "dtype": "string"},
        {"name": TIME, "dtype": "timestamp"},
        {"name": TARGET, "dtype": "int", "min": 0, "max": 1},
        *({"name": name, "dtype": "float", "nullable": True} for name in NUMBERS),
        *({"name": name, "dtype": "string"} for name in CATEGORIES),
    ]
    trees = {
        "estimator": "sklearn.ensemble:HistGradientBoostingClassifier",
        "params": {"max_iter": 100, "early_stopping": False, "max_leaf_nodes": 31},
        "space": {"learning_rate": {"kind": "log_uniform", "low": 0.05, "high": 0.15}},
    }
    return {
        "project": NAME,
        "task": "binary",
        "target": TARGET,
        "key": KEY,
        "event_time": TIME,
        "storage": {"root": str(root)},
        "cluster": {"http_port": http_port},
        "source": {"kind": "parquet", "path": str(source)},
        "columns": columns,
        "features": {
            "numeric": {"columns": list(NUMBERS), "impute": "mean", "scale": "standard"},
            "categorical": {"columns": list(CATEGORIES)},
        },
        "search": {"trials": 1, "candidates": [trees]},
        "gates": {"min_rows": 100, "limits": [{"metric": "roc_auc", "min": 0.7}]},
        "monitoring": {"metrics_port": metrics_port},
    }


def records(table: Table, columns: tuple[str, ...] = INPUTS) -> Iterator[dict[str, Any]]:
    """The rows of a table, one after the other, with these columns."""
    for values in zip(*(table[name] for name in columns), strict=True):
        yield dict(zip(columns, values, strict=True))


def requests(table: Table) -> list[bytes]:
    """Bodies for our `/predict`, one row each, with its key."""
    return [json.dumps({"rows": [row]}).encode() for row in records(table, (KEY, *INPUTS))]
