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
from mlops_ray.serving import protocol
from mlops_ray.serving.log import day_of
from mlops_ray.serving.protocol import Batch, Form, parse_feedback, parse_json, parse_predict, parse_watermark
from tests import fakes
from tests.fakes import row

PROJECT = fakes.project()
FORM = Form.of(PROJECT)
NOW = 1_700_000_000.0


def parsed(document: Any) -> Batch:
    return parse_predict(document, FORM, now=NOW)


def refused(document: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parsed(document)
    return caught.value


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in body.items() if k != name}


# --- good requests ---


def test_times_that_are_features_are_inputs_of_any_date() -> None:
    """The event time as it was given, or the clock's; other times may lie in the future, and be missing."""
    body = PROJECT.model_dump(mode="json")
    body["columns"].append({"name": "due", "dtype": "timestamp", "nullable": True})
    body["features"]["datetime"] = {"columns": [PROJECT.event_time, "due"], "parts": ["hour"]}
    timed = Project.model_validate(body)

    def times(**cells: Any) -> list[float]:
        sent = without(row("a"), PROJECT.event_time) | cells
        batch = parse_predict({"rows": [sent]}, protocol.Form.of(timed), now=NOW)
        return [batch.columns[name][0] for name in (PROJECT.event_time, "due")]

    assert times(due="2100-01-01T00:00:00.5+01:00", at="2013-03-01T12:30:00Z") == [1362141000.0, 4102441200.5]
    assert times(due=1e9) == [NOW, 1e9]
    assert math.isnan(times(due=None)[1])
    for wrong in ("soon", True, [], 1e300, "2013-13-01"):
        with pytest.raises(BadRequest, match="row 0, column 'due': expected ISO 8601 or seconds"):
            times(due=wrong)


def test_rows_become_columns_in_the_models_order() -> None:
    batch = parsed({"rows": [row("a", x=1, c="red"), row("b", x=2.5, n=3, flag=False, c="green")]})
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


def test_columns_mean_the_same_as_rows() -> None:
    rows = [row("a", x=None), row("b", c=None), row("c", at="2013-03-01T12:30:00Z")]
    a, b = parsed({"rows": rows}), parsed({"columns": {name: [r[name] for r in rows] for name in rows[0]}})
    assert a.keys == b.keys
    assert a.times.tolist() == b.times.tolist()
    for name in a.columns:
        np.testing.assert_array_equal(a.columns[name], b.columns[name])


def test_null_is_missing_where_it_is_allowed() -> None:
    batch = parsed({"rows": [row(x=None, c=None)]})
    assert math.isnan(batch.columns["x"][0])
    assert batch.columns["c"].tolist() == [""]


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
    assert parsed({"rows": [row(at=written)]}).times.tolist() == [seconds]
    assert parse_watermark({"time": written}, now=NOW) == seconds
    labels = parse_feedback({"labels": [{"prediction_id": "p", "label": 1, "time": written}]}, now=NOW)
    assert labels.times.tolist() == [seconds]


def test_rows_without_a_time_are_of_now() -> None:
    assert parsed({"rows": [without(row(), "at")] * 2}).times.tolist() == [NOW, NOW]


def test_a_key_may_be_an_integer_and_a_feature_too() -> None:
    """Found: an integer key that was also a numeric feature was read as text, and refused."""
    columns = [{"name": "who", "dtype": "int"}, *({**c.model_dump()} for c in PROJECT.columns[1:])]
    features = {"numeric": {"columns": ["who", "x"]}}
    form = Form.of(fakes.project(columns=columns, features=features))
    batch = parse_predict({"rows": [{"who": 7, "x": 1}, {"who": 8, "x": 2}]}, form, now=NOW)
    assert batch.keys == ("7", "8")
    assert batch.columns["who"].tolist() == [7.0, 8.0]


def test_feedback() -> None:
    document = {
        "labels": [
            {"prediction_id": "a:0", "label": 1, "time": 5},
            {"prediction_id": "a:1", "label": 0.0},
            {"prediction_id": "a:2", "label": 1, "time": None},
        ]
    }
    labels = parse_feedback(document, now=NOW)
    assert labels.ids == ("a:0", "a:1", "a:2")
    assert labels.values.tolist() == [1.0, 0.0, 1.0]
    assert labels.times.tolist() == [5.0, NOW, NOW]


# --- the rules of `columns:` ---

RULED = [
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
    ("broken", "detail"),
    [
        ({"x": -1.5}, "row 1, column 'x': -1.5 breaks x.range (-1 to inf)"),
        ({"n": 11}, "row 1, column 'n': 11 breaks n.range (0 to 10)"),
        ({"c": "blue"}, "row 1, column 'c': 'blue' breaks c.set (one of red, green)"),
        ({"c": ""}, "row 1, column 'c': '' breaks c.set (one of red, green)"),
        ({"who": "k"}, r"row 1, column 'who': 'k' breaks who.pattern (k\d+)"),
    ],
)
def test_rules_hold_in_requests_where_the_project_asks_for_it(broken: dict[str, Any], detail: str) -> None:
    document = {"rows": [row(), row() | broken]}
    assert parse_predict(document, TYPES, now=NOW).n_rows == 2  # drift, and answered
    with pytest.raises(BadRequest) as caught:
        parse_predict(document, STRICT, now=NOW)
    assert (caught.value.status, caught.value.detail) == (422, detail)


def test_good_values_and_nulls_keep_every_rule() -> None:
    document = {"rows": [row(x=-1, n=0), row(x=None, c=None, n=10.0), row(c="green")]}
    assert parse_predict(document, STRICT, now=NOW).n_rows == 3


def test_requests_are_held_to_the_rules_that_quarantine_rows() -> None:
    """The same schema: a row is taken online exactly when it is kept offline."""
    given = fakes.project(columns=RULED, serving={"request_rules": "all"})
    rows = [row(x=x, n=n, c=c, who=w) for x in (-2.0, None, 5.0) for n in (0, 11) for c in ("red", "b") for w in "ak"]
    rows += [row(who="k7"), row(who="k8", n=11), row(who="k9", c="")]
    for one in rows:
        table = pa.Table.from_pylist([one | {"late": 0, "at": "2013-03-01T12:00:00Z"}])
        kept = check(given, table).report.n_kept == 1
        taken = not isinstance(or_refusal(lambda one=one: parse_predict({"rows": [one]}, STRICT, now=NOW)), BadRequest)
        assert kept == taken, one


def test_an_optional_column_may_be_absent_from_all_rows_or_some() -> None:
    for document in (
        {"rows": [row(), without(without(row(), "x"), "c")]},
        {"rows": [without(without(row(), "x"), "c")] * 2},
        {"columns": {name: [value] * 2 for name, value in row().items() if name not in ("x", "c")}},
    ):
        batch = parse_predict(document, STRICT, now=NOW)
        assert math.isnan(batch.columns["x"][1])
        assert batch.columns["c"][1] == ""


# --- bad requests: what came, the status, and what the detail must name ---

DEEP = orjson.loads(b"[" * 1000 + b"]" * 1000)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, ["rows", "columns"]),
        ([], ["rows", "columns"]),
        ("rows", ["rows", "columns"]),
        ({}, ["rows", "columns"]),
        ({"rows": [row()], "columns": {}}, ["rows", "columns"]),
        ({"rows": [row()], "extra": 1}, ["'extra'"]),
        ({"rows": None}, ["rows"]),
        ({"rows": []}, ["rows"]),
        ({"rows": {}}, ["rows"]),
        ({"rows": [row(), 5]}, ["rows[1]", "integer"]),
        ({"rows": [None]}, ["rows[0]", "null"]),
        ({"rows": [{}]}, ["rows[0]", "who"]),
        ({"rows": [row(), row(zebra=1)]}, ["rows[1]", "'zebra'", "expected who"]),
        ({"rows": [row(late=1)]}, ["rows[0]", "'late'"]),  # nobody knows the target yet
        ({"rows": [row(), without(row(), "n")]}, ["rows[1]", "'n'"]),
        ({"rows": [row(), without(row(), "at")]}, ["rows[1]", "'at'"]),  # all rows have a time, or none
        ({"rows": [without(row(), "n")]}, ["'n'", "int"]),
        ({"rows": [without(row(), "who")]}, ["'who'"]),
        ({"rows": [row(), row(who="")]}, ["row 1", "'who'"]),
        ({"rows": [row(who=None)]}, ["row 0", "'who'"]),
        ({"rows": [row(who=5)]}, ["row 0", "'who'", "5"]),
        ({"rows": [row(x="1")]}, ["row 0", "'x'", "float", "'1'"]),
        ({"rows": [row(x=True)]}, ["row 0", "'x'", "float"]),
        ({"rows": [row(x=[1])]}, ["row 0", "'x'", "array"]),
        ({"rows": [row(x={"a": 1})]}, ["row 0", "'x'", "object"]),
        ({"rows": [row(x=1e39)]}, ["row 0", "'x'", "3e38"]),
        ({"rows": [row(), row(n=1.5)]}, ["row 1", "'n'", "int", "1.5"]),
        ({"rows": [row(n=None)]}, ["row 0", "'n'", "null"]),
        ({"rows": [row(flag=1)]}, ["row 0", "'flag'", "bool"]),
        ({"rows": [row(c=5)]}, ["row 0", "'c'", "string"]),
        ({"rows": [row(d=None)]}, ["row 0", "'d'", "null"]),
        ({"rows": [row(at="tomorrow")]}, ["row 0", "'at'", "ISO 8601", "'tomorrow'"]),
        ({"rows": [row(at=None)]}, ["row 0", "'at'"]),
        ({"rows": [row(at=True)]}, ["row 0", "'at'"]),
        ({"rows": [row(at=-1)]}, ["row 0", "'at'"]),
        ({"rows": [row(at=1362141000000)]}, ["row 0", "'at'", "seconds"]),  # milliseconds
        # Found: these were taken, and have no day that the log could be partitioned by.
        ({"rows": [row(at="0001-01-01T00:00:00+23:59")]}, ["row 0", "'at'"]),
        ({"rows": [row(at="9999-12-31T23:59:59-23:59")]}, ["row 0", "'at'"]),
        # Found: showing this value raised RecursionError.
        ({"rows": [row(x=DEEP)]}, ["row 0", "'x'", "array"]),
        ({"columns": []}, ["columns"]),
        ({"columns": {}}, ["columns"]),
        ({"columns": {"zebra": [1]}}, ["'zebra'", "expected who"]),
        ({"columns": {"who": "abc"}}, ["columns.who", "string"]),
        ({"columns": {"who": []}}, ["empty"]),
        ({"columns": {"who": ["a"]}}, ["'x'", "missing"]),
        ({"columns": {**{k: [v] for k, v in row().items()}, "n": [1, 2]}}, ["columns.n", "2", "1"]),
    ],
)
def test_a_malformed_predict_request_is_told_what_and_where(document: Any, named: list[str]) -> None:
    error = refused(document)
    assert error.status == 422
    assert error.title
    for part in named:
        assert part in error.detail


@pytest.mark.parametrize("long", ["y" * 10_000, "\u2603" * 10_000])
def test_what_came_is_shown_in_short(long: str) -> None:
    assert len(refused({"rows": [row(x=long)]}).detail) < 200
    assert len(refused({"rows": [row(**{long: 1})]}).detail) < 200
    assert len(refused({"rows": [row()], long: 1}).detail) < 200


def test_too_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_ROWS", 2)
    parsed({"rows": [row()] * 2})
    for document in ({"rows": [row()] * 3}, {"columns": {k: [v] * 3 for k, v in row().items()}}):
        assert refused(document).status == 413
    with pytest.raises(BadRequest) as caught:
        parse_feedback({"labels": [{"prediction_id": "p", "label": 1}] * 3}, now=NOW)
    assert caught.value.status == 413


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b'{"x": 1e400}', b"\xff", b'"\\ud800"', b"[" * 5000])
def test_what_is_no_json_is_a_400(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_json(body)
    assert caught.value.status == 400


GOOD = {"prediction_id": "p", "label": 1}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, ["labels"]),
        ({"labels": []}, ["labels"]),
        ({"labels": {}}, ["labels"]),
        ({"labels": [GOOD, 5]}, ["labels[1]", "integer"]),
        ({"labels": [GOOD | {"extra": 1}]}, ["labels[0]", "'extra'"]),
        ({"labels": [{"label": 1}]}, ["labels[0].prediction_id", "null"]),
        ({"labels": [GOOD | {"prediction_id": ""}]}, ["labels[0].prediction_id"]),
        ({"labels": [GOOD | {"prediction_id": 5}]}, ["labels[0].prediction_id", "integer"]),
        ({"labels": [{"prediction_id": "p"}]}, ["labels[0].label", "None"]),
        ({"labels": [GOOD, GOOD | {"label": 2}]}, ["labels[1].label", "2"]),
        ({"labels": [GOOD | {"label": 0.5}]}, ["labels[0].label", "0.5"]),
        ({"labels": [GOOD | {"label": "1"}]}, ["labels[0].label", "'1'"]),
        ({"labels": [GOOD | {"label": DEEP}]}, ["labels[0].label", "array"]),
        ({"labels": [GOOD | {"time": "soon"}]}, ["labels[0].time", "'soon'"]),
        ({"labels": [GOOD | {"time": -5}]}, ["labels[0].time", "-5"]),
    ],
)
def test_malformed_feedback_is_told_what_and_where(document: Any, named: list[str]) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_feedback(document, now=NOW)
    assert caught.value.status == 422
    for part in named:
        assert part in caught.value.detail


def test_a_time_from_the_far_future_is_refused() -> None:
    """It would move decision time there, for good."""
    for late in (NOW + 2 * 86_400, "2200-01-01"):
        with pytest.raises(BadRequest, match="tomorrow"):
            parse_watermark({"time": late}, now=NOW)
        with pytest.raises(BadRequest, match="row 0"):
            parsed({"rows": [row() | {"at": late}]})


@pytest.mark.parametrize("document", [None, {}, {"time": None}, {"time": "x"}, {"time": 1, "more": 2}, [1]])
def test_a_malformed_watermark_is_refused(document: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_watermark(document, now=NOW)
    assert caught.value.status == 422


def test_a_problem_is_rfc_9457() -> None:
    assert orjson.loads(protocol.problem(BadRequest(422, "wrong value", "row 0"), "/small/predict")) == {
        "type": "about:blank",
        "title": "wrong value",
        "status": 422,
        "detail": "row 0",
        "instance": "/small/predict",
    }


# --- anything at all ---

names = st.sampled_from(["rows", "columns", "labels", "time", "prediction_id", "label", *row(), "late"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.datetimes().map(str)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=3), inner, max_size=5)
)
nearly_rows = st.lists(
    st.builds(lambda good, changes: good | changes, st.just(row()), st.dictionaries(names, scalars, max_size=2)),
    max_size=4,
)
nearly_columns = st.dictionaries(names, st.lists(scalars, max_size=3), max_size=8)
documents = (
    anything
    | st.fixed_dictionaries({"rows": nearly_rows})
    | st.fixed_dictionaries({"columns": nearly_columns})
    | st.fixed_dictionaries({"labels": st.lists(st.dictionaries(names, scalars, max_size=3), max_size=3)})
)


def or_refusal(parse: Callable[[], Any]) -> Any:
    """What `parse` returns, or the BadRequest that it raises, which must be one that can be sent."""
    try:
        return parse()
    except BadRequest as exc:
        orjson.loads(protocol.problem(exc, "/"))
        return exc


@given(documents)
@example({"rows": [row(at=0.5)]})
def test_any_json_is_a_batch_or_a_bad_request(document: Any) -> None:
    """And what is taken can be logged: whole columns, a key for each row, a day that exists."""
    batch = or_refusal(lambda: parsed(parse_json(orjson.dumps(document))))
    if isinstance(batch, BadRequest):
        assert batch.status == 422
        return
    assert batch.n_rows == len(batch.times) > 0
    assert all(len(values) == batch.n_rows for values in batch.columns.values())
    assert not any(np.isinf(batch.columns[name]).any() for name in PROJECT.features.numeric.columns)
    assert all(day_of(t) for t in batch.times)


@given(documents)
@example({"labels": [{"prediction_id": "p", "label": 1}]})
def test_any_json_is_feedback_or_a_bad_request(document: Any) -> None:
    labels = or_refusal(lambda: parse_feedback(parse_json(orjson.dumps(document)), now=NOW))
    if isinstance(labels, BadRequest):
        assert labels.status == 422
        return
    assert len(labels.ids) == len(labels.values) == len(labels.times) > 0
    assert set(labels.values) <= {0.0, 1.0}
    assert all(day_of(t) for t in labels.times)


@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_a_bad_request(body: bytes) -> None:
    found = or_refusal(lambda: parse_json(body))
    assert not isinstance(found, BadRequest) or found.status == 400
