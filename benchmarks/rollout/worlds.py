"""Simulated traffic of a canary, and the numbers that a table needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from mlops_ray.rollout.evidence import ODDS, WEIGHTS, Differences, fractions

Floats = NDArray[np.float64]
Rng = np.random.Generator

CLIP = 0.01
BOUND = math.log((1 - CLIP) / CLIP)
RAMP = (0.01, 0.05, 0.25, 0.5)


@dataclass(frozen=True)
class Found:
    """So many of `n` runs ended so."""

    k: int
    n: int

    @property
    def lower(self) -> float:
        """Lower end of that interval."""
        return float(beta.ppf(0.025, self.k, self.n - self.k + 1)) if self.k else 0.0

    @property
    def upper(self) -> float:
        """Upper end of the two-sided 95 % Clopper-Pearson interval of the probability."""
        return float(beta.ppf(0.975, self.k + 1, self.n - self.k)) if self.k < self.n else 1.0

    def __str__(self) -> str:
        return f"{100 * self.k / self.n:.1f} % [{100 * self.lower:.1f}, {100 * self.upper:.1f}]"


# Events by assignment: one step is one outcome of the canary, and what stable was asked meanwhile ------------------


@dataclass(frozen=True)
class Counts:
    """Up to and with each outcome of the canary, shape (runs, n): errors of both, rows of stable; share in force."""

    canary: NDArray[np.int64]
    stable: NDArray[np.int64]
    rows: NDArray[np.int64]
    share: Floats


def events(rng: Rng, runs: int, n: int, share: Floats, stable: float, canary: float) -> Counts:
    """Bernoulli errors of both arms. Args: share: of the canary at each of its `n` outcomes, shape (n,)."""
    between = rng.geometric(share, (runs, n)) - 1  # rows of stable before each of the canary's
    return Counts(rng.random((runs, n)) < canary, rng.binomial(between, stable), between, share)


def capital_of_counts(counts: Counts, bar: float, *, fine: bool) -> Floats:
    """`evidence.capital` after each of the canary's outcomes, from counts: shape (runs, n).

    Args: fine: bets that the canary is better than worse by `bar`; else that it is worse than `bar`."""
    share, sign = counts.share, -1.0 if fine else 1.0
    low, high = (-1 / share, 1 / (1 - share)) if fine else (-1 / (1 - share), 1 / share)
    supports = Differences(np.zeros_like(share), low, high)
    at = sign * bar
    found = np.zeros(counts.canary.shape)
    for odds, weight in zip(ODDS, WEIGHTS, strict=True):
        bet = fractions(supports, at, odds) / (at - low)
        error, other, none = (np.log1p(bet * (x - at)) for x in (sign / share, -sign / (1 - share), 0.0 * share))
        steps = np.where(counts.canary, error, none) + counts.stable * other + (counts.rows - counts.stable) * none
        found += weight * np.exp(np.minimum(np.cumsum(steps, axis=1), 600))
    return found


def largest_capital(counts: Counts, bar: float, *, fine: bool) -> Floats:
    """The largest of `capital_of_counts` in each run, shape (runs,), at a bar of 0 for "worse". Only looks at which it
    can be largest are computed: where the canary's outcome is no error, "worse" gains nothing and "fine" loses nothing.
    """
    n = counts.canary.shape[1]
    peaks = counts.canary.astype(np.bool_)
    if fine:  # just before each error, and at last
        peaks = np.concatenate([peaks[:, 1:], np.ones((len(peaks), 1), np.bool_)], axis=1)
    run, place = np.nonzero(peaks)
    sign, at = (-1.0, -bar) if fine else (1.0, bar)
    logs = np.zeros((len(ODDS), len(run)))
    for share in np.unique(counts.share):
        there = counts.share == share
        low, high = (-1 / share, 1 / (1 - share)) if fine else (-1 / (1 - share), 1 / share)
        support = Differences(np.zeros(1), np.array([low]), np.array([high]))
        bets = np.array([fractions(support, at, odds)[0] for odds in ODDS]) / (at - low)
        errors, others, rows = (
            np.cumsum(np.where(there, each, 0), axis=1)[run, place]
            for each in (counts.canary, counts.stable, counts.rows + np.ones(n, np.int64))
        )
        error, other, none = (np.log1p(bets * (x - at)) for x in (sign / share, -sign / (1 - share), 0.0))
        logs += np.outer(error, errors) + np.outer(other, others) + np.outer(none, rows - errors - others)
    found = np.ones(len(counts.canary))
    np.maximum.at(found, run, np.exp(np.logaddexp.reduce(np.minimum(logs, 600) + np.log(WEIGHTS)[:, None], axis=0)))
    return found


# Losses on the same row -----------------------------------------------------------------------------------------------


def scores(
    rng: Rng, shape: tuple[int, ...], *, error: float = 0.4, extra: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Labels, and P(1) of two versions that err alike; the canary's logits have noise of standard deviation `extra`
    besides. Errors are Student's t with 3 degrees of freedom: now and then a version is surely wrong."""
    logit = rng.normal(-1.5, 1.5, shape)
    label = (rng.random(shape) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    wrong = error * rng.standard_t(3, (2, *shape)) / math.sqrt(3)
    stable = 1 / (1 + np.exp(-(logit + wrong[0])))
    canary = 1 / (1 + np.exp(-(logit + wrong[1] + extra * rng.normal(size=shape))))
    return label, stable, canary


def loss(label: Floats, score: Floats) -> Floats:
    return np.asarray(-np.log(np.clip(np.where(label > 0.5, score, 1 - score), CLIP, 1 - CLIP)))


def gaps(rng: Rng, shape: tuple[int, ...], *, worse: float = 0.0) -> Floats:
    """Paired log-loss differences of equal versions, exactly `worse` added, in [-BOUND, BOUND]: the law of the
    difference is symmetric, so that its mean stays what is said after clipping."""
    label, stable, canary = scores(rng, shape)
    gap = loss(label, canary) - loss(label, stable)
    return np.clip(gap, worse - BOUND, BOUND - worse) + worse


def heavy_keys(rng: Rng, n: int, *, n_keys: int = 2000) -> NDArray[np.int64]:
    """Keys of `n` rows: a few send most of them (Zipf with exponent 1.1)."""
    weight = 1 / np.arange(1, n_keys + 1) ** 1.1
    return np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n)).clip(max=n_keys - 1)
