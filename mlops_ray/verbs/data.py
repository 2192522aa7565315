"""Looking at dataset versions, comparing two, and removing what nobody needs. None of it needs a cluster."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime
from typing import Any

from mlops_ray.config import Project
from mlops_ray.data import changes, lake
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.lineage import last_prepared
from mlops_ray.errors import DataError
from mlops_ray.verbs import Env, Paths, known_store, load


def list_versions(paths: Paths, env: Env) -> dict[str, Any]:
    """All dataset versions of the project that stand, newest first, and the models that were trained on them."""
    project = load(paths, env).project
    uri, models = _uri(project), _models(project)
    now = last_prepared(uri)
    found = [
        _version(version) | {"models": _of(models, version), "current": version == now}
        for version in lake.versions(uri)
    ]
    return {"project": project.project, "uri": uri, "versions": found}


def show(paths: Paths, env: Env, version: int) -> dict[str, Any]:
    """One version: lineage, what its files' footers tell of columns, files, validation, and what is kept beside.

    Raises: DataError when there is no such version, or it was removed.
    """
    project = load(paths, env).project
    found = lake.dataset(_uri(project), version)
    report = lake.read_sidecar(found.uri, found.content_hash, "validation.json")
    return {
        **_version(found),
        "uri": found.uri,
        "models": _of(_models(project), found),
        "lineage": found.lineage,
        "columns": _plain(changes.column_ranges(found)),
        "files": lake.files(found),
        "report": json.loads(report) if report is not None else None,
        "beside": lake.sidecars(found.uri, found.content_hash),
    }


def diff(paths: Paths, env: Env, before: int, after: int, n_examples: int = 5) -> dict[str, Any]:
    """What changed from one version to another: columns, and rows by `validation.unique` or else by the key.

    Raises: DataError when one is not there, or was removed.
    """
    project = load(paths, env).project
    left, right = (lake.dataset(_uri(project), version) for version in (before, after))
    key = project.validation.unique or (project.key,)
    found = changes.compare(left, right, key, n_examples=n_examples)
    plain: dict[str, Any] = _plain(asdict(found))
    return {"before": _version(left), "after": _version(right), **plain}


def gc(
    paths: Paths,
    env: Env,
    *,
    older_than_s: float,
    keep: int | None = None,
    before: float | None = None,
    really: bool = False,
) -> dict[str, Any]:
    """What runs that died left behind, and old versions that no model was trained on; removed if `really`.

    Args: as of `lake.garbage`; `keep` and `before` None: no version goes.
    Returns: per table what goes, and which versions stay although they are old, each with its reason.
    """
    project = load(paths, env).project
    now = time.time()
    in_use = {content: f"model v{models[0]} was trained on it" for content, models in _models(project).items()}
    base = last_prepared(_uri(project))
    if base is not None:
        in_use.setdefault(base.content_hash, "training and retraining build on it: it is what the source said last")
    tables = [
        lake.garbage(_uri(project), now=now, older_than_s=older_than_s, keep=keep, before=before, in_use=in_use),
        lake.garbage(project.storage.path("quarantine", project.project), now=now, older_than_s=older_than_s),
    ]
    if really:
        for table in tables:
            lake.collect(table, now=now)
    return {
        "removed": really,
        "tables": [
            {
                "uri": table.uri,
                "versions": [_version(version) for version in table.versions],
                "files": list(table.files),
                "bytes": table.n_bytes,
                "kept": [{"version": version.version, "why": why} for version, why in table.kept],
            }
            for table in tables
        ],
    }


def _uri(project: Project) -> str:
    return project.storage.path("data", project.project)


def _models(project: Project) -> dict[str, list[int]]:
    """By content hash, the registered versions of the model that were trained on it, newest first."""
    try:
        store = known_store(project)
    except DataError:  # nothing was ever trained here
        return {}
    found: dict[str, list[int]] = {}
    with store.read() as tx:
        for row in tx.versions(project.project):
            found.setdefault(row.tags.get("dataset.content_hash", ""), []).append(row.version)
    return {content: sorted(numbers, reverse=True) for content, numbers in found.items()}


def _of(models: Mapping[str, list[int]], version: DatasetVersion) -> list[int]:
    """The models that were trained on that version, before rows of it were forgotten or after."""
    return sorted({number for content in version.contents for number in models.get(content, [])}, reverse=True)


def _version(found: DatasetVersion) -> dict[str, Any]:
    lineage = found.lineage
    return {
        "version": found.version,
        "committed": found.committed,
        "rows": found.n_rows,
        "bytes": found.n_bytes,
        "content_hash": found.content_hash,
        "redacted": found.redacted,
        "made_by": lineage.get("made_by", {}),
        "uris": lineage.get("uris", []),
        "parents": lineage.get("parents", []),
    }


def _plain(value: Any) -> Any:
    """As JSON has it: times in ISO 8601, bytes in hexadecimal, numbers that are none as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else str(value)  # Parquet notes a smallest zero as -0.0
    return value
