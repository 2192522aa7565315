"""The collectors of a project, one on each living node: started, looked after, asked together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mlops_ray.cluster.on_ray import NAMESPACE, end_actor, ensure_actor
from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.log.on_collector import Collector, alive_nodes
from mlops_ray.serving.places import spool_folder
from mlops_ray.serving.spool import segments as spool

_log = logging.getLogger(__name__)

# A collector answers pings beside its work. One that is silent for so long is stopped or stuck, and its spool grows.
_PING_S = 15.0
_FLUSH_S = 300.0
# Calls that one collector takes at once: several may wait for a pass to end, and pings must still be answered.
_CALLS = 16


def collector_name(project: str, node: str) -> str:
    """Name of the project's collector on a node, by its Ray node id, in our namespace."""
    return f"collector:{project}:{node}"


def ensure_collectors(text: str, project: Project, monitor: str) -> dict[str, int]:
    """A collector runs on every living node and answers; process ids by actor name. Again is harmless.

    Raises: BackendUnavailable when one does not start; the others were seen to.
    """
    found: dict[str, int] = {}
    trouble: BackendUnavailable | None = None
    for node in alive_nodes():
        name = collector_name(project.project, node)
        try:
            _end_if_stuck(name, project, node)
            found[name] = ensure_actor(_actor_on(node), name, text, monitor, node, concurrency=_CALLS)
        except BackendUnavailable as exc:  # a node that is leaving must not keep the others from theirs
            trouble = exc
    if trouble is not None:
        raise trouble
    return found


def all_answer(project: str) -> bool:
    """Whether every living node has the project's collector, and it answers: one call each, nothing is started."""
    try:
        handles = [ray.get_actor(collector_name(project, node), NAMESPACE) for node in alive_nodes()]
        ray.get([handle.ping.remote() for handle in handles], timeout=_PING_S)
    except (ValueError, ray.exceptions.RayError):  # one is lacking, dying, or stuck
        return False
    return True


def _actor_on(node: str) -> Any:
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(num_cpus=0, **options)(Collector)


def collectors(project: str) -> list[Any]:
    """Handles of the collectors on living nodes."""
    handles = []
    for node in alive_nodes():
        with contextlib.suppress(ValueError):
            handles.append(ray.get_actor(collector_name(project, node), NAMESPACE))
    return handles


def flush(project: str) -> None:
    """All that any node acknowledged before this call is in log and monitor, and its watermarks count.

    Two rounds: a watermark counts once every node has begun a pass after it was known (see `collecting`).
    Raises: BackendUnavailable when a collector does not manage.
    """
    for _ in range(2):
        try:
            ray.get([handle.flush.remote() for handle in collectors(project)], timeout=_FLUSH_S)
        except (ray.exceptions.RayError, TimeoutError) as exc:
            raise BackendUnavailable("a collector", str(exc).strip().splitlines()[-1]) from exc


def end_collectors(project: str) -> None:
    """End the project's collectors; what stands in the spools waits for the next ones."""
    for node in alive_nodes():
        end_actor(collector_name(project, node))


def _end_if_stuck(name: str, project: Project, node: str) -> None:
    """Kill a collector that does not answer, by its process id: one that was stopped answers nobody, Ray's own kill
    included, and holds its spool's lock until it is dead. Ray starts it again."""
    try:
        handle = ray.get_actor(name, NAMESPACE)
        ray.get(handle.ping.remote(), timeout=_PING_S)
    except (ValueError, ray.exceptions.RayActorError):
        return  # there is none, or it is dying: to be made, or made again
    except ray.exceptions.GetTimeoutError:
        folder = str(spool_folder(project, node))
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            killed = ray.get(_kill_owner.options(scheduling_strategy=here).remote(folder, node), timeout=_PING_S)
        except (ray.exceptions.RayError, TimeoutError) as exc:
            raise BackendUnavailable(f"actor {name}", f"it hangs, and its node does not answer: {exc}") from exc
        _log.warning("%s did not answer for %g s; %s", name, _PING_S, killed)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_owner(folder: str, node: str) -> str:
    """Kill the collector of this node that owns the node's spool; what was done, in words."""
    owner = spool.owner(Path(folder))
    if owner is None:
        return "nobody owns its spool"
    if owner.name != node:  # one that adopted the spool for a pass; the node's own is in line for it
        return f"process {owner.pid} has its spool for the moment"
    with contextlib.suppress(ProcessLookupError):
        os.kill(owner.pid, signal.SIGKILL)
    return f"process {owner.pid} was killed"
