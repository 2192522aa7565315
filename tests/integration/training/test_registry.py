from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from mlops_ray import ledger
from mlops_ray.errors import DataError, ModelNotFound
from mlops_ray.governance.approvals import approve
from mlops_ray.state import VersionRow
from mlops_ray.training.on_mlflow import Tracker
from mlops_ray.training.on_registry import BEGUN, Registry, anchors, mlflow  # imported there without its warnings
from mlops_ray.training.target import Classes
from tests.integration.training.conftest import Room

ROOT = Path(__file__).parents[3]
ROWS = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 10, "kind": ["a", "b"] * 30})
CLASSES: dict[str, Classes] = {"binary": (0, 1), "multiclass": ("high", "low", "mid"), "regression": ()}


def pipeline(task: str = "binary", estimator: Any = None) -> Pipeline:
    features = ColumnTransformer([("n", "passthrough", ["x"]), ("c", OneHotEncoder(), ["kind"])])
    y = {"binary": ROWS["x"] > 2, "multiclass": ROWS["x"] // 2, "regression": ROWS["x"] * 2}[task]
    model = estimator or (LinearRegression() if task == "regression" else LogisticRegression())
    return Pipeline([("features", features), ("model", model)]).fit(
        ROWS, y.astype(float if task == "regression" else int)
    )


def register(registry: Registry, run: str, fitted: Pipeline | None = None, **changes: Any) -> VersionRow:
    fitted = fitted or pipeline(registry.project.task)
    given: dict[str, Any] = {
        "artifact": "/models/m",
        "sha256": "f" * 64,
        "dataset": "/lake/rows@3",
        "classes": CLASSES[registry.project.task],
        "trusted": skops.io.get_untrusted_types(data=skops.io.dumps(fitted)),
        "tags": {"engine": "onnx"},
        "now": 5.0,
    }
    return registry.register(run, fitted, **given | changes)


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "binary" else pytest.mark.slow) for task in CLASSES]
)
def test_a_version_is_loaded_without_this_package(make_room: Callable[..., Room], task: str) -> None:
    dtype = {"binary": "int", "multiclass": "string", "regression": "float"}[task]
    columns = [{"name": "y", "dtype": dtype}, {"name": "id", "dtype": "string"}, {"name": "at", "dtype": "timestamp"}]
    columns += [{"name": "x", "dtype": "float"}, {"name": "kind", "dtype": "string"}]
    estimator = "sklearn.linear_model:" + ("LinearRegression" if task == "regression" else "LogisticRegression")
    room = make_room(task=task, columns=columns, search={"candidates": [estimator]})
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    fitted = pipeline(task)
    with tracker.run("train", {}) as run:
        row = register(registry, run, fitted)
    assert (row.version, row.status, row.may_serve) == (1, "registered", True)
    with room.store.read() as tx:
        assert tx.versions(room.project.project) == [row]
    found = registry.client.get_model_version(room.project.project, "1")
    assert found.tags == {"engine": "onnx"}
    assert found.run_id == run
    assert "f" * 64 in found.description
    expected = fitted.predict(ROWS) if task == "regression" else fitted.predict_proba(ROWS)
    local = registry.client.download_artifacts(run, "model")
    np.testing.assert_array_equal(mlflow.sklearn.load_model(local).predict(ROWS), fitted.predict(ROWS))
    served = mlflow.pyfunc.load_model(local)
    np.testing.assert_allclose(served.predict(ROWS), expected)
    assert served.metadata.metadata == {"task": task, "classes": list(CLASSES[task])}
    assert served.metadata.signature.outputs.inputs[0].shape == (-1, *expected.shape[1:])
    needs = Path(local, "requirements.txt").read_text().split()
    assert any(line.startswith("scikit-learn==") for line in needs)


@pytest.mark.parametrize("package", ["xgboost", "lightgbm"])
def test_boosters_name_what_they_need(room: Room, package: str) -> None:
    module = pytest.importorskip(package)
    kind = {"xgboost": "XGBClassifier", "lightgbm": "LGBMClassifier"}[package]
    options = {"n_estimators": 3, "n_jobs": 1} | ({"verbose": -1} if package == "lightgbm" else {})
    fitted = pipeline("binary", getattr(module, kind)(**options))
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    with tracker.run("train", {}) as run:
        register(registry, run, fitted)
    local = registry.client.download_artifacts(run, "model")
    assert any(line.startswith(package) for line in Path(local, "requirements.txt").read_text().split())
    np.testing.assert_allclose(mlflow.sklearn.load_model(local).predict_proba(ROWS), fitted.predict_proba(ROWS))


def test_numbers_and_aliases(room: Room) -> None:
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    with tracker.run("one", {}) as one:
        assert register(registry, one).version == 1
    with tracker.run("two", {}) as two:
        assert register(registry, two).version == 2
    assert registry.alias("champion") is None
    registry.set_alias("champion", 1)
    registry.set_alias("challenger", 2)
    assert (registry.alias("champion"), registry.alias("challenger")) == (1, 2)
    assert mlflow_version(registry, "champion") == 1
    registry.delete_alias("challenger")
    registry.delete_alias("challenger")
    assert registry.alias("challenger") is None
    with pytest.raises(ModelNotFound, match="no version '7'"):
        registry.set_alias("champion", 7)


def test_a_promotion_leaves_the_ledgers_head_with_the_version(room: Room) -> None:
    tracker, registry, name = (
        Tracker(room.project, room.store),
        Registry(room.project, room.store),
        room.project.project,
    )
    with tracker.run("one", {}) as one:
        register(registry, one)
    registry.set_alias("champion", 1)
    assert anchors(room.project) == []  # nothing to keep yet
    with room.store.begin() as tx:
        heads = [
            (entry.seq, entry.hash)
            for entry in (ledger.append(tx, name, "promoted", "v1", "me", "test", {"n": n}, 1.0) for n in range(2))
        ]
        assert ledger.head(tx, name) == heads[1]
    registry.set_alias("challenger", 1)
    assert anchors(room.project) == []
    registry.set_alias("champion", 1)
    assert anchors(room.project) == heads[1:]
    with room.store.begin() as tx:
        third = ledger.append(tx, name, "promoted", "v1", "me", "test", {}, 1.0)
    registry.set_alias("champion", 1)
    assert anchors(room.project) == [heads[1], (third.seq, third.hash)]  # a later one replaces none
    with room.store.begin() as tx:
        assert ledger.verify(tx, name, *anchors(room.project)).proven == 3
        tx.connection.execute(ledger.LEDGER.delete().where(ledger.LEDGER.c.project == name, ledger.LEDGER.c.seq == 3))
        assert "its tail was cut" in str(ledger.verify(tx, name, *anchors(room.project)))


def mlflow_version(registry: Registry, alias: str) -> int:
    return int(registry.client.get_model_version_by_alias(registry.project.project, alias).version)


def test_a_pending_version_is_shown_as_such_until_it_is_approved(make_room: Callable[..., Room]) -> None:
    room = make_room(gates={"approval": True})
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    name = room.project.project
    with tracker.run("train", {}) as run:
        row = register(registry, run)
    assert (row.status, row.may_serve) == ("pending", False)
    assert registry.client.get_model_version(name, "1").tags["approval"] == "pending"
    room.store.run(lambda tx: approve(tx, name, 1, who="ann", why="read the card", now=9.0))
    Registry(room.project, room.store)
    assert registry.client.get_model_version(name, "1").tags["approval"] == "approved"


class Interrupted(BaseException):
    """What stands for a crash."""


def test_a_crash_before_the_row_leaves_no_version(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)

    def crash(fn: object) -> None:
        raise Interrupted

    def train() -> None:
        with tracker.run("train", {}) as run:
            runs.append(run)
            with monkeypatch.context() as patch:
                patch.setattr(room.store, "run", crash)
                register(registry, run)

    runs: list[str] = []
    with pytest.raises(Interrupted):
        train()
    assert [int(v.version) for v in versions(registry)] == [1]  # seen until the next start, and marked
    assert BEGUN in versions(registry)[0].tags
    again = Registry(room.project, room.store)
    assert versions(again) == []
    assert "removed" in tracker.client.get_run(runs[0]).data.tags["registration"]
    with tracker.resume(runs[0]) as run:
        row = register(again, run)
    assert row.version == 2  # the number of what never was is not used again
    assert [(int(v.version), v.tags) for v in versions(again)] == [(2, {"engine": "onnx"})]


KILLED = """
import json, os, signal, sys
from mlops_ray.config import Project
from mlops_ray.state import Store
from mlops_ray.training.on_mlflow import Tracker
from mlops_ray.training.on_registry import Registry
from tests.integration.training.test_registry import register

class Deadly(Store):
    armed = False
    def run(self, fn):
        if self.armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(fn)

project = Project.model_validate(json.loads(sys.argv[1]))
store = Deadly.open(project.storage.state)
tracker, registry = Tracker(project, store), Registry(project, store)
with tracker.run("killed", {}) as run:
    print(run, flush=True)
    store.armed = True
    register(registry, run)
"""


def test_a_process_that_was_killed_between_the_two_leaves_nothing_in_sight(room: Room) -> None:
    command = [sys.executable, "-c", KILLED, room.project.model_dump_json()]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == -9, done.stderr[-2000:]
    run = done.stdout.split()[-1]
    registry = Registry(room.project, room.store)
    assert versions(registry) == []
    with room.store.read() as tx:
        assert tx.versions(room.project.project) == []
    tracker = Tracker(room.project, room.store)
    found = tracker.client.get_run(run)
    assert found.info.status == "FAILED"
    assert "v1 was saved" in found.data.tags["registration"]
    with tracker.resume(run):
        assert register(registry, run).version == 2


def versions(registry: Registry) -> list[Any]:
    return list(registry.client.search_model_versions(f"name = '{registry.project.project}'"))


def test_a_crash_after_the_row_is_finished_at_the_next_start(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)

    def crash(number: int) -> None:
        raise Interrupted

    def train() -> None:
        with tracker.run("train", {}) as run, monkeypatch.context() as patch:
            patch.setattr(registry, "_unmark", crash)
            register(registry, run)

    with pytest.raises(Interrupted):
        train()
    assert BEGUN in versions(registry)[0].tags
    Registry(room.project, room.store)
    assert [v.tags for v in versions(registry)] == [{"engine": "onnx"}]


def test_what_another_process_is_registering_is_left_alone(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    save = room.store.run

    def meanwhile(fn: Any) -> Any:
        monkeypatch.undo()
        Registry(room.project, room.store)
        assert [int(v.version) for v in versions(registry)] == [1]
        return save(fn)

    with tracker.run("train", {}) as run:
        monkeypatch.setattr(room.store, "run", meanwhile)
        assert register(registry, run).version == 1
    assert [v.tags for v in versions(registry)] == [{"engine": "onnx"}]


def test_versions_of_others_are_left_alone(room: Room) -> None:
    tracker, registry, name = (
        Tracker(room.project, room.store),
        Registry(room.project, room.store),
        room.project.project,
    )
    with tracker.run("by hand", {}) as run:
        tracker.files(run, "model", {"x": "y"})
    registry.client.create_registered_model(name)
    registry.client.create_model_version(name, f"{tracker.client.get_run(run).info.artifact_uri}/model", run)
    Registry(room.project, room.store)
    assert [int(v.version) for v in versions(registry)] == [1]


def test_a_registry_that_lost_its_versions_is_refused(room: Room) -> None:
    tracker, registry, name = (
        Tracker(room.project, room.store),
        Registry(room.project, room.store),
        room.project.project,
    )
    old = VersionRow(name, 1, "old-run", "/models/old", "a" * 64, "/lake/rows@1", "registered", 1.0, {})
    room.store.run(lambda tx: tx.save_version(old))

    def train() -> None:
        with tracker.run("train", {}) as run:
            register(registry, run)

    with pytest.raises(DataError, match="gave v1 again, which run old-run has"):
        train()
    with room.store.read() as tx:
        assert tx.versions(name) == [old]
    Registry(room.project, room.store)
    assert versions(registry) == []


LOADER = """
import sys, mlflow.sklearn, pandas as pd
model = mlflow.sklearn.load_model(sys.argv[1])
print(model.predict_proba(pd.DataFrame({"x": [0.0], "kind": ["a"]}))[0, 1])
assert not [name for name in sys.modules if name.startswith("mlops_ray")]
"""


def test_mlflows_users_load_a_version_by_its_alias(room: Room) -> None:
    tracker, registry, name = (
        Tracker(room.project, room.store),
        Registry(room.project, room.store),
        room.project.project,
    )
    fitted = pipeline()
    with tracker.run("train", {}) as run:
        register(registry, run, fitted)
    registry.set_alias("champion", 1)
    env = {**os.environ, "MLFLOW_TRACKING_URI": registry.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", LOADER, f"models:/{name}@champion"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) == pytest.approx(fitted.predict_proba(ROWS.head(1))[0, 1])
