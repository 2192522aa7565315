"""Is the candidate no worse in any declared slice?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Gates, SliceGate
from mlops_ray.training import target
from mlops_ray.training.evaluation import metrics
from mlops_ray.training.evaluation.intervals import Blocks, Floats
from mlops_ray.training.evaluation.slices import partition
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.comparison import MIN_BLOCKS, Comparison, compare
from mlops_ray.training.gates.verdict import CheckResult, Verdict, combine, plain

_NAMED = 5
"""Slices that a sentence names; the evidence has all."""


@dataclass(frozen=True)
class _Found:
    column: str
    label: str
    comparison: Comparison
    judged: bool


def slices(
    gate: SliceGate, gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator
) -> tuple[CheckResult, ...]:
    """One check per column: each value of a category, each quarter of a number, and the missing values are slices.

    A slice passes where the upper bound of its loss difference, at level alpha, is below `gate.margin`: so a candidate
    that is worse by the margin in *some* slice gets through all of them at most alpha of the time, however many there
    are (an intersection-union test: R. L. Berger 1982). It fails where its p-value for being worse by more than the
    margin is small after S. Holm's correction (1979) over the judged slices of all columns, so that many slices do not
    make a failure by chance. The rest is inconclusive. Slices of fewer than `gate.min_rows` rows, or of too few blocks
    for a bound, are shown and not judged; a column without any judged slice is inconclusive.

    The rival is the champion. For a first version it is the constant that says the slice's own base rate or mean: the
    mean loss of the whole holdout would refuse every model where one slice is harder by nature.
    """
    own = case.losses(case.scores)
    by_column = {
        name: _column(name, case.groups[name], gate, gates, case, own, grouped, rng)
        for name in gate.columns
        if name in case.groups
    }
    judged = [s for part in by_column.values() for s in part if s.judged]
    failed = set(_holm([s.comparison.p_above(gate.margin) for s in judged], gates.alpha))
    bad = {(judged[i].column, judged[i].label) for i in failed}
    return tuple(_check(gate, gates, case, name, by_column.get(name), bad) for name in gate.columns)


def _column(
    name: str,
    values: NDArray[Any],
    gate: SliceGate,
    gates: Gates,
    case: Case,
    own: Floats,
    grouped: Blocks,
    rng: np.random.Generator,
) -> list[_Found]:
    found = []
    part = partition(name, values)
    rival = None if case.rival is None else case.losses(case.rival)
    for i, label in enumerate(part.labels):
        rows = part.rows(i)
        theirs = rival
        if theirs is None:
            theirs = np.zeros(len(own))
            alone = target.constant(case.task, case.y[rows], len(case.classes))
            theirs[rows] = metrics.row_losses(case.task, case.y[rows], alone, metrics.unit(case.task, case.y))
        comparison = compare(own - theirs, grouped, alpha=gates.alpha, resamples=gates.resamples, rng=rng, rows=rows)
        found.append(_Found(name, label, comparison, comparison.n >= gate.min_rows and comparison.resolved))
    return found


def _holm(p: Sequence[float], alpha: float) -> list[int]:
    """Places of the rejected hypotheses."""
    rejected = []
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        if p[place] > alpha / (len(p) - rank):
            break
        rejected.append(int(place))
    return rejected


def _check(
    gate: SliceGate, gates: Gates, case: Case, name: str, found: list[_Found] | None, bad: set[tuple[str, str]]
) -> CheckResult:
    title = f"slices.{name}"
    against = "constant" if case.rival is None else "champion"
    if found is None:
        says = f"the dataset version has no column {name!r}; prepare one that has, or remove it from gates.slices"
        return CheckResult(title, Verdict.INCONCLUSIVE, says, {"margin": gate.margin, "slices": []})
    verdicts: dict[str, Verdict] = {}
    for s in (s for s in found if s.judged):
        within = Verdict.PASS if s.comparison.upper < gate.margin else Verdict.INCONCLUSIVE
        verdicts[s.label] = Verdict.FAIL if (name, s.label) in bad else within
    rows = [
        {
            "slice": f"{name} {s.label}",
            "verdict": verdicts[s.label].value if s.judged else "not judged",
            **s.comparison.to_dict(),
            "p_worse": plain(s.comparison.p_above(gate.margin)) if s.judged else None,
        }
        for s in found
    ]
    evidence = {
        "margin": gate.margin,
        "alpha": gates.alpha,
        "min_rows": gate.min_rows,
        "against": against,
        "slices": rows,
    }
    small = _small(gate, [s for s in found if not s.judged])
    if not verdicts:
        says = f"none of {len(found)} slices is large enough{small}"
        return CheckResult(title, Verdict.INCONCLUSIVE, says, evidence)
    aside = f"; {sum(not s.judged for s in found)} too small to judge{small}" if small else ""
    verdict = combine(list(verdicts.values()))
    named = ", ".join(f"{name} {label}" for label, v in verdicts.items() if v is verdict)
    says = {
        Verdict.PASS: f"no worse than the {against} by {gate.margin:g} in any of {len(verdicts)} slices",
        Verdict.FAIL: f"surely worse than the {against} by more than {gate.margin:g} where {named}",
        Verdict.INCONCLUSIVE: f"cannot tell whether it is worse than the {against} by {gate.margin:g} where {named}",
    }[verdict]
    return CheckResult(title, verdict, says + aside, evidence)


def _small(gate: SliceGate, found: Sequence[_Found]) -> str:
    """What a slice must have, and what the first of those have that do not."""
    if not found:
        return ""
    named = [f"{s.column} {s.label} ({s.comparison.n:,} in {s.comparison.n_blocks:,})" for s in found[:_NAMED]]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f" ({gate.min_rows:,} rows in {MIN_BLOCKS} blocks are asked of each): {', '.join(named)}{more}"
