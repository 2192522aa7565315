"""The spool: one append-only segment file per writer, claimed whole by the node's collector.

A record is one line of JSON and stands in the file (one `write` call; `durability: disk` adds fsync) before its
answer leaves. Writer and collector agree through an advisory lock: the writer appends under it, the collector renames
under it; a writer that finds its file renamed opens a new one. A killed process lets go of its lock, and the torn line
that it may leave was never acknowledged.
"""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

_OPEN = ".open"
_CLAIMED = re.compile(r"^(\d{12})-[0-9a-f]+\.claimed$")


class SpoolWriter:
    """Appends records for one process. Not thread-safe: one writer per event loop."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._fsync = folder, fsync
        self._fd, self._path, self._inode = -1, folder, 0
        self._open()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record. When this returns, the record survives the death of the process.

        Raises: OSError when the disk refuses; the caller must not acknowledge then.
        """
        line = orjson.dumps(record, _strings, orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        while not self._still_ours():
            self._open()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            start = os.lseek(self._fd, 0, os.SEEK_END)
            written = os.write(self._fd, line)
            if written != len(line):  # a full disk can take part of a line: leave none of it behind
                os.ftruncate(self._fd, start)
                raise OSError(28, "the spool's disk is full", str(self._path))
            if self._fsync:
                os.fsync(self._fd)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; what it holds waits for the collector."""
        os.close(self._fd)
        self._fd = -1

    def _open(self) -> None:
        path = self._folder / f"{uuid.uuid4().hex}{_OPEN}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self._fd >= 0:  # only now: were opening to fail, a closed number could soon be somebody else's file
            os.close(self._fd)
        self._fd, self._path, self._inode = fd, path, os.fstat(fd).st_ino

    def _still_ours(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False


def _strings(value: Any) -> Any:
    """What orjson does not take by itself: arrays of strings."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


@dataclass(frozen=True)
class Segment:
    """A claimed file: no writer appends to it any more."""

    number: int
    path: Path

    def records(self) -> Iterator[dict[str, Any]]:
        """Its whole records in order; a torn last line, never acknowledged, is left out."""
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield orjson.loads(line)


def claimed(folder: Path) -> list[Segment]:
    """Segments claimed earlier and not yet removed, by number."""
    found = ((path, _CLAIMED.match(path.name)) for path in folder.glob("*.claimed"))
    return sorted((Segment(int(m[1]), path) for path, m in found if m), key=lambda s: s.number)


def claim(folder: Path, next_number: int) -> list[Segment]:
    """Claim every file that writers have open and that holds something, giving out numbers from `next_number` on.

    Only the one collector that owns the folder may call this. A file whose lock is held is waited for: writers hold
    it for microseconds.
    """
    segments: list[Segment] = []
    for path in sorted(folder.glob(f"*{_OPEN}")):
        if path.stat().st_size == 0:  # a writer that has had nothing to say yet
            continue
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            number = next_number + len(segments)
            target = folder / f"{number:012d}-{path.stem}.claimed"
            path.rename(target)
        finally:
            os.close(fd)
        segments.append(Segment(number, target))
    return segments


def lock_folder(folder: Path) -> int | None:
    """Own the spool: a file descriptor that holds it until closed or the process dies; None when another owns it."""
    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
