"""A Grafana dashboard, made from a project file. Pure, and the same document for the same project.

It asks Prometheus for what the monitor exports, and for nothing else: no rule file is needed, no host is named, and no
plugin beyond Grafana's own panels. The model is that of schemaVersion 42 (Grafana 12 and later).
Source: https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from mlops_ray.config import Project
from mlops_ray.monitoring.prometheus.panel import OURS, Panel
from mlops_ray.monitoring.prometheus.panels import rows

SCHEMA_VERSION = 42
_WIDTH = 24  # columns of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(project: Project) -> dict[str, Any]:
    """The dashboard as Grafana imports and provisions it. Its uid follows from the project's name."""
    return {
        "uid": uid(project),
        "title": f"mlops_ray: {project.project}",
        "description": "Made by `mlops-ray monitoring dashboard` from the project file; make it again after a change.",
        "tags": ["mlops_ray", project.task],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "id": None,
        "editable": True,
        "graphTooltip": 1,
        "liveNow": False,
        "fiscalYearStartMonth": 0,
        "weekStart": "",
        "timezone": "utc",
        "time": {"from": "now-7d", "to": "now"},
        "timepicker": {},
        "refresh": "1m",
        "links": [],
        "templating": {"list": _variables(project)},
        "annotations": {"list": _annotations()},
        "panels": list(_placed(rows(project))),
    }


def uid(project: Project) -> str:
    """Follows from the project's name. Grafana allows 40 characters; a longer name stands there by its hash."""
    found = f"mlops-ray-{project.project}"
    return found if len(found) <= 40 else f"mlops-ray-{hashlib.sha256(project.project.encode()).hexdigest()[:30]}"


def _variables(project: Project) -> list[dict[str, Any]]:
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "options": [],
        },
        {
            "name": "project",
            "label": "Project",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": "label_values(mlops_ray_watermark_seconds, project)", "refId": "project"},
            "refresh": 2,
            "regex": "",
            "sort": 1,
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "options": [],
            "current": {"selected": True, "text": project.project, "value": project.project},
        },
    ]


def _annotations() -> list[dict[str, Any]]:
    told = (
        (
            "Promotions and rollbacks",
            f"changes(mlops_ray_stable_version{{{OURS}}}[5m]) > 0",
            "green",
            "stable changed",
        ),
        ("Alerts", f'ALERTS{{{OURS}, alertname=~"MlopsRay.*", alertstate="firing"}}', "red", "{{alertname}}"),
    )
    return [
        {
            "name": name,
            "datasource": _SOURCE,
            "enable": True,
            "hide": False,
            "iconColor": colour,
            "titleFormat": title,
            "target": {"expr": expr, "refId": "annotation", "interval": "60s"},
        }
        for name, expr, colour, title in told
    ]


def _placed(shown: Iterator[tuple[str, list[Panel]]]) -> Iterator[dict[str, Any]]:
    """Rows one below the other; panels from left to right, in the next line where they do not fit."""
    number, y = 0, 0
    for title, panels in shown:
        number += 1
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, tall = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y, tall = 0, y + tall, 0
            number += 1
            yield _body(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, tall = x + panel.width, max(tall, panel.height)
        y += tall


def _body(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults = {"unit": panel.unit, **panel.defaults}
    if panel.custom:
        defaults["custom"] = dict(panel.custom)
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": dict(panel.options),
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend or "__auto",
                "format": panel.form,
                "instant": panel.instant,
                "range": not panel.instant,
                "editorMode": "code",
            }
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }
