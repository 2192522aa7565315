"""What Prometheus and Grafana are given: both are made from the project file alone."""

from __future__ import annotations

from typing import Any

from mlops_ray.verbs import Env, Paths, load


def rules(paths: Paths, env: Env) -> dict[str, Any]:
    """Recording and alerting rules as a document. Raises: ConfigError."""
    from mlops_ray.monitoring.prometheus.rules import rules as made

    return made(load(paths, env).project, " ".join(f"-c {path}" for path in paths))


def dashboard(paths: Paths, env: Env) -> dict[str, Any]:
    """A Grafana dashboard. Raises: ConfigError."""
    from mlops_ray.monitoring.prometheus.grafana import dashboard as made

    return made(load(paths, env).project)
