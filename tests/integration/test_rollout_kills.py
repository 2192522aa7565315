"""`kill -9` of a controller's process at each of its steps, on SQLite and PostgreSQL, and a process that stands still.

The stories are those of `test_rollout_faults`. The controller lives in a process of its own, which asks this one for
what Serve and the registry say and what time it is, and says where it is; this one kills or stops it there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops_ray.rollout import on_project
from mlops_ray.rollout.on_project import Controller, Point
from mlops_ray.state import Store
from tests.integration import test_rollout_faults as faults
from tests.integration.test_rollout_faults import ENDS, STORIES, Count, Killed, Run, fill, kill_at, project_of, seen_by
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]

template = faults.template
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([faults.__name__])


def live(name: str, storage: dict[str, str], conn: Connection) -> None:
    """The controller's process: ticks when it is told to."""

    def ask(what: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            # Stores do not travel; what the world needs of the state database it reads itself.
            conn.send(("call", what, tuple(a for a in args if not isinstance(a, Store)), named))
            return conn.recv()

        return call

    def fault(point: Point) -> None:
        conn.send(("point", point))
        conn.recv()

    project = project_of(STORIES[name], storage)
    patched: Any = on_project
    patched.replica_status = ask("replica_status")
    patched.application_states = ask("application_states")
    patched.try_apply = ask("try_apply")
    patched.live_replicas = lambda dashboard, application: frozenset({"one"})
    patched.Registry = lambda *_: SimpleNamespace(
        alias=ask("alias"), set_alias=ask("set_alias"), delete_alias=ask("delete_alias")
    )
    patched.time = SimpleNamespace(time=ask("time"), monotonic=ask("time"))
    patched.look = lambda store, project, row, plan, at, **_: seen_by(STORIES[name], row, at)
    controller = Controller(project, Store.open(project.storage.state), "http://127.0.0.1:1", fault=fault)
    while conn.recv() == "tick":
        conn.send(("ticked", controller.tick()))


class Process:
    """A controller in a process of its own, as `Run` takes one."""

    def __init__(self, run: ProcessRun, fault: Callable[[Point], None]) -> None:
        self._run, self._fault = run, fault
        self._conn, theirs = _FORKS.Pipe()
        self.process = _FORKS.Process(target=live, args=(run.name, run.storage, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def tick(self) -> dict[str, Any]:
        self._conn.send("tick")
        while True:
            kind, *said = self._conn.recv()
            if kind == "ticked":
                return dict(said[0])
            if kind == "call":
                what, args, named = said
                self._conn.send(self._run.answer(what, args, named))
                continue
            try:
                self._fault(said[0])
            except Killed:
                self.kill()
                raise
            self._conn.send("go on")

    def kill(self) -> None:
        """As `kill -9` does."""
        pid = self.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL
        self._conn.close()


class ProcessRun(Run):
    """A story that is told by controllers in processes of their own."""

    def __init__(self, name: str, storage: dict[str, str], template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(STORIES[name], template, Path(storage["root"]), monkeypatch)
        self.name, self.storage = name, storage
        self.processes: list[Process] = []
        self.project = project_of(STORIES[name], storage)
        self.store.close()
        self.store = Store.open(self.project.storage.state)

    def controller(self, fault: Callable[[Point], None]) -> Any:
        self.processes.append(Process(self, fault))
        return self.processes[-1]

    def answer(self, what: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the world says."""
        world = self.world
        if what == "try_apply":
            return world.try_apply(self.store, *args, **named)
        if what in ("alias", "set_alias", "delete_alias"):
            return getattr(world.registry(self.project, self.store), what)(*args)
        return getattr(world, what)(*args, **named)

    def tell(self, fault: Callable[[Point], None]) -> dict[str, Any]:
        try:
            return super().tell(fault)
        finally:
            for process in self.processes:
                if process.process.is_alive():
                    process.kill()


@pytest.fixture(params=["sqlite", "postgres"])
def make(
    request: pytest.FixtureRequest, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ProcessRun]:
    made = 0

    def run(name: str) -> ProcessRun:
        nonlocal made
        made += 1
        storage = {"root": str(tmp_path / f"run{made}")}
        if request.param == "postgres":
            server: Postgres = request.getfixturevalue("postgres")
            storage["state_url"] = server.new_database()
            fill(storage["state_url"])
        return ProcessRun(name, storage, template, monkeypatch)

    return run


def undisturbed_run(
    name: str, template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[Point]]:
    """What is left behind where nobody dies, in this process, and where its controller came by."""
    count = Count()
    with monkeypatch.context() as patched:
        return Run(STORIES[name], template, folder, patched).tell(count), count.points


QUICK = ("shadow, ramp, approval, baking", "worse in the ramp")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STORIES]
)
def test_kill_9_at_each_step_loses_repeats_and_reorders_nothing(
    name: str,
    make: Callable[[str], ProcessRun],
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed, points = undisturbed_run(name, template, tmp_path / "calm", monkeypatch)
    assert (undisturbed["rollouts"][0][1]["phase"], undisturbed["answers"]) == ENDS[name]
    for point in Point:
        visits = [number for number, visited in enumerate(points) if visited is point]
        middle = visits[len(visits) // 2]
        run = make(name)
        assert run.tell(kill_at(middle)) == undisturbed, point
        assert len(run.processes) == 2


@pytest.mark.parametrize("stopped_at", [Point.DECIDING, Point.COMMITTED, Point.OBSERVED])
def test_a_process_that_stood_still_past_its_lease_writes_nothing(
    stopped_at: Point,
    make: Callable[[str], ProcessRun],
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGSTOP at a step; another controller takes over and acts; SIGCONT: the first finds that it is fenced."""
    name = "worse in the ramp"
    undisturbed, _ = undisturbed_run(name, template, tmp_path / "calm", monkeypatch)
    run, stops = make(name), []

    def fault(point: Point) -> None:
        if point is not stopped_at or stops:
            return
        stops.append(point)
        pid = run.processes[0].process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        run.world.machine_s += 25.0
        other = run.controller(lambda _: None)
        for _ in range(3):
            other.tick()
        run.world.machine_s += 25.0
        os.kill(pid, signal.SIGCONT)

    assert run.tell(fault) == undisturbed
    assert stops
    assert len(run.processes) == 2
