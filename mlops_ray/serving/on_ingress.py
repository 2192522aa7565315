"""What runs as Serve deployments: a project's ingress, and versions that live apart from it."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware

from mlops_ray.cluster.background import keep_doing
from mlops_ray.config import Project, parse_portable
from mlops_ray.data.profile import Columns
from mlops_ray.errors import ModelNotFound
from mlops_ray.serving import applications, frames, tokens
from mlops_ray.serving.access import Access, Open
from mlops_ray.serving.artifacts import load_version
from mlops_ray.serving.canary import Told
from mlops_ray.serving.garbage import collect_rarely
from mlops_ray.serving.on_grpc import Rpc
from mlops_ray.serving.on_line import Door, Line
from mlops_ray.serving.on_loopback import listen_on_loopback
from mlops_ray.serving.places import spool_folder
from mlops_ray.serving.scoring import INLINE_ROWS, timed
from mlops_ray.serving.service import Service
from mlops_ray.serving.spool import claims
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.serving.versions import Held, Scorer, Wanted
from mlops_ray.serving.web import calls, http
from mlops_ray.serving.web.admission import Receive
from mlops_ray.state import Store

_log = logging.getLogger(__name__)

QUIET = {"enable_access_log": False}
# How soon a token that was made or revoked counts everywhere.
_TOKENS_S = 2.0


def _ours() -> Any:
    return serve.get_replica_context().servable_object


def asgi() -> Callable[[MutableMapping[str, Any], Receive, http.Send], Awaitable[None]]:
    """Serve's builder of the ASGI application of whichever replica this process is."""

    async def entrance(scope: MutableMapping[str, Any], receive: Receive, send: http.Send) -> None:
        if scope["type"] == "lifespan":  # comes before there is a replica
            await http.lifespan(receive, send)
        else:
            await _ours().asgi(scope, receive, send)

    return entrance


class Replica(Rpc):
    """One replica of a project's ingress; all it does is in `Service`, and what HTTP it speaks in `http`. The room that
    composes the endpoint makes a deployment of it."""

    def __init__(self, text: str) -> None:
        listen_on_loopback()
        project = parse_portable(text, env=os.environ)
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.serving(project.project)
        secret = store.run(lambda tx: claims.secret(tx, project.project)) if project.capture.hash else None
        log = Capture(project, spool_folder(project, ray.get_runtime_context().get_node_id()), secret)
        load, line = functools.partial(load_version, project), functools.partial(Line, project.project)
        self.service = Service(project, log, load, line, first=Wanted.of(row) if row else None)
        self.access = _access(project, store)
        self.asgi = http.Application(lambda: self.service, lambda: self.access, self.extension(project, store))
        collect_rarely()

    def extension(self, project: Project, store: Store) -> calls.Extension:
        """What the project's endpoint answers besides predictions."""
        return calls.NOTHING

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve's hook for `user_config`: stores what is wanted and returns."""
        self.service.want(Wanted.parse(config["spec"], config["sequence"], config.get("fence", 0)))

    def want(self, spec: Mapping[str, Any], sequence: int, fence: int = 0) -> dict[str, Any]:
        """The same by broadcast, which is quicker; answers with what this replica has."""
        self.service.want(Wanted.parse(spec, sequence, fence))
        return self.service.status()


def _access(project: Project, store: Store) -> calls.Access:
    """Who may ask what; with tokens, kept up to date by a thread."""
    if project.serving.auth == "off":
        return Open()
    with store.read() as tx:
        access = Access(tokens.grants(tx, project.project))

    def look() -> None:  # a database tells nobody that it has changed
        with store.read() as tx:
            access.replace(tokens.grants(tx, project.project))

    keep_doing(look, every_s=_TOKENS_S, what=f"tokens of {project.project}")
    return access


class Straight:
    """Requests to a project's own paths go to its application without Serve's wrapper, which costs more than they do.

    What else comes is Serve's: its health checks, and everything where replicas scale by Serve's own count of requests.
    """

    def __init__(self, app: Any, *, prefix: str) -> None:
        self._serve, self._prefix, self._below = app, prefix, prefix + "/"
        self._ours: Any = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: http.Send) -> None:
        """ASGI's entrance."""
        if scope["type"] == "http" and scope["path"].startswith(self._below):
            # Serve makes its servers a moment before it tells the context of the ingress.
            if self._ours is None and (ingress := _ours()) is not None:
                scales = ingress.service.project.serving.autoscaling is not None
                self._ours = self._serve if scales else ingress.asgi
            if self._ours is not None and self._ours is not self._serve:
                scope["root_path"] = self._prefix
                await self._ours(scope, receive, send)
                return
        await self._serve(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Serve's hook `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, called in each process that serves HTTP.

    Without the hook everything works as it does with it, more slowly.
    """
    listen_on_loopback()
    try:
        context = serve.get_replica_context()
    except RayServeException:  # Serve's own proxy
        return []
    if context.deployment != applications.INGRESS:
        return []
    return [Middleware(Straight, prefix=f"/{context.app_name}")]


@serve.deployment(name=applications.VERSION, logging_config=QUIET)
class Version:
    """A version on trial, in a process of its own: whatever it does, stable's replicas do not feel it."""

    def __init__(self, text: str, version: int) -> None:
        listen_on_loopback()
        project = parse_portable(text, env=os.environ)
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.version(project.project, version)
        store.close()
        if row is None:
            raise ModelNotFound(project.project, str(version))
        self._scorer = load_version(project, Held(version, row.artifact, row.sha256))
        self._thread = ThreadPoolExecutor(1, "scorer")
        collect_rarely()
        self._door: Door | None = None

    async def where(self) -> dict[str, str]:
        """The node, and the socket on it that takes `frames`."""
        if self._door is None:
            self._door = Door(self._score)
        return {"node": ray.get_runtime_context().get_node_id(), "path": await self._door.path()}

    async def score(self, body: bytes) -> bytes:
        """Scores for a replica on another node; both as `frames` has them."""
        found = self._score(frames.asked(body))
        return frames.told(found if isinstance(found, Told) else await found)

    def _score(self, columns: Columns) -> Told | asyncio.Future[Told]:
        """At once where that is quick, so that the thread's detour is not paid for a row."""
        n = len(next(iter(columns.values())))
        if self._scorer.engine == "onnx" and n <= INLINE_ROWS:
            return _told(self._scorer, columns)
        return asyncio.get_running_loop().run_in_executor(self._thread, _told, self._scorer, columns)


def _told(scorer: Scorer, columns: Columns) -> Told:
    scores, took_s = timed(scorer, columns)
    return Told(scores, scorer.classes, scorer.threshold, took_s * 1e6 / max(1, len(scores)))


def version_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a version that lives apart."""
    return Version.bind(args["text"], int(args["version"]))  # type: ignore[attr-defined]
