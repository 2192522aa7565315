"""Copies to a shadow: later, bounded, counted, compared."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from mlops_ray.serving import shadow
from mlops_ray.serving.canary import Apart
from mlops_ray.serving.records import Shadowed, Trial, Uncaptured
from mlops_ray.serving.shadow import Copy, Shadow
from tests.fakes import FakeLine, FakeLog


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_GATHER_S", 0.001)


def copy(identity: str, n: int = 1, version: int = 20, **told: Any) -> Copy:
    trial = Trial(version, "r1", 0.5, np.arange(n), None)
    rows = {"x": np.full(n, 0.5, dtype=np.float32)}
    return Copy(
        **({"id": identity, "stable": 10, "stable_scores": np.full(n, 0.1), "classes": (0, 1)} | told),
        columns=rows,
        trial=trial,
    )


def made(line: FakeLine, log: FakeLog, most_rows: int = 100, deadline_s: float = 30.0, task: Any = "binary") -> Shadow:
    calls = Apart(line, task, deadline_s=deadline_s)
    return Shadow(lambda version: calls, log.append, most_rows=most_rows, now=lambda: 5.0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_comparison_stands_in_the_log() -> None:
    async def run() -> None:
        log, line = FakeLog(), FakeLine(lambda n: np.full(n, 0.7))
        queue = made(line, log)
        queue.show(copy("a", 2))
        queue.show(copy("b"))
        assert line.calls == []  # the answer leaves first
        await until(lambda: len(log.records) == 2)
        first, second = log.records
        assert isinstance(first, Shadowed)
        assert isinstance(second, Shadowed)
        assert (first.id, first.at, first.stable, first.stable_scores.tolist()) == ("a", 5.0, 10, [0.1, 0.1])
        assert first.trial.scores is not None
        assert (first.trial.scores.tolist(), first.trial.failure, first.trial.rollout) == ([0.7, 0.7], "", "r1")
        assert second.id == "b"
        assert line.calls == [3]
        assert queue.status() == {"rows_waiting": 0, "rows_dropped": 0}

    asyncio.run(run())


def test_a_shadow_that_sleeps_costs_its_own_evidence() -> None:
    async def run() -> None:
        log, line = FakeLog(), FakeLine(None)
        queue = made(line, log, most_rows=5, deadline_s=0.05)
        for i in range(50):
            queue.show(copy(str(i)))
            assert queue.status()["rows_waiting"] <= 5
        await until(lambda: len([r for r in log.records if isinstance(r, Shadowed)]) == 5)
        dropped = [r for r in log.records if isinstance(r, Uncaptured)]
        assert [(r.why, r.n_rows) for r in dropped] == [("shadow", 45)]
        assert all(
            r.trial.scores is None and r.trial.failure == "deadline" for r in log.records if isinstance(r, Shadowed)
        )
        assert queue.status() == {"rows_waiting": 0, "rows_dropped": 0}

    asyncio.run(run())


def test_a_queue_works_again_after_it_was_empty() -> None:
    async def run() -> None:
        log, line = FakeLog(), FakeLine(lambda n: np.full(n, 0.7))
        queue = made(line, log)
        for i in range(3):
            queue.show(copy(str(i)))
            await until(lambda i=i: len(log.records) == i + 1)
        assert line.calls == [1, 1, 1]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("classes", "scores", "failure"),
    [(("b", "a"), [[0.75, 0.25]], ""), (("a", "c"), None, "nonsense")],
    ids=["another order", "other classes"],
)
def test_classes_are_compared_by_name(classes: tuple[str, ...], scores: Any, failure: str) -> None:
    async def run() -> None:
        log = FakeLog()
        line = FakeLine(lambda n: np.tile([0.25, 0.75], (n, 1)), classes=classes)
        queue = made(line, log, task="multiclass")
        queue.show(copy("a", stable_scores=np.array([[0.5, 0.5]]), classes=("a", "b")))
        await until(lambda: bool(log.records))
        (record,) = log.records
        assert isinstance(record, Shadowed)
        assert record.trial.failure == failure
        assert (None if record.trial.scores is None else record.trial.scores.tolist()) == scores

    asyncio.run(run())


def test_copies_for_another_version_go_in_another_call() -> None:
    async def run() -> None:
        log, line = FakeLog(), FakeLine(lambda n: np.full(n, 0.7))
        queue = made(line, log)
        queue.show(copy("a", version=20))
        queue.show(copy("b", version=30))
        await until(lambda: len(log.records) == 2)
        assert line.calls == [1, 1]

    asyncio.run(run())
