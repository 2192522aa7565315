"""Which rows train, which choose among candidates, and which judge: decided row by row, never by position.

A `Cut` holds all that the decision needs, so every shard of a dataset decides alone, in any order, and the same rows
fall on the same sides today and in a year. The parts are disjoint by construction: each row has one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mlops_ray.config import Split
from mlops_ray.data.content import row_hashes
from mlops_ray.errors import DataError

TRAIN, VALIDATION, HOLDOUT = 0, 1, 2
"""The sides: fits, chooses among candidates, judges the winner."""
NAMES = ("train", "validation", "holdout")

Sides = npt.NDArray[np.int8]


@dataclass(frozen=True)
class TimeCut:
    """Rows before `validation` train, those before `holdout` validate, the others judge: microseconds since epoch."""

    column: str
    validation: int
    holdout: int

    @property
    def columns(self) -> tuple[str, ...]:
        """What `assign` needs of a table."""
        return (self.column,)

    def to_dict(self) -> dict[str, Any]:
        """For the run's record; times in microseconds since the epoch."""
        return {"by": "time", "column": self.column, "validation_us": self.validation, "holdout_us": self.holdout}


@dataclass(frozen=True)
class HashCut:
    """Equal values of `columns` share a side: their salted hash in [0, 1) picks it.

    The holdout lies at the bottom and validation above it, so a larger `holdout_share` keeps the rows that judged
    before: none of them moves into training.
    """

    by: str
    columns: tuple[str, ...]
    salt: str
    validation_share: float
    holdout_share: float

    def to_dict(self) -> dict[str, Any]:
        """For the run's record."""
        shares = {"validation_share": self.validation_share, "holdout_share": self.holdout_share}
        return {"by": self.by, "columns": list(self.columns), "salt": self.salt, **shares}


Cut = TimeCut | HashCut


@dataclass(frozen=True)
class FoldCut:
    """The rows before the holdout of `cut`, dealt into `n` parts, 0 to n - 1; the holdout is part -1.

    By time the parts hold about equally many rows, oldest first: `bounds` are the first instants of all but the first,
    microseconds since epoch. Else a row's part follows from the hash that picks its side, stirred once more.
    """

    cut: Cut
    n: int
    bounds: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """What `assign` needs of a table."""
        return self.cut.columns

    @property
    def fits(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Each fold's parts to train on, and the part to validate on: by time all older parts, else all others."""
        if isinstance(self.cut, TimeCut):
            return tuple((tuple(range(part)), part) for part in range(1, self.n))
        return tuple((tuple(other for other in range(self.n) if other != part), part) for part in range(self.n))


def columns(split: Split, *, event_time: str, key: str) -> tuple[str, ...]:
    """The columns that decide a row's side: the time, the declared groups, or the key."""
    return {"time": (event_time,), "group": split.group, "hash": (key,)}[split.by]


def cut(split: Split, *, event_time: str, key: str, salt: str, times: npt.ArrayLike) -> Cut:
    """The cut that `split` asks for.

    Args: event_time: column that a split by time follows; key: column that a split by hash hashes; salt: of the hash,
        the same one at every retrain, lest yesterday's holdout trains today. times: of all rows, microseconds since
        epoch, any order; only a split by time looks at them.
    A split by time takes the newest rows as holdout; rows of one instant stay together, so the holdout may hold more
    than its share. A split by hash or group keeps to the shares only as closely as the groups are many and small.
    Raises: DataError when a part would be empty by time.
    """
    if split.by != "time":
        grouped = columns(split, event_time=event_time, key=key)
        return HashCut(split.by, grouped, salt, split.validation_share, split.holdout_share)
    ordered = np.sort(np.asarray(times, dtype=np.int64))
    n = len(ordered)
    n_holdout, n_validation = round(n * split.holdout_share), round(n * split.validation_share)
    if n_holdout and n_validation and n_holdout + n_validation < n:
        found = TimeCut(event_time, int(ordered[n - n_holdout - n_validation]), int(ordered[n - n_holdout]))
        if ordered[0] < found.validation < found.holdout:
            return found
    raise DataError("split", f"{n} rows at {len(np.unique(ordered))} instants cannot be split in three; give more rows")


def fold_cut(cut: Cut, folds: int, *, times: npt.ArrayLike) -> FoldCut:
    """The parts of a cross-validation of `folds` folds: one more than folds by time, as many as folds else.

    Args: times: of all rows, microseconds since epoch, any order; only a cut by time looks at them.
    Raises: DataError when there are fewer instants before the holdout than parts.
    """
    if isinstance(cut, HashCut):
        return FoldCut(cut, folds)
    known = np.sort(np.asarray(times, dtype=np.int64))
    known = known[known < cut.holdout]
    bounds = tuple(int(known[len(known) * part // (folds + 1)]) for part in range(1, folds + 1)) if len(known) else ()
    if len(set(bounds)) < folds or known[0] == bounds[0]:
        at = len(np.unique(known))
        raise DataError("search.cross_validation", f"{folds} folds need more than the {at} instants before the holdout")
    return FoldCut(cut, folds + 1, bounds)


def assign(cut: Cut | FoldCut, table: pa.Table) -> Sides:
    """The side of each row, shape (n,): `TRAIN`, `VALIDATION` or `HOLDOUT`; of a `FoldCut` the part, -1 the holdout.
    `table` has the columns of `cut`.

    Raises: DataError for rows without a time, when time decides.
    """
    if isinstance(cut, FoldCut):
        held = assign(cut.cut, table) == HOLDOUT
        if isinstance(cut.cut, TimeCut):
            found = np.searchsorted(cut.bounds, _instants(cut.cut, table), side="right")
        else:
            # Of the places above the holdout's, so that parts are equally large: the last digits, not the first.
            found = np.floor(_places(cut.cut, table) * 2.0**26 % 1 * cut.n)
        return np.where(held, -1, found).astype(np.int8)
    if isinstance(cut, TimeCut):
        times = _instants(cut, table)
        sides: Sides = np.searchsorted([cut.validation, cut.holdout], times, side="right").astype(np.int8)
        return sides
    place = _places(cut, table)
    sides = np.full(table.num_rows, TRAIN, dtype=np.int8)
    sides[place < cut.holdout_share + cut.validation_share] = VALIDATION
    sides[place < cut.holdout_share] = HOLDOUT
    return sides


def _instants(cut: TimeCut, table: pa.Table) -> npt.NDArray[np.int64]:
    """Of each row, microseconds since epoch."""
    column = table[cut.column]
    if column.null_count:
        raise DataError(cut.column, f"{column.null_count} rows have none, so time cannot split them; prepare again")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    times: npt.NDArray[np.int64] = pc.cast(column, pa.int64()).to_numpy()
    return times


def _places(cut: HashCut, table: pa.Table) -> npt.NDArray[np.float64]:
    """Where each row's group lies in [0, 1): the top 53 bits of its hash, which a double holds exactly.

    The salt is mixed in by one more multiply and shift, the finaliser of MurmurHash3 (Appleby 2011)."""
    bits = row_hashes(table.select(list(cut.columns)))[0] ^ np.uint64(xxhash.xxh3_64_intdigest(cut.salt.encode()))
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    places: npt.NDArray[np.float64] = ((bits ^ (bits >> np.uint64(33))) >> np.uint64(11)).astype(np.float64)
    return places * 2.0**-53
