"""One column of a request: which values it takes, what the model is given for them, and how a wrong one is told.

JSON values are checked here, a cell at a time (`checker`) or a list of them (`cells`); `typed` does the same for
arrays. Both give numbers as float32 (missing NaN), strings as objects (missing ""), times as float64 seconds since the
epoch (missing NaN).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Column
from mlops_ray.errors import BadRequest

LARGEST = 3e38
"""Largest size of a number: what a model's float32 holds, give or take its last digits."""
A_TIME = "ISO 8601 or seconds since the epoch"
A_PAST_TIME = "ISO 8601 or seconds since the epoch, from 1970 to tomorrow"
# Seconds since the epoch at which year 1 begins, and year 10000: what Python's datetime and the log can date.
FIRST_S, END_S = -62_135_596_800.0, 253_402_300_800.0
# How far ahead of the clock a time may lie: one from the far future would move decision time there, for good.
AHEAD_S = 86_400.0
# Members of a closed set that a message lists.
_LISTED = 10

Check = Callable[[Any, int], Any]
"""What the model is given for a value, which stands in that row. Raises: BadRequest (422)."""


@dataclass(frozen=True)
class Rule:
    """What a value that is there must keep. `name` is the rule's id, as in quarantine; `says` shows its bounds."""

    name: str
    says: str
    keeps: Callable[[Any], Any]
    """Truthy for a value that keeps the rule."""
    vectorised: bool
    """Whether `keeps` takes an array of numbers as well, and answers with booleans."""


def rules(spec: Column) -> tuple[Rule, ...]:
    """The column's rules on values, under the names that they have in quarantine."""
    found = []
    if spec.min is not None or spec.max is not None:
        low = -math.inf if spec.min is None else spec.min
        high = math.inf if spec.max is None else spec.max
        says = f"{low:g} to {high:g}"
        found.append(Rule(f"{spec.name}.range", says, lambda value: (low <= value) & (value <= high), vectorised=True))
    if spec.values is not None:
        listed = ", ".join(spec.values[:_LISTED]) + (", ..." if len(spec.values) > _LISTED else "")
        members = frozenset(spec.values)
        found.append(Rule(f"{spec.name}.set", f"one of {listed}", members.__contains__, vectorised=False))
    if spec.pattern is not None:
        matches = re.compile(spec.pattern).fullmatch
        found.append(Rule(f"{spec.name}.pattern", spec.pattern, matches, vectorised=False))
    return tuple(found)


# Messages -------------------------------------------------------------------------------------------------------------


def kind(value: Any) -> str:
    """JSON's name for the value's type, with its article."""
    names = {type(None): "null", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


def shown(value: Any) -> str:
    """The value in at most 60 characters, near to how JSON writes it."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    text = kind(value) if isinstance(value, list | dict) else repr(value)  # repr() of deep nesting raises
    return text if len(text) <= 60 else text[:57] + "..."


def refusal(row: int, spec: Column, value: Any, expected: str) -> BadRequest:
    """A value that the column does not take."""
    received = shown(value)
    members = {"row": row, "column": spec.name, "expected": expected, "received": received}
    detail = f"row {row}, column {spec.name!r}: expected {expected}, got {received}"
    return BadRequest(422, "wrong value", detail, members)


def broken(rule: Rule, row: int, spec: Column, value: Any) -> BadRequest:
    """A value of the right type that breaks a rule."""
    received = shown(value)
    members = {"row": row, "column": spec.name, "expected": rule.says, "received": received, "rule": rule.name}
    detail = f"row {row}, column {spec.name!r}: {received} breaks {rule.name} ({rule.says})"
    return BadRequest(422, "rule broken", detail, members)


# One value ------------------------------------------------------------------------------------------------------------


def checker(spec: Column, held: Sequence[Rule]) -> Check:
    """The check of one JSON value of a column of inputs, rules included."""
    check = {"string": _string, "float": _float, "int": _int, "bool": _bool, "timestamp": _instant}[spec.dtype](spec)
    return _ruled(check, spec, held) if held else check


MOST_KEY = 1_000
"""Characters of an entity key, or of a prediction id: they stand in every row of log and labels."""
A_KEY = f"a key: 1 to {MOST_KEY:,} characters"


def key_checker(spec: Column, held: Sequence[Rule]) -> Check:
    """The check of one JSON value of the key's column; gives the key as text."""

    def check(value: Any, row: int) -> str:
        if type(value) is str and 1 <= len(value) <= MOST_KEY and spec.dtype == "string":
            return value
        if spec.dtype == "int" and type(whole := integer(value)) is int:
            return str(whole)
        raise refusal(row, spec, value, expected)

    expected = A_KEY if spec.dtype == "string" else "a key: an integer"
    return _ruled(check, spec, held) if held else check


def integer(value: Any) -> Any:
    """The value; as an int when it is a float without a fraction, for JSON has one kind of number (JSON Schema, 6.1.1).

    A float so large that it may have lost digits stays one."""
    return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


def time_checker(spec: Column, now: float) -> Check:
    """The check of one JSON value of the event time's column; gives seconds since the epoch."""

    def check(value: Any, row: int) -> float:
        found = past(value, now)
        if found is None:
            raise refusal(row, spec, value, A_PAST_TIME)
        return found

    return check


def past(value: Any, now: float) -> float | None:
    """The time, seconds since the epoch; None for what is no time from 1970 to tomorrow."""
    try:
        found = seconds(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 <= found < now + AHEAD_S else None


def seconds(value: Any) -> float:
    """A JSON value as seconds since the epoch; text without a zone is UTC.

    Raises: TypeError, ValueError or OverflowError for what is no time of the years 1 to 9999.
    """
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        found = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    else:
        found = float(value)
    if not FIRST_S <= found < END_S:
        raise ValueError(value)
    return found


def _ruled(check: Check, spec: Column, held: Sequence[Rule]) -> Check:
    def ruled(value: Any, row: int) -> Any:
        taken = check(value, row)
        if value is not None:
            for rule in held:
                if not rule.keeps(value):
                    raise broken(rule, row, spec, value)
        return taken

    return ruled


def _absent(spec: Column, value: Any, row: int, expected: str, missing: Any) -> Any:
    """What stands for null; for anything else, and for null where it is not allowed, the refusal."""
    if value is not None:
        raise refusal(row, spec, value, expected)
    if not spec.nullable:
        raise refusal(row, spec, value, f"{expected} (not null)")
    return missing


def _float(spec: Column) -> Check:
    def check(value: Any, row: int) -> float:
        if type(value) is float or type(value) is int:
            if -LARGEST <= value <= LARGEST:
                return value
            raise refusal(row, spec, value, "float of at most 3e38")
        return _absent(spec, value, row, "float", math.nan)  # type: ignore[no-any-return]  # NaN, or it raises

    return check


def _int(spec: Column) -> Check:
    def check(value: Any, row: int) -> float:
        if type(value) is int or (type(value) is float and value.is_integer()):
            if -LARGEST <= value <= LARGEST:
                return value
            raise refusal(row, spec, value, "int of at most 3e38")
        return _absent(spec, value, row, "int", math.nan)  # type: ignore[no-any-return]  # NaN, or it raises

    return check


def _bool(spec: Column) -> Check:
    def check(value: Any, row: int) -> float:
        if value is True:
            return 1.0
        if value is False:
            return 0.0
        return _absent(spec, value, row, "bool", math.nan)  # type: ignore[no-any-return]  # NaN, or it raises

    return check


def _string(spec: Column) -> Check:
    expected = "a string" if not spec.nullable else "a string or null"

    def check(value: Any, row: int) -> str:
        if type(value) is str:
            return value
        return _absent(spec, value, row, expected if value is not None else "a string", "")  # type: ignore[no-any-return]  # "", or it raises

    return check


def _instant(spec: Column) -> Check:
    def check(value: Any, row: int) -> float:
        if value is None and spec.nullable:
            return math.nan
        try:
            return round(seconds(value), 6)  # microseconds, as the log and the datasets keep them
        except (TypeError, ValueError, OverflowError) as exc:
            raise refusal(row, spec, value, A_TIME) from exc

    return check


# Many values ----------------------------------------------------------------------------------------------------------

_KINDS: dict[str, frozenset[type]] = {
    "float": frozenset((float, int)),
    "int": frozenset((float, int)),
    "bool": frozenset((bool,)),
    "string": frozenset((str,)),
}


def cells(values: Sequence[Any], spec: Column, held: Sequence[Rule]) -> NDArray[Any]:
    """JSON values of a column of inputs, shape (n,). Raises: BadRequest (422) for the first that it does not take."""
    taken = _whole(values, spec)
    if taken is None:  # something is wrong, or the dtype has no quick way: value by value, which names the row
        check = checker(spec, ())
        dtype = {"string": object, "timestamp": np.float64}.get(spec.dtype, np.float32)
        taken = np.fromiter((check(value, i) for i, value in enumerate(values)), dtype, len(values))
    for rule in held:
        hold(rule, values, spec)
    return taken


def hold(rule: Rule, values: Sequence[Any], spec: Column) -> None:
    """Raises: BadRequest (422) for the first of `values`, already of the column's dtype, that breaks `rule`."""
    wrong = {value for value in set(values) if value is not None and not rule.keeps(value)}
    if wrong:
        row = next(i for i, value in enumerate(values) if value in wrong)
        raise broken(rule, row, spec, values[row])


def _whole(values: Sequence[Any], spec: Column) -> NDArray[Any] | None:
    """The column in one go where all is well; None where a closer look is needed."""
    if spec.dtype == "timestamp":
        return None
    types = set(map(type, values))
    missing = 0
    if spec.nullable and type(None) in types:
        types.discard(type(None))
        missing = list(values).count(None)
        values = [("" if spec.dtype == "string" else math.nan) if value is None else value for value in values]
    if not types <= _KINDS[spec.dtype]:
        return None
    if spec.dtype == "string":
        return np.fromiter(values, object, len(values))
    if spec.dtype == "bool":
        return np.fromiter(values, np.float32, len(values))
    try:
        numbers = np.fromiter(values, np.float64, len(values))
    except OverflowError:  # an integer beyond float64
        return None
    absent = np.isnan(numbers)
    fits = absent | (np.abs(numbers) <= LARGEST)
    if spec.dtype == "int":
        fits &= absent | (numbers == np.trunc(numbers))
    if absent.sum() != missing or not fits.all():
        return None
    return numbers.astype(np.float32)
