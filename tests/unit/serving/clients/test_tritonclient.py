"""Open Inference Protocol V2 as Triton's own client speaks it, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.unit.serving.clients.conftest import CLASSES, STABLE, TOKEN, WARM, Served

COLUMNS: dict[str, tuple[str, NDArray[Any]]] = {
    "who": ("BYTES", np.array(["k1", "k2"], dtype=object)),
    "at": ("FP64", np.array([1e9, 1e9 + 0.5])),
    "x": ("FP32", np.array([0.5, np.nan], dtype=np.float32)),
    "n": ("INT64", np.array([2, 7])),
    "flag": ("BOOL", np.array([True, False])),
    "c": ("BYTES", np.array(["größer", ""], dtype=object)),
    "d": ("BYTES", np.array([b"blue", b"green"], dtype=object)),
}


def inputs(*, binary: bool = True, **columns: tuple[str, NDArray[Any]]) -> list[triton.InferInput]:
    """The rows as the client's tensors."""
    found = []
    for name, (datatype, values) in (COLUMNS | columns).items():
        found.append(triton.InferInput(name, list(values.shape), datatype))
        found[-1].set_data_from_numpy(values, binary_data=binary)
    return found


@pytest.fixture
def client(binary: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(binary.place) as found:
        yield found


def test_the_server_and_its_models_are_known(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", str(WARM))
    assert not client.is_model_ready("small", "9")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "mlops-ray"
    model = client.get_model_metadata("small")
    assert model["versions"] == [str(WARM), str(STABLE)]
    assert {entry["name"] for entry in model["inputs"]} == COLUMNS.keys()


@pytest.mark.parametrize("binary_data", [True, False], ids=["binary", "json"])
def test_rows_are_scored_and_logged(client: triton.InferenceServerClient, binary: Served, binary_data: bool) -> None:
    x = {} if binary_data else {"x": ("FP32", np.array([0.5, 1.5], dtype=np.float32))}
    outputs = None if binary_data else [triton.InferRequestedOutput("probability", binary_data=False)]
    result = client.infer("small", inputs(binary=binary_data, **x), request_id="a-7", outputs=outputs)
    expected = [0.2, 0.75 if binary_data else 0.7]
    assert result.as_numpy("probability").tolist() == pytest.approx(expected)
    assert result.get_response()["id"] == "a-7"
    assert result.get_response()["model_version"] == str(STABLE)
    assert (result.as_numpy("label") is None) is not binary_data
    logged = binary.logged()
    assert logged.keys == ("k1", "k2")
    assert logged.times.tolist() == [1e9, 1e9 + 0.5]
    assert logged.columns["c"].tolist() == ["größer", ""]
    assert logged.columns["d"].tolist() == ["blue", "green"]
    if binary_data:
        assert result.as_numpy("label").tolist() == [0, 1]
        assert result.as_numpy("version").tolist() == [STABLE, STABLE]
        ids = [text.decode() for text in result.as_numpy("prediction_id")]
        assert ids == [f"{logged.id}:0", f"{logged.id}:1"]


def test_outputs_may_be_json_and_bytes_side_by_side(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("prediction_id"), triton.InferRequestedOutput("label", binary_data=False)]
    result = client.infer("small", inputs(), outputs=outputs)
    assert result.as_numpy("label").tolist() == [0, 1]
    assert len(result.as_numpy("prediction_id")) == 2
    assert result.as_numpy("probability") is None


def test_a_version_in_the_url_answers_or_nobody(client: triton.InferenceServerClient) -> None:
    result = client.infer("small", inputs(), model_version=str(WARM))
    assert result.as_numpy("version").tolist() == [WARM, WARM]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("small", inputs(), model_version="9")
    assert caught.value.status() == "404"


def test_a_threshold_and_a_compressed_body_are_taken(client: triton.InferenceServerClient) -> None:
    result = client.infer("small", inputs(), parameters={"threshold": 0.1}, request_compression_algorithm="gzip")
    assert result.as_numpy("label").tolist() == [1, 1]


def test_a_retry_under_its_key_is_the_same_prediction(client: triton.InferenceServerClient, binary: Served) -> None:
    before = len(binary.log.records)
    answers = [client.infer("small", inputs(), headers={"Idempotency-Key": "visit-7"}) for _ in range(2)]
    assert [a.as_numpy("prediction_id").tolist() for a in answers] == [[b"visit-7:0", b"visit-7:1"]] * 2
    assert len(binary.log.records) == before + 1


@pytest.mark.parametrize(
    ("name", "values", "status", "says"),
    [
        ("n", ("FP64", np.array([2.0, 3.0])), "422", "expected INT8"),
        ("n", ("INT64", np.array([2, 3, 4])), "422", "another column 3"),
        ("d", ("BYTES", np.array([b"\xff", b"green"], dtype=object)), "422", "not UTF-8"),
        ("flag", ("BYTES", np.array(["a", "b"], dtype=object)), "422", "expected BOOL"),
        ("y", ("FP32", np.zeros(2, dtype=np.float32)), "422", "'y' is not a column"),
    ],
)
def test_a_mistake_reaches_the_client_in_words(
    client: triton.InferenceServerClient, name: str, values: tuple[str, NDArray[Any]], status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("small", inputs(**{name: values}))
    assert caught.value.status() == status
    assert says in caught.value.message()


def test_nan_is_missing_in_bytes_and_no_json(client: triton.InferenceServerClient) -> None:
    assert client.infer("small", inputs()).as_numpy("probability").tolist() == pytest.approx([0.2, 0.75])
    with pytest.raises(InferenceServerException) as caught:
        client.infer("small", inputs(binary=False))
    assert caught.value.status() == "400"
    assert "not JSON" in caught.value.message()


def test_what_is_not_there_is_a_v2_error_too(client: triton.InferenceServerClient) -> None:
    for ask in (client.get_model_repository_index, lambda: client.get_model_metadata("other")):
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == "404"
        assert "exist" in caught.value.message() or "no model 'other'" in caught.value.message()
    with pytest.raises(InferenceServerException, match="sequence_end is not supported"):
        client.infer("small", inputs(), sequence_id=7)


def test_a_regression_answers_with_numbers(every: dict[str, Served]) -> None:
    with triton.InferenceServerClient(every["numbers"].place) as client:
        assert client.infer("numbers", inputs()).as_numpy("prediction").tolist() == pytest.approx([0.2, 0.75])


def test_classes_come_with_their_probabilities(every: dict[str, Served]) -> None:
    with triton.InferenceServerClient(every["classes"].place) as client:
        result = client.infer("classes", inputs())
        assert result.as_numpy("probabilities") == pytest.approx(np.array([[0.2, 0.4, 0.4], [0.75, 0.125, 0.125]]))
        assert [text.decode() for text in result.as_numpy("label")] == ["mittel", "low"]
        likeliest = triton.InferRequestedOutput("probabilities", class_count=1)
        top = client.infer("classes", inputs(), outputs=[likeliest]).as_numpy("probabilities")
        assert [text.decode() for text in top.ravel()] == ["0.400000:1:mittel", "0.750000:0:low"]
        assert client.get_model_metadata("classes")["outputs"][0]["shape"] == [-1, len(CLASSES)]


def test_a_token_opens_what_its_roles_say(every: dict[str, Served]) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with triton.InferenceServerClient(every["guarded"].place) as client:
        assert client.infer("guarded", inputs(), headers=bearer).as_numpy("label").tolist() == [0, 1]
        assert client.is_server_ready(headers=bearer)
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("guarded", inputs())
        assert caught.value.status() == "401"
        assert "no token" in caught.value.message()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("guarded", inputs(), model_version=str(WARM), headers=bearer)
        assert caught.value.status() == "403"
        assert "operate" in caught.value.message()


def test_all_features_may_stand_in_one_tensor(plain: Served) -> None:
    whole = triton.InferInput("input", [2, 2], "INT32")
    whole.set_data_from_numpy(np.array([[2, 2], [5, 7]], dtype=np.int32))
    with triton.InferenceServerClient(plain.place) as client:
        assert client.infer("plain", [whole]).as_numpy("prediction").tolist() == pytest.approx([0.2, 0.7])


def test_the_asynchronous_client_speaks_it_as_well(binary: Served) -> None:
    async def labels() -> list[int]:
        async with triton_aio.InferenceServerClient(binary.place) as client:
            result = await client.infer("small", inputs())
            found: list[int] = result.as_numpy("label").tolist()
            return found

    assert asyncio.run(labels()) == [0, 1]
