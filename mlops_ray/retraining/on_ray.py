"""The Ray Job of a decision: launched once, followed, stopped when it hangs; and what runs inside it."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa
from ray.job_submission import JobStatus, JobSubmissionClient

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.lineage import last_prepared, lineage
from mlops_ray.data.on_ray import snapshot, working_code
from mlops_ray.data.rules.expectations import about, check
from mlops_ray.data.schema import conform
from mlops_ray.errors import BackendUnavailable, DataError, MlopsRayError
from mlops_ray.monitoring.alerts.alerting import Condition
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.monitoring.judgement import ESTIMATED
from mlops_ray.monitoring.labels import joined
from mlops_ray.monitoring.record import ENTRY
from mlops_ray.retraining import conditions
from mlops_ray.retraining.policy import (
    Decision,
    History,
    Judged,
    decide,
    decide_due,
    new_labels,
    open_circuit,
    scheduled,
)
from mlops_ray.rollout.canary import Phase
from mlops_ray.rollout.orders import decision_time, demand_room, save_start, standing
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.training.on_machine import checkout
from mlops_ray.training.on_ray import Trained, train
from mlops_ray.training.recipe import Recipe, changed, made_of

MANUAL, CODE = "manual", "code"
"""Triggers of retrains that somebody ordered. They use up no cooldown, and the circuit does not look at them."""
_TRIGGERS = {
    "drift": "drift",
    "quality": "performance",
    ENTRY: ESTIMATED,
    "sequential": "performance",
    "multivariate": "drift",
}
"""What an entry of a window's result triggers; other entries trigger nothing."""
MADE_OF = "made_of"
"""Key of a retrain's outcome: the fingerprint of code and project file that it was ordered for."""
_SCHEDULED = "retrain schedule"
"""Cursor: the decision time up to which instants of the schedule have had their retrain."""
TEXT_VARIABLE = "MLOPS_RAY_PROJECT_TEXT"
"""Environment variable that carries the project file (secrets as `${NAME}`) into a job that we launch."""


def decided(project: str, trigger: str, reason: str, at: float, *, planted: bool = False) -> RetrainRow:
    """A new decision; its job's submission id derives from it, so that one decision never launches two jobs.

    `planted` asks for a deliberately bad candidate (trained on a shuffled target), to see the gates refuse it.
    """
    identity = f"{project}-{int(at)}-{uuid.uuid4().hex[:8]}"
    outcome = {"planted": True} if planted else {}
    return RetrainRow(identity, project, trigger, reason, at, f"retrain-{identity}", "decided", outcome, time.time())


class Launcher:
    """Submits and follows jobs through the dashboard of the cluster."""

    def __init__(self, dashboard: str, text: str) -> None:
        self._dashboard, self._text = dashboard, text

    def launch(self, row: RetrainRow) -> None:
        """Submit the decision's job unless it was submitted before. Raises: BackendUnavailable."""
        client = self._client()
        if self._status(client, row) is not None:
            return
        entrypoint = f"{sys.executable} -m mlops_ray retrain --decision {row.id} --json"
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=row.submission_id,
                runtime_env={"env_vars": {TEXT_VARIABLE: self._text}},
            )
        except RuntimeError as exc:
            raise BackendUnavailable("Ray Jobs", f"{row.submission_id} was not accepted: {exc}") from exc

    def ended(self, row: RetrainRow) -> str | None:
        """Why the job has ended, or None while it runs (or was never submitted). Raises: BackendUnavailable."""
        status = self._status(self._client(), row)
        if status is None or not status.is_terminal():
            return None
        return f"the job ended as {status.value}"

    def stop(self, row: RetrainRow) -> None:
        """Stop the job. Raises: BackendUnavailable."""
        client = self._client()
        if self._status(client, row) is not None:
            client.stop_job(row.submission_id)

    def _client(self) -> JobSubmissionClient:
        try:
            return JobSubmissionClient(self._dashboard)
        except (ConnectionError, RuntimeError) as exc:
            raise BackendUnavailable(f"Ray dashboard {self._dashboard}", str(exc)) from exc

    @staticmethod
    def _status(client: JobSubmissionClient, row: RetrainRow) -> JobStatus | None:
        try:
            return client.get_job_status(row.submission_id)
        except RuntimeError as exc:
            if "404" in str(exc) or "does not exist" in str(exc):
                return None
            raise BackendUnavailable("Ray Jobs", str(exc)) from exc


def order(
    store: Store, project: Project, reason: str, *, who: str, trigger: str = MANUAL, made_of: str | None = None
) -> RetrainRow:
    """An operator's retrain, recorded as under way: whoever ordered it carries it out.

    Args: trigger: MANUAL or CODE. made_of: fingerprint of code and project file, see `changes`.
    Raises: DataError when another retrain is open; IllegalMove when a rollout is that may not be superseded.
    """

    def run(tx: Tx) -> RetrainRow:
        demand_room(tx.open_rollout(project.project), supersede=project.rollout.supersede)
        at = decision_now(tx, project, time.time()) or time.time()
        outcome = {} if made_of is None else {MADE_OF: made_of}
        row = replace(decided(project.project, trigger, reason, at), status="submitted", outcome=outcome)
        tx.save_retrain(row)
        ledger.append(tx, project.project, "retrain decided", row.id, who, reason, {}, at)
        return row

    return store.run(run)


def changes(project: Project, store: Store) -> tuple[str, tuple[str, ...]]:
    """The fingerprint of what a retrain would be made of today, and how that differs from the newest version's.

    Nothing differs either where a retrain of this fingerprint has ended: what was refused would be refused again.
    Raises: DataError where there is no version; ArtifactRefused."""
    code = checkout()
    fingerprint = made_of(project, None if code is None else (code.commit, code.diff_sha256))
    with store.read() as tx:
        versions, retrains = tx.versions(project.project), tx.retrains(project.project)
    if not versions:
        raise DataError(project.project, "there is no version that could differ; `mlops-ray run` makes the first")
    if any(r.outcome.get(MADE_OF) == fingerprint and r.status in ("succeeded", "rejected") for r in retrains):
        return fingerprint, ()
    newest = versions[-1]
    loaded = local(newest.artifact, newest.sha256, trusted=tuple(project.features.trusted_types))
    then = Recipe.from_dict(loaded.recipe, newest.artifact)
    return fingerprint, changed(then, project, None if code is None else (code.commit, code.dirty))


def brain(text: str, *, dashboard: str) -> Brain:
    """Policy and launcher for the monitoring actor."""
    launcher = Launcher(dashboard, text)
    return Brain(
        decide=_decide, consider=_consider, close_failed=_close_failed, launcher=launcher, conditions=_conditions
    )


def _decide(tx: Tx, project: Project, stable: VersionRow, at: float, result: dict[str, Any]) -> str:
    judged = [
        Judged(_TRIGGERS[kind], entry["at"], entry["alarm"], entry["why"])
        for window in tx.windows(project.project)
        if window.version == stable.version
        for kind, entry in window.result.items()
        if kind in _TRIGGERS
    ]
    # Only what was judged now may fire: an alarm of an earlier instant had its say then.
    fresh = {j.trigger for j in judged if j.at == at}
    seen = sorted((j for j in judged if j.trigger in fresh), key=lambda j: j.at)
    found = decide(project.retraining, seen, _history(tx, project), now=at)
    evidence = {_TRIGGERS[kind]: entry for kind, entry in result.items() if kind in _TRIGGERS}
    _save(tx, project, found, at, evidence.get(found.trigger, {}))
    return found.reason or "nothing to do"


def _consider(tx: Tx, project: Project, now: float, n_labels: int) -> None:
    plan, name = project.retraining, project.project
    looked = tx.cursor(name, _SCHEDULED)
    if plan.schedule is not None and looked.number < 0:
        tx.save_cursor(name, _SCHEDULED, 0, now)  # instants before the first look were nobody's to miss
        looked = tx.cursor(name, _SCHEDULED)
    asked = scheduled(plan, after=looked.at, now=now), new_labels(plan, n=n_labels)
    due = [one for one in asked if one is not None]
    found = decide_due(plan, due, _history(tx, project), now=now)
    if found.retrain:
        if plan.schedule is not None:
            tx.save_cursor(name, _SCHEDULED, 0, now)
        _save(tx, project, found, now, {"due": [vars(d) for d in due]})


def _conditions(tx: Tx, project: Project, machine_now: float) -> list[Condition]:
    """What alerts may be about, of retrains, rollouts and approvals."""
    name, now = project.project, decision_time(tx, project, machine_now)
    retrains, rollouts, serving = tx.retrains(name), tx.rollouts(name), tx.serving(name)
    circuit = open_circuit(project.retraining, _history_of(tx, project, retrains), now=now)
    waits = next((row for row in rollouts if row.ended is None and row.state["phase"] == Phase.PENDING), None)
    return [
        *conditions.of_retrains(retrains, circuit),
        *conditions.of_rollouts(rollouts, None if waits is None else standing(tx, waits, now)),
        *conditions.of_versions(tx.versions(name), serving.spec["stable"]["version"] if serving else 0),
    ]


def _history(tx: Tx, project: Project) -> History:
    """What the policy decided itself. What it only proposed counts for as long as it only proposes."""
    return _history_of(tx, project, tx.retrains(project.project))


def _history_of(tx: Tx, project: Project, rows: Sequence[RetrainRow]) -> History:
    unseen = set() if project.retraining.dry_run else {RetrainRow.PROPOSED}
    retrains = [r for r in rows if r.trigger not in (MANUAL, CODE) and r.status not in unseen]
    return History(
        decided=tuple(r.decided for r in retrains),
        endings=tuple(r.status for r in retrains if r.status not in (*RetrainRow.OPEN, RetrainRow.PROPOSED)),
        open_retrain=tx.open_retrain(project.project) is not None,
        open_rollout=tx.open_rollout(project.project) is not None,
    )


def _save(tx: Tx, project: Project, found: Decision, at: float, evidence: dict[str, Any]) -> None:
    """Save a decision to retrain, if it is one, with its entry in the ledger. A dry run's is not open: nobody acts."""
    if not found.retrain:
        return
    row, kind = decided(project.project, found.trigger, found.reason, at), "retrain decided"
    if project.retraining.dry_run:
        row, kind = replace(row, status=RetrainRow.PROPOSED), "retrain proposed"
    tx.save_retrain(row)
    ledger.append(tx, project.project, kind, row.id, "mlops_ray", row.reason, evidence, at)


def _close_failed(tx: Tx, row: RetrainRow, why: str) -> None:
    close(tx, row, "failed", {"error": why}, "retrain failed", why)


def retrain(
    project: Project, store: Store, row: RetrainRow, *, on_progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The work of a decision: data set, training, gates, and a rollout when they pass. Ray must be initialised.

    Repeating it after a crash is safe: what it decides is saved in one transaction at the end.
    Raises: what training raises; the decision is then saved as failed.
    """
    try:
        with store.read() as tx:
            champion = champion_of(tx, project.project)
        dataset = training_set(project, row.decided, row.id)
        planted = bool(row.outcome.get("planted"))
        tags = {"trigger": row.trigger, "decision": row.id} | ({"planted": "true"} if planted else {})
        trained = train(
            project, dataset, store=store, champion=champion, tags=tags, now=row.decided, shuffle_target=planted
        )
        return store.run(lambda tx: _conclude(tx, project, row, trained))
    except BaseException as exc:
        # Also an interrupt: an open decision would hold the loop back until its time-out.
        why = str(exc) if isinstance(exc, MlopsRayError) else f"{type(exc).__name__} {exc}".strip()
        store.run(lambda tx: _close_failed(tx, row, why))
        raise


def close(tx: Tx, row: RetrainRow, status: str, outcome: dict[str, Any], kind: str, why: str) -> None:
    """Save how a retrain ended, once, with its entry in the ledger; a retrain that has ended is left alone."""
    current = tx.retrain(row.id)
    if current is None or current.status not in RetrainRow.OPEN:
        return
    tx.save_retrain(replace(current, status=status, outcome=outcome, updated=time.time()))
    ledger.append(tx, row.project, kind, row.id, "mlops_ray", why, outcome, row.decided)


def champion_of(tx: Tx, project: str) -> VersionRow | None:
    """The version that serves as stable, or None before the first one."""
    row = tx.serving(project)
    return tx.version(project, row.spec["stable"]["version"]) if row and row.spec.get("stable") else None


def _conclude(tx: Tx, project: Project, row: RetrainRow, trained: Trained) -> dict[str, Any]:
    result = trained.result.to_dict()
    outcome = {**row.outcome, "run_id": trained.run_id, "metrics": trained.metrics, "seconds": trained.seconds}
    if trained.verdict is not Verdict.PASS or trained.version is None:
        why = "; ".join(trained.result.reasons)
        close(tx, row, "rejected", outcome | {"gates": result}, "candidate rejected", why)
        return {"status": "rejected", "reasons": list(trained.result.reasons), **outcome}
    version, champion = trained.version, champion_of(tx, project.project)
    outcome |= {"version": version.version}
    mine = tx.retrain(row.id)
    if mine is None or mine.status not in RetrainRow.OPEN:
        return {"status": "superseded", **outcome}  # stopped or timed out meanwhile: no rollout for whom nobody waits
    if not version.may_serve:
        close(
            tx, row, "succeeded", outcome, "retrain succeeded", f"v{version.version} passed its gates, approval pending"
        )
        return {"status": "succeeded", "approval": "pending", **outcome}
    if champion is not None:
        evidence = {"gates": result, "run_id": trained.run_id, "decision": row.id}
        outcome["rollout"] = save_start(
            tx,
            project,
            version,
            champion.version,
            supersede=project.rollout.supersede,
            at=row.decided,
            who="mlops_ray",
            why=row.reason,
            evidence=evidence,
        )
    close(tx, row, "succeeded", outcome, "retrain succeeded", f"v{trained.version.version} passed its gates")
    return {"status": "succeeded", **outcome}


def training_set(project: Project, decided_at: float, decision: str) -> lake.DatasetVersion:
    """Labelled live rows of the configured window, older than the label horizon, and base rows of the same span.

    Raises: DataError when there are too few.
    """
    plan, horizon = project.retraining, project.monitoring.label_horizon_s
    since, until = decided_at - plan.window_s, decided_at - horizon
    names = [c.name for c in project.columns_in("serving")] + [project.target]
    schema = log.prediction_schema(project)
    # Beyond the window: a label by entity key is its newest prediction's, which may be younger.
    predictions = lake.scan(log_uri(project), log.day_of(since), log.day_of(decided_at), schema)
    labels = lake.scan(labels_uri(project), log.day_of(since), log.day_of(decided_at), log.label_schema(project))
    live = pl.DataFrame(pl.from_arrow(joined(predictions, labels, known_by=decided_at)))
    live = live.filter(pl.col("label").is_not_null())
    if project.task == "multiclass" and project.column(project.target).dtype == "int":
        live = live.with_columns(pl.col("label").cast(pl.Int64))  # classes stand in the log as texts
    # Selected and not renamed: the project's own columns may be called as others of the log are.
    logged = {name: f"x_{name}" for name in project.features.inputs}
    logged |= {project.key: "key", project.event_time: "event_time", project.target: "label"}
    specs = [project.column(name) for name in names]
    rows, _ = conform(live.select(pl.col(logged[name]).alias(name) for name in names).to_arrow(), specs)
    base = last_prepared(project.storage.path("data", project.project))
    parts = [rows]
    parents, live_rows = [], rows.num_rows
    if base is not None:
        known, _ = conform(lake.read(base, names), specs)
        parts.insert(0, known)
        parents.append(base)
    table = pl.DataFrame(pl.from_arrow(pa.concat_tables(parts)))
    time_us = pl.col(project.event_time).dt.epoch("us")
    table = table.filter((time_us >= round(since * 1e6)) & (time_us < round(until * 1e6)))
    # The rules of ingestion hold here too; live rows come last, and of rows that repeat the newest stays.
    # Those about rows, that is: expectations about the data as a whole are the source's.
    checked = check(about(project, specs), table.to_arrow())
    share = checked.report.n_quarantined / max(1, checked.report.n_read)
    if share > project.validation.max_bad_share:
        limit = project.validation.max_bad_share
        raise DataError(
            project.project, f"{share:.1%} of the rows are bad, {limit:.1%} are allowed: {checked.report.broken}"
        )
    good = pl.DataFrame(pl.from_arrow(checked.good))
    if project.validation.unique:
        good = good.unique(list(project.validation.unique), keep="last", maintain_order=True)
    if good.height < project.validation.min_rows:
        needed = project.validation.min_rows
        raise DataError(project.project, f"{good.height} labelled rows in the window; {needed} are needed")
    origin = lineage(
        project,
        made_by={"verb": "retrain", "decision": decision, "decided": decided_at},
        uris=[log_uri(project), labels_uri(project)],
        code=working_code(),
        parents=parents,
    )
    counts = {"rows": table.height, "live_rows": live_rows, "repeated": checked.good.num_rows - good.height}
    return snapshot(project, good.to_arrow(), origin | counts | {"bad": checked.report.broken}, specs)


def project_text() -> str | None:
    """The project file that our launcher handed to this job, or None outside of one."""
    return os.environ.get(TEXT_VARIABLE)
