"""Small rows with a signal, and pipelines over them, for all tests of the training room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlops_ray.config import Features
from mlops_ray.data import profile
from mlops_ray.data.features import statistics as statistics_of
from mlops_ray.data.features import transformer as feature_room
from mlops_ray.data.profile import Columns
from mlops_ray.training.artifact.model import Reference

DAY_S = 86_400.0
FEATURES = Features.model_validate(
    {"numeric": {"columns": ["pressure", "hour", "rain"]}, "categorical": {"columns": ["carrier", "origin"]}}
)


@dataclass(frozen=True)
class Rows:
    table: pa.Table
    columns: Columns
    y: np.ndarray
    times: np.ndarray
    statistics: statistics_of.Partial

    def fit(self, estimator: Any = None) -> Pipeline:
        chosen = estimator
        if chosen is None:
            chosen = HistGradientBoostingClassifier(max_iter=30, early_stopping=False, random_state=0)
        fitted = feature_room.transformer(FEATURES, self.statistics)
        matrix = fitted.transform(statistics_of.to_frame(FEATURES, self.columns))
        return Pipeline([("features", fitted), ("model", chosen.fit(matrix, self.y))])

    @property
    def reference(self) -> Reference:
        bins = feature_room.bins(FEATURES, self.statistics)
        scores = np.linspace(0, 1, len(self.y))
        return Reference(
            bins, DAY_S, ((0.0, profile.fold(bins, self.columns, scores)),), ((0.0, len(self.y), 12.5, 40),)
        )


def make_rows(n: int = 3000, seed: int = 0) -> Rows:
    """Values that tie with split thresholds (four decimals, an offset), nulls, and 30 days of time."""
    rng = np.random.default_rng(seed)
    pressure = np.round(rng.normal(1016, 7, n), 4)
    hour = rng.integers(0, 24, n).astype(np.float64)
    carrier = rng.choice(["UA", "AA", "DL"], n)
    times = np.sort(rng.uniform(0, 30 * DAY_S, n))
    logit = (1016 - pressure) / 7 + (hour - 12) / 8 + (carrier == "UA")
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    table = pa.table(
        {
            "pressure": pa.array(pressure, mask=rng.random(n) < 0.1),
            "hour": hour,
            "rain": pa.array(rng.exponential(1, n), mask=rng.random(n) < 0.3),
            "carrier": pa.array(carrier, mask=rng.random(n) < 0.05),
            "origin": rng.choice(["EWR", "JFK"], n),
        }
    )
    columns = statistics_of.to_columns(FEATURES, table)
    return Rows(table, columns, y, times, statistics_of.fold(FEATURES, table))


@pytest.fixture(scope="session")
def rows() -> Rows:
    return make_rows()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """OpenMP's threads wait busily for each other: fits of a few rows take seconds when other work shares the cores."""
    with threadpool_limits(1):
        yield
