"""Feature statistics that merge over shards, and the fitted scikit-learn transformer that they make.

`fold` sees what the model will see: numeric values rounded to float32 (the precision of requests and of the ONNX
graph), NaN and null alike as missing, and "" as the missing category.

Quantiles come from counts per value. When a feature has more than `MAX_VALUES` distinct float32 values, their lowest
bits are dropped, one bit at a time, until no more than that many buckets are left. How many bits go depends only on the
set of all values, never on how rows were sharded or in which order shards were merged, so edges are repeatable. The
rank error of a quantile is at most the share of rows in one bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Features
from mlops_ray.data.profile import Bins, Columns, Moments, moments
from mlops_ray.errors import DataError

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

MAX_VALUES = 4096
"""Buckets per numeric feature: 400 per decile, so an edge is off by some tenth of a per cent of the rows."""
N_BINS = 10
"""Bins of a profile, about equally full. Fewer hide a shift, more make small windows noisy."""
MIN_BIN_SHARE = 0.01
"""No bin is set up for fewer rows: one row in a hundred is the least that windows of 500 rows can still compare."""
MAX_CATEGORIES = 50
"""Categories that a profile counts one by one; rarer ones share the bin `other`."""


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """Counts per bucket of float32 values: `keys` uint32 strictly rising, `counts` int64, `level` dropped bits.

    A key is the value's bit pattern mapped so that keys order as values do, shifted right by `level`.
    """

    keys: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]
    level: int = 0

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> ValueCounts:
        """Counts of finite values, shape (n,)."""
        bits = (values + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)
        found, counts = np.unique(keys, return_counts=True)
        return cls(found, counts.astype(np.int64))._fit()

    def __add__(self, other: ValueCounts) -> ValueCounts:
        level = max(self.level, other.level)
        mine, theirs = self._at(level), other._at(level)
        keys = np.concatenate([mine.keys, theirs.keys])
        return _grouped(keys, np.concatenate([mine.counts, theirs.counts]), level)._fit()

    def _at(self, level: int) -> ValueCounts:
        if level == self.level:
            return self
        return _grouped(self.keys >> np.uint32(level - self.level), self.counts, level)

    def _fit(self) -> ValueCounts:
        fitted = self
        while fitted.keys.size > MAX_VALUES:
            fitted = fitted._at(fitted.level + 1)
        return fitted

    @property
    def lowest(self) -> npt.NDArray[np.float32]:
        """Smallest value of each bucket, shape (buckets,): itself the value where no bits were dropped."""
        keys = self.keys << np.uint32(self.level)
        return np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32).view(np.float32)


def _grouped(keys: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64], level: int) -> ValueCounts:
    found, where = np.unique(keys, return_inverse=True)
    summed = np.zeros(found.size, dtype=np.int64)
    np.add.at(summed, where, counts)
    return ValueCounts(found, summed, level)


@dataclass(frozen=True, eq=False)
class NumericStats:
    """Statistics of one numeric feature. `moments`, `low`, `high` and `values` are of the rows that have a value."""

    missing: int
    moments: Moments
    low: float
    high: float
    values: ValueCounts

    def __add__(self, other: NumericStats) -> NumericStats:
        return NumericStats(
            self.missing + other.missing,
            self.moments + other.moments,
            min(self.low, other.low),
            max(self.high, other.high),
            self.values + other.values,
        )


@dataclass(frozen=True, eq=False)
class Partial:
    """Statistics of the features over `n` rows; partials of disjoint shards add up to those of all rows."""

    n: int
    numeric: dict[str, NumericStats]
    categorical: dict[str, dict[str, int]]
    """Rows per category; missing ones are what is left to `n`."""

    def __add__(self, other: Partial) -> Partial:
        """Statistics of both. Raises: DataError when they are of different features."""
        if self.numeric.keys() != other.numeric.keys() or self.categorical.keys() != other.categorical.keys():
            raise DataError("features", "partial statistics of different features do not add")
        numeric = {name: mine + other.numeric[name] for name, mine in self.numeric.items()}
        categorical = {}
        for name, mine in self.categorical.items():
            theirs = other.categorical[name]
            categorical[name] = {c: mine.get(c, 0) + theirs.get(c, 0) for c in mine.keys() | theirs.keys()}
        return Partial(self.n + other.n, numeric, categorical)


def fold(features: Features, table: pa.Table) -> Partial:
    """Statistics of the rows of `table`, which has the declared columns (see `schema.conform`)."""
    columns = to_columns(features, table)
    numeric = {}
    for name in features.numeric.columns:
        values = columns[name]
        present = values[np.isfinite(values)]
        numeric[name] = NumericStats(
            missing=int(values.size - present.size),
            moments=moments(present),
            low=float(present.min()) if present.size else np.inf,
            high=float(present.max()) if present.size else -np.inf,
            values=ValueCounts.of(present),
        )
    categorical = {}
    for name in features.categorical.columns:
        counted = pc.value_counts(table[name].cast(pa.string())).to_pylist()
        categorical[name] = {c["values"]: int(c["counts"]) for c in counted if c["values"]}
    return Partial(table.num_rows, numeric, categorical)


def to_columns(features: Features, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """The batch that models and profiles take: float32 with NaN for missing, str objects with "" for missing.

    Raises: DataError when `table` lacks a feature.
    """
    absent = [name for name in features.columns if name not in table.column_names]
    if absent:
        raise DataError("features", f"columns {absent} are missing; there are {table.column_names}")
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in features.numeric.columns:
        wide = table[name].cast(pa.float64(), safe=False).to_numpy()
        with np.errstate(over="ignore"):
            columns[name] = wide.astype(np.float32)
    for name in features.categorical.columns:
        text = pc.fill_null(table[name].cast(pa.string()), "")
        columns[name] = text.to_pandas().to_numpy(dtype=object)
    return columns


def to_frame(features: Features, columns: Columns) -> pd.DataFrame:
    """What the scikit-learn Pipeline takes: one column per feature, numeric float64, categorical object."""
    numeric: dict[str, pd.Series[Any]] = {
        name: pd.Series(columns[name].astype(np.float64)) for name in features.numeric.columns
    }
    text: dict[str, pd.Series[Any]] = {
        name: pd.Series(columns[name], dtype=object) for name in features.categorical.columns
    }
    return pd.DataFrame({**numeric, **text}, columns=list(features.columns))


def categories(features: Features, partial: Partial) -> dict[str, tuple[str, ...]]:
    """Per categorical feature the categories that the encoder knows: at least `min_share` of all rows, sorted.

    Raises: DataError when a feature has none.
    """
    least = features.categorical.min_share * partial.n
    known = {
        name: tuple(sorted(c for c, n in partial.categorical[name].items() if n >= least))
        for name in features.categorical.columns
    }
    for name, found in known.items():
        if not found:
            raise DataError(
                name, f"no category has {least:g} rows or more; lower features.categorical.min_share or drop the column"
            )
    return known


def transformer(features: Features, partial: Partial) -> ColumnTransformer:
    """The fitted ColumnTransformer: imputer and scaler for numbers, one-hot encoder for categories.

    Equal to what scikit-learn would fit on the same rows (`to_frame(to_columns(...))`): categories and counts exactly,
    means and variances to 1e-9. A numeric feature without any value is filled with 0; a missing, rare or unseen
    category becomes a row of zeros.
    Raises: DataError when there are no rows, or a categorical feature without categories.
    """
    # Imported here: workers that only fold need no scikit-learn, and importing it costs a second each.
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    if partial.n == 0:
        raise DataError("features", "there are no rows to fit on")
    known = categories(features, partial)
    impute = features.numeric.impute
    imputer = SimpleImputer(
        strategy=impute,
        fill_value=features.numeric.fill_value if impute == "constant" else None,
        keep_empty_features=True,
    )
    scaler = StandardScaler()
    steps = [("impute", imputer)] + ([("scale", scaler)] if features.numeric.scale == "standard" else [])
    encoder = OneHotEncoder(
        categories=[np.array(c, dtype=object) for c in known.values()], handle_unknown="ignore", sparse_output=False
    )
    parts: list[tuple[str, Any, list[str]]] = []
    if features.numeric.columns:
        parts.append(("numeric", Pipeline(steps), list(features.numeric.columns)))
    if features.categorical.columns:
        parts.append(("categorical", encoder, list(features.categorical.columns)))
    # A frame of one row lets scikit-learn set up its bookkeeping (names, positions, widths); what it learnt from that
    # row is then replaced by the statistics of all rows.
    row: dict[str, Any] = {name: np.zeros(1, dtype=np.float32) for name in features.numeric.columns}
    row |= {name: np.array([c[0]], dtype=object) for name, c in known.items()}
    fitted = ColumnTransformer(parts, sparse_threshold=0).fit(to_frame(features, row))
    if features.numeric.columns:
        filled = {name: _fill(features, partial.numeric[name]) for name in features.numeric.columns}
        pipeline = fitted.named_transformers_["numeric"]
        if impute == "mean":  # a constant is no statistic, and stands there already
            pipeline.named_steps["impute"].statistics_ = np.array(list(filled.values()), dtype=np.float64)
        if "scale" in pipeline.named_steps:
            _set_scaler(pipeline.named_steps["scale"], partial, filled)
    return fitted


def _fill(features: Features, stats: NumericStats) -> float:
    """What stands in for a missing value."""
    return features.numeric.fill_value if features.numeric.impute == "constant" else stats.moments.mean


def _set_scaler(scaler: Any, partial: Partial, filled: Mapping[str, float]) -> None:
    """Statistics of the imputed column: the missing rows enter as so many copies of the filled-in value."""
    total = [partial.numeric[k].moments + Moments(partial.numeric[k].missing, v, 0.0) for k, v in filled.items()]
    mean = np.array([m.mean for m in total], dtype=np.float64)
    variance = np.array([m.variance for m in total], dtype=np.float64)
    # A constant column is scaled by 1. The bound is scikit-learn's own (`_is_constant_feature`): the rounding error of
    # a variance over n rows, Chan, Golub and LeVeque 1983.
    eps = float(np.finfo(np.float64).eps)
    constant = variance <= partial.n * eps * variance + (partial.n * mean * eps) ** 2
    scaler.mean_, scaler.var_ = mean, variance
    scaler.scale_ = np.where(constant, 1.0, np.sqrt(variance))
    scaler.n_samples_seen_ = np.int64(partial.n)


def bins(features: Features, partial: Partial) -> Bins:
    """Bins for profiles: about ten equally full ones per numeric feature, the top 50 categories otherwise.

    A value that alone fills a bin (no rain at all, say) gets one of its own, so that the rest is still seen.
    """
    numeric = {name: _edges(partial.numeric[name].values) for name in features.numeric.columns}
    categorical = {}
    for name in features.categorical.columns:
        ranked = sorted(partial.categorical[name].items(), key=lambda item: (-item[1], item[0]))
        categorical[name] = tuple(c for c, _ in ranked[:MAX_CATEGORIES])
    return Bins(numeric, categorical)


def _edges(values: ValueCounts) -> tuple[float, ...]:
    """Inner edges, each the smallest value of the bin that it opens: float32, as the values that will be compared."""
    total = int(values.counts.sum())
    full, least = total / N_BINS, total * MIN_BIN_SHARE
    edges: list[float] = []
    inside = passed = 0
    for low, count in zip(values.lowest.tolist(), values.counts.tolist(), strict=True):
        closes = inside >= full or (count >= full and inside >= least)
        if closes and total - passed >= least:
            edges.append(low)
            inside = 0
        inside += count
        passed += count
    return tuple(edges)
