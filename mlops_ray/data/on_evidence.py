"""Evidence of a whole source, gathered on the cluster in one execution."""

from __future__ import annotations

from collections.abc import Callable

from mlops_ray.config import Source
from mlops_ray.data.evidence import Evidence, gather
from mlops_ray.data.sources.on_ray import each, open_source
from mlops_ray.errors import DataError


def observe(source: Source, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Evidence:
    """What the rows of `source` show about each of its columns. Ray must be running.

    Rows are folded where they are read; `on_progress(rows so far, rows in all)` follows, 0 in all when nobody knows.
    Raises: DataError when the source cannot be read, or holds no rows.
    """
    opened = open_source(source, None, csv_typed=False)
    total = Evidence()
    for part in each(opened, gather):
        total = total + part
        on_progress(total.n, opened.n_rows)
    if not total.n:
        raise DataError(f"source {source.where}", "has no rows, and so shows nothing")
    return total
