"""The rule file for Prometheus, made from a project file. Pure, and the same text for the same project.

Recorded names are level:metric:operations (https://prometheus.io/docs/practices/rules/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mlops_ray.config import Project
from mlops_ray.monitoring.judgement import LOSS
from mlops_ray.monitoring.prometheus.alerting_rules import alerts
from mlops_ray.monitoring.prometheus.promql import QUANTILES, newest, over, selected


def rules(project: Project, files: str) -> dict[str, Any]:
    """The rule file as a document. Args: files: the options that name the project file, such as
    `-c configs/flights.yaml`, for the commands in descriptions."""
    name = project.project
    return {
        "groups": [
            {"name": f"mlops_ray {name} recorded", "rules": list(_recorded(project))},
            {"name": f"mlops_ray {name} alerts", "rules": [alert.to_dict() for alert in alerts(project, files)]},
        ]
    }


def text(document: dict[str, Any]) -> str:
    """The YAML of a rule file."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _recorded(project: Project) -> Iterator[dict[str, str]]:
    span = over(project)

    def rate(metric: str, by: str, more: str = "") -> str:
        return f"sum by ({by}) (rate({selected(metric, project, more)}[{span}]))"

    tried = rate("mlops_ray_canary_rows_total", "project, version")
    failed = rate("mlops_ray_canary_failures_total", "project, version")
    found = {
        f"project_version:mlops_ray_rows:rate{span}": rate("mlops_ray_rows_total", "project, version"),
        f"project:mlops_ray_rows:rate{span}": rate("mlops_ray_rows_total", "project"),
        f"project_version:mlops_ray_canary_failures:ratio_rate{span}": f"({failed} or 0 * {tried}) / ({tried} > 0)",
        f"project_reason:mlops_ray_uncaptured_rows:rate{span}": rate(
            "mlops_ray_uncaptured_rows_total", "project, reason"
        ),
        f"project:mlops_ray_labels:rate{span}": rate("mlops_ray_labels_total", "project"),
    }
    buckets = rate("mlops_ray_score_seconds_bucket", "project, version, le")
    for q in QUANTILES:
        found[f"project_version:mlops_ray_score_seconds:p{q * 100:g}_rate{span}"] = (
            f"histogram_quantile({q}, {buckets})"
        )
    loss = LOSS[project.task]
    psi, limit = (newest(project, f"mlops_ray_drift_{what}", "feature") for what in ("psi", "limit"))
    found |= {
        "project_feature:mlops_ray_drift_psi:ratio_limit": f"{psi} / {limit}",
        "project:mlops_ray_drift_psi:max_ratio_limit": f"max by (project) ({psi} / {limit})",
        f"project:mlops_ray_{loss}:ratio_limit": (
            f"{newest(project, f'mlops_ray_{loss}')} / {newest(project, f'mlops_ray_{loss}_limit')}"
        ),
        "project:mlops_ray_label_seconds:lag": (
            f"{newest(project, 'mlops_ray_decision_time_seconds')} - {newest(project, 'mlops_ray_label_seconds')}"
        ),
    }
    for name, expr in found.items():
        yield {"record": name, "expr": expr}
