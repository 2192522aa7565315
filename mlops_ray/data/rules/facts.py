"""Facts: what the kept rows say as a whole, in a form that adds; the evidence of the table-level expectations.

Batches and shards are folded one by one and added in the source's order. Everything but `Order` is the same for any cut
of the rows into batches (sums of floats up to the last digits), and `Order` for any cut into contiguous ones: counts
are counts, histograms have bins that are the same for all data, and of too many distinct values those with the smallest
hashes are kept, which are the same ones whoever looks first.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Project
from mlops_ray.config.expectations import Covers, Monotonic, instant
from mlops_ray.data.cells import as_python
from mlops_ray.data.content import row_hashes
from mlops_ray.data.profile import Moments
from mlops_ray.errors import DataError

KEPT_VALUES = 4096
"""Distinct values of which counts are kept per column: estimates of more have a standard error of 1 / sqrt(4094)."""
_SHIFT = 42
"""Bits cut off a float64's mantissa of 52: bins are 2**-10 wide in relation to the value."""
_FORMAT = 1
_LONGEST = 80

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts over bins that are the same for all data: a float64 cut to eleven significant bits.

    A bin is 0.1 % of its value wide; whole numbers up to 2,047 have bins of their own. `keys` rise, shape (k,), and
    `counts` are above 0. Source: the log-linear buckets of HdrHistogram (Tene 2012), in the way of DDSketch (Masson,
    Rim and Lee 2019): relative error by the value, and counts that add exactly.
    """

    keys: Ints
    counts: Ints

    def __add__(self, other: Histogram) -> Histogram:
        """Histogram of both sets of values together."""
        keys, inverse = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        np.add.at(counts, inverse, np.concatenate([self.counts, other.counts]))
        return Histogram(keys, counts)

    @property
    def n(self) -> int:
        """Values in it."""
        return int(self.counts.sum())

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """The end of each bin that is nearer to zero, shape (k,)."""
        return _edges(self.keys)

    def quantile(self, q: float) -> float:
        """The value of rank ceil(q n), at least the first: right to 0.1 % of it, towards zero. NaN without values."""
        if not self.n:
            return float("nan")
        rank = max(int(np.ceil(q * self.n)), 1)
        return float(self.edges[int(self.counts.cumsum().searchsorted(rank))])


def histogram(values: npt.NDArray[np.float64]) -> Histogram:
    """Histogram of finite `values`, shape (n,)."""
    bits = (values + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    keys = bits >> _SHIFT
    if bits.size and bits.min() < 0:
        keys = np.where(bits < 0, -1 - ((bits & np.int64(2**63 - 1)) >> _SHIFT), keys)
    if not keys.size:
        return Histogram(keys, keys)
    low = int(keys.min())
    if int(keys.max()) - low < 1 << 20:
        counts = np.bincount(keys - low)
        found = np.flatnonzero(counts)
        return Histogram(found + low, counts[found])
    return Histogram(*np.unique(keys, return_counts=True))


def _edges(keys: Ints) -> npt.NDArray[np.float64]:
    size = np.where(keys < 0, -1 - keys, keys) << _SHIFT
    return np.where(keys < 0, -1.0, 1.0) * size.view(np.float64)


@dataclass(frozen=True, eq=False)
class Values:
    """Counts of the distinct values with the smallest hashes, at most `KEPT_VALUES`; `more`: there were others.

    The counts of those that are kept are exact. `counts` maps the hash to (rows, the value as text).
    Source: bottom-k sketch, Bar-Yossef et al. 2002; estimator of Beyer et al. 2007.
    """

    counts: dict[int, tuple[int, str]] = field(default_factory=dict)
    more: bool = False

    def __add__(self, other: Values) -> Values:
        """Counts of both sets of rows together."""
        merged = dict(self.counts)
        for key, (n, label) in other.counts.items():
            merged[key] = (merged[key][0] + n, label) if key in merged else (n, label)
        more = self.more or other.more or len(merged) > KEPT_VALUES
        kept = sorted(merged)[:KEPT_VALUES]
        return Values({key: merged[key] for key in kept}, more)

    @property
    def n_distinct(self) -> int:
        """Number of distinct values: exact up to `KEPT_VALUES`, else estimated."""
        if not self.more:
            return len(self.counts)
        return round((KEPT_VALUES - 1) / (max(self.counts) / 2.0**64))


def _values(name: str, cells: pa.ChunkedArray) -> Values:
    counted = pc.value_counts(cells.drop_null())
    distinct, counts = counted.field("values"), counted.field("counts").to_numpy()
    hashes = row_hashes(pa.table({name: distinct}))[0]
    order = np.argsort(hashes)[:KEPT_VALUES]
    labels = [_label(value) for value in as_python(distinct.take(pa.array(order)))]
    kept = {int(h): (int(n), text) for h, n, text in zip(hashes[order], counts[order], labels, strict=True)}
    return Values(kept, len(hashes) > KEPT_VALUES)


def _label(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


@dataclass(frozen=True, eq=False)
class ColumnFacts:
    """Of one column's kept cells. What nobody asks for is None (`moments`, `histogram`, `values`) or not counted.

    `low`, `high` and `total` are numbers (bool as 0 and 1), of timestamps microseconds since the epoch; None without
    cells. `total` of whole numbers is exact.
    """

    n: int = 0
    n_null: int = 0
    low: float | int | None = None
    high: float | int | None = None
    total: float | int = 0
    moments: Moments | None = None
    histogram: Histogram | None = None
    values: Values | None = None

    def __add__(self, other: ColumnFacts) -> ColumnFacts:
        """Facts of both sets of cells together."""
        lows = [x for x in (self.low, other.low) if x is not None]
        highs = [x for x in (self.high, other.high) if x is not None]
        return ColumnFacts(
            self.n + other.n,
            self.n_null + other.n_null,
            min(lows, default=None),
            max(highs, default=None),
            self.total + other.total,
            _both(self.moments, other.moments),
            _both(self.histogram, other.histogram),
            _both(self.values, other.values),
        )


def _both(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return a + b


@dataclass(frozen=True)
class Order:
    """Of a column's cells in the source's order, nulls left out: neighbours, and how many of them are in disorder."""

    direction: str
    strict: bool
    first: float | int | None = None
    last: float | int | None = None
    n_pairs: int = 0
    n_broken: int = 0

    def __add__(self, other: Order) -> Order:
        """Order of these cells followed by the others."""
        if self.last is None or other.first is None:
            return other if self.last is None else self
        seam = int(not self.keeps(self.last, other.first))
        n = self.n_pairs + other.n_pairs + 1
        return Order(self.direction, self.strict, self.first, other.last, n, self.n_broken + other.n_broken + seam)

    def keeps(self, before: Any, after: Any) -> Any:
        """Whether two neighbours are in order; arrays too."""
        low, high = (before, after) if self.direction == "increasing" else (after, before)
        return low < high if self.strict else low <= high


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts of `n` kept rows. `Facts()` is that of none: adding it changes nothing.

    `columns` by name; `orders` and `covers` (rows per wanted value) by the expectation's id. `dtypes`: of the columns
    as the source had them; `partly`: columns that some batches lacked.
    """

    n: int = 0
    columns: dict[str, ColumnFacts] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    covers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    partly: tuple[str, ...] = ()

    def __add__(self, other: Facts) -> Facts:
        """Facts of these rows followed by the others."""
        partly = set(self.partly) | set(other.partly)
        if self.dtypes and other.dtypes:
            partly |= self.dtypes.keys() ^ other.dtypes.keys()
        return Facts(
            self.n + other.n,
            {k: _both(self.columns.get(k), other.columns.get(k)) for k in _names(self.columns, other.columns)},
            {k: _both(self.orders.get(k), other.orders.get(k)) for k in _names(self.orders, other.orders)},
            {
                k: tuple(map(sum, zip(*(side[k] for side in (self.covers, other.covers) if k in side), strict=True)))
                for k in _names(self.covers, other.covers)
            },
            {
                k: tuple(sorted({*self.dtypes.get(k, ()), *other.dtypes.get(k, ())}))
                for k in _names(self.dtypes, other.dtypes)
            },
            tuple(sorted(partly)),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss; histograms and values are packed."""
        return {
            "format": _FORMAT,
            "n": self.n,
            "columns": {name: _column_to_dict(column) for name, column in self.columns.items()},
            "orders": {
                k: [v.direction, v.strict, v.first, v.last, v.n_pairs, v.n_broken] for k, v in self.orders.items()
            },
            "covers": {k: list(v) for k, v in self.covers.items()},
            "dtypes": {k: list(v) for k, v in self.dtypes.items()},
            "partly": list(self.partly),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Facts:
        """The facts that `to_dict` wrote. Raises: DataError when another release wrote them."""
        if body.get("format") != _FORMAT:
            raise DataError("facts", f"format {body.get('format')!r} is not {_FORMAT}: another release wrote them")
        return cls(
            int(body["n"]),
            {name: _column_from_dict(column) for name, column in body["columns"].items()},
            {k: Order(*v) for k, v in body["orders"].items()},
            {k: tuple(v) for k, v in body["covers"].items()},
            {k: tuple(v) for k, v in body["dtypes"].items()},
            tuple(body["partly"]),
        )


def _names(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _column_to_dict(column: ColumnFacts) -> dict[str, Any]:
    body: dict[str, Any] = {"n": column.n, "n_null": column.n_null, "total": _said(column.total)}
    body |= {"low": column.low, "high": column.high}
    if column.moments is not None:
        body["moments"] = [column.moments.n, _said(column.moments.mean), _said(column.moments.m2)]
    if column.histogram is not None:
        steps = np.diff(column.histogram.keys, prepend=0)
        body["histogram"] = _pack(np.concatenate([steps, column.histogram.counts]).astype("<i8").tobytes())
    if column.values is not None:
        rows = [[key, n, label] for key, (n, label) in column.values.counts.items()]
        body["values"] = _pack(json.dumps([column.values.more, rows]).encode())
    return body


def _said(figure: float | int) -> float | int | str:
    """As JSON has it, which knows no infinity: sums of the largest floats overflow."""
    return figure if math.isfinite(figure) else str(figure)


def _column_from_dict(body: Mapping[str, Any]) -> ColumnFacts:
    moments, histogram, values = None, None, None
    if "moments" in body:
        n, *figures = body["moments"]
        moments = Moments(n, *map(float, figures))
    if "histogram" in body:
        steps, counts = np.frombuffer(_unpack(body["histogram"]), dtype="<i8").astype(np.int64).reshape(2, -1)
        histogram = Histogram(steps.cumsum(), counts)
    if "values" in body:
        more, rows = json.loads(_unpack(body["values"]))
        values = Values({key: (n, label) for key, n, label in rows}, more)
    low, high, total = body["low"], body["high"], body["total"]
    if isinstance(total, str):
        total = float(total)
    return ColumnFacts(body["n"], body["n_null"], low, high, total, moments, histogram, values)


def _pack(content: bytes) -> str:
    return base64.b85encode(zlib.compress(content, 9)).decode()


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


# Folding --------------------------------------------------------------------------------------------------------------

_NEEDS: dict[str, str] = {
    "null_share": "nulls",
    "mean": "total",
    "sum": "total",
    "std": "moments",
    "minimum": "range",
    "maximum": "range",
    "freshness": "range",
    "not_in_future": "range",
    "median": "histogram",
    "quantile": "histogram",
    "distinct_count": "values",
    "most_common_share": "values",
    "label_share": "total",
}


def needs(project: Project) -> dict[str, set[str]]:
    """What the project's expectations want to know of which column: total, range, moments, histogram, values, nulls."""
    wanted: dict[str, set[str]] = {}
    for expectation in project.validation.expectations:
        kind = expectation.expect
        column = getattr(expectation, "column", None)
        what = _NEEDS.get(kind)
        if kind in ("freshness", "not_in_future"):
            column = column or project.event_time
        elif kind == "label_share":
            column = project.target
        elif kind == "distribution":
            what = "values" if project.column(str(column)).dtype == "string" else "histogram"
        if what is not None and column is not None:
            wanted.setdefault(column, set()).add(what)
    return wanted


def fold(project: Project, schema: pa.Schema, good: pa.Table) -> Facts:
    """Facts of one batch.

    Args: schema: of the batch as the source had it; good: its rows that keep the row rules, in the source's order, with
    the declared columns and dtypes (`schema.conform`).
    """
    orders, covers = {}, {}
    for expectation in project.validation.expectations:
        if isinstance(expectation, Monotonic):
            orders[expectation.name] = _order(good[expectation.column], expectation.expect, expectation.strict)
        elif isinstance(expectation, Covers):
            covers[expectation.name] = _covered(good[expectation.column], expectation.values)
    return Facts(
        good.num_rows,
        {name: _column(name, good[name], what) for name, what in needs(project).items()},
        orders,
        covers,
        {name: (_dtype(kind),) for name, kind in zip(schema.names, schema.types, strict=True)},
    )


def _column(name: str, cells: pa.ChunkedArray, what: set[str]) -> ColumnFacts:
    n = len(cells) - cells.null_count
    numbers = cells
    if pa.types.is_timestamp(cells.type) or pa.types.is_boolean(cells.type):
        numbers = cells.cast(pa.int64())
    low, high, moments = None, None, None
    total: float | int = 0
    if n and what & {"range", "histogram", "moments"}:
        ends = pc.min_max(numbers).as_py()
        low, high = ends["min"], ends["max"]
    if n and "total" in what:
        total = _total(numbers)
    if "moments" in what:
        mean, variance = pc.mean(numbers).as_py() or 0.0, pc.variance(numbers).as_py() or 0.0
        moments = Moments(n, float(mean), float(variance) * n) if n else Moments()
    floats = numbers.drop_null().cast(pa.float64(), safe=False).to_numpy() if "histogram" in what else None
    return ColumnFacts(
        n,
        cells.null_count,
        low,
        high,
        total,
        moments,
        histogram(floats) if floats is not None else None,
        _values(name, cells) if "values" in what else None,
    )


def _total(numbers: pa.ChunkedArray) -> float | int:
    if not pa.types.is_integer(numbers.type):
        return float(pc.sum(numbers).as_py())
    ends = pc.min_max(numbers).as_py()
    if max(abs(ends["min"]), abs(ends["max"])) * len(numbers) < 2**63:
        return int(pc.sum(numbers).as_py())
    # Arrow's sum would wrap around silently.
    return int(sum(numbers.drop_null().to_pylist()))


def _order(cells: pa.ChunkedArray, direction: str, strict: bool) -> Order:
    numbers = cells.cast(pa.int64()) if pa.types.is_timestamp(cells.type) else cells
    values = numbers.drop_null().to_numpy()
    order = Order(direction, strict)
    if not values.size:
        return order
    broken = int(np.count_nonzero(~order.keeps(values[:-1], values[1:])))
    return Order(direction, strict, values[0].item(), values[-1].item(), len(values) - 1, broken)


def _covered(cells: pa.ChunkedArray, wanted: Sequence[Any]) -> tuple[int, ...]:
    found = pc.index_in(cells, value_set=wanted_cells(wanted, cells.type), skip_nulls=True).drop_null()
    return tuple(np.bincount(found.to_numpy(), minlength=len(wanted)).tolist())


def wanted_cells(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of the project file as cells of a column: times from their text."""
    if pa.types.is_timestamp(kind):
        return pa.array([instant(str(value)) for value in values], kind)
    if pa.types.is_integer(kind):
        # 2.5 is no whole number, so no cell is equal to it.
        return pa.array([int(v) if float(v).is_integer() else None for v in values], kind)
    return pa.array(values, kind)


def _dtype(kind: pa.DataType) -> str:
    """The project file's name of an Arrow type; Arrow's own when it has none."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    named = (("int", pa.types.is_integer), ("bool", pa.types.is_boolean), ("timestamp", pa.types.is_timestamp))
    return next((name for name, fits in named if fits(kind)), str(kind))
