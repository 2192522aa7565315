"""What the gates are shown: the holdout, the packaged candidate's answers to it, the champion's, and a way to ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Features, Task
from mlops_ray.data.profile import Columns
from mlops_ray.training.evaluation import metrics
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Classes, Labels, Scores


@dataclass(frozen=True)
class Fitted:
    """Rows that the candidate was fitted on, all or an even sample of them.

    columns: the inputs, shape (m,) each; y: labels, shape (m,); scores: the candidate's own answers to them
    (in-sample), (m,) or (m, classes); times: seconds since the epoch, shape (m,).
    """

    columns: Columns
    y: Labels
    scores: Scores
    times: Floats


@dataclass(frozen=True)
class Case:
    """One candidate on trial.

    Holdout rows, seen by neither model nor search: `columns` the inputs, shape (n,) each, `y` (n,),
    `times` (n,) seconds since the epoch, `groups` the columns that `gates.slices`, `gates.fairness` and
    `gates.block_group` name, shape (n,) each, as objects or numbers (a column that the dataset version lacks is
    absent); `weights` of rows are not used for judging. `scores` and `rival` (the champion's, None for a first version)
    are (n,), or (n, classes). `score` asks the packaged artifact. `fitted` is None where nobody kept those rows.
    `threshold` turns a binary score into a decision. `nullable` are the inputs that a request may leave empty (None:
    all of them). `newest` says that the split promises a holdout that is newer than all other rows.
    """

    task: Task
    classes: Classes
    features: Features
    columns: Columns
    y: Labels
    scores: Scores
    rival: Scores | None
    times: Floats
    score: Callable[[Columns], Scores]
    groups: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    fitted: Fitted | None = None
    threshold: float = 0.5
    nullable: frozenset[str] | None = None
    newest: bool = True

    def losses(self, scores: Scores) -> Floats:
        """Loss per holdout row of these answers, shape (n,), in the unit of `gates.margin`."""
        return metrics.row_losses(self.task, self.y, scores, metrics.unit(self.task, self.y))
