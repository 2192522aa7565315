"""Findings: each expectation judged over what validation saw.

An expectation that cannot be judged (no rows that it is about, no previous dataset version, a rule that nobody ran) is
neither kept nor broken: its finding says so and stops nothing. Missing data never counts as a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.config.expectations import (
    AnyExpectation,
    Between,
    ColumnPair,
    Columns,
    ConflictingLabels,
    Covers,
    DistinctCount,
    Distribution,
    Dtype,
    DuplicateRows,
    Freshness,
    InSet,
    IsNull,
    LabelShare,
    Leakage,
    LengthBetween,
    Matches,
    Monotonic,
    MostCommonShare,
    NotInFuture,
    NotNull,
    NullShare,
    Quantile,
    Row,
    RowCount,
    RowLevel,
    Statistic,
    Unique,
)
from mlops_ray.data.cells import value_of
from mlops_ray.data.distance import jensen_shannon, l_infinity, psi
from mlops_ray.data.rules.expectations import Report
from mlops_ray.data.rules.facts import ColumnFacts, Facts

Floats = npt.NDArray[np.float64]

BINS = 10
"""Of a distribution distance between numbers: deciles of the previous version, as credit scoring has it for PSI."""
_DIGITS = 12
"""Significant digits of an observed figure: the last ones hang on how the rows were cut into shards."""


@dataclass(frozen=True)
class Finding:
    """What became of one expectation.

    `passed` is None when it could not be judged; `observed` is a figure or says why, `wanted` puts the expectation into
    words. Of expectations about rows and keys `n` rows were judged, `n_broken` broke it, `share` is their ratio.
    """

    id: str
    expect: str
    passed: bool | None
    observed: float | int | str | None
    wanted: str
    on_fail: Literal["stop", "warn"]
    n: int | None = None
    n_broken: int | None = None
    share: float | None = None

    @property
    def stops(self) -> bool:
        """Whether the run must end."""
        return self.passed is False and self.on_fail == "stop"

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form."""
        return asdict(self)

    def __str__(self) -> str:
        state = {True: "kept", False: "broken", None: "not judged"}[self.passed]
        rows = f" ({self.n_broken} of {self.n} rows)" if self.n_broken else ""
        return f"{self.id}: {state}: wanted {self.wanted}; observed {self.observed}{rows}"


def conclude(
    project: Project, report: Report, facts: Facts, *, previous: Facts | None, now: float
) -> tuple[Finding, ...]:
    """One finding per expectation of the project file, in its order.

    Args: report: of the whole pass, key rules included; facts: of the kept rows, added in the source's order; previous:
    the facts that the previous dataset version left behind, None without one; now: seconds since the epoch.
    """
    judge = _Judge(project, report, facts, previous, now)
    return tuple(judge.finding(expectation) for expectation in project.validation.expectations)


@dataclass(frozen=True)
class _Outcome:
    passed: bool | None
    observed: float | int | str | None
    n: int | None = None
    n_broken: int | None = None


def _cannot(why: str) -> _Outcome:
    return _Outcome(None, why)


@dataclass(frozen=True, eq=False)
class _Judge:
    project: Project
    report: Report
    facts: Facts
    previous: Facts | None
    now: float

    def finding(self, expectation: AnyExpectation) -> Finding:
        """The finding of one expectation."""
        found = self._outcome(expectation)
        share = found.n_broken / found.n if found.n and found.n_broken is not None else None
        observed = _rounded(found.observed) if isinstance(found.observed, float) else found.observed
        return Finding(
            expectation.name,
            expectation.expect,
            found.passed,
            observed,
            wanted(self.project, expectation),
            expectation.on_fail,
            found.n,
            found.n_broken,
            share,
        )

    def _outcome(self, e: AnyExpectation) -> _Outcome:
        if isinstance(e, RowLevel | Unique | DuplicateRows | ConflictingLabels):
            return self._rows(e.name, e.mostly)
        if isinstance(e, Leakage):
            return self._rows(e.name, 1.0, max_share=e.max_share)
        if isinstance(e, Columns):
            return self._columns(e)
        if isinstance(e, Dtype):
            return self._dtype(e)
        if isinstance(e, Monotonic):
            return self._monotonic(e)
        if isinstance(e, RowCount):
            return self._row_count(e)
        if isinstance(e, Covers):
            return self._covers(e)
        if isinstance(e, Distribution):
            return self._distribution(e)
        if isinstance(e, Freshness | NotInFuture):
            return self._times(e)
        assert isinstance(e, NullShare | LabelShare | Statistic | Quantile | DistinctCount | MostCommonShare)
        column = self.facts.columns.get(self.project.target if isinstance(e, LabelShare) else e.column)
        figure = None if column is None else _figure(e, column)
        if figure is None:
            return _cannot("no cells to judge")
        if isinstance(figure, str):
            return _cannot(figure)
        if not math.isfinite(figure):
            return _cannot("larger than a number can be")
        return _Outcome(_within(_rounded(figure), e.min, e.max), figure)

    def _rows(self, name: str, mostly: float, max_share: float | None = None) -> _Outcome:
        n = self.report.judged.get(name)
        if not n:
            return _cannot("no rows to judge" if n == 0 else "was not looked at")
        n_broken = self.report.broken.get(name, 0)
        # A quotient of two counts is rounded as the file's decimal is; 1 - share would not be.
        passed = (n - n_broken) / n >= mostly if max_share is None else n_broken / n <= max_share
        return _Outcome(passed, (n - n_broken) / n if max_share is None else n_broken / n, n, n_broken)

    def _columns(self, e: Columns) -> _Outcome:
        there = self.facts.dtypes
        if not there:
            return _cannot("no rows were read")
        lacks = [name for name in e.names if name not in there or name in self.facts.partly]
        others = sorted(set(there) - set(e.names)) if e.only else []
        says = [f"without {', '.join(lacks)}"] * bool(lacks) + [f"also {', '.join(others)}"] * bool(others)
        return _Outcome(not says, "; ".join(says) or f"{len(there)} columns")

    def _dtype(self, e: Dtype) -> _Outcome:
        found = [dtype for dtype in self.facts.dtypes.get(e.column, ()) if dtype != "null"]
        if not found:
            return _cannot("no cells to judge" if e.column in self.facts.dtypes else "no such column")
        return _Outcome(found == [e.dtype], ", ".join(found))

    def _monotonic(self, e: Monotonic) -> _Outcome:
        order = self.facts.orders.get(e.name)
        if order is None or not order.n_pairs:
            return _cannot("fewer than two cells")
        kept = (order.n_pairs - order.n_broken) / order.n_pairs
        return _Outcome(kept >= e.mostly, kept, order.n_pairs, order.n_broken)

    def _row_count(self, e: RowCount) -> _Outcome:
        if e.expect == "row_count":
            return _Outcome(_within(self.facts.n, e.min, e.max), self.facts.n)
        if self.previous is None or not self.previous.n:
            return _cannot("no previous version")
        ratio = self.facts.n / self.previous.n
        return _Outcome(_within(ratio, e.min, e.max), ratio)

    def _covers(self, e: Covers) -> _Outcome:
        counts = self.facts.covers.get(e.name)
        if counts is None or not self.facts.n:
            return _cannot("no rows to judge")
        lacks = [str(value) for value, n in zip(e.values, counts, strict=True) if n < e.min_rows]
        return _Outcome(not lacks, f"too few of {', '.join(lacks)}" if lacks else f"{min(counts)} rows or more of each")

    def _times(self, e: Freshness | NotInFuture) -> _Outcome:
        column = self.facts.columns.get(e.column or self.project.event_time)
        if column is None or column.high is None:
            return _cannot("no cells to judge")
        age_s = self.now - float(column.high) / 1e6
        newest = _time(column.high)
        if isinstance(e, Freshness):
            return _Outcome(age_s <= e.max_age_s, f"newest {newest}, {age_s:.0f} s old")
        return _Outcome(age_s >= -e.slack_s, f"newest {newest}")

    def _distribution(self, e: Distribution) -> _Outcome:
        before = self.previous.columns.get(e.column) if self.previous is not None else None
        after = self.facts.columns.get(e.column)
        if before is None:
            return _cannot(
                "no previous version" if self.previous is None else "the previous version has no such figures"
            )
        if after is None or not after.n or not before.n:
            return _cannot("no cells to judge")
        found = distance(before, after, e.distance)
        if found is None:
            return _cannot("more distinct values than are kept, or another kind of column before")
        return _Outcome(_rounded(found) <= e.max, found)


def _figure(
    e: NullShare | LabelShare | Statistic | Quantile | DistinctCount | MostCommonShare, column: ColumnFacts
) -> float | int | str | None:
    """The figure that the expectation is about; None without cells; text says why there is none."""
    if isinstance(e, NullShare):
        n = column.n + column.n_null
        return column.n_null / n if n else None
    if not column.n:
        return None
    if isinstance(e, LabelShare):
        return column.total / column.n
    if isinstance(e, DistinctCount):
        return column.values.n_distinct if column.values is not None else None
    if isinstance(e, MostCommonShare):
        if column.values is None or column.values.more:
            return "more distinct values than are kept"
        return max(n for n, _ in column.values.counts.values()) / column.n
    if isinstance(e, Quantile):
        return _quantile(column, e.q)
    figures: dict[str, Callable[[], float | int | None]] = {
        "mean": lambda: column.total / column.n,
        "sum": lambda: column.total,
        "median": lambda: _quantile(column, 0.5),
        "std": lambda: math.sqrt(column.moments.variance) if column.moments is not None else None,
        "minimum": lambda: column.low,
        "maximum": lambda: column.high,
    }
    return figures[e.expect]()


def _quantile(column: ColumnFacts, q: float) -> float | None:
    if column.histogram is None or column.low is None or column.high is None:
        return None
    return float(min(max(column.histogram.quantile(q), column.low), column.high))


def _within(figure: float, low: float | None, high: float | None) -> bool:
    return (low is None or figure >= low) and (high is None or figure <= high)


def _rounded(figure: float) -> float:
    return float(f"{figure:.{_DIGITS}g}")


# Distances ------------------------------------------------------------------------------------------------------------


def distance(before: ColumnFacts, after: ColumnFacts, kind: Literal["psi", "js", "linf", "ks"]) -> float | None:
    """Distance of two distributions of a column; None when the facts do not allow it.

    Numbers are counted in `BINS` bins that were about equally full before; texts by value. psi: population stability
    index in nats. js: Jensen-Shannon distance, in [0, 1]. linf: largest change of a bin's share. All three are those of
    `data/distance.py`, as `mlops-ray drift` has them. ks: largest gap between the distribution functions, over the bins
    of 0.1 % (Smirnov 1939); only of numbers.
    """
    if before.histogram is not None and after.histogram is not None:
        keys = np.union1d(before.histogram.keys, after.histogram.keys)
        p, q = (_counts_at(keys, facts.histogram) for facts in (before, after) if facts.histogram is not None)
        if kind == "ks":
            return float(np.abs(p.cumsum() / p.sum() - q.cumsum() / q.sum()).max())
        wanted_ranks = p.sum() * np.arange(1, BINS) / BINS
        ends = np.unique(p.cumsum().searchsorted(wanted_ranks))
        starts = np.concatenate([[0], ends + 1])
        starts = starts[starts < len(keys)]
        p, q = np.add.reduceat(p, starts), np.add.reduceat(q, starts)
    elif before.values is not None and after.values is not None:
        if before.values.more or after.values.more or kind == "ks":
            return None
        codes = sorted(before.values.counts.keys() | after.values.counts.keys())
        p, q = (
            np.array([facts.values.counts.get(code, (0, ""))[0] for code in codes], dtype=np.float64)
            for facts in (before, after)
            if facts.values is not None
        )
    else:
        return None
    return _DISTANCES[kind](p, q)


def _counts_at(keys: npt.NDArray[np.int64], histogram: Any) -> Floats:
    counts = np.zeros(len(keys))
    counts[keys.searchsorted(histogram.keys)] = histogram.counts
    return counts


_DISTANCES: dict[str, Callable[[Floats, Floats], float]] = {
    "psi": lambda p, q: float(psi(p, q)),
    "js": jensen_shannon,
    "linf": l_infinity,
}


# Words ----------------------------------------------------------------------------------------------------------------


def wanted(project: Project, e: AnyExpectation) -> str:
    """The expectation in words: what is wanted of the data."""
    words = _wanted(project, e)
    mostly = getattr(e, "mostly", 1.0)
    if mostly < 1.0:
        words += f", in {mostly:.12g} of the rows or more"
    when = getattr(e, "when", None)
    return f"{words}, when {when}" if when is not None else words


def _wanted(project: Project, e: AnyExpectation) -> str:
    if isinstance(e, NotNull | IsNull):
        return f"{e.column} is {'there' if isinstance(e, NotNull) else 'empty'}"
    if isinstance(e, Between):
        return f"{e.column} {_span(e.min, e.max)}{', ends excluded' if e.strict else ''}"
    if isinstance(e, InSet):
        return f"{e.column} is {'one' if e.expect == 'in_set' else 'none'} of {_listed(e.values)}"
    if isinstance(e, Matches):
        return f"{e.column} {'matches' if e.expect == 'matches' else 'does not match'} {e.pattern}"
    if isinstance(e, LengthBetween):
        return f"the length of {e.column} {_span(e.min, e.max)}"
    if isinstance(e, ColumnPair):
        return f"{e.columns[0]} {e.op} {e.columns[1]}"
    if isinstance(e, Row):
        return e.row
    if isinstance(e, Unique):
        return f"{_listed(e.columns)} occur{'s' * (len(e.columns) == 1)} once{' together' * (len(e.columns) > 1)}"
    if isinstance(e, DuplicateRows):
        return "no row occurs twice"
    if isinstance(e, ConflictingLabels):
        return f"rows alike in {_listed(e.columns or project.features.inputs)} have one label"
    if isinstance(e, Leakage):
        columns = _listed(e.columns or project.features.inputs)
        return f"at most {e.max_share:.12g} of the holdout is alike in {columns} with a row of training"
    return _wanted_of_table(project, e)


def _wanted_of_table(project: Project, e: AnyExpectation) -> str:
    if isinstance(e, Columns):
        return f"the source has {_listed(e.names)}{' and no other columns' if e.only else ''}"
    if isinstance(e, Dtype):
        return f"the source has {e.column} as {e.dtype}"
    if isinstance(e, Monotonic):
        return f"{e.column} is {'strictly ' if e.strict else ''}{e.expect} in the source's order"
    if isinstance(e, Freshness):
        return f"the newest {e.column or project.event_time} is at most {e.max_age_s:g} s old"
    if isinstance(e, NotInFuture):
        slack = f" by more than {e.slack_s:g} s" if e.slack_s else ""
        return f"no {e.column or project.event_time} is after now{slack}"
    if isinstance(e, Covers):
        return f"{e.column} has at least {e.min_rows} row{'s' * (e.min_rows > 1)} of each of {_listed(e.values)}"
    if isinstance(e, Distribution):
        return f"{e.distance} of {e.column} to the previous version is at most {e.max:g}"
    assert isinstance(e, RowCount | NullShare | LabelShare | Statistic | Quantile | DistinctCount | MostCommonShare)
    subjects = {
        "row_count": "the number of kept rows",
        "row_count_change": "the number of kept rows in relation to the previous version",
        "label_share": f"the share of ones in {project.target}",
    }
    column = getattr(e, "column", "")
    subjects |= {
        "null_share": f"the share of empty cells in {column}",
        "std": f"the standard deviation of {column}",
        "distinct_count": f"the number of different values of {column}",
        "most_common_share": f"the share of the most common {column}",
    }
    what = f"the {e.q:g} quantile" if isinstance(e, Quantile) else f"the {e.expect}"
    return f"{subjects.get(e.expect, f'{what} of {column}')} {_span(e.min, e.max)}"


def _span(low: object, high: object) -> str:
    low, high = (f"{end:.12g}" if isinstance(end, int | float) else end for end in (low, high))
    if low == high:
        return f"is {low}"
    if high is None:
        return f"is at least {low}"
    return f"is at most {high}" if low is None else f"is between {low} and {high}"


def _listed(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    shown = ", ".join(texts[:12]) + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")
    return shown if len(shown) <= 300 else shown[:297] + "..."


def _time(microseconds: float) -> str:
    said = value_of(pa.scalar(int(microseconds), pa.timestamp("us", "UTC")))
    return said.isoformat() if isinstance(said, datetime) else str(said)
