from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import Monitoring
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring.estimation import estimate
from mlops_ray.monitoring.judgement import Judgement, judge_drift, judge_estimate, judge_quality
from mlops_ray.training import calibration, target
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import blocks

DAY_S = 86_400.0
BINS = Bins({"x": (-1.0, 0.0, 1.0), "y": (0.0,)}, {})
PLAN = Monitoring(min_rows=100, min_blocks=8, false_alarms_per_month=1.0)
RNG = np.random.default_rng(0)


def day(shift: float = 0.0, n: int = 100, seed: int | None = None) -> Profile:
    rng = RNG if seed is None else np.random.default_rng(seed)
    columns = {"x": rng.normal(shift, 1, n).astype(np.float32), "y": rng.normal(0, 1, n).astype(np.float32)}
    return fold(BINS, columns, np.full(n, 0.5))


def reference(n: int = 60, n_holdout: int = 30, loss: float = 52.0) -> Reference:
    """Days of 100 rows; the holdout's with a mean loss of about 0.52 nats."""
    wobble = np.random.default_rng(1).normal(0, 3, n_holdout)
    holdout = tuple((i * DAY_S, 100, loss + float(w), 20) for i, w in enumerate(wobble))
    return Reference(BINS, DAY_S, tuple((i * DAY_S, day(seed=i)) for i in range(n)), holdout)


def drift(window: Profile, plan: Monitoring = PLAN, **of: Any) -> Judgement:
    return judge_drift(plan, reference(**of), window, start=0.0, end=plan.window_s)


def week(shift: float = 0.0) -> Profile:
    return sum((day(shift, seed=1000 + i) for i in range(7)), empty(BINS))


def cohort(probability: float, n: int = 700, known: float = 1.0) -> tuple[Any, Any]:
    """A fifth of the labels is 1, and each row is given this probability of being a 1."""
    rng = np.random.default_rng(2)
    labels = (rng.random(n) < 0.2).astype(np.float64)
    labels[rng.random(n) >= known] = np.nan
    return labels, np.full(n, probability)


def quality(labels: Any, scores: Any, plan: Monitoring = PLAN, **of: Any) -> Judgement:
    return judge_quality(plan, reference(**of), labels, scores)


def test_the_limit_of_quality_is_for_a_window_as_long_as_it_was() -> None:
    """By rows a window may take a day or a month: a short one strays further by chance."""
    labels, scores = cohort(0.2)
    day, week, month = (
        judge_quality(PLAN, reference(), labels, scores, span_s=days * DAY_S).detail["limit"] for days in (1, 7, 28)
    )
    assert day > week > month
    assert week == quality(labels, scores).detail["limit"]


def test_a_week_like_the_reference_is_calm() -> None:
    found = drift(week())
    assert (found.trigger, found.alarm) == ("drift", False)
    assert "PSI" in found.why
    assert {f["feature"] for f in found.detail["features"]} == {"x", "y"}


def test_a_week_unlike_the_reference_alarms_and_names_the_feature() -> None:
    found = drift(week(shift=1.0))
    assert found.alarm
    assert found.why.startswith("x: PSI")
    assert re.search(r"\(mean from -?0\.0\d+ to (0\.9\d*|1(\.0\d)?)\)", found.why)
    assert "y: PSI" not in found.why
    assert found.detail["rows"] == 700
    json.dumps(found.detail)


@pytest.mark.parametrize("n", [0, 99])
def test_too_few_rows_never_alarm(n: int) -> None:
    found = drift(day(shift=9.0, n=n))
    assert not found.alarm
    assert f"{n} rows" in found.why


def test_an_uncalibrated_reference_never_alarms() -> None:
    found = drift(week(shift=9.0), n=13)
    assert not found.alarm
    assert found.why.startswith("uncalibrated")


def test_good_and_bad_quality() -> None:
    good, bad = quality(*cohort(0.2)), quality(*cohort(0.7))
    assert not good.alarm
    assert bad.alarm
    assert bad.trigger == "performance"
    assert "log-loss 1.0" in bad.why
    assert bad.detail["limit"] == good.detail["limit"] > 0.5
    assert bad.detail["coverage"] == 1.0
    json.dumps(bad.detail)


@pytest.mark.parametrize("labels", [[], [np.nan] * 500, [1.0] * 99 + [np.nan] * 500], ids=["none", "unknown", "few"])
def test_warming_up_never_alarms(labels: list[float]) -> None:
    found = quality(np.array(labels), np.full(len(labels), 1e-6))
    assert not found.alarm
    assert found.why.startswith("warming up")
    assert found.detail["limit"] is None


def test_an_uncalibrated_holdout_never_alarms() -> None:
    found = quality(*cohort(0.999), n_holdout=7)
    assert not found.alarm
    assert found.why.startswith("uncalibrated: the holdout has 7 blocks")


def test_the_level_counts_labelled_rows_and_shows_their_share() -> None:
    found = quality(*cohort(0.2, known=0.6))
    assert found.detail["coverage"] == pytest.approx(0.6, abs=0.05)
    assert found.detail["n_rows"] == 700


def test_the_same_window_is_judged_the_same_again() -> None:
    assert drift(week()) == drift(week())
    assert quality(*cohort(0.7)) == quality(*cohort(0.7))


# --- estimates ---


def entry(value: float, half: float, *, trust: float = 0.8, weighted: tuple[float, float] | None = None) -> Any:
    """An estimate of the log-loss; `weighted`: value and trust of the second method, with the same half width."""

    def told(said: float) -> dict[str, Any]:
        return {"metrics": {"log_loss": {"value": said, "low": said - half, "high": said + half}}, "why": ""}

    second = {"metrics": {}, "why": "too few"} if weighted is None else told(weighted[0])
    record = {"direct": {"trust": trust}, "weighted": {"trust": 0.0 if weighted is None else weighted[1]}}
    return {"why": f"log_loss {value:.4f}", "direct": told(value), "weighted": second, "record": record}


def expected(found: dict[str, Any], **of: Any) -> Judgement:
    return judge_estimate(PLAN, "binary", reference(**of), found)


def test_an_estimate_alarms_by_as_much_as_it_is_trusted() -> None:
    """The limit is some 0.54: an estimate of 0.7 +- 0.08 lies above it, unless only half of that is believed."""
    sure, doubted = expected(entry(0.7, 0.08)), expected(entry(0.7, 0.08, trust=0.4))
    assert (sure.trigger, sure.alarm, doubted.alarm) == ("estimated_performance", True, False)
    assert 0.5 < sure.detail["limit"] == doubted.detail["limit"] < 0.6
    assert "log_loss estimated at 0.7000, by a trust of 0.80 at least 0.6000, against a limit of 0.5" in sure.why
    assert "at least 0.5000" in doubted.why


def test_the_better_trusted_method_speaks() -> None:
    assert not expected(entry(0.9, 0.05, trust=0.5, weighted=(0.5, 0.8))).alarm
    assert expected(entry(0.9, 0.05, trust=0.5, weighted=(0.5, 0.2))).alarm


def test_an_estimate_without_a_record_never_alarms() -> None:
    found = expected(entry(9.0, 0.01, trust=0.0))
    assert not found.alarm
    assert found.why == "log_loss 9.0000; no estimate has proved true yet"


def test_an_estimate_that_was_not_made_or_has_no_limit_never_alarms() -> None:
    nothing = entry(9.0, 0.01)
    nothing["direct"] = {"metrics": {}, "why": "uncalibrated"}
    assert not expected(nothing | {"why": "uncalibrated"}).alarm
    short = expected(entry(9.0, 0.01), n_holdout=7)
    assert not short.alarm
    assert short.why.endswith("uncalibrated: the holdout has 7 blocks")


def test_estimates_spend_next_to_nothing_of_the_false_alarm_budget() -> None:
    """Quiet weeks after 100 holdouts of 60 days, fully trusted: quality may alarm in 11.5 % of them, estimates in 1 %.

    Measured over 1,000 holdouts: in none of 5,000 weeks."""
    alarms = []
    bins = Bins({}, {})
    for seed in range(100):
        rng = np.random.default_rng(seed)

        def drawn(days: int, rng: np.random.Generator = rng) -> tuple[Any, Any, Any]:
            day = np.repeat(np.arange(days), 100)
            x = rng.normal(0, 1, len(day)) + rng.normal(0, 0.3, days)[day]
            p = 1 / (1 + np.exp(-x - rng.normal(0, 0.3, days)[day]))
            return (rng.random(len(x)) < p).astype(np.int64), 1 / (1 + np.exp(-1.3 * x)), day

        y, scores, day = drawn(60)
        sums = np.bincount(day, target.losses("binary", y, scores))
        holdout = tuple((i * DAY_S, 100, float(loss), 50.0) for i, loss in enumerate(sums))
        known = calibration.fit("binary", y, scores, blocks(day, 1.0), bins, {})
        kept = Reference(bins, DAY_S, (), holdout, known)
        for _ in range(2):
            _, said, _ = drawn(7)
            codes = np.empty((len(said), 0), dtype=np.uint16)
            loss = estimate(known, said, codes, threshold=0.5)["log_loss"]
            found = entry(loss.value, loss.value - loss.low, trust=1.0)
            alarms.append(judge_estimate(PLAN, "binary", kept, found).alarm)
    assert np.mean(alarms) <= 0.01
