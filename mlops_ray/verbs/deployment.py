"""Bring a project's applications and actors to a cluster, and take them away again."""

from __future__ import annotations

import functools
import time
from typing import Any

from mlops_ray.cluster.on_ray import end_actor, ensure_actor
from mlops_ray.config import Project
from mlops_ray.monitoring.on_ray import MonitorActor, monitor_name
from mlops_ray.retraining.on_ray import brain
from mlops_ray.rollout.on_ray import ControllerActor, controller_name, first_version
from mlops_ray.serving.on_apply import apply
from mlops_ray.serving.on_collector import CollectorActor, collector_name
from mlops_ray.state import Store


def ensure_served(text: str, project: Project, store: Store, dashboard: str) -> int | None:
    """Serve agrees with the state database; a project without a stable version gets the newest one registered.

    Returns: the stable version, or None when no version is registered.
    """
    store.run(lambda tx: tx.save_project(project.project, text, time.time()))
    stable = first_version(store, project, now=time.time())
    if stable is not None:
        apply(store, dashboard, holder="deploy")
    return stable


def ensure_actors(text: str, project: Project, dashboard: str) -> dict[str, int]:
    """Monitor, collector and controller run as detached actors; process ids by name."""
    name = project.project
    make_brain = functools.partial(brain, dashboard=dashboard)
    monitor = monitor_name(name)
    actors: dict[str, tuple[Any, tuple[Any, ...]]] = {
        monitor: (MonitorActor, (make_brain,)),
        collector_name(name): (CollectorActor, (monitor,)),
        controller_name(name): (ControllerActor, (dashboard,)),
    }
    return {actor: ensure_actor(kind, actor, text, *args) for actor, (kind, args) in actors.items()}


def withdraw(project: Project, store: Store, dashboard: str) -> None:
    """End the project's actors and applications on a cluster that others use too; its state stays."""
    for name in (controller_name, collector_name, monitor_name):
        end_actor(name(project.project))
    store.run(lambda tx: tx.forget_project(project.project))
    apply(store, dashboard, holder="withdraw", withdrawn=frozenset({project.project}))
