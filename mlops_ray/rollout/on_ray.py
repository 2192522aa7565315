"""The controller: one actor for all projects of a state database, which come and go while it runs.

Each project has threads of its own, so that one whose look hangs or raises holds up no other, and its own lease. Which
projects there are, and that something has changed, is seen by one glance at the state database, for all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from typing import Any

import ray

from mlops_ray.cluster.background import keep_doing
from mlops_ray.cluster.on_ray import NAMESPACE, end_actor
from mlops_ray.config import parse_portable, parse_storage
from mlops_ray.errors import DataError
from mlops_ray.monitoring.on_ray import monitor_name
from mlops_ray.rollout.on_project import Controller
from mlops_ray.serving.log.on_collectors import all_answer, ensure_collectors
from mlops_ray.serving.on_apply import replica_status
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Glimpse, Store

_log = logging.getLogger(__name__)

# Machine time after which what was saved is noticed, at most: replicas hear of it then.
_GLANCE_S = 0.1
# Machine time between two tries to tell replicas that did not answer.
_TELL_S = 1.0
# Machine time between two looks at the collectors: for so long a new node's records wait at most.
_COLLECTORS_S = 5.0
# Machine time that a project which goes is given to end its turns. One that hangs is fenced by the state database.
_LEAVE_S = 30.0


class _Running:
    """One project under way: its controller's turns, and what is seen to beside them."""

    def __init__(self, text: str, sha256: str, store: Store, dashboard: str) -> None:
        """Raises: ConfigError when the environment lacks a name that the project file asks for."""
        self.sha256, self._text, self._project = sha256, text, parse_portable(text, env=os.environ)
        self._name, self._store = self._project.project, store
        self.controller = Controller(self._project, store, dashboard)
        self._told = (-1, -1)
        self._glimpse: Glimpse | None = None
        of = f"controller of {self._name}"
        self._turns = keep_doing(self.controller.turn, every_s=lambda: self.controller.pause_s, what=of)
        self._telling = keep_doing(self._tell, every_s=_TELL_S, what=f"{of}, telling replicas")
        self._doings = (
            self._turns,
            self._telling,
            keep_doing(self._see_to_collectors, every_s=_COLLECTORS_S, what=f"collectors of {self._name}"),
        )

    def see(self, glimpse: Glimpse) -> None:
        """Have done what follows from what has changed."""
        before, self._glimpse = self._glimpse, glimpse
        if before is None or (glimpse.order, glimpse.rollout) != (before.order, before.rollout):
            self._turns.soon()
        if glimpse.order > self._told and (before is None or glimpse.order != before.order):
            self._telling.soon()

    def end(self) -> None:
        """Begin no further turn, wait for those under way, and leave the lease to whoever comes next."""
        for doing in self._doings:
            doing.end()  # all of them, before any is waited for
        if all(doing.end(_LEAVE_S) for doing in self._doings):
            self.controller.leave()

    def _see_to_collectors(self) -> None:
        """Nodes come and go, and collectors may hang: see to them beside the rollout, which must not wait for that."""
        served = self._glimpse is not None and self._glimpse.order >= (0, 0)
        if served and not all_answer(self._name):
            ensure_collectors(self._text, self._project, monitor_name(self._name))

    def _tell(self) -> None:
        """Tell live replicas what is wanted as soon as it is saved, whoever saved it and whatever a tick is busy with:
        an operator's `abort` must not wait for an analysis."""
        if self._glimpse is None or self._glimpse.order <= self._told:
            return
        with self._store.read() as tx:
            row = tx.serving(self._name)
        wanted = Wanted.of(row) if row else Wanted()
        if wanted.order > self._told and replica_status(self._name, wanted):
            self._told = wanted.order


class RunningController:
    """Runs the controllers of all projects of a state database. Plain class; `ControllerActor` is the same on Ray."""

    def __init__(self, text: str, dashboard: str) -> None:
        """Args: text: of `portable_storage`. dashboard: of the cluster."""
        self._text, self._dashboard = text, dashboard
        self._store = Store.open(parse_storage(text, env=os.environ).state)
        self._busy = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._leaving: dict[str, threading.Thread] = {}
        self._refused: dict[str, str] = {}  # hashes of project files that this process cannot read
        keep_doing(self.glance, every_s=_GLANCE_S, what="controller, looking out for projects")

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def text(self) -> str:
        """The storage that this actor was made with."""
        return self._text

    def projects(self) -> list[str]:
        """Names of the projects that are under way."""
        return sorted(self._running)

    def tick(self, project: str) -> dict[str, Any]:
        """One look at a project, at once. Returns: see `Controller.tick`. Raises: DataError when it is not up."""
        if project not in self._running:
            self.glance()
        running = self._running.get(project)
        if running is None:
            raise DataError(project, "is not up on this cluster; run `mlops-ray up`")
        return running.controller.tick()

    def glance(self) -> None:
        """Agree with the state database on which projects there are, and see what has changed. A database tells nobody
        that it has."""
        with self._busy:
            with self._store.read() as tx:
                seen = tx.glimpses()
                changed = [
                    name
                    for name, glimpse in seen.items()
                    if self._refused.get(name) != glimpse.config_sha256
                    and (name not in self._running or self._running[name].sha256 != glimpse.config_sha256)
                ]
                texts = {name: tx.project_text(name) for name in changed}
            for name in [name for name in self._running if name not in seen]:
                self._end(name)
            for name, glimpse in seen.items():
                if name in texts:
                    self._begin(name, texts[name] or "", glimpse.config_sha256)
                if name in self._running:
                    self._running[name].see(glimpse)

    def let_go(self, project: str) -> None:
        """Wait until nothing is under way for a project that was taken out of the state database."""
        self.glance()
        if (leaving := self._leaving.pop(project, None)) is not None:
            leaving.join(2 * _LEAVE_S)

    def _begin(self, name: str, text: str, sha256: str) -> None:
        self._end(name)
        try:
            self._running[name] = _Running(text, sha256, self._store, self._dashboard)
        except Exception as exc:  # noqa: BLE001 - the other projects go on; said once, until the file is another
            self._refused[name] = sha256
            _log.error("%s is not under way: %s", name, exc)

    def _end(self, name: str) -> None:
        """In a thread of its own: a turn that hangs must not hold up the other projects."""
        if (running := self._running.pop(name, None)) is not None:
            leaving = threading.Thread(target=running.end, name=f"controller of {name}, leaving", daemon=True)
            self._leaving[name] = leaving
            leaving.start()


ControllerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RunningController)


def controller_name(store: Store) -> str:
    """Name of the controller of a state database in our namespace."""
    return f"controller:{hashlib.blake2b(store.name.encode(), digest_size=4).hexdigest()}"


def let_go(store: Store, project: str) -> None:
    """Nothing is under way for a project that was taken out of the state database; with the last one the controller
    ends."""
    with store.read() as tx:
        others = tx.glimpses()
    if not others:
        end_actor(controller_name(store))
        return
    with contextlib.suppress(ValueError, ray.exceptions.RayActorError):  # none runs, so nothing is under way
        ray.get(ray.get_actor(controller_name(store), NAMESPACE).let_go.remote(project))


def former_controller_name(project: str) -> str:
    """What the controller of a project was called while each had its own; `up` puts the new one in its place."""
    return f"controller:{project}"
