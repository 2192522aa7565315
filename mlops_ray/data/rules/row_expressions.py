"""Evaluating the expressions of `config/expressions.py` over tables: Arrow kernels, one after the other.

Arrow's arithmetic works number by number (no reordering, no fused operations), so that a row has the same result alone
and within a batch, bit by bit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config.expressions import Call, Constant, Expression, Kind, Node

Value: TypeAlias = Any
"""A pa.ChunkedArray of shape (n,), or the pa.Scalar of what is the same in every row."""

ARROW: dict[Kind, pa.DataType] = {
    "number": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
"""Arrow type of the result of each kind."""

_COMPARE: dict[str, Callable[[Value, Value], Value]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_PLAIN: dict[str, Callable[..., Value]] = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "negate": pc.negate,
    "not": pc.invert,
    "isnull": pc.is_null,
    "notnull": pc.is_valid,
    "coalesce": pc.coalesce,
    "where": pc.if_else,
    "abs": pc.abs,
    "ceil": pc.ceil,
    "floor": pc.floor,
    "sign": pc.sign,
    "cos": pc.cos,
    "sin": pc.sin,
    "lower": pc.utf8_lower,
    "upper": pc.utf8_upper,
    "strip": pc.utf8_trim_whitespace,
}
_NUMBER: dict[str, Callable[..., Value]] = {
    "len": pc.utf8_length,
    "year": pc.year,
    "month": pc.month,
    "day": pc.day,
    "hour": pc.hour,
    "minute": pc.minute,
    "second": pc.second,
    "weekday": pc.day_of_week,
    "dayofyear": pc.day_of_year,
    "number": lambda truth: truth.cast(pa.uint8()),
}
"""These return whole numbers, which become float64."""
_FINITE: dict[str, Callable[..., Value]] = {
    "/": pc.divide,
    "//": lambda a, b: pc.floor(pc.divide(a, b)),
    # As in Python, the result has the sign of the divisor.
    "%": lambda a, b: pc.subtract(a, pc.multiply(pc.floor(pc.divide(a, b)), b)),
    "**": pc.power,
    "exp": pc.exp,
    "log": pc.ln,
    "log10": pc.log10,
    "log1p": pc.log1p,
    "sqrt": pc.sqrt,
}
"""These have no finite result for some numbers; null stands there."""
_TEXT: dict[str, Callable[..., Value]] = {
    "contains": pc.match_substring,
    "endswith": pc.ends_with,
    "startswith": pc.starts_with,
}


def evaluate(expression: Expression, table: pa.Table) -> pa.ChunkedArray:
    """The expression's value in every row, shape (n,), in the Arrow type that `ARROW` names for its kind.

    Args: table: has the columns `expression.names`; numbers of any width, truth values, texts (dictionaries too), times
    of any unit (UTC when they have no zone). NaN and infinite cells count as null.
    Raises: KeyError when a column is absent, pyarrow.ArrowInvalid or ArrowNotImplementedError when one is of another
    kind altogether.

    >>> from mlops_ray.config.expressions import parse
    >>> evaluate(parse("x / y", {"x": "float", "y": "float"}), pa.table({"x": [1.0, 1.0], "y": [4.0, 0.0]})).to_pylist()
    [0.25, None]
    """
    columns = {name: _column(table[name]) for name in expression.names}
    value = _value(expression.tree, columns)
    if isinstance(value, pa.Scalar):
        value = pa.chunked_array([pa.repeat(value, table.num_rows)])
    return _finite(value) if expression.kind == "number" else value


def _column(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = cells.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return _finite(cells if kind == pa.float64() else cells.cast(pa.float64(), safe=False))
    if pa.types.is_boolean(kind):
        return cells
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        wanted = ARROW["timestamp"]
        if kind == wanted:
            return cells
        naive = pa.types.is_date(kind) or kind.tz is None
        return (cells.cast(pa.timestamp("us"), safe=False) if naive else cells).cast(wanted, safe=False)
    return cells if kind == pa.string() else cells.cast(pa.string())


def _finite(cells: Value) -> Value:
    """`cells` with null for what is not finite. A finite sum has only finite terms, and a sum is cheap."""
    if isinstance(cells, pa.ChunkedArray):
        total = pc.sum(cells).as_py()
        if total is None or total - total == 0.0:
            return cells
    return pc.if_else(pc.is_finite(cells), cells, pa.scalar(None, pa.float64()))


def _value(node: Node, columns: dict[str, pa.ChunkedArray]) -> Value:
    if isinstance(node, Constant):
        return pa.scalar(node.value, ARROW[node.kind])
    if not isinstance(node, Call):
        return columns[node.name]
    if node.op == "in":
        return _inside(_value(node.args[0], columns), node.args[1:])
    args = [_value(arg, columns) for arg in node.args]
    if node.op in _COMPARE:
        return _COMPARE[node.op](*args)
    if node.op in ("and", "or"):
        kernel = pc.and_kleene if node.op == "and" else pc.or_kleene
        return functools.reduce(kernel, args)
    if node.op in _FINITE:
        return _finite(_FINITE[node.op](*args))
    if node.op in _NUMBER:
        return _NUMBER[node.op](args[0]).cast(pa.float64())
    if node.op in ("min", "max"):
        kernel = pc.min_element_wise if node.op == "min" else pc.max_element_wise
        return kernel(*args, skip_nulls=False)
    if node.op in ("seconds between", "epoch"):
        # Whole microseconds subtract exactly.
        whole = [each.cast(pa.int64()) for each in args]
        span = pc.subtract(*whole) if len(whole) == 2 else whole[0]
        return pc.divide(span.cast(pa.float64(), safe=False), pa.scalar(1e6))
    if node.op in _TEXT:
        return _over(args[0], lambda cells: _TEXT[node.op](cells, args[1].as_py()))
    if node.op == "matches":
        return matching(args[1].as_py(), args[0])
    if node.op == "round":
        return pc.round(args[0])
    return _PLAIN[node.op](*args)


def _over(cells: Value, kernel: Callable[[Any], Any]) -> Value:
    """Kernels of one value take no scalar everywhere; a column of one cell is one."""
    if isinstance(cells, pa.Scalar):
        return kernel(pa.array([cells.as_py()], cells.type))[0]
    return kernel(cells)


def _inside(cells: Value, wanted: Sequence[Node]) -> Value:
    values = pa.array([node.value for node in wanted if isinstance(node, Constant)], cells.type)
    found = _over(cells, lambda column: pc.is_in(column, value_set=values))
    # Null is in no list, says Arrow; SQL says that nobody knows.
    if isinstance(cells, pa.Scalar) or cells.null_count:
        return pc.if_else(pc.is_valid(cells), found, pa.scalar(None, pa.bool_()))
    return found


def matching(pattern: str, cells: Value) -> Value:
    """Which texts match `pattern` from end to end; null where there is none.

    Python's own `re` on the distinct values, as for requests: Arrow's RE2 knows other syntax and other digits.
    """
    fits = re.compile(pattern).fullmatch
    if isinstance(cells, pa.Scalar):
        text = cells.as_py()
        return pa.scalar(None if text is None else fits(text) is not None, pa.bool_())
    coded = cells.dictionary_encode()
    if isinstance(coded, pa.DictionaryArray):
        return _spread(coded, fits)
    return pa.chunked_array([_spread(chunk, fits) for chunk in coded.chunks], pa.bool_())


def _spread(coded: pa.DictionaryArray, fits: Callable[[str], object]) -> pa.Array:
    return pa.array([fits(text) is not None for text in coded.dictionary.to_pylist()], pa.bool_()).take(coded.indices)
