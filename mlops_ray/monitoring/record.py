"""A window's estimates as its result keeps them, scored when its labels have come, and the record that this makes.

    {"at": ..., "rows": 5120, "why": "log_loss 0.4021 (0.3870 to 0.4172) ...",
     "direct":   {"metrics": {"log_loss": {"value": ..., "low": ..., "high": ..., ...}, ...}, "why": ...},
     "weighted": {"metrics": {...}, "why": "the window resembles 3196 of 5000 rows of the holdout"},
     "record":   {"direct": {"windows": 6, "trust": 0.75, "rmse": 0.011}, "weighted": {...}},
     "labelled": 5090, "realised": {"log_loss": ..., ...}}        # from the label horizon on

`direct` reads the holdout's calibration as it is, `weighted` after `importance.weigh`. Without metrics, `why` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.config import Monitoring, Task
from mlops_ray.monitoring import estimation, importance
from mlops_ray.training.calibration import Calibration
from mlops_ray.training.evaluation.intervals import Estimate, Floats
from mlops_ray.training.target import Classes, Scores

ENTRY = "estimated"
"""Its key in a window's result."""
METHODS = ("direct", "weighted")
MAIN = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mae"}
"""The metric of each task that the record is about."""

Entry = dict[str, Any]


def estimated(
    plan: Monitoring,
    known: Calibration | None,
    scores: Scores,
    codes: NDArray[np.uint16],
    *,
    threshold: float,
    before: Sequence[Mapping[str, Any]],
    at: float,
    rng: np.random.Generator,
) -> Entry:
    """The entry of a window that has closed.

    Args: known: of the version that scored the rows; scores, codes: of its rows, see `estimation.estimate`; before:
        entries of its windows before, oldest first; at: decision time, seconds since the epoch."""
    body: Entry = {"at": at, "rows": len(scores), "record": {m: record(before, m) for m in METHODS}}
    if known is None:
        return body | _silent("uncalibrated: the version was trained by a release that kept no calibration")
    if known.n_blocks < (needed := max(2, plan.min_blocks)):
        return body | _silent(f"uncalibrated: the holdout has {known.n_blocks} blocks; {needed} are needed")
    if len(scores) < plan.min_rows:
        return body | _silent(f"{len(scores)} rows; {plan.min_rows} are needed")
    direct = estimation.estimate(known, scores, codes, threshold=threshold)
    why = _in_words(known.task, direct)
    some = estimation.thinned(len(scores), scores.size)
    placed = known.place(scores[some], codes[some])
    weighed = importance.weigh(known, placed, codes[some], min_rows=plan.min_rows, rng=rng)
    weighted: dict[str, Estimate] = {}
    if weighed.weights is not None:
        weighted = estimation.estimate(known.reweighted(weighed.weights), scores, codes, threshold=threshold)
    return body | {
        "why": why,
        "direct": {"metrics": _plain(direct), "why": f"{known.n_blocks} blocks of the holdout"},
        "weighted": {"metrics": _plain(weighted), "why": weighed.why},
    }


def scored(
    entry: Mapping[str, Any], plan: Monitoring, task: Task, labels: Floats, scores: Scores, *, threshold: float
) -> Entry:
    """The same entry with what became of its window. Args: labels: (n,), as in `target`, NaN where not known."""
    there = ~np.isnan(labels)
    y, said = labels[there], scores[there]
    found: dict[str, float] = {}
    if len(y) >= plan.min_rows:
        found = estimation.realised(task, y, said, threshold=threshold)
    # Expected rows of a confusion matrix are of all rows, these of the labelled ones.
    scale = len(labels) / max(len(y), 1)
    told = {name: value * scale if name in ("tn", "fp", "fn", "tp") else value for name, value in found.items()}
    return {**entry, "labelled": len(y), "realised": told}


def record(entries: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """How a version's estimates by `method` have done, from the entries of its windows, oldest first.

    `windows`: that were scored; `trust`: `estimation.trust` of them; `rmse`: root mean squared error of the main metric
    over the last `estimation.RECORD`, None without any."""
    gaps, inside = [], []
    for entry in entries:
        realised = entry.get("realised") or {}
        for name in set(MAIN.values()):
            said = entry.get(method, {}).get("metrics", {}).get(name)
            if said is None or name not in realised or said["low"] is None:
                continue
            gaps.append(said["value"] - realised[name])
            inside.append(said["low"] <= realised[name] <= said["high"])
    last = gaps[-estimation.RECORD :]
    rmse = math.sqrt(sum(gap**2 for gap in last) / len(last)) if last else None
    return {"windows": len(gaps), "trust": estimation.trust(inside), "rmse": rmse}


def numbered(task: Task, classes: Classes, labels: pa.ChunkedArray) -> Floats:
    """Labels as the log has them (null where not known), as numbers (n,): places of classes, NaN where not known."""
    if task == "multiclass":
        names = pa.array([str(label) for label in classes], pa.string())
        labels = pc.index_in(labels.cast(pa.string()), names)
    return np.asarray(pc.fill_null(labels.cast(pa.float64()), math.nan).to_numpy())


def _silent(why: str) -> Entry:
    nothing: Entry = {"metrics": {}, "why": why}
    return {"why": why, "direct": nothing, "weighted": nothing}


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: each.to_dict() for name, each in found.items()}


def _in_words(task: Task, found: Mapping[str, Estimate]) -> str:
    name = MAIN[task]
    each = found[name]
    return f"{name} {each.value:.4f} ({each.low:.4f} to {each.high:.4f}) estimated from {each.n} rows"
