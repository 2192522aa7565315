"""Does the candidate know its training rows too well, or do its features know the answer?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlops_ray.config import Gates, LeakageGate, OverfitGate
from mlops_ray.training.evaluation import leakage as probing
from mlops_ray.training.evaluation.intervals import Blocks, blocks
from mlops_ray.training.evaluation.overfit import gap
from mlops_ray.training.gates.case import Case, Fitted
from mlops_ray.training.gates.verdict import CheckResult, Verdict, plain

_SHOWN = 10
_UNKNOWN = "nobody kept the rows that the candidate was fitted on"


def overfit(gate: OverfitGate, gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator) -> CheckResult:
    """Is the loss on the holdout higher than on the fitted rows by `gate.max_gap`? Bounds decide, on either side.

    Fitted rows are resampled by blocks of time, whatever the holdout's are: their groups are not kept."""
    if case.fitted is None:
        return CheckResult("overfit", Verdict.INCONCLUSIVE, _UNKNOWN, {"max_gap": gate.max_gap})
    found = gap(
        case.task,
        case.fitted.y,
        case.fitted.scores,
        case.y,
        case.scores,
        blocks(case.fitted.times, gates.block_s),
        grouped,
        resamples=gates.resamples,
        alpha=gates.alpha,
        rng=rng,
    )
    between = found.difference
    evidence = plain({**found.to_dict(), "max_gap": gate.max_gap, "alpha": gates.alpha})
    said = f"loss per row {found.holdout.value:.4f} on the holdout, {found.fitted.value:.4f} on fitted rows"
    if np.isnan(between.low):
        return CheckResult("overfit", Verdict.INCONCLUSIVE, f"{said}; too few blocks carry no bound", evidence)
    said += f"; gap {between.value:+.4f}, bounds {between.low:+.4f} to {between.high:+.4f}"
    if between.high <= gate.max_gap:
        return CheckResult("overfit", Verdict.PASS, f"{said}; at most {gate.max_gap:g} is asked", evidence)
    if between.low > gate.max_gap:
        return CheckResult("overfit", Verdict.FAIL, f"{said}, surely above {gate.max_gap:g}", evidence)
    return CheckResult("overfit", Verdict.INCONCLUSIVE, f"{said}, {gate.max_gap:g} in between", evidence)


def leakage(gate: LeakageGate, case: Case, rng: np.random.Generator) -> tuple[CheckResult, ...]:
    """Does a single feature tell the answer, are holdout rows among the fitted ones, is the holdout older than they?

    Features are probed on the fitted rows, which are what a leak acts on. Fitted rows may be a sample, so duplicates
    are at least as many as counted."""
    return tuple(_leaks(gate, case, rng))


def _leaks(gate: LeakageGate, case: Case, rng: np.random.Generator) -> Iterator[CheckResult]:
    if case.fitted is None:
        for name in ("feature", "duplicates", "time_order"):
            yield CheckResult(f"leakage.{name}", Verdict.INCONCLUSIVE, _UNKNOWN)
        return
    yield _features(gate, case, case.fitted, rng)
    yield _duplicates(gate, case, case.fitted)
    if case.newest:
        yield _time_order(case, case.fitted)


def _features(gate: LeakageGate, case: Case, fitted: Fitted, rng: np.random.Generator) -> CheckResult:
    found = probing.probes(case.task, {n: fitted.columns[n] for n in case.features.inputs}, fitted.y, rng=rng)
    known = [p for p in found if np.isfinite(p.strength)]
    what = "rank correlation" if case.task == "regression" else "AUC"
    evidence = plain({"max": gate.max_feature_auc, "measure": what, "probes": [p.to_dict() for p in found[:_SHOWN]]})
    if not known:
        return CheckResult("leakage.feature", Verdict.INCONCLUSIVE, "too few rows to probe any feature", evidence)
    leaks = [p for p in known if p.strength > gate.max_feature_auc]
    if leaks:
        named = ", ".join(
            f"{p.column}{' being missing' if p.what == 'missing' else ''} ({what} {p.strength:.3f})" for p in leaks
        )
        says = f"tells the answer alone, above {gate.max_feature_auc:g}: {named}; is it known before the label is?"
        return CheckResult("leakage.feature", Verdict.FAIL, says, evidence)
    best = known[0]
    says = (
        f"no feature alone has {what} above {gate.max_feature_auc:g}; {best.column} comes closest ({best.strength:.3f})"
    )
    return CheckResult("leakage.feature", Verdict.PASS, says, evidence)


def _duplicates(gate: LeakageGate, case: Case, fitted: Fitted) -> CheckResult:
    names = case.features.inputs
    found = probing.duplicates({n: fitted.columns[n] for n in names}, {n: case.columns[n] for n in names})
    evidence = {"share": found.share, "within": found.within, "max": gate.max_duplicates, "n_fitted": found.n_train}
    said = f"{found.share:.1%} of the holdout rows equal a fitted row in all inputs"
    if found.share <= gate.max_duplicates:
        return CheckResult("leakage.duplicates", Verdict.PASS, said, evidence)
    says = f"{said}; at most {gate.max_duplicates:.0%} is asked"
    if found.within > gate.max_duplicates:
        says += f". {found.within:.1%} equal another holdout row: if inputs are so coarse, raise max_duplicates"
    return CheckResult("leakage.duplicates", Verdict.FAIL, says, evidence)


def _time_order(case: Case, fitted: Fitted) -> CheckResult:
    found = probing.time_order(fitted.times, case.times)
    evidence = {"older": found.older, "share": found.share, "gap_s": found.gap_s}
    if found.older == 0:
        return CheckResult("leakage.time_order", Verdict.PASS, "all holdout rows are newer than the fitted", evidence)
    says = (
        f"{found.older:,} holdout rows ({found.share:.1%}) are older than the newest fitted row: it has seen the future"
    )
    return CheckResult("leakage.time_order", Verdict.FAIL, says, evidence)
