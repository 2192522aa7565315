"""`schema infer` and `schema diff`: the columns of a project from its data, and what differs between two datasets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlops_ray.config import Project, Source, load_source
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.verbs import Env, Paths, Progress, _silent, load

if TYPE_CHECKING:
    from mlops_ray.data.evidence import Evidence
    from mlops_ray.data.inference import Ranges


def infer(
    paths: Paths,
    env: Env,
    data: str | None = None,
    kind: str | None = None,
    ranges: Ranges = "none",
    on_progress: Progress = _silent,
) -> dict[str, Any]:
    """The `columns:` block for a project's source, or for `data` without a project, as YAML with its evidence.

    Of the project file, only `source:` must be there. Raises: ConfigError, DataError.
    """
    from mlops_ray.data.inference import infer, to_yaml
    from mlops_ray.data.sources.shards import described

    source = described(data, kind) if data is not None else load_source(paths, env=env)
    where = str(data or source.function or source.path)
    (found,) = _observed([source], _project(paths, env), on_progress)
    inferred = infer(found, ranges)
    return {
        "source": where,
        "rows": found.n,
        "columns": [
            {
                "name": column.name,
                "column": column.column.model_dump(mode="json", exclude_defaults=True) if column.column else None,
                "evidence": list(column.notes),
                "key": column.key,
            }
            for column in inferred
        ],
        "yaml": to_yaml(inferred, where, found.n, ranges),
    }


def diff(
    paths: Paths,
    env: Env,
    data: tuple[str, str] | None = None,
    versions: tuple[int | None, int | None] = (None, None),
    kind: str | None = None,
    on_progress: Progress = _silent,
) -> dict[str, Any]:
    """What differs between the schemas of two files or tables, or of two dataset versions of a project.

    Of `versions`, None is the newest one, and before it the one that precedes it.
    Raises: ConfigError, DataError when there are no such versions or rows.
    """
    from mlops_ray.data.inference import diff as differences
    from mlops_ray.data.sources.shards import described

    project = _project(paths, env)
    if data is not None:
        sources = described(data[0], kind), described(data[1], kind)
        names = data
    else:
        sources, names = _versions(load(paths, env).project, *versions)
    before, after = _observed(sources, project, on_progress)
    changes = differences(before, after)
    return {
        "before": names[0],
        "after": names[1],
        "rows": [before.n, after.n],
        "changed": bool(changes),
        "changes": [vars(change) for change in changes],
    }


def _versions(project: Project, before: int | None, after: int | None) -> tuple[tuple[Source, Source], tuple[str, str]]:
    from mlops_ray.data import lake

    uri = project.storage.path("data", project.project)
    known = [version.version for version in lake.versions(uri)]
    if len(known) < 2 and None in (before, after):
        raise DataError(uri, f"has {len(known)} dataset version{'s' * (len(known) != 1)}; two are needed to differ")
    last = known[0] if after is None else lake.dataset(uri, after).version
    older = [number for number in known if number < last]
    if before is None and not older:
        raise DataError(uri, f"has no dataset version before {last}; say which with --from")
    first = older[0] if before is None else lake.dataset(uri, before).version
    first_source, last_source = (
        Source(kind="delta", path=uri, options={"version": number}) for number in (first, last)
    )
    return (first_source, last_source), (f"version {first}", f"version {last}")


def _project(paths: Paths, env: Env) -> Project | None:
    """The project, where the file describes a whole one: its cluster does the work then."""
    try:
        return load(paths, env).project if paths else None
    except ConfigError:
        return None


def _observed(sources: Sequence[Source], project: Project | None, on_progress: Progress) -> list[Evidence]:
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.data.on_evidence import observe

    with connected(project, start_local=True):
        return [observe(source, functools.partial(on_progress, f"rows of {_name(source)}")) for source in sources]


def _name(source: Source) -> str:
    """What a progress bar calls it."""
    return (
        f"version {source.options['version']}" if "version" in source.options else str(source.function or source.path)
    )
