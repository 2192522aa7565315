"""Demands on the holdout as a whole: enough rows, limits on metrics, calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlops_ray.config import CalibrationGate, Gates, Limit, Metric
from mlops_ray.training.evaluation.intervals import Estimate
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.verdict import CheckResult, Verdict


def rows(gates: Gates, case: Case) -> CheckResult:
    """Are there enough rows, and labels that differ? Classes that no row has are named: nobody judges them."""
    n = len(case.y)
    evidence: dict[str, object] = {"n": n, "min_rows": gates.min_rows}
    said = f"{n:,} holdout rows"
    if case.task == "regression":
        varied = bool(np.ptp(case.y) > 0) if n else False
    else:
        counts = np.bincount(case.y, minlength=len(case.classes))
        evidence["rows_of_class"] = {str(label): int(k) for label, k in zip(case.classes, counts, strict=True)}
        varied = int((counts > 0).sum()) > 1
        absent = [str(label) for label, k in zip(case.classes, counts, strict=True) if k == 0]
        if case.task == "binary":
            said += f", {counts[1]:,} positive"
        elif absent:
            said += f"; no row is of class {', '.join(absent)}, which nothing here judges"
    if n < gates.min_rows:
        return CheckResult("rows", Verdict.INCONCLUSIVE, f"{said}; {gates.min_rows:,} are needed", evidence)
    if not varied:
        return CheckResult("rows", Verdict.INCONCLUSIVE, f"all {n:,} holdout rows have one label", evidence)
    return CheckResult("rows", Verdict.PASS, said, evidence)


def limit(demand: Limit, estimates: Mapping[Metric, Estimate]) -> CheckResult:
    """Is the metric within its limits? The point estimate decides; its interval stands in the evidence."""
    name, estimate = f"limit.{demand.metric}", estimates[demand.metric]
    value = estimate.value
    evidence = {**estimate.to_dict(), "min": demand.min, "max": demand.max}
    if np.isnan(value):
        return CheckResult(name, Verdict.INCONCLUSIVE, f"{demand.metric} is undefined on these rows", evidence)
    if demand.min is not None and value < demand.min:
        return CheckResult(name, Verdict.FAIL, f"{value:.4f} is below {demand.min:g}", evidence)
    if demand.max is not None and value > demand.max:
        return CheckResult(name, Verdict.FAIL, f"{value:.4f} is above {demand.max:g}", evidence)
    bounds = [f"at least {demand.min:g}"] if demand.min is not None else []
    bounds += [f"at most {demand.max:g}"] if demand.max is not None else []
    return CheckResult(name, Verdict.PASS, f"{value:.4f}; {' and '.join(bounds)} is asked", evidence)


def calibration(gate: CalibrationGate, estimates: Mapping[Metric, Estimate]) -> CheckResult:
    """Is the expected calibration error within its limit?

    Noise in the bins only ever enlarges the error (R. Roelofs and others, Mitigating Bias in Calibration Error
    Estimation, 2022), so a value within the limit passes. One above it fails where the lower bound is above, too."""
    estimate = estimates["calibration_error"]
    evidence = {**estimate.to_dict(), "max": gate.max_error}
    return CheckResult("calibration", *of_inflated(estimate, gate.max_error, "calibration error"), evidence)


def of_inflated(estimate: Estimate, most: float, what: str) -> tuple[Verdict, str]:
    """Verdict and sentence on a measure that noise only makes larger: a difference of the extremes, a sum of distances.

    Within the limit it passes; above it, it fails if its lower bound is above too; else nobody knows."""
    if np.isnan(estimate.value):
        return Verdict.INCONCLUSIVE, f"{what} is undefined on these rows"
    said = f"{what} {estimate.value:.4f}"
    if estimate.value <= most:
        return Verdict.PASS, f"{said}; at most {most:g} is asked"
    if estimate.low > most:
        return Verdict.FAIL, f"{said}, surely above {most:g} (lower bound {estimate.low:.4f})"
    low = "no bound can be told" if np.isnan(estimate.low) else f"lower bound {estimate.low:.4f}"
    return Verdict.INCONCLUSIVE, f"{said} is above {most:g}, though not surely ({low})"
