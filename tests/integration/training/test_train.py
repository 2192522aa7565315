from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient
from sklearn.base import BaseEstimator, TransformerMixin

from mlops_ray.config import Project, Split
from mlops_ray.config.features import Custom
from mlops_ray.data import lake, splits
from mlops_ray.data.features.statistics import to_columns, to_frame
from mlops_ray.data.lake import DatasetVersion, read
from mlops_ray.data.on_ray import snapshot
from mlops_ray.errors import ArtifactRefused, ConfigError, DataError
from mlops_ray.state import Store
from mlops_ray.training.artifact import model
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.training.on_ray import Trained, train

pytestmark = pytest.mark.ray

DAY_S = 86_400.0
LOGISTIC: dict[str, Any] = {
    "estimator": "sklearn.linear_model:LogisticRegression",
    "space": {"C": {"kind": "log_uniform", "low": 0.01, "high": 10}},
}
TREE: dict[str, Any] = {
    "estimator": "sklearn.tree:DecisionTreeClassifier",
    "space": {"max_depth": {"kind": "int", "low": 2, "high": 5}},
}
BROKEN: dict[str, Any] = {
    # Legal one by one, refused together when fitted.
    "estimator": "sklearn.linear_model:LogisticRegression",
    "params": {"solver": "newton-cholesky", "dual": True},
}


class Doubled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A type that is not scikit-learn's."""

    def fit(self, X: Any, y: Any = None) -> Doubled:  # noqa: N803
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803
        return 2 * np.asarray(X)


def project(root: Path, *candidates: dict[str, Any], trials: int = 4) -> Project:
    return Project.model_validate(
        {
            "project": "small",
            "task": "binary",
            "target": "y",
            "key": "id",
            "event_time": "at",
            "seed": 5,
            "storage": {"root": str(root)},
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "y", "dtype": "int"},
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "x", "dtype": "float", "nullable": True},
                {"name": "z", "dtype": "float"},
                {"name": "kind", "dtype": "string"},
            ],
            "features": {"numeric": {"columns": ["x", "z"]}, "categorical": {"columns": ["kind"]}},
            "search": {"trials": trials, "candidates": list(candidates or (LOGISTIC, TREE))},
            "gates": {"min_rows": 200, "resamples": 500, "limits": [{"metric": "roc_auc", "min": 0.6}]},
        }
    )


def rows(n: int = 2000) -> pa.Table:
    """Forty days with a signal in `x` and `kind`, in no order of time."""
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=n), rng.choice(["a", "b"], n)
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * x - 2 * (kind == "a") + 1))).astype(np.int64)
    return pa.table(
        {
            "y": y,
            "id": [f"k{i}" for i in range(n)],
            "at": pa.array(rng.uniform(0, 40 * DAY_S * 1e6, n).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            "x": pa.array(x, mask=rng.random(n) < 0.05),
            "z": rng.normal(size=n),
            "kind": kind,
        }
    )


class World:
    """One storage root with a dataset version, and the runs that tests share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = project(root)
        self.dataset: DatasetVersion = snapshot(self.project, rows(), {"made by": "test"})
        lake.write_sidecar(self.dataset.uri, self.dataset.content_hash, "validation.html", b"<p>2,000 good rows</p>")
        self.store = Store.open(self.project.storage.state)
        self.client = MlflowClient(self.project.storage.tracking)

    def train(self, **changes: Any) -> Trained:
        given: dict[str, Any] = {"store": self.store, "champion": None, "now": 1000.0} | changes
        return train(given.pop("project", self.project), self.dataset, **given)


@pytest.fixture(scope="module")
def world(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def first(world: World) -> Trained:
    return world.train(tags={"retrain": "r1"})


def test_a_good_model_is_judged_packaged_and_registered(world: World, first: Trained) -> None:
    assert first.verdict is Verdict.PASS, first.result.reasons
    assert {c.name for c in first.result.checks} == {
        "rows",
        "limit.roc_auc",
        "better_than_constant",
        *(f"leakage.{what}" for what in ("feature", "duplicates", "time_order")),
        *(f"infrastructure.{what}" for what in ("loads", "environment", "latency", "size")),
    }
    version = first.version
    assert version is not None
    with world.store.read() as tx:
        assert tx.version("small", version.version) == version
    assert version.tags["retrain"] == "r1"
    assert (version.status, version.created, version.sha256) == ("registered", 1000.0, first.sha256)
    loaded = model.load(version.artifact, version.sha256)
    assert loaded.engine == "onnx"
    assert [p.name for p in Path(version.artifact).parent.iterdir()] == [first.run_id]
    assert [f.path for f in world.client.list_artifacts(first.run_id, "data")] == ["data/validation.html"]
    registered = world.client.get_model_version("small", str(version.version))
    assert registered.tags["sha256"] == first.sha256
    assert registered.run_id == first.run_id


def test_the_reference_describes_all_rows_by_models_that_did_not_see_them(world: World, first: Trained) -> None:
    reference = model.load(first.artifact, first.sha256).reference
    assert reference.total.n == reference.total.scores.sum() == 2000
    assert [start % DAY_S for start, _ in reference.blocks] == [0] * 40
    assert reference.calibration is not None
    assert reference.calibration.cells.n.sum() == sum(b[1] for b in reference.holdout)
    assert reference.calibration.cells.sums.sum() == sum(b[3] for b in reference.holdout)
    n, loss = sum(b[1] for b in reference.holdout), sum(b[2] for b in reference.holdout)
    assert n == 400
    assert loss / n == pytest.approx(first.metrics["log_loss"], abs=1e-5)


def test_the_run_tells_the_story(world: World, first: Trained) -> None:
    run = world.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] == "pass"
    assert run.data.tags["dataset.content_hash"] == world.dataset.content_hash
    assert run.data.metrics["rows.holdout"] == 400
    children = world.client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{first.run_id}'")
    assert [c.info.status for c in children] == ["FINISHED"] * 4
    assert {c.data.params["estimator"] for c in children} == {LOGISTIC["estimator"], TREE["estimator"]}
    assert min(c.data.metrics["validation.log_loss"] for c in children) == run.data.metrics["validation.log_loss"]
    local = world.client.download_artifacts(first.run_id, "gates", str(world.root))
    assert json.loads((Path(local) / "gates.json").read_text())["verdict"] == "pass"
    assert "infrastructure" in (Path(local) / "gates.html").read_text()
    assert ElementTree.parse(Path(local) / "gates.xml").getroot().get("failures") == "0"
    plots = {Path(file.path).name for file in world.client.list_artifacts(first.run_id, "plots")}
    assert plots >= {"roc.png", "calibration.png", "confusion.png", "importance.png"}


def test_mlflow_alone_loads_the_registered_model(world: World, first: Trained, tmp_path: Path) -> None:
    """In a process in which `mlops_ray` cannot be imported."""
    table = read(world.dataset)
    columns = to_columns(world.project.features, table)
    to_frame(world.project.features, columns).to_parquet(tmp_path / "frame.parquet")
    assert first.version is not None
    program = f"""
import sys
sys.modules["mlops_ray"] = None
import json, mlflow, pandas as pd
mlflow.set_tracking_uri({world.project.storage.tracking!r})
model = mlflow.sklearn.load_model("models:/small/{first.version.version}")
frame = pd.read_parquet({str(tmp_path / "frame.parquet")!r})
frame["kind"] = frame["kind"].astype(object)
print(json.dumps(model.predict_proba(frame)[:, 1].tolist()))
try:
    import mlops_ray.config
except ImportError:
    print("alone")
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores, alone = done.stdout.strip().splitlines()[-2:]
    assert alone == "alone"
    ours = model.load(first.artifact, first.sha256).score(columns)
    np.testing.assert_allclose(json.loads(scores), ours, atol=1e-6)


def test_shuffled_labels_are_refused_with_and_without_a_champion(world: World, first: Trained) -> None:
    for champion in (None, first.version):
        planted = world.train(champion=champion, shuffle_target=True)
        assert planted.verdict is Verdict.FAIL
        assert planted.version is None
        assert Path(planted.artifact).is_dir()
        assert world.client.get_run(planted.run_id).data.tags["verdict"] == "fail"
    assert "no_worse_than_champion" in " ".join(planted.result.reasons)
    with world.store.read() as tx:
        assert len(tx.versions("small")) == len(world.client.search_model_versions("name='small'"))


def test_the_same_run_again_gives_the_same_model_no_worse_than_itself(world: World, first: Trained) -> None:
    stages: list[str] = []
    again = world.train(champion=first.version, on_progress=lambda stage, done, total: stages.append(stage))
    assert again.choice == first.choice
    assert again.metrics == first.metrics
    assert again.verdict is Verdict.PASS
    assert again.version is not None
    assert first.version is not None
    assert again.version.version > first.version.version
    assert list(dict.fromkeys(stages)) == list(again.seconds)
    assert stages.count("search") >= 6


def test_a_split_by_hash_of_the_key_is_recorded_and_kept_to(world: World) -> None:
    split = Split(by="hash", holdout_share=0.25)
    done = world.train(project=project(world.root, trials=2).model_copy(update={"split": split}))
    assert done.verdict is Verdict.PASS, done.result.reasons
    run = world.client.get_run(done.run_id).data
    cut = splits.cut(split, event_time="at", key="id", salt="small", times=[])
    assert json.loads(run.params["split"]) == cut.to_dict()
    sides = splits.assign(cut, read(world.dataset))
    for side, name in enumerate(splits.NAMES):
        assert run.metrics[f"rows.{name}"] == (sides == side).sum()
    reference = model.load(done.artifact, done.sha256).reference
    assert sum(n for _, n, _, _ in reference.holdout) == (sides == splits.HOLDOUT).sum()
    assert reference.total.n == 2000


def test_a_side_without_rows_is_refused(world: World) -> None:
    split = Split(by="group", group=("kind",))
    with pytest.raises(DataError, match=r"no row of .* falls to"):
        world.train(project=project(world.root).model_copy(update={"split": split}))


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(world: World) -> None:
    done = world.train(project=project(world.root, BROKEN, LOGISTIC))
    assert done.choice.candidate == 1
    experiment = world.client.get_run(done.run_id).info.experiment_id
    children = world.client.search_runs([experiment], f"tags.mlflow.parentRunId = '{done.run_id}'")
    failed = [c for c in children if c.info.status == "FAILED"]
    assert len(children) == 4
    assert failed
    assert all("dual" in c.data.tags["error"] for c in failed)


def test_when_every_trial_fails_the_run_fails_and_says_why(world: World) -> None:
    with pytest.raises(DataError, match=r"no trial succeeded; .*dual"):
        world.train(project=project(world.root, BROKEN, trials=1))
    newest = world.client.search_runs(
        [world.client.get_experiment_by_name("small").experiment_id], order_by=["attributes.start_time DESC"]
    )
    assert {r.info.status for r in newest[:2]} == {"FAILED"}
    assert all(r.info.status != "RUNNING" for r in newest)


def test_a_run_that_ended_after_packaging_is_resumed_beside_what_it_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = project(world.root, trials=3).model_copy(update={"seed": 77})
    with monkeypatch.context() as broken:
        broken.setattr("mlops_ray.training.report.pages", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.train(project=made)
    stages: list[str] = []
    done = world.train(
        project=made, resume=True, on_progress=lambda stage, done, total: stages.append(f"{stage} {done}")
    )
    assert done.verdict is Verdict.PASS, done.result.reasons
    assert done.artifact.endswith(f"{done.run_id}-2")
    assert Path(done.artifact.removesuffix("-2")).is_dir()
    children = world.client.search_runs(
        [world.client.get_run(done.run_id).info.experiment_id], f"tags.mlflow.parentRunId = '{done.run_id}'"
    )
    assert len(children) == 3
    with pytest.raises(DataError, match="no interrupted search"):
        world.train(project=made, resume=True)


def test_what_cannot_work_is_refused_before_the_search(world: World, first: Trained) -> None:
    unknown = LOGISTIC | {"params": {"sea": 1}}
    with pytest.raises(ConfigError, match="takes no parameter 'sea'"):
        world.train(project=project(world.root, unknown))
    # The one candidate cannot be fitted either: whoever asks the search first hears of that.
    foreign = project(world.root, BROKEN, trials=1)
    custom = Custom(transformer=f"{__name__}:Doubled", columns=("z",))
    foreign = foreign.model_copy(update={"features": foreign.features.model_copy(update={"custom": custom})})
    with pytest.raises(DataError, match=r"features.custom: holds .*Doubled.*; if you trust it, .*trusted_types"):
        world.train(project=foreign)
    assert first.version is not None
    with pytest.raises(ArtifactRefused):
        world.train(champion=replace(first.version, sha256="0" * 64))
