"""Delta tables: dataset versions with a content hash, and append-once logs.

A dataset version is one commit that replaces the whole content of the table; older versions stay readable, since log
and files are kept. Its content hash depends on the rows alone: neither their order, nor how they lie in files.
Addresses are absolute paths or `s3://`, `gs://`, `abfs://`; credentials come the way `deltalake` and `pyarrow` find
them. Whoever writes files here and fails before `commit` leaves files that no reader sees.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from mlops_ray.config import DAY_S
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError

FIELD = "mlops_ray"
"""Key of our JSON in a commit's metadata."""
_KEEP = {"delta.enableExpiredLogCleanup": "false", "delta.deletedFileRetentionDuration": "interval 36500 days"}
"""Versions are references that runs point to: neither log entries nor replaced files expire by themselves."""


# Dataset versions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redaction:
    """Rows that a version lost to a request to be forgotten: when (seconds since the epoch), how many, and the content
    hash that the version had before."""

    at: float
    n_rows: int
    was: str


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version of the Delta table at `uri`. `lineage` says where its rows came from (JSON)."""

    uri: str
    version: int
    content_hash: str
    n_rows: int
    n_bytes: int
    """Of its Parquet files."""
    committed: float
    """Seconds since the epoch, by the clock of the machine that committed."""
    lineage: dict[str, Any]
    redactions: tuple[Redaction, ...] = ()
    """Oldest first; `content_hash` and `n_rows` are of the rows that are left."""

    @property
    def contents(self) -> tuple[str, ...]:
        """Every content hash that the version has had, the present one first."""
        return (self.content_hash, *(redaction.was for redaction in reversed(self.redactions)))

    @property
    def redacted(self) -> str:
        """What became of the version, as a sentence; empty for one that is as it was committed."""
        if not self.redactions:
            return ""
        when = datetime.fromtimestamp(self.redactions[-1].at, UTC).strftime("%Y-%m-%d")
        n_rows = sum(redaction.n_rows for redaction in self.redactions)
        return f"redacted on {when}: {n_rows:,} rows were forgotten, its content was {self.redactions[0].was}"


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


def remove_uncommitted(uri: str, folder: str) -> None:
    """Removes the files in `folder` below `uri` that no commit names: those of a run that failed or was not needed."""
    filesystem, root = filesystem_of(uri)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{folder}", allow_not_found=True, recursive=True))
    if not found:
        return
    named: set[str] = set()
    # A commit is younger than its files. A day less is beyond any two clocks, and spares the log's older part.
    began = min((info.mtime_ns / 1e9 for info in found if info.is_file), default=0.0) - DAY_S
    for entry in _log(uri):
        if entry.dataset is not None and entry.dataset.committed < began:
            break
        named |= {f"{root}/{path}" for path in entry.adds}
    for info in found:
        if info.type == fs.FileType.File and info.path not in named:
            filesystem.delete_file(info.path)
    if not any(info.path in named for info in found):
        filesystem.delete_dir(f"{root}/{folder}")


def commit(
    uri: str,
    files: Sequence[DataFile],
    schema: pa.Schema,
    content_hash: str,
    lineage: Mapping[str, Any],
    *,
    append: bool = False,
) -> DatasetVersion:
    """Makes `files` the whole content of the table (or adds them, with `append`) in one atomic commit.

    When another process has meanwhile committed the same content, that version is returned and nothing written.
    Raises: DataError when a file is not there any more, or another process commits at the same moment.
    """
    sizes = {"n_rows": sum(file.n_rows for file in files), "n_bytes": sum(file.size for file in files)}
    body = {"content_hash": content_hash, **sizes, "lineage": dict(lineage), "append": append}
    adds = [_add_action(file) for file in files]
    try:
        # Created empty: of two that create a table with rows at once, the loser's rows would be added to the winner's.
        arrow = Schema.from_arrow(schema)
        with _alone(uri):
            table = _open(uri)
            if table is not None and (known := _find(uri, table, content_hash)) is not None:
                return known
            _all_there(uri, files)
            table = table or DeltaTable.create(uri, arrow, mode="ignore", configuration=_KEEP)
            mode = "append" if append else "overwrite"
            actions: list[AddAction | RemoveAction] = [*adds]
            # Delta keeps the newest number of each such name with the table's state: `find` asks there, not the log.
            number = table.version() + 1
            marks = [Transaction(content_hash, number)]
            properties = CommitProperties({FIELD: json.dumps(body, sort_keys=True)}, app_transactions=marks)
            table.create_write_transaction(actions, mode, arrow, commit_properties=properties)
            found = _content_at(uri, number, content_hash) or find(uri, content_hash)
    except DeltaError as exc:
        raise DataError(
            uri, f"nothing was committed; if another process did at the same moment, run again: {exc}"
        ) from exc
    if found is None:
        raise DataError(uri, "the commit is not in the table's log; run again")
    return found


def _all_there(uri: str, files: Sequence[DataFile]) -> None:
    """Raises: DataError when one of `files` is gone or of another size: a version must never lack rows from birth."""
    filesystem, root = filesystem_of(uri)
    for file, info in zip(files, filesystem.get_file_info([f"{root}/{f.path}" for f in files]), strict=True):
        if info.size != file.size:
            raise DataError(uri, f"{file.path} was removed or changed before its commit; run again")


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One writer of the table at a time on this machine: of two overwrites at once, Delta may keep both's rows.

    An object store has no such lock; there, two writers of one table must not run at once (retries of a failed commit
    are safe: `read` refuses a version whose rows are not as many as were committed).
    """
    if "://" in uri:
        yield
        return
    Path(uri).mkdir(parents=True, exist_ok=True)
    with Path(uri, "_writer.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


exclusive = _alone
"""For `redaction`, which writes the same tables."""


def dataset(uri: str, version: int) -> DatasetVersion:
    """The dataset version with that number. Raises: DataError when there is none, or it was removed."""
    entry = _entry(uri, version)
    if entry is None or entry.dataset is None:
        raise DataError(uri, f"has no dataset version {version}; run `mlops-ray prepare`, or see `mlops-ray data list`")
    _not_removed(entry.dataset)
    return entry.dataset


def latest(uri: str) -> DatasetVersion | None:
    """The newest dataset version, or None when there is none yet."""
    return next(versions(uri), None)


def find(uri: str, content_hash: str) -> DatasetVersion | None:
    """The version with exactly these rows, or None. One look at the table's state and one at a commit."""
    table = _open(uri)
    return _find(uri, table, content_hash) if table is not None else None


def _find(uri: str, table: DeltaTable, content_hash: str) -> DatasetVersion | None:
    number = table.transaction_version(content_hash)
    if number is None:
        return None
    if (found := _content_at(uri, number, content_hash)) is not None:
        return None if _tombstone(uri, number) else found
    # The number is what the writer expected: where nothing locks the table, another may have been quicker.
    return next((v for v in versions(uri) if v.content_hash == content_hash), None)


def _content_at(uri: str, number: int, content_hash: str) -> DatasetVersion | None:
    """The version `number`, if it has that content."""
    entry = _entry(uri, number)
    found = entry.dataset if entry is not None else None
    return found if found is not None and found.content_hash == content_hash else None


def files(dataset: DatasetVersion) -> list[str]:
    """Paths of the version's Parquet files relative to its `uri`, sorted. Raises: DataError when it was removed."""
    _not_removed(dataset)
    entry = _entry(dataset.uri, dataset.version)
    if entry is not None and not entry.append:
        return sorted(entry.adds)
    table = _open(dataset.uri, dataset.version)
    if table is None:
        raise DataError(dataset.uri, "is not there; was storage.root moved?")
    return sorted(pa.table(table.get_add_actions())["path"].to_pylist())


def read(dataset: DatasetVersion, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of exactly that version, in the order of its files.

    Raises: DataError when it was removed, files are gone, or the number of rows is not the recorded one.
    """
    wanted = list(columns) if columns is not None else None
    parts = [opened(dataset, path).read(wanted) for path in files(dataset)]
    n_rows = sum(part.num_rows for part in parts)
    if not parts:
        raise DataError(dataset.uri, f"version {dataset.version} holds no rows")
    if n_rows != dataset.n_rows:
        raise DataError(dataset.uri, f"version {dataset.version} has {n_rows} rows, not {dataset.n_rows}")
    return pa.concat_tables(parts)


def opened(dataset: DatasetVersion, path: str) -> pq.ParquetFile:
    """One of the version's files. Raises: DataError when it is gone."""
    filesystem, root = filesystem_of(dataset.uri)
    try:
        return pq.ParquetFile(f"{root}/{path}", filesystem=filesystem)
    except FileNotFoundError as exc:
        _not_removed(dataset)  # between the look at its files and their reading
        raise DataError(dataset.uri, f"version {dataset.version} has lost a file: {path}") from exc


def versions(uri: str) -> Iterator[DatasetVersion]:
    """The dataset versions of the table that were not removed, newest first; each costs one look when it is asked for.

    Correct while others commit: a commit's file never changes, and its name is its number.
    """
    removed = _removed(uri)
    for entry in _log(uri):
        if entry.dataset is not None and entry.dataset.version not in removed:
            yield entry.dataset


@dataclass(frozen=True)
class _Entry:
    """One commit of a table's log. `dataset` is None for commits that are not ours."""

    version: int
    dataset: DatasetVersion | None
    append: bool
    adds: tuple[str, ...]


def _log(uri: str) -> Iterator[_Entry]:
    """The commits of the table, newest first, down to where the log was cut off."""
    table = _open(uri)
    for version in range(table.version() if table is not None else -1, -1, -1):
        entry = _entry(uri, version)
        if entry is None:
            return
        yield entry


def _entry(uri: str, version: int) -> _Entry | None:
    """Commit number `version`, from its own file (Delta protocol, "Delta Log Entries"); None when there is none.

    Raises: DataError when it is none that this release could have written.
    """
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(f"{root}/_delta_log/{version:020d}.json") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    try:
        actions = [json.loads(line) for line in lines if line]
        info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
        adds = tuple(unquote(a["add"]["path"]) for a in actions if "add" in a)
        if FIELD not in info:
            return _Entry(version, None, True, adds)
        body = json.loads(info[FIELD])
        n_rows, n_bytes, committed = body["n_rows"], body["n_bytes"], info["timestamp"] / 1e3
        lost = tuple(Redaction(**redaction) for redaction in body.get("redactions", ()))
        found = DatasetVersion(uri, version, body["content_hash"], n_rows, n_bytes, committed, body["lineage"], lost)
        return _Entry(version, found, body["append"], adds)
    except (ValueError, KeyError) as exc:
        raise DataError(uri, f"commit {version} cannot be read ({exc!r}); give another storage.root") from exc


def _open(uri: str, version: int | None = None) -> DeltaTable | None:
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except DeltaError as exc:
        raise DataError(uri, f"cannot be opened at version {version}: {exc}") from exc


def _add_action(file: DataFile) -> AddAction:
    stats = json.dumps({"numRecords": file.n_rows})
    return AddAction(file.path, file.size, {}, modification_time=0, data_change=True, stats=stats)


# What belongs to a version --------------------------------------------------------------------------------------------

ASIDE = "_mlops_ray"
_CURRENT = "current.json"
"""Folder below a table for what is no row of it: readers of Delta, and its vacuum, pass over names that begin so."""


def write_sidecar(uri: str, content_hash: str, name: str, content: bytes) -> None:
    """Keeps `content` beside the version with that content, to be written before its commit: what a version refers to
    is there from its first moment. The same name again replaces it, all at once."""
    filesystem, root = filesystem_of(uri)
    put(filesystem, f"{root}/{ASIDE}/{content_hash}/{name}", content)


def read_sidecar(uri: str, content_hash: str, name: str) -> bytes | None:
    """What `write_sidecar` kept, or None."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(f"{root}/{ASIDE}/{content_hash}/{name}") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return None


def choose(uri: str, version: DatasetVersion) -> None:
    """Makes `version` the table's current one: what its source says now, which need not be the newest commit."""
    filesystem, root = filesystem_of(uri)
    put(filesystem, f"{root}/{ASIDE}/{_CURRENT}", json.dumps({"version": version.version}).encode())


def current(uri: str) -> DatasetVersion | None:
    """The version that was chosen last, as far as it is still there, or None."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(f"{root}/{ASIDE}/{_CURRENT}") as file:
            chosen = int(json.loads(file.read())["version"])
    except FileNotFoundError:
        return None
    if chosen in _removed(uri):
        return None
    return dataset(uri, chosen)


def sidecar_path(uri: str, content_hash: str, name: str) -> str:
    """Where `write_sidecar` keeps it."""
    return f"{uri}/{ASIDE}/{content_hash}/{name}"


def read_file_at(path: str) -> bytes:
    """The bytes of what stands at a path or address that `sidecar_path` gave. Raises: OSError."""
    filesystem, name = filesystem_of(path)
    with filesystem.open_input_stream(name) as file:
        content: bytes = file.read()
        return content


def sidecars(uri: str, content_hash: str) -> dict[str, int]:
    """Names and sizes in bytes of what is kept beside the version with that content."""
    filesystem, root = filesystem_of(uri)
    folder = f"{root}/{ASIDE}/{content_hash}"
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return {info.base_name: info.size for info in found if info.is_file and not info.base_name.startswith(".")}


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


# Removing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garbage:
    """What `collect` would remove, and what it would not although it was asked to."""

    uri: str
    versions: tuple[DatasetVersion, ...]
    files: tuple[str, ...]
    """Paths below `uri`: of the versions, and what runs that died left behind."""
    n_bytes: int
    kept: tuple[tuple[DatasetVersion, str], ...]
    """Versions that were asked for, each with why it stays."""


def garbage(
    uri: str,
    *,
    now: float,
    older_than_s: float,
    keep: int | None = None,
    before: float | None = None,
    in_use: Mapping[str, str] | None = None,
) -> Garbage:
    """What nobody needs any more: files that no commit names, and old versions that were asked for.

    Args: now: seconds since the epoch. older_than_s: grace. Of a run's folder, the youngest file must be older, since
        a run that is under way writes there; and so must a version. keep: how many of the newest versions stay.
        before: only versions committed before that time; with both, a version must be old by both. in_use: by content
        hash, what refers to a version: such a version stays.
    The newest version always stays. Files that foreign commits name stay too.
    Raises: DataError when the beginning of the table's log was cut off: what its commits named is not known then.
    """
    log, removed, limit = list(_log(uri)), _removed(uri), now - older_than_s
    if log and log[-1].version != 0:
        raise DataError(uri, f"its log begins at {log[-1].version}, so nothing can be known to be unused")
    going: list[DatasetVersion] = []
    kept: list[tuple[DatasetVersion, str]] = []
    standing = [(e, e.dataset) for e in log if e.dataset is not None and e.version not in removed]
    for rank, (entry, version) in enumerate(standing):
        by_number, by_time = keep is None or rank >= keep, before is None or version.committed < before
        if not (by_number and by_time) or keep is before is None:
            continue
        if why := _why_kept(version, rank, entry.append, limit, in_use or {}):
            kept.append((version, why))
        else:
            going.append(version)
    gone = {version.version for version in going} | removed
    stays = _named(entry for entry in log if entry.version not in gone)
    left = _named(entry for entry in log if entry.version in gone)
    files = _unused(uri, stays, left - stays, limit)
    return Garbage(uri, tuple(going), tuple(sorted(files)), sum(files.values()), tuple(kept))


def _named(entries: Iterable[_Entry]) -> set[str]:
    """What these commits name below their table: data files, and folders of sidecars."""
    found: set[str] = set()
    for entry in entries:
        found.update(entry.adds)
        if entry.dataset is not None:
            found.add(f"{ASIDE}/{entry.dataset.content_hash}")
    return found


def _why_kept(version: DatasetVersion, rank: int, append: bool, limit: float, in_use: Mapping[str, str]) -> str:
    """Why a version stays although it was asked for; empty when nothing speaks for it."""
    if append:
        return "later commits of this table build on it"
    if rank == 0:
        return "it is the newest"
    for content in version.contents:
        if content in in_use:
            return in_use[content]
    return "it is younger than the grace period" if version.committed > limit else ""


def _unused(uri: str, stays: set[str], left: set[str], limit: float) -> dict[str, int]:
    """Path and size of files below the table that belong to nothing that `stays`.

    What removed versions have `left` goes at once; what no commit ever named only when its folder has rested since
    `limit`. Files of other kinds than ours are left alone.
    """
    filesystem, root = filesystem_of(uri)
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    infos = {info.path.removeprefix(f"{root}/"): info for info in found if info.is_file}
    touched: dict[str, float] = {}
    for path, info in infos.items():
        folder = path.rpartition("/")[0]
        touched[folder] = max(touched.get(folder, 0.0), info.mtime_ns / 1e9)
    unused: dict[str, int] = {}
    for path, info in infos.items():
        folder, _, name = path.rpartition("/")
        if folder == "_delta_log":
            # What a killed writer leaves of a commit: delta-rs prepares it under these names, then links it in place.
            stray = (name.startswith("_commit_") or "#" in name) and info.mtime_ns / 1e9 < limit
        elif path == f"{ASIDE}/{_CURRENT}":
            stray = False
        elif folder == f"{ASIDE}/removed":
            stray = name.startswith(".") and info.mtime_ns / 1e9 < limit
        else:
            owner = folder if folder.startswith(f"{ASIDE}/") else path
            ours = owner is folder or name.endswith((".parquet", ".keys"))
            rested = touched[folder] < limit  # also of sidecars: the same rows may be about to be committed again
            stray = ours and owner not in stays and (path in left or rested)
        if stray:
            unused[path] = info.size
    return unused


def collect(found: Garbage, *, now: float) -> None:
    """Removes it: first says of each version that it was removed, then deletes files, then folders that are empty.

    Killed in between, the versions read as removed, and the next `garbage` finds the files that are left.
    Raises: DataError when something that goes is the newest version by now; nothing is removed then.
    """
    filesystem, root = filesystem_of(found.uri)
    with _alone(found.uri):
        if (newest := latest(found.uri)) is not None and newest.version in {v.version for v in found.versions}:
            raise DataError(found.uri, f"version {newest.version} is the newest; look again")
        for version in found.versions:
            said = json.dumps({"at": now, "content_hash": version.content_hash})
            put(filesystem, _tombstone_path(root, version.version), said.encode())
        folders = set()
        for path in found.files:
            with contextlib.suppress(FileNotFoundError):  # its run has removed it meanwhile
                filesystem.delete_file(f"{root}/{path}")
            folders.add(f"{root}/{path}".rpartition("/")[0])
        for folder in folders - {root, f"{root}/_delta_log"}:
            if not filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_dir(folder)


def _tombstone_path(root: str, version: int) -> str:
    return f"{root}/{ASIDE}/removed/{version:020d}.json"


def _tombstone(uri: str, version: int) -> dict[str, Any] | None:
    """When and what was removed as that version, None while it stands."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(_tombstone_path(root, version)) as file:
            said: dict[str, Any] = json.loads(file.read())
            return said
    except FileNotFoundError:
        return None


def _removed(uri: str) -> set[int]:
    filesystem, root = filesystem_of(uri)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{ASIDE}/removed", allow_not_found=True))
    return {int(info.base_name[:20]) for info in found if not info.base_name.startswith(".")}


def _not_removed(dataset: DatasetVersion) -> None:
    """Raises: DataError when that version was removed."""
    if (said := _tombstone(dataset.uri, dataset.version)) is not None:
        when = datetime.fromtimestamp(said["at"], UTC).strftime("%Y-%m-%d %H:%M")
        raise DataError(dataset.uri, f"version {dataset.version} was removed on {when} UTC by `mlops-ray data gc`")


# Logs -----------------------------------------------------------------------------------------------------------------


_TRIES = 50
"""Commits of others that one append may lose against: one of them gets through each time, so this is patience only."""


def committed(uri: str, app: str) -> int:
    """The last number that `app` has committed to the table, -1 when none."""
    table = _open(uri)
    number = table.transaction_version(app) if table is not None else None
    return -1 if number is None else int(number)


def append_once(uri: str, table: pa.Table, app: str, number: int, partition_by: Sequence[str] = ()) -> bool:
    """Appends `table` unless `app` has committed `number` or a later one already; returns whether it was written.

    `app` names one writer, whose numbers rise: rows and number stand in one commit, so a repeated call adds nothing.
    Safe beside any other writer, a stalled one of the same `app` that wakes up included: the number is looked up in a
    version of the table, and the rows become the version right after it or nothing. New columns are added to the table.
    Raises: DataError when others were quicker `_TRIES` times; DeltaError and OSError when the store is away.
    """
    target = _open(uri)
    if target is None:  # created empty: of two that create a table with rows at once, both's rows would stay
        schema = Schema.from_arrow(table.schema)
        target = DeltaTable.create(uri, schema, mode="ignore", partition_by=list(partition_by) or None)
    for _ in range(_TRIES):
        seen, last = target.version(), target.transaction_version(app)
        if last is not None and last >= number:
            return False
        # No retries: Delta's own would put the rows behind commits that the look-up has not seen.
        marks = CommitProperties(app_transactions=[Transaction(app, number)], max_commit_retries=0)
        try:
            write_deltalake(target, table, mode="append", schema_mode="merge", commit_properties=marks)
        except CommitFailedError:
            target = DeltaTable(uri)
            if target.version() == seen:
                raise
        else:
            return True
    raise DataError(uri, f"others committed first {_TRIES} times; run again")


def exists(uri: str) -> bool:
    """Whether there is a table."""
    return _open(uri) is not None


# A day's files that are worth merging, and what merging aims at: a Parquet file of 64 MB is read in about a second.
_MANY_FILES = 8
_FILE_BYTES = 64 * 2**20


def tidy(uri: str, *, before_day: str | None, litter_s: float) -> dict[str, int]:
    """Housekeeping of a log: deletes days before `before_day`, merges small files of a day, writes a checkpoint, cuts
    the table's log off where it is older than its `delta.logRetentionDuration` (30 days), and removes files that no
    version has named for `litter_s` seconds. Numbers that writers noted stay.

    Loses against other commits rather than holding them up: what could not be done is done the next time.
    Returns: `days` deleted, `merged` files, `removed` files.
    """
    done = {"days": 0, "merged": 0, "removed": 0}
    with contextlib.suppress(CommitFailedError):
        files_of: dict[str, int] = {}
        for day in pa.table(DeltaTable(uri).get_add_actions(flatten=True))["partition.day"].to_pylist():
            files_of[day] = files_of.get(day, 0) + 1
        old = sorted(day for day in files_of if before_day is not None and day < before_day)
        if old:
            DeltaTable(uri).delete(f"day < '{before_day}'")
            done["days"] = len(old)
        for day in sorted(set(files_of) - set(old)):
            if files_of[day] >= _MANY_FILES:
                merged = DeltaTable(uri).optimize.compact([("day", "=", day)], target_size=_FILE_BYTES)
                done["merged"] += int(merged["numFilesRemoved"])
    table = DeltaTable(uri)
    table.create_checkpoint()
    table.cleanup_metadata()
    hours = math.ceil(litter_s / 3600)
    done["removed"] = len(table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True))
    return done


def rows_by_day(uri: str) -> dict[str, int]:
    """How many rows each `day` of a log has, as its commits counted them: no file is opened."""
    table = _open(uri)
    if table is None:
        return {}
    found: dict[str, int] = {}
    actions = pa.table(table.get_add_actions(flatten=True))
    for day, n in zip(actions["partition.day"].to_pylist(), actions["num_records"].to_pylist(), strict=True):
        found[day] = found.get(day, 0) + n
    return found


def scan(uri: str, since_day: str, until_day: str, columns: pa.Schema | Sequence[str]) -> pa.Table:
    """Rows of a log whose partition `day` ("YYYY-MM-DD") lies in [since_day, until_day], both included.

    Other partitions' files are not opened. While the table does not exist the result is empty: typed when `columns` is
    a schema, of type null when it is names.
    """
    names = list(columns.names) if isinstance(columns, pa.Schema) else list(columns)
    table = _open(uri)
    if table is None:
        schema = columns if isinstance(columns, pa.Schema) else pa.schema([(name, pa.null()) for name in names])
        return schema.empty_table()
    day, dataset = ds.field("day"), table.to_pyarrow_dataset()
    there = [name for name in names if name in dataset.schema.names]
    rows = dataset.to_table(columns=there, filter=(day >= since_day) & (day <= until_day))
    for name in (n for n in names if n not in there):  # older than the column
        rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return rows.select(names).cast(columns) if isinstance(columns, pa.Schema) else rows.select(names)
