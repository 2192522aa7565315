"""A real HTTP server for clients that we did not write: the real application and service, without Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from mlops_ray.config import Project, Task
from mlops_ray.data.profile import Columns
from mlops_ray.serving.access import Access, Open, Role, new_token
from mlops_ray.serving.records import Record, Scored
from mlops_ray.serving.service import Held, Service, Wanted
from mlops_ray.serving.web.http import Application
from tests import fakes

CLASSES = ("low", "mittel", "high")
STABLE, WARM = 3, 2


@dataclass
class Rule:
    """A version whose answer follows from the row: a tenth of `n`, missing `x` a twentieth more."""

    task: Task
    engine: str = "onnx"
    threshold: float | None = None

    @property
    def classes(self) -> tuple[Any, ...]:
        return {"binary": (0, 1), "multiclass": CLASSES, "regression": ()}[self.task]

    def score(self, columns: Columns) -> NDArray[np.float64]:
        p = columns["n"].astype(np.float64) / 10 + np.isnan(columns["x"]) / 20
        return np.column_stack((p, (1 - p) / 2, (1 - p) / 2)) if self.task == "multiclass" else p


@dataclass
class Memory:
    """A prediction log in memory."""

    records: list[Record] = field(default_factory=list)

    def append(self, record: Record) -> bool:
        self.records.append(record)
        return True

    async def keep(self, record: Scored) -> bool:
        return self.append(record)

    async def durable(self) -> bool:
        return True


@dataclass(frozen=True)
class Served:
    """A project behind its URL, and what it logged."""

    project: Project
    url: str
    log: Memory

    @property
    def place(self) -> str:
        """Host, port and path: what clients take that write `http://` themselves."""
        return self.url.removeprefix("http://")

    def logged(self) -> Scored:
        """The last prediction in the log."""
        return next(record for record in reversed(self.log.records) if isinstance(record, Scored))


async def _unasked(version: int, columns: Columns) -> Any:
    raise AssertionError("there is no canary")


TOKEN, _GRANT = new_token("tests", [Role.PREDICT, Role.READ], now=0.0, expires=None)
"""The token of the project `guarded`: it may predict and look, and not choose the version."""


def _application(project: Project, log: Memory) -> Application:
    first, warm = (Held(v, f"/models/{v}", f"sha-{v}") for v in (STABLE, WARM))
    wanted = Wanted(0, stable=first, warm=(warm,))
    service = Service(project, log, lambda held: Rule(project.task), _unasked, first=wanted)
    fakes.eventually(lambda: {m.version for m in service.models()} == {STABLE, WARM})
    access = Access([_GRANT]) if project.serving.auth == "token" else Open()
    return Application(lambda: service, lambda: access)


def _mounted(applications: dict[str, Application]) -> Any:
    """Each application under its project's name, as Ray Serve mounts it."""

    async def mounted(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        name = scope["path"].split("/")[1]
        await applications[name](scope | {"root_path": f"/{name}"}, receive, send)

    return mounted


@pytest.fixture(scope="session")
def every() -> Iterator[dict[str, Served]]:
    """A project of each task, one with tokens and one of numbers alone, by name, served by one process."""
    plain = {"numeric": {"columns": ["x", "n"]}}
    projects = [
        fakes.project(),
        fakes.project(project="classes", task="multiclass"),
        fakes.project(project="numbers", task="regression"),
        fakes.project(project="guarded", serving={"auth": "token"}),
        fakes.project(project="plain", task="regression", features=plain),
    ]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        found = {p.project: Served(p, f"{url}/{p.project}", Memory()) for p in projects}
        mounted = _mounted({name: _application(one.project, one.log) for name, one in found.items()})
        server = uvicorn.Server(uvicorn.Config(mounted, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        fakes.eventually(lambda: server.started)
        yield found
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def binary(every: dict[str, Served]) -> Served:
    """The binary project."""
    return every["small"]


@pytest.fixture
def plain(every: dict[str, Served]) -> Served:
    """The regression whose features are numbers."""
    return every["plain"]
