"""The monitor without Ray: it folds what collectors push, judges what has become due, and sees to the open retrain.

Nothing that matters lives in it: a new one over the same state database goes on where the last one was cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from mlops_ray.config import Project
from mlops_ray.monitoring import apart, blocks, clock, inputs, windows
from mlops_ray.monitoring.brain import Brain, Decide
from mlops_ray.monitoring.clock import DECISION_TIME
from mlops_ray.monitoring.due import Due, Kind, after, due
from mlops_ray.monitoring.folding import fold
from mlops_ray.monitoring.sources import JUDGED, Sources
from mlops_ray.state import RetrainRow, Store, Tx

# Machine time between two looks at what no window asks for.
_CONSIDER_S = 10.0

Point = Literal["pushed", "clock", "judged", "saved", "considered", "seen", "launched", "noted", "stopped", "closed"]
"""Where a tick may be cut off: each stands between two steps that are whole or not at all."""


class Loop:
    """Not thread-safe but for `push`."""

    def __init__(
        self,
        project: Project,
        store: Store,
        brain: Brain,
        sources: Sources,
        machine_now: Callable[[], float],
        *,
        fault: Callable[[Point], None] = lambda point: None,
    ) -> None:
        """Args: machine_now: seconds since the epoch; fault: called at every point, for tests that end it there."""
        self._project, self._name, self._store = project, project.project, store
        self._brain, self._sources, self._machine_now, self._fault = brain, sources, machine_now, fault
        self._considered = self._nothing_until = self._untold_until = -math.inf
        self._asked: apart.Asked | None = None

    def push(self, pushed: Mapping[str, Any]) -> bool:
        """Fold what a collector committed, exactly once, whatever is repeated; whether this push was the next one of
        its spool. Args: see `folding.fold`."""
        was_next = self._store.run(lambda tx: fold(tx, self._name, pushed, self._machine_now()))
        self._fault("pushed")
        return was_next

    def tick(self) -> dict[str, Any]:
        """Judge what has become due, decide, and see to the open retrain. Returns where things stand."""
        machine_now = self._machine_now()
        with self._store.read() as tx:
            now, before = clock.decision_now(tx, self._project, machine_now), tx.cursor(self._name, DECISION_TIME)
            row = tx.open_retrain(self._name)
        if now is not None and now != before.at:
            now = self._store.run(lambda tx: advance_clock(tx, self._project, machine_now))
            self._fault("clock")
        if now is not None:
            if now >= self._nothing_until and self._judge_until(now):
                self._nothing_until = after(self._project.monitoring, now)
                with self._store.read() as tx:
                    row = tx.open_retrain(self._name)
            self._consider(now)
            self._fault("considered")
        seen_to = None if row is None else self._see_to_retrain(row)
        if now is not None:
            self._tell_apart(now)
        return {"now": now, "open_retrain": seen_to}

    def _judge_until(self, now: float) -> bool:
        """Whether all that is due by then has been judged, and is not due again."""
        found = pending(self._store, self._project, now)
        for one in found or ():
            conclude = judged(self._store, self._project, self._sources, self._brain.decide, one)
            self._fault("judged")
            if conclude is None:
                return False
            self._store.run(conclude)
            self._fault("saved")
        return found is not None

    def _tell_apart(self, now: float) -> None:
        """Have a classifier try to tell live rows from the holdout's, and look at its answer at a later tick. Last in a
        tick: whoever fails to answer holds up nothing, and is asked anew."""
        every_s, asked, self._asked = self._project.monitoring.multivariate_s, self._asked, None
        if every_s is None:
            return
        if asked is None and now >= self._untold_until:
            due = apart.pending(self._store, self._project, now)
            if due is None:
                self._untold_until = (now // every_s + 1) * every_s
                return
            asked = apart.ask(self._store, self._project, self._sources, due)
        told = None if asked is None else asked.told()
        if asked is None or told is None:
            self._asked = asked
            return
        answered = partial(apart.conclude, project=self._project, decide=self._brain.decide, asked=asked, told=told)
        self._fault("judged")
        self._store.run(answered)
        self._fault("saved")

    def _consider(self, now: float) -> None:
        """Have the policy decide about what no window asks for: its schedule, and the number of new labels."""
        triggers, machine_now = self._project.retraining.triggers, self._machine_now()
        if not {"schedule", "new_rows"} & set(triggers) or machine_now - self._considered < _CONSIDER_S:
            return
        self._considered, n_labels = machine_now, 0
        if "new_rows" in triggers:
            with self._store.read() as tx:
                last = max((row.decided for row in tx.retrains(self._name)), default=0.0)
            n_labels = self._sources.labels_since(last)
        self._store.run(lambda tx: self._brain.consider(tx, self._project, now, n_labels))

    def _see_to_retrain(self, row: RetrainRow) -> str:
        """Launch, follow or give up the open retrain; its id."""
        machine_now = self._machine_now()
        # A job that computes is no idle time: decision time must not run on while traffic waits for it.
        self._store.run(lambda tx: tx.save_cursor(self._name, "seen", 0, machine_now))
        self._fault("seen")
        launcher = self._brain.launcher
        overdue = machine_now - row.updated > self._project.retraining.timeout_s
        if row.status == "decided" and not overdue:
            launcher.launch(row)
            self._fault("launched")
            self._store.run(lambda tx: _note_submission(tx, row, machine_now))
            self._fault("noted")
            return row.id
        trouble = launcher.ended(row)
        if trouble is None and overdue:
            launcher.stop(row)
            self._fault("stopped")
            waited = f"{self._project.retraining.timeout_s:g} s"
            trouble = f"the job was stopped after {waited}"
            if row.status == "decided":
                trouble = f"no job could be submitted within {waited}; see the monitor's log"
        if trouble is not None:
            why = trouble
            self._store.run(lambda tx: self._brain.close_failed(tx, row, why))
            self._fault("closed")
        return row.id


def pending(store: Store, project: Project, now: float) -> list[Due] | None:
    """What is to be judged by the decision time `now`, in order; None before there are rows."""
    plan, name = project.monitoring, project.project
    with store.read() as tx:
        cursor, first = tx.cursor(name, JUDGED), tx.first_block(name)
        if first is None:
            return None
        filled = windows.filled(tx, project, first, now) if plan.window_rows is not None else ()
    return due(plan, first=first, judged=cursor, now=now, filled=filled)


def judged(store: Store, project: Project, sources: Sources, decide: Decide, one: Due) -> Callable[[Tx], None] | None:
    """What saves the judgement of what is due, once; None where there is no version to judge."""
    if one.kind is Kind.SEQUENTIAL:
        looked = blocks.look(store, project, sources, one)
        return None if looked is None else partial(blocks.conclude, project=project, decide=decide, looked=looked)
    if one.kind is Kind.INPUTS:
        seen = inputs.look(store, project, sources, one)
        return None if seen is None else partial(inputs.conclude, project=project, decide=decide, looked=seen)
    found = windows.judge(store, project, sources, one)
    return None if found is None else partial(windows.conclude, project=project, decide=decide, judged=found)


def _note_submission(tx: Tx, row: RetrainRow, machine_now: float) -> None:
    """The quickest of jobs may have ended by now: only what is still decided becomes submitted."""
    current = tx.retrain(row.id)
    if current is not None and current.status == "decided":
        tx.save_retrain(replace(current, status="submitted", updated=machine_now))


def advance_clock(tx: Tx, project: Project, machine_now: float) -> float | None:
    """`clock.decision_now`, remembered: late rows after an idle stretch do not take back what was decided by then."""
    now = clock.decision_now(tx, project, machine_now)
    if now is not None:
        tx.save_cursor(project.project, DECISION_TIME, 0, now)
    return now
