"""Parquet files below a table's folder, which no reader of the table sees before a commit names them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from mlops_ray.data.sources.shards import filesystem_of


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


def read_file_at(path: str) -> bytes:
    """The bytes of what stands at a path or address that `sidecar_path` gave. Raises: OSError."""
    filesystem, name = filesystem_of(path)
    with filesystem.open_input_stream(name) as file:
        content: bytes = file.read()
        return content


def put(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file all at once: whoever reads it meanwhile has the one before."""
    folder, _, name = path.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    if not isinstance(filesystem, fs.LocalFileSystem):  # an object appears whole or not at all
        with filesystem.open_output_stream(path) as file:
            file.write(content)
        return
    aside = f"{folder}/.{uuid.uuid4().hex}-{name}"
    with filesystem.open_output_stream(aside) as file:
        file.write(content)
    filesystem.move(aside, path)
