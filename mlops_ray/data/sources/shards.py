"""What one task reads by itself: shards of files, their batches of bounded size, and the rows of a time range.

Moving rows through Ray's object store costs more than reading them, so a task is handed the description of its rows
and reads them where it runs.
"""

from __future__ import annotations

import functools
import operator
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, DeltaProtocolError, TableNotFoundError

from mlops_ray.config import Column, Source, TimeRange
from mlops_ray.config.sources import hidden, without_secrets
from mlops_ray.data.content import row_hash
from mlops_ray.data.schema import conform
from mlops_ray.data.sources import text_files
from mlops_ray.errors import DataError

ROWS_PER_BATCH = 131_072
"""Rows that a task holds at a time: enough for vectorised work, some 20 MB at twenty columns."""
ROWS_PER_SHARD = 1_000_000
"""Rows that one task reads: a second of work beside the 10 ms that a task costs."""
BYTES_PER_SHARD = 64 * 1024 * 1024
"""Of the columns that are read, before compression: wide rows make a second of work earlier."""

_COMPRESSED = ("", ".gz", ".bz2", ".zst", ".lz4", ".br")
EXTENSIONS = {
    "parquet": (".parquet", ".pq"),
    "csv": tuple(e + c for e in (".csv", ".tsv", ".txt") for c in _COMPRESSED),
    "json": tuple(e + c for e in (".json", ".jsonl", ".ndjson") for c in _COMPRESSED),
}
"""What counts as a file of that kind in a directory; a file or pattern that is named counts whatever its name."""
FILE_KINDS = (*EXTENSIONS, "delta")
"""What this module reads."""
DELTA_OPTIONS = frozenset({"version", "storage_options"})
"""`options:` of a Delta source that are read here; with any other, Ray Data's reader gets them all."""


# Which files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One file at an absolute path or address; `fixed` are the columns that its folders name (`year=2013`)."""

    uri: str
    size: int
    fixed: tuple[tuple[str, str], ...] = ()


@functools.lru_cache(maxsize=64)
def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path in it."""
    if "://" in uri:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    return fs.LocalFileSystem(), uri.rstrip("/") or "/"


def find_files(paths: Sequence[str], kind: str) -> list[File]:
    """The files that `paths` mean: files, directories with all below them, and patterns with `*`, `?` and `**`.

    Each path's files come in the order of their names, and each file once: where the first path that means it has it.
    Hidden ones (`.` or `_` in front) are left out. Files of no bytes are left out of `csv` and `json`, unless there are
    no others: writers in parallel leave some. A local name that exists is no pattern, whatever is in it.
    Raises: DataError for a path without files, or whose files are all empty; OSError.
    """
    found: dict[str, File] = {}
    for path in paths:
        filesystem, name = filesystem_of(path) if not _is_pattern(path) else filesystem_of(_base(path))
        address = _address(path, name)
        if _is_pattern(path):
            pattern = _as_regex(name + path[len(_base(path)) :])
            infos = [i for i in _below(filesystem, name) if pattern.fullmatch(i.path)]
            what = "no file fits this pattern"
        else:
            info = filesystem.get_file_info(name)
            if info.type == fs.FileType.NotFound:
                raise DataError(path, "there is nothing at this place; check the path, and who may read it")
            if info.type == fs.FileType.File:
                infos, what = [info], ""
            else:
                infos = [i for i in _below(filesystem, name) if i.path.lower().endswith(EXTENSIONS[kind])]
                what = f"the directory holds no {' or '.join(EXTENSIONS[kind][:1])} file; name a pattern such as *"
        if not infos:
            raise DataError(path, f"{what}; check the path and `kind:`")
        for info in infos:
            file = File(address(info.path), info.size or 0, _hive(info.path, name))
            before = found.get(_same(file.uri))
            if before is None or len(before.fixed) < len(file.fixed):
                found[_same(file.uri)] = file  # keeps the first one's place
    full = [file for file in found.values() if file.size or kind == "parquet"]
    if not full:
        raise DataError(", ".join(f.uri for f in list(found.values())[:3]), "is empty: there are no bytes to read")
    return full


def _same(uri: str) -> str:
    """One name for a file, however its path was written."""
    path = unquote(uri.removeprefix("file://")) if uri.startswith("file://") else uri
    return path if "://" in path else posixpath.normpath(path)


def _is_pattern(path: str) -> bool:
    if not re.search(r"[*?\[]", path):
        return False
    return "://" in path or fs.LocalFileSystem().get_file_info(path).type == fs.FileType.NotFound


def _base(path: str) -> str:
    """The folder before the first part with a wildcard."""
    head = re.split(r"[*?\[]", path, maxsplit=1)[0]
    return head[: head.rfind("/")] or "/"


def _as_regex(pattern: str) -> re.Pattern[str]:
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def part(found: re.Match[str]) -> str:
        text = found[0]
        if text.startswith("[") and len(text) > 1:
            return "[" + text[1:-1].replace("\\", r"\\").replace("!", "^", text[1] == "!") + "]"
        return wild.get(text) or re.escape(text)

    return re.compile(re.sub(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|[^*?\[]+|\[", part, pattern))


def _below(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    inside = len(folder.rstrip("/")) + 1
    shown = [i for i in infos if not any(p.startswith((".", "_")) for p in i.path[inside:].split("/"))]
    return sorted((i for i in shown if i.type == fs.FileType.File), key=lambda i: i.path)


def _address(path: str, name: str) -> Any:
    """What turns a name in the file system back into an address."""
    base = _base(path) if _is_pattern(path) else path
    if "://" not in path:
        return lambda inner: inner
    head, tail = base.partition("?")[0].rstrip("/"), base.partition("?")[2]
    return lambda inner: head + quote(inner[len(name.rstrip("/")) :], safe="/=+,:@") + (f"?{tail}" if tail else "")


def _hive(path: str, base: str) -> tuple[tuple[str, str], ...]:
    inside = PurePosixPath(path[len(base) :].lstrip("/")).parts[:-1]
    # Writers encode what no folder's name can hold: `c=a%2Fb` (Hive, Spark, Arrow).
    return tuple((unquote(k), unquote(v)) for part in inside if "=" in part for k, _, v in [part.partition("=")])


def described(data: str, kind: str | None = None) -> Source:
    """`data` as a source: a file, a pattern, a directory of files, or a Delta table.

    Args: kind: what it is, where the names do not say it. Raises: DataError when they do not.
    """
    if kind is not None:
        return Source(kind=kind, path=data)
    filesystem, name = filesystem_of(_base(data) if _is_pattern(data) else data)
    names = [data]
    if not _is_pattern(data) and filesystem.get_file_info(name).type == fs.FileType.Directory:
        if filesystem.get_file_info(f"{name}/_delta_log").type == fs.FileType.Directory:
            return Source(kind="delta", path=data)
        names = [info.path for info in _below(filesystem, name)]
        if not names:
            raise DataError(data, "the directory holds no file; check the path")
    for found in names:
        for known, endings in EXTENSIONS.items():
            if found.lower().endswith(endings):
                return Source(kind=known, path=data)
    raise DataError(data, f"its name does not say what it is; add --kind, one of {', '.join(FILE_KINDS)}")


# Shards ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetShard:
    """Some row groups of one Parquet file; without any, its schema."""

    file: File
    row_groups: tuple[int, ...]
    n_rows: int

    @property
    def where(self) -> str:
        """The file."""
        return self.file.uri


@dataclass(frozen=True, eq=False)
class DeltaShard:
    """Some row groups of one data file of a Delta table; `schema` is the table's, partition columns among it."""

    where: str
    fragment: ds.ParquetFileFragment
    schema: pa.Schema
    n_rows: int


@dataclass(frozen=True)
class TextShard:
    """One CSV or JSON file."""

    kind: str
    file: File
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    n_rows: int = 0

    @property
    def where(self) -> str:
        """The file."""
        return self.file.uri


@dataclass(frozen=True, eq=False)
class TableShard:
    """Rows that are in memory already."""

    where: str
    table: pa.Table

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return int(self.table.num_rows)


@dataclass(frozen=True)
class SqlShard:
    """A query as it is sent: narrowed to the columns that are wanted and, where the server can judge it, the range."""

    source: Source
    query: str
    n_rows: int = 0

    @property
    def where(self) -> str:
        """The database."""
        return without_secrets(self.source.url or "")


@dataclass(frozen=True)
class HttpShard:
    """All pages of an API: each is known only from the one before, so one task reads them."""

    source: Source
    n_rows: int = 0

    @property
    def where(self) -> str:
        """The API's address."""
        return without_secrets(self.source.url or "")


FileShard = ParquetShard | DeltaShard | TextShard | TableShard
FILE_SHARDS = (ParquetShard, DeltaShard, TextShard, TableShard)
"""What `read` reads."""
Shard = FileShard | SqlShard | HttpShard


def fingerprint(shard: Shard) -> str:
    """What tells a shard from any other: the file, its size and when it was written, and which rows of it; the rows
    themselves where they are in memory; the question where only a server knows. No secrets.
    """
    if isinstance(shard, TableShard):
        return f"{shard.where} {row_hash(shard.table).hex()}"
    if isinstance(shard, SqlShard):
        return f"{shard.where} {shard.query}"
    if isinstance(shard, HttpShard):
        return shard.where
    if isinstance(shard, DeltaShard):  # a table's files never change
        return f"{without_secrets(shard.where)} {[group.id for group in shard.fragment.row_groups]} {shard.n_rows}"
    filesystem, name = filesystem_of(shard.file.uri)
    written = filesystem.get_file_info(name).mtime_ns
    rows = shard.row_groups if isinstance(shard, ParquetShard) else ()
    return f"{without_secrets(shard.file.uri)} {shard.file.size} {written} {list(rows)}"


def parquet_shards(
    files: Sequence[File], names: Sequence[str] | None, time_range: TimeRange | None = None
) -> list[ParquetShard]:
    """Shards of Parquet files, in their order, without the row groups that `time_range` rules out by their statistics.

    A file of which nothing is left, or that has no rows, is one shard of no row groups: its columns are still seen.
    Raises: DataError naming the file that is no whole Parquet file; OSError.
    """
    shards: list[ParquetShard] = []
    for file in files:
        filesystem, name = filesystem_of(file.uri)
        try:
            meta = pq.read_metadata(name, filesystem=filesystem)
        except pa.ArrowInvalid as exc:
            raise _no_parquet(file.uri, exc) from exc
        wanted = [i for i in range(meta.num_columns) if names is None or _top(meta, i) in names]
        groups: list[int] = []
        rows = size = 0
        found = len(shards)
        for number in range(meta.num_row_groups):
            group = meta.row_group(number)
            if time_range is not None and not _may_hold(meta.schema.to_arrow_schema(), group, time_range):
                continue
            groups.append(number)
            rows += group.num_rows
            size += sum(group.column(i).total_uncompressed_size for i in wanted)
            if rows >= ROWS_PER_SHARD or size >= BYTES_PER_SHARD:
                shards.append(ParquetShard(file, tuple(groups), rows))
                groups, rows, size = [], 0, 0
        if groups or len(shards) == found:
            shards.append(ParquetShard(file, tuple(groups), rows))
    return shards


def file_shards(source: Source, names: Sequence[str] | None) -> Sequence[FileShard] | None:
    """Shards of a source of files, None when it is of another kind or its options are only known to Ray Data's reader.

    Args: names: columns that will be read, None for all; they tell how much a row group weighs.
    Raises: DataError naming what is not there or cannot be read.
    """
    paths, options = [absolute(path) for path in source.paths], source.options
    if source.kind == "parquet" and not options:
        return parquet_shards(find_files(paths, "parquet"), names, source.time_range)
    if source.kind == "delta" and options.keys() <= DELTA_OPTIONS:
        if len(paths) != 1:
            raise DataError("source.path", f"kind: delta takes one table, got {len(paths)}; use kind: concat")
        return delta_shards(paths[0], options, source.time_range)
    if (source.kind == "csv" and options.keys() <= text_files.CSV_OPTIONS) or (source.kind == "json" and not options):
        return [TextShard(source.kind, file, options) for file in find_files(paths, source.kind)]
    return None


def _top(meta: pq.FileMetaData, column: int) -> str:
    return str(meta.schema.column(column).path.partition(".")[0])


def _no_parquet(where: str, exc: Exception) -> DataError:
    first = str(exc).splitlines()[0].removeprefix("Could not open Parquet input source '<Buffer>': ")
    return DataError(where, f"is no whole Parquet file: {first}; it was cut, or is of another kind: copy it again")


def _may_hold(schema: pa.Schema, group: pq.RowGroupMetaData, time_range: TimeRange) -> bool:
    """Whether a row group can have rows in the range; statistics of anything but timestamps decide nothing."""
    at = schema.get_field_index(time_range.column)
    if at < 0 or not pa.types.is_timestamp(schema.field(at).type):
        return True
    columns = (group.column(i) for i in range(group.num_columns))
    column = next((c for c in columns if c.path_in_schema == time_range.column), None)
    stats = column.statistics if column is not None and column.is_stats_set else None
    if stats is None or not stats.has_min_max:
        return True
    kind = schema.field(at).type
    low, high = (pa.scalar(v, kind).cast(pa.timestamp("us"), safe=False).value for v in (stats.min, stats.max))
    first, last = micros(time_range.start), micros(time_range.end)
    # One microsecond of slack: statistics in nanoseconds are cut.
    return (last is None or low - 1 < last) and (first is None or high + 1 >= first)


def micros(instant: datetime | None) -> int | None:
    """Microseconds since the epoch."""
    return None if instant is None else round(instant.timestamp() * 1e6)


def delta_shards(uri: str, options: Mapping[str, Any], time_range: TimeRange | None = None) -> list[DeltaShard]:
    """Shards of a Delta table's files, without those that its statistics put outside `time_range`.

    Raises: DataError for what is no Delta table, has no such version, or cannot be read file by file (deletion vectors,
    column mapping).
    """
    try:
        table = DeltaTable(uri, version=options.get("version"), storage_options=options.get("storage_options"))
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            # Reader version 2 has it as a property only, and its files carry other names than the table.
            raise DeltaProtocolError("The table uses column mapping.")
        dataset = table.to_pyarrow_dataset()
    except TableNotFoundError as exc:
        raise DataError(uri, "is no Delta table: it has no _delta_log; check the path") from exc
    except DeltaProtocolError as exc:
        first = str(exc).splitlines()[0]
        raise DataError(uri, f"cannot be read: {first}; write a plain copy of it (REORG, or Spark's INSERT)") from exc
    except (TypeError, OverflowError) as exc:
        says = "version must be a whole number from 0, storage_options text by name"
        raise DataError("source.options", f"{says}; got {hidden(dict(options))}") from exc
    except (DeltaError, ValueError) as exc:
        raise DataError(uri, f"cannot be read as a Delta table: {str(exc).splitlines()[0]}") from exc
    schema = dataset.schema
    rule = _time_rule(schema, time_range)
    shards = []
    root = uri.rstrip("/")
    for fragment in dataset.get_fragments(filter=rule):
        groups: list[Any] = []
        rows = size = 0
        where = f"{root}/{fragment.path}"
        try:
            infos = fragment.row_groups
        except (pa.ArrowInvalid, OSError) as exc:
            raise DataError(where, f"a file of the table cannot be read: {str(exc).splitlines()[0]}") from exc
        for number, info in enumerate(infos):
            groups.append(info.id)
            rows, size = rows + info.num_rows, size + info.total_byte_size
            if rows >= ROWS_PER_SHARD or size >= BYTES_PER_SHARD or number + 1 == len(infos):
                shards.append(DeltaShard(where, fragment.subset(row_group_ids=groups), schema, rows))
                groups, rows, size = [], 0, 0
    return shards or [DeltaShard(uri, None, schema, 0)]


def _time_rule(schema: pa.Schema, time_range: TimeRange | None) -> ds.Expression | None:
    """The range as Arrow's own expression; None where the column is no timestamp."""
    at = schema.get_field_index(time_range.column) if time_range is not None else -1
    if time_range is None or at < 0 or not pa.types.is_timestamp(schema.field(at).type):
        return None
    kind, cell = schema.field(at).type, pc.field(time_range.column)
    rules = []
    for sign, at in ((operator.ge, micros(time_range.start)), (operator.lt, micros(time_range.end))):
        if at is not None:
            rules.append(sign(cell, pa.scalar(at, pa.timestamp("us", kind.tz)).cast(kind, safe=False)))
    return functools.reduce(operator.and_, rules)


# Reading --------------------------------------------------------------------------------------------------------------


def read(shard: FileShard, names: Sequence[str] | None) -> Iterator[pa.Table]:
    """The rows of `shard` in batches of up to `ROWS_PER_BATCH`, at least one, which may be empty.

    Args: `names` are the columns to read of those that there are; None for all.
    Raises: DataError naming the file, and the line where it has lines.
    """
    try:
        if isinstance(shard, ParquetShard):
            yield from _parquet(shard, names)
        elif isinstance(shard, DeltaShard):
            yield from _delta(shard, names)
        elif isinstance(shard, TextShard):
            yield from _text(shard, names)
        else:
            for i in range(0, max(shard.table.num_rows, 1), ROWS_PER_BATCH):
                yield _only(shard.table, names).slice(i, ROWS_PER_BATCH)
    except pa.ArrowInvalid as exc:
        raise DataError(shard.where, f"cannot be read: {str(exc).splitlines()[0]}; copy the file again") from exc
    except OSError as exc:
        raise DataError(shard.where, f"cannot be read: {(str(exc).splitlines() or [''])[0]}") from exc


def _only(table: pa.Table, names: Sequence[str] | None) -> pa.Table:
    return table if names is None else table.select([n for n in names if n in table.column_names])


def _parquet(shard: ParquetShard, names: Sequence[str] | None) -> Iterator[pa.Table]:
    filesystem, name = filesystem_of(shard.file.uri)
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        there = None if names is None else [c for c in names if c in file.schema_arrow.names]
        groups = list(shard.row_groups)
        if not groups:
            empty = file.schema_arrow.empty_table()
            yield _with_fixed(empty if there is None else empty.select(there), shard.file, names)
            return
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=there):
            yield _with_fixed(pa.Table.from_batches([batch]), shard.file, names)


def _with_fixed(table: pa.Table, file: File, names: Sequence[str] | None) -> pa.Table:
    for name, value in file.fixed:
        if name not in table.column_names and (names is None or name in names):
            cell = pa.scalar(None if value == "__HIVE_DEFAULT_PARTITION__" else value, pa.string())
            table = table.append_column(name, pa.repeat(cell, table.num_rows))
    return table


def _delta(shard: DeltaShard, names: Sequence[str] | None) -> Iterator[pa.Table]:
    columns = None if names is None else [n for n in names if n in shard.schema.names]
    empty = shard.schema.empty_table()
    yield empty if columns is None else empty.select(columns)
    if shard.fragment is not None:
        scanner = shard.fragment.scanner(
            schema=shard.schema,
            columns=columns,
            batch_size=ROWS_PER_BATCH,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        for batch in scanner.to_batches():
            yield pa.Table.from_batches([batch])


def _text(shard: TextShard, names: Sequence[str] | None) -> Iterator[pa.Table]:
    filesystem, name = filesystem_of(shard.file.uri)
    fixed = {k for k, _ in shard.file.fixed}
    head = b""
    if shard.kind == "csv":
        with filesystem.open_input_stream(name, compression="detect") as stream:
            head = stream.read(text_files.HEAD_BYTES)
    with filesystem.open_input_stream(name, compression="detect") as stream:
        if shard.kind == "csv":
            tables = text_files.csv_tables(shard.where, head, stream, shard.options, names)
        else:
            wanted = None if names is None else [n for n in names if n not in fixed]
            tables = text_files.json_tables(shard.where, stream, wanted)
        for table in tables:
            yield _with_fixed(table, shard.file, names)


# Rows of a time range -------------------------------------------------------------------------------------------------


def within(table: pa.Table, time_range: TimeRange) -> pa.Table:
    """The rows of `table` in the range, whatever the column's Arrow type that can be read as a time.

    A null is outside. A cell that cannot be read as a time stays: validation refuses it, and it is counted.
    Raises: DataError when the column is missing or of another dtype altogether.
    """
    column = Column(name=time_range.column, dtype="timestamp")
    times, unread = conform(table, [column])
    cells = times[time_range.column].cast(pa.int64())
    inside = cells.is_valid()
    if time_range.start is not None:
        inside = pc.and_kleene(inside, pc.greater_equal(cells, micros(time_range.start)))
    if time_range.end is not None:
        inside = pc.and_kleene(inside, pc.less(cells, micros(time_range.end)))
    inside = pc.fill_null(inside, False)
    for mask in unread.values():
        inside = pc.or_(inside, pa.chunked_array([pa.array(mask)]))
    return table.filter(inside)


def absolute(path: str) -> str:
    """A local path from the file system's root; an address as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
