"""Estimators by import path, and one search space over all of them.

Several estimators compete in one search: the first choice of a trial is which candidate, the others are that
candidate's own, so that a sampler learns each space apart (a conditional space in Optuna's sense). What workers run
stands here too, and not where Ray and MLflow are imported: a worker that starts imports this file and no more.
"""

from __future__ import annotations

import importlib
import inspect
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray import config
from mlops_ray.errors import ConfigError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.evaluation.metrics import log_losses

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin


class Suggester(Protocol):
    """The part of `optuna.Trial` that we ask."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """An integer in [low, high]."""
        ...


@dataclass(frozen=True)
class Choice:
    """One point of the search: an estimator's import path and all its parameters."""

    candidate: int
    estimator: str
    params: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The estimator's class name."""
        return re.split(r"[.:]", self.estimator)[-1]


def sample(trial: Suggester, candidates: Sequence[config.Candidate]) -> Choice:
    """The point that `trial` suggests. Names in the study: `candidate`, then `<candidate>.<parameter>`."""
    index = int(trial.suggest_categorical("candidate", list(range(len(candidates)))))
    chosen = candidates[index]
    searched = {name: _suggest(trial, f"{index}.{name}", space) for name, space in chosen.space.items()}
    return Choice(index, chosen.estimator, {**chosen.params, **searched})


def _suggest(trial: Suggester, name: str, space: config.Space) -> Any:
    if isinstance(space, config.Choice):
        return trial.suggest_categorical(name, list(space.values))
    if isinstance(space, config.IntRange):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.kind == "log_uniform")


def first_points(candidates: Sequence[config.Candidate], trials: int) -> list[dict[str, int]]:
    """Beginnings of the first trials: each candidate once, the file's order, as far as the budget reaches."""
    return [{"candidate": i} for i in range(min(len(candidates), trials))]


def build(choice: Choice, *, seed: int) -> ClassifierMixin:
    """The unfitted estimator of `choice`; `random_state` is `seed` where the class takes one and the file sets none.

    Raises: ConfigError for a path that leads to no classifier with `predict_proba`, and for refused parameters.
    """
    cls = _classifier(choice.estimator)
    accepted = inspect.signature(cls).parameters
    params = dict(choice.params)
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise _refusal(choice.estimator, f"takes no parameter {unknown[0]!r}; it takes {', '.join(accepted)}")
    if "random_state" in accepted:
        params.setdefault("random_state", seed)
    try:
        estimator: ClassifierMixin = cls(**params)
        validate = getattr(estimator, "_validate_params", None)
        if validate is not None:
            validate()
    except (TypeError, ValueError) as exc:
        raise _refusal(choice.estimator, f"{exc}; change its params or space") from exc
    return estimator


def fit(choice: Choice, matrix: Floats, labels: NDArray[np.int64], *, seed: int) -> ClassifierMixin:
    """The estimator of `choice` fitted on `matrix`, shape (n, features); of `labels` the first n count."""
    return build(choice, seed=seed).fit(matrix, labels[: len(matrix)])


def trial(
    point: Mapping[str, Any], *, matrix: Floats, labels: NDArray[np.int64], n_train: int, seed: int
) -> dict[str, float]:
    """One trial: fit on the first `n_train` rows of `matrix`, shape (n, features), and score the others.

    Args: point: `candidate`, `estimator` and `params` of a `Choice`; labels: 0 or 1, at least n of them.
    Returns: `log_loss` (nats) on the others, and `fit_s`, machine time.
    """
    choice = Choice(point["candidate"], point["estimator"], point["params"])
    began = time.perf_counter()
    estimator = fit(choice, matrix[:n_train], labels, seed=seed)
    spent = time.perf_counter() - began
    scores = estimator.predict_proba(matrix[n_train:])[:, 1]
    return {"log_loss": float(log_losses(labels[n_train : len(matrix)], scores).mean()), "fit_s": spent}


def cross_scores(choice: Choice, matrix: Floats, labels: NDArray[np.int64], *, n_folds: int, seed: int) -> Floats:
    """For each row of `matrix`, shape (n, features), P(1) from a fit on the other folds: shape (n,).

    Folds are contiguous, so that rows of one day do not vouch for each other."""
    parts = []
    for rows in np.array_split(np.arange(len(matrix)), n_folds):
        rest = np.ones(len(matrix), dtype=bool)
        rest[rows] = False
        estimator = fit(choice, matrix[rest], labels[: len(matrix)][rest], seed=seed)
        parts.append(estimator.predict_proba(matrix[rows])[:, 1])
    return np.concatenate(parts)


def check(candidates: Sequence[config.Candidate], *, seed: int) -> None:
    """Build every candidate with its fixed parameters, before any cluster is asked. Raises: ConfigError."""
    for i, candidate in enumerate(candidates):
        known = inspect.signature(_classifier(candidate.estimator)).parameters
        for name in candidate.space:
            if name not in known:
                raise _refusal(candidate.estimator, f"takes no parameter {name!r}; it takes {', '.join(known)}")
        build(Choice(i, candidate.estimator, candidate.params), seed=seed)


def _classifier(path: str) -> type[Any]:
    from sklearn.base import ClassifierMixin

    module, name = re.split(r"[.:](?=\w+$)", path)
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise _refusal(path, f"cannot be imported ({exc}); fix the path or install the package") from exc
    if not (inspect.isclass(cls) and issubclass(cls, ClassifierMixin) and hasattr(cls, "predict_proba")):
        raise _refusal(path, "is no scikit-learn classifier with predict_proba; name one that is")
    return cls


def _refusal(path: str, problem: str) -> ConfigError:
    return ConfigError("search.candidates", (f"{path} {problem}",))
