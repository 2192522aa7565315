"""Files of a source as shards: what one task reads by itself, in batches of bounded size.

Moving rows through Ray's object store costs more than reading them, so a task is handed the description of its rows
and reads them where it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

ROWS_PER_BATCH = 131_072
"""Rows that a task holds at a time: enough for vectorised work, some 20 MB at twenty columns."""
ROWS_PER_SHARD = 1_000_000
"""Rows that one task reads: a second of work beside the 10 ms that a task costs."""


@dataclass(frozen=True)
class Shard:
    """Some row groups of one Parquet file at the absolute path or address `path`."""

    path: str
    row_groups: tuple[int, ...]
    n_rows: int


def parquet_shards(paths: Sequence[str]) -> list[Shard]:
    """Shards of the Parquet files `paths`, in their order. Raises: OSError, ArrowInvalid for what is no Parquet."""
    shards = []
    for path in paths:
        filesystem, name = filesystem_of(path)
        meta = pq.read_metadata(name, filesystem=filesystem)
        groups: list[int] = []
        rows = 0
        for group in range(meta.num_row_groups):
            groups.append(group)
            rows += meta.row_group(group).num_rows
            if rows >= ROWS_PER_SHARD or group + 1 == meta.num_row_groups:
                shards.append(Shard(path, tuple(groups), rows))
                groups, rows = [], 0
    return shards


def read(shard: Shard, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """The rows of `shard` in batches of up to `ROWS_PER_BATCH`; `columns` that the file has, or all."""
    filesystem, name = filesystem_of(shard.path)
    with pq.ParquetFile(name, filesystem=filesystem) as file:
        there = None if columns is None else [c for c in columns if c in file.schema_arrow.names]
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=list(shard.row_groups), columns=there):
            yield pa.Table.from_batches([batch])


@functools.lru_cache(maxsize=64)
def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path in it."""
    if "://" in uri:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    return fs.LocalFileSystem(), uri.rstrip("/")
