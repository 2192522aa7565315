"""Files as one Arrow table, read in this process: for questions about data that fits into memory."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from mlops_ray.config import Source
from mlops_ray.data.sources import shards as sources
from mlops_ray.data.sources import text_files
from mlops_ray.errors import DataError


def read(source: Source, text: Sequence[str] = ()) -> pa.Table:
    """The rows of a source of files (`sources.FILE_KINDS`).

    Args: text: columns of CSV and JSON files that stay as they are written, for `conform` to parse; others have the
    dtype that all their cells can have. Files of several schemas give the columns of all, null where a file has none.
    Raises: DataError naming the file that is not there or cannot be read, or options that are not understood here.
    """
    shards = sources.file_shards(source, None)
    if shards is None:
        raise DataError(source.where, f"{source.kind} with these options is only read on a cluster")
    parts = [table for shard in shards for table in sources.read(shard, None)]
    for part in parts:
        if twice := [name for name, n in Counter(part.column_names).items() if n > 1]:
            raise DataError(source.where, f"has several columns named {', '.join(map(repr, twice))}; rename them")
    if source.kind in ("csv", "json"):
        quoted = source.kind == "json"
        seen = (text_files.kinds(part, quoted=quoted) for part in parts)
        found = functools.reduce(text_files.merged, seen) | dict.fromkeys(text, "string")
        there = {name: kind for name, kind in found.items() if any(name in part.column_names for part in parts)}
        parts = [text_files.typed(part, there) for part in parts]
    return batched(iter(parts))


def batched(batches: Iterator[pa.Table]) -> pa.Table:
    """The rows of some batches as one table. Raises: DataError when their columns do not fit together."""
    try:
        return pa.concat_tables(list(batches), promote_options="permissive")
    except pa.ArrowException as exc:
        raise DataError("the files", f"do not fit together: {str(exc).splitlines()[0]}") from exc
