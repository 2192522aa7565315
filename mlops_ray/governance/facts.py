"""What is on record about a version: plain values, gathered elsewhere, from which lineage and card are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlops_ray.data.lake import DatasetVersion
from mlops_ray.ledger import Entry
from mlops_ray.state import RetrainRow, RolloutRow, VersionRow


@dataclass(frozen=True)
class Run:
    """A training run as MLflow has it. Times are seconds since the epoch."""

    id: str
    status: str
    started: float | None
    ended: float | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    trials: Mapping[str, int] = field(default_factory=dict)
    """How many trials ended in which way."""
    config: Mapping[str, Any] | None = None
    """The project file as it was trained with, without secrets."""
    environment: Mapping[str, Any] | None = None
    """Python, platform, distributions."""
    gates: Mapping[str, Any] | None = None
    """`gates.json`."""
    plots: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files by name, without their ending."""


@dataclass(frozen=True)
class Facts:
    """All of it. What could not be read is None, and `missing` says why, by its name."""

    version: VersionRow
    run: Run | None
    dataset: DatasetVersion | None
    parents: tuple[DatasetVersion, ...]
    """Dataset versions whose rows went into it, and into those."""
    rollouts: tuple[RolloutRow, ...]
    """Of this version, oldest first."""
    retrain: RetrainRow | None
    """The decision that it was trained for."""
    entries: tuple[Entry, ...]
    """The ledger's entries about version, rollouts and decision, oldest first."""
    serves: str | None
    """`stable`, `canary`, or None where it has no traffic."""
    missing: Mapping[str, str] = field(default_factory=dict)
