"""Every metric's verdict from rows, and the promises by simulation: tolerances are three standard errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mlops_ray.config.analyses import (
    AbsoluteError,
    Accuracy,
    Brier,
    Business,
    Disagreement,
    Failures,
    Latency,
    LogLoss,
    Where,
)
from mlops_ray.rollout.analysis import KEPT, SPENT, Analysis, Metric, Purses, Sample, analyse, first_rows, per_key
from mlops_ray.rollout.evidence import capital, evidence, within
from mlops_ray.rollout.outcomes import Answers, Outcomes, Told
from mlops_ray.training.gates.verdict import Verdict

ALPHA = 0.05
PLAN = (LogLoss(margin=0.02, clip=0.01), Failures(margin=0.01))
BOUND = math.log(0.99 / 0.01)
RUNS = 2000

Rng = np.random.Generator


def at_most_alpha(found: list[bool]) -> bool:
    """Whether so many of these runs may go wrong: alpha, and three standard errors for the number of runs."""
    return bool(np.mean(found) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / len(found)))


def answers(score: Any, label: Any, us: Any = None) -> Answers:
    """Of a binary version with threshold 0.5."""
    p, y = np.asarray(score, np.float64), np.asarray(label, np.float64)
    return Answers(
        predicted=np.where(np.isnan(p), np.nan, (p >= 0.5).astype(float)),
        of_label=np.where(np.isnan(y), np.nan, np.where(y > 0.5, p, 1 - p)),
        squares=p**2 + (1 - p) ** 2,
        us=np.full(len(p), np.nan) if us is None else np.asarray(us, np.float64),
    )


def outcomes(stable: Any, canary: Any, label: Any, keys: Any = None, looks: Any = None, **given_: Any) -> Outcomes:
    """Rows that were all the canary's."""
    n = len(stable)
    looks = np.arange(n) if looks is None else np.asarray(looks)
    return Outcomes(
        keys=np.arange(n) if keys is None else np.asarray(keys),
        seen=looks,
        labelled=looks,
        label=np.asarray(label, np.float64),
        canary=np.ones(n, np.bool_),
        share=np.full(n, 0.1),
        stable=answers(stable, label),
        candidate=answers(canary, label),
        **given_,
    )


def look(found: Outcomes, analyses: Any = PLAN, **changes: Any) -> Analysis:
    return analyse(analyses, found, **({"alpha": ALPHA, "min_keys": 100} | changes))


def traffic(rng: Rng, n: int, *, noise: float = 0.2, shift: float = 0.0, per_key: int = 1) -> Outcomes:
    """Rows scored by two models that err alike (equal in expectation); `shift` moves the canary's logits away."""
    logit = rng.normal(-1, 1, n // per_key).repeat(per_key)
    label = rng.random(n) < 1 / (1 + np.exp(-logit))
    errors = rng.normal(0, noise, (2, n // per_key)).repeat(per_key, axis=1)
    stable, canary = 1 / (1 + np.exp(-(logit + errors + [[0.0], [shift]])))
    if per_key > 1:  # rows of a key share their outcome as well
        label = label[::per_key].repeat(per_key)
    return outcomes(stable, canary, label, np.arange(n) // per_key)


def metric(found: Analysis, name: str) -> Metric:
    return next(m for m in found.metrics if m.name == name)


def first(n: int, decided: Callable[[int], bool]) -> int:
    """Smallest number of rows with which it is decided; n + 1 when it never is."""
    return next((i for i in range(n + 1) if decided(i)), n + 1)


# --- the promises, looking after every key ---


def test_an_equal_canary_is_rolled_back_at_most_alpha() -> None:
    """At all of 300 looks together, by the capital that `analyse` holds at each of them (see below)."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(RUNS):
        run = traffic(rng, 300, noise=0.8)
        gap = np.log(np.clip(run.stable.of_label, 0.01, 0.99)) - np.log(np.clip(run.candidate.of_label, 0.01, 0.99))
        found.append(capital(within(gap, -BOUND, BOUND), 0.0).max() >= len(PLAN) / (SPENT * ALPHA))
    assert at_most_alpha(found)


def test_an_equal_canary_whose_rows_repeat_keys_is_rolled_back_at_most_alpha() -> None:
    """Ten alike rows per key: taken as rows of their own they would reject it far too often."""
    rng = np.random.default_rng(2)
    runs = [traffic(rng, 2000, noise=0.8, per_key=10) for _ in range(300)]
    assert at_most_alpha([look(run).verdict is Verdict.FAIL for run in runs])
    assert all((m.n_keys, m.n_rows, m.largest_key) == (200, 2000, 0.005) for m in look(runs[0]).metrics)
    as_rows = [replace(run, keys=np.arange(2000)) for run in runs]
    assert np.mean([look(run).verdict is Verdict.FAIL for run in as_rows]) > 2 * ALPHA


@pytest.mark.parametrize(("margin", "n"), [(0.01, 1000), (0.1, 400)])
def test_a_canary_that_fails_by_exactly_the_margin_is_neither_rolled_back_nor_promoted(margin: float, n: int) -> None:
    """It is as bad as one that may still be called fine, and as good as one that may still be called worse."""
    rng = np.random.default_rng(3)
    x = within((rng.random((RUNS, n)) < margin).astype(float), 0.0, 1.0)
    assert at_most_alpha((capital(x, margin).max(axis=1) >= 1 / (SPENT * ALPHA)).tolist())
    assert at_most_alpha((capital(-x, -margin).max(axis=1) >= 1 / (SPENT * ALPHA)).tolist())


def test_a_canary_whose_loss_is_worse_by_the_margin_is_promoted_at_most_alpha() -> None:
    rng = np.random.default_rng(4)
    gap = 0.02 + rng.choice([-0.05, 0.05], (RUNS, 1000))
    assert at_most_alpha((capital(within(-gap, -BOUND, BOUND), -0.02).max(axis=1) >= 1 / (SPENT * ALPHA)).tolist())


def test_analyse_decides_by_that_capital() -> None:
    """What the tests above bet is what `analyse` bets: gaps of a known size, through labels and scores."""
    rng = np.random.default_rng(5)
    label, stable = rng.integers(0, 2, 400), np.full(400, 0.5)
    canary = np.where(rng.random(400) < 0.5, 0.48, 0.52)
    gap = -np.log(np.where(label == 1, canary, 1 - canary)) + np.log(0.5)
    loss, failures = look(outcomes(stable, canary, label)).metrics
    assert loss.evidence_fine == pytest.approx(capital(within(-gap, -BOUND, BOUND), -0.02)[-1])
    assert loss.evidence_worse == pytest.approx(capital(within(gap, -BOUND, BOUND), 0.0)[-1])
    assert loss.estimate == pytest.approx(gap.mean())
    assert failures.evidence_fine == pytest.approx(capital(within(np.zeros(400), -1.0, 0.0), -0.01)[-1])


def assigned(rng: Rng, n: int, share: Any, stable: float, canary: float) -> Outcomes:
    """Rows of both arms, each right or wrong: error rates of what the two would have answered."""
    mine = rng.random(n) < share
    label = np.zeros(n)
    says = [np.where(rng.random(n) < rate, 0.9, 0.1) for rate in (stable, canary)]
    found = outcomes(says[0], np.where(mine, says[1], np.nan), label, paired=False)
    return replace(found, canary=mine, share=np.broadcast_to(share, n).astype(float))


def test_by_assignment_only_what_the_client_got_counts() -> None:
    rng = np.random.default_rng(6)
    plan = (Accuracy(margin=0.02),)
    share = np.repeat([0.01, 0.05, 0.25, 0.5], 1500)
    equal = [look(assigned(rng, 6000, share, 0.1, 0.1), plan).verdict for _ in range(150)]
    assert at_most_alpha([v is Verdict.FAIL for v in equal])
    worse = [look(assigned(rng, 6000, share, 0.1, 0.3), plan).verdict for _ in range(10)]
    assert worse == [Verdict.FAIL] * 10
    better = look(assigned(rng, 20_000, 0.5, 0.2, 0.1), plan)
    assert better.verdict is Verdict.PASS
    assert better.metrics[0].estimate == pytest.approx(-0.1, abs=0.03)


def test_by_assignment_a_row_that_the_canary_failed_counts_with_the_answer_that_was_given() -> None:
    rng = np.random.default_rng(7)
    found = assigned(rng, 2000, 0.5, 1.0, 0.0)
    broken = replace(found, candidate=answers(np.full(2000, np.nan), found.label))
    assert look(found, (Accuracy(),)).metrics[0].estimate == pytest.approx(-1, abs=0.1)
    assert look(broken, (Accuracy(),)).metrics[0].estimate == pytest.approx(0, abs=0.15)
    assert look(broken, (Accuracy(),)).metrics[0].n_keys == 2000


# --- power ---


def test_an_equal_canary_passes_within_a_few_thousand_keys() -> None:
    rng = np.random.default_rng(8)
    assert sum(look(traffic(rng, 3000)).verdict is Verdict.PASS for _ in range(20)) >= 18
    same = np.full(1500, 0.3)
    assert look(outcomes(same, same, np.zeros(1500))).verdict is Verdict.PASS


def test_a_clearly_worse_canary_fails_within_a_thousand_keys() -> None:
    rng = np.random.default_rng(9)
    found = [look(traffic(rng, 1000, shift=1.0)) for _ in range(20)]
    assert all(f.verdict is Verdict.FAIL for f in found)
    assert all(metric(f, "failures").verdict is not Verdict.FAIL for f in found)


def test_a_better_canary_passes() -> None:
    found = traffic(np.random.default_rng(10), 2000, shift=1.0)
    assert look(replace(found, stable=found.candidate, candidate=found.stable)).verdict is Verdict.PASS


FOUR = (*PLAN, Latency(above_ms=10, margin=0.02), Disagreement(margin=0.05))


def test_a_canary_that_fails_every_row_is_out_within_fifty() -> None:
    def fails(n: int) -> bool:
        found = look(outcomes(np.full(n, 0.3), np.full(n, np.nan), np.full(n, np.nan)), FOUR)
        return found.verdict is Verdict.FAIL and metric(found, "failures").verdict is Verdict.FAIL

    assert first(50, fails) == 20  # not sooner: one bad moment of a cold replica is no property of a version


@pytest.mark.parametrize(
    ("name", "canary", "us"), [("latency", 0.3, 20_000.0), ("disagreement", 0.9, 100.0), ("accuracy", 0.9, 100.0)]
)
def test_each_metric_catches_what_it_is_for_within_fifty_rows(name: str, canary: float, us: float) -> None:
    plan = (Latency(above_ms=10, margin=0.02), Disagreement(margin=0.05), Accuracy(margin=0.02), Failures())

    def fails(n: int) -> bool:
        found = outcomes(np.full(n, 0.3), np.full(n, canary), np.zeros(n))
        timed = replace(
            found, stable=answers([0.3] * n, [0] * n, [100] * n), candidate=answers([canary] * n, [0] * n, [us] * n)
        )
        return metric(look(timed, plan), name).verdict is Verdict.FAIL

    assert first(50, fails) == 20


# --- what each metric measures ---


def one(analysis: Any, found: Outcomes) -> Metric:
    return look(found, (analysis,)).metrics[0]


def test_losses_of_a_binary_row() -> None:
    found = outcomes([0.2, 0.6, 0.5], [0.4, 0.4, 0.0], [1, 0, np.nan])
    assert one(LogLoss(), found).estimate == pytest.approx((math.log(0.2 / 0.4) + math.log(0.4 / 0.6)) / 2)
    assert one(Brier(), found).estimate == pytest.approx(((0.36 - 0.64) + (0.16 - 0.36)) / 2)
    assert one(Accuracy(), found).estimate == pytest.approx(-0.5)
    assert [one(a, found).n_keys for a in (LogLoss(), Brier(), Accuracy())] == [2, 2, 2]


def test_losses_of_a_multiclass_row() -> None:
    """Brier: half the sum of squares over all classes; of a label that a version does not know nothing was expected."""
    n = 1
    found = outcomes([0.5], [0.5], [0.0])
    found = replace(
        found,
        label=np.array([2.0]),
        stable=Answers(np.array([2.0]), np.array([0.7]), np.array([0.7**2 + 0.2**2 + 0.1**2]), np.full(n, np.nan)),
        candidate=Answers(np.array([0.0]), np.array([0.0]), np.array([0.6**2 + 0.4**2]), np.full(n, np.nan)),
    )
    assert one(LogLoss(), found).estimate == pytest.approx(math.log(0.7) - math.log(0.01))
    assert one(Brier(), found).estimate == pytest.approx((0.36 + 0.16 + 1) / 2 - (0.09 + 0.04 + 0.01) / 2)
    assert one(Accuracy(), found).estimate == 1.0
    assert one(Disagreement(margin=0.1), found).estimate == 1.0


def test_the_error_of_a_regression_is_bounded() -> None:
    numbers = [np.full(2, np.nan)] * 2
    found = outcomes([0.0, 0.0], [0.0, 0.0], [10.0, 10.0])
    found = replace(
        found,
        stable=Answers(np.array([9.0, 9.0]), *numbers, np.full(2, np.nan)),
        candidate=Answers(np.array([11.5, 99.0]), *numbers, np.full(2, np.nan)),
    )
    assert one(AbsoluteError(margin=1, bound=5), found).estimate == pytest.approx((0.5 + 4) / 2)
    unstated = one(AbsoluteError(), found)
    assert (unstated.verdict, unstated.n_keys, unstated.needed) == (Verdict.INCONCLUSIVE, 0, None)


def test_a_row_that_the_canary_did_not_answer_is_a_failure_and_slow_and_no_loss() -> None:
    found = outcomes([0.3] * 4, [np.nan, np.nan, 0.3, 0.3], [1.0] * 4)
    us = [100.0, 100.0, 100.0, np.nan]
    found = replace(
        found,
        stable=answers([0.3] * 4, [1.0] * 4, us),
        candidate=answers([np.nan, np.nan, 0.3, 0.3], [1.0] * 4, [np.nan, np.nan, 100.0, 100.0]),
    )
    seen = look(found, FOUR)
    assert [m.estimate for m in seen.metrics] == pytest.approx([0.0, 0.5, 2 / 3, 0.0])
    assert metric(seen, "latency").n_rows == 3  # of the last row stable's time is not known


def test_a_slice_is_judged_by_its_rows() -> None:
    n = 2000
    carrier = np.where(np.arange(n) % 4 == 0, "AA", "DL").astype(object)
    canary = np.where(carrier == "AA", 0.95, 0.1)
    found = outcomes(
        np.full(n, 0.1), canary, np.zeros(n), columns={"carrier": carrier, "month": np.full(n, np.float32(0.1))}
    )
    plan = (
        LogLoss(where=Where(column="carrier", values=("DL",))),
        LogLoss(where=Where(column="carrier", values=("AA", "UA"))),
        Failures(where=Where(column="month", values=(0.1,))),
        Failures(where=Where(column="nobody", values=("x",))),
    )
    seen = look(found, plan)
    assert [(m.name, m.n_keys, m.verdict.value) for m in seen.metrics] == [
        ("log_loss[carrier=DL]", 1500, "pass"),
        ("log_loss[carrier=AA,UA]", 500, "fail"),
        ("failures[month=0.1]", 2000, "pass"),
        ("failures[nobody=x]", 0, "inconclusive"),
    ]


@pytest.mark.parametrize(("better", "worse_arm"), [("higher", "stable"), ("lower", "canary")])
def test_a_business_metric_is_compared_by_assignment(better: Any, worse_arm: str) -> None:
    rng = np.random.default_rng(11)
    n = 4000
    found = assigned(rng, n, 0.5, 0.1, 0.1)
    rate = np.where(found.canary == (worse_arm == "canary"), 0.2, 0.1)
    value = np.where(rng.random(n) < 0.1, np.nan, (rng.random(n) < rate) * 50.0)
    told = {"revenue": Told(value, np.arange(n))}
    analysis = Business(name="revenue", low=0, high=50, better=better, margin=1)
    seen = one(analysis, replace(found, feedback=told))
    assert seen.estimate == pytest.approx(5.0, abs=1.5)  # 10 % of 50, and the canary is the worse one
    assert (seen.verdict, seen.n_keys) == (Verdict.FAIL, int((~np.isnan(value)).sum()))
    assert one(analysis, found).n_keys == 0


# --- missing data ---


def test_without_outcomes_nothing_is_concluded() -> None:
    found = look(outcomes([], [], []))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert [(m.n_keys, m.estimate, m.evidence_worse, m.evidence_fine) for m in found.metrics] == [
        (0, 0.0, 1.0, 1.0)
    ] * 2


@pytest.mark.parametrize("n_labelled", [0, 1, 99])
def test_missing_labels_never_pass(n_labelled: int) -> None:
    n = 20_000
    label = np.where(np.arange(n) < n_labelled, 0.0, np.nan)
    found = look(outcomes(np.full(n, 0.9), np.full(n, 0.01), label))  # as good as can be on what is labelled
    assert found.verdict is Verdict.INCONCLUSIVE
    assert metric(found, "log_loss").verdict is Verdict.INCONCLUSIVE


def test_too_few_keys_are_inconclusive_however_many_rows_they_have() -> None:
    rows = 50 * 400
    found = look(outcomes(np.full(rows, 0.9), np.full(rows, 0.01), np.zeros(rows), np.arange(rows) % 50))
    assert found.metrics[0].n_keys == 50
    assert found.verdict is Verdict.INCONCLUSIVE


def test_nothing_passes_before_enough_requests_but_harm_is_seen_at_once() -> None:
    n = 2000
    good = outcomes(np.full(n, 0.3), np.full(n, 0.3), np.zeros(n))
    assert look(good, min_requests=n).verdict is Verdict.PASS
    assert look(good, min_requests=n + 1).verdict is Verdict.INCONCLUSIVE
    bad = outcomes(np.full(n, 0.3), np.full(n, np.nan), np.zeros(n))
    assert look(bad, min_requests=n + 1).verdict is Verdict.FAIL


def test_after_the_most_requests_nothing_more_counts() -> None:
    good, bad = np.full(100, 0.3), np.full(1000, np.nan)
    canary = np.concatenate([good, bad])
    found = outcomes(np.full(1100, 0.3), canary, np.zeros(1100))
    cut = look(found, max_requests=100)
    assert (cut.verdict, cut.n_requests, cut.exhausted) == (Verdict.INCONCLUSIVE, 100, True)
    assert look(found).verdict is Verdict.FAIL
    assert not look(found, max_requests=1101).exhausted


# --- clusters ---


def test_a_key_counts_once_with_the_mean_of_its_first_look() -> None:
    keys = np.array(["b", "a", "b", "a", "c", "b"])
    looks = np.array([2, 1, 2, 1, 1, 3])
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 99.0])
    assert per_key(keys, looks, values).tolist() == [3.0, 5.0, 2.0]  # a and c at look 1, then b
    assert per_key(keys[:0], looks[:0], values[:0]).tolist() == []
    assert first_rows(keys, looks).tolist() == [0, 1, 4]  # by assignment: one row
    assert first_rows(keys[:0], looks[:0]).tolist() == []


def test_by_assignment_a_key_counts_with_its_first_row_and_that_rows_share() -> None:
    """A sticky key that moves to the canary when the share rises is no second assignment."""
    found = outcomes([0.9, 0.9], [np.nan, 0.9], [0.0, 0.0], keys=[1, 1], looks=[1, 2], paired=False)
    found = replace(found, canary=np.array([False, True]), share=np.array([0.2, 0.5]))
    seen = one(Accuracy(), found)
    assert (seen.n_keys, seen.n_rows, seen.estimate) == (1, 2, -1 / 0.8)
    later = replace(found, labelled=np.array([3, 2]))  # the second row's outcome was known first
    assert one(Accuracy(), later).estimate == 1 / 0.5


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


# --- what is told ---


def test_the_interval_and_what_is_still_needed() -> None:
    found = traffic(np.random.default_rng(12), 150, noise=0.3)
    loss = look(found).metrics[0]
    assert loss.verdict is Verdict.INCONCLUSIVE
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < loss.estimate < loss.high
    assert loss.needed is not None
    again = math.ceil(loss.needed / 150)  # the same rows from other keys: it goes on so
    assert again > 1
    for times, verdict in ((again - 1, Verdict.INCONCLUSIVE), (again + 1, Verdict.PASS)):
        more = replace(found.at(np.tile(np.arange(150), times)), keys=np.arange(150 * times))
        assert look(more).metrics[0].verdict is verdict
    assert look(more).metrics[0].needed == 0
    few = look(outcomes([0.3] * 10, [0.3] * 10, [0.0] * 10)).metrics[0]
    assert few.needed is not None
    assert few.needed >= 90  # as many as `min_keys` asks for, at least


def test_of_the_objective_it_is_told_when_it_is_better_and_not_when_it_is_fine() -> None:
    """Losses that are smaller by 0.01: within the margin soon, better than stable much later."""
    rng = np.random.default_rng(15)
    n = 4000
    score = np.full(n, 0.5)
    other = 0.5 * np.exp(0.01 + 0.05 * rng.choice([-1.0, 1.0], n))
    found = outcomes(score, other, np.ones(n))
    fine = look(found).metrics[0]
    assert (fine.verdict, fine.needed, fine.better) == (Verdict.PASS, 0, None)
    seen = {k: look(found.at(np.arange(k)), has_objective=True).metrics[0] for k in (1000, n)}
    assert (seen[1000].verdict, seen[1000].better) == (Verdict.PASS, False)
    assert seen[1000].needed is not None
    assert 0 < seen[1000].needed < n
    assert (seen[n].better, seen[n].needed) == (True, 0)


def test_an_analysis_is_json_for_the_ledger_and_comes_back_as_it_was_seen() -> None:
    n = 2000
    found = look(outcomes(np.full(n, 0.01), np.full(n, 0.99), np.zeros(n)), FOUR)
    body = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert body["verdict"] == "fail"
    assert [m["name"] for m in body["metrics"]] == ["log_loss", "failures", "latency", "disagreement"]
    assert body["metrics"][0]["evidence_worse"] == pytest.approx(1e9)
    assert Analysis.from_dict(body) == found
    words = found.metrics[0].in_words()
    assert words.startswith("log_loss: +4.5951 in [+4.5")
    assert "over 2000 keys (margin 0.02), evidence worse 1e+09, fine" in words


def test_what_the_last_release_recorded_is_still_read() -> None:
    body = {
        "verdict": "pass",
        "metrics": [
            {
                "name": "log_loss",
                "margin": 0.02,
                "n_keys": 431,
                "estimate": -0.001,
                "evidence_worse": 1.5,
                "evidence_fine": 21.0,
                "verdict": "pass",
            }
        ],
    }
    found = Analysis.from_dict(body)
    assert (found.verdict, found.n_requests, found.metrics[0].low) == (Verdict.PASS, None, None)
    assert found.metrics[0].in_words() == (
        "log_loss: -0.0010 over 431 keys (margin 0.02), evidence worse 1.5, fine 21: pass"
    )


def test_the_widest_margin_that_a_plan_may_state_is_still_a_bet() -> None:
    n = 500
    found = look(outcomes(np.full(n, 0.0), np.full(n, 1.0), np.zeros(n)), (LogLoss(margin=4.59),))
    assert np.isfinite(found.metrics[0].evidence_fine)


@pytest.mark.parametrize("analysis", [LogLoss(margin=0.05), Brier(margin=0.05)])
def test_by_assignment_what_stable_expected_takes_noise_away_and_no_truth(analysis: Any) -> None:
    rng = np.random.default_rng(14)
    n = 20_000
    logit = rng.normal(0, 2, n)
    p = 1 / (1 + np.exp(-logit))
    label = (rng.random(n) < p).astype(float)
    mine = rng.random(n) < 0.5
    blunt = np.full(n, 0.5)
    found = replace(outcomes(p, blunt, label, paired=False), canary=mine, share=np.full(n, 0.5))
    paired = one(analysis, outcomes(p, blunt, label))
    seen = one(analysis, found)
    assert seen.estimate == pytest.approx(paired.estimate, abs=0.03)
    hidden = one(analysis, replace(found, stable=replace(found.stable, squares=np.ones(n))))  # nothing was expected
    widths = [(m.high or 0.0) - (m.low or 0.0) for m in (seen, hidden)]
    assert 0 < widths[0] < 0.9 * widths[1]


# --- while it bakes ---


def baked(trial: Outcomes, after: Outcomes, *, same_keys: bool = False) -> Outcomes:
    """A trial, and then rows that the version answered as stable, of other keys (or of the same)."""
    n, m = len(trial.keys), len(after.keys)

    def both(a: Any, b: Any) -> Any:
        return np.concatenate([a, b])

    def answered(a: Answers, b: Answers) -> Answers:
        return Answers(*(both(vars(a)[name], vars(b)[name]) for name in vars(a)))

    looks = np.arange(n + m)
    return Outcomes(
        keys=both(trial.keys, after.keys + (0 if same_keys else 1 + trial.keys.max(initial=-1))),
        seen=looks,
        labelled=looks,
        label=both(trial.label, after.label),
        canary=np.ones(n + m, np.bool_),
        share=both(trial.share, np.full(m, np.nan)),
        stable=answered(trial.stable, after.stable),
        candidate=answered(trial.candidate, after.candidate),
        bakes=looks >= n,
    )


def test_a_version_that_turns_bad_after_its_promotion_is_found_out_by_the_coin_that_was_kept() -> None:
    rng = np.random.default_rng(3)
    fine, bad = traffic(rng, 5000), traffic(rng, 1500, shift=1.5)
    assert look(fine, kept=KEPT).verdict is Verdict.PASS

    def fails(n: int, kept: float) -> bool:
        return look(baked(fine, bad.at(np.arange(n))), kept=kept).verdict is Verdict.FAIL

    keys = {kept: next(n for n in range(50, 1501, 50) if fails(n, kept)) for kept in (KEPT, 0.0)}
    assert keys[KEPT] < 0.8 * keys[0.0]
    found = look(baked(fine, bad), kept=KEPT)
    loss = metric(found, "log_loss")
    assert (loss.n_keys, loss.n_baking) == (6500, 1500)
    assert f"6500 keys, {loss.baking:+.4f} over the 1500 heard while baking" in loss.in_words()
    assert Analysis.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "n_baking" not in look(fine).to_dict()["metrics"][0]


def test_a_key_that_the_trial_has_heard_is_not_heard_again() -> None:
    rng = np.random.default_rng(3)
    found = look(baked(traffic(rng, 500), traffic(rng, 500, shift=1.5), same_keys=True), kept=KEPT)
    assert (metric(found, "log_loss").n_keys, metric(found, "log_loss").n_baking) == (500, None)
    assert found.verdict is not Verdict.FAIL


@pytest.mark.parametrize(("failing", "verdict"), [(0.0, Verdict.PASS), (0.2, Verdict.FAIL)])
def test_what_a_version_fails_while_it_bakes_counts_as_what_it_failed_on_trial(
    failing: float, verdict: Verdict
) -> None:
    """Rows without the answer of the version before it count for nothing else."""
    rng = np.random.default_rng(3)
    after = traffic(rng, 400)
    fails, alone = rng.random(400) < failing, np.arange(400) % 2 == 0
    answered, compared = np.where(fails, np.nan, 1.0), np.where(alone & ~fails, np.nan, 1.0)
    after = replace(
        after,
        candidate=Answers(*(values * answered for values in vars(after.candidate).values())),
        stable=Answers(*(values * compared for values in vars(after.stable).values())),
    )
    plan = (Failures(margin=0.05), Disagreement(margin=0.9))
    found = look(baked(traffic(rng, 400), after), plan, kept=KEPT)
    heard = {m.name: (m.n_keys, m.n_baking, m.verdict) for m in found.metrics}
    assert heard["failures"] == (800, 400, verdict)
    n_alone = int((alone & ~fails).sum())
    assert heard["disagreement"][:2] == (800 - n_alone, 400 - n_alone)
    assert found.n_requests == 400


def test_one_bad_moment_while_it_bakes_is_no_proof() -> None:
    """Nineteen keys that could not be worse, then one more."""
    rng = np.random.default_rng(3)
    trial, plan = traffic(rng, 200), (Disagreement(margin=0.05),)
    all_other = traffic(rng, 20)
    other = replace(all_other, candidate=replace(all_other.candidate, predicted=1 - all_other.stable.predicted))
    found = [look(baked(trial, other.at(np.arange(n))), plan, kept=KEPT).verdict for n in (19, 20)]
    assert found[1] is Verdict.FAIL
    alone = [look(baked(traffic(rng, 0), other.at(np.arange(n))), plan, kept=KEPT).verdict for n in (19, 20)]
    assert alone == [Verdict.INCONCLUSIVE, Verdict.FAIL]


def test_over_trial_and_baking_together_an_equal_version_fails_at_most_alpha() -> None:
    """The capital of `Purses` at every look; the trial ends at a random key, which is as good as any stopping time."""
    rng, n = np.random.default_rng(5), 300
    run = traffic(rng, n * RUNS, noise=0.8)
    losses = (-np.log(np.clip(one.of_label, 0.01, 0.99)) for one in (run.stable, run.candidate))
    stable, canary = (one.reshape(RUNS, n) for one in losses)
    gap, start = canary - stable, rng.integers(1, n, (RUNS, 1))
    later = np.where(np.arange(n) >= start, gap, 0.0)  # a difference of 0 changes no capital
    of_all, of_baking = (capital(within(one, -BOUND, BOUND), 0.0) for one in (gap, later))
    held = (1 - KEPT) * of_all + KEPT * of_baking
    assert at_most_alpha((held.max(axis=1) >= 1 / (SPENT * ALPHA)).tolist())


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.05, KEPT, 0.5]), st.integers(0, 2**32 - 1))
def test_both_purses_are_what_their_definition_says(n: int, m: int, kept: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gap, baking = rng.uniform(-1, 1, n + m), np.arange(n + m) >= n
    x = within(gap, -1.0, 1.0)
    purses = Purses.of(Sample(x, np.arange(n + m), 0.0, n + m, 0.0, baking=baking), kept)
    of_all, of_baking = (evidence(one, 0.0).log_capital for one in (x, x.at(np.flatnonzero(baking))))
    counted = of_baking if m >= 20 else min(of_baking, 0.0)
    expected = (1 - kept) * math.exp(of_all) + kept * math.exp(counted)
    assert math.exp(purses.log_capital) == pytest.approx(expected)
    assert Purses.of(Sample(x, np.arange(n + m), 0.0, n + m, 0.0), 0.0).log_capital == pytest.approx(of_all)
