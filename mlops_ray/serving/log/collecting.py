"""One spool into the prediction log and the monitor: every step may be cut off, and is recognised when it is repeated.

The order is: number the segments (a rename, synced), claim the request ids in the state database, append to each table
under the last segment's number, hand the same rows to the monitor as profiles under the same number, remove the
segments. Log and monitor see the same segments, so a recount of the log equals the windows.

Watermarks. One says that all before it was answered, but those answers may lie in any node's spool. So it does not
count when it arrives: the monitor keeps it as *pending*, and it counts once every living node has **begun** a pass
after it was pending and finished that pass. Whatever was answered before the watermark stood in its node's spool by
then, so the pass took it along; no clocks of two machines are compared. A collector reads what is pending before it
claims, and says so with its push (`passed`). The newest event time that was seen counts as a watermark of its own. A
node without traffic passes at its next look (`commit_s`), since a pending watermark is a reason to make a pass; a node
that is gone is not waited for, and its rows come late.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.forget import Register
from mlops_ray.serving.log.tally import tally
from mlops_ray.serving.places import labels_uri, log_uri, shadow_uri, uncaptured_uri, values_uri
from mlops_ray.serving.spool import claims
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.segments import Segment
from mlops_ray.state import Store, Tx

_log = logging.getLogger(__name__)

Push = Callable[[Mapping[str, Any]], bool]
"""Hands what was committed to the monitor; whether it was the next one of its spool."""

# Segments committed at once: two of full size, whose rows and tables take some hundred MB.
_PASS_BYTES = 2 * spool.SEGMENT_BYTES


class Drain:
    """What the owner of a spool's folder does with it. Not thread-safe."""

    def __init__(
        self,
        project: Project,
        folder: Path,
        store: Store,
        push: Push,
        bins: Callable[[], Bins],
        now: Callable[[], float],
    ) -> None:
        """Args: bins: the project's. now: seconds since the epoch."""
        self._project, self._folder, self._store, self._push = project, folder, store, push
        self._bins, self._now = bins, now
        self.id = spool.spool_id(folder)
        self._last: int | None = None
        self._register = Register(project, lambda: store.run(lambda tx: claims.secret(tx, project.project)))
        self._tables = {
            "predictions": log_uri(project),
            "labels": labels_uri(project),
            "values": values_uri(project),
            "shadow": shadow_uri(project),
            "uncaptured": uncaptured_uri(project),
        }

    def run(self) -> tuple[int, bool]:
        """Commit what stands there. Returns the last number that log and monitor have, and whether that is all that was
        acknowledged before this call.

        Segments that an earlier pass could not commit come first, and no others are claimed before they are through:
        while the store is away, the spool grows by bytes and not by files.
        """
        done = self._done()
        left = [s for s in spool.claimed(self._folder) if not self._forget(s, done)]
        done = self._commit(left, done)
        if self._last is None:
            self._last = max([done, *(lake.committed(uri, self.id) for uri in self._tables.values())])
        new, whole = spool.claim(self._folder, self._last + 1)
        if new:
            self._last = new[-1].number
        return self._commit(new, done), whole

    def say_passed(self, news: Mapping[str, Any]) -> None:
        """Tell the monitor how far this node is, without rows."""
        done = self._done()
        self._push({"spool": self.id, "base": done, "number": done, "profiles": [], **NOTHING, **news})

    def _done(self) -> int:
        with self._store.read() as tx:
            return tx.cursor(self._project.project, cursor_name(self.id)).number

    def _commit(self, segments: Sequence[Segment], done: int) -> int:
        start = 0
        while start < len(segments):
            stop, size = start + 1, segments[start].n_bytes
            while stop < len(segments) and (size := size + segments[stop].n_bytes) <= _PASS_BYTES:
                stop += 1
            done, start = self._commit_together(segments[start:stop], done), stop
        return done

    def _commit_together(self, segments: Sequence[Segment], done: int) -> int:
        arrived = {s.number: self._arrivals(s) for s in segments}
        predictions = self._settle(arrived)
        tables: dict[str, dict[int, pa.Table]] = {
            "predictions": predictions,
            "labels": {n: a.labels for n, a in arrived.items()},
            "values": {n: a.values for n, a in arrived.items()},
            "shadow": {n: a.shadow for n, a in arrived.items()},
            "uncaptured": {n: a.uncaptured for n, a in arrived.items()},
        }
        tables = self._register.sieved(tables)
        whole = {name: pa.concat_tables(parts.values()) for name, parts in tables.items()}
        for name, parts in tables.items():
            self._append(self._tables[name], parts)
        rows = whole["predictions"]
        folded = log.profiles(self._project, self._bins(), rows) if rows.num_rows else {}
        pushed = {
            "spool": self.id,
            "base": done,
            "number": segments[-1].number,
            "profiles": [(version, block, profile.to_dict()) for (version, block), profile in folded.items()],
            "counted": tally(rows, whole["labels"], whole["uncaptured"]),
            **NOTHING,
            "watermark": _latest(a.watermark for a in arrived.values()),
            "newest": _latest(a.newest for a in arrived.values()),
        }
        if self._project.capture.durability == "disk" and not self._project.storage.is_remote:
            # The tables' files lie in the page cache, and so do those of a commit that this pass only recognised.
            os.sync()
        if not self._push(pushed):
            return self._done()  # an earlier push got through after all: the next pass starts from there
        for segment in segments:
            segment.path.unlink()
        return segments[-1].number

    def _arrivals(self, segment: Segment) -> log.Arrivals:
        """What the segment holds. Where that cannot be read it is kept aside as well, and holds up nothing."""
        records, damages = segment.read()
        lost = [d for d in damages if not d.torn]
        try:
            arrived = log.arrivals(self._project, records)
        except (ValueError, KeyError, TypeError) as exc:  # records of another task, or of a release to come
            self._set_aside(segment, f"{len(records)} records fit no table: {exc}")
            return log.arrivals(self._project, [])
        if lost:
            n_bytes = sum(d.stop - d.start for d in lost)
            self._set_aside(segment, f"{n_bytes} bytes are damaged; {len(records)} records were read")
        return arrived

    def _set_aside(self, segment: Segment, why: str) -> None:
        aside = segment.path.with_suffix(".bad")
        if not aside.exists():
            os.link(segment.path, aside)
            _log.error("segment %s: %s", aside, why)

    def _settle(self, arrived: Mapping[int, log.Arrivals]) -> dict[int, pa.Table]:
        def settle(tx: Tx) -> dict[int, pa.Table]:
            return log.settled(
                arrived, lambda ids, number: claims.claim(tx, self._project.project, ids, self.id, number, self._now())
            )

        if any(a.repeatable for a in arrived.values()):
            return self._store.run(settle)
        return {number: a.predictions for number, a in arrived.items()}

    def _append(self, uri: str, parts: Mapping[int, pa.Table]) -> None:
        """Append what of these segments the table does not hold yet, and note the last one's number with it."""
        if not any(part.num_rows for part in parts.values()):
            return
        there = lake.committed(uri, self.id)
        missing = [part for number, part in parts.items() if number > there and part.num_rows]
        if missing:
            lake.append_once(uri, pa.concat_tables(missing), self.id, max(parts), partition_by=("day",))

    def _forget(self, segment: Segment, done: int) -> bool:
        """Remove a segment that both log and monitor have seen."""
        if segment.number <= done:
            segment.path.unlink()
            return True
        return False


NOTHING: Mapping[str, Any] = {"watermark": None, "newest": None, "node": None, "passed": None, "nodes": ()}
"""What a push says when it has nothing to say of time."""


def cursor_name(spool_id: str) -> str:
    """Where the monitor keeps the last segment of a spool that it has folded."""
    return f"spool:{spool_id}"


def passed_name(node: str) -> str:
    """Where the monitor keeps up to which time a node's spools were passed."""
    return f"passed:{node}"


PENDING = "pending"
"""Where the monitor keeps the latest watermark that has arrived."""


def _latest(times: Any) -> float | None:
    return max((t for t in times if t is not None), default=None)
