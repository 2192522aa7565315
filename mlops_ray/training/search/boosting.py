"""XGBoost over rows that come in batches: bounded memory, one worker of several or a process alone.

Rows are quantised as they are read (`QuantileDMatrix`): what stays is about one byte per cell instead of eight.
Sketches, histograms and metrics are summed over the workers of XGBoost's collective; outside one, nothing is.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.config import SearchMetric, Task
from mlops_ray.errors import ConfigError
from mlops_ray.training.search import sums
from mlops_ray.training.search.candidates import Choice, build
from mlops_ray.training.search.measures import loss
from mlops_ray.training.search.shards import Batch
from mlops_ray.training.target import Scores

if TYPE_CHECKING:
    from xgboost import Booster, QuantileDMatrix, XGBClassifier, XGBRegressor

KEPT_BYTES = 256 * 1024**2
"""Batches are kept for XGBoost's further passes up to this size for each worker, and made again beyond: five passes
over rows that are transformed each time cost more than one over them."""
_OBJECTIVES = {"binary": (None, "binary:logistic"), "multiclass": (None, "multi:softprob", "binary:logistic")}
"""Those that give probabilities; the binary one is the default of XGBoost's class, which replaces it for more classes.
"""
_BEST = "mlops_ray_best"
"""Attribute of an unfinished model: the best value of the metric and its round."""
MAX_BIN = 256
"""XGBoost's own default."""


@dataclass(frozen=True)
class Plan:
    """One fit: XGBoost's native `params` and rounds; `patience` rounds without a better metric end it, None never."""

    params: dict[str, Any]
    rounds: int
    patience: int | None
    max_bin: int


@dataclass(frozen=True)
class Boosted:
    """A fit's outcome: the model as UBJSON, `rounds` boosted in all, the metric after the last one and after the best
    one (NaN and 0 without rows that judge), and whether it was stopped."""

    raw: bytes
    rounds: int
    value: float
    best: float
    best_round: int
    stopped: bool


AfterRound = Callable[[int, float, Callable[[], bytes]], bool]
"""Called with the rounds so far, the metric, and a way to get the model to go on from; whether to stop the fit there.
All workers of a collective must be told the same."""


def unfitted(choice: Choice, task: Task, *, seed: int) -> XGBClassifier | XGBRegressor:
    """The scikit-learn estimator of `choice`; `random_state` is `seed` unless it sets one.

    Raises: ConfigError for a class of the wrong task, for parameters that histograms over shards cannot serve, and for
    those that XGBoost refuses, which it is asked by a fit of a few rows."""
    from xgboost import XGBClassifier, XGBRegressor

    estimator: XGBClassifier | XGBRegressor = build(choice, seed=seed, task=task)
    if type(estimator) not in (XGBClassifier, XGBRegressor):
        raise _refusal(choice, "does not train data-parallel; take xgboost, or remove workers")
    if estimator.tree_method not in (None, "auto", "hist") or estimator.booster not in (None, "gbtree", "dart"):
        raise _refusal(choice, "trains data-parallel, by histograms: leave tree_method and booster at their defaults")
    if estimator.enable_categorical or estimator.callbacks or callable(estimator.objective):
        raise _refusal(choice, "trains data-parallel on plain numbers: no enable_categorical, callbacks or callables")
    if task != "regression" and estimator.objective not in _OBJECTIVES[task]:
        raise _refusal(choice, "must give probabilities: leave objective at its default")
    return estimator


def plan(choice: Choice, task: Task, n_classes: int, *, seed: int, threads: int) -> Plan:
    """How `choice` is boosted. Raises: ConfigError as `unfitted`."""
    estimator = unfitted(choice, task, seed=seed)
    params = {name: value for name, value in estimator.get_xgb_params().items() if value is not None}
    for name in ("n_jobs", "missing", "eval_metric", "max_bin", "importance_type", "feature_types"):
        params.pop(name, None)
    if task == "multiclass":
        params["num_class"] = n_classes
        params["objective"] = "multi:softprob"
    params |= {"tree_method": "hist", "nthread": threads, "disable_default_eval_metric": 1}
    params |= {"verbosity": 0} if estimator.verbosity is None else {}
    made = Plan(
        params,
        int(estimator.get_num_boosting_rounds()),
        estimator.early_stopping_rounds,
        int(estimator.max_bin or MAX_BIN),
    )
    _try(choice, made, task, n_classes)
    return made


def _try(choice: Choice, made: Plan, task: Task, n_classes: int) -> None:
    """Raises: ConfigError when XGBoost refuses the plan, or its answers have another shape than the task's."""
    from xgboost import DMatrix, train
    from xgboost.core import XGBoostError

    y = np.arange(2 * max(2, n_classes)) % max(2, n_classes)
    features = np.arange(len(y), dtype=np.float32)[:, None]
    constrained = {"monotone_constraints", "interaction_constraints", "feature_weights"}  # of a width unknown here
    params = {name: value for name, value in made.params.items() if name not in constrained}
    try:
        scores = train(params, DMatrix(features, label=y), num_boost_round=1).predict(DMatrix(features))
    except (XGBoostError, TypeError, ValueError) as exc:
        raise _refusal(choice, f"was refused by XGBoost: {_reason(exc)}; change its params or space") from exc
    if scores.shape[1:] != ((n_classes,) if task == "multiclass" else ()):
        raise _refusal(choice, f"gives {scores.shape[1:]} scores a row; leave objective at its default")


def _reason(exc: Exception) -> str:
    """The sentence in XGBoost's errors, which carry source lines and a stack."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip() and not line.startswith("  [")]
    return lines[0].partition("] ")[2] or lines[0] if lines else type(exc).__name__


def _refusal(choice: Choice, problem: str) -> ConfigError:
    return ConfigError("search.candidates", (f"{choice.estimator} {problem}",))


def finished(choice: Choice, task: Task, raw: bytes, *, seed: int) -> XGBClassifier | XGBRegressor:
    """The plain scikit-learn estimator around a boosted model."""
    estimator = unfitted(choice, task, seed=seed)
    estimator.load_model(bytearray(raw))
    return estimator


def quantised(
    read: Callable[[], Iterator[Batch]], width: int, max_bin: int, ref: QuantileDMatrix | None = None
) -> QuantileDMatrix:
    """The matrix of the batches that `read` begins anew for each pass; NaN is missing.

    Args: width: columns, for a worker without rows; ref: the matrix whose cuts are taken, of the rows that fit.
    All workers of a collective must call at once, also those without rows."""
    from xgboost import DataIter, QuantileDMatrix

    class Batches(DataIter):
        """XGBoost asks for the batches several times: to count, to sketch, to bin."""

        def __init__(self) -> None:
            self._batches: Iterator[Batch] = iter(())
            self._given = 0
            self._kept: list[Batch] | None = []
            self._complete = False
            self._size = 0
            super().__init__(release_data=True)

        def reset(self) -> None:
            """To the first batch."""
            self._given = 0
            if self._kept is not None and not self._complete:
                self._kept, self._size = [], 0
            self._batches = iter(self._kept) if self._kept is not None and self._complete else self._keeping()

        def _keeping(self) -> Iterator[Batch]:
            for batch in read():
                if self._kept is not None:
                    self._size += batch.matrix.nbytes
                    self._kept.append(batch)
                    if self._size > KEPT_BYTES:
                        self._kept = None
                yield batch
            self._complete = True

        def next(self, input_data: Callable[..., None]) -> bool:
            """Hands over the next batch; False at the end."""
            batch = next(self._batches, None)
            if batch is None and self._given:
                return False
            if batch is None:  # a worker without such rows takes part all the same
                batch = Batch(np.empty((0, width), dtype=np.float32), np.empty(0), None)
            self._given += 1
            input_data(data=batch.matrix, label=batch.y, weight=batch.weights)
            return True

        def forget(self) -> None:
            """Lets go of the batches: XGBoost has binned them, and may keep this object."""
            self._kept, self._batches = None, iter(())

    given = Batches()
    made = QuantileDMatrix(given, max_bin=max_bin, ref=ref, missing=np.nan)
    given.forget()
    return made


def boost(
    plan: Plan,
    fit: QuantileDMatrix,
    judge: QuantileDMatrix | None,
    *,
    metric: SearchMetric,
    task: Task,
    n_classes: int,
    after_round: AfterRound,
    begin: bytes | None = None,
) -> Boosted:
    """Boosts up to `plan.rounds`, from the model `begin` on, and tells `after_round` the metric of the judging rows.

    A fit that began from a model equals one that never stopped, unless rows or columns are sampled: XGBoost saves no
    state of its generator, so later rounds draw others, as good ones."""
    from xgboost import Booster

    cache = [fit, *([judge] if judge is not None else [])]
    booster = Booster(plan.params, cache, model_file=bytearray(begin) if begin is not None else None)
    best, best_round = json.loads(booster.attr(_BEST) or "[NaN, 0]")
    last, stopped = math.nan, False
    done = booster.num_boosted_rounds()
    while done < plan.rounds and not stopped:
        booster.update(fit, iteration=done)
        done += 1
        if judge is not None:
            last = _judged(booster, judge, metric, task, n_classes)
            if math.isnan(best) or loss(metric, last) < loss(metric, best):
                best, best_round = last, done
        stop = after_round(done, last, functools.partial(_resumable, booster, best, best_round))
        if judge is not None and plan.patience is not None and done - best_round >= plan.patience:
            break
        stopped = stop and done < plan.rounds
    if judge is not None and plan.patience is not None and best_round:
        booster.best_iteration = best_round - 1  # predictions end there, as after scikit-learn's early stopping
    booster.set_attr(**{_BEST: None})
    return Boosted(bytes(booster.save_raw("ubj")), done, last, best, best_round, stopped)


def _resumable(booster: Booster, best: float, best_round: int) -> bytes:
    booster.set_attr(**{_BEST: json.dumps([best, best_round])})
    return bytes(booster.save_raw("ubj"))


def _judged(booster: Booster, judge: QuantileDMatrix, metric: SearchMetric, task: Task, n_classes: int) -> float:
    from xgboost import collective

    scores: Scores = booster.predict(judge).astype(np.float64)
    y = judge.get_label() if task == "regression" else judge.get_label().astype(np.int64)
    if task == "multiclass":
        scores = scores.reshape(len(y), n_classes)
    weights = judge.get_weight()
    mine = sums.sums(metric, task, n_classes, y, scores, weights if weights.size else None)
    return sums.value(metric, collective.allreduce(mine, collective.Op.SUM))
