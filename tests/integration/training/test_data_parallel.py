from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from xgboost import XGBClassifier, XGBRegressor

from mlops_ray.config import Project, Task
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.splits import TRAIN, Cut
from mlops_ray.training import target
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_train import fit_parallel, surveyed
from mlops_ray.training.search.shards import Batch, Shards, batches
from mlops_ray.training.target import Classes, Scores

pytestmark = pytest.mark.ray

DAY_S = 86_400.0
PARAMS: dict[str, Any] = {"n_estimators": 40, "max_depth": 4, "learning_rate": 0.2}


def choice(task: Task = "binary", **params: Any) -> Choice:
    name = "XGBRegressor" if task == "regression" else "XGBClassifier"
    return Choice(0, f"xgboost:{name}", {**PARAMS, **params})


def project(root: Path, task: Task, features: dict[str, Any] | None = None) -> Project:
    dtype = {"binary": "int", "multiclass": "string", "regression": "float"}[task]
    return Project.model_validate(
        {
            "project": "small",
            "task": task,
            "target": "y",
            "key": "id",
            "event_time": "at",
            "seed": 5,
            "storage": {"root": str(root)},
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "y", "dtype": dtype},
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "x", "dtype": "float", "nullable": True},
                {"name": "z", "dtype": "float"},
                {"name": "kind", "dtype": "string"},
                {"name": "w", "dtype": "float"},
            ],
            "features": features
            or {"numeric": {"columns": ["x", "z"], "impute": "none"}, "categorical": {"columns": ["kind"]}},
            "search": {"candidates": [{"estimator": "xgboost", "workers": 2}]},
        }
    )


def table(task: Task, n: int) -> pa.Table:
    """A hundred days in order of time, with a signal in `x`, `kind` and the product of `x` and `z`."""
    rng = np.random.default_rng(0)
    x, z, kind = rng.normal(size=n), rng.normal(size=n), rng.choice(["a", "b", "c"], n)
    signal = 1.5 * x + 1.5 * (kind == "a") - x * z
    if task == "regression":
        y: Any = signal + rng.normal(size=n)
    elif task == "multiclass":
        noise = rng.gumbel(size=(3, n))
        y = np.array(["low", "mid", "high"])[np.argmax(np.stack([-signal, 0 * signal, signal]) + noise, axis=0)]
    else:
        y = (rng.random(n) < 1 / (1 + np.exp(-signal))).astype(np.int64)
    return pa.table(
        {
            "y": y,
            "id": [f"k{i}" for i in range(n)],
            "at": pa.array(np.sort(rng.uniform(0, 100 * DAY_S * 1e6, n)).astype(np.int64)).cast(
                pa.timestamp("us", "UTC")
            ),
            "x": pa.array(x, mask=rng.random(n) < 0.05),
            "z": z,
            "kind": kind,
            "w": rng.uniform(0.5, 2.0, n),
        }
    )


def commit(uri: str, whole: pa.Table, n_files: int) -> DatasetVersion:
    """The rows as a version of so many files, of unequal lengths."""
    ends = np.round(np.linspace(0, 1, n_files + 1) ** 1.3 * len(whole)).astype(int).tolist()
    files = [lake.write_file(uri, f"run/part-{a}.parquet", whole.slice(a, b - a)) for a, b in pairwise(ends)]
    return lake.commit(uri, files, whole.schema, row_hash(whole).hex(), {})


@dataclass
class World:
    """A dataset version, cut by time, with its features fitted on the rows that train."""

    project: Project
    table: pa.Table
    dataset: DatasetVersion
    cut: Cut
    partial: Partial
    scratch: str
    classes: Classes

    def shards(self, **changes: Any) -> Shards:
        given: dict[str, Any] = {
            "dataset": self.dataset,
            "cut": self.cut,
            "features": self.project.features,
            "fitted": transformer(self.project.features, self.partial),
            "target": "y",
            "task": self.project.task,
            "classes": self.classes,
        }
        return Shards(**(given | changes))

    def of(self, shards: Shards, role: Any) -> Batch:
        """All rows of that role in this process, in the order of the files."""
        every = list(batches(shards, surveyed(shards, 1).pieces, role))
        weights = (
            None if every[0].weights is None else np.concatenate([b.weights for b in every if b.weights is not None])
        )
        return Batch(np.concatenate([b.matrix for b in every]), np.concatenate([b.y for b in every]), weights)

    def alone(self, shards: Shards, wanted: Choice, seed: int = 5) -> Any:
        """scikit-learn's way: one process, all rows at once."""
        fit = self.of(shards, "fit")
        cls = XGBRegressor if shards.task == "regression" else XGBClassifier
        return cls(**wanted.params, random_state=seed, n_jobs=1).fit(fit.matrix, fit.y, sample_weight=fit.weights)


def world_of(root: Path, task: Task, *, n: int = 12_000, n_files: int = 3, features: Any = None) -> World:
    made, whole = project(root, task, features), table(task, n)
    dataset = commit(str(root / "table"), whole, n_files)
    times = whole["at"].cast(pa.int64()).to_numpy()
    cut = splits.cut(made.split, event_time="at", key="id", salt="small", times=times)
    (partial,) = fit_features(made, dataset, cut, (TRAIN,))
    return World(made, whole, dataset, cut, partial, str(root / "scratch"), target.classes(task, whole["y"]))


@pytest.fixture(scope="module")
def world(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return world_of(tmp_path_factory.mktemp("parallel"), "binary")


def scores(estimator: Any, batch: Batch, task: Task) -> Scores:
    if task == "regression":
        return np.asarray(estimator.predict(batch.matrix), dtype=np.float64)
    said = np.asarray(estimator.predict_proba(batch.matrix), dtype=np.float64)
    return said[:, 1] if task == "binary" else said


def loss(estimator: Any, batch: Batch, task: Task) -> float:
    return float(target.losses(task, batch.y, scores(estimator, batch, task)).mean())


def test_two_workers_fit_as_well_as_one_process(world: World) -> None:
    shards = world.shards()
    seen: list[tuple[int, float]] = []
    fit = fit_parallel(
        rows,
        choice(),
        workers=2,
        seed=5,
        scratch=world.scratch,
        timeout_s=120,
        on_round=lambda r, v: seen.append((r, v)),
    )
    print(fit.workers, fit.seconds, fit.starts)
    alone = world.alone(shards, choice())
    judge = world.of(shards, "judge")
    print(loss(fit.estimator, judge, "binary"), loss(alone, judge, "binary"), fit.boosted.value)
