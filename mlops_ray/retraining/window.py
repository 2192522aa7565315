"""Which labelled rows a retrain learns from: the project's strategy, and the rules that rows must keep. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from mlops_ray.config import Column, Project, Retraining
from mlops_ray.data.rules.expectations import about, check
from mlops_ray.errors import DataError

EVER = 0.0
"""Where a window begins that has no beginning: the epoch."""


@dataclass(frozen=True)
class Chosen:
    """Rows that a retrain learns from, and what is told of them in the version's lineage: `read`, `repeated`, `bad`."""

    rows: pa.Table
    counts: Mapping[str, Any]


def span(plan: Retraining, decided: float, *, horizon: float) -> tuple[float, float]:
    """The event times [since, until) that may be learnt from, seconds since the epoch: what must be read.

    Args: decided: decision time. horizon: `monitoring.label_horizon_s`; younger rows have labels not at random."""
    return (decided - plan.window_s if plan.train_on == "span" else EVER), decided - horizon


def choose(
    project: Project, columns: Sequence[Column], table: pa.Table, decided: float, *, began: float | None = None
) -> Chosen:
    """The rows of `table` that `retraining.train_on` chooses, newest last.

    Args: columns: of the table. table: labelled rows, of rows that repeat the one to keep last. began: since when what
        led to the retrain has been so (None: nothing did), for `since_drift`, which reaches back as far as it takes to
        have `validation.min_rows` rows.
    Raises: DataError when too many of the rows are bad, or too few are good.
    """
    plan, rules = project.retraining, project.validation
    since, until = span(plan, decided, horizon=project.monitoring.label_horizon_s)
    rows = pl.DataFrame(pl.from_arrow(table))
    time_us = pl.col(project.event_time).dt.epoch("us")
    rows = rows.filter((time_us >= round(since * 1e6)) & (time_us < round(until * 1e6)))
    # Those about rows, that is: expectations about the data as a whole are the source's.
    checked = check(about(project, columns), rows.to_arrow())
    share = checked.report.n_quarantined / max(1, checked.report.n_read)
    if share > rules.max_bad_share:
        says = f"{share:.1%} of the rows are bad, {rules.max_bad_share:.1%} are allowed: {checked.report.broken}"
        raise DataError(project.project, says)
    good = pl.DataFrame(pl.from_arrow(checked.good))
    if rules.unique:
        good = good.unique(list(rules.unique), keep="last", maintain_order=True)
    repeated = checked.good.num_rows - good.height
    kept = _strategy(plan, good, project.event_time, began, least=rules.min_rows)
    if kept.height < rules.min_rows:
        raise DataError(project.project, f"{kept.height} labelled rows in the window; {rules.min_rows} are needed")
    counts = {"rows": rows.height, "repeated": repeated, "bad": checked.report.broken}
    return Chosen(kept.to_arrow(), counts)


def _strategy(
    plan: Retraining, rows: pl.DataFrame, event_time: str, began: float | None, *, least: int
) -> pl.DataFrame:
    if plan.train_on == "rows":
        return rows.sort(event_time, maintain_order=True).tail(plan.window_rows or 0)
    if plan.train_on != "since_drift":
        return rows
    time_us = pl.col(event_time).dt.epoch("us")
    since = rows.filter(time_us >= round((EVER if began is None else began) * 1e6))
    return since if since.height >= least else rows.sort(event_time, maintain_order=True).tail(least)
