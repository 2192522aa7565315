from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from sklearn import metrics as sk

from mlops_ray.config import Metric, Task
from mlops_ray.config.training import TASK_METRICS
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import intervals, metrics
from mlops_ray.training.evaluation.intervals import Blocks, Estimate

TASKS: tuple[Task, ...] = get_args(Task)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def scored(task: Task, n: int, n_blocks: int = 20) -> tuple[np.ndarray, np.ndarray, Blocks]:
    """Labels, scores with ties, blocks of unequal size."""
    random = rng()
    grouped = intervals.grouped(random.integers(0, n_blocks, n) * random.integers(1, 3, n) % n_blocks)
    if task == "regression":
        y = random.normal(3, 2, n)
        return y, np.round(y + random.standard_t(3, n), 1), grouped
    if task == "binary":
        p = np.round(random.beta(2, 3, n), 2)
        return (random.random(n) < p).astype(np.int64), p, grouped
    p = np.round(random.dirichlet([1.0, 2.0, 0.6, 1.5], n), 2)
    p[:, 0] += 1 - p.sum(axis=1)
    p = np.abs(p)
    p /= p.sum(axis=1, keepdims=True)
    return np.array([random.choice(4, p=row) for row in p]), p, grouped


def evaluate(task: Task, y: Any, scores: Any, grouped: Blocks, **changes: Any) -> dict[Metric, Estimate]:
    settings: dict[str, Any] = {"resamples": 500, "alpha": 0.05, "rng": rng()} | changes
    return metrics.evaluate(task, y, scores, grouped, **settings)


def gaps(said: np.ndarray, happened: np.ndarray, bins: np.ndarray) -> float:
    """Expected calibration error, bin by bin."""
    return float(sum(abs((said - happened)[bins == b].sum()) for b in np.unique(bins)) / len(said))


def by_scikit_learn(task: Task, y: np.ndarray, s: np.ndarray, threshold: float) -> dict[Metric, float]:
    """All but the calibration error, which it does not have."""
    if task == "regression":
        return {
            "mae": sk.mean_absolute_error(y, s),
            "rmse": sk.root_mean_squared_error(y, s),
            "r2": sk.r2_score(y, s),
            "median_absolute_error": sk.median_absolute_error(y, s),
            "pinball": sk.mean_pinball_loss(y, s, alpha=0.5),
        }
    decided = s.argmax(axis=1) if task == "multiclass" else (s >= threshold).astype(int)
    several = {"average": "macro" if task == "multiclass" else "binary", "zero_division": 0.0}
    one = np.eye(4)[y] if task == "multiclass" else y
    return {
        "log_loss": sk.log_loss(y, np.clip(s, 1e-6, 1 - 1e-6) if task == "binary" else s),
        "brier": sk.brier_score_loss(y, s),
        "roc_auc": sk.roc_auc_score(y, s, multi_class="ovr"),
        "pr_auc": sk.average_precision_score(one, s),
        "accuracy": sk.accuracy_score(y, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(y, decided),
        "precision": sk.precision_score(y, decided, **several),
        "recall": sk.recall_score(y, decided, **several),
        "f1": sk.f1_score(y, decided, **several),
    }


@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_those_of_scikit_learn(task: Task) -> None:
    y, scores, grouped = scored(task, 2000)
    found = evaluate(task, y, scores, grouped, threshold=0.4)
    assert found.keys() == TASK_METRICS[task]
    for name, value in by_scikit_learn(task, y, scores, 0.4).items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high
        assert (estimate.n, estimate.n_blocks) == (2000, 20)


@pytest.mark.parametrize("task", TASKS)
def test_a_resample_is_the_metric_of_the_repeated_rows(task: Task) -> None:
    y, scores, grouped = scored(task, 400, n_blocks=7)
    weights = intervals.resample(len(grouped), 4, rng())
    if task == "regression":
        drawn = metrics._errors(y, scores, grouped, weights)
    else:
        drawn = metrics._probabilities(task, y, scores, grouped, weights)
        drawn |= metrics._decisions(task, y, scores, 0.4, grouped, weights)
    for i, w in enumerate(weights):
        rows = np.repeat(np.arange(len(y)), w.astype(int)[grouped.index])
        for name, value in by_scikit_learn(task, y[rows], scores[rows], 0.4).items():
            assert drawn[name][i] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_calibration_error_is_that_of_ten_bins_of_equal_size(task: Task) -> None:
    y, scores, grouped = scored(task, 1003, n_blocks=9)
    scores = scores + rng().uniform(0, 1e-9, scores.shape)  # no ties: bins are those of array_split
    scores = np.clip(scores / (scores.sum(axis=1, keepdims=True) if task == "multiclass" else 1), 0, 1)
    said, happened = metrics.confidence(task, y, scores)
    bins = np.empty(len(y), dtype=int)
    for i, part in enumerate(np.array_split(np.argsort(said), 10)):
        bins[part] = i
    assert evaluate(task, y, scores, grouped)["calibration_error"].value == pytest.approx(gaps(said, happened, bins))
    weights = intervals.resample(len(grouped), 3, rng())
    errors, _ = metrics._calibration_error(said, happened, grouped, weights)
    for w, error in zip(weights, errors, strict=True):
        rows = np.repeat(np.arange(len(y)), w.astype(int)[grouped.index])
        assert error == pytest.approx(gaps(said[rows], happened[rows], bins[rows]))


def test_equal_scores_share_a_bin() -> None:
    """A constant that is right is calibrated, however its rows lie; cut in ten they would not be."""
    y = np.repeat([0, 1, 0, 1], 50)
    found = evaluate("binary", y, np.full(200, 0.5), intervals.grouped(np.arange(200) % 20))
    assert found["calibration_error"].value == 0


def covered(draw: Callable[[int], tuple[Task, np.ndarray, np.ndarray, Blocks]], names: set[Metric]) -> None:
    """Nine of ten intervals hold the value of 1,500 blocks, give or take three standard errors of 2.7 %."""
    truth = evaluate(*draw(1500), resamples=200)
    hits = dict.fromkeys(names, 0)
    for _ in range(120):
        found = evaluate(*draw(20), resamples=300)
        for name in names:
            hits[name] += found[name].low <= truth[name].value <= found[name].high
    for name, n in hits.items():
        assert 0.82 <= n / 120 <= 0.97, name


def test_intervals_cover_as_promised_with_correlated_days() -> None:
    """Rows share a day's effect: a row bootstrap would miss the truth far more often."""
    random = rng()

    def draw(days: int) -> tuple[Task, np.ndarray, np.ndarray, Blocks]:
        day = np.repeat(np.arange(days), 60)
        p = np.round(random.uniform(0.1, 0.9, len(day)), 2)
        moved = np.clip(p + random.normal(0, 0.1, days)[day], 0.01, 0.99)
        return "binary", (random.random(len(day)) < moved).astype(int), p, Blocks(day, np.full(days, np.nan))

    covered(draw, {"brier", "roc_auc", "pr_auc", "f1", "balanced_accuracy", "log_loss"})


def test_intervals_of_a_regression_cover_as_promised() -> None:
    random = rng()

    def draw(days: int) -> tuple[Task, np.ndarray, np.ndarray, Blocks]:
        day = np.repeat(np.arange(days), 40)
        y = random.normal(size=len(day)) + random.normal(0, 0.5, days)[day]
        return "regression", y, y + random.standard_t(5, len(day)), Blocks(day, np.full(days, np.nan))

    covered(draw, {"median_absolute_error", "r2", "rmse"})


@pytest.mark.parametrize(("bend", "least"), [(0.0, 0.91), (0.15, 0.91)])
def test_the_calibration_error_of_a_calibrated_model_may_be_zero(bend: float, least: float) -> None:
    """Noise alone makes the error of a perfect model positive; its lower bound must not take it for a fault."""
    random, runs = rng(), 100
    low = high = 0
    steps = np.linspace(0.2, 0.8, 200_001)
    truth = float(np.mean([abs(part.mean()) for part in np.array_split(bend * np.sin(5 * steps), 10)]))
    for _ in range(runs):
        p = np.round(random.uniform(0.2, 0.8, 1500), 2)
        y = (random.random(1500) < p).astype(int)
        grouped = intervals.grouped(random.integers(0, 30, 1500))
        found = evaluate("binary", y, p + bend * np.sin(5 * p), grouped, resamples=300, rng=random)
        low += found["calibration_error"].low <= truth
        high += truth <= found["calibration_error"].high
    assert low / runs >= least  # each bound promises 95 %
    assert high / runs >= least


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_one_class_leaves_ranking_undefined(task: Task) -> None:
    scores = np.full(60, 0.7) if task == "binary" else np.tile([0.2, 0.7, 0.1], (60, 1))
    found = evaluate(task, np.ones(60, dtype=int), scores, intervals.grouped(np.arange(60) % 10))
    for name in ("roc_auc", "pr_auc", "balanced_accuracy"):
        assert np.isnan(found[name].value)
        assert found[name].to_dict() == {"value": None, "low": None, "high": None, "n": 60, "n_blocks": 10}
    assert found["accuracy"].value == 1
    assert found["log_loss"].value == pytest.approx(-np.log(0.7))


def test_what_has_no_positive_row_has_no_recall() -> None:
    grouped = intervals.grouped(np.arange(60) % 10)
    silent = evaluate("binary", np.zeros(60, dtype=int), np.full(60, 0.1), grouped)
    assert all(np.isnan(silent[name].value) for name in ("precision", "recall", "f1"))
    loud = evaluate("binary", np.zeros(60, dtype=int), np.full(60, 0.9), grouped)
    assert np.isnan(loud["recall"].value)
    assert (loud["precision"].value, loud["f1"].value) == (0, 0)
    y = np.tile([0, 0, 1], 20)
    never = evaluate("binary", y, np.full(60, 0.1), grouped)
    assert (never["precision"].value, never["recall"].value, never["f1"].value) == (0, 0, 0)
    assert never["roc_auc"].value == 0.5


def test_a_class_that_the_holdout_lacks_does_not_count() -> None:
    y, scores, grouped = scored("multiclass", 600)
    kept = y != 2
    found = evaluate("multiclass", y[kept], scores[kept], intervals.grouped(grouped.index[kept]))
    aucs = [sk.roc_auc_score(y[kept] == k, scores[kept][:, k]) for k in (0, 1, 3)]
    assert found["roc_auc"].value == pytest.approx(np.mean(aucs))
    decided = scores[kept].argmax(axis=1)
    assert found["f1"].value == pytest.approx(sk.f1_score(y[kept], decided, average="macro", zero_division=0.0))


def test_a_constant_target_has_no_r2() -> None:
    found = evaluate("regression", np.full(50, 1e6 + 0.3), np.linspace(0, 1, 50), intervals.grouped(np.arange(50) % 10))
    assert np.isnan(found["r2"].value)
    assert found["mae"].value == pytest.approx(1e6 - 0.2)


def test_few_rows_and_few_blocks_have_values_and_no_interval() -> None:
    for task in TASKS:
        y, scores, _ = scored(task, 100)
        for n, n_blocks in ((100, 2), (2, 2), (1, 1)):
            found = evaluate(task, y[:n], scores[:n], intervals.grouped(np.arange(n) % n_blocks))
            assert all(np.isnan(e.low) and np.isnan(e.high) for e in found.values())
            assert all(np.isfinite(found[name].value) for name in found.keys() & {"log_loss", "brier", "mae"})


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([0, 1], [0.1], "equally long"),
        ([], [], "not empty"),
        ([0, 2], [0.1, 0.2], "labels must be 0 or 1; row 1 has 2"),
        ([0, 1], [0.1, 1.2], "row 1 has 1.2"),
        ([0, float("nan")], [0.1, 0.2], "row 1 has nan"),
    ],
)
def test_what_is_no_label_or_probability_is_named(y: list[float], p: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate("binary", y, p, intervals.grouped(np.arange(len(y))))


def test_units_of_losses() -> None:
    y = np.array([0.0, 10.0, 20.0])
    assert metrics.unit("regression", y) == pytest.approx(y.var())
    assert metrics.unit("regression", np.full(30, 1e6 + 0.3)) == 1  # whose variance is rounding, and not 0
    assert metrics.unit("binary", [0, 1]) == 1
    guess = metrics.row_losses("regression", y, np.full(3, y.mean()), metrics.unit("regression", y))
    assert guess.mean() == pytest.approx(1)  # R² of 0


@pytest.mark.parametrize("task", TASKS)
def test_intervals_of_ten_thousand_rows_are_quick(task: Task) -> None:
    y, scores, grouped = scored(task, 10_000, n_blocks=60)
    began = time.perf_counter()
    evaluate(task, y, scores, grouped, resamples=2000)
    assert time.perf_counter() - began < 4.0  # 0.02 to 0.3 s on an idle core; row by row takes minutes
