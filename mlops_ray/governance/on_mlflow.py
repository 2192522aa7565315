"""Gathers what is on record about a version: state database and ledger, the lake's commits, the run in MLflow."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# First of all that imports MLflow: it sets what MLflow reads when it is imported.
from mlops_ray.training.on_connection import Connection, everything  # isort: skip

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.errors import BackendUnavailable, DataError, ModelNotFound
from mlops_ray.governance.facts import Facts, Run
from mlops_ray.ledger import Entry
from mlops_ray.rollout.orders import versions_of
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import RetrainRow, RolloutRow, Store, Tx, VersionRow
from mlops_ray.training.on_mlflow import TRIAL

MAX_PLOT_BYTES = 1_000_000
"""A larger file in `plots/` is none of ours."""


def gather(project: Project, store: Store, version: int, *, plots: bool = False) -> Facts:
    """What is on record about a version; what cannot be read is left out and named in `missing`.

    Args: plots: also the run's pictures, some 50 kB each.
    Raises: ModelNotFound; BackendUnavailable when the state database does not answer.
    """
    with store.read() as tx:
        row = tx.version(project.project, version)
        retrain = tx.retrain(str(row.tags["decision"])) if row.tags.get("decision") else None
        rollouts = tuple(r for r in reversed(tx.rollouts(project.project)) if version in versions_of(r))
        entries, serves = tuple(_entries(tx, row, rollouts, retrain)), _serves(tx, row)
    missing: dict[str, str] = {}
    run = _run(project, row, missing, plots=plots)
    dataset = _dataset(row, missing)
    parents = tuple(_parents(dataset, missing)) if dataset is not None else ()
    return Facts(row, run, dataset, parents, rollouts, retrain, entries, serves, missing)


def _entries(tx: Tx, row: VersionRow, rollouts: tuple[RolloutRow, ...], retrain: RetrainRow | None) -> Iterator[Entry]:
    mine = {f"v{row.version}", *(r.id for r in rollouts), *([retrain.id] if retrain is not None else [])}
    for entry in ledger.entries(tx, row.project):
        if entry.subject in mine or entry.evidence.get("rollout") in mine:
            yield entry


def _serves(tx: Tx, row: VersionRow) -> str | None:
    served = tx.serving(row.project)
    if served is None:
        return None
    if (served.spec.get("stable") or {}).get("version") == row.version:
        return "stable"
    return "canary" if row.version in Wanted.of(served).on_trial else None


def _run(project: Project, row: VersionRow, missing: dict[str, str], *, plots: bool) -> Run | None:
    try:
        connection = Connection(project)
        client = connection.client
        with connection.mapped(missing=row.run_id):
            found = client.get_run(row.run_id)
            where = f"tags.`mlflow.parentRunId` = '{row.run_id}' and tags.`{TRIAL}` != ''"
            trials = everything(lambda token: client.search_runs([found.info.experiment_id], where, page_token=token))
            with tempfile.TemporaryDirectory() as folder:
                wanted = ["config", "environment", "gates", *(["plots"] if plots else [])]
                there = {f.path for f in client.list_artifacts(row.run_id)}
                for name in sorted(there.intersection(wanted)):
                    client.download_artifacts(row.run_id, name, folder)
                files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    except (BackendUnavailable, DataError) as exc:
        missing["run"] = str(exc)
        return None
    except ModelNotFound:
        missing["run"] = f"MLflow has no run {row.run_id}"
        return None
    return Run(
        row.run_id,
        found.info.status,
        _seconds(found.info.start_time),
        _seconds(found.info.end_time),
        dict(found.data.params),
        dict(found.data.metrics),
        dict(found.data.tags),
        dict(Counter(trial.data.tags.get("outcome", "unknown") for trial in trials)),
        _parsed(files, "config/project.yaml", missing),
        _parsed(files, "environment/lock.json", missing),
        _parsed(files, "gates/gates.json", missing),
        {Path(n).stem: b for n, b in sorted(files.items()) if _is_plot(n, b)},
    )


def _is_plot(name: str, body: bytes) -> bool:
    return name.startswith("plots/") and body.startswith(b"\x89PNG") and len(body) <= MAX_PLOT_BYTES


def _parsed(files: dict[str, bytes], name: str, missing: dict[str, str]) -> dict[str, Any] | None:
    """A file of the run as a mapping; JSON is read as such, for YAML's reader is a hundred times slower."""
    try:
        body = json.loads(files[name]) if name.endswith(".json") else yaml.safe_load(files[name])
    except KeyError:
        missing[name] = "the run has no such file"
        return None
    except (ValueError, yaml.YAMLError) as exc:
        missing[name] = f"it cannot be read: {str(exc).splitlines()[0]}"
        return None
    if not isinstance(body, dict):
        missing[name] = "it cannot be read: it is no mapping"
        return None
    return body


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1e3 if milliseconds else None


def _dataset(row: VersionRow, missing: dict[str, str]) -> DatasetVersion | None:
    uri, _, number = row.dataset.rpartition("@")
    try:
        found = lake.dataset(uri, int(number))
    except (DataError, ValueError) as exc:
        missing["dataset"] = str(exc)
        return None
    recorded = row.tags.get("dataset.content_hash", found.content_hash)
    if recorded in found.contents[1:]:
        missing["the dataset as it was"] = f"{row.dataset} was {found.redacted}"
        return found
    if found.content_hash != recorded:
        missing["dataset"] = (
            f"{row.dataset} holds other rows than were trained on: {found.content_hash}, not {recorded}"
        )
        return None
    return found


def _parents(dataset: DatasetVersion, missing: dict[str, str]) -> Iterator[DatasetVersion]:
    """Dataset versions behind `dataset`, each once, nearest first."""
    waiting, seen = [dataset], {dataset.content_hash}
    while waiting:
        for parent in waiting.pop(0).lineage.get("parents") or []:
            if parent["content_hash"] in seen:
                continue
            seen.add(parent["content_hash"])
            found = lake.find(dataset.uri, parent["content_hash"])
            if found is None:
                missing[f"dataset version {parent['version']}"] = "it was removed"
                continue
            waiting.append(found)
            yield found
