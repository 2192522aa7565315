"""Data-parallel fits: two workers on one machine, each with its own shards."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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

from mlops_ray.config import Project, Search, Task
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.features.statistics import Partial, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, Cut
from mlops_ray.errors import BackendUnavailable, ConfigError, DataError
from mlops_ray.training import target
from mlops_ray.training.search import candidates, on_train
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_team import Fit, Team
from mlops_ray.training.search.on_train import (
    crossed_parallel,
    fit_parallel,
    reference_profiles,
    search_parallel,
    surveyed,
)
from mlops_ray.training.search.references import Crossed, folded
from mlops_ray.training.search.shards import Batch, Shards, batches, class_factors
from mlops_ray.training.search.trials import TrialEnded
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
    with Team(shards, surveyed(shards, 2), 2, scratch=world.scratch, fits=20, save_s=1.0) as team:
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


# Failures, in the order of what they leave behind ---------------------------------------------------------------------


def workers() -> list[psutil.Process]:
    """The processes that train, of this test's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            if process.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(pair: Pair) -> None:
    told: list[int] = []

    def kill_once(done: int, _: float) -> None:
        told.append(done)
        time.sleep(0.1)  # twenty rounds of this size are too quick for a checkpoint
        if done == 20 and told.count(20) == 1:
            workers()[-1].send_signal(signal.SIGKILL)

    fit = pair.team.fit(choice(), seed=5, metric="log_loss", timeout_s=LONG_S, on_round=kill_once)
    assert fit.starts == 2
    again = told[told.index(20) + 1 :]
    assert 5 < again[0] <= 21, "it went on from a checkpoint"
    assert fit.boosted.value == pytest.approx(pair.fit.boosted.value, abs=1e-6)


@pytest.mark.slow
def test_workers_that_die_every_time_are_given_up(pair: Pair) -> None:
    def kill(done: int, _: float) -> None:
        if done == 3:
            workers()[-1].send_signal(signal.SIGKILL)

    always = choice(n_estimators=5)
    with pytest.raises(BackendUnavailable, match=r"lost its workers 3 times; the last: worker \d was killed"):
        pair.team.fit(always, seed=3, metric="log_loss", timeout_s=LONG_S, on_round=kill)
    assert pair.team.fit(always, seed=3, metric="log_loss", timeout_s=LONG_S).boosted.rounds == 5


@pytest.mark.slow
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
    free = ray.available_resources()["CPU"]
    with pytest.raises(BackendUnavailable, match="6 workers found no 6 free CPUs within 2 s"):
        fit_parallel(world.shards(), choice(), workers=6, seed=5, scratch=world.scratch, timeout_s=2)
    until(lambda: ray.available_resources().get("CPU") == free)


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.2)


# Other tasks, and what surrounds a fit --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_fit_as_well_as_one_process(ray_local: None, tmp_path: Path, task: Task) -> None:
    world = world_of(tmp_path, task, n=6000)
    plain = world.shards(weight="w")
    # Weights of rows and of classes come together.
    wanted: Any = "balanced" if task == "multiclass" else None
    shards = replace(plain, class_weight=class_factors(wanted, surveyed(plain, 2)))
    given: dict[str, Any] = {"workers": 2, "seed": 5, "scratch": world.scratch, "timeout_s": LONG_S}
    fit = fit_parallel(plain, choice(task), class_weight=wanted, **given)
    judge, alone = world.of(shards, "judge"), world.alone(shards, choice(task))
    single, parallel = loss(alone, judge, task), loss(fit.estimator, judge, task)
    base = float(target.losses(task, judge.y, target.constant(task, judge.y, len(world.classes))).mean())
    assert single < 0.9 * base, "there is something to learn"
    assert abs(parallel - single) < 0.01 * base
    if task == "multiclass":
        assert world.classes == ("high", "low", "mid")
        assert (fit.estimator.n_classes_, fit.estimator.predict(judge.matrix).max()) == (3, 2)
    weighted = np.average(target.losses(task, judge.y, scores(fit.estimator, judge, task)), weights=judge.weights)
    assert fit.boosted.value == pytest.approx(np.sqrt(weighted) if task == "regression" else weighted, rel=1e-5)


@pytest.mark.slow
def test_target_encodings_are_cross_fitted_on_the_workers(world: World, tmp_path: Path) -> None:
    encoded = {"numeric": {"columns": ["x", "z"]}, "categorical": {"columns": ["kind"], "encode": "target"}}
    other = world_of(tmp_path, "binary", n=6000, features=encoded)
    shards = other.shards(key="id", partial=other.partial)
    fit = fit_parallel(shards, choice(), workers=2, seed=5, scratch=other.scratch, timeout_s=LONG_S)
    judge, alone = other.of(shards, "judge"), other.alone(shards, choice())
    assert fit.estimator.n_features_in_ == 3
    assert abs(loss(fit.estimator, judge, "binary") - loss(alone, judge, "binary")) < 0.005


def plan_of(**changes: Any) -> Search:
    given: dict[str, Any] = {
        "trials": 5,
        "max_s": LONG_S,
        "candidates": [
            {
                "estimator": "xgboost",
                "workers": 2,
                "params": {"n_estimators": 30},
                "space": {"learning_rate": {"kind": "log_uniform", "low": 0.01, "high": 0.5}},
            },
            {"estimator": "xgboost:XGBClassifier", "workers": 2, "params": {"n_estimators": 5, "max_delta_step": -1.0}},
        ],
    }
    return Search.model_validate(given | changes)


@pytest.mark.slow
def test_a_search_goes_through_one_team_and_goes_on_after_a_crash(world: World, tmp_path: Path) -> None:
    given: dict[str, Any] = {"seed": 5, "storage": str(tmp_path), "name": "one", "scratch": world.scratch}
    ended: list[TrialEnded] = []

    def crash(trial: TrialEnded) -> None:
        ended.append(trial)
        if len(ended) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_parallel(plan_of(), world.shards(), on_trial=crash, **given)
    until(lambda: not workers())
    assert not list(Path(world.scratch).iterdir())
    later: list[TrialEnded] = []
    found = search_parallel(plan_of(), world.shards(), on_trial=later.append, **given)
    assert [trial.number for trial in (*ended, *later)] == [0, 1, 2, 3, 4]
    assert found.trials[:3] == tuple(replace(t, at_s=k.at_s) for t, k in zip(ended, found.trials, strict=False))
    # The second candidate is refused by XGBoost: the search says so, and goes on.
    failed = [trial for trial in found.trials if trial.status == "failed"]
    assert failed
    assert all("max_delta_step" in (trial.error or "") and trial.choice.candidate == 1 for trial in failed)
    best = min((t for t in found.trials if t.status == "done"), key=lambda t: t.score or np.inf)
    assert (found.score, found.choice) == (best.score, best.fitting)
    assert found.choice.params["n_estimators"] == best.rounds
    assert all(trial.steps and trial.ended > trial.started for trial in found.trials if trial.status != "failed")
    with pytest.raises(DataError, match="another search"):
        search_parallel(plan_of(), world.shards(fit=(VALIDATION,)), **given)


class Stalled:
    """A team that shows two rounds, and then nothing until its time is up."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def of(self, choice: Choice) -> Stalled:
        return self

    def fit(self, choice: Choice, *, timeout_s: float, on_round: Callable[[int, float], bool], **_: Any) -> None:
        assert not on_round(1, 0.6)
        assert not on_round(2, 0.5)
        time.sleep(timeout_s)
        raise BackendUnavailable("Ray Train", f"not within {timeout_s} s")


@pytest.mark.parametrize(
    ("limits", "status", "score", "error"),
    [
        ({"max_s": 0.2}, "stopped", 0.5, "the search's time was up"),
        ({"max_s": 0.8, "trial_max_s": 0.2}, "failed", None, "took longer than search.trial_max_s"),
    ],
)
def test_time_limits_end_a_trial(world: World, limits: dict[str, float], status: str, score: Any, error: str) -> None:
    plan = plan_of(**limits, candidates=plan_of().candidates[:1])
    listed = candidates.resolved(plan.candidates, "binary")
    teams: Any = Stalled(world.shards())
    ended = on_train.each_trial(plan, listed, "log_loss", 5, (), teams, time.monotonic() + limits["max_s"])
    first = next(ended)
    assert (first.status, first.score, first.cut_short) == (status, score, status == "stopped")
    assert (first.error or "").startswith(error)
    later = list(ended)
    assert bool(later) == (status == "failed"), "the search goes on while it has time"


def test_only_data_parallel_candidates_are_searched_here(world: World, tmp_path: Path) -> None:
    mixed = plan_of(candidates=[{"estimator": "xgboost", "workers": 2}, {"estimator": "linear"}])
    with pytest.raises(ConfigError, match="searched apart"):
        search_parallel(mixed, world.shards(), seed=5, storage=str(tmp_path), name="x", scratch=world.scratch)


@pytest.mark.slow
def test_the_reference_is_made_shard_by_shard_from_scores_of_unseen_rows(world: World) -> None:
    times = world.table["at"].cast(pa.int64()).to_numpy()
    cut = splits.fold_cut(world.cut, 1, times=times)
    sides = splits.assign(world.cut, world.table)
    seen = world.shards(fit=(TRAIN, VALIDATION), judge=())
    short = choice(n_estimators=10)
    given: dict[str, Any] = {"workers": 2, "seed": 5, "scratch": world.scratch, "timeout_s": 2 * LONG_S}
    models = crossed_parallel(seen, cut, short, **given)
    assert sorted(models) == [0, 1]
    with Team(seen, surveyed(seen, 2), 2, scratch=world.scratch, fits=2) as team:
        asked: dict[str, Any] = {"seed": 5, "metric": "log_loss", "timeout_s": LONG_S}
        final, some = team.fit(short, **asked), team.fit(short, **asked, sides=(TRAIN,))
    assert np.isnan(final.boosted.value)
    assert sum(worker.n_fit for worker in final.workers) == int((sides != HOLDOUT).sum())
    assert sum(worker.n_fit for worker in some.workers) == int((sides == TRAIN).sum())
    score = Crossed(seen.features, seen.fitted, "binary", cut, models, final.estimator)
    said, y = score(world.table), world.table["y"].to_numpy()
    unseen = target.losses("binary", y, said)
    base = target.losses("binary", y, target.constant("binary", y, 2)).mean()
    assert unseen[sides == TRAIN].mean() < base - 0.1
    edges = bins(seen.features, world.partial)
    made = reference_profiles(seen, edges, score, event_time="at", block_s=DAY_S)
    direct = folded(seen, world.table, edges, score, event_time="at", block_s=DAY_S)
    assert sorted(made.blocks) == sorted(direct.blocks)
    assert len(made.blocks) == 100
    assert all(made.blocks[start].to_bytes() == profile.to_bytes() for start, profile in direct.blocks.items())
    assert sum(n for n, _, _ in made.holdout.values()) == int((sides == HOLDOUT).sum())
    assert sum(lost for _, lost, _ in made.holdout.values()) == pytest.approx(unseen[sides == HOLDOUT].sum())


def test_rows_that_nothing_can_be_learnt_from_are_refused_before_workers_start(world: World, tmp_path: Path) -> None:
    whole = world.table.set_column(0, "y", pa.array(np.zeros(len(world.table), dtype=np.int64)))
    dataset = commit(str(tmp_path / "table"), whole, 1)
    with pytest.raises(DataError, match="one class"):
        surveyed(world.shards(dataset=dataset), 2)
    with pytest.raises(DataError, match="no row to judge"):
        surveyed(world.shards(judge=(7,)), 2)
    few = commit(str(tmp_path / "few"), world.table.slice(0, 1), 1)
    with pytest.raises(DataError, match=r"no row|one class"):
        surveyed(world.shards(dataset=few), 2)
