"""The declared columns as an Arrow schema, and tables brought into that shape.

Casting is generous where nothing is guessed (numbers written as text, 3.0 for an int, 0 and 1 for a bool, any
resolution of timestamps; timestamps without zone are UTC) and refuses the rest: a number is no timestamp, for its unit
is unknown. A cell that cannot be cast becomes null and is marked; NaN is null; an infinite number is no float here.
"""

from __future__ import annotations

import decimal
import difflib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Column
from mlops_ray.errors import DataError

Mask = npt.NDArray[np.bool_]

ARROW = {
    "float": pa.float64(),
    "int": pa.int64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
"""Arrow type of each `dtype` of the project file."""


MISSING_WORDS = ("", "nan", "na", "n/a", "null", "none")
"""How text says "no value" where a number, a time or a truth value belongs; compared without case and blanks."""


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Schema of the declared columns, in their order; all fields nullable, for null is a rule and not a type."""
    return pa.schema([(column.name, ARROW[column.dtype]) for column in columns])


def conform(table: pa.Table, columns: Sequence[Column]) -> tuple[pa.Table, dict[str, Mask]]:
    """`table` with exactly the declared columns and dtypes, and which cells could not be cast.

    Args: `columns` are those of the environment (`Project.columns_in`): rows to score need no target. A column that is
    not `required` may be absent, and is null then.
    Returns: the table, and under "<column>.dtype" a mask of shape (n,), only for columns with such cells.
    Raises: DataError when a required column is missing, or when its Arrow type is another thing altogether (a list or a
    date for a float). Text is judged cell by cell, so the outcome does not depend on how rows were cut into blocks.
    """
    arrays, broken = [], {}
    for column in columns:
        if column.name not in table.column_names and not column.required:
            arrays.append(pa.chunked_array([pa.nulls(table.num_rows, ARROW[column.dtype])]))
            continue
        if column.name not in table.column_names:
            near = difflib.get_close_matches(column.name, table.column_names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(column.name, f"column is missing; there are {table.column_names}{hint}")
        source = table[column.name]
        cast = _cast(source, column)
        arrays.append(cast)
        if cast.null_count == source.null_count:  # casting never makes a value of null, so no cell was lost
            continue
        lost = pc.and_(cast.is_null(), source.is_valid()).to_numpy()
        lost &= ~_means_missing(source)
        if lost.any():
            broken[f"{column.name}.dtype"] = lost
    return pa.Table.from_arrays(arrays, schema=arrow_schema(columns)), broken


def _means_missing(source: pa.ChunkedArray) -> Mask:
    """Cells that say "no value" without being null: NaN, and in text the `MISSING_WORDS`."""
    if pa.types.is_floating(source.type):
        return np.asarray(pc.fill_null(pc.is_nan(source), False))
    if _is_text(source.type):
        words = pc.utf8_lower(pc.utf8_trim_whitespace(source.cast(pa.string())))
        return np.asarray(pc.is_in(words, value_set=pa.array(MISSING_WORDS)))
    return np.zeros(len(source), dtype=bool)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _wrong(column: Column, source: pa.ChunkedArray) -> DataError:
    examples = [str(v) for v in source.drop_null().slice(0, 3).to_pylist()]
    return DataError(
        column.name,
        f"expected dtype {column.dtype}, found {source.type} (for example {', '.join(examples) or 'nothing'}); "
        "fix the source, or the dtype in `columns:`",
    )


def _cast(source: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """`source` in the column's Arrow type; cells that cannot be cast are null."""
    kind, wanted = source.type, ARROW[column.dtype]
    if kind == wanted and column.dtype != "float":
        return source
    if pa.types.is_null(kind):
        return source.cast(wanted)
    if _is_text(kind):
        text = source.cast(pa.string())
        return text if column.dtype == "string" else from_text(text, column.dtype)
    if column.dtype == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        naive = source.cast(pa.timestamp("us"), safe=False) if pa.types.is_date(kind) or kind.tz is None else source
        return naive.cast(wanted, safe=False)
    is_int, is_bool = pa.types.is_integer(kind), pa.types.is_boolean(kind)
    if column.dtype == "string" and (is_int or pa.types.is_decimal(kind)):
        return source.cast(wanted)
    if column.dtype == "float" and (is_int or is_bool or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        values = (source.cast(pa.int8()) if is_bool else source).cast(wanted, safe=False)
        return _finite(values) if pa.types.is_floating(kind) else values
    if column.dtype == "int" and (is_bool or pa.types.is_int64(kind) or (is_int and not pa.types.is_uint64(kind))):
        return source.cast(wanted)
    if column.dtype == "int" and (pa.types.is_uint64(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return _whole(source)
    if column.dtype == "bool" and (is_int or pa.types.is_floating(kind)):
        number = source.cast(pa.float64(), safe=False)
        return pc.if_else(pc.or_(pc.equal(number, 0.0), pc.equal(number, 1.0)), pc.equal(number, 1.0), None)
    raise _wrong(column, source)


def _finite(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64 `values` with null for NaN and infinite ones.

    A sum is finite only where all values are, and costs a quarter of looking at each one. (It may overflow without
    an infinite value: then each one is looked at.)
    """
    total = pc.sum(values).as_py()
    if total is None or math.isfinite(total):
        return values
    return pc.if_else(pc.is_finite(values), values, None)


def _whole(source: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers within int64 as int64, the others null."""
    if pa.types.is_decimal(source.type):
        # By way of float64, neighbours above 2**53 would become one.
        ends = [pa.scalar(decimal.Decimal(end), pa.decimal128(19, 0)) for end in (-(2**63), 2**63 - 1)]
        fits = pc.and_(pc.greater_equal(source, ends[0]), pc.less_equal(source, ends[1]))
        fits = pc.and_(fits, pc.equal(pc.round(source), source))
        return pc.if_else(fits, source, None).cast(pa.int64())
    number = source if pa.types.is_uint64(source.type) else source.cast(pa.float64(), safe=False)
    # 2**63 - 1024 is the largest float64 below 2**63.
    top = pa.scalar(2**63 - 1, pa.uint64()) if pa.types.is_uint64(source.type) else pa.scalar(2.0**63 - 1024)
    fits = pc.and_(pc.less_equal(number, top), pc.equal(pc.round(number), number))
    if pa.types.is_floating(number.type):
        fits = pc.and_(fits, pc.greater_equal(number, -(2.0**63)))
    return pc.if_else(fits, number, None).cast(pa.int64(), safe=False)


def from_text(source: pa.ChunkedArray, dtype: str) -> pa.ChunkedArray:
    """Text parsed as `dtype`; what is not, is null. Polars parses cell by cell without raising."""
    text = pl.Series(pl.from_arrow(source), dtype=pl.String).str.strip_chars()
    parsed: pl.Series
    if dtype == "bool":
        words = {"true": True, "1": True, "false": False, "0": False}
        parsed = text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
    elif dtype == "timestamp":
        parsed = _times(text)
    elif dtype == "int":
        whole = text.cast(pl.Int64, strict=False)
        # Pandas writes integers of a column with gaps as "3.0".
        rest = text.set(whole.is_not_null(), None).cast(pl.Float64, strict=False)
        gaps = pl.Series(pl.from_arrow(_whole(pa.chunked_array([rest.to_arrow()]))), dtype=pl.Int64)
        parsed = whole.fill_null(gaps) if gaps.null_count() < len(gaps) else whole
    else:
        parsed = text.cast(pl.Float64, strict=False)
        parsed = parsed.set(~parsed.is_finite(), None)
    return pa.chunked_array([parsed.to_arrow().cast(ARROW[dtype])])


def _times(text: pl.Series) -> pl.Series:
    """ISO 8601 instants (RFC 3339): with an offset as they say, without one as UTC; or a date alone."""
    # To the second and without an offset is what most files hold, and five times as fast to parse.
    plain = text.str.replace(" ", "T", literal=True).str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False)
    plain = plain.dt.replace_time_zone("UTC")
    rest = text.is_not_null() & plain.is_null()
    return plain if not rest.any() else plain.scatter(rest.arg_true(), _any_times(text.filter(rest)))


def _any_times(text: pl.Series) -> pl.Series:
    zoned = text.str.contains(r"(Z|[+-]\d{2}:?\d{2})$") & text.str.contains(r"\d:\d")
    # Polars wants a zone and one shape: "T" between, and either none or all of the cells with an offset.
    iso = text.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00").str.replace(" ", "T")
    iso = iso.str.replace(r"T(\d{2}:\d{2})(Z|[+-]\d{2}:?\d{2}|)$", "T$1:00$2").str.replace("Z$", "+00:00")
    full = pl.select(pl.when(zoned.fill_null(False)).then(iso).otherwise(iso + "+00:00")).to_series()
    return full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)
