"""What `up` finds that others have left behind, and a cluster that it joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster import processes
from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable
from tests import fakes

# Listens on a port until it is killed; says when.
LISTENER = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
time.sleep(600)
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> object:
    """Starts listeners, and ends those that a test has left."""
    running: list[subprocess.Popen[str]] = []

    def listen(port: int, mark: str | None, *, title: str = sys.executable) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if k != processes.MARK} | ({processes.MARK: mark} if mark else {})
        process = subprocess.Popen(
            [title, "-c", LISTENER, str(port)], env=env, stdout=subprocess.PIPE, text=True, executable=sys.executable
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield listen
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def project(tmp_path: Path, port: int) -> Project:
    return fakes.project(storage={"root": str(tmp_path / "root")}, cluster={"http_port": port})


def test_what_a_dead_cluster_of_ours_has_left_on_the_port_is_ended(start: Start) -> None:
    port = processes.free_port()
    orphan, sibling = start(port, "gone"), start(processes.free_port(), "gone")
    assert processes.end_orphans(port) == 2
    assert orphan.poll() is not None
    assert sibling.poll() is not None
    processes.demand_free(port, "127.0.0.1", "cluster.http_port")


def test_what_lives_or_is_not_ours_is_named_and_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    port = processes.free_port()
    others = start(port, None)
    assert processes.end_orphans(port) == 0
    with pytest.raises(BackendUnavailable, match=rf"\(process {others.pid}\).*another `cluster.http_port`"):
        processes.demand_free(port, "127.0.0.1", "cluster.http_port")
    other_port = processes.free_port()
    theirs = start(other_port, "alive")
    monkeypatch.setattr(processes, "lives", lambda mark: mark == "alive")
    assert processes.end_orphans(other_port) == 0
    with pytest.raises(BackendUnavailable, match=rf"process {theirs.pid}\) of the running cluster alive"):
        processes.demand_free(other_port, "127.0.0.1", "cluster.http_port")
    assert others.poll() is None
    assert theirs.poll() is None


def test_down_ends_what_a_killed_up_has_left(start: Start, tmp_path: Path) -> None:
    mine = project(tmp_path, processes.free_port())
    half = cluster.Cluster("half", "127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1", str(tmp_path / "ray"))
    cluster._write_down(mine, half, complete=False)
    left = start(processes.free_port(), "half")
    assert cluster.find(mine) is None
    assert cluster.stop(mine) == 1
    assert left.poll() is not None
    assert cluster.stop(mine) == 0


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_an_up_that_is_killed_half_way_is_cleared_away_by_down(tmp_path: Path) -> None:
    mine = project(tmp_path, processes.free_port())
    script = "import sys; from mlops_ray.cluster import on_ray; from mlops_ray.config import Project\n"
    script += "on_ray.start(Project.model_validate_json(sys.argv[1]))\n"
    body = mine.model_dump_json(exclude_unset=True)
    starting = subprocess.Popen([sys.executable, "-c", script, body], start_new_session=True)
    record = tmp_path / "root" / "cluster.json"
    while not record.exists() or not processes.marked(json.loads(record.read_text(encoding="utf-8"))["id"]):
        assert starting.poll() is None
        time.sleep(0.05)
    starting.kill()
    starting.wait()
    found = json.loads(record.read_text(encoding="utf-8"))
    assert found["complete"] is False
    assert cluster.stop(mine) > 0
    assert processes.marked(found["id"]) == []
    assert not Path(found["temp_dir"]).exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_cluster_whose_processes_are_killed_leaves_no_port(tmp_path: Path) -> None:
    """The node manager killed: all that hangs on it goes by itself, HAProxy too; there is no `down`."""
    from ray import serve

    mine = project(tmp_path, processes.free_port())
    started = cluster.start(mine)
    try:
        with cluster.connected(mine):
            assert cluster.lacking() == ()
            serve.start(http_options={"host": "127.0.0.1", "port": mine.cluster.http_port})
        deadline = time.monotonic() + 30
        while not processes.holders(mine.cluster.http_port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for process in processes.marked(started.id):
            if process.name() in ("raylet", "gcs_server"):
                process.kill()
        while processes.holders(mine.cluster.http_port):
            assert time.monotonic() < deadline + 30
            time.sleep(0.1)
        processes.demand_free(mine.cluster.http_port, "127.0.0.1", "cluster.http_port")
    finally:
        cluster.stop(mine)


@pytest.mark.ray
def test_a_cluster_that_was_started_without_the_fast_modes_is_found_out(ray_local: None) -> None:
    assert cluster.lacking() == ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
