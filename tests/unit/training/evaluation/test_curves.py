from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import curves


def scored(n: int, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7)
    p = np.round(random.beta(2, 3, n), decimals)
    return (random.random(n) < p).astype(int), p


def test_calibration_bins_hold_all_rows() -> None:
    y, p = scored(1003, decimals=9)
    bins = curves.calibration(y, p)
    assert [b.n for b in bins] == [101] * 3 + [100] * 7
    assert sum(b.rate * b.n for b in bins) == pytest.approx(y.sum())
    assert [b.mean_score for b in bins] == sorted(b.mean_score for b in bins)
    assert all(b.low < b.rate < b.high for b in bins)
    assert len(curves.calibration([0, 1, 1], [0.1, 0.5, 0.9])) == 3


def test_bins_keep_ties_together() -> None:
    assert curves.equal_bins(np.array([0.5, 0.1, 0.5, 0.5, 0.9]), 5).tolist() == [1, 0, 1, 1, 4]
    assert len(curves.calibration([0, 1] * 50, [0.5] * 100)) == 1


def test_an_interval_of_a_rate() -> None:
    """Wilson's, golden: Newcombe 1998, table I."""
    assert curves.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert curves.wilson(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_curves_are_those_of_scikit_learn() -> None:
    y, p = scored(3000)
    false, true, thresholds = sk.roc_curve(y, p, drop_intermediate=False)
    found = curves.roc(y, p)
    assert found.x == pytest.approx(false)
    assert found.y == pytest.approx(true)
    assert found.threshold[1:] == pytest.approx(thresholds[1:])
    precision, recall, _ = sk.precision_recall_curve(y, p)
    kept = np.flatnonzero(recall[:-1] > 0)[::-1]
    found = curves.precision_recall(y, p)
    assert found.y[-len(kept) :] == pytest.approx(precision[:-1][kept])
    assert found.x[-len(kept) :] == pytest.approx(recall[:-1][kept])


def test_thinned_curves_keep_their_area() -> None:
    y, p = scored(20_000, decimals=12)
    for found, area in (
        (curves.roc(y, p), sk.roc_auc_score(y, p)),
        (curves.precision_recall(y, p), sk.average_precision_score(y, p)),
    ):
        assert 100 < len(found.x) <= curves.MAX_POINTS + 2
        assert (found.x[0], found.x[-1]) == pytest.approx((0, 1), abs=1e-3)
        assert np.trapezoid(found.y, found.x) == pytest.approx(area, abs=0.004)


def test_lift_of_a_known_order() -> None:
    """Two positives first of ten rows, then a tie of one positive and one negative."""
    y = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    found = curves.lift(y, [0.9, 0.8, 0.7, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert found.share[:3] == pytest.approx((0.1, 0.2, 0.4))
    assert found.gain[:3] == pytest.approx((1 / 3, 2 / 3, 1))
    assert found.lift[:3] == pytest.approx((10 / 3, 10 / 3, 2.5))
    assert found.lift[-1] == 1


def test_confusion_counts_rows() -> None:
    found = curves.confusion("binary", [0, 0, 1, 1], [0.1, 0.6, 0.6, 0.3], (0, 1), threshold=0.6)
    assert found.counts == ((1, 1), (1, 1))
    assert found.labels == ("0", "1")


def test_confusion_of_many_classes_counts_the_rare_ones_together() -> None:
    random = np.random.default_rng(7)
    y = np.concatenate([np.repeat(np.arange(30), np.arange(30, 0, -1)), np.arange(30)])
    scores = random.dirichlet(np.full(30, 0.1), len(y))
    found = curves.confusion("multiclass", y, scores, tuple(f"c{i}" for i in range(30)))
    assert found.labels == (*(f"c{i}" for i in range(19)), "other")
    assert np.sum(found.counts) == len(y)
    assert found.counts[3][4] == ((y == 3) & (scores.argmax(axis=1) == 4)).sum()
    assert sum(found.counts[-1]) == (y >= 19).sum()


def test_residuals_of_a_regression() -> None:
    random = np.random.default_rng(7)
    y = random.normal(10, 3, 5000)
    error = random.normal(0.5, 2, 5000)
    found = curves.residuals(y, y - error)
    assert (found.mean, found.sd) == pytest.approx((error.mean(), error.std()))
    assert sum(found.counts) == 5000
    assert len(found.edges) == len(found.counts) + 1
    assert found.quantile == pytest.approx(found.normal, abs=0.25)  # normal residuals lie on the line
    assert len(found.predicted) <= 2 * curves.MAX_POINTS
    assert list(found.predicted) == sorted(found.predicted)
    flat = curves.residuals([1.0, 2.0], [1.0, 2.0])
    assert (flat.sd, sum(flat.counts)) == (0, 2)


def test_each_task_has_its_curves() -> None:
    y, p = scored(500)
    binary = curves.curves("binary", y, p, (0, 1))
    assert binary.roc.keys() == binary.precision_recall.keys() == {"1"}
    assert binary.rates["1"] == y.mean()
    assert binary.lift is not None
    assert binary.residuals is None
    several = np.column_stack([1 - p, p / 2, p / 2])
    multiclass = curves.curves("multiclass", y, several, ("a", "b", "c"))
    assert multiclass.roc.keys() == {"a", "b"}  # no row is of class c
    assert multiclass.confusion is not None
    assert multiclass.lift is None
    regression = curves.curves("regression", y.astype(float), p, ())
    assert regression.residuals is not None
    assert not regression.calibration
    for found in (binary, multiclass, regression):
        json.dumps(found.to_dict(), allow_nan=False)


def test_one_class_has_no_ranking_curves() -> None:
    found = curves.curves("binary", np.ones(20, dtype=int), np.full(20, 0.4), (0, 1))
    assert not found.roc
    assert found.lift is None
    assert found.confusion is not None
    assert found.confusion.counts == ((0, 0), (20, 0))


def test_a_bad_score_is_named() -> None:
    with pytest.raises(DataError, match=r"row 1 has 1\.5"):
        curves.curves("binary", [0, 1], [0.5, 1.5], (0, 1))
