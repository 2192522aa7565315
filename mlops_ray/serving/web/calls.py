"""One request on its way through the application, and what a route is: what handlers of all protocols share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import xxhash

from mlops_ray.errors import BadRequest
from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Answer, Asked, Reply
from mlops_ray.serving.protocols import bodies
from mlops_ray.serving.protocols.cells import MOST_KEY
from mlops_ray.serving.protocols.parts import Operation
from mlops_ray.serving.service import Service


class Access(Protocol):
    """Who may ask what; `access.Access` and `access.Open` are two."""

    def demand(self, authorization: str | None, role: Role, *, now: float) -> str:
        """The subject's name. Raises: BadRequest (401, 403)."""
        ...


@dataclass(eq=False)
class Call:
    """One request on its way. body: b"" until it was read. now: when it came, seconds since the epoch.

    headers: by name in lower case. id: names the request in the answer and in the log. repeatable: the id is the
    client's Idempotency-Key.
    """

    path: str
    headers: Mapping[str, str]
    now: float
    service: Service
    access: Access
    id: str
    repeatable: bool
    body: bytes = b""
    params: Mapping[str, str] | None = None

    def demand(self, role: Role) -> str:
        """The subject, who must have this role. Raises: BadRequest (401, 403)."""
        return self.access.demand(self.headers.get("authorization"), role, now=self.now)


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """One method of one path. path: with `{name}` for segments that are parameters. role: None for what tells nobody
    anything, such as a page that asks for a token itself.

    measured: it counts towards `max_ongoing_requests` and stands under `request_timeout_s`; health does not, so that an
    overloaded replica still says that it lives. order: it is about the project and not a prediction, may wait for the
    state database, and counts with its like alone, so that neither holds up the other.
    """

    method: str
    path: str
    role: Role | None
    handler: Handler
    measured: bool = True
    order: bool = False


@dataclass(frozen=True)
class Extension:
    """Routes of later rooms that a project's endpoint answers too, and what the documents say of them: their tag with a
    sentence, and an operation for each."""

    routes: tuple[Route, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    operations: tuple[Operation, ...] = ()


NOTHING = Extension()


async def scored(call: Call, asked: Asked, reply: Callable[[Asked, Answer], Reply]) -> Reply:
    """A parsed request's answer in its protocol's shape, under the version that the request pins, if any."""
    pinned = call.headers.get("x-model-version")
    if pinned is not None:
        if not (pinned.isascii() and pinned.isdecimal() and len(pinned) < 10):
            raise BadRequest(400, "bad X-Model-Version", f"it must be a version's number, not {pinned[:40]!r}")
        asked = replace(asked, options=replace(asked.options, version=int(pinned)))
    elif asked.options.version is not None:
        call.demand(Role.OPERATE)
    said = ""
    if (header := call.service.project.serving.key_header) and asked.batch.keys is None:
        said = call.headers.get(header.lower(), "")
        asked = _keyed(call, asked, header.lower())
    fingerprint = _fingerprint(call.body, asked.options.version or 0, said) if call.repeatable else 0
    answer = await call.service.predict(call.id, asked, repeatable=call.repeatable, fingerprint=fingerprint)
    given = reply(asked, answer)
    versions = answer.versions
    if len(versions) == 1 or bool((versions == versions[0]).all()):
        return with_headers(given, ("X-Model-Version", str(versions[0])))
    return given


def _fingerprint(body: bytes, version: int, key: str) -> int:
    """Of what was asked: body, and what headers say about it."""
    return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(f"{version} {key}".encode()))


def _keyed(call: Call, asked: Asked, header: str) -> Asked:
    """The request with the key of all its rows from `serving.key_header`, if sent. Raises: BadRequest (400)."""
    sent = call.headers.get(header)
    if sent is None:
        return asked
    try:
        key = sent.encode("latin-1").decode()  # the bytes as they came: a key in a body is UTF-8 as well
    except UnicodeDecodeError as exc:
        raise BadRequest(400, f"bad {header}", "its bytes are no UTF-8") from exc
    if not 1 <= len(key) <= MOST_KEY or not key.isprintable():
        raise BadRequest(400, f"bad {header}", f"use 1 to {MOST_KEY:,} printable characters")
    return replace(asked, batch=replace(asked.batch, keys=(key,) * asked.batch.n_rows))


def demand_json(call: Call) -> None:
    """Raises: BadRequest (415) where the body is said to be something else."""
    sent = bodies.media_type(call.headers.get("content-type"), bodies.JSON)
    if sent != bodies.JSON:
        raise BadRequest(415, "unsupported media type", f"send {bodies.JSON}, not {sent[:60]!r}")


def with_headers(reply: Reply, *headers: tuple[str, str]) -> Reply:
    """The reply with further headers."""
    return Reply(reply.body, reply.media_type, reply.status, (*reply.headers, *headers))
