"""How much worse the packaged candidate gets when its inputs are disturbed, and whether it bends the way it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Gates, Monotonic, RobustnessGate
from mlops_ray.data.profile import Columns
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Blocks, Floats
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.champion import unresolved
from mlops_ray.training.gates.comparison import compare
from mlops_ray.training.gates.verdict import CheckResult, Verdict, plain

Disturb = Callable[[RobustnessGate, Case, np.random.Generator], dict[str, NDArray[Any]]]
"""The columns that changed; none where the inputs have nothing to disturb."""
_BEYOND = 0.1
"""Of the range, by which values out of range lie beyond it."""
_ROWS, _STEPS = 1_000, 9
"""Rows and values of the feature that monotonicity is asked at: 9,000 answers."""
_TIE = 1e-6
"""Steps against the direction below this share of the scores' spread are single precision, not the model."""


def robustness(
    gate: RobustnessGate, gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator
) -> tuple[CheckResult, ...]:
    """One check per disturbance that has a limit, and per monotonic feature.

    The growth of loss per row is paired: the same rows, disturbed and not. It passes where its upper bound is within
    the limit, fails where its lower bound is above. A model that gives no answer to disturbed rows fails: serving would
    have had to answer."""
    limits = {name: getattr(gate, name) for name in DISTURBANCES}
    found = [_growth(name, most, gate, gates, case, grouped, rng) for name, most in limits.items() if most is not None]
    return (*found, *(_monotonic(rule, case, rng) for rule in gate.monotonic))


def _growth(
    name: str,
    most: float,
    gate: RobustnessGate,
    gates: Gates,
    case: Case,
    grouped: Blocks,
    rng: np.random.Generator,
) -> CheckResult:
    title = f"robustness.{name}"
    disturbed = DISTURBANCES[name](gate, case, rng)
    evidence: dict[str, Any] = {"max": most, "alpha": gates.alpha, "columns": sorted(disturbed)}
    if not disturbed:
        return CheckResult(title, Verdict.PASS, "no input can be disturbed this way", evidence)
    try:
        _, scores = target.checked(case.task, case.y, case.score({**case.columns, **disturbed}))
    except (DataError, ValueError) as exc:
        says = f"the model gives no answer: {exc}"
        return CheckResult(title, Verdict.FAIL, says, {**evidence, "error": str(exc)})
    growth = case.losses(scores) - case.losses(case.scores)
    found = compare(growth, grouped, alpha=gates.alpha, resamples=gates.resamples, rng=rng)
    evidence |= found.to_dict()
    if not found.resolved:
        return CheckResult(title, Verdict.INCONCLUSIVE, unresolved(gates, found), evidence)
    said = f"loss per row grows by {found.value:+.4f}, bounds {found.lower:+.4f} to {found.upper:+.4f}"
    if found.upper <= most:
        return CheckResult(title, Verdict.PASS, f"{said}; at most {most:g} is asked", evidence)
    if found.lower > most:
        return CheckResult(title, Verdict.FAIL, f"{said}, surely above {most:g}", evidence)
    return CheckResult(title, Verdict.INCONCLUSIVE, f"{said}, {most:g} in between", evidence)


# --- disturbances --------------------------------------------------------------------------------------------------


def _known(case: Case, name: str) -> Floats:
    """What is known of a number: its values among the fitted rows, or the holdout's where nobody kept those."""
    cells = (case.fitted.columns if case.fitted is not None else case.columns)[name].astype(np.float64)
    return np.asarray(cells[np.isfinite(cells)], dtype=np.float64)


def _numbers(case: Case, least: int) -> dict[str, Floats]:
    """Known values of the numeric inputs that have at least `least` distinct ones."""
    known = {name: _known(case, name) for name in case.features.raw_numbers}
    return {name: values for name, values in known.items() if len(np.unique(values)) >= least}


def _texts(case: Case) -> list[str]:
    return [name for name, kind in case.features.kinds.items() if kind == "string"]


def _noise(gate: RobustnessGate, case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    # A number of two values is a flag: no sensor adds noise to it.
    return {
        name: _like(case, name, case.columns[name] + rng.normal(0, gate.noise_sd * known.std(), len(case.y)))
        for name, known in _numbers(case, 3).items()
    }


def _missing(gate: RobustnessGate, case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    found = {}
    for name, kind in case.features.kinds.items():
        if case.nullable is None or name in case.nullable:
            cells = case.columns[name].copy()
            cells[rng.random(len(cells)) < gate.missing_share] = "" if kind == "string" else np.nan
            found[name] = cells
    return found


def _unseen_category(gate: RobustnessGate, case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    found = {}
    for name in _texts(case):
        cells = case.columns[name].copy()
        seen = set(cells.tolist()) | set(case.fitted.columns[name].tolist() if case.fitted is not None else ())
        new = "never seen"
        while new in seen:
            new += "!"
        cells[rng.random(len(cells)) < gate.swap_share] = new
        found[name] = cells
    return found


def _category_swap(gate: RobustnessGate, case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    found = {}
    for name in _texts(case):
        cells = case.columns[name]
        found[name] = np.where(rng.random(len(cells)) < gate.swap_share, rng.permutation(cells), cells)
    return found


def _out_of_range(gate: RobustnessGate, case: Case, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    found = {}
    for name, known in _numbers(case, 2).items():
        beyond = _BEYOND * float(np.ptp(known))
        outside = np.where(rng.random(len(case.y)) < 0.5, known.min() - beyond, known.max() + beyond)
        hit = rng.random(len(case.y)) < gate.swap_share
        found[name] = _like(case, name, np.where(hit, outside, case.columns[name]))
    return found


def _like(case: Case, name: str, cells: NDArray[Any]) -> NDArray[Any]:
    return cells.astype(case.columns[name].dtype)


DISTURBANCES: Mapping[str, Disturb] = {
    "noise": _noise,
    "missing": _missing,
    "unseen_category": _unseen_category,
    "category_swap": _category_swap,
    "out_of_range": _out_of_range,
}


# --- monotonicity --------------------------------------------------------------------------------------------------


def _monotonic(rule: Monotonic, case: Case, rng: np.random.Generator) -> CheckResult:
    title = f"robustness.monotonic.{rule.column}"
    evidence: dict[str, Any] = {"direction": rule.direction, "max_share": rule.max_share}
    if rule.column not in case.features.raw_numbers:
        says = f"{rule.column!r} is no number among the inputs; remove it from gates.robustness.monotonic"
        return CheckResult(title, Verdict.INCONCLUSIVE, says, evidence)
    if case.task == "multiclass":
        return CheckResult(title, Verdict.INCONCLUSIVE, "the scores of several classes have no direction", evidence)
    grid = np.unique(np.quantile(_known(case, rule.column), np.linspace(0, 1, _STEPS), method="closest_observation"))
    rows = np.sort(rng.permutation(len(case.y))[:_ROWS])
    columns = {name: values[rows] for name, values in case.columns.items()}
    try:
        asked = [case.score(_with(columns, rule.column, value)) for value in grid]
    except (DataError, ValueError) as exc:
        return CheckResult(title, Verdict.FAIL, f"the model gives no answer: {exc}", {**evidence, "error": str(exc)})
    scores = np.stack(asked, axis=1)
    spread = 1.0 if case.task == "binary" else float(case.scores.std()) or 1.0
    steps = np.diff(scores, axis=1) * (1 if rule.direction == "rising" else -1)
    share = float((steps < -_TIE * spread).any(axis=1).mean()) if steps.shape[1] else 0.0
    worst = max(0.0, -float(steps.min(initial=0.0)))
    evidence |= plain({"share": share, "worst_step": worst, "n": len(rows), "values": grid})
    said = f"{share:.1%} of {len(rows):,} rows have a score that is not {rule.direction} in {rule.column}"
    if share > rule.max_share:
        says = f"{said} (largest step against it {worst:.4g}); at most {rule.max_share:.1%} is asked"
        return CheckResult(title, Verdict.FAIL, says, evidence)
    return CheckResult(title, Verdict.PASS, said, evidence)


def _with(columns: Columns, name: str, value: float) -> Columns:
    return {**columns, name: np.full_like(columns[name], value)}
