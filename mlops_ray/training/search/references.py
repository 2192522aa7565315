"""What a version's reference is made of, shard by shard: profiles per block of time, and the holdout's losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops_ray.config import Features, Task
from mlops_ray.data import splits
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.features.statistics import seconds, to_columns
from mlops_ray.data.profile import Bins, Profile, fold
from mlops_ray.data.splits import FoldCut
from mlops_ray.training.evaluation.intervals import blocks
from mlops_ray.training.search.shards import Shards
from mlops_ray.training.target import Scores, counted, losses

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Score = Callable[[pa.Table], Scores]
"""Scores of rows, shape (n,), or (n, classes), by models that have not seen them; pickled to workers."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """Scores each row by a model that has not seen it: those of part k of `cut` by `by_part[k]`, fitted on the other
    parts, and the holdout by `final`. The models are plain estimators over what `fitted` makes of the features."""

    features: Features
    fitted: ColumnTransformer
    task: Task
    cut: FoldCut
    by_part: Mapping[int, Any]
    final: Any

    def __call__(self, table: pa.Table) -> Scores:
        """Shape (n,), or (n, classes). `table` has the columns of `cut` and of the features."""
        parts = splits.assign(self.cut, table)
        matrix = transformed(self.features, self.fitted, table)
        found: Scores | None = None
        for part in np.unique(parts).tolist():
            rows = parts == part
            said = self._said(self.final if part < 0 else self.by_part[part], matrix[rows])
            found = np.empty((len(parts), *said.shape[1:])) if found is None else found
            found[rows] = said
        return np.empty(0) if found is None else found

    def _said(self, estimator: Any, matrix: npt.NDArray[np.float64]) -> Scores:
        if self.task == "regression":
            return np.asarray(estimator.predict(matrix), dtype=np.float64)
        found = np.asarray(estimator.predict_proba(matrix), dtype=np.float64)
        return found[:, 1] if self.task == "binary" else found


@dataclass(frozen=True)
class Folded:
    """Of some rows: the profile of each block of time, by its start (seconds since epoch), and of each block's holdout
    rows their number, summed loss and summed labels (0 for classes, which do not add up)."""

    blocks: Mapping[float, Profile] = field(default_factory=dict)
    holdout: Mapping[float, tuple[int, float, float]] = field(default_factory=dict)

    def __add__(self, other: Folded) -> Folded:
        profiles, holdout = dict(self.blocks), dict(self.holdout)
        for start, profile in other.blocks.items():
            profiles[start] = profiles[start] + profile if start in profiles else profile
        for start, (n, loss, labels) in other.holdout.items():
            before = holdout.get(start, (0, 0.0, 0.0))
            holdout[start] = (before[0] + n, before[1] + loss, before[2] + labels)
        return Folded(profiles, holdout)


def folded(shards: Shards, table: pa.Table, bins: Bins, score: Score, *, event_time: str, block_s: float) -> Folded:
    """What the rows of `table` add to the reference.

    Raises: DataError for labels of the holdout that are none."""
    if not table.num_rows:
        return Folded()
    scores = score(table)
    columns = to_columns(shards.features, table)
    grouped = blocks(seconds(table[event_time]), block_s)
    profiles = {}
    for number, start in enumerate(grouped.starts.tolist()):
        rows = grouped.index == number
        shown = counted(shards.task, scores[rows])
        profiles[start] = fold(bins, {name: values[rows] for name, values in columns.items()}, shown)
    held = splits.assign(shards.cut, table) == (-1 if isinstance(shards.cut, FoldCut) else splits.HOLDOUT)
    holdout: dict[float, tuple[int, float, float]] = {}
    if held.any():
        y, _ = shards.labels(table.filter(pa.array(held)))
        late = blocks(seconds(table[event_time])[held], block_s)
        counts, lost = late.sums(np.ones(len(y))), late.sums(losses(shards.task, y, scores[held]))
        labels = np.zeros(len(late)) if shards.task == "multiclass" else late.sums(y)
        each = zip(late.starts.tolist(), counts.tolist(), lost.tolist(), labels.tolist(), strict=True)
        holdout = {start: (int(n), loss, total) for start, n, loss, total in each}
    return Folded(profiles, holdout)
