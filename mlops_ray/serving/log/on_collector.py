"""The collector of one project on one node: the spools of its machine into the log, and the monitor told."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from mlops_ray.cluster.background import keep_doing
from mlops_ray.cluster.on_ray import NAMESPACE
from mlops_ray.config import parse_portable
from mlops_ray.data.profile import Bins
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.garbage import collect_rarely
from mlops_ray.serving.log import collecting
from mlops_ray.serving.log.collecting import Drain
from mlops_ray.serving.log.maintenance import Maintenance
from mlops_ray.serving.places import spool_folder, spool_root
from mlops_ray.serving.spool import segments as spool
from mlops_ray.state import Store

_log = logging.getLogger(__name__)

# From here on there is much to commit: some 2,000 requests of one row, whose columns and profiles cost about as much as
# the commit itself (tens of ms, and a file for each day).
_MUCH_BYTES = 2**20
# How long a new collector waits for its folder: another one, which adopted it, lets go after a pass.
_LOCK_S = 30.0
_PUSH_S = 60.0


class Collector:
    """Owns its node's spool, and takes along spools of the same machine that nobody owns: those of earlier clusters.

    Plain class; an actor on its node (see `on_collectors`).
    """

    def __init__(self, text: str, monitor: str, node: str) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._node, self._monitor = node, monitor
        self._root, self._folder = spool_root(self._project), spool_folder(self._project, node)
        self._lock_fd = self._owned()
        self._store = Store.open(self._project.storage.state)
        self._bins: tuple[int, Bins] | None = None  # with the version that they are of
        self._own = self._drain(self._folder)
        self._busy = threading.Lock()
        self._passed_at = 0.0  # so that the first look makes a pass
        collect_rarely()
        self._maintenance = Maintenance(self._project, self._store, f"{node}-{os.getpid()}")
        name = self._project.project
        keep_doing(self._collect_if_due, every_s=self._project.capture.commit_s, what=f"collector of {name}")
        keep_doing(self.maintain, every_s=self._maintenance.every_s, what=f"log of {name}")

    def flush(self) -> dict[str, Any]:
        """Commit all that this node acknowledged before this call; returns the last segment's number."""
        return {"number": self._collect()}

    def ping(self) -> int:
        """Process id; answers once the collector owns its spool."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def maintain(self) -> dict[str, Any]:
        """Compact, trim and clean the log now, if nobody else is at it; what was done, by table."""
        return self._maintenance.run(time.time())

    def _owned(self) -> int:
        until = time.monotonic() + _LOCK_S
        while (fd := spool.lock_folder(self._folder, self._node)) is None:
            if time.monotonic() > until:
                raise BackendUnavailable(f"spool {self._folder}", f"{spool.owner(self._folder)} has it")
            time.sleep(0.1)  # waiting inside flock could not be given up
        return fd

    def _drain(self, folder: Path) -> Drain:
        return Drain(self._project, folder, self._store, self._push, self._known_bins, time.time)

    def _collect_if_due(self) -> None:
        if self._is_due():
            self._collect()

    def _is_due(self) -> bool:
        """Whether there is much to commit, something has waited long, or a watermark waits for this node."""
        if time.monotonic() - self._passed_at >= self._project.capture.commit_idle_s:
            return True
        return spool.waiting_bytes(self._folder) >= _MUCH_BYTES or self._is_behind(self._pending())

    def _collect(self) -> int:
        """One pass over the machine's spools. Returns the last number of this node's own."""
        with self._busy:
            pending = self._pending()  # before anything is claimed
            with self._orphans() as orphans:
                for folder in orphans:
                    self._adopt(folder)
            number, whole = self._own.run()
            if whole and self._is_behind(pending):
                self._own.say_passed({"node": self._node, "passed": pending, "nodes": alive_nodes()})
            self._passed_at = time.monotonic()
            return number

    def _pending(self) -> float:
        with self._store.read() as tx:
            return tx.cursor(self._project.project, collecting.PENDING).at

    def _is_behind(self, pending: float) -> bool:
        with self._store.read() as tx:
            passed = tx.cursor(self._project.project, collecting.passed_name(self._node))
        return passed.number < 0 or passed.at < pending

    @contextmanager
    def _orphans(self) -> Iterator[list[Path]]:
        """Folders beside ours that nobody owns, owned by us for the time of the block."""
        locks: dict[Path, int] = {}
        try:
            for folder in sorted(self._root.iterdir()):
                if (
                    folder != self._folder
                    and folder.is_dir()
                    and (fd := spool.lock_folder(folder, self._node)) is not None
                ):
                    locks[folder] = fd
            yield list(locks)
        finally:
            for fd in locks.values():
                os.close(fd)

    def _adopt(self, folder: Path) -> None:
        """Commit what a dead cluster's node left behind, and remove its folder when it is empty."""
        try:
            if spool.waiting_bytes(folder) or any(folder.glob(f"*{spool.OPEN}")) or spool.claimed(folder):
                self._drain(folder).run()
            spool.remove_if_done(folder)
        except Exception as exc:  # noqa: BLE001 - an old spool must not hold up the living one; the next pass tries again
            _log.warning("spool %s, which nobody owns: %s", folder, exc)

    def _push(self, pushed: Mapping[str, Any]) -> bool:
        return bool(ray.get(ray.get_actor(self._monitor, NAMESPACE).push.remote(dict(pushed)), timeout=_PUSH_S))

    def _known_bins(self) -> Bins:
        """The project's bins, from the reference of the stable version: what is registered beside it may have other
        features. Before the first one, of the newest that may serve."""
        name = self._project.project
        with self._store.read() as tx:
            served, versions = tx.serving(name), [v for v in tx.versions(name) if v.may_serve]
        stable = served.spec["stable"]["version"] if served else max(v.version for v in versions)
        if self._bins is None or self._bins[0] != stable:
            chosen = next(v for v in versions if v.version == stable)
            loaded = local(chosen.artifact, chosen.sha256, trusted=self._project.features.trusted_types)
            self._bins = stable, loaded.reference.bins
        return self._bins[1]


def alive_nodes() -> list[str]:
    """Ray node ids of the cluster that this process has joined."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]  # Ray's
