"""Evidence that inputs have changed, gathered block by block: a large change is seen before its window ends,
and a small one adds up over windows. Pure.

For each feature some dozens of bets against the reference: that its mean or its spread has moved by so much, or that
one bin (a category, the missing, what is new) takes so much more of the rows. Each keeps its evidence since the instant
at which it is greatest (CUSUM), and a feature's is their weighted mean: an e-detector, as in `sequential`, over counts
that profiles have anyway. What is enough evidence is read from the reference's own blocks (`drift.measure`).
Source: Shin, Ramdas and Rinaldo, "E-detectors" (2023).

Rows of a day are alike: of each bet the evidence is divided by how much more the sums of blocks vary than those of
independent rows would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtri

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

# Size of a bet: weight. A small one is false more seldom than a large one of the same weight, for its evidence comes in
# small steps, and that is what the weights make good; and most that happens to a number moves its mean.
# In standard deviations of the bins' normal scores: the least that matters, and a factor of about two from one to the
# next, which costs little delay in between.
_MEANS = {0.1: 10.0, 0.2: 4.0, 0.4: 2.5, 0.8: 1.0, 1.4: 0.5}
# Of the squared scores.
_SPREADS = {0.15: 0.3, 0.3: 0.2, 0.6: 0.1}
# Of all rows, in one bin more than there were.
_SHARES = {0.03: 0.1, 0.2: 0.1}
# Nats beyond which more evidence changes nothing.
_MOST = 500.0
# Runs of blocks over which it is told how alike rows are, of each length at least so many; and the probability that
# independent rows would pass what is believed of them.
_RUNS, _DOUBT = 50, 0.1


def weights(n_bins: int) -> Floats:
    """Of the bets on a feature of so many bins, shape (bets,); their sum is 1.

    >>> float(weights(12).sum().round(9))
    1.0
    """
    moments = np.repeat([*_MEANS.values(), *_SPREADS.values()], 2) / 2
    each = np.concatenate([moments, np.repeat([*_SHARES.values()], n_bins) / n_bins])
    return np.asarray(each / each.sum())


def bets(known: NDArray[Any]) -> tuple[Floats, Floats]:
    """Logarithm of what a row in a bin multiplies each bet's capital by, shape (..., bets, bins), and its variance
    where rows come as known, shape (..., bets). The mean factor of a row that comes as known is 1.

    Args: known: rows per bin of the reference, shape (..., bins); half a row is added to each.
    """
    p = (known + 0.5) / (known.sum(axis=-1, keepdims=True) + 0.5 * known.shape[-1])
    scores = ndtri(np.clip(p.cumsum(axis=-1) - p / 2, 1e-9, 1 - 1e-9))
    first = _standard(scores, p)
    second = first**2 - (p * first**3).sum(axis=-1, keepdims=True) * first
    tilts = [first * size * side for size in _MEANS for side in (1, -1)]
    tilts += [_standard(second, p) * size * side for size in _SPREADS for side in (1, -1)]
    tilted = np.stack(tilts, axis=-2)
    tilted -= np.log((p[..., None, :] * np.exp(tilted)).sum(axis=-1, keepdims=True))
    more = np.concatenate([np.log(1 - e + e * np.eye(p.shape[-1]) / p[..., None, :]) for e in _SHARES], axis=-2)
    found = np.concatenate([tilted, more], axis=-2)
    mean = (found * p[..., None, :]).sum(axis=-1)
    return found, (found**2 * p[..., None, :]).sum(axis=-1) - mean**2


def _standard(scores: Floats, p: Floats) -> Floats:
    """To mean 0 and variance 1; of what is constant all 0."""
    centred = scores - (p * scores).sum(axis=-1, keepdims=True)
    spread = np.sqrt((p * centred**2).sum(axis=-1, keepdims=True))
    return np.asarray(np.where(spread > 1e-6, centred / np.maximum(spread, 1e-6), 0.0))


def gains(on: Floats, counts: NDArray[Any]) -> Floats:
    """Evidence in each block, shape (blocks, features, bets). Args: on: `bets` of (features, bets, bins); counts: rows
    per bin, shape (blocks, features, bins)."""
    return np.asarray(np.einsum("bfi,fki->bfk", counts.astype(np.float64), on, optimize=True))


def effects(found: Floats, rows: Whole, variance: Floats) -> Floats:
    """Of each bet: variance of the sums of blocks over that of as many independent rows, at least 1, as far as the
    blocks are sure of it, whatever runs of them show most of it. Shape (features, bets).

    Args: found: `gains` of the reference's blocks, oldest first; rows: of each, shape (blocks, features); variance: of
        a row, as `bets` says it.
    """
    n, most = len(found), np.ones(variance.shape)
    strayed = found - (found.sum(axis=0) / rows.sum(axis=0)[:, None]) * rows[:, :, None]
    for run in (2**k for k in range(n.bit_length())):
        if run > 1 and n // run < _RUNS:
            break
        kept = strayed[n % run :].reshape(n // run, run, *variance.shape).sum(axis=1)
        alone = rows[n % run :].sum(axis=0)[:, None] * np.maximum(variance, 1e-12)
        most = np.maximum(most, (kept**2).sum(axis=0) / alone * (n // run / chdtri(n // run, _DOUBT)))
    return np.asarray(most)


def gathered(found: Floats, weight: Floats, before: Floats | None = None) -> tuple[Floats, Floats]:
    """Evidence of each feature after each block, in nats, shape (blocks, features), and of each bet after the last,
    shape (features, bets).

    Args: found: evidence in each block, shape (blocks, features, bets); weight: `weights`; before: of each bet, as this
        returned it; None where it begins.
    """
    rises = found.cumsum(axis=0)
    lows = np.zeros((len(found), *found.shape[1:])) if before is None else np.tile(-before, (len(found), 1, 1))
    if before is None:
        before = lows[0]
    lows[0], lows[1:] = -np.maximum(before, 0), rises[:-1]
    paths = rises - np.minimum.accumulate(lows, axis=0)
    return np.asarray(np.log(np.exp(np.minimum(paths, _MOST)) @ weight)), paths[-1]
