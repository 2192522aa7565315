"""Where the sequential detectors stand: rows of the state database, saved with the cursor of what they have seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Table, Text, select

from mlops_ray.monitoring.sequential import State
from mlops_ray.state import METADATA, Tx

DETECTORS = Table(
    "detectors",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("body", Text, nullable=False),
)
_NAME = "sequential"


@dataclass(frozen=True)
class Standing:
    """Where the detector stands for `version`, whose first block it saw began at `since` (seconds since the epoch).

    n_rows: labelled rows seen since. why: in words."""

    version: int
    since: float
    n_rows: int = 0
    state: State = field(default_factory=State)
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss."""
        return {**vars(self), "state": self.state.to_dict()}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Standing:
        """The standing that `to_dict` wrote. Raises: DataError when its state is of another release's grid."""
        return Standing(**{**body, "state": State.from_dict(body["state"])})


def read(tx: Tx, project: str) -> Standing | None:
    """Where the project's detector of the loss stands, or None before its first block."""
    body = read_body(tx, project, _NAME)
    return None if body is None else Standing.from_dict(body)


def save(tx: Tx, project: str, now: Standing) -> None:
    """Save where it stands; in the transaction of its cursor."""
    save_body(tx, project, _NAME, now.to_dict())


def read_body(tx: Tx, project: str, name: str) -> dict[str, Any] | None:
    """Where the detector called `name` stands, as its own `to_dict` wrote it; None before its first block."""
    c = DETECTORS.c
    query = select(c.body).where(c.project == project, c.name == name)
    body = tx.connection.execute(query).scalar_one_or_none()
    return None if body is None else dict(json.loads(body))


def save_body(tx: Tx, project: str, name: str, body: Mapping[str, Any]) -> None:
    """Save where the detector called `name` stands."""
    tx.upsert(DETECTORS, {"project": project, "name": name, "body": dict(body)})
