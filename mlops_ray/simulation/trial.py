"""A rollout of a simulation: who is the canary's, and one look at its evidence, as `rollout.looks` takes it live."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project, RolloutPlan
from mlops_ray.errors import ConfigError
from mlops_ray.rollout.analysis import KEPT, Analysis, analyse
from mlops_ray.rollout.outcomes import Reads, from_log
from mlops_ray.serving.log import tables as log
from mlops_ray.simulation.history import History
from mlops_ray.state import RolloutRow
from mlops_ray.training.artifact.model import Model
from mlops_ray.training.evaluation.intervals import Floats

MODES = ("canary", "immediate")
_TIME = pa.timestamp("us", tz="UTC")
_US = 1.0
"""Microseconds of scoring of either version: nothing is served, so nobody is slower."""


def demand_mode(plan: RolloutPlan) -> None:
    """Raises: ConfigError for a mode that no simulation knows."""
    if plan.mode not in MODES:
        says = f"a simulation knows {' and '.join(MODES)}, not {plan.mode}; add `--set rollout.mode=canary`"
        raise ConfigError("rollout.mode", (says,))


def look(
    project: Project,
    row: RolloutRow,
    plan: RolloutPlan,
    history: History,
    answers: Answers,
    models: tuple[Model, Model],
    at: float,
) -> Analysis:
    """What the rows before decision time `at` say of the version on trial, labels known by then.

    Args: models: of stable and of the version on trial."""
    rows = history.between(row.created, at)
    ids = pa.array([str(i) for i in range(rows.start, rows.stop)], pa.string())
    mine = answers.trial[rows] == answers.number_of(row.id)
    predictions = {
        "prediction_id": ids,
        "at": times(history.times[rows]),
        "event_time": times(history.times[rows]),
        "key": pa.array(history.keys[rows], pa.string()),
        "canary": pa.array(answers.canary[rows], pa.int64()),
        "rollout": pa.array([row.id if own else None for own in mine], pa.string()),
        "share": pa.array(answers.share[rows], pa.float64(), from_pandas=True),
        "stable_score": pa.array(answers.stable_score[rows], pa.float64()),
        "score_us": pa.array(np.full(len(ids), _US), pa.float32()),
        "canary_score": pa.array(answers.canary_score[rows], pa.float64(), from_pandas=True),
        "canary_score_us": pa.array(np.full(len(ids), _US), pa.float32()),
    }
    slices = {one.where.column for one in plan.judged_by(project.task) if one.where is not None}
    predictions |= {f"x_{name}": history.table[name].slice(rows.start, len(ids)) for name in sorted(slices)}
    known = np.flatnonzero(history.labelled[rows] <= at)
    when = times(history.labelled[rows][known])
    labels = {
        "prediction_id": ids.take(pa.array(known)),
        "key": pa.nulls(len(known), pa.string()),
        "day": pa.nulls(len(known), pa.string()),
        "at": when,
        "time": when,
        "label": pa.array(history.y[rows][known], pa.float64()),
    }
    stable, canary = (
        Reads(m.classes or (0, 1), project.serving.threshold if m.threshold is None else m.threshold) for m in models
    )
    seen = from_log(
        pa.table(predictions),
        pa.table(labels, schema=log.label_schema(project)),
        task=project.task,
        rollout=row.id,
        look_s=plan.look_s,
        known_by=at,
        stable=stable,
        canary=canary,
        prediction_affects_outcome=plan.prediction_affects_outcome,
    )
    found = analyse(
        plan.judged_by(project.task),
        seen,
        alpha=plan.alpha,
        min_keys=plan.min_keys,
        min_requests=plan.min_requests,
        max_requests=plan.max_requests,
        kept=KEPT if plan.bake_s else 0.0,
    )
    if not found.exhausted or plan.max_requests is None:
        return found
    last = seen.seen[seen.asked & seen.counted(plan.max_requests)].max() * plan.look_s
    return replace(found, exhausted=bool(last + project.monitoring.label_horizon_s <= at))


class Answers:
    """What was answered to each row of a history, arrays of shape (n,): the prediction log of a simulation.

    stable, stable_score: version and its score; canary, canary_score, share: of the version on trial, -1 and NaN
    without one; trial: number of the rollout, -1 without one."""

    def __init__(self, n: int) -> None:
        self.stable, self.canary, self.trial = (np.full(n, -1, dtype=np.int64) for _ in range(3))
        self.stable_score, self.canary_score, self.share = (np.full(n, np.nan) for _ in range(3))
        self._rollouts: list[str] = []

    def number_of(self, rollout: str) -> int:
        """The number by which a rollout stands in `trial`."""
        if rollout not in self._rollouts:
            self._rollouts.append(rollout)
        return self._rollouts.index(rollout)

    @property
    def served(self) -> Floats:
        """The score that each row's client got: the canary's where it answered, else stable's."""
        return np.where(np.isnan(self.canary_score), self.stable_score, self.canary_score)

    @property
    def by(self) -> np.ndarray:
        """The version that it got it from."""
        return np.where(np.isnan(self.canary_score), self.stable, self.canary)


def times(seconds: Floats) -> pa.Array:
    """Seconds since the epoch as the log has times; NaN is null."""
    none = np.isnan(seconds)
    micros = np.round(np.where(none, 0.0, seconds) * 1e6).astype(np.int64)
    return pa.array(micros, pa.int64(), mask=none).cast(_TIME)
