"""Our ingress without its log, and our whole application without Ray: what each of them costs.

`python -m benchmarks.serving.variants PROJECT_TEXT PORT` serves the application under uvicorn, with a spool that nobody
collects.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve

from mlops_ray.config import Project, parse_portable
from mlops_ray.serving.access import Open
from mlops_ray.serving.artifacts import load_version
from mlops_ray.serving.records import Record, Scored
from mlops_ray.serving.service import Line, Log, Service
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.serving.versions import Wanted
from mlops_ray.serving.web import http
from mlops_ray.state import Store


class Nothing:
    """A prediction log that keeps nothing: no project can have it."""

    def append(self, record: Record) -> bool:
        return True

    async def keep(self, record: Scored) -> bool:
        return self.append(record)

    async def durable(self) -> bool:
        return True


def _service(project: Project, log: Log) -> Service:
    store = Store.open(project.storage.state)
    with store.read() as tx:
        row = tx.serving(project.project)
    store.close()
    assert row is not None, "the project is served before its variants are"
    return Service(project, log, functools.partial(load_version, project), _alone, first=Wanted.of(row))


def _alone(version: int) -> Line:
    raise LookupError(f"version {version}: a variant has no canary")


def _ours() -> Any:
    return serve.get_replica_context().servable_object


@serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0.1}, logging_config={"enable_access_log": False})
@serve.ingress(lambda: http.Application(lambda: _ours().service, Open))
class Uncaptured:
    """The project's ingress, reached as the project's own is, but for its log."""

    def __init__(self, text: str) -> None:
        self.service = _service(parse_portable(text, env=os.environ), Nothing())
        self.asgi = http.Application(lambda: self.service, Open)


def uncaptured(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for the ingress without a log."""
    return Uncaptured.bind(args["text"])  # type: ignore[attr-defined]


def main() -> None:
    import uvicorn

    text, port = sys.argv[1:]
    project = parse_portable(Path(text).read_text(encoding="utf-8"), env=os.environ)
    with tempfile.TemporaryDirectory() as spool:
        service = _service(project, Capture(project, Path(spool), None))
        application = http.Application(lambda: service, Open)
        uvicorn.run(application, port=int(port), access_log=False, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
