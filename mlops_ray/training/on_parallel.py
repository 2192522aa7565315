"""Features, search and final fit of rows that no process holds together: `on_fit`'s steps, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from mlops_ray.config import Project
from mlops_ray.data import splits
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.profile import Bins
from mlops_ray.data.splits import TRAIN, VALIDATION, FoldCut, TimeCut
from mlops_ray.errors import DataError
from mlops_ray.training import packaging
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.fitting import FOLDS, SHOWN_ROWS, Winner, completed
from mlops_ray.training.on_fit import Whole
from mlops_ray.training.rows import Rows, read_part
from mlops_ray.training.search import candidates
from mlops_ray.training.search.book import Progress
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_train import crossed_parallel, fit_parallel, reference_profiles, search_parallel
from mlops_ray.training.search.on_tune import Found
from mlops_ray.training.search.references import Crossed
from mlops_ray.training.search.shards import Shards
from mlops_ray.training.search.trials import TrialEnded

LONGER = 3.0
"""Time limit of a fit on all rows before the holdout, over that of a trial, which fits on fewer."""
START_S = 120.0
"""And for its workers to start and read."""


def way_of(project: Project) -> type[Whole] | type[Parallel]:
    """How the project's candidates are trained: `read`, `prepare`, then `search` and `refit`."""
    return Parallel if project.search.is_parallel else Whole


@dataclass(frozen=True)
class Parallel:
    """The way of candidates with several workers. `rows` are the part that the gates need.

    shards: of the search. every, fitted: of all rows before the holdout the statistics, and the transform. crossing:
    the parts of these rows whose scores come from fits on the others.
    """

    project: Project
    rows: Rows
    shards: Shards
    every: Partial
    fitted: Any
    crossing: FoldCut

    @staticmethod
    def read(project: Project, dataset: DatasetVersion, also: Iterable[str] = ()) -> Rows:
        """The holdout and `SHOWN_ROWS` of the rows before it; `also`: further columns. Raises: DataError."""
        return read_part(project, dataset, also, most=SHOWN_ROWS)

    @classmethod
    def prepare(cls, project: Project, dataset: DatasetVersion, rows: Rows) -> Self:
        """Fit the features: one pass over the shards. Raises: DataError."""
        crossing = _crossing(rows)
        train, validation = fit_features(project, dataset, rows.cut, (TRAIN, VALIDATION))
        encoded = bool(project.features.target_encoded)
        shards = Shards(
            dataset,
            rows.cut,
            project.features,
            transformer(project.features, train),
            project.target,
            project.task,
            rows.classes,
            key=project.key if encoded else None,
            partial=train if encoded else None,
            weight=project.search.sample_weight,
        )
        every = train + validation
        return cls(project, rows, shards, every, transformer(project.features, every), crossing)

    def search(
        self,
        *,
        storage: str,
        name: str,
        on_trial: Callable[[TrialEnded], None] = lambda trial: None,
        on_progress: Progress = lambda stage, done, total: None,
    ) -> Found:
        """The winner, see `on_train.search_parallel`."""
        return search_parallel(
            self.project.search,
            self.shards,
            seed=self.project.seed,
            storage=storage,
            name=name,
            scratch=self._scratch,
            on_trial=on_trial,
            on_progress=on_progress,
        )

    def refit(self, choice: Choice) -> Winner:
        """The winner of the search on all rows before the holdout. Its reference takes `FOLDS` further fits.

        Raises: as `fit_parallel`."""
        whole = replace(
            self.shards,
            fit=(TRAIN, VALIDATION),
            judge=(),
            fitted=self.fitted,
            partial=self.every if self.shards.partial is not None else None,
        )
        plan = self.project.search
        given: dict[str, Any] = {
            "workers": plan.candidates[choice.candidate].workers,
            "seed": self.project.seed,
            "scratch": self._scratch,
            "class_weight": candidates.class_weights(plan.class_weight, self.rows.classes),
        }
        limit_s = LONGER * (plan.trial_max_s or plan.max_s) + START_S
        estimator = fit_parallel(whole, choice, timeout_s=limit_s, **given).estimator
        pipeline, answers = completed(self.project, self.rows, self.fitted, estimator)
        given["timeout_s"] = self.crossing.n * limit_s
        return Winner(pipeline, answers, None, partial(self._reference, whole, choice, estimator, given))

    def _reference(
        self, whole: Shards, choice: Choice, estimator: Any, given: dict[str, Any], edges: Bins
    ) -> Reference:
        project, cut = self.project, self.crossing
        by_part = crossed_parallel(whole, cut, choice, **given)
        score = Crossed(project.features, self.fitted, project.task, cut, by_part, estimator)
        block_s = project.monitoring.block_s
        parts = reference_profiles(whole, edges, score, event_time=project.event_time, block_s=block_s)
        return packaging.reference_of(project, edges, parts)

    @property
    def _scratch(self) -> str:
        """Where checkpoints lie while a fit is under way: all nodes reach it."""
        return self.project.storage.path("scratch", self.project.project)


def _crossing(rows: Rows) -> FoldCut:
    """The rows before the holdout in `FOLDS` parts; by time, at the times of the rows that are here, evenly spread."""
    # A cut by time has one part more than its cross-validation would have folds.
    folds = FOLDS - 1 if isinstance(rows.cut, TimeCut) else FOLDS
    try:
        return splits.fold_cut(rows.cut, folds, times=rows.times * 1e6)
    except DataError as exc:
        what = f"the rows before the holdout stand at fewer instants than the {FOLDS} parts that score each other"
        raise DataError("split", f"{what}; give older rows") from exc
