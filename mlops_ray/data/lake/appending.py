"""Logs: tables that only grow, to which each writer adds its numbered parts exactly once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from mlops_ray.data.lake import log
from mlops_ray.errors import DataError

_TRIES = 50
"""Commits of others that one append may lose against: one of them gets through each time, so this is patience only."""


def committed(uri: str, app: str) -> int:
    """The last number that `app` has committed to the table, -1 when none."""
    table = log.table_at(uri)
    number = table.transaction_version(app) if table is not None else None
    return -1 if number is None else int(number)


def append_once(uri: str, table: pa.Table, app: str, number: int, partition_by: Sequence[str] = ()) -> bool:
    """Appends `table` unless `app` has committed `number` or a later one already; returns whether it was written.

    `app` names one writer, whose numbers rise: rows and number stand in one commit, so a repeated call adds nothing.
    Safe beside any other writer, a stalled one of the same `app` that wakes up included: the number is looked up in a
    version of the table, and the rows become the version right after it or nothing. New columns are added to the table.
    Raises: DataError when others were quicker `_TRIES` times; DeltaError and OSError when the store is away.
    """
    target = log.table_at(uri)
    if target is None:  # created empty: of two that create a table with rows at once, both's rows would stay
        schema = Schema.from_arrow(table.schema)
        target = DeltaTable.create(uri, schema, mode="ignore", partition_by=list(partition_by) or None)
    for _ in range(_TRIES):
        seen, last = target.version(), target.transaction_version(app)
        if last is not None and last >= number:
            return False
        # No retries: Delta's own would put the rows behind commits that the look-up has not seen.
        marks = CommitProperties(app_transactions=[Transaction(app, number)], max_commit_retries=0)
        try:
            write_deltalake(target, table, mode="append", schema_mode="merge", commit_properties=marks)
        except CommitFailedError:
            target = DeltaTable(uri)
            if target.version() == seen:
                raise
        else:
            return True
    raise DataError(uri, f"others committed first {_TRIES} times; run again")


def exists(uri: str) -> bool:
    """Whether there is a table."""
    return log.table_at(uri) is not None


# A day's files that are worth merging, and what merging aims at: a Parquet file of 64 MB is read in about a second.
_MANY_FILES = 8


_FILE_BYTES = 64 * 2**20


def tidy(uri: str, *, before_day: str | None, litter_s: float) -> dict[str, int]:
    """Housekeeping of a log: deletes days before `before_day`, merges small files of a day, writes a checkpoint, cuts
    the table's log off where it is older than its `delta.logRetentionDuration` (30 days), and removes files that no
    version has named for `litter_s` seconds. Numbers that writers noted stay.

    Loses against other commits rather than holding them up: what could not be done is done the next time.
    Returns: `days` deleted, `merged` files, `removed` files.
    """
    done = {"days": 0, "merged": 0, "removed": 0}
    with contextlib.suppress(CommitFailedError):
        files_of: dict[str, int] = {}
        for day in pa.table(DeltaTable(uri).get_add_actions(flatten=True))["partition.day"].to_pylist():
            files_of[day] = files_of.get(day, 0) + 1
        old = sorted(day for day in files_of if before_day is not None and day < before_day)
        if old:
            DeltaTable(uri).delete(f"day < '{before_day}'")
            done["days"] = len(old)
        for day in sorted(set(files_of) - set(old)):
            if files_of[day] >= _MANY_FILES:
                merged = DeltaTable(uri).optimize.compact([("day", "=", day)], target_size=_FILE_BYTES)
                done["merged"] += int(merged["numFilesRemoved"])
    table = DeltaTable(uri)
    table.create_checkpoint()
    table.cleanup_metadata()
    hours = math.ceil(litter_s / 3600)
    done["removed"] = len(table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True))
    return done


def rows_by_day(uri: str) -> dict[str, int]:
    """How many rows each `day` of a log has, as its commits counted them: no file is opened."""
    table = log.table_at(uri)
    if table is None:
        return {}
    found: dict[str, int] = {}
    actions = pa.table(table.get_add_actions(flatten=True))
    for day, n in zip(actions["partition.day"].to_pylist(), actions["num_records"].to_pylist(), strict=True):
        found[day] = found.get(day, 0) + n
    return found


def scan(uri: str, since_day: str, until_day: str, columns: pa.Schema | Sequence[str]) -> pa.Table:
    """Rows of a log whose partition `day` ("YYYY-MM-DD") lies in [since_day, until_day], both included.

    Other partitions' files are not opened. While the table does not exist the result is empty: typed when `columns` is
    a schema, of type null when it is names.
    """
    names = list(columns.names) if isinstance(columns, pa.Schema) else list(columns)
    table = log.table_at(uri)
    if table is None:
        schema = columns if isinstance(columns, pa.Schema) else pa.schema([(name, pa.null()) for name in names])
        return schema.empty_table()
    day, dataset = ds.field("day"), table.to_pyarrow_dataset()
    there = [name for name in names if name in dataset.schema.names]
    rows = dataset.to_table(columns=there, filter=(day >= since_day) & (day <= until_day))
    for name in (n for n in names if n not in there):  # older than the column
        rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return rows.select(names).cast(columns) if isinstance(columns, pa.Schema) else rows.select(names)
