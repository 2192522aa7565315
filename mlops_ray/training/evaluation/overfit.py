"""How much worse a model is on rows it has not seen than on those it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlops_ray.config import Task
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats, bundled, interval, resample
from mlops_ray.training.evaluation.metrics import row_losses, unit


@dataclass(frozen=True)
class Gap:
    """Mean loss per row on either side and their difference, holdout less fitted, in the unit of `gates.margin`.

    A large positive difference is overfitting (or a world that has moved on); both losses near that of the best
    constant are underfitting: `constant` is the holdout's loss of the base rates or mean of the fitted rows.
    """

    fitted: Estimate
    holdout: Estimate
    difference: Estimate
    constant: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        parts = {"fitted": self.fitted, "holdout": self.holdout, "difference": self.difference}
        return {**{name: part.to_dict() for name, part in parts.items()}, "constant": self.constant}


def gap(
    task: Task,
    y_fit: ArrayLike,
    scores_fit: ArrayLike,
    y_holdout: ArrayLike,
    scores_holdout: ArrayLike,
    fit_blocks: Blocks,
    holdout_blocks: Blocks,
    *,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
) -> Gap:
    """The gap with two-sided 1 - 2 `alpha` intervals; the sides are resampled independently, each by its blocks.

    Args: labels and scores of either side, as `target.checked` wants them.
    Raises: DataError when shapes differ, or labels or scores are none."""
    fit_y, fit_scores = target.checked(task, y_fit, scores_fit)
    y, scores = target.checked(task, y_holdout, scores_holdout)
    scale = unit(task, y)
    sides = [
        _means(row_losses(task, labels, said, scale), blocks, resamples, rng)
        for labels, said, blocks in ((fit_y, fit_scores, fit_blocks), (y, scores, holdout_blocks))
    ]
    sizes = ((len(fit_y), len(fit_blocks)), (len(y), len(holdout_blocks)))
    fitted, holdout = (
        interval(value, drawn, n=n, n_blocks=n_blocks, alpha=alpha)
        for (value, drawn), (n, n_blocks) in zip(sides, sizes, strict=True)
    )
    # The side of fewer blocks decides how far a bound must reach (the cautious reading of Welch's degrees of freedom).
    difference = interval(
        sides[1][0] - sides[0][0],
        sides[1][1] - sides[0][1],
        n=len(y),
        n_blocks=min(len(fit_blocks), len(holdout_blocks)),
        alpha=alpha,
    )
    return Gap(fitted, holdout, difference, float(row_losses(task, y, _constant(task, fit_y, y, scores), scale).mean()))


def _means(losses: Floats, blocks: Blocks, resamples: int, rng: np.random.Generator) -> tuple[float, Floats]:
    few = bundled(blocks, rng)
    weights = resample(len(few), resamples, rng)
    return float(losses.mean()), (weights @ few.sums(losses)) / (weights @ few.sums(np.ones(len(losses))))


def _constant(task: Task, fit_y: target.Labels, y: target.Labels, scores: target.Scores) -> target.Scores:
    one = target.constant(task, fit_y, scores.shape[1] if scores.ndim == 2 else 0)[:1]
    return np.repeat(one, len(y), axis=0)
