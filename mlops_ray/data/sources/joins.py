"""Joins of batches with a table that every task sees whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
import pyarrow as pa

from mlops_ray.config import Column
from mlops_ray.data.schema import conform
from mlops_ray.errors import DataError

_KEY = "mlops_ray join key {}"
"""Names of the keys as they are compared: nobody's columns are called so."""


def join(
    left: pa.Table,
    right: pa.Table,
    keys: Sequence[str],
    how: Literal["inner", "left"],
    declared: Sequence[Column] = (),
) -> pa.Table:
    """`left` with the columns of `right`, joined as SQL does: a left row once per match, a null key matches nothing.

    Keys that are `declared` are compared as their dtype (a CSV's text "7" is 7 then); others must have one Arrow type.
    NaN is null here, as everywhere in the data room. The order of `left` is kept, and that of `right` within a match.
    Raises: DataError for a key that is missing or of two types, and for a column that both sides have.
    """
    for place, side in (("first", left), ("second", right)):
        for key in keys:
            if key not in side.column_names:
                raise DataError(key, f"the join's key is missing in the {place} source; it has {side.column_names}")
    both = [name for name in left.column_names if name in right.column_names and name not in keys]
    if both:
        raise DataError("join", f"columns {both} stand in several sources; drop or rename them in all but one")
    mine, theirs = _keyed(left, keys, declared, right), _keyed(right, keys, declared, left)
    names = [_KEY.format(i) for i in range(len(keys))]
    rest = theirs.drop(list(keys))
    found = mine.join(rest, on=names, how=how, nulls_equal=False, maintain_order="left_right").drop(names)
    table: pa.Table = found.to_arrow()
    kinds = {f.name: f.type for f in [*right.schema, *left.schema]}
    return table.cast(pa.schema([pa.field(n, kinds[n]) for n in table.column_names]))


def _keyed(table: pa.Table, keys: Sequence[str], declared: Sequence[Column], other: pa.Table) -> pl.DataFrame:
    known = {column.name: column for column in declared}
    extra: dict[str, pa.ChunkedArray] = {}
    for i, key in enumerate(keys):
        cells = table[key]
        if key in known:
            cells = conform(table.select([key]), [known[key]])[0][key]
        elif other[key].type != cells.type:
            says = f"the join's key is {cells.type} in one source and {other[key].type} in another"
            raise DataError(key, f"{says}; list it in `columns:`, then it is read as its dtype")
        elif pa.types.is_floating(cells.type):
            cells = conform(table.select([key]), [Column(name=key, dtype="float")])[0][key]
        extra[_KEY.format(i)] = cells
    for name, cells in extra.items():
        table = table.append_column(name, cells)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
