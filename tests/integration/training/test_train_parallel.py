"""Candidates with two workers from rows to a registered version, and back again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from mlops_ray.config import Project
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import table_uri
from mlops_ray.data.schema import conform
from mlops_ray.errors import ConfigError
from mlops_ray.state import Store
from mlops_ray.training import on_parallel
from mlops_ray.training.artifact import model
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.training.on_ray import train
from mlops_ray.training.on_reproduce import reproduce

pytestmark = pytest.mark.ray

DAY_S = 86_400.0
N = 6_000


def project(root: Path) -> Project:
    return Project.model_validate(
        {
            "project": "wide",
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
            "search": {
                "trials": 2,
                "max_s": 300,
                "class_weight": "balanced",
                "candidates": [{"estimator": "xgboost", "workers": 2, "params": {"n_estimators": 20, "max_depth": 3}}],
            },
            "gates": {"min_rows": 200, "resamples": 500},
        }
    )


def rows() -> pa.Table:
    """Forty days with a signal in `x` and `kind`, in no order of time."""
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=N), rng.choice(["a", "b"], N)
    return pa.table(
        {
            "y": (rng.random(N) < 1 / (1 + np.exp(-2 * x - 2 * (kind == "a") + 1))).astype(np.int64),
            "id": [f"k{i}" for i in range(N)],
            "at": pa.array(rng.uniform(0, 40 * DAY_S * 1e6, N).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            "x": pa.array(x, mask=rng.random(N) < 0.05),
            "z": rng.normal(size=N),
            "kind": kind,
        }
    )


def committed(made: Project, n_files: int) -> DatasetVersion:
    """The rows as a version of so many files, of unequal lengths."""
    whole, _ = conform(rows(), made.columns)
    uri = table_uri(made)
    ends = np.round(np.linspace(0, 1, n_files + 1) ** 1.3 * N).astype(int).tolist()
    files = [lake.write_file(uri, f"run/part-{a}.parquet", whole.slice(a, b - a)) for a, b in pairwise(ends)]
    return lake.commit(uri, files, whole.schema, row_hash(whole).hex(), {"made by": "test"})


def silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@pytest.mark.slow
def test_a_version_of_two_workers_is_judged_registered_and_made_again_bit_by_bit(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_parallel, "SHOWN_ROWS", 1000)  # fewer than there are, so that the driver holds a part only
    made = project(tmp_path)
    dataset, store = committed(made, 4), Store.open(made.storage.state)
    given: dict[str, Any] = {"store": store, "champion": None, "now": 1000.0}
    with pytest.raises(ConfigError, match="nothing permutes"):
        train(made, dataset, **given, shuffle_target=True)
    done = train(made, dataset, **given)
    assert done.verdict is Verdict.PASS, done.result.reasons
    assert done.version is not None
    with store.read() as tx:
        assert tx.version("wide", done.version.version) == done.version

    stored = model.load(done.artifact, done.sha256)
    assert stored.engine == "onnx"
    reference = stored.reference
    assert reference.total.n == reference.total.scores.sum() == N
    assert [start for start, _ in reference.blocks] == [day * DAY_S for day in range(40)]
    n, loss = sum(b[1] for b in reference.holdout), sum(b[2] for b in reference.holdout)
    assert loss / n == pytest.approx(done.metrics["log_loss"], abs=1e-5)
    assert reference.calibration is not None
    assert reference.calibration.cells.n.sum() == n

    client = MlflowClient(made.storage.tracking)
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    counted = [run.data.metrics[f"rows.{name}"] for name in splits.NAMES]
    assert counted == [3600, 1200, n]
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{done.run_id}'")
    assert len(children) == 2
    assert min(c.data.metrics["validation.log_loss"] for c in children) == run.data.metrics["validation.log_loss"]

    again = reproduce(made, done.version, search=False, on_progress=silent)
    assert (again.same, again.max_gap, again.n_rows) == ("bit-equal", 0.0, 1200)
    store.close()
