"""Where serving keeps things: the spools of a node, the tables of the prediction log."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mlops_ray.config import Project

_KEPT = "/var/tmp"
"""Source: Filesystem Hierarchy Standard 3.0, 5.15."""


def spool_root(project: Project) -> Path:
    """Folder on this machine with the project's spools, one for each node.

    Below `storage.root`, or on a local disk when that is remote or shared by several machines: locks and fsync are then
    what this machine's kernel says. Never in memory, which power loss empties.
    """
    if project.storage.is_remote or project.cluster.nodes > 1:
        root = hashlib.blake2b(project.storage.root.encode(), digest_size=4).hexdigest()
        return Path(_KEPT, f"mlops-ray-spool-{os.getuid()}", f"{project.project}-{root}")
    return Path(project.storage.path("spool", project.project))


def spool_folder(project: Project, node: str) -> Path:
    """The spool of a node, by its Ray node id."""
    return spool_root(project) / node


def log_uri(project: Project) -> str:
    """Delta table of the prediction log."""
    return project.storage.path("log", project.project, "predictions")


def labels_uri(project: Project) -> str:
    """Delta table of the labels."""
    return project.storage.path("log", project.project, "labels")


def values_uri(project: Project) -> str:
    """Delta table of the business numbers."""
    return project.storage.path("log", project.project, "values")


def shadow_uri(project: Project) -> str:
    """Delta table of what shadows answered."""
    return project.storage.path("log", project.project, "shadow")


def uncaptured_uri(project: Project) -> str:
    """Delta table of how many rows were answered but not recorded."""
    return project.storage.path("log", project.project, "uncaptured")
