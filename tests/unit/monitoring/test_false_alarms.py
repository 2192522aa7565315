"""The benchmark's months, few of them: budgets are kept and spent, and its peers say what their documents say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.monitor import worlds
from benchmarks.monitor.detection import our_errors
from benchmarks.monitor.false_alarms import PEERS, Rate, by_loss, ours, peers
from benchmarks.monitor.worlds import FEW, FINE_BINS, N_BINS

TENTHS = np.append(np.arange(0, FINE_BINS, FINE_BINS // N_BINS), FINE_BINS)


@pytest.mark.parametrize("draw", [worlds.independent, worlds.wandering])
def test_five_alarms_a_month_are_about_five_of_all_detectors(draw: object) -> None:
    """15 references with 10 months each, some 750 alarms; limits of one reference are off by a sixth."""
    rng = np.random.default_rng(0)
    months = [draw(rng, 200, 180, 10, N_BINS).first(FEW) for _ in range(15)]  # type: ignore[operator]
    rate = Rate.of([ours(month, by_loss(rng, month, 10))[5.0] for month in months], 10)
    assert rate.uncalibrated == 0
    assert 0.6 * 5 <= rate.mean <= 1.25 * 5
    assert rate.mean < rate.upper


def test_two_months_support_no_drift_limit_for_a_fifth_of_an_alarm() -> None:
    rng = np.random.default_rng(0)
    month = worlds.independent(rng, 200, 60, 1, N_BINS).first(FEW)
    said = ours(month, by_loss(rng, month, 1))[0.2]
    assert said["windows"] is None
    assert said["evidence"] is None
    assert Rate.of([said, said], 1).uncalibrated == 1


def test_the_peers_alarm_by_size_of_window_and_by_number_of_features() -> None:
    rng = np.random.default_rng(0)
    small = dict(
        zip(PEERS, peers(worlds.independent(rng, 200, 60, 1, FINE_BINS), worlds.normal_scale(), TENTHS), strict=True)
    )
    large = dict(
        zip(PEERS, peers(worlds.independent(rng, 20_000, 60, 1, FINE_BINS), worlds.normal_scale(), TENTHS), strict=True)
    )
    assert small["PSI > 0.1"] > 15 > large["PSI > 0.1"] == 0
    assert small["KS p < 0.05"] > 15  # fifty tests at one in twenty
    assert small["Evidently column"] == 30 > large["Evidently column"] == 0


def test_the_sequential_detector_is_quick_at_few_false_alarms() -> None:
    calls, delay, _ = our_errors(seed=0, runs=200)
    assert calls <= 0.06  # 3.7 % in 2,000 streams
    assert delay <= 0.6 * 240
