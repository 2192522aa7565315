"""What a Grafana dashboard shows of a project: rows of panels with their queries. Pure; `grafana` lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlops_ray.config import Project
from mlops_ray.monitoring.prometheus import panels_of_loop, panels_of_traffic, panels_of_windows
from mlops_ray.monitoring.prometheus.panel import Panel, newest, of, rate
from mlops_ray.monitoring.prometheus.promql import over

_RED_ABOVE = {"mode": "absolute", "steps": [{"color": "green", "value": None}, {"color": "red", "value": 1}]}


def rows(project: Project) -> Iterator[tuple[str, list[Panel]]]:
    """Titles of rows with their panels, from top to bottom."""
    span = over(project)
    yield "At a glance", _glance(span)
    yield "Traffic", panels_of_traffic.traffic(span)
    yield "Errors", panels_of_traffic.errors(span)
    yield "Time in the predictor", panels_of_traffic.latency(span)
    yield "Drift", panels_of_windows.drift(project)
    yield "Quality", panels_of_windows.quality(project)
    yield "Labels", panels_of_traffic.labels(project, span)
    yield "Rollout", panels_of_loop.rollout()
    yield "Retraining and the loop itself", panels_of_loop.loop(project)


def _glance(span: str) -> list[Panel]:
    alarm = of("mlops_ray_detector_state", 'state="alarm"')

    def stat(title: str, expr: str, about: str, **more: Any) -> Panel:
        return Panel(title, "stat", [(expr, "")], about, width=4, height=4, instant=True, **more)

    return [
        stat("Rows a second", rate("mlops_ray_rows_total", "project", span), "Answered and captured", unit="cps"),
        stat("Stable version", newest("mlops_ray_stable_version"), "Answers most traffic", unit="none"),
        stat("Canary's share", newest("mlops_ray_canary_share"), "Share of the keys", unit="percentunit"),
        stat(
            "Detectors in alarm",
            f"sum by (project) (max by (project, detector) ({alarm}))",
            "At their newest windows",
            unit="none",
            defaults={"thresholds": _RED_ABOVE},
        ),
        stat(
            "Since rows arrived",
            f"time() - {newest('mlops_ray_arrival_timestamp_seconds')}",
            "Machine time since captured rows last reached the monitor",
            unit="s",
        ),
        stat("Labelled", newest("mlops_ray_label_coverage"), "Of the newest mature window", unit="percentunit"),
        Panel(
            "Alerts",
            "state-timeline",
            [
                (
                    'max by (alertname) (ALERTS{project="$project", alertname=~"MlopsRay.*"})',
                    "{{alertname}}",
                )
            ],
            "Pending and firing, by the rules of `mlops-ray monitoring rules`",
            width=24,
            height=5,
            options={"showValue": "never"},
        ),
    ]
