from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import norm

from mlops_ray.data.distance import psi
from mlops_ray.data.profile import Profile
from mlops_ray.monitoring.drift import (
    MONTH_S,
    Drift,
    Thresholds,
    alike,
    by_rows,
    by_time,
    calibrate,
    compare,
    in_words,
    level,
)

DAY_S = 86_400.0
WEEK = 7

counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any).map(np.array)


def profile(**features: Any) -> Profile:
    arrays = {name: np.asarray(v, dtype=np.int64) for name, v in features.items()}
    return Profile(int(next(iter(arrays.values())).sum()), arrays, {}, np.zeros(20, dtype=np.int64))


# --- the budget ---


def test_the_budget_is_shared_over_windows_and_detectors() -> None:
    weekly = level(0.5, WEEK * DAY_S)
    assert weekly == pytest.approx(7 / 30.4375 / 2)
    assert weekly * (MONTH_S / (WEEK * DAY_S)) * 2 == pytest.approx(1.0)
    assert level(1.0, WEEK * DAY_S) == pytest.approx(2 * weekly)
    assert level(1000.0, MONTH_S) == 0.5  # a detector that always calls is none


# --- thresholds ---

EDGES = norm.ppf(np.linspace(0, 1, 7))[1:-1]


def days(rng: np.random.Generator, n: int, rows: int = 200, shift: float = 0.0) -> list[Profile]:
    """Days of two features whose means wander (AR(1), 0.5 from day to day): rows of a day are alike."""
    sd, phi, mean = 0.3, 0.5, rng.normal(0, 0.3, 2)
    out = []
    for _ in range(n):
        mean = phi * mean + rng.normal(0, sd * math.sqrt(1 - phi**2), 2)
        cdf = [np.concatenate([[0], norm.cdf(EDGES - m - shift), [1]]) for m in mean]
        out.append(profile(a=rng.multinomial(rows, np.diff(cdf[0])), b=rng.multinomial(rows, np.diff(cdf[1]))))
    return out


def thresholds(blocks: list[Profile], n_blocks: int, chosen: float, min_blocks: int = 8) -> Thresholds:
    cut = by_time(len(blocks), n_blocks)
    return calibrate(blocks, cut, chosen, block_s=DAY_S, min_blocks=min_blocks)


def whole(blocks: list[Profile]) -> Profile:
    return sum(blocks[1:], blocks[0])


def weeks(blocks: list[Profile]) -> list[Profile]:
    return [whole(blocks[i : i + WEEK]) for i in range(0, len(blocks) - WEEK + 1, WEEK)]


def alarms(reference: Profile, window: Profile, limits: dict[str, float]) -> bool:
    return any(d.alarm for d in compare(reference, window, limits))


def test_false_alarms_come_about_as_often_as_was_chosen() -> None:
    """Fresh weeks of the same world against limits at 11.5 %, over 16 references of 60 days.

    Tolerance: half to one and a half times the level. 16 x 20 weeks have a standard error of about 2 points; the rest
    is what eight weeks' worth of days do not know. (Limits from resampled rows would alarm most of the time: below.)
    """
    chosen, found = level(0.5, WEEK * DAY_S), []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        reference = days(rng, 60)
        limits = thresholds(reference, WEEK, chosen).limits
        assert limits is not None
        found += [alarms(whole(reference), w, limits) for w in weeks(days(rng, 20 * WEEK))]
    assert 0.5 * chosen <= np.mean(found) <= 1.5 * chosen


def test_limits_from_resampled_rows_would_alarm_most_of_the_time() -> None:
    rng = np.random.default_rng(0)
    reference = whole(days(rng, 120))
    shares = {k: v / v.sum() for k, v in reference.counts.items()}
    draws = {k: psi(reference.counts[k], rng.multinomial(1400, shares[k], 2000)) for k in shares}
    limits = {k: float(np.quantile(v, 0.885)) for k, v in draws.items()}
    assert np.mean([alarms(reference, w, limits) for w in weeks(days(rng, 30 * WEEK))]) > 0.5


def test_real_drift_is_seen() -> None:
    rng = np.random.default_rng(1)
    reference = days(rng, 120)
    limits = thresholds(reference, WEEK, level(0.5, WEEK * DAY_S)).limits
    assert limits is not None
    assert np.mean([alarms(whole(reference), w, limits) for w in weeks(days(rng, 20 * WEEK, shift=0.8))]) > 0.9


def test_a_stricter_level_never_has_lower_limits() -> None:
    reference = days(np.random.default_rng(2), 60)

    def limits(chosen: float) -> dict[str, float]:
        found = thresholds(reference, WEEK, chosen).limits
        assert found is not None
        return found

    loose, strict = limits(0.3), limits(0.12)
    assert all(strict[name] > loose[name] > 0 for name in loose)
    assert limits(0.3) == loose


@pytest.mark.parametrize(("n", "n_blocks", "min_blocks"), [(13, 7, 8), (7, 1, 8), (1, 1, 1), (0, 1, 1)])
def test_a_short_reference_is_uncalibrated(n: int, n_blocks: int, min_blocks: int) -> None:
    rng = np.random.default_rng(0)
    found = thresholds(days(rng, n), n_blocks, 0.1, min_blocks)
    assert found.limits is None
    assert str(n) in found.why


def test_a_reference_with_windows_without_rows_is_uncalibrated() -> None:
    rng = np.random.default_rng(0)
    quiet = profile(a=[0] * 6, b=[0] * 6)
    found = thresholds([*days(rng, 30), *[quiet] * 14, *days(rng, 30)], WEEK, 0.12)
    assert found == Thresholds(None, "the reference has windows without rows")


def test_a_feature_that_never_changes_has_a_limit() -> None:
    rng = np.random.default_rng(0)
    blocks = [profile(a=b.counts["a"], flat=[200, 0]) for b in days(rng, 60)]
    limits = thresholds(blocks, WEEK, 0.12).limits
    assert limits is not None
    assert not alarms(whole(blocks), whole([profile(a=b.counts["a"], flat=[200, 0]) for b in blocks[:7]]), limits)
    assert alarms(whole(blocks), whole([profile(a=b.counts["a"], flat=[100, 100]) for b in blocks[:7]]), limits)


def test_the_worst_relative_to_its_limit_comes_first() -> None:
    reference, window = profile(a=[50, 50], b=[50, 50]), profile(a=[90, 10], b=[60, 40])
    found = compare(reference, window, {"a": 100.0, "b": 0.001})
    assert [d.feature for d in found] == ["b", "a"]
    assert [d.alarm for d in found] == [True, False]
    assert not Drift("a", 0.25, 0.25).alarm
    assert in_words(found[0]).startswith("b: PSI 0.04")


def test_a_level_that_the_reference_is_too_short_for_is_uncalibrated() -> None:
    """Eight weeks hold no bound that one week in a hundred passes."""
    rng = np.random.default_rng(0)
    found = thresholds(days(rng, 60), WEEK, 0.01)
    assert found == Thresholds(None, "60 blocks support no alarm level of 0.010")


def test_the_reference_is_left_out_by_the_longest_span_that_it_holds_often_enough() -> None:
    assert alike(60, DAY_S, 8) == 7  # weeks
    assert alike(60, 3600.0, 8) == 1  # two days and a half: not eight of them, but hours
    assert alike(10 * 24, 3600.0, 8) == 24  # days
    assert alike(8, 10 * DAY_S, 8) == 1  # blocks longer than a week
    assert alike(7, DAY_S, 8) == 0


def test_windows_by_rows_end_with_the_block_that_fills_them() -> None:
    rows = np.array([50, 60, 100, 10, 80, 30, 99])
    assert by_rows(rows, 100).tolist() == [[0, 2], [2, 3], [3, 6]]  # the last block fills none
    assert by_rows(rows, 1000).tolist() == []
    assert by_time(20, 7).tolist() == [[6, 13], [13, 20]]


def test_windows_by_rows_alarm_as_often_as_was_chosen() -> None:
    """Independent blocks of 50 rows, windows of 200: of 30 references with 40 windows each some 10 % alarm."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shares = np.full(6, 1 / 6)
        blocks = [profile(a=rng.multinomial(50, shares)) for _ in range(400)]
        cut = by_rows(np.array([b.n for b in blocks]), 200)
        limits = calibrate(blocks, cut, 0.1, block_s=3600.0, min_blocks=8).limits
        assert limits is not None
        live = [profile(a=rng.multinomial(200, shares)) for _ in range(40)]
        found += [alarms(whole(blocks), w, limits) for w in live]
    assert 0.07 <= np.mean(found) <= 0.13


def test_windows_that_pass_together_count_together() -> None:
    """Days whose windows are all alike: the level that so many independent windows would support is not supported."""
    rng = np.random.default_rng(3)

    def hours(n_days: int) -> list[Profile]:
        return [b for day in days(rng, n_days, rows=100_000) for b in [day] * 24]

    blocks = hours(30)
    cut = by_time(len(blocks), 1)
    few = calibrate(blocks, cut, 2.5 / 720, block_s=3600.0, min_blocks=8)
    assert few == Thresholds(None, "720 blocks support no alarm level of 0.003")
    assert calibrate(blocks, cut, 0.2, block_s=3600.0, min_blocks=8).limits is not None


def test_one_row_of_a_new_kind_is_no_drift() -> None:
    blocks = [profile(flat=[200, 0])] * 60
    limits = thresholds(blocks, WEEK, 0.12).limits
    assert limits is not None
    assert not alarms(whole(blocks), profile(flat=[1399, 1]), limits)
    assert alarms(whole(blocks), profile(flat=[1380, 20]), limits)
