"""Runs in MLflow, by client calls with explicit ids: no global run, no environment.

The state database is the truth; what stands here is for people and for other tools. Only drivers write: the SQLite
store is opened once, and trials report to the driver through Ray Tune.

A run belongs to the process that drives it, by a lease in the state database that the driver's heartbeat renews.
Whoever opens a `Tracker` ends the runs whose driver is gone: at once when it ran on this machine, else when its lease
has expired.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Literal

import yaml

# First of all that imports MLflow: it sets what MLflow reads when it is imported.
from mlops_ray.training.on_connection import WAITS_S, Connection, everything, named, short, short_tags  # isort: skip
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from mlops_ray.config import Project
from mlops_ray.config.sources import hidden
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.errors import BackendUnavailable, DataError, MlopsRayError
from mlops_ray.state import Store
from mlops_ray.training.on_leases import Hold, held, is_gone, last_sign
from mlops_ray.training.on_machine import checkout, environment
from mlops_ray.training.outbox import Outbox

_log = logging.getLogger(__name__)

DRAIN_S = 60.0
"""How long the end of a run waits for trials that are not written yet."""
PROJECT, TRIAL, LEASE, ABANDONED = "mlops_ray.project", "mlops_ray.trial", "mlops_ray.lease", "abandoned"
FINGERPRINT = "mlops_ray.fingerprint"
"""Tags of runs: whose they are, a child's trial, the lease of who drives them, why nobody does; what they want."""
_NOTE = "mlflow.note.content"  # Markdown, which a run's page shows whole; it cuts tags
_NOTE_OF_RUN = (
    "One search over all candidates, and the judgement of its winner. Trials are the child runs; the gates' report is "
    "the artifact `gates/gates.html`."
)
_BATCH = 100  # MLflow takes 100 parameters, 100 tags and 1,000 metrics in one call
_COLUMN_TYPES = {"float": "double", "int": "long", "string": "string", "bool": "boolean", "timestamp": "datetime"}

Status = Literal["done", "stopped", "failed"]


class Tracker(Connection):
    """Writes the runs of one project. Opening it ends runs of the project whose driver is gone.

    Raises: BackendUnavailable from every method when server or database do not answer; LeaseLost when another process
    has taken over the run; DataError when MLflow refuses what it is given.
    """

    def __init__(self, project: Project, store: Store, *, waits_s: Sequence[float] = WAITS_S) -> None:
        super().__init__(project, waits_s=waits_s)
        self._store = store
        self.experiment_id = self._find_experiment()
        self._outbox = Outbox(f"{self.name}, for trials of {project.project},")
        self._holds: dict[str, Hold] = {}
        self._trials: dict[str, dict[str, str | None]] = {}  # by parent and number: the run, None when it has ended
        self._end_abandoned()

    @contextlib.contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """The id of a new run; it ends with the block, as FAILED when the block raises or is interrupted.

        It says from the start which code, configuration, packages and seed it has.
        """
        key = f"run:{uuid.uuid4().hex}"
        config = _config_text(self.project)
        given = {**_described(self.project, config), **tags, "mlflow.runName": name, LEASE: key}
        with held(self._store, key) as hold:
            run_id = self.write(lambda: self._create(f"tags.`{LEASE}` = '{key}'", given))
            with self._driven(run_id, hold):
                self.log(run_id, params={"seed": self.project.seed}, at=time.time())
                self.files(run_id, "config", {"project.yaml": config})
                self.files(run_id, "environment", {"lock.json": json.dumps(environment(), indent=1)})
                yield run_id

    @contextlib.contextmanager
    def resume(self, run_id: str) -> Iterator[str]:
        """The run again, running under this process, which ends it with the block as `run` does.

        Raises: LeaseLost while its driver lives; DataError when it has finished, or is not one of this project's.
        """
        found = self.write(lambda: self.client.get_run(run_id))
        key = found.data.tags.get(LEASE)
        if key is None or found.data.tags.get(PROJECT) != self.project.project or TRIAL in found.data.tags:
            raise DataError(f"run {run_id}", f"it is no training run of {self.project.project}; look in the MLflow UI")
        if found.info.status == "FINISHED":
            raise DataError(f"run {run_id}", "it has finished; there is nothing to resume")
        with held(self._store, key) as hold:
            self.write(lambda: self.client.update_run(run_id, status="RUNNING"))
            with self._driven(run_id, hold):
                yield run_id

    def interrupted(self, fingerprint: str) -> str:
        """The newest run that wanted the same and did not end well, for `resume`.

        Args: fingerprint: tag `mlops_ray.fingerprint` of runs over the same rows with the same settings.
        Raises: DataError when there is none."""
        newest = ["attributes.start_time DESC"]
        alike = self.write(
            lambda: self.client.search_runs(
                [self.experiment_id], f"tags.`{FINGERPRINT}` = '{fingerprint}'", order_by=newest, max_results=50
            )
        )
        found = [run for run in alike if run.info.status in ("FAILED", "KILLED")]
        if not found:
            says = "no interrupted search over the same rows with the same settings; run without --resume"
            raise DataError(self.project.project, says)
        run_id: str = found[0].info.run_id
        return run_id

    def trial(
        self,
        parent: str,
        number: int,
        label: str,
        *,
        params: Mapping[str, object],
        status: Status,
        metric: str,
        score: float | None,
        steps: Sequence[tuple[int, float]] = (),
        metrics: Mapping[str, float] | None = None,
        started: float,
        ended: float,
        error: str | None = None,
        cut_short: bool = False,
    ) -> None:
        """One trial that has ended, as a child run; queued, so a slow or restarting server does not hold up the search.

        Args: number: the trial's, unique in its search: the same again changes nothing, unless the one on record was
            cut short, by the search's time budget or a crash, and was run again. label: what lists show beside it.
            status: `stopped` is stopped early, with a score or without. steps: (rounds, score) as it went, kept under
            the name `metric`. metrics: further ones. started, ended: seconds since the epoch. error: why it failed.
        """
        # One without a score has no result; one that was stopped behind others has.
        cut_short = cut_short or (status == "stopped" and score is None)
        outcome = "cut short" if cut_short else {"stopped": "stopped early"}.get(status, status)
        tags = {"outcome": outcome, **(_failure(error) if error is not None else {})}
        curve = [(metric, value, step) for step, value in steps]
        if score is not None and (not curve or curve[-1][1] != score):
            curve.append((metric, score, curve[-1][2] if curve else 0))
        curve += [(key, value, 0) for key, value in (metrics or {}).items()]
        ending = "FAILED" if status == "failed" else "KILLED" if cut_short else "FINISHED"

        def write() -> None:
            self._check(parent)
            try:
                with self.mapped():
                    run_id = self._child(parent, number, label, started)
                    if run_id is not None:
                        self._fill(run_id, curve, params, tags, ending, ended)
                        if ending != "KILLED":
                            self._trials[parent][str(number)] = None
            except BackendUnavailable:
                self._trials.pop(parent, None)  # what was asked for may be there all the same: look before the next try
                raise

        self._outbox.put(f"trial {number}", write)

    def flush(self) -> None:
        """Wait until every trial is written. Raises: BackendUnavailable after `DRAIN_S`; they stay queued."""
        self._outbox.drain(DRAIN_S)

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: float,
    ) -> None:
        """Any number of each; `at` is seconds since epoch. Metrics that are no finite numbers are left out."""
        self._check(run_id)
        values = [(name, value, 0) for name, value in (metrics or {}).items()]
        self.write(lambda: self._batches(run_id, values, params or {}, tags or {}, at))

    def dataset(self, run_id: str, dataset: DatasetVersion) -> None:
        """Record which dataset version the run reads, in the form that `mlflow.data` has for Delta tables."""
        self._check(run_id)
        columns = [{"name": c.name, "type": _COLUMN_TYPES[c.dtype]} for c in self.project.columns]
        entity = Dataset(
            name=self.project.project,
            digest=dataset.content_hash[:36],  # MLflow's limit; the whole hash is a tag of the run
            source_type="delta_table",
            source=json.dumps({"path": dataset.uri, "delta_table_version": dataset.version}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({"num_rows": dataset.n_rows, "num_elements": dataset.n_rows * len(columns)}),
        )
        use = [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])]
        self.write(lambda: self.client.log_inputs(run_id, use))
        tags = {"dataset": f"{dataset.uri}@{dataset.version}", "dataset.content_hash": dataset.content_hash}
        self.log(run_id, tags=tags, at=time.time())

    def files(self, run_id: str, folder: str, files: Mapping[str, str | bytes]) -> None:
        """Keep files (name -> content) below `folder` of the run's artifacts."""
        self._check(run_id)
        with tempfile.TemporaryDirectory() as temporary:
            for name, content in files.items():
                (Path(temporary) / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            self.write(lambda: self.client.log_artifacts(run_id, temporary, folder))

    # how

    def _child(self, parent: str, number: int, label: str, started: float) -> str | None:
        """The run of a trial, made unless it is there; None when that has ended of itself."""
        if parent not in self._trials:
            where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`{TRIAL}` != ''"
            found = self._search(where)
            torn = [r.info.run_id for r in found if r.info.status in ("RUNNING", "KILLED") or ABANDONED in r.data.tags]
            for run_id in torn:
                self._untag(run_id)
            self._trials[parent] = {
                run.data.tags[TRIAL]: run.info.run_id if run.info.run_id in torn else None for run in found
            }
        known = self._trials[parent]
        if str(number) not in known:
            # The number first: lists cut long names.
            own = {"mlflow.parentRunId": parent, "mlflow.runName": f"{number} {label}", TRIAL: str(number), **_user()}
            own[PROJECT] = self.project.project
            if (hold := self._holds.get(parent)) is not None:
                own[LEASE] = f"{hold.lease.name}:{number}"
            given, at = short_tags(own), int(started * 1000)
            known[str(number)] = self.client.create_run(self.experiment_id, start_time=at, tags=given).info.run_id
        return known[str(number)]

    def _fill(
        self,
        run_id: str,
        metrics: Sequence[tuple[str, float, int]],
        params: Mapping[str, object],
        tags: Mapping[str, str],
        status: str,
        ended: float,
    ) -> None:
        """A child's content, and its end; also when MLflow refuses the content."""
        try:
            self._batches(run_id, metrics, params, tags, ended)
        except MlflowException as exc:
            if exc.error_code == "INVALID_PARAMETER_VALUE":
                self.client.set_terminated(run_id, "FAILED", end_time=int(ended * 1000))
            raise
        self.client.set_terminated(run_id, status, end_time=int(ended * 1000))

    def _batches(
        self,
        run_id: str,
        metrics: Sequence[tuple[str, float, int]],
        params: Mapping[str, object],
        tags: Mapping[str, str],
        at: float,
    ) -> None:
        """Metrics as (name, value, step); in as many calls as MLflow's limits ask for."""
        numbers = [(name, float(value), step) for name, value, step in metrics]
        values = [Metric(named(n), v, int(at * 1000), step) for n, v, step in numbers if abs(v) < float("inf")]
        given = [Param(named(key), short(value)) for key, value in params.items()]
        marks = [RunTag(key, value) for key, value in short_tags(tags).items()]
        for start in range(0, max(len(values), len(given), len(marks)), _BATCH):
            part = slice(start, start + _BATCH)
            self.client.log_batch(run_id, values[part], given[part], marks[part])

    def _create(self, known_by: str, tags: Mapping[str, str]) -> str:
        """A new run's id, or that of the run that an attempt whose answer was lost has made."""
        found = self.client.search_runs([self.experiment_id], known_by, max_results=1)
        run = found[0] if found else self.client.create_run(self.experiment_id, tags=short_tags(tags))
        return str(run.info.run_id)

    def _search(self, where: str) -> list[Run]:
        return everything(lambda token: self.client.search_runs([self.experiment_id], where, page_token=token))

    def _check(self, run_id: str) -> None:
        if (hold := self._holds.get(run_id)) is not None:
            hold.check()

    @contextlib.contextmanager
    def _driven(self, run_id: str, hold: Hold) -> Iterator[None]:
        """End the run with the block: FINISHED once its trials are written, else FAILED."""
        self._holds[run_id] = hold
        try:
            self.write(lambda: self._untag(run_id))
            yield
            self.flush()
            hold.check()
            self.write(lambda: self._finish(run_id))
        except BaseException as exc:
            if hold.lost is None:
                self._fail(run_id, exc)
            raise
        finally:
            if lost := self._outbox.clear():  # the run may be another process's from now on
                _log.warning("%d trials of run %s are not recorded; resume it", lost, run_id)
            del self._holds[run_id]
            self._trials.pop(run_id, None)

    def _finish(self, run_id: str) -> None:
        self._untag(run_id)  # a driver that was silent for long is called abandoned while it works
        self.client.set_terminated(run_id, "FINISHED")

    def _untag(self, run_id: str) -> None:
        tags = self.client.get_run(run_id).data.tags
        for tag in (ABANDONED, "error"):
            if tag in tags:
                self.client.delete_tag(run_id, tag)
        if "error" in tags and _NOTE in tags:
            self.client.set_tag(run_id, _NOTE, "" if TRIAL in tags else _NOTE_OF_RUN)

    def _fail(self, run_id: str, why: BaseException) -> None:
        """End the run as FAILED; when that fails too, the first error is the one to see."""
        said = str(why) if isinstance(why, MlopsRayError) else f"{type(why).__name__} {why}".strip()
        try:
            self._outbox.drain(0.0 if isinstance(why, BackendUnavailable) else DRAIN_S / 6)
        except BackendUnavailable as exc:
            _log.warning("%s", exc)
        try:
            with self.mapped():
                self._batches(run_id, [], {}, _failure(said, _NOTE_OF_RUN), time.time())
                self.client.set_terminated(run_id, "FAILED")
        except MlopsRayError as exc:
            _log.warning("run %s is left as running, to be ended when the project trains again: %s", run_id, exc)

    def _end_abandoned(self) -> None:
        """End every run of the project that its driver left running, its children with it."""
        where = f"attributes.status = 'RUNNING' and tags.`{PROJECT}` = '{self.project.project}'"
        for run in self.write(lambda: self._search(where)):
            key = ":".join(run.data.tags.get(LEASE, "").split(":")[:2])  # a child's is its parent's, and its number
            if not is_gone(self._store, key):
                continue
            who, last = last_sign(self._store, key)
            ended = max(int((last or time.time()) * 1000), run.info.start_time)
            self.write(lambda run=run, who=who, ended=ended: self._abandon(run.info.run_id, who, ended))  # type: ignore[misc]

    def _abandon(self, run_id: str, who: str, ended_ms: int) -> None:
        why = f"{who} is gone"
        self._batches(run_id, [], {}, {ABANDONED: why, "error": why}, time.time())
        self.client.set_terminated(run_id, "FAILED", end_time=ended_ms)

    def _find_experiment(self) -> str:
        def find() -> str:
            found = self.client.get_experiment_by_name(self.project.project)
            if found is not None:
                return str(found.experiment_id)
            # Next to the database, for MLflow's default is the directory that the process happens to stand in. A
            # server has a place of its own.
            place = None if self.uri.startswith("http") else self.project.storage.path("runs")
            try:
                return str(self.client.create_experiment(self.project.project, artifact_location=place))
            except MlflowException as exc:
                if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(self.project.project)  # another process was quicker
                if found is None:
                    raise
                return str(found.experiment_id)

        return self.write(find)


def _described(project: Project, config: str) -> dict[str, str]:
    """Tags that a run of the project has from its start."""
    code = checkout()
    tags = {
        **_user(),
        "mlflow.source.name": f"mlops-ray {installed('mlops-ray')}",
        "mlflow.source.type": "LOCAL",
        _NOTE: _NOTE_OF_RUN,
        PROJECT: project.project,
        "config.sha256": hashlib.sha256(config.encode()).hexdigest(),
        "git.dirty": "unknown: not a git checkout" if code is None else str(code.dirty).lower(),
    }
    if code is not None:
        tags["mlflow.source.git.commit"] = code.commit
        tags |= {"git.diff_sha256": code.diff_sha256} if code.diff_sha256 is not None else {}
    return tags


def _failure(error: str, note: str = "") -> dict[str, str]:
    """Tags that say why a run failed: one to search by, one to read."""
    fenced = "```\n" + error.replace("`", "'")[:2000] + "\n```"
    return {"error": error, _NOTE: f"{note}\n\nIt failed:\n\n{fenced}".strip()}


def _user() -> dict[str, str]:
    try:
        return {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        return {}


def _config_text(project: Project) -> str:
    """The whole project file, defaults written out, without secrets, always in one order."""
    body = project.model_dump(mode="json") | {"source": project.source.public()}
    return yaml.safe_dump(hidden(body), sort_keys=False, allow_unicode=True)
