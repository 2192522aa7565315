"""What a simulation lives through: recorded rows in the order of their events, and when each label was known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Project
from mlops_ray.data.features.statistics import to_columns
from mlops_ray.data.profile import Columns
from mlops_ray.data.schema import conform
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class History:
    """Rows, oldest first; all arrays of shape (n,), times in seconds since the epoch.

    table: the project's columns; columns: the model's inputs; y: labels, NaN where there is none; labelled: when the
    label was known, infinite where it never was."""

    table: pa.Table
    columns: Columns
    times: Floats
    y: Floats
    labelled: Floats
    keys: tuple[str, ...]

    def between(self, since: float, until: float) -> slice:
        """The rows with event time in [since, until)."""
        first, last = np.searchsorted(self.times, [since, until], side="left")
        return slice(int(first), int(last))

    def inputs(self, rows: slice) -> Columns:
        """Inputs of these rows."""
        return {name: values[rows] for name, values in self.columns.items()}


def history(project: Project, table: pa.Table, *, lag_s: float = 0.0, label_time: str | None = None) -> History:
    """The rows of `table` in order of event time and key.

    Args: label_time: column with the time at which each label was known, null where it never was; without one, labels
        are known `lag_s` seconds after the event.
    Raises: DataError for a task that no simulation knows, rows without a time, and what `conform` refuses.
    """
    if project.task == "multiclass":
        raise DataError("task", "a simulation knows binary and regression tasks, not multiclass")
    told = _label_times(table, label_time)
    rows, _ = conform(table, project.columns)
    if rows[project.event_time].null_count:
        raise DataError(project.event_time, f"{rows[project.event_time].null_count} rows have none; leave them out")
    order = np.lexsort((rows[project.key].cast(pa.string()).to_numpy(zero_copy_only=False), _seconds(rows, project)))
    rows = rows.take(pa.array(order))
    times = _seconds(rows, project)
    y = pc.fill_null(rows[project.target].cast(pa.float64()), float("nan")).to_numpy()
    labelled = times + lag_s if told is None else told[order]
    return History(
        rows,
        to_columns(project.features, rows),
        times,
        y,
        np.where(np.isnan(y) | np.isnan(labelled), np.inf, labelled),
        tuple(rows[project.key].cast(pa.string()).to_pylist()),
    )


def take(table: pa.Table, rows: Sequence[int] | np.ndarray) -> pa.Table:
    """These rows of `table`."""
    return table.take(pa.array(np.asarray(rows, dtype=np.int64)))


def _seconds(rows: pa.Table, project: Project) -> Floats:
    return np.asarray(rows[project.event_time].cast(_TIME).cast(pa.int64()).to_numpy() / 1e6)


def _label_times(table: pa.Table, name: str | None) -> Floats | None:
    if name is None:
        return None
    if name not in table.column_names:
        raise DataError(name, f"no such column for the times of labels; there are {', '.join(table.column_names)}")
    micros = table[name].cast(_TIME).cast(pa.int64()).cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(micros, float("nan")).to_numpy() / 1e6)
