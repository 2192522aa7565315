"""Brings what the spools hold into the log: every collector of a project, on every node, at once."""

from __future__ import annotations

from typing import Any

import ray
from ray.util import list_named_actors

from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.on_collector import collector_name

_FLUSH_S = 120.0


def flush_all(project: Project) -> dict[str, int]:
    """By name of the collector, the number of the last segment that it has committed. Ray must be running.

    Raises: BackendUnavailable when there is no collector, or one does not answer."""
    first = collector_name(project.project)
    names = [name for name in list_named_actors() if name == first or name.startswith(f"{first}:")]
    if not names:
        raise BackendUnavailable(f"project {project.project!r}", "no collector runs; start it with `mlops-ray up`")
    calls = [ray.get_actor(name).flush.remote() for name in names]
    try:
        done: list[dict[str, Any]] = ray.get(calls, timeout=_FLUSH_S)
    except ray.exceptions.RayError as exc:
        raise BackendUnavailable("a collector", f"it does not answer ({exc}); run again") from exc
    return {name: int(answer["number"]) for name, answer in zip(names, done, strict=True)}
