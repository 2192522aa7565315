"""`apply`: the one writer of Serve's configuration, and what Serve and its replicas say of themselves."""

from __future__ import annotations

import functools
import logging
import os
import time
import uuid
from typing import Any

import ray
import requests
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from mlops_ray.config import Project, parse_portable
from mlops_ray.errors import BackendUnavailable, LeaseLost
from mlops_ray.serving import applications
from mlops_ray.serving.service import Wanted
from mlops_ray.state import Lease, Store

_log = logging.getLogger(__name__)
APPLY_LEASE = "serve-configuration"
# Renewed while it is used: a process killed under it holds up the next one for so long.
_APPLY_LEASE_S = 10.0
# How long a loop that comes again waits for Serve: it has orders to look out for.
_TRY_S = 1.0
# How long a process that overwrote something tries to put that right.
_HEAL_S = 30.0
# States of a replica that lives, or is about to.
_ALIVE = ("STARTING", "UPDATING", "RECOVERING", "RUNNING")


def apply(
    store: Store,
    dashboard: str,
    *,
    holder: str,
    timeout_s: float = 90.0,
    withdrawn: frozenset[str] = frozenset(),
    project: str | None = None,
) -> None:
    """Make Serve agree with the state database, for all projects in it; returns when it does.

    What is wanted reaches live replicas by broadcast first, which needs nobody's leave: each carries its order, and
    replicas ignore an older one. Then, as the one writer of Serve's configuration, under the lease: put where it
    differs, broadcast, and look, until every application runs and every replica has what is wanted by then. Calling it
    again changes nothing. Applications of others are put back as they stand, because Serve deletes what a PUT does not
    name; those of `withdrawn` projects are left out. Where nothing is to be put, no lease is taken.
    Args: project: tell and wait for its replicas only: one whose replicas hang holds up nobody else.
    Raises: LeaseLost when another process is at it; BackendUnavailable when Serve does not get there in time.
    """
    deadline = time.monotonic() + timeout_s
    served = _served(store)
    for one in _of(project, served):
        replica_status(one.project.project, one.wanted)
    there = _details(dashboard)
    config = applications.render(served, there, withdrawn)
    if not applications.differs(config, there) and _disagreement(_states(there), _of(project, served)) is None:
        return
    who = f"{holder}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    lease = _lease(store, who, deadline)
    try:
        while trouble := _towards(store, dashboard, lease, withdrawn, project):
            if time.monotonic() > deadline:
                raise BackendUnavailable("Ray Serve", f"after {timeout_s:g} s: {trouble}")
            time.sleep(0.1)  # Serve has no event to wait for: its status is polled
            lease = store.renew(lease, _APPLY_LEASE_S, time.time())
    except _Overtaken:
        # Stopped for long between its last look at the lease and the PUT: Serve may have an old configuration from it.
        _log.warning("%s wrote after its lease had ended; it writes again what is wanted now", who)
        apply(store, dashboard, holder=holder, timeout_s=max(timeout_s, _HEAL_S), withdrawn=withdrawn, project=project)
    finally:
        store.release(lease)


class _Overtaken(Exception):
    """Another holder had the lease when this one's PUT was through."""


def _served(store: Store) -> list[applications.Served]:
    with store.read() as tx:
        return [
            applications.Served(_parsed(row.config_text), row.config_text, Wanted.of(wanted))
            for row in tx.projects()
            if (wanted := tx.serving(row.name)) is not None
        ]


def _of(project: str | None, served: list[applications.Served]) -> list[applications.Served]:
    return [one for one in served if project in (None, one.project.project)]


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Project:
    return parse_portable(text, env=os.environ)


def _towards(store: Store, dashboard: str, lease: Lease, withdrawn: frozenset[str], project: str | None) -> str | None:
    """One step towards what the state database wants now; what is still missing, or None.

    Raises: LeaseLost, _Overtaken, BackendUnavailable."""
    served, there = _served(store), _details(dashboard)
    config = applications.render(served, there, withdrawn)
    if applications.differs(config, there):
        store.renew(lease, _APPLY_LEASE_S, time.time())  # whoever has slept through its lease stops here
        _put(dashboard, config)
        try:
            store.renew(lease, _APPLY_LEASE_S, time.time())
        except LeaseLost as exc:
            raise _Overtaken from exc
        there = _details(dashboard)
    return _disagreement(_states(there), _of(project, served))


def _lease(store: Store, holder: str, deadline: float) -> Lease:
    """The right to write Serve's configuration, waited for until `deadline` (monotonic). Raises: LeaseLost."""
    while True:
        try:
            return store.acquire(APPLY_LEASE, holder, _APPLY_LEASE_S, time.time())
        except LeaseLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # a lease that falls free tells nobody


def try_apply(store: Store, dashboard: str, *, holder: str, project: str) -> str | None:
    """`apply` of a project, for a loop that comes again soon: what is in the way, or None when Serve agrees."""
    try:
        apply(store, dashboard, holder=holder, timeout_s=_TRY_S, project=project)
    except (LeaseLost, BackendUnavailable) as exc:
        return str(exc)
    return None


def replica_status(project: str, wanted: Wanted) -> list[dict[str, Any]]:
    """Send `wanted` to every live replica of the ingress; what each has now. Empty when there is none."""
    try:
        return list(
            _handle(project, _session())
            .broadcast("want", wanted.spec(), wanted.sequence, wanted.fence)
            .results(timeout_s=5)
        )
    except Exception as exc:  # noqa: BLE001 - Serve raises many kinds while replicas come and go; the caller asks again
        _log.info("ingress of %s does not answer yet: %s", project, exc)
        for stale in [key for key in _handles if key[0] == project]:
            del _handles[stale]
        return []


_handles: dict[tuple[str, str], Any] = {}


def _handle(project: str, session: str) -> Any:
    """The ingress's handle; making one costs a router and a long poll, so a process keeps it for its session."""
    if (project, session) not in _handles:
        _handles[project, session] = serve.get_app_handle(project)
    return _handles[project, session]


def _session() -> str:
    """Names this process's connection to its cluster: handles end with it (`cluster.connected`)."""
    context = ray.get_runtime_context()  # a cluster numbers its jobs from 1
    return f"{context.get_session_name()}/{context.get_job_id()}"


def application_states(dashboard: str) -> dict[str, tuple[str, str]]:
    """Status and message of each application that Serve knows.

    Raises: BackendUnavailable when the dashboard does not answer."""
    return _states(_details(dashboard))


def _states(details: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (a["status"], a["message"]) for name, a in details["applications"].items()}


def live_replicas(dashboard: str, application: str) -> frozenset[str]:
    """Ids of an application's replicas that live or are being started. Raises: BackendUnavailable."""
    found = _details(dashboard)["applications"].get(application, {})
    replicas = [r for d in found.get("deployments", {}).values() for r in d["replicas"]]
    return frozenset(r["replica_id"] for r in replicas if r["state"] in _ALIVE)


def _disagreement(states: dict[str, tuple[str, str]], served: list[applications.Served]) -> str | None:
    for one in served:
        name, wanted, serving = one.project.project, one.wanted, one.project.serving
        status, message = states.get(name, ("absent", ""))
        if status != "RUNNING":
            return f"application {name} is {status} {_last_line(message)}"
        replicas, least = replica_status(name, wanted), serving.replicas
        if serving.autoscaling is not None:
            least = serving.autoscaling.min_replicas
        if len(replicas) < least:
            return f"{len(replicas)} replicas of {name} answer, {least} are wanted"
        if any((r["fence"], r["sequence"]) < wanted.order for r in replicas):
            return f"a replica of {name} has not heard of configuration {wanted.sequence}"
        for version in wanted.on_trial:
            canary = applications.version_application(name, version)
            # A canary that cannot start is the rollout's business and must not hold up the others.
            if states.get(canary, ("absent", ""))[0] not in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
                return f"application {canary} is {states.get(canary, ('absent', ''))[0]}"
    return None


def _last_line(message: str) -> str:
    """The last line that says something, in brackets: Ray's messages may end with a line of one full stop."""
    lines = [line.strip() for line in message.splitlines() if any(map(str.isalnum, line))]
    return f"({lines[-1]})" if lines else ""


@functools.cache
def _client(dashboard: str) -> ServeSubmissionClient:
    """Making one asks the dashboard for its version, so a process keeps it."""
    return ServeSubmissionClient(dashboard)


def _details(dashboard: str) -> dict[str, Any]:
    try:
        return dict(_client(dashboard).get_serve_details())
    except (requests.RequestException, ConnectionError, RuntimeError) as exc:
        raise BackendUnavailable(f"Ray dashboard {dashboard}", f"{_last_line(str(exc))}; is the head node up?") from exc


def _put(dashboard: str, config: dict[str, Any]) -> None:
    try:
        _client(dashboard).deploy_applications(config)
    except (requests.RequestException, ConnectionError, RuntimeError) as exc:
        raise BackendUnavailable("Ray Serve", f"refused its configuration {_last_line(str(exc))}") from exc
