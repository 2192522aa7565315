"""What starts, moves and ends rollouts: each a write in the state database together with its entry in the ledger.

Functions over a transaction, but for `first_version`, which makes its own. `now` is decision time (`decision_time`),
`machine_now` the machine's, which entries are sealed with too; both are seconds since the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlops_ray import ledger
from mlops_ray.config import Project, RolloutPlan
from mlops_ray.errors import ApprovalPending, IllegalMove, OrderRefused
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.rollout import approval, canary, experiment, schedule, traffic
from mlops_ray.rollout.canary import Arm, CanaryState, Move, Phase, Reason
from mlops_ray.rollout.trail import trailed
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import ApprovalRow, RolloutRow, Store, Tx, VersionRow, canonical

US = "mlops_ray"
"""Who the ledger names for what the loop decides by itself."""
LOOK = "look"
"""Key beside the state of a rollout: the last look at the evidence, `at` and `analysis`, for those who watch."""
TRAIL = "trail"
"""Key beside it: a few of the looks before, see `trail`."""
PLAN = "plan_sha256"
"""Key of the evidence of a rollout's start: `plan_seal` of its plan."""
BACK = "back"
"""Key beside it: whether somebody went back to the version, away from what was stable then."""


def plan_of(row: RolloutRow) -> RolloutPlan:
    """The plan that a rollout was started with."""
    return RolloutPlan.model_validate(row.plan)


def plan_seal(plan: Mapping[str, Any]) -> str:
    """SHA-256 of a plan's canonical JSON, as a rollout's row has it: what the ledger keeps of it."""
    return hashlib.sha256(canonical(plan, "plan").encode()).hexdigest()


def decision_time(tx: Tx, project: Project, machine_now: float) -> float:
    """Decision time; the machine's clock before any traffic. Both seconds since the epoch."""
    return decision_now(tx, project, machine_now) or machine_now


def versions_of(row: RolloutRow) -> tuple[int, ...]:
    """The versions that a rollout is about: one, or every arm of `mode: ab`."""
    return tuple(arm.version for arm in CanaryState.from_dict(row.state).arms) or (row.version,)


def proposers(tx: Tx, row: RolloutRow) -> frozenset[str]:
    """Who proposed a rollout: whoever proposed any of its versions."""
    entries = ledger.entries(tx, row.project, kinds=approval.PROPOSALS)
    versions = (tx.version(row.project, version) for version in versions_of(row))
    return frozenset[str]().union(*(approval.proposers(one, entries, rollout=row.id) for one in versions))


def decisions(tx: Tx, row: RolloutRow, version: int) -> list[ApprovalRow]:
    """What people decided about a rollout, as far as it counts for `version`, one of those that it is about.

    Where people are asked before the start, they are asked about all arms of `mode: ab` at once, whichever they name;
    before a promotion about the arm that is promoted."""
    is_one = plan_of(row).asks_before_start
    return [one for v in (versions_of(row) if is_one else (version,)) for one in tx.approvals(row.project, v, row.id)]


def standing(tx: Tx, row: RolloutRow, *, machine_now: float) -> approval.Standing:
    """What people's decisions about a rollout come to. They are dated, and expire, by the machine's time: people do not
    live in decision time, which may stand still or run ahead."""
    return approval.standing(
        decisions(tx, row, row.version),
        policy=approval.Policy.of_plan(row.plan),
        proposer=proposers(tx, row),
        now=machine_now,
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
    machine_now: float,
    note: Mapping[str, Any] | None = None,
) -> str:
    """Start a rollout of a registered version against stable; its id.

    Args: beside: further versions, where the plan's mode is `ab`. supersede: whether it takes the place of an open one
        that is not decided yet. note: further evidence for the ledger.
    Raises: ModelNotFound; ApprovalPending; IllegalMove when another rollout is open, or nothing is served yet;
        OrderRefused for the stable version; DataError for versions that the plan has no room for.
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
        says = "it is stable already, and a rollout of it would be against itself; `mlops-ray status` lists the others"
        raise OrderRefused(f"v{stable} of {project.project}", says)
    evidence: dict[str, Any] = {"run_id": found.run_id, **(note or {})}
    if others:
        evidence["beside"] = {f"v{one.version}": one.run_id for one in others}
    return save_start(
        tx,
        project,
        found,
        stable,
        beside=beside,
        supersede=supersede,
        at=now,
        machine_now=machine_now,
        who=who,
        why=why,
        evidence=evidence,
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
    machine_now: float,
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
        transition(
            tx,
            other,
            after,
            kind="rollout superseded",
            who=who,
            why=ended_by,
            machine_now=machine_now,
            evidence={"by": rollout},
        )
    plan = project.rollout.model_copy(update={"analyses": project.rollout.judged_by(project.task)})
    arms = tuple(Arm(v) for v in versions) if plan.mode == "ab" else ()
    state = canary.first(plan, may_go=schedule.closed(plan.schedule, at) is None, now=at, arms=arms)
    body = plan.model_dump(mode="json")
    tx.save_rollout(RolloutRow(rollout, project.project, version.version, stable, body, state.to_dict(), at))
    found = evidence | {"against": stable, "rollout": rollout, PLAN: plan_seal(body)}
    ledger.append(
        tx, project.project, "rollout started", f"v{version.version}", who, why, found, at, written=machine_now
    )
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
    machine_now: float,
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
    ledger.append(tx, row.project, kind, f"v{row.version}", who, why, found, after.changed, written=machine_now)


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
    machine_now: float,
    note: Mapping[str, Any] | None = None,
) -> CanaryState:
    """An operator's order on the open rollout (or, for a rollback, the last one), saved with its ledger entry.

    What follows from it for serving is saved with it, so that replicas hear of it at once and not at the controller's
    next tick. Args: to: for a rollback, the version to go back to (`go_back`); None: the one before the last promotion.
        version: for a promotion, the one that is meant; may be left out where only one is on trial. note: further
        evidence for the ledger.
    Raises: IllegalMove; OrderRefused for a version that there is no way back to; DataError for one not on trial.
    """
    if to is not None:
        return go_back(tx, project, to, who=who, why=why, now=now, machine_now=machine_now, note=note)[1]
    row = concerned(tx, project)
    if row is None:
        raise IllegalMove(move, "not there", ("start",))
    before = CanaryState.from_dict(row.state)
    if move is Move.ROLLBACK and before.phase is Phase.PROMOTED and row.state.get(BACK):
        named = ", ".join(f"v{version}" for version in targets(tx, project.project)) or "none"
        says = f"v{row.version} is what was gone back to, away from v{row.stable}; say to which with --to, of: {named}"
        raise OrderRefused("the rollback", says)
    if move is Move.PROMOTE and move in canary.LEGAL[before.phase]:
        version = experiment.promoted(before, row.version, version)
    after = canary.move(plan_of(row), before, move, now=max(now, before.changed), version=version)
    kind, evidence = f"rollout {move}", dict(note or {})
    transition(tx, row, after, kind=kind, who=who, why=why, machine_now=machine_now, evidence=evidence)
    save_wanted(tx, project.project, now=now)
    return after


def go_back(
    tx: Tx,
    project: Project,
    to: int,
    *,
    who: str,
    why: str,
    now: float,
    machine_now: float,
    note: Mapping[str, Any] | None = None,
) -> tuple[str, CanaryState]:
    """Make an older version stable again, whatever is under way: as `kubectl rollout undo --to-revision`.

    An open rollout ends, in the same transaction. Where `to` served before it, that is all, and at once. Else a rollout
    of `to` begins that compares nothing: stable's replicas load the version and check its golden requests before they
    flip together, and who cannot load it stays with what there is. It waits for no approval and no schedule, and does
    not bake. What is kept warm is loaded, and becomes stable at once.
    Returns: the rollout that takes `to` back to all traffic, or that ended with it, and its state.
    Raises: OrderRefused for a version that cannot be gone back to, with those that can; ModelNotFound.
    """
    name, stable, note = project.project, _stable(tx, project.project), dict(note or {})
    known = targets(tx, name)
    if to not in known:
        named = ", ".join(f"v{version}" for version in known) or "none"
        what = "is stable" if to == stable else "never was stable, was taken back, or may not serve"
        raise OrderRefused(f"v{to} of {name}", f"it {what}, so there is no way back to it; these were: {named}")
    rollout, row = f"{name}-v{to}-r{len(tx.rollouts(name)) + 1}", concerned(tx, project)
    ended = None
    is_before = row is not None and (row.version, row.stable) == (stable, to)
    if row is not None and (row.ended is None or is_before):
        before = CanaryState.from_dict(row.state)
        move = Move.ROLLBACK if Move.ROLLBACK in canary.LEGAL[before.phase] else Move.ABORT
        after = canary.move(plan_of(row), before, move, now=max(now, before.changed))
        evidence = {"to": to, **note} if is_before else {"by": rollout}
        kind = f"rollout {move}"
        transition(tx, row, after, kind=kind, who=who, why=why, machine_now=machine_now, evidence=evidence)
        ended, now = row.id, max(now, before.changed)
        if is_before:
            save_wanted(tx, name, now=now)
            return row.id, after
    body, back = _at_once(project).model_dump(mode="json"), {BACK: True}
    state, against = CanaryState(Phase.PROMOTING, 0, now, Reason.OPERATOR), _stable(tx, name)
    assert against is not None, "what can be gone back to was stable before something that is"
    tx.save_rollout(RolloutRow(rollout, name, to, against, body, state.to_dict() | back, now))
    found = {"rollout": rollout, "against": against, "run_id": tx.version(name, to).run_id, PLAN: plan_seal(body)}
    ledger.append(tx, name, "rollout started", f"v{to}", who, why, found, now, written=machine_now)
    found = {"rollout": rollout, "to": to, "ended": ended, "state": state.to_dict()} | note
    ledger.append(tx, name, f"rollout {Move.ROLLBACK}", f"v{to}", who, why, found, now, written=machine_now)
    if traffic.is_held(tx, name, to):
        traffic.flip(tx, rollout)
    save_wanted(tx, name, now=now)
    return rollout, state


def _at_once(project: Project) -> RolloutPlan:
    """The project's plan without anything that would hold up a way back."""
    judged = project.rollout.judged_by(project.task)
    hurried = {"mode": "immediate", "approval": "none", "bake_s": 0.0, "analyses": judged}
    return project.rollout.model_copy(update=hurried)


def concerned(tx: Tx, project: Project) -> RolloutRow | None:
    """The rollout that an order would be about: the open one, else the one that made stable what it is, else None."""
    stable = _stable(tx, project.project)
    row = tx.open_rollout(project.project)
    if row is None and stable is not None:
        row = traffic.last_promotion(tx, project.project, stable)
    return row


def _stable(tx: Tx, project: str) -> int | None:
    served = tx.serving(project)
    return served.spec["stable"]["version"] if served else None


def targets(tx: Tx, project: str) -> tuple[int, ...]:
    """Versions that a rollback may name: once stable and not taken back since, still registered, allowed to serve, and
    not stable now."""
    heard: list[tuple[float, int, bool]] = []  # when, which version, whether it did well then
    for row in tx.rollouts(project):
        state = CanaryState.from_dict(row.state)
        heard.append((row.created, row.stable, True))
        if state.phase in (Phase.PROMOTED, Phase.ROLLED_BACK):
            heard.append((state.since, row.version, state.phase is Phase.PROMOTED))
    last = {version: well for _, version, well in sorted(heard, key=lambda one: one[0])}
    there = {row.version for row in tx.versions(project) if row.may_serve}
    return tuple(sorted({v for v, well in last.items() if well} & there - {_stable(tx, project)}))


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
