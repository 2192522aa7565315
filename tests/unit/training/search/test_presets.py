from __future__ import annotations

import importlib.util
from typing import Any, get_args

import numpy as np
import pytest

from mlops_ray import config
from mlops_ray.config import Candidate, Task
from mlops_ray.errors import ConfigError
from mlops_ray.training.search import candidates, presets
from mlops_ray.training.search.candidates import Choice

NAMES = config.training.PRESETS
TASKS: tuple[Task, ...] = get_args(Task)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_accepted_fits_and_scores(name: str, task: Task) -> None:
    if name in ("xgboost", "lightgbm") and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    candidates.check([Candidate(estimator=name)], seed=0, task=task)
    family = presets.preset(name, task)
    assert family.space
    for parameter, space in family.space.items():
        assert isinstance(space, config.Uniform | config.IntRange)
        assert space.low <= family.first[parameter] <= space.high
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(90, 3))
    y = {"binary": np.arange(90) % 2, "multiclass": np.arange(90) % 3, "regression": matrix[:, 0]}[task]
    quick = {name: 3 for name in ("n_estimators", "max_iter") if name in family.params}
    choice = Choice(0, family.path, {**family.params, **family.first, **(quick if name != "linear" else {})})
    fitted = candidates.fit(choice, matrix, y, seed=0, task=task)
    assert candidates.scores(fitted, matrix, task).shape == ((90, 3) if task == "multiclass" else (90,))


def test_the_file_stands_above_the_preset_one_by_one() -> None:
    block: dict[str, Any] = {
        "estimator": "hist_gradient_boosting",
        "params": {"learning_rate": 0.05, "max_iter": 20},
        "space": {"max_leaf_nodes": {"kind": "categorical", "values": [7, 15]}},
    }
    found = presets.resolve(Candidate.model_validate(block), "regression")
    assert found.path == "sklearn.ensemble:HistGradientBoostingRegressor"
    assert found.params == {"max_iter": 20, "early_stopping": False, "learning_rate": 0.05}
    assert "learning_rate" not in found.space
    assert found.space["max_leaf_nodes"] == config.Choice(kind="categorical", values=(7, 15))
    assert "min_samples_leaf" in found.space
    assert set(found.first) == set(found.space) - {"max_leaf_nodes"}


def test_what_a_preset_fixes_can_be_searched() -> None:
    block: dict[str, Any] = {
        "estimator": "random_forest",
        "space": {"n_estimators": {"kind": "int", "low": 5, "high": 9}},
    }
    found = presets.resolve(Candidate.model_validate(block), "binary")
    assert "n_estimators" not in found.params
    assert "n_estimators" in found.space


def test_an_unknown_preset_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="'forest' is no preset; take one of linear, random_forest"):
        presets.preset("forest", "binary")
