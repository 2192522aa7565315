"""Ray Data carries the data room: one pass reads, validates, writes and hashes; the driver merges and commits."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import ray
import ray.data
import ray.exceptions

from mlops_ray.config import Column, Project, Source
from mlops_ray.data import features, lake
from mlops_ray.data.expectations import QUARANTINE, UNIQUE, Report, check, examples, quarantined
from mlops_ray.data.features import Partial
from mlops_ray.data.lake import DataFile, DatasetVersion, RowHash
from mlops_ray.data.schema import arrow_schema, conform
from mlops_ray.errors import DataError

ROWS_PER_BLOCK = 100_000
"""Of tables that a Python function returns: a block costs Ray some 10 ms, a hundred thousand rows 100 ms of work."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made (or found), and what validation saw on the way."""

    dataset: DatasetVersion
    report: Report


@dataclass(frozen=True, eq=False)
class _Part:
    """What one block left behind: its files, and everything about them that merges."""

    report: Report
    good: DataFile | None
    good_hash: RowHash
    bad: tuple[DataFile, ...]
    bad_hash: RowHash
    keys: npt.NDArray[np.uint64]
    """Hashes of the `validation.unique` columns of the good rows, in the file's order; empty without such columns."""


def configure_data() -> None:
    """Settings of this process's Ray Data, to be called before a dataset is made (it copies them).

    The V1 Parquet reader (the new one costs 2.5 to 10 s per execution), input order kept, no progress bars.
    """
    context = ray.data.DataContext.get_current()
    context.use_datasource_v2 = False
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # The first two print the stack of an error several times that is raised to us anyway, the third says that there are
    # no progress bars.
    for name in ("exceptions", "_internal.execution.streaming_executor_state", "_internal.progress"):
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)


def prepare(project: Project, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Prepared:
    """Reads the source, validates it and commits the good rows as a dataset version, in one Ray Data execution.

    The same rows as in an existing version, in whatever order, write nothing: that version is returned. Bad rows go to
    the quarantine table, once per set of rows. Of rows that repeat a key the one with the smallest content hash stays,
    so that the outcome does not hang on order. `on_progress(rows read, rows in all)` follows the blocks; 0 in all when
    nobody knows before the end. Ray must be running.
    Raises: DataError when the source cannot be read, a column is missing or of another dtype altogether, more than
    `max_bad_share` of the rows are bad (they stand in quarantine then) or fewer than `min_rows` are good. The dataset's
    table is untouched in all these cases.
    """
    configure_data()
    run = f"files-{uuid.uuid4().hex[:16]}"
    try:
        return _prepare(project, run, on_progress)
    except BaseException:
        # Also on Ctrl-C: files that no commit names are nobody's.
        for uri in (_table_uri(project), _quarantine_uri(project)):
            lake.remove_uncommitted(uri, run)
        raise


def _prepare(project: Project, run: str, on_progress: Callable[[int, int], None]) -> Prepared:
    parts: list[_Part] = []
    try:
        dataset, total = _source(project)
        work = functools.partial(_work, project=project, run=run)
        for row in dataset.map_batches(work, batch_format="pyarrow", batch_size=None).iter_rows():
            part = pickle.loads(row["part"])
            if isinstance(part, DataError):
                raise part
            parts.append(part)
            on_progress(sum(part.report.n_read for part in parts), total)
    except (ray.exceptions.RayError, OSError) as exc:
        raise _as_data_error(exc, project.source) from exc
    parts = _without_repeats(project, run, parts)
    report = sum((part.report for part in parts), Report())
    lineage = _lineage(project)
    bad_files = [file for part in parts for file in part.bad]
    if bad_files:
        bad_hash = sum((part.bad_hash for part in parts), RowHash())
        _commit(_quarantine_uri(project), run, bad_files, QUARANTINE, bad_hash, lineage, append=True)
    _refuse(project, report)
    good_files = [part.good for part in parts if part.good is not None]
    good_hash = sum((part.good_hash for part in parts), RowHash())
    schema = arrow_schema(project.columns)
    return Prepared(_commit(_table_uri(project), run, good_files, schema, good_hash, lineage), report)


def snapshot(
    project: Project, table: pa.Table, lineage: Mapping[str, Any], columns: Sequence[Column] | None = None
) -> DatasetVersion:
    """Commits the rows of `table` as a dataset version, without validation.

    Args: columns: those to keep (all that the project declares, unless given); others are dropped.

    The same rows as in an existing version write nothing. Needs no Ray.
    Raises: DataError when a column is missing, or cells are not of their column's dtype.
    """
    rows, uncast = conform(table, columns or project.columns)
    if uncast:
        raise DataError(project.project, f"cells do not fit their columns' dtypes: {sorted(uncast)}")
    uri, content, run = _table_uri(project), lake.row_hash(rows), f"files-{uuid.uuid4().hex[:16]}"
    if (known := lake.find(uri, content.hex())) is not None:
        return known
    try:
        file = lake.write_file(uri, f"{run}/part-0.parquet", rows)
        return _commit(uri, run, [file], rows.schema, content, lineage)
    except BaseException:
        lake.remove_uncommitted(uri, run)
        raise


def fit_features(project: Project, dataset: DatasetVersion, until: float, since: float | None = None) -> Partial:
    """Feature statistics of the rows with event time in [since, until), seconds since the epoch: one task per file.

    Raises: DataError when there are no such rows.
    """
    tasks = [_fold_file.remote(project, dataset.uri, path, until, since) for path in lake.files(dataset)]
    partials: list[Partial] = ray.get(tasks)
    total = functools.reduce(lambda a, b: a + b, partials)
    if total.n == 0:
        raise DataError(dataset.uri, f"version {dataset.version} has no rows in that span of {project.event_time}")
    return total


@ray.remote
def _fold_file(project: Project, uri: str, path: str, until: float, since: float | None) -> Partial:
    needed = [project.event_time, *project.features.inputs]
    if project.features.target_encoded:
        needed += [project.target, project.key]
    table = lake.read_file(uri, path, list(dict.fromkeys(needed)))
    time = table[project.event_time].cast(pa.int64())
    inside = pc.less(time, _microseconds(until))
    if since is not None:
        inside = pc.and_(inside, pc.greater_equal(time, _microseconds(since)))
    return features.fold(project.features, table.filter(inside), target=project.target, key=project.key)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _table_uri(project: Project) -> str:
    return project.storage.path("data", project.project)


def _quarantine_uri(project: Project) -> str:
    return project.storage.path("quarantine", project.project)


# Reading --------------------------------------------------------------------------------------------------------------


def _source(project: Project) -> tuple[ray.data.Dataset, int]:
    """The source as a dataset, and its number of rows (0: unknown before it is read)."""
    source = project.source
    if source.kind == "python":
        return _from_function(source)
    paths = [source.path] if isinstance(source.path, str) else list(source.path or ())
    paths = [path if "://" in path else str(Path(path).expanduser().absolute()) for path in paths]
    if source.kind == "delta":
        if len(paths) != 1:
            raise DataError("source.path", f"kind: delta takes one table, got {len(paths)}")
        return ray.data.read_delta(paths[0], **source.options), 0
    if source.kind == "csv":
        # As text, for `conform` to parse: Arrow guesses dtypes from the first rows and fails on later ones.
        text = csv.ConvertOptions(
            column_types={column.name: pa.string() for column in project.columns},
            null_values=[""],
            strings_can_be_null=True,
        )
        return ray.data.read_csv(paths, **{"convert_options": text, **source.options}), 0
    readers = {"parquet": ray.data.read_parquet, "json": ray.data.read_json}
    return readers[source.kind](paths, **source.options), 0


def _from_function(source: Source) -> tuple[ray.data.Dataset, int]:
    module, _, name = (source.function or "").replace(":", ".").rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise DataError("source.function", f"{source.function} cannot be imported: {exc}") from exc
    if not callable(function):
        raise DataError("source.function", f"{source.function} is not callable")
    try:
        rows = function(**source.options)
    except Exception as exc:
        raise DataError("source.function", f"{source.function} raised {type(exc).__name__}: {exc}") from exc
    if isinstance(rows, pd.DataFrame):
        # Without the zone (UTC is what `conform` takes then): pyarrow trips over a deprecation in pandas 3.1 otherwise.
        zoned = rows.select_dtypes("datetimetz")
        naive = rows.assign(**{str(name): zoned[name].dt.tz_convert(None) for name in zoned})
        rows = pa.Table.from_pandas(naive, preserve_index=False)
    if isinstance(rows, pa.Table):
        starts = range(0, max(rows.num_rows, 1), ROWS_PER_BLOCK)
        return ray.data.from_arrow([rows.slice(i, ROWS_PER_BLOCK) for i in starts]), rows.num_rows
    if isinstance(rows, ray.data.Dataset):
        return rows, 0
    kinds = "a ray.data.Dataset, a pyarrow.Table or a pandas.DataFrame"
    raise DataError("source.function", f"{source.function} must return {kinds}, not {type(rows).__name__}")


def _as_data_error(exc: Exception, source: Source) -> DataError:
    """The reader's complaint in our words: the first line of what was wrong, wherever in the cluster it was."""
    cause = exc.cause if isinstance(exc, ray.exceptions.RayTaskError) else exc
    first = (str(cause).splitlines() or [""])[0]
    where = source.function or source.path
    return DataError(f"source {where}", f"cannot be read as {source.kind}: {type(cause).__name__}: {first}")


# One block ------------------------------------------------------------------------------------------------------------


def _work(batch: pa.Table, project: Project, run: str) -> pa.Table:
    """Rules, files and hashes of one block, on a worker. A table of one row: the pickled `_Part`, or a DataError."""
    part: _Part | DataError
    try:
        checked = check(project, batch)
        part = _written(project, run, checked.good, checked.bad, checked.report)
    except DataError as exc:
        part = exc  # as a value: raised here, it would reach the driver inside pages of Ray's own stack
    return pa.table({"part": pa.array([pickle.dumps(part)], pa.binary())})


def _written(project: Project, run: str, good: pa.Table, bad: pa.Table, report: Report) -> _Part:
    name = f"{run}/part-{uuid.uuid4().hex}.parquet"
    unique = project.validation.unique
    return _Part(
        report,
        lake.write_file(_table_uri(project), name, good) if good.num_rows else None,
        lake.row_hash(good),
        (lake.write_file(_quarantine_uri(project), name, bad),) if bad.num_rows else (),
        _bad_hash(bad),
        lake.row_hashes(good.select(list(unique)))[0] if unique else np.zeros(0, dtype=np.uint64),
    )


def _bad_hash(bad: pa.Table) -> RowHash:
    joined = pc.binary_join(bad["rules"], ",")
    return lake.row_hash(bad.set_column(bad.schema.get_field_index("rules"), "rules", joined))


# Repeated keys --------------------------------------------------------------------------------------------------------


def _without_repeats(project: Project, run: str, parts: Sequence[_Part]) -> list[_Part]:
    """`parts` with rows of repeated keys gone to quarantine, all but one per key; only files with such rows change."""
    keys = np.concatenate([part.keys for part in parts]) if parts else np.zeros(0, dtype=np.uint64)
    values, counts = np.unique(keys, return_counts=True)
    twice = values[counts > 1]
    if not twice.size:
        return list(parts)
    where = {i: np.flatnonzero(np.isin(part.keys, twice)) for i, part in enumerate(parts)}
    where = {i: rows for i, rows in where.items() if rows.size}
    hashes = ray.get([_hash_rows.remote(project, parts[i].good, rows) for i, rows in where.items()])
    # Key (both lanes), then content, then place: the first of each key stays.
    lines = np.concatenate(hashes)
    owners = np.repeat(list(where), [rows.size for rows in where.values()])
    rows_of = np.concatenate(list(where.values()))
    order = np.lexsort((rows_of, owners, lines[:, 3], lines[:, 2], lines[:, 1], lines[:, 0]))
    repeated = (np.diff(lines[order, :2], axis=0, prepend=~lines[order[:1], :2]) == 0).all(axis=1)
    goes = order[repeated]
    dropped = {i: np.sort(rows_of[goes[owners[goes] == i]]) for i in where}
    dropped = {i: rows for i, rows in dropped.items() if rows.size}
    changed = ray.get([_drop_rows.remote(project, run, parts[i], rows) for i, rows in dropped.items()])
    return [dict(zip(dropped, changed, strict=True)).get(i, part) for i, part in enumerate(parts)]


@ray.remote
def _hash_rows(project: Project, file: DataFile | None, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Shape (rows, 4): both lanes of the key's hash, both of the whole row's."""
    assert file is not None
    table = lake.read_file(_table_uri(project), file.path).take(rows)
    return np.stack([*lake.row_hashes(table.select(list(project.validation.unique))), *lake.row_hashes(table)], axis=1)


@ray.remote
def _drop_rows(project: Project, run: str, part: _Part, rows: npt.NDArray[np.int64]) -> _Part:
    """`part` without those rows of its good file, which go to quarantine."""
    assert part.good is not None
    table = lake.read_file(_table_uri(project), part.good.path)
    keep = np.ones(table.num_rows, dtype=bool)
    keep[rows] = False
    gone = table.take(rows)
    bad = quarantined(project, gone, [[UNIQUE]] * len(rows))
    shown = examples(project, gone, project.validation.unique[0])
    moved = Report(0, -len(rows), len(rows), {UNIQUE: len(rows)}, {UNIQUE: shown})
    new = _written(project, run, table.filter(pa.array(keep)), bad, part.report + moved)
    return replace(new, bad=part.bad + new.bad, bad_hash=part.bad_hash + new.bad_hash)


# Committing -----------------------------------------------------------------------------------------------------------


def _refuse(project: Project, report: Report) -> None:
    """Raises: DataError when too many rows are bad, or too few are good."""
    rules = project.validation
    if report.bad_share > rules.max_bad_share:
        raise DataError(
            project.project,
            f"{report.bad_share:.2%} of the rows are bad, validation.max_bad_share allows {rules.max_bad_share:.2%}; "
            f"they stand in {_quarantine_uri(project)}\n  {report}",
        )
    if report.n_kept < rules.min_rows:
        raise DataError(
            project.project, f"{report.n_kept} good rows, validation.min_rows asks for {rules.min_rows}\n  {report}"
        )


def _commit(
    uri: str,
    run: str,
    files: Sequence[DataFile],
    schema: pa.Schema,
    content: RowHash,
    lineage: Mapping[str, Any],
    *,
    append: bool = False,
) -> DatasetVersion:
    """The version with this content: the one that is there, or a new one. Removes the run's files that it lacks."""
    version = lake.find(uri, content.hex()) or lake.commit(uri, files, schema, content.hex(), lineage, append=append)
    lake.remove_uncommitted(uri, run)
    return version


def _lineage(project: Project) -> dict[str, Any]:
    """Where the rows came from: source, the blocks of the project file that shape them, the source function's code."""
    shaping = {"project", "target", "key", "event_time", "source", "columns", "validation"}
    text = json.dumps(project.model_dump(mode="json", include=shaping), sort_keys=True)
    lineage: dict[str, Any] = {
        "source": project.source.model_dump(mode="json"),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if project.source.function is not None:
        module = project.source.function.replace(":", ".").rpartition(".")[0]
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            lineage["code_sha256"] = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    return lineage
