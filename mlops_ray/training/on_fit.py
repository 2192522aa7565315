"""Features, search and final fit of rows that one process holds, on Ray: what `train` and `reproduce` do alike.

The matrix of features lies in the object store once; fits read it without copying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import ray

from mlops_ray.config import Project
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.on_ray import fit_features
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, FoldCut
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.fitting import FOLDS, Winner, concluded, on_all_rows, served
from mlops_ray.training.rows import Rows, read
from mlops_ray.training.search import candidates
from mlops_ray.training.search.book import Progress
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.on_tune import Found, search
from mlops_ray.training.search.trials import FoldData, TrialEnded
from mlops_ray.training.target import Labels, Scores

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class Whole:
    """The way of rows that one process holds: each fit sees all of them. `on_parallel.Parallel` has the same steps.

    folds: the search's matrices, one per fold. every, fitted: of all rows before the holdout the statistics, and the
    transform.
    """

    project: Project
    rows: Rows
    folds: list[FoldData]
    every: Partial
    fitted: ColumnTransformer

    @staticmethod
    def read(project: Project, dataset: DatasetVersion, also: Iterable[str] = ()) -> Rows:
        """All rows; `also`: further columns. Raises: DataError."""
        return read(project, dataset, also)

    @classmethod
    def prepare(cls, project: Project, dataset: DatasetVersion, rows: Rows) -> Self:
        """Fit the features: one pass over the shards, whatever the number of folds. Raises: DataError."""
        cut = rows.search_cut(project)
        parts = tuple(range(cut.n)) if isinstance(cut, FoldCut) else (TRAIN, VALIDATION)
        partials = dict(zip(parts, fit_features(project, dataset, cut, parts), strict=True))
        every = reduce(add, partials.values())
        folds = rows.folds(project, cut, rows.y, partials)
        return cls(project, rows, folds, every, transformer(project.features, every))

    def search(
        self,
        *,
        storage: str,
        name: str,
        warm: Sequence[Choice] = (),
        on_trial: Callable[[TrialEnded], None] = lambda trial: None,
        on_progress: Progress = lambda stage, done, total: None,
    ) -> Found:
        """The winner, see `on_tune.search`."""
        return search(
            self.project.search,
            self.project.task,
            self.folds,
            seed=self.project.seed,
            storage=storage,
            name=name,
            classes=self.rows.classes,
            warm=warm,
            on_trial=on_trial,
            on_progress=on_progress,
        )

    def refit(self, choice: Choice) -> Winner:
        """The winner of the search on all rows before the holdout, calibrated where the project asks for it.

        Calibration, threshold and reference use scores of folds that did not see the row.
        Two tasks, the fit and the folds: each further one is a worker that imports scikit-learn for more than a second.
        """
        project, rows = self.project, self.rows
        made = rows.matrix(project, rows.y, rows.of(TRAIN, VALIDATION), np.empty(0, dtype=np.int64), self.every)
        estimator, crossed = self._fits(choice, made, folds=True)
        return concluded(project, rows, self.fitted, made, estimator, crossed)

    def refit_on_all(self, choice: Choice, dataset: DatasetVersion) -> tuple[Pipeline, Scores]:
        """The choice on all rows, see `retraining.refit`: what serves, and its answers to the holdout."""
        project, rows = self.project, self.rows
        every = self.every + fit_features(project, dataset, rows.cut, (HOLDOUT,))[0]
        made = on_all_rows(project, rows, every)
        estimator, crossed = self._fits(choice, made, folds=project.search.calibrate != "none")
        return served(project, rows, every, made, estimator, crossed)

    def _fits(self, choice: Choice, made: FoldData, *, folds: bool) -> tuple[Any, Any]:
        """The fit on `made`, and, with `folds`, its scores by fits that did not see the row."""
        project, classes = self.project, self.rows.classes
        data = {"matrix": ray.put(made.matrix), "y": ray.put(made.y), "weights": ray.put(made.weights)}
        given = {
            "seed": project.seed,
            "task": project.task,
            "class_weight": candidates.class_weights(project.search.class_weight, classes),
        }
        task: Any = ray.remote(num_cpus=1, max_retries=2)
        whole = task(_fit).remote(choice, given, **data)
        if not folds:
            return ray.get(whole), None
        parts = task(_crossed).remote(choice, given | {"n_folds": FOLDS, "n_classes": len(classes)}, **data)
        estimator, crossed = ray.get([whole, parts])
        return estimator, crossed


def _fit(choice: Choice, given: dict[str, Any], *, matrix: Floats, y: Labels, weights: Floats | None) -> Any:
    return candidates.fit(choice, matrix, y, weights=weights, **given)


def _crossed(choice: Choice, given: dict[str, Any], *, matrix: Floats, y: Labels, weights: Floats | None) -> Any:
    return candidates.crossed(choice, matrix, y, weights=weights, **given)
