"""What runs as Serve deployments: a project's ingress, and versions that live apart from it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import serve

from mlops_ray.config import parse_portable
from mlops_ray.data.profile import Columns
from mlops_ray.serving import applications, capture
from mlops_ray.serving.artifacts import load_version
from mlops_ray.serving.http import application
from mlops_ray.serving.on_loopback import listen_on_loopback
from mlops_ray.serving.places import spool_folder
from mlops_ray.serving.service import Held, Service, Wanted
from mlops_ray.state import Store

_QUIET = {"enable_access_log": False}


def _asgi() -> Any:
    return application(lambda: serve.get_replica_context().servable_object.service)  # type: ignore[attr-defined]


@serve.deployment(name=applications.INGRESS, logging_config=_QUIET)
@serve.ingress(_asgi)
class Ingress:
    """One replica of a project's ingress; all it does is in `Service`."""

    def __init__(self, text: str) -> None:
        listen_on_loopback()
        project = parse_portable(text, env=os.environ)
        spool = capture.SpoolWriter(spool_folder(project), fsync=project.capture.durability == "disk")
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.serving(project.project)
        store.close()
        first = Wanted.parse(row.spec, row.seq) if row else None
        self._handles: dict[int, Any] = {}
        self.service = Service(project, spool, functools.partial(load_version, project), self._canary, first=first)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve's hook for `user_config`: stores what is wanted and returns."""
        self.service.want(Wanted.parse(config["spec"], config["sequence"]))

    def want(self, spec: Mapping[str, Any], sequence: int) -> dict[str, Any]:
        """The same by broadcast, which is quicker; answers with what this replica has."""
        self.service.want(Wanted.parse(spec, sequence))
        return self.service.status()

    async def _canary(self, version: int, columns: Columns) -> np.ndarray[Any, Any]:
        handle = self._handles.get(version)
        if handle is None:
            name = applications.version_application(self.service.project.project, version)
            handle = self._handles[version] = serve.get_app_handle(name)
        return await handle.score.remote(dict(columns))  # type: ignore[no-any-return]


@serve.deployment(name=applications.VERSION, logging_config=_QUIET)
class Version:
    """A version on trial, in a process of its own: whatever it does, stable's replicas do not feel it."""

    def __init__(self, text: str, version: int) -> None:
        listen_on_loopback()
        project = parse_portable(text, env=os.environ)
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.version(project.project, version)
        store.close()
        self._scorer = load_version(project, Held(version, row.artifact, row.sha256))

    def score(self, columns: Columns) -> np.ndarray[Any, Any]:
        """Probabilities, shape (n,)."""
        return self._scorer.score(columns)


def ingress_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a project."""
    return Ingress.bind(args["text"])  # type: ignore[attr-defined]


def version_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a version that lives apart."""
    return Version.bind(args["text"], int(args["version"]))  # type: ignore[attr-defined]
