"""A dataset version in memory, or the part of it that the gates need, oldest row first, with what each row is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.config import Features, Project
from mlops_ray.data import lake, splits
from mlops_ray.data.features.statistics import Partial, folds, to_columns
from mlops_ray.data.features.transformer import training_matrix, transformer
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.profile import Columns
from mlops_ray.data.sources.shards import ROWS_PER_BATCH
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, Cut, FoldCut, Sides
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.search.trials import FoldData
from mlops_ray.training.target import Classes, Labels

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset version, oldest first: `times` in seconds since the epoch, labels, inputs, sides.

    `counts`: of all rows of the version, how many fall to each side; `read_part` keeps fewer of them here."""

    table: pa.Table
    times: Floats
    y: Labels
    classes: Classes
    weights: Floats | None
    columns: Columns
    cut: Cut
    sides: Sides
    counts: tuple[int, ...]
    shown: tuple[str, ...]
    """Columns of `table` that the gates look at."""
    fold_of: Indices | None
    """Fold of each row, where target encoding needs one."""

    def of(self, *parts: int) -> Indices:
        """Numbers of the rows of these sides, oldest first."""
        return np.flatnonzero(np.isin(self.sides, parts))

    def shuffled(self, rng: np.random.Generator) -> Rows:
        """The same rows with the labels of all but the holdout's permuted: nothing can be learnt from them."""
        y, seen = self.y.copy(), self.of(TRAIN, VALIDATION)
        y[seen] = rng.permutation(y[seen])
        return replace(self, y=y)

    def inputs(self, numbers: Indices) -> Columns:
        """Inputs of these rows."""
        return {name: values[numbers] for name, values in self.columns.items()}

    def groups(self, numbers: Indices) -> dict[str, NDArray[np.object_]]:
        """Of these rows the columns that the gates look at, as they stand in the data."""
        rows = self.table.select(list(self.shown)).take(pa.array(numbers))
        return {name: np.array(rows[name].to_pylist(), dtype=object) for name in self.shown}

    def columns_for(self, features: Features, numbers: Indices) -> Columns:
        """Inputs of another version's features of these rows."""
        return to_columns(features, self.table.take(pa.array(numbers)))

    def matrix(self, project: Project, y: Labels, fitting: Indices, others: Indices, partial: Partial) -> FoldData:
        """What estimators see of the rows `fitting`, then of `others`, by a transform fitted on `fitting` alone.

        Args: y: labels of all rows; partial: the feature statistics of the rows `fitting`."""
        numbers = np.concatenate([fitting, others])
        fold_of = None
        if self.fold_of is not None:
            # -1 from the first of the others on, whose labels no encoding saw
            fold_of = np.where(np.arange(len(numbers)) < len(fitting), self.fold_of[numbers], -1)
        fitted = transformer(project.features, partial)
        values = training_matrix(project.features, partial, fitted, self.inputs(numbers), fold_of)
        weights = None if self.weights is None else self.weights[numbers]
        return FoldData(values, len(fitting), y[numbers], weights)

    def search_cut(self, project: Project) -> Cut | FoldCut:
        """How the rows before the holdout are dealt for the search."""
        plan = project.search.cross_validation
        return self.cut if plan is None else splits.fold_cut(self.cut, plan.folds, times=self.times * 1e6)

    def folds(self, project: Project, cut: Cut | FoldCut, y: Labels, partials: Mapping[int, Partial]) -> list[FoldData]:
        """One matrix per fold of the search; without cross-validation there is one.

        Args: cut: as `search_cut` made it; y: labels of all rows; partials: feature statistics of each part of `cut`.
        """
        parts = splits.assign(cut, self.table)
        fits = cut.fits if isinstance(cut, FoldCut) else (((TRAIN,), VALIDATION),)
        made = []
        for train, validation in fits:
            fitting, others = np.flatnonzero(np.isin(parts, train)), np.flatnonzero(parts == validation)
            made.append(self.matrix(project, y, fitting, others, reduce(add, (partials[part] for part in train))))
        return made


def read(project: Project, dataset: DatasetVersion, also: Iterable[str] = ()) -> Rows:
    """The rows of `dataset` as `project` splits and reads them; `also` names further columns to keep in `table`.

    Raises: DataError for rows without a time or a label, a label that the task does not know, a side without rows, a
        training side that nothing can be learnt from, weights that are negative or missing.
    """
    names, shown = _columns(project, dataset, also)
    return of_table(project, lake.read(dataset, names), shown, named=label(dataset))


def of_table(project: Project, table: pa.Table, shown: tuple[str, ...], *, named: str) -> Rows:
    """The same of rows that are in memory. Args: shown: columns that the gates look at; named: for messages."""
    _refuse_nulls(named, table, project.event_time, project.target)
    instants = table[project.event_time].cast(pa.int64()).to_numpy()
    order = np.argsort(instants, kind="stable")
    table, instants = table.take(pa.array(order)), instants[order]
    cut = _cut(project, instants)
    sides = splits.assign(cut, table)
    counts = _counts(named, sides)
    known = target.classes(project.task, table[project.target].filter(pa.array(sides != HOLDOUT)))
    rows = _rows(project, table, cut, known, counts, shown)
    target.learnable(project.task, rows.y[sides == TRAIN], side="train")
    return rows


def read_part(project: Project, dataset: DatasetVersion, also: Iterable[str] = (), *, most: int) -> Rows:
    """The holdout's rows, and `most` of the rows before it, evenly spread over them in order of time.

    As `read`, for versions that fit no process: files are read batch by batch, three times; of all rows only time and
    side are held, nine bytes each. `cut`, `classes` and `counts` are those of all rows.
    Raises: as `read`; but whether labels can be learnt from, and the weights of the rows that are not kept, whoever
        fits on all rows finds out.
    """
    names, shown = _columns(project, dataset, also)
    times = []
    for table in _batches(dataset, [project.event_time, project.target]):
        _refuse_nulls(label(dataset), table, project.event_time, project.target)
        times.append(table[project.event_time].cast(pa.int64()).to_numpy())
    instants = np.concatenate(times)
    cut = _cut(project, instants)
    sides, classes = _surveyed(project, dataset, cut)
    counts = _counts(label(dataset), sides)
    order = np.argsort(instants, kind="stable")
    kept = sides == HOLDOUT
    kept[even(order[sides[order] != HOLDOUT], most)] = True
    parts, start = [], 0
    for table in _batches(dataset, names):
        parts.append(table.filter(pa.array(kept[start : start + table.num_rows])))
        start += table.num_rows
    part = pa.concat_tables(parts).take(pa.array(np.argsort(instants[kept], kind="stable")))
    return _rows(project, part, cut, classes, counts, shown)


def even(numbers: Indices, most: int) -> Indices:
    """At most so many of `numbers`, shape (n,), evenly spread from the first to the last."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), most)).astype(np.int64))]


def decay(times: Floats, half_life_s: float) -> Floats:
    """What rows weigh, shape (n,), in (0, 1]: the newest 1, one that is older by `half_life_s` half of that.

    Args: times: seconds since the epoch, shape (n,).
    >>> decay(np.array([0.0, 10.0, 20.0]), 10.0).tolist()
    [0.25, 0.5, 1.0]
    """
    return np.asarray(np.exp2((times - times.max(initial=-np.inf)) / half_life_s), dtype=np.float64)


def _columns(project: Project, dataset: DatasetVersion, also: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """Columns to read, and those of them that the gates look at."""
    event_time, key = project.event_time, project.key
    there = set(lake.opened(dataset, lake.files(dataset)[0]).schema_arrow.names)
    shown = tuple(name for name in gate_columns(project) if name in there)
    needed = dict.fromkeys((event_time, project.target, *project.features.inputs, *also, *shown))
    needed |= dict.fromkeys(splits.columns(project.split, event_time=event_time, key=key))
    needed |= dict.fromkeys([key] if project.features.target_encoded else [])
    weighed = project.search.sample_weight
    if weighed is not None:
        if weighed not in there:
            raise DataError(weighed, f"search.sample_weight is no column of {label(dataset)}; it must be a feature")
        needed |= {weighed: None}
    return list(needed), shown


def _batches(dataset: DatasetVersion, columns: Iterable[str]) -> Iterator[pa.Table]:
    """All rows in the order of `lake.read`, `ROWS_PER_BATCH` at most at a time."""
    wanted = list(dict.fromkeys(columns))
    for path in lake.files(dataset):
        for batch in lake.opened(dataset, path).iter_batches(batch_size=ROWS_PER_BATCH, columns=wanted):
            yield pa.Table.from_batches([batch]).select(wanted)


def _refuse_nulls(named: str, table: pa.Table, *names: str) -> None:
    for name in names:
        if table[name].null_count:
            raise DataError(name, f"{table[name].null_count} rows of {named} have none; run prepare again")


def _cut(project: Project, instants: Indices) -> Cut:
    return splits.cut(
        project.split, event_time=project.event_time, key=project.key, salt=project.project, times=instants
    )


def _counts(named: str, sides: Sides) -> tuple[int, ...]:
    """Rows of each side. Raises: DataError when one has none."""
    counts = np.bincount(sides, minlength=len(splits.NAMES)).tolist()
    for n, name in zip(counts, splits.NAMES, strict=True):
        if not n:
            raise DataError("split", f"no row of {named} falls to {name}; split otherwise, or give more rows")
    return tuple(counts)


def _surveyed(project: Project, dataset: DatasetVersion, cut: Cut) -> tuple[Sides, Classes]:
    """Every row's side, in the files' order, and the classes of the rows before the holdout."""
    sides, labels = [], []
    for table in _batches(dataset, (*cut.columns, project.target)):
        sides.append(splits.assign(cut, table))
        if project.task == "multiclass":
            labels.append(table[project.target].filter(pa.array(sides[-1] != HOLDOUT)).unique())
    found = pa.chunked_array(labels, table.schema.field(project.target).type)
    return np.concatenate(sides), target.classes(project.task, found)


def _rows(
    project: Project, table: pa.Table, cut: Cut, classes: Classes, counts: tuple[int, ...], shown: tuple[str, ...]
) -> Rows:
    """`Rows` of `table`, oldest first."""
    plan = project.search
    if project.task == "multiclass":
        _refuse_unseen(project.target, classes, table[project.target])
    times = table[project.event_time].cast(pa.int64()).to_numpy() / 1e6
    weights = None if plan.sample_weight is None else _weights(plan.sample_weight, table[plan.sample_weight])
    if plan.half_life_s is not None:
        faded = decay(times, plan.half_life_s)
        weights = faded if weights is None else faded * weights
    return Rows(
        table,
        times,
        target.encode(project.task, classes, table[project.target]),
        classes,
        weights,
        to_columns(project.features, table),
        cut,
        splits.assign(cut, table),
        counts,
        shown,
        folds(table[project.key]) if project.features.target_encoded else None,
    )


def _refuse_unseen(name: str, classes: Classes, values: pa.ChunkedArray) -> None:
    """Refuse classes that no row before the holdout has: nothing could learn them, and nothing judges them."""
    unseen = sorted(set(values.unique().to_pylist()) - {*classes, None})
    if unseen:
        shown = ", ".join(repr(label) for label in unseen[:5]) + (" ..." if len(unseen) > 5 else "")
        n = int(pc.sum(pc.is_in(values, pa.array(unseen, values.type))).as_py())
        raise DataError(
            name,
            f"class {shown} is in the holdout only ({n} rows), so that nothing can learn it; prepare more rows, split "
            "otherwise, or leave the class out by an expectation",
        )


def gate_columns(project: Project) -> tuple[str, ...]:
    """Columns that the gates look at besides the features."""
    gates = project.gates
    named = [block.columns for block in (gates.slices, gates.fairness) if block is not None]
    return tuple(
        dict.fromkeys([name for each in named for name in each] + ([gates.block_group] if gates.block_group else []))
    )


def label(dataset: DatasetVersion) -> str:
    """How runs, versions and messages name a dataset version."""
    return f"{dataset.uri}@{dataset.version}"


def _weights(name: str, column: pa.ChunkedArray) -> Floats:
    values: Floats = pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        way = f"mend the source, let an expectation drop or clip such rows, or leave search.sample_weight ({name}) out"
        n = int(wrong.sum())
        raise DataError(
            name, f"a weight is a finite number of at least 0; row {row} has {values[row]:g} ({n} such rows); {way}"
        )
    if not (values > 0).any():
        raise DataError(name, f"all weights are 0; give rows some weight, or leave search.sample_weight ({name}) out")
    return values
