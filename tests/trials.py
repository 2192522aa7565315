"""Rollouts under a steady load with late labels, in a world whose truth is known: how they end, and when.

Customers leave with a probability that is a logistic function of two numbers. The project learns it from rows of the
past; its traffic is new customers, whose event time is the time at which they are sent, so that decision time follows
the clock. Whether each leaves is told by `/feedback` some seconds after the answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import polars as pl
import yaml

from benchmarks.serving import troubled
from mlops_ray.cluster.processes import free_port
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import ENDED, Phase
from mlops_ray.serving import applications
from mlops_ray.serving.on_apply import application_states, replica_status
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import RolloutRow
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.verbs import rollout as rollouts
from tests.load import Load, eventually, steady
from tests.loop.conftest import Live

NAME = "trials"
_SLOPES = (1.3, -0.8)
_TRAINING_ROWS = 4_000
# 2025-01-01, a row each hour: 166 days, blocks enough for every gate.
_FIRST_S, _STEP_S = 1_735_689_600, 3_600
# Customers of the traffic; afterwards the same come again under new names, and decide anew.
_N = 50_000
N_ROWS = 8
"""Of each request."""
ANALYSES: tuple[Mapping[str, Any], ...] = (
    {"metric": "failures", "margin": 0.02},
    # The troubled versions are served by scikit-learn, which takes some 5 ms for a row where ONNX takes 0.05. A row
    # that was not answered is above any limit, so half may be: one that throws is found out by its failures.
    {"metric": "latency", "above_ms": 25, "margin": 0.5},
    {"metric": "log_loss", "margin": 0.02, "clip": 0.1},
    # A third: the quietly worse one labels one row of six otherwise than stable, and is for its labels to find.
    {"metric": "disagreement", "margin": 0.3},
)
"""Log-loss is clipped at 0.1, so that 440 labels tell that an equal canary is not worse by the margin."""
_LABELS_EVERY_S = 0.1


class World:
    """The customers of the traffic: what is known of them, and what they will do."""

    def __init__(self, seed: int = 11) -> None:
        draw = np.random.default_rng(seed)
        self._x = draw.normal(size=(_N, len(_SLOPES)))
        self._leaves = draw.random(_N) < _probability(self._x)

    def row(self, i: int, name: str, now: float) -> dict[str, Any]:
        """The `i`th of a load called `name`. now: seconds since the epoch."""
        x = self._x[i % _N].tolist()
        return {"customer": f"{name}-{i}", "at": now, "x": x[0], "z": x[1]}

    def label(self, i: int) -> int:
        """1: leaves."""
        return int(self._leaves[i % _N])


def _probability(x: Any) -> Any:
    return 1 / (1 + np.exp(-(x @ np.array(_SLOPES))))


def project(folder: Path, **rollout: Any) -> list[Path]:
    """The project's file, with its training rows and its storage in `folder`. Args: rollout: fields of its plan."""
    draw = np.random.default_rng(5)
    x = draw.normal(size=(_TRAINING_ROWS, len(_SLOPES)))
    times = pl.Series(_FIRST_S + _STEP_S * np.arange(_TRAINING_ROWS), dtype=pl.Int64) * 1_000_000
    rows = folder / "rows.parquet"
    pl.DataFrame(
        {
            "customer": [f"c{i}" for i in range(_TRAINING_ROWS)],
            "at": times.cast(pl.Datetime("us", "UTC")),
            "x": x[:, 0],
            "z": x[:, 1],
            "left": (draw.random(_TRAINING_ROWS) < _probability(x)).astype(np.int64),
        }
    ).write_parquet(rows)
    content: dict[str, Any] = {
        "project": NAME,
        "task": "binary",
        "target": "left",
        "key": "customer",
        "event_time": "at",
        "storage": {"root": str(folder / "root")},
        "cluster": {"http_port": free_port()},
        "source": {"kind": "parquet", "path": str(rows)},
        "columns": [
            {"name": "customer", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "x", "dtype": "float"},
            {"name": "z", "dtype": "float"},
            {"name": "left", "dtype": "int", "min": 0, "max": 1},
        ],
        "features": {"numeric": {"columns": ["x", "z"]}, "trusted_types": [troubled.TRUSTED]},
        "search": {"trials": 1, "candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        # A test's machine may stand still for seconds, and a row that waits for its version meanwhile is a failure.
        "serving": {"canary_deadline_s": 15.0},
        "capture": {"commit_s": 0.5, "commit_idle_s": 1.0},
        "monitoring": {"metrics_port": free_port()},
        "rollout": {
            "shares": [0.1, 0.5],
            "look_s": 0.5,
            "step_min_s": 2.0,
            "step_max_s": 180.0,
            "analyses": list(ANALYSES),
            **rollout,
        },
    }
    file = folder / "files" / "project.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return [file]


class Answer(NamedTuple):
    """One row that was answered. Times are seconds since the epoch."""

    id: str
    sent: float
    came: float
    variant: str
    version: int


class Traffic:
    """A steady load of a world's customers, and of what they did, late."""

    def __init__(self, live: Live, name: str, *, late_s: float, requests_per_s: float = 60.0) -> None:
        """Args: late_s: from the answer to its label."""
        self._live, self._name, self._late_s, self._rate = live, name, late_s, requests_per_s
        self._world = World()
        self._sent: list[float] = []
        self._to_tell: deque[tuple[float, str, int]] = deque()
        self.answers: list[Answer] = []
        self.feedback: Counter[str] = Counter()
        """Outcomes of the requests that brought labels."""

    def run(self, during: Callable[[], Any]) -> Load:
        """Until `during`, which runs in a thread, has returned, and a second longer. No request is tried again."""
        done = threading.Event()
        telling = threading.Thread(target=self._tell, args=(done,), name="labels")
        telling.start()
        try:
            return asyncio.run(
                steady(
                    self._live.url,
                    self._row,
                    rate=self._rate,
                    name=self._name,
                    during=during,
                    retry=False,
                    n_rows=N_ROWS,
                    heard=self._heard,
                )
            )
        finally:
            done.set()
            telling.join()

    def _row(self, i: int) -> dict[str, Any]:
        self._sent.append(time.time())
        return self._world.row(i, self._name, self._sent[i])

    def _heard(self, prediction: Mapping[str, Any]) -> None:
        identity, now = str(prediction["prediction_id"]), time.time()
        request, _, place = identity.rpartition("-")[2].partition(":")
        i = N_ROWS * int(request) + int(place)
        self.answers.append(Answer(identity, self._sent[i], now, prediction["variant"], prediction["version"]))
        self._to_tell.append((now + self._late_s, identity, self._world.label(i)))

    def _tell(self, done: threading.Event) -> None:
        with httpx.Client(timeout=30) as client:
            while not done.wait(_LABELS_EVERY_S):
                labels = []
                while self._to_tell and self._to_tell[0][0] <= time.time():
                    _, identity, label = self._to_tell.popleft()
                    labels.append({"prediction_id": identity, "label": label})
                if labels:
                    self.feedback[self._told(client, labels)] += 1

    def _told(self, client: httpx.Client, labels: list[dict[str, Any]]) -> str:
        try:
            return str(client.post(f"{self._live.url}/feedback", json={"labels": labels}).status_code)
        except httpx.HTTPError as exc:
            return type(exc).__name__


@dataclass(frozen=True)
class Ended:
    """How a rollout ended, and when it did. Times are seconds since the epoch.

    failed: metrics that the last look proved worse; n_rows: of the version on trial until then. committed: when the
    last of the rows that this look saw came into the log; decided: when what it led to was seen in the state database;
    told: when every replica had heard of the end.
    """

    version: int
    rollout: str
    phase: str
    reason: str
    failed: tuple[str, ...]
    n_rows: int
    committed: float
    decided: float
    told: float

    def __str__(self) -> str:
        by = f" by {', '.join(self.failed)}" if self.failed else ""
        return f"v{self.version} {self.phase} ({self.reason}){by} after {self.n_rows} of its rows"


def tried(
    live: Live,
    version: int,
    *,
    paths: Sequence[Path] = (),
    bakes: Callable[[], object] = lambda: None,
    beside: Sequence[int] = (),
    within_s: float = 240.0,
) -> Ended:
    """A rollout of this version, from its start until every replica has heard of its end. Ray must be connected.

    Args: paths: of project files whose plan it follows, in place of those that are up. bakes: called once it bakes.
        beside: versions that are tried side by side with it."""
    found = rollouts.start(list(paths) or live.paths, os.environ, version, "a trial", beside=beside)
    rollout = found["rollout"]
    eventually(lambda: _phase(live, rollout) in (Phase.PROMOTING, Phase.BAKING, *ENDED), within_s)
    decided = time.time()
    eventually(lambda: _phase(live, rollout) in (Phase.BAKING, *ENDED), within_s)
    if _phase(live, rollout) is Phase.BAKING:
        bakes()
        eventually(lambda: _phase(live, rollout) in ENDED, within_s)
        decided = time.time()
    eventually(lambda: _phase(live, rollout) in ENDED, within_s)
    eventually(lambda: _all_know(live), 30.0)
    told = time.time()
    row = row_of(live, rollout)
    look = row.state.get(orders.LOOK, {"at": 0.0, "analysis": {"metrics": (), "n_requests": 0}})
    return Ended(
        version,
        rollout,
        str(row.state["phase"]),
        str(row.state["reason"]),
        failed(look["analysis"]),
        int(look["analysis"]["n_requests"]),
        _committed(live, float(look["at"]), decided),
        decided,
        told,
    )


def failed(analysis: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the metrics that an analysis, as the ledger keeps it, proves worse."""
    return tuple(m["name"] for m in analysis["metrics"] if m["verdict"] == Verdict.FAIL.value)


@dataclass(frozen=True)
class Kind:
    """A version to try, and its traffic. trouble: as `troubled` has it, none is stable's artifact again; by: the metric
    that is for it; late_s: see `Traffic`."""

    trouble: str
    by: str
    late_s: float
    requests_per_s: float = 60.0


KINDS = {
    "equal": Kind("", "", late_s=1.0),
    "quietly worse": Kind("shift", "log_loss", late_s=3.0),
    # Found out before a label has come. A slow version's rows wait for each other and then share a call, so it is asked
    # few: many would take it little time each.
    "slow": Kind("slow", "latency", late_s=60.0, requests_per_s=10.0),
    "throws": Kind("raise", "failures", late_s=60.0, requests_per_s=20.0),
    "constant": Kind("constant", "disagreement", late_s=60.0, requests_per_s=20.0),
}


@dataclass(frozen=True)
class Trial:
    """Rollouts that are over, one after the other, and the load that they were under."""

    ended: tuple[Ended, ...]
    traffic: Traffic
    load: Load

    def delay_s(self, ended: Ended) -> float:
        """From the commit of what decided to the last answer of the version on trial, as its clients saw it; NaN where
        there was neither."""
        theirs = (
            "canary",
            ended.version,
        )  # and of the next rollout, rows that stable, promoted by now, answered for it
        came = (a.came for a in self.traffic.answers if (a.variant, a.version) == theirs and a.sent < ended.told)
        return max(came, default=math.nan) - ended.committed

    @property
    def failed(self) -> int:
        """Requests that did not end as they should."""
        of_feedback = self.traffic.feedback.total() - self.traffic.feedback["202"]
        return self.load.statuses.total() - self.load.statuses["200"] + of_feedback


def trial(live: Live, kind: Kind, folder: Path) -> Trial:
    """A rollout of a new version of this kind, under its traffic. Args: folder: for the version, made here."""
    if kind.trouble:
        folder.mkdir()
        version = troubled.register(live.project, live.store, folder / "artifact", folder / "trouble")
        (folder / "trouble").write_text(kind.trouble, encoding="utf-8")
    else:
        version = troubled.again(live.project, live.store)
    traffic = Traffic(live, f"v{version}", late_s=kind.late_s, requests_per_s=kind.requests_per_s)
    ended: list[Ended] = []
    load = traffic.run(lambda: ended.append(tried(live, version)))
    return Trial(tuple(ended), traffic, load)


def baked(live: Live, turns: str, folder: Path, *, bake_s: float) -> Trial:
    """A rollout of a version that is as good as stable until it is promoted, and then does what `turns` says (as
    `troubled` has it; nothing where empty). Args: folder: for the version and its plan, made here."""
    folder.mkdir()
    version = troubled.register(live.project, live.store, folder / "artifact", folder / "trouble")
    paths = planned(live, folder / "bakes.yaml", bake_s=bake_s)
    traffic = Traffic(live, f"v{version}", late_s=1.0)
    ended: list[Ended] = []

    def turn() -> None:
        (folder / "trouble").write_text(turns, encoding="utf-8")

    load = traffic.run(lambda: ended.append(tried(live, version, paths=paths, bakes=turn)))
    return Trial(tuple(ended), traffic, load)


def tried_again(live: Live) -> Trial:
    """A rollout of stable's artifact that an operator aborts while it answers, and another one of the same version once
    its application is gone."""
    version = troubled.again(live.project, live.store)
    traffic, ended = Traffic(live, f"v{version} again", late_s=1.0), list[Ended]()
    apart = applications.version_application(NAME, version)

    def during() -> None:
        rollouts.start(live.paths, os.environ, version, "a trial that is broken off")
        eventually(lambda: any(a.version == version for a in traffic.answers), 120.0)
        rollouts.move(live.paths, os.environ, "abort", "to try it again")
        eventually(lambda: apart not in application_states(live.dashboard), 60.0)
        ended.append(tried(live, version))

    load = traffic.run(during)
    return Trial(tuple(ended), traffic, load)


def registered(live: Live, folder: Path, *troubles: str) -> list[int]:
    """New versions of stable's artifact, each with this trouble; an empty one is the artifact itself."""
    found = []
    for trouble in troubles:
        if not trouble:
            found.append(troubled.again(live.project, live.store))
            continue
        place = folder / f"{len(found)}-{trouble}"
        place.mkdir(parents=True)
        found.append(troubled.register(live.project, live.store, place / "artifact", place / "trouble"))
        (place / "trouble").write_text(trouble, encoding="utf-8")
    return found


def planned(live: Live, file: Path, **rollout: Any) -> list[Path]:
    """Project files whose plan says this as well. Args: file: made here."""
    file.write_text(yaml.safe_dump({"rollout": rollout}), encoding="utf-8")
    return [*live.paths, file]


def promoted_at_once(live: Live, version: int, folder: Path) -> None:
    """Stable from now on, without comparison."""
    tried(live, version, paths=planned(live, folder / "at-once.yaml", mode="immediate"))


def equals(live: Live, n: int) -> Trial:
    """`n` rollouts of stable's artifact under new numbers, one after the other, one load; prints how each ended."""
    traffic, ended = Traffic(live, "equal", late_s=1.0, requests_per_s=100.0), list[Ended]()

    def during() -> None:
        for _ in range(n):
            ended.append(tried(live, troubled.again(live.project, live.store)))
            print(ended[-1], flush=True)

    load = traffic.run(during)
    return Trial(tuple(ended), traffic, load)


def row_of(live: Live, rollout: str) -> RolloutRow:
    with live.store.read() as tx:
        row = tx.rollout(rollout)
    assert row is not None
    return row


def _phase(live: Live, rollout: str) -> Phase:
    return Phase(row_of(live, rollout).state["phase"])


def wanted(live: Live) -> Wanted:
    """The serving configuration that the state database has."""
    with live.store.read() as tx:
        served = tx.serving(NAME)
    assert served is not None
    return Wanted.of(served)


def _all_know(live: Live) -> bool:
    """Whether nothing is on trial, and every replica has heard of that and answers with what is stable."""
    now, replicas = wanted(live), replica_status(NAME, Wanted())
    return (
        not now.on_trial
        and now.before is None
        and bool(replicas)
        and all(r["sequence"] >= now.sequence for r in replicas)
        and (now.stable is None or {r["stable"] for r in replicas} == {now.stable.version})
    )


def _committed(live: Live, look: float, by: float) -> float:
    """When the last row or label from before decision time `look` that was known `by` then was committed; or NaN."""
    found = []
    for uri, column in ((log_uri(live.project), "event_time"), (labels_uri(live.project), "time")):
        for commit in Path(uri, "_delta_log").glob("*.json"):
            at, actions = commit.stat().st_mtime, map(json.loads, commit.read_text(encoding="utf-8").splitlines())
            oldest = [json.loads(a["add"]["stats"])["minValues"][column] for a in actions if "add" in a]
            if at <= by and any(datetime.fromisoformat(each).timestamp() < look for each in oldest):
                found.append(at)
    return max(found, default=math.nan)
