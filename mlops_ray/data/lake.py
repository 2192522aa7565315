"""Delta tables: dataset versions with a content hash, and append-once logs.

A dataset version is one commit that replaces the whole content of the table; older versions stay readable, since log
and files are kept. Its content hash depends on the rows alone: neither their order, nor how they lie in files.
Addresses are absolute paths or `s3://`, `gs://`, `abfs://`; credentials come the way `deltalake` and `pyarrow` find
them. Whoever writes files here and fails before `commit` leaves files that no reader sees.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
import xxhash
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from mlops_ray.data.sources import filesystem_of
from mlops_ray.errors import DataError

Lanes = npt.NDArray[np.uint64]

_FIELD = "mlops_ray"
"""Key of our JSON in a commit's metadata."""
_KEEP = {"delta.enableExpiredLogCleanup": "false", "delta.deletedFileRetentionDuration": "interval 36500 days"}
"""Versions are references that runs point to: neither log entries nor replaced files expire by themselves."""


# Content hash ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowHash:
    """Order-independent hash of a bag of rows: two sums of 64-bit row hashes, modulo 2**64, and the number of rows.

    `+` gives the hash of both bags together. It finds accidents (a changed, lost or doubled row); it is no defence
    against somebody who constructs rows to collide.
    Source: multiset hashing by addition, Clarke et al. 2003 (MSet-Add-Hash), over two unkeyed 64-bit lanes.
    """

    a: int = 0
    b: int = 0
    n: int = 0

    def __add__(self, other: RowHash) -> RowHash:
        return RowHash((self.a + other.a) % 2**64, (self.b + other.b) % 2**64, self.n + other.n)

    def hex(self) -> str:
        """48 hexadecimal digits: both sums, then the number of rows."""
        return f"{self.a:016x}{self.b:016x}{self.n:016x}"

    @classmethod
    def of(cls, lanes: tuple[Lanes, Lanes]) -> RowHash:
        """Hash of rows whose own hashes are `lanes`, shape (n,) each."""
        a, b = lanes
        return cls(int(a.sum(dtype=np.uint64)), int(b.sum(dtype=np.uint64)), len(a))


NO_ROWS = RowHash()
"""The hash of nothing."""


def row_hash(table: pa.Table) -> RowHash:
    """Hash of the rows of `table`; the order of rows and of columns does not matter, names and dtypes do."""
    return RowHash.of(row_hashes(table))


def row_hashes(table: pa.Table) -> tuple[Lanes, Lanes]:
    """Two independent 64-bit hashes per row, shape (n,) each.

    Null differs from every value; all NaN are one value, and -0.0 is 0.0.
    Raises: DataError for dtypes other than numbers, booleans, strings, timestamps and dates.
    """
    lanes = [np.zeros(table.num_rows, dtype=np.uint64) for _ in range(2)]
    for name in sorted(table.column_names):
        column = table[name].combine_chunks()
        kind, cells = _cells(name, column)
        keys = np.frombuffer(xxhash.xxh3_128_digest(f"{kind}:{name}".encode()), dtype=">u8").astype(np.uint64)
        null = column.is_null().to_numpy(zero_copy_only=False)
        for lane, key, cell in zip(lanes, keys, cells, strict=True):
            lane += _mix(np.where(null, ~key, _mix(cell) ^ key))
    return _mix(lanes[0]), _mix(lanes[1])


def _mix(x: Lanes) -> Lanes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _cells(name: str, column: pa.Array) -> tuple[str, tuple[Lanes, Lanes]]:
    """The dtype's name and, for both lanes, 64 bits per cell; nulls hold anything."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        coded = column.cast(pa.string()).dictionary_encode()
        texts = coded.dictionary.cast(pa.binary()).to_pylist() or [b""]
        digests = b"".join(map(xxhash.xxh3_128_digest, texts))
        pairs = np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)
        codes = pc.fill_null(coded.indices, 0).to_numpy(zero_copy_only=False)
        return "string", (pairs[codes, 0], pairs[codes, 1])
    if pa.types.is_floating(kind):
        values = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False) + 0.0
        bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
        return "float", (bits, bits)
    if pa.types.is_timestamp(kind):
        column, label = column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.int64()), "timestamp"
    elif pa.types.is_date(kind):
        column, label = column.cast(pa.date32()).cast(pa.int32()), "date"
    elif pa.types.is_boolean(kind):
        column, label = column.cast(pa.int8()), "bool"
    elif pa.types.is_integer(kind):
        label = "int"
    else:
        raise DataError(name, f"dtype {kind} has no content hash; use numbers, booleans, strings, timestamps or dates")
    if not pa.types.is_uint64(column.type):
        column = column.cast(pa.int64())
    bits = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).view(np.uint64)
    return label, (bits, bits)


# Dataset versions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version of the Delta table at `uri`. `lineage` says where its rows came from (JSON)."""

    uri: str
    version: int
    content_hash: str
    n_rows: int
    lineage: dict[str, Any]


@dataclass(frozen=True)
class DataFile:
    """A Parquet file below a table's folder: `path` relative to it, `size` in bytes."""

    path: str
    size: int
    n_rows: int


def write_file(uri: str, path: str, table: pa.Table) -> DataFile:
    """Writes `table` as the Parquet file `path` below the folder `uri`; no reader sees it before `commit`."""
    filesystem, root = filesystem_of(uri)
    full = f"{root}/{path}"
    filesystem.create_dir(full.rpartition("/")[0], recursive=True)
    pq.write_table(table, full, filesystem=filesystem, compression="zstd")
    return DataFile(path, filesystem.get_file_info(full).size, table.num_rows)


class FileWriter:
    """Writes batches of rows as one Parquet file below the folder `uri`; the file begins with the first row."""

    def __init__(self, uri: str, path: str) -> None:
        self._uri, self._path, self.n_rows = uri, path, 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Adds `rows`; all of one schema."""
        if not rows.num_rows:
            return
        if self._writer is None:
            filesystem, root = filesystem_of(self._uri)
            full = f"{root}/{self._path}"
            filesystem.create_dir(full.rpartition("/")[0], recursive=True)
            self._writer = pq.ParquetWriter(full, rows.schema, filesystem=filesystem, compression="zstd")
        self._writer.write_table(rows)
        self.n_rows += rows.num_rows

    def close(self) -> DataFile | None:
        """The finished file, or None when there were no rows."""
        if self._writer is None:
            return None
        self._writer.close()
        filesystem, root = filesystem_of(self._uri)
        return DataFile(self._path, filesystem.get_file_info(f"{root}/{self._path}").size, self.n_rows)


def read_file(uri: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one Parquet file below the folder `uri`."""
    filesystem, root = filesystem_of(uri)
    return pq.ParquetFile(f"{root}/{path}", filesystem=filesystem).read(list(columns) if columns is not None else None)


def remove_uncommitted(uri: str, folder: str) -> None:
    """Removes the files in `folder` below `uri` that no commit names: those of a run that failed or was not needed."""
    filesystem, root = filesystem_of(uri)
    named: set[str] = set()
    for version, body in _commits(uri):
        if body["folder"] == folder:
            named |= {f"{root}/{path}" for path in _paths(uri, version)}
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{folder}", allow_not_found=True, recursive=True))
    for info in found:
        if info.type == fs.FileType.File and info.path not in named:
            filesystem.delete_file(info.path)
    if found and not named:
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

    All `files` stand in one folder of the table, which no other commit uses.
    It does not look for the same content: `find` does.
    Raises: DataError when another process commits at the same moment.
    """
    n_rows = sum(file.n_rows for file in files)
    folder = files[0].path.rpartition("/")[0] if files else ""
    body = {"content_hash": content_hash, "n_rows": n_rows, "lineage": dict(lineage), "folder": folder}
    properties = CommitProperties(custom_metadata={_FIELD: json.dumps(body, sort_keys=True)})
    adds = [_add_action(file) for file in files]
    try:
        # Created empty: of two that create a table with rows at once, the loser's rows would be added to the winner's.
        arrow = Schema.from_arrow(schema)
        with _alone(uri):
            table = _open(uri) or DeltaTable.create(uri, arrow, mode="ignore", configuration=_KEEP)
            mode = "append" if append else "overwrite"
            actions: list[AddAction | RemoveAction] = [*adds]
            table.create_write_transaction(actions, mode, arrow, commit_properties=properties)
    except DeltaError as exc:
        raise DataError(
            uri, f"nothing was committed; if another process did at the same moment, run again: {exc}"
        ) from exc
    found = find(uri, content_hash)
    if found is None:
        raise DataError(uri, "the commit is not in the table's log; run again")
    return found


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One writer of the table at a time on this machine: of two overwrites at once, Delta may keep both's rows.

    An object store has no such lock; there, two writers of one table must not run at once (retries of a failed commit
    are safe: `read` refuses a version whose rows are not as many as were committed).
    """
    if "://" in uri:
        yield
        return
    Path(uri).mkdir(parents=True, exist_ok=True)
    with Path(uri, "_writer.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def dataset(uri: str, version: int) -> DatasetVersion:
    """The dataset version with that number. Raises: DataError when there is none."""
    for found in versions(uri):
        if found.version == version:
            return found
    raise DataError(uri, f"has no dataset version {version}; run `mlops-ray prepare`, or see `mlops-ray status`")


def latest(uri: str) -> DatasetVersion | None:
    """The newest dataset version, or None when there is none yet."""
    return next(iter(versions(uri)), None)


def find(uri: str, content_hash: str) -> DatasetVersion | None:
    """The oldest version with exactly these rows, or None."""
    return next((v for v in reversed(versions(uri)) if v.content_hash == content_hash), None)


def files(dataset: DatasetVersion) -> list[str]:
    """Paths of the version's Parquet files relative to its `uri`, sorted."""
    return _paths(dataset.uri, dataset.version)


def read(dataset: DatasetVersion, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of exactly that version, in the order of its files.

    Raises: DataError when files are gone, or the number of rows is not the recorded one.
    """
    try:
        parts = [read_file(dataset.uri, path, columns) for path in files(dataset)]
    except FileNotFoundError as exc:
        raise DataError(dataset.uri, f"version {dataset.version} has lost a file: {exc}") from exc
    table = pa.concat_tables(parts)
    if table.num_rows != dataset.n_rows:
        raise DataError(dataset.uri, f"version {dataset.version} has {table.num_rows} rows, not {dataset.n_rows}")
    return table


def versions(uri: str) -> list[DatasetVersion]:
    """All dataset versions of the table, newest first."""
    return [
        DatasetVersion(uri, version, body["content_hash"], body["n_rows"], body["lineage"])
        for version, body in _commits(uri)
    ]


def _commits(uri: str) -> list[tuple[int, dict[str, Any]]]:
    """Version and our metadata of every commit of ours, newest first."""
    entries: list[dict[str, Any]] = []
    table = _open(uri)
    while table is not None:
        entries = table.history()
        now = _open(uri)
        # History counts its numbers down from the table's version: a commit in between would shift them all by one.
        if now is None or now.version() == table.version():
            break
        table = now
    return [(entry["version"], json.loads(entry[_FIELD])) for entry in entries if _FIELD in entry]


def _paths(uri: str, version: int) -> list[str]:
    table = _open(uri, version)
    if table is None:
        raise DataError(uri, "is not there; was storage.root moved?")
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


def _open(uri: str, version: int | None = None) -> DeltaTable | None:
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except DeltaError as exc:
        raise DataError(uri, f"cannot be opened at version {version}: {exc}") from exc


def _add_action(file: DataFile) -> AddAction:
    stats = json.dumps({"numRecords": file.n_rows})
    return AddAction(file.path, file.size, {}, modification_time=0, data_change=True, stats=stats)


# Logs -----------------------------------------------------------------------------------------------------------------


def committed(uri: str, app: str) -> int:
    """The last number that `app` has committed to the table, -1 when none."""
    table = _open(uri)
    number = table.transaction_version(app) if table is not None else None
    return -1 if number is None else int(number)


def append_once(uri: str, table: pa.Table, app: str, number: int, partition_by: Sequence[str] = ()) -> bool:
    """Appends `table` unless `app` has committed `number` or a later one already; returns whether it was written.

    `app` names one writer, whose numbers rise: rows and number stand in one commit, so a repeated call adds nothing.
    The check is only safe when no two processes write for one `app` at once. New columns are added to the table.
    """
    with _alone(uri):
        if committed(uri, app) >= number:
            return False
        _append(uri, table, partition_by, CommitProperties(app_transactions=[Transaction(app, number)]))
        return True


def _append(uri: str, table: pa.Table, partition_by: Sequence[str], properties: CommitProperties) -> None:
    write_deltalake(
        uri,
        table,
        mode="append",
        partition_by=list(partition_by) or None,
        schema_mode="merge",
        commit_properties=properties,
    )


def scan(uri: str, since_day: str, until_day: str, columns: pa.Schema | Sequence[str]) -> pa.Table:
    """Rows of a log whose partition `day` ("YYYY-MM-DD") lies in [since_day, until_day], both included.

    Other partitions' files are not opened. While the table does not exist the result is empty: typed when `columns` is
    a schema, of type null when it is names.
    """
    names = list(columns.names) if isinstance(columns, pa.Schema) else list(columns)
    table = _open(uri)
    if table is None:
        schema = columns if isinstance(columns, pa.Schema) else pa.schema([(name, pa.null()) for name in names])
        return schema.empty_table()
    day = ds.field("day")
    rows = table.to_pyarrow_dataset().to_table(columns=names, filter=(day >= since_day) & (day <= until_day))
    return rows.cast(columns) if isinstance(columns, pa.Schema) else rows
