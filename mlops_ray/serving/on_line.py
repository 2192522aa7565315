"""The way from an ingress replica to a version that lives apart: a socket on the same node, else Ray Serve's handle.

The handle finds the version's replica, on whatever node, and asks it once where it listens: while the version starts
and has no traffic yet, because where processors are short Serve's router takes seconds for its first call. On the same
node the rows then go over a Unix socket (`frames`), which costs a twentieth of a call by handle; from another node they
go on by handle, a few milliseconds' worth in one call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from mlops_ray.data.profile import Columns
from mlops_ray.errors import MlopsRayError
from mlops_ray.serving import applications, frames
from mlops_ray.serving.canary import Told

_log = logging.getLogger(__name__)

# A call by handle costs both sides half a millisecond of their processors: at this distance a twentieth of one.
_HANDLE_APART_S = 0.01
# Between two attempts to find a version whose process is gone; Ray Serve takes some seconds to start another.
_AGAIN_S = 0.5
# How long finding it may take: the handle waits for as long as there is no replica.
_FIND_S = 10.0


class Line:
    """To one version of one project. All methods run on the replica's event loop."""

    def __init__(self, project: str, version: int) -> None:
        # By name and not by `serve.get_app_handle`: that asks the controller and would block the loop meanwhile.
        self._handle: DeploymentHandle[Any] = DeploymentHandle(
            applications.VERSION, applications.version_application(project, version)
        )
        self._name = applications.version_application(project, version)
        self._near: frames.Asking | None = None
        self._was_near = False
        self._closed = False
        self._finding: asyncio.Task[None] | None = None

    @property
    def apart_s(self) -> float:
        """Least time between two calls."""
        return 0.0 if self._near is not None else _HANDLE_APART_S

    def find(self) -> None:
        """Look for the version's process, and connect to it."""
        if self._finding is None and not self._closed:
            self._finding = asyncio.get_running_loop().create_task(self._find())

    def call(self, columns: Columns) -> Awaitable[Told]:
        """The version's scores. Raises whatever the way there raises."""
        if self._near is not None:
            return self._near.call(columns)
        self.find()
        if self._was_near:  # its process is gone: the handle would wait for the next one, and clients with it
            raise ConnectionResetError(f"{self._name} has no process at the moment")
        return self._by_handle(columns)

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._finding is not None:
            self._finding.cancel()
        if self._near is not None:
            self._near.close()

    async def _by_handle(self, columns: Columns) -> Told:
        response: Any = self._handle.score.remote(frames.ask(columns))
        try:
            return frames.heard(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    async def _find(self) -> None:
        """Connect to the version's process, again whenever the connection was lost, until another node has it."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                async with asyncio.timeout(_FIND_S):
                    where = await self._handle.where.remote()
                    if where["node"] != ray.get_runtime_context().get_node_id():
                        self._was_near = False
                        return
                    _, near = await loop.create_unix_connection(frames.Asking, where["path"])
            except (OSError, RuntimeError, MlopsRayError, ray.exceptions.RayError) as exc:
                _log.info("%s is not to be found: %s", self._name, exc)
                await asyncio.sleep(_AGAIN_S)  # nothing tells when Serve has started another
                continue
            self._near, self._was_near = near, True
            await near.lost
            self._near = None


class Door:
    """Where a version's process listens for replicas of its own node. All methods run on one event loop."""

    def __init__(self, score: frames.Score) -> None:
        self._score = score
        self._path: Path | None = None
        self._opening = asyncio.Lock()

    async def path(self) -> str:
        """The socket, which is made at the first ask. Only this user can open it."""
        async with self._opening:
            if self._path is None:
                folder = Path(tempfile.gettempdir(), f"mlops-ray-{os.getuid()}")
                folder.mkdir(mode=0o700, exist_ok=True)
                about = folder.lstat()
                if about.st_uid != os.getuid() or about.st_mode & 0o077:
                    raise PermissionError(f"{folder} is not this user's alone; remove it")
                _clear(folder)
                path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.sock"  # a socket's path holds 107 bytes at most
                loop = asyncio.get_running_loop()
                await loop.create_unix_server(lambda: frames.Telling(self._score), str(path))
                self._path = path
            return str(self._path)


def _clear(folder: Path) -> None:
    """Remove the sockets of processes that are gone: nothing else does for one that was killed."""
    for path in folder.glob("*-*.sock"):
        try:
            os.kill(int(path.name.partition("-")[0]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
