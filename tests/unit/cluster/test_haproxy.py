"""The configuration that HAProxy gets in place of Serve's, and whose sockets it takes over."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from mlops_ray.cluster.on_haproxy import UNAVAILABLE, admin_socket, amended, answering, taking_over

# The lines of Ray 2.60's template that matter (haproxy_templates.py), as it renders them.
RENDERED = """global
    log /run/log.sock local0 info
    stats socket /run/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    errorfile 502 /run/500.http
    errorfile 503 /run/500.http
    errorfile 504 /run/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    use_backend http-small if is_http-small
backend http-small
    server one 127.0.0.1:31000 check
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
listen stats
  bind *:8404
  stats enable
"""


def binds(configuration: str) -> list[str]:
    return [line.strip() for line in configuration.splitlines() if line.strip().startswith("bind")]


def test_only_the_front_ends_listen_where_the_project_says() -> None:
    assert binds(amended(RENDERED, "*", "/run/503.http")) == [
        "bind 127.0.0.1:9101", "bind *:8000", "bind *:9000 proto h2", "bind 127.0.0.1:8404",
    ]  # fmt: skip
    assert all(" 127.0.0.1:" in line for line in binds(amended(RENDERED, "127.0.0.1", "/run/503.http")))


def test_what_haproxy_answers_itself_asks_to_try_again() -> None:
    text = amended(RENDERED, "127.0.0.1", "/run/503.http")
    assert [line.split()[1:] for line in text.splitlines() if line.split()[0] == "errorfile"] == [
        ["502", "/run/503.http"], ["503", "/run/503.http"], ["504", "/run/503.http"],
    ]  # fmt: skip
    head, _, body = UNAVAILABLE.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert body.startswith(b'{"type": "about:blank"')


def test_serves_own_proxy_asks_to_try_again_too() -> None:
    lines = amended(RENDERED, "127.0.0.1", "/run/503.http").splitlines()
    rule = lines[lines.index("backend http-small") + 1].split()
    assert rule[:6] == ["http-response", "return", "status", "503", "errorfile", "/run/503.http"]
    assert "SERVE_PROXY_ACTOR" in rule


def test_everything_else_stays_as_serve_wrote_it() -> None:
    after = amended(RENDERED, "127.0.0.1", "/run/500.http")
    added = [line for line in after.splitlines() if line not in RENDERED.splitlines()]
    assert [line.split()[0] for line in added] == ["bind", "http-response", "bind"]
    assert amended(after, "127.0.0.1", "/run/500.http") == after


def test_the_admin_socket_is_found_or_missed_aloud() -> None:
    assert admin_socket(RENDERED) == "/run/admin.sock"
    with pytest.raises(SystemExit, match="stats socket"):
        admin_socket("global\n")


START = ["-db", "-f", "/run/haproxy.cfg", "-dR"]


@pytest.mark.parametrize(
    ("arguments", "running", "after"),
    [
        (START, {}, START),
        (START, {"/run/substitute.sock": 7}, [*START, "-x", "/run/substitute.sock", "-sf", "7"]),
        ([*START, "-sf", "5", "-x", "/run/a.sock"], {"/run/a.sock": 5}, [*START, "-x", "/run/a.sock", "-sf", "5"]),
        (
            [*START, "-sf", "5", "4", "-x", "/run/a.sock"],
            {"/run/substitute.sock": 7, "/run/a.sock": 5},
            [*START, "-x", "/run/substitute.sock", "-sf", "7", "5", "4"],
        ),
    ],
    ids=["first", "after a substitute", "reload", "reload while a substitute runs"],
)
def test_sockets_are_taken_from_whoever_has_them(
    arguments: list[str], running: dict[str, int], after: list[str]
) -> None:
    assert taking_over(arguments, running) == after


def test_an_admin_socket_says_who_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    assert answering(path) is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            with client:
                assert client.recv(100) == b"show info\n"
                client.sendall(f"Name: HAProxy\nPid: {os.getpid()}\nUptime: 0d\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        assert answering(path) == os.getpid()
        thread.join()
    assert answering(path) is None  # the file is there, nobody listens
