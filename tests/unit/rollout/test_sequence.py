"""A recorded log over time: a golden log, agreement with a rollout's analysis, and error rates by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from mlops_ray.config import LogPlan
from mlops_ray.config.analyses import Brier, Business
from mlops_ray.rollout.analysis import analyse
from mlops_ray.rollout.evidence import ODDS, WEIGHTS
from mlops_ray.rollout.recorded import Recorded, checked
from mlops_ray.rollout.sequence import MISMATCH, Report, report
from mlops_ray.training.gates.verdict import Verdict

ERRORS = {"metric": "errors", "column": "failed", "margin": 0.05}
MONEY = {"metric": "business", "name": "spent", "low": 0, "high": 1, "better": "higher", "margin": 0.2}


def plan(**fields: Any) -> LogPlan:
    return LogPlan.model_validate({"share": 0.5, "analyses": [ERRORS]} | fields)


def log(n: int, *, canary: float, stable: float = 0.05, got: float = 0.5, seed: int = 0) -> pl.DataFrame:
    """Args: canary, stable: rates of errors; got: the share of keys that the canary got."""
    rng = np.random.default_rng(seed)
    mine = rng.random(n) < got
    return pl.DataFrame(
        {
            "time": np.arange(n) * 10.0,
            "key": np.arange(n),
            "variant": np.where(mine, "canary", "stable"),
            "failed": (rng.random(n) < np.where(mine, canary, stable)).astype(int),
            "label": (rng.random(n) < 0.3).astype(int),
            "score": rng.beta(2, 4, n),
            "spent": rng.random(n),
        }
    )


def of(frame: pl.DataFrame, asked: LogPlan) -> tuple[Report, Recorded]:
    found = checked("log", frame, asked)
    return report(asked, found), found


def test_three_rows_by_hand() -> None:
    """With half the keys each, a failed row of the canary counts 2, one of stable -2; each gambler bets odds on whose
    failure it is, and rows without one change nothing."""
    frame = pl.DataFrame(
        {
            "time": [0.0, 60.0, 120.0],
            "key": ["a", "b", "c"],
            "variant": ["canary", "stable", "canary"],
            "failed": [1, 0, 0],
        }
    )
    found, _ = of(frame, plan())
    (course,) = found.courses
    assert course.metric.estimate == pytest.approx(2 / 3)
    assert course.metric.evidence_worse == pytest.approx(float(WEIGHTS @ (2 * ODDS / (1 + ODDS))))
    assert [(look.at, look.n_keys) for look in course.looks] == [(0.0, 1), (60.0, 2), (120.0, 3)]
    assert [look.estimate for look in course.looks] == pytest.approx([2, 1, 2 / 3])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.assignment is not None
    assert (found.assignment.stated, found.assignment.realised) == (0.5, pytest.approx(2 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_what_a_rollout_would_say(seed: int) -> None:
    asked = plan(
        columns={"label": "label", "score": "score"}, analyses=[{"metric": "brier", "margin": 0.05}, MONEY], min_keys=50
    )
    found, recorded = of(log(3000, canary=0.05, seed=seed), asked)
    analyses = [one for one in asked.analyses if isinstance(one, Brier | Business)]
    whole = analyse(analyses, recorded.outcomes, alpha=asked.alpha, min_keys=asked.min_keys)
    assert [course.metric for course in found.courses] == list(whole.metrics)
    for course, metric in zip(found.courses, whole.metrics, strict=True):
        last = course.looks[-1]
        assert (last.n_keys, last.estimate) == (metric.n_keys, pytest.approx(metric.estimate))
        assert (last.low, last.high) == pytest.approx((metric.low, metric.high), abs=1e-4)
        assert last.evidence_fine == pytest.approx(metric.evidence_fine, rel=1e-6)


def test_one_score_a_row_is_about_the_keys_of_both() -> None:
    asked = plan(columns={"label": "label", "score": "score"}, analyses=[{"metric": "brier", "margin": 0.1}])
    found, _ = of(log(4000, canary=0.05), asked)
    assert found.courses[0].metric.n_keys == 4000
    assert found.verdict is Verdict.PASS


def test_an_equal_canary_rarely_fails_and_a_worse_one_does() -> None:
    """So many wrong verdicts have probability 1e-6 at most, were alpha just held."""
    runs, alpha = 100, 0.05
    equal = [of(log(1500, canary=0.05, seed=seed), plan())[0].verdict for seed in range(runs)]
    assert equal.count(Verdict.FAIL) <= binom.isf(1e-6, runs, alpha)
    worse = [of(log(1500, canary=0.3, seed=seed), plan())[0].verdict for seed in range(20)]
    assert set(worse) == {Verdict.FAIL}


def test_what_was_proven_worse_stays_so() -> None:
    bad, good = log(2000, canary=0.4, seed=1), log(6000, canary=0.0, stable=0.4, seed=2)
    later = good.with_columns(pl.col("time") + 20_000, pl.col("key") + 2000)
    found, _ = of(pl.concat([bad, later]), plan())
    assert found.verdict is Verdict.FAIL
    assert found.decided is not None
    assert found.decided < 20_000
    assert "Proven worse: errors:failed" in found.in_words()


def test_another_share_than_stated_is_found_and_nothing_passes() -> None:
    """The canary's rows count by the share that is stated: with more of them than that it looks better than it is."""
    found, _ = of(log(4000, canary=0.05, got=0.6), plan(analyses=[MONEY]))
    assert found.courses[0].metric.verdict is Verdict.INCONCLUSIVE
    assert found.courses[0].metric.lopsided
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.assignment is not None
    assert found.assignment.decided is not None
    assert any("sample ratio mismatch" in warning for warning in found.warnings)


def test_a_share_that_is_as_stated_is_rarely_called_a_mismatch() -> None:
    runs = 100
    tests = [of(log(1500, canary=0.05, seed=seed), plan())[0].assignment for seed in range(runs)]
    wrong = sum(test is not None and test.decided is not None for test in tests)
    assert wrong <= binom.isf(1e-6, runs, MISMATCH)


def test_rows_after_the_largest_number_are_not_looked_at() -> None:
    found, _ = of(log(1000, canary=0.05), plan(max_requests=100, min_keys=50))
    assert found.n_requests == 100
    assert any("were not looked at (max_requests)" in warning for warning in found.warnings)


def test_nothing_passes_under_the_least_number_of_rows() -> None:
    few, _ = of(log(4000, canary=0.05), plan(min_requests=3999, analyses=[MONEY]))
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "more of the canary's rows" in few.in_words()


def test_as_json() -> None:
    body = of(log(500, canary=0.05), plan())[0].to_dict()
    assert body["bars"]["worse"] == pytest.approx(math.exp(of(log(500, canary=0.05), plan())[0].bars.worse))
    assert body["metrics"][0]["looks"][-1]["n_keys"] == 500


@pytest.mark.parametrize(
    ("whose", "missing", "rates"),
    [
        ("canary", 1.0, (0.05, 0.05)),
        ("canary", 0.8, (0.10, 0.30)),
        ("canary", 0.5, (0.05, 0.10)),
        ("stable", 0.5, (0.30, 0.30)),
        ("stable", 1.0, (0.05, 0.05)),
    ],
)
def test_outcomes_that_are_missing_more_often_from_one_version_decide_nothing(
    whose: str, missing: float, rates: tuple[float, float]
) -> None:
    """A version of which less is known looks as if less had come of it."""
    frame = log(6000, stable=rates[0], canary=rates[1])
    gone = (frame["variant"] == whose).to_numpy() & (np.random.default_rng(9).random(6000) < missing)
    found, _ = of(frame.with_columns(failed=pl.when(pl.Series(~gone)).then("failed")), plan())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.courses[0].metric.lopsided
    assert any("known more often of one variant" in warning for warning in found.warnings)
    assert "missing more often" in found.courses[0].metric.in_words()


def test_outcomes_that_are_missing_evenly_decide_as_ever() -> None:
    frame = log(6000, canary=0.2)
    gone = np.random.default_rng(9).random(6000) < 0.5
    found, _ = of(frame.with_columns(failed=pl.when(pl.Series(~gone)).then("failed")), plan())
    assert found.verdict is Verdict.FAIL


def test_of_one_version_alone_nothing_is_said() -> None:
    frame = log(3000, canary=0.4).filter(pl.col("variant") == "canary")
    assert of(frame, plan())[0].verdict is Verdict.INCONCLUSIVE
