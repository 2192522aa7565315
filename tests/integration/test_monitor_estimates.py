"""Estimates from the close of a window to the record, by the monitor over a real log; no cluster runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from mlops_ray import ledger
from mlops_ray.cluster.processes import free_port
from mlops_ray.config import Project, Task, parse_portable
from mlops_ray.data.profile import Bins, empty
from mlops_ray.monitoring import on_ray
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.on_ray import Monitor
from mlops_ray.retraining.on_ray import brain
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import Store, VersionRow, WindowRow
from mlops_ray.training import calibration
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import blocks
from tests import fakes, logs
from tests.logs import DAY_S, START, micros

WEEK_S = 7 * DAY_S
N = 700
BINS = Bins({"x": (-1.0, 0.0, 1.0)}, {"c": ("red", "blue")})
CLASSES = {"binary": (0, 1), "multiclass": ("high", "low", "mid"), "regression": ()}
MAIN = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mae"}


def drawn(task: Task, n: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """Labels (places of classes), scores and inputs of a world that does not change."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, n)
    inputs = {"x": x.astype(np.float32), "c": rng.choice(["red", "blue"], n).astype(object)}
    if task == "regression":
        return x + rng.normal(0, 1, n), x, inputs
    if task == "binary":
        scores = 1 / (1 + np.exp(-2 * x))
        return (rng.random(n) < 1 / (1 + np.exp(-x))).astype(np.int64), scores, inputs
    several = rng.dirichlet([1.0, 1.0, 1.0], n)
    return (rng.random((n, 1)) > several.cumsum(axis=1)).sum(axis=1), several, inputs


class World:
    """A project with a stable version 1 whose log is written week by week."""

    def __init__(self, folder: Path, task: Task, monkeypatch: pytest.MonkeyPatch, *, calibrated: bool = True) -> None:
        self.task = task
        body = fakes.project().model_dump(mode="json", exclude_unset=True) | {
            "task": task,
            "storage": {"root": str(folder)},
            "monitoring": {"min_rows": 300, "window_s": WEEK_S, "metrics_port": free_port()},
        }
        if task != "binary":
            kind = "string" if task == "multiclass" else "float"
            body["columns"] = [c | {"dtype": kind} if c["name"] == "late" else c for c in body["columns"]]
        if task == "regression":
            body["search"] = {"candidates": [{"estimator": "sklearn.linear_model.Ridge"}]}
        text = yaml.safe_dump(body)
        self.project: Project = parse_portable(text, env={})
        y, scores, inputs = drawn(task, 4000, seed=0)
        times = blocks(np.sort(np.random.default_rng(0).uniform(0, 40 * DAY_S, 4000)), DAY_S)
        known = calibration.fit(task, y, scores, times, BINS, inputs) if calibrated else None
        reference = Reference(BINS, DAY_S, ((0.0, empty(BINS)),), (), known)
        loaded = fakes.FakeScorer(0.5, reference=reference, classes=CLASSES[task], task=task)
        monkeypatch.setattr(on_ray, "local", lambda artifact, sha256, trusted: loaded)
        self.store = Store.open(self.project.storage.state)
        with self.store.begin() as tx:
            tx.save_version(VersionRow("small", 1, "run", "/model", "sha", "data", "registered", START, {}))
            tx.save_serving("small", {"stable": {"version": 1}, "share": 0.0}, 0)
        brain = Brain(lambda *_: "nothing to do", lambda *_: None, lambda *_: None, None)  # type: ignore[arg-type]
        self.monitor = Monitor(text, lambda _: brain)

    def write(self, week: int) -> None:
        """A week's predictions, with a retried one, and its labels, which become known when the week is over."""
        y, scores, inputs = drawn(self.task, N, seed=10 + week)
        times = START + week * WEEK_S + np.linspace(0, WEEK_S - 60, N)
        rows: dict[str, Any] = {
            "prediction_id": [f"w{week}:{i}" for i in range(N)],
            "day": [log.day_of(t) for t in times],
            "at": micros(times.tolist()),
            "event_time": micros(times.tolist()),
            "stable": [1] * N,
            "stable_score": scores.max(axis=1) if self.task == "multiclass" else scores,
            "stable_scores": scores.tolist() if self.task == "multiclass" else None,
            "x_x": inputs["x"],
            "x_c": inputs["c"].tolist(),
        }
        schema = log.prediction_schema(self.project)
        table = pa.table({f.name: rows.get(f.name, pa.nulls(N, f.type)) for f in schema}, schema=schema)
        logs.append(log_uri(self.project), pa.concat_tables([table, table.slice(0, 1)]), week)
        values = [CLASSES["multiclass"][k] for k in y] if self.task == "multiclass" else y.astype(float).tolist()
        told = logs.labels(self.project, rows["prediction_id"], values, at=START + (week + 1) * WEEK_S)
        logs.append(labels_uri(self.project), told, week)
        with self.store.begin() as tx:
            tx.save_profile("small", 1, START + week * WEEK_S, empty(BINS).to_dict())

    def pass_time(self, until: float) -> list[dict[str, Any]]:
        """Results of all windows, oldest first, when decision time has come so far."""
        with self.store.begin() as tx:
            tx.save_cursor("small", "watermark", 0, until)
            tx.save_cursor("small", "seen", 0, time.time())
        self.monitor.tick()
        with self.store.read() as tx:
            return [json.loads(json.dumps(w.result)) for w in reversed(tx.windows("small"))]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_window_is_estimated_when_it_closes_and_scored_when_its_labels_are_mature(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, task, monkeypatch)
    world.write(0)
    (first,) = world.pass_time(START + WEEK_S + 60)
    said = first["estimated"]
    assert (said["rows"], said["record"]["direct"]) == (N, {"windows": 0, "trust": 0.0, "rmse": None})
    main = said["direct"]["metrics"][MAIN[task]]
    assert main["low"] < main["value"] < main["high"]
    assert f"{MAIN[task]} {main['value']:.4f}" in said["why"]
    assert (said["alarm"], said["limit"]) == (False, None)
    assert said["why"].endswith("no estimate has proved true yet")
    assert said["weighted"]["metrics"][MAIN[task]]["value"] == pytest.approx(main["value"], rel=0.1)
    assert "realised" not in said
    assert "quality" not in first
    (first,) = world.pass_time(START + WEEK_S + 2 * DAY_S + 60)
    found = first["estimated"]
    assert found["labelled"] == N
    assert found["direct"] == said["direct"]
    assert found["realised"][MAIN[task]] == pytest.approx(main["value"], rel=0.15)
    world.write(1)
    *_, second = world.pass_time(START + 2 * WEEK_S + 60)
    record = second["estimated"]["record"]["direct"]
    assert record["windows"] == 1
    assert record["rmse"] == pytest.approx(abs(main["value"] - found["realised"][MAIN[task]]))
    if task == "binary":
        assert first["quality"]["log_loss"] == pytest.approx(found["realised"]["log_loss"])


def test_a_version_of_a_release_that_kept_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, "binary", monkeypatch, calibrated=False)
    world.write(0)
    (first,) = world.pass_time(START + WEEK_S + 2 * DAY_S + 60)
    found = first["estimated"]
    assert found["why"].startswith("uncalibrated: the version was trained by a release")
    assert found["direct"]["metrics"] == {}
    assert found["realised"]["log_loss"] > 0
    world.write(1)
    *_, second = world.pass_time(START + 2 * WEEK_S + 60)
    assert second["estimated"]["record"]["direct"]["windows"] == 0


def test_an_estimate_that_alarms_decides_a_retrain_where_the_project_asks_for_it(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    stable = VersionRow("small", 1, "run", "/model", "sha", "data", "registered", START, {})
    closed = START + WEEK_S
    with store.begin() as tx:
        for week, alarm in ((0, False), (1, True)):
            told = {"at": closed + week * WEEK_S, "alarm": alarm, "why": "log_loss estimated at 0.7000"}
            calm = told | {"alarm": False, "why": "temp: PSI 0.1"}
            result = {"drift": calm, "estimated": told}
            tx.save_window(WindowRow("small", START + week * WEEK_S, closed + week * WEEK_S, 1, result))
    decide = brain("", dashboard="").decide
    asked = fakes.project(retraining={"triggers": ["drift", "estimated_performance"]})
    with store.begin() as tx:
        assert decide(tx, fakes.project(), stable, closed + WEEK_S, result) == "nothing to do"
        # The window's labels mature later: what the estimate said then has had its say.
        assert decide(tx, asked, stable, closed + WEEK_S + 2 * DAY_S, result) == "nothing to do"
        assert tx.retrains("small") == []
        reason = decide(tx, asked, stable, closed + WEEK_S, result)
        (row,) = tx.retrains("small")
        assert (row.trigger, row.reason, reason) == ("estimated_performance", *["log_loss estimated at 0.7000"] * 2)
        (entry,) = ledger.entries(tx, "small")
        assert (entry.kind, entry.evidence) == ("retrain decided", told)
    store.close()
