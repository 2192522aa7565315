from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from mlops_ray.config import EarlyStopping, Task
from mlops_ray.errors import DataError
from mlops_ray.training.search import candidates, lane, measures
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.stages import staged, wants_single
from mlops_ray.training.search.trials import FoldData, Job, Order

HALVING = EarlyStopping(reduction=3, min_share=0.1)
KINDS: dict[str, dict[str, Any]] = {
    "sklearn.ensemble:HistGradientBoostingClassifier": {"max_iter": 30, "learning_rate": 0.2, "min_samples_leaf": 5},
    "sklearn.ensemble:GradientBoostingClassifier": {"n_estimators": 30},
    "sklearn.ensemble:RandomForestClassifier": {"n_estimators": 30},
    "sklearn.ensemble:ExtraTreesClassifier": {"n_estimators": 30},
    "xgboost:XGBClassifier": {"n_estimators": 30, "max_depth": 2},
    "lightgbm:LGBMClassifier": {"n_estimators": 30, "verbosity": -1, "num_leaves": 4},
    "sklearn.linear_model:SGDClassifier": {"max_iter": 30, "loss": "log_loss"},
    "sklearn.neural_network:MLPClassifier": {"max_iter": 30, "hidden_layer_sizes": [8]},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "xgboost:XGBClassifier": {"subsample": 0.5, "colsample_bytree": 0.5},
    "lightgbm:LGBMClassifier": {"subsample": 0.5, "subsample_freq": 1, "colsample_bytree": 0.5},
}
STOPPED = [
    "sklearn.ensemble:HistGradientBoostingClassifier", "sklearn.ensemble:RandomForestClassifier", *SAMPLED
]  # fmt: skip
BOOSTED = [path for path in KINDS if "Boosting" in path or path.startswith(("xgb", "light"))]


def job(task: Task = "binary", **more: Any) -> Job:
    given: dict[str, Any] = {
        "metric": "rmse" if task == "regression" else "log_loss",
        "seed": 3,
        "n_classes": 3 if task == "multiclass" else None,
        "class_weight": None,
        "early_stopping": HALVING,
    }
    return Job(task=task, **(given | more))


def fold(task: Task = "binary", *, noise: float = 1.0, weights: bool = False) -> FoldData:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(500, 4))
    signal = matrix[:, 0] + matrix[:, 1] * matrix[:, 2] + noise * rng.normal(size=500)
    y = {"binary": (signal > 0) * 1, "multiclass": np.digitize(signal, [-1, 1]), "regression": signal}[task]
    for array in (matrix, y):
        array.setflags(write=False)  # as the object store holds them
    return FoldData(matrix, 350, y, rng.uniform(0.5, 2, 500) if weights else None)


def order(path: str, *cutoffs: float | None, **params: Any) -> Order:
    shares = lane.shares(HALVING)
    limits = tuple(zip(shares, (*cutoffs, None, None), strict=False))
    return Order(0, Choice(0, path, {**KINDS.get(path, {}), **params}), limits, 60.0)


def installed(path: str) -> None:
    pytest.importorskip(path.partition(":")[0].partition(".")[0])


def test_rungs_are_shares_of_the_full_length_and_none_lies_next_to_it() -> None:
    assert lane.shares(HALVING) == pytest.approx((0.1, 0.3))
    assert lane.shares(EarlyStopping(reduction=2, min_share=0.25)) == (0.25, 0.5)
    assert lane.shares(EarlyStopping(reduction=2, min_share=0.9)) == ()
    assert lane.shares(None) == ()


@pytest.mark.parametrize("path", KINDS)
def test_steps_climb_the_rungs(path: str) -> None:
    installed(path)
    shown: list[int] = []
    one = lane.evaluate(order(path), [fold()], job(), on_step=lambda steps: shown.append(len(steps)))
    assert one.status == "done"
    assert shown == sorted(shown)
    assert [share for share, _ in one.rungs] == pytest.approx([0.1, 0.3, 1.0])
    assert {3, 9} <= {rounds for rounds, _ in one.steps}
    assert one.score is not None
    assert one.score < dict(one.rungs)[lane.shares(HALVING)[0]]


@pytest.mark.parametrize("path", BOOSTED)
def test_boosting_in_steps_is_boosting_at_once_and_the_best_round_counts(path: str) -> None:
    installed(path)
    data = fold(weights=True)
    found = lane.evaluate(order(path), [data], job())
    best = min(found.steps, key=lambda step: step[1])
    assert (found.rounds, found.score) == best
    again = candidates.with_params(order(path).choice, found.refit)
    fitted = candidates.fit(again, data.matrix[:350], data.y, seed=3, weights=data.weights)
    said = candidates.scores(fitted, data.matrix[350:], "binary")
    expected = metrics.log_loss(data.y[350:], said, sample_weight=data.weights[350:])  # type: ignore[index]
    assert found.score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("path", SAMPLED)
def test_rounds_of_a_trial_that_samples_are_those_of_a_fit_of_as_many(path: str, task: Task) -> None:
    """Found: each step trained on from the booster before, began again at the seed, and drew the same rows again."""
    installed(path)
    data, named = fold(task, weights=True), path.replace("Classifier", "Regressor") if task == "regression" else path
    choice = Choice(0, named, KINDS[path] | SAMPLED[path])
    other = FoldData(data.matrix[::-1], 300, data.y[::-1])
    parts = [made for one in (data, other) if (made := staged(choice, one, job(task))) is not None]
    assert len(parts) == 2
    curves: list[dict[int, float]] = [{}, {}]
    for rounds in (3, 9, 20):  # in turns, and not to the end
        for part, curve in zip(parts, curves, strict=True):
            curve |= part.advance(rounds)
    for part, curve, one in zip(parts, curves, (data, other), strict=True):
        part.close()
        train, others = one.rows(single=False)
        best = min(curve, key=curve.__getitem__)
        for rounds in {2, 9, best, 20}:
            again = candidates.fit(
                candidates.with_params(choice, part.refit(rounds)), train, one.y[: one.n_train], seed=3,
                weights=one.train_weights, task=task,
            )  # fmt: skip
            np.testing.assert_array_equal(cut(part.estimator, others, rounds), cut(again, others, rounds))
            said = candidates.scores(again, others, task, n_classes=3)
            expected = measures.measure(job(task).metric, task, one.y[one.n_train :], said, one.other_weights)
            assert curve[rounds] == pytest.approx(expected, rel=1e-5)


def cut(estimator: Any, matrix: Any, rounds: int) -> Any:
    """What the first `rounds` trees say, before they become probabilities."""
    if type(estimator).__module__.startswith("xgboost"):
        return estimator.predict(matrix, output_margin=True, iteration_range=(0, rounds))
    return estimator.predict(matrix, raw_score=True, num_iteration=rounds)


@pytest.mark.parametrize("path", SAMPLED)
def test_a_fit_that_waits_at_a_rung_ends_when_nobody_wants_more(path: str) -> None:
    installed(path)
    before = threading.active_count()
    data = fold()
    part = staged(order(path).choice, data, job())
    assert part is not None
    part.advance(3)
    assert threading.active_count() == before + 1
    part.close()
    assert threading.active_count() == before
    assert cut(part.estimator, data.matrix, 3).shape == (500,)
    trees = part.estimator.get_booster().num_boosted_rounds() if "xgb" in path else part.estimator.booster_.num_trees()
    assert trees == 3


@pytest.mark.parametrize("path", SAMPLED)
def test_what_a_waiting_fit_raises_is_raised_to_who_waits(path: str) -> None:
    installed(path)
    before = threading.active_count()
    one_class = fold()
    one_class = FoldData(one_class.matrix, 350, np.r_[one_class.y[:350], np.zeros(150, dtype=np.int64)])
    with pytest.raises(DataError, match="two classes"):
        lane.evaluate(order(path), [fold(), one_class], job(metric="roc_auc"))
    assert threading.active_count() == before


def test_rounds_that_nobody_named_are_the_librarys_own() -> None:
    """Found: XGBoost says None for its default of 100."""
    pytest.importorskip("xgboost")
    part = staged(Choice(0, "xgboost:XGBClassifier", {}), fold(), job())
    assert part is not None
    assert part.total == 100


@pytest.mark.parametrize("path", STOPPED)
def test_a_trial_above_the_cutoff_stops_there_and_one_below_goes_on(path: str) -> None:
    installed(path)
    data = fold(noise=0.1)
    reached = dict(lane.evaluate(order(path), [data], job()).rungs)
    first, second = lane.shares(HALVING)
    stopped = lane.evaluate(order(path, reached[first] - 1e-6), [data], job())
    assert (stopped.status, [s for s, _ in stopped.rungs]) == ("stopped", [first])
    assert max(rounds for rounds, _ in stopped.steps) == 3
    assert stopped.score == reached[first]
    later = lane.evaluate(order(path, reached[first], reached[second] - 1e-6), [data], job())
    assert (later.status, len(later.rungs)) == ("stopped", 2)
    assert lane.evaluate(order(path, reached[first], reached[second]), [data], job()).status == "done"


@pytest.mark.parametrize(
    ("path", "rounds"),
    [("sklearn.ensemble:HistGradientBoostingClassifier", "max_iter"), *((path, "n_estimators") for path in SAMPLED)],
)
def test_a_curve_that_has_turned_ends_the_trial_at_its_best_round(path: str, rounds: str) -> None:
    installed(path)
    data = fold(noise=5.0)
    found = lane.evaluate(order(path, 0.9, 0.9, **{rounds: 200, "learning_rate": 0.5}), [data], job())
    assert found.status == "done"
    assert found.rounds is not None
    assert max(rounds for rounds, _ in found.steps) < 200
    assert found.rounds <= max(rounds for rounds, _ in found.steps) // 2
    assert [share for share, _ in found.rungs] == pytest.approx([0.1, 0.3, 1.0])


def test_forests_keep_all_their_trees() -> None:
    path = "sklearn.ensemble:RandomForestClassifier"
    found = lane.evaluate(order(path), [fold()], job(class_weight="balanced"))
    assert (found.rounds, found.refit, found.score) == (30, {"n_estimators": 30}, found.steps[-1][1])
    assert wants_single(path)
    assert not wants_single("sklearn.ensemble.HistGradientBoostingClassifier")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize("path", BOOSTED)
def test_other_tasks_climb_too(path: str, task: Task) -> None:
    installed(path)
    named = path.replace("Classifier", "Regressor") if task == "regression" else path
    found = lane.evaluate(order(named, **KINDS[path]), [fold(task)], job(task))
    data = fold(task)
    again = candidates.with_params(order(named, **KINDS[path]).choice, found.refit)
    fitted = candidates.fit(again, data.matrix[:350], data.y, seed=3, task=task)
    said = candidates.scores(fitted, data.matrix[350:], task)
    expected = measures.measure(job(task).metric, task, data.y[350:], said)
    assert found.score == pytest.approx(expected, rel=1e-4)


def test_folds_climb_together_and_their_mean_counts() -> None:
    path = "sklearn.ensemble:HistGradientBoostingClassifier"
    data = fold()
    other = FoldData(data.matrix[::-1], 350, data.y[::-1])
    both = lane.evaluate(order(path), [data, other], job())
    each = [dict(lane.evaluate(order(path), [one], job()).steps) for one in (data, other)]
    assert both.steps
    for rounds, score in both.steps:
        assert score == pytest.approx(np.mean([curve[rounds] for curve in each]))


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("sklearn.linear_model:LogisticRegression", {}),
        ("sklearn.ensemble:HistGradientBoostingClassifier", {"early_stopping": True}),
        ("sklearn.ensemble:GradientBoostingClassifier", {"n_iter_no_change": 3}),
        ("sklearn.neural_network:MLPClassifier", {"solver": "lbfgs"}),
        ("xgboost:XGBClassifier", {"early_stopping_rounds": 3}),
    ],
)
def test_what_cannot_report_or_stops_itself_is_not_fitted_in_steps(path: str, params: dict[str, Any]) -> None:
    installed(path)
    assert staged(Choice(0, path, params), fold(), job()) is None


def test_without_early_stopping_each_trial_is_one_fit() -> None:
    path = "sklearn.ensemble:HistGradientBoostingClassifier"
    found = lane.evaluate(order(path), [fold()], job(early_stopping=None))
    assert (found.status, found.steps, found.refit) == ("done", [], {})
    data = fold()
    fitted = candidates.fit(order(path).choice, data.matrix[:350], data.y, seed=3)
    assert found.score == pytest.approx(metrics.log_loss(data.y[350:], fitted.predict_proba(data.matrix[350:])))


def test_maximised_metrics_keep_their_sign() -> None:
    path = "sklearn.ensemble:HistGradientBoostingClassifier"
    found = lane.evaluate(order(path), [fold()], job(metric="roc_auc"))
    assert found.score == max(score for _, score in found.steps)
    assert 0.6 < found.score < 1


def test_epochs_are_fitted_again_without_a_stop_of_their_own() -> None:
    found = lane.evaluate(order("sklearn.linear_model:SGDClassifier"), [fold()], job(class_weight="balanced"))
    assert found.refit == {"max_iter": found.rounds, "tol": None}
