"""What a candidate must show before it may be registered: all gates over one case.

A gate's outcome is a value with reasons. Too little data never passes: it is inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlops_ray.config import Gates
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.evaluation import intervals, metrics
from mlops_ray.training.evaluation.intervals import Blocks
from mlops_ray.training.evaluation.slices import Slice, weak
from mlops_ray.training.gates import fit, quality
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.champion import champion
from mlops_ray.training.gates.fairness import fairness
from mlops_ray.training.gates.robustness import robustness
from mlops_ray.training.gates.slices import slices
from mlops_ray.training.gates.verdict import Check, CheckResult, GateResult, Verdict, combine

_WEAK_ROWS = 20_000
"""Of the holdout, the newest, that are searched for weak slices: some two seconds for 40 features."""
_WEAK_LEAST = 200
"""Rows of a weak slice where no slice gate says how many."""


def judge(gates: Gates, case: Case, *, extra_checks: Sequence[Check] = (), rng: np.random.Generator) -> GateResult:
    """Judge a candidate on holdout rows that neither it nor its search has seen.

    Rows, limits and the comparison with the champion always; slices, fairness, robustness, overfitting, leakage and
    calibration where `gates` has their block. Each draws from a generator of its own, so that adding a gate changes no
    other's evidence. `extra_checks` need more than rows (a worker that loads the artifact), and come last.

    Raises: DataError when shapes differ, or labels or scores are none (`target.checked`).
    """
    _checked(case)
    streams = dict(zip(_STREAMS, rng.spawn(len(_STREAMS)), strict=True))
    grouped, without = _blocks(gates, case, streams["blocks"])
    estimates = metrics.evaluate(
        case.task,
        case.y,
        case.scores,
        grouped,
        threshold=case.threshold,
        resamples=gates.resamples,
        alpha=gates.alpha,
        rng=streams["metrics"],
    )
    checks = [*without, quality.rows(gates, case), *(quality.limit(demand, estimates) for demand in gates.limits)]
    checks.append(champion(gates, case, grouped, streams["champion"]))
    if gates.slices is not None:
        checks += slices(gates.slices, gates, case, grouped, streams["slices"])
    if gates.fairness is not None:
        checks += fairness(gates.fairness, gates, case, grouped, streams["fairness"])
    if gates.robustness is not None:
        checks += robustness(gates.robustness, gates, case, grouped, streams["robustness"])
    if gates.overfit is not None:
        checks.append(fit.overfit(gates.overfit, gates, case, grouped, streams["overfit"]))
    if gates.leakage is not None:
        checks += fit.leakage(gates.leakage, case, streams["leakage"])
    if gates.calibration is not None:
        checks.append(quality.calibration(gates.calibration, estimates))
    checks += [check() for check in extra_checks]
    found = _weak_slices(gates, case, grouped, streams["weak"])
    information = {"weak_slices": [one.to_dict() for one in found]}
    return GateResult(combine(c.verdict for c in checks), tuple(checks), estimates, information)


_STREAMS = (
    "blocks",
    "metrics",
    "champion",
    "slices",
    "fairness",
    "robustness",
    "overfit",
    "leakage",
    "weak",
)  # in this order for ever: it is part of what a seed means


def _checked(case: Case) -> None:
    target.checked(case.task, case.y, case.scores)
    if case.rival is not None:
        if case.rival.shape != case.scores.shape:
            shapes = f"{case.rival.shape}, the candidate's {case.scores.shape}"
            raise DataError("gates", f"the champion's scores have shape {shapes}; both must answer the same classes")
        target.checked(case.task, case.y, case.rival)
    if len(case.times) != len(case.y):
        raise DataError("gates", f"{len(case.times)} times for {len(case.y)} holdout rows")


def _blocks(gates: Gates, case: Case, rng: np.random.Generator) -> tuple[Blocks, list[CheckResult]]:
    """The blocks that are resampled, and what is wrong where they are not the ones that the project names."""
    name = gates.block_group
    if name is None:
        return intervals.bundled(intervals.blocks(case.times, gates.block_s), rng), []
    if name in case.groups:
        return intervals.bundled(intervals.grouped(case.groups[name]), rng), []
    says = f"the dataset version has no column {name!r} (gates.block_group); blocks of time stand in and prove nothing"
    wrong = CheckResult("blocks", Verdict.INCONCLUSIVE, says, {"block_group": name})
    return intervals.bundled(intervals.blocks(case.times, gates.block_s), rng), [wrong]


def _weak_slices(gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator) -> tuple[Slice, ...]:
    """Slices by input where the candidate loses most: against the champion, or against all rows of a first version."""
    losses = case.losses(case.scores)
    if case.rival is not None:
        losses = losses - case.losses(case.rival)
    newest = np.argsort(case.times, kind="stable")[-_WEAK_ROWS:]
    _, index = np.unique(grouped.index[newest], return_inverse=True)
    return weak(
        {name: case.columns[name][newest] for name in case.features.inputs},
        losses[newest],
        Blocks(index.astype(np.int64), np.full(int(index.max()) + 1, np.nan)),
        min_rows=gates.slices.min_rows if gates.slices is not None else _WEAK_LEAST,
        resamples=gates.resamples,
        alpha=gates.alpha,
        rng=rng,
    )
