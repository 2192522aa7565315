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


def assign(cut: Cut, table: pa.Table) -> Sides:
    """The side of each row, shape (n,): `TRAIN`, `VALIDATION` or `HOLDOUT`. `table` has the columns of `cut`.

    Raises: DataError for rows without a time, when time decides.
    """
    if isinstance(cut, TimeCut):
        column = table[cut.column]
        if column.null_count:
            raise DataError(cut.column, f"{column.null_count} rows have none, so time cannot split them; prepare again")
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        times = pc.cast(column, pa.int64()).to_numpy()
        sides: Sides = np.searchsorted([cut.validation, cut.holdout], times, side="right").astype(np.int8)
        return sides
    place = _places(cut, table)
    sides = np.full(table.num_rows, TRAIN, dtype=np.int8)
    sides[place < cut.holdout_share + cut.validation_share] = VALIDATION
    sides[place < cut.holdout_share] = HOLDOUT
    return sides


def _places(cut: HashCut, table: pa.Table) -> npt.NDArray[np.float64]:
    """Where each row's group lies in [0, 1): the top 53 bits of its hash, which a double holds exactly.

    The salt is mixed in by one more multiply and shift, the finaliser of MurmurHash3 (Appleby 2011)."""
    bits = row_hashes(table.select(list(cut.columns)))[0] ^ np.uint64(xxhash.xxh3_64_intdigest(cut.salt.encode()))
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    places: npt.NDArray[np.float64] = ((bits ^ (bits >> np.uint64(33))) >> np.uint64(11)).astype(np.float64)
    return places * 2.0**-53
