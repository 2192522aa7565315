"""The content hash: rows as a bag, whatever their order and however they lie in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mlops_ray.errors import DataError

Lanes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RowHash:
    """Order-independent hash of a bag of rows: two sums of 64-bit row hashes, modulo 2**64, and the number of rows.

    `+` gives the hash of both bags together. It finds accidents (a changed, lost or doubled row); it is no defence
    against somebody who constructs rows to collide.
    Source: multiset hashing by addition, Clarke et al. 2003 (MSet-Add-Hash), over two unkeyed 64-bit lanes.
    """

    a: int = 0
    b: int = 0
    n: int = 0

    def __add__(self, other: RowHash) -> RowHash:
        return RowHash((self.a + other.a) % 2**64, (self.b + other.b) % 2**64, self.n + other.n)

    def __sub__(self, other: RowHash) -> RowHash:
        """The hash of this bag without the rows of `other`, which must be in it."""
        return RowHash((self.a - other.a) % 2**64, (self.b - other.b) % 2**64, self.n - other.n)

    @classmethod
    def parse(cls, text: str) -> RowHash:
        """The hash that `hex` wrote.

        >>> RowHash.parse(RowHash(1, 2, 3).hex())
        RowHash(a=1, b=2, n=3)
        """
        return cls(*(int(text[start : start + 16], 16) for start in (0, 16, 32)))

    def hex(self) -> str:
        """48 hexadecimal digits: both sums, then the number of rows."""
        return f"{self.a:016x}{self.b:016x}{self.n:016x}"

    @classmethod
    def of(cls, lanes: tuple[Lanes, Lanes]) -> RowHash:
        """Hash of rows whose own hashes are `lanes`, shape (n,) each."""
        a, b = lanes
        return cls(int(a.sum(dtype=np.uint64)), int(b.sum(dtype=np.uint64)), len(a))


NO_ROWS = RowHash()
"""The hash of nothing."""


def row_hash(table: pa.Table) -> RowHash:
    """Hash of the rows of `table`; the order of rows and of columns does not matter, names and dtypes do."""
    return RowHash.of(row_hashes(table))


def row_hashes(table: pa.Table) -> tuple[Lanes, Lanes]:
    """Two independent 64-bit hashes per row, shape (n,) each.

    Null differs from every value; all NaN are one value, and -0.0 is 0.0. How a column is stored (chunks, dictionary,
    width of its numbers or offsets) does not matter; the scale of decimals does. Times count to the microsecond.
    Raises: DataError for dtypes other than numbers, booleans, strings, bytes, decimals and times.
    """
    lanes = [np.zeros(table.num_rows, dtype=np.uint64) for _ in range(2)]
    # A block of rows at a time through preallocated arrays: some thirty passes over a cell stay in the core's cache.
    first, second, spare = (np.empty(_BLOCK, dtype=np.uint64) for _ in range(3))
    for name in sorted(table.column_names):
        at = 0
        for chunk in table[name].chunks:
            if pa.types.is_dictionary(chunk.type) and chunk.dictionary.null_count:
                chunk = chunk.dictionary_decode()  # its nulls do not show in the codes
            kind, read = _reader(name, chunk)
            keys = _two_words(f"{kind}:{name}".encode())
            for start in range(0, len(chunk), _BLOCK):
                block = chunk.slice(start, _BLOCK)
                n = len(block)
                cells, null = read(block), _nulls(block)
                mixed = _mix(cells[0], first[:n], spare[:n])
                for i, lane in enumerate(lanes):
                    bits = mixed if cells[i] is cells[0] else _mix(cells[i], first[:n], spare[:n])
                    keyed = np.bitwise_xor(bits, keys[i], out=second[:n])
                    if null is not None:
                        keyed[null] = ~keys[i]
                    lane[at : at + n] += _mix(keyed, keyed, spare[:n])
                at += n
    for lane in lanes:
        for start in range(0, len(lane), _BLOCK):
            part = lane[start : start + _BLOCK]
            _mix(part, part, spare[: len(part)])
    return lanes[0], lanes[1]


_BLOCK = 8192
"""Rows hashed together: 64 KiB per array of hashes, and a call of NumPy costs far less than its work."""
_WORDS = 8
"""Texts of up to so many 8-byte words are hashed by vectors, longer ones one by one with xxhash."""
_FIRST_BYTES = np.array([2 ** (8 * n) - 1 for n in range(9)], dtype=np.uint64)


def _mix(x: Lanes, out: Lanes, spare: Lanes) -> Lanes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit.

    Written to `out` (which may be `x`) and returned; `spare` is overwritten."""
    np.add(x, np.uint64(0x9E3779B97F4A7C15), out=out)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(out, np.uint64(shift), out=spare)
        np.bitwise_xor(out, spare, out=out)
        np.multiply(out, np.uint64(factor), out=out)
    np.right_shift(out, np.uint64(31), out=spare)
    return np.bitwise_xor(out, spare, out=out)


def _two_words(text: bytes) -> Lanes:
    return np.frombuffer(xxhash.xxh3_128_digest(text), dtype=">u8").astype(np.uint64)


def _nulls(block: pa.Array) -> npt.NDArray[np.bool_] | None:
    """Which cells are null, None when none is."""
    return block.is_null().to_numpy(zero_copy_only=False) if block.null_count else None


Cells = tuple[Lanes, Lanes]
"""64 bits per cell for either lane (twice the same array where a cell has no more); those of nulls mean nothing."""


def _reader(name: str, chunk: pa.Array) -> tuple[str, Callable[[pa.Array], Cells]]:
    """The kind of value in `chunk`, and what reads the cells of a slice of it."""
    dtype = chunk.type
    if pa.types.is_dictionary(dtype):
        kind, read = _reader(name, chunk.dictionary)
        known = read(chunk.dictionary)
        return kind, lambda block: _looked_up(known, block.indices)
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return "string", lambda block: _texts(block.cast(pa.large_binary()))
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype):
        return "binary", lambda block: _texts(block.cast(pa.large_binary()))
    if pa.types.is_floating(dtype):
        return "float", _floats
    if pa.types.is_boolean(dtype):
        return "bool", lambda block: _integers(block.cast(pa.int8()))
    if pa.types.is_integer(dtype):
        return "int", _integers
    if pa.types.is_decimal(dtype):
        exact = pa.decimal128(38, dtype.scale)
        return f"decimal.{dtype.scale}", lambda block: _decimals(block.cast(exact))
    casts = {
        "timestamp": (pa.types.is_timestamp, pa.timestamp("us", getattr(dtype, "tz", None))),
        "date": (pa.types.is_date, pa.date32()),
        "time": (pa.types.is_time, pa.time64("us")),
        "duration": (pa.types.is_duration, pa.duration("us")),
    }
    for kind, (fits, target) in casts.items():
        if fits(dtype):
            return kind, lambda block, target=target: _integers(block.cast(target, safe=False))
    kinds = "numbers, booleans, strings, bytes, decimals or times"
    raise DataError(name, f"dtype {dtype} has no content hash; use {kinds}")


def _looked_up(known: Cells, indices: pa.Array) -> Cells:
    codes = pc.fill_null(indices, 0).to_numpy(zero_copy_only=False)
    if not len(known[0]):  # of a dictionary without entries every cell is null
        return (zeros := np.zeros(len(codes), dtype=np.uint64)), zeros
    one = known[0][codes]
    return one, one if known[1] is known[0] else known[1][codes]


def _values(block: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The values of a fixed-width array as they lie in memory; those of nulls are whatever is there."""
    size = np.dtype(dtype).itemsize
    return np.frombuffer(block.buffers()[1], dtype=dtype, count=len(block), offset=block.offset * size)


def _integers(block: pa.Array) -> Cells:
    unsigned = pa.types.is_unsigned_integer(block.type)
    width = block.type.bit_width // 8
    cells = _values(block, f"<{'u' if unsigned else 'i'}{width}")
    bits = cells.view(np.uint64) if width == 8 else cells.astype(np.int64).view(np.uint64)
    return bits, bits


def _floats(block: pa.Array) -> Cells:
    values = _values(block, f"<f{block.type.bit_width // 8}").astype(np.float64)
    values += 0.0
    odd = np.isnan(values)
    if odd.any():
        values[odd] = np.nan
    bits = values.view(np.uint64)
    return bits, bits


def _decimals(block: pa.Array) -> Cells:
    halves = _values(block, np.dtype("<u8,<u8"))
    cells = _start(np.zeros(len(block), dtype=np.uint64))
    for half in ("f0", "f1"):
        _absorb(cells, halves[half])
    return cells


def _texts(block: pa.Array) -> Cells:
    """Hashes of byte strings: the length, then 8 bytes at a time, of all texts of the block together."""
    offsets = np.frombuffer(block.buffers()[1], dtype="<i8", count=len(block) + 1, offset=block.offset * 8)
    # A copy of the block's bytes with a margin, so that the last text's words may be read whole.
    data = bytearray(offsets[-1] - offsets[0] + 8)
    if block.buffers()[2] is not None:
        data[:-8] = memoryview(block.buffers()[2])[offsets[0] : offsets[-1]]
    words = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    cells = _start(lengths.astype(np.uint64))
    longest = int(lengths.max(initial=0))
    for i in range(min(_WORDS, -(-longest // 8))):
        left = lengths - 8 * i
        rows = slice(None) if left.min() > 0 else np.flatnonzero(left > 0)
        found = words[starts[rows] + 8 * i]
        found &= _FIRST_BYTES[np.minimum(left[rows], 8)]
        _absorb(cells, found, rows)
    for row in np.flatnonzero(lengths > 8 * _WORDS):
        cells[0][row], cells[1][row] = _two_words(bytes(data[starts[row] : starts[row] + lengths[row]]))
    return cells


def _start(x: Lanes) -> Cells:
    """Two lanes that begin apart."""
    return x ^ np.uint64(0x243F6A8885A308D3), x ^ np.uint64(0x13198A2E03707344)


def _absorb(cells: Cells, words: Lanes, rows: Any = slice(None)) -> None:
    """Mix one more word into both lanes of those rows, in place."""
    spare = np.empty_like(words)
    for lane in cells:
        mixed = lane[rows] ^ words
        lane[rows] = _mix(mixed, mixed, spare)
