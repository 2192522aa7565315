"""Where serving keeps things: the spool of a node, the tables of the prediction log."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlops_ray.config import Project


def spool_folder(project: Project) -> Path:
    """The spool of this node: below `storage.root`, or below the temporary directory when that is remote."""
    if project.storage.is_remote:
        return Path(tempfile.gettempdir(), "mlops-ray-spool", project.project)
    return Path(project.storage.path("spool", project.project))


def log_uri(project: Project) -> str:
    """Delta table of the prediction log."""
    return project.storage.path("log", project.project, "predictions")


def labels_uri(project: Project) -> str:
    """Delta table of the labels."""
    return project.storage.path("log", project.project, "labels")
