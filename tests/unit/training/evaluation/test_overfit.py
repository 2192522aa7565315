from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from mlops_ray.training.evaluation import intervals
from mlops_ray.training.evaluation.overfit import gap


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_a_tree_grown_to_the_end_has_a_gap_and_a_stump_has_none() -> None:
    random = rng()
    x = random.normal(size=(2000, 3))
    y = (x[:, 0] + random.normal(size=2000) > 0).astype(int)
    fit, hold = slice(0, 1000), slice(1000, 2000)
    found = {}
    for depth in (1, None):
        tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x[fit], y[fit])
        p = tree.predict_proba(x)[:, 1]
        sides = (y[fit], p[fit], y[hold], p[hold])
        blocks = (intervals.grouped(np.arange(1000) % 25), intervals.grouped(np.arange(1000) % 20))
        found[depth] = gap("binary", *sides, *blocks, resamples=500, alpha=0.05, rng=random)
    assert found[None].fitted.value < 1e-5
    assert found[None].difference.low > 1
    assert found[None].holdout.value > found[None].constant  # worse than looking at nothing
    assert found[1].difference.low < 0.05
    assert found[1].holdout.value < found[1].constant
    assert found[1].constant == pytest.approx(np.log(2), abs=0.01)
    assert (found[1].difference.n, found[1].difference.n_blocks) == (1000, 20)
    json.dumps(found[1].to_dict(), allow_nan=False)


def test_the_gap_of_a_model_that_has_none_is_covered() -> None:
    random, hits, runs = rng(), 0, 150
    for _ in range(runs):
        sides, blocks = [], []
        for days in (30, 15):
            day = np.repeat(np.arange(days), 30)
            y = random.normal(size=len(day)) + random.normal(0, 0.5, days)[day]
            sides += [y, np.zeros(len(day))]
            blocks.append(intervals.grouped(day))
        found = gap("regression", *sides, *blocks, resamples=300, alpha=0.05, rng=random).difference
        hits += found.low <= 0 <= found.high
    assert 0.84 <= hits / runs <= 0.97


def test_losses_of_a_regression_are_in_variances_of_the_holdout() -> None:
    y_fit, y = np.array([1.0, 3.0] * 10), np.array([0.0, 20.0] * 10)
    blocks = intervals.grouped(np.arange(20))
    found = gap("regression", y_fit, y_fit, y, np.full(20, 10.0), blocks, blocks, resamples=300, alpha=0.05, rng=rng())
    assert (found.fitted.value, found.holdout.value) == (0, pytest.approx(1))
    assert found.constant == pytest.approx((100 + 64) / 100)  # the fitted rows' mean is 2


def test_several_classes() -> None:
    random = rng()
    p = random.dirichlet(np.ones(3), 8000)
    y = np.array([random.choice(3, p=row) for row in p])
    blocks = intervals.grouped(np.arange(4000) % 20)
    found = gap(
        "multiclass", y[:4000], p[:4000], y[4000:], p[4000:], blocks, blocks, resamples=300, alpha=0.05, rng=random
    )
    assert found.difference.low < 0 < found.difference.high
    assert found.constant == pytest.approx(np.log(3), abs=0.05)
