"""Panels about what is served: traffic, errors, time, and the labels that come back. Pure."""

from __future__ import annotations

from mlops_ray.config import Project
from mlops_ray.monitoring.prometheus.panel import Panel, newest, rate
from mlops_ray.monitoring.prometheus.promql import QUANTILES, duration

_BLUES = {"mode": "scheme", "scheme": "Blues", "steps": 64, "fill": "dark-blue", "exponent": 0.5, "reverse": False}


def traffic(span: str) -> list[Panel]:
    """Rows by version, and the canary's share."""
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


def errors(span: str) -> list[Panel]:
    """What the canary failed, and what was not captured."""
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


def latency(span: str) -> list[Panel]:
    """How long scoring takes."""
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


def labels(project: Project, span: str) -> list[Panel]:
    """How many labels come, and how late."""
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
