"""A controller in a process of its own, which SIGKILL ends, or SIGSTOP halts, at its fault points.

The process says over a pipe where it is and waits; Serve, the registry and the clock stay with the test and go on.
What a rollout leaves behind must be as if nothing had happened to its controller.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest

from mlops_ray.rollout.canary import Move
from mlops_ray.rollout.on_project import Controller, Point
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store
from tests.postgres import Postgres, postgres
from tests.rollouts import (
    DAY,
    OPEN,
    PASS,
    STORIES,
    Count,
    Killed,
    Run,
    Story,
    World,
    begin,
    furnish,
    give,
    kill_at,
    project_of,
    stand_in,
)

__all__ = ["postgres"]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.rollouts"])

TOLD = {
    "promoted": Story({"bake_s": DAY}, {0: PASS}, {0: begin(2)}, days=6),
    "rolled back on evidence": STORIES["worse in the ramp"],
    "aborted in the ramp": Story({}, {0: OPEN}, {0: begin(2), 2: give(Move.ABORT)}, days=4),
}
ENDS = {
    "promoted": ("promoted", 2),
    "rolled back on evidence": ("rolled back", 1),
    "aborted in the ramp": ("aborted", 1),
}


class WorldAfar(World):
    """The world of another process, asked over a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ask(self, what: str, *args: Any) -> Any:
        self._pipe.send((what, *args))
        return self._pipe.recv()

    def time(self) -> float:
        return cast(float, self.ask("time"))

    def replica_status(self, project: str, wanted: Wanted) -> list[dict[str, Any]]:
        return cast(list[dict[str, Any]], self.ask("replica_status", project, wanted))

    def application_states(self, dashboard: str) -> dict[str, tuple[str, str]]:
        return cast(dict[str, tuple[str, str]], self.ask("application_states", dashboard))

    def alias(self, name: str) -> int | None:
        return cast(int | None, self.ask("alias", name))

    def set_alias(self, name: str, version: int) -> None:
        self.ask("set_alias", name, version)

    def delete_alias(self, name: str) -> None:
        self.ask("delete_alias", name)


def live(pipe: Connection, story: Story, root: Path, state: str) -> None:
    """What the process does: a tick whenever it is asked for one."""
    world, project = WorldAfar(pipe), project_of(story, root, state)
    stand_in(world, story, setattr)
    controller = Controller(
        project, Store.open(state), "http://127.0.0.1:1", fault=lambda point: world.ask("at", point)
    )
    while pipe.recv():
        pipe.send(("told", controller.tick()))


class Apart:
    """A controller in a process of its own."""

    def __init__(self, run: Run, root: Path, fault: Callable[[Point], None]) -> None:
        self._world, self._fault = run.world, fault
        self._pipe, there = PROCESSES.Pipe()
        story = replace(run.story, ordered={})  # people's orders come from the test
        self._process = PROCESSES.Process(
            target=live, args=(there, story, root, run.project.storage.state), daemon=True
        )
        self._process.start()
        there.close()

    def tick(self) -> dict[str, Any]:
        """As `Controller.tick`. Raises: Killed, when `fault` does; the process is dead by then."""
        self._pipe.send(True)
        while (said := self._pipe.recv())[0] != "told":
            what, *args = said
            if what == "at":
                self._come_by(args[0])
                self._pipe.send(None)
            else:
                self._pipe.send(getattr(self._world, what)(*args))
        return cast(dict[str, Any], said[1])

    def _come_by(self, point: Point) -> None:
        try:
            self._fault(point)
        except Killed:
            self.kill()
            raise

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


class RunApart(Run):
    """A story whose controllers live in processes of their own, on the state database at `state`."""

    def __init__(self, story: Story, root: Path, state: str) -> None:
        super().__init__(story, project_of(story, root, state))
        furnish(self.store)
        self._root, self.controllers = root, list[Apart]()

    def controller(self, fault: Callable[[Point], None]) -> Controller:
        self.controllers.append(Apart(self, self._root, fault))
        return cast(Controller, self.controllers[-1])

    def tell(self, fault: Callable[[Point], None]) -> dict[str, Any]:
        try:
            return super().tell(fault)
        finally:
            for controller in self.controllers:
                controller.kill()


Make = Callable[[Story], RunApart]


# test_rollout_faults.py tells the same stories to SQLite at every run.
@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[RunApart] = []

    def run(story: Story) -> RunApart:
        root = tmp_path / str(len(made))
        root.mkdir()
        if request.param == "postgresql":
            state = cast(Postgres, request.getfixturevalue("postgres")).new_database()
        else:
            state = f"sqlite:///{root / 'state.db'}"
        made.append(RunApart(story, root, state))
        return made[-1]

    yield run
    for one in made:
        one.store.close()


def kill_daily(run: RunApart, killed: set[tuple[float, Point]]) -> Callable[[Point], None]:
    """Kills at each point, once on each day of the story."""

    def fault(point: Point) -> None:
        with run.store.read() as tx:
            day = tx.cursor("small", "watermark").at
        if (day, point) not in killed:
            killed.add((day, point))
            raise Killed

    return fault


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "aborted" in name else name for name in TOLD]
)
def test_sigkill_at_each_point_loses_repeats_and_reorders_nothing(name: str, make: Make) -> None:
    undisturbed = make(TOLD[name]).tell(lambda _: None)
    assert (undisturbed["rollouts"][0][1]["phase"], undisturbed["answers"]) == ENDS[name]
    run, killed = make(TOLD[name]), set[tuple[float, Point]]()
    assert run.tell(kill_daily(run, killed)) == undisturbed
    assert {point for _, point in killed} == set(Point)
    assert len(run.controllers) == len(killed) + 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", STORIES)
def test_sigkill_at_each_visit_of_each_point(name: str, make: Make) -> None:
    count = Count()
    undisturbed = make(STORIES[name]).tell(count)
    for number, point in enumerate(count.points):
        assert make(STORIES[name]).tell(kill_at(number)) == undisturbed, (number, point)


@pytest.mark.parametrize("stalled_at", [Point.LEASED, Point.DECIDING, Point.OBSERVED, Point.ALIASING])
def test_a_holder_that_sigstop_halts_past_its_lease_writes_nothing(stalled_at: Point, make: Make) -> None:
    """Another process takes over and acts while it is halted; it goes on with what it knew before."""
    story = TOLD["rolled back on evidence"]
    undisturbed = make(story).tell(lambda _: None)
    run = make(story)
    halts: list[Point] = []

    def fault(point: Point) -> None:
        if point is not stalled_at or len(halts) == 3:
            return
        holder = run.controllers[0]
        holder.signal(signal.SIGSTOP)
        halts.append(point)
        run.world.machine_s += 25.0
        other = run.controllers[1] if halts[1:] else run.controller(lambda _: None)
        for _ in range(3):
            assert "is held by" not in str(other.tick()["trouble"])
        run.world.machine_s += 25.0  # its lease is over as well: what refuses the halted one is the fence alone
        holder.signal(signal.SIGCONT)

    assert run.tell(fault) == undisturbed
    assert halts
