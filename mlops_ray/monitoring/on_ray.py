"""The monitoring actor: folds the collectors' profiles, judges windows when they close, and has the policy decide.

Nothing that matters lives in it: profiles, cursors, windows and decisions are rows of the state database, and a
restarted actor goes on from them. Policy and launcher are handed in by whoever starts it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import prometheus_client
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mlops_ray.cluster.background import keep_doing
from mlops_ray.config import Project, parse_portable
from mlops_ray.data import lake
from mlops_ray.data.profile import Profile, codes, empty
from mlops_ray.monitoring import clock, judgement, record
from mlops_ray.monitoring.alerts.observed import Conditions
from mlops_ray.monitoring.folding import fold
from mlops_ray.monitoring.labels import arrived, joined
from mlops_ray.monitoring.on_delivery import Alerting
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow, WindowRow
from mlops_ray.training.artifact import model
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Classes, Scores

# How often the actor looks when nobody pushes: machine time.
_TICK_S = 2.0
# Machine time between two looks at what no window asks for.
_CONSIDER_S = 10.0
# Windows that one tick judges at most: a row dated decades ago must not make it judge every week since.
_MOST_DUE = 520
# What is judged at one instant, in this order; the numbers stand in the cursor.
_DRIFT, _QUALITY = 0, 1
_ENTRY = ("drift", "quality")


class Launcher(Protocol):
    """Starts and follows the job of a retrain."""

    def launch(self, row: RetrainRow) -> None:
        """Submit the job; again is harmless."""

    def ended(self, row: RetrainRow) -> str | None:
        """Why the job has ended, or None."""

    def stop(self, row: RetrainRow) -> None:
        """Stop the job."""


@dataclass(frozen=True)
class Brain:
    """What the monitor is given: the policy, and the means to carry it out.

    decide(tx, project, stable version, decision time, a window's result): the reason in words; a retrain is saved when
    there is to be one. consider(tx, project, decision time, labels since the last decision): the same, windowless.
    conditions: of retrains and rollouts, for alerts.
    """

    decide: Callable[[Tx, Project, VersionRow, float, dict[str, Any]], str]
    consider: Callable[[Tx, Project, float, int], None]
    close_failed: Callable[[Tx, RetrainRow, str], None]
    launcher: Launcher
    conditions: Conditions = lambda tx, project, machine_now: ()


@dataclass(frozen=True)
class _Yardstick:
    """What windows of a version are held against. threshold: from which on a binary model's score says 1."""

    reference: model.Reference
    classes: Classes
    threshold: float


class Monitor:
    """Plain class; `MonitorActor` is the same on Ray."""

    def __init__(self, text: str, make_brain: Callable[[str], Brain]) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._name = self._project.project
        self._store = Store.open(self._project.storage.state)
        self._brain = make_brain(text)
        self._busy = threading.Lock()
        self._yardsticks: dict[str, _Yardstick] = {}
        self._considered = -math.inf
        registry = prometheus_client.CollectorRegistry()
        registry.register(Exposition(self._store, self._name))
        self._server, _ = prometheus_client.start_http_server(
            self._project.monitoring.metrics_port, addr="127.0.0.1", registry=registry
        )
        self._alerting = Alerting(self._store, self._project, self._brain.conditions)
        keep_doing(self.tick, every_s=_TICK_S, what=f"monitor of {self._name}")

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def push(self, pushed: Mapping[str, Any]) -> bool:
        """Fold what a collector committed, exactly once, whatever is repeated; whether this push was the next one of
        its spool. Args: see `folding.fold`."""
        return self._store.run(lambda tx: fold(tx, self._name, pushed, time.time()))

    def tick(self) -> dict[str, Any]:
        """Judge what has become due, decide, and see to the open retrain. Returns where things stand."""
        with self._busy:
            now = self._store.run(lambda tx: advance_clock(tx, self._project, time.time()))
            if now is not None:
                self._judge_until(now)
                self._consider(now)
            open_retrain = self._see_to_retrain()
        return {"now": now, "open_retrain": open_retrain}

    # windows

    def _judge_until(self, now: float) -> None:
        plan = self._project.monitoring
        with self._store.read() as tx:
            cursor, first = tx.cursor(self._name, "judged"), tx.first_block(self._name)
        if first is None:
            return
        after = max(cursor.at, first) - plan.block_s  # what is due at the cursor's own instant may be half done
        due = [(end, _DRIFT, end) for end in clock.passed(after, now, every_s=plan.window_s)]
        mature = clock.passed(after - plan.label_horizon_s, now - plan.label_horizon_s, every_s=plan.window_s)
        due += [(end + plan.label_horizon_s, _QUALITY, end) for end in mature]
        for at, kind, end in sorted(due)[-_MOST_DUE:]:
            # A window that began before the traffic did is a part of one, no fair sample of its hours and weekdays.
            if end - plan.window_s >= first and (at, kind) > (cursor.at, cursor.number):
                self._judge(at, end, kind)

    def _judge(self, at: float, end: float, kind: int) -> None:
        """Judge one window, save the judgement, and let the policy decide, in one transaction."""
        plan, start = self._project.monitoring, end - self._project.monitoring.window_s
        with self._store.read() as tx:
            serving = tx.serving(self._name)
            stable = tx.version(self._name, serving.spec["stable"]["version"]) if serving else None
            blocks = tx.profiles(self._name, start, end)
            windows = tx.windows(self._name)
        if stable is None:
            return
        reference = self._yardstick(stable).reference
        rng = np.random.default_rng([self._project.seed, int(end)])
        if kind == _DRIFT:
            window = sum((Profile.from_dict(b) for _, _, b in blocks), empty(reference.bins))
            found = judgement.judge_drift(plan, reference, window)
            estimates = {stable.version: self._estimated(stable, windows, start, end, at)}
        else:
            rows = self._rows(start, end, at)
            if self._project.task != "binary":
                found = judgement.unjudged_quality(self._project.task)
            else:
                found = judgement.judge_quality(plan, reference, *self._of(rows, stable), rng)
            estimates = self._scored(windows, rows, start, end)

        def conclude(tx: Tx) -> None:
            judged = tx.cursor(self._name, "judged")
            if (judged.at, judged.number) >= (at, kind):
                return
            results = {w.version: w.result for w in tx.windows(self._name) if (w.start, w.end) == (start, end)}
            for version, estimate in estimates.items():
                results[version] = results.get(version, {}) | {record.ENTRY: estimate}
            entry = {"alarm": found.alarm, "why": found.why, "at": at, **found.detail}
            results[stable.version] = results.get(stable.version, {}) | {_ENTRY[kind]: entry}
            for version in {stable.version, *estimates}:
                tx.save_window(WindowRow(self._name, start, end, version, results[version]))
            tx.save_cursor(self._name, "judged", kind, at)
            entry["decision"] = self._brain.decide(tx, self._project, stable, at, results[stable.version])
            tx.save_window(WindowRow(self._name, start, end, stable.version, results[stable.version]))

        self._store.run(conclude)

    def _consider(self, now: float) -> None:
        """Have the policy decide about what no window asks for: its schedule, and the number of new labels."""
        triggers = self._project.retraining.triggers
        if not {"schedule", "new_rows"} & set(triggers) or time.monotonic() - self._considered < _CONSIDER_S:
            return
        self._considered, n_labels = time.monotonic(), 0
        if "new_rows" in triggers:
            with self._store.read() as tx:
                last = max((row.decided for row in tx.retrains(self._name)), default=0.0)
            n_labels = arrived(labels_uri(self._project), last)
        self._store.run(lambda tx: self._brain.consider(tx, self._project, now, n_labels))

    def _estimated(
        self, stable: VersionRow, windows: list[WindowRow], start: float, end: float, at: float
    ) -> record.Entry:
        """What the quality of stable's rows of [start, end) will turn out to be."""
        project, known = self._project, self._yardstick(stable)
        rows = self._rows(start, end, at, inputs=True)
        mine = rows.filter(pa.array(rows["stable"].to_numpy() == stable.version))
        rng = np.random.default_rng([project.seed, int(end), 1])  # drift has the generator without the 1
        before = sorted((w for w in windows if w.version == stable.version and w.end < end), key=lambda w: w.end)
        entry = record.estimated(
            project.monitoring,
            known.reference.calibration,
            _scores(project, mine),
            codes(known.reference.bins, log.inputs(project, mine)),
            threshold=known.threshold,
            before=[w.result[record.ENTRY] for w in before if record.ENTRY in w.result],
            at=at,
            rng=rng,
        )
        found = judgement.judge_estimate(project.monitoring, project.task, known.reference, entry, rng)
        return entry | {"alarm": found.alarm, "why": found.why, **found.detail}

    def _scored(self, windows: list[WindowRow], rows: pa.Table, start: float, end: float) -> dict[int, record.Entry]:
        """The estimates of [start, end), of whatever versions, with what became of their `rows`."""
        found = {}
        for window in windows:
            if (window.start, window.end) != (start, end) or record.ENTRY not in window.result:
                continue
            with self._store.read() as tx:
                version = tx.version(self._name, window.version)
            if version is not None:
                plan, task = self._project.monitoring, self._project.task
                threshold = self._yardstick(version).threshold
                found[window.version] = record.scored(
                    window.result[record.ENTRY], plan, task, *self._of(rows, version), threshold=threshold
                )
        return found

    def _rows(self, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
        """The rows of [start, end), each once: with the labels known by then, or with their `inputs`."""
        project = self._project
        wanted = log.prediction_schema(project)
        names = ["prediction_id", "at", "event_time", "key", "stable", "stable_score", "stable_scores"]
        kept = [n for n in wanted.names if n in names or (inputs and n.startswith("x_"))]
        wanted = pa.schema([wanted.field(name) for name in kept])
        labels = log.label_schema(project).empty_table()
        until = end
        if not inputs:
            # Beyond the window: a label by entity key is its newest prediction's, which may be younger.
            until = known_by
            labels = lake.scan(labels_uri(project), log.day_of(start), log.day_of(until), log.label_schema(project))
        predictions = lake.scan(log_uri(project), log.day_of(start), log.day_of(until), wanted)
        rows = joined(predictions, labels, known_by=known_by)
        times = rows["event_time"].cast("int64").to_numpy() / 1e6
        return rows.filter(pa.array((times >= start) & (times < end)))

    def _of(self, rows: pa.Table, version: VersionRow) -> tuple[Floats, Scores]:
        """Labels (NaN where not known) and scores of the `rows` that this version scored as stable."""
        mine = rows.filter(pa.array(rows["stable"].to_numpy() == version.version))
        classes = self._yardstick(version).classes
        return record.numbered(self._project.task, classes, mine["label"]), _scores(self._project, mine)

    def _yardstick(self, version: VersionRow) -> _Yardstick:
        found = self._yardsticks.get(version.sha256)
        if found is None:
            project = self._project
            loaded = local(version.artifact, version.sha256, trusted=project.features.trusted_types)
            threshold = project.serving.threshold if loaded.threshold is None else loaded.threshold
            found = self._yardsticks[version.sha256] = _Yardstick(loaded.reference, loaded.classes, threshold)
        return found

    # retrains

    def _see_to_retrain(self) -> str | None:
        """Launch, follow or give up the open retrain; its id, or None when there is none."""
        with self._store.read() as tx:
            row = tx.open_retrain(self._name)
        if row is None:
            return None
        # A job that computes is no idle time: decision time must not run on while traffic waits for it.
        self._store.run(lambda tx: tx.save_cursor(self._name, "seen", 0, time.time()))
        launcher = self._brain.launcher
        overdue = time.time() - row.updated > self._project.retraining.timeout_s
        if row.status == "decided" and not overdue:
            launcher.launch(row)
            self._store.run(lambda tx: self._note_submission(tx, row))
            return row.id
        trouble = launcher.ended(row)
        if trouble is None and overdue:
            launcher.stop(row)
            trouble = f"the job was stopped after {self._project.retraining.timeout_s:g} s"
        if trouble is not None:
            why = trouble
            self._store.run(lambda tx: self._brain.close_failed(tx, row, why))
        return row.id

    @staticmethod
    def _note_submission(tx: Tx, row: RetrainRow) -> None:
        """The quickest of jobs may have ended by now: only what is still decided becomes submitted."""
        current = tx.retrain(row.id)
        if current is not None and current.status == "decided":
            tx.save_retrain(replace(current, status="submitted", updated=time.time()))


def advance_clock(tx: Tx, project: Project, machine_now: float) -> float | None:
    """`clock.decision_now`, remembered: late rows after an idle stretch do not take back what was decided by then."""
    now = clock.decision_now(tx, project, machine_now)
    if now is not None:
        tx.save_cursor(project.project, "decision time", 0, now)
    return now


def _scores(project: Project, rows: pa.Table) -> Scores:
    """Stable's scores of logged rows, as in `target`."""
    if project.task != "multiclass":
        single: NDArray[np.float64] = rows["stable_score"].to_numpy()
        return single
    several = rows["stable_scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(several, dtype=np.float64).reshape(len(rows), -1 if len(rows) else 1)


MonitorActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Monitor)


def monitor_name(project: str) -> str:
    """Name of the project's monitoring actor in our namespace."""
    return f"monitor:{project}"
