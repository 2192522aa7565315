"""The approval that a pending version waits for."""

from __future__ import annotations

from dataclasses import replace

from mlops_ray import ledger
from mlops_ray.state import Tx, VersionRow

KIND = "approved"
"""Kind of the ledger's entry; its subject is `v` and the version's number."""


def approve(tx: Tx, project: str, version: int, *, who: str, why: str, now: float) -> VersionRow:
    """Let a pending version have traffic, with an entry in the ledger, both in the write transaction `tx`.

    A version that waits for nothing is returned as it is, and no entry made.
    Args: who: the authenticated subject. why: in a sentence. now: seconds since the epoch.
    Raises: ModelNotFound.
    """
    row = tx.version(project, version)
    if row.may_serve:
        return row
    approved = replace(row, status=VersionRow.REGISTERED)
    tx.save_version(approved)
    evidence = {"run_id": row.run_id, "sha256": row.sha256}
    ledger.append(tx, project, KIND, f"v{version}", who, why, evidence, now)
    return approved
