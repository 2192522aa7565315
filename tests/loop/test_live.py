"""A project that is up, as its users meet it: HTTP, commands, jobs, and kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from ray.serve._private.router import SingletonThreadRouter

from mlops_ray import ledger, verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster import processes
from mlops_ray.data import lake
from mlops_ray.demo import on_ray as demo
from mlops_ray.demo import replay
from mlops_ray.demo.flights import flights
from mlops_ray.serving import on_apply
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.serving.versions import Wanted
from tests import chromium
from tests.load import eventually
from tests.loop.conftest import ROOT, Live
from tests.mlflow_command import mlflow

with warnings.catch_warnings():  # MLflow looks at its own classes when imported, and warns of them
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROW = {
    "flight_key": "2013-03-01-UA1545-EWR-0515",
    "event_time": "2013-02-28T10:15:00Z",
    "carrier": "UA",
    "origin": "EWR",
    "dest": "IAH",
    "sched_dep_min": 315,
    "sched_arr_min": 490,
    "day_of_week": 4,
    "distance": 1400,
    "temp": 39,
    "dewp": 26,
    "humid": 60,
    "wind_dir": 270,
    "wind_speed": 10,
    "wind_gust": None,
    "precip": 0,
    "pressure": 1012,
    "visib": 10,
}


def run(*command: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    if command[0] == "mlops-ray":  # the one of this environment, whatever the PATH
        command = (str(Path(sys.executable).with_name("mlops-ray")), *command[1:])
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def config(live: Live) -> list[str]:
    return [word for path in live.paths for word in ("--config", str(path))]


def test_whoever_leaves_the_cluster_measures_nothing_any_more_and_may_come_back(live: Live) -> None:
    loop = SingletonThreadRouter._get_singleton_asyncio_loop("test")
    for _ in range(2):
        with cluster.connected(live.project):
            assert on_apply.replica_status("flights", Wanted())
            assert any("_report_cached_metrics" in repr(task) for task in asyncio.all_tasks(loop))
        assert not any("_report_cached_metrics" in repr(task) for task in asyncio.all_tasks(loop))


def test_the_dashboard_tells_of_what_is_up(live: Live, tmp_path: Path) -> None:
    """Through HAProxy and Ray Serve, and in a browser where there is one."""
    answer = httpx.get(f"{live.url}/dashboard/data")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["schema"], told["serving"]["stable"]) == ("mlops_ray.dashboard/1", 1)
    assert {stage["id"]: stage["state"] for stage in told["loop"]["stages"]}["serve"] in ("done", "now")
    shown = httpx.get(f"{live.url}/dashboard")
    assert "script-src 'sha256-" in shown.headers["content-security-policy"]
    if chromium.BINARY is None:
        return
    with chromium.chromium(tmp_path) as page:
        page.size(360, 740)
        page.open(f"{live.url}/dashboard")
        page.wait("document.querySelector('#loop svg')")
        assert page.text("#stable") == "v1 stable"
        assert page.errors == []
        assert all(address.startswith((f"{live.url}/dashboard", "data:")) for address in page.requests), page.requests


def test_a_prediction_names_its_version_and_a_retry_is_the_same_one(live: Live) -> None:
    headers = {"Idempotency-Key": "retry-1"}
    first, again = (httpx.post(f"{live.url}/predict", json={"rows": [ROW]}, headers=headers) for _ in range(2))
    assert first.status_code == 200
    assert first.json() == again.json()
    (prediction,) = first.json()["predictions"]
    assert prediction["version"] == 1
    assert prediction["variant"] == "stable"
    assert 0 < prediction["probability"] < 1
    assert prediction["prediction_id"] == "retry-1:0"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "JSON"),
        (b"[1]", 422, "rows"),
        (json.dumps({"rows": [ROW | {"temp": "hot"}]}).encode(), 422, "temp"),
        (json.dumps({"rows": [ROW | {"tmp": 1}]}).encode(), 422, "tmp"),
        (json.dumps({"rows": [{k: v for k, v in ROW.items() if k != "dest"}]}).encode(), 422, "dest"),
        (json.dumps({"rows": [ROW | {"carrier": None}]}).encode(), 422, "carrier"),
        (b'{"rows": [' + b"[" * 5000, 400, "JSON"),
        (b'{"rows": "' + b"x" * 9_000_000 + b'"}', 413, "large"),
    ],
)
def test_a_malformed_body_gets_a_problem_detail(live: Live, body: bytes, status: int, says: str) -> None:
    answer = httpx.post(f"{live.url}/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.text


def test_foreign_clients_are_answered_and_logged(live: Live, tmp_path: Path) -> None:
    """Triton's client in bytes, MLflow's in JSON, and MLflow's command, through HAProxy to a replica."""
    place = live.url.removeprefix("http://")
    inputs = []
    for name, value in ROW.items():
        array = np.array([np.nan if value is None else value], dtype=object if isinstance(value, str) else None)
        tensor = triton.InferInput(name, [1], {"O": "BYTES", "f": "FP64", "i": "INT64"}[array.dtype.kind])
        inputs.append(tensor.set_data_from_numpy(array))
    with triton.InferenceServerClient(place) as client:
        assert client.is_model_ready("flights")
        ours = client.infer("flights", inputs, request_id="a-7").as_numpy("probability")[0]
    assert 0 < ours < 1
    host, _, rest = place.partition(":")
    answer = ScoringServerClient(host, rest).invoke([ROW], params={"probabilities": True})
    assert answer["predictions"][0][1] == pytest.approx(ours)
    rows, target = tmp_path / "rows.json", "mlops-ray:" + ",".join(map(str, live.paths))
    rows.write_text(json.dumps([ROW]), encoding="utf-8")
    done = mlflow("deployments", "predict", "-t", target, "--name", "flights", "-I", str(rows), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predictions"] == [int(ours >= live.project.serving.threshold)]
    assert found["versions"] == [1]


def test_commands_on_a_project_that_is_up(live: Live) -> None:
    status = json.loads(run("mlops-ray", "status", *config(live), "--json").stdout)
    assert status["stable"] == 1
    assert run("mlops-ray", "ledger", "verify", *config(live)).returncode == 0
    illegal = run("mlops-ray", "rollout", "promote", *config(live))
    assert illegal.returncode == 2
    assert "possible now: start" in illegal.stderr.replace("\n", " ")
    port = live.project.cluster.http_port
    place = f"http://127.0.0.1:{live.project.monitoring.metrics_port}/metrics"
    assert 'mlops_ray_stable_version{project="flights"} 1.0' in httpx.get(place).text
    eventually(lambda: 'mlops_ray_score_seconds_count{project="flights",version="1"}' in httpx.get(place).text, 60.0)
    listening = {
        c.laddr[0]
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr[1] == port
    }
    assert listening == {"127.0.0.1"}


def test_somebody_is_forgotten_while_requests_go_on(live: Live) -> None:
    """From the spool on: the request was answered a moment ago. A label that comes afterwards leaves no trace."""
    key = "2013-03-01-XX0000-EWR-0515"
    headers = {"Idempotency-Key": "goes"}
    rows = [ROW | {"flight_key": key}, ROW | {"flight_key": f"{key}-other"}]
    assert httpx.post(f"{live.url}/predict", json={"rows": rows}, headers=headers).status_code == 200
    label = {"label": 1, "time": "2013-03-01T00:00:00Z"}
    told = [label | {"prediction_id": "goes:0"}, label | {"prediction_id": "goes:1"}]
    assert httpx.post(f"{live.url}/feedback", json={"labels": told}).status_code == 202
    done = run("mlops-ray", "log", "forget", *config(live), "--key", key, "--yes", "--json")
    result = json.loads(done.stdout)
    assert result["proven"], result["left"]
    removed = {table: of["rows"] for table, of in result["removed"].items()}
    assert removed["predictions"] <= 1  # 0: sieved out of the spool; 1: the collector had committed it by then
    assert "1 nodes" in result["spools"][0]
    assert httpx.post(f"{live.url}/feedback", json={"labels": told}).status_code == 202
    with cluster.connected(live.project):
        on_collectors.flush(live.project.project)
    kept = lake.scan(log_uri(live.project), "0", "9", ["prediction_id"])["prediction_id"].to_pylist()
    assert [i for i in kept if i.startswith("goes:")] == ["goes:1"]
    known = lake.scan(labels_uri(live.project), "0", "9", ["prediction_id"])["prediction_id"].to_pylist()
    assert "goes:0" not in known
    assert "goes:1" in known
    again = json.loads(run("mlops-ray", "log", "forget", *config(live), "--key", key, "--yes", "--json").stdout)
    assert again["proven"]
    assert run("mlops-ray", "ledger", "verify", *config(live)).returncode == 0


def test_a_job_runs_on_the_cluster_and_says_its_result(live: Live) -> None:
    submitted = run(
        "mlops-ray", "submit", "prepare", "--address", live.dashboard, "--working-dir", str(live.paths[1].parent),
        *config(live), "--json",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    line = next(text for text in submitted.stdout.splitlines() if text.startswith("{"))
    assert json.loads(line)["dataset"]["rows"] == 49_855
    refused = run("mlops-ray", "submit", "train", "--address", live.dashboard, "-c", "missing.yaml")
    assert refused.returncode == 2


def test_a_script_of_jobs_runs_by_ray_job_submit(live: Live) -> None:
    done = run(
        sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", live.dashboard,
        "--working-dir", str(ROOT / "jobs"), "--", "python", "prepare.py", *config(live),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "content_hash" in done.stdout


def play(live: Live, loop: demo.Loop, since: float, n_days: int, tally: replay.Tally) -> None:
    columns = [c.name for c in live.project.columns_in("serving")]
    hours = replay.days(flights(), columns, since, since + n_days * 86_400, per_flight=False)
    asyncio.run(replay.replay(live.url, hours, loop.acknowledge, tally=tally))


def test_kill_9_of_every_actor_in_the_middle_of_a_canary(live: Live) -> None:
    """The rollout goes on from where it was; every acknowledged prediction is in the log once; nothing repeats."""
    second = verbs.train(live.paths, os.environ)["version"]
    tally, march = replay.Tally(), demo._seconds("2013-03-01")
    with cluster.connected(live.project):
        loop = demo.Loop(live.project, live.store, lambda *_: None, plant_at=None)
        play(live, loop, march, 1, tally)
        started = httpx.post(f"{live.url}/rollouts", json={"version": second, "why": "test"})
        assert started.status_code == 201, started.text
        play(live, loop, march + 86_400, 2, tally)
    orders = {name: httpx.post(f"{live.url}/rollouts/open/{name}", timeout=30) for name in ("pause", "resume")}
    assert {name: answer.status_code for name, answer in orders.items()} == {"pause": 200, "resume": 200}
    assert httpx.get(f"{live.url}/rollouts/open").json()["share"] == 0.3
    with live.store.read() as tx:
        open_rollout = tx.open_rollout("flights")
    assert open_rollout is not None
    assert open_rollout.state["phase"] == "ramping"
    for pid in live.actors().values():
        os.kill(pid, signal.SIGKILL)
    with cluster.connected(live.project):
        loop = demo.Loop(live.project, live.store, lambda *_: None, plant_at=None)
        for day in range(3, 24):
            play(live, loop, march + day * 86_400, 1, tally)
            with live.store.read() as tx:
                done = tx.open_rollout("flights") is None
            if done:
                break
    with live.store.read() as tx:
        (rollout,) = tx.rollouts("flights")
        kinds = [e.kind for e in ledger.entries(tx, "flights") if e.kind.startswith("rollout")]
        assert ledger.verify(tx, "flights").ok
        served = tx.serving("flights")
    assert rollout.state["phase"] == "promoted", rollout.state
    assert kinds == [
        "rollout started", "rollout ramping at 0.3", "rollout pause", "rollout resume",
        "rollout ramping at 0.5", "rollout promoting", "rollout promoted",
    ]  # fmt: skip
    assert served is not None
    assert served.spec["stable"]["version"] == second
    assert sum(tally.failed.values()) == 0, tally.troubles
    rows = lake.scan(log_uri(live.project), "2013-03-01", "2013-04-30", log.prediction_schema(live.project))
    sent = flights()
    last = march + (day + 1) * 86_400
    times = sent["event_time"].cast("int64").to_numpy() / 1e6
    assert rows.num_rows == int(((times >= march) & (times < last)).sum())
    assert len(set(rows["prediction_id"].to_pylist())) == rows.num_rows
    with live.store.read() as tx:
        profiles = tx.profiles("flights", march, last)
    assert sum(body["n"] for _, _, body in profiles) == rows.num_rows
    versions = Counter(log.answered(rows)[0].tolist())
    assert versions[second] > 0


def test_a_port_in_use_is_named_with_its_process(live: Live, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    root = tmp_path / "root"
    other.write_text(
        f"storage: {{root: {root}}}\ncluster: {{http_port: {live.project.cluster.http_port}}}\n", encoding="utf-8"
    )
    refused = run("mlops-ray", "up", *config(live), "--config", str(other))
    assert refused.returncode == 1
    assert f"port {live.project.cluster.http_port}" in refused.stderr.replace("\n", " ")
    assert "cluster.http_port" in refused.stderr
    assert not (root / "cluster.json").exists()


def test_down_leaves_no_process_and_no_port(live: Live) -> None:
    """Runs last in this file: it takes the shared cluster down."""
    found = cluster.find(live.project)
    assert found is not None
    assert run("mlops-ray", "down", *config(live)).returncode == 0
    deadline = time.monotonic() + 10
    while processes.marked(found.id) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes.marked(found.id) == []
    processes.demand_free(live.project.cluster.http_port, "127.0.0.1", "cluster.http_port")
    refused = run("mlops-ray", "submit", "prepare", "--address", live.dashboard, *config(live))
    assert refused.returncode == 1
    not_up = run(sys.executable, "jobs/monitor.py", *config(live))
    assert not_up.returncode == 1
    assert "mlops-ray up" in not_up.stderr
