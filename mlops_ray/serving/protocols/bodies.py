"""JSON bodies as values, media types, and what a client would like to get back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from mlops_ray.errors import BadRequest

JSON = "application/json"
# A text of JSON, and its colon when it is a member's name; escapes are skipped whole.
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?', re.DOTALL)
_NO_NUMBERS = re.compile(r"-?(NaN|Infinity)")
_SPACED = re.compile(rb'"\s+:')


def parse_json(body: bytes) -> Any:
    """The body as JSON (RFC 8259): UTF-8, no NaN, not nested deeper than 1,024. Raises: BadRequest (400) otherwise."""
    if not body:
        raise BadRequest(400, "empty body", 'send {"rows": [{...}]} as application/json')
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        found = _NO_NUMBERS.match(exc.doc, exc.pos)
        hint = f"; {found[0]} is no JSON: send null for what is missing" if found else ""
        raise BadRequest(400, "not JSON", f"{exc}{hint}") from exc


def refuse_repeated(body: bytes, n_members: int) -> None:
    """Refuse a body in which an object names a member twice: parsers differ in which of them they keep.

    Args: n_members: members of all objects of the body as it was parsed, where the last one of a name won.
    Raises: BadRequest (400).
    """
    if body.count(b":") == n_members:  # no text holds a colon, so each one stands behind a name
        return
    if body.count(b'":') == n_members and not _SPACED.search(body):  # so does each one behind a quotation mark
        return
    if sum(1 for found in _TEXTS.finditer(body) if found[1]) != n_members:
        raise BadRequest(400, "repeated member", "an object names a member twice; name each of them once")


def media_type(headers_value: str | None, default: str) -> str:
    """The media type of a Content-Type header, without its parameters."""
    return default if headers_value is None else headers_value.partition(";")[0].strip().lower()


def preferred(accept: str | None, offered: Sequence[str], default: str) -> str:
    """Which of `offered` the client likes best (RFC 9110, 12.5.1); `default` when it does not say, or wants none.

    >>> preferred("text/html;q=0.5, application/json", ["application/json"], "text/html")
    'application/json'
    """
    best, weight = default, 0.0
    for part in (accept or "").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        share = float(given) if re.fullmatch(r"[01](\.\d{0,3})?", given) else 0.0
        if name in offered and share > weight:
            best, weight = name, share
    return best
