"""Decisions of approvers: recorded with their entry in the ledger, and what a version's status makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.errors import ApprovalRefused, NothingWaits
from mlops_ray.rollout import orders
from mlops_ray.rollout.approval import PROPOSALS, Policy, Standing, has_expired, proposers, standing
from mlops_ray.state import ApprovalRow, RolloutRow, Store, Tx, VersionRow

KIND, REJECTED = "approved", "rejected"
"""Kinds of the ledger's entries; their subject is `v` and the version's number, and their evidence names a rollout
where the decision is about that."""

Decision = Literal["approve", "reject"]


@dataclass(frozen=True)
class Decided:
    """A decision and what all of them come to. `rollout`: its id where the decision is about one, else "".

    `recorded` is False where nothing changed: the subject had decided so before, or nothing waits for an approval."""

    version: VersionRow
    rollout: str
    standing: Standing
    recorded: bool


def approve(
    tx: Tx, project: str, version: int, *, who: str, why: str, now: float, policy: Policy | None = None
) -> Decided:
    """Approve a version that waits, or its open rollout where that asks for approvals; the version may serve once
    enough people have approved and nobody rejects it. One's own, unexpired approval is not recorded again.

    Args: tx: a write transaction; the entry in the ledger goes with it. who: the authenticated subject. why: in a
        sentence. now: the machine's time, seconds since the epoch. policy: what `gates.approval` asks for; default: one
        approver.
    Raises: ModelNotFound; ApprovalRefused for one who proposed it.
    """
    return _decide(tx, project, version, "approve", who=who, why=why, now=now, policy=policy)


def reject(
    tx: Tx, project: str, version: int, *, who: str, why: str, now: float, policy: Policy | None = None
) -> Decided:
    """Reject a version that waits, or its open rollout where that asks for approvals: no approval of others counts
    until the same subject approves. Proposers may reject what they proposed.

    Args: as of `approve`.
    Raises: ModelNotFound; NothingWaits where nothing waits for an approval.
    """
    return _decide(tx, project, version, "reject", who=who, why=why, now=now, policy=policy)


def decide(
    store: Store, project: Project, version: int, decision: Decision, *, who: str, why: str, now: float
) -> dict[str, Any]:
    """`approve` or `reject`, by the policy of the project's `gates.approval`; JSON, `already` when nothing changed.

    Args and raises: as of those."""
    asked = project.gates.approval
    policy = Policy() if isinstance(asked, bool) else Policy(asked.approvers, asked.expires_s)
    found = store.run(
        lambda tx: _decide(tx, project.project, version, decision, who=who, why=why, now=now, policy=policy)
    )
    return {
        "version": version,
        "rollout": found.rollout or None,
        "status": found.version.status,
        "who": who,
        "already": not found.recorded,
        "approved": found.standing.approved,
        "approvers": list(found.standing.approvers),
        "rejecters": list(found.standing.rejecters),
        "missing": found.standing.missing,
        "says": str(found.standing),
    }


def _decide(
    tx: Tx, project: str, version: int, decision: Decision, *, who: str, why: str, now: float, policy: Policy | None
) -> Decided:
    row = tx.version(project, version)
    opened = _asking(tx, row) if row.may_serve else None
    rollout = "" if opened is None else opened.id
    asked = (policy or Policy()) if not row.may_serve else None if opened is None else Policy.of_plan(opened.plan)
    if asked is None:
        if decision == "reject":
            says = "waits for no approval; take it out with `mlops-ray rollout abort`, or `mlops-ray rollout rollback`"
            raise NothingWaits(f"v{version} of {project}", says)
        return Decided(row, "", Standing(approved=True, rejected=False, missing=0), recorded=False)
    if opened is None:
        proposed_by = proposers(row, ledger.entries(tx, project, kinds=PROPOSALS))
        known = tx.approvals(project, version, "")
    else:
        proposed_by, known = orders.proposers(tx, opened), orders.decisions(tx, opened, version)
    if decision == "approve" and who in proposed_by:
        says = f"{who} proposed it, so another must approve it; `mlops-ray reject` is open to everybody"
        raise ApprovalRefused(f"{rollout or f'v{version}'} of {project}", says)
    mine = max((r for r in known if r.subject == who), key=lambda r: r.at, default=None)
    if mine is not None and mine.decision == decision and not has_expired(mine, now):
        return Decided(row, rollout, standing(known, policy=asked, proposer=proposed_by, now=now), recorded=False)
    ends = now + asked.expires_s if decision == "approve" and asked.expires_s is not None else None
    made = ApprovalRow(project, version, rollout, who, decision, why, now, ends)
    tx.save_approval(made)
    found = standing([*_others(known, who), made], policy=asked, proposer=proposed_by, now=now)
    if not rollout:
        row = replace(row, status=_status(found))
        tx.save_version(row)
    evidence: dict[str, Any] = {
        "run_id": row.run_id,
        "sha256": row.sha256,
        "approvers": list(found.approvers),
        "rejecters": list(found.rejecters),
        "missing": found.missing,
        "expires": ends,
        **({} if opened is None else {"rollout": rollout, "phase": opened.state["phase"]}),
    }
    ledger.append(tx, project, KIND if decision == "approve" else REJECTED, f"v{version}", who, why, evidence, now)
    return Decided(row, rollout, found, recorded=True)


def _asking(tx: Tx, row: VersionRow) -> RolloutRow | None:
    """The open rollout that is about the version, alone or beside others."""
    rollout = tx.open_rollout(row.project)
    return rollout if rollout is not None and row.version in orders.versions_of(rollout) else None


def _others(rows: Iterable[ApprovalRow], who: str) -> list[ApprovalRow]:
    return [row for row in rows if row.subject != who]


def _status(found: Standing) -> str:
    if found.rejected:
        return VersionRow.REJECTED
    return VersionRow.REGISTERED if found.approved else VersionRow.PENDING
