"""Late labels, business numbers and watermarks: `POST /feedback` and `POST /watermark`.

A label, or a number by name, comes by prediction id, or by entity key when the client kept no id; it may come before
the prediction's record is in the log, more than once, and be corrected later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.protocols.bodies import parse_json, refuse_repeated
from mlops_ray.serving.protocols.cells import A_PAST_TIME, MOST_KEY, integer, kind, past, shown
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.problem import pointed

_FIELDS = frozenset(("prediction_id", "key", "label", "values", "time"))
_SHAPE = 'the body must be {"labels": [{"prediction_id": ..., "label": ...}, ...]}, or with "key" for "prediction_id"'
_NOTHING = {"binary": math.nan, "regression": math.nan, "multiclass": None}
"""By task, the label of an entry that has none."""


def parse(body: bytes, form: Form, *, now: float, classes: Sequence[str | int] = ()) -> Labels:
    """The labels and numbers of a feedback request.

    Args: `now` stands in for the time of entries that carry none. classes: what a label may be in a multiclass project,
    those of all loaded versions; empty takes any text or whole number, for no version is loaded yet.
    Raises: BadRequest: 400 for what is no JSON, 413 for too many labels or numbers, 422 naming the entry and field.
    """
    document = parse_json(body)
    entries = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries or len(document) != 1:
        raise BadRequest(422, "wrong shape", _SHAPE)
    if len(entries) > form.max_rows:
        members = {"expected": form.max_rows, "received": len(entries)}
        detail = f"{len(entries)} labels; send at most {form.max_rows} at a time"
        raise BadRequest(413, "too many labels", detail, members)
    take = _taker(form, classes)
    ids, keys, values, times = [], [], [], []
    numbers: dict[str, NDArray[np.float64]] = {}
    n_numbers = 0
    for i, entry in enumerate(entries):
        identity, key = _whose(i, entry, form)
        ids.append(identity)
        keys.append(key)
        told = _numbers(i, entry["values"], form) if "values" in entry else {}
        values.append(_NOTHING[form.task] if told and "label" not in entry else take(i, entry.get("label")))
        times.append(now if entry.get("time") is None else _time(i, entry["time"], now))
        for name, number in told.items():
            numbers.setdefault(name, np.full(len(entries), np.nan))[i] = number
        n_numbers += len(told)
    refuse_repeated(body, 1 + sum(map(len, entries)) + n_numbers)
    if n_numbers > form.max_rows:
        members = {"expected": form.max_rows, "received": n_numbers}
        detail = f"{n_numbers} values; send at most {form.max_rows} at a time"
        raise BadRequest(413, "too many values", detail, members)
    labels = np.fromiter(values, object if form.task == "multiclass" else np.float64, len(values))
    return Labels(tuple(ids), tuple(keys), labels, np.array(times), numbers)


def parse_watermark(body: bytes, *, now: float) -> float:
    """Time of a watermark message `{"time": ...}`, seconds since the epoch. Raises: BadRequest (400, 422)."""
    document = parse_json(body)
    if not isinstance(document, dict) or document.keys() != {"time"}:
        raise BadRequest(422, "wrong shape", 'the body must be {"time": "2013-03-01T00:00:00Z"}')
    found = past(document["time"], now)
    if found is None:
        received = shown(document["time"])
        members = {"field": "time", "expected": A_PAST_TIME, "received": received}
        raise pointed(BadRequest(422, "wrong value", f"time: expected {A_PAST_TIME}, got {received}", members), "time")
    refuse_repeated(body, 1)
    return found


def _whose(i: int, entry: Any, form: Form) -> tuple[str, str]:
    """Prediction id and key of the entry, one of them empty."""
    if not isinstance(entry, dict):
        raise pointed(BadRequest(422, "wrong type", f"labels[{i}] must be an object, not {kind(entry)}"), "labels", i)
    if extra := entry.keys() - _FIELDS:
        detail = f"labels[{i}]: {shown(min(extra))} is not a field of a label"
        raise pointed(BadRequest(422, "unknown field", detail), "labels", i)
    if ("prediction_id" in entry) == ("key" in entry):
        detail = f"labels[{i}] must have either a prediction_id or a key"
        raise pointed(BadRequest(422, "wrong shape", detail), "labels", i)
    if "key" in entry:
        value = entry["key"]
        if form.key.dtype == "int" and type(whole := integer(value)) is int:
            return "", str(whole)
        return "", _text(i, "key", value)
    return _text(i, "prediction_id", entry["prediction_id"]), ""


def _numbers(i: int, told: Any, form: Form) -> dict[str, float]:
    """The entry's business numbers by name, one at least."""
    if not isinstance(told, dict) or not told:
        raise _refused(i, "values", told, "an object with at least one number by name")
    for name, value in told.items():
        if name not in form.business:
            known = ", ".join(map(repr, form.business)) or "none, for rollout.analyses has no business metric"
            detail = f"labels[{i}].values: {shown(name)} is not read by any analysis; known: {known}"
            members = {"expected": list(form.business), "received": shown(name)}
            raise pointed(BadRequest(422, "unknown value", detail, members), "labels", i, "values", name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise _refused(i, "values", value, "a finite number", name)
    return {name: float(value) for name, value in told.items()}


def _text(i: int, field: str, value: Any) -> str:
    if isinstance(value, str) and 1 <= len(value) <= MOST_KEY:
        return value
    raise _refused(i, field, value, f"a string of 1 to {MOST_KEY:,} characters")


def _time(i: int, value: Any, now: float) -> float:
    found = past(value, now)
    if found is None:
        raise _refused(i, "time", value, A_PAST_TIME)
    return found


def _taker(form: Form, classes: Sequence[str | int]) -> Callable[[int, Any], Any]:
    """What becomes of an entry's label."""

    def binary(i: int, value: Any) -> float:
        if isinstance(value, int | float) and value in (0, 1):  # true and false among them
            return float(value)
        raise _refused(i, "label", value, "0 or 1")

    def number(i: int, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise _refused(i, "label", value, "a number")

    def member(i: int, value: Any) -> str | int:
        name = integer(value)
        if type(name) in (str, int) and (not known or (type(name), name) in known):
            return name  # type: ignore[no-any-return]  # a str or an int, as was just seen
        raise _refused(i, "label", value, expected)

    known = {(type(name), name) for name in classes}
    listed = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
    expected = f"one of {listed}" if classes else "a class: a string or an integer"
    return {"binary": binary, "regression": number, "multiclass": member}[form.task]


def _refused(i: int, field: str, value: Any, expected: str, *within: str) -> BadRequest:
    """Args: within: the way from the field to the value."""
    received, place = shown(value), f"labels[{i}].{'.'.join((field, *within))}"
    members = {"field": place, "expected": expected, "received": received}
    error = BadRequest(422, "wrong value", f"{place}: expected {expected}, got {received}", members)
    return pointed(error, "labels", i, field, *within)
