"""What of a request is let in: how many at a time, for how long, and how much of a body."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from mlops_ray.errors import BackendUnavailable, BadRequest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# A body that inflates to more than this is inflated beside the event loop: it takes a millisecond for 200 KB.
_INFLATE_INLINE = 16_384


class Ongoing:
    """Requests in hand: at most so many, and each for so long.

    One timer for all of them, since one for each costs 6 microseconds: a request may take a tenth longer than that.
    """

    def __init__(self) -> None:
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def one(self, most: int, timeout_s: float) -> Iterator[None]:
        """Around a request. Raises: BackendUnavailable when there are `most` already, or when it takes too long."""
        if len(self._ends) >= most:
            raise BackendUnavailable("this replica", f"it has {most} requests in hand; try again shortly")
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._ends[task] = loop.time() + timeout_s
        if self._timer is None:
            self._timer = loop.call_later(timeout_s / 10, self._look, loop, timeout_s / 10)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise BackendUnavailable("this replica", f"the request took longer than {timeout_s:g} s") from None
        finally:
            self._late.discard(task)
            del self._ends[task]

    def _look(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        now = loop.time()
        for task, end in self._ends.items():
            if now >= end and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._timer = loop.call_later(every_s, self._look, loop, every_s) if self._ends else None


class Gone(Exception):
    """The client closed the connection before its request was complete."""


async def read(headers: Mapping[str, str], receive: Receive, limit: int) -> bytes:
    """The request's body, never more than `limit` bytes of it in hand.

    Args: headers: by name in lower case. Raises: BadRequest (400, 413, 415), Gone.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        detail = f"send the body uncompressed or as gzip, not {encoding[:40]!r}"
        raise BadRequest(415, "unsupported content encoding", detail)
    stated = headers.get("content-length", "")
    if stated.isdecimal() and (len(stated) > 15 or int(stated) > limit):
        raise _too_large(limit)
    whole, more = await _next(receive)
    if more:
        pieces = bytearray(whole)
        while more and len(pieces) <= limit:
            piece, more = await _next(receive)
            pieces += piece
        whole = bytes(pieces)
    if len(whole) > limit:
        # The server goes on reading what still comes, and drops it: a client that only listens once it has sent all of
        # its body gets the answer too.
        raise _too_large(limit)
    if encoding == "identity":
        return whole
    if len(whole) <= _INFLATE_INLINE:
        return _inflated(whole, limit)
    return await asyncio.get_running_loop().run_in_executor(None, _inflated, whole, limit)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """A piece of the body, and whether there is more. Raises: Gone."""
    message = await receive()
    if message["type"] != "http.request":
        raise Gone
    return message.get("body", b""), message.get("more_body", False)


def _inflated(body: bytes, limit: int) -> bytes:
    """A gzip body's content (RFC 1952). Never more than `limit` bytes come into being, whatever the body claims."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as exc:
        raise BadRequest(400, "not gzip", f"the body cannot be inflated: {exc}") from exc
    if len(content) > limit:
        raise _too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise BadRequest(400, "not gzip", "the body is not one whole gzip member")
    return content


def _too_large(limit: int) -> BadRequest:
    members = {"expected": f"at most {limit} bytes"}
    return BadRequest(413, "body too large", f"the limit is {limit} bytes; send fewer rows at a time", members)
