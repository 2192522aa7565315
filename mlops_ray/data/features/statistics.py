"""Feature statistics that merge over shards: one pass, the same sums in whatever order rows come.

`fold` sees what the model will see: numeric values rounded to float32 (the precision of requests and of the ONNX
graph), NaN, null and what is not finite in float32 alike as missing, and "" as the missing category.

Quantiles come from counts per value. When a feature has more than `MAX_VALUES` distinct float32 values, their lowest
bits are dropped, one bit at a time, until no more than that many buckets are left. How many bits go depends only on the
set of all values, never on how rows were sharded or in which order shards were merged, so edges are repeatable. The
rank error of a quantile is at most the share of rows in one bucket (`ValueCounts.rank_error`): some tenths of a per
cent for values of one scale, but most of the rows where many distinct values lie near 0 and a dense cluster far from
it. `rough` names such features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Features
from mlops_ray.config.features import Numeric, Quantiles
from mlops_ray.data.features.derive import derive, murmur3, texts_read
from mlops_ray.data.profile import Columns, Moments
from mlops_ray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MAX_VALUES = 4096
"""Buckets per numeric feature: 400 per decile, so an edge is off by some tenth of a per cent of the rows."""
FINE_VALUES = 65_536
"""Buckets where a scale is made of the whole distribution: the power of values far from 0 hangs on its third moment,
which 4096 buckets miss by one part in a hundred (measured), and 0.8 MB a shard is still little."""
ROUGH = 0.01
"""Rank error of quantiles from which on a feature is said to be rough: a decile's edge is off by a tenth of its bin."""
MAX_DISTINCT = 1_000_000
"""Categories of one feature that are counted exactly: 100 MB; what has more is an identifier, and hashed if used."""
MAX_CUSTOM_CELLS = 20_000_000
"""Cells that are gathered for a custom transformer, which sees its rows at once: 160 MB of float64."""
FOLDS = 5
"""Of target encoding, scikit-learn's own default: each training row is encoded by the other four fifths."""


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """Counts per bucket of float32 values: `keys` uint32 strictly rising, `counts` int64, `level` dropped bits.

    A key is the value's bit pattern mapped so that keys order as values do, shifted right by `level`.
    """

    keys: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]
    level: int = 0
    most: int = MAX_VALUES
    """Buckets at most; counts with another limit do not add to these."""

    @classmethod
    def of(cls, values: npt.NDArray[np.float32], most: int = MAX_VALUES) -> ValueCounts:
        """Counts of finite values, shape (n,)."""
        return cls.of_sorted(np.sort(values), most)

    @classmethod
    def of_sorted(cls, values: npt.NDArray[np.float32], most: int = MAX_VALUES) -> ValueCounts:
        """Counts of finite values in rising order, shape (n,)."""
        bits = (values + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0
        negative = int(np.searchsorted(values, np.float32(0.0)))
        keys = bits | np.uint32(1 << 31)
        np.invert(bits[:negative], out=keys[:negative])
        return _fitted(keys, None, 0, most)

    def __add__(self, other: ValueCounts) -> ValueCounts:
        level = max(self.level, other.level)
        keys = np.concatenate([part.keys >> np.uint32(level - part.level) for part in (self, other)])
        order = np.argsort(keys, kind="stable")
        return _fitted(keys[order], np.concatenate([self.counts, other.counts])[order], level, self.most)

    @property
    def rank_error(self) -> float:
        """Bound on the rank error of a quantile: the largest share of rows in one bucket of several values.

        0 where every distinct value was counted: quantiles are exact then."""
        return float(self.counts.max() / self.counts.sum()) if self.level and self.counts.size else 0.0

    @property
    def lowest(self) -> npt.NDArray[np.float32]:
        """Smallest value of each bucket, shape (buckets,): itself the value where no bits were dropped."""
        return _values(self.keys << np.uint32(self.level))

    @property
    def middle(self) -> npt.NDArray[np.float64]:
        """A value for each bucket, shape (buckets,), rising: itself the value where no bits were dropped."""
        low = self.lowest.astype(np.float64)
        if not self.level:
            return low
        last = (self.keys << np.uint32(self.level)) | np.uint32((1 << self.level) - 1)
        # The last value of the outermost bucket may be beyond all numbers.
        top = np.minimum(_values(last).astype(np.float64), float(np.finfo(np.float32).max))
        return np.asarray((low + np.where(np.isnan(top), low, top)) / 2, dtype=np.float64)


def _fitted(keys: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64] | None, level: int, limit: int) -> ValueCounts:
    """Sorted `keys` (each standing for one row where there are no `counts`) in at most `limit` buckets."""
    if not keys.size:
        return ValueCounts(keys, np.zeros(0, dtype=np.int64), level, limit)
    # Neighbours are of one bucket, when the lowest `dropped` bits are gone, exactly if their XOR has no higher bit.
    apart = keys[1:] ^ keys[:-1]
    dropped, most = 0, 32 - level
    if np.count_nonzero(apart) >= limit:
        while dropped < most:  # the smallest number of bits that suffices, by bisection
            middle = (dropped + most) // 2
            if np.count_nonzero(apart >> np.uint32(middle)) < limit:
                most = middle
            else:
                dropped = middle + 1
    starts = np.concatenate([[0], np.flatnonzero(apart >> np.uint32(dropped)) + 1])
    summed = np.diff(starts, append=keys.size).astype(np.int64) if counts is None else np.add.reduceat(counts, starts)
    return ValueCounts(keys[starts] >> np.uint32(dropped), summed, level + dropped, limit)


def _values(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    return np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32).view(np.float32)


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
class TargetStats:
    """What target encoding needs of one categorical feature: per category and fold the rows and their targets' sum.

    `categories` objects of str, shape (c,), sorted, "" (missing) among them; `n` and `positives` int64 of shape
    (c, folds).
    """

    categories: npt.NDArray[np.object_]
    n: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]

    def __add__(self, other: TargetStats) -> TargetStats:
        found, place = np.unique(np.concatenate([self.categories, other.categories]), return_inverse=True)
        sums = []
        for mine, theirs in ((self.n, other.n), (self.positives, other.positives)):
            summed = np.zeros((found.size, FOLDS), dtype=np.int64)
            np.add.at(summed, place, np.concatenate([mine, theirs]))
            sums.append(summed)
        return TargetStats(found, *sums)


@dataclass(frozen=True, eq=False)
class Partial:
    """Statistics of the features over `n` rows; partials of disjoint shards add up to those of all rows."""

    n: int
    numeric: dict[str, NumericStats]
    categorical: dict[str, dict[str, int]]
    """Rows per category; missing ones are what is left to `n`."""
    changed: dict[str, Moments] = field(default_factory=dict)
    """Moments of columns after clipping and logarithm, under `view`."""
    targets: dict[str, TargetStats] = field(default_factory=dict)
    rows: tuple[tuple[npt.NDArray[Any], ...], ...] = ()
    """Per custom transformer the gathered rows of its columns, as blocks of shape (n, columns)."""

    def __add__(self, other: Partial) -> Partial:
        """Statistics of both. Raises: DataError when they are of different features, or there is too much of them."""
        if (
            self.numeric.keys() != other.numeric.keys()
            or self.categorical.keys() != other.categorical.keys()
            or self.changed.keys() != other.changed.keys()
            or self.targets.keys() != other.targets.keys()
            or len(self.rows) != len(other.rows)
        ):
            raise DataError("features", "partial statistics of different features do not add")
        categorical = {}
        for name, mine in self.categorical.items():
            theirs = other.categorical[name]
            categorical[name] = {c: mine.get(c, 0) + theirs.get(c, 0) for c in mine.keys() | theirs.keys()}
            _limit(name, len(categorical[name]))
        rows = tuple(mine + theirs for mine, theirs in zip(self.rows, other.rows, strict=True))
        for blocks in rows:
            _limit_rows(blocks)
        return Partial(
            self.n + other.n,
            {name: mine + other.numeric[name] for name, mine in self.numeric.items()},
            categorical,
            {name: mine + other.changed[name] for name, mine in self.changed.items()},
            {name: mine + other.targets[name] for name, mine in self.targets.items()},
            rows,
        )


def rough(partial: Partial) -> dict[str, float]:
    """The features whose quantiles may be off by more than `ROUGH`, and by what share of the rows, in (0, 1]."""
    errors = {name: stats.values.rank_error for name, stats in partial.numeric.items()}
    return {name: error for name, error in errors.items() if error > ROUGH}


def _limit(name: str, n: int) -> None:
    if n > MAX_DISTINCT:
        raise DataError(
            name, f"has more than {MAX_DISTINCT:,} categories; give it `encode: hash`, or take it out of the features"
        )


def _limit_rows(blocks: tuple[npt.NDArray[Any], ...]) -> None:
    if sum(block.size for block in blocks) > MAX_CUSTOM_CELLS:
        raise DataError(
            "features.custom",
            f"a custom transformer sees all rows at once, at most {MAX_CUSTOM_CELLS:,} cells; give it fewer columns",
        )


def view(block: Numeric, name: str) -> str:
    """Under what name `Partial.changed` keeps the moments of a column as the block's clip and log leave it."""
    clip = list(block.clip) if isinstance(block.clip, tuple) else "quantiles" if block.clip is not None else None
    return f"{name} clip={clip} log={block.log}"


def is_changed(block: Numeric) -> bool:
    """Whether the block's moments need a sum of their own: its values are clipped at given limits, or logarithms."""
    return isinstance(block.clip, tuple) or (block.log and block.clip is None)


def is_whole(block: Numeric) -> bool:
    """Whether the block needs the whole distribution as finely as it can be had."""
    return block.scaling in ("power", "quantile") or isinstance(block.clip, Quantiles)


def changed(block: Numeric, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`values` clipped at the given limits, then their logarithm taken, as the transformer does it."""
    limits = limits_of(block)
    if limits is not None:
        values = np.clip(values, *limits)
    return np.log1p(values) if block.log else values


def limits_of(block: Numeric) -> tuple[float, float | None] | None:
    """The given limits of a block. A logarithm has one at 0: no request may make it infinite."""
    if isinstance(block.clip, tuple):
        return block.clip
    return (0.0, None) if block.log else None


def fold(features: Features, table: pa.Table, *, target: str | None = None, key: str | None = None) -> Partial:
    """Statistics of the rows of `table`, which has the declared columns (see `schema.conform`).

    Args: target, key: columns with the label (0 or 1) and the row's key, whose hash deals rows to folds; only features
    with `encode: target` need them.
    Raises: DataError when `table` lacks a column, a target is neither 0 nor 1, or there is too much to count.
    """
    _has(table, features.inputs)
    counted = list(dict.fromkeys((*features.raw_numbers, *features.numbers)))
    custom = [name for block in features.custom_blocks if block.kind == "categorical" for name in block.columns]
    columns: Columns = {name: _numbers(table[name]) for name in features.raw_numbers}
    if features.derived:
        rest = [name for name, kind in features.kinds.items() if kind == "time" or name in texts_read(features)]
        columns = derive(features, {**columns, **to_columns(features, table, rest)})
    whole = {name for _, block in features.numeric_parts if is_whole(block) for name in block.columns}
    numeric = {}
    moments: dict[str, Moments] = {}
    blocks = [block for _, block in features.numeric_parts if is_changed(block)]
    for name in counted:
        present, missing = _present(columns[name])
        numeric[name] = NumericStats(
            missing=missing,
            moments=_moments(present.astype(np.float64)),
            low=float(present[0]) if present.size else np.inf,
            high=float(present[-1]) if present.size else -np.inf,
            values=ValueCounts.of_sorted(present, FINE_VALUES if name in whole else MAX_VALUES),
        )
        for block in blocks:
            if name in block.columns:
                moments[view(block, name)] = _moments(changed(block, present.astype(np.float64)))
    coded = {name: _coded(name, table[name]) for name in features.counted}
    categorical = {name: _counts(*coded[name]) for name in features.counted}
    targets = _targets(features, table, coded, target, key) if features.target_encoded else {}
    rows = []
    if features.custom_blocks:
        columns = {**columns, **to_columns(features, table, custom)}
        for each in features.custom_blocks:
            _limit_rows((np.empty((table.num_rows, len(each.columns)), dtype=np.bool_),))
            dtype = np.float64 if each.kind == "numeric" else object
            rows.append((np.stack([columns[name].astype(dtype) for name in each.columns], axis=1),))
    return Partial(table.num_rows, numeric, categorical, moments, targets, tuple(rows))


def _has(table: pa.Table, names: Iterable[str]) -> None:
    absent = [name for name in names if name not in table.column_names]
    if absent:
        raise DataError("features", f"columns {absent} are missing; there are {table.column_names}")


def _present(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """The finite values in rising order, and how many others there are. One sort serves every statistic."""
    ordered = np.sort(values)  # NaN last
    start = int(np.searchsorted(ordered, np.float32(-np.inf), "right"))
    stop = int(np.searchsorted(ordered, np.float32(np.inf), "left"))
    return ordered[start:stop], values.size - (stop - start)


def _moments(values: npt.NDArray[np.float64]) -> Moments:
    """Moments of finite values, which it overwrites. Source: the two-pass algorithm with the correction of its first
    pass' rounding error (Chan, Golub and LeVeque 1983)."""
    if not values.size:
        return Moments()
    mean = float(values.mean())
    values -= mean
    rest = float(values.sum())
    # Not by a dot product: BLAS would wake its threads, which on a busy machine wait for each other.
    squares = float(np.square(values, out=values).sum())
    return Moments(int(values.size), mean, max(0.0, squares - rest**2 / values.size))


def _coded(name: str, cells: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Distinct categories ("" last, for missing), and each row's place among them, shape (n,)."""
    encoded = cells.combine_chunks() if pa.types.is_dictionary(cells.type) else cells.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    _limit(name, len(encoded.dictionary))
    known = [c or "" for c in encoded.dictionary.cast(pa.string()).to_pylist()]
    places = pc.fill_null(encoded.indices, len(known)) if encoded.indices.null_count else encoded.indices
    return [*known, ""], places.to_numpy(zero_copy_only=False)


def _counts(known: list[str], places: npt.NDArray[np.int64]) -> dict[str, int]:
    counted = np.bincount(places, minlength=len(known)).tolist()
    return {c: n for c, n in zip(known, counted, strict=True) if c and n}


def _targets(
    features: Features,
    table: pa.Table,
    coded: dict[str, tuple[list[str], npt.NDArray[np.int64]]],
    target: str | None,
    key: str | None,
) -> dict[str, TargetStats]:
    if target is None or key is None:
        raise DataError("features", "`encode: target` needs the target's and the key's columns")
    _has(table, (target, key))
    values = table[target].cast(pa.float64(), safe=False).to_numpy()
    if not np.isin(values, (0.0, 1.0)).all():
        raise DataError(target, "target encoding needs a label of 0 or 1 in every row")
    cell = folds(table[key])
    out = {}
    for name in features.target_encoded:
        known, places = coded[name]
        categories, into = np.unique(np.array(known, dtype=object), return_inverse=True)
        cells = into[places] * FOLDS + cell
        shape = (len(categories), FOLDS)
        n = np.bincount(cells, minlength=shape[0] * FOLDS).reshape(shape)
        positives = np.bincount(cells, weights=values, minlength=shape[0] * FOLDS).reshape(shape)
        seen = n.any(axis=1)
        out[name] = TargetStats(categories[seen], n[seen].astype(np.int64), positives[seen].astype(np.int64))
    return out


def folds(keys: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Fold of each row, shape (n,): by the hash of its key, so neither order nor sharding moves a row."""
    encoded = keys.cast(pa.string()).dictionary_encode().unify_dictionaries().combine_chunks()
    of_key = np.append(murmur3(encoded.dictionary.to_pylist()).astype(np.int64) % FOLDS, 0)
    places = pc.fill_null(encoded.indices, len(of_key) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(of_key[places], dtype=np.int64)


def _numbers(cells: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    wide = cells if pa.types.is_floating(cells.type) else cells.cast(pa.float64(), safe=False)
    with np.errstate(over="ignore"):
        narrow = np.asarray(wide.to_numpy()).astype(np.float32)
    narrow[np.isinf(narrow)] = np.nan  # what is infinite, or too big for float32, is no number to any step
    return narrow


def to_columns(features: Features, table: pa.Table, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The batch of inputs that models and profiles take (or of those called `names`), shape (n,) each.

    Numbers float32 with NaN for missing or beyond float32 (3.4e38), strings as objects with "" for missing, times
    float64 seconds since the epoch with NaN for missing.
    Raises: DataError when `table` lacks an input.
    """
    wanted = features.inputs if names is None else tuple(names)
    _has(table, wanted)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in wanted:
        kind = features.kinds[name]
        if kind == "number":
            columns[name] = _numbers(table[name])
        elif kind == "string":
            text = pc.fill_null(table[name].cast(pa.string()), "")
            columns[name] = text.to_numpy(zero_copy_only=False)
        else:
            columns[name] = seconds(table[name])
    return columns


def seconds(times: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Times as seconds since the epoch, NaN for null, shape (n,)."""
    micros = times.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return np.asarray(micros.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64) / 1e6


def to_frame(features: Features, columns: Columns) -> pd.DataFrame:
    """What the scikit-learn Pipeline takes: one column per model column, numeric float64, categorical object.

    Args: columns: the inputs, as `to_columns` makes them; derived columns are added.
    """
    import pandas as pd  # here, for the log's side of serving needs none

    columns = derive(features, columns)
    numeric: dict[str, pd.Series[Any]] = {
        name: pd.Series(columns[name].astype(np.float64)) for name in features.numbers
    }
    text: dict[str, pd.Series[Any]] = {name: pd.Series(columns[name], dtype=object) for name in features.texts}
    return pd.DataFrame({**numeric, **text}, columns=list(features.columns))
