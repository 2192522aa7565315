"""What serving follows from a rollout: who is stable, who is on trial with which share, who stays loaded.

All of it is written in transactions of the state database; replicas hear of it afterwards.
"""

from __future__ import annotations

from dataclasses import replace

from mlops_ray.config import RolloutPlan
from mlops_ray.config.rollout import SHADOWS
from mlops_ray.rollout import canary
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.serving.versions import Arm, Before, Held, Wanted
from mlops_ray.state import RolloutRow, Tx


def wanted_configuration(tx: Tx, project: str, *, now: float) -> Wanted | None:
    """Serving configuration that follows from the open rollout at decision time `now`, or from there being none.

    It never decides which version is stable: that is written in the transaction that promotes or rolls back.
    Returns: None where nothing is served yet.
    """
    row, found = tx.open_rollout(project), tx.serving(project)
    if found is None:
        return None
    served = Wanted.of(found)
    calm = _calm(served)
    if _is_cold(tx, project, served, row, now):
        calm = replace(calm, warm=())
    if row is None:
        return calm
    plan, state = RolloutPlan.model_validate(row.plan), CanaryState.from_dict(row.state)
    if state.arms and (state.phase is Phase.STARTING or state.on_trial is Phase.RAMPING):
        return _side_by_side(calm, row, state, canary.canary_share(plan, state))
    if state.phase is Phase.STARTING and plan.mode != "immediate":
        return replace(calm, canary=row.version, salt=row.id, shadow=plan.mode in SHADOWS)
    if state.on_trial is Phase.SHADOWING:
        return replace(calm, canary=row.version, share=plan.shadow_share, salt=row.id, shadow=True)
    if state.on_trial is Phase.RAMPING:
        return replace(calm, canary=row.version, share=canary.canary_share(plan, state), salt=row.id)
    if state.phase is Phase.PROMOTING and row.version not in {h.version for h in served.held}:
        return replace(calm, warm=(held(tx, row.project, row.version),))
    if state.phase is Phase.BAKING and row.stable in {h.version for h in calm.warm}:
        return replace(calm, before=Before(row.stable, plan.shadow_share, row.id))
    return calm


def _calm(wanted: Wanted) -> Wanted:
    """Nothing is compared with stable."""
    return replace(wanted, canary=None, share=0.0, salt="", shadow=False, arms=(), before=None)


def _side_by_side(calm: Wanted, row: RolloutRow, state: CanaryState, share: float) -> Wanted:
    """Every arm that is on trial has the span of its place, whoever else is: a dropped one moves its own keys alone."""
    arms = tuple(Arm(arm.version, place * share, share) for place, arm in enumerate(state.arms) if not arm.out)
    return replace(calm, share=share * len(arms), salt=row.id, arms=arms)


def _is_cold(tx: Tx, project: str, served: Wanted, row: RolloutRow | None, now: float) -> bool:
    """Whether what is kept warm has been kept for as long as the plan of the last promotion says."""
    if not served.warm or served.stable is None:
        return False
    if row is not None and CanaryState.from_dict(row.state).phase in (Phase.PROMOTING, Phase.BAKING):
        return False
    last = last_promotion(tx, project, served.stable.version)
    if last is None:
        return False
    kept_s = RolloutPlan.model_validate(last.plan).keep_previous_warm_s
    return now - CanaryState.from_dict(last.state).since >= kept_s


def last_promotion(tx: Tx, project: str, stable: int) -> RolloutRow | None:
    """The rollout that made `stable` the stable version, if one did and it was not taken back since."""
    promoted = (Phase.PROMOTED, Phase.BAKING)
    return next((r for r in tx.rollouts(project) if r.version == stable and r.state["phase"] in promoted), None)


def flip(tx: Tx, rollout: str) -> None:
    """Want the promoted version as stable, the one before it warm, unless an operator has ended the rollout since.

    Orders are not given under the controller's lease, so the phase is looked at in the transaction that writes.
    """
    row = tx.rollout(rollout)
    served = tx.serving(row.project) if row else None
    if row is None or served is None or CanaryState.from_dict(row.state).phase is not Phase.PROMOTING:
        return
    wanted, target = Wanted.of(served), held(tx, row.project, row.version)
    spec = replace(wanted, stable=target, warm=tuple(h for h in wanted.held if h != target)).spec()
    tx.save_serving(row.project, spec, served.fence)


def take_back(tx: Tx, row: RolloutRow) -> None:
    """Want the version before this rollout's as stable, if this rollout's had become stable already."""
    served = tx.serving(row.project)
    if served is not None and served.spec["stable"]["version"] == row.version:
        back_to(tx, row.project, row.stable)


def back_to(tx: Tx, project: str, version: int) -> None:
    """Want `version` as stable, and nothing on trial. A replica that has it loaded flips at once, others load it first.

    Raises: ModelNotFound."""
    served = tx.serving(project)
    if served is None:
        return
    calm = replace(_calm(Wanted.of(served)), warm=(), stable=held(tx, project, version))
    tx.save_serving(project, calm.spec(), served.fence)


def is_held(tx: Tx, project: str, version: int) -> bool:
    """Whether stable's replicas are told to hold this version, answering or not."""
    served = tx.serving(project)
    return served is not None and version in {each.version for each in Wanted.of(served).held}


def held(tx: Tx, project: str, version: int) -> Held:
    """Where a version's artifact stands. Raises: ModelNotFound."""
    found = tx.version(project, version)
    return Held(version, found.artifact, found.sha256)
