"""The native protocol: `POST /predict` with rows or columns as JSON, or an Arrow stream (`arrow`).

`{"rows": [{column: value, ...}, ...]}` or `{"columns": {column: [value, ...], ...}}` with the features and (optionally)
the key and the time of each row, and `"options"`: `threshold`, `version`, `explain`, `probabilities`. The answer names
each row's prediction id, decision, version and variant; rows come back as rows, whichever way they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import NO_OPTIONS, Answer, Asked, Options, Reply
from mlops_ray.serving.protocols import arrow
from mlops_ray.serving.protocols.bodies import JSON, media_type, parse_json, preferred, refuse_repeated
from mlops_ray.serving.protocols.cells import integer, shown
from mlops_ray.serving.protocols.form import Form, batch_of_lists, batch_of_rows
from mlops_ray.serving.protocols.problem import pointed

MEDIA_TYPES = (JSON, arrow.MEDIA_TYPE)


@dataclass(frozen=True)
class Shape:
    """What the client would like to get back."""

    media_type: str = JSON
    probabilities: bool = True
    """Whether a multiclass answer tells the probability of each class beside the label."""


def parse(body: bytes, headers: Mapping[str, str], form: Form, *, now: float) -> Asked:
    """A predict request, checked against the project's columns.

    Args: headers: by name in lower case. `now` stands in for the event time of rows that carry none.
    Raises: BadRequest: 400 for what is no JSON or Arrow, 413 for too many rows, 415 for another media type, 422 naming
        row, column, what was expected and what came, and the rule where one was broken.
    """
    sent = media_type(headers.get("content-type"), JSON)
    if sent == JSON:
        batch, given = _parse_json(body, form, now)
    elif sent == arrow.MEDIA_TYPE:
        batch, given = arrow.parse(body, form, now=now)
    else:
        raise BadRequest(415, "unsupported media type", f"send {' or '.join(MEDIA_TYPES)}, not {sent[:60]!r}")
    accept = headers.get("accept")
    wanted = sent if accept is None else preferred(accept, MEDIA_TYPES, sent)
    if given is None:
        return Asked(batch, NO_OPTIONS, _PLAIN if wanted == JSON else Shape(wanted))
    options = parse_options(given, form)
    return Asked(batch, options, Shape(wanted, given.get("probabilities", True)))


_PLAIN = Shape()


def _parse_json(body: bytes, form: Form, now: float) -> tuple[Any, Any]:
    """The rows as a batch, and the options as they were given; None when there are none."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise _wrong_shape()
    rows, columns, options = document.get("rows"), document.get("columns"), document.get("options")
    n_known = ("rows" in document) + ("columns" in document)
    if n_known != 1:
        raise _wrong_shape()
    if len(document) != n_known + ("options" in document):
        extra = shown(min(document.keys() - {"rows", "columns", "options"}))
        raise BadRequest(422, "unknown field", f"{extra} is not a field of a predict request", {"received": extra})
    if options is None and "options" in document:
        raise _bad_option(("options",), None, "an object")
    n_members = len(document) + (len(options) if isinstance(options, dict) else 0)
    if "rows" in document:
        if not isinstance(rows, list) or not rows:
            raise pointed(BadRequest(422, "no rows", '"rows" must be a list of at least one object'), "rows")
        try:
            batch = batch_of_rows(rows, form, now=now)
        except BadRequest as exc:
            raise pointed(exc, "rows", *_place(exc, "row", "column")) from exc
        refuse_repeated(body, n_members + sum(map(len, rows)))
        return batch, options
    if not isinstance(columns, dict) or not columns:
        raise pointed(BadRequest(422, "no columns", '"columns" must be an object of lists'), "columns")
    try:
        batch = batch_of_lists(columns, form, now=now)
    except BadRequest as exc:
        raise pointed(exc, "columns", *_place(exc, "column", "row")) from exc
    refuse_repeated(body, n_members + len(columns))
    return batch, options


def _wrong_shape() -> BadRequest:
    return BadRequest(422, "wrong shape", 'the body must be an object with either "rows" or "columns"')


def _place(error: BadRequest, *names: str) -> list[Any]:
    return [error.members[name] for name in names if name in error.members]


def parse_options(given: Any, form: Form, member: str = "options") -> Options:
    """The `options` of a request, which its body has under the name `member`.

    Raises: BadRequest (422) naming one that the project or its task does not offer.
    """

    def bad(path: tuple[str, ...], value: Any, expected: str) -> BadRequest:
        return _bad_option((member, *path), value, expected)

    if not isinstance(given, dict):
        raise bad((), given, "an object")
    if extra := given.keys() - {"threshold", "version", "explain", "probabilities"}:
        name = min(extra)
        raise bad((name,), given[name], "one of threshold, version, explain, probabilities")
    threshold = given.get("threshold")
    version, explain = integer(given.get("version")), integer(given.get("explain", 0))
    if "threshold" in given:
        if form.task != "binary":
            raise bad(("threshold",), threshold, f"nothing: a {form.task} task has no threshold")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise bad(("threshold",), threshold, "a number from 0 to 1")
    if "version" in given and (type(version) is not int or not 1 <= version < 2**31):
        raise bad(("version",), given["version"], "the number of a version")
    if type(explain) is not int or not 0 <= explain <= form.explain:
        offered = "0: this project explains nothing; set serving.explain"
        raise bad(("explain",), given["explain"], f"an integer from 0 to {form.explain}" if form.explain else offered)
    if type(given.get("probabilities", True)) is not bool:
        raise bad(("probabilities",), given["probabilities"], "true or false")
    return Options(None if threshold is None else float(threshold), version, explain)


def _bad_option(path: tuple[str, ...], value: Any, expected: str) -> BadRequest:
    place, received = ".".join(name[:60] for name in path), shown(value)
    members = {"field": place, "expected": expected, "received": received}
    error = BadRequest(422, "wrong option", f"{place}: expected {expected}, got {received}", members)
    return pointed(error, *path)


def reply(asked: Asked, answer: Answer) -> Reply:
    """The answer in the media type that the request asked for."""
    shape: Shape = asked.echo
    if shape.media_type == arrow.MEDIA_TYPE:
        body = arrow.encode(answer, probabilities=shape.probabilities)
        return Reply(body, arrow.MEDIA_TYPE)
    return Reply(orjson.dumps(_document(answer, shape)))


def _document(answer: Answer, shape: Shape) -> dict[str, Any]:
    identity = answer.request_id
    variants = ["canary" if mine else "stable" for mine in answer.canary.tolist()]
    versions, labels, scores = answer.versions.tolist(), answer.labels().tolist(), answer.scores.tolist()
    if answer.task == "regression":
        predictions = [
            {"prediction_id": f"{identity}:{i}", "prediction": score, "version": version, "variant": variant}
            for i, (score, version, variant) in enumerate(zip(scores, versions, variants, strict=True))
        ]
    else:
        found = _probabilities(answer, scores) if answer.task == "multiclass" else scores
        name = "probability" if answer.task == "binary" else "probabilities"
        predictions = [
            {"prediction_id": f"{identity}:{i}", name: p, "label": label, "version": version, "variant": variant}
            for i, (p, label, version, variant) in enumerate(zip(found, labels, versions, variants, strict=True))
        ]
        if answer.task == "multiclass" and not shape.probabilities:
            for prediction in predictions:
                del prediction["probabilities"]
    if answer.contributions is not None:
        for prediction, contributions in zip(predictions, answer.contributions, strict=True):
            prediction["contributions"] = [{"feature": f, "contribution": c} for f, c in contributions]
    document: dict[str, Any] = {"request_id": identity, "predictions": predictions}
    return document if answer.captured else document | {"captured": False}


def _probabilities(answer: Answer, scores: list[list[float]]) -> list[dict[str, float]]:
    names = [str(name) for name in answer.classes]
    return [dict(zip(names, row, strict=True)) for row in scores]
