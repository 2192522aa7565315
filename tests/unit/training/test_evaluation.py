from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import intervals, metrics

DAY_S = 86_400.0


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def scored(n: int, days: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = rng()
    p = random.beta(2, 3, n)
    return (random.random(n) < p).astype(int), p, np.sort(random.uniform(0, days * DAY_S, n))


def evaluate(y: np.ndarray, p: np.ndarray, times: np.ndarray) -> dict[str, intervals.Estimate]:
    return dict(metrics.evaluate(y, p, times, block_s=DAY_S, resamples=500, alpha=0.05, rng=rng()))


def test_metrics_are_those_of_scikit_learn() -> None:
    y, p, times = scored(2000)
    p = np.round(p, 2)  # ties
    found = evaluate(y, p, times)
    assert found["log_loss"].value == pytest.approx(sklearn_metrics.log_loss(y, p))
    assert found["brier"].value == pytest.approx(sklearn_metrics.brier_score_loss(y, p))
    assert found["roc_auc"].value == pytest.approx(sklearn_metrics.roc_auc_score(y, p))
    assert found["accuracy"].value == pytest.approx(sklearn_metrics.accuracy_score(y, p >= 0.5))
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.n, estimate.n_blocks) == (2000, 20)


def test_a_resample_is_the_metric_of_the_repeated_rows() -> None:
    y, p, times = scored(300, days=6)
    grouped = intervals.blocks(times, DAY_S)
    weights = intervals.resample(len(grouped), 3, rng())
    concordant = metrics._concordance(y.astype(float), p, grouped)
    for w in weights:
        rows = np.repeat(np.arange(300), w.astype(int)[grouped.index])
        positives, negatives = y[rows].sum(), (1 - y[rows]).sum()
        assert w @ concordant @ w / (positives * negatives) == pytest.approx(
            sklearn_metrics.roc_auc_score(y[rows], p[rows])
        )


def test_intervals_cover_as_promised_with_correlated_days() -> None:
    """60 days of 100 rows that share a day effect: a row bootstrap would miss the truth half of the time."""
    random, hits, runs = rng(), 0, 200
    for _ in range(runs):
        days = np.repeat(np.arange(12), 60)
        y = (random.random(len(days)) < np.clip(0.3 + random.normal(0, 0.12, 12), 0.02, 0.98)[days]).astype(int)
        found = metrics.evaluate(
            y, np.zeros(len(y)), days * DAY_S, block_s=DAY_S, resamples=400, alpha=0.05, rng=random
        )["brier"]
        hits += found.low <= 0.3 <= found.high
    assert 0.84 <= hits / runs <= 0.96  # 90 % nominal; the clip moves the truth by less than 0.001


def test_the_corrected_tail() -> None:
    assert intervals.tail(0.05, 12) == pytest.approx(0.0303, abs=2e-4)
    assert intervals.tail(0.05, 100_000) == pytest.approx(0.05, abs=1e-4)
    assert intervals.resolves(0.05, 5, 2000)
    assert not intervals.resolves(0.05, 4, 2000)
    assert not intervals.resolves(0.05, 1, 2000)


def test_one_class_or_few_blocks_leave_no_interval() -> None:
    found = evaluate(np.ones(50, dtype=int), np.full(50, 0.7), np.linspace(0, 9 * DAY_S, 50))
    assert np.isnan(found["roc_auc"].value)
    assert found["roc_auc"].to_dict()["value"] is None
    few = evaluate(*scored(100, days=2))
    assert np.isnan(few["brier"].low)
    assert few["brier"].to_dict()["low"] is None


def test_certain_scores_have_a_finite_loss() -> None:
    assert np.isfinite(metrics.log_losses([1, 0], [0.0, 1.0])).all()


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [0.1], "equally long"),
        ([], [], "not empty"),
        ([0, 2], [0.1, 0.2], "labels must be 0 or 1; row 1 has 2"),
        ([0, 1], [0.1, 1.2], "row 1 has 1.2"),
        ([0, 1], [float("nan"), 0.2], "row 0 has nan"),
        ([0, float("nan")], [0.1, 0.2], "row 1 has nan"),
    ],
)
def test_what_is_no_label_or_probability_is_named(y: list[float], p: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.checked(y, p)


def test_calibration_bins_hold_all_rows() -> None:
    y, p, _ = scored(1003)
    bins = metrics.calibration(y, p)
    assert len(bins) == 10
    assert sum(b.n for b in bins) == 1003
    assert sum(b.rate * b.n for b in bins) == pytest.approx(y.sum())
    assert [b.mean_score for b in bins] == sorted(b.mean_score for b in bins)
    assert len(metrics.calibration([0, 1, 1], [0.1, 0.5, 0.9])) == 3


def test_intervals_of_ten_thousand_rows_are_quick() -> None:
    y, p, times = scored(10_000, days=60)
    began = time.perf_counter()
    metrics.evaluate(y, p, times, block_s=DAY_S, resamples=2000, alpha=0.05, rng=rng())
    assert time.perf_counter() - began < 1.0  # 0.03 s on an idle core; row-wise resampling takes ten
