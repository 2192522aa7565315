from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlops_ray import config
from mlops_ray.config import Candidate, Search
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.training.search import candidates
from mlops_ray.training.search.candidates import Choice

LOGISTIC = Candidate.model_validate(
    {
        "estimator": "sklearn.linear_model:LogisticRegression",
        "params": {"max_iter": 50},
        "space": {"C": {"kind": "log_uniform", "low": 0.01, "high": 10}},
    }
)
BOOSTING = Candidate(estimator="hist_gradient_boosting")
NEIGHBOURS = Candidate(estimator="sklearn.neighbors:KNeighborsClassifier")


def test_build_sets_parameters_seed_and_no_early_stopping_by_rows() -> None:
    estimator: Any = candidates.build(Choice(0, LOGISTIC.estimator, {"C": 0.5}), seed=9)
    assert (estimator.C, estimator.random_state) == (0.5, 9)
    pinned: Any = candidates.build(Choice(0, LOGISTIC.estimator, {"random_state": 1}), seed=9)
    assert pinned.random_state == 1
    assert not hasattr(candidates.build(Choice(0, "sklearn.naive_bayes:GaussianNB", {}), seed=9), "random_state")
    boosting = Choice(0, "sklearn.ensemble.HistGradientBoostingClassifier", {})
    assert candidates.build(boosting, seed=0).early_stopping is False
    assert boosting.label == "HistGradientBoostingClassifier"
    asked = Choice(0, boosting.estimator, {"early_stopping": True})
    assert candidates.build(asked, seed=0).early_stopping is True


@pytest.mark.parametrize("path", ["xgboost:XGBClassifier", "lightgbm:LGBMClassifier"])
def test_what_takes_every_core_by_default_gets_one_thread(path: str) -> None:
    pytest.importorskip(path.partition(":")[0])
    assert candidates.build(Choice(0, path, {}), seed=0).n_jobs == 1
    assert candidates.build(Choice(0, path, {"n_jobs": 3}), seed=0).n_jobs == 3


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("sklearn.linear_model:LogisticRegresion", {}, "cannot be imported"),
        ("sklearn.nothing.here:X", {}, "cannot be imported"),
        ("sklearn.linear_model:LinearRegression", {}, "no scikit-learn classifier with predict_proba"),
        ("sklearn.svm:LinearSVC", {}, "no scikit-learn classifier with predict_proba"),
        ("sklearn.linear_model:SGDClassifier", {"loss": "hinge"}, "has no predict_proba with these params"),
        ("sklearn.metrics:log_loss", {}, "no scikit-learn classifier"),
        ("sklearn.linear_model:LogisticRegression", {"c": 1}, "takes no parameter 'c'; it takes"),
        ("sklearn.linear_model:LogisticRegression", {"C": -1.0}, "must be"),
    ],
)
def test_refusals_name_the_estimator_and_the_way_out(path: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        candidates.build(Choice(0, path, params), seed=0)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"), [("xgboost:XGBClassifier", "max_dept"), ("lightgbm:LGBMClassifier", "num_leave")]
)
def test_a_misspelt_parameter_is_refused_where_the_class_takes_any(path: str, name: str) -> None:
    pytest.importorskip(path.partition(":")[0])
    with pytest.raises(ConfigError, match="did you mean"):
        candidates.build(Choice(0, path, {name: 3}), seed=0)


def test_a_regressor_needs_no_probabilities_and_a_classifier_is_none() -> None:
    candidates.build(Choice(0, "sklearn.linear_model:Ridge", {}), seed=0, task="regression")
    with pytest.raises(ConfigError, match="no scikit-learn regressor"):
        candidates.build(Choice(0, LOGISTIC.estimator, {}), seed=0, task="regression")


def spaced(name: str, space: dict[str, Any], **more: Any) -> Candidate:
    return Candidate.model_validate({"estimator": LOGISTIC.estimator, "space": {name: space}, **more})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spaced("c", {"kind": "uniform", "low": 0.1, "high": 1}), "takes no parameter 'c'"),
        (spaced("C", {"kind": "uniform", "low": -1, "high": 1}), r"space\.C: .*must be"),
        (spaced("solver", {"kind": "categorical", "values": ["lbfgs", "newton"]}), r"space\.solver: .*'newton'"),
        (spaced("tol", {"kind": "uniform", "low": 0, "high": 1, "when": {"x": ["a"]}}), "'x', which is neither"),
    ],
)
def test_all_that_is_wrong_with_candidates_is_said_before_the_search(wrong: Candidate, message: str) -> None:
    candidates.check([LOGISTIC, BOOSTING], seed=0)
    with pytest.raises(ConfigError, match=message):
        candidates.check([BOOSTING, wrong], seed=0)
    with pytest.raises(ConfigError) as caught:
        candidates.check([wrong, Candidate(estimator="sklearn.nothing:Here")], seed=0)
    assert len(caught.value.problems) == 2


def test_weights_that_an_estimator_cannot_use_are_refused_before_the_search() -> None:
    for block in ({"sample_weight": "w"}, {"class_weight": "balanced"}):
        plan = Search.model_validate({"candidates": [NEIGHBOURS], **block})
        with pytest.raises(ConfigError, match="KNeighborsClassifier takes n"):
            candidates.check(plan.candidates, seed=0, plan=plan)
    plan = Search.model_validate({"candidates": [LOGISTIC, BOOSTING], "sample_weight": "w"})
    candidates.check(plan.candidates, seed=0, plan=plan)


def test_weights_of_classes_act_the_same_with_and_without_a_parameter_of_the_estimator() -> None:
    matrix, labels = signal()
    y = labels[:400]
    weights = np.linspace(0.5, 2, 400)
    own = candidates.fit(
        Choice(0, LOGISTIC.estimator, {}), matrix, labels, seed=0, weights=weights, class_weight={1: 3.0}
    )
    assert own.class_weight == {1: 3.0}
    by_hand = LogisticRegression(random_state=0).fit(matrix, y, sample_weight=weights * np.where(y == 1, 3.0, 1.0))
    np.testing.assert_allclose(own.coef_, by_hand.coef_, rtol=1e-4)
    bayes = Choice(0, "sklearn.naive_bayes:GaussianNB", {})
    fitted = candidates.fit(bayes, matrix, labels, seed=0, class_weight="balanced")
    np.testing.assert_allclose(fitted.class_prior_, [0.5, 0.5])


def test_weights_by_label_become_weights_by_place() -> None:
    assert candidates.class_weights({"b": 2.0}, ("a", "b")) == {1: 2.0}
    assert candidates.class_weights("balanced", ("a", "b")) == "balanced"
    assert candidates.class_weights(None, ()) is None
    with pytest.raises(ConfigError, match=r"'c' is no class; the classes are a, b"):
        candidates.class_weights({"c": 2.0}, ("a", "b"))
    with pytest.raises(ConfigError, match="the task is regression"):
        candidates.class_weights({"b": 2.0}, ())
    with pytest.raises(ConfigError, match="the task is regression"):
        candidates.class_weights("balanced", ())


def test_cross_scores_come_from_fits_that_did_not_see_the_row() -> None:
    matrix, labels = signal()
    choice = Choice(0, "sklearn.tree:DecisionTreeClassifier", {})
    own = candidates.fit(choice, matrix, labels, seed=0).predict_proba(matrix)[:, 1]
    crossed = candidates.crossed(choice, matrix, labels, n_folds=3, seed=0).scores
    assert (own == labels[:400]).all()  # a full tree knows its rows by heart
    assert (crossed == labels[:400]).mean() < 0.95
    first = candidates.fit(choice, matrix[134:], labels[134:], seed=0)
    np.testing.assert_array_equal(crossed[:134], first.predict_proba(matrix[:134])[:, 1])
    with pytest.raises(DataError, match="2 rows cannot be cut into 3 folds"):
        candidates.crossed(choice, matrix[:2], labels, n_folds=3, seed=0)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_scores_have_the_shape_of_their_task(task: config.Task) -> None:
    matrix, _ = signal()
    y = np.arange(400) % 3 if task == "multiclass" else matrix[:, 0] * 2
    path = "sklearn.tree:DecisionTree" + ("Classifier" if task == "multiclass" else "Regressor")
    crossed = candidates.crossed(Choice(0, path, {}), matrix, y, n_folds=2, seed=0, task=task)
    assert crossed.scores.shape == ((400, 3) if task == "multiclass" else (400,))
    assert crossed.fold.tolist() == [0] * 200 + [1] * 200
    assert (crossed.raw is None) == (task == "regression")


def test_a_class_that_a_fit_never_saw_scores_zero() -> None:
    matrix, _ = signal()
    y = np.where(np.arange(400) < 200, np.arange(400) % 2, 2 * (np.arange(400) % 2))  # 1 only in the first half
    half = candidates.fit(Choice(0, "sklearn.naive_bayes:GaussianNB", {}), matrix[200:], y[200:], seed=0)
    found = candidates.scores(half, matrix[:5], "multiclass", n_classes=4)
    assert found.shape == (5, 4)
    np.testing.assert_array_equal(found[:, [1, 3]], 0)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def signal() -> tuple[np.ndarray, np.ndarray]:
    """400 rows, and labels of further ones, as the object store holds them: read-only."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 2))
    labels = (rng.random(450) < 0.3).astype(np.int64)
    labels[:400] = matrix[:, 0] + rng.normal(size=400) > 0.7
    for array in (matrix, labels):
        array.setflags(write=False)
    return matrix, labels
