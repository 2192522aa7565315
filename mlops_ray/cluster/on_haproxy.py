"""What Ray Serve starts as its HAProxy on a cluster of our own: the real one, on loopback, and somebody to watch it.

`RAY_SERVE_HAPROXY_BINARY_PATH` names a script that runs this file. It amends the configuration that Serve has written,
leaves a keeper behind, and becomes HAProxy itself (`exec`), because Serve asks the admin socket for the process id of
what it started. Only the standard library is imported, and nothing of this package: Serve waits for it at each reload.

Why: Serve's template binds the statistics and metrics ports to all interfaces and has no setting for it. Serve notices
a dead HAProxy by its health checks only, and starts the next one in a new actor, seconds later; until then the keeper
puts a substitute in its place, from the same configuration, which hands its sockets over when Serve's next one comes.
And an HAProxy whose cluster is gone would keep its port for ever: the keeper ends it.

Source: HAProxy 2.8 management guide, sections 3 (`-sf`, `-x`) and 9.3 (`show info`).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

FRONT = "MLOPS_RAY_HAPROXY_FRONT"
"""Environment: the address that the front end listens on, as HAProxy writes it; everything else is on loopback."""
BINARY = "MLOPS_RAY_HAPROXY_BINARY"
"""Environment: path of the real HAProxy."""

# After Serve's actor has gone: how long its successor may take before the substitute thinks that none will come.
_SUCCESSOR_S = 30.0
# Between two attempts to start a substitute, at first and at most: the port of a killed process may take a moment.
_AGAIN_S = 0.1
_AGAIN_MAX_S = 5.0
_ANSWER_S = 1.0

# HAProxy's own answers when no replica could take a request (503), one died over it (502) or was silent (504). Serve
# makes 500 of them all, which tells clients not to try again; they may.
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: application/problem+json\r\n"
    b"Retry-After: 1\r\n"
    b"Cache-Control: no-store\r\n"
    b"Connection: close\r\n\r\n"
    b'{"type": "about:blank", "title": "not available", "status": 503, "detail": "no replica answered; try again"}'
)


def amended(configuration: str, front: str, unavailable: str) -> str:
    """Serve's configuration with only the front ends on `front`, and everything else on loopback.

    Args: front: an address, or `*` for all interfaces. unavailable: file with the answer for 502, 503 and 504."""

    def bind(found: re.Match[str]) -> str:
        return f"{found[1]}bind {front if in_front(found.start()) else '127.0.0.1'}:{found[2]}"

    def in_front(at: int) -> bool:
        sections = re.findall(r"^(?:frontend|listen|backend|global|defaults)\b.*$", configuration[:at], flags=re.M)
        return bool(sections) and sections[-1].split()[1:] in (["http_frontend"], ["grpc_frontend"])

    text = re.sub(r"^([ \t]*)bind \S*?:(\d+)", bind, configuration, flags=re.M)
    text = re.sub(r"^([ \t]*errorfile 50[234]) .*$", rf"\1 {unavailable}", text, flags=re.M)
    # So does Serve's own proxy, to which requests go while no replica lives: 408 when they waited too long for one.
    rule = (
        f"    http-response return status 503 errorfile {unavailable} "
        "if { srv_name -m beg SERVE_PROXY_ACTOR } { status 408 500 }"
    )
    return re.sub(rf"^(backend http-\S+\n)(?!{re.escape(rule)})", rf"\1{rule}\n", text, flags=re.M)


def admin_socket(configuration: str) -> str:
    """Path of the `stats socket` of a configuration."""
    found = re.search(r"^[ \t]*stats socket (\S+)", configuration, flags=re.M)
    if found is None:
        raise SystemExit("the configuration names no `stats socket`")
    return found[1]


def taking_over(arguments: Sequence[str], running: Mapping[str, int]) -> list[str]:
    """HAProxy's arguments, so that it takes the sockets of those that are `running` (process id by admin socket)
    and has them finish, whether or not Serve knows of them."""
    if not running:
        return list(arguments)
    given, finishing, state = [], [str(pid) for pid in running.values()], ""
    for word in arguments:
        if word.startswith("-"):
            state = word
        if state == "-sf" and word.isdigit():
            finishing += [word] if word not in finishing else []
        elif state not in ("-sf", "-x"):
            given.append(word)
    return [*given, "-x", next(iter(running)), "-sf", *finishing]


def answering(path: str) -> int | None:
    """Process id of the HAProxy that answers on an admin socket, or None."""
    with contextlib.suppress(OSError, ValueError, IndexError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_S)
        client.connect(path)
        client.sendall(b"show info\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
        return int(answer.partition(b"\nPid:")[2].split(b"\n")[0])
    return None


def main(arguments: Sequence[str]) -> None:
    """Become HAProxy with these arguments, which are Serve's."""
    binary = os.environ[BINARY]
    if "-f" not in arguments:  # asked for its version
        os.execv(binary, [binary, *arguments])
    file = Path(arguments[arguments.index("-f") + 1])
    unavailable = file.with_name("unavailable.http")
    unavailable.write_bytes(UNAVAILABLE)
    text = amended(file.read_text(encoding="utf-8"), os.environ.get(FRONT, "127.0.0.1"), str(unavailable))
    own = admin_socket(text)
    running = {path: pid for path in (_substitutes(own), own) if (pid := answering(path)) is not None}
    # Serve's new actor knows no routes until it has heard of them, and would answer 404 for half a second.
    last = file.with_name("last.cfg")
    if re.search(r"^[ \t]*use_backend ", text, flags=re.M):
        _write(last, text)
    elif running and "-sf" not in arguments and last.exists():
        text = last.read_text(encoding="utf-8")
    _write(file, text)
    keeper = Keeper(binary, file, own)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:  # an orphan on purpose: HAProxy would not reap a child that it does not know
            keeper.keep()
        os._exit(0)
    os.wait()
    os.execv(binary, [binary, *taking_over(arguments, running)])


def _substitutes(own: str) -> str:
    """Admin socket of a substitute: another one, so that Serve's health check fails and Serve starts the next."""
    return str(Path(own).with_name("substitute.sock"))


class Keeper:
    """Watches the HAProxy that this process is about to become, by file descriptors that tell of a process's end."""

    def __init__(self, binary: str, file: Path, own: str) -> None:
        self._binary, self._file, self._own = binary, file, own
        self._haproxy = os.pidfd_open(os.getpid())
        # Serve's actor, and the node manager above it, with which the cluster ends.
        self._actor = os.pidfd_open(os.getppid())
        self._node = os.pidfd_open(_parent(os.getppid()))

    def keep(self) -> None:
        """Return when there is nothing left to watch: another took over, or the cluster has ended."""
        gone: set[int] = set()
        while self._haproxy not in gone:
            gone |= _ended({self._haproxy, self._actor, self._node} - gone)
            if self._node in gone:
                _end(self._haproxy)
                return
        if answering(self._own) is None:
            self._substitute(gone)

    def _substitute(self, gone: set[int]) -> None:
        """Run a substitute until Serve's next HAProxy has its sockets, or nobody will come for them."""
        own = _substitutes(self._own)
        configuration = self._file.with_name("substitute.cfg")
        _write(configuration, self._file.read_text(encoding="utf-8").replace(self._own, own))
        actor_gone = time.monotonic() if self._actor in gone else None
        again = _AGAIN_S
        while True:
            pid = os.posix_spawn(self._binary, [self._binary, "-db", "-dR", "-f", str(configuration)], os.environ)
            process = os.pidfd_open(pid)
            status = None
            while status is None:
                left = None if actor_gone is None else actor_gone + _SUCCESSOR_S - time.monotonic()
                gone |= _ended({process, self._actor, self._node} - gone, left)
                if actor_gone is None and self._actor in gone:
                    actor_gone = time.monotonic()
                over = self._node in gone or (left is not None and left <= 0)
                if over and process not in gone:
                    _end(process)
                if over or process in gone:
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(process)
            gone.discard(process)
            if over or status == 0 or answering(self._own) is not None:  # 0: finished after its sockets were taken
                return
            gone |= _ended({self._node} - gone, again)
            again = min(again * 2, _AGAIN_MAX_S)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a keeper may read it at any time."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _ended(processes: Iterable[int], timeout_s: float | None = None) -> set[int]:
    """Those whose process has ended; waits until there is one, at most `timeout_s`."""
    poll = select.poll()
    for process in processes:
        poll.register(process, select.POLLIN)
    wait = None if timeout_s is None else max(0, int(timeout_s * 1000))
    return {descriptor for descriptor, _ in poll.poll(wait)}


def _end(process: int) -> None:
    """Politely, and after a second not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, number)
        if _ended({process}, 1.0):
            return


if __name__ == "__main__":
    main(sys.argv[1:])
