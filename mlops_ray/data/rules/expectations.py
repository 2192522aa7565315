"""The rules of the project file over rows, and the report of what they found.

The rules of `columns:` have the ids "<column>.<what>": dtype (the cell could not be cast), null, range, set, pattern;
the expectations about rows have their own. One pass; a bad row carries every rule that it broke. What can only be found
over all rows stands in `key_rules.py` and `facts.py`; `findings.py` draws the conclusion.

On clean data a rule costs about one Arrow kernel: the smallest and largest value, a look at the distinct texts. Masks
are made only of what broke.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Column, Project
from mlops_ray.config.expectations import (
    Between,
    ColumnPair,
    InSet,
    IsNull,
    LengthBetween,
    Matches,
    NotNull,
    Row,
    RowLevel,
    instant,
)
from mlops_ray.config.expressions import Expression, parse
from mlops_ray.data.cells import as_json, as_python
from mlops_ray.data.rules.facts import Facts, fold, wanted_cells
from mlops_ray.data.rules.key_rules import UNIQUE
from mlops_ray.data.rules.row_expressions import evaluate, matching
from mlops_ray.data.schema import Mask, conform

__all__ = [
    "EXAMPLES",
    "QUARANTINE",
    "UNIQUE",
    "Checked",
    "Report",
    "about",
    "broken",
    "check",
    "examples",
    "quarantined",
]

EXAMPLES = 3
"""Examples per rule in a report: enough to see the pattern, few enough to read."""
QUARANTINE = pa.schema([("key", pa.string()), ("rules", pa.list_(pa.string())), ("row", pa.string())])
"""Columns of the quarantine: the row's key, the rules that it broke, and the row as it came, as JSON. They are the same
for every project file, so that rows stay readable when `columns:` changes."""
_LONGEST = 80
_SAMPLE = 2048
"""Texts looked at to tell whether a column repeats its texts; a wrong guess costs time, never another result."""


@dataclass(frozen=True)
class Report:
    """What validation saw. n_read = n_kept + n_quarantined always. Reports of disjoint shards add.

    `broken`: rows per rule id (a row may break several). `examples`: the first few by text order, "key: value".
    `judged`: per id of an expectation about rows or keys, the rows that it was about.
    """

    n_read: int = 0
    n_kept: int = 0
    n_quarantined: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Report) -> Report:
        rules = sorted(self.broken.keys() | other.broken.keys())
        about = sorted(self.judged.keys() | other.judged.keys())
        return Report(
            self.n_read + other.n_read,
            self.n_kept + other.n_kept,
            self.n_quarantined + other.n_quarantined,
            {r: self.broken.get(r, 0) + other.broken.get(r, 0) for r in rules},
            {r: tuple(sorted(self.examples.get(r, ()) + other.examples.get(r, ()))[:EXAMPLES]) for r in rules},
            {r: self.judged.get(r, 0) + other.judged.get(r, 0) for r in about},
        )

    @property
    def bad_share(self) -> float:
        """Share of the read rows that went to quarantine; 0 without rows."""
        return self.n_quarantined / self.n_read if self.n_read else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form."""
        return {
            "n_read": self.n_read,
            "n_kept": self.n_kept,
            "n_quarantined": self.n_quarantined,
            "broken": dict(self.broken),
            "examples": {rule: list(found) for rule, found in self.examples.items()},
            "judged": dict(self.judged),
        }

    def __str__(self) -> str:
        head = f"{self.n_read} rows read, {self.n_kept} kept, {self.n_quarantined} in quarantine"
        rules = []
        for rule, n in self.broken.items():
            shown = "; ".join(self.examples.get(rule, ()))
            rules.append(f"{rule}: {n}" + (f" (for example {shown})" if shown else ""))
        return "\n  ".join([head, *rules])


@dataclass(frozen=True, eq=False)
class Checked:
    """Rows of one block, sorted out: `good` has the declared columns, `bad` those of `QUARANTINE`.

    `facts` are those of the good rows; they add in the source's order.
    """

    good: pa.Table
    bad: pa.Table
    report: Report
    facts: Facts


def check(project: Project, raw: pa.Table) -> Checked:
    """Sorts the rows of one block of the source into good and bad ones.

    Raises: DataError when a declared column is missing or of another dtype altogether.
    """
    table, uncast = conform(raw, project.columns)
    cells = _Cells(table)
    rules = dict(_column_rules(project, cells))
    for name, mask in uncast.items():
        # A cell that is null because it could not be cast broke one rule, not two; so below, for `not_null`.
        missing = rules.pop(name.removesuffix(".dtype") + ".null", None)
        if missing is not None and (missing & ~mask).any():
            rules[name.removesuffix(".dtype") + ".null"] = missing & ~mask
        rules[name] = mask
    judged = {}
    for expectation in project.validation.expectations:
        if isinstance(expectation, RowLevel):
            bad, n = _judge(expectation, cells)
            judged[expectation.name] = n
            if bad is not None and isinstance(expectation, NotNull):
                bad = bad & ~uncast.get(f"{expectation.column}.dtype", np.zeros(1, dtype=bool))
            if bad is not None and bad.any():
                rules[expectation.name] = bad
    n = table.num_rows
    if not rules:
        facts = fold(project, raw.schema, table)
        return Checked(table, QUARANTINE.empty_table(), Report(n, n, 0, judged=judged), facts)
    any_broken = np.logical_or.reduce(list(rules.values()))
    where = np.flatnonzero(any_broken)
    shown = _columns_of_rules(project)
    report = Report(
        n_read=n,
        n_kept=n - len(where),
        n_quarantined=len(where),
        broken={rule: int(mask.sum()) for rule, mask in sorted(rules.items())},
        examples={
            rule: _examples_where(project, raw, mask, shown.get(rule, (rule.rpartition(".")[0],)))
            for rule, mask in sorted(rules.items())
        },
        judged=judged,
    )
    per_row: list[list[str]] = [[] for _ in where]
    for rule, mask in sorted(rules.items()):
        for i in np.flatnonzero(mask[where]).tolist():
            per_row[i].append(rule)
    good = table.filter(pa.array(~any_broken))
    return Checked(good, quarantined(project, raw.take(where), per_row), report, fold(project, raw.schema, good))


def broken(project: Project, table: pa.Table) -> dict[str, Mask]:
    """Which rows break which rule of `columns:`: rule id -> mask of shape (n,), only for rules that some row breaks.

    `table` has the declared columns and dtypes (`schema.conform`). Key, event time and the target, when it is there,
    are held to the same rules as any column; a binary target must be 0 or 1 besides.
    """
    return dict(_column_rules(project, _Cells(table)))


# Rules of the columns -------------------------------------------------------------------------------------------------


def _column_rules(project: Project, cells: _Cells) -> Iterator[tuple[str, Mask]]:
    for column in project.columns:
        name = column.name
        if name not in cells.table.column_names:
            continue
        found: list[tuple[str, pa.ChunkedArray | None]] = []
        if not column.nullable:
            found.append(("null", cells.null(name)))
        if column.min is not None or column.max is not None:
            found.append(("range", cells.outside(name, column.min, column.max)))
        if column.values is not None:
            found.append(("set", cells.not_among(name, column.values)))
        if column.pattern is not None:
            found.append(("pattern", cells.unmatched(name, column.pattern)))
        if name == project.target and project.task == "binary" and column.dtype != "bool":
            found.append(("set", _neither_0_nor_1(cells, name)))
        for what, mask in found:
            if mask is not None and (bad := _numpy(mask)).any():
                yield f"{name}.{what}", bad


def _neither_0_nor_1(cells: _Cells, name: str) -> pa.ChunkedArray | None:
    column = cells.table[name]
    if cells.outside(name, 0, 1) is None and pa.types.is_integer(column.type):
        return None
    return pc.and_(pc.not_equal(column, 0), pc.not_equal(column, 1))


def _numpy(mask: pa.ChunkedArray) -> Mask:
    """A mask of Arrow as one of NumPy; null is False."""
    return np.asarray(pc.fill_null(mask, False).to_numpy())


# Expectations about rows ----------------------------------------------------------------------------------------------


def _judge(expectation: RowLevel, cells: _Cells) -> tuple[Mask | None, int]:
    """Rows that break it, shape (n,) or None when none does, and the number of rows that it is about."""
    mask, judgeable = _breaks(expectation, cells)
    column = getattr(expectation, "column", None)
    if expectation.when is not None:
        applies = _numpy(cells.value(expectation.when))
        if judgeable is None and column is not None and not isinstance(expectation, NotNull | IsNull):
            judgeable = cells.table[column].is_valid()
        n = int(np.count_nonzero(applies if judgeable is None else applies & _numpy(judgeable)))
        bad = None if mask is None else _numpy(mask) & applies
    else:
        n = cells.table.num_rows
        if judgeable is not None:
            n = pc.sum(judgeable).as_py() or 0
        elif column is not None and not isinstance(expectation, NotNull | IsNull):
            n -= cells.table[column].null_count
        bad = None if mask is None else _numpy(mask)
    return (None if bad is None or not bad.any() else bad), n


def _breaks(expectation: RowLevel, cells: _Cells) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """Which rows break it (None: none does) and, where that is not plain, which can be judged at all."""
    if isinstance(expectation, NotNull):
        return cells.null(expectation.column), None
    if isinstance(expectation, IsNull):
        column = cells.table[expectation.column]
        return (column.is_valid() if column.null_count < len(column) else None), None
    if isinstance(expectation, Between):
        low, high = (_end(end) for end in (expectation.min, expectation.max))
        return cells.outside(expectation.column, low, high, strict=expectation.strict), None
    if isinstance(expectation, InSet):
        if expectation.expect == "in_set":
            return cells.not_among(expectation.column, expectation.values), None
        return cells.among(expectation.column, expectation.values), None
    if isinstance(expectation, Matches):
        if expectation.expect == "matches":
            return cells.unmatched(expectation.column, expectation.pattern), None
        return cells.of_text(expectation.column, lambda texts: matching(expectation.pattern, texts)), None
    if isinstance(expectation, LengthBetween):
        return cells.of_text(expectation.column, lambda texts: _too_long(texts, expectation)), None
    if isinstance(expectation, ColumnPair):
        a, b = expectation.columns
        kept = cells.value(f"col({a!r}) {expectation.op} col({b!r})")
    else:
        assert isinstance(expectation, Row)
        kept = cells.value(expectation.row)
    clean = pc.all(kept, min_count=0).as_py()
    return (None if clean else pc.invert(kept)), (kept.is_valid() if kept.null_count else None)


def _end(end: float | str | None) -> Any:
    return instant(end) if isinstance(end, str) else end


def _too_long(texts: pa.Array, expectation: LengthBetween) -> pa.Array:
    length = pc.utf8_length(texts)
    short = pc.less(length, expectation.min)
    return short if expectation.max is None else pc.or_(short, pc.greater(length, expectation.max))


class _Cells:
    """The columns of one batch, and what several rules want to know of them, found out once.

    Methods return which cells break a rule, or None when it is plain that none does; null cells break nothing here.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._ends: dict[str, tuple[Any, Any]] = {}
        self._coded: dict[str, pa.ChunkedArray | None] = {}
        self._values: dict[str, pa.ChunkedArray] = {}

    def null(self, name: str) -> pa.ChunkedArray | None:
        """Cells that are null."""
        return self.table[name].is_null() if self.table[name].null_count else None

    def outside(self, name: str, low: Any, high: Any, *, strict: bool = False) -> pa.ChunkedArray | None:
        """Cells below `low` or above `high` (None: no such end); `strict`: the ends are outside."""
        column = self.table[name]
        if name not in self._ends:
            # Of times as whole microseconds: Python's own cannot say years beyond 9999.
            ends = pc.min_max(column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column)
            self._ends[name] = (ends["min"].as_py(), ends["max"].as_py())
        smallest, largest = self._ends[name]
        if smallest is None:
            return None
        bounds = (_number(low, column.type), _number(high, column.type))
        if (bounds[0] is None or (smallest > bounds[0] if strict else smallest >= bounds[0])) and (
            bounds[1] is None or (largest < bounds[1] if strict else largest <= bounds[1])
        ):
            return None
        if pa.types.is_integer(column.type):
            # Compared as whole numbers: Arrow refuses to bring those beyond 2**53 to a float limit.
            low, high, strict = _first_whole(low, strict), _last_whole(high, strict), False
            if (low is not None and low > 2**63 - 1) or (high is not None and high < -(2**63)):
                return column.is_valid()
        below, above = (pc.less_equal, pc.greater_equal) if strict else (pc.less, pc.greater)
        masks = [below(column, low)] if low is not None else []
        masks += [above(column, high)] if high is not None else []
        return masks[0] if len(masks) == 1 else pc.or_(*masks)

    def not_among(self, name: str, values: Sequence[object]) -> pa.ChunkedArray | None:
        """Cells that are none of `values`."""
        found = self._among(name, values)
        if pc.all(found, min_count=0).as_py():
            return None
        column = self.table[name]
        return pc.and_(column.is_valid(), pc.invert(found)) if column.null_count else pc.invert(found)

    def among(self, name: str, values: Sequence[object]) -> pa.ChunkedArray | None:
        """Cells that are one of `values`."""
        found = self._among(name, values)
        return found if pc.any(found, min_count=0).as_py() else None

    def _among(self, name: str, values: Sequence[object]) -> pa.ChunkedArray:
        column = self.table[name]
        wanted = wanted_cells(values, column.type)
        if pa.types.is_string(column.type) and (coded := self._dictionary(name)) is not None:
            return _spread(coded, lambda texts: pc.is_in(texts, value_set=wanted, skip_nulls=True))
        return pc.is_in(column, value_set=wanted, skip_nulls=True)

    def unmatched(self, name: str, pattern: str) -> pa.ChunkedArray | None:
        """Texts that do not match `pattern` from end to end."""
        return self.of_text(name, lambda texts: _unmatched(pattern, texts))

    def of_text(self, name: str, breaks: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray | None:
        """Texts of which `breaks`, from texts of shape (n,) to truth values of the same shape, says so."""
        coded = self._dictionary(name)
        if coded is not None:
            found = _spread(coded, breaks, only_if_any=True)
        else:
            found = pa.chunked_array([breaks(chunk) for chunk in self.table[name].chunks], pa.bool_())
        return found if found is not None and pc.any(found, min_count=0).as_py() else None

    def _dictionary(self, name: str) -> pa.ChunkedArray | None:
        """The column as codes of its distinct texts; None when most of them are different."""
        if name not in self._coded:
            column = self.table[name]
            sample = column.slice(0, _SAMPLE)
            repeats = len(column) <= _SAMPLE or pc.count_distinct(sample).as_py() <= len(sample) // 2
            self._coded[name] = column.dictionary_encode() if repeats else None
        return self._coded[name]

    def value(self, text: str) -> pa.ChunkedArray:
        """An expression's value in each row."""
        if text not in self._values:
            self._values[text] = evaluate(_parsed(text, self.table.schema), self.table)
        return self._values[text]


def _first_whole(low: float | None, strict: bool) -> int | None:
    """The smallest int64 at least (above, where `strict`) `low`; no such limit where every int64 is."""
    if low is None or low < -(2**63):
        return None
    return math.floor(low) + 1 if strict else math.ceil(low)


def _last_whole(high: float | None, strict: bool) -> int | None:
    if high is None or high > 2**63 - 1:
        return None
    return math.ceil(high) - 1 if strict else math.floor(high)


def _number(end: Any, kind: pa.DataType) -> Any:
    """An end of a range, comparable with the numbers of a column; None when there is none."""
    if end is None or not pa.types.is_timestamp(kind):
        return end
    return pa.scalar(end, kind).cast(pa.int64()).as_py()


def _spread(
    coded: pa.ChunkedArray, judge: Callable[[pa.Array], pa.Array], *, only_if_any: bool = False
) -> pa.ChunkedArray | None:
    """`judge` of the distinct texts, for each cell; None with `only_if_any` when it is true of none."""
    chunks, seen, says = [], None, None
    for chunk in coded.chunks:
        if seen is None or not (len(seen) == len(chunk.dictionary) and seen.equals(chunk.dictionary)):
            seen = chunk.dictionary
            says = judge(seen)
        chunks.append((says, chunk.indices))
    if only_if_any and not any(pc.any(says, min_count=0).as_py() for says, _ in chunks):
        return None
    return pa.chunked_array([says.take(indices) for says, indices in chunks], pa.bool_())


_PLAIN_PATTERN = re.compile(
    r"(?:[A-Za-z0-9 _:/,@=%&~<>;!'\"-]|\\[dw.+*?()\[\]{}|/-]|\[(?:[A-Za-z0-9_ :/.,@+-]|\\[dw.-])+\]"
    r"|\((?:\?:)?|\)|\||\.|[?*+]|\{\d{1,3}(?:,\d{0,3})?\})*"
)
"""Patterns that Arrow's RE2 reads as Python does, but for \\d and \\w, which mean ASCII's digits and words to it: what
it accepts, Python accepts."""
_PYTHONS_OWN = re.compile(r"[?*+}]\+|\(\?(?!:)")
"""What makes a pattern none of them all the same: possessive quantifiers, and groups that are more than groups."""


def _unmatched(pattern: str, texts: pa.Array) -> pa.Array:
    """Texts that do not match, null for null, as Python's `re` says. RE2 may say yes beforehand, for many texts."""
    if len(texts) > _SAMPLE and _PLAIN_PATTERN.fullmatch(pattern) and not _PYTHONS_OWN.search(pattern):
        try:
            matched = pc.match_substring_regex(texts, rf"\A(?:{pattern})\z")
        except pa.ArrowInvalid:
            return pc.invert(matching(pattern, texts))  # too large a pattern for RE2
        if pc.all(matched, min_count=0).as_py():
            return pc.invert(matched)
        left = pc.invert(matched)
        doubtful = np.flatnonzero(pc.fill_null(left, False).to_numpy(zero_copy_only=False))
        fits = re.compile(pattern).fullmatch
        wrong = [fits(text) is None for text in texts.take(pa.array(doubtful)).to_pylist()]
        return pc.replace_with_mask(left, pc.fill_null(left, False), pa.array(wrong, pa.bool_()))
    return pc.invert(matching(pattern, texts))


_NAMED = {
    pa.float64(): "float",
    pa.int64(): "int",
    pa.string(): "string",
    pa.bool_(): "bool",
    pa.timestamp("us", tz="UTC"): "timestamp",
}


def _parsed(text: str, schema: pa.Schema) -> Expression:
    return parse(text, {field.name: _NAMED[field.type] for field in schema})


# Quarantine and examples ----------------------------------------------------------------------------------------------


def quarantined(project: Project, rows: pa.Table, rules: Sequence[Sequence[str]]) -> pa.Table:
    """`rows`, shape (n, any), as they go to quarantine; `rules` are the broken ones of each."""
    listed = _listed(rows)
    keys = [None if row[project.key] is None else str(row[project.key]) for row in listed]
    texts = [as_json(row) for row in listed]
    return pa.table([keys, list(rules), texts], schema=QUARANTINE)


def _listed(rows: pa.Table) -> list[dict[str, Any]]:
    cells = [as_python(column) for column in rows.columns]
    return [dict(zip(rows.column_names, row, strict=True)) for row in zip(*cells, strict=True)]


def _columns_of_rules(project: Project) -> dict[str, tuple[str, ...]]:
    """Columns that an example of a row expectation shows, by its id."""
    dtypes = {column.name: column.dtype for column in project.columns}
    shown: dict[str, tuple[str, ...]] = {}
    for expectation in project.validation.expectations:
        if isinstance(expectation, Row):
            shown[expectation.name] = parse(expectation.row, dtypes).names
        elif isinstance(expectation, ColumnPair):
            shown[expectation.name] = expectation.columns
        elif isinstance(expectation, RowLevel):
            shown[expectation.name] = (getattr(expectation, "column", project.key),)
    return shown


def _examples_where(project: Project, raw: pa.Table, mask: Mask, names: Sequence[str]) -> tuple[str, ...]:
    few = raw.select(list(dict.fromkeys([project.key, *names])))
    return examples(project, few.take(np.flatnonzero(mask)), names)


def about(project: Project, columns: Sequence[Column]) -> Project:
    """`project` with these of its columns only, and the expectations that rows of these columns can be held to."""
    names = {column.name for column in columns}
    dtypes = {column.name: column.dtype for column in project.columns}
    shown = _columns_of_rules(project)
    kept = []
    for expectation in project.validation.expectations:
        if isinstance(expectation, RowLevel):
            when = parse(expectation.when, dtypes).names if expectation.when is not None else ()
            if names.issuperset((*shown[expectation.name], *when)):
                kept.append(expectation)
    validation = project.validation.model_copy(update={"expectations": tuple(kept)})
    return project.model_copy(update={"columns": tuple(columns), "validation": validation})


def examples(project: Project, rows: pa.Table, columns: str | Sequence[str]) -> tuple[str, ...]:
    """ "key: value of the column", or "key: a=1, b=2" of several, of those of `rows` that come first by that text."""
    names = [columns] if isinstance(columns, str) else list(columns)
    keys = rows[project.key]
    # Times as the text says them, which is not as Arrow does.
    texts = pa.array(map(str, as_python(keys))) if pa.types.is_temporal(keys.type) else keys.cast(pa.string())
    keys = pc.fill_null(texts, "None")
    if rows.num_rows > EXAMPLES:
        # The text begins with the key, so that only rows with the smallest keys come into question.
        ordered = pc.binary_join_element_wise(keys, pa.scalar(""), ": ")
        first = pc.select_k_unstable(ordered, EXAMPLES, [("", "ascending")])
        rows = rows.filter(pc.less_equal(ordered, ordered.take(first.slice(EXAMPLES - 1))[0]))
    picked = _listed(rows.select(list(dict.fromkeys([project.key, *names]))))
    return tuple(sorted(_shorten(_text(project.key, row, names)) for row in picked)[:EXAMPLES])


def _text(key: str, row: dict[str, Any], names: Sequence[str]) -> str:
    if list(names) == [key]:
        return str(row[key])
    values = [str(row[names[0]])] if len(names) == 1 else [f"{name}={row[name]}" for name in names]
    return f"{row[key]}: {', '.join(values)}"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
