"""Training on Ray: search, refit, judge, package, register.

One call of `train` is one MLflow run. The matrix of features is made once and lies in the object store once; trials
and fits read it without copying. What is judged on the holdout is the packaged artifact itself, loaded from its files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from mlops_ray.config import Candidate, Features, Project, Search
from mlops_ray.data import lake, profile, splits
from mlops_ray.data.features.statistics import Partial, folds, rough, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, training_matrix, transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import REPORT_HTML, REPORT_JSON, fit_features
from mlops_ray.data.profile import Bins, Columns
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, Cut, Sides
from mlops_ray.errors import DataError
from mlops_ray.state import Store, VersionRow
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Model, Reference
from mlops_ray.training.evaluation import intervals, metrics
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.gates import judgement, report
from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict
from mlops_ray.training.on_mlflow import Tracker
from mlops_ray.training.on_registry import Registry
from mlops_ray.training.search import candidates
from mlops_ray.training.search.candidates import Choice

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

FOLDS = 3
"""Cross-fitting of the reference's scores: each third is scored by a fit on the other two. Two would compare with
models of half the rows; five cost two more fits and change little."""
Progress = Callable[[str, int, int], None]
"""Called with stage, done and total."""


@dataclass(frozen=True)
class Trained:
    """What became of a training run. `version` is None unless the gates passed."""

    run_id: str
    verdict: Verdict
    result: GateResult
    version: VersionRow | None
    artifact: str
    sha256: str
    choice: Choice
    metrics: dict[str, float]
    seconds: dict[str, float]
    """Machine time per stage."""


@dataclass
class _Clock:
    """Seconds per stage, in order."""

    on_progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.on_progress(name, 0, 1)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)
        self.on_progress(name, 1, 1)


@dataclass(frozen=True)
class _Rows:
    """A dataset version in memory, oldest row first."""

    table: pa.Table
    times: Floats
    y: NDArray[np.int64]
    columns: Columns
    cut: Cut
    sides: Sides
    fold_of: NDArray[np.int64] | None
    """Fold of each row, where target encoding needs one."""

    def of(self, *parts: int) -> NDArray[np.int64]:
        """Numbers of the rows of these sides, oldest first."""
        return np.flatnonzero(np.isin(self.sides, parts))

    def fitting(self, numbers: NDArray[np.int64], n_fitted: int) -> tuple[Columns, NDArray[np.int64] | None]:
        """Inputs of these rows, and the fold of each; -1 from the `n_fitted`th on, whose labels no encoding saw."""
        columns = {name: values[numbers] for name, values in self.columns.items()}
        if self.fold_of is None:
            return columns, None
        return columns, np.where(np.arange(len(numbers)) < n_fitted, self.fold_of[numbers], -1)

    @property
    def holdout(self) -> Columns:
        rows = self.of(HOLDOUT)
        return {name: values[rows] for name, values in self.columns.items()}


def train(
    project: Project,
    dataset: DatasetVersion,
    *,
    store: Store,
    champion: VersionRow | None,
    tags: Mapping[str, str] | None = None,
    now: float,
    shuffle_target: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Trained:
    """Train on `dataset`, judge the winner against `champion`, and register it if it passes. Ray must be initialised.

    Args: champion: the version to compare with on the holdout, None for the first. now: seconds since epoch, the
        version's time of creation. tags: go to the run and the version.
        shuffle_target: permutes the labels of all rows but the holdout: a planted bad candidate, for demonstrations.
    Returns: also when the gates refuse; the artifact is kept for inspection then, without a version.
    Raises: ConfigError for candidates that cannot be built; DataError for rows that cannot be trained on, or when no
        trial succeeds; ArtifactRefused when the champion's files are not the registered ones; BackendUnavailable.
    """
    clock = _Clock(on_progress)
    candidates.check(project.search.candidates, seed=project.seed)
    with tempfile.TemporaryDirectory() as cache:
        rival = None
        if champion is not None:
            rival = model.load(model.fetch(champion.artifact, Path(cache), champion.sha256), champion.sha256)
        with clock.stage("track"):
            tracker, registry = Tracker(project, store), Registry(project, store)
        given = {**(tags or {}), "dataset": _label(dataset), "dataset.content_hash": dataset.content_hash}
        with tracker.run(f"train {project.project}", given) as run_id:
            tracker.dataset(run_id, dataset)
            return _train(project, dataset, registry, rival, tracker, run_id, given, now, shuffle_target, clock)


def _train(
    project: Project,
    dataset: DatasetVersion,
    registry: Registry,
    rival: Model | None,
    tracker: Tracker,
    run_id: str,
    tags: Mapping[str, str],
    now: float,
    shuffle_target: bool,
    clock: _Clock,
) -> Trained:
    with clock.stage("read"):
        rows = _read(project, dataset, rival)
        train_rows, holdout = rows.of(TRAIN), rows.of(HOLDOUT)
        seen, searched = rows.of(TRAIN, VALIDATION), np.concatenate([train_rows, rows.of(VALIDATION)])
        y = rows.y.copy()
        if shuffle_target:
            y[seen] = np.random.default_rng(project.seed).permutation(y[seen])
    with clock.stage("features"):
        first, second = fit_features(project, dataset, rows.cut, (TRAIN, VALIDATION))
        every = first + second
        fitted = transformer(project.features, every)
        _refuse_foreign(project.features, fitted)
        frame = to_frame(project.features, rows.columns)
        labels = ray.put(y[searched])
        start = transformer(project.features, first)
        matrix = ray.put(training_matrix(project.features, first, start, *rows.fitting(searched, len(train_rows))))
    with clock.stage("search"):
        choice, loss = _search(project, matrix, labels, len(train_rows), tracker, run_id, clock.on_progress)
    with clock.stage("refit"):
        matrix = ray.put(training_matrix(project.features, every, fitted, *rows.fitting(seen, len(seen))))
        labels = ray.put(y[seen])
        estimator, scores = _refit(choice, project.seed, matrix, labels)
        pipeline = _pipeline(fitted, estimator)
    with clock.stage("package"):
        every_score = np.empty(len(y))
        every_score[seen], every_score[holdout] = scores, pipeline.predict_proba(frame.iloc[holdout])[:, 1]
        reference = _reference(project, _bins(project, every, rival), rows, every_score)
        artifact, sha256 = _package(project, pipeline, reference, rows, run_id)
    with clock.stage("judge"), tempfile.TemporaryDirectory() as cache:
        candidate = model.load(model.fetch(artifact, Path(cache), sha256), sha256)
        result, calibration = _judge(project, candidate, rival, rows)
    metrics: dict[str, float] = {name: estimate.value for name, estimate in result.metrics.items()}
    with clock.stage("log"):
        split = json.dumps(rows.cut.to_dict())
        facts = {"run": run_id, "dataset": tags["dataset"], "estimator": choice.estimator, **choice.params}
        facts |= {"engine": candidate.engine, "engine because": candidate.manifest["reason"], "rows": len(rows.y)}
        facts |= {"split": split}
        parts = {f"rows.{name}": len(rows.of(part)) for part, name in enumerate(splits.NAMES)}
        tracker.log(
            run_id,
            params={"estimator": choice.estimator, **choice.params, "seed": project.seed, "split": split},
            metrics={**metrics, "validation.log_loss": loss, **parts},
            tags={"verdict": result.verdict.value, "sha256": sha256, "engine": candidate.engine, **_warnings(every)},
            at=now,
        )
        body = json.dumps(result.to_dict(), indent=1)
        page = report.html(f"Gates of {project.project}", result, calibration, facts)
        tracker.files(run_id, "gates", {"gates.json": body, "gates.html": page})
        if said := _validation_of(dataset):
            tracker.files(run_id, "data", said)
    version = None
    if result.verdict is Verdict.PASS:
        with clock.stage("register"):
            kept = {**tags, "sha256": sha256, "engine": candidate.engine, "estimator": choice.estimator}
            if project.features.derived:
                kept["needs"] = "mlops_ray"  # its pipeline takes columns that we derive from the data's
            version = registry.register(
                run_id,
                pipeline,
                artifact=artifact,
                sha256=sha256,
                dataset=tags["dataset"],
                classes=(0, 1),
                trusted=candidate.manifest["trusted"],
                tags=kept,
                now=now,
            )
    return Trained(run_id, result.verdict, result, version, artifact, sha256, choice, metrics, clock.seconds)


def _warnings(every: Partial) -> dict[str, str]:
    """A tag that says of which features the quantiles, and with them the monitor's bins, are rough; or none."""
    said = [f"{name}: quantiles may be off by {error:.0%} of the rows" for name, error in rough(every).items()]
    return {"warning.features": "; ".join(said)} if said else {}


def _refuse_foreign(features: Features, fitted: ColumnTransformer) -> None:
    """Raises DataError when packaging would refuse the features' types, for the search may take hours until then."""
    if not features.custom_blocks:
        return  # all else is scikit-learn's
    import skops.io

    _, foreign = model.types_in(skops.io.dumps(fitted), features)
    if foreign:
        raise DataError(
            "features.custom",
            f"holds {', '.join(foreign)}, which no version loads unless the project says so; if you trust "
            f"{'it' if len(foreign) == 1 else 'them'}, write `trusted_types: [{', '.join(foreign)}]` under features",
        )


def _bins(project: Project, seen: Partial, rival: Model | None) -> Bins:
    """The champion's bins where the features are the same: live windows must survive a promotion and add."""
    found = bins(project.features, seen)
    if rival is not None and rival.reference.bins.widths.keys() == found.widths.keys():
        return rival.reference.bins
    return found


def _validation_of(dataset: DatasetVersion) -> dict[str, str]:
    """What validation said when the version was prepared; nothing of a retrain's set, which is made of checked rows."""
    found = {name: lake.read_sidecar(dataset.uri, dataset.content_hash, name) for name in (REPORT_JSON, REPORT_HTML)}
    return {name: kept.decode() for name, kept in found.items() if kept is not None}


def _label(dataset: DatasetVersion) -> str:
    return f"{dataset.uri}@{dataset.version}"


def _cut(columns: Columns, start: int, stop: int) -> Columns:
    return {name: values[start:stop] for name, values in columns.items()}


def _read(project: Project, dataset: DatasetVersion, rival: Model | None) -> _Rows:
    event_time, key = project.event_time, project.key
    needed = dict.fromkeys((event_time, project.target, *project.features.inputs))
    needed |= dict.fromkeys(splits.columns(project.split, event_time=event_time, key=key))
    needed |= dict.fromkeys(rival.features.inputs if rival is not None else ())
    needed |= dict.fromkeys([key] if project.features.target_encoded else [])
    table = lake.read(dataset, list(needed))
    for name in (event_time, project.target):
        if table[name].null_count:
            raise DataError(name, f"{table[name].null_count} rows of {_label(dataset)} have none; run prepare again")
    instants = table[event_time].cast(pa.int64()).to_numpy()
    order = np.argsort(instants, kind="stable")
    table, instants = table.take(pa.array(order)), instants[order]
    target = table[project.target].cast(pa.float64()).to_numpy()
    metrics.checked(target, np.zeros(len(target)))
    columns = to_columns(project.features, table)
    cut = splits.cut(project.split, event_time=event_time, key=key, salt=project.project, times=instants)
    sides = splits.assign(cut, table)
    for part, name in enumerate(splits.NAMES):
        if not (sides == part).any():
            raise DataError("split", f"no row of {_label(dataset)} falls to {name}; split otherwise, or give more rows")
    fold_of = folds(table[key]) if project.features.target_encoded else None
    return _Rows(table, instants / 1e6, target.astype(np.int64), columns, cut, sides, fold_of)


# --- search --------------------------------------------------------------------------------------------------------


class _Log(tune.Callback):
    """Writes each trial that ends as a child run, in the driver."""

    def __init__(self, tracker: Tracker, parent: str, total: int, on_progress: Progress) -> None:
        self._tracker, self._parent, self._total, self._on_progress = tracker, parent, total, on_progress
        self._done = 0

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for a restore that we never ask for; progress bars and databases do not pickle."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that reported, or was stopped by the budget before it could."""
        self._write(trial, None if "log_loss" in trial.last_result else "stopped by the time budget")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that raised; its stack stands in a local file that reaches storage only later."""
        self._write(trial, _reason(Path(trial.error_file).read_text(encoding="utf-8")))

    def _write(self, trial: Any, error: str | None) -> None:
        self._done += 1
        config, result = trial.config, trial.last_result
        ended, score = time.time(), result.get("log_loss")
        self._tracker.trial(
            self._parent,
            self._done,
            Choice(config["candidate"], config["estimator"], config["params"]).label,
            params={"estimator": config["estimator"], **config["params"]},
            status="done" if error is None else "failed",
            metric="validation.log_loss",
            score=score,
            metrics={name: result[name] for name in ("fit_s",) if name in result},
            started=ended - float(result.get("time_total_s", 0.0)),
            ended=ended,
            error=error,
        )
        self._on_progress("search", self._done, self._total)


def _reason(error: str) -> str:
    """The last line of an error that brought a worker's stack with it."""
    lines = error.strip().splitlines()
    return lines[-1] if lines else "failed without a message"


def _point(listed: Sequence[Candidate], trial: Any) -> dict[str, Any]:
    """What one trial tries, for Optuna's define-by-run; of module level, for Tune pickles its searcher."""
    choice = candidates.sample(trial, listed)
    return {"estimator": choice.estimator, "params": dict(choice.params)}


def _search(
    project: Project, matrix: Any, labels: Any, n_train: int, tracker: Tracker, run_id: str, on_progress: Progress
) -> tuple[Choice, float]:
    """The choice with the lowest validation log-loss, and that loss."""
    search: Search = project.search
    for name in ("optuna", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print the stack of each trial that our log records
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints tables even with verbose=0
    given = {"matrix": matrix, "labels": labels, "n_train": n_train, "seed": project.seed}
    with tempfile.TemporaryDirectory() as local:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(candidates.trial, **given), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="log_loss",
                mode="min",
                search_alg=OptunaSearch(
                    space=partial(_point, search.candidates),
                    metric="log_loss",
                    mode="min",
                    points_to_evaluate=candidates.first_points(search.candidates, search.trials),
                    seed=project.seed,
                ),
                num_samples=search.trials,
                max_concurrent_trials=search.concurrency,
                time_budget_s=search.max_s,
                reuse_actors=True,  # 0.15 s a trial instead of more than one
            ),
            run_config=tune.RunConfig(
                name=run_id,
                storage_path=project.storage.path("tune") if project.storage.is_remote else local,
                verbose=0,
                callbacks=[_Log(tracker, run_id, search.trials, on_progress)],
            ),
        )
        results = tuner.fit()
    ended = [results[i] for i in range(len(results))]
    done = [r for r in ended if r.error is None and np.isfinite((r.metrics or {}).get("log_loss", np.nan))]
    if not done:
        errors = [_reason(str(e)) for e in results.errors]
        raise DataError("search", f"no trial succeeded; {errors[0] if errors else 'give search.max_s more seconds'}")
    best = min(done, key=lambda r: float((r.metrics or {})["log_loss"]))
    config = best.config or {}
    return Choice(config["candidate"], config["estimator"], config["params"]), float((best.metrics or {})["log_loss"])


# --- refit and packaging -------------------------------------------------------------------------------------------


def _refit(choice: Choice, seed: int, matrix: Any, labels: Any) -> tuple[ClassifierMixin, Floats]:
    """The estimator fitted on all rows of `matrix`, and for each row the score of a fit that did not see it.

    Scores of the fit itself would be sharper than any it will give live, and every live window would look drifted.
    Two tasks, the fit and the folds: each further one is a worker that imports scikit-learn for more than a second."""
    task: Any = ray.remote(num_cpus=1, max_retries=2)
    whole = task(candidates.fit).remote(choice, matrix, labels, seed=seed)
    folds = task(candidates.cross_scores).remote(choice, matrix, labels, n_folds=FOLDS, seed=seed)
    estimator, scores = ray.get([whole, folds])
    return estimator, scores


def _pipeline(fitted: Any, estimator: ClassifierMixin) -> Pipeline:
    from sklearn.pipeline import Pipeline

    return Pipeline([("features", fitted), ("model", estimator)])


def _reference(project: Project, edges: Bins, rows: _Rows, scores: Floats) -> Reference:
    """Profiles of all rows per block of time, and losses of the holdout's; `scores` as no fit on a row gave them."""
    block_s = project.monitoring.block_s
    grouped = intervals.blocks(rows.times, block_s)
    starts = np.searchsorted(grouped.index, np.arange(len(grouped) + 1))
    profiles = tuple(
        (float(start), profile.fold(edges, _cut(rows.columns, a, b), scores[a:b]))
        for start, (a, b) in zip(grouped.starts, pairwise(starts), strict=True)
    )
    judged = rows.of(HOLDOUT)
    y, late = rows.y[judged], intervals.blocks(rows.times[judged], block_s)
    sums = (late.sums(np.ones(len(y))), late.sums(metrics.log_losses(y, scores[judged])), late.sums(y))
    holdout = tuple(
        (float(start), int(n), float(loss), int(positives))
        for start, n, loss, positives in zip(late.starts, *sums, strict=True)
    )
    return Reference(edges, block_s, profiles, holdout)


def _package(project: Project, pipeline: Pipeline, reference: Reference, rows: _Rows, run_id: str) -> tuple[str, str]:
    """Address and hash of the artifact, written aside first, so that a run that dies leaves no half of one there."""
    address = project.storage.path("models", project.project, run_id)
    parent = None if project.storage.is_remote else Path(address).parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        folder = aside / run_id
        sha256 = model.save(
            folder,
            pipeline,
            features=project.features,
            target=project.target,
            reference=reference,
            holdout=rows.holdout,
        )
        model.publish(folder, address)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return address, sha256


def _judge(
    project: Project, candidate: Model, rival: Model | None, rows: _Rows
) -> tuple[GateResult, tuple[metrics.CalibrationBin, ...]]:
    judged = rows.of(HOLDOUT)
    y, times = rows.y[judged], rows.times[judged]
    scores = candidate.score(rows.holdout)
    others = None
    if rival is not None:
        others = rival.score(to_columns(rival.features, rows.table.take(pa.array(judged))))

    def replay() -> CheckResult:
        gap = candidate.replay()
        n = len(candidate.golden.scores)
        return CheckResult("golden_replay", Verdict.PASS, f"{n} golden answers repeated within {gap:.1g}", {"gap": gap})

    result = judgement.judge(
        project.gates, y, scores, others, times, extra_checks=[replay], rng=np.random.default_rng(project.seed)
    )
    return result, metrics.calibration(y, scores)
