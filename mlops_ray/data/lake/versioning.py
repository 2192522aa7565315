"""Dataset versions: one commit each, found by number or by the hash of their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mlops_ray.config import DAY_S
from mlops_ray.data.lake import log
from mlops_ray.data.lake.file import DataFile
from mlops_ray.data.lake.version import DatasetVersion
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError

_KEEP = {"delta.enableExpiredLogCleanup": "false", "delta.deletedFileRetentionDuration": "interval 36500 days"}
"""Versions are references that runs point to: neither log entries nor replaced files expire by themselves."""


def remove_uncommitted(uri: str, folder: str) -> None:
    """Removes the files in `folder` below `uri` that no commit names: those of a run that failed or was not needed."""
    filesystem, root = filesystem_of(uri)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{folder}", allow_not_found=True, recursive=True))
    if not found:
        return
    named: set[str] = set()
    # A commit is younger than its files. A day less is beyond any two clocks, and spares the log's older part.
    began = min((info.mtime_ns / 1e9 for info in found if info.is_file), default=0.0) - DAY_S
    for entry in log.commits(uri):
        if entry.dataset is not None and entry.dataset.committed < began:
            break
        named |= {f"{root}/{path}" for path in entry.adds}
    for info in found:
        if info.type == fs.FileType.File and info.path not in named:
            filesystem.delete_file(info.path)
    if not any(info.path in named for info in found):
        filesystem.delete_dir(f"{root}/{folder}")


def commit(
    uri: str,
    files: Sequence[DataFile],
    schema: pa.Schema,
    content_hash: str,
    lineage: Mapping[str, Any],
    *,
    append: bool = False,
) -> DatasetVersion:
    """Makes `files` the whole content of the table (or adds them, with `append`) in one atomic commit.

    When another process has meanwhile committed the same content, that version is returned and nothing written.
    Raises: DataError when a file is not there any more, or another process commits at the same moment.
    """
    sizes = {"n_rows": sum(file.n_rows for file in files), "n_bytes": sum(file.size for file in files)}
    body = {"content_hash": content_hash, **sizes, "lineage": dict(lineage), "append": append}
    adds = [_add_action(file) for file in files]
    try:
        # Created empty: of two that create a table with rows at once, the loser's rows would be added to the winner's.
        arrow = Schema.from_arrow(schema)
        with log.exclusive(uri):
            table = log.table_at(uri)
            if table is not None and (known := _find(uri, table, content_hash)) is not None:
                return known
            _all_there(uri, files)
            table = table or DeltaTable.create(uri, arrow, mode="ignore", configuration=_KEEP)
            mode = "append" if append else "overwrite"
            actions: list[AddAction | RemoveAction] = [*adds]
            # Delta keeps the newest number of each such name with the table's state: `find` asks there, not the log.
            number = table.version() + 1
            marks = [Transaction(content_hash, number)]
            properties = CommitProperties({log.FIELD: json.dumps(body, sort_keys=True)}, app_transactions=marks)
            table.create_write_transaction(actions, mode, arrow, commit_properties=properties)
            found = _content_at(uri, number, content_hash) or find(uri, content_hash)
    except DeltaError as exc:
        raise DataError(
            uri, f"nothing was committed; if another process did at the same moment, run again: {exc}"
        ) from exc
    if found is None:
        raise DataError(uri, "the commit is not in the table's log; run again")
    return found


def _all_there(uri: str, files: Sequence[DataFile]) -> None:
    """Raises: DataError when one of `files` is gone or of another size: a version must never lack rows from birth."""
    filesystem, root = filesystem_of(uri)
    for file, info in zip(files, filesystem.get_file_info([f"{root}/{f.path}" for f in files]), strict=True):
        if info.size != file.size:
            raise DataError(uri, f"{file.path} was removed or changed before its commit; run again")


def _add_action(file: DataFile) -> AddAction:
    stats = json.dumps({"numRecords": file.n_rows})
    return AddAction(file.path, file.size, {}, modification_time=0, data_change=True, stats=stats)


def dataset(uri: str, version: int) -> DatasetVersion:
    """The dataset version with that number. Raises: DataError when there is none, or it was removed."""
    entry = log.commit_at(uri, version)
    if entry is None or entry.dataset is None:
        raise DataError(uri, f"has no dataset version {version}; run `mlops-ray prepare`, or see `mlops-ray data list`")
    log.not_removed(entry.dataset)
    return entry.dataset


def latest(uri: str) -> DatasetVersion | None:
    """The newest dataset version, or None when there is none yet."""
    return next(versions(uri), None)


def find(uri: str, content_hash: str) -> DatasetVersion | None:
    """The version with exactly these rows, or None. One look at the table's state and one at a commit."""
    table = log.table_at(uri)
    return _find(uri, table, content_hash) if table is not None else None


def _find(uri: str, table: DeltaTable, content_hash: str) -> DatasetVersion | None:
    number = table.transaction_version(content_hash)
    if number is None:
        return None
    if (found := _content_at(uri, number, content_hash)) is not None:
        return None if log.tombstone(uri, number) else found
    # The number is what the writer expected: where nothing locks the table, another may have been quicker.
    return next((v for v in versions(uri) if v.content_hash == content_hash), None)


def _content_at(uri: str, number: int, content_hash: str) -> DatasetVersion | None:
    """The version `number`, if it has that content."""
    entry = log.commit_at(uri, number)
    found = entry.dataset if entry is not None else None
    return found if found is not None and found.content_hash == content_hash else None


def files(dataset: DatasetVersion) -> list[str]:
    """Paths of the version's Parquet files relative to its `uri`, sorted. Raises: DataError when it was removed."""
    log.not_removed(dataset)
    entry = log.commit_at(dataset.uri, dataset.version)
    if entry is not None and not entry.append:
        return sorted(entry.adds)
    table = log.table_at(dataset.uri, dataset.version)
    if table is None:
        raise DataError(dataset.uri, "is not there; was storage.root moved?")
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


def read(dataset: DatasetVersion, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of exactly that version, in the order of its files.

    Raises: DataError when it was removed, files are gone, or the number of rows is not the recorded one.
    """
    wanted = list(columns) if columns is not None else None
    parts = [opened(dataset, path).read(wanted) for path in files(dataset)]
    n_rows = sum(part.num_rows for part in parts)
    if not parts:
        raise DataError(dataset.uri, f"version {dataset.version} holds no rows")
    if n_rows != dataset.n_rows:
        raise DataError(dataset.uri, f"version {dataset.version} has {n_rows} rows, not {dataset.n_rows}")
    return pa.concat_tables(parts)


def opened(dataset: DatasetVersion, path: str) -> pq.ParquetFile:
    """One of the version's files. Raises: DataError when it is gone."""
    filesystem, root = filesystem_of(dataset.uri)
    try:
        return pq.ParquetFile(f"{root}/{path}", filesystem=filesystem)
    except FileNotFoundError as exc:
        log.not_removed(dataset)  # between the look at its files and their reading
        raise DataError(dataset.uri, f"version {dataset.version} has lost a file: {path}") from exc


def versions(uri: str) -> Iterator[DatasetVersion]:
    """The dataset versions of the table that were not removed, newest first; each costs one look when it is asked for.

    Correct while others commit: a commit's file never changes, and its name is its number.
    """
    removed = log.removed(uri)
    for entry in log.commits(uri):
        if entry.dataset is not None and entry.dataset.version not in removed:
            yield entry.dataset
