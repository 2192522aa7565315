"""The interface of a project as an OpenAPI 3.1 document: all routes of all protocols, with schemas from its columns.

Source: OpenAPI Specification 3.1.1. Security requirements name the role that a token needs, as 3.1 allows for schemes
other than OAuth2 ("a list of role names which are required for the execution").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlops_ray.config import Project
from mlops_ray.serving.protocols import arrow, foreign, schemas
from mlops_ray.serving.protocols.bodies import JSON
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.parts import HEADERS, PARAMETERS, Operation, answered, parameters, refusals, responses
from mlops_ray.serving.protocols.schemas import ref

TAGS = (
    ("native", "Predictions, labels and health in this project's own words."),
    ("v2", "Open Inference Protocol V2, as KServe, Triton and MLServer speak it."),
    ("mlflow", "The scoring protocol of `mlflow models serve`."),
)


Also = tuple[Sequence[tuple[str, str]], Sequence[Operation]]
"""Tags and operations of routes that later rooms add."""


def openapi(
    project: Project, *, release: str, classes: Sequence[str | int] = (), also: Also = ((), ())
) -> dict[str, Any]:
    """The document. release: this package's version. classes: of a multiclass project, where they are known."""
    form, tokens = Form.of(project), project.serving.auth == "token"
    components: dict[str, Any] = {
        "schemas": {**schemas.requests(form), **schemas.answers(form), **foreign.described(form)},
        "responses": responses(tokens=tokens),
        "headers": HEADERS,
        "parameters": PARAMETERS,
    }
    if classes and project.task == "multiclass":
        components["schemas"]["Prediction"]["properties"]["label"] = {"enum": list(classes)}
    document: dict[str, Any] = {
        "openapi": "3.1.1",
        "info": {
            "title": project.project,
            "version": release,
            "summary": f"Predictions of {project.target} ({project.task}).",
            "description": project.about.intended_use or f"What mlops_ray answers for the project {project.project}.",
        },
        "servers": [{"url": f"/{project.project}"}],
        "tags": [{"name": name, "description": says} for name, says in (*TAGS, *also[0])],
        "paths": {},
        "components": components,
    }
    if tokens:
        scheme = {"type": "http", "scheme": "bearer", "description": "A token of `mlops-ray token create`."}
        components["securitySchemes"] = {"bearer": scheme}
    for method, path, role, operation in (*_native(form), *foreign.operations(form), *also[1]):
        held = operation | {"operationId": _operation_id(method, path)}
        if tokens:
            held["security"] = [{"bearer": [role]}] if role else []
            held["responses"] = held["responses"] | (refusals(401, 403) if role else {})
        document["paths"].setdefault(path, {})[method] = held
    return document


def _operation_id(method: str, path: str) -> str:
    words = [piece.strip("{}").replace(".", "_") for piece in path.split("/") if piece]
    return "_".join((method, *words))


def _native(form: Form) -> list[Operation]:
    row = schemas.example(form)
    some = {name: value for name, value in row.items() if name != form.event_time.name}
    body = {"rows": [row]}
    examples = {
        "rows": {"summary": "One row", "value": body},
        "columns": {"summary": "Two rows by column", "value": {"columns": {k: [v, v] for k, v in some.items()}}},
    }
    either = {"oneOf": [ref("PredictRows"), ref("PredictColumns")]}
    predict = {
        "tags": ["native"],
        "summary": "Predict",
        "description": "Rows or columns as JSON, or one Arrow IPC stream with a column each; options of a stream stand "
        "as JSON under `options` in its schema's metadata. The answer comes in the request's media type unless "
        "`Accept` asks for the other.",
        "parameters": parameters("Idempotency-Key", "X-Model-Version"),
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": either, "examples": examples}, arrow.MEDIA_TYPE: {}},
        },
        "responses": {
            "200": answered({JSON: {"schema": ref("Predictions")}, arrow.MEDIA_TYPE: {}}),
            **refusals(400, 404, 408, 413, 415, 422, 500, 503),
        },
    }
    label = {"binary": 1, "multiclass": "a class", "regression": 12.5}[form.task]
    entry = {"prediction_id": "visit-17:0", "label": label, "time": "2024-02-01T00:00:00Z"}
    labels = {"labels": [entry | ({"values": dict.fromkeys(form.business, 12.5)} if form.business else {})]}
    feedback = {
        "tags": ["native"],
        "summary": "Send labels and business numbers" if form.business else "Send labels",
        "description": "Whenever they become known, again if they are corrected: the newest `time` wins.",
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Feedback"), "example": labels}}},
        "responses": {
            "202": answered({JSON: {"schema": ref("Accepted")}}, versioned=False, says="They stand in the spool."),
            **refusals(400, 408, 413, 415, 422, 500, 503),
        },
    }
    until = {"time": "2024-02-01T00:00:00Z"}
    at = schemas.of_object({"watermark": {"type": "number"}}, ["watermark"])
    watermark = {
        "tags": ["native"],
        "summary": "Say that no event before a time will come any more",
        "requestBody": {"required": True, "content": {JSON: {"schema": ref("Watermark"), "example": until}}},
        "responses": {
            "202": answered({JSON: {"schema": at}}, versioned=False, says="It stands in the spool."),
            **refusals(400, 408, 413, 415, 422, 500, 503),
        },
    }
    return [
        ("post", "/predict", "predict", predict),
        ("post", "/feedback", "feedback", feedback),
        ("post", "/watermark", "feedback", watermark),
        *_about(),
    ]


def _about() -> list[Operation]:
    """Health, and this document."""

    def get(summary: str, content: dict[str, Any], *, unready: bool = False) -> dict[str, Any]:
        responses: dict[str, Any] = {"200": answered(content, versioned=False), **refusals(500)}
        if unready:
            responses["503"] = answered(content, versioned=False, says="No version is loaded yet.")
        return {"tags": ["native"], "summary": summary, "responses": responses}

    status = schemas.of_object({"status": {"const": "ok"}}, ["status"])
    loaded = {"type": "object", "description": "What this replica has loaded, and who answers."}
    return [
        ("get", "/healthz", "read", get("Is the process alive", {JSON: {"schema": status}})),
        ("get", "/readyz", "read", get("Can it predict", {JSON: {"schema": loaded}}, unready=True)),
        ("get", "/openapi.json", "read", get("This document", {JSON: {"schema": {"type": "object"}}})),
        ("get", "/docs", "read", get("The same for people", {"text/html": {"schema": {"type": "string"}}})),
    ]
