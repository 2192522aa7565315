"""A table's commits, each read from its own file, and which dataset versions were removed since."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.fs as fs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from mlops_ray.data.lake.version import DatasetVersion, Redaction
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError

FIELD = "mlops_ray"
"""Key of our JSON in a commit's metadata."""


ASIDE = "_mlops_ray"
"""Folder below a table for what is no row of it: readers of Delta, and its vacuum, pass over names that begin so."""

CURRENT = "current.json"
"""In that folder: which version was chosen."""


@dataclass(frozen=True)
class Entry:
    """One commit of a table's log. `dataset` is None for commits that are not ours."""

    version: int
    dataset: DatasetVersion | None
    append: bool
    adds: tuple[str, ...]


def commits(uri: str) -> Iterator[Entry]:
    """The commits of the table, newest first, down to where the log was cut off."""
    table = table_at(uri)
    for version in range(table.version() if table is not None else -1, -1, -1):
        entry = commit_at(uri, version)
        if entry is None:
            return
        yield entry


def commit_at(uri: str, version: int) -> Entry | None:
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
            return Entry(version, None, True, adds)
        body = json.loads(info[FIELD])
        n_rows, n_bytes, committed = body["n_rows"], body["n_bytes"], info["timestamp"] / 1e3
        lost = tuple(Redaction(**redaction) for redaction in body.get("redactions", ()))
        found = DatasetVersion(uri, version, body["content_hash"], n_rows, n_bytes, committed, body["lineage"], lost)
        return Entry(version, found, body["append"], adds)
    except (ValueError, KeyError) as exc:
        raise DataError(uri, f"commit {version} cannot be read ({exc!r}); give another storage.root") from exc


def table_at(uri: str, version: int | None = None) -> DeltaTable | None:
    """The table, at its newest version or that one; None when there is none. Raises: DataError."""
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except DeltaError as exc:
        raise DataError(uri, f"cannot be opened at version {version}: {exc}") from exc


@contextlib.contextmanager
def exclusive(uri: str) -> Iterator[None]:
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


def tombstone_path(root: str, version: int) -> str:
    """Where the removal of that version stands, in the table's own file system."""
    return f"{root}/{ASIDE}/removed/{version:020d}.json"


def tombstone(uri: str, version: int) -> dict[str, Any] | None:
    """When and what was removed as that version, None while it stands."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(tombstone_path(root, version)) as file:
            said: dict[str, Any] = json.loads(file.read())
            return said
    except FileNotFoundError:
        return None


def removed(uri: str) -> set[int]:
    """Numbers of the versions that were removed."""
    filesystem, root = filesystem_of(uri)
    found = filesystem.get_file_info(fs.FileSelector(f"{root}/{ASIDE}/removed", allow_not_found=True))
    return {int(info.base_name[:20]) for info in found if not info.base_name.startswith(".")}


def not_removed(dataset: DatasetVersion) -> None:
    """Raises: DataError when that version was removed."""
    if (said := tombstone(dataset.uri, dataset.version)) is not None:
        when = datetime.fromtimestamp(said["at"], UTC).strftime("%Y-%m-%d %H:%M")
        raise DataError(dataset.uri, f"version {dataset.version} was removed on {when} UTC by `mlops-ray data gc`")
