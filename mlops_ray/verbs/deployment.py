"""Bring a project's applications and actors to a cluster, and take them away again."""

from __future__ import annotations

import functools
import time
from typing import Any

from mlops_ray.cluster.on_ray import end_actor, ensure_actor
from mlops_ray.config import Project
from mlops_ray.monitoring.on_ray import MonitorActor, monitor_name
from mlops_ray.retraining.on_ray import brain
from mlops_ray.rollout.on_ray import ControllerActor, controller_name
from mlops_ray.rollout.orders import first_version
from mlops_ray.serving.log.on_collectors import end_collectors, ensure_collectors
from mlops_ray.serving.on_apply import apply
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
    """Monitor, controller and a collector on each node run as detached actors; process ids by name.

    The controller goes on seeing to the collectors, as nodes come and collectors hang.
    """
    name = project.project
    make_brain = functools.partial(brain, dashboard=dashboard)
    monitor = monitor_name(name)
    actors: dict[str, tuple[Any, tuple[Any, ...]]] = {
        monitor: (MonitorActor, (make_brain,)),
        controller_name(name): (ControllerActor, (dashboard,)),
    }
    found = {actor: ensure_actor(kind, actor, text, *args) for actor, (kind, args) in actors.items()}
    return found | ensure_collectors(text, project, monitor)


def withdraw(project: Project, store: Store, dashboard: str) -> None:
    """End the project's actors and applications on a cluster that others use too; its state stays."""
    end_actor(controller_name(project.project))  # first: it would start the collectors again
    end_collectors(project.project)
    end_actor(monitor_name(project.project))
    store.run(lambda tx: tx.forget_project(project.project))
    apply(store, dashboard, holder="withdraw", withdrawn=frozenset({project.project}))
