"""Request bodies to columns, and answers back: the native JSON protocol.

`POST /predict` takes `{"rows": [{column: value, ...}, ...]}` or `{"columns": {column: [value, ...], ...}}` with the
key, the features and (optionally) the time of each row. A value of the wrong type, a missing or an unknown column is
refused with the row and column named; null is taken where the project file says `nullable`, absence where it says
`required: false`. With `serving.request_rules: all`, ranges, sets and patterns hold as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_ray.config import Column, Project
from mlops_ray.data.profile import Columns
from mlops_ray.errors import BadRequest

MAX_ROWS = 100_000
# How far ahead of the clock a time may lie: one from the far future would move decision time there, for good.
_AHEAD_S = 86_400.0
# Members of a closed set that a message lists.
_LISTED = 10


@dataclass(frozen=True)
class Rule:
    """What a value that is there must keep. `name` is the rule's id, as in quarantine; `says` shows its bounds."""

    name: str
    says: str
    keeps: Callable[[Any], object]
    """Truthy for a value that keeps the rule."""


@dataclass(frozen=True)
class Form:
    """What requests to a project look like, worked out once: the columns in the file's order, and each one's rules."""

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    key: str
    event_time: str
    features: tuple[str, ...]
    rules: dict[str, tuple[Rule, ...]]
    """By column; empty where `serving.request_rules` is `types`."""

    @classmethod
    def of(cls, project: Project) -> Form:
        """The form of `project`'s requests."""
        columns = project.columns_in("serving")
        every = project.serving.request_rules == "all"
        rules = {c.name: _rules(c) for c in columns} if every else {}
        names = tuple(c.name for c in columns)
        return cls(columns, names, project.key, project.event_time, project.features.inputs, rules)


def _rules(spec: Column) -> tuple[Rule, ...]:
    """The column's rules on values, under the names that they have in quarantine."""
    rules = []
    if spec.min is not None or spec.max is not None:
        low = -math.inf if spec.min is None else spec.min
        high = math.inf if spec.max is None else spec.max
        rules.append(Rule(f"{spec.name}.range", f"{low:g} to {high:g}", lambda value: low <= value <= high))
    if spec.values is not None:
        listed = ", ".join(spec.values[:_LISTED]) + (", ..." if len(spec.values) > _LISTED else "")
        rules.append(Rule(f"{spec.name}.set", f"one of {listed}", frozenset(spec.values).__contains__))
    if spec.pattern is not None:
        rules.append(Rule(f"{spec.name}.pattern", spec.pattern, re.compile(spec.pattern).fullmatch))
    return tuple(rules)


@dataclass(frozen=True)
class Batch:
    """Rows of one request: model inputs as columns of shape (n,), keys, and event times in seconds since the epoch."""

    keys: tuple[str, ...]
    times: NDArray[np.float64]
    columns: Columns

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.keys)


@dataclass(frozen=True)
class Labels:
    """Late labels: prediction ids, values (n,), and when each became known (seconds since the epoch)."""

    ids: tuple[str, ...]
    values: NDArray[np.float64]
    times: NDArray[np.float64]


def parse_json(body: bytes) -> Any:
    """The body as JSON. Raises: BadRequest (400) when it is not."""
    if not body:
        raise BadRequest(400, "empty body", 'send {"rows": [{...}]} as application/json')
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise BadRequest(400, "not JSON", str(exc)) from exc


def parse_predict(document: Any, form: Form, *, now: float) -> Batch:
    """Rows or columns of a predict request, checked against the project's columns.

    Args: `now` stands in for the event time of rows that carry none.
    Raises: BadRequest (422) naming row, column, what was expected and what came, and the rule where one was broken.
    """
    if not isinstance(document, dict) or len(document.keys() & {"rows", "columns"}) != 1:
        raise BadRequest(422, "wrong shape", 'the body must be an object with either "rows" or "columns"')
    if extra := sorted(document.keys() - {"rows", "columns"}):
        raise BadRequest(422, "unknown field", f"{_shown(extra[0])} is not a field of a predict request")
    table = _from_rows(document["rows"], form) if "rows" in document else _from_columns(document["columns"], form.names)
    columns: dict[str, NDArray[Any]] = {}
    n = len(next(iter(table.values())))
    for spec in form.columns:
        values = table.get(spec.name)
        if spec.name == form.event_time:
            times = _times(values, spec, now, n)
            if spec.name in form.features:
                columns[spec.name] = np.round(times, 6)  # microseconds, as the log keeps them
            continue
        if values is None:
            if spec.required:
                raise BadRequest(422, "missing column", f"column {spec.name!r} ({spec.dtype}) is missing")
            values = [None] * n
        if spec.name == form.key:
            keys = tuple(_key(v, i, spec) for i, v in enumerate(values))
            if spec.name in form.features:
                columns[spec.name] = _column(values, spec)
        else:
            columns[spec.name] = _column(values, spec)
        for rule in form.rules.get(spec.name, ()):
            _hold(rule, values, spec)
    return Batch(keys, times, {name: columns[name] for name in form.features})


def _hold(rule: Rule, values: Sequence[Any], spec: Column) -> None:
    """Raises: BadRequest (422) for the first of `values`, already of the column's dtype, that breaks `rule`."""
    keeps = rule.keeps
    for i, value in enumerate(values):
        if value is not None and not keeps(value):
            place = f"row {i}, column {spec.name!r}"
            raise BadRequest(422, "rule broken", f"{place}: {_shown(value)} breaks {rule.name} ({rule.says})")


def parse_feedback(document: Any, *, now: float) -> Labels:
    """Labels of a feedback request: `{"labels": [{"prediction_id": ..., "label": 0 or 1, "time": ...}, ...]}`.

    Raises: BadRequest (422) naming the entry and field.
    """
    entries = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadRequest(422, "wrong shape", 'the body must be {"labels": [{"prediction_id": ..., "label": ...}, ...]}')
    if len(entries) > MAX_ROWS:
        raise BadRequest(413, "too many labels", f"{len(entries)} labels; send at most {MAX_ROWS} at a time")
    ids, values, times = [], [], []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadRequest(422, "wrong type", f"labels[{i}] must be an object, not {_kind(entry)}")
        if extra := sorted(entry.keys() - {"prediction_id", "label", "time"}):
            raise BadRequest(422, "unknown field", f"labels[{i}]: {_shown(extra[0])} is not a field of a label")
        identity, label = entry.get("prediction_id"), entry.get("label")
        if not isinstance(identity, str) or not identity:
            raise BadRequest(422, "wrong type", f"labels[{i}].prediction_id must be a string, not {_kind(identity)}")
        if not isinstance(label, int | float) or label not in (0, 1):
            raise BadRequest(422, "wrong value", f"labels[{i}].label must be 0 or 1, not {_shown(label)}")
        ids.append(identity)
        values.append(float(label))
        times.append(now if entry.get("time") is None else _time(entry["time"], f"labels[{i}].time", now))
    return Labels(tuple(ids), np.array(values), np.array(times))


def parse_watermark(document: Any, *, now: float) -> float:
    """Time of a watermark message `{"time": ...}`. Raises: BadRequest (422)."""
    if not isinstance(document, dict) or document.keys() != {"time"}:
        raise BadRequest(422, "wrong shape", 'the body must be {"time": "2013-03-01T00:00:00Z"}')
    return _time(document["time"], "time", now)


def problem(error: BadRequest, instance: str) -> bytes:
    """The error as `application/problem+json` (RFC 9457)."""
    about = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail}
    return orjson.dumps(about | {"instance": instance})


def _from_rows(rows: Any, form: Form) -> dict[str, list[Any]]:
    if not isinstance(rows, list) or not rows:
        raise BadRequest(422, "no rows", '"rows" must be a list of at least one object')
    if len(rows) > MAX_ROWS:
        raise BadRequest(413, "too many rows", f"{len(rows)} rows; send at most {MAX_ROWS} at a time")
    names, allowed = form.names, set(form.names)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRequest(422, "wrong type", f"rows[{i}] must be an object, not {_kind(row)}")
        if not row.keys() <= allowed:
            extra = sorted(row.keys() - allowed)[0]
            expected = ", ".join(names)
            raise BadRequest(422, "unknown column", f"rows[{i}]: {_shown(extra)} is not a column; expected {expected}")
    table = {}
    for name, spec in zip(names, form.columns, strict=True):
        values = [row.get(name, _ABSENT) for row in rows]
        if all(v is _ABSENT for v in values):
            continue
        if not spec.required:
            values = [None if v is _ABSENT else v for v in values]
        missing = next((i for i, v in enumerate(values) if v is _ABSENT), None)
        if missing is not None:
            raise BadRequest(422, "missing column", f"rows[{missing}]: column {name!r} is missing")
        table[name] = values
    if not table:
        raise BadRequest(422, "missing column", f"rows[0] is empty; expected {', '.join(names)}")
    return table


def _from_columns(columns: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not isinstance(columns, dict) or not columns:
        raise BadRequest(422, "no columns", '"columns" must be an object of lists')
    if extra := sorted(columns.keys() - set(names)):
        expected = ", ".join(names)
        raise BadRequest(422, "unknown column", f"columns: {_shown(extra[0])} is not a column; expected {expected}")
    for name, values in columns.items():
        if not isinstance(values, list):
            raise BadRequest(422, "wrong type", f"columns.{name} must be a list, not {_kind(values)}")
    lengths = {name: len(values) for name, values in columns.items()}
    n = next(iter(lengths.values()))
    uneven = next((name for name, length in lengths.items() if length != n), None)
    if uneven is not None:
        raise BadRequest(422, "uneven columns", f"columns.{uneven} has {lengths[uneven]} values, the first column {n}")
    if n == 0:
        raise BadRequest(422, "no rows", "the columns are empty; send at least one value in each")
    if n > MAX_ROWS:
        raise BadRequest(413, "too many rows", f"{n} rows; send at most {MAX_ROWS} at a time")
    return columns


_ABSENT = object()


def _kind(value: Any) -> str:
    names = {type(None): "null", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


def _shown(value: Any) -> str:
    text = _kind(value) if isinstance(value, list | dict) else repr(value)  # repr() of deep nesting raises
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(i: int, spec: Column, value: Any, expected: str) -> BadRequest:
    return BadRequest(422, "wrong value", f"row {i}, column {spec.name!r}: expected {expected}, got {_shown(value)}")


def _key(value: Any, i: int, spec: Column) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and spec.dtype == "int":
        return str(value)
    raise _refuse(i, spec, value, "a key: a non-empty " + ("string" if spec.dtype == "string" else "integer"))


def _column(values: Sequence[Any], spec: Column) -> NDArray[Any]:
    if spec.dtype == "timestamp":
        return _instants(values, spec)
    return _strings(values, spec) if spec.dtype == "string" else _numbers(values, spec)


def _strings(values: Sequence[Any], spec: Column) -> NDArray[Any]:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        if value is None:
            if not spec.nullable:
                raise _refuse(i, spec, value, "a string (not null)")
            out[i] = ""
        elif isinstance(value, str):
            out[i] = value
        else:
            raise _refuse(i, spec, value, "a string")
    return out


def _numbers(values: Sequence[Any], spec: Column) -> NDArray[Any]:
    out = np.empty(len(values), dtype=np.float32)
    for i, value in enumerate(values):
        if value is None:
            if not spec.nullable:
                raise _refuse(i, spec, value, f"{spec.dtype} (not null)")
            out[i] = math.nan
        elif isinstance(value, bool) != (spec.dtype == "bool") or not isinstance(value, int | float):
            raise _refuse(i, spec, value, spec.dtype)
        elif spec.dtype == "int" and value != int(value):
            raise _refuse(i, spec, value, "int")
        elif abs(value) > 3e38:
            raise _refuse(i, spec, value, f"{spec.dtype} of at most 3e38")
        else:
            out[i] = value
    return out


def _instants(values: Sequence[Any], spec: Column) -> NDArray[np.float64]:
    """Times of any date, seconds since the epoch, to the microsecond that the log and the datasets keep."""
    out = np.empty(len(values), dtype=np.float64)
    for i, value in enumerate(values):
        if value is None and spec.nullable:
            out[i] = math.nan
        else:
            try:
                out[i] = round(_seconds(value), 6)
            except (TypeError, ValueError, OverflowError) as exc:
                raise _refuse(i, spec, value, "ISO 8601 or seconds since the epoch") from exc
    return out


def _seconds(value: Any) -> float:
    """Raises: TypeError, ValueError or OverflowError for what is no time of the years 1 to 9999."""
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return datetime.fromtimestamp(value, UTC).timestamp()


def _times(values: Sequence[Any] | None, spec: Column, now: float, n: int) -> NDArray[np.float64]:
    if values is None:
        return np.full(n, now)
    return np.array([_time(v, f"row {i}, column {spec.name!r}", now) for i, v in enumerate(values)])


def _time(value: Any, place: str, now: float) -> float:
    seconds = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
            seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError) as exc:
            raise _no_time(value, place) from exc
    if not 0 <= seconds < now + _AHEAD_S:
        raise _no_time(value, place)
    return seconds


def _no_time(value: Any, place: str) -> BadRequest:
    expected = "ISO 8601 or seconds since the epoch, from 1970 to tomorrow"
    return BadRequest(422, "wrong value", f"{place}: expected {expected}, got {_shown(value)}")
