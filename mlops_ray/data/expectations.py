"""The rules of the project file over rows, and the report of what they found.

A rule's id is "<column>.<what>": dtype (the cell could not be cast), null, range, set, pattern. One pass; a bad row
carries every rule that it broke. Rows that repeat a key ("unique") can only be found over all shards: `on_ray` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Column, Project
from mlops_ray.data.schema import Mask, conform

UNIQUE = "unique"
"""Id of the rule that no key may repeat."""
EXAMPLES = 3
"""Examples per rule in a report: enough to see the pattern, few enough to read."""
QUARANTINE = pa.schema([("key", pa.string()), ("rules", pa.list_(pa.string())), ("row", pa.string())])
"""Columns of the quarantine: the row's key, the rules that it broke, and the row as it came, as JSON. They are the same
for every project file, so that rows stay readable when `columns:` changes."""
_LONGEST = 80


@dataclass(frozen=True)
class Report:
    """What validation saw. n_read = n_kept + n_quarantined always. Reports of disjoint shards add.

    `broken`: rows per rule id (a row may break several). `examples`: the first few by text order, "key: value".
    """

    n_read: int = 0
    n_kept: int = 0
    n_quarantined: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __add__(self, other: Report) -> Report:
        rules = sorted(self.broken.keys() | other.broken.keys())
        return Report(
            self.n_read + other.n_read,
            self.n_kept + other.n_kept,
            self.n_quarantined + other.n_quarantined,
            {r: self.broken.get(r, 0) + other.broken.get(r, 0) for r in rules},
            {r: tuple(sorted(self.examples.get(r, ()) + other.examples.get(r, ()))[:EXAMPLES]) for r in rules},
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
        }

    def __str__(self) -> str:
        head = f"{self.n_read} rows read, {self.n_kept} kept, {self.n_quarantined} in quarantine"
        rules = [f"{rule}: {n} (for example {'; '.join(self.examples[rule])})" for rule, n in self.broken.items()]
        return "\n  ".join([head, *rules])


@dataclass(frozen=True, eq=False)
class Checked:
    """Rows of one block, sorted out: `good` has the declared columns, `bad` those of `QUARANTINE`."""

    good: pa.Table
    bad: pa.Table
    report: Report


def broken(project: Project, table: pa.Table) -> dict[str, Mask]:
    """Which rows break which rule: rule id -> mask of shape (n,), only for rules that some row breaks.

    `table` has the declared columns and dtypes (`schema.conform`). Key, event time and the target, when it is there,
    are held to the same rules as any column; the target must be 0 or 1 besides.
    """
    found: dict[str, Mask] = {}
    for column in project.columns:
        if column.name not in table.column_names:
            continue
        for what, mask in _rules(column, table[column.name], is_target=column.name == project.target):
            bad = pc.fill_null(mask, False).to_numpy()
            if bad.any():
                found[f"{column.name}.{what}"] = bad
    return found


def _rules(column: Column, cells: pa.ChunkedArray, *, is_target: bool) -> list[tuple[str, pa.ChunkedArray]]:
    rules = []
    if not column.nullable:
        rules.append(("null", cells.is_null()))
    if column.min is not None or column.max is not None:
        below = pc.less(cells, -np.inf if column.min is None else column.min)
        rules.append(("range", pc.or_(below, pc.greater(cells, np.inf if column.max is None else column.max))))
    if column.values is not None:
        known = pc.is_in(cells, value_set=pa.array(column.values, pa.string()))
        rules.append(("set", pc.and_(cells.is_valid(), pc.invert(known))))
    if column.pattern is not None:
        rules.append(("pattern", _unmatched(column.pattern, cells)))
    if is_target and column.dtype != "bool":
        rules.append(("set", pc.and_(pc.not_equal(cells, 0), pc.not_equal(cells, 1))))
    return rules


def _unmatched(pattern: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Python's own `re` on the distinct values, as for requests: Arrow's RE2 knows other syntax and other digits."""
    coded = cells.dictionary_encode()
    fits = re.compile(pattern).fullmatch
    chunks = [
        pa.array([fits(text) is None for text in chunk.dictionary.to_pylist()], pa.bool_()).take(chunk.indices)
        for chunk in coded.chunks
    ]
    return pa.chunked_array(chunks, pa.bool_())


def check(project: Project, raw: pa.Table) -> Checked:
    """Sorts the rows of one block of the source into good and bad ones.

    Raises: DataError when a declared column is missing or of another dtype altogether.
    """
    table, uncast = conform(raw, project.columns)
    rules = broken(project, table)
    for name, mask in uncast.items():
        # A cell that is null because it could not be cast broke one rule, not two.
        missing = rules.pop(name.removesuffix(".dtype") + ".null", None)
        if missing is not None and (missing & ~mask).any():
            rules[name.removesuffix(".dtype") + ".null"] = missing & ~mask
        rules[name] = mask
    n = table.num_rows
    bad = np.logical_or.reduce([np.zeros(n, dtype=bool), *rules.values()])
    where = np.flatnonzero(bad)
    report = Report(
        n_read=n,
        n_kept=n - len(where),
        n_quarantined=len(where),
        broken={rule: int(mask.sum()) for rule, mask in sorted(rules.items())},
        examples={
            rule: examples(project, raw.take(np.flatnonzero(mask)[:EXAMPLES]), rule.rpartition(".")[0])
            for rule, mask in sorted(rules.items())
        },
    )
    per_row = [[rule for rule, mask in sorted(rules.items()) if mask[i]] for i in where]
    return Checked(table.filter(pa.array(~bad)), quarantined(project, raw.take(where), per_row), report)


def quarantined(project: Project, rows: pa.Table, rules: Sequence[Sequence[str]]) -> pa.Table:
    """`rows`, shape (n, any), as they go to quarantine; `rules` are the broken ones of each."""
    listed = rows.to_pylist()
    keys = [None if row[project.key] is None else str(row[project.key]) for row in listed]
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in listed]
    return pa.table([keys, list(rules), texts], schema=QUARANTINE)


def examples(project: Project, rows: pa.Table, column: str) -> tuple[str, ...]:
    """ "key: value of `column`" of the first few of `rows`."""
    picked = rows.slice(0, EXAMPLES).select(list(dict.fromkeys([project.key, column]))).to_pylist()
    return tuple(sorted(_shorten(": ".join(str(value) for value in row.values())) for row in picked))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
