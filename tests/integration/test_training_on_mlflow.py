from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable, ModelNotFound
from mlops_ray.training.on_mlflow import Tracker


def project(root: Path, tracking_uri: str | None = None) -> Project:
    return Project.model_validate(
        {
            "project": "tracked",
            "task": "binary",
            "target": "y",
            "key": "id",
            "event_time": "at",
            "storage": {"root": str(root), "tracking_uri": tracking_uri},
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "y", "dtype": "int"},
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "x", "dtype": "float"},
            ],
            "features": {"numeric": {"columns": ["x"]}},
            "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        }
    )


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(project(tmp_path_factory.mktemp("tracked")))


def test_a_run_ends_whatever_happens(tracker: Tracker) -> None:
    with tracker.run("good", {"why": "test"}) as good:
        tracker.log(good, params={"a": 1}, metrics={"m": 0.5, "undefined": float("nan")}, tags={"t": "x" * 900}, at=5.0)
        tracker.trial(good, "one", params={"c": None}, metrics={"log_loss": 0.3}, started=1.0, ended=2.5)
        tracker.trial(good, "two", params={}, metrics={}, started=1.0, ended=2.0, error="boom")
    with pytest.raises(KeyboardInterrupt), tracker.run("interrupted", {}) as interrupted:
        raise KeyboardInterrupt
    found = tracker.client.get_run(good)
    assert found.info.status == "FINISHED"
    assert (found.data.params, found.data.metrics) == ({"a": "1"}, {"m": 0.5})
    assert found.data.tags["why"] == "test"
    assert len(found.data.tags["t"]) == 500
    assert tracker.client.get_run(interrupted).info.status == "FAILED"
    children = tracker.client.search_runs(
        [found.info.experiment_id], f"tags.mlflow.parentRunId = '{good}'", order_by=["attributes.end_time"]
    )
    assert [(c.info.status, c.data.tags.get("error")) for c in children] == [("FAILED", "boom"), ("FINISHED", None)]
    assert children[1].info.end_time - children[1].info.start_time == 1500


def test_files_and_dataset_are_kept_with_the_run(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("files", {}) as run:
        tracker.files(run, "gates", {"gates.json": "{}", "gates.html": "<p>ä</p>"})
        tracker.dataset(run, name="tracked", digest="a" * 48, source="/data@3")
    assert [f.path for f in tracker.client.list_artifacts(run, "gates")] == ["gates/gates.html", "gates/gates.json"]
    assert tracker.client.get_run(run).inputs.dataset_inputs[0].dataset.source == "/data@3"
    # Next to the database, wherever the process stands.
    assert str(tracker._project.storage.path("runs")) in tracker.client.get_run(run).info.artifact_uri


def test_aliases(tracker: Tracker) -> None:
    with tracker.run("version", {}) as run:
        tracker.files(run, "model", {"x": "y"})
    tracker.client.create_registered_model("tracked")
    created = tracker.client.create_model_version("tracked", "file:///nowhere", run)
    assert tracker.alias("champion") is None
    tracker.set_alias("champion", int(created.version))
    assert tracker.alias("champion") == 1
    tracker.delete_alias("champion")
    tracker.delete_alias("champion")
    assert tracker.alias("champion") is None
    with pytest.raises(ModelNotFound, match="no version '7'"):
        tracker.set_alias("champion", 7)


def test_a_second_process_finds_the_experiment(tracker: Tracker) -> None:
    assert Tracker(tracker._project)._experiment == tracker._experiment


def test_a_server_that_is_not_there_is_named_quickly(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"http://127\.0\.0\.1:9 .*storage\.tracking_uri") as caught:
        Tracker(project(tmp_path, "http://127.0.0.1:9"))
    assert time.monotonic() - began < 6
    assert not isinstance(caught.value.__cause__, MlflowException)
