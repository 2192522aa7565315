"""Training on rows that fit no single process: a fit, a search, and what surrounds them, shard by shard.

A team (see `on_team`) fits one choice after the other, so a search runs its trials one at a time, each with all
workers. It keeps to the same study, halving and record of trials as the search of small candidates (`on_tune`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import optuna
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from mlops_ray import config
from mlops_ray.config import SearchMetric
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.data.sources.shards import ROWS_PER_BATCH
from mlops_ray.data.splits import FoldCut
from mlops_ray.errors import BackendUnavailable, ConfigError, DataError, MlopsRayError
from mlops_ray.training.search import boosting, candidates, measures
from mlops_ray.training.search.book import Progress
from mlops_ray.training.search.candidates import Choice, ClassWeight
from mlops_ray.training.search.desk import Desk
from mlops_ray.training.search.on_team import Fit, OnRound, Team
from mlops_ray.training.search.on_tune import Found
from mlops_ray.training.search.presets import Searched
from mlops_ray.training.search.references import Folded, Score, folded
from mlops_ray.training.search.rungs import Climb
from mlops_ray.training.search.shards import Shards, Survey, class_factors, survey
from mlops_ray.training.search.study import Study
from mlops_ray.training.search.trials import Folder, TrialEnded

if TYPE_CHECKING:
    from xgboost import XGBClassifier, XGBRegressor


def fit_parallel(
    shards: Shards,
    choice: Choice,
    *,
    workers: int,
    seed: int,
    scratch: str,
    timeout_s: float,
    metric: SearchMetric | None = None,
    class_weight: ClassWeight = None,
    on_round: OnRound | None = None,
) -> Fit:
    """One data-parallel fit, see `Team.fit`. `metric` is by default the task's; class_weight: by place of the class, or
    "balanced".

    Raises: as `surveyed` and `Team.fit`."""
    with _team(shards, workers, class_weight, scratch=scratch, fits=1) as team:
        wanted = measures.metric_of(metric, shards.task)
        return team.fit(choice, seed=seed, metric=wanted, timeout_s=timeout_s, on_round=on_round)


def _team(shards: Shards, workers: int, class_weight: ClassWeight, *, scratch: str, fits: int) -> Team:
    seen = surveyed(shards, workers)
    weighed = replace(shards, class_weight=class_factors(class_weight, seen))
    return Team(weighed, seen, workers, scratch=scratch, fits=fits)


def search_parallel(
    plan: config.Search,
    shards: Shards,
    *,
    seed: int,
    storage: str,
    name: str,
    scratch: str,
    on_trial: Callable[[TrialEnded], None] = lambda trial: None,
    on_progress: Progress = lambda stage, done, total: None,
) -> Found:
    """The best of the points that the plan's budget reaches; one trial at a time, each with its candidate's workers.

    As `on_tune.search`, with these differences: the sides of `shards` fit and judge (no cross-validation), foreign
    callbacks hear nothing, and `scratch` is where checkpoints lie, which all nodes must reach.
    Raises: ConfigError for candidates that are not data-parallel or cannot be built; DataError for rows that nothing
    can be learnt from, for a folder of another search, and when no trial succeeds.
    """
    if plan.cross_validation is not None or any(candidate.workers < 2 for candidate in plan.candidates):
        problem = "data-parallel candidates (workers above 1) are searched apart from others, on one validation side"
        raise ConfigError("search.candidates", (f"{problem}; remove the others, and cross_validation",))
    candidates.check(plan.candidates, seed=seed, task=shards.task, plan=plan)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study
    listed = candidates.resolved(plan.candidates, shards.task)
    metric = measures.metric_of(plan.metric, shards.task)
    folder = Folder(f"{storage.rstrip('/')}/{name}")
    kept = folder.open(_fingerprint(plan, shards, listed, metric, seed))
    spent, trials = max((trial.at_s for trial in kept), default=0.0), list(kept)
    began = time.monotonic()
    on_progress("search", len(trials), plan.trials)
    if len(kept) < plan.trials and spent < plan.max_s:
        with _Teams(plan, shards, scratch) as teams:
            for trial in each_trial(plan, listed, metric, seed, kept, teams, began + plan.max_s - spent):
                trials.append(replace(trial, at_s=spent + time.monotonic() - began))
                if not trial.cut_short:
                    folder.keep(trials[-1])
                on_trial(trials[-1])
                on_progress("search", len(trials), plan.trials)
    return Found.of(metric, trials)


def _fingerprint(
    plan: config.Search, shards: Shards, listed: Sequence[Searched], metric: SearchMetric, seed: int
) -> dict[str, Any]:
    """What makes two searches the same: all but budgets."""
    each = zip(listed, plan.candidates, strict=True)
    return {
        "candidates": repr([(c.path, sorted(c.params.items()), sorted(c.space.items()), o.workers) for c, o in each]),
        "job": repr((shards.task, metric, seed, plan.class_weight, plan.early_stopping, shards.weight)),
        "rows": repr((shards.dataset.content_hash, shards.cut, shards.fit, shards.judge, shards.features)),
    }


def each_trial(
    plan: config.Search,
    listed: Sequence[Searched],
    metric: SearchMetric,
    seed: int,
    kept: Sequence[TrialEnded],
    teams: _Teams,
    deadline: float,
) -> Iterator[TrialEnded]:
    """Each trial as it ends, until the plan's budget is used up."""
    alone = plan.model_copy(update={"concurrency": 1})
    desk = Desk(alone, Study(alone, listed, metric, seed=seed), kept, deadline=deadline)
    while order := desk.take(_TEAM, time.monotonic()):
        started, began = time.time(), time.monotonic()
        try:
            total = boosting.unfitted(order.choice, teams.shards.task, seed=seed).get_num_boosting_rounds()
            climb = Climb(order, metric, total=total, early=plan.early_stopping is not None)
            teams.of(order.choice).fit(
                order.choice,
                seed=seed,
                metric=metric,
                timeout_s=order.limit_s,
                on_round=functools.partial(_step, desk, climb),
            )
        except (ConfigError, BackendUnavailable) as exc:
            reason = "; ".join(exc.problems) if isinstance(exc, ConfigError) else str(exc)
            failed = desk.lost(_TEAM, reason, time.monotonic())
            if failed is None:  # cannot be: the desk handed the order out
                raise
            yield replace(failed, started=started, ended=time.time())
            continue
        ended = climb.ended(time.monotonic() - began)
        desk.end(_TEAM, ended)
        yield replace(ended, started=started, ended=time.time())


def _step(desk: Desk, climb: Climb, done: int, value: float) -> bool:
    stop = climb.round(done, value)
    desk.step(_TEAM, [*climb.steps, (done, value)])  # of a trial that is cut short, where it stood
    return stop


_TEAM = "team"


class _Teams(contextlib.ExitStack):
    """The team of a choice: one at a time, kept while candidates ask for as many workers."""

    def __init__(self, plan: config.Search, shards: Shards, scratch: str) -> None:
        super().__init__()
        self._plan, self.shards, self._scratch = plan, shards, scratch
        self._workers = 0
        self._team: Team | None = None

    def of(self, choice: Choice) -> Team:
        """Raises: DataError for rows that nothing can be learnt from."""
        workers = self._plan.candidates[choice.candidate].workers
        if self._team is None or workers != self._workers:
            self.close()
            by_place = candidates.class_weights(self._plan.class_weight, self.shards.classes)
            team = _team(self.shards, workers, by_place, scratch=self._scratch, fits=self._plan.trials)
            self._workers, self._team = workers, self.enter_context(team)
        return self._team


# Beside the fit -------------------------------------------------------------------------------------------------------


def crossed_parallel(
    shards: Shards,
    cut: FoldCut,
    choice: Choice,
    *,
    workers: int,
    seed: int,
    scratch: str,
    timeout_s: float,
    class_weight: ClassWeight = None,
) -> dict[int, XGBClassifier | XGBRegressor]:
    """For each part of `cut` the estimator that was fitted on all other parts before the holdout, one after the other,
    by one team. "balanced" class weights are those of all parts.

    With them `references.Crossed` scores rows that no process holds together by models that have not seen them.
    Raises: as `fit_parallel`; `timeout_s` is for all together."""
    began, parts = time.monotonic(), tuple(range(cut.n))
    wanted, found = measures.metric_of(None, shards.task), {}
    every = replace(shards, cut=cut, fit=parts, judge=())
    with _team(every, workers, class_weight, scratch=scratch, fits=cut.n) as team:
        for part in parts:
            others = tuple(other for other in parts if other != part)
            left = began + timeout_s - time.monotonic()
            fit = team.fit(choice, seed=seed, metric=wanted, timeout_s=left, sides=others)
            found[part] = fit.estimator
    return found


def reference_profiles(shards: Shards, bins: Bins, score: Score, *, event_time: str, block_s: float) -> Folded:
    """Profiles of all rows per block of `block_s` seconds, and losses of the holdout's: one Ray task per file.

    Args: score: as `references.Crossed`, say. Equal to folding all rows at once: profiles add exactly.
    Raises: DataError for labels that are none, or when a file is gone."""
    shared = ray.put((shards, bins, score))
    left = [_fold_file.remote(shared, path, event_time, block_s) for path in lake.files(shards.dataset)]
    whole = Folded()
    while left:  # merged as they come: the parts of all files need not lie in one process either
        ready, left = ray.wait(left, num_returns=1)
        for each in _got(ready):
            whole += each
    return whole


@ray.remote
def _fold_file(shared: tuple[Shards, Bins, Score], path: str, event_time: str, block_s: float) -> Folded:
    shards, bins, score = shared
    columns = list(dict.fromkeys([*shards.columns, event_time]))
    batches = lake.opened(shards.dataset, path).iter_batches(batch_size=ROWS_PER_BATCH, columns=columns)
    tables = (pa.Table.from_batches([batch]) for batch in batches)
    each = (folded(shards, t, bins, score, event_time=event_time, block_s=block_s) for t in tables)
    return functools.reduce(lambda a, b: a + b, each, Folded())


def surveyed(shards: Shards, workers: int) -> Survey:
    """What all files of the dataset hold, looked at by one Ray task each: only columns that decide are read.

    Raises: DataError for labels or weights that are none, and when nothing can be learnt from the rows to fit."""
    shared = ray.put(shards)
    tasks = [_survey.remote(shared, path, workers) for path in lake.files(shards.dataset)]
    found: list[Survey] = _got(tasks)
    whole = functools.reduce(lambda a, b: a + b, found)
    for n, role in ((whole.n_fit, "fit"), (whole.n_judge, "judge")):
        if not n and (role == "fit" or shards.judge):
            raise DataError(
                shards.dataset.uri, f"version {shards.dataset.version} has no row to {role} on; see `split:`"
            )
    if whole.low == whole.high:
        what = "one value" if shards.task == "regression" else "one class"
        raise DataError("target", f"all {whole.n_fit} rows to fit have {what}; give more varied rows")
    return whole


@ray.remote
def _survey(shards: Shards, path: str, workers: int) -> Survey:
    return survey(shards, path, workers)


def _got(refs: Any) -> Any:
    """`ray.get`, with errors of ours as they were raised."""
    try:
        return ray.get(refs)
    except RayTaskError as exc:
        if isinstance(exc.cause, MlopsRayError):
            raise exc.cause from exc
        raise
