"""Decisions that the state database knows of and the ledger does not: what a ledger that was emptied, cut or exchanged
leaves behind in other tables. Whoever changes those as well leaves nothing; against that there are anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlops_ray import ledger
from mlops_ray.governance import approvals
from mlops_ray.ledger import Entry
from mlops_ray.rollout.canary import ENDED, Phase
from mlops_ray.state import ApprovalRow, RetrainRow, RolloutRow, Tx

_RETRAIN_ENDS = ("retrain succeeded", "candidate rejected", "retrain failed")
_DECIDED = {approvals.KIND: ApprovalRow.APPROVE, approvals.REJECTED: ApprovalRow.REJECT}
_STABLE = (Phase.PROMOTING, Phase.BAKING, Phase.PROMOTED)


def unrecorded(tx: Tx, project: str) -> tuple[str, ...]:
    """What no entry of the project's ledger says although rows of the state say that it was decided, in words: starts
    and states of rollouts, decisions and ends of retrains, approvals, and what made the stable version stable.

    Raises: DataError where an entry cannot be read."""
    entries = ledger.entries(tx, project)
    found = [says for row in reversed(tx.rollouts(project)) for says in _of_rollout(row, entries)]
    found += [says for row in reversed(tx.retrains(project)) for says in _of_retrain(row, entries)]
    found += _of_approvals(tx, project, entries)
    served = tx.serving(project)
    stable = (served.spec.get("stable") or {}).get("version") if served else None
    if stable is not None and not any(_made_stable(entry, stable) for entry in entries):
        found.append(f"what made v{stable} stable")
    return tuple(found)


def _of_rollout(row: RolloutRow, entries: Sequence[Entry]) -> Iterator[str]:
    mine = [entry for entry in entries if entry.evidence.get("rollout") == row.id]
    if not any(entry.kind == "rollout started" for entry in mine):
        yield f"that rollout {row.id} started"
    phase = row.state["phase"]
    told = [state["phase"] for entry in mine if isinstance(state := entry.evidence.get("state"), dict)]
    if (phase in ENDED and phase not in told) or (told and told[-1] != phase):
        yield f"that rollout {row.id} is {phase}"


def _of_retrain(row: RetrainRow, entries: Sequence[Entry]) -> Iterator[str]:
    kinds = {entry.kind for entry in entries if entry.subject == row.id}
    if not kinds & {"retrain decided", "retrain proposed"}:
        yield f"that retrain {row.id} was decided"
    if row.status not in (*RetrainRow.OPEN, RetrainRow.PROPOSED) and not kinds & set(_RETRAIN_ENDS):
        yield f"that retrain {row.id} is {row.status}"


def _of_approvals(tx: Tx, project: str, entries: Sequence[Entry]) -> Iterator[str]:
    """What people decided last, as the table of approvals has it: against the last entry of each, both ways. Entries of
    the releases that had no such table stand alone."""
    told: dict[tuple[str, str], dict[str, tuple[str, Any]]] = {}
    for entry in entries:
        if entry.kind in _DECIDED:
            about = (entry.subject, str(entry.evidence.get("rollout") or ""))
            told.setdefault(about, {})[entry.who] = _DECIDED[entry.kind], entry.evidence.get("expires")
    kept = set()
    for row in tx.all_approvals(project):
        about = (f"v{row.version}", row.rollout)
        kept.add(about)
        if told.get(about, {}).pop(row.subject, None) != (row.decision, row.expires):
            yield f"that {row.subject} decided to {row.decision} {_about(*about)}"
    for about, missed in told.items():
        if about in kept:
            yield from (f"that {who} no longer decides about {_about(*about)}" for who in missed)


def _about(version: str, rollout: str) -> str:
    return f"{version}, of rollout {rollout}" if rollout else version


def _made_stable(entry: Entry, version: int) -> bool:
    """Whether an entry says that this version is, was or becomes stable."""
    if version in (entry.evidence.get("against"), entry.evidence.get("to")):
        return True
    state = entry.evidence.get("state")
    return entry.subject == f"v{version}" and (
        entry.kind == "promoted" or (isinstance(state, dict) and state.get("phase") in _STABLE)
    )
