from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Run

from mlops_ray.config import Project
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.errors import BackendUnavailable, DataError, LeaseLost
from mlops_ray.state import Store
from mlops_ray.training import on_machine, on_mlflow
from mlops_ray.training.on_leases import LEASE_S
from mlops_ray.training.on_mlflow import Tracker
from tests.integration.training.conftest import Room, body
from tests.mlflow_server import Server
from tests.postgres import Postgres

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tracker(room: Room) -> Tracker:
    return Tracker(room.project, room.store)


def children(tracker: Tracker, parent: str) -> dict[str, Run]:
    found = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    return {run.data.tags["mlops_ray.trial"]: run for run in found}


def log_trial(tracker: Tracker, parent: str, number: int, **changes: Any) -> None:
    given: dict[str, Any] = {
        "params": {"estimator": "LogisticRegression", "C": 0.5},
        "status": "done",
        "metric": "log_loss",
        "score": 0.3,
        "started": 1.0,
        "ended": 2.5,
    }
    tracker.trial(parent, number, "LogisticRegression", **given | changes)


def test_a_run_ends_whatever_happens(tracker: Tracker) -> None:
    with tracker.run("good", {"why": "test"}) as good:
        assert tracker.client.get_run(good).info.status == "RUNNING"
        tracker.log(good, params={"a": 1}, metrics={"m": 0.5, "undefined": float("nan")}, tags={"t": "x" * 900}, at=5.0)
    with pytest.raises(KeyboardInterrupt), tracker.run("interrupted", {}) as interrupted:
        raise KeyboardInterrupt
    with pytest.raises(DataError), tracker.run("failed", {}) as failed:
        raise DataError("rows", "there are none")
    found = tracker.client.get_run(good)
    assert found.info.status == "FINISHED"
    assert (found.data.params, found.data.metrics) == ({"a": "1", "seed": "3"}, {"m": 0.5})
    assert found.data.tags["why"] == "test"
    assert len(found.data.tags["t"]) == 500
    assert tracker.client.get_run(interrupted).info.status == "FAILED"
    assert tracker.client.get_run(failed).data.tags["error"] == "rows: there are none"


def test_a_run_says_what_made_it(tracker: Tracker, tmp_path: Path) -> None:
    dataset = DatasetVersion("/lake/rows", 3, "a" * 48, 1000, 5000, 1.0, {})
    with tracker.run("described", {}) as run:
        tracker.dataset(run, dataset)
    found = tracker.client.get_run(run)
    config = Path(tracker.client.download_artifacts(run, "config/project.yaml", str(tmp_path))).read_bytes()
    assert found.data.tags["config.sha256"] == hashlib.sha256(config).hexdigest()
    assert b"geheim" not in config
    assert yaml.safe_load(config)["features"]["numeric"]["columns"] == ["x"]
    lock = json.loads(Path(tracker.client.download_artifacts(run, "environment/lock.json", str(tmp_path))).read_text())
    assert lock["python"] == sys.version.split()[0]
    assert lock["distributions"]["scikit-learn"]
    code = on_machine.checkout()
    assert code is not None
    assert found.data.tags["mlflow.source.git.commit"] == code.commit
    assert found.data.tags["git.dirty"] == str(code.dirty).lower()
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (tracker.project.project, "a" * 36)
    assert json.loads(used.dataset.source) == {"path": "/lake/rows", "delta_table_version": 3}
    assert json.loads(used.dataset.profile)["num_rows"] == 1000
    assert [tag.value for tag in used.tags] == ["training"]
    assert found.data.tags["dataset.content_hash"] == "a" * 48


def test_trials_are_children_with_a_metric_per_step(tracker: Tracker) -> None:
    with tracker.run("search", {}) as parent:
        log_trial(tracker, parent, 0)
        log_trial(tracker, parent, 1, steps=[(10, 0.6), (20, 0.5), (30, 0.45)], score=0.45, metrics={"fit_s": 1.5})
        log_trial(tracker, parent, 2, steps=[(10, 0.9)], score=0.9, status="stopped")
        log_trial(tracker, parent, 3, score=None, status="stopped")
        log_trial(tracker, parent, 7, score=0.7, status="stopped", cut_short=True)
        log_trial(tracker, parent, 4, score=None, status="failed", error="ValueError: C must be positive")
        log_trial(
            tracker, parent, 5, params={f"p{i}": i for i in range(250)}, steps=[(i, 1 / i) for i in range(1, 1501)]
        )
        log_trial(tracker, parent, 6, params={"odd name (%)": None}, score=float("nan"))
    found = children(tracker, parent)
    assert {number: run.info.status for number, run in found.items()} == {
        "0": "FINISHED",
        "1": "FINISHED",
        "2": "FINISHED",
        "3": "KILLED",
        "4": "FAILED",
        "5": "FINISHED",
        "6": "FINISHED",
        "7": "KILLED",
    }
    assert found["0"].info.end_time - found["0"].info.start_time == 1500
    assert found["0"].info.run_name == "0 LogisticRegression"
    assert found["0"].data.params == {"estimator": "LogisticRegression", "C": "0.5"}
    assert found["1"].data.metrics == {"log_loss": 0.45, "fit_s": 1.5}
    history = tracker.client.get_metric_history(found["1"].info.run_id, "log_loss")
    assert sorted((m.step, m.value) for m in history) == [(10, 0.6), (20, 0.5), (30, 0.45)]
    assert found["2"].data.tags["outcome"] == "stopped early"
    assert found["4"].data.tags["error"] == "ValueError: C must be positive"
    assert len(found["5"].data.params) == 250
    assert len(tracker.client.get_metric_history(found["5"].info.run_id, "log_loss")) == 1501  # the score comes last
    assert found["5"].data.metrics["log_loss"] == 0.3
    assert found["6"].data.params == {"odd name _%_".replace("%", "_"): "None"}


def test_a_trial_that_was_cut_short_may_run_again_and_others_not(tracker: Tracker) -> None:
    with tracker.run("search", {}) as parent:
        log_trial(tracker, parent, 0, steps=[(10, 0.6)], score=0.6, status="stopped", cut_short=True, ended=2.0)
        log_trial(tracker, parent, 1, score=None, status="failed", error="boom")
        tracker.flush()
        for _ in range(2):
            log_trial(tracker, parent, 0, steps=[(10, 0.6), (20, 0.5)], score=0.5, ended=9.0)
            log_trial(tracker, parent, 1, score=0.1)
    found = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    ended = {r.data.tags["mlops_ray.trial"]: (r.info.status, r.data.tags["outcome"], r.data.metrics) for r in found}
    assert len(found) == 2
    assert ended == {"0": ("FINISHED", "done", {"log_loss": 0.5}), "1": ("FAILED", "failed", {})}


def test_files_are_texts_and_bytes(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("files", {}) as run:
        tracker.files(run, "gates", {"gates.json": "{}", "gates.html": "<p>ä</p>"})
        tracker.files(run, "plots", {"roc.png": b"\x89PNG\x00"})
    assert [f.path for f in tracker.client.list_artifacts(run, "gates")] == ["gates/gates.html", "gates/gates.json"]
    assert Path(tracker.client.download_artifacts(run, "plots/roc.png", str(tmp_path))).read_bytes() == b"\x89PNG\x00"
    if not tracker.uri.startswith("http"):  # next to the database, wherever the process stands
        assert str(tracker.project.storage.path("runs")) in tracker.client.get_run(run).info.artifact_uri


DRIVER = """
import sys, time
from pathlib import Path
from mlops_ray.config import Project
from mlops_ray.state import Store
from mlops_ray.training.on_mlflow import Tracker
import json
project = Project.model_validate(json.loads(sys.argv[1]))
tracker = Tracker(project, Store.open(project.storage.state))
with tracker.run("killed", {}) as run:
    for number in (0, 1):
        tracker.trial(run, number, "Estimator", params={"C": number}, status="done", metric="log_loss",
                      score=0.5, started=1.0, ended=2.0)
    tracker.flush()
    # What a kill between two of a trial's calls leaves behind.
    torn = tracker._child(run, 2, "Estimator", 1.0)
    tracker.client.log_metric(torn, "log_loss", 0.5, timestamp=2500, step=0)
    print(run, torn, flush=True)
    time.sleep(600)
"""


def killed_driver(room: Room) -> tuple[str, str]:
    """Ids of the run of a driver that was killed at its third trial, and of that trial's."""
    text = room.project.model_dump_json()
    command = [sys.executable, "-c", DRIVER, text]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    run, torn = process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return run, torn


def test_a_killed_drivers_runs_end_at_the_next_start(room: Room) -> None:
    run, torn = killed_driver(room)
    tracker = Tracker(room.project, room.store)
    for identity in (run, torn):
        found = tracker.client.get_run(identity)
        assert found.info.status == "FAILED"
        assert "is gone" in found.data.tags["abandoned"]
        assert "process" in found.data.tags["error"]
        assert found.info.end_time is not None
    assert {run.info.status for run in children(tracker, run).values()} == {"FINISHED", "FAILED"}


def test_a_killed_search_is_resumed_and_no_trial_is_logged_twice(room: Room) -> None:
    run, _ = killed_driver(room)
    tracker = Tracker(room.project, room.store)
    with tracker.resume(run) as same:
        assert same == run
        now = tracker.client.get_run(run)
        assert now.info.status == "RUNNING"
        assert "abandoned" not in now.data.tags
        for number in range(4):
            log_trial(tracker, run, number, params={"C": number}, score=0.5)
    found = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{run}'")
    assert sorted(r.data.tags["mlops_ray.trial"] for r in found) == ["0", "1", "2", "3"]
    assert {r.info.status for r in found} == {"FINISHED"}
    assert not [r for r in found if "abandoned" in r.data.tags or "error" in r.data.tags]
    assert tracker.client.get_run(run).info.status == "FINISHED"
    with pytest.raises(DataError, match="has finished"), tracker.resume(run):
        pass


def test_a_run_whose_driver_lives_is_left_alone(room: Room) -> None:
    tracker = Tracker(room.project, room.store)
    with tracker.run("alive", {}) as run:
        other = Tracker(room.project, room.store)
        assert other.client.get_run(run).info.status == "RUNNING"
        with pytest.raises(LeaseLost, match="held by"), other.resume(run):
            pass
        assert other.client.get_run(run).info.status == "RUNNING"


def test_a_driver_elsewhere_is_gone_when_its_lease_has_expired(room: Room) -> None:
    tracker, project = Tracker(room.project, room.store), room.project.project
    elsewhere = on_machine.Driver("far", "other-boot", 1, 5.0, "token").text
    marks = {"mlops_ray.project": project}
    for key, ttl_s in (("run:late", 1.0), ("run:soon", LEASE_S)):
        room.store.acquire(f"{key}-{project}", elsewhere, ttl_s, time.time() - 2)
    late, soon, foreign = (
        tracker.client.create_run(tracker.experiment_id, tags=marks | tags).info.run_id
        for tags in ({"mlops_ray.lease": f"run:late-{project}"}, {"mlops_ray.lease": f"run:soon-{project}"}, {})
    )
    Tracker(room.project, room.store)
    assert tracker.client.get_run(late).info.status == "FAILED"
    assert "process 1 on far" in tracker.client.get_run(late).data.tags["abandoned"]
    assert tracker.client.get_run(soon).info.status == "RUNNING"
    assert tracker.client.get_run(foreign).info.status == "RUNNING"


def test_a_driver_that_was_taken_over_writes_no_more(room: Room) -> None:
    tracker = Tracker(room.project, room.store)
    runs = []

    def slow() -> None:
        with tracker.run("slow", {}) as run:
            runs.append(run)
            hold = tracker._holds[run]
            room.store.release(hold.lease)
            room.store.acquire(hold.lease.name, "another", 0.5, time.time())
            with pytest.raises(LeaseLost) as caught:
                room.store.renew(hold.lease, 60.0, time.time())  # as its heartbeat does
            hold.lost = caught.value
            tracker.log(run, params={"late": 1}, at=1.0)

    with pytest.raises(LeaseLost, match="another"):
        slow()
    assert tracker.client.get_run(runs[0]).info.status == "RUNNING"  # it is the other's to end
    assert "late" not in tracker.client.get_run(runs[0]).data.params


# One store is enough for what follows.


def plain(root: Path, uri: str | None = None) -> tuple[Project, Store]:
    project = Project.model_validate(body("plain", root, uri))
    return project, Store.open(project.storage.state)


def test_a_second_process_finds_the_experiment(tmp_path: Path) -> None:
    project, store = plain(tmp_path)
    assert Tracker(project, store).experiment_id == Tracker(project, store).experiment_id


def test_one_postgresql_database_for_state_and_runs(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    storage = {"root": str(tmp_path), "tracking_uri": url, "state_url": url}
    project = Project.model_validate(body("shared", tmp_path, url) | {"storage": storage})
    store = Store.open(url)
    with Tracker(project, store).run("both", {}) as run:
        pass
    store.close()
    store = Store.open(url)
    assert Tracker(project, store).client.get_run(run).info.status == "FINISHED"
    store.close()


def test_a_server_that_is_not_there_is_named_quickly(tmp_path: Path) -> None:
    project, store = plain(tmp_path, "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"http://127\.0\.0\.1:9 .*storage\.tracking_uri"):
        Tracker(project, store)
    assert time.monotonic() - began < 6


def test_passwords_stay_out_of_messages(tmp_path: Path) -> None:
    project, store = plain(tmp_path, "postgresql://me:geheim@127.0.0.1:9/x")
    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:9/x is not available: .*refused") as caught:
        Tracker(project, store)
    assert "geheim" not in str(caught.value)


@pytest.mark.slow
def test_a_search_outlives_a_restart_of_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(on_mlflow, "DRAIN_S", 150.0)  # on a busy machine a server takes longer to start than a minute
    server = Server(tmp_path / "server")
    server.start()
    try:
        project, store = plain(tmp_path, server.uri)
        tracker = Tracker(project, store)
        with tracker.run("through a restart", {}) as run:
            log_trial(tracker, run, 0)
            tracker.flush()
            server.stop()
            began = time.monotonic()
            for number in range(1, 6):
                log_trial(tracker, run, number)
            assert time.monotonic() - began < 0.5  # the search goes on
            restart = threading.Timer(1.0, server.start)
            restart.start()
        restart.join()
        assert tracker.client.get_run(run).info.status == "FINISHED"
        assert sorted(children(tracker, run)) == list("012345")
        assert {r.info.status for r in children(tracker, run).values()} == {"FINISHED"}
        monkeypatch.setattr(on_mlflow, "DRAIN_S", 1.0)
        lost = []

        def to_the_end() -> None:
            with tracker.run("to the end", {}) as run:
                lost.append(run)
                server.stop()
                log_trial(tracker, run, 0)

        with pytest.raises(BackendUnavailable, match="1 records still wait"):
            to_the_end()
        assert "left as running" in caplog.text
        server.start()
        again = Tracker(project, store)
        assert again.client.get_run(lost[0]).info.status == "FAILED"
    finally:
        server.stop()


def test_what_mlflow_refuses_does_not_hold_up_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project, store = plain(tmp_path)
    tracker = Tracker(project, store)
    with tracker.run("search", {}) as run:
        log_trial(tracker, run, 0, params={"x" * 240 + str(i): 1 for i in (0, 1)} | {"same (": 1, "same )": 2})
        log_trial(tracker, run, 1)
    found = children(tracker, run)
    assert (found["0"].info.status, found["1"].info.status) == ("FAILED", "FINISHED")
    assert "trial 0 is not recorded" in caplog.text
