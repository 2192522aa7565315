"""Boundaries of the literature, at the golden values of their authors' own tests, and how far the gambler of `evidence`
lies from them. None of them is part of the package: each is tuned to one number of outcomes, or to one kind of them.

Golden values: github.com/gostevehoward/confseq, test/uniform_boundaries_unittest.cpp. Formulas: Howard, Ramdas,
McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (Annals of Statistics 2021);
Howard and Ramdas, "Sequential estimation of quantiles" (Bernoulli 2022), theorem 2; Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting" (JRSS B 2024), theorem 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import betainc, betaln, gammainc, gammaln, zeta
from scipy.stats import norm

from mlops_ray.rollout.evidence import by_assignment, capital, evidence, lower_bound, within

ALPHA = 0.05
PROVEN = math.log(1 / ALPHA)


def best_rho(v: float, alpha: float) -> float:
    """The spread of a normal mixture that is tightest at `v`."""
    return v / (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha)))


def normal(s: float, v: float, *, one_sided: bool) -> float:
    """Logarithm of the mixture supermartingale, tuned to v = 100: deviation `s`, intrinsic time `v`."""
    rho = best_rho(100, 2 * ALPHA if one_sided else ALPHA)
    found = math.log(rho / (v + rho)) / 2 + s * s / (2 * (v + rho))
    return found + (math.log(2 * norm.cdf(s / math.sqrt(v + rho))) if one_sided else 0.0)


def gamma_exponential(s: float, v: float, *, c: float) -> float:
    rho = best_rho(100, 2 * ALPHA)
    start, there, at = rho / c**2, (v + rho) / c**2, (c * s + v + rho) / c**2
    leading = start * math.log(start) - gammaln(start) - math.log(gammainc(start, start))
    return float(leading + gammaln(there) + math.log(gammainc(there, at)) - there * math.log(at) + at - start)


def beta_binomial(s: float, v: float, *, g: float, h: float, one_sided: bool, tuned: float = 100) -> float:
    """Of outcomes in [-g, h]; where they lie on the ends, as events do, this is the exact law."""
    r = max(best_rho(tuned, 2 * ALPHA if one_sided else ALPHA) - g * h, 1e-3 * g * h)
    upto = h / (g + h) if one_sided else 1.0

    def mass(time: float, deviation: float) -> float:
        a, b = (r + time - g * deviation) / (g * (g + h)), (r + time + h * deviation) / (h * (g + h))
        return float(math.log(betainc(a, b, upto)) + betaln(a, b))

    ends = (v + h * s) / (h * (g + h)) * math.log(g) + (v - g * s) / (g * (g + h)) * math.log(h)
    return v / (g * h) * math.log(g + h) - ends + mass(v, s) - mass(0, 0)


def bound(of: Callable[[float], float], most: float = 400.0) -> float:
    """The deviation at which a mixture holds 1 / alpha."""
    return float(brentq(lambda s: of(s) - PROVEN, 1e-9, most))


def poly_stitching(v: float, *, v_min: float, c: float, s: float = 1.4, eta: float = 2.0) -> float:
    k1, k2 = (eta**0.25 + eta**-0.25) / math.sqrt(2), (math.sqrt(eta) + 1) / 2
    ell = s * math.log(math.log(eta * max(v, v_min) / v_min)) + math.log(zeta(s) / math.log(eta) ** s) + PROVEN
    return math.sqrt(k1**2 * max(v, v_min) * ell + (k2 * c * ell) ** 2) + k2 * c * ell


def empirical_process(t: float, *, t_min: float, a: float) -> float:
    """Half the width of a band around a whole distribution function, by the law of the iterated logarithm."""

    def risk(eta: float, c: float) -> float:
        root = a - math.sqrt(2 * (eta - 1) / c)
        gamma = 2 / eta * root**2 if root > 0 else 0.0
        return 4 * math.exp(-gamma * c) * (1 + 1 / ((gamma - 1) * math.log(eta))) if gamma > 1 else math.inf

    def least(c: float) -> float:
        most = brentq(lambda eta: math.sqrt(eta / 2) + math.sqrt(2 * (eta - 1) / c) - a, 1, 2 * a * a)
        found = minimize_scalar(risk, bounds=(1 + 1e-9, most), args=(c,), method="bounded", options={"xatol": 1e-9})
        return float(found.fun)

    c = brentq(lambda c: least(c) - ALPHA, 4.0, 50.0)
    return float(a * math.sqrt((math.log(1 + math.log(t / t_min)) + c) / t))


def empirical_bernstein(x: Any, alpha: float) -> float:
    """Lower end of the two-sided sequence of the mean of outcomes in [0, 1], as it stands after the last of them."""
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = np.append(0.25, (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1))[:-1]
    before = np.append(0.5, mean)[:-1]
    bet = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variance * t * np.log(1 + t))), 0.5)
    spent = math.log(2 / alpha) + float(((x - before) ** 2 * (-np.log1p(-bet) - bet)).sum())
    return (float((bet * x).sum()) - spent) / float(bet.sum())


# --- their golden values ---


def test_the_normal_mixture() -> None:
    assert best_rho(100, ALPHA) == pytest.approx(12.60056, abs=1e-5)
    assert normal(10, 100, one_sided=False) == pytest.approx(-0.6510052, abs=1e-5)
    rho = best_rho(100, ALPHA)
    assert math.sqrt((100 + rho) * (math.log(1 + 100 / rho) + 2 * PROVEN)) == pytest.approx(30.35209, abs=1e-5)
    assert bound(lambda s: normal(s, 100, one_sided=False)) == pytest.approx(30.35209, abs=1e-5)
    assert normal(10, 100, one_sided=True) == pytest.approx(-0.06502391, abs=1e-5)
    assert bound(lambda s: normal(s, 100, one_sided=True)) == pytest.approx(27.66071, abs=1e-5)


def test_the_mixtures_of_other_laws() -> None:
    assert gamma_exponential(10, 100, c=2) == pytest.approx(-0.2490165, abs=1e-5)
    assert bound(lambda s: gamma_exponential(s, 100, c=2)) == pytest.approx(33.02017, abs=1e-5)
    assert beta_binomial(10, 100, g=0.2, h=0.8, one_sided=False) == pytest.approx(-0.6941012, abs=1e-5)
    two = bound(lambda s: beta_binomial(s, 100, g=0.2, h=0.8, one_sided=False))
    assert two == pytest.approx(31.4308, abs=1e-5)
    assert beta_binomial(10, 100, g=0.2, h=0.8, one_sided=True) == pytest.approx(-0.07134019, abs=1e-5)
    one = bound(lambda s: beta_binomial(s, 100, g=0.2, h=0.8, one_sided=True))
    assert one == pytest.approx(28.41238, abs=1e-5)


def test_the_stitched_boundaries() -> None:
    assert poly_stitching(100, v_min=10, c=3) == pytest.approx(64.48755, abs=1e-5)
    assert poly_stitching(100, v_min=10, c=-1) == pytest.approx(28.99389, abs=1e-5)
    assert empirical_process(1000, t_min=100, a=0.85) == pytest.approx(0.08204769, abs=1e-5)


# --- the gambler beside them ---


def events(k: int, n: int) -> Any:
    return within((np.arange(n) < k).astype(float), 0.0, 1.0)


def proven(n: int, bar: float) -> int:
    """The fewest events among `n` outcomes by which the gambler holds 1 / alpha against `bar`."""
    return next(k for k in range(math.ceil(bar * n), n + 1) if evidence(events(k, n), bar).log_capital >= PROVEN)


@pytest.mark.parametrize(("n", "dearer"), [(25, 1.25), (100, 1.15), (625, 1.2), (2000, 1.25), (5000, 1.35)])
def test_he_proves_a_rate_of_events_nearly_as_soon_as_a_mixture_tuned_to_that_many(n: int, dearer: float) -> None:
    """What has no number to be tuned to costs so much more deviation; to be tuned to another costs more than that."""
    v, found = 0.16 * n, proven(n, 0.2) - 0.2 * n
    tuned = bound(lambda s: beta_binomial(s, v, g=0.2, h=0.8, one_sided=True, tuned=v), most=v / 0.2 - 1e-6)
    assert tuned < found + 1
    assert found <= dearer * tuned + 1
    assert found < poly_stitching(v, v_min=1.0, c=0.2)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(700, 1000, 0.651629, 0.745949), (15, 50, 0.129556, 0.511896), (5, 50, 0.013021, 0.269264)],
)
def test_his_interval_of_a_rate_is_close_to_the_published_one(k: int, n: int, low: float, high: float) -> None:
    """`bernoulli_confidence_interval` of confseq at 95 %, tuned to 100 and 50 outcomes: two mixtures at 2.5 % each."""
    x = events(k, n)
    found = lower_bound(x, low, ALPHA / 2), -lower_bound(-x, -high, ALPHA / 2)
    assert found[0] < k / n < found[1]
    assert found[1] - found[0] < 1.15 * (high - low)
    assert abs(found[0] - low) < 0.2 * (high - low)
    assert abs(found[1] - high) < 0.2 * (high - low)


def test_on_losses_of_the_same_row_he_is_done_far_sooner_than_empirical_bernstein() -> None:
    """Log-loss differences of a canary worse by 0.02, with tails of Student's t, in [-4.6, 4.6]. That method
    learns their variance and pays for it beforehand. It is two-sided, so it is given 2 alpha."""
    rng, looks = np.random.default_rng(6), range(100, 4001, 100)
    ours, theirs = [], []
    for _ in range(40):
        x = np.clip(0.02 + 0.2 * rng.standard_t(3, 4000) / math.sqrt(3), -4.6, 4.6)
        won = capital(within(x, -4.6, 4.6), 0.0) >= 1 / ALPHA
        ours.append(int(won.argmax()) if won.any() else 4001)
        theirs.append(next((n for n in looks if empirical_bernstein((x[:n] + 4.6) / 9.2, 2 * ALPHA) > 0.5), 4001))
    assert np.median(ours) < np.median(theirs) / 2


# --- tests of two streams in pairs, on the same draws ---

Draws = Any  # shape (runs, pairs), whether an error


def two_proportions(a: Draws, b: Draws) -> Any:
    """Logarithm of the e-process of Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests"
    (arXiv 2106.02693): in blocks of one and one, rates learned from the blocks before, Beta(0.18, 0.18)."""
    n = np.arange(a.shape[1])
    rate_a, rate_b = ((0.18 + np.cumsum(y, axis=1) - y) / (0.36 + n) for y in (a, b))
    both = (rate_a + rate_b) / 2
    gains = (np.log(np.where(y, p / both, (1 - p) / (1 - both))) for y, p in ((a, rate_a), (b, rate_b)))
    return np.cumsum(sum(gains), axis=1)


def counts_alone(a: Draws, b: Draws) -> Any:
    """Logarithm of O_n of Lindon and Malek (NeurIPS 2022) at an allocation of 1:1 with Dirichlet(1, 1)."""
    x, y = np.cumsum(a, axis=1), np.cumsum(b, axis=1)
    return gammaln(2) - gammaln(2 + x + y) + gammaln(1 + x) + gammaln(1 + y) + (x + y) * math.log(2)


def gambler(a: Draws, b: Draws) -> Any:
    value = np.stack([a, b], axis=2).reshape(len(a), -1).astype(float)
    canary = np.broadcast_to(np.tile([False, True], a.shape[1]), value.shape)
    x = by_assignment(value, canary, np.full(value.shape, 0.5), low=0.0, high=1.0)
    return np.log(capital(x, 0.0))[:, 2::2]


def pairs_until_proven(paths: Any) -> Any:
    won = paths >= PROVEN
    return np.where(won.any(axis=1), won.argmax(axis=1) + 1, math.inf)


def test_errors_are_proven_sooner_than_by_the_two_sided_tests_of_the_literature() -> None:
    """Medians of pairs as others have simulated them: 562 by the e-process and 474 by counts for 5 against 10 %; the
    gambler is one-sided, so he needs fewer. Tolerances are some three standard errors of a median of so many runs."""
    rng, shape = np.random.default_rng(7), (400, 2000)
    of_one, of_other = rng.random(shape) < 0.05, rng.random(shape) < 0.10
    learned, counted, ours = (
        float(np.median(pairs_until_proven(test(of_one, of_other))))
        for test in (two_proportions, counts_alone, gambler)
    )
    assert learned == pytest.approx(562, abs=80)
    assert counted == pytest.approx(474, abs=80)
    assert ours < min(learned, counted)
    equal = rng.random(shape) < 0.05
    for test in (two_proportions, counts_alone, gambler):
        wrong = np.isfinite(pairs_until_proven(test(of_one, equal))).mean()
        assert wrong <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / len(equal))
