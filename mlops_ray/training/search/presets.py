"""Families of estimators by a short name: class, fixed parameters and search space for each task.

Spaces are what the literature and the libraries' own guides found to matter on tabular data, wide enough for a thousand
rows and for ten million, and no wider: under a budget of a dozen trials each further parameter costs more than it
brings. `first` is the point that is tried first: the libraries' own defaults, so that no search ends below them.

linear: the strength of the L2 penalty, the one parameter that moves a linear model (Hastie, Tibshirani and Friedman
    2009, chapter 3.4), over five decades and more, since the best one moves with the number of rows.
random_forest, extra_trees: features per split and rows per leaf, which Probst, Wright and Boulesteix (2019) found to be
    the tunable ones. More trees never hurt, so their number is fixed.
hist_gradient_boosting, xgboost, lightgbm: learning rate, size of the trees, rows per leaf, L2 penalty and sampling, as
    Probst, Boulesteix and Bischl (2019) and the libraries' tuning guides rank them. The number of trees is not searched
    but read off the validation curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlops_ray import config
from mlops_ray.config import Task
from mlops_ray.errors import ConfigError

TREES = 100
"""Of a forest: what is above the limit falls with 1 / trees, and so grow fit, answer and graph; scikit-learn's own."""
ROUNDS = 300
"""Of boosting: the most that a trial grows; its validation curve says how many are used. Below a learning rate of 0.02
more would help, at as many times the cost."""


@dataclass(frozen=True)
class Family:
    """A preset for one kind of task. `first` has a value for each of `space`."""

    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, config.Space] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Searched:
    """A candidate of the project file with its preset filled in: what the search works with.

    `first` are values of searched parameters that the candidate's first trial takes; the sampler fills the others.
    """

    path: str
    params: Mapping[str, Any]
    space: Mapping[str, config.Space]
    first: Mapping[str, Any] = field(default_factory=dict)


def resolve(candidate: config.Candidate, task: Task) -> Searched:
    """The candidate with its preset's class, parameters and space where it names one.

    The file's own parameters and spaces stand above the preset's, one by one; a parameter that is fixed is not
    searched. `when` conditions on parameters that end up neither fixed nor searched are an error.
    Raises: ConfigError.
    """
    if candidate.estimator not in config.training.PRESETS:
        found = Searched(candidate.estimator, dict(candidate.params), dict(candidate.space))
    else:
        family = preset(candidate.estimator, task)
        params = {**family.params, **candidate.params}
        for name in candidate.space:
            if name not in candidate.params:
                params.pop(name, None)
        space = {n: s for n, s in {**family.space, **candidate.space}.items() if n not in params}
        first = {n: v for n, v in family.first.items() if n in space and n not in candidate.space}
        found = Searched(family.path, params, space, first)
    space = {name: s for name, s in found.space.items() if name not in candidate.params}
    for name, one in space.items():
        for other in one.when:
            if other not in found.params and other not in space:
                raise ConfigError(
                    "search.candidates",
                    (
                        f"{candidate.estimator} space.{name}.when asks for {other!r}, "
                        "which is neither in params nor in space; add it",
                    ),
                )
    return Searched(found.path, found.params, space, found.first)


def preset(name: str, task: Task) -> Family:
    """The family `name` for `task`. Raises: ConfigError for a name that is none."""
    number = task == "regression"
    families = {
        "linear": _linear,
        "random_forest": lambda number: _forest("RandomForest", number),
        "extra_trees": lambda number: _forest("ExtraTrees", number),
        "hist_gradient_boosting": _hist_gradient_boosting,
        "xgboost": _xgboost,
        "lightgbm": _lightgbm,
    }
    if name not in families:
        raise ConfigError("search.candidates", (f"{name!r} is no preset; take one of {', '.join(families)}",))
    return families[name](number)


def _linear(number: bool) -> Family:
    if number:
        # The penalty grows against a sum of squares, so useful values grow with the rows: up to ten thousand.
        return Family("sklearn.linear_model:Ridge", {}, {"alpha": _log(1e-3, 1e4)}, {"alpha": 1.0})
    # 300 steps of L-BFGS: on standardised columns it needs fewer; the default 100 warns on weak penalties.
    return Family("sklearn.linear_model:LogisticRegression", {"max_iter": 300}, {"C": _log(1e-3, 1e2)}, {"C": 1.0})


def _forest(kind: str, number: bool) -> Family:
    space: dict[str, config.Space] = {
        "max_features": _even(0.1, 1.0),
        # Leaves of one row give probabilities of 0 and 1, which the log-loss punishes, and graphs of hundreds of MB.
        "min_samples_leaf": _int(2, 200),
    }
    # A third of the features: the classic choice of Breiman for regression, near sqrt for a dozen features.
    path = f"sklearn.ensemble:{kind}{_suffix(number)}"
    return Family(path, {"n_estimators": TREES}, space, {"max_features": 1 / 3, "min_samples_leaf": 5})


def _hist_gradient_boosting(number: bool) -> Family:
    space: dict[str, config.Space] = {
        "learning_rate": _log(0.02, 0.3),
        "max_leaf_nodes": _int(4, 128),
        "min_samples_leaf": _int(5, 500),
        "l2_regularization": _log(1e-3, 1e2),
        "max_features": _even(0.3, 1.0),
    }
    first = {"learning_rate": 0.1, "max_leaf_nodes": 31, "min_samples_leaf": 20, "l2_regularization": 1e-3}
    # Its own early stopping holds out rows at random, and neighbours in time are not independent.
    fixed = {"max_iter": ROUNDS, "early_stopping": False}
    return Family(
        f"sklearn.ensemble:HistGradientBoosting{_suffix(number)}", fixed, space, first | {"max_features": 1.0}
    )


def _xgboost(number: bool) -> Family:
    space: dict[str, config.Space] = {
        "learning_rate": _log(0.02, 0.3),
        "max_depth": _int(2, 10),
        # A sum of second derivatives, at most a quarter per row for log-loss: leaves of 4 to 400 rows and more.
        "min_child_weight": _log(1.0, 100.0),
        "subsample": _even(0.5, 1.0),
        "colsample_bytree": _even(0.5, 1.0),
        "reg_lambda": _log(1e-3, 1e2),
    }
    first = {"learning_rate": 0.1, "max_depth": 6, "min_child_weight": 1.0, "subsample": 1.0, "colsample_bytree": 1.0}
    fixed = {"n_estimators": ROUNDS, "tree_method": "hist"}
    return Family(f"xgboost:XGB{_suffix(number)}", fixed, space, first | {"reg_lambda": 1.0})


def _lightgbm(number: bool) -> Family:
    space: dict[str, config.Space] = {
        "learning_rate": _log(0.02, 0.3),
        "num_leaves": _int(4, 128),
        "min_child_samples": _int(5, 500),
        "subsample": _even(0.5, 1.0),
        "colsample_bytree": _even(0.5, 1.0),
        "reg_lambda": _log(1e-3, 1e2),
    }
    first = {"learning_rate": 0.1, "num_leaves": 31, "min_child_samples": 20, "subsample": 1.0, "colsample_bytree": 1.0}
    fixed = {
        "n_estimators": ROUNDS,
        "subsample_freq": 1,  # without it `subsample` does nothing
        # LightGBM times both histogram layouts and takes the faster: sums then differ from run to run.
        "deterministic": True,
        "force_col_wise": True,
        "verbosity": -1,
    }
    return Family(f"lightgbm:LGBM{_suffix(number)}", fixed, space, first | {"reg_lambda": 1e-3})


def _suffix(number: bool) -> str:
    return "Regressor" if number else "Classifier"


def _log(low: float, high: float) -> config.Space:
    return config.Uniform(kind="log_uniform", low=low, high=high)


def _even(low: float, high: float) -> config.Space:
    return config.Uniform(kind="uniform", low=low, high=high)


def _int(low: int, high: int) -> config.Space:
    return config.IntRange(kind="int", low=low, high=high, log=True)
