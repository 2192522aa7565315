"""Typed arrays against a project's columns: the same answers and the same refusals as JSON values get."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from mlops_ray.config import Project
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Batch
from mlops_ray.serving.protocols.form import Form, batch_of_arrays, batch_of_lists
from tests import fakes
from tests.unit.serving.protocols.test_form import STRICT, WITH_NUMBER, may_be_logged, or_refusal, refused, same

PROJECT = fakes.project()
FORM = Form.of(PROJECT)
NOW = 1_700_000_000.0


def table(**columns: Any) -> dict[str, Any]:
    """Two good rows as arrays."""
    return {
        "who": pa.array(["a", "b"]),
        "at": np.array([1e9, 1e9]),
        "x": np.array([0.5, 1.5]),
        "n": np.array([2, 3]),
        "flag": np.array([True, False]),
        "c": pa.array(["red", "green"]),
        "d": np.array(["blue", "blue"]),
    } | columns


def parsed(form: Form = FORM, **columns: Any) -> Batch:
    return batch_of_arrays(table(**columns), form, now=NOW)


def test_arrays_are_the_same_request_as_lists() -> None:
    lists = {k: v.to_pylist() if isinstance(v, pa.Array) else v.tolist() for k, v in table().items()}
    assert same(parsed(), batch_of_lists(lists, FORM, now=NOW))


@pytest.mark.parametrize(
    "values",
    [
        *(np.array([1, 2], dtype) for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")),
        *(np.array([1, 2], dtype) for dtype in (">i4", ">f8")),
        *(pa.array([1, 2], kind) for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.uint64(), pa.int64())),
        pa.array([1, 2], pa.float32()),
        pa.array([1, 2], pa.float64()),
        pa.array(np.array([1, 2], np.float16)),
        pa.array([decimal.Decimal("1.0"), decimal.Decimal("2.0")]),
        pa.array([1, 2], pa.decimal256(40, 0)),
        pa.chunked_array([[1], [2]]),
        pa.chunked_array(
            [pa.array([1], pa.int16()).dictionary_encode(), pa.array([2], pa.int16()).dictionary_encode()]
        ),
        pa.array([1.0, 2.0, 1.0])[:2].dictionary_encode(),
        pa.array([0, 1, 2, 3])[1:3],
        np.array([0, 1, 0, 2])[1::2],
        np.array([1, 2], object),
        np.array([np.int8(1), np.float64(2)], object),
    ],
)
@pytest.mark.parametrize("name", ["x", "n"])
def test_numbers_of_every_width_are_taken(name: str, values: Any) -> None:
    batch = parsed(**{name: values})
    assert batch.columns[name].dtype == np.float32
    assert batch.columns[name].tolist() == [1.0, 2.0]
    assert batch.columns[name].flags.c_contiguous


@pytest.mark.parametrize(
    "values",
    [
        np.array([math.nan, 1]),
        np.array([math.nan, 1], np.float32),
        np.array([None, 1], object),
        np.array([math.nan, 1], object),
        pa.array([None, 1.0]),
        pa.array([None, 1], pa.int8()),
        pa.array([math.nan, 1.0]),
        pa.array([None, 1.0]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([None, 1.0])),  # the null stands in the dictionary
        pa.chunked_array([pa.array([None], pa.float64()), pa.array([1.0])]),
    ],
)
def test_missing_numbers_are_nan_where_they_may_be_and_refused_elsewhere(values: Any) -> None:
    assert np.isnan(parsed(x=values).columns["x"]).tolist() == [True, False]
    error = refused(lambda: parsed(n=values))
    assert error.detail == "row 0, column 'n': expected int (not null), got null"


def test_a_column_of_nothing_but_nulls() -> None:
    batch = parsed(x=pa.nulls(2), c=pa.nulls(2))
    assert np.isnan(batch.columns["x"]).all()
    assert batch.columns["c"].tolist() == ["", ""]
    assert "not null" in refused(lambda: parsed(flag=pa.nulls(2))).detail


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["red", "blue"]),
        pa.array(["red", "blue"], pa.large_string()),
        pa.array(["red", "blue"], pa.string_view()),
        pa.array(["red", "blue"]).dictionary_encode(),
        pa.array(["red", "blue"], pa.large_string()).dictionary_encode(),
        pa.chunked_array([pa.array(["red"]).dictionary_encode(), pa.array(["blue"]).dictionary_encode()]),
        pa.array(["no", "red", "blue"])[1:],
        pa.array(["no", "red", "blue"]).dictionary_encode()[1:],
        np.array(["red", "blue"]),
        np.array(["red", "blue"], object),
        np.array([b"red", b"blue"]),
        np.array([b"red", b"blue"], object),
    ],
)
def test_strings_of_every_layout_are_taken(values: Any) -> None:
    batch = parsed(c=values, who=values)
    assert batch.columns["c"].tolist() == ["red", "blue"]
    assert batch.columns["c"].dtype == object
    assert batch.keys == ("red", "blue")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([None, "a"]),
        pa.array([None, "a"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int8()), pa.array(["a", None])),
        np.array([None, "a"], object),
    ],
)
def test_missing_strings(values: Any) -> None:
    assert parsed(c=values).columns["c"].tolist() == ["", "a"]
    assert "row 0, column 'd': expected a string (not null), got null" in refused(lambda: parsed(d=values)).detail
    assert "row 0, column 'who'" in refused(lambda: parsed(who=values)).detail


NOON = dt.datetime(2013, 3, 1, 12, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([NOON, NOON], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array([NOON, NOON], pa.timestamp("us", "UTC")),
        pa.array([NOON, NOON], pa.timestamp("us", "America/New_York")),
        pa.array([NOON, NOON], pa.timestamp("ms", "Mars/Phobos")),
        pa.array([NOON, NOON], pa.timestamp("us")).dictionary_encode(),
        *(np.array(["2013-03-01T12:30"] * 2, f"datetime64[{unit}]") for unit in ("m", "s", "ms", "us", "ns")),
        np.array([1362141000] * 2),
        np.array([1362141000.0] * 2),
        pa.array([1362141000.0] * 2),
        pa.array(["2013-03-01T12:30:00Z", "2013-03-01T14:30:00+02:00"]),
        np.array(["2013-03-01T12:30:00Z", "2013-03-01T14:30:00+02:00"]),
        np.array(["2013-03-01T12:30:00Z", 1362141000], object),
    ],
)
def test_times_of_every_unit_and_zone(values: Any) -> None:
    assert parsed(at=values).times.tolist() == [1362141000.0] * 2


@pytest.mark.parametrize("values", [pa.array([dt.date(2013, 3, 1)] * 2), np.array(["2013-03-01"] * 2, "datetime64[D]")])
def test_days_are_midnight_in_utc(values: Any) -> None:
    assert parsed(at=values).times.tolist() == [1362096000.0] * 2
    as64 = values.cast(pa.date64()) if isinstance(values, pa.Array) else values
    assert parsed(at=as64).times.tolist() == [1362096000.0] * 2


def test_times_that_are_features() -> None:
    body = PROJECT.model_dump(mode="json")
    body["columns"].append({"name": "due", "dtype": "timestamp", "nullable": True})
    body["features"]["datetime"] = {"columns": [PROJECT.event_time, "due"], "parts": ["hour"]}
    form = Form.of(Project.model_validate(body))
    batch = parsed(form, due=pa.array([None, NOON], pa.timestamp("ns")))
    assert math.isnan(batch.columns["due"][0])
    assert batch.columns["due"][1] == 1362141000.0
    assert batch.columns["at"].tolist() == [1e9, 1e9]
    assert np.isnan(parsed(form, due=np.array(["NaT", "NaT"], "datetime64[ns]")).columns["due"]).all()
    for far in (np.array([1e12, 0]), pa.array([2**62, 0], pa.timestamp("s")), np.array([0, 10**9], "datetime64[Y]")):
        assert "column 'due'" in refused(lambda far=far: parsed(form, due=far)).detail


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"x": np.array([0, 1e39])}, ["row 1, column 'x'", "3e38", "1e+39"]),
        ({"x": np.array([0, math.inf])}, ["row 1, column 'x'", "inf"]),
        ({"x": np.array([0, -math.inf], np.float16)}, ["row 1, column 'x'", "-inf"]),
        ({"x": pa.array([0, 3.3e38], pa.float32())}, ["row 1, column 'x'", "3e38"]),
        ({"x": pa.array([decimal.Decimal(10) ** 60, decimal.Decimal(0)])}, ["row 0, column 'x'", "3e38"]),
        ({"x": np.array(["a", "b"])}, ["column 'x'", "float", "array of <U1"]),
        ({"x": np.array(["a", "b"], object)}, ["row 0, column 'x'", "'a'"]),
        ({"x": np.array([1j, 2j])}, ["column 'x'", "complex128"]),
        ({"x": np.array([True, False])}, ["column 'x'", "bool"]),
        ({"x": pa.array(["a", "b"])}, ["column 'x'", "array of string"]),
        ({"x": pa.array([[1], [2]])}, ["column 'x'", "list<"]),
        ({"x": pa.array([{"a": 1}] * 2)}, ["'x'", "struct<"]),
        ({"x": pa.array([NOON, NOON])}, ["column 'x'", "timestamp"]),
        ({"x": pa.array([1, 2], pa.duration("s"))}, ["column 'x'", "duration"]),
        ({"x": np.zeros((2, 2))}, ["column 'x'", "one value a row", "(2, 2)"]),
        ({"n": np.array([1.5, 2])}, ["row 0, column 'n'", "int", "1.5"]),
        ({"flag": np.array([1, 0])}, ["column 'flag'", "bool", "int64"]),
        ({"c": np.array([1, 2])}, ["column 'c'", "string", "int64"]),
        ({"c": pa.array([b"a", b"b"])}, ["column 'c'", "binary"]),
        ({"c": pa.array([1, 2]).dictionary_encode()}, ["column 'c'", "dictionary<"]),
        ({"c": np.array([b"a", b"\xff"])}, ["row 1, column 'c'", "UTF-8"]),
        ({"c": np.array([b"a", b"\xff"], object)}, ["row 1, column 'c'", "string"]),
        ({"who": pa.array(["", "b"])}, ["row 0, column 'who'", "key"]),
        ({"who": np.array([1, 2])}, ["column 'who'", "int64"]),
        ({"at": np.array([1e9, -1])}, ["row 1, column 'at'", "1970"]),
        ({"at": np.array([1e9, math.nan])}, ["row 1, column 'at'"]),
        ({"at": np.array(["NaT", "2013-01-01"], "datetime64[s]")}, ["row 0, column 'at'", "NaT"]),
        ({"at": pa.array([None, 1e9])}, ["row 0, column 'at'", "null"]),
        ({"at": pa.array([2**62, 0], pa.timestamp("s"))}, ["row 0, column 'at'", str(2**62)]),
        ({"at": pa.array(["soon", "now"])}, ["row 0, column 'at'", "'soon'"]),
        ({"at": np.array([True, False])}, ["column 'at'", "bool"]),
        ({"n": np.array([1, 2, 3])}, ["columns.who has 2 values"]),
        ({"late": np.array([1, 2])}, ["'late' is not a column"]),
    ],
)
def test_a_wrong_array_is_told_what_and_where(columns: dict[str, Any], named: list[str]) -> None:
    error = refused(lambda: parsed(**columns))
    assert error.status == 422
    for part in named:
        assert part in error.detail


def test_rules_hold_in_arrays_too() -> None:
    good = parsed(STRICT, who=pa.array(["k1", "k2"]))
    assert good.keys == ("k1", "k2")
    for columns, detail in (
        ({"x": np.array([0, -1.5])}, "row 1, column 'x': -1.5 breaks x.range (-1 to inf)"),
        ({"n": np.array([11, 0])}, "row 0, column 'n': 11 breaks n.range (0 to 10)"),
        ({"n": np.array([255, 0], np.uint8)}, "row 0, column 'n': 255 breaks n.range (0 to 10)"),
        ({"c": pa.array(["red", "blue"])}, "row 1, column 'c': 'blue' breaks c.set (one of red, green)"),
        ({"who": pa.array(["k1", "k"])}, r"row 1, column 'who': 'k' breaks who.pattern (k\d+)"),
    ):
        error = refused(lambda columns=columns: parsed(STRICT, **({"who": pa.array(["k1", "k2"])} | columns)))
        assert error.detail == detail
    assert parsed(STRICT, who=pa.array(["k1", "k2"]), x=pa.array([None, 0.0]), c=pa.array([None, "red"])).n_rows == 2


def test_columns_that_may_be_absent() -> None:
    columns = {name: values for name, values in table().items() if name not in ("x", "c", "at", "who")}
    batch = batch_of_arrays(columns, STRICT, now=NOW)
    assert batch.keys is None
    assert batch.times.tolist() == [NOW, NOW]
    assert np.isnan(batch.columns["x"]).all()
    del columns["n"]
    assert refused(lambda: batch_of_arrays(columns, STRICT, now=NOW)).detail == "column 'n' (int) is missing"


def test_an_integer_key() -> None:
    def keys(values: Any) -> tuple[str, ...] | None:
        return batch_of_arrays({"who": values, "x": np.zeros(2)}, WITH_NUMBER, now=NOW).keys

    assert keys(np.array([7, 8], np.uint16)) == keys(pa.array([7, 8])) == keys(np.array([7, 8], object)) == ("7", "8")
    for wrong in (np.array([7.0, 8.0]), pa.array([7, None]), pa.array(["7", "8"])):
        assert refused(lambda wrong=wrong: keys(wrong)).members["column"] == "who"


dtypes: st.SearchStrategy[Any] = (
    hnp.integer_dtypes()
    | hnp.unsigned_integer_dtypes()
    | hnp.floating_dtypes(sizes=(16, 32, 64))
    | hnp.boolean_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.unicode_string_dtypes(max_len=3)
    | hnp.byte_string_dtypes(max_len=3)
)
cells = st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2) | st.booleans()
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, 2)) | st.lists(cells, min_size=2, max_size=2).map(
    lambda values: np.array([*values, None], object)[:2]
)


@given(st.dictionaries(st.sampled_from(["who", "at", "x", "n", "flag", "c", "d"]), arrays, max_size=4))
def test_any_arrays_are_a_batch_or_a_bad_request(columns: dict[str, Any]) -> None:
    batch = or_refusal(lambda: parsed(**columns))
    if isinstance(batch, BadRequest):
        assert batch.status == 422
        return
    may_be_logged(batch)
