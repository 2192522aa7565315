"""Rows of the holdout weighed by how much a window resembles them, for estimates under covariate shift.

Where inputs have moved, what a score means may have moved too: a score of 0.3 is one thing among the rows that the
holdout is full of, another among those that fill the window. So the calibration is filled again with the holdout's
sample, each row weighed by the density ratio of window to holdout (Shimodaira 2000), which a classifier that tells the
two apart gives (Bickel, Brückner & Scheffer 2009). For estimates of quality: PAPE, arXiv 2401.08348.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_ray.training.calibration import Calibration, Indices
from mlops_ray.training.evaluation.intervals import Floats

_FOLDS = 3
"""A row's weight comes from a classifier that did not see it."""
_MOST_ROWS = 5000
"""Of the window, as many as the sample has at most: the ratio is no sharper than its coarser side."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """Weights of the sample's rows, shape (n,), with mean 1, or None where they carry too little, and `why`.

    effective: rows that an unweighed sample of the same precision would have (Kish 1965): few where the window is
    unlike most of the holdout, or lies where the holdout has no rows at all."""

    weights: Floats | None
    effective: float
    why: str


def weigh(
    known: Calibration, placed: Indices, codes: NDArray[np.uint16], *, min_rows: int, rng: np.random.Generator
) -> Weighed:
    """The sample's rows weighed for a window.

    Args: placed, codes: of the window's rows, n >= 1: their cells (n, maps) and bins of their inputs (n, features);
        min_rows: rows of either side, and effective ones, that are needed."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # here: half a second to import

    sample = known.sample
    for n, whose in ((len(sample.block), "the sample of the holdout"), (len(placed), "the window")):
        if n < min_rows:
            return Weighed(None, 0.0, f"{whose} has {n} rows; {min_rows} are needed")
    some = np.sort(rng.permutation(len(placed))[:_MOST_ROWS])
    theirs = np.concatenate([sample.codes, sample.cells], axis=1)
    ours = np.concatenate([codes[some], placed[some]], axis=1)
    rows, live = np.concatenate([theirs, ours]).astype(np.float32), np.arange(len(theirs) + len(ours)) >= len(theirs)
    fold, odds = rng.permutation(len(rows)) % _FOLDS, np.empty(len(theirs))
    for i in range(_FOLDS):
        told = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=30, early_stopping=False, random_state=0
        )
        asked = np.flatnonzero(fold[: len(theirs)] == i)
        p = told.fit(rows[fold != i], live[fold != i]).predict_proba(rows[asked])
        odds[asked] = p[:, 1] / p[:, 0]
    effective = float(odds.sum() ** 2 / (odds**2).sum())
    said = f"the window resembles {effective:.0f} of {len(odds)} rows of the holdout"
    if effective < min_rows:
        return Weighed(None, effective, f"{said}; {min_rows} are needed")
    return Weighed(odds / odds.mean(), effective, said)
