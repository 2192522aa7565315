"""Projects of several classes and of numbers, on a cluster: served, tried with a canary, logged."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml

from mlops_ray import verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster.processes import free_port
from mlops_ray.data import lake
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import log_uri
from mlops_ray.verbs import rollout
from tests.fakes import eventually
from tests.loop.conftest import Live, brought_up

with warnings.catch_warnings():  # MLflow looks at its own classes when imported, and warns of them
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

_N, _KEYS = 3_000, 200
_ESTIMATORS = {"multiclass": "sklearn.linear_model:LogisticRegression", "regression": "sklearn.linear_model:Ridge"}
_COLOURS = np.array(["blue", "green", "red"], dtype=object)


def project(folder: Path, task: str, http_port: int) -> Path:
    """The file of a project whose target follows from its one number and its one category. All of a folder share a
    state database, and so a cluster."""
    draw = np.random.default_rng(5)
    x, kind = draw.normal(size=_N), draw.integers(0, 2, _N)
    signal = x + kind + draw.normal(scale=0.3, size=_N)
    y = signal if task == "regression" else _COLOURS[np.digitize(signal, [0.0, 1.0])]
    times = pd.to_datetime(1_735_689_600 + 3_600 * np.arange(_N), unit="s", utc=True)
    ids = [f"c{i}" for i in range(_N)]
    table = pd.DataFrame({"id": ids, "at": times, "x": x, "kind": np.array(["a", "b"])[kind], "y": y})
    rows = folder / f"{task}.parquet"
    table.to_parquet(rows)
    content: dict[str, Any] = {
        "project": task,
        "task": task,
        "target": "y",
        "key": "id",
        "event_time": "at",
        "storage": {"root": str(folder / "root")},
        "cluster": {"http_port": http_port},
        "monitoring": {"metrics_port": free_port()},
        "capture": {"commit_s": 1.0, "commit_idle_s": 2.0},
        "rollout": {"shares": [0.5]},
        "source": {"kind": "parquet", "path": str(rows)},
        "columns": [
            {"name": "id", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "x", "dtype": "float"},
            {"name": "kind", "dtype": "string"},
            {"name": "y", "dtype": "float" if task == "regression" else "string"},
        ],
        "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["kind"]}},
        "search": {"trials": 1, "candidates": [{"estimator": _ESTIMATORS[task]}]},
    }
    file = folder / "files" / f"{task}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def predictions(live: Live) -> list[dict[str, Any]]:
    """One for each key, each in a request of its own."""
    found = []
    for i in range(_KEYS):
        row = {"id": f"k{i}", "x": 0.02 * i - 2, "kind": "a"}
        answer = httpx.post(f"{live.url}/predict", json={"rows": [row]}, timeout=30)
        assert answer.status_code == 200, answer.text
        found += answer.json()["predictions"]
    return found


def phase(live: Live) -> str:
    return str(rollout.history(live.paths, os.environ)["rollouts"][0]["state"]["phase"])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[dict[str, Live]]:
    """A project of each kind on one cluster."""
    folder, port = tmp_path_factory.mktemp("kinds"), free_port()
    with contextlib.ExitStack() as stack:
        yield {task: stack.enter_context(brought_up([project(folder, task, port)])) for task in _ESTIMATORS}


@pytest.mark.parametrize("task", _ESTIMATORS)
def test_it_is_served_tried_and_logged(both: dict[str, Live], task: str) -> None:
    live = both[task]
    first = predictions(live)
    assert {p["variant"] for p in first} == {"stable"}
    if task == "multiclass":
        assert {p["label"] for p in first} == {"blue", "green", "red"}
        assert all(sum(p["probabilities"].values()) == pytest.approx(1, abs=1e-3) for p in first)
    else:
        assert [p["prediction"] for p in first] == sorted(p["prediction"] for p in first)
    row = pd.DataFrame({"id": ["k0"], "x": [-2.0], "kind": ["a"]})
    host, rest = live.url.removeprefix("http://").split(":")
    (told,) = ScoringServerClient(host, rest).invoke(row).get_predictions().to_numpy().ravel()
    assert told == first[0]["prediction" if task == "regression" else "label"]

    second = verbs.train(live.paths, os.environ)["version"]
    rollout.start(live.paths, os.environ, second, "another one")
    eventually(lambda: phase(live) == "ramping", within_s=120.0)
    eventually(lambda: {p["variant"] for p in predictions(live)} == {"stable", "canary"}, within_s=60.0)
    tried = predictions(live)
    assert 60 < sum(p["version"] == second for p in tried) < 140
    for before, after in zip(first, tried, strict=True):
        name = "prediction" if task == "regression" else "probabilities"
        assert after[name] == pytest.approx(before[name], rel=1e-3)  # the same rows were learnt

    with cluster.connected(live.project):
        on_collectors.flush(task)
    rows = lake.scan(log_uri(live.project), "2000-01-01", "2100-01-01", log.prediction_schema(live.project))
    ids = rows["prediction_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert {p["prediction_id"] for p in [*first, *tried]} <= set(ids)
    mine = rows.filter(rows["canary"].is_valid())
    assert mine["canary_score"].null_count == mine["canary_score_us"].null_count == 0
    if task == "multiclass":
        assert {len(scores) for scores in mine["canary_scores"].to_pylist()} == {3}
