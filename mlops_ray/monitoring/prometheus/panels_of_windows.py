"""Panels about what windows say: drift and quality. Pure."""

from __future__ import annotations

from mlops_ray.config import Project
from mlops_ray.monitoring.judgement import LOSS
from mlops_ray.monitoring.prometheus.panel import Panel, band, dashed, newest, of
from mlops_ray.monitoring.prometheus.promql import duration
from mlops_ray.monitoring.record import MAIN


def drift(project: Project) -> list[Panel]:
    """Features against their limits."""
    psi, limit = (newest(f"mlops_ray_drift_{what}", "feature") for what in ("psi", "limit"))
    steps = [(None, "green"), (0.5, "yellow"), (0.8, "orange"), (1, "red")]
    rising = {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}
    n = len(project.features.inputs)
    return [
        Panel(
            "PSI against its limit, by feature",
            "status-history",
            [(f"{psi} / {limit}", "{{feature}}")],
            "From 1 on the feature is called drifted. One column for a window of "
            f"{duration(project.monitoring.window_s)}, until the next one closes",
            width=24,
            height=max(6, 2 + (n + 1) // 2),
            defaults={"thresholds": rising, "decimals": 2},
            options={"showValue": "auto", "rowHeight": 0.9, "colWidth": 0.95},
        ),
        Panel(
            "PSI and limits",
            "timeseries",
            [(psi, "{{feature}}"), (limit, "{{feature}} limit")],
            "Limits follow from the false-alarm budget and the version's reference",
            overrides=[dashed(".* limit")],
        ),
        Panel(
            "Detectors",
            "state-timeline",
            [
                (
                    f"max by (detector, state) ({of('mlops_ray_detector_state')}) > 0",
                    "{{detector}}: {{state}}",
                )
            ],
            "uncalibrated: the reference is too short for a limit; silent: too few rows or labels",
            options={"showValue": "never"},
        ),
    ]


def quality(project: Project) -> list[Panel]:
    """Realised and estimated loss."""
    main, loss = MAIN[project.task], LOSS[project.task]
    chosen, horizon = f'metric="{main}"', duration(project.monitoring.label_horizon_s)
    ends = [
        (newest(f"mlops_ray_estimate{end}", "method", chosen), f"{{{{method}}}} {word}")
        for end, word in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    ]
    return [
        Panel(
            f"{main}: realised and estimated",
            "timeseries",
            [
                (newest(f"mlops_ray_{loss}"), f"realised {loss}"),
                (newest(f"mlops_ray_{loss}_limit"), f"limit of {loss}"),
                *ends,
            ],
            "Estimates are of the newest window, in 95 % of the windows the realised value lies in their interval; "
            f"realised is the newest window older than the label horizon of {horizon}",
            width=16,
            height=10,
            overrides=[dashed("limit.*"), *(band(method) for method in ("direct", "weighted"))],
        ),
        Panel(
            "All estimated metrics",
            "table",
            [(newest("mlops_ray_estimate", "metric, method"), "")],
            "Of the newest window, without labels",
            width=8,
            height=10,
            instant=True,
            form="table",
        ),
        Panel(
            "Estimate less realised",
            "timeseries",
            [(newest("mlops_ray_estimate_error", "metric, method"), "{{metric}} {{method}}")],
            "Of the newest mature window",
        ),
        Panel(
            "Trust that estimates have earned",
            "timeseries",
            [(newest("mlops_ray_estimate_trust", "method"), "{{method}}")],
            "Share of the last windows whose realised value lay in the interval, less two windows of doubt",
            unit="percentunit",
            defaults={"min": 0, "max": 1},
        ),
    ]
