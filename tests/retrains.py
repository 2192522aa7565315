"""Drift episodes lived through by monitor, collectors, launcher, job and controller, each of which may be cut off.

The real loop, policy and controller on a real state database; before them a log, a cluster's jobs and a Serve that only
remember. A job learns the world as it is when its retrain is decided, so what is told of is the messages, not the
statistics: each change of the world is one episode, and asks for exactly one retrain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mlops_ray import ledger
from mlops_ray.config import Monitoring
from mlops_ray.data.profile import Bins, fold
from mlops_ray.errors import BackendUnavailable
from mlops_ray.monitoring import judgement
from mlops_ray.monitoring.against import Against, against
from mlops_ray.monitoring.labels import joined
from mlops_ray.monitoring.loop import Loop
from mlops_ray.monitoring.sources import Sources, Yardstick
from mlops_ray.retraining import deciding
from mlops_ray.retraining.on_ray import brain
from mlops_ray.rollout.on_project import Controller
from mlops_ray.serving.log import collecting
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow
from mlops_ray.training import target
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.gates.verdict import GateResult, Verdict
from tests import fakes, rollouts
from tests.fakes import held
from tests.logs import micros
from tests.monitors import BLOCK_S, START, Killed, empty

N = 20
"""Rows of a block on each of two nodes."""
NODES = ("n1", "n2")
RATE = 0.02
SELDOM, RARE = ("seen", "launched", "noted", "stopped", "closed"), 10.0
"""Points that a monitor seldom comes by, and how much more often it dies there."""
TURNS = 2
"""So often everybody comes to act while a block lasts."""
TURN_S = 25.0
MOST_BLOCKS = 120
"""An episode that has led to nothing by then is lost."""
BINS = Bins({"x": (-2.0, 0.0, 2.0)}, {})
HORIZON_S = BLOCK_S
BLOCKS = {
    "monitoring": {
        "window_s": 2 * BLOCK_S,
        "block_s": BLOCK_S,
        "label_horizon_s": HORIZON_S,
        "min_rows": 60,
        "min_blocks": 4,
        "false_alarms_per_month": 20.0,
        "idle_s": 1e6,
    },
    # Nothing but their order keeps retrains apart.
    "retraining": {
        "debounce_windows": 3,
        "cooldown_s": 0.0,
        "timeout_s": 4 * TURNS * TURN_S,
        "most_per_day": 1000,
        "max_failures": 1000,
    },
    "rollout": {"mode": "immediate", "keep_previous_warm_s": 0.0},
}


@dataclass(frozen=True)
class Nature:
    """Where the input lies, and what it means."""

    shift: float = 0.0
    turn: float = 0.0

    def score(self, x: Any) -> Any:
        return np.clip(1 / (1 + np.exp(-2 * x - self.turn)), 0.02, 0.98)


NATURES = (Nature(), Nature(3.0), Nature(-3.0), Nature(0.0, -4.0), Nature(0.0, 4.0))


@cache
def reference(nature: Nature, n_blocks: int = 360) -> Reference:
    rng, profiles, sums = np.random.default_rng(5), [], []
    for i in range(n_blocks):
        x = rng.normal(nature.shift, 1, N * len(NODES))
        said = nature.score(x)
        y = (rng.random(len(x)) < said).astype(np.int64)
        profiles.append((i * BLOCK_S, fold(BINS, {"x": x.astype(np.float32)}, said)))
        sums.append((i * BLOCK_S, len(x), float(target.losses("binary", y, said).sum()), 0.0))
    return Reference(BINS, BLOCK_S, tuple(profiles), tuple(sums))


@cache
def _against(plan: Monitoring, nature: Nature, span_s: float) -> Against:
    return against(plan, reference(nature), 0.0, span_s)


def _remembered(plan: Monitoring, known: Reference, start: float, end: float) -> Against:
    """`against`, which without seasons says the same of every window of a span, and takes a tenth of a second."""
    nature = next(n for n in NATURES if reference(n) is known)
    return _against(plan, nature, end - start)


@dataclass(frozen=True)
class Trained:
    """A candidate that its gates passed."""

    version: VersionRow
    run_id: str = "run"
    verdict: Verdict = Verdict.PASS
    result: GateResult = field(default_factory=lambda: GateResult(Verdict.PASS, (), {}))
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class Fate:
    """Who is cut off when. rate: of anything that may go wrong, going wrong; counted by name."""

    def __init__(self, rng: np.random.Generator, rate: float) -> None:
        self._rng, self.rate, self.counted = rng, rate, Counter[str]()
        self.meanwhile: Callable[[], None] | None = None
        """What others do while somebody stands still."""

    def strikes(self, what: str, rate: float | None = None) -> bool:
        struck = bool(self._rng.random() < self.rate * (1.0 if rate is None else rate))
        self.counted[what] += struck
        return struck

    def at(self, point: str, rate: float | None = None) -> None:
        """A point at which a process may die, or stand still while another one takes its place."""
        if self.strikes(f"killed: {point}", rate):
            raise Killed
        others, self.meanwhile = self.meanwhile, None
        if others is not None and self.strikes("overtaken: " + point.partition(" ")[0]):
            others()
        self.meanwhile = others

    def some(self, n: int) -> int:
        return int(self._rng.integers(n))


class Mortal(Store):
    """A state database whose user may die inside a transaction, or right after it."""

    fate: Fate
    who: str
    often: float

    def run(self, fn: Callable[[Tx], Any]) -> Any:
        def work(tx: Tx) -> Any:
            result = fn(tx)
            if self.fate.strikes(f"killed: {self.who} in a transaction", self.often):
                raise Killed
            return result

        result = super().run(work)
        self.fate.at(f"{self.who} after a transaction", self.often)
        return result


@dataclass
class Job:
    row: RetrainRow
    left: int
    status: str = "RUNNING"
    starts: int = 1
    trained: Trained | None = None


class Cluster:
    """Ray Jobs as far as the monitor sees them: what was accepted goes on, whoever asked for it."""

    def __init__(self, fate: Fate) -> None:
        self.fate, self.jobs = fate, dict[str, Job]()
        self.spoilt: set[str] = set()
        """Decisions whose job died or hung: these fail, and another retrain follows."""

    def launch(self, row: RetrainRow) -> None:
        self.fate.at("launcher before the submission", 8.0)
        if self.fate.strikes("launcher: cluster away", 8.0):
            raise BackendUnavailable("Ray dashboard", "connection refused")
        if row.submission_id not in self.jobs:
            hangs = self.fate.strikes("job: hung", 4.0)
            self.jobs[row.submission_id] = Job(row, 10**9 if hangs else self.fate.some(2 * TURNS))
            self.spoilt |= {row.id} if hangs else set()
        if self.fate.strikes("launcher: answer lost", 8.0):
            raise BackendUnavailable("Ray Jobs", "timed out")
        self.fate.at("launcher after the submission", 8.0)

    def ended(self, row: RetrainRow) -> str | None:
        job = self.jobs.get(row.submission_id)
        if job is None or job.status == "RUNNING" or self.fate.strikes("message late: status of a job", 3.0):
            return None
        return f"the job ended as {job.status}"

    def stop(self, row: RetrainRow) -> None:
        self.fate.at("launcher before the stop", 8.0)
        if (job := self.jobs.get(row.submission_id)) is not None and job.status == "RUNNING":
            job.status = "STOPPED"


class Node:
    """A node's spool and its collector."""

    def __init__(self, name: str) -> None:
        self.name, self.segments = name, list[dict[str, Any]]()
        self.sent: list[dict[str, Any]] = []


class Life:
    """One seeded run. `natures`: of each block; `began`: since when each episode has been, seconds since the epoch."""

    def __init__(
        self,
        seed: int,
        state: str,
        *,
        put: Callable[[object, str, object], None],
        rate: float = RATE,
        episodes: int = 2,
    ) -> None:
        """Args: seed: of what happens, and of what goes wrong. state: URL of a new state database. put: sets an
        attribute of a module, for what the controller is shown. rate: probability of a message or a step going wrong;
        many go by multiples."""
        self._episodes = episodes
        self.rng, self.fate = np.random.default_rng([seed, 0]), Fate(np.random.default_rng([seed, 1]), rate)
        self.project = fakes.project(**BLOCKS)
        self.cluster, self.serve, self.nodes = Cluster(self.fate), rollouts.World(), [Node(name) for name in NODES]
        self.serve.machine_s = START + 1e7  # after all that happens: no row comes from the future
        self.url, self.store = state, Store.open(state)
        self.learnt = {1: Nature()}
        self.natures, self.began = list[Nature](), list[float]()
        self._calm, self._changed = 5 + int(self.rng.integers(4)), 0
        self.predictions: list[tuple[float, pa.Table]] = []
        self.labels: list[tuple[float, pa.Table]] = []
        with self.store.begin() as tx:
            tx.save_version(self._version(1, "d"))
            tx.save_serving("small", Wanted(stable=held(1)).spec(), 0)
        put(judgement, "against", _remembered)
        rollouts.stand_in(self.serve, rollouts.Story({}, {0: Verdict.PASS}), put)
        self.monitor, self.controller = self._monitor(), self._controller()

    def _next_block(self) -> bool:
        """What the next block is like: the world changes again some time after what it asked for has become stable;
        whether there is one."""
        with self.store.read() as tx:
            done = sum(e.kind == "rollout promoted" for e in ledger.entries(tx, "small"))
        if done < len(self.began) and len(self.natures) - self._changed < MOST_BLOCKS:
            self._calm = 8 + int(self.rng.integers(3))
        elif self._calm == 0:
            if len(self.began) == self._episodes:
                return False
            self.began.append(START + len(self.natures) * BLOCK_S)
            self._changed = len(self.natures)
            others = [n for n in NATURES if n != self.natures[-1]]
            self.natures.append(others[int(self.rng.integers(len(others)))])
            return True
        else:
            self._calm -= 1
        self.natures.append(self.natures[-1] if self.natures else Nature())
        return True

    def _version(self, number: int, data: str) -> VersionRow:
        place = held(number)
        return VersionRow("small", number, f"run{number}", place.artifact, place.sha256, data, "registered", START, {})

    # those who may die

    def _mortal(self, who: str, often: float = 1.0) -> Mortal:
        store = Mortal.open(self.url)
        assert isinstance(store, Mortal)
        store.fate, store.who, store.often = self.fate, who, often
        return store

    def _monitor(self) -> Loop:
        sources = Sources(self.rows, self._yardstick, lambda since: 0)
        store, mind = self._mortal("monitor"), replace(brain("", dashboard=""), launcher=self.cluster)
        fault = lambda point: self.fate.at(f"monitor {point}", RARE if point in SELDOM else None)  # noqa: E731
        return Loop(self.project, store, mind, sources, lambda: self.serve.machine_s, fault=fault)

    def _controller(self) -> Controller:
        def fault(point: Any) -> None:
            if self.fate.strikes(f"killed: controller {point.name.lower()}", 3.0):
                raise Killed

        return Controller(self.project, self.store, "http://127.0.0.1:1", fault=fault)

    def _yardstick(self, version: VersionRow) -> Yardstick:
        return Yardstick(reference(self.learnt[version.version]), (0, 1), 0.5)

    # the log

    def rows(self, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
        """As `captured.rows`, of what has come by now."""
        here = [table for at, table in self.predictions if start <= at < end]
        ids = pa.concat_tables(here or [self.predictions[0][1]])
        labels = pa.concat_tables([table for came, table in self.labels if came <= self.serve.machine_s])
        some = pl.DataFrame(pl.from_arrow(labels)).filter(pl.col("time").dt.epoch("s") < end + HORIZON_S)
        found = joined(ids, some.to_arrow(), known_by=known_by)
        return found if here else found.slice(0, 0)

    def answer(self, block: int) -> None:
        """Traffic of a block on both nodes: a segment in each spool, rows in the log and labels on their way."""
        nature, start = self.natures[block], START + block * BLOCK_S
        with self.store.read() as tx:
            served = tx.serving("small")
        assert served is not None
        stable = served.spec["stable"]["version"]
        for node in self.nodes:
            x = self.rng.normal(nature.shift, 1, N)
            y, said = (self.rng.random(N) < nature.score(x)).astype(np.float64), self.learnt[stable].score(x)
            ids, times = [f"{node.name}:{block}:{k}" for k in range(N)], start + np.linspace(0, BLOCK_S - 60, N)
            key = pa.nulls(N, pa.string())
            table = pa.table(
                {
                    "prediction_id": ids,
                    "at": micros(times.tolist()),
                    "event_time": micros(times.tolist()),
                    "key": key,
                    "stable": [stable] * N,
                    "stable_score": said,
                    **{f"x_{n}": x if n == "x" else empty(k, N) for n, k in self.project.features.kinds.items()},
                }
            )
            self.predictions.append((start, table))
            told = {"prediction_id": ids, "key": key, "label": y, "at": micros((times + 60).tolist())}
            table = pa.table(told | {"time": micros((times + BLOCK_S).tolist())})
            late = self.serve.machine_s + TURN_S * self.fate.some(2 * TURNS)
            self.labels.append((late, table))
            if self.fate.strikes("message repeated: labels", 5.0):
                self.labels.append((late + 3 * TURN_S, table))
                self.predictions.append(self.predictions[-1])
            body = fold(BINS, {"x": x.astype(np.float32)}, said).to_dict()
            node.segments.append({"profile": (stable, start, body), "over": start + BLOCK_S})

    # what each does in its turn

    def _deliver(self, pushed: dict[str, Any]) -> bool:
        try:
            return self.monitor.push(pushed)
        except Killed:
            self.monitor = self._monitor()
            return False

    def collect(self, node: Node, *, calm: bool = False) -> None:
        """A pass of the node's collector, as `collecting.Drain` makes it."""
        if not calm and self.fate.strikes("message late: a node's pass", 8.0):
            return
        with self.store.read() as tx:
            pending, watermark = (tx.cursor("small", name).at for name in (collecting.PENDING, "watermark"))
            done = tx.cursor("small", collecting.cursor_name(node.name)).number
        news: list[dict[str, Any]] = []
        if pending <= watermark and len(node.segments) == done + 1:
            return
        if node.segments[done + 1 :]:
            new = node.segments[done + 1 :]
            number, over = len(node.segments) - 1, max(s["over"] for s in new)
            news.append(
                {
                    "spool": node.name,
                    "base": done,
                    "number": number,
                    "profiles": [s["profile"] for s in new],
                    **collecting.NOTHING,
                    "watermark": over,
                    "newest": over - 60,
                }
            )
            done = number
        passed = {"node": node.name, "passed": pending, "nodes": NODES}
        news.append({"spool": node.name, "base": done, "number": done, "profiles": [], **collecting.NOTHING, **passed})
        for pushed in news:
            if not calm and self.fate.strikes("message lost: a push", 2.0):
                return
            self._deliver(pushed)
            node.sent.append(pushed)
            if not calm and self.fate.strikes("message repeated: a push", 5.0):
                self._deliver(pushed)
            if not calm and self.fate.strikes("message out of order: a push", 5.0):
                self._deliver(node.sent[self.fate.some(len(node.sent))])

    def watch(self) -> None:
        """A tick of the monitor, and a new monitor where it dies; what fails is tried again."""
        self.fate.meanwhile = self._overtake
        try:
            self.monitor.tick()
        except Killed:
            self.monitor = self._monitor()
        except BackendUnavailable:
            pass
        finally:
            self.fate.meanwhile = None

    def _overtake(self) -> None:
        """While one monitor stands still, a second one takes its place, and job and controller go on."""
        slow, self.monitor = self.monitor, self._monitor()
        try:
            self.monitor.tick()
            self.work()
            self.steer()
            self.monitor.tick()
        except (Killed, BackendUnavailable):
            pass
        self.monitor = slow

    def work(self) -> None:
        """The jobs go on."""
        for job in self.cluster.jobs.values():
            if job.status != "RUNNING":
                continue
            job.left -= 1
            if job.left <= 0:
                try:
                    self._conclude(job)
                except Killed:
                    job.status = "FAILED"
                    with self.store.read() as tx:
                        row = tx.retrain(job.row.id)
                    if row is not None and row.status in RetrainRow.OPEN:
                        self.cluster.spoilt.add(job.row.id)
                else:
                    job.status = "SUCCEEDED"

    def _conclude(self, job: Job) -> None:
        """As `mlops-ray retrain --decision` does after training; said a second time now and then."""
        store = self._mortal("job", 5.0)
        try:
            number = max(self.learnt) + 1
            self.learnt[number] = self.natures[min(int((job.row.decided - START) // BLOCK_S), len(self.natures) - 1)]
            version = self._version(number, job.row.id)
            store.run(lambda tx: tx.save_version(version))
            job.trained = Trained(version)
            store.run(lambda tx: self._said(tx, job))
            if self.fate.strikes("message repeated: a job's end", 10.0):
                store.run(lambda tx: self._said(tx, job))
        finally:
            store.close()

    def _said(self, tx: Tx, job: Job) -> dict[str, Any]:
        assert job.trained is not None
        return deciding.conclude(tx, self.project, job.row, job.trained, machine_now=self.serve.machine_s)

    def say_late(self) -> None:
        """What a job said reaches the state database once more, whatever has happened since."""
        for job in self.cluster.jobs.values():
            if job.trained is not None and self.fate.strikes("message late: a job's end"):
                self.store.run(lambda tx, job=job: self._said(tx, job))  # type: ignore[misc]

    def steer(self) -> None:
        """A turn of the controller; a new one waits until the lease of the one that died is over."""
        with self.store.read() as tx:
            if tx.open_rollout("small") is None:
                return
        try:
            self.controller.tick()
        except Killed:
            self.controller = self._controller()

    def live(self) -> dict[str, Any]:
        """All of it; what became of it."""
        while self._next_block():
            self.answer(len(self.natures) - 1)
            for _ in range(TURNS):
                self.serve.machine_s += TURN_S
                acts = [lambda n=node: self.collect(n) for node in self.nodes]
                acts += [self.watch, self.work, self.steer, self.say_late]  # type: ignore[list-item]
                for i in self.fate_order(len(acts)):
                    acts[i]()
        self.fate.rate = 0.0
        for _ in range(3 * TURNS):
            self.serve.machine_s += TURN_S
            for node in self.nodes:
                self.collect(node, calm=True)
            self.watch()
            self.work()
            self.steer()
        return self.told()

    def fate_order(self, n: int) -> list[int]:
        """Everybody's turn, in any order."""
        return [int(i) for i in self.fate._rng.permutation(n)]

    def told(self) -> dict[str, Any]:
        """Of each episode how many retrains came of it; what was doubled, and what was lost, in words."""
        with self.store.read() as tx:
            rows, entries = (
                tx.retrains(
                    "small",
                ),
                list(ledger.entries(tx, "small")),
            )
            open_ones, served = (tx.open_retrain("small"), tx.open_rollout("small")), tx.serving("small")
            sound = ledger.verify(tx, "small").ok
        doubled, lost, jobs = list[str](), list[str](), self.cluster.jobs
        spoilt = {row.id for row in rows if row.id in self.cluster.spoilt and row.status == "failed"}
        for k, began in enumerate(self.began):
            until = self.began[k + 1] if k + 1 < len(self.began) else float("inf")
            mine = [r for r in rows if began < r.decided <= until and r.id not in spoilt]
            if not any(r.status == "succeeded" for r in mine):
                lost.append(f"episode {k}: {[(r.status, r.reason) for r in mine]}")
            if len(mine) > 1:
                doubled.append(f"episode {k}: {[(r.status, r.reason) for r in mine]}")
        doubled += [f"without an episode: {r.reason}" for r in rows if r.decided <= self.began[0]]
        for row in rows:
            said = Counter(e.kind for e in entries if e.subject == row.id)
            started = jobs[row.submission_id].starts if row.submission_id in jobs else 0
            ends = sum(said[kind] for kind in ("retrain succeeded", "retrain failed", "candidate rejected"))
            if started > 1 or said["retrain decided"] > 1 or ends > 1:
                doubled.append(f"{row.id}: {started} jobs, {dict(said)}")
            if not started or said["retrain decided"] != 1 or ends != 1:
                lost.append(f"{row.id}: {started} jobs, {dict(said)}")
        made = [r.outcome["version"] for r in rows if r.status == "succeeded"]
        for kind in ("rollout started", "rollout promoted"):
            said = Counter(e.subject for e in entries if e.kind == kind)
            doubled += [f"{kind}: {who}" for who, n in said.items() if n > 1]
            lost += [f"{kind}: v{version}" for version in made if f"v{version}" not in said]
        if not sound or any(open_ones) or len(jobs) != len(rows):
            lost.append(f"left open or unsound: {open_ones}, {len(jobs)} jobs of {len(rows)} decisions, {sound}")
        if served is not None and self.learnt[served.spec["stable"]["version"]] != self.natures[-1]:
            lost.append("what serves does not know the world as it is")
        return {
            "episodes": len(self.began),
            "retrains": len(rows),
            "spoilt": len(spoilt),
            "jobs": sum(job.starts for job in jobs.values()),
            "doubled": doubled,
            "lost": lost,
            "counted": self.fate.counted,
        }

    def close(self) -> None:
        self.store.close()
