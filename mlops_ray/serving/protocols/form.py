"""What requests to a project look like, and tables of values checked against it.

Protocols read bytes; what comes out of them, lists of JSON values or typed arrays by column, becomes a `Batch` here.
A wrong type, a missing or an unknown column is refused with row and column named; null is taken where the project file
says `nullable`, absence where it says `required: false`. With `serving.request_rules: all`, ranges, sets and patterns
hold as well. The time may be absent, which means now; so may the key, unless it is a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Column, Project, Task
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Batch
from mlops_ray.serving.protocols import typed
from mlops_ray.serving.protocols.cells import (
    Check,
    Rule,
    cells,
    checker,
    hold,
    key_checker,
    kind,
    rules,
    shown,
    time_checker,
)


@dataclass(frozen=True)
class Form:
    """What requests to a project look like, worked out once: the columns in the file's order, and each one's rules."""

    project: str
    task: Task
    columns: tuple[Column, ...]
    names: tuple[str, ...]
    key: Column
    event_time: Column
    features: tuple[str, ...]
    rules: dict[str, tuple[Rule, ...]]
    """By column; empty where `serving.request_rules` is `types`."""
    max_rows: int
    max_bytes: int
    """Of a body, once inflated."""
    explain: int
    """Contributions that a request may ask for, at most."""
    business: tuple[str, ...]
    """Numbers that feedback may tell by name."""
    numbers: tuple[tuple[str, Check], ...]
    """Features that the model takes as float32, each with the check of one JSON value."""
    others: tuple[tuple[str, Check, type], ...]
    """Features that are texts or times, with their check and NumPy dtype; not the event time."""
    key_check: Check

    @classmethod
    def of(cls, project: Project) -> Form:
        """The form of `project`'s requests."""
        columns = project.columns_in("serving")
        held = {c.name: rules(c) if project.serving.request_rules == "all" else () for c in columns}
        features = project.features.inputs
        inputs = [c for c in columns if c.name in features and c.name != project.event_time]
        key = project.column(project.key)
        dtypes: dict[str, type] = {"string": object, "timestamp": np.float64}
        return cls(
            project=project.project,
            task=project.task,
            columns=columns,
            names=tuple(c.name for c in columns),
            key=key,
            event_time=project.column(project.event_time),
            features=features,
            rules=held,
            max_rows=project.serving.max_rows,
            max_bytes=int(project.serving.max_body_mb * 1024 * 1024),
            explain=project.serving.explain,
            business=project.rollout.business,
            numbers=tuple((c.name, checker(c, held[c.name])) for c in inputs if c.dtype not in dtypes),
            others=tuple((c.name, checker(c, held[c.name]), dtypes[c.dtype]) for c in inputs if c.dtype in dtypes),
            key_check=key_checker(key, held[key.name]),
        )

    def needs(self, spec: Column) -> bool:
        """Whether a request without this column is refused."""
        if spec.name in (self.key.name, self.event_time.name):
            return spec.name == self.key.name and spec.name in self.features
        return spec.required

    @property
    def dtypes(self) -> dict[str, str]:
        """By column, as in the project file."""
        return {spec.name: spec.dtype for spec in self.columns}

    @property
    def asks_for(self) -> str:
        """The columns' names, for messages."""
        return ", ".join(self.names)


def batch_of_row(row: Mapping[str, Any], form: Form, *, now: float) -> Batch:
    """One row of JSON values: the way of most requests. Raises: BadRequest (422)."""
    columns: dict[str, NDArray[Any]] = {}
    n_known = len(form.numbers) + len(form.others)
    try:
        values = [check(row[name], 0) for name, check in form.numbers]
        for name, check, dtype in form.others:
            cell: NDArray[Any] = np.empty(1, dtype)
            cell[0] = check(row[name], 0)
            columns[name] = cell
    except KeyError:
        return batch_of_lists(
            {name: (value,) for name, value in row.items()}, form, now=now
        )  # which says what is amiss
    key, event_time = form.key.name, form.event_time.name
    keys, time = None, now
    if key in row:
        keys = (form.key_check(row[key], 0),)
        n_known += key not in form.features
    if event_time in row:
        time = time_checker(form.event_time, now)(row[event_time], 0)
        n_known += 1
    if len(row) != n_known:
        raise _unknown(row, form, "rows[0]")
    numbers = np.array(values, np.float32)[:, np.newaxis]
    columns.update(zip([name for name, _ in form.numbers], numbers, strict=True))
    times = np.array((time,))
    if event_time in form.features:
        columns[event_time] = np.round(times, 6)  # microseconds, as the log keeps them
    return Batch(keys, times, {name: columns[name] for name in form.features})


def batch_of_rows(rows: Sequence[Any], form: Form, *, now: float) -> Batch:
    """JSON objects, one a row. `now` stands in for the event time where the rows carry none.

    Raises: BadRequest (422) naming row, column, what was expected and what came; (413) for too many rows.
    """
    _count(len(rows), form)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRequest(422, "wrong type", f"rows[{i}] must be an object, not {kind(row)}", {"row": i})
    if len(rows) == 1:
        return batch_of_row(rows[0], form, now=now)
    return batch_of_lists(_transposed(rows, form), form, now=now)


def batch_of_lists(table: Mapping[str, Sequence[Any]], form: Form, *, now: float) -> Batch:
    """Columns of JSON values, as `json.loads` gives them: exact types, no NaN.

    Args: `now` stands in for the event time where there is no such column.
    Raises: BadRequest (422) naming row, column, what was expected and what came; (413) for too many rows.
    """
    _known(table, form)
    for name, values in table.items():
        if not isinstance(values, list | tuple):
            raise BadRequest(422, "wrong type", f"columns.{name} must be a list, not {kind(values)}", {"column": name})
    n = _sized(table, form)
    if n == 1 and all(spec.name in table for spec in form.columns if form.needs(spec) or not spec.required):
        return batch_of_row({name: values[0] for name, values in table.items()}, form, now=now)
    keys, times = None, np.full(n, now)
    columns = _absent(table, form, n)
    for spec, values in _present(table, form):
        name, held = spec.name, form.rules[spec.name]
        if spec is form.key:
            check = key_checker(spec, ())
            keys = tuple([check(value, i) for i, value in enumerate(values)])
            for rule in held:
                hold(rule, values, spec)
        if spec is form.event_time:
            check = time_checker(spec, now)
            times = np.array([check(value, i) for i, value in enumerate(values)])
        elif name in form.features:
            columns[name] = cells(values, spec, held)
    return _batch(keys, times, columns, form)


def batch_of_arrays(table: Mapping[str, Any], form: Form, *, now: float) -> Batch:
    """Typed columns: NumPy arrays, pyarrow arrays or chunked arrays of shape (n,), checked whole.

    NaN, NaT and Arrow's nulls mean missing where the column is nullable. Integers of any width, floats, decimals,
    booleans, strings of every encoding and layout, dictionaries of them, and times of any unit and zone are taken; a
    number that float32 does not hold is refused. An array that comes from outside must have been validated in full.

    Args: `now` stands in for the event time where there is no such column.
    Raises: BadRequest (422) naming row, column, what was expected and what came; (413) for too many rows.
    """
    _known(table, form)
    n = _sized(table, form)
    keys, times = None, np.full(n, now)
    columns = _absent(table, form, n)
    for spec, values in _present(table, form):
        name, held = spec.name, form.rules[spec.name]
        if spec is form.key:
            keys = typed.keys(values, spec, held)
        if spec is form.event_time:
            times = typed.past(values, spec, now)
        elif name in form.features:
            columns[name] = typed.column(values, spec, held)
    return _batch(keys, times, columns, form)


def _absent(table: Mapping[str, Any], form: Form, n: int) -> dict[str, NDArray[Any]]:
    """Features that `table` may lack and does, as missing values. Raises: BadRequest (422) for one that it needs."""
    columns: dict[str, NDArray[Any]] = {}
    for spec in form.columns:
        if spec.name in table:
            continue
        if form.needs(spec):
            raise _missing(spec)
        if spec.name in form.features and spec is not form.event_time:
            columns[spec.name] = cells((None,) * n, spec, ())
    return columns


def _present(table: Mapping[str, Any], form: Form) -> list[tuple[Column, Any]]:
    """The columns that `table` has, in the form's order."""
    return [(spec, table[spec.name]) for spec in form.columns if spec.name in table]


def _batch(
    keys: tuple[str, ...] | None, times: NDArray[np.float64], columns: dict[str, NDArray[Any]], form: Form
) -> Batch:
    if form.event_time.name in form.features:
        columns[form.event_time.name] = np.round(times, 6)
    return Batch(keys, times, {name: columns[name] for name in form.features})


def _transposed(rows: Sequence[dict[str, Any]], form: Form) -> dict[str, Sequence[Any]]:
    """Objects to columns. A column that some rows have and others not is null in these where it may be absent."""
    names = tuple(rows[0])
    if len(names) > 1:
        try:
            cut = list(zip(*map(itemgetter(*names), rows), strict=True))
        except KeyError:
            cut = []
        if cut and max(map(len, rows)) == len(names):  # every row has the first one's columns, and no others
            return dict(zip(names, cut, strict=True))
    allowed = set(form.names)
    for i, row in enumerate(rows):
        if not row.keys() <= allowed:
            raise _unknown(row, form, f"rows[{i}]")
    table: dict[str, Sequence[Any]] = {}
    for spec in form.columns:
        found = [spec.name in row for row in rows]
        if not any(found):
            continue
        if not all(found) and (spec.required or form.needs(spec)):
            i = found.index(False)
            members = {"row": i, "column": spec.name, "expected": spec.dtype}
            raise BadRequest(422, "missing column", f"rows[{i}]: column {spec.name!r} is missing", members)
        table[spec.name] = [row.get(spec.name) for row in rows]
    if not table:
        raise BadRequest(422, "missing column", f"rows[0] is empty; expected {form.asks_for}", {"row": 0})
    return table


def _known(table: Mapping[str, Any], form: Form) -> None:
    if not table.keys() <= set(form.names):
        raise _unknown(table, form, "columns")
    if not table:
        raise BadRequest(422, "missing column", f"there is no column; expected {form.asks_for}")


def _sized(table: Mapping[str, Any], form: Form) -> int:
    """Rows of a table whose columns are equally long, and not too many."""
    sizes = {name: len(values) for name, values in table.items()}
    n = max(sizes.values())
    for name, size in sizes.items():
        if size != n:
            detail = f"columns.{name} has {size} values, another column {n}"
            raise BadRequest(422, "uneven columns", detail, {"column": name, "expected": n, "received": size})
    _count(n, form)
    return n


def _count(n: int, form: Form) -> None:
    if n == 0:
        raise BadRequest(422, "no rows", "there are no rows; send at least one")
    if n > form.max_rows:
        members = {"expected": form.max_rows, "received": n}
        raise BadRequest(413, "too many rows", f"{n} rows; send at most {form.max_rows} at a time", members)


def _missing(spec: Column) -> BadRequest:
    members = {"column": spec.name, "expected": spec.dtype}
    return BadRequest(422, "missing column", f"column {spec.name!r} ({spec.dtype}) is missing", members)


def _unknown(given: Mapping[str, Any], form: Form, place: str) -> BadRequest:
    extra = shown(min(set(given) - set(form.names)))
    detail = f"{place}: {extra} is not a column; expected {form.asks_for}"
    return BadRequest(422, "unknown column", detail, {"received": extra})
