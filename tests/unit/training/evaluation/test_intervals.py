from __future__ import annotations

import numpy as np
import pytest

from mlops_ray.training.evaluation import intervals

DAY_S = 86_400.0


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_corrected_tail() -> None:
    assert intervals.tail(0.05, 12) == pytest.approx(0.0303, abs=2e-4)
    assert intervals.tail(0.05, 100_000) == pytest.approx(0.05, abs=1e-4)
    assert intervals.resolves(0.05, 5, 2000)
    assert not intervals.resolves(0.05, 4, 2000)
    assert not intervals.resolves(0.05, 1, 2000)


def test_blocks_of_time_and_of_a_column() -> None:
    found = intervals.blocks([0.5 * DAY_S, 5.2 * DAY_S, 0.1 * DAY_S], DAY_S)
    assert found.index.tolist() == [0, 1, 0]
    assert found.starts.tolist() == [0, 5 * DAY_S]
    stores = intervals.grouped(np.array(["b", "a", None, "b", "", float("nan")], dtype=object))
    assert len(stores) == 3
    assert len(np.unique(stores.index[[0, 3]])) == len(np.unique(stores.index[[2, 4, 5]])) == 1
    assert np.isnan(stores.starts).all()
    numbers = intervals.grouped([2.0, np.nan, 1.0, np.nan, 2.0])
    assert len(numbers) == 3
    assert numbers.index[1] == numbers.index[3]
    assert numbers.sums([1, 1, 1, 1, 1]).tolist() == [1, 2, 2]


def test_many_blocks_are_bundled_whole() -> None:
    given = intervals.grouped(rng().integers(0, 2000, 9000))
    few = intervals.bundled(given, rng(), limit=50)
    assert len(few) == 50
    pairs = np.unique(np.stack([given.index, few.index]), axis=1)
    assert pairs.shape[1] == len(given)  # each block lies in one bundle
    assert np.ptp(np.bincount(pairs[1])) <= 1
    assert intervals.bundled(few, rng(), limit=50) is few


def test_the_interval_of_a_mean_covers_though_blocks_are_bundled() -> None:
    """Patients of one to nine rows that share an effect."""
    random, hits, runs = rng(), 0, 150
    for _ in range(runs):
        patient = np.repeat(np.arange(700), random.integers(1, 10, 700))
        values = 2 + random.normal(0, 1, 700)[patient] + random.normal(size=len(patient))
        few = intervals.bundled(intervals.grouped(patient), random, limit=100)
        weights = intervals.resample(len(few), 300, random)
        drawn = (weights @ few.sums(values)) / (weights @ few.sums(np.ones(len(values))))
        found = intervals.interval(float(values.mean()), drawn, n=len(values), n_blocks=700, alpha=0.05)
        hits += found.low <= 2 <= found.high
    assert 0.84 <= hits / runs <= 0.96


def test_mostly_undefined_resamples_carry_no_interval() -> None:
    drawn = np.where(np.arange(1000) < 600, np.nan, 1.0)
    assert np.isnan(intervals.interval(1.0, drawn, n=10, n_blocks=100, alpha=0.05).low)
    drawn = np.where(np.arange(1000) < 400, np.nan, 1.0)
    assert intervals.interval(1.0, drawn, n=10, n_blocks=100, alpha=0.05).low == 1
