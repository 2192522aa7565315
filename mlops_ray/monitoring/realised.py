"""What the labelled rows of a mature window show besides the loss that is judged: nobody is called for any of it. Pure.

{"interval": {"value": 0.41, "low": 0.37, "high": 0.45, ...},
 "slices": [{"column": "carrier", "label": "= UA", "rows": 910, "loss": {...}, "said_1": 0.21}, ...],
 "groups": [...],                                                            # those of gates.fairness
 "labels": {"now": {...}, "holdout": 0.221},                                 # of several classes: their shares
 "lag_s": {"p50": 5400.0, "p90": 21600.0, "p99": 82800.0}}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.monitoring.parts import described, mean, parts
from mlops_ray.monitoring.performance import row_losses
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Scores

_LAGS = (0.5, 0.9, 0.99)


def shown(
    project: Project, reference: Reference, threshold: float, rows: pa.Table, labels: Floats, scores: Scores
) -> dict[str, Any]:
    """Args: rows: of the version, with `event_time`, `label_time` and the inputs that the gates look at; labels (NaN
    where not known), scores: theirs, as in `target`; threshold: from which on a binary score says 1."""
    losses = row_losses(labels, scores, project.task)
    known = ~np.isnan(losses)
    if not known.any():
        return {}
    times = rows["event_time"].cast(pa.int64()).to_numpy() / 1e6
    blocks = np.floor(times / project.monitoring.block_s).astype(np.int64)
    said = (scores >= threshold).astype(np.float64) if project.task == "binary" else None

    def of(block: Any) -> list[dict[str, Any]]:
        names = () if block is None else block.columns
        return described(parts(reference, _inputs(project, rows, names)), losses, blocks, said)

    return {
        "interval": mean(losses[known], blocks[known]).to_dict(),
        "slices": of(project.gates.slices),
        "groups": of(project.gates.fairness),
        "labels": _labels(project, reference, labels[known], blocks[known]),
        "lag_s": _lags(times, rows["label_time"]),
    }


def _inputs(project: Project, rows: pa.Table, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Those of the columns that the log holds, as they were scored; a column that is no feature is not in it."""
    kinds = project.features.kinds
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        column = rows[f"x_{name}"] if f"x_{name}" in rows.column_names else None
        if column is None or kinds[name] == "time":
            continue
        found[name] = column.to_numpy(zero_copy_only=False)
    return found


def _labels(project: Project, reference: Reference, labels: Floats, blocks: NDArray[np.int64]) -> dict[str, Any]:
    """The labels now and on the holdout: their mean, or the shares of several classes."""
    if project.task == "multiclass":
        if reference.calibration is None:
            return {}
        before = reference.calibration.sample.outcome.astype(np.int64)
        n = int(max(labels.max(), before.max())) + 1
        shares = (np.bincount(each, minlength=n) / len(each) for each in (labels.astype(np.int64), before))
        return dict(zip(("now", "holdout"), (each.tolist() for each in shares), strict=True))
    n_rows = sum(block[1] for block in reference.holdout)
    before_mean = sum(block[3] for block in reference.holdout) / n_rows if n_rows else None
    return {"now": mean(labels, blocks).to_dict(), "holdout": before_mean}


def _lags(times: Floats, label_times: pa.ChunkedArray) -> dict[str, float]:
    """Quantiles of how long after their event labels became known, seconds."""
    came = pc.fill_null(label_times.cast(pa.int64()).cast(pa.float64()), float("nan")).to_numpy() / 1e6
    lags = (came - times)[~np.isnan(came)]
    if not len(lags):
        return {}
    return {f"p{100 * q:.0f}": float(value) for q, value in zip(_LAGS, np.quantile(lags, _LAGS), strict=True)}
