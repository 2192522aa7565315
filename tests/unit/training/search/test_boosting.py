from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from xgboost import QuantileDMatrix, XGBClassifier, XGBRegressor

from mlops_ray.config import Task
from mlops_ray.errors import ConfigError
from mlops_ray.training.search import boosting
from mlops_ray.training.search.boosting import Boosted, boost, finished, plan, quantised
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.shards import Batch

WIDTH = 3
CLASSES = {"binary": 2, "multiclass": 3, "regression": 0}


def choice(task: Task, **params: Any) -> Choice:
    name = "XGBRegressor" if task == "regression" else "XGBClassifier"
    return Choice(0, f"xgboost:{name}", {"n_estimators": 12, "max_depth": 3, **params})


def rows(task: Task, n: int = 900) -> Batch:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, WIDTH)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    signal = np.nan_to_num(matrix[:, 0] + matrix[:, 1] * matrix[:, 2]) + rng.normal(size=n) / 2
    y: Any = signal
    if task != "regression":
        y = np.digitize(signal, [0.0] if task == "binary" else [-0.5, 0.5]).astype(np.int64)
    return Batch(matrix, y, rng.uniform(0.5, 2, n).astype(np.float32))


class Reader:
    """Batches of a hundred rows, counted."""

    def __init__(self, whole: Batch) -> None:
        self.whole, self.passes = whole, 0

    def __call__(self) -> Iterator[Batch]:
        self.passes += 1
        assert self.whole.weights is not None
        for a in range(0, len(self.whole.y), 100):
            yield Batch(self.whole.matrix[a : a + 100], self.whole.y[a : a + 100], self.whole.weights[a : a + 100])


def go_on(done: int, value: float, model: Any) -> bool:
    return False


def fitted(task: Task, wanted: Choice, **given: Any) -> Boosted:
    made = plan(wanted, task, CLASSES[task], seed=1, threads=1)
    fit = quantised(Reader(rows(task)), WIDTH, made.max_bin)
    judge = quantised(Reader(rows(task, 300)), WIDTH, made.max_bin, ref=fit)
    metric = "rmse" if task == "regression" else "log_loss"
    asked: Any = {"after_round": go_on, "metric": metric, "task": task, "n_classes": CLASSES[task]} | given
    return boost(made, fit, judge, **asked)


@pytest.mark.parametrize("task", CLASSES)
def test_batches_fit_as_scikit_learns_way_does(task: Task) -> None:
    whole, wanted = rows(task), choice(task, subsample=0.8)
    estimator = finished(wanted, task, fitted(task, wanted).raw, seed=1)
    cls = XGBRegressor if task == "regression" else XGBClassifier
    direct = cls(**wanted.params, random_state=1, n_jobs=1, tree_method="hist")
    direct.fit(whole.matrix, whole.y, sample_weight=whole.weights)
    ask = "predict" if task == "regression" else "predict_proba"
    said, known = getattr(estimator, ask)(whole.matrix), getattr(direct, ask)(whole.matrix)
    assert said.shape == known.shape
    # The sketch sees rows in batches, so cuts between bins may lie a rank apart.
    assert np.abs(said - known).mean() < 0.02
    assert type(estimator) is cls
    if task != "regression":
        assert (estimator.n_classes_, estimator.classes_.tolist()) == (CLASSES[task], list(range(CLASSES[task])))
        assert estimator.predict(whole.matrix).dtype.kind == "i"


def test_kept_batches_and_batches_made_again_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, again = Reader(rows("binary")), Reader(rows("binary"))
    first = quantised(kept, WIDTH, 64)
    monkeypatch.setattr(boosting, "KEPT_BYTES", 3000)
    second = quantised(again, WIDTH, 64)
    assert (kept.passes, again.passes > 3) == (1, True)
    for mine, theirs in zip(first.get_quantile_cut(), second.get_quantile_cut(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (first.num_row(), first.num_col(), second.num_row()) == (900, WIDTH, 900)


def test_a_fit_that_goes_on_from_a_model_ends_where_it_would_have() -> None:
    saved: dict[int, bytes] = {}

    def keep(done: int, value: float, model: Any) -> bool:
        saved[done] = model()
        return False

    wanted = choice("binary", early_stopping_rounds=4, n_estimators=60, learning_rate=0.8)
    whole = fitted("binary", wanted, after_round=keep)
    assert whole.rounds == whole.best_round + 4 < 60
    resumed = fitted("binary", wanted, begin=saved[whole.rounds - 2])
    assert (resumed.rounds, resumed.best_round, resumed.best) == (whole.rounds, whole.best_round, whole.best)
    said = [finished(wanted, "binary", each.raw, seed=1) for each in (whole, resumed)]
    assert [each.best_iteration for each in said] == [whole.best_round - 1] * 2
    np.testing.assert_allclose(*(each.predict_proba(rows("binary").matrix) for each in said), atol=1e-6)


def test_a_signal_stops_the_fit() -> None:
    told: list[tuple[int, float]] = []

    def stop(done: int, value: float, model: Any) -> bool:
        told.append((done, value))
        return done == 5

    done = fitted("multiclass", choice("multiclass"), after_round=stop)
    assert (done.rounds, done.stopped, [d for d, _ in told]) == (5, True, [1, 2, 3, 4, 5])
    assert told[-1][1] == done.value < told[0][1]


def test_without_rows_that_judge_there_is_no_value() -> None:
    made = plan(choice("binary", early_stopping_rounds=3), "binary", 2, seed=1, threads=1)
    fit: QuantileDMatrix = quantised(Reader(rows("binary")), WIDTH, made.max_bin)
    done = boost(made, fit, None, metric="log_loss", task="binary", n_classes=2, after_round=go_on)
    assert (done.rounds, done.best_round, np.isnan(done.value)) == (12, 0, True)


@pytest.mark.parametrize(
    ("task", "wrong", "said"),
    [
        ("binary", choice("binary", max_depth=-3), "max_depth"),
        ("binary", choice("binary", learning_rate=-1.0), "learning_rate"),
        ("binary", choice("binary", objective="binary:hinge"), "leave objective"),
        ("multiclass", choice("multiclass", objective="multi:nothing"), "leave objective"),
        ("regression", choice("regression", objective="reg:nothing"), "reg:nothing"),
        ("regression", choice("regression", objective="multi:softprob", num_class=3), "refused|scores a row"),
        ("binary", choice("binary", tree_method="exact"), "tree_method"),
        ("binary", choice("binary", booster="gblinear"), "booster"),
        ("binary", choice("binary", enable_categorical=True), "enable_categorical"),
        ("binary", choice("regression"), "classifier"),
        ("binary", Choice(0, "sklearn.linear_model:LogisticRegression", {}), "does not train data-parallel"),
        ("binary", Choice(0, "xgboost:XGBRFClassifier", {}), "does not train data-parallel"),
    ],
)
def test_what_cannot_be_boosted_is_refused_with_a_reason(task: Task, wrong: Choice, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(wrong, task, CLASSES[task], seed=1, threads=1)


def test_constraints_of_any_width_pass_the_trial_fit() -> None:
    made = plan(choice("binary", monotone_constraints=(1, 0, 0)), "binary", 2, seed=1, threads=1)
    assert made.params["monotone_constraints"] == (1, 0, 0)
