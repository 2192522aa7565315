"""Traffic, quality, drift and what alarms: from the monitor's windows and the profiles' counts. Pure.

A window's result grows keys with releases: what is not known here is not looked at, and what is missing is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlops_ray.dashboard.gathered import Gathered
from mlops_ray.dashboard.parts import Alert, Drift, DriftWindow, Estimate, Quality, QualityPoint, Traffic
from mlops_ray.dashboard.wording import metric, moment, span
from mlops_ray.monitoring.alerts.observed import sequential_alarm
from mlops_ray.monitoring.record import ENTRY, MAIN, METHODS
from mlops_ray.state import WindowRow

MOST_FEATURES = 40
"""Rows of the heat map: the features that drifted most."""
_TRIGGERS = (
    ("drift", "drift"),
    ("quality", "performance"),
    (ENTRY, "estimated performance"),
    ("multivariate", "features together"),
)
_UNITS = {"binary": "nats", "multiclass": "nats", "regression": "of the target"}


def next_close(of: Gathered) -> float | None:
    """When the next window closes that is judged, decision time; None before any traffic."""
    if of.first_block is None or of.now is None:
        return None
    window_s = of.project.monitoring.window_s
    first = math.ceil(of.first_block / window_s) * window_s + window_s
    return max(first, (math.floor(of.now / window_s) + 1) * window_s)


def nothing_yet(of: Gathered) -> str:
    """Why no window is there, and when there will be one."""
    at, window_s = next_close(of), of.project.monitoring.window_s
    if at is None:
        return "No traffic has been seen yet. It shows here some seconds after the first request was answered."
    return f"No window has closed yet: they span {span(window_s)}, and the first closes at {moment(at)}."


def traffic(of: Gathered) -> Traffic:
    """Rows by version and block of time."""
    versions = tuple(sorted({version for version, _, _ in of.traffic}))
    blocks: dict[float, dict[int, int]] = {}
    for version, block, n in of.traffic:
        blocks.setdefault(block, {})[version] = n
    told = tuple((at, tuple(rows.get(v, 0) for v in versions)) for at, rows in sorted(blocks.items()))
    return Traffic(of.project.monitoring.block_s, versions, told, None if told else nothing_yet(of))


def quality(of: Gathered) -> Quality:
    """The main metric of each window that has one, estimated or realised."""
    name, plan = MAIN[of.project.task], of.project.monitoring
    found = (_point(row, name) for row in of.windows)
    points = tuple(p for p in found if p is not None)
    empty = None
    if not points:
        empty = nothing_yet(of)
        if any("drift" in row.result for row in of.windows):
            empty = "No window has an estimate yet, and none is old enough for its labels to be believed: that takes "
            empty += f"{span(plan.label_horizon_s)} after it has closed."
    return Quality(metric(name), _UNITS[of.project.task], plan.label_horizon_s, points, empty)


def _point(row: WindowRow, name: str) -> QualityPoint | None:
    said: Mapping[str, Any] = row.result.get("quality") or {}
    entry: Mapping[str, Any] = row.result.get(ENTRY) or {}
    estimated, realised = _estimate(entry, name), said.get(name)
    if realised is None:
        realised = (entry.get("realised") or {}).get(name)
    judged = said.get("metric", name) == name  # of a regression the squared error is
    interval: Mapping[str, Any] = (said.get("interval") if judged else None) or {}
    if estimated is None and realised is None:
        return None
    return QualityPoint(
        start=row.start,
        end=row.end,
        version=row.version,
        estimated=estimated,
        realised=realised,
        low=interval.get("low"),
        high=interval.get("high"),
        limit=said.get("limit") if judged else None,
        coverage=said.get("coverage"),
        roc_auc=said.get("roc_auc"),
        alarm=bool(said.get("alarm") or entry.get("alarm")),
        why=str(said.get("why") or entry.get("why") or ""),
    )


def _estimate(entry: Mapping[str, Any], name: str) -> Estimate | None:
    """By the method that has earned more trust; the plain one where neither has."""
    found = []
    for method in METHODS:
        each = ((entry.get(method) or {}).get("metrics") or {}).get(name)
        if each is not None:
            trust = float(((entry.get("record") or {}).get(method) or {}).get("trust") or 0.0)
            found.append(Estimate(each["value"], each.get("low"), each.get("high"), method, trust))
    return max(found, key=lambda e: e.trust, default=None)


def drift(of: Gathered) -> Drift:
    """Every judged window's drift, by feature."""
    judged = [(row, row.result["drift"]) for row in of.windows if row.result.get("drift")]
    by_window = [{f["feature"]: f for f in said.get("features", ()) if "psi" in f} for _, said in judged]
    worst: dict[str, float] = {}
    for features in by_window:
        for name, each in features.items():
            worst[name] = max(worst.get(name, 0.0), _ratio(each))
    names = tuple(sorted(worst, key=lambda name: (-worst[name], name))[:MOST_FEATURES])
    told = tuple(
        DriftWindow(
            start=row.start,
            end=row.end,
            version=row.version,
            rows=said.get("rows"),
            alarm=bool(said.get("alarm")),
            why=str(said.get("why", "")),
            decision=str(said.get("decision", "")),
            psi=tuple(features.get(name, {}).get("psi") for name in names),
            limit=tuple(features.get(name, {}).get("limit") for name in names),
        )
        for (row, said), features in zip(judged, by_window, strict=True)
    )
    return Drift(names, told, next_close(of), None if told else nothing_yet(of))


def _ratio(each: Mapping[str, Any]) -> float:
    limit = each.get("limit")
    return each["psi"] / limit if limit else 0.0


def alerts(of: Gathered) -> tuple[Alert, ...]:
    """What alarmed in the newest window of each kind, of the version that is stable, with the start of its run."""
    found = []
    for key, trigger in _TRIGGERS:
        run: list[Mapping[str, Any]] = []
        for row in reversed(of.windows):
            said = row.result.get(key)
            if row.version != of.stable or not said:
                continue
            if not said.get("alarm"):
                break
            run.append(said)
        if run:
            found.append(Alert(trigger, float(run[-1].get("at", 0.0)), str(run[0].get("why", ""))))
    stable = of.stable
    alarm = None if stable is None else sequential_alarm(of.windows[::-1], stable)
    if alarm is not None:
        found.append(Alert("loss after every block", float(alarm.get("at", 0.0)), str(alarm.get("why", ""))))
    return tuple(found)
