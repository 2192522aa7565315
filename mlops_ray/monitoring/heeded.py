"""Whether a model heeds a feature that has drifted: what its answers would be had the feature not moved. Pure.

The feature's values in the window are replaced by draws from the reference's bins, all others stay. Where the answers
hardly change, the model ignores the feature or what moved about it, and its drift calls nobody. What the labels became
is not asked: a feature that should matter and does not is for training to find.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.profile import Bins, Columns, Profile
from mlops_ray.training.target import Scores

IGNORED = 0.01
"""Mean change of the answers, in their standard deviations, below which a feature is ignored."""
MOST_ROWS = 2_000


def change(
    score: Callable[[Columns], Scores],
    bins: Bins,
    reference: Profile,
    columns: Columns,
    feature: str,
    rng: np.random.Generator,
) -> float:
    """Mean absolute change of the window's answers when `feature` is as in the reference, in standard deviations of the
    answers.

    Args: columns: inputs of the window's rows as they were scored, shape (n,) each, n >= 1. Inf where the answers are
    all the same and change.
    """
    said = score(columns)
    replaced = {**columns, feature: _drawn(bins, reference, feature, len(columns[feature]), rng)}
    moved = float(np.abs(score(replaced) - said).mean())
    spread = float(said.std(axis=0).mean())
    if moved == 0:
        return 0.0
    return moved / spread if spread > 0 else float("inf")


def _drawn(bins: Bins, reference: Profile, feature: str, n: int, rng: np.random.Generator) -> NDArray[np.generic]:
    """Values by the reference's counts: middles of bins, its extremes for the outermost; categories by name."""
    counts = reference.counts[feature].astype(np.float64)
    places = rng.choice(len(counts), n, p=counts / counts.sum())
    if feature in bins.categorical:
        names = np.array([*bins.categorical[feature], "(unknown)", ""], dtype=object)
        return names[places]
    edges, known = np.array(bins.numeric[feature]), reference.ranges[feature]
    if len(edges):
        low, high = min(known.low, edges[0]), max(known.high, edges[-1])
        bounds = np.concatenate([[low], edges, [high]])
        middles = (bounds[:-1] + bounds[1:]) / 2
    else:
        middles = np.array([reference.moments[feature].mean])
    return np.append(middles, np.nan)[places].astype(np.float32)
