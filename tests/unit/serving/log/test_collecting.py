from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.folding import fold
from mlops_ray.serving.log import collecting
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.collecting import Drain
from mlops_ray.serving.log.maintenance import Maintenance
from mlops_ray.serving.places import labels_uri, log_uri, shadow_uri, spool_folder, uncaptured_uri, values_uri
from mlops_ray.serving.records import Shadowed, Uncaptured, Watermark
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.state import Store
from tests import fakes
from tests.spooling import labelled, scored, trial

BINS = Bins({"x": (0.0, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red",), "d": ("blue",)})
ALWAYS = ("1970-01-01", "2100-01-01")


class World:
    """A project's spool, state database and log, and what collects them."""

    def __init__(self, root: Path, node: str = "n1", **plan: Any) -> None:
        self.project: Project = fakes.project(storage={"root": str(root)}, capture=plan)
        self.store = Store.open(self.project.storage.state)
        self.folder = spool_folder(self.project, node)
        self.node = node
        spool.private_folder(self.folder)
        self.now = 2e9

    def push(self, pushed: Mapping[str, Any]) -> bool:
        return self.store.run(lambda tx: fold(tx, self.project.project, pushed, self.now))

    def drain(self) -> Drain:
        return Drain(self.project, self.folder, self.store, self.push, lambda: BINS, lambda: self.now)

    def record(self, *records: Any) -> None:
        capture = Capture(self.project, self.folder, None)
        assert all(capture.append(r) for r in records)
        capture.close()

    def collect(self, *alive: str) -> None:
        """A pass as the collector makes it."""
        name = self.project.project
        with self.store.read() as tx:
            pending = tx.cursor(name, collecting.PENDING).at
        drain = self.drain()
        if drain.run()[1]:
            drain.say_passed({"node": self.node, "passed": pending, "nodes": alive or (self.node,)})

    def rows(self, column: str = "prediction_id") -> list[Any]:
        schema = log.prediction_schema(self.project)
        found: list[Any] = lake.scan(log_uri(self.project), *ALWAYS, schema)[column].to_pylist()
        return found

    def labels(self) -> list[str]:
        schema = log.label_schema(self.project)
        found: list[str] = lake.scan(labels_uri(self.project), *ALWAYS, schema)["prediction_id"].to_pylist()
        return found

    def values(self) -> list[tuple[str, str, float]]:
        found = lake.scan(values_uri(self.project), *ALWAYS, log.VALUES_SCHEMA).to_pylist()
        return sorted((row["prediction_id"] or row["key"], row["name"], row["value"]) for row in found)

    def profiled(self) -> int:
        with self.store.read() as tx:
            return sum(body["n"] for _, _, body in tx.profiles(self.project.project, 0, 4e9))

    def watermark(self) -> float:
        with self.store.read() as tx:
            return tx.cursor(self.project.project, "watermark").at

    def uncaptured(self) -> dict[str, int]:
        found = lake.scan(uncaptured_uri(self.project), *ALWAYS, log.UNCAPTURED_SCHEMA).to_pylist()
        return {row["why"]: row["n_rows"] for row in found}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_pass_fills_every_table_and_the_profiles_and_empties_the_spool(world: World) -> None:
    shadow = Shadowed("a", 2e9, 10, np.array([0.5]), trial([0], [0.6]))
    told = labelled(("a:0", "", 1.0, 5.0), ("", "k1", np.nan, 6.0), revenue=[12.5, 2.0])
    world.record(scored("a", 3), told, shadow, Uncaptured(2e9, "shadow", 4))
    world.record(scored("b", 2))
    drain = world.drain()
    assert drain.run() == (1, True)
    assert sorted(world.rows()) == ["a:0", "a:1", "a:2", "b:0", "b:1"]
    assert world.labels() == ["a:0"]
    assert world.values() == [("a:0", "revenue", 12.5), ("k1", "revenue", 2.0)]
    assert world.uncaptured() == {"shadow": 4}
    found = lake.scan(shadow_uri(world.project), *ALWAYS, log.shadow_schema(world.project))
    assert found["prediction_id"].to_pylist() == ["a:0"]
    assert world.profiled() == 5
    assert spool.claimed(world.folder) == []
    version = lake.committed(log_uri(world.project), drain.id)
    assert drain.run() == (1, True)  # nothing came: nothing happens
    assert lake.committed(log_uri(world.project), drain.id) == version


def test_segments_of_a_pass_are_as_large_as_memory_allows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_PASS_BYTES", 1)
    pushed: list[Mapping[str, Any]] = []
    monkeypatch.setattr(world, "push", lambda p: pushed.append(p) or World.push(world, p))
    for name in "abc":
        world.record(scored(name))
    assert world.drain().run() == (2, True)
    assert [(p["base"], p["number"]) for p in pushed] == [(-1, 0), (0, 1), (1, 2)]
    assert sorted(world.rows()) == ["a:0", "b:0", "c:0"]


def test_a_request_of_two_replicas_and_two_nodes_is_recorded_once(tmp_path: Path) -> None:
    here, there = World(tmp_path), World(tmp_path, "n2")
    here.record(scored("a", 2, at=10.0, scores=np.array([0.1, 0.2]), repeatable=True))
    here.record(scored("a", 2, at=20.0, scores=np.array([0.3, 0.4]), repeatable=True), scored("b"))
    there.record(scored("a", 2, at=30.0, repeatable=True), scored("c", repeatable=True))
    here.collect()
    there.collect()
    here.record(scored("a", 2, at=40.0, repeatable=True))  # a replica that has forgotten it
    here.collect()
    assert Counter(here.rows()) == Counter(["a:0", "a:1", "b:0", "c:0"])
    assert sorted(here.rows("stable_score")) == pytest.approx([0.1, 0.1, 0.3, 0.4])
    assert here.profiled() == 4
    for each in (here, there):
        each.store.close()


def test_a_damaged_segment_is_kept_aside_and_holds_up_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.record(scored("a"), scored("b"), scored("c"))
    (file,) = world.folder.glob("*.open")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    world.record(scored("d"))
    assert world.drain().run()[1]
    assert sorted(world.rows()) == ["a:0", "c:0", "d:0"]
    (aside,) = world.folder.glob("*.bad")
    assert aside.read_bytes() == bytes(data)
    assert "damaged" in caplog.text
    assert spool.claimed(world.folder) == []


def test_records_that_fit_no_table_are_kept_aside(world: World) -> None:
    world.record(scored("a", scores=np.array([[0.2, 0.8]])))  # of a task with classes
    world.record(scored("b"))
    world.drain().run()
    assert world.rows() == ["b:0"]
    assert len(list(world.folder.glob("*.bad"))) == 1


def test_a_torn_tail_was_never_acknowledged_and_alarms_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.record(scored("a"), scored("b"))
    (file,) = world.folder.glob("*.open")
    os.truncate(file, file.stat().st_size - 5)
    world.drain().run()
    assert world.rows() == ["a:0"]
    assert list(world.folder.glob("*.bad")) == []
    assert caplog.text == ""


def test_a_store_that_is_away_stops_nothing_and_loses_nothing(world: World) -> None:
    capture = Capture(world.project, world.folder, None)
    assert capture.append(scored("a"))
    away = Path(world.project.storage.path("log"))
    away.write_text("in the way")
    drain = world.drain()
    for name in "bcd":
        with pytest.raises(Exception, match=r"(?i)not a directory|file exists|in the way|delta|generic"):
            drain.run()
        assert capture.append(scored(name))
    files = list(world.folder.glob("*.open")) + spool.claimed(world.folder)
    assert len(files) == 2  # one claimed and tried again, one open: it grows by bytes and not by files
    away.unlink()
    drain.run()
    assert sorted(world.rows()) == ["a:0", "b:0", "c:0", "d:0"]
    assert world.profiled() == 4
    capture.close()


def test_disk_durability_syncs_the_log_before_segments_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, durability="disk")
    world.record(scored("a"))
    there: list[int] = []
    monkeypatch.setattr(collecting.os, "sync", lambda: there.append(len(spool.claimed(world.folder))))
    world.drain().run()
    assert there == [1]
    world.store.close()


# --- killed at every step ---

COLLECTOR = """
import os, signal, sys
from pathlib import Path
from mlops_ray.data import lake
from mlops_ray.serving.spool import claims
from mlops_ray.serving.log import collecting
from mlops_ray.serving.spool import segments as spool
from tests.unit.serving.log.test_collecting import World
root, step, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def here():
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("stalled", flush=True)
    sys.stdin.readline()
def before(owner, name, when=lambda *a: True, after=False):
    real = getattr(owner, name)
    def wrapped(*args, **kwargs):
        if not when(*args): return real(*args, **kwargs)
        if after:
            found = real(*args, **kwargs)
            here()
            return found
        here()
        return real(*args, **kwargs)
    setattr(owner, name, wrapped)
world = World(root)
table = lambda name: lambda uri, *a: uri.endswith(name)
if step == "claimed": before(spool, "claim", after=True)
elif step == "ids claimed": before(claims, "claim", after=True)
elif step == "settled": before(collecting.Drain, "_settle", after=True)
elif step == "predictions": before(lake, "append_once", table("predictions"), after=True)
elif step == "labels": before(lake, "append_once", table("labels"), after=True)
elif step == "values": before(lake, "append_once", table("values"), after=True)
elif step == "before push": before(world, "push")
elif step == "after push": before(world, "push", after=True)
elif step == "one unlinked": before(Path, "unlink", after=True)
else: raise SystemExit(f"no step {step}")
try:
    world.drain().run()
except FileNotFoundError as exc:
    print("gone", exc.filename, flush=True)
print("done", flush=True)
"""
STEPS = [
    "claimed",
    "ids claimed",
    "settled",
    "predictions",
    "labels",
    "values",
    "before push",
    "after push",
    "one unlinked",
]


def collector(root: Path, step: str, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COLLECTOR, str(root), step, how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def traffic(world: World, start: int) -> tuple[Counter[str], Counter[str]]:
    """Three replicas' files; what must be in the log. One request came twice."""
    for k in range(3):
        many = [scored(f"r{start + k}-{i}", 2, repeatable=i % 2 == 0) for i in range(4)]
        world.record(
            *many,
            scored("twice", at=float(start + k), repeatable=True),
            labelled((f"r{start + k}-0:0", "", 1.0, 5.0), revenue=[7.0]),
        )
    ids = [f"r{start + k}-{i}:{row}" for k in range(3) for i in range(4) for row in range(2)]
    return Counter(ids), Counter(f"r{start + k}-0:0" for k in range(3))


def steps(*quick: str) -> list[Any]:
    """All steps; those beyond the quick ones only among the slow tests, since each starts a process."""
    return [step if step in quick else pytest.param(step, marks=pytest.mark.slow) for step in STEPS]


@pytest.mark.parametrize(
    "step", steps("ids claimed", "predictions", "labels", "before push", "after push", "one unlinked")
)
def test_a_collector_killed_at_any_step_loses_and_doubles_nothing(world: World, tmp_path: Path, step: str) -> None:
    ids, labels = traffic(world, 0)
    process = collector(tmp_path, step, "die")
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == -signal.SIGKILL
    more, more_labels = traffic(world, 10)  # traffic goes on meanwhile
    assert world.drain().run()[1]
    assert Counter(world.rows()) == ids + more + Counter(["twice:0"])
    assert Counter(world.labels()) == labels + more_labels
    assert world.values() == [(name, "revenue", 7.0) for name in sorted(world.labels())]
    assert world.profiled() == len(world.rows())
    assert spool.claimed(world.folder) == []


@pytest.mark.parametrize("step", steps("settled", "before push"))
def test_a_collector_that_was_stopped_and_wakes_up_beside_another_doubles_nothing(
    world: World, tmp_path: Path, step: str
) -> None:
    """As if its lock had been lost: the lock keeps it from happening, and the commits do not depend on the lock."""
    ids, labels = traffic(world, 0)
    process = collector(tmp_path, step, "stall")
    assert process.stdout
    assert process.stdout.readline() == "stalled\n"
    os.kill(process.pid, signal.SIGSTOP)
    more, more_labels = traffic(world, 10)
    world.now += 100
    if step == "ids claimed":  # it holds the state database's write lock until it is dead: nobody can go on
        process.kill()
    assert world.drain().run()[1]
    if step != "ids claimed":
        os.kill(process.pid, signal.SIGCONT)
        said = process.communicate("\n" * 20, timeout=60)[0].splitlines()
        assert said[-1] == "done"
    process.communicate()
    assert world.drain().run()[1]
    assert Counter(world.rows()) == ids + more + Counter(["twice:0"])
    assert Counter(world.labels()) == labels + more_labels
    assert world.values() == [(name, "revenue", 7.0) for name in sorted(world.labels())]
    assert world.profiled() == len(world.rows())


# --- decision time ---


def test_a_watermark_counts_once_every_living_node_has_passed_it(tmp_path: Path) -> None:
    one, two = World(tmp_path, "n1"), World(tmp_path, "n2")
    for each in (one, two):
        each.collect("n1", "n2")  # both have come up
    one.record(Watermark(2e9, 1e9))
    one.collect("n1", "n2")
    assert one.watermark() == 0  # known; what lies in the other spool is not
    two.record(scored("late", times=np.array([9e8])))
    one.collect("n1", "n2")
    assert one.watermark() == 0
    two.collect("n1", "n2")
    assert one.watermark() == 1e9
    assert one.profiled() == 1
    for each in (one, two):
        each.store.close()


def test_a_pass_that_began_before_a_watermark_was_known_says_nothing_of_it(tmp_path: Path) -> None:
    one, two = World(tmp_path, "n1"), World(tmp_path, "n2")
    for each in (one, two):
        each.collect("n1", "n2")
    with two.store.read() as tx:
        pending = tx.cursor("small", collecting.PENDING).at
    one.record(Watermark(2e9, 1e9))
    for _ in range(2):
        one.collect("n1", "n2")
    drain = two.drain()
    drain.run()
    drain.say_passed({"node": "n2", "passed": pending, "nodes": ["n1", "n2"]})
    assert one.watermark() == 0
    two.collect("n1", "n2")
    assert one.watermark() == 1e9
    for each in (one, two):
        each.store.close()


def test_a_node_that_is_gone_holds_up_nobody_and_comes_late(tmp_path: Path) -> None:
    one, two = World(tmp_path, "n1"), World(tmp_path, "n2")
    for each in (one, two):
        each.collect("n1", "n2")
    two.record(scored("late", times=np.array([9e8])))
    one.record(Watermark(2e9, 1e9))
    for _ in range(2):
        one.collect("n1", "n2")
    assert one.watermark() == 0
    one.collect("n1")
    assert one.watermark() == 1e9
    two.collect("n1", "n2")
    assert one.rows() == ["late:0"]
    assert one.watermark() == 1e9
    for each in (one, two):
        each.store.close()


def test_events_move_time_as_watermarks_do_and_never_into_the_future(world: World) -> None:
    world.record(scored("a", 2, times=np.array([5e8, 6e8])))
    world.collect()
    assert world.watermark() == 0
    world.collect()
    assert world.watermark() == 6e8
    world.record(scored("b", times=np.array([9e9])))
    for _ in range(2):
        world.collect()
    assert world.watermark() == world.now == 2e9


# --- housekeeping ---


def test_maintenance_merges_deletes_and_forgets(tmp_path: Path) -> None:
    world = World(tmp_path, keep_days=30)
    day = 86_400.0
    for i in range(10):
        request = scored(f"r{i}", 1, repeatable=True, times=np.array([1e9 - (100 * day if i % 2 else 0)]))
        world.record(request, labelled((f"r{i}:0", "", 1.0, 1e9), revenue=[float(i)]))
        world.collect()
    housekeeping = Maintenance(world.project, world.store, "me")
    assert housekeeping.run(2e9)["predictions"] == {"days": 0, "merged": 0, "removed": 0}  # no decision time yet
    world.store.run(lambda tx: tx.save_cursor("small", "decision time", 0, 1e9 + day))
    done = Maintenance(world.project, world.store, "other").run(2e9 + 10)
    assert (done["labels"]["merged"], done["values"]["merged"]) == (0, 0)  # the first turn has
    for i in range(10, 20):
        world.record(scored(f"r{i}", 1, times=np.array([1e9])))
        world.collect()
    done = housekeeping.run(2e9 + 20)
    assert done["predictions"]["merged"] == 15
    assert sorted(world.rows()) == sorted(f"r{i}:0" for i in range(20) if i % 2 == 0 or i >= 10)
    world.record(scored("r0", repeatable=True), scored("after"))
    world.collect()
    assert len(world.rows()) == 16  # the claim stands
    housekeeping.run(2e9 + 8 * day)
    world.record(scored("r0", repeatable=True))
    world.collect()
    assert len(world.rows()) == 17  # and was let go of
    world.store.close()


def test_one_process_keeps_house_at_a_time(world: World) -> None:
    world.record(scored("a"))
    world.collect()
    lease = world.store.acquire("log:small", "somebody", 900.0, 2e9)
    mine = Maintenance(world.project, world.store, "me")
    assert mine.run(2e9 + 1) == {}
    world.store.release(lease)
    assert set(mine.run(2e9 + 2)) == {"predictions"}
