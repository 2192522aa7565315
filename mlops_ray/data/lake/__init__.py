"""Delta tables: dataset versions with a content hash, and append-once logs.

A dataset version is one commit that replaces the whole content of the table; older versions stay readable, since log
and files are kept. Its content hash depends on the rows alone: neither their order, nor how they lie in files.
Addresses are absolute paths or `s3://`, `gs://`, `abfs://`; credentials come the way `deltalake` and `pyarrow` find
them. Whoever writes files here and fails before `commit` leaves files that no reader sees.
"""

from mlops_ray.data.lake.appending import append_once, committed, exists, rows_by_day, scan, tidy
from mlops_ray.data.lake.cleaning import Garbage, collect, garbage
from mlops_ray.data.lake.file import DataFile, FileWriter, put, read_file, read_file_at, write_file
from mlops_ray.data.lake.log import ASIDE, FIELD, exclusive
from mlops_ray.data.lake.sidecar import choose, current, read_sidecar, sidecar_path, sidecars, write_sidecar
from mlops_ray.data.lake.version import DatasetVersion, Redaction
from mlops_ray.data.lake.versioning import (
    commit,
    dataset,
    files,
    find,
    latest,
    opened,
    read,
    remove_uncommitted,
    versions,
)

__all__ = [
    "ASIDE",
    "FIELD",
    "DataFile",
    "DatasetVersion",
    "FileWriter",
    "Garbage",
    "Redaction",
    "append_once",
    "choose",
    "collect",
    "commit",
    "committed",
    "current",
    "dataset",
    "exclusive",
    "exists",
    "files",
    "find",
    "garbage",
    "latest",
    "opened",
    "put",
    "read",
    "read_file",
    "read_file_at",
    "read_sidecar",
    "remove_uncommitted",
    "rows_by_day",
    "scan",
    "sidecar_path",
    "sidecars",
    "tidy",
    "versions",
    "write_file",
    "write_sidecar",
]
