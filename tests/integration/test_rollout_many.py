"""One controller for many projects, which come, go and change while it runs; no cluster runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray.cluster import background
from mlops_ray.cluster.background import Doing
from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.rollout import on_ray
from mlops_ray.rollout.on_ray import RunningController
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store
from tests import fakes
from tests.fakes import eventually, held


class World:
    """What the controllers of projects did, and replicas heard. A turn of `hangs` never ends, one of `raises` fails."""

    def __init__(self) -> None:
        self.turns: dict[str, int] = {}
        self.heard: dict[str, tuple[int, int]] = {}
        self.left: list[str] = []
        self.go_on = threading.Event()
        world = self

        class Controller:
            pause_s = 0.01

            def __init__(self, project: Project, store: Store, dashboard: str) -> None:
                self.name, self.alpha = project.project, project.rollout.alpha

            def turn(self) -> None:
                if self.name == "hangs":
                    world.go_on.wait(60.0)
                if self.name == "raises":
                    raise OSError("the store is away")
                world.turns[self.name] = world.turns.get(self.name, 0) + 1

            def tick(self) -> dict[str, Any]:
                return {"alpha": self.alpha}

            def leave(self) -> None:
                world.left.append(self.name)

        self.controller = Controller

    def replica_status(self, project: str, wanted: Wanted) -> list[dict[str, Any]]:
        self.heard[project] = wanted.order
        return [{}]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = World()
    monkeypatch.setattr(on_ray, "Controller", found.controller)
    monkeypatch.setattr(on_ray, "replica_status", found.replica_status)
    monkeypatch.setattr(on_ray, "all_answer", lambda project: True)
    doings: list[Doing] = []

    def keep_doing(*args: Any, **named: Any) -> Doing:
        doings.append(background.keep_doing(*args, **named))
        return doings[-1]

    monkeypatch.setattr(on_ray, "keep_doing", keep_doing)
    yield found
    found.go_on.set()
    assert all(doing.end(30.0) for doing in doings)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


def save(store: Store, name: str, **blocks: Any) -> None:
    text = yaml.safe_dump(fakes.project(project=name, **blocks).model_dump(mode="json", exclude_unset=True))
    with store.begin() as tx:
        tx.save_project(name, text, 0.0)
        tx.save_serving(name, Wanted(stable=held(1)).spec(), 0)


def test_one_that_hangs_or_raises_holds_up_no_other(world: World, store: Store, tmp_path: Path) -> None:
    for name in ("hangs", "raises", "well"):
        save(store, name)
    running = RunningController(f"storage: {{root: {tmp_path}}}", "http://127.0.0.1:1")
    eventually(lambda: world.turns.get("well", 0) > 3)
    assert running.projects() == ["hangs", "raises", "well"]
    eventually(lambda: world.heard.keys() == {"hangs", "raises", "well"})
    with store.begin() as tx:
        tx.save_serving("hangs", Wanted(stable=held(2)).spec(), 0)
    eventually(lambda: world.heard["hangs"] == (0, 2))  # replicas hear of it while its look hangs


def test_projects_come_change_and_go_while_it_runs(world: World, store: Store, tmp_path: Path) -> None:
    running = RunningController(f"storage: {{root: {tmp_path}}}", "http://127.0.0.1:1")
    with pytest.raises(DataError, match="is not up on this cluster"):
        running.tick("late")
    save(store, "late", rollout={"alpha": 0.05})
    assert running.tick("late") == {"alpha": 0.05}
    save(store, "late", rollout={"alpha": 0.01})
    eventually(lambda: running.tick("late") == {"alpha": 0.01})
    eventually(lambda: world.left == ["late"])  # the one with the former file left its lease
    store.run(lambda tx: tx.forget_project("late"))
    running.let_go("late")
    assert running.projects() == []
    assert world.left == ["late", "late"]


def test_a_file_that_this_process_cannot_read_stops_no_other(
    world: World, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.run(lambda tx: tx.save_project("odd", "project: ${NOWHERE_TO_BE_FOUND}", 0.0))
    save(store, "well")
    running = RunningController(f"storage: {{root: {tmp_path}}}", "http://127.0.0.1:1")
    eventually(lambda: world.turns.get("well", 0) > 0)
    running.glance()
    assert running.projects() == ["well"]
    assert caplog.text.count("NOWHERE_TO_BE_FOUND is not set") == 1
