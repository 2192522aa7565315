"""A schema from data: the `columns:` block that follows from what rows show, and what differs between two datasets.

Inference is conservative. A rule is written only where the evidence carries it, everything else stands beside it as a
comment: an observed maximum is where the data ended, not what the quantity can be.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import yaml

from mlops_ray.config import Column
from mlops_ray.data.evidence import EXACT_KEYS, LONGEST, SAMPLE, ColumnEvidence, Evidence, Numbers
from mlops_ray.errors import DataError

Ranges = Literal["none", "observed", "padded"]
"""What becomes of observed extremes: a comment, the rule itself, or a rule with room on both sides."""

PARSES = 0.999
"""Share of texts that must be numbers (times, truth values) for the column to be one: the rest goes to quarantine, and
ten such columns stay below the default `max_bad_share`."""
SET_MAX = 20
"""Members of a closed set at most: more are no enumeration but an open list."""
SET_ROWS = 10
"""Rows of a closed set's rarest member at least: then one as frequent, but unseen so far, is unlikely (e**-10)."""
PATTERN_ROWS, PATTERN_VALUES = 100, 20
"""Rows and distinct values from which one common shape is no coincidence."""
_COMMON = {"int": 0.05, "float": 0.05, "timestamp": 0.05}
"""Share of the rows from which a single number or time is worth a comment."""
_SHOWN = 40
_EXACT_FLOAT = 2**53
_WIDTH = 118

_WAYS_OUT = {
    "list": "make one column of each item, or a column per statistic of the list",
    "struct": "make a column of each field",
    "map": "make a column of each entry that matters",
    "duration": "turn it into a number of seconds",
    "time": "turn it into a number, such as minutes of the day",
    "binary": "decode it to text, or turn it into numbers",
}
"""For Arrow types that no dtype takes, by what their names contain."""


@dataclass(frozen=True)
class Inferred:
    """What follows for one column: `column` for the project file (None: no dtype fits), and why, as `notes`.

    `key` says whether its values identify rows: "exact" when all are different, "estimate" when none of a sample
    repeats, else None.
    """

    name: str
    column: Column | None
    notes: tuple[str, ...]
    key: Literal["exact", "estimate"] | None = None


def infer(evidence: Evidence, ranges: Ranges = "none") -> tuple[Inferred, ...]:
    """What follows for each column of the evidence, in the source's order.

    Cells that the inferred column refuses (at most one in a thousand, and infinite ones) are counted in its notes.
    """
    return tuple(_inferred(name, found, evidence.n, ranges) for name, found in evidence.columns.items())


def _inferred(name: str, found: ColumnEvidence, n_rows: int, ranges: Ranges) -> Inferred:
    dtype, why = _dtype(found)
    head = _head(found, n_rows)
    if not name:
        return Inferred(name, None, (head, "a column without a name; give it one in the source"))
    if dtype is None:
        return Inferred(name, None, (head, why))
    is_text = dtype == "string"
    refused = 0 if is_text else found.infinite + max(0, found.text.said - _parsed(dtype, found))
    absent = n_rows - found.n
    body: dict[str, Any] = {"name": name, "dtype": dtype}
    notes = [head, *([why] if why else [])]
    nulls = found.nulls + (0 if is_text else found.text.missing)
    if nulls or absent or not found.valid:
        body["nullable"] = True
    if absent:
        body["required"] = False
        notes.append(f"absent from the files of {_share(absent, n_rows)}")
    if refused:
        notes.append(f"{_share(refused, n_rows)} will go to quarantine: {_odd(dtype, found)}")
    notes += _values_note(dtype, found)
    for rules, note in (_range(dtype, found, ranges), _text_rules(dtype, found)):
        body |= rules
        notes += note
    return Inferred(name, Column(**body), tuple(notes), _key(dtype, found, n_rows, nulls))


def _parsed(dtype: str, found: ColumnEvidence) -> int:
    text = found.text
    return {"timestamp": text.times, "bool": text.truths}.get(dtype, text.numbers)


def _dtype(found: ColumnEvidence) -> tuple[str | None, str]:
    """The dtype and why, where that is not plain; None and the way out when no dtype takes the cells."""
    kinds = [kind for kind in found.kinds if kind != "null"]
    families = found.families - {"null"}
    if "other" in families:
        way = next((_WAYS_OUT[what] for kind in kinds for what in _WAYS_OUT if what in kind), "take it apart")
        others = " and ".join(kinds)
        return None, f"{others} is no dtype of ours: {way} (a `kind: python` source can), or leave the column out"
    if not families or (families == {"text"} and not found.valid):
        return "string", "no cell has a value, so the dtype is a guess; leave the column out, or say what it is to be"
    if families == {"text"}:
        return _of_text(found)
    rest = families - {"text"}
    dtype, why = None, ""
    if rest == {"time"}:
        dtype, why = "timestamp", _zones(kinds)
    elif rest <= {"bool", "integer", "number"}:
        dtype, why = _of_numbers(found, kinds)
    several = f"{' and '.join(kinds)} in different parts of the source"
    if "text" not in families:
        return dtype, why if dtype is not None else several + _NO_DTYPE
    written, _ = _of_text(found) if found.text.said else (dtype, "")
    if {written, dtype} == {"int", "float"}:
        return "float", several
    if written == dtype is not None:
        return dtype, several
    return ("string", several) if rest == {"integer"} else (None, several + _NO_DTYPE)


_NO_DTYPE = ": no dtype takes them all; write one of them in the source"


def _of_numbers(found: ColumnEvidence, kinds: Sequence[str]) -> tuple[str, str]:
    high = found.numbers.high
    if found.families <= {"bool", "null", "text"}:
        return "bool", ""
    if "number" in found.families:
        why = [] if kinds == ["double"] else [f"{' and '.join(kinds)} in the source"]
        if found.numbers.n and found.numbers.whole == found.numbers.n:
            why.append("all values are whole; int would refuse a fraction later")
        return "float", "; ".join(why)
    if high is not None and high >= 2**63:
        return "string", f"integers up to {high} are beyond 64 bits with a sign, so they are kept as text"
    return "int", "" if kinds == ["int64"] else f"{' and '.join(kinds)} in the source"


def _zones(kinds: Sequence[str]) -> str:
    return "" if all("tz=UTC" in kind for kind in kinds) else f"{' and '.join(kinds)} in the source; kept in UTC"


def _of_text(found: ColumnEvidence) -> tuple[str, str]:
    text = found.text
    if not text.said:
        words = "empty texts" if text.empty == text.n else 'words for "no value"'
        return "string", f"nothing but {words}, so the dtype is a guess"
    if text.codes:
        return (
            "string",
            f"digits in the source, {_share(text.codes, text.n)} with leading zeros or beyond 64 bits: names",
        )
    if text.numbers >= PARSES * text.said:
        whole = text.integers == text.numbers
        also = "; all values are whole" if not whole and found.numbers.whole == found.numbers.n else ""
        what = "integers" if whole else "numbers"
        return (
            "int" if whole else "float"
        ), f"text in the source; {_part(text.numbers, text.said)} parse as {what}{also}"
    if text.times >= PARSES * text.said:
        return "timestamp", f"text in the source; {_part(text.times, text.said)} parse as ISO 8601 times"
    if text.truths >= PARSES * text.said:
        return "bool", f"text in the source; {_part(text.truths, text.said)} are true or false"
    most = max(text.numbers, text.times, text.truths)
    if 2 * most > text.said:
        what = "numbers" if most == text.numbers else "times" if most == text.times else "true or false"
        return "string", f"{_part(most, text.said)} are {what}, too few to call the column that; clean it, or leave it"
    no_value = text.missing - text.empty
    why = [f"{text.empty:,} cells are empty text, which is a value here"] if text.empty else []
    why += [f'{no_value:,} cells say "NA", "null" or the like, which are values here'] if no_value else []
    return "string", "; ".join(why)


def _odd(dtype: str, found: ColumnEvidence) -> str:
    said = found.text.no_times if dtype == "timestamp" else found.text.no_numbers
    parts = [f"not a {dtype}, such as {', '.join(map(_quoted, said))}"] if said and found.text.said else []
    parts += [f"{found.infinite:,} infinite"] if found.infinite else []
    return "; ".join(parts)


# Rules ----------------------------------------------------------------------------------------------------------------


def _range(dtype: str, found: ColumnEvidence, ranges: Ranges) -> tuple[dict[str, Any], list[str]]:
    low, high = found.numbers.low, found.numbers.high
    if dtype not in ("int", "float") or low is None or high is None:
        return {}, []
    counts = found.values.counts
    if dtype == "int" and (low, high) == (0, 1) and found.values.whole and counts.min() >= SET_ROWS:
        return {"min": 0, "max": 1}, ["a closed set of 0 and 1"]
    if ranges == "none":
        return {}, []
    if max(abs(low), abs(high)) > _EXACT_FLOAT:
        return {}, ["no range: a bound beyond 2**53 is not exact"]
    return ({"min": low, "max": high} if ranges == "observed" else padded(low, high)), []


def padded(low: float, high: float) -> dict[str, float]:
    """`min` and `max` with half of the observed width on each side, rounded outwards to two digits.

    A side does not cross zero: what was never negative stays so. Sides beyond float64 are left out.
    """
    room = (high - low) / 2 or abs(high) / 2 or 1.0
    bottom, top = _outwards(low - room, math.floor), _outwards(high + room, math.ceil)
    bottom = max(bottom, 0.0) if low >= 0 else bottom
    top = min(top, 0.0) if high <= 0 else top
    return {name: side for name, side in (("min", bottom), ("max", top)) if math.isfinite(side)}


def _outwards(value: float, rounded: Callable[[float], int]) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    digits = 1 - math.floor(math.log10(abs(value)))
    if not -300 < digits < 300:
        return value
    scaled = rounded(value * 10.0**digits if digits >= 0 else value / 10.0**-digits)
    return float(scaled / 10.0**digits if digits >= 0 else scaled * 10.0**-digits)


def _text_rules(dtype: str, found: ColumnEvidence) -> tuple[dict[str, Any], list[str]]:
    """A closed set when few values are all well known; else a pattern when all values share one shape."""
    values, text = found.values, found.text
    if dtype != "string" or text.n != found.valid or not text.n:
        return {}, []
    pairs = values.most_frequent()
    if values.whole and 1 < len(pairs) <= SET_MAX and all(len(value) <= LONGEST for value, _ in pairs):
        rarest, rows = pairs[-1]
        if rows >= SET_ROWS:
            listed = sorted(value for value, _ in pairs)
            why = f"a closed set, the rarest in {_rows(rows)}; take `values` out if new ones are legal"
            return {"values": listed}, [why]
        if found.valid > SET_ROWS * len(pairs):
            return {}, [f"no closed set: {_quoted(rarest)} stands in {_rows(rows)} only, so others may be to come"]
    pattern = text.shape.pattern() if text.shape is not None else None
    if pattern is not None and text.n >= PATTERN_ROWS and values.n >= PATTERN_VALUES:
        return {"pattern": pattern}, ["all values have this one shape"]
    return {}, []


def _key(dtype: str | None, found: ColumnEvidence, n_rows: int, nulls: int) -> Literal["exact", "estimate"] | None:
    """Whether the values identify rows. Floats and times are no keys."""
    keys, text = found.keys, found.text
    if dtype not in ("string", "int") or nulls or n_rows < 2 or not found.n == found.valid == keys.n == n_rows:
        return None
    if text.n not in (0, found.valid):
        return None  # one number may stand there as text and as a number
    if text.n and dtype == "int" and (text.shape is None or text.shape.frame != "w"):
        return None  # " 7" and "+7" are 7 too
    if keys.repeats or (found.values.counts > 1).any():
        return None
    return "exact" if keys.n <= EXACT_KEYS else "estimate"


# Notes ----------------------------------------------------------------------------------------------------------------


def _head(found: ColumnEvidence, n_rows: int) -> str:
    parts = ["no nulls" if not found.nulls else f"{_share(found.nulls, n_rows)} null"]
    keys, values = found.keys, found.values
    if found.valid > 1 and keys.n == found.valid == keys.hashes.size:
        parts.append("all values are different")
    elif found.valid:
        parts.append(f"{values.n:,} distinct" if values.whole else f"about {min(values.n, found.valid):,} distinct")
    return ", ".join(parts)


def _values_note(dtype: str, found: ColumnEvidence) -> list[str]:
    notes = []
    if dtype in ("int", "float") and found.numbers.n:
        notes.append(_extremes(found.numbers, _number))
    if dtype == "timestamp" and found.times.n:
        notes.append(_extremes(found.times, _instant))
    pairs = found.values.most_frequent()
    if not pairs:
        return notes
    if found.values.whole and len(pairs) == 1:
        notes.append(f"constant: always {_quoted(pairs[0][0])}")
    elif found.values.whole and pairs[0][1] >= max(2, _COMMON.get(dtype, 0) * found.valid):
        shown = ", ".join(f"{_quoted(value)} {_part(n, found.valid)}" for value, n in pairs[:5])
        notes.append(f"most frequent: {shown}" + (", ..." if len(pairs) > 5 else ""))
    elif dtype == "string":
        notes.append("for example " + ", ".join(map(_quoted, sorted(value for value, _ in pairs[:3]))))
    return notes


def _extremes(numbers: Numbers, shown: Callable[[float], str]) -> str:
    assert numbers.low is not None
    assert numbers.high is not None
    at = [f"{shown(numbers.spread.quantile(share))} ({100 * share:g} %)" for share in (0.01, 0.5, 0.99)]
    return f"from {shown(numbers.low)} to {shown(numbers.high)}; quantiles {', '.join(at)}"


def _number(value: float) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:.6g}"


def _instant(microseconds: float) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return f"{microseconds / 1e6:.6g} s after 1970"


def _rows(n: int) -> str:
    return f"{n:,} row{'s' * (n != 1)}"


def _share(n: int, of: int) -> str:
    return f"{_rows(n)} ({_part(n, of)})"


def _part(n: int, of: int) -> str:
    """A share in per cent that is 100 or 0 only where it is exactly that."""
    if n in (0, of):
        return f"{100 * n // max(of, 1)} %"
    return f"{min(max(100 * n / of, 0.01), 99.99):.2f} %"


def _quoted(text: str) -> str:
    """As it stands in a comment: short, on one line, nothing that YAML does not take."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + "'"


# YAML -----------------------------------------------------------------------------------------------------------------


_HEADS: dict[Ranges, str] = {
    "none": "Ranges stand as comments: what these rows happened to show is no limit of what the quantity can be.",
    "observed": "min and max are the observed ones: the next legal row may lie outside. Widen them.",
    "padded": "min and max are the observed ones with half of the width on each side: say what the quantity can be.",
}


def to_yaml(inferred: Sequence[Inferred], where: str, n_rows: int, ranges: Ranges = "none") -> str:
    """The `columns:` block of a project file, each column under its evidence; candidate keys last, as comments.

    Args: `where` names the source, `ranges` is what `infer` was asked for. The text loads as the block of a project
    file, or as an overlay over one.
    Raises: DataError when no column has a dtype.
    """
    if not any(found.column for found in inferred):
        raise DataError(where, "has no column that a dtype takes" if inferred else "has no columns")
    head = f"Inferred from {_rows(n_rows)} of {_plain(where)}. Every rule is a proposal to be read. {_HEADS[ranges]}"
    lines = [*_comment(head, ""), "columns:"]
    for i, found in enumerate(inferred):
        lines += [""] if i else []
        if found.column is None:
            lines += _comment(f"{_quoted(found.name)} is left out: {'; '.join(reversed(found.notes))}", "  ")
            continue
        for note in found.notes:
            lines += _comment(note, "  ")
        lines.append(f"  - {_flow(found.column)}")
    keys = [found for found in inferred if found.key is not None]
    if keys:
        lines += [
            "",
            "# Of these no value repeats: each could be the `key`, and one of them what no two rows may share.",
            "# validation:",
        ]
    for found in keys:
        proof = "all values are different"
        if found.key == "estimate":
            # Rule of three: none of m sampled values repeats, so below 3 / m of all do, with 95 % confidence.
            proof = f"none of {SAMPLE:,} sampled values repeats, so fewer than {3 / SAMPLE:.2%} do (95 % confidence)"
        lines.append(f"#   unique: [{_scalar(found.name)}] # {proof}")
    return "\n".join(lines) + "\n"


def _flow(column: Column) -> str:
    body = column.model_dump(mode="json", exclude_defaults=True)
    for side in ("min", "max"):
        if side in body and body[side] == int(body[side]) and abs(body[side]) < _EXACT_FLOAT:
            body[side] = int(body[side])
    text = yaml.safe_dump(body, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return re.sub(r"^\{(.*)\}\n$", r"{ \1 }", text)


def _scalar(name: str) -> str:
    return yaml.safe_dump([name], default_flow_style=True, allow_unicode=True, width=math.inf).strip()[1:-1]


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent) - 2, break_on_hyphens=False)]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


# Difference -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One difference: what about which column, how it was and is (JSON-friendly), and how many rows show it."""

    column: str
    what: Literal["added", "removed", "dtype", "presence", "nullability", "range", "categories", "uniqueness"]
    before: Any
    after: Any
    detail: str


def diff(before: Evidence, after: Evidence) -> tuple[Change, ...]:
    """What differs between the schemas of two datasets, in the order of `after`, removed columns last.

    Values are compared where they repeat (categories, not names) and are few enough to be counted one by one.
    """
    changes: list[Change] = []
    for name, new in after.columns.items():
        if name in before.columns:
            changes += _changes(name, before.columns[name], new, before.n, after.n)
        else:
            changes.append(Change(name, "added", None, _dtype(new)[0], _head(new, after.n)))
    for name, old in before.columns.items():
        if name not in after.columns:
            changes.append(Change(name, "removed", _dtype(old)[0], None, _head(old, before.n)))
    return tuple(changes)


def _changes(name: str, old: ColumnEvidence, new: ColumnEvidence, n_old: int, n_new: int) -> list[Change]:
    changes = []
    was, now = _dtype(old)[0], _dtype(new)[0]
    kinds = [" and ".join(k for k in found.kinds if k != "null") for found in (old, new)]
    if old.valid and new.valid and (was != now or kinds[0] != kinds[1]):
        changes.append(Change(name, "dtype", was, now, f"{kinds[0]} was in the source, {kinds[1]} is"))
    absent = n_old - old.n, n_new - new.n
    if bool(absent[0]) != bool(absent[1]):
        changes.append(Change(name, "presence", *absent, f"absent from {absent[0]:,} rows, now from {absent[1]:,}"))
    nulls = [found.nulls + (0 if _dtype(found)[0] == "string" else found.text.missing) for found in (old, new)]
    if bool(nulls[0]) != bool(nulls[1]) and n_old and n_new:
        says = f"{_share(nulls[0], n_old)} were null, {_share(nulls[1], n_new)} are"
        changes.append(Change(name, "nullability", nulls[0], nulls[1], says))
    if was == now and was in ("int", "float"):
        changes += _grown(name, old.numbers, new.numbers, n_new, _number)
    if was == now == "timestamp":
        changes += _grown(name, old.times, new.times, n_new, _instant)
    if was == now == "string":
        changes += _categories(name, old, new)
    unique = _key(was, old, n_old, nulls[0]), _key(now, new, n_new, nulls[1])
    if was == now and bool(unique[0]) != bool(unique[1]) and min(n_old, n_new) > 1:
        says = "all values were different, now some repeat" if unique[0] else "values repeated, now all are different"
        changes.append(Change(name, "uniqueness", bool(unique[0]), bool(unique[1]), says))
    return changes


def _grown(name: str, old: Numbers, new: Numbers, n_new: int, shown: Callable[[float], str]) -> list[Change]:
    """The observed range has grown; one that shrank says nothing, for a smaller sample has a smaller range."""
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return []
    about = "" if new.spread.level == 0 else "about "
    parts = []
    if new.low < old.low:
        parts.append(f"{about}{_share(max(1, new.spread.below(old.low)), n_new)} below")
    if new.high > old.high:
        parts.append(f"{about}{_share(max(1, new.spread.above(old.high)), n_new)} above")
    was, now = [shown(old.low), shown(old.high)], [shown(new.low), shown(new.high)]
    return [Change(name, "range", was, now, ", ".join(parts))] if parts else []


def _categories(name: str, old: ColumnEvidence, new: ColumnEvidence) -> list[Change]:
    if not (old.values.whole and new.values.whole):
        return []
    if 2 * old.values.n > old.valid or 2 * new.values.n > new.valid:
        return []  # names, not categories
    was, now = dict(old.values.most_frequent()), dict(new.values.most_frequent())
    came = {value: n for value, n in now.items() if value not in was}
    went = {value: n for value, n in was.items() if value not in now}
    if not came and not went:
        return []
    parts = [
        f"{len(listed):,} {what}: " + ", ".join(f"{_quoted(v)} {n:,}" for v, n in list(listed.items())[:5])
        for what, listed in (("new", came), ("vanished", went))
        if listed
    ]
    return [Change(name, "categories", went, came, "; ".join(parts))]
