"""Bring a project's applications and actors to a cluster, and take them away again."""

from __future__ import annotations

import functools
import time

from mlops_ray.cluster.on_ray import end_actor, ensure_actor
from mlops_ray.config import Project, portable_storage
from mlops_ray.monitoring.on_ray import MonitorActor, monitor_name
from mlops_ray.retraining.on_ray import brain
from mlops_ray.rollout.on_ray import ControllerActor, controller_name, former_controller_name, let_go
from mlops_ray.rollout.orders import first_version
from mlops_ray.serving.log.on_collectors import end_collectors, ensure_collectors
from mlops_ray.serving.on_apply import apply
from mlops_ray.state import Store

# Calls that the controller takes at once: looks at several projects may be asked for, and pings must be answered.
_CONTROLLER_CALLS = 16


def ensure_served(text: str, project: Project, store: Store, dashboard: str) -> int | None:
    """Serve agrees with the state database; a project without a stable version gets the newest one registered.

    Returns: the stable version, or None when no version is registered.
    """
    store.run(lambda tx: tx.save_project(project.project, text, time.time()))
    stable = first_version(store, project, now=time.time())
    if stable is not None:
        apply(store, dashboard, holder="deploy")
    return stable


def ensure_actors(text: str, project: Project, store: Store, dashboard: str) -> dict[str, int]:
    """Monitor, controller and a collector on each node run as detached actors; process ids by name.

    The controller is that of the state database: it finds the project there, and goes on seeing to its collectors, as
    nodes come and collectors hang.
    """
    name = project.project
    end_actor(former_controller_name(name))
    make_brain = functools.partial(brain, dashboard=dashboard)
    monitor, controller = monitor_name(name), controller_name(store)
    found = {
        monitor: ensure_actor(MonitorActor, monitor, text, make_brain),
        controller: ensure_actor(
            ControllerActor, controller, portable_storage(text), dashboard, concurrency=_CONTROLLER_CALLS
        ),
    }
    return found | ensure_collectors(text, project, monitor)


def withdraw(project: Project, store: Store, dashboard: str) -> None:
    """End the project's actors and applications on a cluster that others use too; its state stays."""
    name = project.project
    store.run(lambda tx: tx.forget_project(name))
    end_actor(former_controller_name(name))
    let_go(store, name)  # before the collectors: it would start them again
    end_collectors(name)
    end_actor(monitor_name(name))
    apply(store, dashboard, holder="withdraw", withdrawn=frozenset({name}))
