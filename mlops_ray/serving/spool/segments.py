"""The spool: a folder of segment files, appended to by their writers and claimed whole by the node's collector.

A segment begins with a head (the seed of its checksums, and counts of rows that were answered but not kept), then
frames. Each file has one writer, which appends by one `pwrite` under an advisory lock; the collector renames under the
same lock. Neither waits for the other: a writer that finds the lock taken, or its file renamed, begins a new file; the
collector passes over a file whose lock stays taken. A killed process lets go of its locks, and the torn frame that it
may leave was never acknowledged.

Power loss: a new file's name is synced with its first frame where `durability` is `disk`, and the collector syncs its
renames before it commits, so that a segment keeps its number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

from mlops_ray.serving.records import Record, Uncaptured
from mlops_ray.serving.spool.encoding import Damage, frames

OPEN = ".open"
LOCK = "owner.lock"
_ID = "spool.id"
_CLAIMED = re.compile(r"^(\d{12})-[0-9a-f]+\.claimed$")
_FORMAT = b"MRSPOOL1"
WHYS = ("overflow", "sampled", "disk", "shadow")
"""Why rows were not captured, in the order of the head's counts."""
_HEAD = struct.Struct("<8sI4x")
_COUNTS = struct.Struct(f"<{len(WHYS)}QdI4x")
HEAD_BYTES = _HEAD.size + _COUNTS.size
SEGMENT_BYTES = 32 * 2**20
"""A writer begins another file from here on: a collector that has fallen behind reads no more than one at a time."""
# How long a claim tries for a lock that its writer holds for microseconds, unless it was stopped right there.
_LOCK_S = 0.05


class SegmentFile:
    """One open segment of one writer. Raises: OSError when it cannot be made; nothing is left behind then."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        self.seed = int.from_bytes(os.urandom(4), "little")
        self.path = folder / f"{uuid.uuid4().hex}{OPEN}"
        self.size = HEAD_BYTES
        self._counts, self._counted_at = [0] * len(WHYS), 0.0
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._inode = os.fstat(self.fd).st_ino
            _write_all(self.fd, _HEAD.pack(_FORMAT, self.seed) + self._counts_bytes(), 0)
        except BaseException:
            os.close(self.fd)
            self.path.unlink()
            raise

    def held(self) -> _Held:
        """The file's lock for a moment, as a context; False when the file is, or is just becoming, the collector's."""
        return _Held(self)

    def lock(self) -> bool:
        """Whether the file is ours and locked now; else it is, or is just becoming, the collector's."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        ours = False
        try:
            ours = self._still_ours()
        finally:
            if not ours:
                self.unlock()
        return ours

    def unlock(self) -> None:
        """Let the collector have it."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def append(self, frame: bytes) -> None:
        """Write one frame or several, with the lock held. Raises: OSError when not all could be; none stays then."""
        try:
            _write_all(self.fd, frame, self.size)
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(frame)

    def count(self, why: str, n_rows: int, at: float) -> None:
        """Add to the counts in the head, with the lock held: no growth, so that it works on a full disk."""
        counts, counted_at = self._counts.copy(), self._counted_at
        self._counts[WHYS.index(why)] += n_rows
        self._counted_at = at
        try:
            _write_all(self.fd, self._counts_bytes(), _HEAD.size)
        except OSError:
            self._counts, self._counted_at = counts, counted_at
            raise

    def _counts_bytes(self) -> bytes:
        body = _COUNTS.pack(*self._counts, self._counted_at, 0)
        return _COUNTS.pack(*self._counts, self._counted_at, zlib.crc32(body, self.seed))

    def _still_ours(self) -> bool:
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False


class _Held:
    """A lock around a few lines; `contextlib`'s generators cost as much as the write."""

    def __init__(self, file: SegmentFile) -> None:
        self._file, self._ours = file, False

    def __enter__(self) -> bool:
        self._ours = self._file.lock()
        return self._ours

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._file.unlock()


def _write_all(fd: int, data: bytes, at: int) -> None:
    """Raises: OSError; also when a full disk took only a part."""
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(28, "the spool's disk is full")


def private_folder(folder: Path) -> None:
    """Makes the folder, for this user only. Raises: PermissionError when it is somebody else's: a spool may lie below
    a directory that everybody can write to."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(13, "the spool's folder belongs to another user", str(folder))


@dataclass(frozen=True)
class Segment:
    """A claimed file: no writer appends to it any more."""

    number: int
    path: Path

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def read(self) -> tuple[list[Record], list[Damage]]:
        """Its whole records in order, and what could not be read."""
        return parsed(self.path.read_bytes())

    def records(self) -> list[Record]:
        """Its whole records in order."""
        return self.read()[0]


def parsed(data: bytes) -> tuple[list[Record], list[Damage]]:
    """The records of a segment's bytes, its counts first, and what could not be read. Never raises for any bytes."""
    if len(data) < HEAD_BYTES:
        return [], [Damage(0, len(data), torn=True)]
    form, seed = _HEAD.unpack_from(data)
    records: list[Record] = []
    damages: list[Damage] = []
    *counts, at, check = _COUNTS.unpack_from(data, _HEAD.size)
    if form != _FORMAT or zlib.crc32(_COUNTS.pack(*counts, at, 0), seed) != check:
        damages.append(Damage(0, HEAD_BYTES, torn=False))
    else:
        records += [Uncaptured(at, why, n) for why, n in zip(WHYS, counts, strict=True) if n]
    for found in frames(data, HEAD_BYTES, seed):
        if isinstance(found, Damage):
            damages.append(found)
        else:
            records.append(found)
    return records, damages


def claimed(folder: Path) -> list[Segment]:
    """Segments claimed earlier and not yet removed, by number."""
    found = ((path, _CLAIMED.match(path.name)) for path in folder.glob("*.claimed"))
    return sorted((Segment(int(m[1]), path) for path, m in found if m), key=lambda s: s.number)


def claim(folder: Path, next_number: int) -> tuple[list[Segment], bool]:
    """Claim every file that writers have open and that says something, giving out numbers from `next_number` on.

    Only the one collector that owns the folder may call this.
    Returns: the segments, their new names safe from power loss; and whether that was all: False when a file was passed
        over because its lock stayed taken (its writer was stopped in the middle of a write).
    """
    segments: list[Segment] = []
    whole = True
    for path in sorted(folder.glob(f"*{OPEN}")):
        fd = os.open(path, os.O_RDWR)
        try:
            if not _says_something(fd):
                continue  # its writer has had nothing to say yet
            if not _locked_soon(fd):
                whole = False
                continue
            number = next_number + len(segments)
            target = folder / f"{number:012d}-{path.stem}.claimed"
            path.rename(target)
        finally:
            os.close(fd)
        segments.append(Segment(number, target))
    if segments:
        sync_folder(folder)
    return segments, whole


def _says_something(fd: int) -> bool:
    """Whether there are frames, or counts that are not zero."""
    if os.fstat(fd).st_size > HEAD_BYTES:
        return True
    counts = os.pread(fd, _COUNTS.size, _HEAD.size)
    return len(counts) == _COUNTS.size and any(_COUNTS.unpack(counts)[: len(WHYS)])


def _locked_soon(fd: int) -> bool:
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            os.sched_yield()  # a lock that falls free tells only those who would wait without end
        else:
            return True


def sync_folder(folder: Path) -> None:
    """Names in the folder survive power loss from here on."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def waiting_bytes(folder: Path) -> int:
    """How much stands in a node's spool, claimed or not, heads of files that hold nothing else left out."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((OPEN, ".claimed")):
                    with contextlib.suppress(FileNotFoundError):  # claimed, or done with, since the folder was listed
                        total += max(0, entry.stat().st_size - HEAD_BYTES)
    except FileNotFoundError:  # no writer has been here yet
        return 0
    return total


@dataclass(frozen=True)
class Owner:
    """Who owns a spool: a process, and the name it gave."""

    pid: int
    name: str


def lock_folder(folder: Path, name: str) -> int | None:
    """Own the spool as `name`: a file descriptor that holds it until closed or the process dies; None when another owns
    it."""
    file = folder / LOCK
    while True:
        private_folder(folder)
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if file.exists() and os.fstat(fd).st_ino == file.stat().st_ino:
            os.truncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {name}".encode(), 0)
            return fd
        os.close(fd)  # the folder was removed, and maybe made again, before the lock was ours


def owner(folder: Path) -> Owner | None:
    """Who owns the spool, None when nobody does."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, name = os.pread(fd, 200, 0).decode().partition(" ")
        return Owner(int(pid), name) if pid.isdigit() else None
    finally:
        os.close(fd)
    return None


def spool_id(folder: Path) -> str:
    """The spool's own name, made once: the application id of its commits."""
    file = folder / _ID
    if not file.exists():
        part = folder / f"{_ID}.part"
        part.write_text(uuid.uuid4().hex, encoding="ascii")
        part.replace(file)
        sync_folder(folder)
    return file.read_text(encoding="ascii")


def remove_if_done(folder: Path) -> bool:
    """Removes a spool that holds nothing more, its lock being held by the caller; whether it did.

    A writer that still has an empty file there notices at its next record, and makes the folder again.
    """
    for path in folder.glob(f"*{OPEN}"):
        fd = os.open(path, os.O_RDWR)
        try:
            if not _locked_soon(fd) or _says_something(fd):
                return False
            path.unlink()
        finally:
            os.close(fd)
    if {path.name for path in folder.iterdir()} - {_ID, LOCK}:
        return False  # segments, or a damaged one that stands aside
    for name in (_ID, LOCK):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:  # a writer has begun a file meanwhile
        return False
    return True
