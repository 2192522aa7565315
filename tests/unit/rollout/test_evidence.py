"""Golden values, laws, and error rates by simulation: tolerances are three standard errors of the number of runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.special import gammaln

from mlops_ray.rollout import evidence as module
from mlops_ray.rollout.evidence import (
    ODDS,
    WEIGHTS,
    Differences,
    by_assignment,
    capital,
    evidence,
    evidence_at,
    fractions,
    log_capitals,
    lower_bound,
    lower_bounds,
    within,
)

ALPHA = 0.05


def at_most_alpha(found: Any, alpha: float = ALPHA) -> bool:
    """Whether so many of these runs may go wrong: alpha, and three standard errors for the number of runs."""
    return bool(np.mean(found) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(found)))


# --- golden values and laws ---


def test_the_bets_are_a_distribution_fixed_beforehand() -> None:
    assert WEIGHTS.sum() == pytest.approx(1)
    assert (WEIGHTS > 0).all()
    assert ODDS[0] > 1


@pytest.mark.parametrize("bar", [0.001, 0.05, 0.5])
def test_a_bet_on_failures_is_the_likelihood_ratio_of_a_bernoulli(bar: float) -> None:
    """(q / bar)^x ((1 - q) / (1 - bar))^(1 - x), with the odds of `bar` multiplied: nothing is lost to a bound."""
    x = within(np.array([1.0, 0.0]), 0.0, 1.0)
    for odds in ODDS:
        q = odds * bar / (1 - bar + odds * bar)
        found = 1 + fractions(x, bar, odds) * (x.value - bar) / bar
        np.testing.assert_allclose(found, [q / bar, (1 - q) / (1 - bar)])


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_bet_on_events_by_assignment_is_the_sequential_binomial_test(share: float) -> None:
    """Only the canary's part in the events is bet on: rows without an event change nothing."""
    value, canary = np.array([1.0, 1.0, 0.0, 0.0]), np.array([True, False, True, False])
    x = by_assignment(value, canary, np.full(4, share), low=0.0, high=1.0)
    for odds in ODDS:
        p = odds * share / (1 - share + odds * share)
        found = 1 + fractions(x, 0.0, odds) * x.value / -x.low
        np.testing.assert_allclose(found, [p / share, (1 - p) / (1 - share), 1.0, 1.0])


def test_the_mixture_is_close_to_the_two_sided_multinomial_of_the_literature() -> None:
    """O_n of Lindon and Malek with Dirichlet(1, 1): 2^60 / (61 * C(60, 42)). The grid is one-sided, so it gains at most
    log 2 where the canary is worse; a mixture of the wrong scale would fall behind."""
    n, x = 60, 42
    o = gammaln(2) - gammaln(2 + n) + gammaln(1 + x) + gammaln(1 + n - x) - n * math.log(0.5)
    canary = np.arange(n) < x
    found = evidence(by_assignment(np.ones(n), canary, np.full(n, 0.5), low=0, high=1), 0.0).log_capital
    assert o == pytest.approx(60 * math.log(2) - math.log(61 * math.comb(60, 42)))
    assert o - 0.3 < found < o + math.log(2)


@pytest.mark.parametrize(
    ("low", "high", "bar"), [(-1, 1, -0.3), (-1, 1, 0.0), (0, 1, 0.01), (-1, 0, -0.01), (-2, 7, 1)]
)
def test_capital_neither_grows_nor_falls_in_expectation_at_the_bar(low: float, high: float, bar: float) -> None:
    """All 2^8 sequences of the two ends with mean `bar`, weighted: exactly a martingale."""
    up, total = (bar - low) / (high - low), 0.0
    for ends in itertools.product([low, high], repeat=8):
        path = capital(within(np.array(ends, float), low, high), bar)
        total += math.prod(up if x == high else 1 - up for x in ends) * path[-1]
        assert path.min() > 0
    assert total == pytest.approx(1.0, rel=1e-9)


def test_capital_through_a_ramp_is_a_martingale_however_the_rate_moves() -> None:
    """Exhausted over assignments and events: equal arms, a share that rises, and a rate that depends on the past."""
    shares = np.array([0.01, 0.05, 0.25, 0.5])
    total = 0.0
    for arms in itertools.product([True, False], repeat=4):
        for events in itertools.product([0.0, 1.0], repeat=4):
            chance = 1.0
            for i in range(4):
                rate = 0.1 + 0.8 * (i > 0 and events[i - 1] > 0 and arms[i - 1])
                chance *= (shares[i] if arms[i] else 1 - shares[i]) * (rate if events[i] else 1 - rate)
            x = by_assignment(np.array(events), np.array(arms), shares, low=0, high=1)
            total += chance * capital(x, 0.0)[-1]
    assert total == pytest.approx(1.0, rel=1e-9)


values = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.01, 0.99), st.floats(0, 1)), max_size=20)


def assigned(rows: Any, *, centred: bool) -> Differences:
    v, canary, share, centre = (np.array(c) for c in (zip(*rows, strict=True) if rows else ([], [], [], [])))
    given_centre = centre.astype(float) if centred else None
    return by_assignment(v.astype(float), canary.astype(bool), share.astype(float), low=0, high=1, centre=given_centre)


@given(values, st.booleans())
def test_what_is_estimated_lies_in_its_support_and_is_unbiased(rows: Any, centred: bool) -> None:
    x = assigned(rows, centred=centred)
    assert (x.low <= x.value + 1e-9).all()
    assert (x.value <= x.high + 1e-9).all()
    other = assigned([(v, not canary, share, c) for v, canary, share, c in rows], centred=centred)
    for i, (_, canary, share, _) in enumerate(rows):
        mean = share * (x if canary else other).value[i] + (1 - share) * (other if canary else x).value[i]
        assert mean == pytest.approx(0, abs=1e-9)  # the same happens in both arms: no difference


@given(values, st.booleans(), st.floats(-0.3, 0.3), st.randoms())
def test_the_order_of_outcomes_does_not_matter_and_looking_rewrites_nothing(
    rows: Any, centred: bool, bar: float, random: Any
) -> None:
    x, shuffled = assigned(rows, centred=centred), assigned(random.sample(rows, len(rows)), centred=centred)
    path = capital(x, bar)
    assert evidence(x, bar).log_capital == pytest.approx(math.log(path[-1]), abs=1e-7)
    assert evidence(shuffled, bar).log_capital == pytest.approx(math.log(path[-1]), abs=1e-7)
    k = len(rows) // 2
    np.testing.assert_allclose(capital(assigned(rows[:k], centred=centred), bar), path[: k + 1])


def test_many_outcomes_are_counted_by_steps_which_costs_little_and_never_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    x = within(np.clip(rng.normal(0.02, 0.2, 5000), -1, 1), -1.0, 1.0)
    share = rng.choice([0.1, 0.5], 5000)
    y = by_assignment(rng.random(5000) ** 3, rng.random(5000) < share, share, low=0, high=1, centre=rng.random(5000))
    exact = [evidence(d, 0.0).log_capital for d in (x, y, -x)], lower_bound(x, 0.0, ALPHA)
    monkeypatch.setattr(module, "_COUNTED", 1000)
    monkeypatch.setattr(module, "_CELLS", 2000)
    counted = [evidence(d, 0.0).log_capital for d in (x, y, -x)], lower_bound(x, 0.0, ALPHA)
    assert all(-0.5 < c - e <= 1e-6 for c, e in zip(counted[0], exact[0], strict=True))
    assert exact[1] - 1e-4 < counted[1] <= exact[1] + 1e-9
    events = within((np.arange(5000) % 7 == 0).astype(float), 0.0, 1.0)
    assert evidence(events, 0.1).log_capital == pytest.approx(math.log(capital(events, 0.1)[-1]))  # ends stay


@pytest.mark.parametrize("counted", [2**14, 100])
def test_all_looks_at_once_say_what_each_look_would_have_said(counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpooled, and (few outcomes that differ) counted: the first n outcomes are looked at as if no others had come."""
    monkeypatch.setattr(module, "_COUNTED", counted)
    rng = np.random.default_rng(5)
    share = rng.choice([0.1, 0.5], 600)
    errors = by_assignment((rng.random(600) < 0.2).astype(float), rng.random(600) < share, share, low=0, high=1)
    gaps = within(rng.choice([-0.2, 0.0, 0.3], 600), -1.0, 1.0)
    ends = [1, 20, 250, 600]
    for x in (errors, gaps):
        alone = [x.at(slice(end)) for end in ends]
        assert [e.log_capital for e in evidence_at(x, 0.0, ends)] == pytest.approx(
            [evidence(part, 0.0).log_capital for part in alone]
        )
        np.testing.assert_allclose(
            log_capitals(x, 0.0, np.array(ends)), np.log([capital(part, 0.0)[-1] for part in alone]), atol=1e-9
        )
        np.testing.assert_allclose(
            lower_bounds(x, 0.0, ALPHA, ends), [lower_bound(part, 0.0, ALPHA) for part in alone], atol=1e-5
        )


def test_a_sure_thing_and_nothing() -> None:
    nothing = within(np.empty(0), -1.0, 1.0)
    assert capital(nothing, 0.5).tolist() == [1.0]
    assert evidence(nothing, 0.5).log_capital == pytest.approx(0)
    assert lower_bound(nothing, 0.0, ALPHA) == -math.inf
    assert np.isfinite(capital(within(np.ones(100_000), -1.0, 1.0), -0.9)).all()
    always = lower_bound(within(np.ones(100_000), 0.0, 1.0), 0.01, ALPHA)
    assert 0.999 < always <= 1


# --- the promises, looking after every outcome ---


def test_an_equal_canary_is_called_worse_at_most_alpha_in_a_ramp_whose_rate_moves() -> None:
    """By assignment, 1 -> 5 -> 25 -> 50 %, the rate rising tenfold: where a test with plug-in variances fails."""
    rng = np.random.default_rng(1)
    share = np.repeat([0.01, 0.05, 0.25, 0.5], 1000)
    rate = np.repeat([0.02, 0.2], 2000)
    found = []
    for _ in range(20):
        y = (rng.random((100, 4000)) < rate).astype(float)
        x = by_assignment(y, rng.random(y.shape) < share, np.broadcast_to(share, y.shape), low=0, high=1)
        found.extend(capital(x, 0.0).max(axis=1) >= 1 / ALPHA)
    assert at_most_alpha(found)


@pytest.mark.parametrize("mean", [0.001, 0.01, 0.1])
def test_a_confidence_sequence_covers_at_all_looks_together(mean: float) -> None:
    rng = np.random.default_rng(2)
    missed = []
    for _ in range(300):
        x = (rng.random(1000) < mean).astype(float)
        looks = range(50, 1001, 50)
        missed.append(any(lower_bound(within(x[:n], 0.0, 1.0), 0.02, ALPHA) > mean for n in looks))
    assert at_most_alpha(missed)


def test_a_confidence_sequence_says_what_the_gambler_says() -> None:
    """It excludes the bar exactly when the capital against the bar is 1/alpha."""
    rng = np.random.default_rng(3)
    for n in range(20, 400, 20):
        x = within(np.clip(rng.normal(0.05, 0.3, n), -1, 1), -1.0, 1.0)
        proven = evidence(x, 0.0).log_capital >= math.log(1 / ALPHA)
        assert proven == (lower_bound(x, 0.0, ALPHA) > 0)


# --- power ---


def test_five_against_ten_percent_of_errors_is_seen_as_soon_as_a_fixed_test_would_hope_to() -> None:
    """Issue: median at most 1.15 * 431 per arm. The same bets hold alpha at 1 %, see above."""
    rng = np.random.default_rng(4)
    canary = rng.random((400, 4000)) < 0.5
    y = (rng.random(canary.shape) < np.where(canary, 0.10, 0.05)).astype(float)
    path = capital(by_assignment(y, canary, np.full(canary.shape, 0.5), low=0, high=1), 0.0)
    first = np.where((path >= 1 / ALPHA).any(axis=1), (path >= 1 / ALPHA).argmax(axis=1), 4000)
    assert np.median(first) / 2 <= 1.15 * 431
