"""A look at a serialised ONNX graph before ONNX Runtime sees it, without the `onnx` package.

Serving replicas do not import `onnx`, so its protobuf messages are walked by their wire format (field number and kind
before each value; https://protobuf.dev/programming-guides/encoding). Refused are graphs that would read other files,
run anything but the operators of ONNX itself, hold a program in a program, or declare tensors that they do not hold.
Field numbers are those of onnx.proto (IR version 10).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from mlops_ray.errors import ArtifactRefused

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
REFUSED_OPERATORS = ("If", "Loop", "Scan", "SequenceMap")
"""They hold graphs in graphs; no pipeline needs one."""
GROWING_OPERATORS = ("ConstantOfShape", "Expand", "Range", "Tile", "EyeLike", "Resize", "Upsample", "Pad", "OneHot")
"""They make a tensor as large as a number in the graph says; nothing that we write needs one."""
MAX_NODES = 200_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Repeated numbers of an attribute stand there one by one, each with its tag: runs of them are skipped in one go.
_RUNS = {
    0x3D: re.compile(rb"(?:\x3d.{4})++", re.DOTALL),  # floats = 7
    0x40: re.compile(rb"(?:\x40[\x80-\xff]{0,9}[\x00-\x7f])++", re.DOTALL),  # ints = 8
    0x4A: re.compile(rb"(?:\x4a\x04LEAF|\x4a\x0aBRANCH_LEQ|\x4a\x09BRANCH_LT)++", re.DOTALL),  # strings = 9
}
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_STRING = 8

Field = tuple[int, int, int, int]
"""Number, kind, and where its value lies; for numbers the value and 0."""


class _Malformed(ValueError):
    pass


def check(graph: bytes, artifact: str) -> None:
    """Refuse a graph that is more than a graph.

    Raises: ArtifactRefused for bytes that are no ONNX model, other operators' domains, functions, graphs inside nodes,
    data outside the file, sparse or odd tensors, and tensors whose values are not all there."""
    try:
        _model(graph)
    except _Malformed as exc:
        raise ArtifactRefused(artifact, f"model.onnx: {exc}") from exc
    except (IndexError, UnicodeDecodeError) as exc:
        raise ArtifactRefused(artifact, "model.onnx is no ONNX model, or it is cut off") from exc


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return found, at
        shift += 7
        if shift > 63:
            raise _Malformed("is no ONNX model: a number of more than ten bytes")


def _fields(data: bytes, start: int, end: int, *, runs: bool = False) -> Iterator[Field]:
    """The fields of the message between `start` and `end`; `runs`: skip an attribute's repeated numbers."""
    at = start
    while at < end:
        if runs and (skip := _RUNS.get(data[at])) is not None and (run := skip.match(data, at, end)):
            at = run.end()
            continue
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, kind, value, 0
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise _Malformed(f"is no ONNX model: a field of kind {kind}")
        if at + size > end:
            raise _Malformed("is cut off, or no ONNX model")
        yield number, kind, at, at + size
        at += size


def _text(data: bytes, field: Field) -> str:
    return data[field[2] : field[3]].decode()


def _model(data: bytes) -> None:
    graphs = 0
    for field in _fields(data, 0, len(data)):
        number, kind, start, end = field
        if number == 7 and kind == _BYTES:
            graphs += 1
            _graph(data, start, end)
        elif number == 8:
            names = [_text(data, f) for f in _fields(data, start, end) if f[0] == 1]
            if any(name not in DOMAINS for name in names):
                raise _Malformed(f"takes operators of {names[0]!r}; only ONNX's own are run")
        elif number in (20, 25):
            raise _Malformed("holds functions or training; a model has only operators")
    if graphs != 1:
        raise _Malformed("is no ONNX model: it has no graph, or several")


def _graph(data: bytes, start: int, end: int) -> None:
    nodes = 0
    for number, kind, at, stop in _fields(data, start, end):
        if kind != _BYTES:
            continue
        if number == 1:
            nodes += 1
            _node(data, at, stop)
        elif number == 5:
            _tensor(data, at, stop)
        elif number == 15:
            raise _Malformed("has sparse tensors")
    if nodes > MAX_NODES:
        raise _Malformed(f"has {nodes} operators; at most {MAX_NODES} are run")


def _node(data: bytes, start: int, end: int) -> None:
    for field in _fields(data, start, end):
        if field[0] == 4 and (name := _text(data, field)) in (*REFUSED_OPERATORS, *GROWING_OPERATORS):
            raise _Malformed(f"has the operator {name}, which we do not run")
        if field[0] == 7 and (name := _text(data, field)) not in DOMAINS:
            raise _Malformed(f"has an operator of {name!r}; only ONNX's own are run")
        if field[0] == 5:
            _attribute(data, field[2], field[3])


def _attribute(data: bytes, start: int, end: int) -> None:
    for number, kind, at, stop in _fields(data, start, end, runs=True):
        if number in (6, 11, 21):
            raise _Malformed("has a graph or a reference inside an operator")
        if number in (22, 23):
            raise _Malformed("has sparse tensors")
        if number in (5, 10) and kind == _BYTES:
            _tensor(data, at, stop)


def _tensor(data: bytes, start: int, end: int) -> None:
    shape: list[int] = []
    dtype = held = apart = 0
    for number, kind, at, stop in _fields(data, start, end):
        if number == 1:
            shape += [at] if kind == _VARINT else _packed(data, at, stop)
        elif number == 2:
            dtype = at
        elif number == 9:
            held = stop - at
        elif number == 13 or (number == 14 and at != 0):
            raise _Malformed("reads data of a tensor from another file")
        elif number == 3:
            raise _Malformed("has a tensor in segments")
        elif number in (4, 5, 6, 7, 10, 11):
            apart += _count(data, number, kind, at, stop)
    if any(size >= 1 << 40 for size in shape):  # negative ones too: as varints they are large
        raise _Malformed("has a tensor of an impossible shape")
    wanted = math.prod(shape)
    if dtype != _STRING and dtype not in _ITEM_BYTES:
        raise _Malformed(f"has a tensor of the odd type {dtype}")
    found = held // _ITEM_BYTES.get(dtype, 1) if held else apart
    if found != wanted:
        raise _Malformed(f"declares a tensor of {shape[:8]} and holds {found} values of it")


def _packed(data: bytes, at: int, stop: int) -> list[int]:
    found = []
    while at < stop:
        value, at = _varint(data, at)
        found.append(value)
    return found


def _count(data: bytes, number: int, kind: int, at: int, stop: int) -> int:
    """How many values a field of a tensor holds: it is one value, or a packed run of them."""
    if kind != _BYTES or number == 6:
        return 1
    if number in (4, 10):
        return (stop - at) // (4 if number == 4 else 8)
    return sum(byte < 0x80 for byte in data[at:stop])  # each varint ends with such a byte
