"""Bodies of orders over HTTP, parsed. Each raises BadRequest: 400 for what is no JSON, 422 with field and way out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlops_ray import texts
from mlops_ray.errors import BadRequest
from mlops_ray.rollout.repeats import Request
from mlops_ray.serving.protocols.bodies import JSON, parse_json, refuse_repeated
from mlops_ray.serving.protocols.cells import integer, kind, shown
from mlops_ray.serving.protocols.problem import pointed

MOST_ARMS = 20
"""Versions of one rollout."""
LARGEST_VERSION = 10**9 - 1
ROLLOUT_ID = "[a-z0-9_-]{1,100}"


@dataclass(frozen=True)
class Start:
    """A rollout of these versions is to start (several only side by side), and why."""

    versions: tuple[int, ...]
    why: str
    supersede: bool


@dataclass(frozen=True)
class Moved:
    """Why an order is given. which: of a rollback, the version to go back to, of a promotion, the one that is meant;
    None: the one before, the only one."""

    why: str
    which: int | None


def start(body: bytes) -> Start:
    """`{"version": 7, "why": "...", "supersede": false}`, or `versions`, a list, in its place; nothing else must be
    there."""
    example = '{"version": 7, "why": "the one from Tuesday"}'
    found = _object(body, {"version", "versions", "why", "supersede"}, example)
    if ("version" in found) == ("versions" in found):
        raise BadRequest(422, "wrong shape", f"give either version or versions, such as {example}")
    several = found.get("versions", [found.get("version")])
    if not isinstance(several, list) or not 1 <= len(several) <= MOST_ARMS:
        raise _wrong("versions", several, f"a list of 1 to {MOST_ARMS} versions")
    name = "versions" if "versions" in found else "version"
    supersede = found.get("supersede", False)
    if not isinstance(supersede, bool):
        raise _wrong("supersede", supersede, "true or false")
    versions = tuple(_number(name, one) for one in several)
    return Start(versions, _why(found, "why", "ordered over HTTP"), supersede)


def move(body: bytes, *, which: str | None) -> Moved:
    """`{"why": "..."}`, also with a version in the field `which`; nothing must be there, nor must a body."""
    found = _object(body or b"{}", {"why"} | ({which} if which else set()), '{"why": "complaints"}')
    value = found.get(which) if which else None
    version = None if which is None or value is None else _number(which, value)
    return Moved(_why(found, "why", "ordered over HTTP"), version)


def request(key: str | None, asked: Start | Moved, order: str) -> Request | None:
    """What makes an order one that may come again: the client's Idempotency-Key, if any, and all that it says.

    Args: order: what is ordered of which rollout."""
    return None if key is None else Request.of(key, {"order": order, **asdict(asked)})


def reason(body: bytes) -> str:
    """`{"reason": "..."}`"""
    return _why(_object(body, {"reason"}, '{"reason": "read its card"}'), "reason", None)


def version(text: str) -> int:
    """Of a path. Raises: BadRequest (404)."""
    if text.isascii() and text.isdecimal() and 0 < int(text) <= LARGEST_VERSION:
        return int(text)
    raise BadRequest(404, "no such version", f"{text[:40]!r} is no version's number")


def _object(body: bytes, fields: set[str], example: str) -> dict[str, Any]:
    if not body:
        raise BadRequest(400, "empty body", f"send {example} as {JSON}")
    document = parse_json(body)
    if not isinstance(document, dict):
        raise BadRequest(422, "wrong shape", f"the body must be an object such as {example}, not {kind(document)}")
    if extra := document.keys() - fields:
        name = min(extra)
        detail = f"{shown(name)} is not a field of this order; these are: {', '.join(sorted(fields))}"
        raise pointed(BadRequest(422, "unknown field", detail, {"field": name}), name)
    refuse_repeated(body, _n_members(document))
    return document


def _n_members(document: Any) -> int:
    """Members of all objects in a document."""
    n, left = 0, [document]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            n += len(one)
            left += one.values()
        elif isinstance(one, list):
            left += one
    return n


def _why(found: dict[str, Any], name: str, default: str | None) -> str:
    value = found.get(name, default)
    if not texts.is_reason(value):
        raise _wrong(
            name, value, f"a sentence of 1 to {texts.MOST_REASON:,} characters, none of them NUL or another for control"
        )
    return str(value).strip()


def _number(name: str, value: Any) -> int:
    whole = integer(value)
    if type(whole) is int and 0 < whole <= LARGEST_VERSION:
        return whole
    raise _wrong(name, value, "a version's number")


def _wrong(name: str, value: Any, expected: str) -> BadRequest:
    received = shown(value)
    members = {"field": name, "expected": expected, "received": received}
    return pointed(BadRequest(422, "wrong value", f"{name}: expected {expected}, got {received}", members), name)
