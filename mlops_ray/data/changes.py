"""What lies between two dataset versions: columns, and rows added, removed and changed by key, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops_ray.data import lake
from mlops_ray.data.content import row_hashes
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.errors import DataError

ROWS_AT_ONCE = 2_000_000
"""Rows of both versions compared together: some 300 MB with their sorting, whatever the versions hold."""
_BATCH = 131_072
_RECORD = np.dtype([("key", "<u8"), ("row", "<u8"), ("file", "<u4"), ("at", "<u4")])
Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class Changes:
    """From one version to another. Of a row that repeats a key, equal copies cancel first; then a removed and an added
    row of one key are one changed row."""

    columns_added: Mapping[str, str]
    """Name and type; `columns_removed` alike, and both types where a column has another one now."""
    columns_removed: Mapping[str, str]
    columns_retyped: Mapping[str, tuple[str, str]]
    key: tuple[str, ...]
    """Empty when the versions share no key: whole rows are compared then, and none counts as changed."""
    n_added: int
    n_removed: int
    n_changed: int
    n_same: int
    added: tuple[dict[str, Any], ...] = ()
    """Some of the rows, the same ones each time."""
    removed: tuple[dict[str, Any], ...] = ()
    changed: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = ()
    """Some of the rows: before and after."""


@dataclass
class _Found:
    """Counts, and places (file, row) of examples."""

    n_added: int = 0
    n_removed: int = 0
    n_changed: int = 0
    n_same: int = 0
    added: list[Any] = field(default_factory=list)
    removed: list[Any] = field(default_factory=list)
    changed: list[tuple[Any, Any]] = field(default_factory=list)


def compare(
    before: DatasetVersion,
    after: DatasetVersion,
    key: Sequence[str],
    *,
    n_examples: int = 5,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Changes:
    """The changes from `before` to `after`, by the columns `key`; cells count in columns that both have with one type.

    Every file is read once. Of each row 24 bytes go to temporary files, one per range of key hashes, and each range is
    compared alone. Keys and rows are compared by 64-bit hashes: of 100 million keys, two would be taken for one with a
    chance of 0.0003.
    Raises: DataError when a version was removed or has lost a file.
    """
    old, new = (schema_of(version) for version in (before, after))
    shared = [name for name, dtype in old.items() if new.get(name) == dtype]
    keyed = tuple(key) if key and set(key) <= set(shared) else ()
    n_buckets = 1 + (before.n_rows + after.n_rows) // rows_at_once
    found = _Found()
    with tempfile.TemporaryDirectory() as folder:
        for side, version in enumerate((before, after)):
            _spill(version, shared, keyed or tuple(shared), Path(folder, str(side)), n_buckets)
        for bucket in range(n_buckets):
            sides = [np.fromfile(Path(folder, str(side), str(bucket)), dtype=_RECORD) for side in (0, 1)]
            _add_bucket(found, sides[0], sides[1], n_examples)
    return Changes(
        {name: str(dtype) for name, dtype in new.items() if name not in old},
        {name: str(dtype) for name, dtype in old.items() if name not in new},
        {n: (str(old[n]), str(new[n])) for n in old if n in new and old[n] != new[n]},
        keyed,
        found.n_added,
        found.n_removed,
        found.n_changed,
        found.n_same,
        tuple(_row(after, at) for at in found.added),
        tuple(_row(before, at) for at in found.removed),
        tuple((_row(before, left), _row(after, right)) for left, right in found.changed),
    )


def schema_of(version: DatasetVersion) -> dict[str, pa.DataType]:
    """Name and type of the version's columns. Raises: DataError when it was removed or has lost its files."""
    files = lake.files(version)
    if not files:
        raise DataError(version.uri, f"version {version.version} holds no rows, and so no columns")
    schema = lake.opened(version, files[0]).schema_arrow
    return dict(zip(schema.names, schema.types, strict=True))


def _spill(version: DatasetVersion, columns: Sequence[str], key: Sequence[str], folder: Path, n_buckets: int) -> None:
    """Writes the records of the version's rows below `folder`, one file per range of key hashes."""
    folder.mkdir()
    for bucket in range(n_buckets):
        Path(folder, str(bucket)).touch()
    for number, path in enumerate(lake.files(version)):
        at = 0
        for batch in lake.opened(version, path).iter_batches(_BATCH, columns=list(columns)):
            table = pa.table(batch)
            records = np.empty(table.num_rows, dtype=_RECORD)
            records["key"], records["row"] = row_hashes(table.select(list(key)))[0], row_hashes(table)[0]
            records["file"], records["at"] = number, np.arange(at, at + len(records))
            at += len(records)
            buckets = (records["key"] >> np.uint64(32)) * np.uint64(n_buckets) >> np.uint64(32)
            for bucket in np.unique(buckets):
                with Path(folder, str(bucket)).open("ab") as file:
                    records[buckets == bucket].tofile(file)


def _add_bucket(found: _Found, left: Records, right: Records, n_examples: int) -> None:
    """Adds what the records of one range of keys tell to `found`."""
    both = np.concatenate([left, right])
    if not both.size:
        return
    side = np.repeat([1, -1], [left.size, right.size])
    order = np.lexsort((both["row"], both["key"]))  # stable: of equal rows those on the left come first
    both, side = both[order], side[order]
    first = np.flatnonzero(_starts(both["key"]) | _starts(both["row"]))
    size = np.diff(first, append=both.size)
    net = np.add.reduceat(side, first)
    found.n_same += int(((size - np.abs(net)) // 2).sum())
    # One record for each kind of row that one side has more of, taken from that side.
    left_over = both[np.where(net > 0, first, first + size - 1)][net != 0]
    net = net[net != 0]
    if not net.size:
        return
    group = np.cumsum(_starts(left_over["key"])) - 1
    gone = np.bincount(group, weights=np.maximum(net, 0)).astype(np.int64)
    come = np.bincount(group, weights=np.maximum(-net, 0)).astype(np.int64)
    changed = np.minimum(gone, come)
    found.n_changed += int(changed.sum())
    found.n_removed += int((gone - changed).sum())
    found.n_added += int((come - changed).sum())

    def shown(groups: npt.NDArray[np.bool_], sign: int, n: int) -> list[Any]:
        rows = np.flatnonzero(groups[group] & (np.sign(net) == sign))
        rows = rows[_starts(group[rows])][:n]
        return [(int(r["file"]), int(r["at"])) for r in left_over[rows]]

    found.removed += shown(gone > come, 1, n_examples - len(found.removed))
    found.added += shown(come > gone, -1, n_examples - len(found.added))
    n = n_examples - len(found.changed)
    found.changed += zip(shown(changed > 0, 1, n), shown(changed > 0, -1, n), strict=True)


def _starts(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a run of equal values begins."""
    begins = np.ones(len(values), dtype=bool)
    begins[1:] = values[1:] != values[:-1]
    return begins


def _row(version: DatasetVersion, place: tuple[int, int]) -> dict[str, Any]:
    """One row, from the row group that holds it."""
    number, at = place
    file = lake.opened(version, lake.files(version)[number])
    for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        if at < n:
            row: dict[str, Any] = file.read_row_group(group).slice(at, 1).to_pylist()[0]
            return row
        at -= n
    raise AssertionError(f"row {place} was there a moment ago")


def column_ranges(version: DatasetVersion) -> dict[str, dict[str, Any]]:
    """Type, nulls, smallest and largest value of each column, as the footers of the version's files tell.

    A bound is missing where a file does not store it (its writer leaves out those of long texts).
    Raises: DataError when the version was removed or has lost a file.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"dtype": str(dtype), "nulls": 0} for name, dtype in schema_of(version).items()
    }
    bounds: dict[str, list[Any]] = {name: [] for name in found}
    for path in lake.files(version):
        metadata = lake.opened(version, path).metadata
        for group in range(metadata.num_row_groups):
            for i in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(i)
                stats, known = chunk.statistics, found.get(chunk.path_in_schema)
                if known is None or stats is None:
                    continue
                known["nulls"] += stats.null_count or 0
                if stats.has_min_max:
                    bounds[chunk.path_in_schema] += [stats.min, stats.max]
    for name, values in bounds.items():
        if values:
            found[name] |= {"min": min(values), "max": max(values)}
    return found
