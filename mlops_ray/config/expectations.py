"""The `expectations:` of the `validation:` block: what the rows, and the data as a whole, are expected to keep.

Names follow the field's: Great Expectations without its prefixes (`not_null`, `between`, `in_set`), dbt (`unique`,
`freshness`), TFDV (`distribution` by L-infinity). Three levels:

- *row*: each row keeps it or not. Rows that do not go to quarantine, always; `mostly` is the share of the judged rows
  (those of `when:`, whose cells are not null) that must keep it, else `on_fail` says what happens to the run.
- *key*: rows are compared with all others that have the same key.
- *table*: one figure of the kept rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mlops_ray.config.base import Config
from mlops_ray.config.expressions import KINDS, parse

Mostly = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Cell = bool | int | float | str
Loc = tuple[str | int, ...]


class Expectation(Config):
    """What all expectations have. `id` names the finding, and the rule in the quarantine."""

    id: Annotated[str, Field(pattern=r"^[^\s,](?:[^\n\r\t,]{0,78}[^\s,])?$")] | None = None
    """Made from column and kind unless given: "distance.between", "row_count", "row: a > b"."""
    on_fail: Literal["stop", "warn"] = "stop"
    """`stop` ends the run before a dataset version is written; `warn` only says so."""

    @property
    def name(self) -> str:
        """The id, made up when the file gives none."""
        return made_id(vars(self)) or ""


def made_id(item: Mapping[str, Any]) -> str | None:
    """The id of an expectation, from its fields; None when they are not there to make one of."""
    if isinstance(item.get("id"), str):
        return str(item["id"])
    kind, column, columns = item.get("expect"), item.get("column"), item.get("columns")
    if kind == "row":
        row = item.get("row")
        # Ids in a list are separated by commas.
        return f"row: {' '.join(row.replace(',', ' ').split())}"[:80].strip() if isinstance(row, str) else None
    if kind == "quantile":
        return f"{column}.quantile {item.get('q')}"
    if isinstance(column, str):
        return f"{column}.{kind}"
    if isinstance(columns, list | tuple) and columns:
        return f"{'+'.join(map(str, columns))}.{kind}"
    return str(kind)


class RowLevel(Expectation):
    """Of a row: `mostly` is the share that must keep it, `when` an expression for the rows that it is about."""

    mostly: Mostly = 1.0
    when: str | None = None


class OfColumn(RowLevel):
    """Of one column's cells."""

    column: str


class _Bounded(Config):
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Bounded:
        _ordered(self.min, self.max)
        return self


def _ordered(low: object, high: object) -> None:
    if low is None and high is None:
        raise ValueError("give min, max or both")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise ValueError(f"min {low:g} is above max {high:g}; swap them")
    if isinstance(low, str) and isinstance(high, str) and instant(low) > instant(high):
        raise ValueError(f"min {low} is after max {high}; swap them")


def instant(text: str) -> datetime:
    """The time that ISO 8601 text names; UTC when it has no offset. Raises: ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write it like '2013-01-31T08:00:00Z'") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


# Rows -----------------------------------------------------------------------------------------------------------------


class NotNull(OfColumn):
    """The cell is there."""

    expect: Literal["not_null"]


class IsNull(OfColumn):
    """The cell is empty: with `when:`, for what may only be known of some rows."""

    expect: Literal["is_null"]


class Between(OfColumn):
    """min <= cell <= max; `strict` excludes the ends. Times as ISO 8601 text."""

    expect: Literal["between"]
    min: float | str | None = None
    max: float | str | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _ends(self) -> Between:
        _ordered(self.min, self.max)
        return self


class InSet(OfColumn):
    """The cell is one of `values` (or, for `not_in_set`, none of them)."""

    expect: Literal["in_set", "not_in_set"]
    values: tuple[Cell, ...] = Field(min_length=1)


class Matches(OfColumn):
    """The regular expression (Python's) matches the whole text, or does not."""

    expect: Literal["matches", "not_matches"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from exc
        return value


class LengthBetween(OfColumn):
    """The text has so many characters."""

    expect: Literal["length_between"]
    min: NonNegativeInt = 0
    max: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _ends(self) -> LengthBetween:
        _ordered(self.min, self.max)
        return self


class ColumnPair(RowLevel):
    """The first column compares with the second."""

    expect: Literal["column_pair"]
    columns: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)]
    op: Literal["<", "<=", "==", "!=", ">=", ">"]


class Row(RowLevel):
    """An expression (`config/expressions.py`) that is not false; null is not false."""

    expect: Literal["row"]
    row: str


# Keys -----------------------------------------------------------------------------------------------------------------


class Unique(Expectation):
    """No two rows have the same values in `columns` together; of those that do, all but one go to quarantine."""

    expect: Literal["unique"]
    columns: tuple[str, ...] = Field(min_length=1)
    mostly: Mostly = 1.0


class DuplicateRows(Expectation):
    """No row occurs twice, all columns alike; of those that do, all but one go to quarantine."""

    expect: Literal["no_duplicate_rows"]
    mostly: Mostly = 1.0


class ConflictingLabels(Expectation):
    """Rows with the same values in `columns` (the features, unless given) have the same label."""

    expect: Literal["no_conflicting_labels"]
    columns: tuple[str, ...] = ()
    mostly: Mostly = 1.0
    quarantine: bool = False
    """Whether the rows go: all of them, for nobody knows which label is right. Else they are counted."""


class Leakage(Expectation):
    """Rows of the holdout do not occur in training with the same values in `columns` (the features, unless given)."""

    expect: Literal["no_leakage"]
    columns: tuple[str, ...] = ()
    max_share: Fraction = 0.0
    """Of the holdout's rows."""


# The table ------------------------------------------------------------------------------------------------------------


class Columns(Expectation):
    """The source has these columns; with `only` no others (as far as they were read)."""

    expect: Literal["columns"]
    names: tuple[str, ...] = Field(min_length=1)
    only: bool = False


class Dtype(Expectation):
    """The source itself has the column in this dtype: nothing had to be parsed or converted."""

    expect: Literal["dtype"]
    column: str
    dtype: Literal["float", "int", "string", "bool", "timestamp"]


class NullShare(_Bounded, Expectation):
    """Share of empty cells among the kept rows."""

    expect: Literal["null_share"]
    column: str


class Monotonic(Expectation):
    """Each cell is at least (at most) the one before it in the source's order; `strict`: above (below) it.

    Cells that are null are skipped."""

    expect: Literal["increasing", "decreasing"]
    column: str
    strict: bool = False
    mostly: Mostly = 1.0


class Freshness(Expectation):
    """The newest time (of `event_time`, unless given) is at most so old."""

    expect: Literal["freshness"]
    max_age_s: PositiveFloat
    column: str | None = None


class NotInFuture(Expectation):
    """No time (of `event_time`, unless given) is after now, give or take a clock's error."""

    expect: Literal["not_in_future"]
    column: str | None = None
    slack_s: NonNegativeFloat = 0.0


class RowCount(_Bounded, Expectation):
    """Number of kept rows; `row_count_change`: as a multiple of the previous dataset version's."""

    expect: Literal["row_count", "row_count_change"]


class Statistic(_Bounded, Expectation):
    """A figure of the column's cells. Standard deviations divide by n; medians are right to 0.1 %."""

    expect: Literal["mean", "median", "std", "sum", "minimum", "maximum"]
    column: str


class Quantile(_Bounded, Expectation):
    """The value below which a share `q` of the cells lies, by nearest rank; right to 0.1 %."""

    expect: Literal["quantile"]
    column: str
    q: Fraction


class DistinctCount(_Bounded, Expectation):
    """Number of different values: exact up to 4,096, above that with a standard error of 1.6 %."""

    expect: Literal["distinct_count"]
    column: str


class MostCommonShare(_Bounded, Expectation):
    """Share of the most frequent value among the cells that are not empty."""

    expect: Literal["most_common_share"]
    column: str


class LabelShare(_Bounded, Expectation):
    """Share of ones among the labels."""

    expect: Literal["label_share"]


class Covers(Expectation):
    """Each of these values occurs, in at least `min_rows` rows."""

    expect: Literal["covers"]
    column: str
    values: tuple[Cell, ...] = Field(min_length=1)
    min_rows: PositiveInt = 1


class Distribution(Expectation):
    """Distance of the column's distribution to that of the previous dataset version.

    `psi` (nats) and `js` (the Jensen-Shannon distance, 0 to 1) over ten bins that were equally full in the previous
    version, or over the categories; `linf` the largest change of a share; `ks` the largest gap between the
    distribution functions.
    """

    expect: Literal["distribution"]
    column: str
    distance: Literal["psi", "js", "linf", "ks"] = "psi"
    max: PositiveFloat


AnyExpectation = Annotated[
    NotNull
    | IsNull
    | Between
    | InSet
    | Matches
    | LengthBetween
    | ColumnPair
    | Row
    | Unique
    | DuplicateRows
    | ConflictingLabels
    | Leakage
    | Columns
    | Dtype
    | NullShare
    | Monotonic
    | Freshness
    | NotInFuture
    | RowCount
    | Statistic
    | Quantile
    | DistinctCount
    | MostCommonShare
    | LabelShare
    | Covers
    | Distribution,
    Field(discriminator="expect"),
]

_NUMERIC = ("float", "int", "bool")
_ALL = ("float", "int", "string", "bool", "timestamp")
DTYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("not_null", "is_null", "null_share", "in_set", "not_in_set", "covers"), _ALL),
    "distribution": (*_NUMERIC, "string"),
    **dict.fromkeys(("unique", "no_conflicting_labels", "no_leakage", "distinct_count", "most_common_share"), _ALL),
    **dict.fromkeys(("mean", "median", "std", "sum", "minimum", "maximum", "quantile"), _NUMERIC),
    **dict.fromkeys(("between", "increasing", "decreasing"), ("float", "int", "timestamp")),
    **dict.fromkeys(("matches", "not_matches", "length_between"), ("string",)),
    **dict.fromkeys(("freshness", "not_in_future"), ("timestamp",)),
    "column_pair": _ALL,
}
"""Dtypes of the columns that each kind can be about; kinds that are not here name no declared columns."""

Known = Callable[[Loc, object, tuple[str, ...]], Iterator[tuple[Loc, str]]]


def expectation_checks(items: Sequence[Any], dtypes: Mapping[str, object], known: Known) -> Iterator[tuple[Loc, str]]:
    """Mistakes that need the columns, over the raw list: unknown columns, expressions, values of another dtype.

    Args: items: the list as the file has it; dtypes: of the declared columns by name; known(loc, name, dtypes) yields
    what is wrong with a column's name. Places are relative to the list.
    """
    named: dict[str, int] = {}
    for i, item in enumerate(items):
        if not isinstance(item, Mapping) or not isinstance(item.get("expect"), str):
            continue
        kind, column = item["expect"], item.get("column")
        wanted = DTYPES.get(kind)
        if wanted is not None:
            yield from known((i, "column"), column, wanted)
            many = item.get("columns")
            for j, each in enumerate(many if isinstance(many, list | tuple) else ()):
                yield from known((i, "columns", j), each, wanted)
        if isinstance(column, str) and column in dtypes:
            yield from _values_fit(i, item, kind, str(dtypes[column]))
            if kind == "distribution" and item.get("distance") == "ks" and dtypes[column] == "string":
                yield (i, "distance"), "ks is of numbers; take psi, js or linf for texts"
        pair = item.get("columns")
        if kind == "column_pair" and isinstance(pair, list | tuple) and len(pair) == 2:
            a, b = (KINDS.get(str(dtypes.get(name))) if isinstance(name, str) else None for name in pair)
            if a is not None and b is not None and a != b and {a, b} != {"bool", "number"}:
                yield (i, "columns"), f"{pair[0]!r} is a {a}, {pair[1]!r} is a {b}; they do not compare"
        yield from _expression((i, "when"), item.get("when"), dtypes)
        if kind == "row":
            yield from _expression((i, "row"), item.get("row"), dtypes)
        name = made_id(item)
        if name in named:
            yield (i,), f"expectation {named[name] + 1} of the list is called {name!r} too; give one of them an `id:`"
        elif name is not None:
            named[name] = i


def _expression(loc: Loc, text: object, dtypes: Mapping[str, object]) -> Iterator[tuple[Loc, str]]:
    if not isinstance(text, str) or not dtypes:
        return
    try:
        kind = parse(text, {name: str(dtype) for name, dtype in dtypes.items()}).kind
    except ValueError as exc:
        yield loc, str(exc)
        return
    if kind != "bool":
        yield loc, f"is a {kind}; write a condition, such as a comparison"


def _values_fit(i: int, item: Mapping[str, Any], kind: str, dtype: str) -> Iterator[tuple[Loc, str]]:
    written: list[tuple[Loc, object]] = []
    if kind in ("in_set", "not_in_set", "covers") and isinstance(item.get("values"), list | tuple):
        written = [((i, "values", j), value) for j, value in enumerate(item["values"])]
    elif kind == "between":
        written = [((i, end), item[end]) for end in ("min", "max") if item.get(end) is not None]
    seen: list[object] = []  # what stands in the file need not be hashable
    for loc, value in written:
        cell = value
        if dtype == "timestamp":
            try:
                cell = instant(value if isinstance(value, str) else value.isoformat())  # type: ignore[attr-defined]
            except (ValueError, AttributeError):
                yield loc, f"{value!r} is no time; write it like '2013-01-31T08:00:00Z', in quotes"
        elif dtype == "string" and not isinstance(value, str):
            yield loc, f"the column is string, {value!r} is not; put it in quotes"
        elif dtype in ("float", "int") and isinstance(value, str | bool):
            yield loc, f"the column is {dtype}, {value!r} is not; write a number"
        elif dtype == "bool" and not isinstance(value, bool):
            yield loc, f"the column is bool, {value!r} is not; write true or false"
        if kind == "covers":
            if cell in seen:
                yield loc, f"{value!r} stands twice; take it out"
            seen.append(cell)
