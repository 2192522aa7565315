"""Errors as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import orjson

from mlops_ray.errors import BadRequest

MEDIA_TYPE = "application/problem+json"


def problem(error: BadRequest, instance: str, also: Mapping[str, object] | None = None) -> bytes:
    """The body of an error's answer.

    Args: instance: path of the request. also: further members, for clients of other protocols. `errors` names the place
    for programs: `pointer` (a JSON pointer into the body, as a URI fragment, RFC 6901), `row`, `column`, `expected`,
    `received`, whichever are known.
    """
    about: dict[str, object] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
    }
    if error.members:
        about["errors"] = [error.members]
    return orjson.dumps({**about, **(also or {})}, option=orjson.OPT_SERIALIZE_NUMPY)


def pointed(error: BadRequest, *path: str | int) -> BadRequest:
    """The error with the place in the body that it is about.

    >>> pointed(BadRequest(422, "wrong value", "row 0"), "rows", 0, "a/b").members
    {'pointer': '#/rows/0/a~1b'}
    """
    steps = (quote(str(step).replace("~", "~0").replace("/", "~1"), safe="~") for step in path)
    pointer = "#" + "".join("/" + step for step in steps)
    return BadRequest(error.status, error.title, error.detail, {"pointer": pointer, **error.members})
