"""Cells of Arrow as values of Python and of JSON, whatever they hold."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa


def as_python(cells: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The cells, shape (n,), as Python has them; times beyond the years 1 to 9999, which it cannot say, as text."""
    try:
        return list(cells.to_pylist())
    except (OverflowError, ValueError):
        return [value_of(cell) for cell in cells]


def value_of(cell: pa.Scalar) -> Any:
    """One cell, as `as_python` has it.

    >>> value_of(pa.scalar(10**18, pa.timestamp("us", "UTC")))
    '1000000000000000000 us after 1970'
    """
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        # Arrow's own text of such a time is no help: with a zone it wraps around at the year 32767.
        if pa.types.is_list(cell.type) or pa.types.is_large_list(cell.type):
            return [value_of(part) for part in cell.values]
        if pa.types.is_struct(cell.type):
            return {name: value_of(part) for name, part in cell.items()}
        unit = getattr(cell.type, "unit", "days" if pa.types.is_date32(cell.type) else "ms")
        return f"{cell.value} {unit}" + ("" if pa.types.is_duration(cell.type) else " after 1970")


def as_json(value: Any) -> str:
    """Valid JSON of what `as_python` gives, alone or within lists and mappings; NaN and infinity are null."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=str, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
