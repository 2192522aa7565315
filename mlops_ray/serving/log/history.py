"""The prediction log read back: predictions with the labels that came for them, by day, newest first.

A day is a partition of the log, and is the unit of work: memory holds one day, whatever the log holds. Of a prediction
that stands in it twice the first row counts; of its labels the one that became known last.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.serving.log.tables import VALUES_SCHEMA, label_schema, prediction_schema
from mlops_ray.serving.places import labels_uri, log_uri, values_uri

Progress = Callable[[str, int, int], None]
Addressed = Callable[[pa.Table, pa.Table], pa.Table]
_TIME = pa.timestamp("us", tz="UTC")
_AT_ONCE = 500_000
"""Rows that are looked up among the labels together: each look goes through all labels that came since."""


@dataclass(frozen=True)
class Question:
    """Which predictions. Days "YYYY-MM-DD" (UTC, of the event), both included; None asks for no limit."""

    keys: tuple[str, ...] = ()
    prediction: str | None = None
    since: str | None = None
    until: str | None = None
    version: int | None = None
    variant: str | None = None
    limit: int | None = None

    def among(self, day: str) -> bool:
        """Whether a day is asked for."""
        return (self.since is None or self.since <= day) and (self.until is None or day <= self.until)


class History:
    """One snapshot of the log: what is written meanwhile is not in it.

    Raises: DataError, by any of its methods, when a file of the snapshot is gone: rows were forgotten, or expired.
    """

    def __init__(self, project: Project, addressed: Addressed) -> None:
        """Args: addressed: gives labels by entity key the id of their prediction (`monitoring.labels`)."""
        self._uri, self._addressed = log_uri(project), addressed
        self._log, self._labels = _opened(self._uri), _opened(labels_uri(project))
        self._values = _opened(values_uri(project))
        self._logged, self._label_schema = prediction_schema(project), label_schema(project)

    @property
    def days(self) -> list[str]:
        """Days that the log has rows of, newest first."""
        return sorted(self._log.days, reverse=True) if self._log is not None else []

    @property
    def schema(self) -> pa.Schema:
        """Columns of the log but for its partition, then those that `rows` adds."""
        logged = self._log.dataset.schema if self._log is not None else self._logged
        added = [("version", pa.int64()), ("variant", pa.string()), ("score", pa.float64())]
        label = self._label_schema.field("label").type
        labelled = [("label", label), ("label_time", _TIME), ("n_labels", pa.int64())]
        return pa.schema([*(f for f in logged if f.name != "day"), *added, *labelled])

    def rows(self, question: Question) -> Iterator[pa.Table]:
        """The predictions of one day or of several with few rows, newest day first, rows in the log's order."""
        waiting: list[pa.Table] = []
        for day in self.days:
            if question.among(day):
                waiting.append(self._predictions(question, day))
                if sum(part.num_rows for part in waiting) >= _AT_ONCE:
                    yield self._labelled(pa.concat_tables(waiting))
                    waiting = []
        if waiting:
            yield self._labelled(pa.concat_tables(waiting))

    def newest(self, question: Question) -> pa.Table:
        """The newest predictions, `question.limit` of them, newest first. Older days are not opened once there are
        enough."""
        found: list[pa.Table] = []
        for day in self.days:
            if not question.among(day):
                continue
            part = self._predictions(question, day)
            found.append(part.take(pc.sort_indices(part, [("event_time", "descending"), ("at", "descending")])))
            if question.limit is not None and sum(part.num_rows for part in found) >= question.limit:
                break
        rows = pa.concat_tables(found).slice(0, question.limit) if found else None
        return self.schema.empty_table() if rows is None else self._labelled(rows)

    def labels(self, rows: pa.Table) -> pa.Table:
        """Every label that came for these predictions, in the order in which they became known."""
        return self._told(self._labels, self._label_schema, rows)

    def values(self, rows: pa.Table) -> pa.Table:
        """Every business number that came for these predictions, in the same order."""
        return self._told(self._values, VALUES_SCHEMA, rows)

    def _told(self, told: _Opened | None, schema: pa.Schema, rows: pa.Table) -> pa.Table:
        """What a table of late arrivals says of these predictions.

        What came by entity key is the key's newest prediction's before it: the log is asked for that key's later rows.
        """
        oldest = pc.min(rows["event_time"]).as_py()
        if told is None or oldest is None:
            return schema.empty_table()
        ids, since = rows["prediction_id"].combine_chunks(), ds.field("day") >= oldest.strftime("%Y-%m-%d")
        names = schema.names
        found = self._read(told.dataset, names, ds.field("prediction_id").isin(ids) & since)
        keys = pc.unique(rows["key"]).drop_null()
        theirs = ds.field("prediction_id").is_null() & ds.field("key").isin(keys)
        by_key = self._read(told.dataset, names, theirs & since)
        if by_key.num_rows:
            assert self._log is not None, "rows came from it"
            last = ds.field("day") <= pc.max(by_key["time"]).as_py().strftime("%Y-%m-%d")
            asked = ds.field("key").isin(pc.unique(by_key["key"]))
            about = self._read(self._log.dataset, ("prediction_id", "key", "event_time"), asked & since & last)
            known = self._addressed(by_key, about).select(names).cast(schema)
            found = pa.concat_tables([found, known.filter(pc.is_in(known["prediction_id"], value_set=ids))])
        return found.take(pc.sort_indices(found, [("time", "ascending"), ("at", "ascending")]))

    def _predictions(self, question: Question, day: str) -> pa.Table:
        assert self._log is not None, "a log without table has no days"
        wanted = ds.field("day") == day
        if question.keys:
            wanted &= ds.field("key").isin(list(question.keys))
        if question.prediction is not None:
            wanted &= ds.field("prediction_id") == question.prediction
        if question.variant is not None:
            wanted &= ds.field("canary").is_valid() if question.variant == "canary" else ds.field("canary").is_null()
        kept = [f.name for f in self.schema if f.name in self._log.dataset.schema.names]
        rows = _answered(_first(self._read(self._log.dataset, kept, wanted)))
        return rows if question.version is None else rows.filter(pc.equal(rows["version"], question.version))

    def _read(self, dataset: ds.Dataset, names: Sequence[str], wanted: ds.Expression) -> pa.Table:
        try:
            return dataset.to_table(columns=list(names), filter=wanted)
        except FileNotFoundError as exc:
            raise DataError(self._uri, "rows were taken out of the log meanwhile; run again") from exc

    def _labelled(self, rows: pa.Table) -> pa.Table:
        """`rows` with the label that counts, when it became known, and how many there were."""
        labels = self.labels(rows)
        found = labels.group_by("prediction_id", use_threads=False).aggregate(
            [("label", "last"), ("time", "last"), ("label", "count")]
        )
        place = pc.index_in(rows["prediction_id"], value_set=found["prediction_id"].combine_chunks())
        label, time, counts = (found[name].take(place) for name in ("label_last", "time_last", "label_count"))
        for name, cells in (("label", label), ("label_time", time), ("n_labels", pc.fill_null(counts, 0))):
            rows = rows.append_column(name, cells)
        return rows.select(self.schema.names)


@dataclass(frozen=True, eq=False)
class _Opened:
    dataset: ds.Dataset
    days: frozenset[str]


def _opened(uri: str) -> _Opened | None:
    try:
        table = DeltaTable(uri)
    except TableNotFoundError:
        return None
    return _Opened(table.to_pyarrow_dataset(), frozenset(part["day"] for part in table.partitions()))


def _first(rows: pa.Table) -> pa.Table:
    """The first row of each prediction, in the order of the log."""
    coded = rows["prediction_id"].combine_chunks().dictionary_encode()
    if len(coded.dictionary) == rows.num_rows:
        return rows
    return rows.take(pa.array(np.sort(np.unique(coded.indices.to_numpy(), return_index=True)[1])))


def _answered(rows: pa.Table) -> pa.Table:
    """`rows` with who answered: the canary where it did, else stable; whom the key was assigned to; and the score."""
    theirs = pc.is_valid(rows["canary_score"])
    version = pc.if_else(theirs, rows["canary"], rows["stable"])
    variant = pc.if_else(pc.is_valid(rows["canary"]), "canary", "stable")
    score = pc.if_else(theirs, rows["canary_score"], rows["stable_score"])
    for name, cells in (("version", version), ("variant", variant), ("score", score)):
        rows = rows.append_column(name, cells)
    return rows


# Export ---------------------------------------------------------------------------------------------------------------


def export(
    history: History, question: Question, output: Path, columns: Sequence[str], *, on_progress: Progress
) -> dict[str, Any]:
    """The asked predictions with their labels in `output`: a `.parquet` or `.csv` file, else a folder with a Parquet
    file for each day.

    It appears whole: a file of that name is replaced at the end, a folder must not be there. Lists are JSON in CSV.
    Raises: DataError for unknown columns, or a folder that is there.
    """
    schema = _chosen(history.schema, columns)
    if output.suffix not in (".parquet", ".csv") and output.exists():
        raise DataError(str(output), "is there already; name another folder, or a .parquet or .csv file")
    aside = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    days = [day for day in history.days if question.among(day)]
    n_rows, done = 0, 0
    try:
        with _writer(output.suffix, aside, schema) as write:
            for rows in history.rows(question):
                n_rows += rows.num_rows
                write(rows)
                oldest = pc.min(rows["event_time"]).as_py()
                done = len(days) if oldest is None else sum(day >= oldest.strftime("%Y-%m-%d") for day in days)
                on_progress("days", done, len(days))
        aside.replace(output)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
        raise
    return {"rows": n_rows, "days": len(days), "columns": schema.names}


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    if unknown := [name for name in columns if name not in schema.names]:
        raise DataError("columns", f"the log has no {unknown[0]!r}; it has {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in columns]) if columns else schema


@contextlib.contextmanager
def _writer(suffix: str, path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """What writes rows to `path`; the file or folder is whole when the block ends."""
    if suffix == ".parquet":
        with pq.ParquetWriter(path, schema, compression="zstd") as parquet:
            yield lambda rows: parquet.write_table(rows.select(schema.names).cast(schema))
    elif suffix == ".csv":
        plain = pa.schema([(f.name, pa.string() if pa.types.is_nested(f.type) else f.type) for f in schema])
        with pa.csv.CSVWriter(path, plain) as csv:
            yield lambda rows: csv.write_table(_flat(rows.select(schema.names), plain))
    else:
        path.mkdir()
        yield functools.partial(_by_day, path, schema)


def _flat(rows: pa.Table, plain: pa.Schema) -> pa.Table:
    """`rows` with lists as JSON."""
    for at, column in enumerate(rows.schema):
        if pa.types.is_nested(column.type):
            texts = [None if cell is None else json.dumps(cell) for cell in rows[column.name].to_pylist()]
            rows = rows.set_column(at, column.name, pa.array(texts, pa.string()))
    return rows.cast(plain)


def _by_day(folder: Path, schema: pa.Schema, rows: pa.Table) -> None:
    days = pc.strftime(rows["event_time"], format="%Y-%m-%d")
    for day in pc.unique(days).to_pylist():
        part = rows.filter(pc.equal(days, day)).select(schema.names).cast(schema)
        pq.write_table(part, folder / f"{day}.parquet", compression="zstd")
