"""`score`: rows by the million through a registered version, on the cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ray.errors import ConfigError, ModelNotFound
from mlops_ray.verbs import Env, Paths, Progress, _silent, known_store, load

if TYPE_CHECKING:
    from mlops_ray.config import Project, Source
    from mlops_ray.state import Store, VersionRow


def score(
    paths: Paths,
    env: Env,
    data: str,
    output: str,
    on_progress: Progress = _silent,
    *,
    kind: str | None = None,
    version: str = "champion",
    profile: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Scores every row of `data`; a cluster that ends with the work is started when the project has none.

    Args: data: a path, a pattern, a Delta table, or `source` for the project's own. output: a folder, or
        `delta:` and a table. version: a number, or `champion`. profile: file for the profile of inputs and scores.
    Raises: ModelNotFound, DataError, ArtifactRefused, ConfigError.
    """
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.data.sources.shards import described
    from mlops_ray.serving.bulk.batch import Output
    from mlops_ray.serving.bulk.on_score import score as scored

    project = load(paths, env).project
    row = _version(known_store(project), project, version)
    source: Source = project.source if data == "source" else described(data, kind)
    with connected(project, start_local=True):
        done = scored(
            project, source, row, Output.parse(output), now=time.time(), resume=resume, on_progress=on_progress
        )
    if profile is not None:
        body = {"project": project.project, "version": row.version, "rows": done.manifest["scored"]}
        body |= {"bins": done.bins.to_dict(), "profile": done.profile.to_dict()}
        Path(profile).write_text(json.dumps(body), encoding="utf-8")
    return {"project": project.project, **done.manifest}


def _version(store: Store, project: Project, which: str) -> VersionRow:
    """The version, and without a champion the newest that may serve. Raises: ModelNotFound when there is none."""
    from mlops_ray.retraining.deciding import champion_of

    if which != "champion" and not which.isdecimal():
        raise ConfigError("--version", (f"{which!r} is no version; give a number, or champion",))
    with store.read() as tx:
        row = champion_of(tx, project.project) if which == "champion" else tx.version(project.project, int(which))
        if row is None and which == "champion":  # nothing was ever served: what would be, as `up` chooses it
            able = [v for v in tx.versions(project.project) if v.may_serve]
            row = max(able, key=lambda v: v.version, default=None)
    if row is None:
        raise ModelNotFound(project.project, which)
    return row
