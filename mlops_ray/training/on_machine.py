"""Facts of the machine that trains: the code and the packages it runs, and which process drives a run."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import distributions, packages_distributions
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Literal

import psutil

_GIT_S = 10.0


@dataclass(frozen=True)
class Checkout:
    """A checkout's commit, whether tracked files differ from it, and the SHA-256 of `git diff HEAD` when they do."""

    commit: str
    dirty: bool
    diff_sha256: str | None
    of: Literal["folder", "package"] = "folder"
    """Whose it is: the folder's that was asked about, or this package's own."""


def checkout(folder: Path | None = None) -> Checkout | None:
    """The checkout that `folder` is part of; None outside of one, or without `git`.

    Without `folder`: the working directory's, else the one that this package runs from."""
    found = _checkout(folder)
    if found is not None or folder is not None:
        return found
    package = Path(__file__).resolve().parent.parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # installed into an environment that merely lies in somebody's checkout
    own = _checkout(package)
    return None if own is None else replace(own, of="package")


def _checkout(folder: Path | None) -> Checkout | None:
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-color", "--binary") if commit else None
    if not commit or diff is None:
        return None
    dirty = bool(diff)
    return Checkout(commit.decode().strip(), dirty, hashlib.sha256(diff).hexdigest() if dirty else None)


def _git(folder: Path | None, *args: str) -> bytes | None:
    try:
        done = subprocess.run(["git", *args], cwd=folder, capture_output=True, check=False, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Python, platform and every installed distribution with its version, as JSON."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "distributions": dict(sorted(found.items(), key=lambda item: item[0].lower())),
    }


def requirements(modules: Iterable[str]) -> list[str]:
    """What pip must install for these top-level modules, as it is installed here, each pinned.

    A module that no distribution brought (the project's own file) has no entry.
    """
    brought = packages_distributions()
    names = {brought[module][0] for module in modules if module in brought}
    return sorted(f"{name}=={installed(name)}" for name in names)


@dataclass(frozen=True)
class Driver:
    """The identity of a process, unique to its life: `text` is the holder of its leases."""

    host: str
    place: str
    """The kernel's boot and the process namespace: where `pid` means something."""
    pid: int
    started: float
    """Seconds since the epoch."""
    token: str

    @property
    def text(self) -> str:
        """The whole identity in one word."""
        return "/".join((self.host, self.place, str(self.pid), f"{self.started:.2f}", self.token))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @staticmethod
    def parse(text: str) -> Driver | None:
        """The driver that `text` names; None when it is nobody's."""
        parts = text.split("/")
        if len(parts) != 5 or not parts[2].isdigit():
            return None
        return Driver(parts[0], parts[1], int(parts[2]), float(parts[3]), parts[4])

    def lives(self, *, expired: bool) -> bool | None:
        """Whether the process still runs, as far as this machine can tell; None for another machine's.

        Its time of start tells it from a later process with its number only when its lease has `expired`: a clock that
        was set shifts that time, and must not end what runs.
        """
        if (self.host, self.place) != _here():
            return None
        try:
            process = psutil.Process(self.pid)
            ended, started = process.status() == psutil.STATUS_ZOMBIE, process.create_time()
        except psutil.NoSuchProcess:
            return False
        return not ended and (not expired or abs(started - self.started) < 1.0)


def driver() -> Driver:
    """This process, with a token of its own at each call."""
    pid = os.getpid()
    return Driver(*_here(), pid, psutil.Process(pid).create_time(), uuid.uuid4().hex[:12])


@functools.cache
def _here() -> tuple[str, str]:
    """Host and place. Containers share their host's boot, and have process namespaces of their own."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        place = f"{boot.read_text().strip()}:{space.readlink()}"
    except OSError:  # not Linux
        place = f"{psutil.boot_time():.0f}"
    return socket.gethostname().replace("/", "-"), place.replace("/", "-")
