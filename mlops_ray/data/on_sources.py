"""Ray Data reads any source: `each` runs one function over its shards, on the cluster, in one execution."""

from __future__ import annotations

import functools
import importlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.csv as csv
import ray
import ray.data
import ray.exceptions

from mlops_ray.config import Column, Source
from mlops_ray.data import sources
from mlops_ray.data.sources import Shard
from mlops_ray.errors import DataError

T = TypeVar("T")
Work = Callable[[Iterator[pa.Table]], T]

ROWS_PER_BLOCK = 100_000
"""Of tables that a Python function returns: a block costs Ray some 10 ms, a hundred thousand rows 100 ms of work."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A source that was found: `shards` that tasks read by themselves, or a `dataset` whose blocks Ray Data moves.

    `n_rows` is 0 when nobody knows it before the end; `uris` say where rows come from, without secrets.
    """

    where: str
    kind: str
    uris: tuple[str, ...]
    n_rows: int
    columns: tuple[str, ...] | None = None
    shards: tuple[Shard, ...] = ()
    dataset: ray.data.Dataset | None = None


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


def open_source(source: Source, columns: Sequence[Column] | None) -> Opened:
    """Finds the rows of `source`; reads none of them where it can be helped. Ray must be running.

    Args: `columns` are those that are wanted, None for all with the types that the source has.
    Raises: DataError naming what cannot be found or read.
    """
    configure_data()
    names = None if columns is None else tuple(column.name for column in columns)
    try:
        return _open(source, names)
    except (ray.exceptions.RayError, OSError, pa.ArrowException) as exc:
        raise _as_data_error(exc, source.kind, _where(source)) from exc


def each(opened: Opened, work: Work[T]) -> Iterator[T]:
    """Runs `work` over every shard on the cluster; yields its results in the source's order, in one execution.

    `work` gets the shard's rows in batches of bounded size and must be picklable; what it returns should be small.
    Raises: DataError for rows that cannot be read, and whatever DataError `work` raises.
    """
    if opened.dataset is not None:
        dataset, run = opened.dataset, functools.partial(_over_rows, work)
    else:
        # A row per shard, a block per row: each becomes one task.
        items = [{"shard": pickle.dumps(shard)} for shard in opened.shards]
        dataset = ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        run = functools.partial(_over_shards, work, opened.columns)
    try:
        for row in dataset.map_batches(run, batch_format="pyarrow", batch_size=None).iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, DataError):
                raise result
            yield result
    except (ray.exceptions.RayError, OSError) as exc:
        raise _as_data_error(exc, opened.kind, opened.where) from exc


def _over_rows(work: Work[T], batch: pa.Table) -> pa.Table:
    return _results([_value(work, iter([batch]))])


def _over_shards(work: Work[T], columns: tuple[str, ...] | None, block: pa.Table) -> pa.Table:
    shards = [pickle.loads(text) for text in block["shard"].to_pylist()]
    return _results([_value(work, sources.read(shard, columns)) for shard in shards])


def _value(work: Work[T], batches: Iterator[pa.Table]) -> T | DataError:
    try:
        return work(batches)
    except DataError as exc:
        return exc  # as a value: raised here, it would reach the driver inside pages of Ray's own stack


def _results(values: Sequence[object]) -> pa.Table:
    return pa.table({"result": pa.array([pickle.dumps(value) for value in values], pa.binary())})


# Opening --------------------------------------------------------------------------------------------------------------


def _where(source: Source) -> str:
    return str(source.function or source.path)


def _open(source: Source, names: tuple[str, ...] | None) -> Opened:
    where = _where(source)
    if source.kind == "python":
        dataset, n_rows = _from_function(source)
        return Opened(where, source.kind, (f"python:{source.function}",), n_rows, dataset=dataset)
    paths = [source.path] if isinstance(source.path, str) else list(source.path or ())
    paths = [path if "://" in path else str(Path(path).expanduser().absolute()) for path in paths]
    uris = tuple(paths)
    if source.kind == "parquet" and not source.options:
        shards = tuple(sources.parquet_shards(_files(paths)))
        return Opened(where, source.kind, uris, sum(s.n_rows for s in shards), names, shards)
    if source.kind == "delta":
        if len(paths) != 1:
            raise DataError("source.path", f"kind: delta takes one table, got {len(paths)}")
        return Opened(where, source.kind, uris, 0, dataset=ray.data.read_delta(paths[0], **source.options))
    if source.kind == "csv":
        # As text, for `conform` to parse: Arrow guesses dtypes from the first rows and fails on later ones.
        text = csv.ConvertOptions(
            column_types={name: pa.string() for name in names or ()}, null_values=[""], strings_can_be_null=True
        )
        dataset = ray.data.read_csv(paths, **{"convert_options": text, **source.options})
        return Opened(where, source.kind, uris, 0, dataset=dataset)
    readers = {"parquet": ray.data.read_parquet, "json": ray.data.read_json}
    return Opened(where, source.kind, uris, 0, dataset=readers[source.kind](paths, **source.options))


def _files(paths: Sequence[str]) -> list[str]:
    """The Parquet files that paths, directories and patterns mean, in order. Raises: FileNotFoundError."""
    found: list[str] = []
    for path in paths:
        if "://" not in path and Path(path).is_dir():
            path = f"{path}/**/*.parquet"
        matches = [path] if "://" in path else sorted(map(str, Path("/").glob(path.lstrip("/"))))
        if not matches:
            raise FileNotFoundError(f"no file at {path}")
        found += matches
    return found


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


def _as_data_error(exc: Exception, kind: str, where: str) -> DataError:
    """The reader's complaint in our words: the first line of what was wrong, wherever in the cluster it was."""
    cause = exc.cause if isinstance(exc, ray.exceptions.RayTaskError) else exc
    first = (str(cause).splitlines() or [""])[0]
    return DataError(f"source {where}", f"cannot be read as {kind}: {type(cause).__name__}: {first}")
