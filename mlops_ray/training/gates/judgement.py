"""What a candidate must show before it may be registered: pure judgement over holdout rows.

A gate's outcome is a value with reasons. Too little data never passes: it is inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlops_ray.config import Gates, Limit
from mlops_ray.training.evaluation import intervals, metrics
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats
from mlops_ray.training.gates.verdict import Check, CheckResult, GateResult, Verdict, combine


def judge(
    gates: Gates,
    y: ArrayLike,
    candidate_scores: ArrayLike,
    champion_scores: ArrayLike | None,
    times: ArrayLike,
    *,
    extra_checks: Sequence[Check] = (),
    rng: np.random.Generator,
) -> GateResult:
    """Judge a candidate on holdout rows that neither it nor its search has seen.

    With a champion the candidate must not be worse than it by `gates.margin` (nats per row, both scored on the same
    rows); without one it must beat the constant that says the holdout's own base rate, the best of all constants, by
    that margin: by less, a model of noise gets there when its weights happen to point the right way.
    Limits compare the point estimate; their interval stands in the evidence.

    Args: y: 0 or 1; candidate_scores, champion_scores: P(1); times: seconds since epoch; all of shape (n,).
    Raises: DataError when shapes differ or values are no labels or probabilities.
    """
    labels, p = metrics.checked(y, candidate_scores)
    estimates = metrics.evaluate(
        labels, p, times, block_s=gates.block_s, resamples=gates.resamples, alpha=gates.alpha, rng=rng
    )
    losses = metrics.log_losses(labels, p)
    grouped = intervals.blocks(times, gates.block_s)
    checks = [_enough_rows(gates, labels), *(_limit(limit, estimates[limit.metric]) for limit in gates.limits)]
    if champion_scores is not None:
        _, champion = metrics.checked(labels, champion_scores)
        rivals, name, margin = metrics.log_losses(labels, champion), "no_worse_than_champion", gates.margin
    else:
        constant = np.full(len(labels), labels.mean())
        rivals, name, margin = metrics.log_losses(labels, constant), "better_than_base_rate", -gates.margin
    checks.append(_compare(name, gates, losses - rivals, margin, grouped, rng))
    checks += [check() for check in extra_checks]
    return GateResult(combine(c.verdict for c in checks), tuple(checks), estimates)


def _enough_rows(gates: Gates, labels: Floats) -> CheckResult:
    n, positives = len(labels), int(labels.sum())
    evidence = {"n": n, "positives": positives, "min_rows": gates.min_rows}
    if n < gates.min_rows:
        return CheckResult("rows", Verdict.INCONCLUSIVE, f"{n} holdout rows, {gates.min_rows} are needed", evidence)
    if positives in (0, n):
        return CheckResult("rows", Verdict.INCONCLUSIVE, f"all {n} holdout rows have one label", evidence)
    return CheckResult("rows", Verdict.PASS, f"{n} holdout rows, {positives} positive", evidence)


def _limit(limit: Limit, estimate: Estimate) -> CheckResult:
    name, value = f"limit.{limit.metric}", estimate.value
    evidence = {**estimate.to_dict(), "min": limit.min, "max": limit.max}
    if np.isnan(value):
        return CheckResult(name, Verdict.INCONCLUSIVE, f"{limit.metric} is undefined on these rows", evidence)
    if limit.min is not None and value < limit.min:
        return CheckResult(name, Verdict.FAIL, f"{value:.4f} is below {limit.min:g}", evidence)
    if limit.max is not None and value > limit.max:
        return CheckResult(name, Verdict.FAIL, f"{value:.4f} is above {limit.max:g}", evidence)
    return CheckResult(name, Verdict.PASS, f"{value:.4f}", evidence)


def _compare(
    name: str, gates: Gates, differences: Floats, margin: float, grouped: Blocks, rng: np.random.Generator
) -> CheckResult:
    """Is the mean of paired loss differences, shape (n,), surely below `margin`, surely above it, or neither?

    One-sided 1 - alpha bounds by a bootstrap over blocks of time."""
    value = float(differences.mean())
    evidence: dict[str, Any] = {"difference": value, "margin": margin, "alpha": gates.alpha, "n_blocks": len(grouped)}
    if not intervals.resolves(gates.alpha, len(grouped), gates.resamples):
        detail = f"{len(grouped)} blocks of {gates.block_s:g} s and {gates.resamples} resamples carry no bound"
        return CheckResult(name, Verdict.INCONCLUSIVE, detail, evidence)
    weights = intervals.resample(len(grouped), gates.resamples, rng)
    means = (weights @ grouped.sums(differences)) / (weights @ grouped.sums(np.ones(len(differences))))
    share = intervals.tail(gates.alpha, len(grouped))
    lower, upper = (float(q) for q in np.quantile(means, [share, 1 - share]))
    evidence |= {"lower": lower, "upper": upper}
    shown = f"log-loss differs by {value:+.4f}, bounds [{lower:+.4f}, {upper:+.4f}]"
    if upper < margin:
        return CheckResult(name, Verdict.PASS, f"{shown}, upper below margin {margin:g}", evidence)
    if lower > margin:
        return CheckResult(name, Verdict.FAIL, f"{shown}, lower above margin {margin:g}", evidence)
    return CheckResult(name, Verdict.INCONCLUSIVE, f"{shown}, margin {margin:g} in between", evidence)
