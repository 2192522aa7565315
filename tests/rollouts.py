"""Rollouts told as stories: a controller on a real state database, before a Serve that only remembers.

What Serve has heard, and the registry's aliases, outlive the controller, as on a cluster. A controller may be killed at
any of its `Point`s; what a story leaves behind can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.rollout import experiment, on_project, orders
from mlops_ray.rollout.analysis import Analysis, Metric
from mlops_ray.rollout.canary import CanaryState, Move
from mlops_ray.rollout.looks import Read
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

    def registry(self, project: Project, store: Store) -> World:
        return self

    def alias(self, name: str) -> int | None:
        return self.aliases.get(name)

    def set_alias(self, name: str, version: int) -> None:
        self.aliases[name] = version

    def delete_alias(self, name: str) -> None:
        del self.aliases[name]


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
        orders.order(tx, project, move, who="ann", why="test", now=now, machine_now=now)

    return run


def begin(version: int, *beside: int, supersede: bool = False) -> Callable[[Tx, Project, float], None]:
    def run(tx: Tx, project: Project, now: float) -> None:
        orders.begin(
            tx, project, version, beside=beside, supersede=supersede, who="ann", why="test", now=now, machine_now=now
        )

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


def furnish(store: Store) -> None:
    """Four versions, of which the first serves."""
    with store.begin() as tx:
        for version in (1, 2, 3, 4):
            place = held(version)
            tx.save_version(VersionRow("small", version, "run", place.artifact, place.sha256, "d@1", "ok", 1.0, {}))
        tx.save_serving("small", Wanted(stable=held(1)).spec(), 0)


def stand_in(world: World, story: Story, put: Callable[[object, str, object], None]) -> None:
    """Has the controllers of this process live in `world`, and see the evidence that the story tells of."""

    def look(store: Store, project: Project, row: RolloutRow, plan: Any, seen: Read) -> Analysis:
        day = round((seen.at - BEGAN) / DAY)
        verdict = story.verdicts[max(d for d in story.verdicts if d <= day)]
        metric = Metric("log_loss", 0.02, day, 0.001, 1.0, 30.0, verdict)
        state = CanaryState.from_dict(row.state)
        if not state.arms:
            return Analysis(verdict, (metric,), 100 * day)
        of_arms = dict.fromkeys(experiment.watched(state), metric)
        of_arms |= {2: replace(metric, verdict=FAIL)} if 2 in of_arms and day >= story.worse_from else {}
        of_arms |= {4: replace(metric, better=verdict is PASS)} if 4 in of_arms else {}
        return experiment.together({v: Analysis(m.verdict, (m,), 100 * day) for v, m in of_arms.items()})

    for name in ("replica_status", "try_apply", "application_states"):
        put(on_project, name, getattr(world, name))
    put(on_project, "live_replicas", lambda dashboard, application: frozenset({"one"}))
    put(on_project, "Registry", world.registry)
    put(on_project, "time", SimpleNamespace(time=world.time, monotonic=world.time))
    put(on_project, "look", look)


def project_of(story: Story, root: Path, state: str | None = None) -> Project:
    """state: URL of the state database; None: SQLite below `root`."""
    rollout = {"shares": [0.1, 0.5], "step_min_s": DAY, "look_s": DAY, "step_max_s": 30 * DAY, **story.plan}
    return fakes.project(rollout=rollout, storage={"root": str(root)} | ({"state_url": state} if state else {}))


class Run:
    """One telling of a story to a furnished state database."""

    def __init__(self, story: Story, project: Project) -> None:
        self.story, self.project, self.world = story, project, World()
        self.store = Store.open(project.storage.state)

    def controller(self, fault: Callable[[Point], None]) -> Controller:
        return Controller(self.project, self.store, "http://127.0.0.1:1", fault=fault)

    def tell(self, fault: Callable[[Point], None]) -> dict[str, Any]:
        """The whole story; a controller that is killed is replaced by a fresh one once its lease has run out."""
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
        self.store.close()
        return self.left_behind()

    def left_behind(self) -> dict[str, Any]:
        store = Store.open(self.project.storage.state)
        with store.read() as tx:
            entries = ledger.entries(tx, "small")
            assert ledger.verify(tx, "small").ok
            served, rollouts = tx.serving("small"), tx.rollouts("small")
        store.close()
        assert served is not None
        return {
            "entries": [(e.seq, e.at, e.kind, e.subject, e.who, e.why, _undated(e)) for e in entries],
            "spec": served.spec,
            "rollouts": [(r.id, r.state, r.ended) for r in rollouts],
            "aliases": self.world.aliases,
            "answers": self.world.answers,
        }


def _undated(entry: ledger.Entry) -> dict[str, Any]:
    """Its evidence, but for the machine's time: who was killed is later."""
    return {name: value for name, value in entry.evidence.items() if name != ledger.WRITTEN}


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
