from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from mlops_ray.config import Candidate
from mlops_ray.errors import ConfigError
from mlops_ray.training.search import candidates
from mlops_ray.training.search.candidates import Choice

LOGISTIC = Candidate.model_validate(
    {
        "estimator": "sklearn.linear_model:LogisticRegression",
        "params": {"max_iter": 50},
        "space": {"C": {"kind": "log_uniform", "low": 0.01, "high": 10}},
    }
)
BOOSTING = Candidate.model_validate(
    {
        "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
        "space": {
            "max_iter": {"kind": "int", "low": 5, "high": 20},
            "max_depth": {"kind": "categorical", "values": [None, 3]},
            "l2_regularization": {"kind": "uniform", "low": 0, "high": 1},
        },
    }
)


def test_each_candidate_samples_its_own_space_only() -> None:
    first = candidates.sample(optuna.trial.FixedTrial({"candidate": 0, "0.C": 0.5}), [LOGISTIC, BOOSTING])
    assert first == Choice(0, LOGISTIC.estimator, {"max_iter": 50, "C": 0.5})
    values = {"candidate": 1, "1.max_iter": 7, "1.max_depth": None, "1.l2_regularization": 0.25}
    second = candidates.sample(optuna.trial.FixedTrial(values), [LOGISTIC, BOOSTING])
    assert second.params == {"max_iter": 7, "max_depth": None, "l2_regularization": 0.25}
    assert second.label == "HistGradientBoostingClassifier"


def test_seeded_studies_sample_the_same_points_and_every_candidate() -> None:
    def points() -> list[Choice]:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
        for point in candidates.first_points([LOGISTIC, BOOSTING], trials=6):
            study.enqueue_trial(point)
        found = []
        for i in range(6):
            trial = study.ask()
            found.append(candidates.sample(trial, [LOGISTIC, BOOSTING]))
            study.tell(trial, float(i))
        return found

    assert points() == points()
    assert [p.candidate for p in points()][:2] == [0, 1]


def test_build_sets_parameters_and_seed() -> None:
    estimator: Any = candidates.build(Choice(0, LOGISTIC.estimator, {"C": 0.5}), seed=9)
    assert (estimator.C, estimator.random_state) == (0.5, 9)
    pinned: Any = candidates.build(Choice(0, LOGISTIC.estimator, {"random_state": 1}), seed=9)
    assert pinned.random_state == 1
    assert not hasattr(candidates.build(Choice(0, "sklearn.naive_bayes:GaussianNB", {}), seed=9), "random_state")


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("sklearn.linear_model:LogisticRegresion", {}, "cannot be imported"),
        ("sklearn.nothing.here:X", {}, "cannot be imported"),
        ("sklearn.linear_model:LinearRegression", {}, "no scikit-learn classifier with predict_proba"),
        ("sklearn.svm:LinearSVC", {}, "no scikit-learn classifier with predict_proba"),
        ("sklearn.metrics:log_loss", {}, "no scikit-learn classifier"),
        ("sklearn.linear_model:LogisticRegression", {"c": 1}, "takes no parameter 'c'; it takes"),
        ("sklearn.linear_model:LogisticRegression", {"C": -1.0}, "must be"),
    ],
)
def test_refusals_name_the_estimator_and_the_way_out(path: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        candidates.build(Choice(0, path, params), seed=0)
    assert path in str(caught.value)


def test_a_space_over_an_unknown_parameter_is_found_before_the_search() -> None:
    candidates.check([LOGISTIC, BOOSTING], seed=0)
    typo = LOGISTIC.model_copy(update={"space": {"c": LOGISTIC.space["C"]}})
    with pytest.raises(ConfigError, match="takes no parameter 'c'"):
        candidates.check([BOOSTING, typo], seed=0)


def test_a_trial_scores_the_rows_that_it_did_not_fit() -> None:
    matrix, labels = signal()
    point = {"candidate": 0, "estimator": LOGISTIC.estimator, "params": {"C": 1.0}}
    found = candidates.trial(point, matrix=matrix, labels=labels, n_train=300, seed=0)
    fitted = LogisticRegression(C=1.0).fit(matrix[:300], labels[:300])
    expected = metrics.log_loss(labels[300:400], fitted.predict_proba(matrix[300:])[:, 1])
    assert found["log_loss"] == pytest.approx(expected)
    assert found["fit_s"] > 0


def test_cross_scores_come_from_fits_that_did_not_see_the_row() -> None:
    matrix, labels = signal()
    choice = Choice(0, "sklearn.tree:DecisionTreeClassifier", {})
    own = candidates.fit(choice, matrix, labels, seed=0).predict_proba(matrix)[:, 1]
    crossed = candidates.cross_scores(choice, matrix, labels, n_folds=3, seed=0)
    assert (own == labels[:400]).all()  # a full tree knows its rows by heart
    assert (crossed == labels[:400]).mean() < 0.95
    first = candidates.fit(choice, matrix[134:], labels[134:], seed=0)
    np.testing.assert_array_equal(crossed[:134], first.predict_proba(matrix[:134])[:, 1])


def signal() -> tuple[np.ndarray, np.ndarray]:
    """400 rows, and labels of further ones, as the object store holds them: read-only."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, 2))
    labels = (rng.random(450) < 0.5).astype(np.int64)
    labels[:400] = matrix[:, 0] + rng.normal(size=400) > 0
    for array in (matrix, labels):
        array.setflags(write=False)
    return matrix, labels
