"""JSON values against a project's columns. The request that carries them is `test_native`'s, arrays `test_typed`'s."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given

from mlops_ray.config import Project
from mlops_ray.data.rules.expectations import check
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Batch
from mlops_ray.serving.log.tables import day_of
from mlops_ray.serving.protocols.form import Form, batch_of_arrays, batch_of_lists, batch_of_row, batch_of_rows
from tests import fakes
from tests.fakes import row

PROJECT = fakes.project()
FORM = Form.of(PROJECT)
NOW = 1_700_000_000.0


def of_rows(*rows: Any, form: Form = FORM) -> Batch:
    return batch_of_rows(rows, form, now=NOW)


def of_lists(table: dict[str, Any], form: Form = FORM) -> Batch:
    return batch_of_lists(table, form, now=NOW)


def refused(ask: Callable[[], Any]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask()
    return caught.value


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in body.items() if k not in names}


def same(a: Batch, b: Batch) -> bool:
    np.testing.assert_array_equal(a.times, b.times)
    assert list(a.columns) == list(b.columns)
    for name, values in a.columns.items():
        assert values.dtype == b.columns[name].dtype
        np.testing.assert_array_equal(values, b.columns[name])
    return a.keys == b.keys


# --- good values ---


def test_times_that_are_features_are_inputs_of_any_date() -> None:
    """The event time as it was given, or the clock's; other times may lie in the future, and be missing."""
    body = PROJECT.model_dump(mode="json")
    body["columns"].append({"name": "due", "dtype": "timestamp", "nullable": True})
    body["features"]["datetime"] = {"columns": [PROJECT.event_time, "due"], "parts": ["hour"]}
    form = Form.of(Project.model_validate(body))

    def times(**cells: Any) -> list[float]:
        sent = without(row("a"), PROJECT.event_time) | cells
        one, two = of_rows(sent, form=form), of_rows(sent, sent, form=form)
        found: list[float] = [one.columns[name][0] for name in (PROJECT.event_time, "due")]
        np.testing.assert_array_equal(found, [two.columns[name][1] for name in (PROJECT.event_time, "due")])
        return found

    assert times(due="2100-01-01T00:00:00.5+01:00", at="2013-03-01T12:30:00Z") == [1362141000.0, 4102441200.5]
    assert times(due=1e9) == [NOW, 1e9]
    assert math.isnan(times(due=None)[1])
    for wrong in ("soon", True, [], 1e300, "2013-13-01"):
        with pytest.raises(BadRequest, match="row 0, column 'due': expected ISO 8601 or seconds"):
            times(due=wrong)


def test_rows_become_columns_in_the_models_order() -> None:
    batch = of_rows(row("a", x=1, c="red"), row("b", x=2.5, n=3, flag=False, c="green"))
    assert batch.keys == ("a", "b")
    assert batch.n_rows == 2
    assert list(batch.columns) == ["x", "n", "flag", "c", "d"] == list(PROJECT.features.columns)
    assert batch.columns["x"].tolist() == [1.0, 2.5]
    assert batch.columns["flag"].tolist() == [1.0, 0.0]
    assert batch.columns["c"].tolist() == ["red", "green"]
    assert {name: v.dtype for name, v in batch.columns.items()} == {
        **dict.fromkeys(("x", "n", "flag"), np.dtype(np.float32)),
        **dict.fromkeys(("c", "d"), np.dtype(object)),
    }


def test_rows_and_columns_are_the_same_request() -> None:
    rows = [row("a"), row("b", x=None)]
    assert same(of_rows(*rows), of_lists({name: [r[name] for r in rows] for name in reversed(rows[0])}))


def test_a_single_row_is_read_as_any_other() -> None:
    """One row has a way of its own, which is quicker."""
    for one in (row("a"), row("b", x=None, c=None), without(row("c"), "at"), without(row(), "who"), row(n=3.0)):
        whole = of_rows(one, one)
        first = Batch(
            whole.keys and whole.keys[:1], whole.times[:1], {name: v[:1] for name, v in whole.columns.items()}
        )
        assert same(batch_of_row(one, FORM, now=NOW), first)
        assert same(of_lists({name: [value] for name, value in one.items()}), first)


def test_null_is_missing_where_it_is_allowed() -> None:
    batch = of_rows(row(x=None, c=None), row())
    assert math.isnan(batch.columns["x"][0])
    assert batch.columns["c"].tolist() == ["", "red"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2013-03-01T12:30:00Z", 1362141000.0),
        ("2013-03-01T12:30:00", 1362141000.0),  # without a zone it is UTC
        ("2013-03-01T14:30:00+02:00", 1362141000.0),
        ("2013-03-01", 1362096000.0),
        ("2013-03-01T12:30:00.250Z", 1362141000.25),
        (1362141000, 1362141000.0),
        (1362141000.25, 1362141000.25),
        (0, 0.0),
    ],
)
def test_times(written: Any, seconds: float) -> None:
    assert of_rows(row(at=written)).times.tolist() == [seconds]
    assert of_rows(row(at=written), row(at=written)).times.tolist() == [seconds] * 2


def test_rows_without_a_time_are_of_now() -> None:
    assert of_rows(*[without(row(), "at")] * 2).times.tolist() == [NOW, NOW]


def test_rows_may_come_without_a_key() -> None:
    assert of_rows(without(row(), "who")).keys is None
    assert of_rows(*[without(row(), "who")] * 2).keys is None
    assert "rows[1]: column 'who' is missing" in refused(lambda: of_rows(row(), without(row(), "who"))).detail


def test_a_key_has_a_bound_whichever_way_it_comes() -> None:
    """It stands in every row of the log."""
    longest = "é" * 1_000
    cell = row(who=longest, at=5)
    arrays = {name: np.array([value]) for name, value in cell.items()}
    assert of_rows(cell).keys == (longest,)
    assert of_rows(cell, cell).keys == (longest,) * 2
    assert batch_of_arrays(arrays, FORM, now=NOW).keys == (longest,)
    long = cell | {"who": longest + "é"}
    typed = arrays | {"who": np.array([longest + "é"])}
    for asked in (lambda: of_rows(long), lambda: of_rows(cell, long), lambda: batch_of_arrays(typed, FORM, now=NOW)):
        assert "1 to 1,000 characters" in refused(asked).detail


WITH_NUMBER = Form.of(
    fakes.project(
        columns=[{"name": "who", "dtype": "int"}, *(c.model_dump() for c in PROJECT.columns[1:])],
        features={"numeric": {"columns": ["who", "x"]}},
    )
)


def test_a_key_may_be_an_integer_and_a_feature_too() -> None:
    """Found: an integer key that was also a numeric feature was read as text, and refused."""
    batch = of_rows({"who": 7, "x": 1}, {"who": 8.0, "x": 2}, form=WITH_NUMBER)
    assert batch.keys == ("7", "8")
    assert batch.columns["who"].tolist() == [7.0, 8.0]
    assert of_rows({"who": 7, "x": 1}, form=WITH_NUMBER).keys == ("7",)
    assert of_rows({"who": 2**63 + 1, "x": 1}, form=WITH_NUMBER).keys == ("9223372036854775809",)  # no digit is lost
    for wrong in ("7", 7.5, True, None, 1e300):
        for rows in ([{"who": wrong, "x": 1}], [{"who": 1, "x": 1}, {"who": wrong, "x": 1}]):
            error = refused(lambda rows=rows: of_rows(*rows, form=WITH_NUMBER))
            assert error.members["column"] == "who"
    assert "'who' (int) is missing" in refused(lambda: of_rows({"x": 1}, form=WITH_NUMBER)).detail


# --- the rules of `columns:` ---

RULED: list[dict[str, Any]] = [
    {"name": "who", "dtype": "string", "pattern": r"k\d+"},
    {"name": "at", "dtype": "timestamp"},
    {"name": "late", "dtype": "int", "min": 0, "max": 1},
    {"name": "x", "dtype": "float", "nullable": True, "required": False, "min": -1},
    {"name": "n", "dtype": "int", "min": 0, "max": 10},
    {"name": "flag", "dtype": "bool"},
    {"name": "c", "dtype": "string", "nullable": True, "required": False, "values": ["red", "green"]},
    {"name": "d", "dtype": "string"},
]
TYPES = Form.of(fakes.project(columns=RULED))
STRICT = Form.of(fakes.project(columns=RULED, serving={"request_rules": "all"}))


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        ({"x": -1.5}, "column 'x': -1.5 breaks x.range (-1 to inf)"),
        ({"n": 11}, "column 'n': 11 breaks n.range (0 to 10)"),
        ({"c": "blue"}, "column 'c': 'blue' breaks c.set (one of red, green)"),
        ({"c": ""}, "column 'c': '' breaks c.set (one of red, green)"),
        ({"who": "k"}, r"column 'who': 'k' breaks who.pattern (k\d+)"),
    ],
)
def test_rules_hold_in_requests_where_the_project_asks_for_it(wrong: dict[str, Any], detail: str) -> None:
    assert of_rows(row(), row() | wrong, form=TYPES).n_rows == 2  # drift, and answered
    error = refused(lambda: of_rows(row(), row() | wrong, form=STRICT))
    assert (error.status, error.detail) == (422, f"row 1, {detail}")
    assert error.members["row"] == 1
    assert refused(lambda: of_rows(row() | wrong, form=STRICT)).detail == f"row 0, {detail}"


def test_good_values_and_nulls_keep_every_rule() -> None:
    rows = [row(x=-1, n=0), row(x=None, c=None, n=10.0), row(c="green")]
    assert of_rows(*rows, form=STRICT).n_rows == 3
    assert all(of_rows(one, form=STRICT).n_rows == 1 for one in rows)


def test_requests_are_held_to_the_rules_that_quarantine_rows() -> None:
    """The same schema: a row is taken online exactly when it is kept offline."""
    given_ = fakes.project(columns=RULED, serving={"request_rules": "all"})
    rows = [row(x=x, n=n, c=c, who=w) for x in (-2.0, None, 5.0) for n in (0, 11) for c in ("red", "b") for w in "ak"]
    rows += [row(who="k7"), row(who="k8", n=11), row(who="k9", c="")]
    for one in rows:
        table = pa.Table.from_pylist([one | {"late": 0, "at": "2013-03-01T12:00:00Z"}])
        kept = check(given_, table).report.n_kept == 1
        for n in (1, 2):
            taken = not isinstance(or_refusal(lambda one=one, n=n: of_rows(*[one] * n, form=STRICT)), BadRequest)
            assert kept == taken, one


def test_an_optional_column_may_be_absent_from_all_rows_or_some() -> None:
    bare = without(row(), "x", "c")
    for batch in (
        of_rows(row(), bare, form=STRICT),
        of_rows(bare, row(), form=STRICT),
        of_rows(bare, bare, form=STRICT),
        of_rows(bare, form=STRICT),
        of_lists({name: [value] * 2 for name, value in bare.items()}, STRICT),
        of_lists({name: [value] for name, value in bare.items()}, STRICT),
    ):
        at = int(np.flatnonzero(np.isnan(batch.columns["x"]))[0])
        assert batch.columns["c"][at] == ""


# --- bad values: what came, and what the detail must name ---

DEEP = orjson.loads(b"[" * 1000 + b"]" * 1000)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([row(), 5], ["rows[1]", "integer"]),
        ([None], ["rows[0]", "null"]),
        ([{}], ["no column", "who"]),
        ([{}, {}], ["rows[0]", "who"]),
        ([row(), row(zebra=1)], ["rows[1]", "'zebra'", "expected who"]),
        ([row(zebra=1), row()], ["rows[0]", "'zebra'", "expected who"]),
        ([row(zebra=1)], ["rows[0]", "'zebra'", "expected who"]),
        ([row(late=1)], ["rows[0]", "'late'"]),  # nobody knows the target yet
        ([row(), without(row(), "n")], ["rows[1]", "'n'"]),
        ([row(), without(row(), "at")], ["rows[1]", "'at'"]),  # all rows have a time, or none
        ([without(row(), "n")], ["'n'", "int"]),
        ([row(), row(who="")], ["row 1", "'who'"]),
        ([row(who=None)], ["row 0", "'who'"]),
        ([row(who=5)], ["row 0", "'who'", "5"]),
        ([row(x="1")], ["row 0", "'x'", "float", "'1'"]),
        ([row(), row(x="1")], ["row 1", "'x'", "float", "'1'"]),
        ([row(x=True)], ["row 0", "'x'", "float"]),
        ([row(x=[1])], ["row 0", "'x'", "array"]),
        ([row(x={"a": 1})], ["row 0", "'x'", "object"]),
        ([row(x=1e39)], ["row 0", "'x'", "3e38"]),
        ([row(), row(x=-1e39)], ["row 1", "'x'", "3e38"]),
        ([row(x=math.nan)], ["row 0", "'x'", "nan"]),
        ([row(), row(x=math.nan)], ["row 1", "'x'", "nan"]),
        ([row(), row(x=math.inf)], ["row 1", "'x'", "inf"]),
        ([row(), row(x=10**400)], ["row 1", "'x'", "3e38"]),
        ([row(), row(n=1.5)], ["row 1", "'n'", "int", "1.5"]),
        ([row(n=1.5)], ["row 0", "'n'", "int", "1.5"]),
        ([row(n=None)], ["row 0", "'n'", "null"]),
        ([row(), row(n=None)], ["row 1", "'n'", "null"]),
        ([row(flag=1)], ["row 0", "'flag'", "bool"]),
        ([row(), row(flag=0.0)], ["row 1", "'flag'", "bool"]),
        ([row(c=5)], ["row 0", "'c'", "string"]),
        ([row(d=None)], ["row 0", "'d'", "null"]),
        ([row(), row(d=None)], ["row 1", "'d'", "null"]),
        ([row(at="tomorrow")], ["row 0", "'at'", "ISO 8601", "'tomorrow'"]),
        ([row(at=None)], ["row 0", "'at'"]),
        ([row(at=True)], ["row 0", "'at'"]),
        ([row(at=-1)], ["row 0", "'at'"]),
        ([row(at=-6.956801905395379e16)], ["row 0", "'at'"]),  # found: OSError, from the platform's own limits
        ([row(at=1362141000000)], ["row 0", "'at'", "seconds"]),  # milliseconds
        # Found: these were taken, and have no day that the log could be partitioned by.
        ([row(at="0001-01-01T00:00:00+23:59")], ["row 0", "'at'"]),
        ([row(at="9999-12-31T23:59:59-23:59")], ["row 0", "'at'"]),
        # It would move decision time there, for good.
        ([row(), row(at=NOW + 2 * 86_400)], ["row 1", "tomorrow"]),
        ([row(at="2200-01-01")], ["row 0", "tomorrow"]),
        # Found: showing this value raised RecursionError.
        ([row(x=DEEP)], ["row 0", "'x'", "array"]),
        ([row(), row(d=DEEP)], ["row 1", "'d'", "array"]),
    ],
)
def test_a_wrong_value_is_told_what_and_where(rows: list[Any], named: list[str]) -> None:
    error = refused(lambda: of_rows(*rows))
    assert error.status == 422
    assert error.title
    for part in named:
        assert part in error.detail


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({}, ["no column", "expected who"]),
        ({"zebra": [1]}, ["'zebra'", "expected who"]),
        ({"who": "abc"}, ["columns.who", "a string"]),
        ({"who": 5}, ["columns.who", "an integer"]),
        ({"who": {}}, ["columns.who", "an object"]),
        ({"who": []}, ["no rows"]),
        ({"who": ["a"]}, ["'x'", "missing"]),
        ({**{k: [v] for k, v in row().items()}, "n": [1, 2]}, ["2", "1"]),
    ],
)
def test_a_wrong_table_is_told_what_and_where(table: dict[str, Any], named: list[str]) -> None:
    error = refused(lambda: of_lists(table))
    assert error.status == 422
    for part in named:
        assert part in error.detail


def test_a_refusal_tells_programs_where() -> None:
    error = refused(lambda: of_rows(row(), row(x="big")))
    assert error.members == {"row": 1, "column": "x", "expected": "float", "received": "'big'"}
    assert refused(lambda: of_rows(without(row(), "n"))).members == {"column": "n", "expected": "int"}


@pytest.mark.parametrize("long", ["y" * 10_000, "\u2603" * 10_000])
def test_what_came_is_shown_in_short(long: str) -> None:
    assert len(refused(lambda: of_rows(row(x=long))).detail) < 200
    assert len(refused(lambda: of_rows(row(**{long: 1}))).detail) < 200
    assert len(refused(lambda: of_lists({long: [1]})).detail) < 200


def test_too_many_rows() -> None:
    form = Form.of(fakes.project(serving={"max_rows": 2}))
    assert of_rows(*[row()] * 2, form=form).n_rows == 2
    for ask in (
        lambda: of_rows(*[row()] * 3, form=form),
        lambda: of_lists({k: [v] * 3 for k, v in row().items()}, form),
    ):
        assert refused(ask).status == 413


# --- anything at all ---

names = st.sampled_from([*row(), "late"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes().map(str)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
nearly_rows = st.lists(
    st.builds(lambda good, changes: good | changes, st.just(row()), st.dictionaries(names, scalars, max_size=2)),
    max_size=4,
)


def or_refusal(ask: Callable[[], Any]) -> Any:
    """What `ask` returns, or the BadRequest that it raises."""
    try:
        return ask()
    except BadRequest as exc:
        return exc


def may_be_logged(batch: Batch) -> None:
    """Whole columns, a key for each row or none, numbers that a float32 holds, a day that exists."""
    assert batch.n_rows == len(batch.times) > 0
    assert batch.keys is None or len(batch.keys) == batch.n_rows
    assert all(len(values) == batch.n_rows for values in batch.columns.values())
    assert not any(np.isinf(batch.columns[name]).any() for name in PROJECT.features.numeric.columns)
    assert not np.isnan(batch.columns["n"]).any()
    assert all(type(value) is str for name in ("c", "d") for value in batch.columns[name])
    assert all(day_of(t) for t in batch.times)


@given(nearly_rows | st.lists(anything, max_size=3))
@example([row(at=0.5)])
def test_any_rows_are_a_batch_or_a_bad_request(rows: list[Any]) -> None:
    batch = or_refusal(lambda: of_rows(*rows))
    if isinstance(batch, BadRequest):
        assert batch.status == 422
        return
    may_be_logged(batch)


@given(st.dictionaries(names | st.text(max_size=3), st.lists(scalars, max_size=3) | anything, max_size=8))
def test_any_columns_are_a_batch_or_a_bad_request(table: dict[str, Any]) -> None:
    batch = or_refusal(lambda: of_lists(table))
    assert isinstance(batch, BadRequest) or may_be_logged(batch) is None
