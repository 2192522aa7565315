"""What the operations of an OpenAPI document share: responses, headers, parameters, and pointers to them."""

from __future__ import annotations

from typing import Any

from mlops_ray.serving.protocols import problem
from mlops_ray.serving.protocols.schemas import ref

Operation = tuple[str, str, str, dict[str, Any]]
"""Method in lower case, path, the role that it needs ("" for none), and the operation object."""

# When each status comes, for the route tables and the page.
STATUSES = {
    400: "The body is empty, is not what its media type says, or a header is malformed.",
    401: "There is no token, or none that is known and valid.",
    403: "The token lacks the role that the route needs, or its subject may not decide this.",
    404: "There is no such path, model or version.",
    405: "The path takes another method.",
    408: "The end of the body did not come in time.",
    409: "What was ordered is not possible now; `errors` says what is.",
    413: "The body, inflated or not, or its number of rows is too large.",
    415: "The media type or the content encoding is not taken.",
    422: "A column, value or option is not what the project takes; `errors` says which.",
    500: "A fault of the server; its log has the details.",
    503: "Overloaded, no version is loaded yet, or the log cannot be written. `Retry-After` says when to try again.",
}


HEADERS: dict[str, Any] = {
    "X-Request-Id": {
        "description": "The Idempotency-Key, the client's own X-Request-Id, or an id of the server's.",
        "schema": {"type": "string"},
    },
    "X-Model-Version": {
        "description": "The version that answered, where one answered all rows.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "WWW-Authenticate": {"description": "`Bearer` (RFC 6750).", "schema": {"type": "string"}},
}

PARAMETERS: dict[str, Any] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Becomes the request id: sent again with the same body, it is the same prediction.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-9;-~]([ -9;-~]*[!-9;-~])?$"},
    },
    "X-Model-Version": {
        "name": "X-Model-Version",
        "in": "header",
        "description": "The version that is to answer; it must be loaded. With tokens, for the role `operate`.",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
    },
}


def refusals(*statuses: int) -> dict[str, Any]:
    """Responses for statuses that are refused with problem details."""
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def parameters(*names: str) -> list[dict[str, str]]:
    """Pointers to parameters of the document."""
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def answered(content: dict[str, Any], *, versioned: bool = True, says: str = "The answer.") -> dict[str, Any]:
    """A good response."""
    names = ("X-Request-Id", "X-Model-Version") if versioned else ("X-Request-Id",)
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return {"description": says, "headers": headers, "content": content}


def responses(*, tokens: bool) -> dict[str, Any]:
    """Every refusal, for `#/components/responses`. tokens: whether requests need one."""
    found = {}
    for status, says in STATUSES.items():
        headers = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
        if status == 503:
            headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
        if status == 401:
            headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
        if status == 401 and not tokens:
            continue
        content = {problem.MEDIA_TYPE: {"schema": ref("Problem")}}
        found[str(status)] = {"description": says, "headers": headers, "content": content}
    return found
