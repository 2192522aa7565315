"""What starts, moves and ends rollouts: each a write in the state database together with its entry in the ledger.

Functions over a transaction, but for `first_version`, which makes its own; `now` is decision time (`decision_time`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlops_ray import ledger
from mlops_ray.config import Project, RolloutPlan
from mlops_ray.errors import ApprovalPending, DataError, IllegalMove
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.rollout import approval, canary, experiment, schedule, traffic
from mlops_ray.rollout.canary import Arm, CanaryState, Move, Phase
from mlops_ray.rollout.trail import trailed
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import RolloutRow, Store, Tx, VersionRow

US = "mlops_ray"
"""Who the ledger names for what the loop decides by itself."""
LOOK = "look"
"""Key beside the state of a rollout: the last look at the evidence, `at` and `analysis`, for those who watch."""
TRAIL = "trail"
"""Key beside it: a few of the looks before, see `trail`."""


def plan_of(row: RolloutRow) -> RolloutPlan:
    """The plan that a rollout was started with."""
    return RolloutPlan.model_validate(row.plan)


def decision_time(tx: Tx, project: Project, machine_now: float) -> float:
    """Decision time; the machine's clock before any traffic. Both seconds since the epoch."""
    return decision_now(tx, project, machine_now) or machine_now


def versions_of(row: RolloutRow) -> tuple[int, ...]:
    """The versions that a rollout is about: one, or every arm of `mode: ab`."""
    return tuple(arm.version for arm in CanaryState.from_dict(row.state).arms) or (row.version,)


def standing(tx: Tx, row: RolloutRow, now: float) -> approval.Standing:
    """What people's decisions about a rollout come to at decision time `now`. Who proposed any arm proposed it."""
    entries = list(ledger.entries(tx, row.project))
    proposers = (
        approval.proposers(tx.version(row.project, version), entries, rollout=row.id) for version in versions_of(row)
    )
    return approval.standing(
        tx.approvals(row.project, row.version, row.id),
        policy=approval.Policy.of_plan(row.plan),
        proposer=frozenset[str]().union(*proposers),
        now=now,
    )


def first_version(store: Store, project: Project, *, now: float, version: int | None = None) -> int | None:
    """The stable version; when there is none yet, `version` becomes it, or the newest that may serve.

    Returns: None where no version may serve. Raises: ModelNotFound, ApprovalPending for a `version` that may not.
    """

    def run(tx: Tx) -> int | None:
        served = tx.serving(project.project)
        versions = [row for row in tx.versions(project.project) if row.may_serve]
        if served is not None:
            return int(served.spec["stable"]["version"])
        if version is not None:
            versions = [tx.version(project.project, version)]
            if not versions[0].may_serve:
                raise ApprovalPending(project.project, version)
        if not versions:
            return None
        first = versions[-1]
        spec = Wanted(stable=Held(first.version, first.artifact, first.sha256)).spec()
        tx.save_serving(project.project, spec, 0)
        why = "the first version: there is no champion to compare it with"
        evidence = {"run_id": first.run_id, "sha256": first.sha256}
        ledger.append(tx, project.project, "promoted", f"v{first.version}", US, why, evidence, now)
        return first.version

    return store.run(run)


def begin(
    tx: Tx,
    project: Project,
    version: int,
    *,
    beside: Sequence[int] = (),
    supersede: bool,
    who: str,
    why: str,
    now: float,
) -> str:
    """Start a rollout of a registered version against stable; its id.

    Args: beside: further versions, where the plan's mode is `ab`. supersede: whether it takes the place of an open one
        that is not decided yet.
    Raises: ModelNotFound; ApprovalPending; IllegalMove when another rollout is open, or nothing is served yet;
        DataError for versions that the plan has no room for.
    """
    served, found = tx.serving(project.project), tx.version(project.project, version)
    others = [tx.version(project.project, other) for other in beside]
    for one in (found, *others):
        if not one.may_serve:
            raise ApprovalPending(project.project, one.version)
    if served is None:
        raise IllegalMove("start", "not possible before a first version serves", ("up",))
    stable = served.spec["stable"]["version"]
    if stable in (version, *beside):
        raise IllegalMove("start", f"against itself (v{stable} is stable)", ())
    evidence: dict[str, Any] = {"run_id": found.run_id}
    if others:
        evidence["beside"] = {f"v{one.version}": one.run_id for one in others}
    return save_start(
        tx, project, found, stable, beside=beside, supersede=supersede, at=now, who=who, why=why, evidence=evidence
    )


def save_start(
    tx: Tx,
    project: Project,
    version: VersionRow,
    stable: int,
    *,
    beside: Sequence[int] = (),
    supersede: bool,
    at: float,
    who: str,
    why: str,
    evidence: dict[str, Any],
) -> str:
    """Save a rollout that starts at decision time `at`, with its entry in the ledger; its id.

    Raises: ApprovalPending, IllegalMove, DataError."""
    if not version.may_serve:
        raise ApprovalPending(project.project, version.version)
    versions = (version.version, *beside)
    experiment.demand_shares(project.rollout, versions)
    rollout = "-".join([project.project, *(f"v{v}" for v in versions), f"r{len(tx.rollouts(project.project)) + 1}"])
    if (other := tx.open_rollout(project.project)) is not None:
        demand_room(other, supersede=supersede)
        before = CanaryState.from_dict(other.state)
        after = canary.superseded(before, now=max(at, before.changed))
        ended_by = f"{rollout} took its place"
        transition(tx, other, after, kind="rollout superseded", who=who, why=ended_by, evidence={"by": rollout})
    plan = project.rollout.model_copy(update={"analyses": project.rollout.judged_by(project.task)})
    arms = tuple(Arm(v) for v in versions) if plan.mode == "ab" else ()
    state = canary.first(plan, may_go=schedule.closed(plan.schedule, at) is None, now=at, arms=arms)
    body = plan.model_dump(mode="json")
    tx.save_rollout(RolloutRow(rollout, project.project, version.version, stable, body, state.to_dict(), at))
    found = evidence | {"against": stable, "rollout": rollout}
    ledger.append(tx, project.project, "rollout started", f"v{version.version}", who, why, found, at)
    return rollout


def demand_room(open_rollout: RolloutRow | None, *, supersede: bool) -> None:
    """Return if another rollout may start beside this one that is open (or None). Raises: IllegalMove."""
    if open_rollout is None:
        return
    phase = Phase(open_rollout.state["phase"])
    if supersede and phase in canary.SUPERSEDABLE:
        return
    legal = tuple(map(str, canary.LEGAL[phase])) + (("start --supersede",) if phase in canary.SUPERSEDABLE else ())
    raise IllegalMove("be followed by another", f"open ({open_rollout.id}, {phase})", legal)


def transition(
    tx: Tx,
    row: RolloutRow,
    after: CanaryState,
    *,
    kind: str,
    who: str,
    why: str,
    evidence: dict[str, Any],
    look: dict[str, Any] | None = None,
) -> None:
    """Save what a rollout has become, what that takes back, and the ledger's entry: one transaction, never apart.

    Args: look: the look at the evidence that led here; None keeps the one before.
    """
    body = row.state | after.to_dict() | _seen(row, look)
    ended = after.since if after.phase in canary.ENDED else None
    row = replace(row, version=row.version if after.chosen is None else after.chosen, state=body, ended=ended)
    tx.save_rollout(row)
    if after.phase in canary.TAKEN_BACK:
        traffic.take_back(tx, row)
    found = {"rollout": row.id, "state": after.to_dict()} | evidence
    ledger.append(tx, row.project, kind, f"v{row.version}", who, why, found, after.changed)


def order(
    tx: Tx,
    project: Project,
    move: Move,
    *,
    to: int | None = None,
    version: int | None = None,
    who: str,
    why: str,
    now: float,
) -> CanaryState:
    """An operator's order on the open rollout (or, for a rollback, the last one), saved with its ledger entry.

    What follows from it for serving is saved with it, so that replicas hear of it at once and not at the controller's
    next tick. Args: to: for a rollback, a version that was stable before; None: the one before the last promotion.
        version: for a promotion, the one that is meant; may be left out where only one is on trial.
    Raises: IllegalMove; DataError for a version that never was stable, or is not on trial.
    """
    name, row = project.project, orderable(tx, project, move)
    if to is not None:
        _demand_served_before(tx, name, to, _stable(tx, name))
    before = CanaryState.from_dict(row.state)
    if move is Move.PROMOTE and move in canary.LEGAL[before.phase]:
        version = experiment.promoted(before, row.version, version)
    after = canary.move(plan_of(row), before, move, now=max(now, before.changed), version=version)
    evidence = {} if to is None else {"to": to}
    transition(tx, row, after, kind=f"rollout {move}", who=who, why=why, evidence=evidence)
    if to is not None:
        traffic.back_to(tx, name, to)
    save_wanted(tx, name, now=now)
    return after


def orderable(tx: Tx, project: Project, move: Move) -> RolloutRow:
    """The rollout that an order would be about: the open one, else the one that made stable what it is.

    Raises: IllegalMove where there is none."""
    stable = _stable(tx, project.project)
    row = tx.open_rollout(project.project)
    if row is None and stable is not None:
        row = traffic.last_promotion(tx, project.project, stable)
    if row is None:
        raise IllegalMove(move, "not there", ("start",))
    return row


def _stable(tx: Tx, project: str) -> int | None:
    served = tx.serving(project)
    return served.spec["stable"]["version"] if served else None


def _demand_served_before(tx: Tx, project: str, version: int, stable: int | None) -> None:
    rollouts = tx.rollouts(project)
    once = {row.stable for row in rollouts} | {row.version for row in rollouts if row.state["phase"] == Phase.PROMOTED}
    once -= {stable}
    if version not in once:
        known = ", ".join(f"v{v}" for v in sorted(once)) or "none"
        what = "is stable" if version == stable else "never was stable, or was taken back"
        raise DataError(f"v{version} of {project}", f"it {what}, so there is no way back to it; these were: {known}")


def save_wanted(tx: Tx, project: str, *, now: float, fence: int = 0) -> None:
    """Save the serving configuration that follows from the rollouts. fence: of the lease that this is done under."""
    wanted, served = traffic.wanted_configuration(tx, project, now=now), tx.serving(project)
    if wanted is not None and served is not None:
        tx.save_serving(project, wanted.spec(), max(fence, served.fence))


def keep_look(tx: Tx, row: RolloutRow, look: dict[str, Any] | None) -> None:
    """Keep what a look saw that changed nothing, for those who watch. No entry: the ledger keeps decisions."""
    if look is not None:
        tx.save_rollout(replace(row, state=row.state | _seen(row, look)))


def _seen(row: RolloutRow, look: dict[str, Any] | None) -> dict[str, Any]:
    return {} if look is None else {LOOK: look, TRAIL: trailed(row.state.get(TRAIL, ()), look)}
