"""The dashboard over HTTP: a page that tells nobody anything, and the document that it asks for with a token.

The document is made in a thread of its own, by one at a time and for all who ask within `FRESH_S`: however many
watch, predictions and orders wait for none of it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from mlops_ray.config import Project
from mlops_ray.dashboard import page
from mlops_ray.dashboard.document import document, to_json
from mlops_ray.dashboard.gathered import gather
from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols.bodies import JSON
from mlops_ray.serving.protocols.parts import Operation, answered, refusals
from mlops_ray.serving.web.calls import Call, Route
from mlops_ray.serving.web.foreign import installed
from mlops_ray.state import Store

FRESH_S = 2.0
"""How long a replica gives the same document to all who ask."""
HTML = "text/html; charset=utf-8"


def routes(project: Project, store: Store) -> tuple[Route, ...]:
    """`/dashboard`, and the data that it shows."""
    board = _Board(project, store)
    return (
        Route("GET", "/dashboard", None, board.page, measured=False),
        Route("GET", "/dashboard/data", Role.READ, board.data, order=True),
    )


def operations() -> tuple[Operation, ...]:
    """One for each of the routes."""
    shown = answered({"text/html": {"schema": {"type": "string"}}}, versioned=False, says="The page.")
    told = answered({JSON: {"schema": {"type": "object"}}}, versioned=False, says="The document.")
    tag = {"type": "string", "pattern": '^"[0-9a-f]+"$'}
    told["headers"]["ETag"] = {"description": "Names this very document.", "schema": tag}
    same: dict[str, Any] = {"description": "It is still the one that was named."}
    page_of = {
        "tags": ["operation"],
        "summary": "The dashboard, for people",
        "description": "It needs no token, and shows nothing until one is given to it.",
        "responses": {"200": shown, **refusals(500)},
    }
    data_of = {
        "tags": ["operation"],
        "summary": "What the dashboard shows",
        "description": f"Where the loop stands, from the state database; at most {FRESH_S:g} s old. Sent back as "
        "`If-None-Match`, its `ETag` asks for no more than news.",
        "responses": {"200": told, "304": same, **refusals(408, 413, 500, 503)},
    }
    return ("get", "/dashboard", "", page_of), ("get", "/dashboard/data", "read", data_of)


@dataclass(frozen=True)
class _Made:
    """A document as it is sent, and when it was made, seconds since the epoch."""

    at: float
    body: bytes
    tag: str


class _Board:
    """Handlers of one replica."""

    def __init__(self, project: Project, store: Store) -> None:
        self._project, self._store = project, store
        self._thread, self._making = ThreadPoolExecutor(1, "dashboard"), asyncio.Lock()
        self._made: _Made | None = None

    async def page(self, call: Call) -> Reply:
        """`GET /dashboard`"""
        return self._page

    @functools.cached_property
    def _page(self) -> Reply:
        headers = (("Content-Security-Policy", page.policy()),)
        return Reply(page.live(self._project.project).encode(), HTML, headers=headers)

    async def data(self, call: Call) -> Reply:
        """`GET /dashboard/data`"""
        async with self._making:
            if self._made is None or not 0 <= call.now - self._made.at < FRESH_S:
                loop = asyncio.get_running_loop()
                self._made = await loop.run_in_executor(self._thread, self._make, call.now)
            made = self._made
        tags = {tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(",")}
        status, body = (304, b"") if tags & {made.tag, "*"} else (200, made.body)
        return Reply(body, status=status, headers=(("ETag", made.tag),))

    def _make(self, now: float) -> _Made:
        """Raises: BackendUnavailable."""
        try:
            gathered = gather(self._store, self._project, machine_now=now)
        except SQLAlchemyError as exc:
            raise BackendUnavailable("the state database", f"{type(exc).__name__}; try again shortly") from exc
        body = to_json(document(gathered, release=installed("mlops-ray")))
        return _Made(now, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
