"""One panel of a Grafana dashboard, and the queries and lines that panels are made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = 'project="$project"'
"""Matcher of the project that the dashboard's variable names."""


@dataclass(frozen=True)
class Panel:
    """One panel. queries: (PromQL, legend). width, height: in Grafana's grid. custom: fieldConfig.defaults.custom."""

    title: str
    kind: str
    queries: Sequence[tuple[str, str]]
    about: str
    unit: str = "short"
    width: int = 12
    height: int = 8
    instant: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Mapping[str, Any]] = ()
    form: str = "time_series"


def of(metric: str, more: str = "") -> str:
    """Selector of the project's series."""
    return f"{metric}{{{OURS}{', ' + more if more else ''}}}"


def newest(metric: str, by: str = "project", more: str = "") -> str:
    """A gauge without the labels of the scrape, see `promql.newest`."""
    return f"max by ({by}) ({of(metric, more)})"


def rate(metric: str, by: str, span: str) -> str:
    """How fast a counter grows, per second."""
    return f"sum by ({by}) (rate({of(metric)}[{span}]))"


def dashed(series: str) -> dict[str, Any]:
    """Lines of limits. series: a regular expression of their whole legends."""
    return _drawn(series, [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}])


def dotted(series: str) -> dict[str, Any]:
    """Lines of an interval's ends."""
    return _drawn(series, [{"id": "custom.lineStyle", "value": {"fill": "dot", "dash": [1, 5]}}])


def band(method: str) -> dict[str, Any]:
    """The interval of an estimate as an area."""
    return _drawn(
        f"{method} high",
        [{"id": "custom.fillBelowTo", "value": f"{method} low"}, {"id": "custom.fillOpacity", "value": 15}],
    )


def _drawn(series: str, properties: list[dict[str, Any]]) -> dict[str, Any]:
    return {"matcher": {"id": "byRegexp", "options": f"/^{series}$/"}, "properties": properties}
