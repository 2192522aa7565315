"""A controller that dies between any two of its steps, on a real state database, before a Serve that only remembers.

What Serve has heard, and the registry's aliases, outlive the controller, as on a cluster. Everything that a rollout
leaves behind (the ledger's entries with their evidence, who serves, the aliases) must be as if nobody had died.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.rollout import experiment, on_project, orders
from mlops_ray.rollout.analysis import Analysis, Metric
from mlops_ray.rollout.canary import CanaryState, Move
from mlops_ray.rollout.on_project import Controller, Point
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import ApprovalRow, RolloutRow, Store, Tx, VersionRow
from mlops_ray.training.gates.verdict import Verdict
from tests import fakes
from tests.fakes import held

DAY = 86_400.0
BEGAN = 1000 * DAY
PASS, FAIL, OPEN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE


class Killed(BaseException):
    """What a killed process does not live to see."""


class World:
    """Serve, the registry and the machine's clock: what goes on when a controller dies."""

    def __init__(self) -> None:
        self.machine_s = 5e8
        self.heard = Wanted()
        self.answers: int | None = None
        self.sick: set[str] = set()
        self.crashed: set[str] = set()
        self.aliases: dict[str, int] = {}

    def time(self) -> float:
        return self.machine_s

    def replica_status(self, project: str, wanted: Wanted) -> list[dict[str, Any]]:
        """One replica, which needs one look to load what it hears of."""
        before = {h.version for h in self.heard.held}
        if wanted.order > self.heard.order:
            self.heard = wanted
        if self.heard.stable and (self.heard.stable.version in before or self.answers is None):
            self.answers = self.heard.stable.version
        fence, sequence = self.heard.order
        status: dict[str, Any] = {
            "fence": fence,
            "sequence": sequence,
            "stable": self.answers,
            "loaded": sorted(before),
            "failed": {},
        }
        return [status]

    def try_apply(self, store: Store, dashboard: str, *, holder: str, project: str) -> None:
        with store.read() as tx:
            row = tx.serving("small")
        assert row is not None
        self.replica_status("small", Wanted.of(row))

    def application_states(self, dashboard: str) -> dict[str, tuple[str, str]]:
        names = ["small", *(f"small--v{version}" for version in self.heard.on_trial)]
        found = {name: ("UNHEALTHY" if name in self.sick else "RUNNING", "") for name in names}
        return found | dict.fromkeys(self.crashed & found.keys(), ("DEPLOY_FAILED", ""))

    def registry(self, project: Project, store: Store) -> SimpleNamespace:
        return SimpleNamespace(
            alias=self.aliases.get, set_alias=self.aliases.__setitem__, delete_alias=self.aliases.pop
        )


@dataclass(frozen=True)
class Story:
    """A rollout: its plan, on which day what is ordered, and what the evidence says from which day on."""

    plan: Mapping[str, Any]
    verdicts: Mapping[int, Verdict]
    ordered: Mapping[int, Callable[[Tx, Project, float], None]] = field(default_factory=dict)
    days: int = 8
    sick_from: int | None = None
    """Day from which stable's replicas are unwell."""
    crash_from: int | None = None
    """Day from which version 3 lives no more, of several on trial."""
    worse_from: int = 99
    """Day from which version 2 is worse, of several on trial; a `PASS` means that version 4 has won."""


def give(move: Move) -> Callable[[Tx, Project, float], None]:
    def run(tx: Tx, project: Project, now: float) -> None:
        orders.order(tx, project, move, who="ann", why="test", now=now)

    return run


def begin(version: int, *beside: int, supersede: bool = False) -> Callable[[Tx, Project, float], None]:
    def run(tx: Tx, project: Project, now: float) -> None:
        orders.begin(tx, project, version, beside=beside, supersede=supersede, who="ann", why="test", now=now)

    return run


def approve(tx: Tx, project: Project, now: float) -> None:
    row = tx.open_rollout("small")
    assert row is not None
    tx.save_approval(ApprovalRow("small", row.version, row.id, "ben", "approve", "fine", now))


STORIES = {
    "shadow, ramp, approval, baking": Story(
        {"mode": "shadow_then_canary", "approval": "before_promotion", "bake_s": DAY, "keep_previous_warm_s": 2 * DAY},
        {0: PASS},
        {0: begin(2), 5: approve},
        days=10,
    ),
    "worse in the ramp": Story({}, {0: PASS, 2: FAIL}, {0: begin(2)}),
    "worse while it bakes": Story({"bake_s": 3 * DAY}, {0: PASS, 4: FAIL}, {0: begin(2)}),
    "without evidence": Story({"step_max_s": 3 * DAY, "max_requests": None}, {0: OPEN}, {0: begin(2)}),
    "at once, and stable's replicas do not live with it": Story(
        {"mode": "immediate", "bake_s": 3 * DAY}, {0: OPEN}, {0: begin(2)}, sick_from=2
    ),
    "orders": Story(
        {},
        {0: OPEN},
        {0: begin(2), 1: give(Move.PAUSE), 2: give(Move.RESUME), 3: give(Move.PROMOTE), 5: give(Move.ROLLBACK)},
    ),
    "superseded by a newer one that waits for the schedule": Story(
        {"schedule": {"freezes": [{"since": "1972-09-28T00:00:00Z", "until": "1972-10-01T00:00:00Z"}]}},
        {0: PASS},
        {0: begin(2), 2: begin(3, supersede=True)},
        days=9,
    ),
    "three arms: one is worse, one crashes, one wins": Story(
        {"mode": "ab", "ab": {"share": 0.2}, "bake_s": DAY},
        {0: OPEN, 4: PASS},
        {0: begin(2, 3, 4)},
        crash_from=2,
        worse_from=3,
    ),
}
ENDS = {
    "shadow, ramp, approval, baking": ("promoted", 2),
    "worse in the ramp": ("rolled back", 1),
    "worse while it bakes": ("rolled back", 1),
    "without evidence": ("rolled back", 1),
    "at once, and stable's replicas do not live with it": ("rolled back", 1),
    "orders": ("rolled back", 1),
    "superseded by a newer one that waits for the schedule": ("promoted", 3),
    "three arms: one is worse, one crashes, one wins": ("promoted", 4),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state database with four versions, of which the first serves."""
    file = tmp_path_factory.mktemp("template") / "state.db"
    fill(f"sqlite:///{file}")
    return file


def fill(url: str) -> None:
    """Make a state database as every story begins with."""
    store = Store.open(url)
    with store.begin() as tx:
        for version in (1, 2, 3, 4):
            place = held(version)
            tx.save_version(VersionRow("small", version, "run", place.artifact, place.sha256, "d@1", "ok", 1.0, {}))
        tx.save_serving("small", Wanted(stable=held(1)).spec(), 0)
    store.close()


def project_of(story: Story, storage: Mapping[str, str]) -> Project:
    """The project that a story is about."""
    rollout = {"shares": [0.1, 0.5], "step_min_s": DAY, "look_s": DAY, "step_max_s": 30 * DAY, **story.plan}
    return fakes.project(rollout=rollout, storage=dict(storage))


def seen_by(story: Story, row: RolloutRow, at: float) -> Analysis:
    """What a look at decision time `at` sees."""
    day = round((at - BEGAN) / DAY)
    verdict = story.verdicts[max(d for d in story.verdicts if d <= day)]
    metric = Metric("log_loss", 0.02, day, 0.001, 1.0, 30.0, verdict)
    state = CanaryState.from_dict(row.state)
    if not state.arms:
        return Analysis(verdict, (metric,), 100 * day)
    of_arms = dict.fromkeys(experiment.watched(state), metric)
    of_arms |= {2: replace(metric, verdict=FAIL)} if 2 in of_arms and day >= story.worse_from else {}
    of_arms |= {4: replace(metric, better=verdict is PASS)} if 4 in of_arms else {}
    return experiment.together({v: Analysis(m.verdict, (m,), 100 * day) for v, m in of_arms.items()})


class Run:
    """One telling of a story, in a folder of its own."""

    def __init__(self, story: Story, template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(template, folder / "state.db")
        self.story, self.world = story, World()
        self.project = project_of(story, {"root": str(folder)})
        self.store = Store.open(self.project.storage.state)
        world = self.world
        for name in ("replica_status", "try_apply", "application_states"):
            monkeypatch.setattr(on_project, name, getattr(world, name))
        monkeypatch.setattr(on_project, "live_replicas", lambda dashboard, application: frozenset({"one"}))
        monkeypatch.setattr(on_project, "Registry", world.registry)
        monkeypatch.setattr(on_project, "time", SimpleNamespace(time=world.time, monotonic=world.time))
        monkeypatch.setattr(on_project, "look", self.look)

    def look(self, store: Store, project: Project, row: RolloutRow, plan: Any, at: float, **_: Any) -> Analysis:
        return seen_by(self.story, row, at)

    def controller(self, fault: Callable[[Point], None]) -> Controller:
        return Controller(self.project, self.store, "http://127.0.0.1:1", fault=fault)

    def tell(self, fault: Callable[[Point], None]) -> dict[str, Any]:
        """The whole story; a controller that is killed is replaced by a fresh one once its lease has run out."""
        try:
            self._tell(fault)
        finally:
            self.store.close()
        return self.left_behind()

    def _tell(self, fault: Callable[[Point], None]) -> None:
        controller = self.controller(fault)
        for day in range(self.story.days):
            now = BEGAN + day * DAY
            with self.store.begin() as tx:
                tx.save_cursor("small", "watermark", 0, now)
                tx.save_cursor("small", "seen", 0, self.world.machine_s)
                if day in self.story.ordered:
                    self.story.ordered[day](tx, self.project, now)
            if self.story.sick_from == day:
                self.world.sick.add("small")
            if self.story.crash_from == day:
                self.world.crashed.add("small--v3")
            for _ in range(60):
                try:
                    seen = controller.tick()
                except Killed:
                    self.world.machine_s += 25.0
                    controller = self.controller(fault)
                    continue
                if self.world.sick:
                    self.world.machine_s += 20.0
                if seen["settled"] and not (self.world.sick and seen["phase"] is not None):
                    break
            else:
                raise AssertionError(f"day {day} did not settle: {seen}")
            if seen["phase"] is None:
                self.world.sick.clear()

    def left_behind(self) -> dict[str, Any]:
        store = Store.open(self.project.storage.state)
        with store.read() as tx:
            entries = ledger.entries(tx, "small")
            assert ledger.verify(tx, "small").ok
            served, rollouts = tx.serving("small"), tx.rollouts("small")
        store.close()
        assert served is not None
        return {
            "entries": [(e.seq, e.at, e.kind, e.subject, e.who, e.why, e.evidence) for e in entries],
            "spec": served.spec,
            "rollouts": [(r.id, r.state, r.ended) for r in rollouts],
            "aliases": self.world.aliases,
            "answers": self.world.answers,
        }


class Count:
    """Notes where the controller comes by."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def __call__(self, point: Point) -> None:
        self.points.append(point)


def kill_at(number: int) -> Callable[[Point], None]:
    """Kills at the visit with this number, once."""
    count = Count()

    def fault(point: Point) -> None:
        count(point)
        if len(count.points) == number + 1:
            raise Killed

    return fault


@pytest.fixture
def make(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], Run]:
    return lambda story: Run(story, template, tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("name", STORIES)
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


@pytest.mark.parametrize("seed", range(5))
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
