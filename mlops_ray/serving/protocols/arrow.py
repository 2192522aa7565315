"""The native protocol in bulk: one Arrow IPC stream in, one out.

A stream has a column for each column of the project that a request needs, in any order; options stand as JSON under the
key `options` of the schema's metadata. The answer has `prediction_id`, then `probability` and `label` (binary),
`probabilities` and `label` (multiclass; the classes stand in the field's metadata) or `prediction` (regression), then
`version`, `variant`, and `contributions` when asked for. Its schema's metadata hold `request_id`, and `captured` when
the rows stand in no log.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Batch
from mlops_ray.serving.protocols import ipc
from mlops_ray.serving.protocols.cells import shown
from mlops_ray.serving.protocols.form import Form, batch_of_arrays

MEDIA_TYPE = "application/vnd.apache.arrow.stream"


def parse(body: bytes, form: Form, *, now: float) -> tuple[Batch, Any]:
    """The rows of a stream, and its options as they were given (None when there are none).

    Raises: BadRequest: 400 for what is no whole stream; 413 for one that is too large, once inflated and decoded; 422
        for columns or values that the project does not take.
    """
    found = ipc.extent(body)
    if found.n_rows > form.max_rows:
        members = {"expected": form.max_rows, "received": found.n_rows}
        detail = f"{found.n_rows} rows; send at most {form.max_rows} at a time"
        raise BadRequest(413, "too many rows", detail, members)
    if found.n_bytes > form.max_bytes:
        raise _too_large(found.n_bytes, form)
    try:
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            _check_schema(reader.schema, form)
            table = reader.read_all()
        table.validate(full=True)  # offsets, indices and UTF-8, which later steps rely on
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        raise BadRequest(400, "not an Arrow stream", str(exc).partition("\n")[0][:200]) from exc
    columns = {name: table.column(i) for i, name in enumerate(table.column_names)}
    n_bytes = sum(_decoded(chunk) for column in columns.values() for chunk in column.chunks)
    if n_bytes > form.max_bytes:
        raise _too_large(n_bytes, form)
    return batch_of_arrays(columns, form, now=now), _options(table.schema)


def _check_schema(schema: pa.Schema, form: Form) -> None:
    """Refuse columns twice, and extension types: what they mean is for code that we do not run."""
    names = schema.names
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise BadRequest(422, "repeated column", f"column {shown(twice)} stands in the schema twice")
    for field in schema:
        inner = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if isinstance(inner, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
            expected = form.dtypes.get(field.name, "no such column")
            members = {"column": field.name, "expected": expected, "received": "an extension type"}
            detail = f"column {shown(field.name)}: expected {expected}, got an extension type; send its storage"
            raise BadRequest(422, "wrong type", detail, members)


def _too_large(n_bytes: int, form: Form) -> BadRequest:
    members = {"expected": form.max_bytes, "received": n_bytes}
    detail = f"the stream holds {n_bytes} bytes; the limit is {form.max_bytes}: send fewer rows at a time"
    return BadRequest(413, "body too large", detail, members)


def _decoded(values: pa.Array) -> int:
    """Bytes of the column when each row has a text of its own: of a dictionary, or of views, many may share one."""
    if pa.types.is_dictionary(values.type):
        lengths = np.append(_lengths(values.dictionary), 0)
        places = values.indices.fill_null(0).to_numpy(zero_copy_only=False) if len(lengths) > 1 else np.zeros(0, int)
        return int(lengths[places].sum())
    return int(_lengths(values).sum()) if pa.types.is_string_view(values.type) else values.nbytes


def _lengths(values: pa.Array) -> NDArray[np.int64]:
    """Bytes of each text; of anything else, what each value takes on average."""
    kind = values.type
    if pa.types.is_string_view(kind):  # a view of 16 bytes begins with the text's length
        if not len(values):
            return np.zeros(0, np.int64)
        views = np.frombuffer(values.buffers()[1], np.int32, 4 * len(values), 16 * values.offset)
        return np.maximum(views[::4], 0).astype(np.int64)  # that of a null may be anything
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found: NDArray[Any] = pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)
        return found.astype(np.int64)
    return np.full(len(values), values.nbytes // max(len(values), 1), np.int64)


def _options(schema: pa.Schema) -> Any:
    text = (schema.metadata or {}).get(b"options")
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(422, "wrong option", f"the schema's metadata `options` are not JSON: {exc}") from exc


def encode(answer: Answer, *, probabilities: bool = True) -> bytes:
    """The answer as one stream of one batch. probabilities: of a multiclass answer, whether to tell them."""
    fields: list[pa.Field] = []
    arrays: list[pa.Array] = []

    def add(name: str, values: pa.Array, metadata: dict[str, bytes] | None = None) -> None:
        fields.append(pa.field(name, values.type, nullable=False, metadata=metadata))
        arrays.append(values)

    places = pa.array(np.arange(answer.n_rows)).cast(pa.string())
    add("prediction_id", pc.binary_join_element_wise(answer.request_id, places, ":"))
    if answer.task == "regression":
        add("prediction", pa.array(answer.scores))
    elif answer.task == "binary":
        add("probability", pa.array(answer.scores))
        add("label", pa.array(answer.labels()))
    else:
        if probabilities:
            flat = pa.array(np.ascontiguousarray(answer.scores).reshape(-1))
            listed = pa.FixedSizeListArray.from_arrays(flat, len(answer.classes))
            add("probabilities", listed, {"classes": orjson.dumps(answer.classes)})
        add("label", pa.array(answer.labels().tolist()))
    add("version", pa.array(answer.versions))
    add("variant", pa.DictionaryArray.from_arrays(answer.canary.astype(np.int8), ["stable", "canary"]))
    if answer.contributions is not None:
        rows = [[{"feature": f, "contribution": c} for f, c in row] for row in answer.contributions]
        add("contributions", pa.array(rows, _CONTRIBUTIONS))
    metadata = {"request_id": answer.request_id} | ({} if answer.captured else {"captured": "false"})
    schema = pa.schema(fields, metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return bytes(sink.getvalue())


_CONTRIBUTIONS = pa.list_(pa.struct([("feature", pa.string()), ("contribution", pa.float64())]))
