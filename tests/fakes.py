"""Stand-ins for what needs a cluster or a trained model, and a small project to go with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mlops_ray.config import Project, Task
from mlops_ray.data.profile import Bins, Columns, empty
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.canary import Told
from mlops_ray.serving.records import Labelled, Record, Scored, Watermark
from mlops_ray.serving.versions import Held
from mlops_ray.training.artifact.model import Reference


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
    """A loaded binary version that gives every row the same probability; its reference counted one block of no rows."""

    engine: str = "onnx"
    task: Task = "binary"
    classes: tuple[Any, ...] = (0, 1)
    threshold: float | None = None
    reference = Reference(Bins({}, {}), 100.0, ((0.0, empty(Bins({}, {}))),), ())

    def __init__(self, probability: float, **unlike: Any) -> None:
        self.probability = probability
        vars(self).update(unlike)

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


class FakeLine:
    """The way to a version that answers `answer(n)` for n rows, raises `answer`, or (None) never comes back."""

    def __init__(self, answer: Callable[[int], Any] | BaseException | None, **told: Any) -> None:
        self.answer, self.told = answer, told
        self.calls: list[int] = []
        self.closed = self.looked_for = False
        self.apart_s = 0.0

    def find(self) -> None:
        self.looked_for = True

    async def call(self, columns: Columns) -> Any:
        n = len(next(iter(columns.values())))
        self.calls.append(n)
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        scores = self.answer(n)  # type: ignore[misc]  # neither None nor an exception
        return Told(scores, **({"classes": (0, 1)} | self.told))

    def close(self) -> None:
        self.closed = True


def canary(answer: Callable[[int], Any] | BaseException | None, **told: Any) -> Callable[[int], FakeLine]:
    """Lines to a version on trial, whatever its number: always the same one."""
    line = FakeLine(answer, **told)
    return lambda version: line


def no_canary(version: int) -> FakeLine:
    """For tests in which nobody should call one."""
    raise AssertionError("no canary was wanted")


class FakeLog:
    """A prediction log in memory. `full`: keeps nothing more; `refuses`: what it raises for labels then."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.full = False
        self.durable_calls = 0
        self.is_durable = True

    def append(self, record: Record) -> bool:
        if self.full:
            if isinstance(record, Labelled | Watermark):
                raise BackendUnavailable("the prediction log", "No space left on device; free its disk")
            return False
        self.records.append(record)
        return True

    async def keep(self, record: Scored) -> bool:
        return self.append(record)

    async def durable(self) -> bool:
        self.durable_calls += 1
        await asyncio.sleep(0)
        return self.is_durable


def eventually(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    """Wait for a thread to get there."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)
