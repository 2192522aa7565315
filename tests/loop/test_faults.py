"""What clients see under a steady load when a process of the cluster is killed, and what the log holds afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mlops_ray import verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster import processes
from mlops_ray.serving.on_apply import replica_status
from mlops_ray.serving.versions import Wanted
from mlops_ray.verbs import rollout as rollouts
from tests.load import Load, eventually, steady
from tests.loop.conftest import Live, brought_up, in_the_log, overlay
from tests.loop.test_live import ROW

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

RATE = 200.0


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[Live]:
    """The flights with two ingress replicas, and a second version to try."""
    paths = overlay(
        tmp_path_factory.mktemp("faults"),
        cluster={"http_port": processes.free_port(), "grpc_port": processes.free_port()},
        serving={"replicas": 2},
        capture={"commit_s": 1.0, "commit_idle_s": 2.0},
        rollout={"shares": [0.3, 0.5], "step_max_s": 1e9},
    )
    with brought_up(paths) as found:
        yield found


def ours(live: Live) -> list[psutil.Process]:
    found = cluster.find(live.project)
    assert found is not None
    return processes.marked(found.id)


def titled(live: Live, *titles: str) -> list[psutil.Process]:
    """The cluster's processes whose title holds one of these, oldest first."""
    found = []
    for process in ours(live):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone since it was listed
            words = " ".join([process.name(), *process.cmdline()])
            if any(title in words for title in titles):
                found.append((process.create_time(), process))
    return [process for _, process in sorted(found, key=lambda each: each[0])]


def kill(live: Live, *titles: str) -> int:
    """Kill -9 the oldest process with such a title; its process id."""
    process = titled(live, *titles)[0]
    process.kill()
    return int(process.pid)


INGRESS = "ServeReplica:flights:Ingress"
CANARY = ("ServeReplica:flights--v",)


def row(i: int) -> dict[str, Any]:
    return ROW | {"flight_key": f"flight-{i}"}


def run(live: Live, name: str, during: Callable[[], Any], **options: Any) -> Load:
    load = asyncio.run(steady(live.url, row, rate=RATE, name=name, during=during, **options))
    print(f"{name}: {dict(load.statuses)}, failed attempts {load.kinds()}, p99 {load.latency_s(0.99):.3f} s")
    return load


def replicas(live: Live) -> list[dict[str, Any]]:
    return replica_status("flights", Wanted())


def crowding() -> float:
    """By how much what takes a fraction of a second takes longer here: runnable processes per core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_nothing_but_loopback_listens(live: Live) -> None:
    with cluster.connected(live.project):
        mine = [psutil.Process(), *ours(live)]
        listening = {
            (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port): process.name()
            for process in mine
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN or (connection.type == 2 and not connection.raddr)
        }
    assert {live.project.cluster.http_port, live.project.cluster.grpc_port} <= {port for _, port in listening}
    assert len(listening) > 20
    assert {address: name for address, name in listening.items() if not address[0].startswith("127.")} == {}


def test_serves_own_proxy_answers_for_the_time_when_no_replica_lives(live: Live) -> None:
    (proxy,) = titled(live, "ray::ProxyActor")
    ports = [c.laddr.port for c in proxy.net_connections("tcp4") if c.status == psutil.CONN_LISTEN]
    answers = [httpx.post(f"http://127.0.0.1:{port}/flights/predict", json={"rows": [row(0)]}) for port in ports]
    assert [answer.status_code for answer in answers] == [200]


def kill_ingress(live: Live, n: int = 2) -> None:
    """Kill one of `n` replicas, and wait until there are `n` again, none of them still starting or on its way out."""

    def settled() -> bool:
        return len(titled(live, INGRESS)) == n and len(replicas(live)) == n

    eventually(settled, 60.0)
    time.sleep(1.5)  # HAProxy's reload: it tells nobody but Serve's actor when it has the new replica
    pid = kill(live, INGRESS)
    eventually(lambda: pid not in {p.pid for p in titled(live, INGRESS)} and settled(), 60.0)


def test_kill_9_of_what_serves_while_a_client_retries(live: Live) -> None:
    """No request fails for good, and each acknowledged one stands in the log once."""

    def during() -> None:
        for _ in range(3):
            kill_ingress(live)
        kill(live, "ray::Collector")
        kill(live, "ServeController")
        time.sleep(3.0)

    with cluster.connected(live.project):
        load = run(live, "kills", during)
    assert load.statuses == {"200": len(load.acknowledged)}
    in_the_log(live.project, load.acknowledged)


def test_haproxy_killed_is_replaced_at_once_and_its_port_is_never_lost(live: Live) -> None:
    """Its substitute takes the port within a fraction of a second, and hands it to Serve's next one without a gap."""
    killed: list[int] = []

    def during() -> None:
        killed.append(proxies()[-1].pid)  # those before it still finish what they had, after a reload
        os.kill(killed[0], signal.SIGKILL)
        eventually(lambda: len(proxies()) > 0 and proxies()[-1].pid > killed[0], 60.0)

    def proxies() -> list[psutil.Process]:
        """HAProxy processes that Serve started and that live, oldest first; not substitutes."""
        return [p for p in titled(live, "haproxy.cfg") if p.name() == "haproxy"]

    load = run(live, "haproxy", during, retry=False)
    print(f"outage {load.outage_s(0.0, 60.0):.3f} s")
    assert load.outage_s(0.0, 60.0) < 5.0
    assert {kind for kind in load.kinds() if kind.isdigit()} <= {"503"}  # no 404 while the next one learns its routes
    in_the_log(live.project, load.acknowledged)


def test_an_order_reaches_every_replica_at_once(live: Live) -> None:
    """A canary's process that is killed costs nobody an answer; `abort` ends its answers within a second."""
    second = verbs.train(live.paths, os.environ)["version"]
    rollouts.start(live.paths, os.environ, second, "test")
    before = {p.pid for p in titled(live, INGRESS)}
    ordered: list[float] = []
    with cluster.connected(live.project):

        def ramping() -> bool:
            return all(r["sequence"] >= wanted().sequence for r in replicas(live)) and wanted().share == 0.3

        def wanted() -> Wanted:
            with live.store.read() as tx:
                served = tx.serving("flights")
            assert served is not None
            return Wanted.of(served)

        eventually(ramping, 60.0)

        def during() -> None:
            eventually(lambda: bool(titled(live, *CANARY)), 10.0)
            kill(live, *CANARY)
            time.sleep(1.0)
            rollouts.move(live.paths, os.environ, "abort", "test")
            ordered.append(time.monotonic())
            told = eventually(lambda: all(r["sequence"] >= wanted().sequence for r in replicas(live)), 10.0)
            print(f"every replica knew after {told:.3f} s")
            assert told < 0.5 * crowding()

        load = run(live, "canary", during)
    assert load.statuses == {"200": len(load.acknowledged)}
    last = max(load.canary) + load.began - ordered[0]
    print(f"{len(load.canary)} answers of the canary, the last one {last:.3f} s after the order")
    assert load.canary
    assert last < 1.0 * crowding()
    assert before == {p.pid for p in titled(live, INGRESS)}  # shares and versions restart nobody
    eventually(lambda: not titled(live, *CANARY), 60.0)


def test_a_version_that_cannot_be_loaded_costs_no_answer(live: Live) -> None:
    """The replicas say so and keep what they have; nobody restarts, and what is wanted next is taken at once."""
    before = {p.pid for p in titled(live, INGRESS)}
    with live.store.read() as tx:
        served = tx.serving("flights")
    assert served is not None
    good = Wanted.of(served)
    assert good.stable is not None
    bad = replace(good, stable=replace(good.stable, version=99, artifact=good.stable.artifact + "-torn"))

    def want(wanted: Wanted) -> None:
        live.store.run(lambda tx: tx.save_serving("flights", wanted.spec(), served.fence))

    def during() -> None:
        want(bad)
        eventually(lambda: all("99" in r["failed"] for r in replicas(live)), 20.0)
        want(good)
        eventually(lambda: all(r["sequence"] == served.seq + 2 for r in replicas(live)), 5.0)

    with cluster.connected(live.project):
        load = run(live, "torn", during, retry=False)
        assert {r["stable"] for r in replicas(live)} == {good.stable.version}
    assert load.statuses == {"200": len(load.acknowledged)}
    assert before == {p.pid for p in titled(live, INGRESS)}


@pytest.mark.slow
def test_a_canary_that_keeps_dying_is_taken_out_after_three_restarts(live: Live) -> None:
    versions = verbs.status(live.paths, os.environ)["versions"]
    second = versions[-1]["version"] if len(versions) > 1 else verbs.train(live.paths, os.environ)["version"]
    rollout = rollouts.start(live.paths, os.environ, second, "test")["rollout"]
    pids: set[int] = set()

    def taken_out() -> bool:
        """Kill whatever lives of the canary, a second after it came, until the controller has had enough."""
        for process in titled(live, *CANARY):
            if time.time() - process.create_time() > 4.0:
                pids.add(process.pid)
                process.kill()
        with live.store.read() as tx:
            row = tx.rollout(rollout)
        assert row is not None
        return str(row.state["phase"]) == "rolled back"

    load = run(live, "dying", lambda: eventually(taken_out, 120.0))
    with live.store.read() as tx:
        row = tx.rollout(rollout)
    assert row is not None
    assert row.state["reason"] == "crash"
    assert 1 <= len(pids) <= 4
    assert load.statuses == {"200": len(load.acknowledged)}
    eventually(lambda: not titled(live, *CANARY), 60.0)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ServeController", "ray::Collector", "ray::Monitor", "ray::RunningController"])
def test_a_minute_of_load_while_an_actor_is_killed_again_and_again(live: Live, victim: str) -> None:
    """Clients that do not retry see nothing of it, and the log is whole afterwards."""
    killed: list[int] = []

    def during() -> None:
        until = time.monotonic() + 60.0
        while time.monotonic() < until:
            eventually(lambda: bool(titled(live, victim)), 60.0)
            killed.append(kill(live, victim))
            eventually(lambda: any(p.pid != killed[-1] for p in titled(live, victim)), 60.0)
            time.sleep(3.0)  # it works for a while before the next one

    with cluster.connected(live.project):
        load = run(live, victim.removeprefix("ray::"), during, retry=False)  # an Idempotency-Key has no colon
    print(f"killed {len(killed)} times in {len(load.acknowledged) / RATE:.0f} s")
    assert len(set(killed)) == len(killed) > 2
    assert load.statuses == {"200": len(load.acknowledged)}
    in_the_log(live.project, load.acknowledged)


@pytest.mark.slow
def test_a_minute_of_load_while_the_canary_is_killed_twice(live: Live) -> None:
    """A third death would take it out. Stable answers its rows meanwhile, and all of them stand in the log."""
    versions = verbs.status(live.paths, os.environ)["versions"]
    second = versions[-1]["version"] if len(versions) > 1 else verbs.train(live.paths, os.environ)["version"]
    rollouts.start(live.paths, os.environ, second, "test")

    def during() -> None:
        for _ in range(2):
            eventually(lambda: bool(titled(live, *CANARY)), 30.0)
            time.sleep(8.0)
            kill(live, *CANARY)
        time.sleep(40.0)

    load = run(live, "canary killed", during, retry=False)
    assert load.canary
    assert max(load.canary) > 50.0, "it was back after its second death"
    assert load.statuses == {"200": len(load.acknowledged)}
    in_the_log(live.project, load.acknowledged)
    rollouts.move(live.paths, os.environ, "abort", "test")
    eventually(lambda: not titled(live, *CANARY), 60.0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_kill_9_of_an_ingress_replica_twenty_times(live: Live, tmp_path: Path, n: int) -> None:
    overlaid = tmp_path / "replicas.yaml"
    overlaid.write_text(f"serving: {{replicas: {n}}}\n", encoding="utf-8")
    verbs.up([*live.paths, overlaid], os.environ)

    def during() -> None:
        for _ in range(20):
            kill_ingress(live, n)

    with cluster.connected(live.project):
        load = run(live, f"twenty-{n}", during)
    assert load.statuses == {"200": len(load.acknowledged)}
    in_the_log(live.project, load.acknowledged)
