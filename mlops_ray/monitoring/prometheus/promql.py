"""Pieces of PromQL that rules and panels share. Pure."""

from __future__ import annotations

from mlops_ray.config import Project

QUANTILES = (0.5, 0.95, 0.99)
"""Of the time in the predictor that are recorded and drawn."""


def duration(seconds: float) -> str:
    """As PromQL writes a span, to the second: the largest unit that divides it.

    >>> duration(300), duration(7 * 86400), duration(90.4), duration(0)
    ('5m', '7d', '90s', '0s')
    """
    whole = round(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def over(project: Project) -> str:
    """Span of rates: four of the collectors' longest pauses, so that each has some pushes; at least 5 minutes."""
    return duration(max(300.0, 4 * project.capture.commit_idle_s))


def selected(metric: str, project: Project, more: str = "") -> str:
    """Selector of a project's series."""
    return f'{metric}{{project="{project.project}"{", " + more if more else ""}}}'


def newest(project: Project, metric: str, by: str = "", more: str = "") -> str:
    """The gauge without the labels of the scrape: a monitor that moved to another node is there twice for a while."""
    return f"max by (project{', ' + by if by else ''}) ({selected(metric, project, more)})"
