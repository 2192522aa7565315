"""The part of the OpenAPI document that describes others' protocols: V2 (`inference`) and MLflow's (`invocations`).

Their own specifications are the authority; what stands here is what a client needs to find its way, with this
project's columns in the examples.
"""

from __future__ import annotations

from typing import Any

from mlops_ray.serving.protocols import schemas
from mlops_ray.serving.protocols.bodies import JSON
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.parts import Operation, answered, parameters, refusals
from mlops_ray.serving.protocols.schemas import Schema, ref

_BINARY = "application/octet-stream"
_DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
# What an example sends for each dtype.
_SENT = {"float": "FP64", "int": "INT64", "bool": "BOOL", "string": "BYTES", "timestamp": "BYTES"}


def described(form: Form) -> dict[str, Schema]:
    """Schemas of V2's and MLflow's bodies, by name."""
    text, anything = {"type": "string"}, {"type": "object"}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2}
    datatype = {"enum": [*_DATATYPES, "BYTES"]}
    tensor = {"name": text, "shape": shape, "datatype": datatype, "parameters": anything, "data": {"type": "array"}}
    told = {**tensor, "shape": {"type": "array", "items": {"type": "integer"}}}
    asked = {"id": text, "parameters": anything, "inputs": _list(ref("Tensor")), "outputs": {"type": "array"}}
    answer = {
        "model_name": text,
        "model_version": text,
        "id": text,
        "parameters": anything,
        "outputs": {"type": "array", "items": schemas.of_object(told, ["name", "shape", "datatype"])},
    }
    names = ", ".join(form.names)
    return {
        "Tensor": schemas.of_object(tensor, ["name", "shape", "datatype"], description=f"A column: one of {names}."),
        "InferenceRequest": schemas.of_object(asked, ["inputs"]),
        "InferenceResponse": schemas.of_object(answer, ["model_name", "outputs"]),
        "Invocation": _invocation(form),
        "Invoked": {"type": "object", "properties": {"predictions": {"type": "array"}}, "required": ["predictions"]},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def _invocation(form: Form) -> Schema:
    rows: Schema = {"type": "array", "minItems": 1, "maxItems": form.max_rows}
    columns = {"type": "array", "items": {"type": "string"}}
    split = schemas.of_object({"columns": columns, "index": {"type": "array"}, "data": rows}, ["data"])
    tables = {
        "dataframe_split": split,
        "dataframe_records": {**rows, "items": ref("Row")},
        "instances": rows,
        "inputs": {"type": ["object", "array"]},
    }
    params = {"type": "object", "description": "`probabilities`, `threshold`, `version`, `explain`."}
    return {"oneOf": [schemas.of_object({name: table, "params": params}, [name]) for name, table in tables.items()]}


def operations(form: Form) -> list[Operation]:
    """V2's and MLflow's routes."""
    return [*_inference(form), *_invocations(form)]


def _inference(form: Form) -> list[Operation]:
    ready = schemas.of_object({"name": {"type": "string"}, "ready": {"type": "boolean"}}, ["ready"])
    unready = {"400": answered({JSON: {"schema": ready}}, versioned=False, says="No version is loaded yet.")}

    def get(summary: str, schema: Schema, *where: dict[str, Any], **more: Any) -> dict[str, Any]:
        held = {"200": answered({JSON: {"schema": schema}}, versioned=False), **more, **refusals(500)}
        about: dict[str, Any] = {"tags": ["v2"], "summary": summary, "responses": held}
        if where:
            held |= refusals(404)
            about["parameters"] = list(where)
        return about

    name = {"name": "model", "in": "path", "required": True, "schema": {"const": form.project}}
    version = {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
        "description": "A version that is loaded. With tokens, to be answered by it is for the role `operate`.",
    }
    live = schemas.of_object({"live": {"type": "boolean"}}, ["live"])
    about = {"type": "object", "required": ["name"]}
    found: list[Operation] = [
        ("get", "/v2", "read", get("Server metadata", about)),
        ("get", "/v2/health/live", "read", get("Is the server alive", live)),
        ("get", "/v2/health/ready", "read", get("Can it predict", ready, **unready)),
    ]
    for path, where in (("/v2/models/{model}", [name]), ("/v2/models/{model}/versions/{version}", [name, version])):
        found += [
            ("get", path, "read", get("Model metadata: inputs and outputs", about, *where)),
            ("get", f"{path}/ready", "read", get("Can the model predict", ready, *where, **unready)),
            ("post", f"{path}/infer", "predict", _infer(form, where)),
        ]
    return found


def _infer(form: Form, where: list[dict[str, Any]]) -> dict[str, Any]:
    row = schemas.example(form)
    inputs = [
        {"name": spec.name, "shape": [1], "datatype": _SENT[spec.dtype], "data": [row[spec.name]]}
        for spec in form.columns
        if spec.name in form.features or spec is form.key
    ]
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of JSON in front of binary tensors.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,11}$"},
    }
    content = {JSON: {"schema": ref("InferenceRequest"), "example": {"inputs": inputs}}, _BINARY: {}}
    held = answered({JSON: {"schema": ref("InferenceResponse")}, _BINARY: {}})
    return {
        "tags": ["v2"],
        "summary": "Infer",
        "description": "One input of shape [rows] or [rows, 1] for each column; outputs in JSON or as binary tensors.",
        "parameters": [*where, length, *parameters("Idempotency-Key", "X-Model-Version")],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": held, **refusals(400, 404, 408, 413, 415, 422, 500, 503)},
    }


def _invocations(form: Form) -> list[Operation]:
    row = {name: value for name, value in schemas.example(form).items() if name != form.event_time.name}
    split = {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
    invoke = {
        "tags": ["mlflow"],
        "summary": "Score, as `mlflow models serve` does",
        "parameters": parameters("Idempotency-Key", "X-Model-Version"),
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": ref("Invocation"), "example": split}, "text/csv": {}},
        },
        "responses": {
            "200": answered({JSON: {"schema": ref("Invoked")}}),
            **refusals(400, 404, 408, 413, 415, 422, 500, 503),
        },
    }

    def get(summary: str, **more: Any) -> dict[str, Any]:
        held = {"200": answered({JSON: {}}, versioned=False), **more, **refusals(500)}
        return {"tags": ["mlflow"], "summary": summary, "responses": held}

    unready = {"404": answered({JSON: {}}, versioned=False, says="No version is loaded yet.")}
    return [
        ("post", "/invocations", "predict", invoke),
        ("get", "/ping", "read", get("Can it predict", **unready)),
        ("get", "/health", "read", get("Can it predict", **unready)),
        ("get", "/version", "read", get("The release of MLflow whose protocol this is")),
    ]
