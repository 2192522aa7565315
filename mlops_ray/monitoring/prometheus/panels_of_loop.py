"""Panels about what the loop does: rollouts, retrains, and itself. Pure."""

from __future__ import annotations

from mlops_ray.config import Project
from mlops_ray.monitoring.prometheus.panel import Panel, dashed, dotted, newest


def rollout() -> list[Panel]:
    """The version on trial."""
    ends = [
        (newest(f"mlops_ray_rollout_difference{end}", "version, metric"), f"v{{{{version}}}} {{{{metric}}}} {word}")
        for end, word in (("", "estimate"), ("_low", "low"), ("_high", "high"), ("_margin", "margin"))
    ]
    return [
        Panel(
            "Canary less stable",
            "timeseries",
            ends,
            "Above 0 is worse. The confidence sequence may be looked at at any time; fine is proven when its upper end "
            "is below the margin",
            width=16,
            height=10,
            overrides=[dashed(".* margin"), dotted(".* (low|high)")],
        ),
        Panel(
            "Evidence",
            "timeseries",
            [
                (
                    newest("mlops_ray_rollout_evidence", "version, metric, hypothesis"),
                    "v{{version}} {{metric}}: {{hypothesis}}",
                )
            ],
            "Capital of two gamblers on each metric; who is rich has proven it",
            width=8,
            height=10,
            custom={"scaleDistribution": {"type": "log", "log": 10}},
        ),
        Panel(
            "Phase of the open rollout",
            "stat",
            [(newest("mlops_ray_rollout_step", "version") + " + 1", "v{{version}}: step")],
            "Steps of the plan, from 1",
            width=6,
            height=6,
            instant=True,
        ),
        Panel(
            "It has been so for",
            "stat",
            [
                (
                    f"{newest('mlops_ray_decision_time_seconds')} - on (project) group_right () "
                    f"{newest('mlops_ray_rollout_since_seconds', 'project, version, phase')}",
                    "v{{version}} {{phase}}",
                )
            ],
            "Decision time since the phase or step began",
            unit="dtdurations",
            width=6,
            height=6,
            instant=True,
        ),
        Panel(
            "Rollouts so far",
            "bargauge",
            [(newest("mlops_ray_rollouts", "phase"), "{{phase}}")],
            "By how they ended, or stand",
            width=12,
            height=6,
            instant=True,
        ),
    ]


def loop(project: Project) -> list[Panel]:
    """Retrains, and whether the loop itself lives."""
    lease = newest("mlops_ray_lease_expiry_timestamp_seconds", "project, lease")
    watermark, decided = newest("mlops_ray_watermark_seconds"), newest("mlops_ray_decision_time_seconds")
    return [
        Panel(
            "Retrains so far",
            "bargauge",
            [(newest("mlops_ray_retrains", "status"), "{{status}}")],
            "By how they ended, or stand",
            width=8,
            instant=True,
        ),
        Panel(
            "Stages of the newest retrain",
            "bargauge",
            [(newest("mlops_ray_retrain_seconds", "stage"), "{{stage}}")],
            "Machine time",
            unit="s",
            width=8,
            instant=True,
        ),
        Panel(
            "Failed or rejected in a row",
            "stat",
            [(newest("mlops_ray_retrain_failures"), "")],
            f"From {project.retraining.max_failures} on the circuit breaker holds retrains back",
            unit="none",
            width=8,
            instant=True,
            defaults={
                "thresholds": {
                    "mode": "absolute",
                    "steps": [
                        {"color": "green", "value": None},
                        {"color": "red", "value": project.retraining.max_failures},
                    ],
                }
            },
        ),
        Panel(
            "Behind, in event time",
            "timeseries",
            [
                (f"{newest('mlops_ray_pending_seconds')} - {watermark}", "collectors"),
                (f"clamp_min({watermark} - {decided}, 0)", "monitor"),
            ],
            "collectors: rows that wait for a node to be passed; monitor: what it has not looked at",
            unit="s",
            width=8,
        ),
        Panel(
            "Lease of the controller",
            "timeseries",
            [(f"{lease} - time()", "{{lease}}")],
            "Time that is left; below 0 nobody steers rollouts",
            unit="s",
            width=8,
        ),
        Panel(
            "Judged windows",
            "timeseries",
            [(newest("mlops_ray_windows_total"), "windows")],
            "Since the project began",
            width=8,
        ),
    ]
