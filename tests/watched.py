"""A state database with the history of a project that is watched: everything that the exposition knows of, at once."""

from __future__ import annotations

from typing import Any

from mlops_ray.config import DAY_S, Project
from mlops_ray.monitoring.folding import COUNTED, rows_cursor
from mlops_ray.serving.log.tally import SCORE_S
from mlops_ray.state import Cursor, RetrainRow, RolloutRow, Store, VersionRow, WindowRow

WEEK_S = 7 * DAY_S


def lived(store: Store, project: Project, now: float) -> None:
    """Four versions, of which v3 is stable and v4 on trial, eight weeks of windows, rollouts and retrains of each kind.

    Args: now: seconds since the epoch; decision time is a day behind it."""
    name, decided = project.project, now - DAY_S
    with store.begin() as tx:
        held = [{"version": v, "artifact": f"/v{v}", "sha256": "0" * 64} for v in (3, 2)]
        tx.save_serving(name, {"stable": held[0], "canary": 4, "share": 0.1, "salt": "r", "warm": held[1:]}, 0)
        for version in (1, 2, 3, 4):
            tx.save_version(VersionRow(name, version, "run", f"/v{version}", "0" * 64, "data", "registered", now, {}))
            tx.save_cursor(name, rows_cursor(version), 1000 * version, 0.0)
        for cursor, at in (
            ("watermark", decided),
            ("pending", decided + 60),
            ("decision time", decided),
            ("seen", now),
        ):
            tx.save_cursor(name, cursor, 0, at)
        for week in range(8):
            end = decided - week * WEEK_S
            tx.save_window(WindowRow(name, end - WEEK_S, end, 3, window(project, end, mature=week > 0)))
        for i, phase in enumerate(("promoted", "rolled back", "aborted")):
            at = decided - (i + 1) * DAY_S
            tx.save_rollout(RolloutRow(f"r{i}", name, i + 2, i + 1, {}, {"phase": phase}, at - DAY_S, ended=at))
        tx.save_rollout(RolloutRow("r9", name, 4, 3, {}, on_trial(decided), decided - DAY_S))
        spent = {"seconds": {"search": 21.5, "gates": 3.25}}
        for i, (status, outcome) in enumerate(
            (("submitted", {}), ("failed", {}), ("rejected", spent), ("succeeded", spent))
        ):
            at = decided - i * WEEK_S
            tx.save_retrain(RetrainRow(f"t{i}", name, "drift", "drifted", at, f"j{i}", status, outcome, now - i * 3600))
    store.acquire(f"rollout:{name}", "controller", 20.0, now)
    answered(store, project, now, 100)


def answered(store: Store, project: Project, now: float, n: int) -> None:
    """Traffic that brings all counters up by n or more."""
    name = project.project
    counts = {f"score:{version}:{place}": n for version in (3, 4) for place in range(len(SCORE_S) + 1)}
    counts |= {"score_us:3": 60 * n, "score_us:4": 900 * n, "tried:4": 10 * n, "labels": n}
    counts |= {f"failed:4:{why}": n for why in ("deadline", "error")}
    counts |= {f"uncaptured:{why}": n for why in ("disk", "sampled")}
    with store.begin() as tx:
        known = tx.cursors(name, COUNTED)
        tx.save_cursors(
            name,
            {COUNTED + each: Cursor(known.get(each, Cursor(0)).number + more, now) for each, more in counts.items()},
        )
        for version in (3, 4):
            before = tx.cursor(name, rows_cursor(version)).number
            tx.save_cursor(name, rows_cursor(version), before + 10 * n, 0.0)


def window(project: Project, at: float, *, mature: bool) -> dict[str, Any]:
    """A window's result: drifted, its quality as expected where it is mature."""
    features = [
        {"feature": name, "psi": 0.5 if i == 0 else 0.05, "limit": 0.2, "alarm": i == 0}
        for i, name in enumerate(project.features.inputs)
    ]
    interval = {"value": 0.45, "low": 0.40, "high": 0.50}
    told = {"log_loss": interval, "roc_auc": interval}
    record = {method: {"windows": 6, "trust": 0.75, "rmse": 0.01} for method in ("direct", "weighted")}
    estimated = {
        "at": at,
        "alarm": False,
        "why": "log_loss 0.45",
        "limit": 0.6,
        "direct": {"metrics": told, "why": ""},
        "weighted": {"metrics": told, "why": ""},
        "record": record,
    } | ({"realised": {"log_loss": 0.46, "roc_auc": 0.7}} if mature else {})
    result = {"drift": {"alarm": True, "why": "PSI", "at": at, "features": features}, "estimated": estimated}
    if mature:
        quality = {"alarm": False, "why": "uncalibrated: the holdout has 3 blocks", "log_loss": 0.46}
        result["quality"] = quality | {"limit": 0.6, "coverage": 0.93, "at": at}
    return result


def on_trial(at: float) -> dict[str, Any]:
    """State of a rollout that has been looked at."""
    metric = {"margin": 0.02, "n_keys": 900, "estimate": 0.001, "low": -0.01, "high": 0.03}
    metric |= {"evidence_worse": 0.3, "evidence_fine": 4.0, "verdict": "inconclusive"}
    metrics = [metric | {"name": "log_loss"}, metric | {"name": "failures", "margin": 0.01}]
    look = {"at": at, "analysis": {"verdict": "inconclusive", "metrics": metrics}}
    return {"phase": "ramping", "step": 1, "since": at - DAY_S, "reason": "", "look": look}
