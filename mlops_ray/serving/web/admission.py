"""What of a request is let in: how many at a time, for how long, and how much of a body."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from mlops_ray.errors import BackendUnavailable, BadRequest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

# What inflates to more than this is inflated beside the event loop: up to here it takes one millisecond, five where
# somebody has taken pains, and 16 KB can be made to inflate to 16 MB.
_INFLATE_INLINE = 131_072


class Turn:
    """One request, while its body arrives and then while it is worked on, as a context.

    Raises at its end: BadRequest (408) when the body took too long, BackendUnavailable when the work did."""

    def __init__(self, ongoing: Ongoing, timeout_s: float) -> None:
        self._ongoing, self._timeout_s, self._held, self._begun = ongoing, timeout_s, 0, False

    def hold(self, n_bytes: int, most: int) -> None:
        """Count a piece of an unfinished body. Raises: BackendUnavailable when all of them together are too much."""
        self._held += n_bytes
        self._ongoing.held += n_bytes
        if self._ongoing.held > most:
            raise BackendUnavailable("this replica", "too much of unfinished bodies is on its way; try again shortly")

    def begin(self, most: int) -> None:
        """The body is here. Raises: BackendUnavailable when `most` requests are being worked on."""
        self._ongoing.demand_room(most)
        self._ongoing.working += 1
        self._begun = True

    # Not `contextlib`'s generators: those cost each request three microseconds.
    def __enter__(self) -> Turn:
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._task = task
        self._ongoing.watch(task, self._timeout_s)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ongoing.held -= self._held
        self._ongoing.working -= self._begun
        if not self._ongoing.watch_no_more(self._task):
            return
        self._task.uncancel()  # also when what was going on has ended in its own way
        if kind is not asyncio.CancelledError:
            return
        if not self._begun:
            raise BadRequest(408, "body incomplete", f"its end did not come within {self._timeout_s:g} s") from None
        raise BackendUnavailable("this replica", f"the request took longer than {self._timeout_s:g} s") from None


class Ongoing:
    """Requests in hand: so many are worked on at most, and each has so long. A body that arrives slowly takes nobody's
    place.

    One timer for all of them, since one for each costs 6 microseconds: a request may take a tenth longer than that.
    """

    def __init__(self) -> None:
        self.working = 0
        """Requests whose body is here."""
        self.held = 0
        """Bytes of bodies of which more is to come."""
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def demand_room(self, most: int) -> None:
        """Raises: BackendUnavailable when `most` requests are being worked on."""
        if self.working >= most:
            raise BackendUnavailable("this replica", f"it has {most} requests in hand; try again shortly")

    def one(self, timeout_s: float) -> Turn:
        """The context of one request, which ends after so long."""
        return Turn(self, timeout_s)

    def watch(self, task: asyncio.Task[Any], timeout_s: float) -> None:
        """Cancel the task once its time is up."""
        loop = asyncio.get_running_loop()
        self._ends[task] = loop.time() + timeout_s
        if self._timer is None:
            self._timer = loop.call_later(timeout_s / 10, self._look, loop, timeout_s / 10)

    def watch_no_more(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was cancelled for being late."""
        del self._ends[task]
        late = task in self._late
        self._late.discard(task)
        return late

    def _look(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        now = loop.time()
        for task, end in self._ends.items():
            if now >= end and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._timer = loop.call_later(every_s, self._look, loop, every_s) if self._ends else None


class Gone(Exception):
    """The client closed the connection before its request was complete."""


async def read(
    headers: Mapping[str, str], receive: Receive, limit: int, hold: Callable[[int], None] = lambda n_bytes: None
) -> bytes:
    """The request's body, never more than `limit` bytes of it in hand.

    Args: headers: by name in lower case. hold: told of each piece after which more is to come, see `Turn.hold`.
    Raises: BadRequest (400, 413, 415), Gone; what `hold` raises.
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
            hold(len(whole))
            whole, more = await _next(receive)
            pieces += whole
        whole = bytes(pieces)
    if len(whole) > limit:
        # The server goes on reading what still comes, and drops it: a client that only listens once it has sent all of
        # its body gets the answer too.
        raise _too_large(limit)
    if encoding == "identity":
        return whole
    if len(whole) <= _INFLATE_INLINE and (small := _inflated_small(whole, min(limit, _INFLATE_INLINE))) is not None:
        return small
    return await asyncio.get_running_loop().run_in_executor(None, _inflated, whole, limit)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """A piece of the body, and whether there is more. Raises: Gone."""
    message = await receive()
    if message["type"] != "http.request":
        raise Gone
    return message.get("body", b""), message.get("more_body", False)


def _inflated_small(body: bytes, most: int) -> bytes | None:
    """A gzip body's content when that is `most` bytes or less; None when it is more, or no gzip."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        content = inflater.decompress(body, most)
    except zlib.error:
        return None
    return content if inflater.eof and not inflater.unused_data else None


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
