"""Open Inference Protocol V2 over gRPC: our messages against those of Triton's client, and both ways of translation."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Asked
from mlops_ray.serving.protocols import inference, metadata, rpc
from mlops_ray.serving.protocols.form import Form
from tests import fakes

NOW = 2e9
FORM = Form.of(fakes.project())


def inputs() -> list[triton.InferInput]:
    columns: dict[str, tuple[str, Any]] = {
        "x": ("FP32", np.array([0.5, np.nan], dtype=np.float32)),
        "n": ("INT64", np.array([2, 7])),
        "flag": ("BOOL", np.array([True, False])),
        "c": ("BYTES", np.array(["größer", ""], dtype=object)),
        "d": ("BYTES", np.array(["blue", "green"], dtype=object)),
    }
    found = []
    for name, (datatype, values) in columns.items():
        found.append(triton.InferInput(name, [2], datatype))
        found[-1].set_data_from_numpy(values)
    return found


def request(**fields: Any) -> Any:
    """What Triton's client puts on the wire, as our message."""
    sent = triton._client._get_inference_request(
        model_name="small",
        inputs=inputs(),
        model_version="",
        request_id="a-7",
        outputs=None,
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
        **fields,
    )
    return rpc.messages()["ModelInferRequest"].FromString(sent.SerializeToString())


def asked(message: Any) -> Asked:
    document, data = rpc.document(message)
    return inference.understood(document, data, FORM, now=NOW)


@pytest.mark.parametrize("path", rpc.messages())
def test_messages_are_those_of_tritons_client(path: str) -> None:
    ours, theirs = rpc.messages()[path].DESCRIPTOR, service_pb2
    for name in path.split("."):
        theirs = getattr(theirs, name)
    expected = theirs.DESCRIPTOR.fields_by_name
    for field in ours.fields:
        match = expected[field.name]
        assert (field.number, field.type, field.is_repeated) == (match.number, match.type, match.is_repeated)
        if field.message_type is not None:
            assert field.message_type.full_name == match.message_type.full_name


def test_a_request_may_travel_between_processes() -> None:
    message = request()
    for module in (pickle, cloudpickle):
        assert module.loads(module.dumps(message)) == message


def test_what_tritons_client_sends_is_the_same_columns() -> None:
    found = asked(request())
    assert found.echo.id == "a-7"
    assert found.echo.binary
    columns = found.batch.columns
    assert np.isnan(columns["x"]).tolist() == [False, True]
    assert columns["n"].tolist() == [2, 7]
    assert columns["c"].tolist() == ["größer", ""]


def test_typed_contents_are_taken_as_well() -> None:
    message = request()
    del message.raw_input_contents[:]
    values = {"x": [0.5, 1.5], "n": [2, 7], "flag": [True, False], "c": [b"red", b""], "d": [b"a", b"b"]}
    kinds = {"x": "fp32_contents", "n": "int64_contents", "flag": "bool_contents"}
    for tensor in message.inputs:
        getattr(tensor.contents, kinds.get(tensor.name, "bytes_contents")).extend(values[tensor.name])
    assert asked(message).batch.columns["x"].tolist() == [0.5, 1.5]
    message.inputs[3].contents.bytes_contents[0] = b"\xff"
    with pytest.raises(BadRequest, match="not UTF-8"):
        asked(message)
    message.inputs[0].contents.int64_contents.append(1)
    with pytest.raises(BadRequest, match="int64_contents and fp32_contents"):
        asked(message)


def test_raw_contents_are_for_all_inputs_or_none() -> None:
    message = request()
    del message.raw_input_contents[1:]
    with pytest.raises(BadRequest, match="1 raw_input_contents for 5 inputs"):
        asked(message)


def test_an_answer_is_what_tritons_client_reads() -> None:
    answer = Answer("r", "binary", (), 0.5, np.array([0.25, 0.75]), np.array([3, 3]), np.zeros(2, bool), captured=False)
    message = rpc.answered(inference.reply(asked(request()), answer, FORM))
    result = triton.InferResult(service_pb2.ModelInferResponse.FromString(message.SerializeToString()))
    assert result.as_numpy("probability").tolist() == [0.25, 0.75]
    assert result.as_numpy("label").tolist() == [0, 1]
    assert result.as_numpy("prediction_id").tolist() == [b"r:0", b"r:1"]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("a-7", "small", "3")
    assert response.parameters["captured"].bool_param is False


def test_metadata_are_what_tritons_client_reads() -> None:
    message = rpc.described("ModelMetadataResponse", metadata.model_metadata(FORM, [3, 4], 2))
    told = service_pb2.ModelMetadataResponse.FromString(message.SerializeToString())
    assert list(told.versions) == ["3", "4"]
    assert [tensor.name for tensor in told.inputs] == list(FORM.names)
    assert list(told.outputs[0].shape) == [-1]


@given(st.binary(max_size=80))
def test_arbitrary_requests_are_answered_or_refused(noise: bytes) -> None:
    message = request()
    try:
        message.MergeFromString(noise)
    except Exception:  # noqa: BLE001 - protobuf's own errors, which gRPC answers before we are asked
        return
    refusal = None
    try:
        asked(message)
    except BadRequest as exc:
        refusal = exc
    assert refusal is None or 400 <= refusal.status < 500
