"""Rows to a version that lives apart and its scores back, as bytes over a socket of this machine.

A call by Ray Serve's handle costs each side half a millisecond of its processor, one over a Unix socket a twentieth of
that. A frame is a number (4 bytes), a length (4 bytes) and a body; replies carry the number of what they reply to.
Bodies are a JSON head behind its length, and raw numbers: nothing of what arrives is executed, whoever sends it.

    ask     {"n", "f4", "f8", "texts"}    names of the float32 and float64 columns, whose values follow; texts by name
    told    {"shape", "classes", "threshold", "us"}    scores float64 follow
    failed  {"failed"}    why
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_ray.data.profile import Columns
from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.serving.canary import Told

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<I")
# Of a frame: 100,000 rows of a thousand numbers.
_LONGEST = 2**29

Buffer = bytes | bytearray | memoryview


def ask(columns: Columns) -> bytes:
    """The body that asks for the scores of these rows."""
    f4, f8, texts, parts = [], [], {}, []
    n = 0
    for name, values in columns.items():
        n = len(values)
        if values.dtype == np.float32:
            f4.append(name)
            parts.append(values.tobytes())
        elif values.dtype == object:
            texts[name] = values.tolist()
    for name, values in columns.items():
        if values.dtype == np.float64:
            f8.append(name)
            parts.append(values.tobytes())
    return _body({"n": n, "f4": f4, "f8": f8, "texts": texts}, parts)


def asked(body: Buffer) -> Columns:
    """The rows of such a body. Raises: DataError when it is none."""
    try:
        head, numbers = _parts(body)
        n, f4, f8 = head["n"], head["f4"], head["f8"]
        split = 4 * n * len(f4)
        columns: dict[str, NDArray[Any]] = dict(
            zip(f4, np.frombuffer(numbers[:split], "<f4").reshape(len(f4), n), strict=True)
        )
        columns |= zip(f8, np.frombuffer(numbers[split:], "<f8").reshape(len(f8), n), strict=True)
        for name, values in head["texts"].items():
            texts = columns[name] = np.empty(n, dtype=object)
            texts[:] = values
    except (KeyError, TypeError, ValueError, struct.error) as exc:
        raise DataError("frame", f"it asks for nothing that can be scored: {exc}") from exc
    return columns


def told(answer: Told) -> bytes:
    """The body that tells these scores."""
    head = {"shape": answer.scores.shape, "classes": answer.classes, "threshold": answer.threshold, "us": answer.row_us}
    return _body(head, [np.ascontiguousarray(answer.scores, dtype="<f8").tobytes()])


def failed(why: str) -> bytes:
    """The body that tells why there are no scores."""
    return _body({"failed": why}, [])


def heard(body: Buffer) -> Told:
    """The scores of a reply's body. Raises: BackendUnavailable with the reason that it tells; DataError."""
    try:
        head, numbers = _parts(body)
        if "failed" in head:
            raise BackendUnavailable("the version", head["failed"])
        scores = np.frombuffer(numbers, "<f8").reshape(head["shape"])
        us = head.get("us")  # a process of an earlier release does not say
        return Told(scores, tuple(head["classes"]), head["threshold"], None if us is None else float(us))
    except (KeyError, TypeError, ValueError, struct.error) as exc:
        raise DataError("frame", f"it tells no scores: {exc}") from exc


def _body(head: dict[str, Any], parts: list[bytes]) -> bytes:
    text = orjson.dumps(head)
    return b"".join([_HEAD.pack(len(text)), text, *parts])


def _parts(body: Buffer) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(body)
    (length,) = _HEAD.unpack_from(view)
    return orjson.loads(view[4 : 4 + length]), view[4 + length :]


class _Frames(asyncio.Protocol):
    """Whole frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _FRAME.size:
            number, length = _FRAME.unpack_from(buffer, at)
            if length > _LONGEST:  # nobody of ours sends this
                assert self._transport is not None
                self._transport.abort()
                return
            end = at + _FRAME.size + length
            if len(buffer) < end:
                break
            self.frame_received(number, bytes(buffer[at + _FRAME.size : end]))
            at = end
        if at:
            del buffer[:at]

    def frame_received(self, number: int, body: bytes) -> None:
        """One frame came."""
        raise NotImplementedError

    def send(self, number: int, body: bytes) -> None:
        """Send one frame, unless the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join((_FRAME.pack(number, len(body)), body)))


class Asking(_Frames):
    """The end that asks."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, asyncio.Future[Told]] = {}
        self._last = 0
        self.lost = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""

    def call(self, columns: Columns) -> asyncio.Future[Told]:
        """The scores of these rows. Fails with ConnectionError, BackendUnavailable or DataError; may be cancelled."""
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        if self.lost.done():
            future.set_exception(ConnectionResetError("the version's process is gone"))
            return future
        self._last = number = (self._last + 1) % 2**32
        self._open[number] = future
        future.add_done_callback(lambda _: self._open.pop(number, None))
        self.send(number, ask(columns))
        return future

    def close(self) -> None:
        """Hang up; whoever waits is told that nobody answers."""
        if self._transport is not None:
            self._transport.close()

    def frame_received(self, number: int, body: bytes) -> None:
        """A reply: whoever still waits for it gets it."""
        future = self._open.get(number)
        if future is None or future.done():
            return
        try:
            future.set_result(heard(body))
        except (BackendUnavailable, DataError) as exc:
            future.set_exception(exc)
            del future  # the error's traceback holds this frame: a cycle, if this held the future

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: whoever waits need not wait any longer."""
        self.lost.set_result(None)
        for future in list(self._open.values()):
            if not future.done():
                future.set_exception(ConnectionResetError("the version's process is gone"))


Score = Callable[[Columns], asyncio.Future[Told] | Told]


class Telling(_Frames):
    """The end that scores. `score` answers at once or later; what it raises is told as a failure."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self._score = score

    def frame_received(self, number: int, body: bytes) -> None:
        """A question."""
        try:
            answer = self._score(asked(body))
        except Exception as exc:  # noqa: BLE001 - whatever a model raises is its answer
            self.send(number, failed(f"{type(exc).__name__}: {exc}"[:500]))
            return
        if isinstance(answer, Told):
            self.send(number, told(answer))
        else:
            answer.add_done_callback(lambda done: self._tell(number, done))

    def _tell(self, number: int, done: asyncio.Future[Told]) -> None:
        if done.cancelled():
            self.send(number, failed("cancelled"))
        elif (exc := done.exception()) is not None:
            self.send(number, failed(f"{type(exc).__name__}: {exc}"[:500]))
        else:
            self.send(number, told(done.result()))
