"""Collectors as actors: started on every node, killed, stopped, adopted; the log has every row once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import yaml

from mlops_ray.cluster.on_ray import NAMESPACE, end_actor
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.folding import fold
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.on_collector import Collector, alive_nodes
from mlops_ray.serving.places import log_uri, spool_folder, spool_root
from mlops_ray.serving.records import Watermark
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.state import Store
from tests import fakes
from tests.fakes import eventually
from tests.spooling import scored

pytestmark = pytest.mark.ray

BINS = Bins({"x": (0.0, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red",), "d": ("blue",)})


class Known(Collector):
    """A collector of a project without a registered version: its bins are ours."""

    def _known_bins(self) -> Bins:
        return BINS


class Folder:
    """The monitor's part that collectors talk to."""

    def __init__(self, url: str, project: str) -> None:
        self._store, self._project = Store.open(url), project

    def push(self, pushed: Mapping[str, Any]) -> bool:
        return self._store.run(lambda tx: fold(tx, self._project, pushed, time.time()))


class World:
    """A project with collectors on the cluster that this process has joined."""

    def __init__(self, root: Path, name: str) -> None:
        plan = {"commit_s": 0.2, "commit_idle_s": 600.0}
        self.project: Project = fakes.project(project=name, storage={"root": str(root)}, capture=plan)
        self.text = yaml.safe_dump(self.project.model_dump(mode="json"))
        self.store = Store.open(self.project.storage.state)
        self.monitor = f"monitor of {name}"
        kind = ray.remote(num_cpus=0, max_restarts=-1)(Folder)
        options = {"name": self.monitor, "namespace": NAMESPACE, "lifetime": "detached"}
        self._actor = kind.options(**options).remote(self.project.storage.state, name)  # type: ignore[call-overload]

    def ensure(self) -> dict[str, int]:
        return on_collectors.ensure_collectors(self.text, self.project, self.monitor)

    def rows(self) -> Counter[str]:
        found = lake.scan(log_uri(self.project), "1970-01-01", "2100-01-01", log.prediction_schema(self.project))
        return Counter(found["prediction_id"].to_pylist())

    def watermark(self) -> float:
        with self.store.read() as tx:
            return tx.cursor(self.project.project, "watermark").at

    def close(self) -> None:
        on_collectors.end_collectors(self.project.project)
        end_actor(self.monitor)
        self.store.close()


@pytest.fixture
def world(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(on_collectors, "Collector", Known)
    monkeypatch.setattr(on_collectors, "_PING_S", 3.0)
    made = World(tmp_path, "collected")
    yield made
    made.close()


def test_a_collector_is_started_flushed_killed_stopped_and_takes_along_what_nobody_owns(world: World) -> None:
    ((name, pid),) = world.ensure().items()
    (node,) = alive_nodes()
    assert name == on_collectors.collector_name("collected", node)
    mine, orphan = spool_folder(world.project, node), spool_folder(world.project, "of-a-dead-cluster")
    capture, old = Capture(world.project, mine, None), Capture(world.project, orphan, None)
    old.append(scored("old", 2))
    old.close()
    capture.append(scored("a", 2, times=np.full(2, 9e8)))
    capture.append(Watermark(2e9, 1e9))
    on_collectors.flush("collected")
    assert world.rows() == Counter(["a:0", "a:1", "old:0", "old:1"])
    assert world.watermark() == 1e9
    assert sorted(path.name for path in spool_root(world.project).iterdir()) == [node]
    assert world.ensure() == {name: pid}

    os.kill(pid, signal.SIGKILL)
    capture.append(scored("b"))
    on_collectors.flush("collected")
    assert world.rows()["b:0"] == 1
    again = world.ensure()[name]
    assert again != pid

    os.kill(again, signal.SIGSTOP)  # it keeps its lock, and answers neither pings nor Ray's own kill
    assert spool.owner(mine) == spool.Owner(again, node)
    capture.append(scored("c"))
    assert world.ensure()[name] not in (pid, again)
    assert not psutil.pid_exists(again) or psutil.Process(again).status() == psutil.STATUS_ZOMBIE
    on_collectors.flush("collected")
    assert world.rows() == Counter(["a:0", "a:1", "old:0", "old:1", "b:0", "c:0"])
    capture.close()


def test_a_mark_of_time_makes_an_idle_collector_pass(world: World) -> None:
    """Little is committed after `commit_idle_s`, ten minutes here; a watermark that waits for this node is a reason."""
    world.ensure()
    (node,) = alive_nodes()
    name = world.project.project
    eventually(lambda: world.store.run(lambda tx: tx.cursor(name, f"passed:{node}").number >= 0))
    world.store.run(lambda tx: tx.save_cursor(name, "pending", 0, 1e9))  # as another node's collector has pushed it
    eventually(lambda: world.watermark() == 1e9, within_s=20)


def test_much_is_committed_without_being_asked(world: World) -> None:
    world.ensure()
    (node,) = alive_nodes()
    capture = Capture(world.project, spool_folder(world.project, node), None)
    for i in range(40):
        capture.append(scored(f"r{i}", 1000))
    eventually(lambda: world.rows().total() == 40_000, within_s=30)
    capture.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_nodes_one_of_which_dies(tmp_path: Path) -> None:
    """In a process of its own: a cluster of two nodes needs a Ray that nobody else has joined."""
    script = Path(__file__).with_name("two_nodes.py")
    root = str(Path(__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": root, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "root")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "all well"
