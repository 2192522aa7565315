"""Serve's declarative configuration, rendered from the state database: what `apply()` puts.

`import_path` and `args` of an application depend only on the project file, so that a change of shares or versions
reaches running replicas through `user_config` alone: anything else would restart them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_ray.config import Project
from mlops_ray.serving.versions import Wanted

# Between a project's name and a version's number; names of projects hold no hyphen.
_APART = "--v"
INGRESS = "Ingress"
VERSION = "Version"


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
        if one.wanted.canary is not None:
            applications.append(_canary(one, one.wanted.canary))
    ours = {one.project.project for one in ordered} | set(withdrawn)
    applications += [
        found["deployed_app_config"]
        for name, found in there.get("applications", {}).items()
        if name.partition(_APART)[0] not in ours and found.get("deployed_app_config")
    ]
    config: dict[str, Any] = {"proxy_location": "EveryNode", "applications": applications}
    if ordered:  # Serve reads them once, when it starts
        cluster = ordered[0].project.cluster
        config["http_options"] = {"host": cluster.host if cluster.address else "127.0.0.1", "port": cluster.http_port}
    return config


def differs(config: Mapping[str, Any], details: Mapping[str, Any]) -> bool:
    """Whether what Serve was last told (its `GET` answer) is not this configuration."""
    # Applications without a configuration came by `serve.run` (or are on their way out): a PUT does not reach them.
    found = {name: a.get("deployed_app_config") for name, a in details.get("applications", {}).items()}
    deployed = {name: told for name, told in found.items() if told}
    if deployed.keys() != {a["name"] for a in config["applications"]}:
        return True
    return any(_told(a) != _told(deployed[a["name"]]) for a in config["applications"])


def _told(application: Mapping[str, Any]) -> tuple[Any, ...]:
    deployments = [
        (d["name"], d.get("num_replicas"), d.get("max_ongoing_requests"), d.get("user_config"))
        for d in application.get("deployments", ())
    ]
    return application.get("import_path"), application.get("args"), deployments


def _ingress(served: Served) -> dict[str, Any]:
    serving = served.project.serving
    return {
        "name": served.project.project,
        "route_prefix": f"/{served.project.project}",
        "import_path": "mlops_ray.serving.on_ingress:ingress_application",
        "args": {"text": served.text},
        "deployments": [
            {
                "name": INGRESS,
                "num_replicas": serving.replicas,
                "max_ongoing_requests": serving.max_ongoing_requests,
                "user_config": {
                    "sequence": served.wanted.sequence,
                    "fence": served.wanted.fence,
                    "spec": served.wanted.spec(),
                },
            }
        ],
    }


def _canary(served: Served, version: int) -> dict[str, Any]:
    return {
        "name": version_application(served.project.project, version),
        "route_prefix": None,
        "import_path": "mlops_ray.serving.on_ingress:version_application",
        "args": {"text": served.text, "version": version},
        "deployments": [{"name": VERSION, "num_replicas": 1}],
    }
