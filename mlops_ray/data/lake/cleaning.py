"""Removing dataset versions that nobody needs any more, and what dead runs left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow.fs as fs

from mlops_ray.data.lake import log
from mlops_ray.data.lake.file import put
from mlops_ray.data.lake.version import DatasetVersion
from mlops_ray.data.lake.versioning import latest
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError


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
    known, removed, limit = list(log.commits(uri)), log.removed(uri), now - older_than_s
    if known and known[-1].version != 0:
        raise DataError(uri, f"its log begins at {known[-1].version}, so nothing can be known to be unused")
    going: list[DatasetVersion] = []
    kept: list[tuple[DatasetVersion, str]] = []
    standing = [(e, e.dataset) for e in known if e.dataset is not None and e.version not in removed]
    for rank, (entry, version) in enumerate(standing):
        by_number, by_time = keep is None or rank >= keep, before is None or version.committed < before
        if not (by_number and by_time) or keep is before is None:
            continue
        if why := _why_kept(version, rank, entry.append, limit, in_use or {}):
            kept.append((version, why))
        else:
            going.append(version)
    gone = {version.version for version in going} | removed
    stays = _named(entry for entry in known if entry.version not in gone)
    left = _named(entry for entry in known if entry.version in gone)
    files = _unused(uri, stays, left - stays, limit)
    return Garbage(uri, tuple(going), tuple(sorted(files)), sum(files.values()), tuple(kept))


def _named(entries: Iterable[log.Entry]) -> set[str]:
    """What these commits name below their table: data files, and folders of sidecars."""
    found: set[str] = set()
    for entry in entries:
        found.update(entry.adds)
        if entry.dataset is not None:
            found.add(f"{log.ASIDE}/{entry.dataset.content_hash}")
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
        elif path == f"{log.ASIDE}/{log.CURRENT}":
            stray = False
        elif folder == f"{log.ASIDE}/removed":
            stray = name.startswith(".") and info.mtime_ns / 1e9 < limit
        else:
            owner = folder if folder.startswith(f"{log.ASIDE}/") else path
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
    with log.exclusive(found.uri):
        if (newest := latest(found.uri)) is not None and newest.version in {v.version for v in found.versions}:
            raise DataError(found.uri, f"version {newest.version} is the newest; look again")
        for version in found.versions:
            said = json.dumps({"at": now, "content_hash": version.content_hash})
            put(filesystem, log.tombstone_path(root, version.version), said.encode())
        folders = set()
        for path in found.files:
            with contextlib.suppress(FileNotFoundError):  # its run has removed it meanwhile
                filesystem.delete_file(f"{root}/{path}")
            folders.add(f"{root}/{path}".rpartition("/")[0])
        for folder in folders - {root, f"{root}/_delta_log"}:
            if not filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
                with contextlib.suppress(FileNotFoundError):
                    filesystem.delete_dir(folder)
