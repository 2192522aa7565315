from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from sklearn import metrics

from mlops_ray.config import SearchMetric
from mlops_ray.errors import DataError
from mlops_ray.training.search import measures

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 200)
P = RNG.uniform(0.01, 0.99, 200)
CLASSES = RNG.integers(0, 3, 200)
MANY = RNG.dirichlet(np.ones(3), 200)
NUMBER, SAID = RNG.normal(size=200), RNG.normal(size=200)
W = RNG.uniform(0.1, 3, 200)


def macro(area: Any) -> Any:
    return lambda y, p, w: np.mean([area(y == i, p[:, i], sample_weight=w) for i in range(3)])


def by_class_brier(y: Any, p: Any, w: Any) -> float:
    return float(metrics.brier_score_loss(y, p, sample_weight=w, scale_by_half=False))


@pytest.mark.parametrize("weights", [None, W])
@pytest.mark.parametrize(
    ("metric", "task", "y", "scores", "theirs"),
    [
        ("log_loss", "binary", Y, P, lambda y, p, w: metrics.log_loss(y, p, sample_weight=w)),
        ("brier", "binary", Y, P, lambda y, p, w: metrics.brier_score_loss(y, p, sample_weight=w)),
        ("roc_auc", "binary", Y, P, lambda y, p, w: metrics.roc_auc_score(y, p, sample_weight=w)),
        ("pr_auc", "binary", Y, P, lambda y, p, w: metrics.average_precision_score(y, p, sample_weight=w)),
        ("log_loss", "multiclass", CLASSES, MANY, lambda y, p, w: metrics.log_loss(y, p, sample_weight=w)),
        ("brier", "multiclass", CLASSES, MANY, by_class_brier),
        ("roc_auc", "multiclass", CLASSES, MANY, macro(metrics.roc_auc_score)),
        ("pr_auc", "multiclass", CLASSES, MANY, macro(metrics.average_precision_score)),
        ("rmse", "regression", NUMBER, SAID, lambda y, p, w: metrics.root_mean_squared_error(y, p, sample_weight=w)),
        ("mae", "regression", NUMBER, SAID, lambda y, p, w: metrics.mean_absolute_error(y, p, sample_weight=w)),
        ("pinball", "regression", NUMBER, SAID, lambda y, p, w: metrics.mean_pinball_loss(y, p, sample_weight=w)),
    ],
)  # fmt: skip
def test_measures_are_those_of_scikit_learn(
    metric: Any, task: Any, y: Any, scores: Any, theirs: Any, weights: Any
) -> None:
    assert measures.measure(metric, task, y, scores, weights) == pytest.approx(theirs(y, scores, weights), rel=1e-9)


def test_every_metric_has_a_direction_and_a_default() -> None:
    assert {m for m in get_args(SearchMetric) if measures.loss(m, 1.0) < 0} == {"roc_auc", "pr_auc"}
    assert measures.metric_of(None, "regression") == "rmse"
    assert measures.metric_of(None, "multiclass") == "log_loss"
    assert measures.metric_of("brier", "binary") == "brier"
    assert measures.best("roc_auc", [0.5, 0.7]) == 0.7
    assert measures.best("rmse", [0.5, 0.7]) == 0.5


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(DataError, match="no finite numbers"):
        measures.measure("rmse", "regression", NUMBER, np.full(200, np.nan))
    with pytest.raises(DataError, match="roc_auc needs two classes"):
        measures.measure("roc_auc", "binary", np.ones(200, dtype=int), P)
