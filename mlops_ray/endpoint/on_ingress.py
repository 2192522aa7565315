"""The deployment of a project's ingress: the serving room's replica with the routes of the rooms that come after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from mlops_ray.config import Project
from mlops_ray.endpoint import operation
from mlops_ray.serving import applications, on_ingress
from mlops_ray.serving.web.calls import Extension
from mlops_ray.state import Store


@serve.deployment(name=applications.INGRESS, logging_config=on_ingress.QUIET)
@serve.ingress(on_ingress.asgi)
class Ingress(on_ingress.Replica):
    """One replica of a project's ingress."""

    def extension(self, project: Project, store: Store) -> Extension:
        """Rollouts and approvals."""
        return operation.extension(project, store)


def ingress_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a project."""
    return Ingress.bind(args["text"])  # type: ignore[attr-defined]
