"""A controller that dies between any two of its steps, on a real state database, before a Serve that only remembers.

What Serve has heard, and the registry's aliases, outlive the controller, as on a cluster. Everything that a rollout
leaves behind (the ledger's entries with their evidence, who serves, the aliases) must be as if nobody had died.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray import ledger
from mlops_ray.rollout.on_project import Point
from mlops_ray.state import Store
from tests.rollouts import (
    BEGAN,
    DAY,
    ENDS,
    PASS,
    STORIES,
    Count,
    Killed,
    Run,
    Story,
    begin,
    furnish,
    kill_at,
    project_of,
    stand_in,
)

SHORT = ("shadow, ramp, approval, baking", "worse in the ramp", "orders")
"""Stories that are told at every run; the others take their time."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "state.db"
    store = Store.open(f"sqlite:///{file}")
    furnish(store)
    store.close()
    return file


@pytest.fixture
def make(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], Run]:
    folder = tmp_path / "run"

    def run(story: Story) -> Run:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(template, folder / "state.db")
        run = Run(story, project_of(story, folder))
        stand_in(run.world, story, monkeypatch.setattr)
        return run

    return run


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in STORIES])
def test_a_kill_between_any_two_steps_loses_repeats_and_reorders_nothing(
    name: str, make: Callable[[Story], Run]
) -> None:
    count = Count()
    undisturbed = make(STORIES[name]).tell(count)
    assert (undisturbed["rollouts"][0][1]["phase"], undisturbed["answers"]) == ENDS[name]
    assert set(count.points) == set(Point)
    print(f"{name}: {len(count.points)} places to die; {[e[2] for e in undisturbed['entries']]}")
    for number in range(len(count.points)):
        assert make(STORIES[name]).tell(kill_at(number)) == undisturbed, (number, count.points[number])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_many_deaths_in_one_rollout_change_nothing_either(seed: int, make: Callable[[Story], Run]) -> None:
    story, chance = STORIES["shadow, ramp, approval, baking"], random.Random(seed)

    def fault(point: Point) -> None:
        if chance.random() < 0.15:
            raise Killed

    assert make(story).tell(fault) == make(story).tell(lambda _: None)


def test_of_two_controllers_one_acts_and_the_other_waits(make: Callable[[Story], Run]) -> None:
    run = make(STORIES["worse in the ramp"])
    undisturbed = run.tell(lambda _: None)
    run = make(STORIES["worse in the ramp"])
    other = run.controller(lambda _: None)

    def fault(point: Point) -> None:
        if point is Point.DECIDING:
            assert "is held by" in str(other.tick()["trouble"])

    assert run.tell(fault) == undisturbed


@pytest.mark.parametrize("stalled_at", [p for p in Point if p is not Point.COMMITTING])
def test_a_lease_holder_that_was_stopped_is_fenced(stalled_at: Point, make: Callable[[Story], Run]) -> None:
    """It is stopped at a point, another takes over and acts, then it goes on: nothing of what it knew is written."""
    undisturbed = make(STORIES["worse in the ramp"]).tell(lambda _: None)
    run = make(STORIES["worse in the ramp"])
    stops: list[Point] = []

    def fault(point: Point) -> None:
        if point is stalled_at and len(stops) < 40:
            stops.append(point)
            run.world.machine_s += 25.0
            other = run.controller(lambda _: None)
            for _ in range(3):
                other.tick()
            run.world.machine_s += 25.0

    assert run.tell(fault) == undisturbed
    assert stops


def test_what_a_stopped_holder_wanted_to_save_is_refused(make: Callable[[Story], Run]) -> None:
    run = make(STORIES["worse in the ramp"])
    with run.store.begin() as tx:
        tx.save_cursor("small", "watermark", 0, BEGAN)
        tx.save_cursor("small", "seen", 0, run.world.machine_s)
        begin(2)(tx, run.project, BEGAN)

    def fault(point: Point) -> None:
        if point is Point.OBSERVED:
            run.world.machine_s += 25.0
            run.store.acquire("rollout:small", "another", 20.0, run.world.machine_s)

    told = run.controller(fault).tick()
    assert not told["settled"]
    assert "'another'" in told["trouble"]
    with run.store.read() as tx:
        assert [e.kind for e in ledger.entries(tx, "small")] == ["rollout started"]


def test_the_previous_version_stays_warm_as_long_as_the_plan_says(make: Callable[[Story], Run]) -> None:
    kept = {"bake_s": DAY, "keep_previous_warm_s": 3 * DAY}
    for days, warm in ((6, [1]), (8, [])):
        story = replace(Story(kept, {0: PASS}, {0: begin(2)}), days=days)
        left = make(story).tell(lambda _: None)
        assert left["rollouts"][0][1]["phase"] == "promoted"
        assert [h["version"] for h in left["spec"]["warm"]] == warm, days
