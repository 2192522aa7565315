from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from mlops_ray.config import Threshold
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.search import candidates, decision
from mlops_ray.training.search.candidates import Choice, Crossed
from mlops_ray.training.target import losses

LINEAR = Choice(0, "sklearn.linear_model:LogisticRegression", {})
BAYES = Choice(0, "sklearn.naive_bayes:GaussianNB", {})  # no decision function, and far too sure of itself
BOOSTING = Choice(0, "sklearn.ensemble:HistGradientBoostingClassifier", {"max_iter": 10})


def rows(n_classes: int, n: int = 900) -> tuple[Floats, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1))
    matrix = np.hstack([x + 0.3 * rng.normal(size=(n, 1)) for _ in range(6)])  # six times nearly the same
    noisy = x[:, 0] + rng.normal(size=n)
    return matrix, (noisy > 0).astype(np.int64) if n_classes == 2 else np.digitize(noisy, [-0.7, 0.7])


def crossed(choice: Choice, n_classes: int) -> tuple[Floats, Any, Crossed, Any]:
    matrix, y = rows(n_classes)
    task: Any = "binary" if n_classes == 2 else "multiclass"
    found = candidates.crossed(choice, matrix, y, n_folds=3, seed=0, task=task)
    return matrix, y, found, candidates.fit(choice, matrix, y, seed=0, task=task)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("choice", [LINEAR, BAYES, BOOSTING], ids=lambda choice: choice.label)
def test_a_calibrated_version_is_scikit_learns_own_and_maps_new_answers(
    choice: Choice, method: Any, n_classes: int
) -> None:
    _, y, found, estimator = crossed(choice, n_classes)
    assert found.raw is not None
    fitted = decision.calibrated(estimator, method, found.raw, y)
    assert isinstance(fitted, CalibratedClassifierCV)
    assert isinstance(fitted.estimator, FrozenEstimator)
    (inner,) = fitted.calibrated_classifiers_
    assert inner.estimator.estimator is estimator
    assert "decision" not in "".join(type(v).__module__ for v in vars(fitted).values() if not isinstance(v, np.ndarray))
    assert (fitted.n_features_in_, fitted.classes_.tolist()) == (6, list(range(n_classes)))
    new = np.random.default_rng(1).normal(size=(50, 6))
    said = fitted.predict_proba(new)
    assert said.shape == (50, n_classes)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    raw = candidates.raw(estimator, new).reshape(50, -1)
    column = raw[:, -1]
    calibrator = inner.calibrators[-1]
    if n_classes == 2:
        np.testing.assert_allclose(said[:, 1], calibrator.predict(column))


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration_mends_answers_that_are_too_sure(method: Any) -> None:
    _, y, found, _ = crossed(BAYES, 2)
    after = decision.cross_calibrated(method, np.array([0, 1]), found, y)
    assert losses("binary", y, after).mean() < losses("binary", y, found.scores).mean() - 0.05
    _, many, three, _ = crossed(BAYES, 3)
    said = decision.cross_calibrated(method, np.arange(3), three, many)
    assert said.shape == (900, 3)
    assert losses("multiclass", many, said).mean() < losses("multiclass", many, three.scores).mean()


def test_calibration_needs_rows_of_each_class() -> None:
    _, y, found, estimator = crossed(LINEAR, 2)
    assert found.raw is not None
    with pytest.raises(DataError, match="class 1 has 0 rows"):
        decision.calibrated(estimator, "sigmoid", found.raw, np.zeros_like(y))
    with pytest.raises(DataError, match="no classes"):
        decision.cross_calibrated("sigmoid", [0, 1], Crossed(found.scores, None, found.fold), y)


PLANS = [
    Threshold(metric="f1"),
    Threshold(metric="balanced_accuracy"),
    Threshold(metric="accuracy"),
    Threshold.model_validate({"cost": {"false_positive": 1, "false_negative": 5, "true_positive": 0.5}}),
]


def worth(plan: Threshold, y: Floats, p: Floats, w: Floats, threshold: float) -> float:
    """By its definition, for one threshold."""
    said = p >= threshold
    tp, fp = w[said & (y == 1)].sum(), w[said & (y == 0)].sum()
    fn, tn = w[~said & (y == 1)].sum(), w[~said & (y == 0)].sum()
    if plan.cost is not None:
        return float(-(plan.cost.false_positive * fp + plan.cost.false_negative * fn + plan.cost.true_positive * tp))
    if plan.metric == "f1":
        return float(2 * tp / (2 * tp + fp + fn)) if tp else 0.0
    if plan.metric == "accuracy":
        return float((tp + tn) / w.sum())
    return float((tp / (tp + fn) + tn / (tn + fp)) / 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 3)), min_size=2, max_size=30))
def test_no_threshold_decides_better_than_the_best(cells: list[tuple[bool, int, int]]) -> None:
    y = np.array([int(a) for a, _, _ in cells])
    p = np.array([b / 12 for _, b, _ in cells])
    w = np.array([float(c) for _, _, c in cells])
    if len(set(y)) < 2:
        with pytest.raises(DataError, match="both classes"):
            decision.best_threshold(PLANS[0], y, p)
        return
    for plan in PLANS:
        found = decision.best_threshold(plan, y, p, w)
        assert 0 < found < 1
        best = max(worth(plan, y, p, w, t) for t in np.linspace(0.001, 0.999, 499))
        assert worth(plan, y, p, w, found) == pytest.approx(best)


def test_a_threshold_lies_between_scores_and_of_equals_nearest_to_a_half() -> None:
    y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.4, 0.9])
    assert decision.best_threshold(PLANS[2], y, p) == pytest.approx(0.3)  # nothing else separates them
    assert decision.best_threshold(PLANS[2], np.array([0, 1]), np.array([0.0, 1.0])) == 0.5
    flat = Threshold.model_validate({"cost": {"false_positive": 0, "false_negative": 0}})
    assert decision.best_threshold(flat, y, p) == pytest.approx(0.65)  # all alike; 0.65 is nearer to 0.5 than 0.3
