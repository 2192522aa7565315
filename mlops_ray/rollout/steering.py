"""What people and programs ask of a project's rollouts, by command or over HTTP: a state database in, JSON out.

`machine_now` is the machine's time, seconds since the epoch; what follows is decided in decision time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.errors import DataError, OrderRefused
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import CanaryState, Move
from mlops_ray.rollout.outlook import outlook
from mlops_ray.rollout.repeats import Request, answered, remember
from mlops_ray.state import RolloutRow, Store, Tx

OPEN = "open"
"""Stands for the id of the rollout that is open."""


def start(
    store: Store,
    project: Project,
    versions: Sequence[int],
    *,
    supersede: bool,
    who: str,
    why: str,
    machine_now: float,
    request: Request | None = None,
) -> dict[str, Any]:
    """Start a rollout of a registered version, or of several side by side where the plan's mode is `ab`; `rollout`: its
    id.

    Args: versions: at least one. supersede: it takes the place of an open one that is not decided yet. request: the
        same again starts nothing and is answered as it was.
    Raises: ModelNotFound, ApprovalPending, IllegalMove when one is open; DataError for more than the plan tries;
        KeyReused."""
    first, *others = versions

    def run(tx: Tx) -> str:
        if (entry := answered(tx, project.project, who, request)) is not None:
            return str(entry.evidence["rollout"])
        now, note = orders.decision_time(tx, project, machine_now), request.note if request else None
        rollout = orders.begin(
            tx,
            project,
            first,
            beside=others,
            supersede=supersede,
            who=who,
            why=why,
            now=now,
            machine_now=machine_now,
            note=note,
        )
        remember(tx, project.project, who, request)
        return rollout

    return {"rollout": store.run(run)}


def move(
    store: Store,
    project: Project,
    order: Move,
    *,
    of: str = OPEN,
    to: int | None = None,
    version: int | None = None,
    who: str,
    why: str,
    machine_now: float,
    request: Request | None = None,
) -> dict[str, Any]:
    """Give an operator's order; `phase`, `step` and `reason` that follow, and the `rollout`.

    Args: of: the id of the rollout that is meant; OPEN: the open one, or for a rollback the last. to: of a rollback,
        the version to go back to: `rollout` is then the one that takes it back. version: of a promotion, which of those
        on trial. request: the same request again changes nothing and is answered as it was.
    Raises: IllegalMove; OrderRefused for a `to` that there is no way back to, and where `of` is not what orders are
        about now; DataError for a `version` that is not on trial; KeyReused.
    """

    def run(tx: Tx) -> tuple[str, CanaryState]:
        if (entry := answered(tx, project.project, who, request)) is not None:
            return entry.evidence["rollout"], CanaryState.from_dict(entry.evidence["state"])
        row = orders.concerned(tx, project)
        if of not in (OPEN, row and row.id):
            says = "no rollout is open" if row is None else f"orders are about {row.id} now ({row.state['phase']})"
            raise OrderRefused(f"rollout {of}", f"{says}; `mlops-ray rollout history` lists what there were")
        now, note = orders.decision_time(tx, project, machine_now), request.note if request else None
        if to is not None:
            given = orders.go_back(tx, project, to, who=who, why=why, now=now, machine_now=machine_now, note=note)
        else:
            after = orders.order(
                tx, project, order, version=version, who=who, why=why, now=now, machine_now=machine_now, note=note
            )
            given = row.id if row else "", after
        remember(tx, project.project, who, request)
        return given

    rollout, state = store.run(run)
    return {"rollout": rollout, "phase": str(state.phase), "step": state.step, "reason": str(state.reason)}


def status(store: Store, project: Project, *, of: str = OPEN, machine_now: float) -> dict[str, Any]:
    """A rollout, open or ended: `rollout`, `share`, `stable` as the state database has them; `outlook` (see
    `rollout.outlook`). Rollout and outlook are None where there is none."""
    name = project.project
    with store.read() as tx:
        serving, row = tx.serving(name), tx.open_rollout(name) if of == OPEN else tx.rollout(of)
        if row is not None and row.project != name:
            row = None
        found = None
        if row is not None:
            now = orders.decision_time(tx, project, machine_now)
            found = outlook(row, said=orders.standing(tx, row, machine_now=machine_now), now=now).to_dict()
        return {
            "rollout": vars(row) if row else None,
            "share": serving.spec["share"] if serving else 0.0,
            "stable": serving.spec["stable"]["version"] if serving else None,
            "outlook": found,
        }


def history(store: Store, project: Project) -> dict[str, Any]:
    """All rollouts of the project, newest first."""
    with store.read() as tx:
        return {"rollouts": [vars(row) for row in tx.rollouts(project.project)]}


def explain(store: Store, project: Project, which: str | None = None, *, entry: int | None = None) -> dict[str, Any]:
    """What the ledger keeps of a rollout's decisions, as it keeps it.

    Args: which: a rollout's id, OPEN, or a version (its newest rollout); None: the newest rollout. entry: only the
        decision with this number in the ledger, of whatever rollout.
    Returns: `rollout` (its id) and `entries`, oldest first.
    Raises: DataError where there is no such thing, with what there is."""
    name = project.project
    with store.read() as tx:
        entries = [e for e in ledger.entries(tx, name) if "rollout" in e.evidence]
        if entry is not None:
            chosen = [e for e in entries if e.seq == entry]
            if not chosen:
                known = ", ".join(str(e.seq) for e in entries[-10:]) or "none"
                raise DataError(
                    f"ledger of {name}", f"entry {entry} is no decision of a rollout; the last are: {known}"
                )
            return {"rollout": chosen[0].evidence["rollout"], "entries": [vars(e) for e in chosen]}
        rollout = _chosen(tx, name, which).id
    return {"rollout": rollout, "entries": [vars(e) for e in entries if e.evidence["rollout"] == rollout]}


def _chosen(tx: Tx, project: str, which: str | None) -> RolloutRow:
    rollouts = tx.rollouts(project)
    if which == OPEN:
        found = [row for row in rollouts if row.ended is None]
    else:
        version = (which or "").removeprefix("v")
        found = [
            row
            for row in rollouts
            if which is None or row.id == which or (version.isdigit() and int(version) in orders.versions_of(row))
        ]
    if not found:
        known = ", ".join(row.id for row in rollouts[:10]) or "none; `mlops-ray rollout start` starts one"
        raise DataError(project, f"there is no rollout {which or ''}; these are known: {known}".replace("  ", " "))
    return found[0]
