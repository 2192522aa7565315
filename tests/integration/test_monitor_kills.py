"""The monitor killed at its fault points, and by SIGKILL at any instant: what it leaves is as if it had lived."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mlops_ray.monitoring.loop import Point
from mlops_ray.state import Store
from tests.monitors import START, Killed, Run, Story, kill_at
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]

POINTS: tuple[Point, ...] = get_args(Point)
STORY = Story(n_blocks=20, shifted=12, turned=7)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.monitors"])


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        yield server.new_database
    else:
        numbers = iter(range(1_000_000))
        yield lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of a classifier on a few hundred rows wait for each other longer than they work."""
    with threadpool_limits(1):
        yield


def told(state: str, fault: Callable[[Point], None] = lambda point: None) -> Run:
    """The whole story; the database is still open."""
    run = Run(STORY, state, fault)
    run.tell()
    return run


def left_by(run: Run) -> dict[str, Any]:
    """What the story leaves behind; the database is closed."""
    try:
        return run.left_behind()
    finally:
        run.world.store.close()


def test_a_monitor_that_is_killed_at_any_point_leaves_behind_what_one_that_lives_does(
    new_database: Callable[[], str],
) -> None:
    passed: list[Point] = []
    whole = told(new_database(), passed.append)
    expected = left_by(whole)
    assert set(passed) == set(POINTS) - {"stopped"}
    assert {"drift", "quality", "estimated", "sequential"} <= {key for w in expected["windows"] for key in w[3]}
    assert {trigger for trigger, *_ in expected["retrains"]} == {"drift", "performance"}
    # Of each point its last coming, and of all of them a sample.
    killings = [kill_at(passed.count(point) - 1, point) for point in sorted(set(passed))]
    killings += [kill_at(int(when)) for when in np.linspace(1, len(passed) - 2, 8)]
    for fault in killings:
        assert left_by(told(new_database(), fault)) == expected
    # Each decision has become one job: none two, none none.
    of_each, all_of_them = expected["jobs"]
    assert of_each == [1] * all_of_them
    counted = whole.recount()
    profiles = {block: body for _, block, body in expected["profiles"]}
    assert profiles == {block: profile.to_dict() for block, profile in counted.items()}


def live(state: str, machine_s: float) -> None:
    """A process that goes on with the story where the database says that it stands."""
    run = Run(STORY, state)
    run.world.machine_s = machine_s
    with threadpool_limits(1):
        run.tell()


def test_windows_after_kill_9_at_any_instant_equal_those_of_an_uninterrupted_run(
    new_database: Callable[[], str],
) -> None:
    """The collector pushes everything again from the start, as one that has forgotten what it was told: each push is
    folded once. The policy may not retrain here, since its clock is that of whoever died."""
    expected = left_by(told(new_database()))
    state, rng = new_database(), np.random.default_rng(0)
    Store.open(state).close()
    deaths = 0
    while True:
        process = PROCESSES.Process(target=live, args=(state, START), daemon=True)
        process.start()
        process.join(float(rng.uniform(0.05, 1.5)) if deaths < 12 else 60.0)
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        deaths += 1
        time.sleep(0.01)  # PostgreSQL has to notice
    assert deaths > 0
    left = left_by(Run(STORY, state))
    for kept in ("profiles", "detectors", "judged", "rows"):
        assert left[kept] == expected[kept], kept
    assert _judged(left) == _judged(expected)


def _judged(left: dict[str, Any]) -> list[Any]:
    """Windows without what the policy made of them, which hangs on jobs that die with their process here."""
    return [
        (start, end, version, {kind: {k: v for k, v in e.items() if k != "decision"} for kind, e in result.items()})
        for start, end, version, result in left["windows"]
    ]


def test_a_story_is_the_same_again(tmp_path: Path) -> None:
    first, second = (left_by(told(f"sqlite:///{tmp_path}/{i}.db")) for i in range(2))
    assert first == second
    with pytest.raises(Killed):
        kill_at(0)("clock")
