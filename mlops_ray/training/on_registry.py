"""Versions and aliases in MLflow's registry.

The state database says which versions there are; MLflow gives the number and shows them to people and other tools.
A version is made in this order: its artifact, which is complete from its first moment; MLflow's copy of the pipeline;
MLflow's version, marked as begun; the row in the state database; the mark's removal. A crash leaves either a version
with a row, whose mark the next `Registry` takes off, or one that has none, which it removes: no number is used twice.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# First of all that imports MLflow: it sets what MLflow reads when it is imported.
from mlops_ray.training.on_connection import WAITS_S, Connection, everything, short_tags  # isort: skip
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable, DataError, ModelNotFound
from mlops_ray.state import Store, Tx, VersionRow
from mlops_ray.training.on_leases import is_gone
from mlops_ray.training.on_machine import requirements
from mlops_ray.training.on_mlflow import LEASE
from mlops_ray.training.target import Classes

with warnings.catch_warnings():
    # MLflow looks at its own classes when imported, and warns in yellow that one of their fields is of type Any.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred", category=UserWarning)
    import mlflow.pyfunc
    import mlflow.sklearn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_log = logging.getLogger(__name__)

BEGUN, APPROVAL = "mlops_ray.begun", "approval"
"""Tags of versions: the mark of one that is being made, and how its approval stands."""
ANCHOR = "mlops_ray.ledger."
"""Begins the tags of versions that keep heads of the ledger outside the state database: the entry's number follows, the
value is its hash. Each has a tag of its own, so that a later one replaces none."""
CHAMPION, CHALLENGER = "champion", "challenger"
"""Aliases of what is stable, and of the canary."""
_APPROVED = {VersionRow.PENDING: "pending", VersionRow.REGISTERED: "approved", VersionRow.REJECTED: "rejected"}


class Registry(Connection):
    """Writes the versions of one project. Opening it mends what a crash left half registered.

    Raises: BackendUnavailable from every method when server or database do not answer; DataError when MLflow refuses.
    """

    def __init__(self, project: Project, store: Store, *, waits_s: Sequence[float] = WAITS_S) -> None:
        super().__init__(project, waits_s=waits_s)
        self._store = store
        self._mend()

    def register(
        self,
        run_id: str,
        pipeline: Pipeline,
        *,
        artifact: str,
        sha256: str,
        dataset: str,
        classes: Classes,
        trusted: Sequence[str],
        tags: Mapping[str, str],
        now: float,
    ) -> VersionRow:
        """Log the pipeline in MLflow's own scikit-learn format, and register it as the project's next version.

        Any MLflow user can load it by `mlflow.sklearn.load_model`, without this package; our own serving reads our
        artifact and never this copy. With `gates.approval` the version is pending: it gets no traffic yet.
        Args: artifact: where our artifact lies, whole, under the hash `sha256`. dataset: `uri@version`. classes: what
            the columns of `predict_proba` mean. trusted: the types that skops must be told to load, from the artifact's
            manifest. now: seconds since the epoch.
        """
        status = VersionRow.PENDING if self.project.gates.approval else VersionRow.REGISTERED
        marks = {**tags, **({APPROVAL: _APPROVED[status]} if status == VersionRow.PENDING else {})}
        self._log_model(run_id, pipeline, classes, trusted)
        said = f"{type(pipeline[-1]).__name__}; served from {artifact}, SHA-256 of its manifest {sha256}"
        number = self.write(lambda: self._begin(run_id, said, marks))
        kept = dict(tags)
        row = VersionRow(self.project.project, number, run_id, artifact, sha256, dataset, status, now, kept)
        self._store.run(lambda tx: _save(tx, row))
        try:
            self.write(lambda: self._unmark(number))
        except BackendUnavailable as exc:
            _log.warning("v%s is registered, and MLflow shows it as begun until the next start: %s", number, exc)
        return row

    def set_alias(self, alias: str, version: int) -> None:
        """Point `alias` (`champion`, `challenger`) at `version`. Raises: ModelNotFound.

        A new champion gets the ledger's head as a tag, before the alias: a crash between the two leaves the alias to be
        set again, and so no promotion without its anchor."""
        name = self.project.project
        if alias == CHAMPION:
            with self._store.read() as tx:
                seq, sealed = ledger.head(tx, name)
            if seq > 0:
                self.write(
                    lambda: self.client.set_model_version_tag(name, str(version), f"{ANCHOR}{seq}", sealed),
                    missing=str(version),
                )
        self.write(
            lambda: self.client.set_registered_model_alias(name, alias, str(version)),
            missing=str(version),
        )

    def delete_alias(self, alias: str) -> None:
        """Take `alias` away; nothing happens when there is none."""
        if self.alias(alias) is not None:
            self.write(lambda: self.client.delete_registered_model_alias(self.project.project, alias))

    def alias(self, alias: str) -> int | None:
        """The version that `alias` points at, or None."""
        name = self.project.project
        try:
            return int(
                self.write(lambda: self.client.get_model_version_by_alias(name, alias), missing=alias).version,
            )
        except ModelNotFound:
            return None

    # how

    def _log_model(self, run_id: str, pipeline: Pipeline, classes: Classes, trusted: Sequence[str]) -> None:
        """MLflow's copy. Requirements and signature are given, for inferring them takes seconds."""
        types = [*trusted, *(f"{type(step).__module__}" for _, step in pipeline.steps), "numpy", "pandas", "skops"]
        with self.mapped(), tempfile.TemporaryDirectory() as temporary:
            folder = str(Path(temporary) / "model")
            mlflow.sklearn.save_model(
                pipeline,
                folder,
                serialization_format="skops",
                skops_trusted_types=list(trusted),
                signature=self._signature(len(classes)),
                pip_requirements=requirements({name.partition(".")[0] for name in types}),
                pyfunc_predict_fn="predict" if self.project.task == "regression" else "predict_proba",
                metadata={"task": self.project.task, "classes": list(classes)},
            )
            self.write(lambda: self.client.log_artifacts(run_id, folder, "model"))

    def _signature(self, n_classes: int) -> ModelSignature:
        """What the pipeline takes, derived columns among them, which `data.derive` makes of a request's; its answer."""
        features = self.project.features
        inputs: list[Any] = [ColSpec(DataType.double, c, required=False) for c in features.numbers]
        inputs += [ColSpec(DataType.string, c) for c in features.texts]
        shape = (-1,) if self.project.task == "regression" else (-1, n_classes)
        return ModelSignature(inputs=Schema(inputs), outputs=Schema([TensorSpec(np.dtype(np.float64), shape)]))

    def _begin(self, run_id: str, description: str, tags: Mapping[str, str]) -> int:
        """MLflow's version of the run, marked as begun: made now, or by an attempt whose answer was lost."""
        name = self.project.project
        try:
            self.client.create_registered_model(name)
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for found in self._versions():
            if found.run_id == run_id and BEGUN in found.tags:
                return int(found.version)
        run = self.client.get_run(run_id)
        marks = short_tags({**tags, BEGUN: run.data.tags.get(LEASE, "")})
        source = f"{run.info.artifact_uri}/model"
        made = self.client.create_model_version(
            name, source, run_id, tags=marks, description=description, await_creation_for=0
        )
        return int(made.version)

    def _unmark(self, number: int) -> None:
        self.client.delete_model_version_tag(self.project.project, str(number), BEGUN)

    def _versions(self) -> list[ModelVersion]:
        return versions_of(self)

    def _mend(self) -> None:
        """Finish or remove what was begun by a driver that is gone; tags about approvals follow the state database."""
        with self._store.read() as tx:
            rows = {row.version: row for row in tx.versions(self.project.project)}
        for found in self.write(self._versions):
            number, row = int(found.version), rows.get(int(found.version))
            mine = row is not None and row.run_id == found.run_id
            if BEGUN in found.tags and mine:
                self.write(lambda number=number: self._unmark(number))  # type: ignore[misc]
            elif BEGUN in found.tags and is_gone(self._store, found.tags[BEGUN]):
                self.write(lambda found=found: self._remove(found))  # type: ignore[misc]
            if row is not None and mine and found.tags.get(APPROVAL) not in (None, _APPROVED[row.status]):
                self.write(lambda row=row: self._show_approval(row))  # type: ignore[misc]

    def _remove(self, orphan: ModelVersion) -> None:
        """Take a version without a row out; its run and artifact stay, and the run says so."""
        why = f"a crash came before v{orphan.version} was saved, and it was removed; resume the run, or train again"
        if orphan.run_id is not None:
            self.client.set_tag(orphan.run_id, "registration", why)
        self.client.delete_model_version(self.project.project, orphan.version)

    def _show_approval(self, row: VersionRow) -> None:
        self.client.set_model_version_tag(self.project.project, str(row.version), APPROVAL, _APPROVED[row.status])


def versions_of(connection: Connection) -> list[ModelVersion]:
    """All versions of the connection's project that MLflow has, without its errors mapped."""
    where = f"name = '{connection.project.project}'"
    return everything(lambda token: connection.client.search_model_versions(where, page_token=token))


def anchors(project: Project) -> list[ledger.Anchor]:
    """Heads of the project's ledger that promotions have left with its versions, oldest first.

    Raises: BackendUnavailable; DataError, also for a tag that is no anchor."""
    connection = Connection(project)
    found = connection.write(lambda: versions_of(connection))
    tags = [tag for version in found for tag in version.tags.items() if tag[0].startswith(ANCHOR)]
    return sorted(ledger.parse_anchor(f"{name.removeprefix(ANCHOR)}:{sealed}") for name, sealed in tags)


def _save(tx: Tx, row: VersionRow) -> None:
    """Save a new version. Raises: DataError when its number is another's: MLflow has lost its versions then."""
    known = {version.version: version.run_id for version in tx.versions(row.project)}
    if known.get(row.version, row.run_id) != row.run_id:
        detail = (
            f"MLflow's registry gave v{row.version} again, which run {known[row.version]} has; restore its "
            f"database, or train under another `project:` name"
        )
        raise DataError(row.project, detail)
    tx.save_version(row)
