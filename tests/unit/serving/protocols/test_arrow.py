from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Asked, Options
from mlops_ray.serving.protocols import arrow, native
from mlops_ray.serving.protocols.form import Form
from tests import fakes
from tests.unit.serving.protocols import answers
from tests.unit.serving.protocols.test_form import may_be_logged, or_refusal

FORM = Form.of(fakes.project(serving={"explain": 3}))
NOW = 1_700_000_000.0
ARROW = {"content-type": arrow.MEDIA_TYPE}


def table(n_rows: int = 2, /, **columns: Any) -> pa.Table:
    return pa.table(
        {
            "who": [f"k{i}" for i in range(n_rows)],
            "x": pa.array([None, *np.arange(n_rows - 1) / 2], pa.float64()),
            "n": np.arange(n_rows),
            "flag": np.arange(n_rows) % 2 == 0,
            "c": pa.array(["red"] * n_rows).dictionary_encode(),
            "d": ["blue"] * n_rows,
        }
        | columns
    )


def stream(whole: pa.Table, *, chunk: int | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(whole, chunk)
    return bytes(sink.getvalue())


def ask(body: bytes, form: Form = FORM, **headers: str) -> Asked:
    return native.parse(body, ARROW | headers, form, now=NOW)


def refused(body: bytes, form: Form = FORM) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask(body, form)
    return caught.value


# --- requests ---


def test_a_stream_is_the_same_request_as_json() -> None:
    rows = table(5).to_pylist()
    json = native.parse(orjson.dumps({"rows": rows}), {}, FORM, now=NOW).batch
    for body in (
        stream(table(5)),
        stream(table(5), chunk=2),
        stream(table(5), compression="zstd"),
        stream(table(5), compression="lz4"),
        stream(table(5), metadata_version=pa.ipc.MetadataVersion.V4),
    ):
        batch = ask(body).batch
        assert batch.keys == json.keys
        assert list(batch.columns) == list(json.columns)
        for name, values in batch.columns.items():
            assert values.dtype == json.columns[name].dtype
            np.testing.assert_array_equal(values, json.columns[name])


def test_batches_may_replace_the_dictionary() -> None:
    """And outgrow the indices of the first one together."""
    words = [f"w{i}" for i in range(200)]
    chunks = [pa.array(words[at : at + 100]).cast(pa.dictionary(pa.int8(), pa.string())) for at in (0, 100)]
    whole = table(200, c=pa.chunked_array(chunks), d=pa.chunked_array(chunks))
    assert ask(stream(whole)).batch.columns["c"].tolist() == words


def test_options_stand_in_the_schemas_metadata() -> None:
    def with_options(text: bytes) -> bytes:
        return stream(table().replace_schema_metadata({b"options": text, b"pandas": b"{}"}))

    assert ask(with_options(b'{"threshold": 0.3, "explain": 2}')).options == Options(0.3, None, 2)
    assert ask(stream(table())).options == Options()
    assert refused(with_options(b'{"threshold": 2}')).members["pointer"] == "#/options/threshold"
    assert "not JSON" in refused(with_options(b"{")).detail
    assert refused(with_options(b"[]")).status == 422


def test_the_answer_comes_as_the_request_unless_asked_otherwise() -> None:
    body = stream(table())
    assert native.reply(ask(body), answers.binary()).media_type == arrow.MEDIA_TYPE
    assert native.reply(ask(body, accept="*/*"), answers.binary()).media_type == arrow.MEDIA_TYPE
    assert native.reply(ask(body, accept="application/json"), answers.binary()).media_type == "application/json"


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"n": ["a", "b"]}, ["column 'n'", "int", "string"]),
        ({"n": pa.array([1, None])}, ["row 1, column 'n'", "not null"]),
        ({"zebra": [1, 2]}, ["'zebra'", "expected who"]),
        ({"n": [[1], [2]]}, ["column 'n'", "list<"]),
        ({"x": pa.array([1e39, 0])}, ["row 0, column 'x'", "3e38"]),
    ],
)
def test_a_wrong_column_is_told(columns: dict[str, Any], named: list[str]) -> None:
    error = refused(stream(table(**columns)))
    assert error.status == 422
    for part in named:
        assert part in error.detail


def test_an_empty_stream_and_missing_columns() -> None:
    assert refused(stream(table().slice(0, 0))).title == "no rows"
    assert refused(stream(table().drop_columns(["n"]))).detail == "column 'n' (int) is missing"
    assert refused(stream(pa.table({}))).status == 422


def test_columns_twice_and_extension_types_are_refused() -> None:
    twice = pa.Table.from_arrays([*table().columns, pa.array([1, 2])], names=[*table().column_names, "n"])
    assert "'n' stands in the schema twice" in refused(stream(twice)).detail
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16)))
    assert "extension type" in refused(stream(table(d=uuids))).detail
    unknown = pa.field("d", pa.string(), metadata={"ARROW:extension:name": "somebody.type"})
    at = table().schema.get_field_index("d")
    assert "extension type" in refused(stream(table().set_column(at, unknown, table()["d"]))).detail


# --- streams that are none, and those that would be too large ---


def test_a_cut_stream_is_refused_wherever_it_is_cut() -> None:
    body = stream(table(3), chunk=1)
    for end in range(0, len(body), 3):
        assert refused(body[:end]).status == 400


def test_what_follows_the_end_is_refused() -> None:
    body = stream(table())
    assert "follow its end" in refused(body + body).detail
    assert refused(body + b"junk").status == 400


def test_a_batch_without_its_dictionary_is_refused() -> None:
    body = stream(table())
    reader = pa.ipc.MessageReader.open_stream(body)
    parts = [message.serialize().to_pybytes() for message in reader if message.type != "dictionary"]
    assert refused(b"".join(parts) + body[-8:]).status == 400


def test_text_that_is_not_utf8_is_refused() -> None:
    body = stream(table(d=["bl\u00e4u", "blue"]))
    broken = body.replace("bl\u00e4u".encode(), b"bl\xff\xffu")
    assert broken != body
    assert "UTF8" in refused(broken).detail


def test_an_index_outside_its_dictionary_is_refused() -> None:
    indices = pa.array([0, 1], pa.int32())
    whole = table(c=pa.DictionaryArray.from_arrays(indices, pa.array(["red", "green"])))
    body = stream(whole)
    broken = body.replace(struct.pack("<ii", 0, 1), struct.pack("<ii", 0, 9))
    assert broken != body
    assert refused(broken).status == 400


def test_too_many_rows_are_refused_before_they_exist() -> None:
    few = Form.of(fakes.project(serving={"max_rows": 2}))
    assert ask(stream(table(2)), few).batch.n_rows == 2
    assert refused(stream(table(3), chunk=1), few).status == 413
    body = stream(pa.table({"x": pa.nulls(3)}))
    claimed = body.replace(struct.pack("<q", 3), struct.pack("<q", 10**12))  # a column of nulls has no bytes to back it
    assert claimed != body
    assert peak(lambda: refused(claimed)) < 1_000_000


def peak(call: Callable[[], object]) -> int:
    """Most bytes that Python and Arrow had in hand at once."""
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most + pool.bytes_allocated() - before


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_stream_that_inflates_too_far_is_refused_before_it_does(codec: str) -> None:
    small = Form.of(fakes.project(serving={"max_body_mb": 1}))
    body = stream(table(60_000, x=np.zeros(60_000), n=np.zeros(60_000, int)), compression=codec)
    assert len(body) < 800_000
    assert refused(body, small).status == 413
    claimed = body.replace(struct.pack("<q", 480_000), struct.pack("<q", 2**60))  # what each of two columns inflates to
    assert claimed != body
    before = pa.default_memory_pool().max_memory()
    assert refused(claimed).status == 413
    assert pa.default_memory_pool().max_memory() == before


def test_a_negative_length_is_refused() -> None:
    body = stream(table(60_000, x=np.zeros(60_000)), compression="zstd")
    broken = body.replace(struct.pack("<q", 480_000), struct.pack("<q", -7))
    assert refused(broken).status == 400


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_rows_that_share_one_long_text_count_as_if_each_had_its_own(kind: pa.DataType) -> None:
    """Behind the door each row gets one: a thousand times this text, and the model and the log would have 1 GB."""
    text = "y" * 1_000_000
    if pa.types.is_dictionary(kind):
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array([text]))
    else:
        view = np.array([(len(text), int.from_bytes(b"yyyy", "little"), 0, 0)] * 1000, "<i4,<i4,<i4,<i4")
        values = pa.Array.from_buffers(kind, 1000, [None, pa.py_buffer(view.tobytes()), pa.py_buffer(text.encode())])
        values.validate(full=True)
    error = refused(stream(table(1000, d=values)))
    assert error.status == 413


def test_too_many_messages() -> None:
    assert refused(stream(table(5000), chunk=1)).title == "too many batches"


# --- answers ---


def told(answer: Any, **kwargs: Any) -> pa.Table:
    found = pa.ipc.open_stream(arrow.encode(answer, **kwargs)).read_all()
    found.validate(full=True)
    return found


def test_a_binary_answer() -> None:
    found = told(answers.binary())
    assert found.to_pylist() == [
        {"prediction_id": "r:0", "probability": 0.25, "label": 0, "version": 3, "variant": "stable"},
        {"prediction_id": "r:1", "probability": 0.75, "label": 1, "version": 4, "variant": "canary"},
    ]
    assert found.schema.metadata == {b"request_id": b"r"}


def test_a_multiclass_answer() -> None:
    found = told(answers.multiclass())
    assert found["probabilities"].to_pylist() == [[0.25, 0.5, 0.25], [0.75, 0.25, 0.0]]
    assert orjson.loads(found.schema.field("probabilities").metadata[b"classes"]) == ["cat", "dog", "fox"]
    assert found["label"].to_pylist() == ["dog", "cat"]
    assert told(answers.multiclass(classes=(10, 20, 30)))["label"].to_pylist() == [20, 10]
    assert "probabilities" not in told(answers.multiclass(), probabilities=False).column_names


def test_a_regression_answer() -> None:
    assert told(answers.regression()).column_names == ["prediction_id", "prediction", "version", "variant"]
    assert told(answers.regression())["prediction"].to_pylist() == [-1.5, 20.0]


def test_contributions_and_what_is_not_captured() -> None:
    found = told(answers.binary(contributions=((("x", 0.5), ("n", -0.25)), ()), captured=False))
    assert found["contributions"].to_pylist() == [
        [{"feature": "x", "contribution": 0.5}, {"feature": "n", "contribution": -0.25}],
        [],
    ]
    assert found.schema.metadata[b"captured"] == b"false"


# --- anything at all ---

BODIES = [stream(table(3)), stream(table(3), compression="zstd"), stream(table(3), chunk=1)]


@given(st.sampled_from(BODIES), st.integers(0, 4000), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_damaged_stream_is_a_batch_or_a_bad_request(body: bytes, at: int, noise: bytes, replaced: bool) -> None:
    at %= len(body)
    asked = or_refusal(lambda: ask(body[:at] + noise + body[at + replaced * len(noise) :]))
    if isinstance(asked, BadRequest):
        assert asked.status in (400, 413, 422)
        return
    may_be_logged(asked.batch)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_bad_request(noise: bytes) -> None:
    assert refused(noise).status == 400
    assert isinstance(or_refusal(lambda: ask(noise + b"\xff\xff\xff\xff\x00\x00\x00\x00")), BadRequest)
