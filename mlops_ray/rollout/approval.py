"""Approvals: whose say counts, and what all of it comes to. Pure: rows and entries in, a standing out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_ray.ledger import Entry
from mlops_ray.state import ApprovalRow, VersionRow

PROPOSER, PROPOSER_TOKEN = "proposer", "proposer.token"
"""Tags of a version: the user of the operating system that had it trained, and the subject of the token it showed."""
PROPOSALS = ("retrain decided", "rollout started", "rollout promote")
"""Kinds of ledger entries whose `who` proposed what they are about: who orders a promotion cannot approve it too."""


@dataclass(frozen=True)
class Policy:
    """How many different people must approve, and how long each approval counts (seconds; None: for ever)."""

    approvers: int = 1
    expires_s: float | None = None

    @staticmethod
    def of_plan(plan: Mapping[str, Any]) -> Policy | None:
        """What a stored rollout plan asks for; None where it asks for nobody."""
        if plan.get("approval", "none") == "none":
            return None
        return Policy(int(plan.get("approvers", 1)), plan.get("approval_expiry_s"))


@dataclass(frozen=True)
class Standing:
    """What the decisions come to. `missing`: how many more people must approve, 0 where nobody must."""

    approved: bool
    rejected: bool
    missing: int
    approvers: tuple[str, ...] = ()
    """Who has approved, and counts."""
    rejecters: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    """Who proposed it, and so cannot approve it."""
    until: float | None = None
    """When the first of the approvals that count ceases to, seconds since the epoch; None: never."""

    def __str__(self) -> str:
        if self.rejected:
            return f"rejected by {', '.join(self.rejecters)}"
        if self.approved and not self.approvers:
            return "in need of no approval"
        given = f"approved by {', '.join(self.approvers)}" if self.approvers else "approved by nobody yet"
        return given if self.approved else f"{given}; {self.missing} more must"


def standing(
    rows: Iterable[ApprovalRow], *, policy: Policy | None, proposer: str | Collection[str], now: float
) -> Standing:
    """What the decisions about one version, or one rollout, come to at `now` (seconds since the epoch).

    A subject's last decision counts. An approval counts until it expires and never when its subject is a proposer; a
    rejection counts whoever made it, the proposer too, and until its subject approves.
    Args: rows: of one version or one rollout. policy: None where nobody must approve. proposer: one, or several.

    >>> row = ApprovalRow("flights", 3, "", "ann", "approve", "read its card", at=0.0)
    >>> str(standing([row], policy=Policy(approvers=2), proposer="ben", now=1.0))
    'approved by ann; 1 more must'
    >>> standing([row], policy=Policy(), proposer="ann", now=1.0).approved
    False
    """
    last: dict[str, ApprovalRow] = {}
    for row in sorted(rows, key=lambda row: row.at):
        last[row.subject] = row
    proposers = {proposer} if isinstance(proposer, str) else set(proposer)
    rejecters = tuple(name for name, row in last.items() if row.decision == ApprovalRow.REJECT)
    approvers = tuple(
        name
        for name, row in last.items()
        if row.decision == ApprovalRow.APPROVE and name not in proposers and not has_expired(row, now)
    )
    missing = 0 if policy is None else max(0, policy.approvers - len(approvers))
    ends = [last[name].expires for name in approvers]
    until = min((end for end in ends if end is not None), default=None)
    excluded = tuple(sorted(proposers - {""}))
    return Standing(missing == 0 and not rejecters, bool(rejecters), missing, approvers, rejecters, excluded, until)


def has_expired(row: ApprovalRow, now: float) -> bool:
    """Whether a decision no longer counts at `now`, seconds since the epoch."""
    return row.expires is not None and now >= row.expires


def proposers(version: VersionRow, entries: Iterable[Entry], *, rollout: str = "") -> frozenset[str]:
    """Who proposed a version: had it trained, ordered its retrain, started a rollout of it, ordered its promotion.

    Of any rollout of it, also of those that have ended: who may not approve the first may not approve the second that
    a colleague starts. What was not recorded is not known: releases before approvals had subjects kept nobody's name
    with a training. Args: entries: of the project's ledger. rollout: id of one that is about it too, or "".
    """
    name, known = f"v{version.version}", [entry for entry in entries if entry.kind in PROPOSALS]
    about = {version.tags.get("decision"), name} - {None}
    rollouts = {rollout} | {e.evidence.get("rollout") for e in known if e.subject == name or name in _beside(e)}
    rollouts -= {None, ""}
    started = {e.who for e in known if e.subject in about or e.evidence.get("rollout") in rollouts}
    trained = {str(version.tags[tag]) for tag in (PROPOSER, PROPOSER_TOKEN) if version.tags.get(tag)}
    return frozenset(trained | started)


def _beside(entry: Entry) -> Collection[str]:
    """Versions that a rollout was started with beside the one that its entry is about."""
    found = entry.evidence.get("beside")
    return found if isinstance(found, dict) else ()
