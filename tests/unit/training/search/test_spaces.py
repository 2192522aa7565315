from __future__ import annotations

from typing import Any

import optuna
import pytest

from mlops_ray.config import Candidate
from mlops_ray.errors import ConfigError
from mlops_ray.training.search import candidates, spaces
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.presets import Searched

PATH = "sklearn.linear_model:LogisticRegression"


def searched(space: dict[str, Any], **params: Any) -> Searched:
    block = {"estimator": PATH, "params": params, "space": space}
    return candidates.resolved([Candidate.model_validate(block)], "binary")[0]


LINEAR = searched({"C": {"kind": "log_uniform", "low": 0.01, "high": 10}}, max_iter=50)
TREE = searched(
    {
        "max_iter": {"kind": "int", "low": 5, "high": 20},
        "max_depth": {"kind": "categorical", "values": [None, 3]},
        "ratio": {"kind": "uniform", "low": 0, "high": 1},
    }
)


def test_each_candidate_samples_its_own_space_only() -> None:
    first = spaces.sample(optuna.trial.FixedTrial({"candidate": 0, "0.C": 0.5}), [LINEAR, TREE])
    assert first == Choice(0, PATH, {"max_iter": 50, "C": 0.5})
    values = {"candidate": 1, "1.max_iter": 7, "1.max_depth": None, "1.ratio": 0.25}
    second = spaces.sample(optuna.trial.FixedTrial(values), [LINEAR, TREE])
    assert second.params == {"max_iter": 7, "max_depth": None, "ratio": 0.25}
    assert spaces.point(second, TREE) == values


def test_a_parameter_is_searched_only_where_its_condition_holds() -> None:
    """A chain: `ratio` needs the searched solver, and the solver needs a fixed parameter."""
    ratio = {"kind": "uniform", "low": 0, "high": 1, "when": {"solver": ["saga"]}}
    solver = {"kind": "categorical", "values": ["lbfgs", "saga"], "when": {"fit_intercept": [True]}}
    found = searched({"l1_ratio": ratio, "solver": solver}, fit_intercept=True)
    assert spaces.order(found) == ["solver", "l1_ratio"]
    with_ratio = optuna.trial.FixedTrial({"candidate": 0, "0.solver": "saga", "0.l1_ratio": 0.5})
    assert spaces.sample(with_ratio, [found]).params == {"fit_intercept": True, "solver": "saga", "l1_ratio": 0.5}
    without = optuna.trial.FixedTrial({"candidate": 0, "0.solver": "lbfgs"})
    assert spaces.sample(without, [found]).params == {"fit_intercept": True, "solver": "lbfgs"}
    none = searched({"l1_ratio": ratio, "solver": solver}, fit_intercept=False)
    assert spaces.sample(optuna.trial.FixedTrial({"candidate": 0}), [none]).params == {"fit_intercept": False}


def test_conditions_in_a_circle_are_refused() -> None:
    each = {name: {"kind": "categorical", "values": [1], "when": {other: [1]}} for name, other in ("ab", "ba")}
    with pytest.raises(ConfigError, match="in a circle"):
        spaces.order(searched(each))


def test_one_is_not_true() -> None:
    assert spaces.among(1, [1.0])
    assert spaces.among(None, [None])
    assert not spaces.among(1, [True])
    assert not spaces.among(False, [0])


def test_the_first_trials_take_each_candidate_once_with_the_presets_own_values() -> None:
    first = Searched(PATH, {}, LINEAR.space, {"C": 1.0})
    assert spaces.first(0, [first, TREE]) == {"candidate": 0, "0.C": 1.0}
    assert spaces.first(1, [first, TREE]) == {"candidate": 1}
    assert spaces.first(2, [first, TREE]) is None


def test_a_search_begins_with_points_of_another_that_its_spaces_hold() -> None:
    known = Choice(0, PATH, {"max_iter": 50, "C": 0.5})
    strange = [
        Choice(0, PATH, {"max_iter": 50, "C": 20.0}),  # beyond the space
        Choice(0, PATH, {"max_iter": 90, "C": 0.5}),  # another constant
        Choice(0, PATH, {"max_iter": 50}),  # not searched then
        Choice(0, PATH, {"max_iter": 50, "C": 0.5, "tol": 0.1}),  # not known now
        Choice(0, "sklearn.tree:DecisionTreeClassifier", {}),
        Choice(2, PATH, {}),
    ]
    firsts = [spaces.first(number, [LINEAR, TREE]) for number in range(2)]
    assert spaces.starts([LINEAR, TREE], [*strange, known]) == [{"candidate": 0, "0.C": 0.5}, *firsts]
    assert spaces.starts([LINEAR, TREE]) == firsts
