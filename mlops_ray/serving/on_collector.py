"""The node's collector: segments of the spool into the prediction log, and the same rows as profiles to the monitor."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray

from mlops_ray.config import parse_portable
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving import capture, log
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.places import labels_uri, log_uri, spool_folder
from mlops_ray.state import Store

_log = logging.getLogger(__name__)
_HEAD = {"node:__internal_head__": 0.001}


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
        predictions, labels = log_uri(self._project), labels_uri(self._project)
        segments = self._sound(s for s in capture.claimed(self._folder) if not self._forget(s, done))
        known = [done, *(s.number for s in segments)]
        known += [lake.committed(uri, self._spool) for uri in (predictions, labels)]
        segments += self._sound(capture.claim(self._folder, max(known) + 1))
        if not segments and held is None:
            return done
        arrived = self._read(segments)
        last = segments[-1].number if segments else done
        self._append(predictions, segments, "predictions", arrived)
        self._append(labels, segments, "labels", arrived)
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


def _spool_id(folder: Path) -> str:
    """The spool's own name, made once: the application id of its commits."""
    file = folder / "spool.id"
    if not file.exists():
        part = folder / "spool.id.part"
        part.write_text(uuid.uuid4().hex, encoding="ascii")
        part.replace(file)
    return file.read_text(encoding="ascii")


def collector_name(project: str) -> str:
    """Name of the project's collector on this node in our namespace."""
    return f"collector:{project}"


CollectorActor = ray.remote(num_cpus=0, resources=_HEAD, max_restarts=-1, max_task_retries=-1)(Collector)
