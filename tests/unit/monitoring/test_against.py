"""Windows side by side, sliding, by rows and by season, and the scores among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import DAY_S, HOUR_S, Monitoring
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring.against import against
from mlops_ray.monitoring.drift import SCORES, compare
from mlops_ray.monitoring.judgement import Judgement, judge_drift
from mlops_ray.training.artifact.model import Reference

BINS = Bins({"x": (-1.0, 0.0, 1.0)}, {})
WEEK_S = 7 * DAY_S


def block(rng: np.random.Generator, shift: float = 0.0, n: int = 100, score: float = 0.0) -> Profile:
    x = rng.normal(shift, 1, n)
    scores = 1 / (1 + np.exp(-rng.normal(score, 1, n)))
    return fold(BINS, {"x": x.astype(np.float32)}, scores)


def reference(blocks: Sequence[Profile], block_s: float = DAY_S) -> Reference:
    return Reference(BINS, block_s, tuple((4 * DAY_S + i * block_s, b) for i, b in enumerate(blocks)), ())


def whole(blocks: Sequence[Profile]) -> Profile:
    return sum(blocks, empty(BINS))


def judged(plan: Monitoring, known: Reference, window: Profile, start: float = 0.0, **of: Any) -> Judgement:
    return judge_drift(plan, known, window, start=start, end=start + plan.window_s, **of)


def test_sliding_windows_spend_no_more_alarms_than_side_by_side_ones() -> None:
    """Of windows that overlap, the alarms of one window's span count as one: six references of 300 days, each of two
    years. A day's common effect is in seven windows."""
    plan = Monitoring(window_s=WEEK_S, slide_s=DAY_S, false_alarms_per_month=1.0)
    spans, alarms = 0, 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        days = [block(rng, rng.normal(0, 0.3)) for _ in range(300)]
        limit = against(plan, reference(days), 0.0, WEEK_S).thresholds.limits
        assert limit is not None
        later = [block(rng, rng.normal(0, 0.3)) for _ in range(700)]
        total = reference(days).total
        hits = [any(d.alarm for d in compare(total, whole(later[i : i + 7]), limit)) for i in range(693)]
        alarms += sum(any(hits[i : i + 7]) for i in range(0, 693, 7))
        spans += 99
    months = spans * WEEK_S / (30.4375 * DAY_S)
    assert 0.2 * 0.49 <= alarms / months <= 1.5 * 0.49


def test_windows_by_rows_divide_the_budget_over_the_time_that_they_take() -> None:
    plan = Monitoring(window_rows=700, false_alarms_per_month=1.0)
    rng = np.random.default_rng(0)
    known = reference([block(rng) for _ in range(400)])
    short, long = (against(plan, known, 0.0, days * DAY_S).thresholds.limits for days in (7, 14))
    assert short is not None
    assert long is not None
    assert short[SCORES] > long[SCORES]  # half as many windows in a month may each alarm twice as often


def test_a_monday_is_held_against_mondays() -> None:
    """Weekends are unlike weekdays: a Saturday on a Monday is drift, and a Saturday on a Saturday is none."""
    plan = Monitoring(window_s=DAY_S, seasonal="weekday", false_alarms_per_month=5.0, min_rows=50)
    rng = np.random.default_rng(1)
    # 1970-01-05 was a Monday: the fifth and sixth day from there are a weekend.
    known = reference([block(rng, 2.0 if i % 7 >= 5 else 0.0) for i in range(7 * 30)])
    monday, saturday = 1000 * WEEK_S + 4 * DAY_S, 1000 * WEEK_S + 9 * DAY_S
    assert judged(plan, known, block(rng, 2.0), monday).alarm
    found = judged(plan, known, block(rng, 2.0), saturday)
    assert not found.alarm
    assert found.why.endswith("against Saturdays alone")
    assert found.detail["phase"] == "Saturdays"
    blind = Monitoring(window_s=DAY_S, false_alarms_per_month=5.0, min_rows=50)
    assert not judged(blind, known, block(rng, 2.0), monday).alarm


def test_too_few_mondays_are_held_against_all_days() -> None:
    plan = Monitoring(window_s=DAY_S, seasonal="weekday", false_alarms_per_month=5.0, min_rows=50)
    rng = np.random.default_rng(2)
    held = against(plan, reference([block(rng) for _ in range(7 * 7)]), 0.0, DAY_S)
    assert held.phase == ""
    assert held.thresholds.limits is not None


def test_an_hour_of_the_week_is_told_in_words() -> None:
    plan = Monitoring(window_s=HOUR_S, block_s=HOUR_S, seasonal="hour_of_week", false_alarms_per_month=300, min_rows=50)
    rng = np.random.default_rng(3)
    known = reference([block(rng) for _ in range(168 * 9)], HOUR_S)
    assert against(plan, known, 4 * DAY_S + 5 * HOUR_S, 0.0).phase == "Mondays at 05:00"


def test_scores_are_judged_with_the_features_once_the_version_has_answered_enough() -> None:
    plan = Monitoring(min_rows=300, false_alarms_per_month=1.0)
    rng = np.random.default_rng(4)
    known = reference([block(rng) for _ in range(140)])
    week = [block(rng, score=2.0) for _ in range(7)]
    assert not judged(plan, known, whole(week)).alarm  # nobody's scores
    warming = judged(plan, known, whole(week), own=whole(week[:2]))
    assert not warming.alarm
    assert warming.detail["scores"] == {"why": "warming up: 200 rows of the version of 300"}
    found = judged(plan, known, whole(week), own=whole(week))
    assert found.alarm
    assert found.why.startswith("(scores): PSI")
    assert found.detail["scores"]["psi"] > found.detail["scores"]["limit"]
    assert {f["feature"] for f in found.detail["features"]} == {"x"}


def test_a_version_that_answered_half_of_the_rows_alarms_no_more_often_for_that() -> None:
    plan = Monitoring(min_rows=100, false_alarms_per_month=1.0)
    rng = np.random.default_rng(5)
    known = reference([block(rng) for _ in range(420)])
    alarms = []
    for _ in range(150):
        week = [block(rng) for _ in range(7)]
        alarms.append(judged(plan, known, whole(week), own=whole(week[:3])).alarm)
    assert np.mean(alarms) <= 1.6 * 0.49 * 7 / 30.4375


def test_a_reference_without_scores_judges_none() -> None:
    rng = np.random.default_rng(6)
    plain = [fold(BINS, {"x": rng.normal(0, 1, 100).astype(np.float32)}) for _ in range(140)]
    limits = against(Monitoring(), reference(plain), 0.0, WEEK_S).thresholds.limits
    assert limits is not None
    assert SCORES not in limits


def test_the_window_before_is_shown_and_alarms_nobody() -> None:
    rng = np.random.default_rng(7)
    known = reference([block(rng) for _ in range(140)])
    week, before = whole([block(rng) for _ in range(7)]), whole([block(rng, 3.0) for _ in range(7)])
    found = judged(Monitoring(), known, week, previous=before)
    assert not found.alarm
    assert found.detail["previous"]["x"] > 0.5


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"slide_s": 3 * DAY_S}, "slide_s"),
        ({"slide_s": DAY_S, "window_rows": 100}, "side by side"),
        ({"seasonal": "weekday"}, "seasonal: weekday needs window_s 86400"),
        ({"multivariate_s": 1.5 * DAY_S}, "multivariate_s"),
    ],
)
def test_plans_that_cannot_be(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Monitoring(**body)
