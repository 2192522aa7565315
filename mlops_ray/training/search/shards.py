"""Rows of a dataset version, described: a worker is handed the description, reads its own rows and no others.

A *piece* is a run of rows inside one row group of one Parquet file. Pieces are dealt so that workers fit on about
equally many rows; where there are few row groups, several workers read different stretches of one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Features, Task
from mlops_ray.data import lake, splits
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.features.statistics import Partial, folds, to_columns
from mlops_ray.data.features.transformer import training_matrix
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.sources.shards import ROWS_PER_BATCH
from mlops_ray.data.splits import Cut, FoldCut
from mlops_ray.errors import DataError
from mlops_ray.training.target import Classes, Labels, encode

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Role = Literal["fit", "judge"]
Weights = npt.NDArray[np.float32]

GROUPS_PER_WORKER = 4
"""Row groups for each worker from which on they are dealt whole: some spread over time, and no row read twice."""
PIECES_PER_WORKER = 8
"""Of a row group that is split: workers then see all its times alike."""


class Batch(NamedTuple):
    """Rows as an estimator takes them: float32 (n, width), labels (n,), weights (n,) or None for 1 each."""

    matrix: npt.NDArray[np.float32]
    y: Labels
    weights: Weights | None


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `first + n_rows` of a row group; `n_fit` and `n_judge` of them have these roles."""

    path: str
    row_group: int
    first: int
    n_rows: int
    n_fit: int = 0
    n_judge: int = 0


@dataclass(frozen=True, eq=False)
class Shards:
    """Which rows of a dataset version fit and which judge, and how they become a matrix.

    fit, judge: sides (parts) of `cut`. fitted: the transformer; `partial`, the statistics it came from, is needed with
    target encodings only, and so is `key`, the column whose hash deals their folds. weight: a column of row weights.
    class_weight: factor of each class's rows when fitting, by place in `classes`, see `class_factors`; () for none.
    """

    dataset: DatasetVersion
    cut: Cut | FoldCut
    features: Features
    fitted: ColumnTransformer
    target: str
    task: Task
    classes: Classes
    fit: tuple[int, ...] = (splits.TRAIN,)
    judge: tuple[int, ...] = (splits.VALIDATION,)
    key: str | None = None
    partial: Partial | None = None
    weight: str | None = None
    class_weight: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.features.target_encoded and (self.key is None or self.partial is None):
            raise ValueError("target encodings are cross-fitted by `key`, from `partial`; give both")

    @property
    def deciding(self) -> tuple[str, ...]:
        """Columns that say what a row is for, its label and its weight."""
        found = [*self.cut.columns, self.target]
        found += [self.weight] if self.weight is not None else []
        return tuple(dict.fromkeys(found))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""
        keys = [self.key] if self.key is not None and self.features.target_encoded else []
        return tuple(dict.fromkeys([*self.deciding, *self.features.inputs, *keys]))

    def mask(self, table: pa.Table, role: Role) -> npt.NDArray[np.bool_]:
        """Rows of `table` with that role, shape (n,)."""
        sides = splits.assign(self.cut, table)
        return np.isin(sides, self.fit if role == "fit" else self.judge)

    def labels(self, table: pa.Table) -> tuple[Labels, Weights | None]:
        """Labels and the weights of `weight` of all rows. Raises: DataError for labels and weights that are none."""
        return encode(self.task, self.classes, table[self.target]), self._weights(table)

    def _weights(self, table: pa.Table) -> Weights | None:
        if self.weight is None:
            return None
        weights = pc.fill_null(table[self.weight].cast(pa.float64()), float("nan")).to_numpy()
        wrong = ~(np.isfinite(weights) & (weights >= 0))
        if wrong.any():
            found = weights[int(np.argmax(wrong))]
            n = int(wrong.sum())
            raise DataError(self.weight, f"a weight is a finite number of at least 0; {n} are not: {found:g}")
        return np.asarray(weights, dtype=np.float32)

    def batch(self, table: pa.Table, role: Role) -> Batch:
        """The matrix of all rows of `table`, which have that role: target encodings are cross-fitted when fitting."""
        y, weights = self.labels(table)
        if role == "fit" and self.class_weight:
            factor = np.asarray(self.class_weight, dtype=np.float32)[y]
            weights = factor if weights is None else weights * factor
        if role == "fit" and self.partial is not None and self.key is not None and self.features.target_encoded:
            columns = to_columns(self.features, table)
            fold_of = folds(table[self.key])
            wide = training_matrix(self.features, self.partial, self.fitted, columns, fold_of)
        else:
            wide = transformed(self.features, self.fitted, table)
        return Batch(wide.astype(np.float32), y, weights)


@dataclass(frozen=True)
class Survey:
    """What a look at all rows' sides and labels found: the pieces, and the rows of each class among those to fit.

    `low` and `high` are the extremes of the labels to fit, `n_fit` and `n_judge` rows."""

    pieces: tuple[Piece, ...]
    per_class: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    low: float = np.inf
    high: float = -np.inf

    def __add__(self, other: Survey) -> Survey:
        return Survey(
            self.pieces + other.pieces,
            self.per_class + other.per_class,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def n_fit(self) -> int:
        """Rows to fit."""
        return sum(piece.n_fit for piece in self.pieces)

    @property
    def n_judge(self) -> int:
        """Rows that judge."""
        return sum(piece.n_judge for piece in self.pieces)


def survey(shards: Shards, path: str, workers: int) -> Survey:
    """What one file of the dataset holds, cut into pieces for `workers`. Reads the deciding columns only.

    Raises: DataError for labels or weights of these rows that are none."""
    file = lake.opened(shards.dataset, path)
    found = Survey((), np.zeros(max(1, len(shards.classes)), dtype=np.int64))
    for group in range(file.num_row_groups):
        n_rows, start = file.metadata.row_group(group).num_rows, 0
        step = max(1, min(ROWS_PER_BATCH, -(-n_rows // (PIECES_PER_WORKER * workers))))
        for read in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group], columns=list(shards.deciding)):
            for first in range(0, read.num_rows, step):
                table = pa.Table.from_batches([read.slice(first, step)])
                found += _surveyed(shards, Piece(path, group, start + first, table.num_rows), table)
            start += read.num_rows
    return found


def _surveyed(shards: Shards, piece: Piece, table: pa.Table) -> Survey:
    fits, judges = shards.mask(table, "fit"), shards.mask(table, "judge")
    y, _ = shards.labels(table.filter(pa.array(fits)))
    shards.labels(table.filter(pa.array(judges)))
    seen = replace(piece, n_fit=int(fits.sum()), n_judge=int(judges.sum()))
    n_classes = max(1, len(shards.classes))
    known = y if shards.classes else np.zeros(len(y), dtype=np.int64)
    per_class = np.bincount(known, minlength=n_classes)
    if not len(y):
        return Survey((seen,), per_class)
    return Survey((seen,), per_class, float(y.min()), float(y.max()))


def class_factors(wanted: Literal["balanced"] | Mapping[int, float] | None, seen: Survey) -> tuple[float, ...]:
    """`Shards.class_weight`, of weights by place of the class, or "balanced": n / (classes * rows of the class)."""
    if wanted is None:
        return ()
    counts = seen.per_class
    if isinstance(wanted, str):
        return tuple((counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))).tolist())
    return tuple(float(wanted.get(place, 1.0)) for place in range(len(counts)))


def deal(pieces: Sequence[Piece], workers: int) -> tuple[tuple[Piece, ...], ...]:
    """Each worker's pieces, in the files' order. The same pieces and workers give the same deal.

    Each piece goes to whoever has the fewest rows to fit so far (then to judge), so that loads are even and each
    worker sees all times; a row group stays whole where there are `GROUPS_PER_WORKER` for each worker."""
    units = [tuple(group) for _, group in groupby(pieces, key=lambda p: (p.path, p.row_group))]
    if len(units) < GROUPS_PER_WORKER * workers:
        units = [(piece,) for piece in pieces]
    dealt: list[list[Piece]] = [[] for _ in range(workers)]
    load = [(0, 0)] * workers
    for unit in units:
        n_fit, n_judge = sum(p.n_fit for p in unit), sum(p.n_judge for p in unit)
        if n_fit or n_judge:  # the rest is nobody's to read
            index = min(range(workers), key=lambda w: (load[w] if n_fit else load[w][::-1], w))
            load[index] = (load[index][0] + n_fit, load[index][1] + n_judge)
            dealt[index] += unit
    return tuple(tuple(each) for each in dealt)


def batches(shards: Shards, pieces: Sequence[Piece], role: Role) -> Iterator[Batch]:
    """The rows of `pieces` with that role, in order, at most `ROWS_PER_BATCH` at a time.

    Raises: DataError when a file is gone, or labels or weights are none."""
    wanted = [piece for piece in pieces if (piece.n_fit if role == "fit" else piece.n_judge)]
    for table in _read(shards, wanted, shards.columns):
        chosen = table.filter(pa.array(shards.mask(table, role)))
        if chosen.num_rows:
            yield shards.batch(chosen, role)


def _read(shards: Shards, pieces: Sequence[Piece], columns: Sequence[str]) -> Iterator[pa.Table]:
    for (path, group), members in groupby(pieces, key=lambda p: (p.path, p.row_group)):
        spans = [(piece.first, piece.first + piece.n_rows) for piece in members]
        file, start = lake.opened(shards.dataset, path), 0
        for read in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group], columns=list(columns)):
            stop = start + read.num_rows
            for low, high in ((max(a, start), min(b, stop)) for a, b in spans):
                if low < high:
                    yield pa.Table.from_batches([read.slice(low - start, high - low)])
            start = stop
            if start >= spans[-1][1]:
                break


def reader(shards: Shards, pieces: Sequence[Piece], role: Role) -> Callable[[], Iterator[Batch]]:
    """`batches`, to be begun again and again."""
    return functools.partial(batches, shards, pieces, role)
