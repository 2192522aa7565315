from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from mlops_ray.config import SearchMetric, Task
from mlops_ray.config.training import TASK_METRICS
from mlops_ray.training.search import measures, sums

METRICS: list[tuple[Task, SearchMetric]] = [
    *((task, metric) for task in ("binary", "multiclass") for metric in ("log_loss", "brier", "roc_auc", "pr_auc")),
    *(("regression", metric) for metric in ("rmse", "mae", "pinball")),
]  # type: ignore[misc]  # literals lose their type in a comprehension


def rows(task: Task, n: int = 4000) -> tuple[NDArray[np.generic], NDArray[np.float64], NDArray[np.float32]]:
    """Labels, scores that know something of them, weights."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 3.0, n).astype(np.float32)
    if task == "regression":
        y = rng.normal(size=n)
        return y, y + rng.normal(size=n), weights
    if task == "binary":
        scores = 1 / (1 + np.exp(-rng.normal(-2, 2, size=n)))
        return (rng.random(n) < scores).astype(np.int64), scores, weights
    logits = rng.normal(size=(n, 4))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.array([rng.choice(4, p=p) for p in scores]), scores, weights


@pytest.mark.parametrize(("task", "metric"), METRICS)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_parts_make_the_metric_of_the_whole(task: Task, metric: SearchMetric, weighted: bool) -> None:
    y, scores, drawn = rows(task)
    weights = drawn if weighted else None
    n_classes = {"binary": 2, "multiclass": 4, "regression": 0}[task]
    cuts = [0, 0, 7, 1500, 1501, len(y)]  # parts without rows, and of one
    parts = [
        sums.sums(metric, task, n_classes, y[a:b], scores[a:b], weights[a:b] if weights is not None else None)
        for a, b in pairwise(cuts)
    ]
    found = sums.value(metric, np.sum(parts, axis=0))
    exact = measures.measure(metric, task, y, scores, None if weights is None else weights.astype(np.float64))
    # Curves count scores by their upper bits; precision moves more by a tie than the area under ROC does.
    assert found == pytest.approx(exact, abs={"roc_auc": 2e-4, "pr_auc": 1e-3}.get(metric, 1e-9))


def test_every_metric_of_a_search_has_sums() -> None:
    assert {metric for _, metric in METRICS} <= TASK_METRICS["binary"] | TASK_METRICS["regression"]


def test_many_classes_are_counted_coarsely_and_still_closely() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3000, 12))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = np.array([rng.choice(12, p=p) for p in scores])
    added = sums.sums("roc_auc", "multiclass", 12, y, scores, None)
    assert added.nbytes < 2 * 1024**2
    assert sums.value("roc_auc", added) == pytest.approx(measures.measure("roc_auc", "multiclass", y, scores), abs=1e-3)


def test_what_cannot_be_computed_is_no_number() -> None:
    one_class = sums.sums("roc_auc", "binary", 2, np.ones(5, dtype=np.int64), np.full(5, 0.5), None)
    assert np.isnan(sums.value("roc_auc", one_class))
    nothing = sums.sums("log_loss", "binary", 2, np.empty(0, dtype=np.int64), np.empty(0), None)
    assert np.isnan(sums.value("log_loss", nothing))
