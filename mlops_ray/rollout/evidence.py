"""Evidence about a mean that may be looked at after every outcome: betting capital and confidence sequences.

A gambler starts with capital 1 and bets, outcome by outcome, that the mean lies above a bar. Where it does not, no bet
gains in expectation, so the capital is a nonnegative supermartingale and ever reaches 1/a with probability at most a,
whenever one looks (Ville 1939). Only two things are needed: outcomes within a support that is known before each of
them, and a conditional mean at most the bar. The support may change from outcome to outcome, as it does for
comparisons by assignment while the canary's share rises; one capital goes through all steps of a ramp.

The bets. Of all laws on [low, high] with mean `bar`, the one on the two ends varies most; its upper end has
probability (bar - low) / (high - low). A bet is that law with the odds of the upper end multiplied, and the capital is
a mixture over such odds ratios, fixed before the first outcome. Where outcomes lie on the ends, this is the exact
sequential test of a share against the bar (Bernoulli), or, compared by assignment, of the canary's share of all events
against the share of traffic that it had (binomial, sequential multinomial): valid for rare events, at any allocation
and when the rate of events moves with time.

A mixture of fixed bets does not depend on the order of the outcomes. What a late commit inserts among earlier rows
therefore changes nothing that a look before it had seen.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B, 2024), for capital
and confidence sequences; Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022), for
counts; Waudby-Smith et al., "Anytime-valid off-policy inference for contextual bandits" (2024), for differences by
assignment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Odds ratios of the bets, and the capital that each plays with. Half a prior's mass lies beyond a doubling of the odds
# (half-Cauchy, whose tail costs little whatever the truth). A third of all capital bets as boldly as it can: losses
# of two models on the same row differ by little against their bound, where the boldest bet is nearly the best.
_LOG_ODDS = np.geomspace(0.1, 6.0, 12)
ODDS = np.exp(_LOG_ODDS)
_PRIOR = _LOG_ODDS / (1 + (_LOG_ODDS / math.log(2)) ** 2)  # a density, times the step of the grid
WEIGHTS = 2 / 3 * _PRIOR / _PRIOR.sum() + 1 / 3 * (np.arange(len(ODDS)) == len(ODDS) - 1)

# With more outcomes than this, values are rounded down to this many steps of their support and counted.
_STEPS = 2**14
_CENTRES = 64
_MOST_NATS = 600.0  # exp() of more is infinite
_HALVINGS = 24


@dataclass(frozen=True)
class Differences:
    """Canary minus stable, positive is worse. Shapes (..., n): values, and the support of each, known before it."""

    value: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return int(self.value.shape[-1])

    def __neg__(self) -> Differences:
        return Differences(-self.value, -self.high, -self.low)


def within(value: Floats, low: float, high: float) -> Differences:
    """Differences that all lie in [low, high], for example of the losses of two models on the same row."""
    return Differences(value, np.full_like(value, low), np.full_like(value, high))


def by_assignment(
    value: Floats, canary: NDArray[np.bool_], share: Floats, *, low: float, high: float, centre: Floats | None = None
) -> Differences:
    """Differences of two arms whose units were assigned at random: each an unbiased estimate of canary minus stable.

    Args: value: what happened, in [low, high], shape (..., n). canary: who answered. share: the probability with which
        the canary was to answer, in force at the assignment, in (0, 1). centre: what was expected of stable before the
        assignment, in [low, high]; it takes away variance and no truth; default `low`.
    Returns: (value - centre) * (canary / share - (1 - canary) / (1 - share)), with supports.
    """
    # A centre further from `low` than this would widen the support, and so forbid bold bets. Few distinct centres
    # make few distinct supports, and what is taken off need not be exact.
    c = np.full_like(value, low)
    if centre is not None:
        step = (high - low) / _CENTRES
        c = low + np.floor(np.minimum((centre - low) / step, share * _CENTRES)) * step
    x = (value - c) * np.where(canary, 1 / share, -1 / (1 - share))
    return Differences(
        x,
        np.minimum((low - c) / share, -(high - c) / (1 - share)),
        np.maximum((high - c) / share, -(low - c) / (1 - share)),
    )


def fractions(differences: Differences, bar: float, odds: float) -> Floats:
    """Share of the largest bet that cannot lose everything, for a bet of these odds on "the mean is above `bar`"."""
    upper = (bar - differences.low) / (differences.high - differences.low)
    return np.asarray((odds - 1) * upper / (1 + (odds - 1) * upper))


def capital(differences: Differences, bar: float) -> Floats:
    """Capital over time of the gambler who bets that the mean lies above `bar`.

    Args: differences: of shape (..., n); bar: inside all supports, `low` excluded.
    Returns: shape (..., n + 1), starting at 1. Under "mean at most `bar`, whatever came before", it ever reaches 1/a
        with probability at most a.
    """
    gain = (differences.value - bar) / (bar - differences.low)
    found = np.zeros_like(gain)
    for odds, weight in zip(ODDS, WEIGHTS, strict=True):
        path = np.cumsum(np.log1p(fractions(differences, bar, odds) * gain), axis=-1)
        found += weight * np.exp(np.minimum(path, _MOST_NATS))
    return np.concatenate([np.ones((*gain.shape[:-1], 1)), found], axis=-1)


@dataclass(frozen=True)
class Evidence:
    """What a gambler holds after `n` outcomes. nats: what each bet multiplied its capital by, as a logarithm."""

    n: int
    nats: tuple[float, ...]

    @property
    def log_capital(self) -> float:
        """Logarithm of all capital."""
        return float(np.logaddexp.reduce(np.log(WEIGHTS) + self.nats))

    def needed(self, log_capital: float) -> int | None:
        """How many more outcomes reach that capital, if they are on average like those so far; None: never."""
        waits = [
            (log_capital - math.log(weight) - nats) * self.n / nats
            for weight, nats in zip(WEIGHTS, self.nats, strict=True)
            if nats > 0
        ]
        return max(math.ceil(min(waits)), 0) if waits else None


def evidence(differences: Differences, bar: float) -> Evidence:
    """The end of `capital`, for shape (n,); many outcomes are rounded down first, which keeps the promise."""
    pooled, counts = _pooled(differences)
    return Evidence(len(differences), tuple(_nats(pooled, counts, bar, _bets(pooled, bar)).tolist()))


def lower_bound(differences: Differences, bar: float, alpha: float) -> float:
    """A lower confidence sequence of the mean at this look: it is ever above the mean with probability at most alpha.

    It is the largest mean against which the gambler holds 1/alpha, with the bets that are placed against `bar`.
    """
    if not len(differences):
        return -math.inf
    pooled, counts = _pooled(differences)
    bets = _bets(pooled, bar)  # kept while the mean moves: then capital falls as it rises, and bisection finds it
    low, high = float(pooled.low.max()), float(pooled.high.min())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if np.logaddexp.reduce(np.log(WEIGHTS) + _nats(pooled, counts, middle, bets)) >= -math.log(alpha):
            low = middle
        else:
            high = middle
    return low


def _bets(differences: Differences, bar: float) -> Floats:
    return np.stack([fractions(differences, bar, odds) for odds in ODDS])


def _nats(differences: Differences, counts: NDArray[np.int64], mean: float, bets: Floats) -> Floats:
    """Logarithm of what each bet's capital was multiplied by, shape (bets,)."""
    gain = (differences.value - mean) / (mean - differences.low)
    return np.asarray(np.log1p(bets * gain) @ counts)


def _pooled(differences: Differences) -> tuple[Differences, NDArray[np.int64]]:
    """Distinct outcomes, and how often each came."""
    n = len(differences)
    if n <= _STEPS:
        return differences, np.ones(n, np.int64)
    spans, place = _spans(differences)
    width = differences.high - differences.low
    # A hair before rounding: a value that lies on a step stays there, whatever the division made of it.
    steps = np.floor((differences.value - differences.low) / width * _STEPS + 1e-6).astype(np.int64)
    coded, counts = np.unique(place * (_STEPS + 1) + steps, return_counts=True)
    low, high = spans[0, coded // (_STEPS + 1)], spans[1, coded // (_STEPS + 1)]
    return Differences(low + (coded % (_STEPS + 1)) / _STEPS * (high - low), low, high), counts


def _spans(differences: Differences) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct supports, shape (2, k), and which of them each outcome has."""
    both = np.stack([differences.low, differences.high])
    if (both == both[:, :1]).all():  # far quicker than looking for distinct ones
        return both[:, :1], np.zeros(len(differences), np.int64)
    spans, place = np.unique(both, axis=1, return_inverse=True)
    return spans, place.reshape(-1)
