"""How large an Arrow IPC stream will be, read from its messages before anything of it is decoded.

A compressed buffer begins with its length inflated, and readers allocate that much; a batch states its number of rows,
which a column of nulls backs with no bytes at all. Both come from the sender, so both are summed here first.
Source: Arrow Columnar Format, "Serialization and Interprocess Communication", and `Message.fbs` of that specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from mlops_ray.errors import BadRequest

# Messages of one stream: reading each costs some twenty microseconds, however little it holds.
_MESSAGES = 4_096
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# How writers before format 1.0 said that a batch is compressed, where the lengths are not looked for.
_OLD_COMPRESSION = b"ARROW:experimental_compression"


@dataclass(frozen=True)
class Extent:
    """Rows of all batches together, and bytes of all buffers once inflated."""

    n_rows: int
    n_bytes: int


def extent(body: bytes) -> Extent:
    """The extent of a stream, which must be whole: a schema, batches, the end-of-stream marker, and nothing after it.

    Raises: BadRequest (400) for what is no such stream; (413) for one of too many messages.
    """
    if not body.endswith(_END):
        raise BadRequest(400, "not an Arrow stream", "it has no end-of-stream marker: close the writer, send all of it")
    n_rows = n_bytes = 0
    source = pa.BufferReader(body)
    try:
        reader = pa.ipc.MessageReader.open_stream(source)
        for i, message in enumerate(reader):
            if i >= _MESSAGES:
                raise BadRequest(413, "too many batches", f"over {_MESSAGES} messages; send fewer and larger batches")
            if message.type in ("record batch", "dictionary"):
                rows, size = _sizes(bytes(message.metadata), message.body)
                n_rows += rows if message.type == "record batch" else 0
                n_bytes += size
    except (pa.ArrowException, OSError, struct.error, IndexError) as exc:
        raise BadRequest(400, "not an Arrow stream", str(exc).partition("\n")[0][:200]) from exc
    if source.tell() != len(body):
        raise BadRequest(400, "not an Arrow stream", f"{len(body) - source.tell()} bytes follow its end")
    return Extent(n_rows, n_bytes)


def _sizes(metadata: bytes, body: pa.Buffer | None) -> tuple[int, int]:
    """Rows of a batch, and bytes of its buffers once inflated."""
    if _OLD_COMPRESSION in metadata:
        raise BadRequest(400, "not an Arrow stream", "its compression is of a format before 1.0; write it anew")
    message = _Table.root(metadata)
    batch = message.table(2)
    if message.byte(1) == _DICTIONARY:
        batch = batch.table(1)
    n_rows = batch.int64(0)
    if n_rows < 0:
        raise BadRequest(400, "not an Arrow stream", f"a batch states {n_rows} rows")
    compressed, size = batch.has(3), 0
    for offset, length in batch.pairs(2):
        inflated = length
        if compressed and length > 8 and body is not None:
            (stated,) = struct.unpack_from("<q", body, offset)
            inflated = length if stated == -1 else stated  # -1: this buffer was left as it is
        if inflated < 0:
            raise BadRequest(400, "not an Arrow stream", f"a buffer states {inflated} bytes")
        size += inflated
    return n_rows, size


_DICTIONARY = 2


class _Table:
    """A table of a flatbuffer that Arrow has verified: fields by their place in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        (back,) = struct.unpack_from("<i", data, at)
        self._fields = at - back
        (self._size,) = struct.unpack_from("<H", data, self._fields)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """The outermost table."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def has(self, field: int) -> bool:
        """Whether the field is there."""
        return self._place(field) != 0

    def byte(self, field: int) -> int:
        """A field of one byte; 0 when absent."""
        at = self._place(field)
        return self._data[at] if at else 0

    def int64(self, field: int) -> int:
        """A field of eight bytes; 0 when absent."""
        at = self._place(field)
        return int(struct.unpack_from("<q", self._data, at)[0]) if at else 0

    def table(self, field: int) -> _Table:
        """A table that the field points to. Raises: IndexError when it is absent."""
        at = self._place(field)
        if not at:
            raise IndexError(f"a message lacks field {field}")
        return _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two eight-byte numbers; nothing when absent."""
        at = self._place(field)
        if at:
            at += struct.unpack_from("<I", self._data, at)[0]
            (n,) = struct.unpack_from("<I", self._data, at)
            for i in range(n):
                yield struct.unpack_from("<qq", self._data, at + 4 + 16 * i)

    def _place(self, field: int) -> int:
        """Where the field's value stands; 0 when it is absent."""
        slot = 4 + 2 * field
        if slot >= self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._fields + slot)
        return self._at + offset if offset else 0
