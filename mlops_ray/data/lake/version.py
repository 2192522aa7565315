"""A dataset version as a value."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Redaction:
    """Rows that a version lost to a request to be forgotten: when (seconds since the epoch), how many, and the content
    hash that the version had before."""

    at: float
    n_rows: int
    was: str


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version of the Delta table at `uri`. `lineage` says where its rows came from (JSON)."""

    uri: str
    version: int
    content_hash: str
    n_rows: int
    n_bytes: int
    """Of its Parquet files."""
    committed: float
    """Seconds since the epoch, by the clock of the machine that committed."""
    lineage: dict[str, Any]
    redactions: tuple[Redaction, ...] = ()
    """Oldest first; `content_hash` and `n_rows` are of the rows that are left."""

    @property
    def contents(self) -> tuple[str, ...]:
        """Every content hash that the version has had, the present one first."""
        return (self.content_hash, *(redaction.was for redaction in reversed(self.redactions)))

    @property
    def redacted(self) -> str:
        """What became of the version, as a sentence; empty for one that is as it was committed."""
        if not self.redactions:
            return ""
        when = datetime.fromtimestamp(self.redactions[-1].at, UTC).strftime("%Y-%m-%d")
        n_rows = sum(redaction.n_rows for redaction in self.redactions)
        return f"redacted on {when}: {n_rows:,} rows were forgotten, its content was {self.redactions[0].was}"
