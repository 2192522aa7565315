"""CSV and JSON as tables of text: what a cell means is judged later, so one broken cell costs a row and not the run.

Only where nobody declares columns are dtypes found here, from all rows: `kinds` of parts merge, `typed` applies them.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from mlops_ray.config import Column
from mlops_ray.data.schema import conform
from mlops_ray.errors import DataError

BLOCK_BYTES = 8 * 1024 * 1024
"""Text that is parsed at a time: some 100,000 rows of a dozen columns, tens of megabytes while it is parsed."""
HEAD_BYTES = 1024 * 1024
"""No header is longer."""
CSV_OPTIONS = frozenset({"delimiter", "quote_char", "escape_char", "encoding", "skip_rows", "column_names"})
"""`options:` of a CSV source that are read here; with any other, Ray Data's reader gets them all."""
_SHOWN = 80
_LONG_NUMBER = re.compile(rb"\d{19}")
"""Whatever 64 bits cannot hold has at least as many digits."""

_PLAIN = (pl.Boolean, pl.String, pl.Null)

Kinds = dict[str, str]
"""Column name to dtype of the project file, or "null" for a column without a value."""


def csv_tables(
    where: str, head: bytes, stream: BinaryIO, options: Mapping[str, Any], names: Sequence[str] | None
) -> Iterator[pa.Table]:
    """The rows of one CSV file as text, in blocks; an empty cell is null. At least one table, of no rows for a header.

    Args: `head` are the file's first `HEAD_BYTES`; `names` the columns to keep of those that it has, None for all.
    Raises: DataError naming `where`, and the row (the header is row 1) that has too many or too few fields.
    """
    parse = {k: options[k] for k in ("delimiter", "quote_char", "escape_char") if k in options}
    encoding, skip = options.get("encoding", "utf8"), int(options.get("skip_rows", 0))
    first = _first_rows(head, parse, encoding, skip)
    named = options.get("column_names")
    if not named and not first:
        raise DataError(where, "is empty: not even a header")
    header = list(named or first[0])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(where, f"columns {twice} stand twice in the header; rename them")
    keep = header if names is None else [name for name in header if name in set(names)]
    if len(first) < (1 if named else 2) and len(head) < HEAD_BYTES:
        # Arrow wants a line break after the header, which not every writer sets.
        yield pa.table({name: pa.array([], pa.string()) for name in keep})
        return
    broken: list[Any] = []

    def refuse(row: Any) -> str:
        broken.append(row)
        return "error"

    try:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(
                use_threads=False,  # or else the number of a broken line is not known
                block_size=BLOCK_BYTES,
                encoding=encoding,
                skip_rows=skip,
                column_names=options.get("column_names"),
            ),
            parse_options=pa_csv.ParseOptions(**parse, newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                include_columns=keep,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        yield reader.schema.empty_table()
        for batch in reader:
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, UnicodeDecodeError) as exc:
        if broken:
            row = broken[0]
            raise DataError(
                where,
                f"row {row.number + skip} has {row.actual_columns} fields where the header has {row.expected_columns}: "
                f"{row.text[:_SHOWN]!r}; mend or remove the line (text with the delimiter in it needs quotes)",
            ) from exc
        says = str(exc).splitlines()[0]
        hint = f"; name its encoding, such as options: {{encoding: latin1}} (now {encoding})" if "UTF" in says else ""
        raise DataError(where, f"cannot be read as CSV: {says}{hint}") from exc


def _first_rows(head: bytes, parse: Mapping[str, Any], encoding: str, skip: int) -> list[list[str]]:
    """Up to two rows of a CSV file that are not blank lines."""
    text = head.decode("utf-8-sig" if encoding.lower() in ("utf8", "utf-8") else encoding, errors="replace")
    lines = itertools.islice(io.StringIO(text, newline=""), skip, None)
    quote = parse.get("quote_char", '"')
    quoting = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    rows = csv.reader(lines, delimiter=parse.get("delimiter", ","), **quoting)
    return list(itertools.islice((row for row in rows if row), 2))


def json_tables(where: str, stream: BinaryIO, names: Sequence[str] | None) -> Iterator[pa.Table]:
    """The objects of one JSON file: one per line, or one list; cells are text, lists and objects in them JSON.

    Args: `names` are those of the columns to read (null where an object lacks one); None gives every column with the
    dtype that it has in its block.
    Raises: DataError naming `where` and the line of what is no object.
    """
    rest, line, seen = b"", 1, False
    mark = codecs.BOM_UTF8
    while block := stream.read(BLOCK_BYTES):
        rest, mark = (rest + block).removeprefix(mark), b""  # the mark stands at the beginning or nowhere
        if not seen and rest.lstrip()[:1] == b"[":
            yield from _json_list(where, rest + stream.read(), names)
            return
        seen = seen or bool(rest.strip())
        cut = rest.rfind(b"\n") + 1
        if cut:
            yield json_rows(where, rest[:cut], names, line)
            line += rest.count(b"\n", 0, cut)
            rest = rest[cut:]
    if rest.strip() or not seen:
        yield json_rows(where, rest, names, line)


def _json_list(where: str, text: bytes, names: Sequence[str] | None) -> Iterator[pa.Table]:
    try:
        items = parsed(text)
    except orjson.JSONDecodeError as exc:
        raise DataError(where, f"is no JSON: {exc}") from exc
    size = 50_000
    for i in range(0, max(len(items), 1), size):
        yield objects(where, items[i : i + size], names)


def parsed(text: bytes) -> Any:
    """JSON as Python values; an integer beyond 64 bits is its own text, for as a float it would be another number.

    A byte order mark in front is skipped (RFC 8259, section 8.1). Raises: orjson.JSONDecodeError.
    """
    text = text.removeprefix(codecs.BOM_UTF8)
    found = orjson.loads(text)  # strict, and five times as fast as what follows
    return json.loads(text, parse_int=_exact) if _LONG_NUMBER.search(text) else found


def _exact(digits: str) -> int | str:
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else digits


def objects(where: str, items: Sequence[Any], names: Sequence[str] | None) -> pa.Table:
    """A table of JSON objects that are parsed already; as `json_tables`. Raises: DataError for what is no object."""
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(where, f"item {i} is {str(item)[:_SHOWN]!r}, not an object of named values")
    return json_rows(where, b"\n".join(map(orjson.dumps, items)), names, 1)


def json_rows(where: str, lines: bytes, names: Sequence[str] | None, line: int) -> pa.Table:
    """JSON objects, one per line, the first of them in line `line` of its file."""
    if not lines.strip():
        return pa.table({name: pa.array([], pa.string()) for name in names or ()})
    try:
        if names is not None:
            frame = pl.read_ndjson(io.BytesIO(lines), schema=dict.fromkeys(names, pl.String))
        else:
            frame = pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None)
            text = [n for n, t in frame.schema.items() if t == pl.Int128 or not (t.is_numeric() or t in _PLAIN)]
            if text:
                again = pl.read_ndjson(io.BytesIO(lines), schema=dict.fromkeys(text, pl.String))
                frame = frame.with_columns(again)
    except pl.exceptions.PolarsError as exc:
        raise _broken_line(where, lines, line, exc) from exc
    # Polars has long strings of its own; the data room's are Arrow's plain ones.
    table: pa.Table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    text_types = {pa.large_string(): pa.string()}
    return table.cast(pa.schema([pa.field(f.name, text_types.get(f.type, f.type)) for f in table.schema]))


def _broken_line(where: str, lines: bytes, line: int, exc: Exception) -> DataError:
    for number, text in enumerate(lines.split(b"\n"), start=line):
        shown = repr(text[:_SHOWN].decode(errors="replace"))
        try:
            found = orjson.loads(text) if text.strip() else {}
        except orjson.JSONDecodeError as bad:
            return DataError(where, f"line {number} is no JSON ({bad}): {shown}; one object per line, or one list")
        if not isinstance(found, dict):
            return DataError(where, f"line {number} is no object of named values: {shown}")
    return DataError(where, f"cannot be read as JSON: {str(exc).splitlines()[0]}")


# Dtypes of what nobody declared ---------------------------------------------------------------------------------------


def kinds(table: pa.Table, *, quoted: bool = False) -> Kinds:
    """Dtype of each column that all its cells can have: int, float, bool, timestamp, else string; "null" without any.

    Numbers with leading zeros are text: they are codes. With `quoted`, as in JSON, text is no number at all.
    """
    return {name: _kind(pl.Series(pl.from_arrow(table[name])), quoted) for name in table.column_names}


def _kind(cells: pl.Series, quoted: bool) -> str:
    cells = cells.drop_nulls()
    if cells.is_empty():
        return "null"
    if cells.dtype != pl.String:
        return "bool" if cells.dtype == pl.Boolean else "int" if cells.dtype.is_integer() else "float"
    text = cells.unique()
    looks = text.str.contains(r"^\d{4}-\d{2}-\d{2}($|[T ]\d{2}:\d{2})").all()
    if looks and not _lost(text, "timestamp"):
        return "timestamp"
    if quoted:
        return "string"
    if text.str.contains(r"^-?(0|[1-9]\d{0,17})$").all():
        return "int"
    if (
        text.str.contains(r"^[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?$|^(?i:nan)$").all()
        and text.str.contains(r"\d").any()
    ):
        return "float"
    return "bool" if text.str.to_lowercase().is_in(["true", "false"]).all() else "string"


def _lost(text: pl.Series, dtype: str) -> bool:
    cells = pa.table({"x": text.to_arrow().cast(pa.string())})
    return bool(conform(cells, [Column(name="x", dtype=dtype)])[1])


def merged(a: Kinds, b: Kinds) -> Kinds:
    """Kinds of both parts together: int with float is float, anything else that differs is string."""
    return {name: _wider(a.get(name, "null"), b.get(name, "null")) for name in [*a, *(n for n in b if n not in a)]}


def _wider(a: str, b: str) -> str:
    if a == b or b == "null":
        return a
    if a == "null":
        return b
    return "float" if {a, b} == {"int", "float"} else "string"


def typed(table: pa.Table, found: Kinds) -> pa.Table:
    """`table` with exactly the columns of `found` in those dtypes; null where it lacks one."""
    n = table.num_rows
    whole = pa.table({k: table[k] if k in table.column_names else pa.nulls(n, pa.string()) for k in found})
    columns = [Column(name=name, dtype="string" if kind == "null" else kind) for name, kind in found.items()]
    for i, column in enumerate(columns):
        if column.dtype == "string" and not pa.types.is_string(whole[column.name].type):
            whole = whole.set_column(i, column.name, whole[column.name].cast(pa.string()))
    return conform(whole, columns)[0]
