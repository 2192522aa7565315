from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.evaluation import importance, intervals

TASKS: tuple[Task, ...] = get_args(Task)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def score(task: Task, columns: Columns) -> np.ndarray:
    """A model that leans on x, a little on the category c, and not on z."""
    margin = 2 * np.nan_to_num(columns["x"]) + 0.7 * (columns["c"] == "a")
    p = 1 / (1 + np.exp(-margin))
    if task == "multiclass":
        return np.column_stack([1 - p, p * 0.6, p * 0.4])
    return p if task == "binary" else margin


def case(task: Task, n: int, random: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    columns: dict[str, np.ndarray] = {"z": random.normal(size=n), "c": random.choice(list("ab"), n).astype(object)}
    columns["x"] = np.where(random.random(n) < 0.1, np.nan, random.normal(size=n))
    said = score(task, columns)
    if task == "regression":
        return columns, said + random.normal(size=n)
    if task == "binary":
        return columns, (random.random(n) < said).astype(np.int64)
    return columns, np.array([random.choice(3, p=p) for p in said])


@pytest.mark.parametrize("task", TASKS)
def test_columns_are_ranked_by_what_the_model_leans_on(task: Task) -> None:
    random = rng()
    columns, y = case(task, 3000, random)
    before = {name: cells.copy() for name, cells in columns.items()}
    found = importance.permutation(
        task,
        columns,
        y,
        lambda c: score(task, c),
        intervals.grouped(random.integers(0, 30, 3000)),
        resamples=400,
        alpha=0.05,
        rng=random,
    )
    assert [i.column for i in found] == ["x", "c", "z"]
    assert all(i.increase.low > 0 for i in found[:2])
    assert found[2].increase.to_dict() == pytest.approx({"value": 0, "low": 0, "high": 0, "n": 3000, "n_blocks": 30})
    for name, cells in columns.items():
        np.testing.assert_array_equal(cells, before[name])


def test_the_value_is_the_mean_over_all_shuffles_and_its_interval_covers_it() -> None:
    """In the limit: loss with the column of another row, less loss with its own."""
    random = rng()
    columns, y = case("regression", 100_000, random)
    swapped = {**columns, "c": columns["c"][random.permutation(100_000)]}
    base, other = (target.losses("regression", y, score("regression", c)) for c in (columns, swapped))
    truth, hits = float((other - base).mean() / y.var()), 0
    for _ in range(100):
        part, labels = case("regression", 1000, random)
        found = importance.permutation(
            "regression",
            part,
            labels,
            lambda c: score("regression", c),
            intervals.grouped(random.integers(0, 50, 1000)),
            names=["c"],
            resamples=300,
            alpha=0.05,
            rng=random,
        )[0].increase
        hits += found.low <= truth <= found.high
    assert 0.82 <= hits / 100 <= 0.98


def test_many_rows_are_sampled_and_the_model_is_asked_once_per_column() -> None:
    random = rng()
    columns, y = case("binary", 4000, random)
    asked: list[int] = []

    def counted(c: Columns) -> np.ndarray:
        asked.append(len(c["x"]))
        return score("binary", c)

    given = intervals.grouped(np.arange(4000) // 100)
    found = importance.permutation(
        "binary", columns, y, counted, given, max_rows=500, repeats=4, resamples=300, alpha=0.05, rng=random
    )
    assert asked == [500, 2000, 2000, 2000]
    assert {i.increase.n for i in found} == {500}
    with pytest.raises(DataError, match="inputs are z, c, x"):
        importance.permutation("binary", columns, y, counted, given, names=["w"], resamples=300, alpha=0.05, rng=random)
