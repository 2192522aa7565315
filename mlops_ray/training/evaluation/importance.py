"""Which inputs a model leans on: what its loss gains when a column is shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats, bundled, interval, resample
from mlops_ray.training.evaluation.metrics import row_losses, unit
from mlops_ray.training.target import Scores


@dataclass(frozen=True)
class Importance:
    """Loss per row that shuffling `column` adds, in the unit of `gates.margin`; below 0 is noise."""

    column: str
    increase: Estimate

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        return {"column": self.column, **self.increase.to_dict()}


def permutation(
    task: Task,
    columns: Columns,
    y: ArrayLike,
    score: Callable[[Columns], Scores],
    given: Blocks,
    *,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
    repeats: int = 3,
    max_rows: int = 5_000,
) -> tuple[Importance, ...]:
    """Permutation importance of the inputs `names` (all by default), most important first.

    Each column is shuffled `repeats` times over the rows, the others stay; the model is asked once per column with all
    repeats under each other. Of more than `max_rows` rows a random sample is taken. The interval is a two-sided
    1 - 2 `alpha` one over blocks of rows; what the shuffles themselves scatter is averaged over rows and repeats.

    Columns that say the same stand in for each other, and each alone looks unimportant (Hooker, Mentch and Zhou 2021).

    Args: columns: all inputs, shape (n,) each; y: labels (n,); score: asks the model, as `Case.score`; given: blocks.
    Raises: DataError for a name that is no input, and as `target.checked`.
    Source: Breiman 2001; Fisher, Rudin and Dominici 2019 (model reliance, here as a difference of losses).
    """
    labels = np.asarray(y)
    asked = list(columns) if names is None else list(names)
    unknown = [name for name in asked if name not in columns]
    if unknown:
        raise DataError(unknown[0], f"is no input of the model; inputs are {', '.join(columns)}")
    kept = np.sort(rng.permutation(len(labels))[:max_rows])
    rows, known, n = {name: np.asarray(cells)[kept] for name, cells in columns.items()}, labels[kept], len(kept)
    _, scores = target.checked(task, known, score(rows))
    scale = unit(task, labels)
    base = row_losses(task, known, scores, scale)
    repeated = {name: np.tile(cells, repeats) for name, cells in rows.items()}
    present, index = np.unique(given.index[kept], return_inverse=True)
    few = bundled(Blocks(index.astype(np.int64), given.starts[present]), rng)
    weights = resample(len(few), resamples, rng)
    drawn_rows = weights @ few.sums(np.ones(n))

    def importance(name: str) -> Importance:
        shuffled = np.concatenate([rows[name][rng.permutation(n)] for _ in range(repeats)])
        said = score({**repeated, name: shuffled})
        losses = row_losses(task, np.tile(known, repeats), said, scale).reshape(repeats, n).mean(axis=0)
        added: Floats = losses - base
        drawn = (weights @ few.sums(added)) / drawn_rows
        return Importance(name, interval(float(added.mean()), drawn, n=n, n_blocks=len(present), alpha=alpha))

    return tuple(sorted((importance(name) for name in asked), key=lambda i: -i.increase.value))
