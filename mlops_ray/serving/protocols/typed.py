"""One column of typed values, NumPy's or Arrow's, to what the model is given: whole arrays at a time.

The counterpart of `cells` for binary bodies, with the same messages. NaN and NaT mean missing, and so do Arrow's nulls
and the None of object arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlops_ray.config import Column
from mlops_ray.errors import BadRequest
from mlops_ray.serving.protocols import cells
from mlops_ray.serving.protocols.cells import LARGEST, Rule, broken, refusal

_Mask = NDArray[np.bool_]
_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def column(values: Any, spec: Column, held: Sequence[Rule]) -> NDArray[Any]:
    """A column of inputs, shape (n,). Raises: BadRequest (422) for the first value that it does not take."""
    values = _flat(values, spec)
    if _is_objects(values):
        return cells.cells(_listed(values), spec, held)
    if spec.dtype == "string":
        expected = "a string"
        texts, missing = _texts(values, spec, expected)
        _refuse_missing(missing, spec, expected)
        _hold_distinct(held, texts, missing, spec)
        return texts
    if spec.dtype == "timestamp":
        instants, missing = _instants(values, spec, cells.A_TIME)
        _refuse_where(~missing & ~((instants >= cells.FIRST_S) & (instants < cells.END_S)), values, spec, cells.A_TIME)
        _refuse_missing(missing, spec, cells.A_TIME)
        return np.round(instants, 6)  # microseconds, as the log and the datasets keep them
    return _inputs(values, spec, held)


def keys(values: Any, spec: Column, held: Sequence[Rule]) -> tuple[str, ...]:
    """The key's column as texts. Raises: BadRequest (422) for the first value that is none."""
    values = _flat(values, spec)
    if _is_objects(values):
        check = cells.key_checker(spec, held)
        return tuple([check(value, row) for row, value in enumerate(_listed(values))])
    if spec.dtype == "int":
        expected = "a key: an integer"
        numbers, missing = _numbers(values, spec, expected)
        if numbers.dtype.kind not in "iu":
            raise _of_another_type(values, spec, expected)
        _refuse_where(missing, values, spec, expected)
        _hold(held, numbers, missing, spec)
        return tuple(map(str, numbers.tolist()))
    texts, missing = _texts(values, spec, cells.A_KEY)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    _refuse_where(missing | (lengths == 0) | (lengths > cells.MOST_KEY), values, spec, cells.A_KEY)
    _hold_distinct(held, texts, missing, spec)
    return tuple(texts.tolist())


def past(values: Any, spec: Column, now: float) -> NDArray[np.float64]:
    """The event time's column, seconds since the epoch. Raises: BadRequest (422) for other times."""
    values = _flat(values, spec)
    if _is_objects(values):
        check = cells.time_checker(spec, now)
        return np.array([check(value, row) for row, value in enumerate(_listed(values))], np.float64)
    instants, _ = _instants(values, spec, cells.A_PAST_TIME)
    _refuse_where(~((instants >= 0) & (instants < now + cells.AHEAD_S)), values, spec, cells.A_PAST_TIME)
    return instants


# Numbers --------------------------------------------------------------------------------------------------------------


def _inputs(values: Any, spec: Column, held: Sequence[Rule]) -> NDArray[np.float32]:
    numbers, missing = _numbers(values, spec, spec.dtype)
    if (numbers.dtype.kind == "b") != (spec.dtype == "bool") and not missing.all():
        raise _of_another_type(values, spec, spec.dtype)
    if numbers.dtype.kind == "f":
        if spec.dtype == "int":
            _refuse_where(~missing & (numbers != np.trunc(numbers)), values, spec, "int")
        # A bound in the array's own width: 3e38 is infinite as float16.
        bound = min(LARGEST, float(np.finfo(numbers.dtype).max))
        _refuse_where(~missing & ~(np.abs(numbers) <= bound), values, spec, f"{spec.dtype} of at most 3e38")
    _refuse_missing(missing, spec, spec.dtype)
    _hold(held, numbers, missing, spec)
    taken = np.ascontiguousarray(numbers, dtype=np.float32)
    return np.where(missing, np.float32(math.nan), taken) if numbers.dtype.kind != "f" and missing.any() else taken


def _numbers(values: Any, spec: Column, expected: str) -> tuple[NDArray[Any], _Mask]:
    """Booleans, integers or floats as they are, and where they are missing; a placeholder or NaN stands there."""
    if isinstance(values, pa.Array):
        numbers, missing = _arrow_numbers(values, spec, expected)
    elif values.dtype.kind in "biuf":
        numbers, missing = values, None
    else:
        raise _of_another_type(values, spec, expected)
    if numbers.dtype.kind == "f":
        absent = np.isnan(numbers)
        missing = absent if missing is None else missing | absent
    return numbers, np.zeros(len(numbers), np.bool_) if missing is None else missing


def _inner(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values; any other type is itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _arrow_numbers(values: pa.Array, spec: Column, expected: str) -> tuple[NDArray[Any], _Mask | None]:
    kind = _inner(values.type)
    if pa.types.is_null(kind):
        return np.full(len(values), math.nan), None
    if not (pa.types.is_boolean(kind) or pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
        raise _of_another_type(values, spec, expected)
    if pa.types.is_temporal(kind):
        raise _of_another_type(values, spec, expected)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_decimal(kind):
        values, kind = values.cast(pa.float64()), pa.float64()
    missing = None
    if values.null_count:
        missing = values.is_null().to_numpy(zero_copy_only=False)
        values = values.fill_null(False if pa.types.is_boolean(kind) else pa.scalar(0, kind))
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if missing is not None and numbers.dtype.kind == "f":
        numbers = np.where(missing, numbers.dtype.type(math.nan), numbers)
    return numbers, missing


# Texts ----------------------------------------------------------------------------------------------------------------


def _texts(values: Any, spec: Column, expected: str) -> tuple[NDArray[Any], _Mask]:
    """Strings as objects, "" where they are missing, and where that is."""
    if isinstance(values, pa.Array):
        return _arrow_texts(values, spec, expected)
    if values.dtype.kind == "S":
        return _decoded(values, spec, expected), np.zeros(len(values), np.bool_)
    if values.dtype.kind != "U":
        raise _of_another_type(values, spec, expected)
    return values.astype(object), np.zeros(len(values), np.bool_)


def _arrow_texts(values: pa.Array, spec: Column, expected: str) -> tuple[NDArray[Any], _Mask]:
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), "", object), np.ones(len(values), np.bool_)
    if not _is_text(_inner(kind)):
        raise _of_another_type(values, spec, expected)
    # Each distinct text becomes one Python string; the rows point to it.
    coded = values if pa.types.is_dictionary(kind) else values.dictionary_encode()
    known: NDArray[Any] = np.append(coded.dictionary.to_numpy(zero_copy_only=False), [None])
    places = coded.indices.fill_null(0) if coded.indices.null_count else coded.indices
    found = known[places.to_numpy(zero_copy_only=False)] if len(known) > 1 else np.full(len(values), None)
    if coded.indices.null_count:
        found[coded.indices.is_null().to_numpy(zero_copy_only=False)] = None
    if not (coded.indices.null_count or coded.dictionary.null_count):
        return found, np.zeros(len(found), np.bool_)
    missing: _Mask = np.array([text is None for text in found.tolist()])
    found[missing] = ""
    return found, missing


def _decoded(values: NDArray[Any], spec: Column, expected: str) -> NDArray[Any]:
    texts = np.empty(len(values), object)
    for row, value in enumerate(values.tolist()):
        try:
            texts[row] = value.decode()
        except UnicodeDecodeError as exc:
            raise refusal(row, spec, value, f"{expected} in UTF-8") from exc
    return texts


# Times ----------------------------------------------------------------------------------------------------------------


def _instants(values: Any, spec: Column, expected: str) -> tuple[NDArray[np.float64], _Mask]:
    """Seconds since the epoch, NaN where they are missing, and where that is. Times without a zone are UTC."""
    arrow = isinstance(values, pa.Array)
    kind = _inner(values.type) if arrow else values.dtype.kind
    if kind == "M":
        return _numpy_instants(values)
    if kind in ("U", "S") or (arrow and _is_text(kind)):
        texts, missing = _texts(values, spec, expected)
        return _parsed(texts, missing, spec, expected), missing
    if arrow and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_date(kind):
            return _counted(values.cast(pa.date64()).view(pa.int64()), _PER_S["ms"])
        return _counted(values.view(pa.int64()), _PER_S[kind.unit])  # its zone is for show: what is stored is UTC
    numbers, missing = _numbers(values, spec, expected)
    if numbers.dtype.kind == "b":
        raise _of_another_type(values, spec, expected)
    return np.where(missing, math.nan, numbers.astype(np.float64)), missing


def _numpy_instants(values: NDArray[Any]) -> tuple[NDArray[np.float64], _Mask]:
    missing = np.isnat(values)
    unit, step = np.datetime_data(values.dtype)
    if unit not in _PER_S:
        values, unit, step = values.astype("datetime64[s]"), "s", 1
    counts = values.astype(f"datetime64[{step}{unit}]").view(np.int64)
    return np.where(missing, math.nan, counts * (step / _PER_S[unit])), missing


def _counted(counts: pa.Array, per_s: float) -> tuple[NDArray[np.float64], _Mask]:
    missing: _Mask = counts.is_null().to_numpy(zero_copy_only=False)
    seconds = counts.fill_null(0).to_numpy(zero_copy_only=False) / per_s
    return np.where(missing, math.nan, seconds), missing


def _parsed(texts: NDArray[Any], missing: _Mask, spec: Column, expected: str) -> NDArray[np.float64]:
    known: dict[str, float] = {}
    instants = np.full(len(texts), math.nan)
    for row in np.flatnonzero(~missing).tolist():
        text = texts[row]
        if text not in known:
            try:
                known[text] = cells.seconds(text)
            except (ValueError, OverflowError) as exc:
                raise refusal(row, spec, text, expected) from exc
        instants[row] = known[text]
    return instants


# What is wrong --------------------------------------------------------------------------------------------------------


def _flat(values: Any, spec: Column) -> Any:
    """An array of one value a row: of Arrow, or of NumPy in this machine's byte order."""
    if isinstance(values, pa.ChunkedArray):
        values = _joined(values) if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        return values
    values = np.asarray(values)
    if values.ndim != 1:
        expected = "one value a row"
        detail = f"column {spec.name!r}: expected {expected}, got an array of shape {values.shape}"
        members = {"column": spec.name, "expected": expected, "received": f"an array of shape {values.shape}"}
        raise BadRequest(422, "wrong shape", detail, members)
    return values


def _joined(values: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(values.type):  # indices of a narrow type may not reach all of a joined dictionary
        values = values.cast(values.type.value_type)
    return values.combine_chunks()


def _is_objects(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "O"


def _listed(values: NDArray[Any]) -> list[Any]:
    """Objects as JSON's values: None for NaN, Python's own numbers and texts for NumPy's and for bytes."""
    listed = [value.item() if isinstance(value, np.generic) else value for value in values.tolist()]
    if any(type(value) is bytes for value in listed):
        listed = [_utf8(value) if type(value) is bytes else value for value in listed]
    return [None if type(value) is float and math.isnan(value) else value for value in listed]


def _utf8(value: bytes) -> Any:
    """The text; the bytes themselves where they are none, which no column takes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _of_another_type(values: Any, spec: Column, expected: str) -> BadRequest:
    received = f"an array of {values.type if isinstance(values, pa.Array) else values.dtype}"
    detail = f"column {spec.name!r}: expected {expected}, got {received}"
    return BadRequest(422, "wrong type", detail, {"column": spec.name, "expected": expected, "received": received})


def _refuse_missing(missing: _Mask, spec: Column, expected: str) -> None:
    if not spec.nullable and missing.any():
        raise refusal(int(missing.argmax()), spec, None, f"{expected} (not null)")


def _refuse_where(wrong: _Mask, values: Any, spec: Column, expected: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise refusal(row, spec, _received(values, row), expected)


def _received(values: Any, row: int) -> Any:
    """A value for a message. Times of Arrow need not have a datetime, so they are shown as they are stored."""
    if not isinstance(values, pa.Array):
        value = values[row]
        return str(value) if values.dtype.kind == "M" else value.item()
    scalar = values[row]
    if pa.types.is_dictionary(scalar.type):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    return scalar.value if pa.types.is_temporal(scalar.type) else scalar.as_py()


def _hold(held: Sequence[Rule], numbers: NDArray[Any], missing: _Mask, spec: Column) -> None:
    for rule in held:
        wrong = ~(missing | rule.keeps(numbers))
        if wrong.any():
            row = int(wrong.argmax())
            raise broken(rule, row, spec, numbers[row].item())


def _hold_distinct(held: Sequence[Rule], texts: NDArray[Any], missing: _Mask, spec: Column) -> None:
    if held:
        listed = [None if absent else text for text, absent in zip(texts.tolist(), missing.tolist(), strict=True)]
        for rule in held:
            cells.hold(rule, listed, spec)
