"""The HTTP surface of a project: Starlette routes around a `Service`. Errors are problem details (RFC 9457)."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable

import orjson
import xxhash
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlops_ray.config import Project
from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving import protocol
from mlops_ray.serving.service import Service

_log = logging.getLogger(__name__)

_JSON = "application/json"
_PROBLEM = "application/problem+json"


def application(service: Callable[[], Service]) -> Starlette:
    """The ASGI application; `service()` is asked at each request, since a replica has it only after starting."""

    async def predict(request: Request) -> Response:
        now = time.time()
        current = service()
        body = await _body(request, current.project)
        batch = protocol.parse_predict(protocol.parse_json(body), current.form, now=now)
        return _answer(await current.predict(_request_id(request), batch, xxhash.xxh3_64_intdigest(body)))

    async def feedback(request: Request) -> Response:
        current = service()
        document = protocol.parse_json(await _body(request, current.project))
        labels = protocol.parse_feedback(document, now=time.time())
        return _answer({"accepted": current.feedback(labels)}, 202)

    async def watermark(request: Request) -> Response:
        current = service()
        at = protocol.parse_watermark(protocol.parse_json(await _body(request, current.project)), now=time.time())
        current.watermark(at)
        return _answer({"watermark": at}, 202)

    async def healthz(request: Request) -> Response:
        return _answer({"status": "ok"})

    async def readyz(request: Request) -> Response:
        current = service()
        return _answer(current.status(), 200 if current.ready() else 503)

    return Starlette(
        routes=[
            Route("/predict", _guarded(predict), methods=["POST"]),
            Route("/feedback", _guarded(feedback), methods=["POST"]),
            Route("/watermark", _guarded(watermark), methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
        exception_handlers={HTTPException: _no_route},
    )


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as exc:
            return Response(protocol.problem(exc, request.url.path), exc.status, media_type=_PROBLEM)
        except BackendUnavailable as exc:
            trouble = BadRequest(503, "not available", str(exc))
            body = protocol.problem(trouble, request.url.path)
            return Response(body, 503, media_type=_PROBLEM, headers={"Retry-After": "1"})
        except Exception:  # noqa: BLE001 - outermost: no traceback leaves the process
            _log.exception("request %s failed", request.url.path)
            trouble = BadRequest(500, "internal error", "the replica's log has the details")
            return Response(protocol.problem(trouble, request.url.path), 500, media_type=_PROBLEM)

    return guarded


async def _no_route(request: Request, error: Exception) -> Response:
    """Unknown path (404) or method (405)."""
    assert isinstance(error, HTTPException)
    trouble = BadRequest(error.status_code, error.detail.lower(), f"{request.method} {request.url.path} does not exist")
    body = protocol.problem(trouble, request.url.path)
    return Response(body, error.status_code, media_type=_PROBLEM, headers=error.headers)


def _answer(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=_JSON)


def _request_id(request: Request) -> str:
    """The client's Idempotency-Key (a retry is one prediction), else a new id."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return uuid.uuid4().hex
    if not 1 <= len(given) <= 200 or not given.isprintable() or ":" in given:
        raise BadRequest(400, "bad Idempotency-Key", "use 1 to 200 printable characters without ':'")
    return given


async def _body(request: Request, project: Project) -> bytes:
    media = request.headers.get("content-type", _JSON).partition(";")[0].strip().lower()
    if media != _JSON:
        raise BadRequest(415, "unsupported media type", f"send {_JSON}, not {media!r}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest(415, "unsupported content encoding", "send the body uncompressed")
    limit = int(project.serving.max_body_mb * 1024 * 1024)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BadRequest(413, "body too large", f"the limit is {limit} bytes; send fewer rows at a time")
        chunks.append(chunk)
    return b"".join(chunks)
