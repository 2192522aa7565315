"""Open Inference Protocol V2 over HTTP, as KServe, Triton and MLServer speak it, JSON and binary tensors.

A request's inputs are the project's columns, one tensor each of shape [rows] or [rows, 1], whatever the codec that made
them (Triton's client, MLServer's `pd`, `np`, `str`, `datetime`). A single tensor [rows, features] is taken as well: the
features in the order that the model's metadata tell (`parameters.feature`), which nothing can check, so name columns
where you can.
Missing is null in JSON (MLServer writes NaN so), NaN in binary floats, and the empty string in binary strings, where
the column is nullable.

Source: Open Inference Protocol, REST (github.com/kserve/open-inference-protocol); Triton, "Binary Tensor Data
Extension" and "Classification Extension".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_ray.config import Column
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Asked, Batch, Options, Reply
from mlops_ray.serving.protocols import tensors
from mlops_ray.serving.protocols.bodies import media_type
from mlops_ray.serving.protocols.cells import kind, shown
from mlops_ray.serving.protocols.form import Form, batch_of_arrays, batch_of_lists
from mlops_ray.serving.protocols.native import parse_options
from mlops_ray.serving.protocols.tensors import Tensor

MEDIA_TYPES = ("application/json", "application/octet-stream")
"""Media types of an inference request; one without is taken too, since Triton's client names none."""
HEADER_LENGTH = "inference-header-content-length"
"""Header with the number of bytes of JSON in front of the binary tensors."""

# What codecs call the contents. They decide nothing here: the column's dtype does.
_OF_REQUESTS = ("pd", "np", "str")
_OF_TENSORS = ("np", "str", "datetime")
_PARAMETERS = frozenset(("binary_data_output", "content_type", "threshold"))
_INPUT_PARAMETERS = frozenset(("binary_data_size", "content_type"))
_OF_OUTPUTS = frozenset(("name", "parameters"))
_OUTPUT_PARAMETERS = frozenset(("binary_data", "classification", "content_type"))
# Up to so many rows, values one by one are quicker than arrays: an array costs 10 microseconds, whatever is in it.
_FEW_ROWS = 32


@dataclass(frozen=True)
class Output:
    """An output that was asked for. classes: of the classification extension, how many of the likeliest; 0: none."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Wish:
    """What the reply needs of the request. outputs: None for all of them."""

    id: str | None
    outputs: tuple[Output, ...] | None
    binary: bool


# Requests ------------------------------------------------------------------------------------------------------------


def parse(body: bytes, headers: Mapping[str, str], form: Form, *, now: float, version: str | None = None) -> Asked:
    """An inference request.

    Args: headers: by name in lower case. version: the URL's, which pins: that one answers or none.
    Raises: BadRequest: 400 for bytes that are no request, 415 for another media type, 404 for a version that is no
    number, 422 for tensors that are not the project's columns, 413 for too many rows.
    """
    sent = media_type(headers.get("content-type"), MEDIA_TYPES[0])
    if sent not in MEDIA_TYPES:
        raise BadRequest(415, "unsupported media type", f"send {' or '.join(MEDIA_TYPES)}, not {sent[:60]!r}")
    document, data = _split(body, headers.get(HEADER_LENGTH))
    return understood(document, data, form, now=now, version=version)


def understood(
    document: dict[str, Any], data: memoryview, form: Form, *, now: float, version: str | None = None
) -> Asked:
    """An inference request whose JSON, and the bytes of binary tensors behind it, have been told apart.

    Raises: BadRequest, as `parse` does.
    """
    if extra := sorted(document.keys() - {"id", "parameters", "inputs", "outputs"}):
        known = "expected id, parameters, inputs, outputs"
        raise BadRequest(422, "unknown field", f"{shown(extra[0])} is not a field of an inference request; {known}")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequest(422, "wrong type", f"id must be a string, not {kind(identity)}")
    binary, options = _parameters(document.get("parameters"), form)
    outputs = _outputs(document.get("outputs"), form, binary=binary)
    batch = _batch(_inputs(document.get("inputs"), data), form, now)
    if version is not None:
        options = replace(options, version=version_of(version, form))
    return Asked(batch, options, Wish(identity, outputs, binary))


def version_of(text: str, form: Form) -> int:
    """The version in a URL. Raises: BadRequest (404)."""
    if text.isascii() and text.isdecimal() and len(text) < 10 and text[0] != "0":
        return int(text)
    raise BadRequest(
        404, "no such version", f"model {form.project!r} has no version {shown(text)}; versions are 1, 2 …"
    )


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a request, and the bytes behind it."""
    size = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= size):
            says = f"{shown(length)} is no number of bytes from 0 to {size}, the body's length"
            raise BadRequest(400, "bad Inference-Header-Content-Length", says)
        size = int(length)
    if not size:
        raise BadRequest(
            400, "empty body", 'send {"inputs": [{"name": ..., "shape": ..., "datatype": ..., "data": ...}]}'
        )
    view = memoryview(body)
    try:
        document = orjson.loads(view[:size])
    except orjson.JSONDecodeError as exc:
        hint = "" if length else "; a request with binary tensors needs the header Inference-Header-Content-Length"
        raise BadRequest(400, "not JSON", f"{exc}{hint}") from exc
    if not isinstance(document, dict):
        raise BadRequest(422, "wrong shape", f"an inference request is an object, not {kind(document)}")
    return document, view[size:]


def _object(value: Any, place: str) -> dict[str, Any]:
    """A field that may be null, as an object."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(422, "wrong type", f"{place} must be an object, not {kind(value)}")
    return {name: entry for name, entry in value.items() if entry is not None}


def _flag(value: Any, place: str) -> bool:
    if isinstance(value, bool):
        return value
    raise BadRequest(422, "wrong type", f"{place} must be true or false, not {shown(value)}")


def _only(given: Mapping[str, Any], known: frozenset[str], place: str) -> None:
    """Parameters change answers elsewhere, so one that we do not honour is refused rather than passed over."""
    if not given.keys() <= known:
        extra = min(given.keys() - known)
        says = f"{place}.{shown(extra)[1:-1]} is not supported; known here are {', '.join(sorted(known))}"
        raise BadRequest(422, "unknown parameter", says)


def _content(value: Any, known: Sequence[str], place: str) -> None:
    if value is not None and value not in known:
        says = f"{place}.content_type is {shown(value)}; expected one of {', '.join(known)}, or none"
        raise BadRequest(422, "unknown content type", says)


def _parameters(value: Any, form: Form) -> tuple[bool, Options]:
    """The request's own parameters: whether outputs travel as bytes unless they say otherwise, and a threshold."""
    given = _object(value, "parameters")
    _only(given, _PARAMETERS, "parameters")
    _content(given.get("content_type"), _OF_REQUESTS, "parameters")
    binary = _flag(given.get("binary_data_output", False), "parameters.binary_data_output")
    offered = {name: given[name] for name in ("threshold",) if name in given}
    return binary, parse_options(offered, form, "parameters")


def _outputs(value: Any, form: Form, *, binary: bool) -> tuple[Output, ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRequest(422, "wrong type", f"outputs must be a list, not {kind(value)}")
    known, wanted = output_names(form), list[Output]()
    for i, entry in enumerate(value):
        place = f"outputs[{i}]"
        name = _object(entry, place).get("name")
        if not isinstance(name, str) or name not in known:
            raise BadRequest(
                422, "unknown output", f"{place}.name is {shown(name)}; expected one of {', '.join(known)}"
            )
        if any(name == output.name for output in wanted):
            raise BadRequest(422, "output asked for twice", f"{place}: {name!r} stands there before")
        _only(_object(entry, place), _OF_OUTPUTS, place)
        given = _object(entry.get("parameters"), f"{place}.parameters")
        _only(given, _OUTPUT_PARAMETERS, f"{place}.parameters")
        _content(given.get("content_type"), _OF_TENSORS, f"{place}.parameters")
        classes = given.get("classification", 0)
        if type(classes) is not int or classes < 0:
            says = f"{place}.parameters.classification must be a whole number from 0, not {shown(classes)}"
            raise BadRequest(422, "wrong value", says)
        if classes and name != "probabilities":
            says = f"{place}: classification goes with the output probabilities of a multiclass model, not with {name}"
            raise BadRequest(422, "no classification", says)
        wanted.append(Output(name, _flag(given.get("binary_data", binary), f"{place}.parameters.binary_data"), classes))
    return tuple(wanted)


def _inputs(value: Any, data: memoryview) -> list[Tensor]:
    """The tensors, each with its part of the bytes behind the JSON."""
    if not isinstance(value, list) or not value:
        raise BadRequest(422, "no inputs", f"inputs must be a list of at least one tensor, not {kind(value)}")
    found, at = list[Tensor](), 0
    for i, entry in enumerate(value):
        place = f"inputs[{i}]"
        size = None
        if isinstance(entry, dict) and entry.get("parameters") is not None:
            given = _object(entry["parameters"], f"{place}.parameters")
            _only(given, _INPUT_PARAMETERS, f"{place}.parameters")
            _content(given.get("content_type"), _OF_TENSORS, f"{place}.parameters")
            size = given.get("binary_data_size")
        if size is not None and (type(size) is not int or size < 0 or at + size > len(data)):
            says = f"{place}.parameters.binary_data_size is {shown(size)}; {len(data) - at} bytes are left of the body"
            raise BadRequest(400, "wrong size", says)
        found.append(tensors.tensor(entry, place, None if size is None else data[at : at + size]))
        at += size or 0
    if at != len(data):
        raise BadRequest(400, "wrong size", f"{len(data) - at} bytes behind the JSON belong to no tensor")
    return found


def _batch(inputs: list[Tensor], form: Form, now: float) -> Batch:
    specs = {spec.name: spec for spec in form.columns}
    if len(inputs) == 1 and len(inputs[0].shape) == 2 and inputs[0].name not in specs:
        pairs = _cut(inputs[0], form, specs)
    else:
        pairs = [(_spec(tensor, specs, form), tensor) for tensor in inputs]
    table: dict[str, Any] = {}
    as_lists = inputs[0].shape[0] <= _FEW_ROWS or not any(tensor.binary for tensor in inputs)
    for spec, tensor in pairs:
        if spec.name in table:
            raise BadRequest(
                422, "input given twice", f"there are two inputs called {spec.name!r}", {"column": spec.name}
            )
        if tensor.datatype not in tensors.taken_by(spec):
            expected = ", ".join(tensors.taken_by(spec))
            says = f"input {spec.name!r}: expected {expected} for a column of {spec.dtype}, got {tensor.datatype}"
            members = {"column": spec.name, "expected": expected, "received": tensor.datatype}
            raise BadRequest(422, "wrong datatype", says, members)
        table[spec.name] = tensors.as_list(tensor) if as_lists else tensors.as_array(tensor)
    return batch_of_lists(table, form, now=now) if as_lists else batch_of_arrays(table, form, now=now)


def _spec(tensor: Tensor, specs: Mapping[str, Column], form: Form) -> Column:
    if tensor.name not in specs:
        says = f"{shown(tensor.name)} is not a column; expected {', '.join(form.names)}"
        raise BadRequest(422, "unknown input", says, {"received": shown(tensor.name)})
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        says = f"input {tensor.name!r}: expected the shape [rows] or [rows, 1], got {list(tensor.shape)}"
        raise BadRequest(422, "wrong shape", says, {"column": tensor.name})
    return specs[tensor.name]


def _cut(whole: Tensor, form: Form, specs: Mapping[str, Column]) -> list[tuple[Column, Tensor]]:
    """All features in one tensor, cut into columns."""
    n, width = whole.shape
    if width != len(form.features):
        says = f"{shown(whole.name)} is not a column, and as all features it would have the shape "
        raise BadRequest(422, "unknown input", f"{says}[rows, {len(form.features)}], not {list(whole.shape)}")
    return [
        (specs[name], Tensor(name, whole.datatype, (n,), whole.values[at::width]))
        for at, name in enumerate(form.features)
    ]


# Replies -------------------------------------------------------------------------------------------------------------


def reply(asked: Asked, answer: Answer, form: Form) -> Reply:
    """The answer as tensors: all outputs, or those asked for, in JSON or as bytes behind it.

    `model_version` is told where one version answered all rows; the output `version` tells each row's.
    """
    wish: Wish = asked.echo
    wanted = wish.outputs or tuple(Output(name, wish.binary) for name in output_names(form))
    outputs, parts = list[dict[str, Any]](), list[bytes]()
    for output in wanted:
        values = _values(output, answer)
        entry: dict[str, Any] = {"name": output.name, "datatype": tensors.named(values), "shape": list(values.shape)}
        parameters: dict[str, Any] = {"content_type": "str"} if values.dtype == object else {}
        if output.binary:
            parts.append(tensors.encoded(values))
            parameters["binary_data_size"] = len(parts[-1])
        else:
            entry["data"] = values.ravel()
        outputs.append(entry | ({"parameters": parameters} if parameters else {}))
    document: dict[str, Any] = {"model_name": form.project, "outputs": outputs}
    if (answer.versions == answer.versions[0]).all():
        document["model_version"] = str(answer.versions[0])
    if wish.id is not None:
        document["id"] = wish.id
    if not answer.captured:
        document["parameters"] = {"captured": False}
    head = orjson.dumps(document, default=_listed, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return Reply(head)
    headers = (("Inference-Header-Content-Length", str(len(head))),)
    return Reply(b"".join((head, *parts)), "application/octet-stream", headers=headers)


def _listed(values: NDArray[Any]) -> list[Any]:
    """What orjson makes of arrays that it does not know: those of strings."""
    found: list[Any] = values.tolist()
    return found


def output_names(form: Form) -> tuple[str, ...]:
    """Names of the outputs of the project's models."""
    scores = {
        "binary": ("probability", "label"),
        "multiclass": ("probabilities", "label"),
        "regression": ("prediction",),
    }
    return (*scores[form.task], "prediction_id", "version")


def _values(output: Output, answer: Answer) -> NDArray[Any]:
    """An output's values: FP64 scores, BYTES as objects, INT64; shape (n,) but for probabilities, (n, classes)."""
    if output.name == "version":
        return answer.versions
    if output.name == "prediction_id":
        return np.array([answer.prediction_id(i) for i in range(answer.n_rows)], dtype=object)
    if output.name == "label":
        labels = answer.labels()
        return labels if labels.dtype != object else np.array([str(label) for label in labels], dtype=object)
    return _likeliest(answer, output.classes) if output.classes else answer.scores


def _likeliest(answer: Answer, n: int) -> NDArray[Any]:
    """Triton's classification strings `value:index:label`, the likeliest first, shape (rows, n)."""
    order = np.argsort(-answer.scores, axis=1, kind="stable")[:, :n]
    out = np.empty(order.shape, dtype=object)
    for row, places in enumerate(order):
        out[row, :] = [f"{answer.scores[row, at]:f}:{at}:{answer.classes[at]}" for at in places]
    return out


def error_members(error: BadRequest) -> dict[str, object]:
    """What V2 clients read in an error's body."""
    return {"error": str(error)}
