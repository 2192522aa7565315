"""`profile` and `drift`: what data holds, and how far other data lies from it. Local data needs no cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.verbs import Env, Paths, load

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops_ray.data.comparison import Mode


def profile(data: str, paths: Paths, env: Env, kind: str | None = None) -> dict[str, Any]:
    """What `data` holds, column by column (`comparison.describe`). Raises: DataError, ConfigError."""
    from mlops_ray.data import comparison

    table = rows(data, load(paths, env).project if paths else None, kind)
    return {"data": data, "rows": table.num_rows, "columns": comparison.describe(table)}


def drift(
    reference: str, current: str, paths: Paths, env: Env, mode: Mode = "exact", kind: str | None = None
) -> dict[str, Any]:
    """How far `current` lies from `reference`, feature by feature (`comparison.compare`).

    Raises: DataError, ConfigError.
    """
    from mlops_ray.data import comparison

    project = load(paths, env).project if paths else None
    ours, theirs = rows(reference, project, kind), rows(current, project, kind)
    found = comparison.compare(ours, theirs, mode)
    return {"reference": reference, "current": current, "rows": [ours.num_rows, theirs.num_rows], **found}


def rows(data: str, project: Project | None, kind: str | None) -> pa.Table:
    """The rows that `data` names: a path, or with a project `source`, `version:3` or `version:latest`.

    With a project, columns that it declares have its dtypes, and others are left out. Ray starts only for a `source`
    whose kind this process cannot read by itself.
    Raises: DataError when there is no such data, or it cannot be read.
    """
    from mlops_ray.data.sources import shards as sources
    from mlops_ray.data.sources import whole

    if project is None:
        if data == "source" or data.startswith("version:"):
            raise DataError(data, "is a name within a project; add `-c FILE`")
        return whole.read(sources.described(data, kind))
    declared = [column.name for column in project.columns]
    if data.startswith("version:"):
        return _version(project, data.removeprefix("version:"))
    if data == "source":
        return _typed(_source(project, declared), project)
    return _typed(whole.read(sources.described(data, kind), text=declared), project)


def _version(project: Project, which: str) -> pa.Table:
    from mlops_ray.data import lake

    uri = project.storage.path("data", project.project)
    if which == "latest":
        found = lake.latest(uri)
    elif which.isdecimal():
        found = lake.dataset(uri, int(which))
    else:
        raise DataError(f"version:{which}", "give a number, or `version:latest`")
    if found is None:
        raise DataError(uri, "there is no dataset version yet; run `mlops-ray prepare` first")
    return lake.read(found)


def _source(project: Project, declared: list[str]) -> pa.Table:
    from mlops_ray.data.sources import shards as sources
    from mlops_ray.data.sources import whole

    source = project.source
    if source.kind in sources.FILE_KINDS and not source.options and source.time_range is None:
        return whole.read(source, text=declared)
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.data.sources.on_ray import each, open_source

    with connected(project, start_local=True):
        return whole.batched(each(open_source(source, project.columns), whole.batched))


def _typed(table: pa.Table, project: Project) -> pa.Table:
    """The declared columns that `table` has, in their dtypes; cells that do not fit count as missing."""
    from mlops_ray.data.schema import conform

    there = [column for column in project.columns if column.name in table.column_names]
    if not there:
        raise DataError(project.project, f"none of its columns is in the data, which has {table.column_names}")
    return conform(table, there)[0]
