"""What alerts may be about, of retrains, rollouts and versions: rows in, conditions that hold out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts.alerting import Condition
from mlops_ray.retraining.deciding import history
from mlops_ray.retraining.policy import open_circuit
from mlops_ray.rollout.approval import Standing
from mlops_ray.rollout.canary import CanaryState, Phase, Reason
from mlops_ray.rollout.orders import decision_time, standing
from mlops_ray.state import RetrainRow, RolloutRow, Tx, VersionRow

RETRAINING = "retraining"
"""The subject of what is about retrains: one that failed again is the same trouble."""
_ENDS = ("succeeded", "failed", "rejected")


def of_project(tx: Tx, project: Project, machine_now: float) -> list[Condition]:
    """What holds of all three. Args: machine_now: seconds since the epoch."""
    name, now = project.project, decision_time(tx, project, machine_now)
    retrains, rollouts, serving = tx.retrains(name), tx.rollouts(name), tx.serving(name)
    circuit = open_circuit(project.retraining, history(tx, project, retrains), now=now)
    waits = next((row for row in rollouts if row.ended is None and row.state["phase"] == Phase.PENDING), None)
    return [
        *of_retrains(retrains, circuit),
        *of_rollouts(rollouts, None if waits is None else standing(tx, waits, machine_now=machine_now)),
        *of_versions(tx.versions(name), serving.spec["stable"]["version"] if serving else 0),
    ]


def of_retrains(retrains: Sequence[RetrainRow], circuit: str | None) -> list[Condition]:
    """How the last retrain ended, until another one ends otherwise. Args: retrains: newest first; circuit: in words
    that the breaker is open, or None."""
    found = [] if circuit is None else [Condition("breaker_open", RETRAINING, circuit)]
    ended = [row for row in retrains if row.status in _ENDS]
    last = max(ended, key=lambda row: row.updated, default=None)
    if last is not None and last.status == "failed":
        why = str(last.outcome.get("error", "no reason was kept"))
        found.append(Condition("retrain_failed", RETRAINING, f"{last.id} ({last.trigger}): {why}"))
    if last is not None and last.status == "rejected":
        reasons = "; ".join(last.outcome.get("gates", {}).get("reasons", ())) or "by its gates"
        found.append(Condition("retrain_rejected", RETRAINING, f"{last.id} ({last.trigger}): refused: {reasons}"))
    return found


def of_rollouts(rollouts: Sequence[RolloutRow], waits_for: Standing | None) -> list[Condition]:
    """Where the newest rollout stands or how it ended, until the next one starts.

    Args: rollouts: newest first; waits_for: what people have said to the open one that is pending, None without one."""
    if not rollouts:
        return []
    row, state = rollouts[0], CanaryState.from_dict(rollouts[0].state)
    subject = "+".join(f"v{version}" for version in [arm.version for arm in state.arms] or [row.version])
    if state.phase is Phase.ROLLED_BACK and state.reason is not Reason.OPERATOR:
        why = f"rollout {row.id} was rolled back: {state.reason}; v{row.stable} answers everybody"
        return [Condition("rollout_rolled_back", subject, why)]
    if state.phase is Phase.PAUSED:
        return [
            Condition("rollout_paused", subject, f"rollout {row.id} is paused at step {state.step}: {state.reason}")
        ]
    if state.phase is Phase.PENDING and waits_for is not None and not waits_for.approved and not waits_for.rejected:
        return [Condition("rollout_waiting_approval", subject, f"rollout {row.id} waits: {waits_for}")]
    return []


def of_versions(versions: Iterable[VersionRow], stable: int) -> list[Condition]:
    """Versions newer than the stable one that wait for people."""
    return [
        Condition("version_waiting_approval", f"v{row.version}", f"passed its gates; `mlops-ray approve {row.version}`")
        for row in versions
        if row.status == VersionRow.PENDING and row.version > stable
    ]
