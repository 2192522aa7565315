"""Where each version comes from: the lineage of `governance.lineage`, from the state database alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from mlops_ray.dashboard.gathered import Gathered
from mlops_ray.dashboard.parts import Origin
from mlops_ray.governance.facts import Facts
from mlops_ray.governance.lineage import Lineage, lineage
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.orders import versions_of
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import VersionRow

_ELSEWHERE = "it stands in MLflow; `mlops-ray lineage` reads it"
# What the state database knows of: the rest of the tree would say seven times that it stands elsewhere.
_TOLD = ("version", "cause", "gates", "approvals", "rollouts")


def origins(of: Gathered) -> Iterator[Origin]:
    """Of every version that was gathered, newest first."""
    for row in of.versions:
        facts = _facts(of, row)
        found = lineage(facts)
        first = facts.rollouts[0] if facts.rollouts else None
        parent = first.stable if first is not None else None
        yield Origin(
            version=row.version,
            status=row.status,
            created=row.created,
            serves=facts.serves,
            parent=parent,
            cause=_cause(found),
            dataset=row.dataset,
            content_hash=row.tags.get("dataset.content_hash"),
            run_id=row.run_id,
            sha256=row.sha256,
            became=_became(of, row, facts),
            tree=tuple(node for node in found.tree().children if node.text in _TOLD),
        )


def _facts(of: Gathered, row: VersionRow) -> Facts:
    decision = row.tags.get("decision")
    retrain = next((r for r in of.retrains if r.id == decision), None)
    rollouts = tuple(r for r in reversed(of.rollouts) if row.version in versions_of(r))
    mine = {f"v{row.version}", *(r.id for r in rollouts), *([retrain.id] if retrain else [])}
    entries = tuple(e for e in of.entries if e.subject in mine or e.evidence.get("rollout") in mine)
    serves = None
    if of.serving is not None:
        on_trial = row.version in Wanted.of(of.serving).on_trial
        serves = "stable" if row.version == of.stable else "canary" if on_trial else None
    return Facts(row, None, None, (), rollouts, retrain, entries, serves, {"run": _ELSEWHERE})


def _cause(found: Lineage) -> str:
    if found.decision is not None:
        return f"{str(found.decision['trigger']).replace('_', ' ')}: {found.decision['reason']}"
    return found.missing.get("decision", "trained by hand")


def _became(of: Gathered, row: VersionRow, facts: Facts) -> str:
    if facts.serves == "stable":
        return "stable"
    if facts.serves == "canary":
        return "on trial"
    if not row.may_serve:
        return "waits for approval" if row.status == VersionRow.PENDING else row.status
    if facts.rollouts:
        state = CanaryState.from_dict(facts.rollouts[-1].state)
        if state.arms and row.version != state.chosen:
            return "lost to another" if row.version in state.live else "was dropped"
        return "was stable" if state.phase is Phase.PROMOTED else str(state.phase)
    was = any(r.stable == row.version for r in of.rollouts)
    return "was stable" if was else "never served"
