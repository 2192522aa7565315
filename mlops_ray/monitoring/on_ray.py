"""The monitoring actor: `loop.Loop` with the clock, the log and the registry's artifacts, ticking by itself.

Nothing that matters lives in it: a restarted actor goes on from the state database. Policy and launcher are handed in
by whoever starts it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import prometheus_client
import ray

from mlops_ray.cluster.background import keep_doing
from mlops_ray.config import parse_portable
from mlops_ray.errors import BackendUnavailable
from mlops_ray.monitoring import captured
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.labels import arrived
from mlops_ray.monitoring.loop import Loop
from mlops_ray.monitoring.multivariate import Told, tell
from mlops_ray.monitoring.on_delivery import Alerting
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.monitoring.sources import Sources, Yardstick
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.places import labels_uri
from mlops_ray.state import Store, VersionRow

# How often the actor looks while somebody pushes or a retrain is open, and how often at rest: machine time.
_TICK_S, _REST_S = 2.0, 10.0


# No CPU slot: it runs once in `multivariate_s`, on one core, and must not wait for a retrain that holds them all.
@ray.remote(num_cpus=0, max_retries=2)
def _task(rows: tuple[Any, ...], plan: dict[str, Any]) -> Told:
    return tell(*rows, **plan)


def _ask(*rows: Any, **plan: Any) -> Callable[[], Told | None]:
    """`multivariate.tell` as a task, so that some hundred small fits hold up neither pushes nor ticks."""
    answer = _task.remote(rows, plan)

    def told() -> Told | None:
        ready, _ = ray.wait([answer], timeout=0)
        try:
            found: Told | None = ray.get(answer) if ready else None
        except ray.exceptions.RayError as exc:
            raise BackendUnavailable("the task that tells live rows from the holdout's", str(exc)) from exc
        return found

    return told


class Monitor:
    """Plain class; `MonitorActor` is the same on Ray."""

    def __init__(self, text: str, make_brain: Callable[[str], Brain]) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        store, brain = Store.open(self._project.storage.state), make_brain(text)
        self._yardsticks: dict[str, Yardstick] = {}
        rows, labels_since = partial(captured.rows, self._project), partial(arrived, labels_uri(self._project))
        sources = Sources(rows, self._yardstick, labels_since, _ask)
        self._loop = Loop(self._project, store, brain, sources, time.time)
        self._busy = threading.Lock()
        registry = prometheus_client.CollectorRegistry()
        registry.register(Exposition(store, self._project.project))
        self._server, _ = prometheus_client.start_http_server(
            self._project.monitoring.metrics_port, addr="127.0.0.1", registry=registry
        )
        self._alerting = Alerting(store, self._project, brain.conditions)
        self._news, self._ticked, self._is_open = True, -math.inf, False
        keep_doing(self._turn, every_s=_TICK_S, what=f"monitor of {self._project.project}")

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def push(self, pushed: Mapping[str, Any]) -> bool:
        """Fold what a collector committed, exactly once: see `Loop.push`."""
        was_next = self._loop.push(pushed)
        self._news = True
        return was_next

    def tick(self) -> dict[str, Any]:
        """Judge what has become due, decide, and see to the open retrain. Returns where things stand."""
        with self._busy:
            self._news, self._ticked = False, time.monotonic()
            found = self._loop.tick()
            self._is_open = found["open_retrain"] is not None
            return found

    def _turn(self) -> None:
        """A tick, unless nothing has happened since the last one: of a hundred projects most rest."""
        if self._news or self._is_open or time.monotonic() - self._ticked >= _REST_S:
            self.tick()

    def _yardstick(self, version: VersionRow) -> Yardstick:
        found = self._yardsticks.get(version.sha256)
        if found is None:
            project = self._project
            loaded = local(version.artifact, version.sha256, trusted=project.features.trusted_types)
            threshold = project.serving.threshold if loaded.threshold is None else loaded.threshold
            found = self._yardsticks[version.sha256] = Yardstick(
                loaded.reference, loaded.classes, threshold, loaded.score
            )
        return found


MonitorActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Monitor)


def monitor_name(project: str) -> str:
    """Name of the project's monitoring actor in our namespace."""
    return f"monitor:{project}"
