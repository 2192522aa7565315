"""The HTTP surface of a project: an ASGI application without a framework on a request's path.

`routes` is the whole of it: the document of the interface and the test of access enumerate the same table that
requests are looked up in. A request is refused as early as can be: unknown path, wrong method, missing token, too many
requests in hand and too large a body before anything is parsed. Errors are problem details (RFC 9457); every answer
carries `X-Request-Id` and the security headers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving.access import Open, Role
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols import feedback, native, problem
from mlops_ray.serving.service import Service
from mlops_ray.serving.web import documents, foreign
from mlops_ray.serving.web.admission import Gone, Message, Ongoing, Receive, read
from mlops_ray.serving.web.calls import NOTHING, Access, Call, Extension, Route, demand_json, scored, with_headers

_log = logging.getLogger(__name__)

Send = Callable[[Message], Awaitable[None]]

# OWASP's list for interfaces that no browser renders; the page of documents brings a policy of its own.
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
# Of routes that are about the project: requests in hand, and what the body of one may be.
_MOST_ORDERS, _ORDER_BYTES = 16, 65_536
# What a client may choose as an id for its own traces. An Idempotency-Key is wider, since people have such keys.
_TRACE = re.compile(r"[A-Za-z0-9._~+/=@-]{1,128}")
_KEY = re.compile(r"[!-9;-~]([ -9;-~]{0,198}[!-9;-~])?")


class Application:
    """The ASGI 3.0 application. `service` and `access` are asked at each request: a replica has them once started."""

    def __init__(
        self,
        service: Callable[[], Service],
        access: Callable[[], Access] = Open,
        extension: Extension = NOTHING,
    ) -> None:
        self._service, self._access = service, access
        self._fixed, self._shaped = _table(routes(extension))
        self._ongoing, self._orders = Ongoing(), Ongoing()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """ASGI's entrance."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000, "reason": "HTTP only"})

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path: str = scope["path"]
        if (root := scope.get("root_path")) and path.startswith(root):
            path = path[len(root) :]
        method: str = scope["method"]
        call = Call(path, headers, time.time(), self._service(), self._access(), os.urandom(16).hex(), False)
        try:
            try:
                reply = await self._answered(call, method, receive)
            except Gone:
                return
            except BadRequest as exc:
                reply = _problem(exc, scope["path"], path)
            except BackendUnavailable as exc:
                reply = _problem(BadRequest(503, "not available", str(exc)), scope["path"], path)
        except Exception:  # noqa: BLE001 - outermost: no traceback leaves the process
            _log.exception("request %s %s failed", call.id, path)
            reply = _problem(
                BadRequest(500, "internal error", "the replica's log has the details"), scope["path"], path
            )
        await _send(send, reply, call, head=method == "HEAD")

    async def _answered(self, call: Call, method: str, receive: Receive) -> Reply:
        methods = self._fixed.get(call.path) or self._match(call)
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            refused = BadRequest(405, "method not allowed", f"{call.path} takes {allowed}, not {method}")
            return with_headers(_problem(refused, call.path, call.path), ("Allow", allowed))
        if route.role is not None:
            call.demand(route.role)
        if "x-model-version" in call.headers and route.role is Role.PREDICT:
            call.demand(Role.OPERATE)
        identify(call)
        if not route.measured:
            return await route.handler(call)
        serving = call.service.project.serving
        if route.order:
            ongoing, most, limit = self._orders, _MOST_ORDERS, _ORDER_BYTES
        else:
            ongoing, most, limit = self._ongoing, serving.max_ongoing_requests, int(serving.max_body_mb * 1024 * 1024)
        ongoing.demand_room(most)
        with ongoing.one(serving.request_timeout_s) as turn:
            if method == "POST":
                call.body = await read(call.headers, receive, limit, lambda n_bytes: turn.hold(n_bytes, most * limit))
            turn.begin(most)
            return await route.handler(call)

    def _match(self, call: Call) -> dict[str, Route]:
        """The methods of a path with parameters, which the call then has. Raises: BadRequest (404)."""
        for shape, methods in self._shaped:
            if found := shape.fullmatch(call.path):
                call.params = found.groupdict()
                return methods
        raise BadRequest(404, "not found", f"{call.path[:200]} does not exist; /docs lists what does")


# --- the routes ---


def routes(extension: Extension = NOTHING) -> tuple[Route, ...]:
    """Everything that an application with this extension answers."""
    return (
        Route("POST", "/predict", Role.PREDICT, _predict),
        Route("POST", "/feedback", Role.FEEDBACK, _feedback),
        Route("POST", "/watermark", Role.FEEDBACK, _watermark),
        Route("GET", "/healthz", Role.READ, _healthz, measured=False),
        Route("GET", "/readyz", Role.READ, _readyz, measured=False),
        *documents.routes(extension),
        *foreign.routes(),
        *extension.routes,
    )


async def _predict(call: Call) -> Reply:
    return await scored(call, native.parse(call.body, call.headers, call.service.form, now=call.now), native.reply)


async def _feedback(call: Call) -> Reply:
    demand_json(call)
    labels = feedback.parse(call.body, call.service.form, now=call.now, classes=_classes(call))
    return _json({"accepted": await call.service.feedback(labels)}, 202)


async def _watermark(call: Call) -> Reply:
    demand_json(call)
    at = feedback.parse_watermark(call.body, now=call.now)
    await call.service.watermark(at)
    return _json({"watermark": at}, 202)


async def _healthz(call: Call) -> Reply:
    return _json({"status": "ok"})


async def _readyz(call: Call) -> Reply:
    return _json(call.service.status(), 200 if call.service.ready() else 503)


def _classes(call: Call) -> list[Any]:
    """What a label may be, of any loaded version."""
    return sorted({name for model in call.service.models() for name in model.classes}, key=str)


# --- requests ---


def _table(
    every: tuple[Route, ...],
) -> tuple[dict[str, dict[str, Route]], list[tuple[re.Pattern[str], dict[str, Route]]]]:
    """Methods by path, for paths as they stand; and for those with parameters, by what they must match."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in every:
        by_path.setdefault(route.path, {})[route.method] = route
        if route.method == "GET":  # RFC 9110, 9.3.2: the same answer without its body
            by_path[route.path]["HEAD"] = route
    fixed = {path: methods for path, methods in by_path.items() if "{" not in path}
    shaped = [
        (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))), methods)
        for path, methods in by_path.items()
        if "{" in path
    ]
    return fixed, shaped


def identify(call: Call) -> None:
    """Give the call its client's Idempotency-Key as id, so that a retry is one prediction. Raises: BadRequest (400)."""
    given = call.headers.get("idempotency-key")
    if given is None:
        return
    if _KEY.fullmatch(given) is None:
        raise BadRequest(400, "bad Idempotency-Key", "use 1 to 200 printable ASCII characters without ':'")
    call.id, call.repeatable = given, True


# --- replies ---


class _Start(dict[str, Any]):
    """The first message of an answer, whose headers stand: Ray Serve's middleware would give every answer a second
    X-Request-Id."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key != "headers":
            super().__setitem__(key, value)

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Pickled as an ordinary one: unpickling sets item by item, and Serve's own proxy would find no headers."""
        return dict, (dict(self),)


async def _send(send: Send, reply: Reply, call: Call, *, head: bool) -> None:
    headers = [
        (b"x-request-id", _traced(call)),
        *_SECURITY,
    ]
    if reply.status != 304:  # which speaks of a body that it has not (RFC 9110, 15.4.5)
        headers.append((b"content-type", reply.media_type.encode("latin-1")))
        headers.append((b"content-length", str(len(reply.body)).encode("latin-1")))
    policy = True
    for name, value in reply.headers:
        lower = name.lower().encode("latin-1")
        policy = policy and lower != _POLICY[0]
        headers.append((lower, value.encode("latin-1")))
    if policy:
        headers.append(_POLICY)
    # A write wakes who waits for it, which can take this process 40 microseconds, more than the score does. So what
    # else came in the same round of the loop is worked out before the first answer leaves; the others find it awake.
    await asyncio.sleep(0)
    await send(_Start(type="http.response.start", status=reply.status, headers=headers))
    await send({"type": "http.response.body", "body": b"" if head else reply.body})


def _traced(call: Call) -> bytes:
    """What the answer's X-Request-Id says: the call's own id, or the one that the client traces its request by."""
    if not call.repeatable and (given := call.headers.get("x-request-id")) is not None and _TRACE.fullmatch(given):
        return given.encode("latin-1")
    return call.id.encode("latin-1")


def _json(content: object, status: int = 200) -> Reply:
    return Reply(orjson.dumps(content), status=status)


def _problem(error: BadRequest, instance: str, path: str) -> Reply:
    """An error of the request `instance`, which is `path` of this application, where clients of others have a say."""
    headers: tuple[tuple[str, str], ...] = ()
    if error.status == 503:
        headers = (("Retry-After", "1"),)
    elif error.status == 401:
        headers = (("WWW-Authenticate", "Bearer"),)  # RFC 6750, 3
    return Reply(
        problem.problem(error, instance, foreign.members(error, path)), problem.MEDIA_TYPE, error.status, headers
    )


async def lifespan(receive: Receive, send: Send) -> None:
    """ASGI's lifespan protocol: whoever makes the application has its state ready before."""
    while True:
        stage = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{stage}.complete"})
        if stage == "shutdown":
            return
