"""One look at a rollout's evidence: its rows are read from the prediction log, and analysed by its plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Project, RolloutPlan
from mlops_ray.config.analyses import Accuracy, Disagreement
from mlops_ray.config.rollout import SHADOWS
from mlops_ray.data import lake
from mlops_ray.rollout import experiment
from mlops_ray.rollout.analysis import KEPT, Analysis, analyse
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.outcomes import Among, Outcomes, Reads, from_log
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri, shadow_uri, values_uri
from mlops_ray.state import RolloutRow, Store, VersionRow

_WHO = ("prediction_id", "at", "event_time", "key", "canary", "rollout", "share")
_ALWAYS = (*_WHO, "stable", "stable_score", "score_us", "canary_score")
# Where the log's table is older than them they are null.
_NEWER = {"canary_score_us": pa.float32()}
_LAST_DAY = "9999-12-31"

Scan = Callable[[str, str, str, pa.Schema], pa.Table]
"""Reads a log: `lake.scan`, or the same from memory (`data.following`)."""


def due(look_s: float, now: float) -> float:
    """Decision time of the last look that is due by `now`: looks lie on multiples of `look_s`."""
    return now // look_s * look_s


@dataclass(frozen=True)
class Read:
    """The rows of the log for a look at decision time `at`, by table, read once: for their number and for every arm."""

    at: float
    tables: Mapping[str, pa.Table]

    @property
    def n_known(self) -> int:
        """How many rows the look takes in. It grows when rows come late, and shrinks when some are erased; what is
        younger than `at` does not change it."""
        until = pa.scalar(round(self.at * 1e6), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        rows = self.tables["predictions"].select(["prediction_id", "event_time"])
        rows = rows.filter(pc.less(rows["event_time"], until))
        n = rows.num_rows
        for told in ("labels", "values"):
            if told in self.tables:
                n += pc.sum(pc.less_equal(self.tables[told]["time"], until)).as_py() or 0
        if "shadow" in self.tables:
            shown = pc.is_in(self.tables["shadow"]["prediction_id"], value_set=rows["prediction_id"])
            n += pc.sum(shown).as_py() or 0
        return int(n)


def read(project: Project, row: RolloutRow, plan: RolloutPlan, at: float, *, scan: Scan = lake.scan) -> Read:
    """What a look at this rollout at decision time `at` reads."""
    since, until = log.day_of(row.created), log.day_of(at)
    found = {
        "predictions": scan(log_uri(project), since, until, _columns(project, plan)),
        "labels": scan(labels_uri(project), since, until, log.label_schema(project)),
    }
    # A shadow's answers stand under the day on which they were given.
    if plan.mode in SHADOWS or row.state["phase"] == Phase.BAKING:
        found["shadow"] = scan(shadow_uri(project), since, _LAST_DAY, log.shadow_schema(project))
    if plan.business:
        found["values"] = scan(values_uri(project), since, until, log.VALUES_SCHEMA)
    return Read(at, found)


def look(store: Store, project: Project, row: RolloutRow, plan: RolloutPlan, seen: Read) -> Analysis:
    """What the rows say that this rollout's version was assigned before the look, labels known by then.

    It is exhausted only when the labels of the last of `max_requests` rows have had their time to come. The arms of
    `mode: ab` that matter still are looked at one by one, each with its part of alpha.
    """
    state = CanaryState.from_dict(row.state)
    if not state.arms:
        return _look(store, project, row, plan, seen, alpha=plan.alpha)
    alpha = plan.alpha / len(state.arms)
    of_arms = {
        version: _look(
            store,
            project,
            replace(row, version=version),
            plan,
            seen,
            alpha=alpha,
            among=experiment.among(plan, state, version),
        )
        for version in experiment.watched(state)
    }
    return experiment.together(of_arms)


def _look(
    store: Store,
    project: Project,
    row: RolloutRow,
    plan: RolloutPlan,
    seen: Read,
    *,
    alpha: float,
    among: Among | None = None,
) -> Analysis:
    heard = outcomes(store, project, row, plan, seen, among)
    found = analyse(
        plan.judged_by(project.task),
        heard,
        alpha=alpha,
        min_keys=plan.min_keys,
        min_requests=plan.min_requests,
        max_requests=plan.max_requests,
        has_objective=among is not None,
        kept=KEPT if plan.bake_s else 0.0,
    )
    if not found.exhausted or plan.max_requests is None:
        return found
    last = heard.seen[heard.asked & heard.counted(plan.max_requests)].max() * plan.look_s
    return replace(found, exhausted=bool(last + project.monitoring.label_horizon_s <= seen.at))


def outcomes(
    store: Store, project: Project, row: RolloutRow, plan: RolloutPlan, seen: Read, among: Among | None = None
) -> Outcomes:
    """The rollout's rows before the look, as its plan's analyses take them. among: of one arm only."""
    stable, canary = _reads(store, project, row, plan)
    bakes = CanaryState.from_dict(row.state).phase is Phase.BAKING
    return from_log(
        seen.tables["predictions"],
        seen.tables["labels"],
        task=project.task,
        rollout=row.id,
        look_s=plan.look_s,
        known_by=seen.at,
        stable=stable,
        canary=canary,
        prediction_affects_outcome=plan.prediction_affects_outcome,
        shadow=seen.tables.get("shadow"),
        feedback=seen.tables.get("values"),
        among=among,
        promoted=row.version if bakes else None,
    )


def _columns(project: Project, plan: RolloutPlan) -> pa.Schema:
    """The columns of the prediction log that the plan's analyses read."""
    schema = log.prediction_schema(project)
    names = [*_ALWAYS, *(n for n in ("stable_scores", "canary_scores") if n in schema.names)]
    slices = {one.where.column for one in plan.judged_by(project.task) if one.where is not None}
    names += [f"x_{name}" for name in sorted(slices)]
    found = schema.empty_table().select(names).schema
    for name, kind in _NEWER.items():
        found = found.append(schema.field(name) if name in schema.names else pa.field(name, kind))
    return found


def _reads(store: Store, project: Project, row: RolloutRow, plan: RolloutPlan) -> tuple[Reads, Reads]:
    """How the scores of stable and of the version on trial are read; artifacts are opened only where that matters."""
    by_label = any(isinstance(one, Accuracy | Disagreement) for one in plan.judged_by(project.task))
    if project.task != "multiclass" and not (by_label and project.task == "binary"):
        return Reads(), Reads()
    with store.read() as tx:
        versions = tx.version(project.project, row.stable), tx.version(project.project, row.version)
    stable, canary = (_read_of(project, version) for version in versions)
    return stable, canary


def _read_of(project: Project, version: VersionRow) -> Reads:
    classes, threshold = _facts(version.artifact, version.sha256, tuple(project.features.trusted_types))
    return Reads(classes, project.serving.threshold if threshold is None else threshold)


@functools.lru_cache(maxsize=16)
def _facts(artifact: str, sha256: str, trusted: Sequence[str]) -> tuple[Sequence[str | int], float | None]:
    model = local(artifact, sha256, trusted=trusted)
    return model.classes, model.threshold
