"""Where what is judged comes from: rows of the log, and what versions are held against.

A simulation hands in its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.profile import Columns
from mlops_ray.monitoring import captured, record
from mlops_ray.monitoring.multivariate import Told, tell
from mlops_ray.state import Tx, VersionRow
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Classes, Scores

JUDGED = "judged"
"""Cursor: the instant and the kind of what was judged last."""
TOLD = "told apart"
"""Cursor: the instant for which a classifier has told live rows from the holdout's last."""


@dataclass(frozen=True)
class Yardstick:
    """What windows of a version are held against. threshold: from which on a binary model's score says 1. score: asks
    the model, to know which features it heeds; None where it cannot be asked, and all features count."""

    reference: Reference
    classes: Classes
    threshold: float
    score: Callable[[Columns], Scores] | None = None


class Rows(Protocol):
    """Rows of the log."""

    def __call__(self, start: float, end: float, known_by: float, *, inputs: bool = False) -> pa.Table:
        """Those of [start, end), as `captured.rows` gives them for a project."""


Ask = Callable[..., Callable[[], Told | None]]
"""Takes what `multivariate.tell` takes; what it gives says the answer, or None while there is none."""


def at_once(tell: Callable[..., Told] = tell) -> Ask:
    """Asks here and now."""

    def ask(*rows: Any, **plan: Any) -> Callable[[], Told]:
        told = tell(*rows, **plan)
        return lambda: told

    return ask


AT_ONCE = at_once()


@dataclass(frozen=True)
class Sources:
    """Where what is judged comes from: the log's rows, what a version is held against, and how many labels became
    known after a time (seconds since the epoch). ask: has `multivariate.tell` carried out, maybe elsewhere."""

    rows: Rows
    yardstick: Callable[[VersionRow], Yardstick]
    labels_since: Callable[[float], int]
    ask: Ask = AT_ONCE


def stable_of(tx: Tx, project: str) -> VersionRow | None:
    """The version that answers most traffic, or None before the first."""
    serving = tx.serving(project)
    return tx.version(project, serving.spec["stable"]["version"]) if serving else None


def labelled(project: Project, sources: Sources, rows: pa.Table, version: VersionRow) -> tuple[Floats, Scores]:
    """Labels (NaN where not known) and scores of the `rows` that this version scored as stable."""
    mine = captured.scored_by(version.version, rows)
    classes = sources.yardstick(version).classes
    return record.numbered(project.task, classes, mine["label"]), captured.scores(project, mine)
