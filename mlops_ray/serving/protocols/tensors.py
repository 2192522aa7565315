"""Tensors of the Open Inference Protocol: named arrays that travel as JSON or as bytes behind the JSON.

A column's tensor has one of the datatypes that its dtype takes (`TAKES`); nothing is cast that could change a value.
Bytes are little-endian and row-major; a BYTES element is its length in four bytes and then itself.
Source: Open Inference Protocol, REST; Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlops_ray.config import Column
from mlops_ray.errors import BadRequest
from mlops_ray.serving.protocols.cells import kind, shown

_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
_FLOATS = ("FP16", "FP32", "FP64")

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{name: np.dtype(f"<{'u' if name[0] == 'U' else 'i'}{int(name.lstrip('UINT')) // 8}") for name in _INTEGERS},
    **{name: np.dtype(f"<f{int(name[2:]) // 8}") for name in _FLOATS},
    "BYTES": np.dtype(object),
}
"""The protocol's datatypes as little-endian NumPy dtypes."""

TAKES: dict[str, tuple[str, ...]] = {
    "float": (*_FLOATS, *_INTEGERS),
    "int": _INTEGERS,
    "bool": ("BOOL",),
    "string": ("BYTES",),
    "timestamp": ("BYTES", "FP64", "INT64"),
}
"""Datatypes that a column of each dtype takes. A nullable int takes floats too: an array has no other missing int."""

TOLD = {"float": "FP32", "int": "INT64", "bool": "BOOL", "string": "BYTES", "timestamp": "BYTES"}
"""The datatype that the model's metadata tell for a column: what suits the model best."""

_LENGTH = 4
# What JSON has for each kind of NumPy dtype; null is for the column to judge.
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset((bool, type(None))),
    "f": frozenset((float, int, type(None))),
    "i": frozenset((int, type(None))),
    "u": frozenset((int, type(None))),
    "O": frozenset((str, type(None))),
}


@dataclass(frozen=True)
class Tensor:
    """One input as it arrived. values: a flat list of JSON values, or an array of shape (elements,)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any] | NDArray[Any]

    @property
    def binary(self) -> bool:
        """Whether it travelled as bytes."""
        return not isinstance(self.values, list)


def taken_by(spec: Column) -> tuple[str, ...]:
    """The datatypes that the column takes."""
    return TAKES[spec.dtype] + (_FLOATS if spec.dtype == "int" and spec.nullable else ())


def tensor(entry: Any, place: str, data: memoryview | None) -> Tensor:
    """An entry of `inputs`, checked in itself.

    Args: place: how messages call it. data: its bytes where it has `binary_data_size`.
    Raises: BadRequest (422, or 400 for bytes that do not fit the shape).
    """
    if not isinstance(entry, dict):
        raise BadRequest(422, "wrong type", f"{place} must be an object, not {kind(entry)}")
    if extra := sorted(entry.keys() - {"name", "shape", "datatype", "parameters", "data"}):
        raise BadRequest(422, "unknown field", f"{place}: {shown(extra[0])} is not a field of a tensor")
    name, datatype = entry.get("name"), entry.get("datatype")
    if not isinstance(name, str) or not name:
        raise BadRequest(422, "wrong type", f"{place}.name must be a non-empty string, not {kind(name)}")
    place = f"{place} ({shown(name)})"
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise BadRequest(422, "unknown datatype", f"{place}.datatype is {shown(datatype)}; expected one of {known}")
    shape = _shape(entry.get("shape"), place)
    size = math.prod(shape)
    if data is None:
        return Tensor(name, datatype, shape, _listed(entry, shape, size, datatype, place))
    if entry.get("data") is not None:
        raise BadRequest(422, "data given twice", f"{place} has both data and parameters.binary_data_size; send one")
    return Tensor(name, datatype, shape, _from_bytes(data, datatype, size, place))


def _shape(value: Any, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise BadRequest(422, "wrong shape", f"{place}.shape must be a list of whole numbers from 0")
    if not 1 <= len(value) <= 2:
        says = "[rows], [rows, 1], or [rows, features] for all features in one tensor"
        raise BadRequest(422, "wrong shape", f"{place}.shape has {len(value)} dimensions; expected {says}")
    return tuple(value)


# JSON ----------------------------------------------------------------------------------------------------------------


def _listed(entry: dict[str, Any], shape: tuple[int, ...], size: int, datatype: str, place: str) -> list[Any]:
    """`data`, flat or nested as the shape, as a flat list of values that the datatype allows; null is missing."""
    data = entry.get("data")
    if not isinstance(data, list):
        raise BadRequest(422, "wrong type", f"{place}.data must be a list, not {kind(data)}")
    if len(shape) == 2 and data and all(isinstance(row, list) for row in data):
        if len(data) != shape[0] or any(len(row) != shape[1] for row in data):
            raise BadRequest(422, "wrong shape", f"{place}.data is not nested as its shape {list(shape)} says")
        data = [value for row in data for value in row]
    if len(data) != size:
        raise BadRequest(
            422, "wrong shape", f"{place}.data has {len(data)} values, its shape {list(shape)} says {size}"
        )
    _hold(data, datatype, place)
    return data


def _hold(data: list[Any], datatype: str, place: str) -> None:
    """Raises: BadRequest (422) for the first value that is none of the datatype."""
    dtype = DATATYPES[datatype]
    types = _JSON_TYPES[dtype.kind]
    if not types.issuperset(map(type, data)):
        i = next(i for i, value in enumerate(data) if type(value) not in types)
        raise BadRequest(422, "wrong value", f"{place}.data[{i}]: expected {datatype}, got {shown(data[i])}")
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        for i, value in enumerate(data):
            if value is not None and not info.min <= value <= info.max:
                raise BadRequest(422, "wrong value", f"{place}.data[{i}]: {shown(value)} is no {datatype}")


def as_list(tensor: Tensor) -> list[Any]:
    """A tensor's values as JSON would have them; NaN is missing."""
    values = tensor.values
    if isinstance(values, list):
        return values
    listed: list[Any] = values.tolist()
    if values.dtype.kind == "f":
        return [None if math.isnan(value) else value for value in listed]
    return listed


def as_array(tensor: Tensor) -> NDArray[Any] | pa.Array:
    """A tensor's values as an array, which is quicker for many; strings as Arrow's.

    Missing numbers are NaN (integers then float64), missing strings and booleans null.
    """
    values, dtype = tensor.values, DATATYPES[tensor.datatype]
    if dtype.kind == "O":
        return pa.array(values, pa.large_string())
    if not isinstance(values, list):
        return values
    missing = None in values
    if missing and dtype.kind == "b":
        return pa.array(values, pa.bool_())
    if missing:
        values = [math.nan if value is None else value for value in values]
    # A number beyond FP16 or FP32 is to be refused as what it is, and not to become infinite here.
    return np.array(values, dtype=np.float64 if missing or dtype.kind == "f" else dtype)


# Bytes ---------------------------------------------------------------------------------------------------------------


def _from_bytes(data: memoryview, datatype: str, size: int, place: str) -> NDArray[Any]:
    if datatype == "BYTES":
        return _strings(data, size, place)
    dtype = DATATYPES[datatype]
    if len(data) != size * dtype.itemsize:
        says = f"{size} values of {datatype} are {size * dtype.itemsize} bytes, binary_data_size says {len(data)}"
        raise BadRequest(400, "wrong size", f"{place}: {says}")
    if datatype == "BOOL":
        raw = np.frombuffer(data, np.uint8)
        if size and raw.max() > 1:
            i = int(np.argmax(raw > 1))
            raise BadRequest(422, "wrong value", f"{place}: element {i} is the byte {raw[i]}; a BOOL is 0 or 1")
        return raw.astype(bool)
    return np.frombuffer(data, dtype)


def _strings(data: memoryview, size: int, place: str) -> NDArray[Any]:
    """`size` elements, each its length (four bytes, little-endian) and then UTF-8."""
    if size > len(data) // _LENGTH:
        raise BadRequest(400, "wrong size", f"{place}: {len(data)} bytes are too few for {size} strings")
    out, raw, at, end = np.empty(size, dtype=object), bytes(data), 0, len(data)
    for i in range(size):
        start = at + _LENGTH
        at = start + int.from_bytes(raw[at:start], "little")
        if start > end or at > end:
            raise BadRequest(400, "wrong size", f"{place}: string {i} does not end within binary_data_size")
        try:
            out[i] = raw[start:at].decode()
        except UnicodeDecodeError as exc:
            raise BadRequest(422, "wrong value", f"{place}: string {i} is not UTF-8") from exc
    if at != end:
        raise BadRequest(400, "wrong size", f"{place}: {end - at} bytes are left after string {size - 1}")
    return out


def encoded(values: NDArray[Any]) -> bytes:
    """An array as the binary extension has it: numbers little-endian, strings (dtype object) behind their length."""
    if values.dtype == object:
        parts = [text.encode() for text in values.ravel()]
        return b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def named(values: NDArray[Any]) -> str:
    """The protocol's name of an array's dtype: FP64, INT64 or BYTES, which is what answers are made of."""
    return {"f": "FP64", "i": "INT64", "O": "BYTES"}[values.dtype.kind]
