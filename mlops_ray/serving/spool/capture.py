"""What a replica keeps of what it answered: each record stands in the node's spool before its answer leaves.

`durability: process`: one write, which survives the death of the process. `durability: disk`: an fsync follows, one for
all requests that wait for it, in a thread. Rows that are not kept (sampling, a spool above its limit, a full disk) are
answered and counted, and the counts stand in the spool as well. Labels and watermarks are kept or refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving.records import Labelled, Record, Scored, Shadowed, Uncaptured
from mlops_ray.serving.routing import points
from mlops_ray.serving.spool.encoding import encode, frame
from mlops_ray.serving.spool.segments import SEGMENT_BYTES, SegmentFile, sync_folder, waiting_bytes

_log = logging.getLogger(__name__)

# Machine time between two looks at how full the node's spool is: at 100 MB/s it outgrows its limit by a tenth.
_LOOK_S = 1.0
# A round is written once it holds so much: what all of it costs in memory stays small.
_ROUND_BYTES = 2**20

_FULL = "the spool cannot be written; predictions are answered unrecorded, labels refused"
_OVER = "the spool is above capture.spool_mb; is the store away?"
_SYNC = "the disk does not take an fsync; records survive their process, not power loss"


class Capture:
    """The spool of one node, as one process writes to it: several replicas write files of their own.

    `append` and `durable` belong to one event loop; `close` comes last.
    """

    def __init__(self, project: Project, folder: Path, secret: bytes | None) -> None:
        """Args: folder: the node's spool, made when it is not there. secret: of the project, for `capture.hash`.

        Raises: ValueError when columns are to be hashed and there is no secret. A spool that cannot be made is no
            reason: predictions are answered, and said not to be captured.
        """
        self._plan, self._folder = project.capture, folder
        self._salt = f"capture of {project.project}"
        self._keep_key = key_keeper(project, secret)
        self._keys_dropped = project.key in self._plan.drop
        self._limit = self._plan.spool_mb * 2**20
        self._over, self._looked = False, -1.0
        self._uncounted: dict[str, tuple[int, float]] = {}
        self._troubles: set[str] = set()
        self._retired: list[SegmentFile] = []
        self._appended = self._synced = self._failed = 0
        self._round: _Round | None = None
        self._syncing: asyncio.Future[bool] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._new_name = True
        self._file: SegmentFile | None = None
        try:
            self._file = SegmentFile(folder)
        except OSError as exc:
            self._say(_FULL, exc.strerror)

    def append(self, record: Record) -> bool:
        """Write one record; when this returns True it survives the death of the process.

        Returns: False when not all of its rows stand in the log: sampling, overflow or a disk that takes no more. They
            are counted.
        Raises: BackendUnavailable for labels and watermarks that cannot be written; BadRequest (422) for labels by
            entity key where the log keeps no keys.
        """
        if isinstance(record, Scored):
            kept = self._admitted(record)
            return kept is not None and self._kept([kept]) and kept.whole
        if isinstance(record, Shadowed):
            n_rows = len(record.trial.rows)
            return self._has_room(record.id, n_rows, record.at) and self._kept([_encoded(record, n_rows)])
        if isinstance(record, Uncaptured):
            self._count(record.why, record.n_rows, record.at)
            return True
        try:
            self._write([encode(self._addressed(record) if isinstance(record, Labelled) else record)])
        except OSError as exc:
            self._say(_FULL, exc.strerror)
            detail = f"the spool cannot be written ({exc.strerror}); free its disk"
            raise BackendUnavailable("the prediction log", detail) from exc
        return True

    async def keep(self, record: Scored) -> bool:
        """`append` for whoever can wait a moment: what comes in one round of the event loop shares a write."""
        kept = self._admitted(record)
        if kept is None:
            return False
        shared = self._round
        if shared is None:
            shared = self._round = _Round()
        shared.records.append(kept)
        shared.n_bytes += len(kept.payload)
        if shared.n_bytes >= _ROUND_BYTES:
            self._write_round()
        else:
            try:
                await asyncio.sleep(0)
            finally:  # also when all of them were cancelled: a record does not wait for the next request
                if shared is self._round:  # the first of them to go on
                    self._write_round()
        return shared.written and kept.whole

    async def durable(self) -> bool:
        """Returns once all that was appended before this call is as durable as `capture.durability` says.

        Requests that wait at the same time share an fsync.
        Returns: False when the disk refused: the records survive the process, not power loss. Labels must not be
            acknowledged then.
        """
        if self._plan.durability == "process":
            return True
        mine = self._appended
        while self._synced < mine:
            if self._syncing is None:
                self._syncing = self._sync()
            if not await asyncio.shield(self._syncing):
                return False
        return mine > self._failed

    def close(self) -> None:
        """Let go of the files; what they hold waits for the collector."""
        self._write_round()
        self._flush_counts()
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        for file in [*self._retired, *([self._file] if self._file else [])]:
            os.close(file.fd)
        self._retired, self._file = [], None

    # what is kept

    def _sampled(self, record: Scored) -> Scored | None:
        """The record with the rows whose keys are in the sample; None when there are none."""
        if self._plan.sample >= 1:
            return record
        mask = points(record.keys, self._salt) < self._plan.sample
        left_out = int((~mask).sum())
        if not left_out:
            return record
        self._count("sampled", left_out, record.at)
        rows = np.flatnonzero(mask)
        return _cut(record, rows) if len(rows) else None

    def _redacted(self, record: Scored) -> Scored:
        return replace(record, keys=tuple(map(self._keep_key, record.keys))) if self._keep_key else record

    def _addressed(self, record: Labelled) -> Labelled:
        labels = record.labels
        if self._keep_key is None or not any(labels.keys):
            return record
        if self._keys_dropped:
            raise BadRequest(422, "labels by key", "the log keeps no keys (capture.drop); send prediction_id instead")
        keys = tuple(self._keep_key(key) if key else "" for key in labels.keys)
        return replace(record, labels=replace(labels, keys=keys))

    def _admitted(self, record: Scored) -> _Encoded | None:
        """What of it is to be written; None when nothing is, which is counted."""
        kept = self._sampled(record)
        if kept is None or not self._has_room(kept.id, len(kept.keys), kept.at):
            return None
        return _encoded(self._redacted(kept), len(kept.keys), whole=kept is record)

    def _has_room(self, request_id: str, n_rows: int, at: float) -> bool:
        """Whether the spool takes it: below its limit always, above it some."""
        # By its id, so that a retry and a shadow's later scores go the way of the request.
        if self._overflows() and zlib.crc32(request_id.encode()) % self._plan.overflow_keep:
            self._count("overflow", n_rows, at)
            return False
        return True

    def _write_round(self) -> None:
        shared, self._round = self._round, None
        if shared is not None:
            shared.written = self._kept(shared.records)

    def _kept(self, records: Sequence[_Encoded]) -> bool:
        """Write them, unless the disk takes no more: then none of them stands, and they are counted."""
        try:
            self._write([(record.kind, record.payload) for record in records])
        except (OSError, MemoryError, struct.error) as exc:  # the last: more bytes than a frame can say
            self._say(_FULL, str(exc))
            for record in records:
                self._count("disk", record.n_rows, record.at)
            return False
        return True

    def _overflows(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked, self._over = now, False
            with contextlib.suppress(OSError):  # a folder that cannot be read: the write will say so
                self._over = waiting_bytes(self._folder) > self._limit
            if self._over:
                self._say(_OVER, f"1 request in {self._plan.overflow_keep} is recorded")
            else:
                self._well_again(_OVER)
        return self._over

    def _say(self, trouble: str, detail: str | None) -> None:
        """Log that something is wrong with the spool, once until it is well again."""
        if trouble not in self._troubles:
            self._troubles.add(trouble)
            _log.warning("%s: %s (%s)", self._folder, trouble, detail)

    def _well_again(self, trouble: str) -> None:
        if trouble in self._troubles:
            self._troubles.remove(trouble)
            _log.warning("%s: no longer so: %s", self._folder, trouble)

    # files

    def _write(self, encoded: Sequence[tuple[int, bytes]]) -> None:
        """Kinds and payloads of records, in one write."""
        self._in_file(lambda file: file.append(b"".join([frame(*each, file.seed) for each in encoded])))
        self._appended += len(encoded)
        if self._uncounted:
            self._flush_counts()
        if self._troubles:
            self._well_again(_FULL)

    def _in_file(self, write: Callable[[SegmentFile], None]) -> None:
        """Do it to the open file, or to a new one. Raises: OSError."""
        if self._file is not None and self._file.size >= SEGMENT_BYTES:
            self._retire()
        while True:
            if self._file is None:
                self._file, self._new_name = SegmentFile(self._folder), True
            with self._file.held() as ours:
                if ours:
                    write(self._file)
                    return
            # Before a new one is begun: held open, a file that the collector is done with still fills the disk.
            self._retire()

    def _retire(self) -> None:
        """Let go of the open file, at once unless something in it waits for an fsync."""
        if self._file is None:
            return
        if self._plan.durability == "process" or self._synced == self._appended:
            os.close(self._file.fd)
        else:
            self._retired.append(self._file)
        self._file = None

    def _count(self, why: str, n_rows: int, at: float) -> None:
        """Count rows that are not kept, in the open file's head; in memory while there is no file that takes it."""
        known = self._uncounted.get(why, (0, at))
        self._uncounted[why] = known[0] + n_rows, at
        self._flush_counts()

    def _flush_counts(self) -> None:
        for why, (n_rows, at) in list(self._uncounted.items()):
            try:
                self._in_file(lambda file, why=why, n=n_rows, at=at: file.count(why, n, at))  # type: ignore[misc]
            except OSError as exc:
                self._say(_FULL, exc.strerror)
                return
            del self._uncounted[why]

    def _sync(self) -> asyncio.Future[bool]:
        """Have the thread sync every file with something new, and let go of those that were claimed."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool-sync")
        upto, retired, self._retired = self._appended, self._retired, []
        fds = [file.fd for file in retired]
        if self._file is not None:
            fds.append(os.dup(self._file.fd))  # its number outlives a claim that comes meanwhile
        folder = self._folder if self._new_name else None
        self._new_name = False
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._thread, _sync_all, fds, folder)

        async def finish() -> bool:
            trouble = await done
            self._syncing = None
            self._synced = max(self._synced, upto)
            if trouble:
                # The kernel reports a lost page once and calls it clean: this file is trusted no further.
                self._failed = self._appended
                self._say(_SYNC, trouble)
                self._retire()
            else:
                self._well_again(_SYNC)
            return not trouble

        return loop.create_task(finish())


class _Encoded(NamedTuple):
    """A record on its way to the file. whole: sampling left none of its rows out."""

    kind: int
    payload: bytes
    n_rows: int
    at: float
    whole: bool


def _encoded(record: Scored | Shadowed, n_rows: int, *, whole: bool = True) -> _Encoded:
    kind, payload = encode(record)
    return _Encoded(kind, payload, n_rows, record.at, whole)


@dataclass(eq=False, slots=True)
class _Round:
    """Records that share a write. written: it was made, and took all of them."""

    records: list[_Encoded] = field(default_factory=list)
    n_bytes: int = 0
    written: bool = False


def _sync_all(fds: Sequence[int], folder: Path | None) -> str:
    """fsync and close; what went wrong, or ""."""
    trouble = ""
    for fd in fds:
        try:
            os.fdatasync(fd)
        except OSError as exc:
            trouble = exc.strerror or str(exc)
        with contextlib.suppress(OSError):  # close repeats the error that fdatasync has told
            os.close(fd)
    try:
        if folder is not None:
            sync_folder(folder)
    except OSError as exc:
        trouble = exc.strerror or str(exc)
    return trouble


def key_keeper(project: Project, secret: bytes | None) -> Callable[[str], str] | None:
    """What the log keeps of an entity key: None when it keeps the key itself; else its keyed hash, or nothing.

    Whoever looks for a key in the log looks for what this gives.
    Raises: ValueError when keys are hashed and there is no secret.
    Source: BLAKE2b, keyed (RFC 7693): 128 bits join as well as the key did, and tell nothing without the secret.
    """
    if project.key in project.capture.drop:
        return lambda key: ""
    if project.key not in project.capture.hash:
        return None
    if secret is None:
        raise ValueError(f"column {project.key!r} is to be hashed; give the project's secret")
    return lambda key: hashlib.blake2b(key.encode(), key=secret, digest_size=16).hexdigest()


def _cut(record: Scored, rows: NDArray[np.int64]) -> Scored:
    """The record with these of its rows only."""
    trials = []
    for trial in record.trials:
        inside = np.isin(trial.rows, rows)
        scores = trial.scores[inside] if trial.scores is not None else None
        kept = np.searchsorted(rows, trial.rows[inside])
        trials += [replace(trial, rows=kept, scores=scores)] if len(kept) else []
    columns: dict[str, NDArray[Any]] = {name: values[rows] for name, values in record.columns.items()}
    return replace(
        record,
        keys=tuple(record.keys[i] for i in rows),
        times=record.times[rows],
        columns=columns,
        scores=record.scores[rows],
        score_us=record.score_us * len(rows) / len(record.keys),
        trials=tuple(trials),
        places=rows,
    )
