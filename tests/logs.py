"""Rows for a prediction log: what collectors would have written."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.serving.log.tables import VALUES_SCHEMA, day_of, label_schema, prediction_schema

DAY_S = 86_400.0
START = 20_454 * DAY_S  # 2026-01-01


def micros(times: list[float]) -> pa.Array:
    return pa.array([int(t * 1e6) for t in times]).cast(pa.timestamp("us", tz="UTC"))


def predictions(
    project: Project, request: str, keys: list[str], *, at: float, canary: bool = False, failed: bool = False
) -> pa.Table:
    """A request's rows, a second apart from `at` on; scores 0.1, 0.2, ... of v1, 0.9 of the canary v2."""
    n = len(keys)
    rows: dict[str, Any] = {
        "prediction_id": [f"{request}:{i}" for i in range(n)],
        "day": [day_of(at)] * n,
        "at": micros([at + 1] * n),
        "event_time": micros([at + i for i in range(n)]),
        "key": keys,
        "stable": [1] * n,
        "stable_score": [0.1 * (i + 1) for i in range(n)],
        "canary": [2 if canary else None] * n,
        "canary_score": [0.9 if canary and not failed else None] * n,
    }
    return _full(rows, prediction_schema(project), n)


def labels(project: Project, ids: list[str | None], values: list[Any], *, at: float, keys: Any = None) -> pa.Table:
    """Labels that became known at `at`."""
    n = len(ids)
    rows: dict[str, Any] = {"prediction_id": ids, "day": [day_of(at)] * n, "label": values, "key": keys or [None] * n}
    rows |= {"at": micros([at] * n), "time": micros([at] * n)}
    return _full(rows, label_schema(project), n)


def values(ids: list[str | None], name: str, numbers: list[float], *, at: float, keys: Any = None) -> pa.Table:
    """Business numbers under one name that became known at `at`."""
    n = len(ids)
    rows: dict[str, Any] = {"prediction_id": ids, "day": [day_of(at)] * n, "key": keys or [None] * n}
    rows |= {"at": micros([at] * n), "time": micros([at] * n), "name": [name] * n, "value": numbers}
    return _full(rows, VALUES_SCHEMA, n)


def append(uri: str, table: pa.Table, number: int) -> None:
    lake.append_once(uri, table, "spool", number, partition_by=("day",))


def _full(rows: dict[str, Any], schema: pa.Schema, n: int) -> pa.Table:
    return pa.Table.from_pydict({f.name: rows.get(f.name, pa.nulls(n, f.type)) for f in schema}, schema=schema)
