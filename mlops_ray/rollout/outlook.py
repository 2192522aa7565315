"""What an open rollout is waiting for, and how long: for people who watch. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from mlops_ray.config import RolloutPlan
from mlops_ray.rollout import canary, orders, schedule
from mlops_ray.rollout.approval import Standing
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.state import RolloutRow


@dataclass(frozen=True)
class Outlook:
    """A rollout at decision time `now` (seconds since the epoch). Spans are seconds of decision time, None: no limit.

    steps: shares of the plan, `step` is the present one's place. share: of keys now on trial. least_s: until the step
    may end. most_s: until it times out. keys: more keys that the slowest metric needs at its present estimate, None
    where unknown. looked: when the evidence was last looked at. metrics: as the ledger would keep them. waits: in
    words. arms: of `mode: ab`, each with its version, share, and what is known of it; share: of one that is on trial.
    """

    id: str
    version: int
    against: int
    mode: str
    phase: str
    reason: str
    step: int
    steps: tuple[float, ...]
    share: float
    since: float
    now: float
    least_s: float
    most_s: float | None
    keys: int | None
    looked: float | None
    verdict: str | None
    metrics: tuple[Mapping[str, Any], ...]
    waits: tuple[str, ...]
    arms: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def outlook(row: RolloutRow, *, said: Standing, now: float) -> Outlook:
    """How a rollout stands at decision time `now`; `said`: what people's decisions come to."""
    plan, state = orders.plan_of(row), CanaryState.from_dict(row.state)
    look: Mapping[str, Any] = row.state.get(orders.LOOK) or {}
    analysis: Mapping[str, Any] = look.get("analysis") or {}
    metrics: tuple[Mapping[str, Any], ...] = tuple(analysis.get("metrics", ()))
    waited = max(0.0, now - state.since)
    limited = state.phase in (Phase.SHADOWING, Phase.RAMPING) and plan.on_inconclusive != "wait"
    needed = [m.get("needed") for m in metrics if m.get("verdict") == "inconclusive" or m.get("better") is False]
    share = plan.shadow_share if state.on_trial is Phase.SHADOWING else canary.canary_share(plan, state)
    return Outlook(
        id=row.id,
        version=row.version,
        against=row.stable,
        mode=plan.mode,
        phase=str(state.phase),
        reason=str(state.reason),
        step=state.step,
        steps=(plan.ab.share,) if state.arms else plan.shares,
        share=share,
        since=state.since,
        now=now,
        least_s=max(0.0, (plan.bake_s if state.phase is Phase.BAKING else plan.step_min_s) - waited),
        most_s=max(0.0, plan.step_max_s - waited) if limited else None,
        keys=max((int(n) for n in needed if n is not None), default=None) if None not in needed else None,
        looked=look.get("at"),
        verdict=analysis.get("verdict"),
        metrics=metrics,
        waits=tuple(_waits(plan, state, metrics, said, waited, now)),
        arms=tuple(_arms(state, share, analysis)),
    )


def _arms(state: CanaryState, share: float, analysis: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each arm's share of the keys, why it was dropped (""), whether it has won, and its estimated gain."""
    seen = {arm["version"]: arm for arm in analysis.get("arms", ())}
    for arm in state.arms:
        found = seen.get(arm.version, {})
        yield {
            "version": arm.version,
            "share": 0.0 if arm.out else share,
            "dropped": str(arm.out),
            "won": found.get("won", False),
            "gain": found.get("gain"),
            "n_requests": found.get("n_requests"),
        }


def _asked(plan: RolloutPlan, said: Standing) -> str:
    """Of whom approvals are still asked, and until when those hold that were given."""
    but = f", but not {' or '.join(said.excluded)}, who proposed it" if said.excluded else ""
    of = f"asked of {plan.approvers} {'person' if plan.approvers == 1 else 'people'} who may approve{but}"
    if said.until is None:
        return f"{said} ({of})"
    return f"{said} ({of}; what was given holds until {datetime.fromtimestamp(said.until, UTC):%Y-%m-%d %H:%M} UTC)"


def _named(metric: Mapping[str, Any]) -> str:
    return str(metric["name"]) if metric.get("arm") is None else f"v{metric['arm']} {metric['name']}"


def _waits(
    plan: RolloutPlan,
    state: CanaryState,
    metrics: tuple[Mapping[str, Any], ...],
    said: Standing,
    waited: float,
    now: float,
) -> list[str]:
    shut = schedule.closed(plan.schedule, now)
    held = [f"the schedule: {shut}"] if shut is not None else []
    if state.phase is Phase.PENDING:
        asks = plan.asks_before_start if state.origin is Phase.STARTING else plan.approval == "before_promotion"
        return [*([f"approval: {_asked(plan, said)}"] if asks and not said.approved else []), *held]
    if state.phase is Phase.STARTING:
        return ["its replica to start"]
    if state.phase is Phase.PAUSED:
        return ["an operator: resume, promote or abort"]
    if state.phase is Phase.PROMOTING:
        return ["stable's replicas to load the version and flip"]
    if state.phase is Phase.BAKING:
        return ["the end of baking"]
    if state.phase not in (Phase.SHADOWING, Phase.RAMPING):
        return []
    undecided = [_named(m) for m in metrics if m["verdict"] == "inconclusive"]
    undecided += [f"whether {_named(m)} is better" for m in metrics if m.get("better") is False]
    evidence = [f"evidence on {', '.join(undecided)}"] if undecided else [] if metrics else ["the first look"]
    if state.arms and plan.ab.winner == "by_command":
        evidence.append("an operator: promote or abort")
    return [*evidence, *(["the least time of the step"] if waited < plan.step_min_s else []), *held]
