"""Every task from rows to a registered version and back again, with what the project file may ask for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import prepare
from mlops_ray.data.splits import HOLDOUT
from mlops_ray.data.traces import Needles
from mlops_ray.errors import DataError
from mlops_ray.retraining import deciding
from mlops_ray.retraining import on_ray as retraining
from mlops_ray.serving.log import erasure, forget
from mlops_ray.state import Store, VersionRow
from mlops_ray.training import rows as rows_of
from mlops_ray.training.artifact import model
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.training.on_machine import Checkout
from mlops_ray.training.on_ray import Trained, train
from mlops_ray.training.on_reproduce import reproduce

pytestmark = pytest.mark.ray

DAY_S = 86_400.0
TARGETS = {"binary": "int", "multiclass": "string", "regression": "float"}
PRESETS = ("linear", "random_forest", "extra_trees", "hist_gradient_boosting", "xgboost", "lightgbm")
SMALL: dict[str, dict[str, Any]] = {
    "random_forest": {"n_estimators": 20},
    "extra_trees": {"n_estimators": 20},
    "hist_gradient_boosting": {"max_iter": 20},
    "xgboost": {"n_estimators": 20},
    "lightgbm": {"n_estimators": 20},
}


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def table(task: str, n: int = 1500) -> pa.Table:
    """Forty days with a signal in `x` and `kind`."""
    rng = np.random.default_rng(3)
    x, kind = rng.normal(size=n), rng.choice(["a", "b", "c"], n)
    signal = 2 * x + 2 * (kind == "a")
    y = {
        "binary": (rng.random(n) < 1 / (1 + np.exp(1 - signal))).astype(np.int64),
        "multiclass": np.array(["low", "mid", "top"])[np.digitize(signal + rng.normal(size=n), [0.0, 2.0])],
        "regression": signal + rng.normal(size=n),
    }[task]
    return pa.table(
        {
            "y": y,
            "id": [f"k{i}" for i in range(n)],
            "at": pa.array(rng.uniform(0, 40 * DAY_S * 1e6, n).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            "x": pa.array(x, mask=rng.random(n) < 0.05),
            "w": rng.uniform(0.5, 1.5, n),
            "kind": kind,
        }
    )


def body(root: Path, task: str, candidates: list[Any], **blocks: Any) -> dict[str, Any]:
    return {
        "project": f"of_{task}",
        "task": task,
        "target": "y",
        "key": "id",
        "event_time": "at",
        "seed": 5,
        "storage": {"root": str(root)},
        "source": {"kind": "parquet", "path": str(root / "rows.parquet")},
        "columns": [
            {"name": "y", "dtype": TARGETS[task]},
            {"name": "id", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "x", "dtype": "float", "nullable": True},
            {"name": "w", "dtype": "float"},
            {"name": "kind", "dtype": "string"},
        ],
        "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["kind"]}},
        "search": {"trials": 2, "candidates": candidates, **blocks.pop("search", {})},
        "gates": {"min_rows": 200, "resamples": 500, "margin": 0.05, **blocks.pop("gates", {})},
        **blocks,
    }


class World:
    """One storage root per task."""

    def __init__(self, root: Path, task: str) -> None:
        self.root, self.task = root, task
        pq.write_table(table(task), root / "rows.parquet")
        self.dataset: DatasetVersion = prepare(self.project(["linear"]), now=0.0).dataset
        self.store = Store.open(self.project(["linear"]).storage.state)

    def project(self, candidates: list[Any], **blocks: Any) -> Project:
        return Project.model_validate(body(self.root, self.task, candidates, **blocks))

    def train(self, project: Project, champion: VersionRow | None = None, **more: Any) -> Trained:
        return train(project, self.dataset, store=self.store, champion=champion, now=1000.0, **more)


@pytest.fixture(scope="module")
def worlds(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    made: dict[str, World] = {}

    def world(task: str) -> World:
        if task not in made:
            made[task] = World(tmp_path_factory.mktemp(task), task)
        return made[task]

    return world


# Three presets with one task each, so that each task is there; every preset with every task takes minutes.
_PAIRS = [
    pytest.param(task, preset, marks=() if i == j else pytest.mark.slow)
    for i, preset in enumerate(PRESETS)
    for j, task in enumerate(TARGETS)
]


@pytest.mark.parametrize(("task", "preset"), _PAIRS)
def test_each_preset_is_made_again_bit_by_bit(worlds: Callable[[str], World], task: str, preset: str) -> None:
    world = worlds(task)
    project = world.project([{"estimator": preset, "params": SMALL.get(preset, {})}])
    done = world.train(project)
    assert done.verdict is Verdict.PASS, done.result.reasons
    assert done.version is not None
    loaded = model.load(done.artifact, done.sha256)
    assert (loaded.task, loaded.engine) == (task, "onnx"), loaded.manifest["reason"]
    again = reproduce(project, done.version, search=False, on_progress=silent)
    assert (again.same, again.max_gap) == ("bit-equal", 0.0)


@pytest.mark.parametrize("task", ["binary", pytest.param("multiclass", marks=pytest.mark.slow)])
def test_weights_calibration_threshold_and_folds_together(worlds: Callable[[str], World], task: str) -> None:
    world = worlds(task)
    search: dict[str, Any] = {
        "cross_validation": {"folds": 3},
        "sample_weight": "w",
        "class_weight": "balanced",
        "calibrate": "isotonic",
    }
    if task == "binary":
        search["threshold"] = {"cost": {"false_positive": 1, "false_negative": 4}}
    project = world.project(["linear"], search=search, gates={"calibration": {"max_error": 0.2}})
    done = world.train(project)
    assert done.verdict is Verdict.PASS, done.result.reasons
    assert done.version is not None
    loaded = model.load(done.artifact, done.sha256)
    if task == "binary":
        # A miss costs four times a false alarm: from a fifth on it pays to say yes.
        assert loaded.threshold is not None
        assert 0.1 < loaded.threshold < 0.35
    assert reproduce(project, done.version, search=True, on_progress=silent).search == {
        "same": True,
        "winner": f"{done.choice.estimator} {dict(done.choice.params)}",
        "score": pytest.approx(loaded.recipe["score"]),
        "score_then": loaded.recipe["score"],
    }


@pytest.mark.parametrize("calibrate", [pytest.param("none", marks=pytest.mark.slow), "sigmoid"])
def test_what_learnt_from_its_holdout_is_judged_without_it_and_made_again(
    worlds: Callable[[str], World], calibrate: str
) -> None:
    world = worlds("binary")
    project = world.project(["linear"], search={"calibrate": calibrate})
    without, done = (world.train(project, refit=refit) for refit in (False, True))
    assert done.verdict is Verdict.PASS, done.result.reasons
    assert done.version is not None
    assert done.metrics == without.metrics
    said, before = (model.load(each.artifact, each.sha256) for each in (done, without))
    assert said.sha256 == done.version.sha256
    assert said.reference.to_dict() == before.reference.to_dict()
    rows = rows_of.read(project, world.dataset)
    holdout = rows.inputs(rows.of(HOLDOUT))
    assert np.abs(said.score(holdout) - before.score(holdout)).max() > 1e-4
    again = reproduce(project, done.version, search=False, on_progress=silent)
    assert (again.same, again.max_gap) == ("bit-equal", 0.0)


@pytest.mark.parametrize(
    "task", ["regression", *(pytest.param(task, marks=pytest.mark.slow) for task in ("binary", "multiclass"))]
)
def test_the_champion_is_judged_on_the_same_rows(worlds: Callable[[str], World], task: str) -> None:
    world = worlds(task)
    first = world.train(world.project(["linear"]))
    assert first.version is not None
    second = world.train(world.project(["hist_gradient_boosting"]), champion=first.version)
    assert "no_worse_than_champion" in {check.name for check in second.result.checks}
    planted = world.train(world.project(["linear"]), champion=first.version, shuffle_target=True)
    assert planted.verdict is Verdict.FAIL
    assert planted.version is None


def test_a_retrain_for_changed_code_or_file_is_due_once(
    worlds: Callable[[str], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds("binary")
    project = world.project(["linear"])
    done = world.train(project)
    assert done.version is not None
    recipe = model.load(done.artifact, done.sha256).recipe
    code = Checkout(recipe["commit"] or "f" * 40, False, None)
    monkeypatch.setattr(retraining, "checkout", lambda: code)
    dirty = ("uncommitted changes of the code",) if recipe["dirty"] else ()
    assert retraining.changes(project, world.store)[1] == dirty
    edited = world.project(["linear"], seed=6)
    made_of, said = retraining.changes(edited, world.store)
    assert said == ("`seed` of the project file", *dirty)
    row = retraining.order(world.store, edited, "changed", who="ci", trigger=deciding.CODE, made_of=made_of)
    for status, again in (("failed", said), ("rejected", ())):  # what failed is tried again, what was refused is not
        ended = replace(row, status=status)
        world.store.run(lambda tx, ended=ended: tx.save_retrain(ended))
        assert retraining.changes(edited, world.store) == (made_of, again)


def test_what_differs_in_the_environment_is_named(worlds: Callable[[str], World]) -> None:
    """One version of the record is changed by hand, and with it the hash under which the artifact is registered."""
    world = worlds("binary")
    project = world.project(["linear"])
    done = world.train(project)
    assert done.version is not None
    manifest = Path(done.artifact) / "manifest.json"
    recorded = json.loads(manifest.read_text())
    then = recorded["lock"]["scikit-learn"]
    recorded["lock"]["scikit-learn"] = "1.7.2"
    manifest.write_bytes(json.dumps(recorded, sort_keys=True, separators=(",", ":")).encode())
    changed = replace(done.version, sha256=hashlib.sha256(manifest.read_bytes()).hexdigest())
    again = reproduce(project, changed, search=False, on_progress=silent)
    assert again.same == "bit-equal"
    about = [said for said in again.differences if "scikit-learn" in said]
    assert len(about) == 1
    assert "1.7.2" in about[0]
    assert then in about[0]


def test_a_dataset_version_that_lost_rows_to_a_request_is_used_as_it_is_and_says_so(
    worlds: Callable[[str], World], tmp_path: Path
) -> None:
    world = World(tmp_path, "binary")
    project = world.project(["linear"])
    done = world.train(project)
    assert done.version is not None
    needles = Needles(("k7",))
    order = forget.opened(project, b"s", ("k7",), who="clerk", why="asked to", now=2e9)
    erasure.run(project, order, needles, b"s", flush=lambda: None, now=2e9, on_progress=silent)
    again = reproduce(project, done.version, search=False, on_progress=silent)
    (said,) = [said for said in again.differences if "redacted" in said]
    assert world.dataset.content_hash in said
    assert "1 rows were forgotten" in said


def test_a_dataset_version_that_is_gone_cannot_be_made_again(worlds: Callable[[str], World], tmp_path: Path) -> None:
    world = World(tmp_path, "binary")
    project = world.project(["linear"])
    done = world.train(project)
    assert done.version is not None
    for path in lake.files(world.dataset):
        (Path(world.dataset.uri) / path).unlink()
    with pytest.raises(DataError, match="lost a file"):
        reproduce(project, done.version, search=False, on_progress=silent)


def test_a_fresh_process_makes_the_same_version(worlds: Callable[[str], World], tmp_path: Path) -> None:
    """By the command, on a Ray of its own."""
    world = worlds("regression")
    project = world.project(["hist_gradient_boosting"])
    done = world.train(project)
    assert done.version is not None
    file = tmp_path / "project.yaml"
    file.write_text(yaml.safe_dump(body(world.root, "regression", ["hist_gradient_boosting"])))
    command = [sys.executable, "-m", "mlops_ray", "reproduce", "-c", str(file), str(done.version.version), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["same"], said["max_gap"]) == ("bit-equal", 0.0)
    assert said["n_rows"] == len(rows_of.read(project, world.dataset).of(HOLDOUT))
