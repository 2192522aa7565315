"""The scoring protocol of MLflow (`mlflow models serve`), without MLflow and without pandas on the way of a request.

`POST /invocations` takes JSON with one of `dataframe_split`, `dataframe_records`, `instances`, `inputs`, and CSV with a
header. Columns go by name. Rows without names (lists of lists, a `dataframe_split` without `columns`) are the features
in the project file's order, which nothing can check, so send names where you can.

The answer is MLflow's `{"predictions": [...]}` with what the project's `predict` decides, as scikit-learn's flavour
answers: 0 or 1, the class, or the number. `params` choose otherwise: `probabilities`, `threshold`, `version`,
`explain`. Beside the predictions stand the request's id and who answered, which MLflow's clients pass over.

Source: MLflow 3, "Inference Server Specification"; TensorFlow Serving's REST API for `instances` and `inputs`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer, Asked, Batch, Options, Reply
from mlops_ray.serving.protocols.bodies import JSON, media_type
from mlops_ray.serving.protocols.cells import kind, shown
from mlops_ray.serving.protocols.form import Form, batch_of_arrays, batch_of_lists, batch_of_rows
from mlops_ray.serving.protocols.native import parse_options

CSV = "text/csv"
MEDIA_TYPES = (JSON, CSV)

_TABLES = ("dataframe_split", "dataframe_records", "instances", "inputs")
_ONE_OF = f"the body must be an object with exactly one of {', '.join(_TABLES)}, and optionally params"

# Types under which CSV is read: exact where that matters, and wide enough for pandas' habit of writing ints as floats.
_CSV_TYPES = {
    "float": pa.float64(),
    "int": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.string(),
}

_LEAST_SECONDS = 1e8

# MLflow's name for each status (its `databricks_pb2.ErrorCode`), which its clients read.
_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    422: "INVALID_PARAMETER_VALUE",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}


@dataclass(frozen=True)
class Wish:
    """What the reply needs of the request: whether predictions are to be probabilities."""

    probabilities: bool = False


# Requests ------------------------------------------------------------------------------------------------------------


def parse(body: bytes, headers: Mapping[str, str], form: Form, *, now: float) -> Asked:
    """A scoring request. Args: headers: by name in lower case.

    Raises: BadRequest: 400 for bytes that are no request, 415 for another media type or charset, 422 for rows that are
    not the project's columns and for params that are not known, 413 for too many rows.
    """
    sent = media_type(headers.get("content-type"), JSON)
    if sent not in MEDIA_TYPES:
        raise BadRequest(415, "unsupported media type", f"send {' or '.join(MEDIA_TYPES)}, not {sent[:60]!r}")
    _demand_utf8(headers.get("content-type", "").partition(";")[2])
    if not body:
        raise BadRequest(400, "empty body", 'send {"dataframe_records": [{...}]} as application/json')
    if sent == CSV:
        return Asked(_from_csv(body, form, now), echo=Wish())
    document = _json(body)
    tables = [name for name in _TABLES if name in document]
    if len(tables) != 1:
        received = ", ".join(tables) or "none of them"
        raise BadRequest(422, "wrong shape", f"{_ONE_OF}; it has {received}")
    if extra := sorted(document.keys() - {tables[0], "params"}):
        raise BadRequest(422, "unknown field", f"{shown(extra[0])} is not a field of a scoring request; {_ONE_OF}")
    options, wish = _params(document.get("params"), form)
    read = {"dataframe_split": _split, "dataframe_records": _records, "instances": _instances, "inputs": _inputs}
    return Asked(read[tables[0]](document[tables[0]], form, now), options, wish)


def _demand_utf8(parameters: str) -> None:
    """Raises: BadRequest (415) for a parameter of the content type other than `charset=utf-8`."""
    for parameter in filter(None, map(str.strip, parameters.split(";"))):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "charset" or value.strip().strip('"').lower() not in ("utf-8", "utf8"):
            says = (
                f"content type parameter {shown(parameter)} is not supported; send UTF-8, with charset=utf-8 or without"
            )
            raise BadRequest(415, "unsupported media type", says)


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        # Python's json writes these where a DataFrame has missing values, MLflow's own client too.
        hint = (
            "; NaN and Infinity are no JSON: send null for what is missing" if b"NaN" in body or b"Inf" in body else ""
        )
        raise BadRequest(400, "not JSON", f"{exc}{hint}") from exc
    if not isinstance(document, dict):
        raise BadRequest(422, "wrong shape", f"{_ONE_OF}; it is {kind(document)}")
    return document


def _params(value: Any, form: Form) -> tuple[Options, Wish]:
    if value is None:
        return Options(), Wish()
    options = parse_options(value, form, "params")
    probabilities: bool = value.get("probabilities", False)
    if probabilities and form.task == "regression":
        raise BadRequest(422, "no probabilities", "params.probabilities: a regression predicts numbers, not classes")
    return options, Wish(probabilities)


# Tables --------------------------------------------------------------------------------------------------------------


def _split(table: Any, form: Form, now: float) -> Batch:
    """`{"columns": [...], "data": [[...], ...]}`, and the index that pandas adds, which is passed over."""
    if not isinstance(table, dict):
        raise BadRequest(422, "wrong type", f"dataframe_split must be an object, not {kind(table)}")
    if "data" not in table or not table.keys() <= {"columns", "data", "index"}:
        says = "dataframe_split must have data, and may have columns and index"
        raise BadRequest(422, "wrong shape", f"{says}; it has {shown(', '.join(sorted(table)) or 'nothing')}")
    names = table.get("columns")
    if names is None:
        return _unnamed(table["data"], form, "dataframe_split.data", now)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRequest(422, "wrong type", "dataframe_split.columns must be a list of strings")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(
            422, "column given twice", f"dataframe_split.columns has {shown(twice)} twice", {"column": twice}
        )
    return _named(table["data"], names, form, "dataframe_split.data", now)


def _records(rows: Any, form: Form, now: float) -> Batch:
    if not isinstance(rows, list):
        raise BadRequest(422, "wrong type", f"dataframe_records must be a list of objects, not {kind(rows)}")
    return batch_of_rows(rows, form, now=now)


def _instances(rows: Any, form: Form, now: float) -> Batch:
    """Rows: objects, or lists without names."""
    if not isinstance(rows, list):
        raise BadRequest(422, "wrong type", f"instances must be a list of rows, not {kind(rows)}")
    if rows and all(isinstance(row, list) for row in rows):
        return _unnamed(rows, form, "instances", now)
    return batch_of_rows(rows, form, now=now)


def _inputs(table: Any, form: Form, now: float) -> Batch:
    """Columns by name; or rows, as MLflow's own client sends arrays and lists."""
    if not isinstance(table, dict):
        return _instances(table, form, now) if isinstance(table, list) else _no_inputs(table)
    columns = table
    for name, values in table.items():  # TensorFlow Serving's columns of shape [rows, 1]
        if isinstance(values, list) and values and all(isinstance(v, list) and len(v) == 1 for v in values):
            columns = columns | {name: [v[0] for v in values]}
    return batch_of_lists(columns, form, now=now)


def _no_inputs(table: Any) -> Batch:
    raise BadRequest(422, "wrong type", f"inputs must be an object of columns or a list of rows, not {kind(table)}")


def _unnamed(rows: Any, form: Form, place: str, now: float) -> Batch:
    """Rows of values without names: the features, in the project file's order."""
    return _named(rows, form.features, form, place, now)


def _named(rows: Any, names: Sequence[str], form: Form, place: str, now: float) -> Batch:
    if not isinstance(rows, list):
        raise BadRequest(422, "wrong type", f"{place} must be a list of rows, not {kind(rows)}")
    for i, row in enumerate(rows):
        if not isinstance(row, list):
            raise BadRequest(422, "wrong type", f"{place}[{i}] must be a list of values, not {kind(row)}", {"row": i})
        if len(row) != len(names):
            says = f"{place}[{i}] has {len(row)} values for {len(names)} columns: {', '.join(names)}"
            raise BadRequest(422, "wrong shape", says, {"row": i, "expected": len(names), "received": len(row)})
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return batch_of_lists(dict(zip(names, columns, strict=True)), form, now=now)


# CSV -----------------------------------------------------------------------------------------------------------------


def _from_csv(body: bytes, form: Form, now: float) -> Batch:
    """CSV with a header. An empty field and pandas' spellings of missing values are null."""
    if body.count(b'"') % 2:
        raise BadRequest(400, "not CSV", "a quotation is opened and not closed; was the body cut off?")
    types = {
        spec.name: pa.int64() if spec is form.key and spec.dtype == "int" else _CSV_TYPES[spec.dtype]
        for spec in form.columns
    }
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
    read = csv.ReadOptions(use_threads=False, block_size=max(len(body), 1))
    try:
        table = csv.read_csv(io.BytesIO(body), read, csv.ParseOptions(newlines_in_values=True), convert)
        names = table.column_names
    except (pa.ArrowException, ValueError, KeyError) as exc:  # a name that is not UTF-8 is a ValueError
        raise BadRequest(422, "wrong value", f"the CSV cannot be read: {_first_line(exc)}") from exc
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(422, "column given twice", f"the CSV's header has {shown(twice)} twice", {"column": twice})
    columns = dict(zip(names, table.columns, strict=True))
    for spec in form.columns:
        if spec.dtype == "timestamp" and spec.name in columns:
            columns[spec.name] = _instants(columns[spec.name])
    return batch_of_arrays(columns, form, now=now)


def _instants(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of times: numbers where all are seconds since the epoch, else the texts, ISO 8601.

    Numbers of eight digits and less are texts: 20130301 is a day.
    """
    try:
        seconds = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return texts
    return seconds if (pc.min(seconds).as_py() or 0) >= _LEAST_SECONDS else texts


def _first_line(exc: Exception) -> str:
    text = str(exc).strip().splitlines()
    return (
        shown_line if len(shown_line := (text[0] if text else "no reason given")) <= 300 else shown_line[:297] + "..."
    )


# Replies -------------------------------------------------------------------------------------------------------------


def reply(asked: Asked, answer: Answer) -> Reply:
    """`{"predictions": [...], "request_id": ..., "versions": [...]}`, a prediction for each row.

    With `params.probabilities` a prediction is a list, one probability for each of `classes`, as scikit-learn's
    `predict_proba` has it. The prediction id of row i, for its label later, is `<request_id>:<i>`.
    """
    document: dict[str, Any] = {"predictions": answer.labels()}
    if asked.echo.probabilities:
        binary = answer.task == "binary"
        document["predictions"] = np.column_stack((1 - answer.scores, answer.scores)) if binary else answer.scores
        document["classes"] = (0, 1) if binary else answer.classes
    document |= {"request_id": answer.request_id, "versions": answer.versions}
    if answer.contributions is not None:
        document["contributions"] = [
            [{"feature": name, "contribution": value} for name, value in row] for row in answer.contributions
        ]
    if not answer.captured:
        document["captured"] = False
    return Reply(orjson.dumps(document, default=_listed, option=orjson.OPT_SERIALIZE_NUMPY))


def _listed(values: Any) -> Any:
    """What orjson makes of arrays that it does not know, those of objects, and of arrays cut from others."""
    return values.tolist()


def ping(*, ready: bool) -> Reply:
    """`GET /ping` and `GET /health`: 200 once a version is loaded, 404 before, as MLflow has it."""
    return Reply(b"\n", status=200 if ready else 404)


def version(mlflow: str) -> Reply:
    """`GET /version`. Args: mlflow: the release of MLflow whose protocol this is, which is what its clients compare."""
    return Reply(mlflow.encode())


def error_members(error: BadRequest) -> dict[str, object]:
    """What MLflow's clients read in an error's body."""
    code = _CODES.get(error.status, "BAD_REQUEST" if error.status < 500 else "INTERNAL_ERROR")
    return {"error_code": code, "message": str(error)}
