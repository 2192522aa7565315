"""Data-parallel fits: two workers on one machine, each with its own shards."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline
from xgboost import XGBClassifier, XGBRegressor

from mlops_ray.config import Project, Task
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.features.statistics import Partial, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, Cut
from mlops_ray.errors import BackendUnavailable, ConfigError, DataError
from mlops_ray.training import target
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_team import Fit, Team
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


LONG_S = 120.0


@dataclass
class Pair:
    team: Team
    fit: Fit
    told: tuple[tuple[int, float], ...]


def loss(estimator: Any, batch: Batch, task: Task) -> float:
    return float(target.losses(task, batch.y, scores(estimator, batch, task)).mean())


@pytest.fixture(scope="module")
def pair(world: World) -> Iterator[Pair]:
    """Two workers that outlive the tests which only ask them for fits, and what they said of one."""
    shards = world.shards()
    with Team(shards, surveyed(shards, 2), 2, scratch=world.scratch, fits=20, save_s=0.0) as team:
        told: list[tuple[int, float]] = []
        fit = team.fit(
            choice(), seed=5, metric="log_loss", timeout_s=LONG_S, on_round=lambda done, at: told.append((done, at))
        )
        yield Pair(team, fit, tuple(told))


def test_each_worker_held_its_own_rows_and_no_others(world: World, pair: Pair) -> None:
    sides = splits.assign(world.cut, world.table)
    held = pair.fit.workers
    assert [worker.rank for worker in held] == [0, 1]
    assert sum(worker.n_fit for worker in held) == int((sides == TRAIN).sum())
    assert sum(worker.n_judge for worker in held) == int((sides == VALIDATION).sum())
    for worker in held:
        assert 0.4 < worker.n_fit / (sides == TRAIN).sum() < 0.6
        assert 0.4 < worker.n_judge / (sides == VALIDATION).sum() < 0.6


def test_two_workers_fit_as_well_as_one_process(world: World, pair: Pair) -> None:
    shards = world.shards()
    judge, alone = world.of(shards, "judge"), world.alone(shards, choice())
    base = float(target.losses("binary", judge.y, target.constant("binary", judge.y, 2)).mean())
    single, parallel = loss(alone, judge, "binary"), loss(pair.fit.estimator, judge, "binary")
    assert single < base - 0.1, "there is something to learn"
    assert abs(parallel - single) < 0.005
    assert np.abs(scores(alone, judge, "binary") - scores(pair.fit.estimator, judge, "binary")).mean() < 0.02


def test_every_round_tells_the_loss_on_the_judging_rows(world: World, pair: Pair) -> None:
    judge, estimator = world.of(world.shards(), "judge"), pair.fit.estimator
    assert [done for done, _ in pair.told] == list(range(1, 41))
    for done in (1, 20, 40):
        said = estimator.predict_proba(judge.matrix, iteration_range=(0, done))[:, 1]
        assert pair.told[done - 1][1] == pytest.approx(float(target.losses("binary", judge.y, said).mean()), abs=1e-6)


def test_the_same_fit_again_is_equal_to_the_bit(pair: Pair) -> None:
    again = pair.team.fit(choice(), seed=5, metric="log_loss", timeout_s=LONG_S)
    assert again.boosted.raw == pair.fit.boosted.raw
    sampled = [
        pair.team.fit(choice(subsample=0.5), seed=seed, metric="log_loss", timeout_s=LONG_S).boosted.raw
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_estimator_is_plain_and_fits_the_pipeline(world: World, pair: Pair) -> None:
    estimator = pair.fit.estimator
    assert type(estimator) is XGBClassifier
    assert (estimator.n_classes_, estimator.n_features_in_, estimator.get_params()["max_depth"]) == (2, 5, 4)
    pipeline = Pipeline([("features", world.shards().fitted), ("model", estimator)])
    columns = to_columns(world.project.features, world.table)
    said = pipeline.predict_proba(to_frame(world.project.features, columns))
    assert said.shape == (len(world.table), 2)
    judge = splits.assign(world.cut, world.table) == VALIDATION
    y = world.table["y"].to_numpy()[judge]
    assert float(target.losses("binary", y, said[judge, 1]).mean()) == pytest.approx(pair.fit.boosted.value, abs=1e-6)
    copy = pickle.loads(pickle.dumps(estimator))
    assert (
        copy.predict(world.of(world.shards(), "judge").matrix)
        == estimator.predict(world.of(world.shards(), "judge").matrix)
    ).all()


def test_a_fit_is_stopped_where_its_caller_says(pair: Pair) -> None:
    fit = pair.team.fit(choice(), seed=5, metric="log_loss", timeout_s=LONG_S, on_round=lambda done, _: done == 7)
    assert (fit.boosted.rounds, fit.boosted.stopped, fit.estimator.get_booster().num_boosted_rounds()) == (7, True, 7)


def test_parameters_of_its_own_end_a_fit_early(world: World, pair: Pair) -> None:
    eager = choice(learning_rate=0.9, n_estimators=200, early_stopping_rounds=5)
    fit = pair.team.fit(eager, seed=5, metric="roc_auc", timeout_s=LONG_S)
    judge, best = world.of(world.shards(), "judge"), fit.boosted.best_round
    assert best + 5 == fit.boosted.rounds < 200
    assert fit.estimator.best_iteration == best - 1
    # Counted by float32 scores' upper bits, so not to the last digit.
    assert fit.boosted.best == pytest.approx(roc_auc_score(judge.y, scores(fit.estimator, judge, "binary")), abs=1e-3)


def test_what_cannot_be_built_is_refused_before_any_worker_hears_of_it(pair: Pair) -> None:
    for wrong, said in (
        (choice(max_depth=-3), "max_depth"),
        (choice(objective="reg:squarederror"), "objective"),
        (choice(tree_method="exact"), "tree_method"),
        (Choice(0, "sklearn.linear_model:LogisticRegression", {}), "does not train data-parallel"),
        (Choice(0, "xgboost:XGBRegressor", {}), "classifier"),
    ):
        with pytest.raises(ConfigError, match=said):
            pair.team.fit(wrong, seed=5, metric="log_loss", timeout_s=LONG_S)


# Failures, in the order of what they leave behind ---------------------------------------------------------------------


def workers() -> list[psutil.Process]:
    """The processes that train, of this test's own Ray."""
    every = psutil.Process().children(recursive=True)
    return [p for p in every if p.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(p.cmdline())]


def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(pair: Pair) -> None:
    told: list[int] = []

    def kill_once(done: int, _: float) -> None:
        told.append(done)
        if done == 20 and told.count(20) == 1:
            workers()[-1].send_signal(signal.SIGKILL)

    fit = pair.team.fit(choice(subsample=0.5), seed=3, metric="log_loss", timeout_s=LONG_S, on_round=kill_once)
    assert fit.starts == 2
    again = told[told.index(20) + 1 :]
    assert 10 < again[0] <= 21, "it went on from a checkpoint"
    whole = pair.team.fit(choice(subsample=0.5), seed=3, metric="log_loss", timeout_s=LONG_S)
    assert fit.boosted.value == pytest.approx(whole.boosted.value, abs=1e-4)


def test_workers_that_die_every_time_are_given_up(pair: Pair) -> None:
    def kill(done: int, _: float) -> None:
        if done == 3:
            workers()[-1].send_signal(signal.SIGKILL)

    always = choice(n_estimators=5)
    with pytest.raises(BackendUnavailable, match="lost its workers 3 times; the last: worker . was killed"):
        pair.team.fit(always, seed=3, metric="log_loss", timeout_s=LONG_S, on_round=kill)
    assert pair.team.fit(always, seed=3, metric="log_loss", timeout_s=LONG_S).boosted.rounds == 5


def test_a_worker_that_hangs_ends_at_the_time_limit_and_leaves_nothing(world: World, pair: Pair) -> None:
    def stop(done: int, _: float) -> None:
        if done == 3:
            workers()[-1].send_signal(signal.SIGSTOP)

    pair.team.fit(choice(n_estimators=5), seed=3, metric="log_loss", timeout_s=LONG_S)
    with pytest.raises(BackendUnavailable, match="within 10 s"):
        pair.team.fit(choice(), seed=3, metric="log_loss", timeout_s=10, on_round=stop)
    until(lambda: not workers() and ray.available_resources().get("CPU") == 4)
    assert not list(Path(world.scratch).iterdir())


def test_more_workers_than_there_is_room_for(world: World) -> None:
    with pytest.raises(BackendUnavailable, match="6 workers found no 6 free CPUs within 2 s"):
        fit_parallel(world.shards(), choice(), workers=6, seed=5, scratch=world.scratch, timeout_s=2)
    until(lambda: ray.available_resources().get("CPU") == 4)


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.2)
