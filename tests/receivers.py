"""Receivers of alerts that answer for real: an HTTP server and an SMTP server, on free ports of this machine."""

from __future__ import annotations

import email
import email.message
import email.policy
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509  # MLflow brings it
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class Posts:
    """What an HTTP receiver got. `answer(n)`: status and headers of the n-th answer, counted from 0."""

    port: int = 0
    answer: Callable[[int], tuple[int, dict[str, str]]] = lambda n: (200, {})
    said: bytes = b"ok"
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/secretword"


@contextmanager
def http_receiver(port: int = 0) -> Iterator[Posts]:
    posts = Posts()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                n = len(posts.got)
                posts.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status, headers = posts.answer(n)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(posts.said)))
            self.end_headers()
            try:
                self.wfile.write(posts.said)
            except OSError:
                self.close_connection = True  # a reader who has had enough

        def log_message(self, *_: Any) -> None:
            pass

    with _serving(ThreadingHTTPServer(("127.0.0.1", port), Handler)) as server:
        posts.port = server.server_address[1]
        yield posts


@dataclass
class Mailbox:
    """What an SMTP server (RFC 5321, as much of it as smtplib asks for) took. `codes`: what it answers to a word
    instead of taking it."""

    port: int = 0
    codes: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    letters: list[email.message.EmailMessage] = field(default_factory=list)


@contextmanager
def smtp_receiver(tls: ssl.SSLContext | None = None, *, implicit: bool = False) -> Iterator[Mailbox]:
    """Args: tls: of the server's certificate, for STARTTLS or, where `implicit`, from the first byte on."""
    box = Mailbox()

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            if tls is not None and implicit:
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()  # of TLS: the server knows only the socket within

        def say(self, line: str) -> None:
            self.wfile.write(line.encode() + b"\r\n")

        def handle(self) -> None:
            self.say("220 receiver")
            while line := self.rfile.readline().decode().strip():
                word = line.split()[0].upper()
                box.words.append(line)
                if word in box.codes:
                    self.say(box.codes[word])
                elif word == "EHLO":
                    self.say("250-receiver")
                    if tls is not None and not implicit:
                        self.say("250-STARTTLS")
                    self.say("250 AUTH PLAIN")
                elif word == "STARTTLS" and tls is not None:
                    self.say("220 go on")
                    self.request = tls.wrap_socket(self.request, server_side=True)
                    super().setup()
                elif word == "AUTH":
                    self.say("235 in")
                elif word == "DATA":
                    self.say("354 go on")
                    lines = []
                    while (part := self.rfile.readline()) != b".\r\n":
                        lines.append(part[1:] if part.startswith(b"..") else part)
                    letter = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
                    assert isinstance(letter, email.message.EmailMessage)
                    box.letters.append(letter)
                    self.say("250 taken")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok")

    with _serving(_Threads(("127.0.0.1", 0), Handler)) as server:
        box.port = server.server_address[1]
        yield box


@contextmanager
def silent_receiver() -> Iterator[int]:
    """The port of one who takes connections, and says a byte now and then and never comes to an end."""
    over = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while not over.wait(0.05):
                try:
                    self.request.sendall(b"2")
                except OSError:
                    return

    with _serving(_Threads(("127.0.0.1", 0), Handler)) as server:
        yield server.server_address[1]
        over.set()


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that do not like our certificate go away, which is no fault of a test."""


@contextmanager
def _serving(server: Any) -> Iterator[Any]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate that nobody but its own file vouches for, and that file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, secret = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, secret)
    return context, file
