"""Training on Ray: search, refit, judge, package, register.

One call of `train` is one MLflow run. How candidates are fitted is their way's (`on_fit`, `on_parallel`); all else is
the same. What is judged on the holdout is the packaged artifact itself, loaded from its files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.config import Features, Project
from mlops_ray.data import lake, splits
from mlops_ray.data.features.statistics import Partial, rough
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import REPORT_HTML, REPORT_JSON
from mlops_ray.data.splits import HOLDOUT
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.state import Store, VersionRow
from mlops_ray.training import packaging, recipe, report
from mlops_ray.training import rows as rows_of
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.lock import distributions_of, environment_lock
from mlops_ray.training.artifact.model import Model
from mlops_ray.training.fitting import Winner, case_of
from mlops_ray.training.gates import judgement
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.on_replica import infrastructure
from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict
from mlops_ray.training.on_fit import Whole
from mlops_ray.training.on_machine import checkout
from mlops_ray.training.on_mlflow import FINGERPRINT, Tracker
from mlops_ray.training.on_parallel import Parallel, way_of
from mlops_ray.training.on_registry import Registry
from mlops_ray.training.recipe import Recipe
from mlops_ray.training.report import Pages
from mlops_ray.training.rows import Rows
from mlops_ray.training.search import candidates
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.measures import metric_of
from mlops_ray.training.search.on_tune import Found
from mlops_ray.training.search.trials import TrialEnded
from mlops_ray.training.target import Scores

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

_BUDGET = ("trials", "max_s", "trial_max_s", "concurrency")
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
    pages: Pages
    """What the gates said, to read."""


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
class _Run:
    """What every stage of a run needs."""

    project: Project
    dataset: DatasetVersion
    tracker: Tracker
    run_id: str
    rival: Model | None
    tags: Mapping[str, str]
    now: float
    shuffle_target: bool
    clock: _Clock
    warm: tuple[Choice, ...]
    refit: bool


def train(
    project: Project,
    dataset: DatasetVersion,
    *,
    store: Store,
    champion: VersionRow | None,
    tags: Mapping[str, str] | None = None,
    now: float,
    shuffle_target: bool = False,
    resume: bool = False,
    warm: Sequence[Choice] = (),
    refit: bool = False,
    on_progress: Progress = lambda stage, done, total: None,
) -> Trained:
    """Train on `dataset`, judge the winner against `champion`, and register it if it passes. Ray must be initialised.

    Args: champion: the version to compare with on the holdout, None for the first. now: seconds since epoch, the
        version's time of creation. tags: go to the run and the version.
        shuffle_target: permutes the labels of all rows but the holdout: a planted bad candidate, for demonstrations.
        resume: take up the newest run over the same rows and settings that did not end well; trials that it finished
            are not run again. warm: points that the search begins with. refit: see `retraining.refit`.
    Returns: also when the gates refuse; the artifact is kept for inspection then, without a version.
    Raises: ConfigError for candidates that cannot be built; DataError for rows that cannot be trained on, when no
        trial succeeds, or when there is nothing to resume; ArtifactRefused when the champion's files are not the
        registered ones; BackendUnavailable.
    """
    clock = _Clock(on_progress)
    if shuffle_target and project.search.is_parallel:
        problem = "candidates with workers above 1 read their labels from the shards, which nothing permutes"
        raise ConfigError("search.candidates", (f"{problem}; plant a bad candidate of one worker",))
    candidates.check(project.search.candidates, seed=project.seed, task=project.task, plan=project.search)
    with tempfile.TemporaryDirectory() as cache:
        rival = None
        if champion is not None:
            folder = model.fetch(champion.artifact, Path(cache), champion.sha256)
            rival = model.load(folder, champion.sha256, trusted=project.features.trusted_types)
        with clock.stage("track"):
            tracker = Tracker(project, store)
            registry = Registry(project, store)
        same = _fingerprint(project, dataset, shuffle_target)
        given = {**(tags or {}), "dataset": rows_of.label(dataset), "dataset.content_hash": dataset.content_hash}
        recorded = given | {FINGERPRINT: same}
        opened = (
            tracker.resume(tracker.interrupted(same)) if resume else tracker.run(f"train {project.project}", recorded)
        )
        with opened as run_id:
            if not resume:
                tracker.dataset(run_id, dataset)
            run = _Run(project, dataset, tracker, run_id, rival, given, now, shuffle_target, clock, tuple(warm), refit)
            return _train(run, registry)


def _fingerprint(project: Project, dataset: DatasetVersion, shuffle_target: bool) -> str:
    """What two runs must share for one to go on where the other stopped; the budget may be another."""
    shaping = recipe.shaping(project)
    shaping["search"] = {k: v for k, v in shaping["search"].items() if k not in _BUDGET}
    body = {"rows": dataset.content_hash, "project": shaping, "shuffled": shuffle_target}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _train(run: _Run, registry: Registry) -> Trained:
    project, clock, rng = run.project, run.clock, np.random.default_rng(run.project.seed)
    with clock.stage("read"):
        kind = way_of(project)
        rows = kind.read(project, run.dataset, also=run.rival.features.inputs if run.rival is not None else ())
        if run.shuffle_target:
            rows = rows.shuffled(np.random.default_rng(project.seed))
    with clock.stage("features"):
        way = kind.prepare(project, run.dataset, rows)
        _refuse_foreign(project.features, way.fitted)
    with clock.stage("search"):
        found = _search(run, way)
    with clock.stage("refit"):
        winner = way.refit(found.choice)
    with clock.stage("package"):
        artifact, sha256 = _package(run, way, winner, found)
    with clock.stage("judge"):
        candidate, case, result = _judge(run, rows, winner, artifact, sha256, rng)
    metrics: dict[str, float] = {name: estimate.value for name, estimate in result.metrics.items()}
    with clock.stage("report"):
        described = {"run": run.run_id, "dataset": run.tags["dataset"], "estimator": found.choice.estimator}
        facts = packaging.facts_of(
            project, candidate, described | dict(found.choice.params) | {"rows": sum(rows.counts)}
        )
        pages = report.pages(f"Gates of {project.project}", project.gates, case, result, facts, rng=rng)
    if result.verdict is Verdict.PASS and run.refit and isinstance(way, Whole):
        with clock.stage("refit on all"):
            winner, artifact, sha256, candidate = _on_all(run, way, winner, found)
    with clock.stage("log"):
        _log(run, rows, way.every, found, candidate, result, metrics, pages)
    version = None
    if result.verdict is Verdict.PASS:
        with clock.stage("register"):
            version = _register(run, registry, winner, candidate, found.choice, artifact)
    seconds = {f"seconds.{stage}": spent for stage, spent in clock.seconds.items()}
    run.tracker.log(run.run_id, metrics=seconds, at=run.now)
    return Trained(
        run.run_id,
        result.verdict,
        result,
        version,
        artifact,
        sha256,
        found.choice,
        metrics,
        clock.seconds,
        pages,
    )


def _judge(
    run: _Run, rows: Rows, winner: Winner, artifact: str, sha256: str, rng: np.random.Generator
) -> tuple[Model, Case, GateResult]:
    """The packaged candidate as its files have it, what the gates are shown of it, and what they say."""
    project, plan = run.project, run.project.gates
    trusted = project.features.trusted_types
    with tempfile.TemporaryDirectory() as cache:
        candidate = model.load(model.fetch(artifact, Path(cache), sha256), sha256, trusted=trusted)
        case = case_of(project, rows, run.rival, candidate, winner.threshold)
        checks = infrastructure(
            plan.infrastructure, artifact, sha256, candidate.lock, candidate.engine, trusted=trusted
        )
        extra = [partial(_found, check) for check in checks]
        result = judgement.judge(plan, case, extra_checks=extra, rng=rng)
    return candidate, case, result


def _on_all(run: _Run, way: Whole, winner: Winner, found: Found) -> tuple[Winner, str, str, Model]:
    """What serves under `retraining.refit`: the winner fitted on all rows, its artifact's address and hash, and what
    the files hold."""
    pipeline, answers = way.refit_on_all(found.choice, run.dataset)
    artifact, sha256 = _package(run, way, replace(winner, pipeline=pipeline), found, said=answers)
    with tempfile.TemporaryDirectory() as cache:
        folder = model.fetch(artifact, Path(cache), sha256)
        served = model.load(folder, sha256, trusted=run.project.features.trusted_types)
    return replace(winner, pipeline=pipeline), artifact, sha256, served


def _register(
    run: _Run, registry: Registry, winner: Winner, candidate: Model, choice: Choice, artifact: str
) -> VersionRow:
    kept = {**run.tags, "sha256": candidate.sha256, "engine": candidate.engine, "estimator": choice.estimator}
    if run.project.features.derived:
        kept["needs"] = "mlops_ray"  # its pipeline takes columns that we derive from the data's
    return registry.register(
        run.run_id,
        winner.pipeline,
        artifact=artifact,
        sha256=candidate.sha256,
        dataset=run.tags["dataset"],
        classes=candidate.classes,
        trusted=candidate.manifest["trusted"],
        tags=kept,
        now=run.now,
    )


def _found(check: CheckResult) -> CheckResult:
    return check


def _search(run: _Run, way: Whole | Parallel) -> Found:
    """The winner of the search; each trial becomes a child run when it has ended."""
    project = run.project
    measure = metric_of(project.search.metric, project.task)

    heard: set[int] = set()

    def on_trial(ended: TrialEnded) -> None:
        heard.add(ended.number)
        run.tracker.trial(
            run.run_id,
            ended.number,
            ended.choice.label,
            params={"estimator": ended.choice.estimator, **ended.choice.params},
            status=ended.status,
            metric=f"validation.{measure}",
            score=ended.score,
            steps=ended.steps,
            metrics={"seconds": ended.seconds},
            started=ended.started,
            ended=ended.ended,
            error=ended.error,
            cut_short=ended.cut_short,
        )

    storage = project.storage.path("search", project.project)
    told: dict[str, Any] = {"on_trial": on_trial, "on_progress": run.clock.on_progress}
    if isinstance(way, Whole):
        told["warm"] = run.warm
    found = way.search(storage=storage, name=run.run_id, **told)
    for ended in found.trials:
        if ended.number not in heard:
            on_trial(ended)  # of an attempt before, whose driver died between keeping the trial and telling of it
    run.tracker.flush()
    return found


def _package(
    run: _Run, way: Whole | Parallel, winner: Winner, found: Found, said: Scores | None = None
) -> tuple[str, str]:
    """Address and hash of the artifact.

    Args: said: the pipeline's answers to the holdout, where they are not the `winner.answers`, of a fit without it."""
    project, rows = run.project, way.rows
    code = checkout()
    made = Recipe(
        project=recipe.shaping(project),
        uri=run.dataset.uri,
        version=run.dataset.version,
        content_hash=run.dataset.content_hash,
        choice={
            "candidate": found.choice.candidate,
            "estimator": found.choice.estimator,
            "params": found.choice.params,
        },
        score=found.score,
        shuffle_target=run.shuffle_target,
        commit=code.commit if code is not None else None,
        dirty=code.dirty if code is not None else None,
        scores_sha256=recipe.digest(winner.answers if said is None else said),
        refit=said is not None,
    )
    reference = winner.reference(packaging.bins_for(project, way.every, run.rival))
    return packaging.package(
        project,
        winner.pipeline,
        rows.inputs(rows.of(HOLDOUT)),
        run.run_id,
        classes=rows.classes,
        reference=packaging.calibrated(project, reference, rows, winner.answers),
        lock=environment_lock(distributions_of(winner.pipeline)),
        threshold=winner.threshold,
        recipe=made.to_dict(),
    )


def _log(
    run: _Run,
    rows: Rows,
    every: Partial,
    found: Found,
    candidate: Model,
    result: GateResult,
    metrics: Mapping[str, float],
    pages: Pages,
) -> None:
    project, tracker = run.project, run.tracker
    measure = metric_of(project.search.metric, project.task)
    parts = {f"rows.{name}": float(n) for n, name in zip(rows.counts, splits.NAMES, strict=True)}
    ended = {
        f"trials.{status}": sum(t.status == status for t in found.trials) for status in ("done", "stopped", "failed")
    }
    tracker.log(
        run.run_id,
        params={
            "estimator": found.choice.estimator,
            **found.choice.params,
            "seed": project.seed,
            "split": json.dumps(rows.cut.to_dict()),
        },
        metrics={**metrics, f"validation.{measure}": found.score, **parts, **ended},
        tags={
            "verdict": result.verdict.value,
            "sha256": candidate.sha256,
            "engine": candidate.engine,
            "engine.because": candidate.manifest["reason"],
            **_warnings(every),
        },
        at=run.now,
    )
    tracker.files(run.run_id, "gates", pages.gates)
    tracker.files(run.run_id, "plots", pages.plots)
    if said := _validation_of(run.dataset):
        tracker.files(run.run_id, "data", said)


def _warnings(every: Partial) -> dict[str, str]:
    """A tag that says of which features the quantiles, and with them the monitor's bins, are rough; or none."""
    said = [f"{name}: quantiles may be off by {error:.0%} of the rows" for name, error in rough(every).items()]
    return {"warning.features": "; ".join(said)} if said else {}


def _refuse_foreign(features: Features, fitted: ColumnTransformer) -> None:
    """Raises DataError when packaging would refuse the features' types, for the search may take hours until then."""
    if not features.custom_blocks:
        return  # all else is scikit-learn's
    import skops.io

    _, foreign = model.types_in(skops.io.dumps(fitted), features.trusted_types)
    if foreign:
        raise DataError(
            "features.custom",
            f"holds {', '.join(foreign)}, which no version loads unless the project says so; if you trust "
            f"{'it' if len(foreign) == 1 else 'them'}, write `trusted_types: [{', '.join(foreign)}]` under features",
        )


def _validation_of(dataset: DatasetVersion) -> dict[str, str]:
    """What validation said when the version was prepared; nothing of a retrain's set, which is made of checked rows."""
    found = {name: lake.read_sidecar(dataset.uri, dataset.content_hash, name) for name in (REPORT_JSON, REPORT_HTML)}
    return {name: kept.decode() for name, kept in found.items() if kept is not None}
