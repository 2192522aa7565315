"""Versions from where they were published to this node, checked by hash and by their golden requests."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlops_ray.config import Project
from mlops_ray.errors import ArtifactRefused
from mlops_ray.serving.versions import Held
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Model


def load_version(project: Project, held: Held) -> Model:
    """The version's model, checked by hash, by its golden requests, and for whether the project's requests fit it.

    Raises: ArtifactRefused."""
    loaded = local(held.artifact, held.sha256, trusted=project.features.trusted_types)
    if loaded.task != project.task:
        raise ArtifactRefused(held.artifact, f"it is a {loaded.task} model, and the project's task is {project.task}")
    if missing := [name for name in loaded.features.inputs if name not in project.features.kinds]:
        raise ArtifactRefused(held.artifact, f"it needs {missing[0]!r}, which is no feature in the project's file")
    loaded.replay()
    return loaded


def local(artifact: str, sha256: str, *, trusted: Sequence[str] = ()) -> Model:
    """The artifact at an address, by way of this node's cache when that is remote. Raises: ArtifactRefused.

    Args: trusted: `features.trusted_types` of the project's file, see `model.load`."""
    folder = model.fetch(artifact, Path(tempfile.gettempdir(), "mlops-ray-models"), sha256)
    return model.load(folder, sha256, trusted=trusted)
