"""The verbs of `mlops-ray rollout`: from project files to a JSON-friendly result. None needs the cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mlops_ray.texts import reason
from mlops_ray.verbs import Env, Paths, known_store, load
from mlops_ray.verbs.subjects import orderer, proposer


def start(
    paths: Paths, env: Env, version: int, why: str, *, beside: Sequence[int] = (), supersede: bool = False
) -> dict[str, Any]:
    """Start a rollout of a registered version, and of those `beside` it: see `steering.start`.

    Raises: also OrderRefused for a `why` that is no reason."""
    from mlops_ray.rollout import steering

    why = reason(why)
    project = load(paths, env).project
    store = known_store(project)
    who = proposer(project, store, env)
    versions = (version, *beside)
    return steering.start(store, project, versions, supersede=supersede, who=who, why=why, machine_now=time.time())


def move(
    paths: Paths,
    env: Env,
    order: str,
    why: str,
    *,
    of: str | None = None,
    to: int | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    """Give an operator's order to the rollout, or to the one with the id `of` and no other: see `steering.move`.

    Raises: also OrderRefused for a `why` that is no reason."""
    from mlops_ray.rollout import steering
    from mlops_ray.rollout.canary import Move

    why = reason(why)
    project = load(paths, env).project
    store = known_store(project)
    who = (proposer if order == Move.PROMOTE else orderer)(project, store, env)
    given, now = Move(order), time.time()
    return steering.move(
        store, project, given, of=of or steering.OPEN, to=to, version=version, who=who, why=why, machine_now=now
    )


def status(paths: Paths, env: Env, *, of: str | None = None) -> dict[str, Any]:
    """The open rollout (or the one with the id `of`, which may have ended): see `steering.status`."""
    from mlops_ray.rollout import steering

    project = load(paths, env).project
    return steering.status(known_store(project), project, of=of or steering.OPEN, machine_now=time.time())


def history(paths: Paths, env: Env) -> dict[str, Any]:
    """All rollouts of the project, newest first."""
    from mlops_ray.rollout import steering

    project = load(paths, env).project
    return steering.history(known_store(project), project)


def explain(paths: Paths, env: Env, which: str | None = None, *, entry: int | None = None) -> dict[str, Any]:
    """What the ledger keeps of a rollout's decisions: see `steering.explain`."""
    from mlops_ray.rollout import steering

    project = load(paths, env).project
    return steering.explain(known_store(project), project, which, entry=entry)
