"""Open Inference Protocol V2: tensors to columns, answers to tensors, and nothing but clear refusals for the rest."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import Task
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Asked
from mlops_ray.serving.protocols import inference, metadata
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.inference import Output, Wish
from tests import fakes
from tests.unit.serving.protocols.harm import JSON, harmless

NOW = 2e9
FORM = Form.of(fakes.project())
# What each column of `fakes.project()` looks like as a tensor.
DATATYPES = {"who": "BYTES", "at": "FP64", "x": "FP32", "n": "INT64", "flag": "BOOL", "c": "BYTES", "d": "BYTES"}
PACKED = {"FP16": "e", "FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q", "BOOL": "?"}


def tensor(name: str, values: list[Any], datatype: str | None = None, **entries: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": datatype or DATATYPES[name], "data": values} | entries


def tensors(rows: int = 1, **columns: list[Any]) -> list[dict[str, Any]]:
    """A tensor for each column of so many good rows; `columns` replace the values of some."""
    table = {name: [value] * rows for name, value in fakes.row().items()} | columns
    return [tensor(name, values) for name, values in table.items()]


def asked(inputs: Any, form: Form = FORM, version: str | None = None, **fields: Any) -> Asked:
    body = json.dumps({"inputs": inputs, **fields}).encode()
    return inference.parse(body, {}, form, now=NOW, version=version)


def packed(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        return b"".join(
            struct.pack("<I", len(v)) + v for v in (v if isinstance(v, bytes) else v.encode() for v in values)
        )
    return struct.pack(f"<{len(values)}{PACKED[datatype]}", *values)


def told(length: str | None) -> dict[str, str]:
    return {} if length is None else {inference.HEADER_LENGTH: length}


def binary(inputs: list[dict[str, Any]], **fields: Any) -> tuple[bytes, str]:
    """A body with all tensors behind the JSON, and how long that is."""
    parts, entries = [], []
    for entry in inputs:
        parts.append(packed(entry["data"], entry["datatype"]))
        entries.append({k: v for k, v in entry.items() if k != "data"})
        entries[-1]["parameters"] = {"binary_data_size": len(parts[-1])}
    head = json.dumps({"inputs": entries, **fields}).encode()
    return head + b"".join(parts), str(len(head))


def refused(inputs: Any, form: Form = FORM, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        asked(inputs, form, **fields)
    return caught.value


# --- requests in JSON ---


def test_tensors_named_as_the_columns_are_the_columns() -> None:
    batch = asked(tensors(2, x=[0.5, 1.5], c=["red", "blue"])).batch
    assert batch.keys == ("k1", "k1")
    assert batch.times.tolist() == [1e9, 1e9]
    assert batch.columns["x"].tolist() == [0.5, 1.5]
    assert batch.columns["n"].tolist() == [2, 2]
    assert batch.columns["flag"].tolist() == [1, 1]
    assert batch.columns["c"].tolist() == ["red", "blue"]


@pytest.mark.parametrize("data", [[[0.5], [1.5]], [0.5, 1.5]], ids=["nested", "flat"])
def test_a_tensor_may_have_a_second_dimension_of_one(data: list[Any]) -> None:
    inputs = tensors(2)
    inputs[2] |= {"shape": [2, 1], "data": data}
    assert asked(inputs).batch.columns["x"].tolist() == [0.5, 1.5]


def test_null_is_missing_where_the_column_is_nullable() -> None:
    columns = asked(tensors(2, x=[None, 1.0], c=[None, "red"])).batch.columns
    assert np.isnan(columns["x"]).tolist() == [True, False]
    assert columns["c"].tolist() == ["", "red"]
    error = refused(tensors(2, n=[1, None]))
    assert (error.status, error.members["row"], error.members["column"]) == (422, 1, "n")


def test_key_and_time_may_be_absent() -> None:
    batch = asked(tensors()[2:]).batch
    assert batch.keys is None
    assert batch.times.tolist() == [NOW]


def test_a_time_may_be_text_or_seconds() -> None:
    for datatype, value in (("BYTES", "2001-09-09T01:46:40Z"), ("FP64", 1e9), ("INT64", 10**9)):
        inputs = tensors()
        inputs[1] |= {"datatype": datatype, "data": [value]}
        assert asked(inputs).batch.times.tolist() == [1e9]


def test_one_tensor_may_hold_all_features_in_their_order() -> None:
    numbers = Form.of(fakes.project(features={"numeric": {"columns": ["x", "n"]}}))
    whole = {"name": "predict", "shape": [2, 2], "datatype": "FP32", "data": [0.5, 1, 1.5, 2]}
    assert "expected INT8" in refused([whole], numbers).detail  # n takes integers, since it is not nullable
    whole["datatype"], whole["data"] = "INT32", [[5, 1], [6, 2]]
    columns = asked([whole], numbers, parameters={"content_type": "np"}).batch.columns
    assert columns["x"].tolist() == [5, 6]
    assert columns["n"].tolist() == [1, 2]
    assert "[rows, 2]" in refused([whole | {"shape": [4, 1], "data": [1, 2, 3, 4]}], numbers).detail


@pytest.mark.parametrize("empty", [{}, {"id": None, "parameters": None, "outputs": None}, {"outputs": []}])
def test_fields_that_are_null_or_empty_are_as_if_absent(empty: dict[str, Any]) -> None:
    inputs = [entry | {"parameters": {"content_type": None, "headers": None}} for entry in tensors()]
    assert asked(inputs, **empty).echo == Wish(None, None, binary=False)


def test_a_version_in_the_url_pins() -> None:
    assert asked(tensors()).options.version is None
    assert asked(tensors(), version="7").options.version == 7
    for version in ("0", "07", "x", "-1", "1.0", "", "٣", "9" * 20):
        with pytest.raises(BadRequest) as caught:
            asked(tensors(), version=version)
        assert caught.value.status == 404


def test_a_threshold_is_an_option_of_binary_models() -> None:
    assert asked(tensors(), parameters={"threshold": 0.25}).options.threshold == 0.25
    for wrong in (2, True, "0.5"):
        error = refused(tensors(), parameters={"threshold": wrong})
        assert "parameters.threshold: expected a number from 0 to 1" in error.detail
        assert error.members["pointer"] == "#/parameters/threshold"
    numbers = Form.of(fakes.project(task="regression"))
    assert "regression" in refused(tensors(), numbers, parameters={"threshold": 0.5}).detail


def test_id_and_outputs_are_kept_for_the_reply() -> None:
    outputs = [{"name": "label"}, {"name": "probability", "parameters": {"binary_data": True}}]
    wish = asked(tensors(), id="a-7", outputs=outputs).echo
    assert wish == Wish("a-7", (Output("label", binary=False), Output("probability", binary=True)), binary=False)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"inputs": None}, 422, "list of at least one tensor"),
        ({"inputs": []}, 422, "list of at least one tensor"),
        ({"inputs": [7]}, 422, "inputs[0] must be an object"),
        ({"inputs": {"x": [1]}}, 422, "inputs must be a list"),
        ({"id": 7}, 422, "id must be a string"),
        ({"extra": 1}, 422, "'extra' is not a field"),
        ({"parameters": []}, 422, "parameters must be an object"),
        ({"parameters": {"sequence_id": 3}}, 422, "parameters.sequence_id is not supported"),
        ({"parameters": {"priority": 1}}, 422, "parameters.priority is not supported"),
        ({"parameters": {"content_type": "hg_json"}}, 422, "'hg_json'; expected one of pd, np, str"),
        ({"parameters": {"binary_data_output": 1}}, 422, "must be true or false"),
        ({"outputs": {}}, 422, "outputs must be a list"),
        ({"outputs": [{"name": "score"}]}, 422, "expected one of probability, label, prediction_id, version"),
        ({"outputs": [{"name": "label"}] * 2}, 422, "stands there before"),
        ({"outputs": [{"name": "label", "parameters": {"shared_memory_region": "r"}}]}, 422, "not supported"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, 422, "multiclass"),
        ({"outputs": [{"name": "label", "parameters": {"classification": -1}}]}, 422, "from 0"),
        ({"outputs": [{"name": "label", "data": 1}]}, 422, "outputs[0].data is not supported"),
    ],
)
def test_a_request_that_is_none_says_why(change: dict[str, Any], status: int, says: str) -> None:
    error = refused(**({"inputs": tensors()} | change))
    assert error.status == status
    assert says in error.detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 7}, "name must be a non-empty string"),
        ({"name": "y"}, "'y' is not a column; expected who, at, x"),
        ({"name": "n", "datatype": "INT64", "data": [1]}, "two inputs called 'n'"),
        ({"datatype": "FP8"}, "expected one of BOOL, INT8"),
        ({"datatype": ["FP32"]}, "expected one of BOOL, INT8"),
        ({"datatype": "BYTES", "data": ["1"]}, "expected FP16, FP32, FP64, INT8"),
        ({"datatype": "BOOL", "data": [True]}, "got BOOL"),
        ({"shape": None}, "shape must be a list"),
        ({"shape": [-1]}, "whole numbers from 0"),
        ({"shape": [True]}, "whole numbers from 0"),
        ({"shape": []}, "has 0 dimensions"),
        ({"shape": [1, 1, 1]}, "has 3 dimensions"),
        ({"shape": [2]}, "has 1 values, its shape [2] says 2"),
        ({"shape": [10**15]}, "says 1000000000"),
        ({"shape": [0], "data": []}, "columns.x has 0 values"),
        ({"shape": [1, 2], "data": [[1, 2]]}, "expected the shape [rows] or [rows, 1]"),
        ({"shape": [2, 1], "data": [[1, 2]]}, "not nested as its shape"),
        ({"data": 1.0}, "data must be a list, not a number"),
        ({"data": None}, "data must be a list, not null"),
        ({"data": [[1.0]]}, "expected FP32, got an array"),
        ({"data": ["1"]}, "data[0]: expected FP32, got '1'"),
        ({"data": [True]}, "expected FP32, got true"),
        ({"data": [1e39]}, "3e38"),
        ({"data": [10**18 * 10]}, ""),  # an integer beyond int64 is still a number
        ({"datatype": "INT8", "data": [1.5]}, "expected INT8, got 1.5"),
        ({"datatype": "INT8", "data": [128]}, "128 is no INT8"),
        ({"datatype": "UINT8", "data": [-1]}, "-1 is no UINT8"),
        ({"raw": 1}, "'raw' is not a field of a tensor"),
        ({"parameters": {"binary_data_size": 4}}, "0 bytes are left"),
        ({"parameters": {"binary_data_size": "4"}}, "0 bytes are left"),
        ({"parameters": {"shared_memory_region": "r"}}, "not supported"),
        ({"parameters": {"content_type": "base64"}}, "'base64'; expected one of np, str"),
    ],
)
def test_a_tensor_that_does_not_fit_says_where_and_why(change: dict[str, Any], says: str) -> None:
    inputs = tensors()
    inputs[2] |= change
    if not says:
        assert asked(inputs).batch.columns["x"].tolist() == [np.float32(1e19)]
        return
    error = refused(inputs)
    assert 400 <= error.status < 500
    assert says in error.detail


# --- requests in bytes ---


# Times a test's rows come: few are read value by value, many as arrays.
MANY = pytest.mark.parametrize("times", [1, 40], ids=["few rows", "many rows"])


@MANY
def test_binary_tensors_are_the_same_columns_as_json_ones(times: int) -> None:
    values = {"x": [0.5, 1.5, -2.0], "c": ["red", "größer", ""], "d": ["a", "b", "c"], "flag": [True, False, True]}
    inputs = tensors(3 * times, **{name: three * times for name, three in values.items()})
    inputs[1] |= {"datatype": "BYTES", "data": ["2001-09-09T01:46:40Z", "2001-09-09 01:46:40.5", "20010909"] * times}
    body, length = binary(inputs, id="b")
    found = inference.parse(body, told(length), FORM, now=NOW)
    expected = asked(inputs, id="b")
    assert found.echo == expected.echo
    assert found.batch.keys == expected.batch.keys
    assert found.batch.times.tolist() == expected.batch.times.tolist()
    for name, values in expected.batch.columns.items():
        assert found.batch.columns[name].tolist() == values.tolist(), name
        assert found.batch.columns[name].dtype == values.dtype


@MANY
def test_json_and_binary_tensors_may_stand_beside_each_other(times: int) -> None:
    inputs = tensors(2 * times, x=[None, 1.0] * times, c=[None, "red"] * times, flag=[True, False] * times)
    whole = packed([3, 4] * times, "INT64")
    inputs[3] = {"name": "n", "shape": [2 * times], "datatype": "INT64", "parameters": {"binary_data_size": len(whole)}}
    head = json.dumps({"inputs": inputs}).encode()
    columns = inference.parse(head + whole, told(str(len(head))), FORM, now=NOW).batch.columns
    assert columns["n"].tolist() == [3, 4] * times
    assert np.isnan(columns["x"]).tolist() == [True, False] * times
    assert columns["c"].tolist() == ["", "red"] * times


@MANY
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_nan_in_bytes_is_missing_where_the_column_is_nullable(datatype: str, times: int) -> None:
    inputs = tensors(2 * times)
    inputs[2] = tensor("x", [float("nan"), 1.0] * times, datatype)
    body, length = binary(inputs)
    columns = inference.parse(body, told(length), FORM, now=NOW).batch.columns
    assert np.isnan(columns["x"]).tolist() == [True, False] * times
    never = Form.of(fakes.project(columns=[c | {"nullable": False} for c in columns_of(FORM)]))
    with pytest.raises(BadRequest) as caught:
        inference.parse(body, told(length), never, now=NOW)
    assert (caught.value.status, caught.value.members["column"], caught.value.members["row"]) == (422, "x", 0)


def columns_of(form: Form) -> list[dict[str, Any]]:
    columns = [{"name": c.name, "dtype": c.dtype, "nullable": c.nullable} for c in form.columns]
    return [*columns, {"name": "late", "dtype": "int"}]


@MANY
def test_a_nullable_integer_column_takes_whole_floats_since_arrays_have_no_missing_integers(times: int) -> None:
    nullable = Form.of(
        fakes.project(columns=[c | {"nullable": c["name"] in ("x", "n", "c")} for c in columns_of(FORM)])
    )
    inputs = tensors(2 * times)
    inputs[3] = tensor("n", [float("nan"), 3.0] * times, "FP64")
    body, length = binary(inputs)
    found = inference.parse(body, told(length), nullable, now=NOW).batch.columns["n"]
    assert np.isnan(found[0])
    assert found[1] == 3
    inputs[3]["data"] = [float("nan"), 3.5] * times
    body, length = binary(inputs)
    with pytest.raises(BadRequest, match="row 1, column 'n': expected int"):
        inference.parse(body, told(length), nullable, now=NOW)


@MANY
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinities_are_refused(value: float, times: int) -> None:
    inputs = tensors(times)
    inputs[2]["data"] = [value] * times
    body, length = binary(inputs)
    with pytest.raises(BadRequest, match="row 0, column 'x'"):
        inference.parse(body, told(length), FORM, now=NOW)
    with pytest.raises(BadRequest, match="not JSON"):
        inference.parse(json.dumps({"inputs": inputs}).encode(), {}, FORM, now=NOW)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\x03\x00\x00\x00red", None),
        (b"\x04\x00\x00\x00red", "does not end"),
        (b"\x02\x00\x00\x00red", "1 bytes are left"),
        (b"\xff\xff\xff\xffred", "does not end"),
        (b"\x03\x00", "too few"),
        (b"", "too few"),
        (b"\x01\x00\x00\x00\xff", "string 0 is not UTF-8"),
    ],
)
def test_strings_in_bytes_stand_behind_their_length(raw: bytes, says: str | None) -> None:
    inputs = [t for t in tensors() if t["name"] != "c"]
    inputs.append({"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}})
    head = json.dumps({"inputs": inputs}).encode()

    def parse() -> Asked:
        return inference.parse(head + raw, told(str(len(head))), FORM, now=NOW)

    if says is None:
        assert parse().batch.columns["c"].tolist() == ["red"]
    else:
        with pytest.raises(BadRequest, match=says):
            parse()


def test_sizes_that_do_not_add_up_are_refused() -> None:
    body, length = binary(tensors())
    cases = [
        (body + b"more", length, "4 bytes behind the JSON belong to no tensor"),
        (body[:-1], length, "bytes are left of the body"),
        (body, None, "Inference-Header-Content-Length"),
        (body, "99999", "is no number of bytes"),
        (body, "-1", "is no number of bytes"),
        (body, "٣", "is no number of bytes"),
        (body, "0", "send"),
        (b"", None, "send"),
    ]
    for case, sent, says in cases:
        with pytest.raises(BadRequest) as caught:
            inference.parse(case, told(sent), FORM, now=NOW)
        assert caught.value.status == 400
        assert says in caught.value.detail
    wrong = body.replace(b'"shape": [1], "datatype": "FP32"', b'"shape": [2], "datatype": "FP32"')
    with pytest.raises(BadRequest, match="2 values of FP32 are 8 bytes, binary_data_size says 4"):
        inference.parse(wrong, told(length), FORM, now=NOW)


def test_a_bool_is_one_byte_of_zero_or_one() -> None:
    body, length = binary(tensors())
    place = body.index(struct.pack("<q", 2)) + 8
    assert body[place] == 1
    with pytest.raises(BadRequest, match="a BOOL is 0 or 1"):
        inference.parse(body[:place] + b"\x02" + body[place + 1 :], told(length), FORM, now=NOW)


# --- nothing but BadRequest ---

SHAPES = st.lists(st.integers(-1, 4), max_size=3) | JSON
FIELDS = {
    "name": st.sampled_from([*DATATYPES, "y"]) | JSON,
    "shape": SHAPES,
    "datatype": st.sampled_from(["FP16", "FP32", "INT8", "UINT64", "BOOL", "BYTES"]) | JSON,
    "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(0, 20), "content_type": JSON})
    | JSON,
    "data": st.lists(JSON, max_size=4) | JSON,
}
ODD_TENSOR = st.fixed_dictionaries({}, optional=FIELDS)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(ODD_TENSOR | st.sampled_from(tensors()), max_size=8)},
    optional={
        "id": st.text(max_size=3) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["threshold", "binary_data_output", "content_type"]), JSON)
        | JSON,
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["label", "probability"]) | JSON})) | JSON,
    },
)


def tried(body: bytes, length: str | None = None, version: str | None = None) -> None:
    harmless(lambda: inference.parse(body, told(length), FORM, now=NOW, version=version))


@given(st.binary(max_size=60), st.none() | st.text(max_size=6), st.none() | st.text(max_size=5))
def test_arbitrary_bytes_and_headers_are_refused(body: bytes, length: str | None, version: str | None) -> None:
    tried(body, length, version)


@given(JSON | REQUEST)
def test_arbitrary_json_is_answered_or_refused(document: Any) -> None:
    tried(json.dumps(document).encode())


@given(REQUEST, st.binary(max_size=40))
def test_arbitrary_bytes_behind_the_json_are_answered_or_refused(document: Any, tail: bytes) -> None:
    head = json.dumps(document).encode()
    tried(head + tail, str(len(head)))


@given(st.data())
def test_a_good_binary_request_with_one_byte_changed_is_answered_or_refused(data: st.DataObject) -> None:
    body, length = binary(tensors(2))
    at = data.draw(st.integers(0, len(body) - 1))
    tried(body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :], length)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        inference.parse(b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, FORM, now=NOW)
    error = refused(json.loads("[" * 200 + "]" * 200))
    assert error.status == 422


# --- replies ---


def answer(task: Task = "binary", **changes: Any) -> Answer:
    scores = {
        "binary": np.array([0.25, 0.75]),
        "multiclass": np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]]),
        "regression": np.array([1.5, -2.0]),
    }[task]
    classes = {"binary": (0, 1), "multiclass": ("a", "ü", "c"), "regression": ()}[task]
    fields: dict[str, Any] = {
        "request_id": "r",
        "task": task,
        "classes": classes,
        "threshold": 0.5,
        "scores": scores,
        "versions": np.array([3, 3]),
        "canary": np.zeros(2, dtype=bool),
    }
    return Answer(**fields | changes)


def form_of(task: Task) -> Form:
    return Form.of(fakes.project(task=task))


def wishing(identity: str | None = None, outputs: tuple[Output, ...] | None = None, *, binary: bool = False) -> Asked:
    return Asked(asked(tensors(2)).batch, echo=Wish(identity, outputs, binary))


def test_a_reply_in_json_has_all_outputs() -> None:
    reply = inference.reply(wishing("a-7"), answer(), FORM)
    assert reply.media_type == "application/json"
    assert json.loads(reply.body) == {
        "model_name": "small",
        "model_version": "3",
        "id": "a-7",
        "outputs": [
            {"name": "probability", "datatype": "FP64", "shape": [2], "data": [0.25, 0.75]},
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [0, 1]},
            {
                "name": "prediction_id",
                "datatype": "BYTES",
                "shape": [2],
                "data": ["r:0", "r:1"],
                "parameters": {"content_type": "str"},
            },
            {"name": "version", "datatype": "INT64", "shape": [2], "data": [3, 3]},
        ],
    }


@pytest.mark.parametrize(
    ("task", "name", "datatype", "shape", "data"),
    [
        ("multiclass", "probabilities", "FP64", [2, 3], [0.2, 0.5, 0.3, 0.7, 0.2, 0.1]),
        ("multiclass", "label", "BYTES", [2], ["ü", "a"]),
        ("regression", "prediction", "FP64", [2], [1.5, -2.0]),
    ],
)
def test_each_task_has_its_outputs(task: Task, name: str, datatype: str, shape: list[int], data: list[Any]) -> None:
    outputs = {
        o["name"]: o for o in json.loads(inference.reply(wishing(), answer(task), form_of(task)).body)["outputs"]
    }
    assert list(outputs)[-2:] == ["prediction_id", "version"]
    assert (outputs[name]["datatype"], outputs[name]["shape"], outputs[name]["data"]) == (datatype, shape, data)


def test_whole_classes_are_labels_in_text() -> None:
    reply = inference.reply(wishing(), answer("multiclass", classes=(1, 2, 3)), form_of("multiclass"))
    assert json.loads(reply.body)["outputs"][1]["data"] == ["2", "1"]


def test_binary_outputs_stand_behind_the_json() -> None:
    asked_for = (
        Output("prediction_id", binary=True),
        Output("label", binary=False),
        Output("probability", binary=True),
    )
    reply = inference.reply(wishing(None, asked_for), answer(), FORM)
    assert reply.media_type == "application/octet-stream"
    ((name, length),) = reply.headers
    assert name == "Inference-Header-Content-Length"
    head = json.loads(reply.body[: int(length)])
    assert [o["name"] for o in head["outputs"]] == ["prediction_id", "label", "probability"]
    assert [o.get("data") for o in head["outputs"]] == [None, [0, 1], None]
    sizes = [o.get("parameters", {}).get("binary_data_size") for o in head["outputs"]]
    assert sizes == [14, None, 16]
    assert reply.body[int(length) :] == packed(["r:0", "r:1"], "BYTES") + packed([0.25, 0.75], "FP64")


def test_classification_names_the_likeliest_classes() -> None:
    wish = wishing(None, (Output("probabilities", binary=False, classes=2),))
    (output,) = json.loads(inference.reply(wish, answer("multiclass"), form_of("multiclass")).body)["outputs"]
    assert output["shape"] == [2, 2]
    assert output["data"] == ["0.500000:1:ü", "0.300000:2:c", "0.700000:0:a", "0.200000:1:ü"]


def test_rows_of_two_versions_have_no_version_in_common() -> None:
    document = json.loads(inference.reply(wishing(), answer(versions=np.array([3, 4])), FORM).body)
    assert "model_version" not in document
    assert document["outputs"][-1]["data"] == [3, 4]


def test_an_answer_that_stands_in_no_log_says_so() -> None:
    assert json.loads(inference.reply(wishing(), answer(captured=False), FORM).body)["parameters"] == {
        "captured": False
    }


# --- the server and its models ---


def test_the_model_tells_what_it_takes_and_gives() -> None:
    document = json.loads(metadata.model_metadata(FORM, [4, 3], 2).body)
    assert document["name"] == "small"
    assert document["versions"] == ["3", "4"]
    inputs = {entry["name"]: entry for entry in document["inputs"]}
    assert {name: entry["datatype"] for name, entry in inputs.items()} == DATATYPES | {"at": "BYTES"}
    about = {"dtype": "float", "nullable": True, "required": True, "feature": 0}
    assert inputs["x"]["parameters"] == about
    assert inputs["who"]["parameters"]["required"] is False
    asked([tensor(name, [fakes.row()[name]]) for name in inputs])  # which is a request that is taken
    assert [entry["name"] for entry in document["outputs"]] == list(inference.output_names(FORM))


def test_metadata_and_replies_agree_on_outputs() -> None:
    tasks: tuple[Task, ...] = ("binary", "multiclass", "regression")
    for task in tasks:
        told = json.loads(metadata.model_metadata(form_of(task), [3], 3).body)["outputs"]
        given_ = json.loads(inference.reply(wishing(), answer(task), form_of(task)).body)["outputs"]
        assert [(o["name"], o["datatype"], o["shape"][1:]) for o in told] == [
            (o["name"], o["datatype"], o["shape"][1:]) for o in given_
        ]


def test_what_is_loaded_is_ready() -> None:
    assert metadata.ready([3]).status == 200
    assert metadata.ready([]).status == 400
    assert metadata.model_ready(FORM, [3]).status == 200
    assert metadata.model_ready(FORM, [3], "3").status == 200
    assert metadata.model_ready(FORM, [3], "4").status == 400
    assert json.loads(metadata.model_metadata(FORM, [3, 4], 2, "4").body)["versions"] == ["4"]
    with pytest.raises(BadRequest, match="version 5 of 'small' is not loaded; loaded: 3, 4"):
        metadata.model_metadata(FORM, [3, 4], 2, "5")
    metadata.demand_known("small", FORM)
    with pytest.raises(BadRequest, match="no model 'other' here; this is 'small'"):
        metadata.demand_known("other", FORM)


def test_an_error_is_what_a_v2_client_reads() -> None:
    trouble = refused(tensors(2, n=[1, None]))
    assert inference.error_members(trouble) == {"error": f"wrong value: {trouble.detail}"}
