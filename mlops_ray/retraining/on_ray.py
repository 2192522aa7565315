"""The Ray Job of a decision: launched once, followed, stopped when it hangs; and what runs inside it."""

from __future__ import annotations

import functools
import os
import sys
import time
import uuid
from collections.abc import Callable
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
from mlops_ray.data.schema import conform
from mlops_ray.errors import BackendUnavailable, DataError, MlopsRayError
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.monitoring.labels import joined
from mlops_ray.retraining import conditions, deciding, window
from mlops_ray.retraining.deciding import BEGAN, MANUAL, champion_of
from mlops_ray.rollout.orders import demand_room
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow
from mlops_ray.training.on_machine import checkout
from mlops_ray.training.on_ray import Trained, train
from mlops_ray.training.recipe import Recipe, changed, made_of
from mlops_ray.training.search.book import best
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.measures import metric_of
from mlops_ray.training.search.trials import Folder

MADE_OF = "made_of"
"""Key of a retrain's outcome: the fingerprint of code and project file that it was ordered for."""
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
    return Brain(
        decide=functools.partial(deciding.on_window, make=decided),
        consider=functools.partial(deciding.on_time, make=decided),
        close_failed=_close_failed,
        launcher=Launcher(dashboard, text),
        conditions=conditions.of_project,
    )


def _close_failed(tx: Tx, row: RetrainRow, why: str) -> None:
    deciding.close(tx, row, "failed", {"error": why}, "retrain failed", why, machine_now=time.time())


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
        dataset = training_set(project, row.decided, row.id, began=row.outcome.get(BEGAN))
        planted = bool(row.outcome.get("planted"))
        tags = {"trigger": row.trigger, "decision": row.id} | ({"planted": "true"} if planted else {})
        trained = train(
            project,
            dataset,
            store=store,
            champion=champion,
            tags=tags,
            now=row.decided,
            shuffle_target=planted,
            warm=best_of(project, champion),
            refit=project.retraining.refit,
        )
        return store.run(lambda tx: _conclude(tx, project, row, trained))
    except BaseException as exc:
        # Also an interrupt: an open decision would hold the loop back until its time-out.
        why = str(exc) if isinstance(exc, MlopsRayError) else f"{type(exc).__name__} {exc}".strip()
        store.run(lambda tx: _close_failed(tx, row, why))
        raise


def _conclude(tx: Tx, project: Project, row: RetrainRow, trained: Trained) -> dict[str, Any]:
    return deciding.conclude(tx, project, row, trained, machine_now=time.time())


def training_set(
    project: Project, decided_at: float, decision: str, *, began: float | None = None
) -> lake.DatasetVersion:
    """Labelled live rows that `retraining.train_on` chooses, older than the label horizon, and base rows of that span.

    Args: began: see `window.choose`. Raises: DataError when there are too few.
    """
    since, _ = window.span(project.retraining, decided_at, horizon=project.monitoring.label_horizon_s)
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
    # The rules of ingestion hold here too; live rows come last, and of rows that repeat the newest stays.
    parts = [rows]
    parents = []
    if base is not None:
        known, _ = conform(lake.read(base, names), specs)
        parts.insert(0, known)
        parents.append(base)
    chosen = window.choose(project, specs, pa.concat_tables(parts), decided_at, began=began)
    origin = lineage(
        project,
        made_by={"verb": "retrain", "decision": decision, "decided": decided_at},
        uris=[log_uri(project), labels_uri(project)],
        code=working_code(),
        parents=parents,
    )
    return snapshot(project, chosen.rows, origin | {"live_rows": rows.num_rows} | dict(chosen.counts), specs)


def best_of(project: Project, champion: VersionRow | None) -> list[Choice]:
    """The `retraining.warm_start` best points of the champion's search, best first; of a search whose trials were
    removed none."""
    n = project.retraining.warm_start
    if champion is None or n == 0:
        return []
    kept = Folder(project.storage.path("search", project.project, champion.run_id)).trials()
    return best(metric_of(project.search.metric, project.task), kept, n)


def project_text() -> str | None:
    """The project file that our launcher handed to this job, or None outside of one."""
    return os.environ.get(TEXT_VARIABLE)
