"""Serve's declarative configuration, rendered from the state database: what `apply()` puts.

`import_path` and `args` of an application depend only on the project file, so that a change of shares or versions
reaches running replicas through `user_config` alone: anything else would restart them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_ray.config import Project
from mlops_ray.config.operation import Serving
from mlops_ray.serving.versions import Wanted

# Between a project's name and a version's number; names of projects hold no hyphen.
_APART = "--v"
INGRESS = "Ingress"
# What registers the service with Serve's gRPC servers, in whichever process they run.
_SERVICER = "mlops_ray.serving.on_grpc.add_servicer"
VERSION = "Version"
# What composes a project's endpoint of several rooms, so that it stands after them.
_ENDPOINT = "mlops_ray.endpoint.on_ingress:ingress_application"
# Requests that wait while no replica lives: five seconds' traffic at 200 requests a second. Serve answers those beyond
# 503 with Retry-After.
_QUEUED = 1024
# A replica is replaced after three misses in a row: one that hangs after some 15 s (Serve's default: over a minute).
# One that computes on its event loop for 4 s is not taken for one that hangs.
_HEALTH_PERIOD_S = 3.0
_HEALTH_TIMEOUT_S = 4.0
# How often a draining replica looks whether it is idle.
_DRAIN_LOOK_S = 0.2


@dataclass(frozen=True)
class Served:
    """A project as it is to be served: its file's text (secrets as `${NAME}`) and its wanted configuration."""

    project: Project
    text: str
    wanted: Wanted


def version_application(project: str, version: int) -> str:
    """Name of the application of a version that lives apart from the ingress.

    >>> version_application("flights", 7)
    'flights--v7'
    """
    return f"{project}{_APART}{version}"


def render(
    served: Iterable[Served], there: Mapping[str, Any], withdrawn: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The body of Serve's `PUT /api/serve/applications/` for these projects, and others' applications as they stand.

    Args: there: Serve's `GET` answer. withdrawn: projects whose applications are to go.
    Source: Ray Serve REST API, schema `ServeDeploySchema`.
    """
    applications: list[dict[str, Any]] = []
    ordered = sorted(served, key=lambda s: s.project.project)
    for one in ordered:
        applications.append(_ingress(one))
        applications += [_apart(one, version) for version in one.wanted.on_trial]
    ours = {one.project.project for one in ordered} | set(withdrawn)
    applications += [
        found["deployed_app_config"]
        for name, found in there.get("applications", {}).items()
        if name.partition(_APART)[0] not in ours and found.get("deployed_app_config")
    ]
    config: dict[str, Any] = {"proxy_location": "EveryNode", "applications": applications}
    if ordered:  # Serve reads them once, when it starts
        cluster = ordered[0].project.cluster
        timeout_s = max(one.project.serving.request_timeout_s for one in ordered)
        config["http_options"] = {
            # On a cluster of our own only HAProxy's front end listens on `cluster.host` (`cluster/on_haproxy.py`).
            "host": cluster.host if cluster.address else "127.0.0.1",
            "port": cluster.http_port,
            "request_timeout_s": timeout_s,
        }
        if cluster.grpc_port is not None:
            config["grpc_options"] = {
                "port": cluster.grpc_port,
                "grpc_servicer_functions": [_SERVICER],
                "request_timeout_s": timeout_s,
            }
    return config


def differs(config: Mapping[str, Any], details: Mapping[str, Any]) -> bool:
    """Whether what Serve was last told (its `GET` answer) is not this configuration."""
    # Applications without a configuration came by `serve.run` (or are on their way out): a PUT does not reach them.
    found = {name: a.get("deployed_app_config") for name, a in details.get("applications", {}).items()}
    deployed = {name: told for name, told in found.items() if told}
    if deployed.keys() != {a["name"] for a in config["applications"]}:
        return True
    return not all(_holds(deployed[a["name"]], a) for a in config["applications"])


def _holds(told: Any, wanted: Any) -> bool:
    """Whether everything that is wanted was told; Serve adds defaults of its own."""
    if isinstance(wanted, Mapping):
        return isinstance(told, Mapping) and all(key in told and _holds(told[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        same = isinstance(told, list | tuple) and len(told) == len(wanted)
        return same and all(_holds(t, w) for t, w in zip(told, wanted, strict=True))
    return bool(told == wanted)


def _ingress(served: Served) -> dict[str, Any]:
    serving = served.project.serving
    how_many: dict[str, Any] = {"num_replicas": serving.replicas}
    if serving.autoscaling is not None:
        how_many = {"autoscaling_config": serving.autoscaling.model_dump(mode="json")}
    return {
        "name": served.project.project,
        "route_prefix": f"/{served.project.project}",
        "import_path": _ENDPOINT,
        "args": {"text": served.text},
        "deployments": [
            {
                "name": INGRESS,
                **how_many,
                **_replica(served.project),
                "ray_actor_options": {"num_cpus": serving.num_cpus},
                "max_ongoing_requests": _by_handle(serving),
                "max_queued_requests": _QUEUED,
                "user_config": {
                    "sequence": served.wanted.sequence,
                    "fence": served.wanted.fence,
                    "spec": served.wanted.spec(),
                },
            }
        ],
    }


def _by_handle(serving: Serving) -> int:
    """Requests that Serve hands one replica at a time.

    The replica itself counts all of them against `serving.max_ongoing_requests` and refuses those beyond. Requests that
    HAProxy sends come past Serve's count (`on_ingress.Straight`); those that waited for a replica while none lived come
    by handle, all at once, and are let in by halves, so that the rest has room and none of them is refused.
    """
    return serving.max_ongoing_requests if serving.autoscaling else max(1, serving.max_ongoing_requests // 2)


def _replica(project: Project) -> dict[str, Any]:
    """How every replica of a project is watched and ended. None of this restarts those that run."""
    serving = project.serving
    return {
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        # Requests in hand may take their whole time after the listener has closed.
        "graceful_shutdown_timeout_s": serving.drain_s + serving.request_timeout_s,
        "graceful_shutdown_wait_loop_s": _DRAIN_LOOK_S,
    }


def _apart(served: Served, version: int) -> dict[str, Any]:
    return {
        "name": version_application(served.project.project, version),
        "route_prefix": None,
        "import_path": "mlops_ray.serving.on_ingress:version_application",
        "args": {"text": served.text, "version": version},
        "deployments": [
            {
                "name": VERSION,
                "num_replicas": 1,
                **_replica(served.project),
                "ray_actor_options": {"num_cpus": served.project.serving.num_cpus},
                # Calls of all ingress replicas; each has a deadline, so none waits long.
                "max_ongoing_requests": served.project.serving.max_ongoing_requests,
            }
        ],
    }
