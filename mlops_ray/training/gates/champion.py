"""Is the candidate no worse than the champion or, being the first, better than an answer that looks at nothing?"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops_ray.config import Gates, Task
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Blocks
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.comparison import MIN_BLOCKS, Comparison, compare
from mlops_ray.training.gates.verdict import CheckResult, Verdict, plain


def champion(gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator) -> CheckResult:
    """Judge the mean loss per row against the champion's, or the constant's.

    `no_worse_than_champion`: a candidate that is worse by exactly `gates.margin` passes at most alpha of the time. It
    passes only where its upper bound is below the margin *and* an equal candidate would have passed with probability
    `gates.power`. The second demand is no part of that promise. It is there because a run is one of many: where the
    holdout cannot tell an equal candidate from one that is worse by the margin, nearly all that pass pass by luck, bad
    ones about as often as good ones, and the difference that a lucky one shows is too good (K. S. Button and others,
    Power failure, 2013; A. Gelman and J. Carlin, Beyond Power Calculations, 2014). Retraining until one is lucky must
    not work. A sure failure stays a failure: noise that does not hide it does not excuse it. A candidate that is surely
    better (its upper bound is below 0) passes whatever the power: it has shown more than was asked, a stale champion
    must not stay because days are few, and the promise holds, since below 0 is below the margin.

    `better_than_constant`, without a champion: the upper bound must be below -`gates.gain`. The rival is the
    holdout's own base rate, or mean, the best of all constants: by less, a model of noise gets there by luck. There is
    no equal candidate to plan for, so no power is asked.
    """
    own = case.losses(case.scores)
    if case.rival is None:
        rivals = case.losses(target.constant(case.task, case.y, len(case.classes)))
        return _first(gates, case.task, _compare(gates, own - rivals, grouped, rng))
    return _no_worse(gates, case.task, _compare(gates, own - case.losses(case.rival), grouped, rng))


def _compare(gates: Gates, differences: Any, grouped: Blocks, rng: np.random.Generator) -> Comparison:
    return compare(differences, grouped, alpha=gates.alpha, resamples=gates.resamples, rng=rng)


def _first(gates: Gates, task: Task, found: Comparison) -> CheckResult:
    name = "better_than_constant"
    evidence = {**found.to_dict(), "margin": -gates.gain, "alpha": gates.alpha}
    if not found.resolved:
        return CheckResult(name, Verdict.INCONCLUSIVE, unresolved(gates, found), evidence)
    said = shown(found, "the best constant's", task)
    if found.upper < -gates.gain:
        return CheckResult(name, Verdict.PASS, f"{said}; below {-gates.gain:g} is asked", evidence)
    if found.lower > -gates.gain:
        return CheckResult(name, Verdict.FAIL, f"{said}, surely not below {-gates.gain:g}", evidence)
    return CheckResult(name, Verdict.INCONCLUSIVE, f"{said}, not surely below {-gates.gain:g}", evidence)


def _no_worse(gates: Gates, task: Task, found: Comparison) -> CheckResult:
    name, margin = "no_worse_than_champion", gates.margin
    evidence: dict[str, Any] = {**found.to_dict(), "margin": margin, "alpha": gates.alpha, "power_asked": gates.power}
    if not found.resolved:
        return CheckResult(name, Verdict.INCONCLUSIVE, unresolved(gates, found), evidence)
    power, needed = found.power(margin), found.blocks_needed(margin, gates.power)
    rows = None if needed is None else int(np.ceil(needed * found.n / found.n_blocks))
    evidence |= plain({"power": power, "blocks_needed": needed, "rows_needed": rows})
    said = shown(found, "the champion's", task)
    if found.lower > margin:
        return CheckResult(name, Verdict.FAIL, f"{said}, surely above the margin {margin:g}", evidence)
    if found.upper < 0:
        return CheckResult(name, Verdict.PASS, f"{said}, surely better", evidence)
    if power < gates.power:
        way = f"about {needed} blocks ({rows:,} rows)" if needed is not None else "far more rows, or another margin,"
        says = (
            f"{said}; an equal candidate would pass here with probability {power:.2f} only, {gates.power:g} is asked: "
            f"{way} are needed for a margin of {margin:g}, there are {found.n_blocks} ({found.n:,} rows)"
        )
        return CheckResult(name, Verdict.INCONCLUSIVE, says, evidence)
    if found.upper < margin:
        return CheckResult(name, Verdict.PASS, f"{said}, surely below the margin {margin:g}", evidence)
    return CheckResult(name, Verdict.INCONCLUSIVE, f"{said}, the margin {margin:g} in between", evidence)


def shown(found: Comparison, rival: str, task: Task) -> str:
    """The difference with its bounds and its unit, for people."""
    unit = " of the target's variance" if task == "regression" else " nats"
    return (
        f"loss per row differs from {rival} by {found.value:+.4f}{unit}, "
        f"bounds {found.lower:+.4f} to {found.upper:+.4f}"
    )


def unresolved(gates: Gates, found: Comparison) -> str:
    """Why there are no bounds."""
    if found.n_blocks < MIN_BLOCKS:
        what = f"values of {gates.block_group}" if gates.block_group else f"blocks of {gates.block_s:g} s"
        return f"{found.n_blocks} {what} carry no bound; {MIN_BLOCKS} or more are needed"
    return f"{gates.resamples} resamples carry no bound at alpha {gates.alpha:g}; raise gates.resamples"
