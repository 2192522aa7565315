"""A/B/n: several versions at fixed shares, each compared with stable. What a look decides about them, without I/O.

Each of the K arms plays the gamblers of `analysis` against stable, with alpha / K in place of alpha, and in the
objective, the first of the plan's metrics, one more: that it is better than stable (bar 0, the other direction). An arm

* is dropped when a metric is proven worse. Its keys go back to stable; no other arm's keys move.
* has won when it is proven better in the objective, and every other metric is proven no worse than its margin.

The promises, at however many looks:

    P(some arm that is worse than tolerated in no metric is dropped on evidence)   <= alpha
    P(some arm that is not better than stable in the objective is said to have won) <= alpha
    P(some arm that is worse by its margin in a metric beside it is said to have won) <= alpha

Proof. One arm breaks each promise with probability at most alpha / K, by `analysis`: to be dropped, one of its M
gamblers on "worse" must reach M K / alpha although it is not, which each does with probability at most alpha / (M K)
(Ville); to win, the gambler on "better" must reach K / alpha, and so must the one on "fine" of each other metric. The
probability that any of K events happens is at most the sum of theirs (the union bound), which needs no independence:
arms that are compared with the same rows of stable, by assignment, share their luck, and the sum holds all the same.
Arms that are dropped leave the sum as it is. Which of several winners is promoted, and when, is decided among arms that
have all been proven better, so that choosing the one with the largest estimate costs nothing. Its estimate is too good,
as the largest of several is; the interval beside it holds for all arms at once.

Time-outs, crashes and operators are other reasons, with no such promise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mlops_ray.config import RolloutPlan
from mlops_ray.errors import DataError
from mlops_ray.rollout import canary
from mlops_ray.rollout.analysis import Analysis, OfArm
from mlops_ray.rollout.canary import CanaryState, Phase, Reason
from mlops_ray.rollout.outcomes import Among
from mlops_ray.training.gates.verdict import Verdict


def demand_shares(plan: RolloutPlan, versions: Sequence[int]) -> None:
    """Return if a rollout by this plan may try these versions at once. Raises: DataError."""
    named = ", ".join(f"v{version}" for version in versions)
    if plan.mode != "ab" and len(versions) > 1:
        raise DataError(named, f"mode {plan.mode} tries one version at a time; set `rollout.mode: ab`, or name one")
    if len(set(versions)) < len(versions):
        raise DataError(named, "a version is named twice; name each once")
    if plan.mode == "ab" and len(versions) * plan.ab.share >= 1:
        most = f"{1 / len(versions):.3g}"
        detail = f"rollout.ab.share {plan.ab.share:g} for each leaves stable nothing; set it below {most} or name fewer"
        raise DataError(named, detail)


def promoted(state: CanaryState, version: int, asked: int | None) -> int | None:
    """The arm that an order promotes; None where the rollout has no arms, or the choice was made before.

    Args: version: the rollout's. asked: the one that was named. Raises: DataError."""
    open_to = state.live if state.on_trial is not None else (version,) if state.arms else ()
    if asked is None:
        if state.on_trial is not None and len(open_to) > 1:
            there = ", ".join(f"v{v}" for v in open_to)
            raise DataError("promote", f"{there} are on trial; say which, for example `--version {open_to[0]}`")
        return open_to[0] if open_to else None
    if asked not in (open_to or (version,)):
        there = ", ".join(f"v{v}" for v in open_to or (version,))
        raise DataError(f"v{asked}", f"it is not on trial; {there} can be promoted")
    return asked if state.arms else None


def watched(state: CanaryState) -> tuple[int, ...]:
    """Arms whose evidence can change anything: all that are on trial, then the one that is stable."""
    return state.live if state.chosen is None or state.on_trial is not None else (state.chosen,)


def among(plan: RolloutPlan, state: CanaryState, version: int) -> Among:
    """How the rows of one arm and stable's are told from the others'."""
    out = tuple(arm.since for arm in state.arms if arm.since is not None)
    return Among(version, plan.ab.share, len(state.arms), out)


def together(found: Mapping[int, Analysis]) -> Analysis:
    """What the looks at all arms come to: PASS when one of them has won, FAIL when all are worse."""
    arms = tuple(_of(version, one) for version, one in found.items())
    verdict = Verdict.PASS if any(arm.won for arm in arms) else Verdict.INCONCLUSIVE
    if arms and all(arm.verdict is Verdict.FAIL for arm in arms):
        verdict = Verdict.FAIL
    return Analysis(
        verdict,
        tuple(replace(metric, arm=version) for version, one in found.items() for metric in one.metrics),
        sum(arm.n_requests for arm in arms),
        bool(arms) and all(arm.exhausted for arm in arms),
        arms,
    )


def _of(version: int, one: Analysis) -> OfArm:
    objective, *others = one.metrics
    won = bool(objective.better) and all(metric.verdict is Verdict.PASS for metric in others)
    won = won and one.verdict is not Verdict.FAIL
    return OfArm(version, one.verdict, won, -objective.estimate, one.n_requests or 0, one.exhausted)


def advance(
    plan: RolloutPlan, state: CanaryState, analysis: Analysis, *, now: float, may_go: bool = True
) -> CanaryState:
    """State after one look at all arms. Calling it twice changes nothing more.

    A winner is promoted once no other arm is undecided, or the time or the rows are up; of several the one with the
    largest estimated gain. Where the plan leaves that to a command, a winner waits for it. What is undecided when time
    or rows are up follows `on_inconclusive`. Args: may_go: whether the schedule allows a step now.
    """
    if state.on_trial is None:
        return canary.advance(plan, state, analysis.verdict, now=now, may_go=may_go)
    worse = {arm.version for arm in analysis.arms if arm.verdict is Verdict.FAIL}
    state = _without(state, worse, Reason.EVIDENCE, now=now)
    if state.phase is not Phase.RAMPING:
        return state
    live = [arm for arm in analysis.arms if arm.version in state.live]
    won, waited = [arm for arm in live if arm.won], now - state.since
    is_over = waited > plan.step_max_s or (bool(live) and all(arm.exhausted for arm in live))
    if not won:
        return canary.undecided(plan, state, now=now) if is_over else state
    if plan.ab.winner == "by_command" or waited <= 0 or waited < plan.step_min_s or not may_go:
        return state
    if len(won) < len(live) and not is_over:
        return state
    best = max(won, key=lambda arm: arm.gain)
    return canary.passed(plan, replace(state, chosen=best.version), now=now)


def started(
    plan: RolloutPlan, state: CanaryState, *, ready: Collection[int], crashed: Collection[int], now: float
) -> CanaryState:
    """State after a look at each arm's replica: one that crashed is dropped, traffic comes when the rest is ready."""
    after = _without(state, crashed, Reason.CRASH, now=max(now, state.changed))
    if after.phase is Phase.STARTING and set(after.live) <= set(ready):
        return replace(after, phase=Phase.RAMPING)
    return after


def _without(state: CanaryState, versions: Collection[int], reason: Reason, *, now: float) -> CanaryState:
    """State after these arms gave their keys back. It ends with the last of them, or with the one that was chosen."""
    gone = set(versions) & set(state.live)
    if not gone:
        return state
    arms = tuple(replace(arm, out=reason, since=now) if arm.version in gone else arm for arm in state.arms)
    after = replace(state, arms=arms)
    if not after.live or state.chosen in gone:
        return replace(after, phase=Phase.ROLLED_BACK, since=now, reason=reason, origin=Phase.RAMPING)
    return after


def in_words(before: CanaryState, after: CanaryState, analysis: Analysis | None = None) -> str:
    """What a look has changed, and by which evidence, for the ledger."""
    gone = [arm for arm in after.arms if arm.out and arm.version in before.live]
    said = [f"v{arm.version} gave its keys back to stable ({arm.out})" for arm in gone]
    if after.chosen != before.chosen:
        said.append(f"v{after.chosen} has won")
    if after.phase is Phase.RAMPING and before.phase is Phase.STARTING:
        said.append(f"{', '.join(f'v{version}' for version in after.live)} are ready")
    return "; ".join([*said, *(metric.in_words() for metric in (analysis.metrics if analysis else ()))])
