"""MLflow's scoring protocol: its tables and CSV to columns, its answers, and clear refusals for everything else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import Task
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Asked, Options
from mlops_ray.serving.protocols import invocations
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.invocations import Wish
from tests import fakes
from tests.unit.serving.protocols.harm import JSON, harmless

NOW = 2e9
FORM = Form.of(fakes.project())
ROW = fakes.row()
CSV = "text/csv"


def parse(body: Any, form: Form = FORM, media: str = "application/json") -> Asked:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return invocations.parse(raw, {"content-type": media}, form, now=NOW)


def refused(body: Any, form: Form = FORM, media: str = "application/json") -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(body, form, media)
    return caught.value


def split(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"columns": list(rows[0]), "index": list(range(len(rows))), "data": [list(row.values()) for row in rows]}


ROWS = [ROW, fakes.row("k2", x=None, c=None, n=3)]
TABLES = {
    "dataframe_split": split(*ROWS),
    "dataframe_records": ROWS,
    "instances": ROWS,
    "inputs": {name: [row[name] for row in ROWS] for name in ROW},
}


# --- requests ---


@pytest.mark.parametrize("field", TABLES)
def test_every_table_of_mlflow_is_the_same_rows(field: str) -> None:
    found = parse({field: TABLES[field]})
    assert found.options == Options()
    assert found.echo == Wish(probabilities=False)
    assert found.batch.keys == ("k1", "k2")
    assert found.batch.times.tolist() == [1e9, 1e9]
    columns = found.batch.columns
    assert columns["x"][0] == 0.5
    assert np.isnan(columns["x"][1])
    assert columns["n"].tolist() == [2, 3]
    assert columns["c"].tolist() == ["red", ""]


def test_inputs_may_be_columns_of_one_value_lists() -> None:
    table = {name: [[value]] for name, value in ROW.items()}
    assert parse({"inputs": table}).batch.columns["n"].tolist() == [2]


@pytest.mark.parametrize("field", ["instances", "inputs", "dataframe_split"])
def test_rows_without_names_are_the_features_in_their_order(field: str) -> None:
    rows = [[0.5, 2, True, "red", "blue"], [1.5, 3, False, "red", "blue"]]
    found = parse({field: {"data": rows} if field == "dataframe_split" else rows})
    assert found.batch.keys is None
    assert found.batch.times.tolist() == [NOW, NOW]
    assert found.batch.columns["n"].tolist() == [2, 3]
    assert found.batch.columns["c"].tolist() == ["red", "red"]


def test_params_are_options() -> None:
    form = Form.of(fakes.project(serving={"explain": 3}))
    params = {"probabilities": True, "threshold": 0.25, "version": 7, "explain": 2}
    found = parse({"dataframe_records": [ROW], "params": params}, form)
    assert found.options == Options(0.25, 7, 2)
    assert found.echo == Wish(probabilities=True)
    assert parse({"dataframe_records": [ROW], "params": None}).options == Options()


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ([], "params: expected an object"),
        ({"temperature": 1}, "params.temperature: expected one of threshold, version, explain, probabilities"),
        ({"probabilities": 1}, "params.probabilities: expected true or false"),
        ({"threshold": "0.5"}, "params.threshold: expected a number from 0 to 1"),
        ({"threshold": True}, "params.threshold: expected a number from 0 to 1"),
        ({"threshold": 1.5}, "params.threshold: expected a number from 0 to 1"),
        ({"version": 0}, "params.version: expected the number of a version"),
        ({"version": "3"}, "params.version: expected the number of a version"),
        ({"version": True}, "params.version: expected the number of a version"),
        ({"explain": 1}, "params.explain: expected 0"),
        ({"explain": False}, "params.explain: expected 0"),
    ],
)
def test_params_that_are_none_say_why(params: Any, says: str) -> None:
    error = refused({"dataframe_records": [ROW], "params": params})
    assert error.status == 422
    assert says in error.detail


def test_params_that_the_task_has_not_are_refused() -> None:
    numbers, classes = (Form.of(fakes.project(task=task)) for task in ("regression", "multiclass"))
    assert "numbers" in refused({"instances": [ROW], "params": {"probabilities": True}}, numbers).detail
    assert "multiclass" in refused({"instances": [ROW], "params": {"threshold": 0.5}}, classes).detail


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "send"),
        (b"{", 400, "unexpected end"),
        (b"\xff", 400, ""),
        (b'{"dataframe_records": [{"x": NaN}]}', 400, "send null for what is missing"),
        (b'{"dataframe_records": [{"x": -Infinity}]}', 400, "send null for what is missing"),
        ([ROW], 422, "exactly one of dataframe_split, dataframe_records, instances, inputs, and optionally params"),
        ({}, 422, "it has none of them"),
        ({"params": {}}, 422, "it has none of them"),
        ({"inputs": ROW, "instances": [ROW]}, 422, "it has instances, inputs"),
        ({"instances": [ROW], "signature_name": "s"}, 422, "'signature_name' is not a field"),
        ({"dataframe_split": [ROW]}, 422, "must be an object, not an array"),
        ({"dataframe_split": {}}, 422, "must have data"),
        ({"dataframe_split": {"data": [], "rows": 1}}, 422, "must have data"),
        ({"dataframe_split": {"columns": "x", "data": []}}, 422, "must be a list of strings"),
        ({"dataframe_split": {"columns": ["x", "x"], "data": [[1, 1]]}}, 422, "'x' twice"),
        ({"dataframe_split": {"columns": ["x"], "data": {"a": 1}}}, 422, "must be a list of rows"),
        ({"dataframe_split": {"columns": ["x"], "data": [1]}}, 422, "data[0] must be a list of values"),
        ({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}, 422, "data[0] has 2 values for 1 columns: x"),
        ({"dataframe_split": {"columns": list(ROW), "data": []}}, 422, "no rows"),
        ({"dataframe_records": {"x": [1]}}, 422, "must be a list of objects"),
        ({"dataframe_records": []}, 422, "no rows"),
        ({"dataframe_records": [[1]]}, 422, "must be an object"),
        ({"dataframe_records": [ROW | {"y": 1}]}, 422, "'y' is not a column"),
        ({"dataframe_records": [ROW | {"n": 1.5}]}, 422, "row 0, column 'n': expected int, got 1.5"),
        ({"instances": ROW}, 422, "must be a list of rows"),
        ({"instances": [[1, 2]]}, 422, "has 2 values for 5 columns: x, n, flag, c, d"),
        ({"instances": [ROW, [1]]}, 422, "must be an object"),
        ({"inputs": 7}, 422, "an object of columns or a list of rows"),
        ({"inputs": {"x": 1}}, 422, "must be a list"),
        ({"inputs": {}}, 422, "no column"),
    ],
)
def test_a_body_that_is_no_request_says_why(body: Any, status: int, says: str) -> None:
    error = refused(body)
    assert error.status == status
    assert says in error.detail


def test_only_utf8_is_read() -> None:
    body = {"dataframe_records": [ROW]}
    for parameters in ("", "; charset=utf-8", ';charset="UTF-8"'):
        assert parse(body, media=f"application/json{parameters}").batch.n_rows == 1
    assert invocations.parse(json.dumps(body).encode(), {}, FORM, now=NOW).batch.n_rows == 1
    assert refused(body, media="application/x-www-form-urlencoded").status == 415
    for parameters in ("charset=latin-1", "format=pandas-records"):
        assert refused(body, media=f"application/json; {parameters}").status == 415


# --- CSV ---


def test_csv_is_the_same_rows() -> None:
    first = b'k1,2001-09-09T01:46:40Z,0.5,2,True,red,"blue, or\nnot"'
    body = b"who,at,x,n,flag,c,d\n" + first + b"\nk2,2001-09-09 01:46:40,,3.0,0,,blue\n"
    batch = parse(body, media="text/csv; charset=utf-8").batch
    assert batch.keys == ("k1", "k2")
    assert batch.times.tolist() == [1e9, 1e9]
    assert np.isnan(batch.columns["x"]).tolist() == [False, True]
    assert batch.columns["n"].tolist() == [2, 3]
    assert batch.columns["flag"].tolist() == [1, 0]
    assert batch.columns["c"].tolist() == ["red", ""]


@pytest.mark.parametrize(
    ("written", "seconds"), [("1000000000.0", 1e9), ("1000000000", 1e9), ("20010909", 999993600.0), ("1e9", 1e9)]
)
def test_times_in_csv_are_iso_8601_or_seconds(written: str, seconds: float) -> None:
    body = f"at,x,n,flag,c,d\n{written},0.5,2,True,red,blue\n".encode()
    assert parse(body, media=CSV).batch.times.tolist() == [seconds]


def test_csv_of_a_key_of_digits_keeps_every_digit() -> None:
    columns = [c | ({"dtype": "int"} if c["name"] == "who" else {}) for c in fakes.project().model_dump()["columns"]]
    form = Form.of(fakes.project(columns=columns))
    body = b"who,x,n,flag,c,d\n9007199254740991,0.5,2,True,red,blue\n"
    assert parse(body, form, CSV).batch.keys == ("9007199254740991",)


def test_csv_that_was_cut_off_inside_a_quotation_is_refused() -> None:
    error = refused(b'x,n,flag,c,d\n0.5,2,True,red,"blue\n', media=CSV)
    assert (error.status, "cut off" in error.detail) == (400, True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"x,n,flag,c,d\n0.5,2,True,red\n", "Expected 5 columns, got 4"),
        (b"x,n,flag,c,d\nbig,2,True,red,blue\n", "'big'"),
        (b"x,n,flag,c,d\n0.5,2.5,True,red,blue\n", "row 0, column 'n': expected int, got 2.5"),
        (b"x,n,flag,c,d\n0.5,,True,red,blue\n", "row 0, column 'n': expected int (not null)"),
        (b"x,n,flag,c,d\n0.5,2,True,red,\n", "row 0, column 'd'"),
        (b"x,n,flag,c,d\ninf,2,True,red,blue\n", "row 0, column 'x'"),
        (b"x,n,flag,c,d,y\n0.5,2,True,red,blue,1\n", "'y' is not a column"),
        (b"x,n,flag,c,d,d\n0.5,2,True,red,blue,blue\n", "'d' twice"),
        (b"at,x,n,flag,c,d\nnoon,0.5,2,True,red,blue\n", "row 0, column 'at': expected ISO 8601"),
        (b"at,x,n,flag,c,d\n17,0.5,2,True,red,blue\n", "row 0, column 'at': expected ISO 8601"),
        (b"x,n,flag,c,d\n", "no rows"),
        (b"\n\n", "cannot be read"),
        (b"\xff\xfe\n\xff\n", ""),
    ],
)
def test_csv_that_does_not_fit_says_why(body: bytes, says: str) -> None:
    error = refused(body, media=CSV)
    assert error.status == 422
    assert says in error.detail
    assert len(error.detail) < 400


# --- nothing but BadRequest ---

CELLS = st.dictionaries(st.sampled_from([*ROW, "y"]), JSON) | st.just(ROW)
REQUEST = st.dictionaries(
    st.sampled_from([*TABLES, "params", "more"]),
    JSON
    | st.lists(CELLS, max_size=3)
    | st.lists(st.lists(JSON, max_size=5), max_size=3)
    | st.dictionaries(
        st.sampled_from([*ROW, "columns", "data", "index", "threshold", "version"]), st.lists(JSON) | JSON
    ),
    max_size=2,
)


def tried(body: bytes, media: str = "application/json") -> None:
    harmless(lambda: invocations.parse(body, {"content-type": media}, FORM, now=NOW))


@given(st.binary(max_size=60), st.sampled_from(["text/csv", "application/json"]) | st.text(max_size=20))
def test_arbitrary_bytes_and_headers_are_refused(body: bytes, media: str) -> None:
    tried(body, media)


@given(JSON | REQUEST)
def test_arbitrary_json_is_answered_or_refused(document: Any) -> None:
    tried(json.dumps(document).encode())


@given(st.lists(st.sampled_from([*ROW, "y", ""]), max_size=6), st.lists(st.lists(st.text(max_size=5)), max_size=4))
def test_arbitrary_csv_is_answered_or_refused(names: list[str], rows: list[list[str]]) -> None:
    tried("\n".join([",".join(names), *(",".join(row) for row in rows)]).encode(), CSV)


@given(st.data())
def test_good_csv_with_a_byte_changed_is_answered_or_refused(data: st.DataObject) -> None:
    good = b'who,at,x,n,flag,c,d\nk1,2001-09-09T01:46:40Z,0.5,2,True,red,"blue"\n'
    at = data.draw(st.integers(0, len(good) - 1))
    tried(good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :], CSV)


# --- replies ---


def answer(task: Task = "binary", **changes: Any) -> Answer:
    scores = {
        "binary": np.array([0.25, 0.75]),
        "multiclass": np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]]),
        "regression": np.array([1.5, -2.0]),
    }[task]
    classes = {"binary": (0, 1), "multiclass": ("a", "b", "c"), "regression": ()}[task]
    fields: dict[str, Any] = {"request_id": "r", "task": task, "classes": classes, "threshold": 0.5, "scores": scores}
    fields |= {"versions": np.array([3, 4]), "canary": np.zeros(2, dtype=bool)}
    return Answer(**fields | changes)


def document(found: Answer, *, probabilities: bool = False) -> dict[str, Any]:
    reply = invocations.reply(Asked(parse({"instances": ROWS}).batch, echo=Wish(probabilities)), found)
    assert (reply.status, reply.media_type) == (200, "application/json")
    loaded: dict[str, Any] = json.loads(reply.body)
    return loaded


@pytest.mark.parametrize(
    ("task", "predictions"), [("binary", [0, 1]), ("multiclass", ["b", "a"]), ("regression", [1.5, -2.0])]
)
def test_predictions_are_what_predict_decides(task: Task, predictions: list[Any]) -> None:
    assert document(answer(task)) == {"predictions": predictions, "request_id": "r", "versions": [3, 4]}


def test_probabilities_are_those_of_predict_proba_with_their_classes() -> None:
    found = document(answer(), probabilities=True)
    assert found["predictions"] == [[0.75, 0.25], [0.25, 0.75]]
    assert found["classes"] == [0, 1]
    found = document(answer("multiclass"), probabilities=True)
    assert found["predictions"] == [[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]]
    assert found["classes"] == ["a", "b", "c"]


def test_contributions_and_a_missing_record_are_told() -> None:
    found = document(answer(contributions=((("x", 0.5),), (("n", -1.0),)), captured=False))
    assert found["contributions"] == [[{"feature": "x", "contribution": 0.5}], [{"feature": "n", "contribution": -1.0}]]
    assert found["captured"] is False


def test_health_and_release_are_mlflows() -> None:
    assert (invocations.ping(ready=True).status, invocations.ping(ready=True).body) == (200, b"\n")
    assert invocations.ping(ready=False).status == 404
    assert invocations.version("3.17.2").body == b"3.17.2"


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "BAD_REQUEST"), (422, "INVALID_PARAMETER_VALUE"), (413, "BAD_REQUEST"), (500, "INTERNAL_ERROR")],
)
def test_an_error_is_mlflows(status: int, code: str) -> None:
    assert invocations.error_members(BadRequest(status, "wrong", "so and so")) == {
        "error_code": code,
        "message": "wrong: so and so",
    }
