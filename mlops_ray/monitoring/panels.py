"""What a Grafana dashboard shows of a project: rows of panels with their queries. Pure; `grafana` lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlops_ray.config import Project
from mlops_ray.monitoring.judgement import LOSS
from mlops_ray.monitoring.panel import Panel, band, dashed, dotted, newest, of, rate
from mlops_ray.monitoring.promql import QUANTILES, duration, over
from mlops_ray.monitoring.record import MAIN

_BLUES = {"mode": "scheme", "scheme": "Blues", "steps": 64, "fill": "dark-blue", "exponent": 0.5, "reverse": False}
_RED_ABOVE = {"mode": "absolute", "steps": [{"color": "green", "value": None}, {"color": "red", "value": 1}]}


def rows(project: Project) -> Iterator[tuple[str, list[Panel]]]:
    """Titles of rows with their panels, from top to bottom."""
    span = over(project)
    yield "At a glance", _glance(span)
    yield "Traffic", _traffic(span)
    yield "Errors", _errors(span)
    yield "Time in the predictor", _latency(span)
    yield "Drift", _drift(project)
    yield "Quality", _quality(project)
    yield "Labels", _labels(project, span)
    yield "Rollout", _rollout()
    yield "Retraining and the loop itself", _loop(project)


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


def _traffic(span: str) -> list[Panel]:
    stacked = {"stacking": {"mode": "normal", "group": "A"}, "fillOpacity": 40}
    return [
        Panel(
            "Rows by version",
            "timeseries",
            [(rate("mlops_ray_rows_total", "version", span), "v{{version}}")],
            "Rows whose answer was this version's",
            unit="cps",
            custom=stacked,
        ),
        Panel(
            "Share of the canary",
            "timeseries",
            [(newest("mlops_ray_canary_share"), "of the keys")],
            "What the plan assigns, at its present step",
            unit="percentunit",
            width=6,
            defaults={"min": 0, "max": 1},
            custom={"lineInterpolation": "stepAfter", "fillOpacity": 20},
        ),
        Panel(
            "Rows in all",
            "bargauge",
            [(newest("mlops_ray_rows_total", "version"), "v{{version}}")],
            "Since the project began; counts outlive every process",
            width=6,
            instant=True,
        ),
    ]


def _errors(span: str) -> list[Panel]:
    tried = rate("mlops_ray_canary_rows_total", "version", span)
    failed = rate("mlops_ray_canary_failures_total", "version", span)
    return [
        Panel(
            "Rows that the canary failed",
            "timeseries",
            [(f"({failed} or 0 * {tried}) / ({tried} > 0)", "v{{version}}")],
            "Share of the rows that it was asked; stable answered them",
            unit="percentunit",
            width=8,
            defaults={"min": 0},
        ),
        Panel(
            "Why it failed them",
            "timeseries",
            [(rate("mlops_ray_canary_failures_total", "version, reason", span), "v{{version}} {{reason}}")],
            "deadline: too late; error: it raised; nonsense: no probability; open: not asked, for it kept failing",
            unit="cps",
            width=8,
        ),
        Panel(
            "Rows that were not captured",
            "timeseries",
            [(rate("mlops_ray_uncaptured_rows_total", "reason", span), "{{reason}}")],
            "sampled: as configured; disk, overflow: the log lacks them; shadow: copies that a shadow never saw",
            unit="cps",
            width=8,
        ),
    ]


def _latency(span: str) -> list[Panel]:
    buckets = rate("mlops_ray_score_seconds_bucket", "version, le", span)
    total, count = (rate(f"mlops_ray_score_seconds_{what}", "version", span) for what in ("sum", "count"))
    quantiles = [(f"histogram_quantile({q}, {buckets})", f"v{{{{version}}}} p{q * 100:g}") for q in QUANTILES]
    return [
        Panel(
            "Time of a row, by version",
            "timeseries",
            [*quantiles, (f"{total} / ({count} > 0)", "v{{version}} mean")],
            "Scoring alone: not the network, not the queue, not the capture",
            unit="s",
            custom={"scaleDistribution": {"type": "log", "log": 10}},
        ),
        Panel(
            "Time of a row, all versions",
            "heatmap",
            [(rate("mlops_ray_score_seconds_bucket", "le", span), "{{le}}")],
            "Rows a second in each span",
            unit="cps",
            form="heatmap",
            options={"calculate": False, "yAxis": {"unit": "s"}, "color": _BLUES},
        ),
    ]


def _drift(project: Project) -> list[Panel]:
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


def _quality(project: Project) -> list[Panel]:
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


def _labels(project: Project, span: str) -> list[Panel]:
    lag = f"{newest('mlops_ray_decision_time_seconds')} - {newest('mlops_ray_label_seconds')}"
    horizon = duration(project.monitoring.label_horizon_s)
    return [
        Panel(
            "Labels that arrive",
            "timeseries",
            [(rate("mlops_ray_labels_total", "project", span), "labels")],
            "Corrections count too",
            unit="cps",
            width=8,
        ),
        Panel(
            "Age of the newest label",
            "timeseries",
            [(lag, "age")],
            f"In decision time; the horizon is {horizon}",
            unit="s",
            width=8,
        ),
        Panel(
            "Labelled rows of mature windows",
            "timeseries",
            [(newest("mlops_ray_label_coverage"), "coverage")],
            "Realised quality speaks for these rows",
            unit="percentunit",
            width=8,
            defaults={"min": 0, "max": 1},
        ),
    ]


def _rollout() -> list[Panel]:
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


def _loop(project: Project) -> list[Panel]:
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
