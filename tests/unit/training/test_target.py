from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from mlops_ray.errors import DataError
from mlops_ray.training import target


def column(*cells: object, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells, kind)])


def test_labels_are_places_of_sorted_classes() -> None:
    cells = column("b", "a", "c", "a")
    known = target.classes("multiclass", cells)
    assert known == ("a", "b", "c")
    assert target.encode("multiclass", known, cells).tolist() == [1, 0, 2, 0]
    assert target.encode("binary", (0, 1), column(True, False)).tolist() == [1, 0]
    assert target.encode("regression", (), column(1.5, 2)).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("task", "cells", "says"),
    [
        ("binary", column(0, 1, 2), "labels must be 0 or 1; row 2 has 2"),
        ("binary", column(0, None), "1 rows have none"),
        ("binary", column(0.0, float("nan")), "row 1 has nan"),
        ("regression", column(1.0, float("inf")), "labels must be a finite number; row 1 has inf"),
        ("regression", column(1.0, float("nan")), "labels must be a finite number; row 1 has nan"),
        ("multiclass", column("a", "x"), "row 1 is of class 'x', which is not among"),
    ],
)
def test_what_is_no_label_is_named(task: str, cells: pa.ChunkedArray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        target.encode(task, ("a", "b"), cells)  # type: ignore[arg-type]  # parametrised


def test_targets_that_teach_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="all rows are of class 'a'"):
        target.classes("multiclass", column("a", "a"))
    with pytest.raises(DataError, match="1001 classes"):
        target.classes("multiclass", column(*range(1001)))
    with pytest.raises(DataError, match="all 3 rows of the train side have one class, 1"):
        target.learnable("binary", np.ones(3), side="train")
    with pytest.raises(DataError, match=r"one value, 2\.5"):
        target.learnable("regression", np.full(4, 2.5), side="train")
    with pytest.raises(DataError, match="no rows"):
        target.learnable("regression", np.empty(0), side="train")
    target.learnable("regression", np.array([1.0, 2.0]), side="train")


def test_losses_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 50), rng.uniform(size=50)
    assert target.losses("binary", y, p).mean() == pytest.approx(metrics.log_loss(y, p))
    many, shares = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    assert target.losses("multiclass", many, shares).mean() == pytest.approx(metrics.log_loss(many, shares))
    real, guess = rng.normal(size=50), rng.normal(size=50)
    assert target.losses("regression", real, guess).mean() == pytest.approx(metrics.mean_squared_error(real, guess))
    assert np.isfinite(target.losses("binary", [1, 0], [0.0, 1.0])).all()


def test_the_constant_is_the_best_of_all_constants() -> None:
    y = np.array([0, 1, 1, 2, 2, 2])
    best = target.losses("multiclass", y, target.constant("multiclass", y, 3)).mean()
    for other in np.random.default_rng(0).dirichlet(np.ones(3), 50):
        assert best <= target.losses("multiclass", y, np.tile(other, (6, 1))).mean()
    assert target.constant("binary", np.array([0, 1, 1, 1]), 2).tolist() == [0.75] * 4


@pytest.mark.parametrize(
    ("task", "y", "scores", "says"),
    [
        ("binary", [0, 1], [0.1], "equally long"),
        ("binary", [], [], "not empty"),
        ("binary", [0, 2], [0.1, 0.2], "labels must be 0 or 1; row 1 has 2"),
        ("binary", [0, 1], [0.1, np.nan], r"scores must be in \[0, 1\]; row 1 has nan"),
        ("multiclass", [0, 1], [0.1, 0.2], "equally long"),
        ("multiclass", [0, 3], [[0.2, 0.3, 0.5]] * 2, "whole numbers from 0 to 2; row 1 has 3"),
        ("multiclass", [0, 1], [[0.2, 0.3, 0.5], [0.5, 0.5, 0.5]], "add up to 1; row 1 has 1.5"),
        ("multiclass", [0, 1], [[0.2, 0.3, 0.5], [1.5, -0.5, 0.0]], r"in \[0, 1\]; row 1 has 1.5"),
        ("regression", [0.0, np.inf], [0.1, 0.2], "labels must be finite; row 1 has inf"),
        ("regression", [0.0, 1.0], [0.1, np.nan], "predictions must be finite; row 1 has nan"),
    ],
)
def test_what_is_no_label_or_score_is_refused(task: str, y: list[float], scores: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        target.checked(task, y, scores)  # type: ignore[arg-type]  # parametrised
