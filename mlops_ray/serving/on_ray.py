"""The serving room on Ray: ingress, version applications, the node's collector, and `apply`."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import requests
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from mlops_ray.config import Project, parse_portable
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins, Columns
from mlops_ray.errors import BackendUnavailable, LeaseLost
from mlops_ray.serving import applications, capture, log
from mlops_ray.serving.http import application
from mlops_ray.serving.service import Held, Scorer, Service, Wanted
from mlops_ray.state import Lease, Store
from mlops_ray.training.artifact import model

_log = logging.getLogger(__name__)
_QUIET = {"enable_access_log": False}
# One collector per project reads the spool of its own node, so every ingress replica runs beside it, on the head node.
_HEAD = {"node:__internal_head__": 0.001}
APPLY_LEASE = "serve-configuration"
# Renewed while it is used: a process killed under it holds up the next one for so long.
_APPLY_LEASE_S = 10.0


def spool_folder(project: Project) -> Path:
    """The spool of this node: below `storage.root`, or below the temporary directory when that is remote."""
    if project.storage.is_remote:
        return Path(tempfile.gettempdir(), "mlops-ray-spool", project.project)
    return Path(project.storage.path("spool", project.project))


def load_version(project: Project, held: Held) -> Scorer:
    """The version's model, checked by hash and by its golden requests. Raises: ArtifactRefused."""
    loaded = local(held.artifact, held.sha256, trusted=project.features.trusted_types)
    loaded.replay()
    return loaded


def local(artifact: str, sha256: str, *, trusted: Sequence[str] = ()) -> model.Model:
    """The artifact at an address, by way of this node's cache when that is remote. Raises: ArtifactRefused.

    Args: trusted: `features.trusted_types` of the project's file, see `model.load`."""
    folder = model.fetch(artifact, Path(tempfile.gettempdir(), "mlops-ray-models"), sha256)
    return model.load(folder, sha256, trusted=trusted)


def _asgi() -> Any:
    return application(lambda: serve.get_replica_context().servable_object.service)  # type: ignore[attr-defined]


@serve.deployment(
    name=applications.INGRESS, ray_actor_options={"num_cpus": 0.1, "resources": _HEAD}, logging_config=_QUIET
)
@serve.ingress(_asgi)
class Ingress:
    """One replica of a project's ingress; all it does is in `Service`."""

    def __init__(self, text: str) -> None:
        project = parse_portable(text, env=os.environ)
        spool = capture.SpoolWriter(spool_folder(project), fsync=project.capture.durability == "disk")
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.serving(project.project)
        store.close()
        first = Wanted.parse(row.spec, row.seq) if row else None
        self._handles: dict[int, Any] = {}
        self.service = Service(project, spool, functools.partial(load_version, project), self._canary, first=first)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Serve's hook for `user_config`: stores what is wanted and returns."""
        self.service.want(Wanted.parse(config["spec"], config["sequence"]))

    def want(self, spec: Mapping[str, Any], sequence: int) -> dict[str, Any]:
        """The same by broadcast, which is quicker; answers with what this replica has."""
        self.service.want(Wanted.parse(spec, sequence))
        return self.service.status()

    async def _canary(self, version: int, columns: Columns) -> np.ndarray[Any, Any]:
        handle = self._handles.get(version)
        if handle is None:
            name = applications.version_application(self.service.project.project, version)
            handle = self._handles[version] = serve.get_app_handle(name)
        return await handle.score.remote(dict(columns))  # type: ignore[no-any-return]


@serve.deployment(name=applications.VERSION, ray_actor_options={"num_cpus": 0.1}, logging_config=_QUIET)
class Version:
    """A version on trial, in a process of its own: whatever it does, stable's replicas do not feel it."""

    def __init__(self, text: str, version: int) -> None:
        project = parse_portable(text, env=os.environ)
        store = Store.open(project.storage.state)
        with store.read() as tx:
            row = tx.version(project.project, version)
        store.close()
        self._scorer = load_version(project, Held(version, row.artifact, row.sha256))

    def score(self, columns: Columns) -> np.ndarray[Any, Any]:
        """Probabilities, shape (n,)."""
        return self._scorer.score(columns)


def ingress_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a project."""
    return Ingress.bind(args["text"])  # type: ignore[attr-defined]


def version_application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder for a version that lives apart."""
    return Version.bind(args["text"], int(args["version"]))  # type: ignore[attr-defined]


class Collector:
    """Owns one node's spool of one project: claims segments, commits them to the log, tells the monitor.

    Log and monitor see the same segments under the same numbers, so a recount of the log equals the windows. Every
    step is repeated after a crash and recognised as done: the tables by their transaction version, the monitor by its
    cursor. Segments are removed last.
    """

    def __init__(self, text: str, monitor: str) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._folder = spool_folder(self._project)
        self._lock_fd = capture.lock_folder(self._folder)
        if self._lock_fd is None:
            raise BackendUnavailable(f"spool {self._folder}", "another collector owns it")
        self._spool = _spool_id(self._folder)
        self._store = Store.open(self._project.storage.state)
        self._monitor = monitor
        self._bins: Bins | None = None
        self._busy = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._keep_committing, name="collector", daemon=True).start()

    def flush(self) -> dict[str, Any]:
        """Commit all that was acknowledged before this call; returns the last segment's number."""
        with self._busy:
            self._collect()
            return {"number": self._collect()}  # the second pass lets a watermark of the first one count

    def ping(self) -> int:
        """Process id; answers once the collector owns its spool."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def _keep_committing(self) -> None:
        while not self._stop.wait(self._project.capture.commit_s):
            try:
                with self._busy:
                    self._collect()
            except Exception as exc:  # noqa: BLE001 - outermost loop: segments stay claimed and are tried again
                _log.warning("collector of %s: %s", self._project.project, exc)

    def _collect(self) -> int:
        """One pass. Returns the number of the last segment that log and monitor have.

        A watermark says that all before it was written, yet another writer's file may have been claimed a moment
        earlier: it is held (durably, by the monitor) and counts from the next pass on.
        """
        name = f"spool:{self._spool}"
        with self._store.read() as tx:
            done = tx.cursor(self._project.project, name).number
            held = tx.cursor(self._project.project, f"held:{self._spool}").at or None
        predictions_uri, labels_uri = log_uri(self._project), labels_uri_of(self._project)
        segments = self._sound(s for s in capture.claimed(self._folder) if not self._forget(s, done))
        known = [done, *(s.number for s in segments)]
        known += [lake.committed(uri, self._spool) for uri in (predictions_uri, labels_uri)]
        segments += self._sound(capture.claim(self._folder, max(known) + 1))
        if not segments and held is None:
            return done
        arrived = self._read(segments)
        last = segments[-1].number if segments else done
        self._append(predictions_uri, segments, "predictions", arrived)
        self._append(labels_uri, segments, "labels", arrived)
        folded = log.profiles(self._project, self._known_bins(), arrived.predictions)
        push = {
            "spool": self._spool,
            "base": done,
            "number": last,
            "profiles": [(version, block, profile.to_dict()) for (version, block), profile in folded.items()],
            "watermark": held,
            "held": arrived.watermark,
            "newest": arrived.newest,
        }
        if not ray.get(ray.get_actor(self._monitor).push.remote(push), timeout=60):
            return done  # an earlier push got through after all: the next pass starts from there
        for segment in segments:
            segment.path.unlink()
        return last

    def _read(self, segments: list[capture.Segment]) -> log.Arrivals:
        return log.arrivals(self._project, (record for s in segments for record in s.records()))

    def _append(self, uri: str, segments: list[capture.Segment], table: str, arrived: log.Arrivals) -> None:
        """Append what of these segments the table does not hold yet, and note the last one's number with it."""
        there = lake.committed(uri, self._spool)
        missing = [s for s in segments if s.number > there]
        rows = getattr(arrived if missing == segments else self._read(missing), table)
        if rows.num_rows:
            lake.append_once(uri, rows, self._spool, segments[-1].number, partition_by=("day",))

    def _sound(self, segments: Iterable[capture.Segment]) -> list[capture.Segment]:
        """Those that can be read; one that cannot is set aside, so that it does not hold up the others."""
        sound = []
        for segment in segments:
            try:
                self._read([segment])
            except (ValueError, KeyError, TypeError) as exc:
                aside = segment.path.with_suffix(".bad")
                segment.path.rename(aside)
                _log.error("segment %s cannot be read and stands aside: %s", aside, exc)
            else:
                sound.append(segment)
        return sound

    def _forget(self, segment: capture.Segment, done: int) -> bool:
        """Remove a segment that both log and monitor have seen."""
        if segment.number <= done:
            segment.path.unlink()
            return True
        return False

    def _known_bins(self) -> Bins:
        """The project's bins, from the reference of the newest version that may serve."""
        if self._bins is None:
            with self._store.read() as tx:
                versions = tx.versions(self._project.project)
            newest = max((v for v in versions if v.may_serve), key=lambda v: v.version)
            trusted = self._project.features.trusted_types
            self._bins = local(newest.artifact, newest.sha256, trusted=trusted).reference.bins
        return self._bins


def log_uri(project: Project) -> str:
    """Delta table of the prediction log."""
    return project.storage.path("log", project.project, "predictions")


def labels_uri_of(project: Project) -> str:
    """Delta table of the labels."""
    return project.storage.path("log", project.project, "labels")


def _spool_id(folder: Path) -> str:
    """The spool's own name, made once: the application id of its commits."""
    file = folder / "spool.id"
    if not file.exists():
        part = folder / "spool.id.part"
        part.write_text(uuid.uuid4().hex, encoding="ascii")
        part.replace(file)
    return file.read_text(encoding="ascii")


def apply(
    store: Store, dashboard: str, *, holder: str, timeout_s: float = 90.0, withdrawn: frozenset[str] = frozenset()
) -> None:
    """Make Serve agree with the state database, for all projects in it; returns when it does.

    The one writer of Serve's configuration: under the lease, put, broadcast, and look until every application runs and
    every replica has the wanted sequence. Calling it again changes nothing. Applications of others are put back as they
    stand, because Serve deletes what a PUT does not name; those of `withdrawn` projects are left out.
    Raises: LeaseLost when another process is at it; BackendUnavailable when Serve does not get there in time.
    """
    deadline = time.monotonic() + timeout_s
    lease = _lease(store, f"{holder}-{os.getpid()}-{uuid.uuid4().hex[:8]}", deadline)
    try:
        with store.read() as tx:
            served = [
                applications.Served(
                    parse_portable(row.config_text, env=os.environ),
                    row.config_text,
                    Wanted.parse(wanted.spec, wanted.seq),
                )
                for row in tx.projects()
                if (wanted := tx.serving(row.name)) is not None
            ]
        there = _details(dashboard)
        config = applications.render(served, there, withdrawn)
        if applications.differs(config, there):
            _put(dashboard, config)
        while trouble := _disagreement(dashboard, served):
            lease = store.renew(lease, _APPLY_LEASE_S, time.time())
            if time.monotonic() > deadline:
                raise BackendUnavailable("Ray Serve", f"after {timeout_s:g} s: {trouble}")
            time.sleep(0.1)  # Serve has no event to wait for: its status is polled
    finally:
        store.release(lease)


def _lease(store: Store, holder: str, deadline: float) -> Lease:
    """The right to write Serve's configuration, waited for until `deadline` (monotonic). Raises: LeaseLost."""
    while True:
        try:
            return store.acquire(APPLY_LEASE, holder, _APPLY_LEASE_S, time.time())
        except LeaseLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)  # a lease that falls free tells nobody


def try_apply(store: Store, dashboard: str, *, holder: str) -> str | None:
    """`apply`, for a loop that will come again: what is in the way, or None when Serve agrees."""
    try:
        apply(store, dashboard, holder=holder, timeout_s=30.0)
    except (LeaseLost, BackendUnavailable) as exc:
        return str(exc)
    return None


def replica_status(project: str, wanted: Wanted) -> list[dict[str, Any]]:
    """Send `wanted` to every live replica of the ingress; what each has now. Empty when there is none."""
    try:
        return list(_handle(project).broadcast("want", wanted.spec(), wanted.sequence).results(timeout_s=5))
    except Exception as exc:  # noqa: BLE001 - Serve raises many kinds while replicas come and go; the caller asks again
        _log.info("ingress of %s does not answer yet: %s", project, exc)
        _handle.cache_clear()
        return []


@functools.cache
def _handle(project: str) -> Any:
    """The ingress's handle; making one costs a router and a long poll, so a process keeps it."""
    return serve.get_app_handle(project)


def application_states(dashboard: str) -> dict[str, tuple[str, str]]:
    """Status and message of each application that Serve knows.

    Raises: BackendUnavailable when the dashboard does not answer."""
    applications_there = _details(dashboard)["applications"]
    return {name: (a["status"], a["message"]) for name, a in applications_there.items()}


def _disagreement(dashboard: str, served: list[applications.Served]) -> str | None:
    states = application_states(dashboard)
    for one in served:
        name, wanted = one.project.project, one.wanted
        status, message = states.get(name, ("absent", ""))
        if status != "RUNNING":
            return f"application {name} is {status} {_last_line(message)}"
        replicas = replica_status(name, wanted)
        if len(replicas) < one.project.serving.replicas:
            return f"{len(replicas)} replicas of {name} answer, {one.project.serving.replicas} are wanted"
        if any(r["sequence"] < wanted.sequence for r in replicas):
            return f"a replica of {name} has not heard of configuration {wanted.sequence}"
        if wanted.canary is not None:
            canary = applications.version_application(name, wanted.canary)
            # A canary that cannot start is the rollout's business and must not hold up the others.
            if states.get(canary, ("absent", ""))[0] not in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
                return f"application {canary} is {states.get(canary, ('absent', ''))[0]}"
    return None


def _last_line(message: str) -> str:
    lines = message.strip().splitlines()
    return f"({lines[-1].strip()})" if lines else ""


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


def collector_name(project: str) -> str:
    """Name of the project's collector on this node in our namespace."""
    return f"collector:{project}"


CollectorActor = ray.remote(num_cpus=0, resources=_HEAD, max_restarts=-1, max_task_retries=-1)(Collector)
