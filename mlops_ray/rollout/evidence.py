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
from collections.abc import Iterator, Sequence
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

# More outcomes than this are counted. Where too many of them differ, each is shared out between the two steps of its
# support that it lies between: these have its mean, and a logarithm is concave, so they never gain more than it would.
_COUNTED = 2**14
_CELLS = 2**15  # steps of all supports together, but for each support
_FEWEST_STEPS, _MOST_STEPS = 2**8, 2**11
_CENTRES = 64
_MOST_NATS = 600.0  # exp() of more is infinite
_PRECISION = 2.0**-24  # of a bound, as a part of the support
_MOST_TURNS = 100  # a bound takes some five; the support's end, which nothing may ever move, some 24


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

    def at(self, places: NDArray[np.int64] | slice) -> Differences:
        """These outcomes only."""
        return Differences(self.value[..., places], self.low[..., places], self.high[..., places])


def within(value: Floats, low: float, high: float) -> Differences:
    """Differences that all lie in [low, high], for example of the losses of two models on the same row."""
    return Differences(value, np.full_like(value, low), np.full_like(value, high))


def split(canary: NDArray[np.bool_], share: Floats) -> Differences:
    """Of units that were assigned at random whether each was the canary's, less the probability that it should be: mean
    0 where they were assigned as stated (Lindon and Malek, first example). Both of shape (n,)."""
    return Differences(canary - share, -share, 1 - share)


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


def log_capitals(differences: Differences, bar: float, ends: NDArray[np.int64]) -> Floats:
    """Logarithm of `capital` after the first outcomes, for each number of them in `ends`, at least 1; shape (ends,)."""
    gain = (differences.value - bar) / (bar - differences.low)
    found = np.full(len(ends), -np.inf)
    for odds, weight in zip(ODDS, WEIGHTS, strict=True):
        path = np.cumsum(np.log1p(fractions(differences, bar, odds) * gain))
        found = np.logaddexp(found, math.log(weight) + path[ends - 1])
    return found


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
    """The end of `capital`, for shape (n,). Many outcomes are counted instead, which keeps the promise."""
    return evidence_at(differences, bar, [len(differences)])[0]


def evidence_at(differences: Differences, bar: float, ends: Sequence[int]) -> list[Evidence]:
    """What the gambler holds after the first outcomes, for each number of them in `ends`, which must rise."""
    return [
        Evidence(end, tuple(_nats(part, counts, bar, _bets(part, bar)).tolist()))
        for end, (part, counts) in zip(ends, _first(differences, ends), strict=True)
    ]


def lower_bound(differences: Differences, bar: float, alpha: float) -> float:
    """A lower confidence sequence of the mean at this look: it is ever above the mean with probability at most alpha.

    It is the largest mean against which the gambler holds 1/alpha, with the bets that are placed against `bar`.
    """
    return float(lower_bounds(differences, bar, alpha, [len(differences)])[0])


def lower_bounds(differences: Differences, bar: float, alpha: float, ends: Sequence[int]) -> Floats:
    """`lower_bound` after the first outcomes, for each number of them in `ends`, which must rise; of none -inf."""
    found, near = [], bar
    for part, counts in _first(differences, ends):
        found.append(_bound(part, counts, bar, alpha, near) if len(part) else -math.inf)
        near = found[-1]
    return np.array(found)


def _bound(differences: Differences, counts: Floats, bar: float, alpha: float, near: float) -> float:
    """The mean at which the capital is 1/alpha, by Newton's method from `near`, never above it.

    The bets against `bar` are kept while the mean moves. Each one's logarithm is then a convex, falling function of the
    mean, and so is the whole capital's: tangents meet 1/alpha on its safe side, and come nearer from there.
    """
    bets, log_weights = _bets(differences, bar), np.log(WEIGHTS)
    low, high = float(differences.low.max()), float(differences.high.min())
    precision = (high - low) * _PRECISION
    mean = near if low + precision < near < high else (low + high) / 2
    found = low
    for _ in range(_MOST_TURNS):
        gain = (differences.value - mean) / (mean - differences.low)
        held = log_weights + np.log1p(bets * gain) @ counts
        log_capital = np.logaddexp.reduce(held)
        slopes = (
            bets / (1 + bets * gain) @ (counts * (differences.value - differences.low) / (mean - differences.low) ** 2)
        )
        slope = float(np.exp(held - log_capital) @ slopes)
        beyond = float(log_capital) + math.log(alpha)
        if beyond >= 0:
            found = max(found, mean)
        further = min(mean + beyond / slope, high) if slope > 0 else low
        if further <= low:
            further = (low + mean) / 2
        if mean - low < precision or (beyond >= 0 and further - mean < precision):
            break
        mean = further
    return found


def _bets(differences: Differences, bar: float) -> Floats:
    return np.stack([fractions(differences, bar, odds) for odds in ODDS])


def _nats(differences: Differences, counts: Floats, mean: float, bets: Floats) -> Floats:
    """Logarithm of what each bet's capital was multiplied by, shape (bets,)."""
    gain = (differences.value - mean) / (mean - differences.low)
    return np.asarray(np.log1p(bets * gain) @ counts)


def _first(differences: Differences, ends: Sequence[int]) -> Iterator[tuple[Differences, Floats]]:
    """The first outcomes, for each number of them in `ends`, and how often each came."""
    counted = _counted(differences) if len(differences) > _COUNTED else None
    if counted is None:
        for end in ends:
            yield differences.at(slice(end)), np.ones(end)
        return
    cells, parts = counted
    counts, start = np.zeros(len(cells)), 0
    for end in ends:
        for cell, weight in parts:
            counts = counts + np.bincount(cell[start:end], weight[start:end], len(cells))
        start, filled = end, np.flatnonzero(counts)
        yield cells.at(filled), counts[filled]


def _counted(differences: Differences) -> tuple[Differences, list[tuple[NDArray[np.int64], Floats]]] | None:
    """Outcomes that are counted in place of these; of each of these where its parts go, and how large they are.

    None where counting would not make fewer of them.
    """
    spans, place = _spans(differences)
    values, which = np.unique(differences.value, return_inverse=True)
    if spans.shape[1] * len(values) <= _CELLS:  # nothing needs to be shared out
        low, high = np.repeat(spans, len(values), axis=1)
        cells = Differences(np.tile(values, spans.shape[1]), low, high)
        return cells, [(place * len(values) + which, np.ones(len(place)))]
    steps = min(max(_CELLS // spans.shape[1], _FEWEST_STEPS), _MOST_STEPS)
    if spans.shape[1] * (steps + 1) > len(differences):
        return None
    low, high = np.repeat(spans, steps + 1, axis=1)
    cells = Differences(low + np.tile(np.arange(steps + 1) / steps, spans.shape[1]) * (high - low), low, high)
    at = (differences.value - differences.low) / (differences.high - differences.low) * steps
    below = np.clip(np.floor(at), 0, steps - 1)
    upper = np.clip(at - below, 0, 1)
    cell = place * (steps + 1) + below.astype(np.int64)
    return cells, [(cell, 1 - upper), (cell + 1, upper)]


def _spans(differences: Differences) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct supports, shape (2, k), and which of them each outcome has."""
    both = np.stack([differences.low, differences.high])
    if (both == both[:, :1]).all():  # far quicker than looking for distinct ones
        return both[:, :1], np.zeros(len(differences), np.int64)
    lows, low = np.unique(differences.low, return_inverse=True)
    highs, high = np.unique(differences.high, return_inverse=True)
    pairs, place = np.unique(low * len(highs) + high, return_inverse=True)
    return np.stack([lows[pairs // len(highs)], highs[pairs % len(highs)]]), place
