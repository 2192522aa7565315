"""Runs, registered versions and aliases in MLflow, by client calls with explicit ids: no global run, no environment.

The state database is the truth; what stands here is for people and for other tools. Only drivers write: the SQLite
store is opened once, and trials report to the driver through Ray Tune.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

# MLflow reports its use over the internet unless told otherwise before its first import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from mlops_ray.config import Features, Project
from mlops_ray.errors import BackendUnavailable, ModelNotFound

with warnings.catch_warnings():
    # MLflow looks at its own classes when imported, and warns in yellow that one of their fields is of type Any.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
    import mlflow.pyfunc
    import mlflow.sklearn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

REACH_S = 5.0
"""How long a tracking server may take to answer `/health` before a run starts."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# MLflow's own 7 retries with doubled pauses hang a job for two minutes when its server dies.
_VALUE_LENGTH = 500  # MLflow's own limit for a tag or parameter is 6,000 or more; a page shows less
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Tracker:
    """Writes the runs of one project.

    Raises: BackendUnavailable from every method when the server or database does not answer.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._uri = project.storage.tracking
        with self._mapped():
            _reach(self._uri)
            self.client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            self._experiment = self._experiment_id()

    @contextlib.contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """The id of a new run; it ends with the block, as FAILED when the block raises or is interrupted."""
        with self._mapped():
            given = {**tags, "mlflow.runName": name, "mlops_ray.project": self._project.project}
            commit = _commit()
            if commit:
                given["mlflow.source.git.commit"] = commit
            run_id: str = self.client.create_run(self._experiment, tags=_short(given)).info.run_id
        status = RunStatus.FAILED
        try:
            yield run_id
            status = RunStatus.FINISHED
        finally:
            with self._mapped():
                self.client.set_terminated(run_id, RunStatus.to_string(status))

    def trial(
        self,
        parent: str,
        name: str,
        *,
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        started: float,
        ended: float,
        error: str | None = None,
    ) -> None:
        """One finished trial as a child run: created, filled by one batch and ended here, so none stays running.

        Times are seconds since epoch. `error` marks the trial as failed.
        """
        with self._mapped():
            tags = {"mlflow.parentRunId": parent, "mlflow.runName": name, **({"error": error} if error else {})}
            at = int(started * 1000)
            run = self.client.create_run(self._experiment, start_time=at, tags=_short(tags)).info.run_id
            self.log(run, params=params, metrics=metrics, at=ended)
            status = RunStatus.FAILED if error else RunStatus.FINISHED
            self.client.set_terminated(run, RunStatus.to_string(status), end_time=int(ended * 1000))

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: float,
    ) -> None:
        """Everything in one batch; `at` is seconds since epoch. Metrics that are no finite numbers are left out."""
        finite = {k: float(v) for k, v in (metrics or {}).items() if abs(float(v)) < float("inf")}
        with self._mapped():
            self.client.log_batch(
                run_id,
                metrics=[Metric(k, v, int(at * 1000), 0) for k, v in finite.items()],
                params=[Param(k, str(v)[:_VALUE_LENGTH]) for k, v in (params or {}).items()],
                tags=[RunTag(k, v) for k, v in _short(tags or {}).items()],
            )

    def dataset(self, run_id: str, *, name: str, digest: str, source: str) -> None:
        """Record which dataset version the run read."""
        entity = Dataset(name=name, digest=digest[:36], source_type="delta", source=source)  # 36: MLflow's limit
        with self._mapped():
            self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def files(self, run_id: str, folder: str, files: Mapping[str, str]) -> None:
        """Log texts (file name -> content) below `folder` of the run's artifacts."""
        with self._mapped(), tempfile.TemporaryDirectory() as temporary:
            for name, text in files.items():
                (Path(temporary) / name).write_text(text, encoding="utf-8")
            self.client.log_artifacts(run_id, temporary, folder)

    def register(
        self, run_id: str, pipeline: Pipeline, *, features: Features, trusted: Sequence[str], tags: Mapping[str, str]
    ) -> int:
        """Log the pipeline in MLflow's own scikit-learn format and register it as the project's next version.

        Any MLflow user can load it by `mlflow.sklearn.load_model`, without this package; our own serving reads our
        artifact and never this copy. Requirements and signature are given, for inferring them takes seconds.
        Args: trusted: the types that skops must be told to load, from the artifact's manifest.
        Returns: the version's number.
        """
        name = self._project.project
        with self._mapped(), tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            mlflow.sklearn.save_model(
                pipeline,
                str(folder),
                serialization_format="skops",
                skops_trusted_types=list(trusted),
                signature=_signature(features),
                pip_requirements=_requirements(),
                pyfunc_predict_fn="predict_proba",
            )
            self.client.log_artifacts(run_id, str(folder), "model")
            try:
                self.client.create_registered_model(name)
            except MlflowException as exc:
                if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self.client.get_run(run_id).info.artifact_uri}/model"
            created = self.client.create_model_version(name, source, run_id, tags=_short(tags))
        return int(created.version)

    def set_alias(self, alias: str, version: int) -> None:
        """Point `alias` (`champion`, `challenger`) at `version`. Raises: ModelNotFound."""
        with self._mapped(missing=str(version)):
            self.client.set_registered_model_alias(self._project.project, alias, str(version))

    def delete_alias(self, alias: str) -> None:
        """Take `alias` away; nothing happens when there is none."""
        if self.alias(alias) is not None:
            with self._mapped():
                self.client.delete_registered_model_alias(self._project.project, alias)

    def alias(self, alias: str) -> int | None:
        """The version that `alias` points at, or None."""
        try:
            with self._mapped(missing=alias):
                return int(self.client.get_model_version_by_alias(self._project.project, alias).version)
        except ModelNotFound:
            return None

    def _experiment_id(self) -> str:
        name = self._project.project
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # Next to the database, for MLflow's default is the directory that the process happens to stand in. A
            # server has a place of its own.
            place = None if self._uri.startswith("http") else self._project.storage.path("runs")
            try:
                return str(self.client.create_experiment(name, artifact_location=place))
            except MlflowException as exc:
                found = self.client.get_experiment_by_name(name)  # another process was quicker
                if found is None:
                    raise BackendUnavailable(f"MLflow at {self._uri}", _sentence(exc)) from exc
        return str(found.experiment_id)

    @contextlib.contextmanager
    def _mapped(self, missing: str | None = None) -> Iterator[None]:
        try:
            yield
        except (MlflowException, requests.RequestException) as exc:
            code = exc.error_code if isinstance(exc, MlflowException) else None
            if missing is not None and code in _MISSING:
                raise ModelNotFound(self._project.project, missing) from exc
            raise BackendUnavailable(f"MLflow at {self._uri}", f"{_sentence(exc)}; check storage.tracking_uri") from exc


def _reach(uri: str) -> None:
    if uri.startswith("http"):
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        requests.get(f"{uri.rstrip('/')}/health", timeout=REACH_S).raise_for_status()
    elif uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a fresh database tells of sixty migrations


def _sentence(exc: Exception) -> str:
    if isinstance(exc, requests.ConnectionError):
        return "nothing answers at that address"
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value)[:_VALUE_LENGTH] for key, value in tags.items()}


def _signature(features: Features) -> ModelSignature:
    """What the pipeline takes: derived columns among them, which `data.derive` makes of a request's."""
    inputs: list[Any] = [ColSpec(DataType.double, c, required=False) for c in features.numbers]
    inputs += [ColSpec(DataType.string, c) for c in features.texts]
    return ModelSignature(inputs=Schema(inputs))


def _requirements() -> list[str]:
    return [f"{name}=={installed(name)}" for name in ("scikit-learn", "numpy", "pandas", "skops")]


@cache
def _commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
