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
    kind, _, rest = name.partition(".")
    if kind == "limit" and rest:
        said = metric(rest)
    elif kind == "slices":
        said = rest
    elif kind == "fairness":
        column, _, measure = rest.rpartition(".")
        said = f"{column}, {measure.replace('_', ' ')}" if column else measure.replace("_", " ")
    else:
        what, _, column = rest.partition(".")
        said = f"{what.replace('_', ' ')}, {column}" if column else what.replace("_", " ")
    return f"{kind.replace('_', ' ')}: {said}" if said else kind.replace("_", " ")
