"""What the policy is asked with, and what becomes of its answer, in the state database.

Functions over a transaction, the same for a live project and for a simulated one. What is no function of it (an id, the
machine's time) comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.monitoring.judgement import ESTIMATED
from mlops_ray.monitoring.record import ENTRY
from mlops_ray.retraining.policy import Decision, History, Judged, decide, decide_due, new_labels, scheduled
from mlops_ray.rollout.orders import save_start
from mlops_ray.state import RetrainRow, Tx, VersionRow
from mlops_ray.training.gates.verdict import GateResult, Verdict

MANUAL, CODE = "manual", "code"
"""Triggers of retrains that somebody ordered. They use up no cooldown, and the circuit does not look at them."""
BEGAN = "began"
"""Key of a retrain's outcome, and of a window's entry: since when what alarmed has been so, seconds since the epoch."""
_TRIGGERS = {
    "drift": "drift",
    "quality": "performance",
    ENTRY: ESTIMATED,
    "sequential": "performance",
    "multivariate": "drift",
    "inputs": "drift",
}
"""What an entry of a window's result triggers; other entries trigger nothing."""
_SCHEDULED = "retrain schedule"
"""Cursor: the decision time up to which instants of the schedule have had their retrain."""

Make = Callable[[str, str, str, float], RetrainRow]
"""A new decision of a project, a trigger, a reason and a decision time."""


class Judgeable(Protocol):
    """What is known of a candidate that was trained; `version` is None unless its gates passed."""

    @property
    def run_id(self) -> str:
        """Of its training."""

    @property
    def verdict(self) -> Verdict:
        """Of its gates."""

    @property
    def result(self) -> GateResult:
        """What its gates said."""

    @property
    def version(self) -> VersionRow | None:
        """As it was registered."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """On the holdout."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Machine time by stage."""


def on_window(tx: Tx, project: Project, stable: VersionRow, at: float, result: Mapping[str, Any], *, make: Make) -> str:
    """Have the policy decide after a window of `stable` was judged at decision time `at`; the reason in words.

    Args: result: of that window. A decision to retrain is saved, see `Make`."""
    judged = [
        Judged(_TRIGGERS[kind], entry["at"], entry["alarm"], entry["why"], float(entry.get(BEGAN) or window.start))
        for window in tx.windows(project.project)
        if window.version == stable.version
        for kind, entry in window.result.items()
        if kind in _TRIGGERS
    ]
    # Only what was judged now may fire: an alarm of an earlier instant had its say then.
    fresh = {j.trigger for j in judged if j.at == at}
    seen = sorted((j for j in judged if j.trigger in fresh), key=lambda j: j.at)
    found = decide(project.retraining, seen, history(tx, project), now=at)
    evidence = {_TRIGGERS[kind]: entry for kind, entry in result.items() if kind in _TRIGGERS}
    save(tx, project, found, at, evidence.get(found.trigger, {}), make=make)
    return found.reason or "nothing to do"


def on_time(tx: Tx, project: Project, now: float, n_labels: int, *, make: Make) -> None:
    """Have the policy decide about its schedule and the labels that came since the last decision."""
    plan, name = project.retraining, project.project
    looked = tx.cursor(name, _SCHEDULED)
    if plan.schedule is not None and looked.number < 0:
        tx.save_cursor(name, _SCHEDULED, 0, now)  # instants before the first look were nobody's to miss
        looked = tx.cursor(name, _SCHEDULED)
    asked = scheduled(plan, after=looked.at, now=now), new_labels(plan, n=n_labels)
    due = [one for one in asked if one is not None]
    found = decide_due(plan, due, history(tx, project), now=now)
    if found.retrain:
        if plan.schedule is not None:
            tx.save_cursor(name, _SCHEDULED, 0, now)
        save(tx, project, found, now, {"due": [vars(d) for d in due]}, make=make)


def history(tx: Tx, project: Project, rows: Sequence[RetrainRow] | None = None) -> History:
    """What the policy decided itself. What it only proposed counts for as long as it only proposes.

    Args: rows: the project's retrains, where they have been read."""
    unseen = set() if project.retraining.dry_run else {RetrainRow.PROPOSED}
    rows = tx.retrains(project.project) if rows is None else rows
    retrains = [r for r in rows if r.trigger not in (MANUAL, CODE) and r.status not in unseen]
    decided = tuple(r.decided for r in retrains)
    return History(
        decided=decided,
        endings=tuple(r.status for r in retrains if r.status not in (*RetrainRow.OPEN, RetrainRow.PROPOSED)),
        open_retrain=tx.open_retrain(project.project) is not None,
        open_rollout=tx.open_rollout(project.project) is not None,
        new_rows=_rows_since(tx, project, max(decided, default=0.0)) if project.retraining.least_new_rows else None,
    )


def _rows_since(tx: Tx, project: Project, since: float) -> int:
    """Rows that were answered in blocks that began at this decision time or later."""
    return sum(int(body["n"]) for _, _, body in tx.profiles(project.project, since, math.inf))


def save(tx: Tx, project: Project, found: Decision, at: float, evidence: dict[str, Any], *, make: Make) -> None:
    """Save a decision to retrain, if it is one, with its entry in the ledger. A dry run's is not open: nobody acts."""
    if not found.retrain:
        return
    row, kind = make(project.project, found.trigger, found.reason, at), "retrain decided"
    if found.began is not None:
        row = replace(row, outcome=row.outcome | {BEGAN: found.began})
    if project.retraining.dry_run:
        row, kind = replace(row, status=RetrainRow.PROPOSED), "retrain proposed"
    tx.save_retrain(row)
    ledger.append(tx, project.project, kind, row.id, "mlops_ray", row.reason, evidence, at)


def close(
    tx: Tx, row: RetrainRow, status: str, outcome: dict[str, Any], kind: str, why: str, *, machine_now: float
) -> None:
    """Save how a retrain ended, once, with its entry in the ledger; a retrain that has ended is left alone."""
    current = tx.retrain(row.id)
    if current is None or current.status not in RetrainRow.OPEN:
        return
    tx.save_retrain(replace(current, status=status, outcome=outcome, updated=machine_now))
    ledger.append(tx, row.project, kind, row.id, "mlops_ray", why, outcome, row.decided)


def champion_of(tx: Tx, project: str) -> VersionRow | None:
    """The version that serves as stable, or None before the first one."""
    row = tx.serving(project)
    return tx.version(project, row.spec["stable"]["version"]) if row and row.spec.get("stable") else None


def conclude(tx: Tx, project: Project, row: RetrainRow, trained: Judgeable, *, machine_now: float) -> dict[str, Any]:
    """Save what a retrain led to: a refusal, a version that waits for people, or one whose rollout starts."""
    result = trained.result.to_dict()
    outcome = {
        **row.outcome,
        "run_id": trained.run_id,
        "metrics": dict(trained.metrics),
        "seconds": dict(trained.seconds),
    }

    def end(status: str, kind: str, why: str) -> None:
        close(tx, row, status, outcome, kind, why, machine_now=machine_now)

    if trained.verdict is not Verdict.PASS or trained.version is None:
        outcome |= {"gates": result}
        end("rejected", "candidate rejected", "; ".join(trained.result.reasons))
        return {"status": "rejected", "reasons": list(trained.result.reasons), **outcome}
    version, champion = trained.version, champion_of(tx, project.project)
    outcome |= {"version": version.version}
    mine = tx.retrain(row.id)
    if mine is None or mine.status not in RetrainRow.OPEN:
        return {"status": "superseded", **outcome}  # stopped or timed out meanwhile: no rollout for whom nobody waits
    if not version.may_serve:
        end("succeeded", "retrain succeeded", f"v{version.version} passed its gates, approval pending")
        return {"status": "succeeded", "approval": "pending", **outcome}
    if champion is not None:
        outcome["rollout"] = save_start(
            tx,
            project,
            version,
            champion.version,
            supersede=project.rollout.supersede,
            at=row.decided,
            machine_now=machine_now,
            who="mlops_ray",
            why=row.reason,
            evidence={"gates": result, "run_id": trained.run_id, "decision": row.id},
        )
    end("succeeded", "retrain succeeded", f"v{version.version} passed its gates")
    return {"status": "succeeded", **outcome}
