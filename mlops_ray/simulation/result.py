"""What a simulation came to, as JSON-friendly values: quality by month, windows, decisions in words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from mlops_ray.config import DAY_S
from mlops_ray.monitoring.performance import quality
from mlops_ray.simulation.loop import Loop, entries, retrains
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Floats

KINDS = ("drift", "multivariate", "estimated", "quality", "sequential")
"""Entries of judged windows."""


def result(loop: Loop, start: float, end: float) -> dict[str, Any]:
    """All of [start, end), seconds since the epoch."""
    project, history = loop.project, loop.history
    rows = history.between(start, end)
    served, by = loop.answers.served[rows], loop.answers.by[rows]
    never = loop.models[1].score(history.inputs(rows)) if rows.stop > rows.start else np.empty(0)
    y, times = np.where(np.isfinite(history.labelled[rows]), history.y[rows], np.nan), history.times[rows]
    names = np.array([_month(t) for t in (times // 86_400) * 86_400])
    ledger = [e for e in entries(loop) if e.at >= start]
    with loop.store.read() as tx:
        kept = sorted(tx.windows(project.project), key=lambda w: (w.end, w.version))
    windows = [
        {
            "end": w.end,
            "version": w.version,
            "kind": kind,
            "alarm": w.result[kind]["alarm"],
            "why": w.result[kind]["why"],
        }
        for w in kept
        for kind in KINDS
        if kind in w.result and "alarm" in w.result[kind]
    ]
    made = retrains(loop)
    ends = [e.kind for e in ledger]
    months = [
        {
            "month": month,
            "versions": sorted({int(v) for v in by[names == month]}),
            **_measured(project.task, y[names == month], served[names == month], never[names == month]),
            "alarms": sum(w["alarm"] for w in windows if _month(w["end"]) == month),
            "decisions": [f"{_day(e.at)} {e.kind} {e.subject}" for e in ledger if _month(e.at) == month],
        }
        for month in sorted(set(names.tolist()))
    ]
    return {
        "project": project.project,
        "from": start,
        "until": end,
        **_measured(project.task, y, served, never),
        "retrains": len(made),
        "rejected": sum(r.status == "rejected" for r in made),
        "failed": sum(r.status == "failed" for r in made),
        "promoted": ends.count("rollout promoted"),
        "rolled_back": ends.count("rollout rolled back"),
        "alarms": sum(w["alarm"] for w in windows),
        "months": months,
        "served": _by_day(times, by),
        "windows": windows,
        "decisions": [{"at": e.at, "kind": e.kind, "subject": e.subject, "why": e.why} for e in ledger],
    }


def _by_day(times: Floats, by: np.ndarray) -> list[dict[str, Any]]:
    """Rows that each version answered, day by day."""
    days = (times // DAY_S).astype(np.int64)
    found = []
    for day in np.unique(days):
        versions, n = np.unique(by[days == day], return_counts=True)
        rows = {str(version): int(count) for version, count in zip(versions, n, strict=True)}
        found.append({"at": float(day) * DAY_S, "span_s": DAY_S, "rows": rows})
    return found


def _measured(task: Any, y: Floats, served: Floats, never: Floats) -> dict[str, Any]:
    known = ~np.isnan(y) & ~np.isnan(served)
    found: dict[str, Any] = {"rows": len(y), "labelled": int(known.sum())}
    if not known.any():
        return found | {"loss": None, "loss_never": None}
    labels = y[known].astype(np.int64) if task == "binary" else y[known]
    found["loss"] = float(target.losses(task, labels, served[known]).mean())
    found["loss_never"] = float(target.losses(task, labels, never[known]).mean())
    if task == "binary":
        found["roc_auc"] = quality(y[known], served[known]).roc_auc
    return found


def _month(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m")


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%m-%d")
