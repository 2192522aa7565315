"""Decisions that the state database knows of and the ledger does not: what a ledger that was emptied, cut or exchanged
leaves behind in other tables. Whoever changes those as well leaves nothing; against that there are anchors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mlops_ray.governance import approvals
from mlops_ray.governance.served import served as served_at
from mlops_ray.ledger import Entry
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import ENDED, Arm, CanaryState, Phase, first
from mlops_ray.state import ApprovalRow, RetrainRow, RolloutRow, Tx

_RETRAIN_ENDS = ("retrain succeeded", "candidate rejected", "retrain failed")
_DECIDED = {approvals.KIND: ApprovalRow.APPROVE, approvals.REJECTED: ApprovalRow.REJECT}
_STABLE = (Phase.PROMOTING, Phase.BAKING, Phase.PROMOTED)


def unrecorded(tx: Tx, project: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    """What no entry of the project's ledger says although rows of the state say that it was decided, in words: starts,
    plans and states of rollouts, decisions and ends of retrains, approvals, and that the stable version is stable.

    What entries of earlier releases did not seal is not compared. Args: entries: of the project, oldest first."""
    of_rollouts: dict[str, list[Entry]] = {}
    for entry in entries:
        if isinstance(rollout := entry.evidence.get("rollout"), str):
            of_rollouts.setdefault(rollout, []).append(entry)
    found = [says for row in reversed(tx.rollouts(project)) for says in _of_rollout(row, of_rollouts.get(row.id, ()))]
    found += [says for row in reversed(tx.retrains(project)) for says in _of_retrain(row, entries)]
    found += _of_approvals(tx, project, entries)
    served = tx.serving(project)
    stable = (served.spec.get("stable") or {}).get("version") if served else None
    return (*found, *(_of_stable(stable, entries, of_rollouts.values()) if stable is not None else ()))


def _of_rollout(row: RolloutRow, mine: Sequence[Entry]) -> Iterator[str]:
    """Args: mine: entries that name this rollout."""
    started = next((entry for entry in mine if entry.kind == "rollout started"), None)
    if started is None:
        yield f"that rollout {row.id} started"
    phase, told = row.state["phase"], [entry for entry in mine if isinstance(entry.evidence.get("state"), dict)]
    phases = [entry.evidence["state"]["phase"] for entry in told]
    if (phase in ENDED and phase not in phases) or (told and phases[-1] != phase):
        yield f"that rollout {row.id} is {phase}"
    elif started is not None and orders.PLAN in started.evidence:
        yield from _of_sealed(row, started, told)


def _of_sealed(row: RolloutRow, started: Entry, told: Sequence[Entry]) -> Iterator[str]:
    """Of a rollout whose start was sealed with its plan. Args: told: its entries that say which state it is in."""
    if orders.plan_seal(row.plan) != started.evidence[orders.PLAN]:
        yield f"the plan of rollout {row.id}"
        return
    last = told[-1] if told else started
    about = f"v{row.version}", row.stable, row.created
    if about != (last.subject, started.evidence.get("against"), started.at):
        yield f"that rollout {row.id} is of v{row.version} against v{row.stable}, since {row.created}"
    state = CanaryState.from_dict(row.state)
    if told:
        known = [CanaryState.from_dict(last.evidence["state"])]
    else:
        plan, versions = orders.plan_of(row), (started.subject, *(started.evidence.get("beside") or ()))
        arms = tuple(Arm(int(v.removeprefix("v"))) for v in versions) if plan.mode == "ab" else ()
        known = [first(plan, may_go=may_go, now=started.at, arms=arms) for may_go in (True, False)]
    if state not in known or (row.ended is not None) != (state.phase in ENDED):
        yield f"that rollout {row.id} is {state.phase} as its row says ({json.dumps(state.to_dict())})"


def _of_stable(stable: int, entries: Sequence[Entry], of_rollouts: Iterable[Sequence[Entry]]) -> Iterator[str]:
    """The ledger's last word on what is stable, or what a promotion that is under way is about to make stable."""
    word = served_at(entries, math.inf).stable
    if word is None:
        if not any(_made_stable(entry, stable) for entry in entries):
            yield f"what made v{stable} stable"
        return
    last = [told[-1] for mine in of_rollouts if (told := [entry for entry in mine if _phase(entry) is not None])]
    under_way = {entry.subject for entry in last if _phase(entry) == Phase.PROMOTING}
    if stable != word and f"v{stable}" not in under_way:
        yield f"that v{stable} is stable (but that v{word} is)"


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
    return entry.subject == f"v{version}" and (entry.kind == "promoted" or _phase(entry) in _STABLE)


def _phase(entry: Entry) -> str | None:
    state = entry.evidence.get("state")
    return state.get("phase") if isinstance(state, dict) else None
