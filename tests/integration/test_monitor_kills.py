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
STORY = Story(n_blocks=20, shifted=9, turned=13)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.monitors"])


@pytest.fixture(params=["sqlite", "postgres"])
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
    run = Run(STORY, state, fault)
    run.tell()
    return run


def comes_by(state: str) -> list[Point]:
    """The points that a monitor comes by, in order, when nobody kills it."""
    found: list[Point] = []
    told(state, found.append)
    return found


def test_a_monitor_that_is_killed_at_any_point_leaves_behind_what_one_that_lives_does(
    new_database: Callable[[], str],
) -> None:
    whole = told(new_database())
    expected = whole.left_behind()
    passed = comes_by(new_database())
    assert set(passed) == set(POINTS) - {"stopped"}
    assert {"drift", "quality", "estimated", "sequential"} <= {key for w in expected["windows"] for key in w[3]}
    assert {trigger for trigger, *_ in expected["retrains"]} == {"drift", "performance"}
    # Of each point its last coming, and of all of them a sample.
    killings = [kill_at(passed.count(point) - 1, point) for point in sorted(set(passed))]
    killings += [kill_at(int(when)) for when in np.linspace(1, len(passed) - 2, 8)]
    for fault in killings:
        run = told(new_database(), fault)
        assert run.left_behind() == expected
        # Each decision has become one job: none two, none none.
        with run.world.store.read() as tx:
            assert run.world.cluster.started == {row.submission_id: 1 for row in tx.retrains("small")}
        run.world.store.close()
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
    expected = told(new_database()).left_behind()
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
    left = Run(STORY, state).left_behind()
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
    first, second = (told(f"sqlite:///{tmp_path}/{i}.db").left_behind() for i in range(2))
    assert first == second
    with pytest.raises(Killed):
        kill_at(0)("clock")
