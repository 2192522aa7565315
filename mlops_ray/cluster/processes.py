"""Processes and ports of a cluster of our own, found by a mark in their environment.

Everything that `ray start` launches inherits the environment: GCS, raylet, workers, dashboard and the HAProxy child,
which can outlive its parents. Some overwrite it with a title of their own, but these are descendants of marked ones.
`ray stop` would end every Ray process of the machine.
"""

from __future__ import annotations

import contextlib
import random
import socket

import psutil

from mlops_ray.errors import BackendUnavailable

MARK = "MLOPS_RAY_CLUSTER"


def marked(cluster_id: str) -> list[psutil.Process]:
    """Live processes of this user whose environment carries the mark of `cluster_id`, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == cluster_id:
                found |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return [p for p in found.values() if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def end(cluster_id: str, *, grace_s: float = 5.0) -> int:
    """End every process of the cluster, politely and then not; returns how many there were."""
    ended = 0
    while processes := marked(cluster_id):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=grace_s)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=grace_s)
        ended += len(processes)
    return ended


def lives(cluster_id: str) -> bool:
    """Whether the cluster has its node manager, with which it stands and falls."""
    return any(p.name() == "raylet" for p in marked(cluster_id))


def end_orphans(port: int) -> int:
    """End what a dead cluster of ours has left on `port`, with all the rest of it; returns how many processes.

    An HAProxy whose keeper was killed too outlives its cluster: it answers 503 and lets nobody else have the port. Its
    environment says whose it was, and without a node manager that cluster is no more.
    """
    ended = 0
    for process in holders(port):
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK)
            if mark and not lives(mark):
                ended += end(mark)
    return ended


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def free_range(size: int) -> int:
    """First of `size` consecutive TCP ports on loopback that nobody listens on now, below the ephemeral ones.

    Raises: BackendUnavailable when there is none."""
    starts = list(range(20_000, 32_000, size))
    random.shuffle(starts)
    for start in starts:
        if all(_bindable(port) for port in range(start, start + size)):
            return start
    raise BackendUnavailable("loopback", f"no {size} consecutive ports between 20000 and 32000 are free")


def _bindable(port: int) -> bool:
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False


def demand_free(port: int, host: str, field: str) -> None:
    """Raises BackendUnavailable, naming the process that holds the port, when `port` cannot be bound on `host`."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            return
        except OSError as exc:
            raise BackendUnavailable(
                f"port {port} on {host}",
                f"{exc.strerror}; held by {_holder(port)}. End that process or set another `{field}`",
            ) from exc


def holders(port: int) -> list[psutil.Process]:
    """Processes of this user that listen on a TCP port."""
    found = []
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
        if listens and connection.pid:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(connection.pid))
    return found


def _holder(port: int) -> str:
    for process in holders(port):
        with contextlib.suppress(psutil.Error):
            named = f"{process.name()} (process {process.pid})"
            mark = process.environ().get(MARK)
            return f"{named} of the running cluster {mark}, another project's" if mark else named
    return "a process that this user may not see"
