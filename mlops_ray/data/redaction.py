"""Rows taken out of Delta tables for good: out of the files, the versions before, and what a table's log says of them.

Two kinds of table, two ways. A *versioned* table (dataset versions, quarantine) keeps its history: each file that holds
such rows is written again without them, and every commit that named the old file names the new one, so that all its
versions stay readable, for any reader of Delta, and say that they were redacted. A *log* (predictions, labels) has no
history worth keeping: one commit replaces the files, and where the log's entries tell values of the rows (Delta notes
the smallest and largest of each column), a checkpoint takes their place.

Both are repeated until nothing is left to do, and may be killed anywhere: new files are written first, then the log
changes, entry by entry, then old files go. A reader that is under way on an old file fails, and has to be repeated.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from mlops_ray.data import lake
from mlops_ray.data.content import NO_ROWS, RowHash, row_hash
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError

Match = Callable[[pa.Table], npt.NDArray[np.bool_]]
"""Which rows of a table go, shape (n,); it is handed those of its columns that the file has."""
Texts = Callable[[str, bytes], bytes]
"""A file of text, by name and content, without what is to be forgotten."""

_COMMIT = re.compile(r"^(\d{20})\.json$")
_CHECKPOINT = re.compile(r"^(\d{20})\.checkpoint\..*parquet$|^_last_checkpoint$|^\d{20}\.crc$")
_VALUES = 5_000
"""Values of one predicate: SQL of some 200 kB."""
_MARKED = re.compile(r"-redacted-\w+$")
_ATTEMPTS = 20
"""Commits against writers that commit every few seconds: each attempt takes less than that."""


@dataclass(frozen=True)
class Removed:
    """What was taken out of one table: rows, files that went or were written anew, and versions by number."""

    rows: int = 0
    files: int = 0
    versions: tuple[int, ...] = ()

    def __add__(self, other: Removed) -> Removed:
        versions = tuple(sorted({*self.versions, *other.versions}))
        return Removed(self.rows + other.rows, self.files + other.files, versions)


@dataclass(frozen=True)
class _Rest:
    """A file without its rows: `add` is the new one, None where nothing is left of it; `gone` what went."""

    add: lake.DataFile | None
    gone: RowHash
    n_bytes: int


@dataclass(frozen=True)
class Sought:
    """What to take out of a table: `match` looks at `columns`; `mark` names the files that are written in its course,
    the same for the same order, so that a repeated one finds its own."""

    columns: tuple[str, ...]
    match: Match
    mark: str
    """Of letters and digits."""
    texts: Texts = field(default=lambda name, content: content)


# Tables that keep their history ---------------------------------------------------------------------------------------


def redact(uri: str, sought: Sought, *, now: float) -> Removed:
    """Takes rows out of every version of a table that `lake.commit` makes, and marks those versions.

    Args: now: seconds since the epoch, for the mark.
    Raises: DataError when the beginning of the table's log was cut off, or its log is not one of ours.
    """
    filesystem, root = filesystem_of(uri)
    if not _there(filesystem, root):
        return Removed()
    with lake.exclusive(uri):
        commits = _commits(filesystem, root)
        if commits and min(commits) != 0:
            raise DataError(uri, f"its log begins at {min(commits)}: versions before cannot be redacted; remove them")
        named = {path for body in commits.values() for path in _added(body)}
        holding = [path for path in _parquet(filesystem, root) if _holds(uri, path, sought)]
        rests = {path: _rest(uri, path, sought) for path in holding if path in named}
        _say_removed(filesystem, root, commits, rests)
        marked = _rewrite(filesystem, root, commits, rests, sought, now)
        if rests:  # checkpoints name the old files; commit by commit the log is whole without them
            _delete_checkpoints(filesystem, root)
        _delete(filesystem, root, holding)
        _clean_texts(filesystem, root, sought)
    return Removed(sum(rest.gone.n for rest in rests.values()), len(holding), marked)


def _say_removed(
    filesystem: fs.FileSystem, root: str, commits: dict[int, list[dict[str, Any]]], rests: Mapping[str, _Rest]
) -> None:
    """Commits that remove a file remove what will stand for it as well: first, so that at no moment a later version
    gains rows that an earlier one has lost."""
    for number, body in commits.items():
        removed = {unquote(action["remove"]["path"]) for action in body if "remove" in action}
        new = [
            {"remove": {**action["remove"], "path": quote(rest.add.path, safe="/="), "size": rest.add.size}}
            for action in body
            if "remove" in action
            and (rest := rests.get(unquote(action["remove"]["path"]))) is not None
            and rest.add is not None
            and rest.add.path not in removed
        ]
        if new:
            commits[number] = [*body, *new]
            _put_commit(filesystem, root, number, commits[number])


def _rewrite(
    filesystem: fs.FileSystem,
    root: str,
    commits: Mapping[int, list[dict[str, Any]]],
    rests: Mapping[str, _Rest],
    sought: Sought,
    now: float,
) -> tuple[int, ...]:
    """Commits name the new files instead of the old ones, and say so. Returns: their numbers."""
    marked = []
    for number, body in commits.items():
        touched = [rests[path] for path in _added(body) if path in rests]
        if not touched:
            continue
        actions = [action for action in (_renamed(action, rests) for action in body) if action is not None]
        for action in actions:
            info = action.get("commitInfo")
            if info is not None and lake.FIELD in info:
                before = json.loads(info[lake.FIELD])
                after = _marked(before, touched, now)
                _move_sidecars(filesystem, root, before["content_hash"], after["content_hash"], sought)
                info[lake.FIELD] = json.dumps(after, sort_keys=True)
        _put_commit(filesystem, root, number, actions)
        marked.append(number)
    return tuple(marked)


def _marked(body: Mapping[str, Any], touched: Sequence[_Rest], now: float) -> dict[str, Any]:
    """What a commit says of itself, after rows have gone from its files."""
    gone = sum((rest.gone for rest in touched), NO_ROWS)
    smaller = sum(rest.n_bytes - (rest.add.size if rest.add is not None else 0) for rest in touched)
    mark = {"at": now, "n_rows": gone.n, "was": body["content_hash"]}
    return {
        **body,
        "content_hash": (RowHash.parse(body["content_hash"]) - gone).hex(),
        "n_rows": body["n_rows"] - gone.n,
        "n_bytes": body["n_bytes"] - smaller,
        "redactions": [*body.get("redactions", ()), mark],
    }


def _renamed(action: dict[str, Any], rests: Mapping[str, _Rest]) -> dict[str, Any] | None:
    if "add" not in action or (rest := rests.get(unquote(action["add"]["path"]))) is None:
        return action
    if rest.add is None:
        return None
    stats = json.dumps({"numRecords": rest.add.n_rows})
    changed = {"path": quote(rest.add.path, safe="/="), "size": rest.add.size, "stats": stats}
    return {"add": {**action["add"], **changed}}


def _move_sidecars(filesystem: fs.FileSystem, root: str, was: str, now: str, sought: Sought) -> None:
    """What is kept beside a version goes by its content, and may show rows: it moves, without what is forgotten."""
    before, after = f"{root}/{lake.ASIDE}/{was}", f"{root}/{lake.ASIDE}/{now}"
    for info in filesystem.get_file_info(fs.FileSelector(before, allow_not_found=True)):
        if info.is_file and not info.base_name.startswith("."):
            lake.put(
                filesystem, f"{after}/{info.base_name}", sought.texts(info.base_name, _bytes(filesystem, info.path))
            )


def _clean_texts(filesystem: fs.FileSystem, root: str, sought: Sought) -> None:
    """What is kept beside versions (reports show examples of rows) no longer tells what is forgotten; what belongs to
    no version by now goes with `mlops-ray data gc`."""
    selector = fs.FileSelector(f"{root}/{lake.ASIDE}", allow_not_found=True, recursive=True)
    for info in filesystem.get_file_info(selector):
        if info.is_file and info.base_name.endswith((".json", ".html")):
            content = _bytes(filesystem, info.path)
            if (clean := sought.texts(info.base_name, content)) != content:
                lake.put(filesystem, info.path, clean)


# Logs -----------------------------------------------------------------------------------------------------------------


def purge(uri: str, sought: Sought, tells: Callable[[bytes], bool], *, by: Sequence[str], cut: bool = False) -> Removed:
    """Takes rows out of a log, whose history ends here when it tells of them.

    Safe while others append and compact: Delta notices that they did, and the commit is tried again.
    Args: tells: whether a commit (JSON lines) or a checkpoint of the table's log holds what is to be forgotten. by:
        columns of text that say which row is meant, the first one that is not empty. cut: the history ends in any case:
        an order that was killed may have taken rows out before.
    Raises: DataError when others kept committing first.
    """
    filesystem, root = filesystem_of(uri)
    if not _there(filesystem, root):
        return Removed()
    with lake.exclusive(uri):
        n_rows = 0
        for _ in range(_ATTEMPTS):
            if not (predicates := list(_predicates(uri, sought, by))):
                break
            for predicate in predicates:
                with contextlib.suppress(CommitFailedError):  # others wrote the same day: looked at again
                    n_rows += int(DeltaTable(uri).delete(predicate)["num_deleted_rows"])
        else:
            raise DataError(uri, f"other writers came first {_ATTEMPTS} times; run again")
        active = set(_active(DeltaTable(uri)))
        stale = [path for path in _parquet(filesystem, root) if path not in active and _holds(uri, path, sought)]
        _delete(filesystem, root, stale)
        if cut or n_rows or stale or _told(filesystem, root, tells):
            _cut_log(uri, filesystem, root, tells)
        return Removed(n_rows, len(stale))


def _predicates(uri: str, sought: Sought, by: Sequence[str]) -> Iterator[str]:
    """SQL that means such rows, a partition and so many rows at a time: it narrows what other writers can disturb."""
    wanted: dict[tuple[tuple[str, str | None], ...], dict[str, set[str]]] = {}
    columns = tuple(dict.fromkeys((*sought.columns, *by)))
    for path, partition in _active(DeltaTable(uri)).items():
        for group in _groups(uri, path, columns):
            rows = group.filter(pa.array(sought.match(group)))
            for row in rows.select([name for name in by if name in rows.column_names]).to_pylist():
                name = next(name for name, value in row.items() if value)
                wanted.setdefault(tuple(sorted(partition.items())), {}).setdefault(name, set()).add(row[name])
    for place, columns_of in wanted.items():
        where = [f"{name} IS NULL" if value is None else f"{name} = {_sql(value)}" for name, value in place]
        for name, values in columns_of.items():
            listed = sorted(map(_sql, values))
            for start in range(0, len(listed), _VALUES):
                yield " AND ".join([*where, f"{name} IN ({', '.join(listed[start : start + _VALUES])})"])


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _active(table: DeltaTable) -> dict[str, dict[str, str | None]]:
    """Path and partition of the table's files."""
    found = pa.table(table.get_add_actions()).to_pylist()
    return {unquote(action["path"]): dict(action.get("partition") or {}) for action in found}


def values(uri: str, sought: Sought, column: str) -> Iterator[str]:
    """What `column` says of such rows, in every file below the table that has it."""
    filesystem, root = filesystem_of(uri)
    for path in _parquet(filesystem, root):
        for rows in _groups(uri, path, tuple(dict.fromkeys((*sought.columns, column)))):
            if column in rows.column_names:
                yield from rows.filter(pa.array(sought.match(rows)))[column].to_pylist()


def _told(filesystem: fs.FileSystem, root: str, tells: Callable[[bytes], bool]) -> bool:
    """Whether the table's log holds what is to be forgotten: smallest and largest values, predicates of deletions."""
    infos = filesystem.get_file_info(fs.FileSelector(f"{root}/_delta_log"))
    entries = (info for info in infos if _COMMIT.match(info.base_name) or ".checkpoint." in info.base_name)
    return any(tells(_bytes(filesystem, info.path)) for info in entries)


def _cut_log(uri: str, filesystem: fs.FileSystem, root: str, tells: Callable[[bytes], bool]) -> None:
    """Puts a checkpoint in the place of all entries before the newest, which tells of nothing."""
    table = DeltaTable(uri)
    if tells(_bytes(filesystem, f"{root}/_delta_log/{table.version():020d}.json")):
        # Writers want the newest commit to be there (delta-rs 1.6: "Invalid table version"): an empty one takes over.
        table.create_write_transaction([], "append", table.schema(), table.metadata().partition_columns)
        table = DeltaTable(uri)
    table.create_checkpoint()
    for info in filesystem.get_file_info(fs.FileSelector(f"{root}/_delta_log")):
        found = re.match(r"^(\d{20})\.", info.base_name)
        if found is not None and int(found[1]) < table.version():
            filesystem.delete_file(info.path)


# Files ----------------------------------------------------------------------------------------------------------------


def _there(filesystem: fs.FileSystem, root: str) -> bool:
    return bool(filesystem.get_file_info(f"{root}/_delta_log").type == fs.FileType.Directory)


def _parquet(filesystem: fs.FileSystem, root: str) -> list[str]:
    """Every Parquet file below the table, named by a commit or not."""
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    paths = (info.path.removeprefix(f"{root}/") for info in found if info.is_file)
    return sorted(path for path in paths if path.endswith(".parquet") and not path.startswith("_delta_log/"))


def _delete(filesystem: fs.FileSystem, root: str, paths: Sequence[str]) -> None:
    for path in paths:
        filesystem.delete_file(f"{root}/{path}")


def _holds(uri: str, path: str, sought: Sought) -> bool:
    """Whether a file has such rows; one row group at a time."""
    return any(sought.match(group).any() for group in _groups(uri, path, sought.columns))


def _groups(uri: str, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    filesystem, root = filesystem_of(uri)
    with filesystem.open_input_file(f"{root}/{path}") as source:
        file = pq.ParquetFile(source)
        there = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups if there else 0):
            yield file.read_row_group(group, columns=there)


def _rest(uri: str, path: str, sought: Sought) -> _Rest:
    """Writes the file again without its rows; the same name for the same order."""
    filesystem, root = filesystem_of(uri)
    stem = _MARKED.sub("", path.removesuffix(".parquet"))
    writer = lake.FileWriter(uri, f"{stem}-redacted-{sought.mark}.parquet")
    gone, gone_rows = NO_ROWS, 0
    with filesystem.open_input_file(f"{root}/{path}") as source:
        file = pq.ParquetFile(source)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            mask = sought.match(rows)
            gone += _content(rows.filter(pa.array(mask)))
            gone_rows += int(mask.sum())
            writer.write(rows.filter(pa.array(~mask)))
    return _Rest(writer.close(), replace(gone, n=gone_rows), filesystem.get_file_info(f"{root}/{path}").size)


def _content(rows: pa.Table) -> RowHash:
    """Content of rows as their version counted it: lists of names (the quarantine's rules) as one text."""
    for at, column in enumerate(rows.schema):
        if pa.types.is_list(column.type):
            rows = rows.set_column(at, column.name, pc.binary_join(rows[column.name], ","))
    return row_hash(rows)


def _commits(filesystem: fs.FileSystem, root: str) -> dict[int, list[dict[str, Any]]]:
    """Every commit of the table's log as its actions, by number, oldest first."""
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/_delta_log"))
    numbers = sorted((int(m[1]), info.path) for info in found if (m := _COMMIT.match(info.base_name)))
    return {
        number: [json.loads(line) for line in _bytes(filesystem, path).splitlines() if line] for number, path in numbers
    }


def _added(body: Sequence[Mapping[str, Any]]) -> list[str]:
    return [unquote(action["add"]["path"]) for action in body if "add" in action]


def _put_commit(filesystem: fs.FileSystem, root: str, number: int, actions: Sequence[Mapping[str, Any]]) -> None:
    text = "\n".join(json.dumps(action, separators=(",", ":")) for action in actions)
    aside, name = f"{root}/{lake.ASIDE}/{number:020d}.json", f"{root}/_delta_log/{number:020d}.json"
    if isinstance(filesystem, fs.LocalFileSystem):  # an object appears whole or not at all
        lake.put(filesystem, aside, text.encode())
        filesystem.move(aside, name)
    else:
        lake.put(filesystem, name, text.encode())


def _delete_checkpoints(filesystem: fs.FileSystem, root: str) -> None:
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/_delta_log"))
    # The pointer first: readers follow it.
    for info in sorted(found, key=lambda info: info.base_name != "_last_checkpoint"):
        if _CHECKPOINT.match(info.base_name):
            filesystem.delete_file(info.path)


def _bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as file:
        content: bytes = file.read()
        return content
