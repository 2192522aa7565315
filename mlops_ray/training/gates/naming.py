"""What metrics and checks are called where people read them: the gates' page and the model card alike."""

from __future__ import annotations

_METRICS = {
    "log_loss": "log-loss",
    "brier": "Brier score",
    "calibration_error": "expected calibration error",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "f1": "F1",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "pinball": "pinball loss",
}
"""Of those whose name is more than its words."""


def metric(name: str) -> str:
    """A metric, such as `roc_auc`, in words."""
    return _METRICS.get(name, name.replace("_", " "))


def check(name: str) -> str:
    """A check, such as `fairness.origin.demographic_parity`, in words; a column's name stays as it is."""
    first, *rest = name.split(".")
    if first == "limit" and rest:
        return f"limit: {metric('.'.join(rest))}"
    rest[1:] = [part.replace("_", " ") for part in rest[1:]]  # what stands in between is a column's name
    return ": ".join([first.replace("_", " "), *([", ".join(rest)] if rest else [])])
