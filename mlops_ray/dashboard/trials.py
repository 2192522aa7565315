"""Rollouts and retrains as the dashboard tells them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_ray.dashboard.gathered import Gathered
from mlops_ray.dashboard.parts import Look, Metric, Retrain, Rollout, Step
from mlops_ray.dashboard.wording import metric, percent, signed
from mlops_ray.governance.lineage import checks_of
from mlops_ray.rollout import canary, orders
from mlops_ray.rollout.canary import ENDED, CanaryState, Phase
from mlops_ray.rollout.trail import POINT
from mlops_ray.state import RetrainRow, RolloutRow

_DONE = {
    "proposed": "A dry run: nothing was trained.",
    "decided": "It waits for its job to be accepted.",
    "submitted": "Its job trains and judges a candidate.",
    "superseded": "It was ended before it was done.",
}


def rollout(of: Gathered, row: RolloutRow) -> Rollout:
    """One rollout with the way its evidence came."""
    plan, state = orders.plan_of(row), CanaryState.from_dict(row.state)
    mine = [e for e in of.entries if e.evidence.get("rollout") == row.id]
    metrics = tuple(_metrics(row, [(e.at, e.evidence["analysis"]) for e in mine if e.evidence.get("analysis")]))
    share = plan.shadow_share if state.on_trial is Phase.SHADOWING else canary.canary_share(plan, state)
    seen = of.outlook if of.outlook is not None and of.outlook.id == row.id else None
    told = Rollout(
        id=row.id,
        version=row.version,
        versions=orders.versions_of(row),
        against=row.stable,
        mode=plan.mode,
        phase=str(state.phase),
        reason=str(state.reason),
        open=row.ended is None,
        share=share if row.ended is None else 0.0,
        shares=(plan.ab.share,) if state.arms else plan.shares,
        step=state.step,
        began=row.created,
        ended=row.ended,
        alpha=plan.alpha,
        says="",
        waits=seen.waits if seen else (),
        metrics=metrics,
        steps=tuple(Step(e.at, e.kind, e.who, e.why, e.seq) for e in mine),
    )
    return Rollout(**{**vars(told), "says": says(told)})


def _metrics(row: RolloutRow, decided: list[tuple[float, Mapping[str, Any]]]) -> Iterator[Metric]:
    """The metrics of the last look. Looks come from the row's trail; rows of releases without one have the ledger's."""
    last: Mapping[str, Any] = row.state.get(orders.LOOK) or {}
    if not last and decided:
        last = {"at": decided[-1][0], "analysis": decided[-1][1]}
    analysis: Mapping[str, Any] = last.get("analysis") or {}
    trail = row.state.get(orders.TRAIL) or [
        [at, [[m.get(name) for name in POINT] for m in found.get("metrics", ())]] for at, found in decided
    ]
    looks: dict[tuple[str, int | None], list[Look]] = {}
    for at, metrics in trail:
        for name, arm, n_keys, estimate, low, high in metrics:
            looks.setdefault((name, arm), []).append(Look(at, n_keys, estimate, low, high))
    for m in analysis.get("metrics", ()):
        key = (m["name"], m.get("arm"))
        now = Look(last["at"], m["n_keys"], m["estimate"], m.get("low"), m.get("high"))
        before = [look for look in looks.get(key, ()) if look.at < now.at]
        yield Metric(
            name=m["name"],
            title=metric(m["name"]),
            arm=m.get("arm"),
            margin=m["margin"],
            verdict=m["verdict"],
            n_keys=m["n_keys"],
            needed=m.get("needed"),
            evidence_worse=m["evidence_worse"],
            evidence_fine=m["evidence_fine"],
            looks=(*before, now),
        )


def says(of: Rollout) -> str:
    """Where a rollout stands, in one sentence."""
    v = f"v{of.version}"
    if Phase(of.phase) in ENDED:
        why = {"": "", "evidence": "on the evidence", "time-out": "undecided when its time was up"}
        why |= {"crash": "after a crash", "operator": "by an operator's order", "rejected": "rejected by people"}
        reason = why.get(of.reason, f"because of {of.reason}")
        all_of_them = of.phase != Phase.PROMOTED and len(of.versions) > 1
        who = f"{', '.join(f'v{one}' for one in of.versions)} were" if all_of_them else f"{v} was"
        ended = f"{who} {of.phase}" + (f" {reason}" if reason else "")
        return f"{ended}{_evidence(of)}"
    if of.phase == Phase.PENDING:
        return f"{v} waits for {' and '.join(of.waits) or 'people'}{_evidence(of)}"
    if of.phase == Phase.STARTING:
        return f"{v} is being started in a process of its own; it answers nobody yet"
    if of.phase == Phase.SHADOWING:
        return f"shadow {v} sees copies of {percent(of.share)} of the keys{_evidence(of)}"
    if of.phase == Phase.PROMOTING:
        return f"{v} is being promoted: every replica loads it, then all flip together"
    if of.phase == Phase.BAKING:
        return f"{v} is stable and bakes: what is learnt now still takes it back{_evidence(of)}"
    held = "held " if of.phase == Phase.PAUSED else ""
    if of.mode == "ab":
        return f"versions side by side, {held}at {percent(of.share)} of the keys each{_evidence(of)}"
    return f"canary {v} {held}at {percent(of.share)}{_evidence(of)}"


def _evidence(of: Rollout) -> str:
    """Of the metric that keeps it waiting longest, or the first: its keys, its interval, its margin."""
    known = [m for m in of.metrics if m.looks[-1].interval is not None]
    if not known:
        return "; no interval of its evidence yet" if of.phase == Phase.RAMPING else ""
    undecided = [m for m in known if m.verdict == "inconclusive"]
    m = max(undecided, key=lambda m: m.needed or 0) if undecided else known[0]
    low, high = m.looks[-1].interval or (0.0, 0.0)
    keys = f"{m.n_keys:,} keys" if not m.needed else f"{m.n_keys:,} of about {m.n_keys + m.needed:,} keys"
    arm = "" if m.arm is None else f"v{m.arm} "
    interval = f"{signed(low)} to {signed(high)}"
    return f": {keys}; {arm}{m.title} difference {interval}, margin {m.margin:g}"


def retrain(row: RetrainRow) -> Retrain:
    """A decision to retrain, and how it went."""
    version = row.outcome.get("version")
    if row.status == "succeeded":
        told = f"v{version} passed its gates." if version else "Its candidate passed."
    elif row.status == "rejected":
        broken = [c for c in checks_of(row.outcome.get("gates") or {}) if c.get("verdict") != "pass"]
        reasons = [f"{check['name']}: {check['detail']}" for check in broken]
        more = f"; and for {len(reasons) - 1} more" if len(reasons) > 1 else ""
        told = f"The gates refused its candidate{f': {reasons[0]}{more}' if reasons else ''}."
    elif row.status == "failed":
        told = f"It failed: {row.outcome.get('error', 'no reason was kept')}"
    else:
        told = _DONE.get(row.status, "")
    planted = " It was planted: trained on a shuffled target, to see it refused." if row.outcome.get("planted") else ""
    return Retrain(row.id, row.decided, row.trigger, row.status, row.reason, version, told + planted)
