"""Whether a classifier can tell live rows from those of the holdout: what changed about features only together. Pure.

Each row is told by a classifier that saw no row of its block of time, so that rows of a day, which are alike, do not
fake it. How large the area under the curve is by chance is told by permuting whole blocks between the two sides: as
exact as blocks are exchangeable, and weather that lasts for days, or a season, makes them less so. What the seasons do
to single features, drift shows as well; hold windows against a holdout of their own season, or look at the features
first. Source: classifier two-sample tests (Lopez-Paz and Oquab 2017); permutation of clusters, stopped as soon as the
answer is known (Besag and Clifford 1991).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

_FOLDS = 2
# Trees with random cuts: they find what hangs on two features where greedy ones see nothing to begin with, and fit in a
# few milliseconds, some hundred times.
_TREES = 10
# Rows of either side: a permutation test fits some hundred classifiers.
MOST_ROWS = 4_000

Codes = NDArray[np.uint16]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Told:
    """auc: area under the curve, 0.5 by chance. p: probability of so large a one by chance; an upper end of it where
    the test ended early. alarm: whether p is at most the level. why: in words; auc and p are None where it says why
    nothing was tested."""

    auc: float | None
    p: float | None
    alarm: bool
    why: str


def tell(
    reference: Codes,
    reference_blocks: Indices,
    window: Codes,
    window_blocks: Indices,
    *,
    alarm_level: float,
    min_rows: int,
    rng: np.random.Generator,
) -> Told:
    """Args: reference, window: bins of the inputs, shape (n, features) (`profile.codes`); blocks: of each row, shape
    (n,), numbered by time; alarm_level: probability of a false alarm, in (0, 1)."""
    sides = []
    for codes, blocks, whose in ((reference, reference_blocks, "the holdout"), (window, window_blocks, "the window")):
        if len(codes) < min_rows:
            return Told(None, None, False, f"{whose} has {len(codes)} rows; {min_rows} are needed")
        some = np.sort(rng.permutation(len(codes))[:MOST_ROWS])
        sides.append((codes[some], np.unique(blocks[some], return_inverse=True)[1]))
    (ours, our_blocks), (theirs, their_blocks) = sides
    n_ours, n_theirs = int(our_blocks.max()) + 1, int(their_blocks.max()) + 1
    if min(n_ours, n_theirs) < _FOLDS or math.comb(n_ours + n_theirs, n_theirs) * alarm_level < 2:
        why = f"uncalibrated: {n_ours} blocks of the holdout and {n_theirs} of the window support no level of"
        return Told(None, None, False, f"{why} {alarm_level:.4f}")
    rows = np.concatenate([ours, theirs]).astype(np.float32)
    blocks = np.concatenate([our_blocks, n_ours + their_blocks])
    live = np.arange(n_ours + n_theirs) >= n_ours
    found = auc(rows, blocks, live)
    most = math.ceil(2 / alarm_level) - 1
    larger = 0
    for tried in range(1, most + 1):
        larger += auc(rows, blocks, rng.permutation(live)) >= found
        if (larger + 1) / (most + 1) > alarm_level:
            why = f"a classifier does not tell the rows from the holdout's: AUC {found:.3f}, as large by chance in"
            return Told(found, larger / tried, False, f"{why} {larger} of {tried} permutations of blocks")
    p = (larger + 1) / (most + 1)
    why = f"a classifier tells the rows from the holdout's: AUC {found:.3f}, by chance with a probability of {p:.4f}"
    return Told(found, p, True, f"{why}, against a level of {alarm_level:.4f}")


def auc(rows: NDArray[np.float32], blocks: Indices, live: NDArray[np.bool_]) -> float:
    """Area under the curve of a classifier that tells rows of `live` blocks from others, each row by one that saw no
    row of its block.

    Args: rows: (n, features); blocks: of each row, shape (n,), 0 .. k-1; live: shape (k,)."""
    from sklearn.ensemble import ExtraTreesClassifier  # here: half a second to import

    fold = np.empty(len(live), dtype=np.int64)
    for side in (live, ~live):  # neighbours to different folds, and both sides in each
        fold[side] = np.arange(side.sum()) % _FOLDS
    y, of = live[blocks], fold[blocks]
    found = []
    for k in range(_FOLDS):
        told = ExtraTreesClassifier(_TREES, max_depth=8, min_samples_leaf=15, max_features=None, random_state=0)
        fitting = of != k
        weight = np.where(y, (~y[fitting]).sum(), y[fitting].sum()).astype(np.float64)
        told.fit(rows[fitting], y[fitting], sample_weight=weight[fitting] / weight[fitting].mean())
        ranks, mine = rankdata(told.predict_proba(rows[~fitting])[:, 1]), y[~fitting]
        n = int(mine.sum())
        found.append((ranks[mine].sum() - n * (n + 1) / 2) / (n * (len(mine) - n)))
    return float(np.mean(found))
