"""The course of an order to be forgotten: through every table that may hold its keys, until a search finds nothing.

Every step is repeated without harm, and the order says beforehand what is about to go, so a course that was killed is
taken up by giving the same order again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as fs
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.data import redaction
from mlops_ray.data.redaction import Removed, Sought
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.data.traces import Needles, Trace, traces
from mlops_ray.serving.log import forget
from mlops_ray.serving.log.forget import Forgotten, Order
from mlops_ray.serving.places import spool_root

Progress = Callable[[str, int, int], None]
Flush = Callable[[], None]

_PASSES = 3
"""Rows that were on their way when a pass began are there for the next one; nothing is on its way for longer."""
_BY = ("prediction_id", "key")
_FACTS = "facts.json"
"""Kept beside a dataset version (`data.on_ray.FACTS`): counts of values, packed, so that no search would see a key."""


@dataclass(frozen=True)
class Table:
    """One Delta table that may hold keys, in `columns`. history: its versions are kept, and redacted."""

    name: str
    uri: str
    columns: tuple[str, ...]
    history: bool = False


@dataclass(frozen=True)
class Found:
    """A trace of a key in a table. theirs: it stands where keys stand; else it is what another row says."""

    table: str
    trace: Trace
    theirs: bool


@dataclass(frozen=True)
class Outcome:
    """What a course took out (in `order`), and what the search after it found."""

    order: Order
    found: tuple[Found, ...]

    @property
    def proven(self) -> bool:
        """Whether nothing is left where keys stand."""
        return not any(found.theirs for found in self.found)


def tables(project: Project) -> list[Table]:
    """Every table of the prediction log that there is, dataset versions, quarantine."""
    storage, name = project.storage, project.project
    filesystem, root = filesystem_of(storage.path("log", name))
    found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    logs = sorted(info.base_name for info in found if info.type == fs.FileType.Directory)
    return [
        *(Table(log, storage.path("log", name, log), ("key", "prediction_id", f"x_{project.key}")) for log in logs),
        Table("dataset versions", storage.path("data", name), (project.key,), history=True),
        Table("quarantine", storage.path("quarantine", name), ("key", "row"), history=True),
    ]


def run(
    project: Project, order: Order, needles: Needles, secret: bytes, *, flush: Flush, now: float, on_progress: Progress
) -> Outcome:
    """Carries the order out, or what is left of it, and searches for what is left of its keys.

    Args: needles: the keys, and what capture makes of them. flush: brings what the spools hold into the log, by way of
        collectors that know the order (`Forgotten`). now: for the mark of redacted versions.
    Raises: DataError when other writers of a table were always first, or a table's beginning is gone.
    """
    resumed = bool(order.ids or order.removed)
    found: tuple[Found, ...] = ()
    forget.save(project, order)
    for number in range(_PASSES):
        on_progress("pass", number, _PASSES)
        flush()
        order = _noted(project, order, needles, secret)
        for table in tables(project):
            order = _through(project, table, order, needles, secret, now=now, cut=resumed or number > 0)
            forget.save(project, order)
        found = search(project, needles)
        if not any(trace.theirs for trace in found):
            break
    on_progress("pass", _PASSES, _PASSES)
    return Outcome(order, found)


def search(project: Project, needles: Needles) -> tuple[Found, ...]:
    """Every trace of the keys in any file of the tables, and of this node's spool."""
    found = []
    for table in tables(project):
        columns = (*table.columns, project.key) if table.name == "quarantine" else table.columns
        for trace in traces(table.uri, needles, columns):
            found.append(Found(table.name, trace, trace.column is None or trace.column in columns))
    found += [Found("spool", trace, True) for trace in traces(str(spool_root(project)), needles, ())]
    return tuple(found)


def count(project: Project, needles: Needles) -> dict[str, int]:
    """Rows that an order about these keys would take out, by table; labels by the predictions that are theirs."""
    ids = _ids(project, needles)
    counts = {}
    for table in tables(project):
        sought = _sought(project, table, needles, "", lambda cells: _among(cells, ids))
        column = table.columns[1] if not table.history else table.columns[0]
        counts[table.name] = sum(1 for _ in redaction.values(table.uri, sought, column))
    return counts


def _noted(project: Project, order: Order, needles: Needles, secret: bytes) -> Order:
    """The order with all predictions of its keys that the log holds: once the rows are gone, nobody knows them."""
    order = order.with_ids(forget.pseudonym(secret, i) for i in _ids(project, needles))
    forget.save(project, order)
    return order


def _ids(project: Project, needles: Needles) -> set[str]:
    found: set[str] = set()
    for table in tables(project):
        if not table.history:
            sought = _sought(project, table, needles, "", lambda cells: np.zeros(len(cells), dtype=bool))
            found.update(i for i in redaction.values(table.uri, sought, "prediction_id") if i)
    return found


def _through(
    project: Project, table: Table, order: Order, needles: Needles, secret: bytes, *, now: float, cut: bool
) -> Order:
    """The order after it has gone through one table."""
    # Collectors note predictions that they sieved, whose labels may have come before them.
    known = Forgotten(secret, [order, *forget.orders(project)])
    sought = _sought(project, table, needles, order.mark, known.theirs)
    if table.history:
        return order.after(table.name, redaction.redact(table.uri, sought, now=now))
    return order.after(table.name, redaction.purge(table.uri, sought, needles.tells, by=_BY, cut=cut))


def _sought(
    project: Project,
    table: Table,
    needles: Needles,
    mark: str,
    predictions: Callable[[pa.ChunkedArray], NDArray[np.bool_]],
) -> Sought:
    """Which rows of a table are the keys'. predictions: which prediction ids are theirs, shape (n,)."""
    wanted = pa.array(needles.values, pa.large_string())

    def match(rows: pa.Table) -> NDArray[np.bool_]:
        found = np.zeros(rows.num_rows, dtype=bool)
        for name in set(rows.column_names) & set(table.columns):
            cells = rows[name]
            if name == "prediction_id":
                found |= predictions(cells)
            elif name == "row":
                keys = (_key_in(cell, project.key) for cell in cells.to_pylist())
                found |= np.fromiter((key in needles.values for key in keys), bool, len(cells))
            else:
                same = pc.is_in(cells.cast(pa.large_string()), value_set=wanted)
                found |= pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        return found

    def texts(name: str, content: bytes) -> bytes:
        return _without_column(content, project.key) if name == _FACTS else needles.without(content)

    return Sought(table.columns, match, mark, texts)


def _among(ids: pa.ChunkedArray, wanted: set[str]) -> NDArray[np.bool_]:
    found = pc.is_in(ids.cast(pa.large_string()), value_set=pa.array(sorted(wanted), pa.large_string()))
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def _key_in(row: str | None, key: str) -> str | None:
    """The key of a row as it came, which is JSON."""
    value = json.loads(row).get(key) if row else None
    return None if value is None else str(value)


def _without_column(facts: bytes, key: str) -> bytes:
    """Facts without those of the key's column, and without first and last cells."""
    body: dict[str, Any] = json.loads(facts)
    if key not in body["columns"] and not body["orders"]:
        return facts
    columns: Mapping[str, Any] = {name: said for name, said in body["columns"].items() if name != key}
    return json.dumps({**body, "columns": columns, "orders": {}}).encode()


def unreached(project: Project) -> tuple[str, ...]:
    """What an order does not reach, a sentence each."""
    is_feature = project.key in project.features.inputs
    said = [
        "the project's source: remove the rows there too, or the next `mlops-ray prepare` brings them back",
        "what was exported before (`log export`, `score`, `export`), and backups of storage.root",
        "weights of models that were trained on the rows; retrain to be rid of them",
        "sums that hold no row: profiles and windows of the monitor, metrics and plots in MLflow",
        "the ledger, which holds no row data, and request ids that clients chose, until the collector lets go of them",
    ]
    if is_feature:
        said.append(
            f"{project.key!r} is a feature: golden requests, reference profiles and encoders inside model artifacts, "
            "and windows of the monitor may name it"
        )
    else:
        said.append(
            "golden requests inside model artifacts: the features of some rows of a holdout, without their keys"
        )
    return tuple(said)


def finished(order: Order, *, now: float) -> Order:
    """The order once it is in the ledger."""
    return replace(order, done=now)


def evidence(outcome: Outcome) -> dict[str, Any]:
    """What the ledger says of an order: counts by table, and no word of the rows or keys."""
    order = outcome.order
    return {
        "keys": len(order.keys),
        "predictions": len(order.ids),
        "removed": {table: _counts(removed) for table, removed in order.removed.items()},
        "proven": outcome.proven,
        "ordered": order.at,
    }


def _counts(removed: Removed) -> dict[str, Any]:
    return {"rows": removed.rows, "files": removed.files, "versions": list(removed.versions)}
