"""What is left of a value in the files below a folder: cells of Parquet files, their statistics, texts, and raw bytes.

A value is found where it stands as a whole. `sample-1` is not in `sample-10`: neighbours that could belong to a longer
name make it another value.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq

from mlops_ray.data.sources.shards import filesystem_of

LEAST_BYTES = 6
"""Shorter values stand among compressed bytes by chance (once in 2**32 places for four): raw bytes of Parquet files,
which hold nothing that their cells and statistics do not, are searched for longer ones only."""
REDACTED = "[forgotten]"
_NAME = r"0-9A-Za-z_\-.@"
"""What names are made of: a value between two of these is part of a longer one; a dot may end a sentence."""


@dataclass(frozen=True)
class Trace:
    """Where a value still stands: file below its folder, what in it (`column key`, `statistics of key`, `text`,
    `bytes`), how often. column: which it belongs to, or the name that it stands under in JSON; None where there is
    none."""

    file: str
    what: str
    n: int
    column: str | None = None


@dataclass(frozen=True)
class Needles:
    """The values to be found, as text."""

    values: tuple[str, ...]

    @cached_property
    def _text(self) -> re.Pattern[str]:
        return re.compile(_whole("|".join(re.escape(value) for value in sorted(self.values, key=len, reverse=True))))

    @cached_property
    def _bytes(self) -> re.Pattern[bytes]:
        written = sorted({form for value in self.values for form in _forms(value)}, key=len, reverse=True)
        return re.compile(_whole("|".join(re.escape(form) for form in written)).encode())

    @cached_property
    def _loose(self) -> str:
        """For RE2, which knows no look-around."""
        return "|".join(re.escape(value) for value in self.values)

    def in_text(self, text: str) -> bool:
        """Whether one of them stands in a text as a whole."""
        return text in self.values or self._text.search(text) is not None

    def in_bytes(self, content: bytes) -> int:
        """How often they stand in bytes, in any of the ways in which texts are written."""
        return sum(1 for _ in self._bytes.finditer(content))

    def in_json(self, value: Any, name: str | None = None) -> Counter[str | None]:
        """How many texts of a JSON document hold one of them, by the name that they stand under; texts that are JSON
        themselves are looked into."""
        if isinstance(value, str):
            inner = _parsed(value)
            if inner is not None:
                return self.in_json(inner, name)
            return Counter([name] if self.in_text(value) else [])
        if isinstance(value, dict):
            named: Counter[str | None] = Counter(["a name" for key in value if self.in_text(str(key))])
            return sum((self.in_json(inner, key) for key, inner in value.items()), named)
        if isinstance(value, list):
            return sum((self.in_json(inner, name) for inner in value), Counter())
        return Counter()

    def without(self, content: bytes) -> bytes:
        """A text file (JSON, HTML) with `REDACTED` in the place of each of them."""
        if self.in_bytes(content) == 0:
            return content
        documents = _documents(content)
        if documents is None:
            return self._bytes.sub(REDACTED.encode(), content)
        return b"\n".join(json.dumps(self._cleaned(document), indent=1).encode() for document in documents)

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            inner = _parsed(value)
            return self._text.sub(REDACTED, value) if inner is None else json.dumps(self._cleaned(inner))
        if isinstance(value, dict):
            return {self._text.sub(REDACTED, str(k)): self._cleaned(v) for k, v in value.items()}
        return [self._cleaned(item) for item in value] if isinstance(value, list) else value

    def tells(self, content: bytes) -> bool:
        """Whether a file of a table's log, JSON lines or a Parquet checkpoint, holds one of them."""
        return any(True for _ in self.traces("", content, ()))

    def traces(self, name: str, content: bytes, keys: Sequence[str]) -> Iterator[Trace]:
        """What is left of them in one file. keys: columns that are compared whatever their type."""
        if content[:4] == b"PAR1":
            try:
                yield from self._parquet(name, content, keys)
            except (pa.ArrowException, OSError):  # torn, or none of ours: nothing can be said for it
                yield Trace(name, "a Parquet file that cannot be read", 1)
            return
        documents = _documents(content) if name.endswith(".json") or not name else None
        if documents is None:
            if n := self.in_bytes(content):
                yield Trace(name, "text", n)
            return
        for column, n in sum(map(self.in_json, documents), Counter()).items():
            yield Trace(name, "text", n, column)

    def _parquet(self, name: str, content: bytes, keys: Sequence[str]) -> Iterator[Trace]:
        file = pq.ParquetFile(pa.BufferReader(content))
        found: Counter[str | None] = Counter()
        longer = False
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number)
            for column, cells in zip(rows.column_names, rows.columns, strict=True):
                for texts in _texts(cells, always=column in keys):
                    n, other = self._cells(column, texts)
                    found += n
                    longer |= other
        yield from (Trace(name, f"column {column}", n, column) for column, n in found.items())
        ends: Counter[str] = Counter()
        for column, end in _statistics(file):
            whole = self.in_text(end)
            longer |= not whole and any(value in end for value in self.values)
            ends += Counter([column] if whole else [])
        yield from (Trace(name, f"statistics of {column}", n, column) for column, n in ends.items())
        if not found and not ends and not longer:
            raw = sum(content.count(v.encode()) for v in self.values if len(v.encode()) >= LEAST_BYTES)
            if raw:
                yield Trace(name, "bytes", raw)

    def _cells(self, column: str, texts: pa.ChunkedArray) -> tuple[Counter[str | None], bool]:
        """Cells that hold one of the values, and whether others hold longer ones that begin or end like it."""
        near = texts.filter(pc.fill_null(pc.match_substring_regex(texts, self._loose), False))
        found: Counter[str | None] = Counter()
        longer = False
        for cell in pc.value_counts(near).to_pylist() if len(near) else []:
            inside = self.in_json(cell["values"], column)
            longer |= not inside
            found += Counter(dict.fromkeys(inside, cell["counts"]))
        return found, longer


def traces(uri: str, needles: Needles, keys: Sequence[str]) -> list[Trace]:
    """Everything that is left of the values below a folder; nothing when there is no such folder. Hidden files too.

    A file that its owner removes meanwhile holds nothing."""
    filesystem, root = filesystem_of(uri)
    found: list[Trace] = []
    for info in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True)):
        name = info.path.removeprefix(f"{root}/")
        if needles.in_text(name):
            found.append(Trace(REDACTED, "name of a file", 1))
        if info.is_file and info.size:
            try:
                with filesystem.open_input_stream(info.path) as file:
                    content = file.read()
            except FileNotFoundError:
                continue
            found += needles.traces(name, content, keys)
    return found


def _whole(pattern: str) -> str:
    return rf"(?<![{_NAME}])(?:{pattern})(?![{_NAME[:-2]}@]|\.[0-9A-Za-z_])"


def _forms(value: str) -> Iterator[str]:
    """How a text is written in files: as it is, in JSON (and JSON within JSON), in HTML, in a URL."""
    yield value
    for escape in (True, False):
        once = json.dumps(value, ensure_ascii=escape)[1:-1]
        yield from (once, json.dumps(once, ensure_ascii=escape)[1:-1])
    yield from (html.escape(value), html.escape(value, quote=False), quote(value))


def _documents(content: bytes) -> list[Any] | None:
    """One JSON document, or one on each line; None for what is none."""
    try:
        return [json.loads(content)]
    except ValueError:
        pass  # maybe lines
    try:
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError:
        return None


def _parsed(text: str) -> Any:
    if not text.startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _texts(cells: pa.ChunkedArray, *, always: bool) -> Iterator[pa.ChunkedArray]:
    """The texts of a column, those inside its lists, structs and maps too."""
    kind = cells.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield cells.cast(pa.large_string())
    elif pa.types.is_dictionary(kind):
        yield from _texts(cells.cast(kind.value_type), always=always)
    elif pa.types.is_struct(kind):
        for chunk in cells.chunks:
            for part in chunk.flatten():
                yield from _texts(pa.chunked_array([part]), always=always)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(pa.chunked_array([chunk.flatten() for chunk in cells.chunks], kind.value_type), always=always)
    elif pa.types.is_map(kind):
        for chunk in cells.chunks:
            yield from _texts(pa.chunked_array([chunk.keys]), always=always)
            yield from _texts(pa.chunked_array([chunk.items]), always=always)
    elif always and not pa.types.is_null(kind):
        yield cells.cast(pa.large_string())


def _statistics(file: pq.ParquetFile) -> Iterator[tuple[str, str]]:
    """The smallest and largest values that a file's footer tells, by column, and what else its writer noted there."""
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.statistics is not None and chunk.statistics.has_min_max:
                yield from ((chunk.path_in_schema, str(end)) for end in (chunk.statistics.min, chunk.statistics.max))
    for key, value in (metadata.metadata or {}).items():
        if key != b"ARROW:schema":  # names and types, not values
            yield from (("the footer", text.decode(errors="replace")) for text in (key, value))
