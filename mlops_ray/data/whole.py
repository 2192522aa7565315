"""Any readable data as one Arrow table, read in this process: for questions about data that fits into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.fs as fs
import pyarrow.json as json
import pyarrow.parquet as pq

from mlops_ray.data.sources import filesystem_of
from mlops_ray.errors import DataError

FileKind = Literal["parquet", "csv", "json", "delta"]

ENDINGS: dict[str, FileKind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json.gz": "json",
    ".jsonl.gz": "json",
}


def read(data: str, kind: FileKind | None = None, text: Sequence[str] = ()) -> pa.Table:
    """The rows of a file, a pattern, a directory of files, or a Delta table (a directory with `_delta_log`).

    Args: kind: what the files are, where their names do not say it; text: columns of CSV files to read as text.
    Columns have the types that the files say, or that Arrow infers (CSV: "" is null). Files of several schemas give
    the columns of all, null where a file has none.
    Raises: DataError naming the file that is not there, is of unknown kind or cannot be read.
    """
    if kind == "delta" or (kind is None and (Path(data) / "_delta_log").is_dir()):
        return _delta(data)
    parts = []
    for file in _files(data, kind):
        parts.append(_file(file, kind or _kind(file), text))
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as exc:
        raise DataError(data, f"its files do not fit together: {_first_line(exc)}") from exc


def _files(data: str, kind: FileKind | None) -> list[str]:
    filesystem, path = filesystem_of(data)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return [data]
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        inside = (file for file in Path(path).rglob("*") if file.is_file() and not _hidden(file, Path(path)))
        found = sorted(str(file) for file in inside if kind is not None or _ending(file.name))
        what = f"file of kind {kind or ' or '.join(kinds()[:-1])} in it"
    else:
        start = Path(path).anchor or "."
        found = sorted(map(str, Path(start).glob(str(Path(path).relative_to(Path(path).anchor)))))
        found = [file for file in found if Path(file).is_file()]
        what = "such file"
    if not found:
        raise DataError(data, f"there is no {what}; give a path, a pattern in quotes, or a directory")
    return found


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(root).parts)


def _ending(name: str) -> str | None:
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), None)


def _kind(file: str) -> FileKind:
    ending = _ending(file)
    if ending is None:
        raise DataError(file, f"its name does not say what it is; add `--kind`, one of {', '.join(kinds())}")
    return ENDINGS[ending]


def kinds() -> tuple[str, ...]:
    """What this process can read by itself."""
    return (*dict.fromkeys(ENDINGS.values()), "delta")


def _file(file: str, kind: FileKind, text: Sequence[str]) -> pa.Table:
    filesystem, path = filesystem_of(file)
    try:
        if kind == "parquet":
            table = pq.read_table(path, filesystem=filesystem, partitioning=None)
        else:
            with filesystem.open_input_stream(path) as stream:
                table = _csv(stream, text) if kind == "csv" else json.read_json(stream)
    except (OSError, pa.ArrowException) as exc:
        raise DataError(file, f"cannot be read as {kind}: {_first_line(exc)}") from exc
    twice = [name for name, n in Counter(table.column_names).items() if n > 1]
    if twice:
        raise DataError(file, f"has several columns named {', '.join(map(repr, twice))}; rename them")
    return table


def _csv(stream: pa.NativeFile, text: Sequence[str]) -> pa.Table:
    options = csv.ConvertOptions(
        column_types={name: pa.string() for name in text}, null_values=list(_NULLS), strings_can_be_null=True
    )
    return csv.read_csv(stream, convert_options=options)


# How a CSV file says "no value": nothing, or what pandas and R write.
_NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")


def _delta(uri: str) -> pa.Table:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return pa.table(DeltaTable(uri).to_pyarrow_table())
    except TableNotFoundError as exc:
        raise DataError(uri, "there is no Delta table") from exc
    except (DeltaError, OSError, pa.ArrowException) as exc:
        raise DataError(uri, f"cannot be read as delta: {_first_line(exc)}") from exc


def batched(batches: Iterator[pa.Table]) -> pa.Table:
    """The rows of some batches as one table."""
    return pa.concat_tables(list(batches), promote_options="permissive")


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]
