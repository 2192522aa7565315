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
import ray

from mlops_ray.cluster.background import keep_doing
from mlops_ray.config import Project, parse_portable
from mlops_ray.data import lake
from mlops_ray.data.profile import Profile, empty
from mlops_ray.monitoring import clock, judgement
from mlops_ray.monitoring.folding import fold
from mlops_ray.monitoring.labels import arrived, joined
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow, WindowRow
from mlops_ray.training.artifact import model

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

    decide(tx, project, stable version, decision time, judgement): the reason in words; a retrain is saved when there is
    to be one. consider(tx, project, decision time, labels since the last decision): the same, where no window asks.
    """

    decide: Callable[[Tx, Project, VersionRow, float, dict[str, Any]], str]
    consider: Callable[[Tx, Project, float, int], None]
    close_failed: Callable[[Tx, RetrainRow, str], None]
    launcher: Launcher


class Monitor:
    """Plain class; `MonitorActor` is the same on Ray."""

    def __init__(self, text: str, make_brain: Callable[[str], Brain]) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._name = self._project.project
        self._store = Store.open(self._project.storage.state)
        self._brain = make_brain(text)
        self._busy = threading.Lock()
        self._references: dict[str, model.Reference] = {}
        self._considered = -math.inf
        registry = prometheus_client.CollectorRegistry()
        registry.register(Exposition(self._store, self._name))
        self._server, _ = prometheus_client.start_http_server(
            self._project.monitoring.metrics_port, addr="127.0.0.1", registry=registry
        )
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
        if stable is None:
            return
        reference = self._reference(stable)
        if kind == _DRIFT:
            window = sum((Profile.from_dict(b) for _, _, b in blocks), empty(reference.bins))
            found = judgement.judge_drift(plan, reference, window)
        elif self._project.task != "binary":
            found = judgement.unjudged_quality(self._project.task)
        else:
            labels, scores = self._cohort(start, end, at, stable.version)
            rng = np.random.default_rng([self._project.seed, int(end)])
            found = judgement.judge_quality(plan, reference, labels, scores, rng)

        def conclude(tx: Tx) -> None:
            judged = tx.cursor(self._name, "judged")
            if (judged.at, judged.number) >= (at, kind):
                return
            known = {w.version: w.result for w in tx.windows(self._name) if (w.start, w.end) == (start, end)}
            entry = {"alarm": found.alarm, "why": found.why, "at": at, **found.detail}
            result = known.get(stable.version, {}) | {_ENTRY[kind]: entry}
            tx.save_window(WindowRow(self._name, start, end, stable.version, result))
            tx.save_cursor(self._name, "judged", kind, at)
            entry["decision"] = self._brain.decide(tx, self._project, stable, at, entry)
            tx.save_window(WindowRow(self._name, start, end, stable.version, result))

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

    def _cohort(self, start: float, end: float, known_by: float, version: int) -> tuple[Any, Any]:
        """Labels (NaN where not known) and stable's scores of the rows of [start, end) that it scored."""
        project = self._project
        columns = ["prediction_id", "at", "event_time", "key", "stable", "stable_score"]
        wanted = log.prediction_schema(project).empty_table().select(columns).schema
        # Beyond the window: a label by entity key is its newest prediction's, which may be younger.
        predictions = lake.scan(log_uri(project), log.day_of(start), log.day_of(known_by), wanted)
        labels = lake.scan(labels_uri(project), log.day_of(start), log.day_of(known_by), log.label_schema(project))
        rows = joined(predictions, labels, known_by=known_by)
        times = rows["event_time"].cast("int64").to_numpy() / 1e6
        inside = (times >= start) & (times < end) & (rows["stable"].to_numpy() == version)
        label = rows["label"].to_numpy(zero_copy_only=False).astype(np.float64)
        return label[inside], rows["stable_score"].to_numpy()[inside]

    def _reference(self, version: VersionRow) -> model.Reference:
        found = self._references.get(version.sha256)
        if found is None:
            trusted = self._project.features.trusted_types
            loaded = local(version.artifact, version.sha256, trusted=trusted)
            found = self._references[version.sha256] = loaded.reference
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


MonitorActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Monitor)


def monitor_name(project: str) -> str:
    """Name of the project's monitoring actor in our namespace."""
    return f"monitor:{project}"
