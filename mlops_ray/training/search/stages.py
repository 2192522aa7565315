"""Estimators that can be fitted step by step, and what each step tells.

| kind | round | how it goes on | score |
|---|---|---|---|
| boosting of scikit-learn | tree | `warm_start` | curve over the trees, the best one counts |
| XGBoost, LightGBM | tree | one fit, which waits at each rung | the same |
| SGD, MLP | epoch | `partial_fit` | at each rung, the best one counts |
| forests | tree | `warm_start` | at each rung, the last one counts: more trees never hurt |

A number of rounds that is read off the validation curve is a parameter chosen on validation rows, like all others.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlops_ray.training.search import candidates, measures
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.trials import FoldData, Job
from mlops_ray.training.target import Labels, Scores

POINTS = 50
"""Most points of a curve: two per cent of the rounds are finer than a validation side can tell apart."""


def staged(choice: Choice, fold: FoldData, job: Job) -> Stages | None:
    """The estimator of `choice`, ready to be fitted to `fold` step by step; None when it cannot be."""
    estimator = candidates.build(choice, seed=job.seed, task=job.task, class_weight=job.class_weight)
    for base in type(estimator).__mro__:
        kind = _KINDS.get((base.__module__.split(".")[0], base.__name__))
        if kind is not None:
            return kind(estimator, choice, fold, job) if kind.able(estimator, choice) else None
    return None


def wants_single(path: str) -> bool:
    """Whether the class at `path` works on float32 and would copy a float64 matrix at every fit."""
    return path.rpartition(":")[2].rpartition(".")[2] in _SINGLE


class Stages:
    """An estimator that is fitted to one fold, rounds at a time."""

    rounds_name = "n_estimators"
    picks_best = True
    """Whether the best point of the curve is the trial's score; else the last."""

    def __init__(self, estimator: Any, choice: Choice, fold: FoldData, job: Job) -> None:
        self.estimator, self.fold, self.job = estimator, fold, job
        self.total = self._length
        self.done = 0
        self._every = math.ceil(self.total / POINTS)
        self._train, self._others = fold.rows(single=wants_single(choice.estimator))
        self._y, self._other_y = fold.y[: fold.n_train], fold.y[fold.n_train :]
        self._weights = candidates.row_weights(estimator, self._y, fold.train_weights, job.class_weight)

    @classmethod
    def able(cls, estimator: Any, choice: Choice) -> bool:
        """Whether it can, with these parameters."""
        return not getattr(estimator, "early_stopping", False)

    def advance(self, rounds: int) -> Mapping[int, float]:
        """Fit on until `rounds` are done; the loss at new points of the curve, among them `rounds`."""
        raise NotImplementedError

    def refit(self, rounds: int) -> dict[str, Any]:
        """Parameters with which one fit from the start does what `rounds` rounds did."""
        return {self.rounds_name: rounds}

    def _shown(self, rounds: int, upto: int) -> bool:
        return self.done < rounds <= upto and (rounds % self._every == 0 or rounds == upto)

    def _loss(self, scores: Scores) -> float:
        job = self.job
        score = measures.measure(job.metric, job.task, self._other_y, scores, self.fold.other_weights)
        return measures.loss(job.metric, score)

    def close(self) -> None:
        """No more rounds are wanted; the estimator is fitted to those that are done."""

    @property
    def _length(self) -> int:
        return int(getattr(self.estimator, self.rounds_name))

    @property
    def _given(self) -> dict[str, Any]:
        return {} if self._weights is None else {"sample_weight": self._weights}


class _Boosting(Stages):
    def advance(self, rounds: int) -> Mapping[int, float]:
        self.estimator.set_params(**{self.rounds_name: rounds, "warm_start": True})
        self.estimator.fit(self._train, self._y, **self._given)
        staged = self.estimator.staged_predict if self.job.task == "regression" else self.estimator.staged_predict_proba
        found = {}
        for number, said in enumerate(staged(self._others), 1):
            if self._shown(number, rounds):
                found[number] = self._loss(self._scores(said))
        self.done = rounds
        return found

    def _scores(self, said: Any) -> Scores:
        if self.job.task == "regression":
            return np.asarray(said, dtype=np.float64)
        return candidates.placed(said, self.estimator.classes_, self.job.task, self.job.n_classes)


class _HistBoosting(_Boosting):
    rounds_name = "max_iter"


class _GradientBoosting(_Boosting):
    @classmethod
    def able(cls, estimator: Any, choice: Choice) -> bool:
        return estimator.n_iter_no_change is None


class _Forest(Stages):
    picks_best = False

    def advance(self, rounds: int) -> Mapping[int, float]:
        self.estimator.set_params(n_estimators=rounds, warm_start=True)
        with warnings.catch_warnings():
            # "balanced" is computed anew at each step; from the same rows each time, so it is the same.
            warnings.filterwarnings("ignore", message="class_weight presets", category=UserWarning)
            self.estimator.fit(self._train, self._y, **self._given)
        self.done = rounds
        said = candidates.scores(self.estimator, self._others, self.job.task, n_classes=self.job.n_classes)
        return {rounds: self._loss(said)}


class _Epochs(Stages):
    rounds_name = "max_iter"

    def __init__(self, estimator: Any, choice: Choice, fold: FoldData, job: Job) -> None:
        super().__init__(estimator, choice, fold, job)
        if "class_weight" in estimator.get_params():  # `partial_fit` refuses "balanced", for it sees parts only
            estimator.set_params(class_weight=None)
            self._weights = candidates.weighted(self._y, fold.train_weights, job.class_weight)

    @classmethod
    def able(cls, estimator: Any, choice: Choice) -> bool:
        return (
            super().able(estimator, choice)
            and "class_weight" not in choice.params
            and hasattr(estimator, "partial_fit")
        )

    def advance(self, rounds: int) -> Mapping[int, float]:
        known = {} if self.job.task == "regression" else {"classes": np.unique(self._y)}
        for number in range(self.done, rounds):
            given = {**self._given, **(known if number == 0 else {})}
            self.estimator.partial_fit(self._train, self._y, **given)
        self.done = rounds
        said = candidates.scores(self.estimator, self._others, self.job.task, n_classes=self.job.n_classes)
        return {rounds: self._loss(said)}


class _SGD(_Epochs):
    def refit(self, rounds: int) -> dict[str, Any]:
        return {"max_iter": rounds, "tol": None}


class _MLP(_Epochs):
    def refit(self, rounds: int) -> dict[str, Any]:
        return {"max_iter": rounds, "tol": 0.0, "n_iter_no_change": rounds}


class _Paused(Stages):
    """XGBoost and LightGBM: one fit of all rounds, which waits at each rung until somebody says how it goes on.

    Training on from the booster of an earlier fit would be another fit where rows or columns are sampled: it begins
    again at the seed, and draws what was drawn before. The fit runs in a thread, for both libraries call back and do
    not return; it and the caller take turns, so nothing runs beside anything.
    """

    def __init__(self, estimator: Any, choice: Choice, fold: FoldData, job: Job) -> None:
        super().__init__(estimator, choice, fold, job)
        self._found: dict[int, float] = {}
        self._upto = self._round = 0
        self._thread: threading.Thread | None = None
        self._at_rung, self._go = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._failure: BaseException | None = None

    @classmethod
    def able(cls, estimator: Any, choice: Choice) -> bool:
        # With any of these, validation scores may mean something else, or training does not simply go on.
        return not {"objective", "booster", "boosting_type", "early_stopping_rounds", "callbacks"} & set(choice.params)

    def advance(self, rounds: int) -> Mapping[int, float]:
        self._found, self._upto = {}, rounds
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="search-fit", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._at_rung.acquire()
        if self._failure is not None:
            raise self._failure
        self.done = rounds
        return self._found

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._fit()
        except BaseException as exc:  # noqa: BLE001 - raised again by `advance`, in the caller's thread
            self._failure = exc
        finally:
            self._at_rung.release()

    def _fit(self) -> None:
        raise NotImplementedError

    def _see(self, said: Any) -> None:
        """Called by the fit with the scores of the other rows after each round."""
        self._round += 1
        if self._shown(self._round, self._upto):
            self._found[self._round] = self._loss(np.asarray(said, dtype=np.float64))

    def _stops(self) -> bool:
        """Called by the fit when a round is over: whether it ends there. Waits at a rung below the full length."""
        if self._upto <= self._round < self.total and not self._closed:
            self._at_rung.release()
            self._go.acquire()
        return self._closed


class _XGBoost(_Paused):
    @property
    def _length(self) -> int:
        return int(self.estimator.get_num_boosting_rounds())  # `n_estimators` is None for its default

    def _fit(self) -> None:
        from xgboost.callback import TrainingCallback

        def watched(y: Labels, said: Any, sample_weight: Any = None) -> float:
            self._see(said)
            return 0.0

        stops = self._stops

        class Rungs(TrainingCallback):
            """XGBoost asks it after each round whether to stop."""

            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                return stops()

        self.estimator.set_params(eval_metric=watched, disable_default_eval_metric=True, callbacks=[Rungs()])
        self.estimator.fit(self._train, self._y, eval_set=[(self._others, self._other_y)], verbose=False, **self._given)


class _LightGBM(_Paused):
    def _fit(self) -> None:
        from lightgbm import EarlyStopException

        def watched(y: Labels, said: Any) -> tuple[str, float, bool]:
            self._see(said)
            return "seen", 0.0, False

        def rungs(env: Any) -> None:
            if self._stops():
                raise EarlyStopException(env.iteration, env.evaluation_result_list)

        self.estimator.set_params(metric="None")
        self.estimator.fit(
            self._train, self._y, eval_X=self._others, eval_y=self._other_y, eval_metric=watched, callbacks=[rungs],
            **self._given,
        )  # fmt: skip


_SINGLE = {f"{kind}{suffix}" for kind in ("RandomForest", "ExtraTrees") for suffix in ("Classifier", "Regressor")}
_KINDS: dict[tuple[str, str], type[Stages]] = {
    (package, f"{name}{suffix}"): kind
    for package, name, kind in (
        ("sklearn", "HistGradientBoosting", _HistBoosting),
        ("sklearn", "GradientBoosting", _GradientBoosting),
        ("sklearn", "RandomForest", _Forest),
        ("sklearn", "ExtraTrees", _Forest),
        ("sklearn", "SGD", _SGD),
        ("sklearn", "MLP", _MLP),
        ("xgboost", "XGB", _XGBoost),
        ("lightgbm", "LGBM", _LightGBM),
    )
    for suffix in ("Classifier", "Regressor")
}
