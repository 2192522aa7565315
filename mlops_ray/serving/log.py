"""Spool records to tables of the prediction log, and to profiles of the same rows.

The log has one row per prediction, partitioned by the UTC day of its event time; labels have one row per arrival,
partitioned by the day on which they became known. Nothing is overwritten: readers take the first prediction of an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.features.statistics import seconds
from mlops_ray.data.profile import Bins, Profile, fold

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Arrivals:
    """What some segments hold: new rows of both tables, the latest watermark and event time (None without)."""

    predictions: pa.Table
    labels: pa.Table
    watermark: float | None
    newest: float | None


def prediction_schema(project: Project) -> pa.Schema:
    """Columns of the prediction log; the model's inputs carry the prefix `x_`."""
    types = {"string": pa.string(), "number": pa.float32(), "time": _TIME}
    inputs = [(f"x_{name}", types[kind]) for name, kind in project.features.kinds.items()]
    return pa.schema(
        [
            ("prediction_id", pa.string()),
            ("day", pa.string()),
            ("at", _TIME),
            ("event_time", _TIME),
            ("key", pa.string()),
            *inputs,
            ("stable", pa.int64()),
            ("stable_score", pa.float64()),
            ("score_us", pa.float32()),
            ("canary", pa.int64()),
            ("canary_score", pa.float64()),
            ("rollout", pa.string()),
            ("share", pa.float64()),
        ]
    )


LABEL_SCHEMA = pa.schema(
    [("prediction_id", pa.string()), ("day", pa.string()), ("at", _TIME), ("time", _TIME), ("label", pa.float64())]
)


def day_of(time_s: float) -> str:
    """UTC day of a time, `YYYY-MM-DD`: the partition that holds it."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d")


def arrivals(project: Project, records: Iterable[Mapping[str, Any]]) -> Arrivals:
    """The records of some segments as tables. A request id that repeats within them counts once.

    Rows assigned to a canary have `canary` set; `canary_score` is null where it failed to answer.
    """
    predictions, labels, seen = [], [], set()
    watermark: float | None = None
    newest: float | None = None
    for record in records:
        if record["kind"] == "predict":
            if record["id"] in seen:
                continue
            seen.add(record["id"])
            predictions.append(_prediction_rows(project, record))
            newest = max(record["times"]) if newest is None else max(newest, *record["times"])
        elif record["kind"] == "label":
            labels.append(_label_rows(record))
        else:
            watermark = record["time"] if watermark is None else max(watermark, record["time"])
    schema = prediction_schema(project)
    return Arrivals(
        predictions=pa.concat_tables(predictions) if predictions else schema.empty_table(),
        labels=pa.concat_tables(labels) if labels else LABEL_SCHEMA.empty_table(),
        watermark=watermark,
        newest=newest,
    )


def profiles(project: Project, bins: Bins, predictions: pa.Table) -> dict[tuple[int, float], Profile]:
    """Profiles of the rows by (version that answered, start of the time block in seconds)."""
    if predictions.num_rows == 0:
        return {}
    block_s = project.monitoring.block_s
    times = predictions["event_time"].cast(pa.int64()).to_numpy() / 1e6
    blocks = np.floor(times / block_s) * block_s
    versions, scores = answered(predictions)
    columns = inputs(project, predictions)
    out: dict[tuple[int, float], Profile] = {}
    for version, block in sorted(set(zip(versions.tolist(), blocks.tolist(), strict=True))):
        rows = (versions == version) & (blocks == block)
        out[version, block] = fold(bins, {n: v[rows] for n, v in columns.items()}, scores[rows])
    return out


def answered(predictions: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Version and score that each row's client got: the canary's where it answered, else stable's. Shapes (n,)."""
    stable = predictions["stable"].to_numpy()
    canary_scores = predictions["canary_score"].to_numpy(zero_copy_only=False).astype(np.float64)
    theirs = ~np.isnan(canary_scores)
    canary = predictions["canary"].fill_null(-1).to_numpy()
    return np.where(theirs, canary, stable), np.where(theirs, canary_scores, predictions["stable_score"].to_numpy())


def inputs(project: Project, predictions: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    """The model's inputs of logged rows, as they were scored: float32 with NaN, strings with "" for missing, times as
    float64 seconds since the epoch with NaN."""
    columns = {}
    for name, kind in project.features.kinds.items():
        column = predictions[f"x_{name}"]
        if kind == "string":
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif kind == "time":
            columns[name] = seconds(column)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return columns


def _micros(times: Any) -> pa.Array:
    """Seconds since the epoch as Arrow times; NaN and None as null."""
    micros = np.round(np.asarray(times, dtype=np.float64) * 1e6)
    missing = np.isnan(micros)
    return pa.array(np.where(missing, 0, micros).astype(np.int64), type=pa.int64(), mask=missing).cast(_TIME)


def _prediction_rows(project: Project, record: Mapping[str, Any]) -> pa.Table:
    n = len(record["keys"])
    canary: list[int | None] = [None] * n
    canary_score: list[float | None] = [None] * n
    rollout: list[str | None] = [None] * n
    share: list[float | None] = [None] * n
    scores = record.get("canary_scores")
    for at, row in enumerate(record.get("rows", ())):
        canary[row], rollout[row], share[row] = record["canary"], record["rollout"], record["share"]
        canary_score[row] = scores[at] if scores is not None else None
    rows: dict[str, Any] = {
        "prediction_id": [f"{record['id']}:{i}" for i in range(n)],
        "day": [day_of(t) for t in record["times"]],
        "at": _micros([record["at"]] * n),
        "event_time": _micros(record["times"]),
        "key": record["keys"],
        **{
            f"x_{name}": _micros(values) if project.features.kinds[name] == "time" else values
            for name, values in record["columns"].items()
        },
        "stable": [record["stable"]] * n,
        "stable_score": record["scores"],
        "score_us": [record["score_us"] / n] * n,
        "canary": canary,
        "canary_score": canary_score,
        "rollout": rollout,
        "share": share,
    }
    return pa.Table.from_pydict(rows, schema=prediction_schema(project))


def _label_rows(record: Mapping[str, Any]) -> pa.Table:
    n = len(record["ids"])
    return pa.Table.from_pydict(
        {
            "prediction_id": record["ids"],
            "day": [day_of(t) for t in record["times"]],
            "at": _micros([record["at"]] * n),
            "time": _micros(record["times"]),
            "label": record["labels"],
        },
        schema=LABEL_SCHEMA,
    )
