"""Start, join and end the Ray cluster of a project."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from mlops_ray.cluster import on_haproxy, processes
from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable

NAMESPACE = "mlops_ray"
# How long `ray start` may take; it takes five seconds on an idle machine.
_START_S = 120
# Ports of a cluster's replicas: as many as there can be of them on one machine, half of them for gRPC.
_REPLICA_PORTS = 200


@dataclass(frozen=True)
class Cluster:
    """A cluster of our own on this machine, as `up` wrote it down."""

    id: str
    address: str
    dashboard: str
    http: str
    temp_dir: str


# Read by Serve once, when a cluster starts.
_FAST = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
# Where `cluster.host` means every interface; HAProxy writes it so.
_ALL_INTERFACES = {"0.0.0.0": "*", "::": "[::]"}
# Ray takes a node address of 127.0.0.1 for a mistake and looks for one that others reach, unless it is told that there
# will be one node only. The switch is meant for macOS and Windows, where that is the default; with it the control
# store, node manager, workers and agents listen on loopback (ray#59852).
_ONE_NODE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def defaults(project: Project) -> dict[str, str]:
    """Settings of Ray Serve that the person who runs `up` may set otherwise, in the environment."""
    serving = project.serving
    return {
        # Serve's actor for HAProxy is checked every 10 s by default, and replaced after three failures. A dead HAProxy
        # fails at once; one that is merely slow has RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S (10 s) to answer.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A replica that hangs is out of rotation after two of these.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
        # While a replica takes a new configuration, Serve counts it out for a tenth of a second; HAProxy must not be
        # told, or it would send everybody to Serve's Python proxy meanwhile. A dead replica is known by its health.
        "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
        # A killed replica's requests in flight go to another: a prediction may be asked for twice, and with an
        # Idempotency-Key it is one. `response-timeout` is not among them, for it would load who is slow already.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # What waited in Serve's own proxy while no replica lived is handed on by two tasks for each replica, which by
        # default look for a free place every half second: four requests a second, however fast the replica is (Ray
        # 2.60, `RequestRouter.max_num_routing_tasks`). So: a hundred times a second.
        "RAY_SERVE_ROUTER_RETRY_INITIAL_BACKOFF_S": "0.005",
        "RAY_SERVE_ROUTER_RETRY_MAX_BACKOFF_S": "0.01",
        # The replica answers first, with 503; this is for one that hangs.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(serving.request_timeout_s) + 5),
        # One datagram for each request, parsed in Python: half a core at full load. The monitor counts for us.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{serving.drain_s:g}",
        # A replica that fails its health checks does not drain either: it would hold up what replaces it.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        "RAY_DEDUP_LOGS": "0",
    }


def serve_environment(project: Project, cluster_id: str, temp_dir: str) -> dict[str, str]:
    """Environment for every process of a cluster of our own: Serve behind HAProxy, on loopback, nothing shared.

    HAProxy and the throughput mode bring ten times the requests of Serve's Python proxy and are read once, when the
    cluster starts. HAProxy's files and side ports are this cluster's own, so that two clusters can live side by side.
    """
    proxy = f"{temp_dir}/ha"
    host = project.cluster.host
    # Replicas share ports (SO_REUSEPORT) with those of any other cluster on the machine that takes from the same range:
    # one cluster's requests would be answered 404 by the other's replicas.
    replicas = processes.free_range(_REPLICA_PORTS)
    return _ONE_NODE | {
        processes.MARK: cluster_id,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A token file that happens to lie in the home directory would switch token mode on for half of the processes.
        "RAY_AUTH_MODE": "disabled",
        **dict.fromkeys(_FAST, "1"),
        # Requests reach the ingress's application without Serve's own wrapper, two thirds of a request's cost.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mlops_ray.serving.on_ingress.middlewares",
        "RAY_SERVE_HAPROXY_BINARY_PATH": f"{proxy}/haproxy",
        on_haproxy.BINARY: haproxy_binary(),
        on_haproxy.FRONT: _ALL_INTERFACES.get(host, host),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replicas + _REPLICA_PORTS // 2 - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(replicas + _REPLICA_PORTS // 2),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(replicas + _REPLICA_PORTS - 1),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{proxy}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{proxy}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{proxy}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": proxy,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{proxy}/server-state",
        # By default datagrams to port 514, from a port on all interfaces. Nobody need listen here:
        # `socat -u UNIX-RECV:PATH -` shows the lines.
        "RAY_SERVE_HAPROXY_LOG_TARGET": f"{proxy}/log.sock",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(processes.free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(processes.free_port()),
        # Fixed ports by default, and bound so that two clusters would share them: requests would go astray.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(processes.free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(processes.free_port()),
    }


def haproxy_binary() -> str:
    """Path of HAProxy: the one that `RAY_SERVE_HAPROXY_BINARY_PATH` names, else the one that came with Ray Serve.

    Raises: BackendUnavailable when there is none."""
    from ray.serve._private.haproxy import get_haproxy_binary

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    try:
        return str(get_haproxy_binary())
    except FileNotFoundError as exc:
        raise BackendUnavailable("HAProxy", str(exc)) from exc


def _lay_out(temp_dir: str) -> None:
    """The folder of HAProxy's files, with the script that Serve starts in its place."""
    folder = Path(temp_dir, "ha")
    folder.mkdir()
    script = folder / "haproxy"
    command = shlex.join((sys.executable, "-I", "-S", on_haproxy.__file__))
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    script.chmod(0o755)


def start(project: Project) -> Cluster:
    """The running cluster of this project, started now if there is none.

    Raises: BackendUnavailable when a port is taken or Ray does not come up.
    """
    running = find(project)
    if running is not None:
        return running
    stop(project)  # what an `up` that was killed half-way has left
    wanted = project.cluster
    processes.end_orphans(wanted.http_port)
    processes.demand_free(wanted.http_port, wanted.host, "cluster.http_port")
    if wanted.grpc_port is not None:
        processes.demand_free(wanted.grpc_port, wanted.host, "cluster.grpc_port")
    processes.demand_free(project.monitoring.metrics_port, "127.0.0.1", "monitoring.metrics_port")
    cluster_id = uuid.uuid4().hex[:12]
    # HAProxy takes 97 characters for its socket's path, of which 68 are Ray's: a long TMPDIR would not do.
    temp_dir = tempfile.mkdtemp(prefix="mr-", dir="/tmp")
    _lay_out(temp_dir)
    port, dashboard_port, agent_port, client_port = (processes.free_port() for _ in range(4))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={temp_dir}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
        # Fixed by default too: beside another cluster the agent has no port, and no job can be submitted.
        *(
            f"--dashboard-agent-listen-port={agent_port}",
            f"--ray-client-server-port={client_port}",
        ),
        *(f"--num-cpus={wanted.num_cpus}", f"--object-store-memory={wanted.object_store_mb * 1024 * 1024}"),
    ]
    env = defaults(project)
    env |= {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")}
    env |= serve_environment(project, cluster_id, temp_dir)
    # A job's `python` is the one that started the cluster, whether or not its environment was activated.
    env["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), env.get("PATH", os.defpath)))
    cluster = Cluster(
        id=cluster_id,
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        http=f"http://{wanted.host}:{wanted.http_port}",
        temp_dir=temp_dir,
    )
    # Written down before anything runs: whoever is killed in between leaves nothing that the next one cannot end.
    _write_down(project, cluster, complete=False)
    try:
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_START_S)
        except subprocess.TimeoutExpired as exc:
            says = f"`ray start` did not end within {_START_S} s; is the machine too busy? Then run the command again"
            raise BackendUnavailable("the Ray cluster", says) from exc
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise BackendUnavailable("the Ray cluster", "`ray start` failed: " + " ".join(lines))
    except BaseException:
        stop(project)
        raise
    _write_down(project, cluster, complete=True)
    return cluster


def _write_down(project: Project, cluster: Cluster, *, complete: bool) -> None:
    record = _record(project)
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(json.dumps(asdict(cluster) | {"complete": complete}), encoding="utf-8")
    part.replace(record)


def _recorded(project: Project) -> tuple[Cluster, bool] | None:
    """The cluster that was written down, and whether its start came to its end."""
    record = _record(project)
    if project.storage.is_remote or not record.exists():
        return None
    body = json.loads(record.read_text(encoding="utf-8"))
    complete = body.pop("complete", True)
    return Cluster(**body), complete


def find(project: Project) -> Cluster | None:
    """The cluster that `start` wrote down for this project, if it still lives."""
    recorded = _recorded(project)
    if recorded is None or not recorded[1]:
        return None
    return recorded[0] if processes.lives(recorded[0].id) else None


def stop(project: Project) -> int:
    """End the cluster of our own, also one that was only half started; returns how many processes ended.

    Others are never touched. Its logs are kept below `storage.root`, in `logs/<cluster id>`.
    """
    recorded = _recorded(project)
    if recorded is None:
        return 0
    cluster, _ = recorded
    ended = processes.end(cluster.id)
    logs = Path(cluster.temp_dir, "session_latest", "logs")
    if logs.is_dir():
        shutil.copytree(logs, project.storage.path("logs", cluster.id), dirs_exist_ok=True)
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    _record(project).unlink(missing_ok=True)
    return ended


def address(project: Project) -> str | None:
    """GCS address to join: the environment's (inside a job), the project file's, or our own cluster's; else None."""
    given = os.environ.get("RAY_ADDRESS") or project.cluster.address
    if given:
        return given
    own = find(project)
    return own.address if own else None


@contextlib.contextmanager
def connected(project: Project | None, *, start_local: bool = False) -> Iterator[str]:
    """Joined to the project's cluster for the time of a `with` block; yields the dashboard's URL ("" if none).

    With `start_local`, a cluster that ends with the block is started when there is none to join; for work that belongs
    to no project (None), also without it.
    Raises: BackendUnavailable when there is no cluster, or it does not answer.
    """
    where = address(project) if project is not None else os.environ.get("RAY_ADDRESS")
    if where is None and project is not None and not start_local:
        raise BackendUnavailable(f"project {project.project!r}", "it is not up; start it with `mlops-ray up -c FILE`")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    common = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if where is None:
            num_cpus = project.cluster.num_cpus if project is not None else None  # None: one for each core
            with _one_node():
                context = ray.init(num_cpus=num_cpus, include_dashboard=False, **common)  # type: ignore[arg-type]
        else:
            with _one_node() if where.startswith("127.0.0.1:") else contextlib.nullcontext():
                context = ray.init(address=where, **common)  # type: ignore[arg-type]
    except (ConnectionError, RuntimeError) as exc:
        raise BackendUnavailable(f"Ray cluster {where}", f"{exc}; check `cluster.address` and the head node") from exc
    try:
        url = context.dashboard_url or ""
        yield url if not url or url.startswith("http") else f"http://{url}"
    finally:
        _end_handles()
        ray.shutdown()


def _end_handles() -> None:
    """End the routers of Serve's handles: in a thread of theirs they record metrics ten times a second for as long as
    the process lives, also into what `ray.shutdown` has torn down, and a process that ends meanwhile may crash."""
    context = sys.modules.get("ray.serve.context")  # not imported: no handles
    client = getattr(context, "_global_client", None)
    if client is not None:
        client.shutdown_cached_handles()


@contextlib.contextmanager
def _one_node() -> Iterator[None]:
    """`ray.init` starts its cluster on loopback, and finds one that is there; else it takes this machine's address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment when Ray was imported
    os.environ.update(_ONE_NODE)  # for the processes that Ray starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in _ONE_NODE:
            del os.environ[name]


def joins(project: Project) -> bool:
    """Whether the project lives on a cluster that others started, named by its file or (inside a job) by Ray."""
    return bool(os.environ.get("RAY_ADDRESS") or project.cluster.address)


def lacking() -> tuple[str, ...]:
    """Settings that make Serve fast and that the joined cluster was started without; asks one of its processes.

    Raises: BackendUnavailable when the cluster has no process that could say."""
    asked = ray.remote(num_cpus=0)(_lacking_here).remote()
    try:
        names: list[str] = ray.get(asked, timeout=60)
    except (ray.exceptions.RayError, TimeoutError) as exc:
        raise BackendUnavailable("the Ray cluster", str(exc).strip().splitlines()[-1]) from exc
    return tuple(names)


def _lacking_here() -> list[str]:
    from ray.serve._private import constants

    return [name for name in _FAST if not getattr(constants, name, False)]


def ensure_actor(kind: Any, name: str, text: str, *args: Any, concurrency: int = 4) -> int:
    """A detached actor `name` runs, made with this project file and arguments; its process id.

    One that was made with another project file is replaced: actors keep nothing that the state database does not have.

    Raises: BackendUnavailable when it does not start.
    """
    options = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "max_concurrency": concurrency}
    # The cluster's throughput mode gives handles no loop of their own, which suits replicas only.
    environment = {"env_vars": {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}}
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        made_with: Any = ray.get(ray.get_actor(name, NAMESPACE).text.remote(), timeout=30)
        if made_with != text:
            end_actor(name)
    actor = kind.options(name=name, runtime_env=environment, **options).remote(text, *args)
    try:
        pid = int(ray.get(actor.ping.remote(), timeout=60))
    except (ray.exceptions.RayError, TimeoutError) as exc:
        raise BackendUnavailable(f"actor {name}", str(exc).strip().splitlines()[-1]) from exc
    return pid


def end_actor(name: str) -> None:
    """End the detached actor `name` for good; nothing happens when there is none."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, NAMESPACE))


def _record(project: Project) -> Path:
    return Path(project.storage.path("cluster.json"))
