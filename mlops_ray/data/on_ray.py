"""Ray Data carries the data room: one pass reads, validates, writes and hashes; the driver merges and commits."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import ray.exceptions

from mlops_ray.config import Column, Project
from mlops_ray.data import features, lake, splits
from mlops_ray.data import keys as keyed
from mlops_ray.data.expectations import QUARANTINE, UNIQUE, Report, check, examples, quarantined
from mlops_ray.data.features import Partial
from mlops_ray.data.keys import KeyFile
from mlops_ray.data.lake import NO_ROWS, DataFile, DatasetVersion, RowHash
from mlops_ray.data.lineage import Code, lineage
from mlops_ray.data.on_sources import Opened, each, open_source
from mlops_ray.data.schema import arrow_schema, conform
from mlops_ray.data.splits import Cut
from mlops_ray.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made (or found), and what validation saw on the way."""

    dataset: DatasetVersion
    report: Report


@dataclass(frozen=True, eq=False)
class Examined:
    """What `examine` saw: the report, and the feature statistics of the rows that keep the rules."""

    report: Report
    statistics: Partial


@dataclass(frozen=True, eq=False)
class _Part:
    """What one shard left behind: its files, and everything about them that merges."""

    report: Report
    good: DataFile | None = None
    good_hash: RowHash = NO_ROWS
    bad: tuple[DataFile, ...] = ()
    bad_hash: RowHash = NO_ROWS
    keys: KeyFile | None = None
    """Records of the `validation.unique` columns of the good rows, in the file's order."""
    statistics: Partial | None = None


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
    run = f"files-{uuid.uuid4().hex[:16]}"
    try:
        return _prepare(project, run, on_progress)
    except BaseException:
        # Also on Ctrl-C: files that no commit names are nobody's.
        for uri in (_table_uri(project), _quarantine_uri(project)):
            lake.remove_uncommitted(uri, run)
        raise


def _prepare(project: Project, run: str, on_progress: Callable[[int, int], None]) -> Prepared:
    opened = open_source(project.source, project.columns)
    parts = _pass(opened, functools.partial(_commit_work, project=project, run=run), on_progress)
    parts = _without_repeats(project, run, parts)
    report = sum((part.report for part in parts), Report())
    origin = _lineage(project, opened.uris)
    bad_files = [file for part in parts for file in part.bad]
    if bad_files:
        bad_hash = sum((part.bad_hash for part in parts), NO_ROWS)
        _commit(_quarantine_uri(project), run, bad_files, QUARANTINE, bad_hash, origin, append=True)
    _refuse(project, report)
    good_files = [part.good for part in parts if part.good is not None]
    good_hash = sum((part.good_hash for part in parts), NO_ROWS)
    schema = arrow_schema(project.columns)
    beside = {"validation.json": json.dumps(report.to_dict()).encode()}
    version = _commit(_table_uri(project), run, good_files, schema, good_hash, origin, beside=beside)
    return Prepared(version, report)


def examine(project: Project, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Examined:
    """Reads and validates the source as `prepare` does, and learns feature statistics; nothing is committed.

    The statistics are those of the rows that keep their columns' rules; rows that repeat a key are counted as bad and
    enter the statistics all the same. Ray must be running. Raises: DataError when the source cannot be read.
    """
    run = f"examined-{uuid.uuid4().hex[:16]}"
    try:
        opened = open_source(project.source, project.columns)
        parts = _pass(opened, functools.partial(_examine_work, project=project, run=run), on_progress)
        repeats = _repeats(project, parts)
    finally:
        lake.remove_uncommitted(_table_uri(project), run)
    report = sum((part.report for part in parts), Report())
    n = sum(rows.size for rows in repeats.values())
    if n:
        report += Report(0, -n, n, {UNIQUE: n}, {UNIQUE: ()})
    found = [part.statistics for part in parts if part.statistics is not None]
    if not found:
        raise DataError(project.project, "the source has no rows")
    return Examined(report, functools.reduce(lambda a, b: a + b, found))


def _pass(
    opened: Opened, work: Callable[[Iterator[pa.Table]], _Part], on_progress: Callable[[int, int], None]
) -> list[_Part]:
    parts: list[_Part] = []
    n_read = 0
    for part in each(opened, work):
        parts.append(part)
        n_read += part.report.n_read
        on_progress(n_read, opened.n_rows)
    return parts


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


def fit_features(project: Project, dataset: DatasetVersion, cut: Cut, parts: Sequence[int]) -> tuple[Partial, ...]:
    """Feature statistics of each of the `parts` (sides of `cut`), in that order: one pass, one task per file.

    Raises: DataError when a part holds no rows.
    """
    tasks = [_fold_file.remote(project, dataset.uri, path, cut, tuple(parts)) for path in lake.files(dataset)]
    folded: list[tuple[Partial, ...]] = ray.get(tasks)
    totals = tuple(functools.reduce(lambda a, b: a + b, partials) for partials in zip(*folded, strict=True))
    for total, part in zip(totals, parts, strict=True):
        if total.n == 0:
            raise DataError(dataset.uri, f"version {dataset.version} has no row for {splits.NAMES[part]}; see `split:`")
    return totals


@ray.remote
def _fold_file(project: Project, uri: str, path: str, cut: Cut, parts: Sequence[int]) -> tuple[Partial, ...]:
    needed = dict.fromkeys((*cut.columns, *project.features.columns))
    table = lake.read_file(uri, path, list(needed))
    sides = splits.assign(cut, table)
    return tuple(features.fold(project.features, table.filter(pa.array(sides == part))) for part in parts)


def _table_uri(project: Project) -> str:
    return project.storage.path("data", project.project)


def _quarantine_uri(project: Project) -> str:
    return project.storage.path("quarantine", project.project)


# One shard ------------------------------------------------------------------------------------------------------------


def _commit_work(batches: Iterator[pa.Table], project: Project, run: str) -> _Part:
    """Rules, files and hashes of one shard, on a worker; it holds one batch at a time."""
    name = f"{run}/part-{uuid.uuid4().hex}.parquet"
    good, bad = (lake.FileWriter(uri, name) for uri in (_table_uri(project), _quarantine_uri(project)))
    report, good_hash, bad_hash = Report(), NO_ROWS, NO_ROWS
    records = []
    for batch in batches:
        checked = check(project, batch)
        report += checked.report
        lanes = lake.row_hashes(checked.good)
        if project.validation.unique:
            records.append(_records(project, checked.good, lanes[0], good.n_rows))
        good.write(checked.good)
        bad.write(checked.bad)
        good_hash += RowHash.of(lanes)
        bad_hash += _bad_hash(checked.bad)
    keys = keyed.write(_table_uri(project), f"{name}.keys", records) if records else None
    bad_file = bad.close()
    return _Part(report, good.close(), good_hash, (bad_file,) if bad_file else (), bad_hash, keys)


def _examine_work(batches: Iterator[pa.Table], project: Project, run: str) -> _Part:
    """Rules and statistics of one shard, on a worker; it holds one batch at a time."""
    report, statistics = Report(), None
    records = []
    for batch in batches:
        checked = check(project, batch)
        if project.validation.unique:
            content = np.zeros(checked.good.num_rows, dtype=np.uint64)
            records.append(_records(project, checked.good, content, report.n_kept))
        report += checked.report
        partial = features.fold(project.features, checked.good)
        statistics = partial if statistics is None else statistics + partial
    keys = keyed.write(_table_uri(project), f"{run}/{uuid.uuid4().hex}.keys", records) if records else None
    return _Part(report, keys=keys, statistics=statistics)


def _records(project: Project, good: pa.Table, content: keyed.Lanes, first_row: int) -> keyed.Records:
    lanes = lake.row_hashes(good.select(list(project.validation.unique)))
    return keyed.records(lanes, content, first_row)


def _bad_hash(bad: pa.Table) -> RowHash:
    joined = pc.binary_join(bad["rules"], ",")
    return lake.row_hash(bad.set_column(bad.schema.get_field_index("rules"), "rules", joined))


# Repeated keys --------------------------------------------------------------------------------------------------------


def _repeats(project: Project, parts: Sequence[_Part]) -> dict[int, npt.NDArray[np.int64]]:
    """Rows of each part that repeat a key, all but one per key: that with the smallest content hash, then the first."""
    files = [part.keys for part in parts if part.keys is not None]
    owners = [i for i, part in enumerate(parts) if part.keys is not None]
    tasks = [_repeats_in.remote(files, first, end) for first, end in keyed.ranges(files)] if files else []
    goes: dict[int, list[npt.NDArray[np.int64]]] = {}
    for found in ray.get(tasks):
        for number, rows in found.items():
            goes.setdefault(owners[number], []).append(rows)
    return {i: np.sort(np.concatenate(rows)) for i, rows in goes.items()}


@ray.remote
def _repeats_in(files: Sequence[KeyFile], first: int, end: int) -> dict[int, npt.NDArray[np.int64]]:
    """Rows to go, by number of the file, among those whose keys lie in the buckets [first, end)."""
    found, owner = keyed.read(files, first, end)
    goes = ~keyed.starts_group(found)
    return {int(number): found["row"][goes & (owner == number)].astype(np.int64) for number in np.unique(owner[goes])}


def _without_repeats(project: Project, run: str, parts: Sequence[_Part]) -> list[_Part]:
    """`parts` with rows of repeated keys gone to quarantine; only files with such rows are written again."""
    repeats = _repeats(project, parts)
    changed = ray.get([_drop_rows.remote(project, run, parts[i], rows) for i, rows in repeats.items()])
    return [dict(zip(repeats, changed, strict=True)).get(i, part) for i, part in enumerate(parts)]


@ray.remote
def _drop_rows(project: Project, run: str, part: _Part, rows: npt.NDArray[np.int64]) -> _Part:
    """`part` without those rows of its good file, which go to quarantine."""
    assert part.good is not None
    table = lake.read_file(_table_uri(project), part.good.path)
    keep = np.ones(table.num_rows, dtype=bool)
    keep[rows] = False
    gone, rest = table.take(rows), table.filter(pa.array(keep))
    name = f"{run}/part-{uuid.uuid4().hex}.parquet"
    bad = quarantined(project, gone, [[UNIQUE]] * len(rows))
    shown = examples(project, gone, project.validation.unique[0])
    return replace(
        part,
        report=part.report + Report(0, -len(rows), len(rows), {UNIQUE: len(rows)}, {UNIQUE: shown}),
        good=lake.write_file(_table_uri(project), name, rest) if rest.num_rows else None,
        good_hash=lake.row_hash(rest),
        bad=(*part.bad, lake.write_file(_quarantine_uri(project), name, bad)),
        bad_hash=part.bad_hash + _bad_hash(bad),
    )


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
    beside: Mapping[str, bytes] | None = None,
) -> DatasetVersion:
    """The version with this content: the one that is there, or a new one, with what is kept `beside` it, by name.

    Removes the run's files that the version lacks."""
    version = lake.find(uri, content.hex())
    if version is None:
        for name, kept in (beside or {}).items():
            lake.write_sidecar(uri, content.hex(), name, kept)
        version = lake.commit(uri, files, schema, content.hex(), lineage, append=append)
    lake.remove_uncommitted(uri, run)
    return version


def _lineage(project: Project, uris: Sequence[str]) -> dict[str, Any]:
    function = project.source.function
    spec = importlib.util.find_spec(function.replace(":", ".").rpartition(".")[0]) if function is not None else None
    origin = spec.origin if spec is not None else None
    return lineage(
        project,
        made_by={"verb": "prepare"},
        uris=uris,
        code=working_code(),
        function_sha256=hashlib.sha256(Path(origin).read_bytes()).hexdigest() if origin is not None else None,
    )


def working_code() -> Code | None:
    """Commit and dirtiness of the checkout that the process stands in; None outside of one, or without `git`."""
    ask = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    return None if commit == "(initial)" else Code(commit, any(not line.startswith("#") for line in lines))
