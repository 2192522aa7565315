"""Stand-ins for what needs a cluster or a trained model, and a small project to go with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data.profile import Columns
from mlops_ray.serving.service import Held


def project(**blocks: Any) -> Project:
    """A project with a column of every kind; `blocks` replace blocks of its file."""
    body: dict[str, Any] = {
        "project": "small",
        "task": "binary",
        "target": "late",
        "key": "who",
        "event_time": "at",
        "source": {"kind": "csv", "path": "rows.csv"},
        "columns": [
            {"name": "who", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "late", "dtype": "int"},
            {"name": "x", "dtype": "float", "nullable": True},
            {"name": "n", "dtype": "int"},
            {"name": "flag", "dtype": "bool"},
            {"name": "c", "dtype": "string", "nullable": True},
            {"name": "d", "dtype": "string"},
        ],
        "features": {"numeric": {"columns": ["x", "n", "flag"]}, "categorical": {"columns": ["c", "d"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model.LogisticRegression"}]},
    }
    return Project.model_validate(body | blocks)


def row(who: str = "k1", **values: Any) -> dict[str, Any]:
    """A good row of `project()`."""
    return {"who": who, "at": 1e9, "x": 0.5, "n": 2, "flag": True, "c": "red", "d": "blue"} | values


class FakeScorer:
    """A loaded version that gives every row the same probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def score(self, columns: Columns) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.full(len(next(iter(columns.values()))), self.probability)


class FakeLoader:
    """Loads version v as a scorer that answers v / 100; `broken` versions raise."""

    def __init__(self, *, broken: tuple[int, ...] = ()) -> None:
        self.broken, self.loaded = broken, list[int]()

    def __call__(self, held: Held) -> FakeScorer:
        if held.version in self.broken:
            raise RuntimeError(f"artifact of v{held.version} is torn")
        self.loaded.append(held.version)
        return FakeScorer(held.version / 100)


def held(version: int) -> Held:
    return Held(version, f"/models/{version}", f"sha-{version}")


def canary(answer: Callable[[int], Any] | BaseException | None, calls: list[int] | None = None) -> Any:
    """A `CallCanary` that answers `answer(n)` for n rows, raises `answer`, or (None) never comes back."""

    async def call(version: int, columns: Columns) -> Any:
        n = len(next(iter(columns.values())))
        if calls is not None:
            calls.append(n)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer(n)  # type: ignore[misc]

    return call


def no_canary() -> Callable[[int, Columns], Awaitable[Any]]:
    """A `CallCanary` for tests in which nobody should call it."""
    return canary(AssertionError("no canary was wanted"))  # type: ignore[no-any-return]


def eventually(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    """Wait for a thread to get there."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)
