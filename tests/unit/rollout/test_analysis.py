"""Golden values, and error rates by simulation: tolerances are three standard errors of the number of runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from pydantic import ValidationError

from mlops_ray.config import Margins, RolloutPlan
from mlops_ray.rollout.analysis import Analysis, Outcomes, analyse, capital, per_key
from mlops_ray.training.gates.verdict import Verdict

ALPHA = 0.05
PLAN = RolloutPlan(alpha=ALPHA, min_keys=100, margins=Margins(log_loss=0.02, failures=0.01))
BOUND = math.log(0.99 / 0.01)
RUNS = 2000


def at_most_alpha(found: list[bool]) -> bool:
    """Whether so many of these runs may go wrong: alpha, and three standard errors for the number of runs."""
    return np.mean(found) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / len(found))


Rng = np.random.Generator


def outcomes(stable: Any, canary: Any, label: Any, keys: Any = None, looks: Any = None) -> Outcomes:
    n = len(stable)
    keys = np.arange(n) if keys is None else np.asarray(keys)
    looks = np.arange(n) if looks is None else np.asarray(looks)
    return Outcomes(
        keys, looks, looks, np.asarray(label, np.float64), np.asarray(stable, float), np.asarray(canary, float)
    )


def traffic(rng: Rng, n: int, *, noise: float = 0.2, shift: float = 0.0, per_key: int = 1) -> Outcomes:
    """Rows scored by two models that err alike (equal in expectation); `shift` moves the canary's logits away."""
    logit = rng.normal(-1, 1, n // per_key).repeat(per_key)
    label = rng.random(n) < 1 / (1 + np.exp(-logit))
    errors = rng.normal(0, noise, (2, n // per_key)).repeat(per_key, axis=1)
    stable, canary = 1 / (1 + np.exp(-(logit + errors + [[0.0], [shift]])))
    if per_key > 1:  # rows of a key share their outcome as well
        label = label[::per_key].repeat(per_key)
    return outcomes(stable, canary, label, np.arange(n) // per_key)


def verdict(found: Analysis, name: str = "") -> Verdict:
    return next(m.verdict for m in found.metrics if m.name == name) if name else found.verdict


# --- the gambler's capital ---


@pytest.mark.parametrize("bar", [-0.3, 0.0, 0.3])
def test_capital_neither_grows_nor_falls_in_expectation_at_the_bar(bar: float) -> None:
    """All 2^8 sequences of -1 and 1 with mean `bar`, weighted: exactly a martingale."""
    up, total = (1 + bar) / 2, 0.0
    for signs in itertools.product([-1.0, 1.0], repeat=8):
        path = capital(np.array(signs), bar)
        total += math.prod(up if s > 0 else 1 - up for s in signs) * path[-1]
        assert path.min() > 0
    assert total == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("below", [0.0, 0.1])
def test_capital_is_a_supermartingale_below_the_bar(below: float) -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(0, 0.3, (RUNS, 40)), -1, 1) - below
    final = np.array([capital(np.clip(run, -1, 1), 0.0)[-1] for run in x])
    assert final.mean() <= 1 + 3 * final.std() / math.sqrt(RUNS)


def test_capital_of_a_sure_thing_and_of_nothing() -> None:
    assert capital(np.empty(0), 0.5).tolist() == [1.0]
    assert capital(np.array([1.0]), 0.0)[-1] == pytest.approx(1 + (1 / 16 + 1 / 8 + 1 / 4 + 1 / 2) / 8 + 0.99 / 2)
    assert capital(np.array([-1.0]), 0.9)[-1] == pytest.approx(1 - (1 / 16 + 1 / 8 + 1 / 4 + 1 / 2) / 8 - 0.99 / 2)
    assert np.isfinite(capital(np.ones(100_000), -0.9)).all()


@given(st.lists(st.floats(-1, 1), max_size=30), st.floats(-0.9, 0.9), st.data())
def test_what_was_seen_earlier_stays_as_it_was(x: list[float], bar: float, data: Any) -> None:
    """Looking later extends the evidence and never rewrites it: this is why looking often costs nothing."""
    k = data.draw(st.integers(0, len(x)))
    np.testing.assert_allclose(capital(np.array(x[:k]), bar), capital(np.array(x), bar)[: k + 1])
    assert (capital(np.array(x), bar) >= 0).all()


# --- the promises, looking after every key ---


def test_an_equal_canary_is_rolled_back_at_most_alpha() -> None:
    """`worse` keeps the maximum over all keys seen, so one analysis at the end has looked after each of 300 keys."""
    rng = np.random.default_rng(1)
    found = [verdict(analyse(PLAN, traffic(rng, 300, noise=0.8))) is Verdict.FAIL for _ in range(RUNS)]
    assert at_most_alpha(found)


def test_an_equal_canary_whose_rows_repeat_keys_is_rolled_back_at_most_alpha() -> None:
    """Ten alike rows per key: taken as rows of their own they would reject it far too often."""
    rng = np.random.default_rng(2)
    runs = [traffic(rng, 2000, noise=0.8, per_key=10) for _ in range(300)]
    assert at_most_alpha([analyse(PLAN, run).verdict is Verdict.FAIL for run in runs])
    assert all(m.n_keys == 200 for m in analyse(PLAN, runs[0]).metrics)
    as_rows = [outcomes(r.stable, r.canary, r.label) for r in runs]
    assert np.mean([analyse(PLAN, run).verdict is Verdict.FAIL for run in as_rows]) > 4 * ALPHA


def test_an_equal_share_of_failures_is_rolled_back_at_most_alpha() -> None:
    """At the tolerated share itself, which is as bad as a canary may be."""
    rng = np.random.default_rng(3)
    steady, ones = np.full(600, 0.3), np.full(600, np.nan)
    found = []
    for _ in range(RUNS // 2):
        canary = np.where(rng.random(600) < PLAN.margins.failures, np.nan, 0.3)
        found.append(verdict(analyse(PLAN, outcomes(steady, canary, ones))) is Verdict.FAIL)
    assert at_most_alpha(found)


def worse_by_the_margin(metric: str, rng: Rng, n: int) -> Iterator[np.ndarray]:
    margin = getattr(PLAN.margins, metric)
    for _ in range(RUNS):
        if metric == "failures":
            yield (rng.random(n) < margin).astype(np.float64)
        else:
            yield margin + rng.choice([-0.05, 0.05], n)


@pytest.mark.parametrize(("metric", "limit"), [("log_loss", BOUND), ("failures", 1.0)])
def test_a_canary_worse_by_the_margin_is_promoted_at_most_alpha(metric: str, limit: float) -> None:
    """Looking after each of 1,000 keys, and counting it as promoted if it ever was."""
    margin = getattr(PLAN.margins, metric)
    paths = (
        capital(-gap / limit, -margin / limit) for gap in worse_by_the_margin(metric, np.random.default_rng(4), 1000)
    )
    assert at_most_alpha([path.max() >= 1 / ALPHA for path in paths])


def test_analyse_promotes_by_that_capital() -> None:
    """What the test above bets is what `analyse` bets: gaps of a known size, through labels and scores."""
    rng = np.random.default_rng(5)
    label, stable = rng.integers(0, 2, 400), np.full(400, 0.5)
    canary = np.where(rng.random(400) < 0.5, 0.48, 0.52)
    gap = -np.log(np.where(label == 1, canary, 1 - canary)) + np.log(0.5)
    log_loss, failures = analyse(PLAN, outcomes(stable, canary, label)).metrics
    assert log_loss.evidence_fine == pytest.approx(capital(-gap / BOUND, -0.02 / BOUND)[-1])
    assert log_loss.evidence_worse == pytest.approx(capital(gap / BOUND, 0.0).max())
    assert log_loss.estimate == pytest.approx(gap.mean())
    assert failures.evidence_fine == pytest.approx(capital(np.zeros(400), -0.01)[-1])


# --- power ---


def test_an_equal_canary_passes_within_a_few_thousand_keys() -> None:
    rng = np.random.default_rng(6)
    assert sum(verdict(analyse(PLAN, traffic(rng, 3000))) is Verdict.PASS for _ in range(20)) >= 18
    same = np.full(1500, 0.3)
    assert verdict(analyse(PLAN, outcomes(same, same, np.zeros(1500)))) is Verdict.PASS


def test_a_clearly_worse_canary_fails_within_a_thousand_keys() -> None:
    rng = np.random.default_rng(7)
    found = [analyse(PLAN, traffic(rng, 1000, shift=1.0)) for _ in range(20)]
    assert all(f.verdict is Verdict.FAIL for f in found)
    assert all(verdict(f, "failures") is not Verdict.FAIL for f in found)


def test_a_better_canary_passes() -> None:
    rng = np.random.default_rng(8)
    found = traffic(rng, 2000, shift=1.0)
    swapped = outcomes(found.canary, found.stable, found.label)
    assert verdict(analyse(PLAN, swapped)) is Verdict.PASS


def test_a_canary_that_fails_every_row_is_out_within_fifty() -> None:
    for n in range(51):
        found = analyse(PLAN, outcomes(np.full(n, 0.3), np.full(n, np.nan), np.full(n, np.nan)))
        if found.verdict is Verdict.FAIL:
            break
    assert found.verdict is Verdict.FAIL
    assert verdict(found, "log_loss") is Verdict.INCONCLUSIVE


def test_evidence_of_harm_stays_however_well_it_goes_later() -> None:
    bad, good = np.full(60, np.nan), np.full(20_000, 0.3)
    canary = np.concatenate([bad, good])
    found = analyse(PLAN, outcomes(np.full(len(canary), 0.3), canary, np.zeros(len(canary))))
    assert verdict(found, "failures") is Verdict.FAIL


# --- missing data ---


def test_without_outcomes_nothing_is_concluded() -> None:
    found = analyse(PLAN, outcomes([], [], []))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert [(m.n_keys, m.estimate, m.evidence_worse, m.evidence_fine) for m in found.metrics] == [
        (0, 0.0, 1.0, 1.0)
    ] * 2


@pytest.mark.parametrize("n_labelled", [0, 1, 99])
def test_missing_labels_never_pass(n_labelled: int) -> None:
    n = 20_000
    label = np.where(np.arange(n) < n_labelled, 0.0, np.nan)
    found = analyse(PLAN, outcomes(np.full(n, 0.9), np.full(n, 0.01), label))  # as good as can be on what is labelled
    assert found.verdict is Verdict.INCONCLUSIVE
    assert verdict(found, "log_loss") is Verdict.INCONCLUSIVE


def test_too_few_keys_are_inconclusive_however_many_rows_they_have() -> None:
    rows = 50 * 400
    found = analyse(PLAN, outcomes(np.full(rows, 0.9), np.full(rows, 0.01), np.zeros(rows), np.arange(rows) % 50))
    assert found.metrics[0].n_keys == 50
    assert found.verdict is Verdict.INCONCLUSIVE


def test_rows_that_the_canary_did_not_answer_are_failures_and_no_loss() -> None:
    found = analyse(PLAN, outcomes([0.3] * 4, [np.nan, np.nan, 0.3, 0.3], [1.0] * 4))
    assert [m.estimate for m in found.metrics] == [0.0, 0.5]


# --- clusters ---


def test_a_key_counts_once_with_the_mean_of_its_first_look() -> None:
    keys = np.array(["b", "a", "b", "a", "c", "b"])
    looks = np.array([2, 1, 2, 1, 1, 3])
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 99.0])
    assert per_key(keys, looks, values).tolist() == [3.0, 5.0, 2.0]  # a and c at look 1, then b
    assert per_key(keys[:0], looks[:0], values[:0]).tolist() == []


rows = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(-8, 8)), max_size=20)


@given(rows, st.randoms())
def test_clusters_against_plain_python(given_rows: Any, random: Any) -> None:
    """Whatever the order of the rows; and rows of later looks change no value that was there before."""

    def clusters(some: Any) -> list[float]:
        keys, looks, values = zip(*some, strict=True) if some else ((), (), ())
        return per_key(np.array(keys, dtype=object), np.array(looks, np.int64), np.array(values, float)).tolist()  # type: ignore[no-any-return]

    first = {k: min(look for key, look, _ in given_rows if key == k) for k, *_ in given_rows}
    expected = []
    for key in sorted(first, key=lambda k: (first[k], k)):
        mine = [v for k, look, v in given_rows if (k, look) == (key, first[key])]
        expected.append(sum(mine) / len(mine))
    shuffled = random.sample(given_rows, len(given_rows))
    assert clusters(shuffled) == pytest.approx(expected)
    for look in range(4):
        earlier = clusters([r for r in given_rows if r[1] <= look])
        assert earlier == pytest.approx(expected[: len(earlier)])


def test_an_analysis_is_json_for_the_ledger() -> None:
    n = 2000
    found = analyse(PLAN, outcomes(np.full(n, 0.01), np.full(n, 0.99), np.zeros(n)))
    body = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert body["verdict"] == "fail"
    assert [m["name"] for m in body["metrics"]] == ["log_loss", "failures"]
    assert body["metrics"][0]["evidence_worse"] == 1e9
    assert found.metrics[0].in_words().startswith("log_loss: +4.5951 over 2000 keys (margin 0.02)")


def test_a_margin_that_no_canary_could_miss_is_refused() -> None:
    """Found: with clipped losses no difference is above log((1 - clip) / clip); such a margin divided by zero."""
    with pytest.raises(ValidationError, match=r"margins.log_loss 4\.6 is no demand"):
        RolloutPlan(margins=Margins(log_loss=4.6))
    n = 500
    widest = RolloutPlan(margins=Margins(log_loss=4.59))
    assert np.isfinite(
        analyse(widest, outcomes(np.full(n, 0.0), np.full(n, 1.0), np.zeros(n))).metrics[0].evidence_fine
    )
