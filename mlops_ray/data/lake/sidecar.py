"""What is kept beside a dataset version: reports and profiles by its content, and which version is current."""

from __future__ import annotations

import json

import pyarrow.fs as fs

from mlops_ray.data.lake import log
from mlops_ray.data.lake.file import put
from mlops_ray.data.lake.version import DatasetVersion
from mlops_ray.data.lake.versioning import dataset
from mlops_ray.data.sources.shards import filesystem_of


def write_sidecar(uri: str, content_hash: str, name: str, content: bytes) -> None:
    """Keeps `content` beside the version with that content, to be written before its commit: what a version refers to
    is there from its first moment. The same name again replaces it, all at once."""
    filesystem, root = filesystem_of(uri)
    put(filesystem, f"{root}/{log.ASIDE}/{content_hash}/{name}", content)


def read_sidecar(uri: str, content_hash: str, name: str) -> bytes | None:
    """What `write_sidecar` kept, or None."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(f"{root}/{log.ASIDE}/{content_hash}/{name}") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return None


def sidecar_path(uri: str, content_hash: str, name: str) -> str:
    """Where `write_sidecar` keeps it."""
    return f"{uri}/{log.ASIDE}/{content_hash}/{name}"


def sidecars(uri: str, content_hash: str) -> dict[str, int]:
    """Names and sizes in bytes of what is kept beside the version with that content."""
    filesystem, root = filesystem_of(uri)
    folder = f"{root}/{log.ASIDE}/{content_hash}"
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return {info.base_name: info.size for info in found if info.is_file and not info.base_name.startswith(".")}


def choose(uri: str, version: DatasetVersion) -> None:
    """Makes `version` the table's current one: what its source says now, which need not be the newest commit."""
    filesystem, root = filesystem_of(uri)
    put(filesystem, f"{root}/{log.ASIDE}/{log.CURRENT}", json.dumps({"version": version.version}).encode())


def current(uri: str) -> DatasetVersion | None:
    """The version that was chosen last, as far as it is still there, or None."""
    filesystem, root = filesystem_of(uri)
    try:
        with filesystem.open_input_stream(f"{root}/{log.ASIDE}/{log.CURRENT}") as file:
            chosen = int(json.loads(file.read())["version"])
    except FileNotFoundError:
        return None
    if chosen in log.removed(uri):
        return None
    return dataset(uri, chosen)
