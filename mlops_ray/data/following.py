"""Logs of the lake that are read again and again: their rows stay in memory, and only files that are new are read.

What a log holds is the rows of the files that its newest version names. So a look compares those with the files that it
knows: those that are new are read, those that are gone are dropped, whoever committed what and however often since, an
append, a compaction or an erasure. The rows in memory are a copy, never the only truth.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from mlops_ray.data.sources.shards import filesystem_of

_READERS = 4
"""Files read at once: a store far away answers slowly, and a first look may find hundreds."""


class Followed:
    """One log, from a day on, in some of its columns. Not thread-safe."""

    def __init__(self, uri: str, since_day: str, columns: pa.Schema) -> None:
        self.uri, self.since_day, self.columns = uri, since_day, columns
        self._files: dict[str, tuple[str, pa.Table]] = {}  # by path: its day, and its rows
        self._version, self._checkpoint = -1, self._checkpointed()

    def has_news(self) -> bool:
        """Whether anything was committed since the last look: two questions to the store, nothing is read."""
        filesystem, root = filesystem_of(self.uri)
        next_one = filesystem.get_file_info(f"{root}/_delta_log/{self._version + 1:020d}.json")
        # An erasure leaves a checkpoint in the place of the commits before, the next one among them.
        return next_one.type == fs.FileType.File or self._checkpointed() != self._checkpoint

    def rows(self, until_day: str) -> pa.Table:
        """What `lake.scan` would return now. Raises: OSError, DeltaError; what was known before is kept then."""
        self._catch_up()
        parts = [rows for day, rows in self._files.values() if day <= until_day]
        return pa.concat_tables(parts) if parts else self.columns.empty_table()

    def _checkpointed(self) -> tuple[int, int] | None:
        """What tells one checkpoint of the table from another."""
        filesystem, root = filesystem_of(self.uri)
        found = filesystem.get_file_info(f"{root}/_delta_log/_last_checkpoint")
        return (found.mtime_ns, found.size) if found.type == fs.FileType.File else None

    def _catch_up(self) -> None:
        checkpoint = self._checkpointed()
        try:
            table = DeltaTable(self.uri)
        except TableNotFoundError:
            self._files, self._version = {}, -1
            return
        days = {
            unquote(action["path"]): str(action["partition"]["day"])
            for action in pa.table(table.get_add_actions()).select(["path", "partition"]).to_pylist()
        }
        wanted = {path: day for path, day in days.items() if day >= self.since_day}
        new = [path for path in wanted if path not in self._files]
        with ThreadPoolExecutor(_READERS) as readers:
            read = dict(zip(new, readers.map(lambda path: self._read(path, wanted[path]), new), strict=True))
        self._files = {
            path: (day, read[path] if path in read else self._files[path][1]) for path, day in wanted.items()
        }
        self._version, self._checkpoint = table.version(), checkpoint

    def _read(self, path: str, day: str) -> pa.Table:
        """The columns of one file; null where it is older than a column. The partition stands in its path alone."""
        filesystem, root = filesystem_of(self.uri)
        with filesystem.open_input_file(f"{root}/{path}") as source:
            file = pq.ParquetFile(source)
            there = [name for name in self.columns.names if name in file.schema_arrow.names]
            rows = file.read(there)
        found = {name: rows[name] for name in there} | {"day": pa.repeat(day, rows.num_rows)}
        return pa.Table.from_arrays(
            [
                found[field.name].cast(field.type) if field.name in found else pa.nulls(rows.num_rows, field.type)
                for field in self.columns
            ],
            schema=self.columns,
        )


class Following:
    """Logs by address, each followed from the first `scan` on."""

    def __init__(self) -> None:
        self._logs: dict[str, Followed] = {}

    def scan(self, uri: str, since_day: str, until_day: str, columns: pa.Schema) -> pa.Table:
        """`lake.scan`, without reading again what was read before."""
        log = self._logs.get(uri)
        if log is None or (log.since_day, log.columns) != (since_day, columns):
            log = self._logs[uri] = Followed(uri, since_day, columns)
        return log.rows(until_day)

    def has_news(self) -> bool:
        """Whether anything was committed to any of them since it was scanned. True before the first scan."""
        return not self._logs or any(log.has_news() for log in self._logs.values())
