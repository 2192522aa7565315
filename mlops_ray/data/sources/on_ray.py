"""Opens any source, and runs one function over its rows on the cluster, in one execution.

Files, queries and APIs are shards that a task reads by itself; the rows of every other reader are blocks that Ray Data
moves. Both reach the function as batches of bounded size.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import operator
import pickle
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockAccessor
from ray.data.expressions import col, lit

from mlops_ray.config import Column, Source
from mlops_ray.config.sources import FILE_READERS, without_secrets
from mlops_ray.data.sources import joins, text_files
from mlops_ray.data.sources import shards as sources
from mlops_ray.data.sources.shards import FILE_SHARDS, FileShard, HttpShard, Shard, SqlShard, TableShard
from mlops_ray.errors import DataError

T = TypeVar("T")
Work = Callable[[Iterator[pa.Table]], T]
Step = Callable[[pa.Table], pa.Table]
"""What happens to a batch between reading and work; picklable."""

_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")
ROWS_PER_BLOCK = 100_000
"""Of tables that a Python function returns: one task's share of what is in memory already."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a source: `shards` that tasks read by themselves, or a `dataset` whose blocks Ray Data moves.

    `names` are the columns to read, None for all; `steps` are what is done to each batch.
    """

    where: str
    kind: str
    names: tuple[str, ...] | None
    shards: tuple[Shard, ...] = ()
    dataset: ray.data.Dataset | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, eq=False)
class Opened:
    """A source that was found. `n_rows` is 0 when nobody knows it before the end; `uris` say where rows come from,
    without secrets."""

    source: Source
    uris: tuple[str, ...]
    n_rows: int
    parts: tuple[Part, ...] = field(default=())


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
    # It warns of every table that has fewer files than the cluster has processors.
    logging.getLogger("ray.data._internal.datasource.iceberg_datasource").setLevel(logging.ERROR)


def open_source(source: Source, columns: Sequence[Column] | None, *, csv_typed: bool = True) -> Opened:
    """Finds the rows of `source`; reads none of them where it can be helped. Ray must be running.

    Args: `columns` are those that are wanted, None for all with the dtypes that the source has (CSV, JSON and APIs,
    which have none, are read once more for that). Without `csv_typed`, CSV stays text then, as it is written: a reader
    that guesses makes the number 7 of the code 007.
    Raises: DataError naming what cannot be found or read, without secrets.
    """
    configure_data()
    try:
        return _open(source, None if columns is None else tuple(columns), csv_typed=csv_typed)
    except DataError as exc:
        raise _scrubbed(exc, source) from exc.__cause__
    except (ray.exceptions.RayError, OSError, pa.ArrowException) as exc:
        raise _as_data_error(exc, source, source.kind, source.where) from exc


def each(opened: Opened, work: Work[T]) -> Iterator[T]:
    """Runs `work` over every shard on the cluster; yields its results in the source's order, in one execution.

    `work` gets a shard's rows in batches of bounded size and must be picklable; what it returns should be small. A
    shard has at least one batch, which may be empty; batches have the columns that were asked for, as far as they are
    there, in the dtypes of the source, and may have others.
    Raises: DataError for rows that cannot be read, and whatever `work` raises, a DataError with the place of the rows.
    """
    for part in opened.parts:
        results = _over_shards(part, work) if part.dataset is None else _over_dataset(part, part.dataset, work)
        yield from _checked(opened, part, results)


def numbered(
    opened: Opened, work: Callable[[int, Iterator[pa.Table]], T], *, without: Collection[int] = ()
) -> Iterator[T]:
    """As `each`, for `work` that is told the number of its shard in the source's order, and writes what it makes.

    Shards come first and have the same numbers as long as the source is the same; those in `without` are left out.
    Blocks that Ray Data moves are numbered behind them, as they come.
    """
    parts = [part for part in opened.parts if part.dataset is None]
    number = 0
    for part in parts:
        wanted = {number + i: shard for i, shard in enumerate(part.shards) if number + i not in without}
        number += len(part.shards)
        yield from _checked(opened, part, _over_shards(part, work, wanted))
    for part in opened.parts:
        if part.dataset is not None:
            blocks = (ref for bundle in part.dataset.iter_internal_ref_bundles() for ref in bundle.block_refs)
            yield from _checked(opened, part, _over_blocks(part, blocks, work, number))


def _checked(opened: Opened, part: Part, results: Iterator[T | DataError]) -> Iterator[T]:
    """`results`, or what went wrong in our words."""
    try:
        for result in results:
            if isinstance(result, DataError):
                raise _scrubbed(result, opened.source)
            yield result
    except ray.exceptions.RayTaskError as exc:
        if part.dataset is None and isinstance(exc.cause, Exception):
            raise exc.cause from exc  # a shard's reader complains by DataError: this is a fault of `work`
        raise _as_data_error(exc, opened.source, part.kind, part.where) from exc
    except (ray.exceptions.RayError, OSError) as exc:
        raise _as_data_error(exc, opened.source, part.kind, part.where) from exc


# Running --------------------------------------------------------------------------------------------------------------


def _over_shards(
    part: Part, work: Callable[..., T], numbers: Mapping[int, Shard] | None = None
) -> Iterator[T | DataError]:
    """One task per shard, or per one of `numbers`, which `work` is told then."""
    shared = ray.put((work, part.names, part.steps))
    if numbers is None:
        return _ahead(_task.remote(shared, shard) for shard in part.shards)
    return _ahead(_task.remote(shared, shard, number) for number, shard in numbers.items())


def _over_blocks(part: Part, blocks: Iterator[Any], work: Callable[..., T], first: int) -> Iterator[T | DataError]:
    """One task per block of a dataset, numbered from `first` on."""
    shared = ray.put((work, part.names, part.steps))
    return _ahead(_block_task.remote(shared, block, part.where, first + i) for i, block in enumerate(blocks))


def _ahead(tasks: Iterator[ray.ObjectRef[Any]]) -> Iterator[Any]:
    """Results of tasks in their order, a bounded number of them ahead of whoever takes the results."""
    cpus: float = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    ahead = 2 * max(1, int(cpus))
    running: deque[ray.ObjectRef[Any]] = deque()
    try:
        while True:
            while len(running) < ahead and (task := next(tasks, None)) is not None:
                running.append(task)
            if not running:
                return
            yield ray.get(running.popleft())
    finally:
        for task in running:
            ray.cancel(task)


@ray.remote
def _task(
    shared: tuple[Callable[..., Any], tuple[str, ...] | None, tuple[Step, ...]], shard: Shard, number: int | None = None
) -> Any:
    work, names, steps = shared
    if number is not None:
        work = functools.partial(work, number)
    result = _value(work, _stepped(_readable(_read(shard, names), shard.where), steps), shard.where)
    if isinstance(result, DataError) and isinstance(shard, FILE_SHARDS) and result.subject in (names or ()):
        return _of_whole_file(result, work, steps, shard)
    return result


@ray.remote
def _block_task(shared: tuple[Callable[..., Any], Any, tuple[Step, ...]], block: Any, where: str, number: int) -> Any:
    work, _, steps = shared
    table = BlockAccessor.for_block(block).to_arrow()
    return _value(functools.partial(work, number), _stepped(iter([table]), steps), where)


def _of_whole_file(complaint: DataError, work: Work[Any], steps: tuple[Step, ...], shard: FileShard) -> DataError:
    """`complaint` about a column; where the file has none of that name, what `work` says of all those it has.

    Only the columns that were asked for were read: among them, nothing is like the one that is missing.
    """
    try:
        has = next(sources.read(shard, None)).slice(0, 0)
    except DataError:
        return complaint
    if complaint.subject in has.column_names:
        return complaint
    again = _value(work, _stepped(iter([has]), steps), shard.where)
    return again if isinstance(again, DataError) and again.subject == complaint.subject else complaint


def _read(shard: Shard, names: tuple[str, ...] | None) -> Iterator[pa.Table]:
    # SQLAlchemy and urllib3 are loaded by those workers only that need them.
    if isinstance(shard, SqlShard):
        from mlops_ray.data.sources import on_sql

        return on_sql.tables(shard)
    if isinstance(shard, HttpShard):
        from mlops_ray.data.sources import on_http

        return on_http.tables(shard.source, names)
    return sources.read(shard, names)


def _over_dataset(part: Part, dataset: ray.data.Dataset, work: Work[T]) -> Iterator[T | DataError]:
    run = functools.partial(_over_block, work, part.steps, part.where)
    for row in dataset.map_batches(run, batch_format="pyarrow", batch_size=None).iter_rows():
        yield pickle.loads(row["result"])


def _over_block(work: Work[T], steps: tuple[Step, ...], where: str, block: pa.Table) -> pa.Table:
    result = _value(work, _stepped(iter([block]), steps), where)
    return pa.table({"result": pa.array([pickle.dumps(result)], pa.binary())})


def _readable(batches: Iterator[pa.Table], where: str) -> Iterator[pa.Table]:
    """`batches`; whatever a reader raises is a DataError, so that other errors are faults of whoever uses the rows."""
    try:
        yield from batches
    except DataError:
        raise
    except Exception as exc:  # readers and their clients raise errors of their own
        first = (str(exc).splitlines() or [""])[0]
        raise DataError(where, f"cannot be read: {type(exc).__name__}: {first}") from exc


def _stepped(batches: Iterator[pa.Table], steps: tuple[Step, ...]) -> Iterator[pa.Table]:
    for batch in batches:
        yield functools.reduce(lambda table, step: step(table), steps, batch)


def _value(work: Work[T], batches: Iterator[pa.Table], where: str) -> T | DataError:
    """What `work` makes of the rows; a complaint about them names the file, or whatever else they come from."""
    try:
        return work(batches)
    except DataError as exc:  # as a value: raised here, it would reach the driver inside pages of Ray's own stack
        return exc if where in f"{exc}" else DataError(exc.subject, f"{exc.detail} (in {where})")


def _scrubbed(exc: DataError, source: Source) -> DataError:
    return DataError(without_secrets(exc.subject), source.scrub(exc.detail))


def _as_data_error(exc: Exception, source: Source, kind: str, where: str) -> DataError:
    """The reader's complaint in our words: the first line of what was wrong, wherever in the cluster it was."""
    cause = exc.cause if isinstance(exc, ray.exceptions.RayTaskError) else exc
    unknown = _UNKNOWN_OPTION.search(str(cause)) if isinstance(cause, TypeError) else None
    if unknown is not None and unknown[1] in source.options:
        return DataError("source.options", f"{unknown[1]}: kind {kind} knows no such option; check its name")
    first = source.scrub((str(cause).splitlines() or [""])[0])
    return DataError(f"source {where}", f"cannot be read as {kind}: {type(cause).__name__}: {first}")


# Opening --------------------------------------------------------------------------------------------------------------


def _open(
    source: Source, columns: tuple[Column, ...] | None, also: tuple[str, ...] = (), *, csv_typed: bool = True
) -> Opened:
    """`also` are columns that are read with those that are wanted: keys of joins and times of ranges around."""
    if source.time_range is not None:
        also = (*also, source.time_range.column)
    if source.kind == "concat":
        opened = [_open(part, columns, also, csv_typed=csv_typed) for part in source.sources]
        counts = [part.n_rows for part in opened]
        found = Opened(
            source,
            tuple(uri for part in opened for uri in part.uris),
            sum(counts) if all(counts) else 0,
            tuple(p for part in opened for p in part.parts),
        )
    elif source.kind == "join":
        found = _joined(source, columns, also, csv_typed)
    else:
        found = _one(source, columns, also, csv_typed)
    if source.time_range is None:
        return found
    inside = functools.partial(sources.within, time_range=source.time_range)
    return replace(found, n_rows=0, parts=tuple(replace(p, steps=(*p.steps, inside)) for p in found.parts))


def _one(source: Source, columns: tuple[Column, ...] | None, also: tuple[str, ...], csv_typed: bool) -> Opened:
    names = None if columns is None else tuple(dict.fromkeys([*(column.name for column in columns), *also]))
    paths = [sources.absolute(path) for path in source.paths] if source.kind in FILE_READERS else list(source.paths)
    uris = tuple(map(without_secrets, paths)) or (source.where,)
    part = Part(source.where, source.kind, names)
    options = source.options
    shards: Sequence[Shard] | None = None
    if source.kind == "python":
        dataset, tables = _from_function(source)
        n_rows = sum(shard.n_rows for shard in tables)
        return Opened(source, (f"python:{source.function}",), n_rows, (replace(part, shards=tables, dataset=dataset),))
    if source.kind == "sql" and not options:
        from mlops_ray.data.sources import on_sql

        shards = [on_sql.shard(source, names)]
    elif source.kind == "http":
        shards = [HttpShard(source)]
    else:
        shards = sources.file_shards(source, names)
    if shards is None:
        return Opened(source, uris, 0, (replace(part, dataset=_dataset(source, paths, names)),))
    part = replace(part, shards=tuple(shards))
    if source.kind in (("csv", "json", "http") if csv_typed else ("json", "http")) and names is None:
        part = _with_types(source, part)
    n_rows = sum(shard.n_rows for shard in shards)
    return Opened(source, uris, n_rows, (part,))


def _with_types(source: Source, part: Part) -> Part:
    """`part` of text with the dtypes that all its cells can have."""
    found: text_files.Kinds = {}
    for kinds in each(Opened(source, (), 0, (part,)), functools.partial(_kinds, quoted=part.kind != "csv")):
        found = text_files.merged(found, kinds)
    names = part.names if part.kind == "csv" else tuple(found)  # a JSON file then gives text, for `typed` to read
    return replace(part, names=names, steps=(functools.partial(text_files.typed, found=found),))


def _kinds(batches: Iterator[pa.Table], quoted: bool) -> text_files.Kinds:
    found: text_files.Kinds = {}
    for batch in batches:
        found = text_files.merged(found, text_files.kinds(batch, quoted=quoted))
    return found


# Readers of Ray Data --------------------------------------------------------------------------------------------------


def _dataset(source: Source, paths: Sequence[str], names: tuple[str, ...] | None) -> ray.data.Dataset:
    """What `ray.data.read_<kind>` makes of the source's options, told what it need not read where it understands."""
    reader = getattr(ray.data, f"read_{source.kind}")
    if source.kind == "sql":
        from mlops_ray.data.sources import on_sql

        narrowed = on_sql.shard(source, names).query
        return _called(source, reader, narrowed, on_sql.connector(source), **source.options)
    if source.kind == "iceberg":
        return _iceberg(source, names)
    pushed: dict[str, Any] = {}
    if names is not None and source.kind in ("parquet", "delta") and "columns" not in source.options:
        pushed["columns"] = list(names)
    # Most take several paths, some one.
    first = [list(paths) if len(paths) > 1 or source.kind in ("parquet", "csv", "json") else paths[0]] if paths else []
    return _called(source, reader, *first, **(pushed | source.options))


def _called(source: Source, reader: Callable[..., ray.data.Dataset], *args: Any, **options: Any) -> ray.data.Dataset:
    try:
        inspect.signature(reader).bind(*args, **options)
    except TypeError as exc:
        raise DataError("source.options", f"do not fit ray.data.{reader.__name__}: {exc}") from exc
    try:
        return reader(*args, **options)
    except Exception as exc:  # readers of forty services raise their clients' own errors
        raise _as_data_error(exc, source, source.kind, source.where) from exc


def _iceberg(source: Source, names: tuple[str, ...] | None) -> ray.data.Dataset:
    """The table with its range of time and its columns, which Ray Data hands down to Iceberg's own plan of files.

    Raises: DataError when pyiceberg is not installed, or the catalogue or the table cannot be had.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.types import TimestampType, TimestamptzType
    except ImportError as exc:
        raise DataError("source.kind", "iceberg needs pyiceberg; install mlops-ray[iceberg]") from exc
    table = source.options.get("table_identifier")
    if table is None:
        raise DataError("source.options", "kind: iceberg needs table_identifier, and usually catalog_kwargs")
    try:
        fields = load_catalog(**source.options.get("catalog_kwargs", {})).load_table(table).schema().fields
    except Exception as exc:  # catalogues are SQL, REST, Glue, Hive: each raises its client's own errors
        raise _as_data_error(exc, source, source.kind, source.where) from exc
    kinds = {field.name: field.field_type for field in fields}
    dataset = _called(source, ray.data.read_iceberg, **source.options)
    rule = source.time_range
    kind = kinds.get(rule.column) if rule is not None else None
    if rule is not None and isinstance(kind, TimestampType | TimestamptzType):
        for compare, at in ((operator.ge, rule.start), (operator.lt, rule.end)):
            if at is not None:
                literal = at if isinstance(kind, TimestamptzType) else at.replace(tzinfo=None)
                dataset = dataset.filter(expr=compare(col(rule.column), lit(literal)))
    # None of them there: all are read, so that the message can name what there is.
    there = [name for name in names or () if name in kinds]
    return dataset.select_columns(there) if there else dataset


# Functions ------------------------------------------------------------------------------------------------------------


def _from_function(source: Source) -> tuple[ray.data.Dataset | None, tuple[TableShard, ...]]:
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
        odd = [name for name in rows.columns if not isinstance(name, str | int)]
        if odd:
            says = f"returns columns that are not named by text, such as {odd[0]!r}; rename them"
            raise DataError("source.function", f"{source.function} {says}")
        rows = rows.rename(columns=str)
        if not rows.columns.is_unique:
            twice = sorted(set(rows.columns[rows.columns.duplicated()]))
            raise DataError("source.function", f"{source.function} returns columns {twice} twice; rename them")
        # Without the zone (UTC is what `conform` takes then): pyarrow trips over a deprecation in pandas 3.1 otherwise.
        zoned = rows.select_dtypes("datetimetz")
        naive = rows.assign(**{str(name): zoned[name].dt.tz_convert(None) for name in zoned})
        rows = pa.Table.from_pandas(naive, preserve_index=False)
    if isinstance(rows, pa.Table):
        starts = range(0, max(rows.num_rows, 1), ROWS_PER_BLOCK)
        return None, tuple(TableShard(str(source.function), rows.slice(i, ROWS_PER_BLOCK)) for i in starts)
    if isinstance(rows, ray.data.Dataset):
        return rows, ()
    kinds = "a ray.data.Dataset, a pyarrow.Table or a pandas.DataFrame"
    raise DataError("source.function", f"{source.function} must return {kinds}, not {type(rows).__name__}")


# Joins ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Lookup:
    """Joins a batch with a table in the object store, of which all tasks of a node see one copy."""

    right: ray.ObjectRef[Any]
    source: Source
    declared: tuple[Column, ...]

    def __call__(self, table: pa.Table) -> pa.Table:
        return joins.join(table, ray.get(self.right), self.source.keys, self.source.how, self.declared)


def _joined(source: Source, columns: tuple[Column, ...] | None, also: tuple[str, ...], csv_typed: bool) -> Opened:
    """The first source's parts with a step per further source, which is gathered whole."""
    wanted = (*also, *source.keys)
    left, *others = (_open(part, columns, wanted, csv_typed=csv_typed) for part in source.sources)
    steps: list[Step] = []
    for right in others:
        table = _gathered(source, right)
        steps.append(_Lookup(ray.put(table), source, columns or ()))
    parts = tuple(replace(part, steps=(*part.steps, *steps)) for part in left.parts)
    return Opened(source, tuple(uri for part in (left, *others) for uri in part.uris), 0, parts)


def _gathered(source: Source, right: Opened) -> pa.Table:
    tables: list[pa.Table] = []
    size, limit = 0, source.max_join_mb * 1024 * 1024
    for table in each(right, functools.partial(_all_rows, limit=limit)):
        tables.append(table)
        size += table.nbytes
        if size > limit:
            raise _too_large(right.source.where, source.max_join_mb)
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks() if tables else pa.table({})
    except pa.ArrowException as exc:
        raise DataError(right.source.where, f"its parts do not fit together: {exc}") from exc


def _all_rows(batches: Iterator[pa.Table], limit: int) -> pa.Table:
    tables: list[pa.Table] = []
    for batch in batches:
        tables.append(batch)
        if sum(table.nbytes for table in tables) > limit:
            raise _too_large("join", limit // 1024 // 1024)
    return pa.concat_tables(tables, promote_options="permissive")


def _too_large(where: str, limit_mb: int) -> DataError:
    says = f"is larger than max_join_mb ({limit_mb}); put the largest source first, read less of it, or raise the limit"
    return DataError(where, says)
