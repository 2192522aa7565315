"""Features over the shards of a source: statistics in one pass, rows transformed where they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import ray

from mlops_ray.config import Column, Features, Source
from mlops_ray.data.features.matrix import Matrix, transformed
from mlops_ray.data.features.statistics import Partial, fold
from mlops_ray.data.features.transformer import transformer
from mlops_ray.data.schema import conform
from mlops_ray.data.sources.on_ray import each, open_source
from mlops_ray.errors import DataError

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

T = TypeVar("T")


def fit(
    features: Features, columns: Sequence[Column], source: Source, *, target: str | None = None, key: str | None = None
) -> ColumnTransformer:
    """The ColumnTransformer fitted on all rows of `source`, in one pass; cells that do not fit their dtype are missing.

    Args: columns: of the rows; target, key: columns, for features with `encode: target`. Ray must be running.
    Raises: DataError when the source cannot be read or holds no rows.
    """
    work = functools.partial(_fold, features=features, columns=tuple(columns), target=target, key=key)
    found = [partial for partial in each(open_source(source, columns), work) if partial is not None]
    if not found:
        raise DataError("features", "the source has no rows")
    return transformer(features, functools.reduce(lambda a, b: a + b, found))


def each_transformed(
    features: Features,
    columns: Sequence[Column],
    fitted: ColumnTransformer,
    source: Source,
    use: Callable[[Matrix], T],
) -> Iterator[list[T]]:
    """What `use` makes of the transformed batches of each shard, shape (n, outputs), in the source's order.

    The rows stay on the worker that read them; `use` writes them, scores them or sums them up. It must be picklable and
    must not keep the matrix, whose memory the next batch uses again.
    Ray must be running. Raises: DataError when the source cannot be read.
    """
    shared = ray.put(fitted)
    work = functools.partial(_transform, features=features, columns=tuple(columns), fitted=shared, use=use)
    yield from each(open_source(source, columns), work)


def _fold(
    batches: Iterator[pa.Table], features: Features, columns: tuple[Column, ...], target: str | None, key: str | None
) -> Partial | None:
    rows = (conform(batch, columns)[0] for batch in batches if batch.num_rows)
    partials = [fold(features, table, target=target, key=key) for table in rows]
    return functools.reduce(lambda a, b: a + b, partials) if partials else None


def _transform(
    batches: Iterator[pa.Table],
    features: Features,
    columns: tuple[Column, ...],
    fitted: ray.ObjectRef[ColumnTransformer],
    use: Callable[[Matrix], T],
) -> list[T]:
    transformer = ray.get(fitted)
    results: list[T] = []
    matrix: Matrix | None = None
    for batch in batches:
        table = conform(batch, columns)[0]
        made = transformed(
            features, transformer, table, matrix if matrix is not None and len(matrix) >= len(table) else None
        )
        matrix = made if matrix is None or len(made) > len(matrix) else matrix
        results.append(use(made))
    return results
