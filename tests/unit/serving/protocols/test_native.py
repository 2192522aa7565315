from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import example, given

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import NO_OPTIONS, Asked, Options
from mlops_ray.serving.protocols import arrow, bodies, native
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.problem import problem
from tests import fakes
from tests.fakes import row
from tests.unit.serving.protocols import answers
from tests.unit.serving.protocols.test_form import anything, may_be_logged, names, nearly_rows, or_refusal, scalars

PROJECT = fakes.project(serving={"explain": 3, "max_rows": 100})
FORM = Form.of(PROJECT)
MULTICLASS = Form.of(fakes.project(task="multiclass"))
NOW = 1_700_000_000.0
JSON = {"content-type": "application/json"}


def ask(document: Any, form: Form = FORM, **headers: str) -> Asked:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return native.parse(body, JSON | {k.replace("_", "-"): v for k, v in headers.items()}, form, now=NOW)


def refused(document: Any, form: Form = FORM, **headers: str) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask(document, form, **headers)
    return caught.value


# --- requests ---


def test_rows_and_columns() -> None:
    rows = [row("a"), row("b", x=None)]
    a, b = ask({"rows": rows}), ask({"columns": {name: [r[name] for r in rows] for name in rows[0]}})
    assert a.batch.keys == b.batch.keys == ("a", "b")
    assert a.options is NO_OPTIONS
    for name, values in a.batch.columns.items():
        np.testing.assert_array_equal(values, b.batch.columns[name])


def test_a_body_without_a_media_type_is_json() -> None:
    assert native.parse(orjson.dumps({"rows": [row()]}), {}, FORM, now=NOW).batch.n_rows == 1
    assert ask({"rows": [row()]}, content_type="Application/JSON; charset=utf-8").batch.n_rows == 1


def test_another_media_type_is_a_415() -> None:
    error = refused({"rows": [row()]}, content_type="text/csv")
    assert error.status == 415
    assert "application/json or application/vnd.apache.arrow.stream, not 'text/csv'" in error.detail


def test_options() -> None:
    sent = {"threshold": 0.3, "version": 7, "explain": 2, "probabilities": False}
    asked = ask({"rows": [row()], "options": sent})
    assert asked.options == Options(0.3, 7, 2)
    assert asked.echo == native.Shape(probabilities=False)
    assert ask({"rows": [row()], "options": {}}).options == NO_OPTIONS
    assert ask({"rows": [row()], "options": {"version": 7.0, "explain": 0.0}}).options == Options(version=7)
    assert ask({"rows": [row()], "options": {"threshold": 1}}).options.threshold == 1.0


@pytest.mark.parametrize(
    ("options", "pointer", "named"),
    [
        (None, "#/options", ["options: expected an object, got null"]),
        ([], "#/options", ["an array"]),
        ({"color": 1}, "#/options/color", ["options.color", "threshold, version, explain"]),
        ({"threshold": 1.1}, "#/options/threshold", ["from 0 to 1, got 1.1"]),
        ({"threshold": -0.1}, "#/options/threshold", ["from 0 to 1"]),
        ({"threshold": True}, "#/options/threshold", ["got true"]),
        ({"threshold": "0.5"}, "#/options/threshold", ["got '0.5'"]),
        ({"threshold": None}, "#/options/threshold", ["got null"]),
        ({"version": 0}, "#/options/version", ["number of a version"]),
        ({"version": 1.5}, "#/options/version", ["number of a version"]),
        ({"version": "3"}, "#/options/version", ["got '3'"]),
        ({"version": True}, "#/options/version", ["got true"]),
        ({"explain": 4}, "#/options/explain", ["from 0 to 3, got 4"]),
        ({"explain": -1}, "#/options/explain", ["got -1"]),
        ({"explain": True}, "#/options/explain", ["got true"]),
        ({"probabilities": 1}, "#/options/probabilities", ["true or false"]),
    ],
)
def test_a_wrong_option_is_told(options: Any, pointer: str, named: list[str]) -> None:
    error = refused({"rows": [row()], "options": options})
    assert (error.status, error.members["pointer"]) == (422, pointer)
    for part in named:
        assert part in error.detail


def test_options_that_the_project_does_not_offer() -> None:
    error = refused({"rows": [row()], "options": {"threshold": 0.5}}, MULTICLASS)
    assert "a multiclass task has no threshold" in error.detail
    error = refused({"rows": [row()], "options": {"explain": 1}}, MULTICLASS)
    assert "set serving.explain" in error.detail


@pytest.mark.parametrize(
    ("document", "pointer", "named"),
    [
        (None, None, ["rows", "columns"]),
        ([], None, ["rows", "columns"]),
        ("rows", None, ["rows", "columns"]),
        ({}, None, ["rows", "columns"]),
        ({"rows": [row()], "columns": {}}, None, ["rows", "columns"]),
        ({"rows": [row()], "extra": 1}, None, ["'extra'"]),
        ({"rows": None}, "#/rows", ["rows"]),
        ({"rows": []}, "#/rows", ["rows"]),
        ({"rows": {}}, "#/rows", ["rows"]),
        ({"rows": [row(), 5]}, "#/rows/1", ["rows[1]", "integer"]),
        ({"rows": [row(), row(zebra=1)]}, "#/rows", ["rows[1]", "'zebra'", "expected who"]),
        ({"rows": [row(), row(n=1.5)]}, "#/rows/1/n", ["row 1", "'n'", "int", "1.5"]),
        ({"columns": []}, "#/columns", ["columns"]),
        ({"columns": {}}, "#/columns", ["columns"]),
        ({"columns": {"zebra": [1]}}, "#/columns", ["'zebra'", "expected who"]),
        ({"columns": {"who": "abc"}}, "#/columns/who", ["columns.who", "string"]),
        ({"columns": {"who": ["a"]}}, "#/columns/x", ["'x'", "missing"]),
        ({"columns": {**{k: [v, v] for k, v in row().items()}, "n": [1, None]}}, "#/columns/n/1", ["row 1", "'n'"]),
    ],
)
def test_a_malformed_request_is_told_what_and_where(document: Any, pointer: str | None, named: list[str]) -> None:
    error = refused(document)
    assert error.status == 422
    assert error.members.get("pointer") == pointer
    for part in named:
        assert part in error.detail


def test_too_many_rows() -> None:
    error = refused({"rows": [row()] * 101})
    assert (error.status, error.members["received"]) == (413, 101)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b'{"x": 1e400}',
        b"\xff",
        b'"\\ud800"',
        b"[" * 5000,
        b'{"rows":[{"x":Infinity}]}',
        b"\xef\xbb\xbf{}",
    ]
    + ['{"rows": []}'.encode(code) for code in ("utf-16", "utf-32")],
)
def test_what_is_no_json_is_a_400(body: bytes) -> None:
    assert refused(body).status == 400


GOOD = orjson.dumps(row())[1:-1]


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows": [{%b, "x": 1}]}' % GOOD,
        b'{"rows": [{"x" : 1, %b}]}' % GOOD,
        b'{"rows": [{%b}], "rows": [{%b}]}' % (GOOD, GOOD),
        b'{"rows": [{%b, "\\u0078": 1}]}' % GOOD,
        b'{"rows": [{%b, "d": "a\\":"}]}' % GOOD,
        b'{"rows": [{%b}], "options": {"explain": 1, "explain"\n:2}}' % GOOD,
        orjson.dumps({"columns": {k: [v] for k, v in row().items()}})[:-2] + b',"x":[1]}}',
    ],
)
def test_a_member_named_twice_is_refused(body: bytes) -> None:
    """Parsers differ in which of them they keep (RFC 8259, 4)."""
    assert (error := refused(body)).status == 400
    assert error.title == "repeated member"


@pytest.mark.parametrize("text", [":", '":', '": ', '\\":', '"a":1', "\\\\", 'x" :'])
def test_colons_in_texts_are_no_members(text: str) -> None:
    batch = ask({"rows": [row(d=text, c=text), row(who=text)]}).batch
    assert batch.columns["d"].tolist() == [text, "blue"]
    assert ask(orjson.dumps({"rows": [row(d=text)]}, option=orjson.OPT_INDENT_2)).batch.keys == ("k1",)


# --- answers ---


def told(answer: Any, asked: Asked | None = None) -> Any:
    reply = native.reply(asked or ask({"rows": [row(), row()]}), answer)
    assert (reply.status, reply.media_type) == (200, "application/json")
    return orjson.loads(reply.body)


def test_a_binary_answer() -> None:
    assert told(answers.binary()) == {
        "request_id": "r",
        "predictions": [
            {"prediction_id": "r:0", "probability": 0.25, "label": 0, "version": 3, "variant": "stable"},
            {"prediction_id": "r:1", "probability": 0.75, "label": 1, "version": 4, "variant": "canary"},
        ],
    }
    assert [p["label"] for p in told(answers.binary(threshold=0.2))["predictions"]] == [1, 1]


def test_a_multiclass_answer() -> None:
    first = {
        "prediction_id": "r:0",
        "probabilities": {"cat": 0.25, "dog": 0.5, "fox": 0.25},
        "label": "dog",
        "version": 3,
        "variant": "stable",
    }
    assert told(answers.multiclass())["predictions"][0] == first
    numbers = told(answers.multiclass(classes=(10, 20, 30)))["predictions"][1]
    assert (numbers["label"], numbers["probabilities"]) == (10, {"10": 0.75, "20": 0.25, "30": 0.0})
    short = ask({"rows": [row(), row()], "options": {"probabilities": False}})
    del first["probabilities"]
    assert told(answers.multiclass(), short)["predictions"][0] == first


def test_a_regression_answer() -> None:
    assert told(answers.regression())["predictions"] == [
        {"prediction_id": "r:0", "prediction": -1.5, "version": 3, "variant": "stable"},
        {"prediction_id": "r:1", "prediction": 20.0, "version": 4, "variant": "canary"},
    ]


def test_contributions_and_what_is_not_captured() -> None:
    document = told(answers.binary(contributions=((("x", 0.5), ("n", -0.25)), ()), captured=False))
    assert document["captured"] is False
    assert document["predictions"][0]["contributions"] == [
        {"feature": "x", "contribution": 0.5},
        {"feature": "n", "contribution": -0.25},
    ]
    assert document["predictions"][1]["contributions"] == []
    assert "captured" not in told(answers.binary())


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/json, application/vnd.apache.arrow.stream;q=0.5", "application/json"),
        (arrow.MEDIA_TYPE, arrow.MEDIA_TYPE),
        ("application/json;q=0.1, application/vnd.apache.arrow.stream", arrow.MEDIA_TYPE),
        ("application/vnd.apache.arrow.stream;q=nonsense", "application/json"),
        ("text/html", "application/json"),
    ],
)
def test_the_client_chooses_the_answers_form(accept: str, media: str) -> None:
    assert native.reply(ask({"rows": [row(), row()]}, accept=accept), answers.binary()).media_type == media


# --- anything at all ---

fields = names | st.sampled_from(["rows", "columns", "options", "threshold"])
finite = scalars.filter(lambda v: not isinstance(v, float) or math.isfinite(v))
documents = (
    anything
    | st.fixed_dictionaries({"rows": nearly_rows}, optional={"options": anything})
    | st.fixed_dictionaries({"columns": st.dictionaries(fields, st.lists(finite, max_size=3), max_size=8)})
    | st.dictionaries(fields, anything, max_size=3)
)


@given(documents)
@example({"rows": [row(at=0.5)]})
def test_any_json_is_a_batch_or_a_bad_request(document: Any) -> None:
    body = orjson.dumps(document, default=str)
    asked = or_refusal(lambda: ask(body))
    if isinstance(asked, BadRequest):
        assert asked.status in (400, 422)
        assert orjson.loads(problem(asked, "/"))["status"] == asked.status
        return
    may_be_logged(asked.batch)


@given(st.binary(max_size=60), st.integers(0, 300), st.integers(0, 300))
def test_any_bytes_are_a_batch_or_a_bad_request(noise: bytes, start: int, end: int) -> None:
    body = orjson.dumps({"rows": [row(), row(x=None)], "options": {"explain": 1}})
    for damaged in (noise, body[:start], body[:start] + noise + body[end:]):
        asked = or_refusal(lambda damaged=damaged: ask(damaged))
        assert isinstance(asked, Asked | BadRequest)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_named(text: str) -> None:
    with pytest.raises(BadRequest, match="Infinity is no JSON" if "Inf" in text else "NaN is no JSON"):
        bodies.parse_json(f'{{"rows": [{{"who": "Zoë", "x": {text}}}]}}'.encode())
