"""Rows of a window from the prediction log, with the labels known by a time or with their inputs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.monitoring.labels import joined
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.training.rows import gate_columns
from mlops_ray.training.target import Scores

_KEPT: tuple[str, ...] = ("prediction_id", "at", "event_time", "key", "stable", "stable_score", "stable_scores")


def rows(project: Project, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
    """The rows of [start, end), each once, by event time: with their `inputs`, or with the labels known by then and
    those inputs that the gates' slices and groups are of.

    Times are seconds since the epoch. Raises: BackendUnavailable when the log cannot be read."""
    wanted = log.prediction_schema(project)
    sliced = {f"x_{name}" for name in gate_columns(project)}
    kept = [n for n in wanted.names if n in _KEPT or n in sliced or (inputs and n.startswith("x_"))]
    wanted = pa.schema([wanted.field(name) for name in kept])
    labels = log.label_schema(project).empty_table()
    until = end
    if not inputs:
        # Beyond the window: a label by entity key is its newest prediction's, which may be younger.
        until = known_by
        labels = lake.scan(labels_uri(project), log.day_of(start), log.day_of(until), log.label_schema(project))
    predictions = lake.scan(log_uri(project), log.day_of(start), log.day_of(until), wanted)
    found = joined(predictions, labels, known_by=known_by)
    times = found["event_time"].cast("int64").to_numpy() / 1e6
    return found.filter(pa.array((times >= start) & (times < end)))


def scored_by(version: int, rows: pa.Table) -> pa.Table:
    """The rows that this version scored as stable."""
    return rows.filter(pa.array(rows["stable"].to_numpy() == version))


def scores(project: Project, rows: pa.Table) -> Scores:
    """Stable's scores of logged rows, as in `target`."""
    if project.task != "multiclass":
        single: NDArray[np.float64] = rows["stable_score"].to_numpy()
        return single
    several = rows["stable_scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(several, dtype=np.float64).reshape(len(rows), -1 if len(rows) else 1)
