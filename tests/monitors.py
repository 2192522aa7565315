"""Monitors told as stories: the loop on a real state database, before a log and a cluster that only remember.

The log, the collector's pushes and the jobs of the cluster outlive the monitor, which may be killed at any of its
`Point`s; what a story leaves behind can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.data.profile import Bins, Profile, fold
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.loop import Loop, Point
from mlops_ray.monitoring.multivariate import Told, tell
from mlops_ray.monitoring.sources import Ask, Sources, Yardstick, at_once
from mlops_ray.monitoring.standing import DETECTORS
from mlops_ray.retraining.on_ray import brain
from mlops_ray.serving.log import tables as log
from mlops_ray.state import RetrainRow, Store, VersionRow
from mlops_ray.training import calibration, target
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import blocks
from tests import fakes
from tests.logs import micros

BLOCK_S = 3600.0
START = 400_000 * BLOCK_S
N = 30
"""Rows of a block."""
BINS = Bins({"x": (-1.0, 0.0, 1.0)}, {"c": ("blue", "red")})
MONITORING = {
    "window_s": 4 * BLOCK_S,
    "block_s": BLOCK_S,
    "label_horizon_s": 2 * BLOCK_S,
    "min_rows": 60,
    "min_blocks": 4,
    "false_alarms_per_month": 80.0,
}


class Killed(BaseException):
    """What a killed process does not live to see."""


@dataclass(frozen=True)
class Drawn:
    """Rows of one block: labels, scores and inputs, shape (n,) each."""

    y: Any
    scores: Any
    inputs: dict[str, Any]


def drawn(rng: np.random.Generator, *, n: int = N, shift: float = 0.0, turn: float = 0.0) -> Drawn:
    """`shift` moves the input, `turn` changes what it means."""
    x = rng.normal(shift, 1, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-2 * x - turn))).astype(np.int64)
    inputs = {"x": x.astype(np.float32), "c": rng.choice(["red", "blue"], n).astype(object)}
    return Drawn(y, 1 / (1 + np.exp(-2 * x)), inputs)


def reference(n_blocks: int = 48) -> Reference:
    """Every block stands in the training set, and in the holdout too."""
    rng = np.random.default_rng(0)
    parts = [drawn(rng) for _ in range(n_blocks)]
    y, scores = np.concatenate([p.y for p in parts]), np.concatenate([p.scores for p in parts])
    inputs = {name: np.concatenate([p.inputs[name] for p in parts]) for name in ("x", "c")}
    times = np.repeat(np.arange(n_blocks) * BLOCK_S, N)
    known = calibration.fit("binary", y, scores, blocks(times, BLOCK_S), BINS, inputs)
    sums = [float(target.losses("binary", p.y, p.scores).sum()) for p in parts]
    profiles = tuple((i * BLOCK_S, fold(BINS, p.inputs, p.scores)) for i, p in enumerate(parts))
    return Reference(BINS, BLOCK_S, profiles, tuple((i * BLOCK_S, N, loss, 0.0) for i, loss in enumerate(sums)), known)


@dataclass(frozen=True)
class Story:
    """What happens: so many blocks of traffic, of which those from `shifted` on have moved inputs and those from
    `turned` on have other outcomes; blocks of the `project`; what tells live rows from the holdout's."""

    n_blocks: int = 24
    shifted: int = 1000
    turned: int = 1000
    project: dict[str, Any] = field(default_factory=dict)
    tell: Callable[..., Told] = tell
    ask: Ask | None = None
    """Who is asked, where the answer takes its time."""


class Cluster:
    """Jobs by submission id: how often each was started, and whether it runs."""

    def __init__(self) -> None:
        self.started: dict[str, int] = {}
        self.running: set[str] = set()

    def launch(self, row: RetrainRow) -> None:
        """As Ray does: a second submission under the same id is no second job."""
        if row.submission_id not in self.started:
            self.started[row.submission_id] = 1
            self.running.add(row.submission_id)

    def ended(self, row: RetrainRow) -> str | None:
        if row.submission_id not in self.started or row.submission_id in self.running:
            return None
        return "the job ended as FAILED"

    def stop(self, row: RetrainRow) -> None:
        self.running.discard(row.submission_id)


class World:
    """Everything but the monitor."""

    def __init__(self, story: Story, state: str) -> None:
        body = {"monitoring": MONITORING, "retraining": {"cooldown_s": BLOCK_S, "timeout_s": 1e9}}
        self.project: Project = fakes.project(**(body | story.project))
        self.story, self.cluster = story, Cluster()
        self.store = Store.open(state)
        self.yardstick = Yardstick(reference(), (0, 1), 0.5)
        self.machine_s = START
        self.parts: list[pa.Table] = []
        self._rng = np.random.default_rng(11)
        with self.store.begin() as tx:
            tx.save_version(VersionRow("small", 1, "run", "/model", "sha", "data", "registered", START, {}))
            tx.save_serving("small", {"stable": {"version": 1}, "share": 0.0}, 0)

    def sources(self) -> Sources:
        return Sources(
            self.rows, lambda version: self.yardstick, lambda since: 0, self.story.ask or at_once(self.story.tell)
        )

    def brain(self) -> Brain:
        return replace(brain("", dashboard=""), launcher=self.cluster)

    def rows(self, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
        """As `captured.rows`; labels come an hour after their rows."""
        found = pl.concat([pl.DataFrame(pl.from_arrow(part)) for part in self.parts])
        time = pl.col("event_time").dt.epoch("us") / 1e6
        label = pl.when(time + BLOCK_S <= known_by).then(pl.col("label"))
        known = (pl.col("event_time") + pl.duration(seconds=BLOCK_S)).alias("label_time")
        return found.filter((time >= start) & (time < end)).with_columns(label.alias("label"), known).to_arrow()

    def push(self, i: int) -> dict[str, Any]:
        """What the collector pushes about block `i`, which it appends to the log first."""
        story, start = self.story, START + i * BLOCK_S
        said = drawn(self._rng, shift=2.0 if i >= story.shifted else 0.0, turn=-4.0 if i >= story.turned else 0.0)
        times = start + np.linspace(0, BLOCK_S - 60, N)
        self.parts.append(
            pa.table(
                {
                    "prediction_id": [f"b{i}:{k}" for k in range(N)],
                    "event_time": micros(times.tolist()),
                    "stable": [1] * N,
                    "stable_score": said.scores,
                    "label": said.y.astype(np.float64),
                    **{f"x_{n}": said.inputs.get(n, empty(kind)) for n, kind in self.project.features.kinds.items()},
                }
            )
        )
        body = fold(BINS, said.inputs, said.scores).to_dict()
        news = {"watermark": start + BLOCK_S, "newest": float(times[-1]), "node": "n", "passed": start + BLOCK_S}
        return {"spool": "s", "base": i - 1, "number": i, "profiles": [(1, start, body)], "nodes": (), **news}


def empty(kind: str, n: int = N) -> Any:
    """A column of so many missing values."""
    return np.full(n, "", dtype=object) if kind == "string" else np.full(n, np.nan)


class Run:
    """A story with its monitors: one after another, each until it is killed."""

    def __init__(self, story: Story, state: str, fault: Callable[[Point], None] = lambda point: None) -> None:
        self.world, self._fault = World(story, state), fault
        self._loop = self._new()

    def _new(self) -> Loop:
        world = self.world
        return Loop(
            world.project, world.store, world.brain(), world.sources(), lambda: world.machine_s, fault=self._fault
        )

    def tell(self) -> None:
        """The whole story. Whoever is killed is followed by a new one, and its caller asks again."""
        for i in range(self.world.story.n_blocks):
            pushed = self.world.push(i)
            self._until_done(lambda p=pushed: self._loop.push(p))
            self.world.machine_s += 10.0
            self._until_done(lambda: self._loop.tick())
            if i % 5 == 4:  # a job has failed
                self.world.cluster.running.clear()
            self._until_done(lambda: self._loop.tick())

    def _until_done(self, step: Callable[[], Any]) -> None:
        while True:
            try:
                step()
            except Killed:
                self._loop = self._new()
            else:
                return

    def left_behind(self) -> dict[str, Any]:
        """What the state database holds, without the random part of a decision's name, and how often the cluster
        started a job of each decision."""
        with self.world.store.read() as tx:
            rows = tx.retrains("small")
            started = self.world.cluster.started
            names = {row.id: f"retrain {k}" for k, row in enumerate(reversed(rows))}
            detectors = [(r.name, json.loads(r.body)) for r in tx.connection.execute(DETECTORS.select())]
            return {
                "windows": [(w.start, w.end, w.version, w.result) for w in tx.windows("small", 1000)],
                "profiles": tx.profiles("small", 0.0, 1e12),
                "retrains": [(r.trigger, r.reason, r.decided, r.status, r.outcome) for r in rows],
                "ledger": [(e.kind, names.get(e.subject, e.subject), e.evidence) for e in ledger.entries(tx, "small")],
                "jobs": ([started.get(r.submission_id, 0) for r in rows], len(started)),
                "detectors": detectors,
                "judged": tx.cursor("small", "judged"),
                "rows": tx.cursor("small", "rows:v1"),
            }

    def recount(self) -> dict[float, Profile]:
        """Profiles of the log's rows by block."""
        found = {}
        for part in self.world.parts:
            start = part["event_time"].cast("int64").to_numpy()[0] / 1e6
            columns = {k: v for k, v in log.inputs(self.world.project, part).items() if k in BINS.widths}
            found[start] = fold(BINS, columns, part["stable_score"].to_numpy())
        return found


def kill_at(when: int, point: Point | None = None) -> Callable[[Point], None]:
    """Kills once, the `when`-th time (from 0) that a monitor comes by (the point, or any)."""
    seen = -1

    def fault(here: Point) -> None:
        nonlocal seen
        if point is None or here == point:
            seen += 1
            if seen == when:
                raise Killed

    return fault
