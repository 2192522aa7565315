"""Where a dataset version came from: what stands in its commit, beside the rows.

Nothing secret goes in: a commit is for everybody who may read the table, and it stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Any

from mlops_ray.config import Project
from mlops_ray.config.sources import hidden
from mlops_ray.data import lake
from mlops_ray.data.lake import DatasetVersion

_SHAPING = {"project", "target", "key", "event_time", "source", "columns", "validation"}
"""Blocks of the project file that decide which rows a version holds."""


@dataclass(frozen=True)
class Code:
    """The working directory's code: its commit, and whether tracked files differ from it."""

    commit: str
    dirty: bool


def lineage(
    project: Project,
    *,
    made_by: Mapping[str, Any],
    uris: Sequence[str] = (),
    code: Code | None = None,
    function_sha256: str | None = None,
    parents: Sequence[DatasetVersion] = (),
) -> dict[str, Any]:
    """What a commit says of its rows' origin, as JSON.

    Args: made_by: `{"verb": "prepare"}`, or a retrain with its decision. uris: what the source read. code: None where
        the working directory is no checkout. function_sha256: of the file that holds the source function. parents:
        versions of this table whose rows went in.
    Returns: with `config_sha256`, of the blocks of the project file that shape the rows, with secrets hidden; hence a
        rotated password does not look like another configuration.
    """
    shaping = hidden(project.model_dump(mode="json", include=_SHAPING) | {"source": project.source.public()})
    text = json.dumps(shaping, sort_keys=True)
    found: dict[str, Any] = {
        "made_by": dict(made_by),
        "source": shaping["source"],
        "uris": hidden(list(uris)),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "mlops_ray": installed("mlops-ray"),
        "parents": [{"version": parent.version, "content_hash": parent.content_hash} for parent in parents],
    }
    if code is not None:
        found["code"] = {"commit": code.commit, "dirty": code.dirty}
    if function_sha256 is not None:
        found["function_sha256"] = function_sha256
    return found


def is_prepared(lineage: Mapping[str, Any]) -> bool:
    """Whether those rows came from the project's source, and not from a retrain."""
    made_by = lineage.get("made_by")
    return isinstance(made_by, Mapping) and made_by.get("verb") == "prepare"


def last_prepared(uri: str) -> DatasetVersion | None:
    """The version of the table at `uri` that the last `prepare` made or found, None before the first.

    It is not always the newest: a source may say again what it said before, and retrains make versions too.
    """
    return lake.current(uri) or next((v for v in lake.versions(uri) if is_prepared(v.lineage)), None)
