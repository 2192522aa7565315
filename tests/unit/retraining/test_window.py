"""Which rows a retrain learns from, by strategy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlops_ray.config import DAY_S, Project, Retraining
from mlops_ray.errors import DataError
from mlops_ray.retraining.window import choose

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
NOW = FIRST.timestamp() + 100 * DAY_S
"""Rows are one an hour, for a hundred days; the label horizon is two days."""


def project(*, least: int = 10, unique: bool = False, **retraining: Any) -> Project:
    return Project.model_validate(
        {
            "project": "small",
            "task": "binary",
            "target": "y",
            "key": "id",
            "event_time": "at",
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "y", "dtype": "int"},
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "x", "dtype": "float", "min": 0},
            ],
            "validation": {"min_rows": least, "max_bad_share": 0.1, "unique": ["id"] if unique else []},
            "features": {"numeric": {"columns": ["x"]}},
            "search": {"candidates": ["sklearn.linear_model:LogisticRegression"]},
            "retraining": retraining,
        }
    )


def hours(numbers: list[int], x: float = 1.0) -> pa.Table:
    return pa.table(
        {
            "y": [n % 2 for n in numbers],
            "id": [f"r{n}" for n in numbers],
            "at": pa.array([FIRST + timedelta(hours=n) for n in numbers], pa.timestamp("us", tz="UTC")),
            "x": [x] * len(numbers),
        }
    )


def chosen(plan: Project, table: pa.Table, began: float | None = None) -> list[int]:
    found = choose(plan, plan.columns, table, NOW, began=began).rows
    return sorted(int(identity[1:]) for identity in found["id"].to_pylist())


ALL = list(range(2400))
MATURE = 98 * 24


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        ({"window_s": 60 * DAY_S}, 40 * 24),
        ({"train_on": "rows", "window_rows": 100}, MATURE - 100),
        ({"train_on": "all"}, 0),
        ({"train_on": "since_drift"}, 90 * 24),
    ],
)
def test_each_strategy_takes_its_rows_and_none_younger_than_the_horizon(plan: dict[str, Any], first: int) -> None:
    found = chosen(project(**plan), hours(ALL), began=FIRST.timestamp() + 90 * DAY_S)
    assert found == list(range(first, MATURE))


def test_since_the_drift_reaches_back_for_as_many_rows_as_are_needed() -> None:
    plan = project(least=500, train_on="since_drift")
    assert chosen(plan, hours(ALL), began=FIRST.timestamp() + 97 * DAY_S) == list(range(MATURE - 500, MATURE))


def test_without_a_drift_all_rows_are_since_it() -> None:
    assert chosen(project(train_on="since_drift"), hours(ALL)) == list(range(MATURE))


def test_too_few_rows_and_too_many_bad_ones_are_refused() -> None:
    with pytest.raises(DataError, match="20 labelled rows in the window; 21 are needed"):
        choose(project(least=21, train_on="rows", window_rows=20), project().columns, hours(ALL), NOW)
    bad = pa.concat_tables([hours(ALL[:80]), hours(ALL[80:100], x=-1.0)])
    with pytest.raises(DataError, match=r"20\.0% of the rows are bad"):
        choose(project(train_on="all"), project().columns, bad, NOW)


@given(st.lists(st.integers(0, 2399), min_size=10, max_size=40, unique=True), st.integers(1, 60))
def test_the_newest_rows_are_the_newest_whatever_their_order(numbers: list[int], n: int) -> None:
    mature = sorted(number for number in numbers if number < MATURE)
    plan = project(least=1, train_on="rows", window_rows=n)
    if mature:
        assert chosen(plan, hours(numbers)) == mature[-n:]


def test_of_rows_that_repeat_the_last_stays() -> None:
    table = pa.concat_tables([hours(ALL[:50], x=1.0), hours(ALL[:50], x=2.0)])
    found = choose(project(unique=True, train_on="all"), project().columns, table, NOW)
    assert set(found.rows["x"].to_pylist()) == {2.0}
    assert found.counts["repeated"] == 50


@pytest.mark.parametrize(
    ("plan", "says"),
    [({"train_on": "rows"}, "add `window_rows: 50000`"), ({"window_rows": 5}, "say `train_on: rows`")],
)
def test_what_does_not_fit_is_said(plan: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Retraining.model_validate(plan)
