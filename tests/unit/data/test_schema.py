from __future__ import annotations

import decimal
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import Column
from mlops_ray.data.schema import arrow_schema, conform
from mlops_ray.errors import DataError
from tests import fakes

JAN = datetime(2013, 1, 1, tzinfo=UTC)


def cast(dtype: str, cells: pa.Array) -> tuple[list[object], list[bool]]:
    """The cells after conforming, and which were marked."""
    table, broken = conform(pa.table({"x": cells, "more": cells}), [Column(name="x", dtype=dtype, nullable=True)])
    assert table.schema == arrow_schema([Column(name="x", dtype=dtype)])
    assert broken.keys() <= {"x.dtype"}
    return table["x"].to_pylist(), broken.get("x.dtype", np.zeros(len(cells), dtype=bool)).tolist()


@pytest.mark.parametrize(
    ("dtype", "cells", "expected"),
    [
        ("float", pa.array([1, None]), [1.0, None]),
        ("float", pa.array([True, False]), [1.0, 0.0]),
        ("float", pa.array([1.5, np.nan], pa.float32()), [1.5, None]),
        ("float", pa.array([None, None]), [None, None]),
        ("float", pa.array([1], pa.decimal128(5, 2)), [1.0]),
        ("float", pa.array(["1", " 2.5e3", "", "NaN", "NA", None]), [1.0, 2500.0, None, None, None, None]),
        ("int", pa.array([1, 2], pa.int8()), [1, 2]),
        ("int", pa.array([True, None]), [1, None]),
        ("int", pa.array([3.0, np.nan]), [3, None]),
        ("int", pa.array(["7", "3.0", "9007199254740993", "null"]), [7, 3, 9007199254740993, None]),
        ("string", pa.array(["a", None]).dictionary_encode(), ["a", None]),
        ("string", pa.array(["", "NA"], pa.large_string()), ["", "NA"]),
        ("string", pa.array([1, 2]), ["1", "2"]),
        ("bool", pa.array(["True", "0", "FALSE", "1"]), [True, False, False, True]),
        ("bool", pa.array([0, 1, None]), [False, True, None]),
        ("timestamp", pa.array([date(2013, 1, 1)]), [JAN]),
        ("timestamp", pa.array([datetime(2013, 1, 1)], pa.timestamp("ns")), [JAN]),
        ("timestamp", pa.array([JAN], pa.timestamp("s", "America/New_York")), [JAN]),
        ("timestamp", pa.array(["2013-01-01", "2013-01-01 00:00", "2013-01-01T00:00Z"]), [JAN] * 3),
        ("timestamp", pa.array(["2013-01-01T02:00:00+02:00", "2013-01-01 00:00:00.000"]), [JAN] * 2),
        ("int", pa.array([], pa.string()), []),
    ],
)
def test_casts_what_needs_no_guess(dtype, cells, expected):
    assert cast(dtype, cells) == (expected, [False] * len(expected))


@pytest.mark.parametrize(
    ("dtype", "cells", "expected", "marked"),
    [
        ("float", pa.array(["1", "warm", None]), [1.0, None, None], [False, True, False]),
        ("float", pa.array([1.0, np.inf, -np.inf]), [1.0, None, None], [False, True, True]),
        ("float", pa.array(["inf"]), [None], [True]),
        ("int", pa.array([1.0, 1.5, 1e30]), [1, None, None], [False, True, True]),
        ("int", pa.array(["1", "3.5", "99999999999999999999"]), [1, None, None], [False, True, True]),
        ("int", pa.array([1, 2**64 - 1], pa.uint64()), [1, None], [False, True]),
        ("bool", pa.array(["true", "maybe"]), [True, None], [False, True]),
        ("bool", pa.array([0, 2]), [False, None], [False, True]),
        ("timestamp", pa.array(["2013-01-01", "soon", "2013-02-30"]), [JAN, None, None], [False, True, True]),
    ],
)
def test_marks_cells_that_cannot_be_cast(dtype, cells, expected, marked):
    assert cast(dtype, cells) == (expected, marked)


@pytest.mark.parametrize(
    ("dtype", "cells", "found"),
    [
        ("float", pa.array([[1.0]]), "list<"),
        ("float", pa.array([JAN]), "timestamp"),
        ("timestamp", pa.array([1.5]), "double"),
        ("string", pa.array([1.5]), "double"),
        ("string", pa.array([b"a"]), "binary"),
        ("bool", pa.array([JAN]), "timestamp"),
        ("int", pa.array([JAN]), "timestamp"),
    ],
)
def test_refuses_another_dtype_altogether(dtype, cells, found):
    with pytest.raises(DataError, match=f"^x: expected dtype {dtype}, found {found}"):
        cast(dtype, cells)


def test_names_a_missing_column_and_its_likely_spelling():
    with pytest.raises(DataError, match=r"distance: column is missing; .*did you mean 'distanse'"):
        conform(pa.table({"distanse": [1.0]}), [Column(name="distance", dtype="float")])


def test_the_outcome_does_not_depend_on_blocks():
    columns = [Column(name="x", dtype="float")]
    whole = pa.table({"x": ["1", "a", "b", "2"]})
    table, broken = conform(whole, columns)
    parts = [conform(whole.slice(i, 1), columns) for i in range(4)]
    assert pa.concat_tables(p[0] for p in parts).equals(table)
    assert [bool(p[1]) for p in parts] == broken["x.dtype"].tolist()


def test_an_optional_column_that_is_absent_is_null():
    columns = [Column(name="x", dtype="float", nullable=True, required=False), Column(name="y", dtype="int")]
    table, broken = conform(pa.table({"y": [1, 2]}), columns)
    assert table.schema == arrow_schema(columns)
    assert table["x"].to_pylist() == [None, None]
    assert not broken


def test_rows_to_score_need_no_target_and_rows_to_learn_from_do():
    given = fakes.project()
    one = {name: [value] for name, value in fakes.row(at="2013-01-01").items()}
    scored, broken = conform(pa.table(one), given.columns_in("serving"))
    assert "late" not in scored.column_names
    assert not broken
    with pytest.raises(DataError, match="late: column is missing"):
        conform(pa.table(one), given.columns_in("training"))


@pytest.mark.parametrize("cells", [[1.0, 2.0], [1.0, np.inf], [1.0, np.nan], [1.7e308, 1.7e308], [np.inf, -np.inf], []])
def test_floats_are_the_same_whatever_shows_that_they_are_finite(cells):
    """The sum of finite numbers may overflow, and infinite ones may cancel."""
    expected = [x if np.isfinite(x) else None for x in cells]
    assert cast("float", pa.array(cells, pa.float64())) == (expected, np.isinf(cells).tolist())


def test_times_of_any_shape_stand_beside_plain_ones():
    cells = ["2013-01-01T00:00:00", None, "2013-01-01T01:00:00+01:00", "soon", "2013-01-01 00:00:00", "2013-01-01"]
    assert cast("timestamp", pa.array(cells)) == ([JAN, None, JAN, None, JAN, JAN], [False] * 3 + [True, False, False])


def test_decimals_keep_every_digit():
    big = [2**53 + 1, 2**53 + 2, 2**63 - 1, 2**63, -(2**63), None]
    cells = pa.array([None if n is None else decimal.Decimal(n) for n in big], pa.decimal128(38, 0))
    whole, uncast = conform(pa.table({"x": cells}), [Column(name="x", dtype="int")])
    assert whole["x"].to_pylist() == [2**53 + 1, 2**53 + 2, 2**63 - 1, None, -(2**63), None]
    assert uncast["x.dtype"].tolist() == [False, False, False, True, False, False]
    text, uncast = conform(pa.table({"x": cells}), [Column(name="x", dtype="string")])
    assert text["x"].to_pylist() == [None if n is None else str(n) for n in big]
    assert not uncast
    parts = pa.array([decimal.Decimal("1.00"), decimal.Decimal("2.50")], pa.decimal128(9, 2))
    assert conform(pa.table({"x": parts}), [Column(name="x", dtype="int")])[0]["x"].to_pylist() == [1, None]
