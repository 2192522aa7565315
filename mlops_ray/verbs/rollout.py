"""The verbs of `mlops-ray rollout`: from project files to a JSON-friendly result. None needs the cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlops_ray.errors import DataError
from mlops_ray.verbs import Env, Paths, known_store, load
from mlops_ray.verbs.subjects import orderer

if TYPE_CHECKING:
    from mlops_ray.rollout.canary import CanaryState
    from mlops_ray.state import RolloutRow, Tx


def start(
    paths: Paths, env: Env, version: int, why: str, *, beside: Sequence[int] = (), supersede: bool = False
) -> dict[str, Any]:
    """Start a rollout of a registered version.

    Args: beside: further versions, where the plan's mode is `ab`. supersede: it takes the place of an open one that is
        not decided yet.
    Raises: ModelNotFound, ApprovalPending, IllegalMove when one is open; DataError for more than the plan tries."""
    from mlops_ray.rollout.orders import begin, decision_time

    project = load(paths, env).project
    store = known_store(project)
    who = orderer(project, store, env)

    def run(tx: Tx) -> str:
        now = decision_time(tx, project, time.time())
        return begin(tx, project, version, beside=beside, supersede=supersede, who=who, why=why, now=now)

    return {"rollout": store.run(run)}


def move(
    paths: Paths, env: Env, order: str, why: str, *, to: int | None = None, version: int | None = None
) -> dict[str, Any]:
    """Give an operator's order to the rollout. `to`: of a rollback, the version to go back to; `version`: of a
    promotion, which of those on trial.

    Raises: IllegalMove; DataError for a `to` that never was stable, a `version` that is not on trial."""
    from mlops_ray.rollout import orders
    from mlops_ray.rollout.canary import Move

    project = load(paths, env).project
    store = known_store(project)
    who = orderer(project, store, env)

    def run(tx: Tx) -> CanaryState:
        now = orders.decision_time(tx, project, time.time())
        return orders.order(tx, project, Move(order), to=to, version=version, who=who, why=why, now=now)

    state = store.run(run)
    return {"phase": str(state.phase), "step": state.step, "reason": str(state.reason)}


def status(paths: Paths, env: Env, *, of: str | None = None) -> dict[str, Any]:
    """The open rollout (or the one with the id `of`, which may have ended): its row, and its outlook.

    Returns: `rollout`, `share`, `stable` as the state database has them; `outlook` (see `rollout.outlook`), or None."""
    from mlops_ray.rollout.orders import decision_time, standing
    from mlops_ray.rollout.outlook import outlook

    project = load(paths, env).project
    name = project.project
    with known_store(project).read() as tx:
        serving = tx.serving(name)
        row = tx.open_rollout(name) if of is None else tx.rollout(of)
        found = None
        if row is not None:
            now = decision_time(tx, project, time.time())
            found = outlook(row, said=standing(tx, row, now), now=now).to_dict()
        return {
            "rollout": vars(row) if row else None,
            "share": serving.spec["share"] if serving else 0.0,
            "stable": serving.spec["stable"]["version"] if serving else None,
            "outlook": found,
        }


def history(paths: Paths, env: Env) -> dict[str, Any]:
    """All rollouts of the project, newest first."""
    project = load(paths, env).project
    with known_store(project).read() as tx:
        return {"rollouts": [vars(r) for r in tx.rollouts(project.project)]}


def explain(paths: Paths, env: Env, which: str | None = None, *, entry: int | None = None) -> dict[str, Any]:
    """What the ledger keeps of a rollout's decisions, as it keeps it.

    Args: which: a rollout's id, or a version (its newest rollout); None: the newest rollout. entry: only the decision
        with this number in the ledger, of whatever rollout.
    Returns: `rollout` (its id) and `entries`, oldest first.
    Raises: DataError where there is no such thing, with what there is."""
    from mlops_ray import ledger

    project = load(paths, env).project
    name = project.project
    with known_store(project).read() as tx:
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
    from mlops_ray.rollout.orders import versions_of

    rollouts = tx.rollouts(project)
    version = (which or "").removeprefix("v")
    found = [
        row
        for row in rollouts
        if which is None or row.id == which or (version.isdigit() and int(version) in versions_of(row))
    ]
    if not found:
        known = ", ".join(row.id for row in rollouts[:10]) or "none; `mlops-ray rollout start` starts one"
        raise DataError(project, f"there is no rollout {which or ''}; these are known: {known}".replace("  ", " "))
    return found[0]
