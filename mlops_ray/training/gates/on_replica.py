"""The packaged version in a process of its own, as serving runs it: a fresh Ray worker, or a replica of Ray Serve.

Both run the same probe, which is what a serving replica does with a version: fetch, load by hash, replay the golden
requests, answer one row at a time. A candidate may crash or hang there: that is its own end and not the run's.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException

from mlops_ray.config import InfrastructureGate
from mlops_ray.errors import MlopsRayError
from mlops_ray.training.artifact import lock as environments
from mlops_ray.training.artifact import model
from mlops_ray.training.gates.environment import environment
from mlops_ray.training.gates.verdict import CheckResult, Verdict

TIMEOUT_S = 180.0
"""From asking to the answer: a worker starts in a few seconds, a replica on a busy machine in up to a minute."""
_REQUESTS, _MAX_S, _WARM = 2_000, 2.0, 20
"""Timed requests, the seconds that they may take altogether, and untimed ones before. A p99 of 2,000 has 20 beyond."""
_MIB = 1024**2
_CRASHES = (RayActorError, WorkerCrashedError, OutOfMemoryError)
_DELETE_S = 30.0


@dataclass(frozen=True)
class Probed:
    """What a process saw of a version. Times in milliseconds, of single rows; size in bytes, of all files."""

    load_ms: float
    gap: float
    golden: int
    p50_ms: float
    p99_ms: float
    requests: int
    n_bytes: int
    running: Mapping[str, str]


def infrastructure(
    gate: InfrastructureGate,
    address: str,
    sha256: str,
    lock: Mapping[str, str] | None,
    engine: str,
    *,
    trusted: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> tuple[CheckResult, ...]:
    """Load the artifact at `address` elsewhere and judge what it does: environment, answers, latency, size.

    Ray must be initialised. Needs no free CPU, for a training run may hold them all.
    Args: lock: the versions that the artifact's manifest records; trusted: `features.trusted_types`.
    Returns: four checks, or the failed `infrastructure.loads` alone. Whatever the candidate does there is a failed
        check; where Ray itself does not answer, it is an inconclusive one.
    """
    names, place = tuple(lock or ()), "a replica of Ray Serve" if gate.replica else "a fresh worker"
    began = time.perf_counter()
    try:
        asked = _in_replica if gate.replica else _in_worker
        found = asked((address, sha256, tuple(trusted), names), timeout_s)
    except (GetTimeoutError, TimeoutError):
        return (_lost(Verdict.FAIL, f"does not answer from {place} within {timeout_s:g} s"),)
    except _CRASHES as exc:
        return (_lost(Verdict.FAIL, f"ends its process in {place}: {_first_line(exc)}"),)
    except RayTaskError as exc:
        return (_lost(Verdict.FAIL, f"does not load in {place}: {_first_line(exc.cause or exc)}"),)
    except MlopsRayError as exc:
        return (_lost(Verdict.FAIL, f"does not load in {place}: {_first_line(exc)}"),)
    except (RayError, RayServeException) as exc:
        return (_lost(Verdict.INCONCLUSIVE, f"{place} could not be had: {_first_line(exc)}"),)
    return _judged(gate, found, lock, engine, place, time.perf_counter() - began)


def _judged(
    gate: InfrastructureGate, found: Probed, lock: Mapping[str, str] | None, engine: str, place: str, seconds: float
) -> tuple[CheckResult, ...]:
    loads = CheckResult(
        "infrastructure.loads",
        Verdict.PASS,
        f"loads in {place} in {found.load_ms:.0f} ms, and repeats {found.golden} golden answers within {found.gap:.1g}",
        {"load_ms": found.load_ms, "gap": found.gap, "n_golden": found.golden, "place": place, "seconds": seconds},
    )
    p99, size = found.p99_ms, found.n_bytes / _MIB
    evidence = {"p50_ms": found.p50_ms, "p99_ms": p99, "max_p99_ms": gate.max_p99_ms, "n": found.requests}
    says = f"p50 {found.p50_ms:.3g} ms, p99 {p99:.3g} ms of {found.requests:,} one-row requests"
    return (
        environment(lock, found.running, engine),
        loads,
        _at_most("infrastructure.latency", p99, gate.max_p99_ms, "ms", says, evidence),
        _at_most(
            "infrastructure.size", size, gate.max_mb, "MiB", f"{size:.2f} MiB", {"mb": size, "max_mb": gate.max_mb}
        ),
    )


def _at_most(
    name: str, value: float, most: float | None, unit: str, says: str, evidence: Mapping[str, Any]
) -> CheckResult:
    if most is None:
        return CheckResult(name, Verdict.PASS, f"{says}; no limit is asked", evidence)
    verdict = Verdict.PASS if value <= most else Verdict.FAIL
    return CheckResult(name, verdict, f"{says}; at most {most:g} {unit} is asked", evidence)


def _lost(verdict: Verdict, says: str) -> CheckResult:
    return CheckResult("infrastructure.loads", verdict, f"the version {says}")


def _first_line(exc: BaseException) -> str:
    said = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {said[0][:300]}" if said else type(exc).__name__


# --- the probe -----------------------------------------------------------------------------------------------------

_Asked = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Address, hash, trusted types, names of the lock."""


def probe(asked: _Asked) -> Probed:
    """What a replica does with a version, timed; in this process.

    Raises: ArtifactRefused when it does not load, or answers other than when it was packaged."""
    address, sha256, trusted, names = asked
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        folder = model.fetch(address, Path(cache), sha256)
        found = model.load(folder, sha256, trusted=trusted)
        load_ms = 1e3 * (time.perf_counter() - began)
        gap = found.replay()
        n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        golden = len(found.golden.scores)
        rows = [{name: values[i : i + 1] for name, values in found.golden.columns.items()} for i in range(golden)]
        took = list(_timed(found, rows))
    p50, p99 = (float(q) for q in np.quantile(took, [0.5, 0.99], method="higher"))
    return Probed(load_ms, gap, golden, p50, p99, len(took), n_bytes, environments.environment_lock(names))


def _timed(found: model.Model, rows: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Milliseconds of one request after the other."""
    ends = time.perf_counter() + _MAX_S
    for i in range(_WARM + _REQUESTS):
        began = time.perf_counter()
        if began > ends and i > 2 * _WARM:
            return
        found.score(rows[i % len(rows)])
        if i >= _WARM:
            yield 1e3 * (time.perf_counter() - began)


def _fresh() -> dict[str, Any]:
    """An environment that no running worker has: a fresh process, whose imports and memory are its own."""
    return {"env_vars": {"MLOPS_RAY_PROBE": uuid.uuid4().hex}}


def _in_worker(asked: _Asked, timeout_s: float) -> Probed:
    task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(probe)
    answer = task.options(runtime_env=_fresh()).remote(asked)
    try:
        found: Probed = ray.get(answer, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        raise
    return found


# --- a replica -----------------------------------------------------------------------------------------------------


class _Probe:
    """The deployment. It loads when asked, for Serve restarts a replica that dies while it starts, again and again."""

    def probe(self, asked: _Asked) -> Probed:
        return probe(asked)


def _in_replica(asked: _Asked, timeout_s: float) -> Probed:
    deployment = serve.deployment(
        name="probe",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "runtime_env": _fresh()},
        graceful_shutdown_timeout_s=0.5,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
    )(_Probe)
    with _application(deployment.bind()) as handle:
        found: Probed = handle.probe.remote(asked).result(timeout_s=timeout_s)
    return found


@contextmanager
def _application(bound: serve.Application) -> Iterator[Any]:
    """A handle of `bound` under a name of its own and without a route, deleted afterwards whatever happens.

    Other applications stay as they are. Where Serve does not run, it is started without a proxy, so that no port is
    taken, and ended again unless somebody else has deployed in the meantime."""
    ours = not _serve_runs()
    if ours:
        serve.start(proxy_location="Disabled")
    name = f"mlops-ray--gate-{uuid.uuid4().hex[:12]}"
    try:
        target = serve.RunTarget(target=bound, name=name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        yield handle
    finally:
        _delete(name)
        if ours and not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]  # Ray does not annotate it


def _serve_runs() -> bool:
    return any(actor["name"] == "SERVE_CONTROLLER_ACTOR" for actor in ray.util.list_named_actors(all_namespaces=True))


def _delete(name: str) -> None:
    """Delete the application, without waiting for longer than a hanging replica deserves."""
    serve.delete(name, _blocking=False)
    ends = time.monotonic() + _DELETE_S
    while name in serve.status().applications and time.monotonic() < ends:
        time.sleep(0.1)
