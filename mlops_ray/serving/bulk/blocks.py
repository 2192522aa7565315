"""Batch scoring: what one block of rows becomes, by the same rules and the same model as a request."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from mlops_ray.config import Column, Project
from mlops_ray.data.features.statistics import to_columns
from mlops_ray.data.lake import DataFile
from mlops_ray.data.profile import Profile, empty, fold
from mlops_ray.data.rules.expectations import QUARANTINE, broken, quarantined
from mlops_ray.data.schema import conform
from mlops_ray.data.sources.shards import filesystem_of
from mlops_ray.errors import DataError
from mlops_ray.serving.bulk.batch import Block, Output, Plan
from mlops_ray.serving.exchange import Answer
from mlops_ray.training.artifact.model import Model

_TIME = pa.timestamp("us", tz="UTC")
_TYPE_RULES = (".dtype", ".null")
NO_ANSWER = "no answer"
"""The rule that a row breaks for which the model gives no finite number."""


def columns_of(project: Project, model: Model) -> tuple[Column, ...]:
    """Columns of the rows to score: what the model takes must be there; key and event time may be missing where it does
    not take them. Raises: DataError for a feature that the project no longer declares."""
    declared = {column.name: column for column in project.columns}
    if unknown := [name for name in model.features.inputs if name not in declared]:
        raise DataError(project.project, f"the version takes {unknown[0]!r}, which `columns:` does not declare")
    found = [declared[name] for name in model.features.inputs]
    for name in (project.key, project.event_time):
        if name not in model.features.inputs:
            found.append(declared[name].model_copy(update={"required": False}))
    return tuple(found)


def output_schema(model: Model) -> pa.Schema:
    """Columns of the scores. A multiclass score is the likeliest class's, all of them stand in `scores`."""
    base = [("key", pa.string()), ("event_time", _TIME), ("version", pa.int64()), ("score", pa.float64())]
    if model.task == "regression":
        return pa.schema(base)
    if model.task == "binary":
        return pa.schema([*base, ("label", pa.int64())])
    return pa.schema([*base, ("label", pa.string()), ("scores", pa.list_(pa.float64()))])


def score(
    project: Project, model: Model, plan: Plan, output: Output, number: int, batches: Iterator[pa.Table]
) -> Block:
    """Scores one block, writes its files and then its record.

    Rows that a request would be refused for (`serving.request_rules`) go to `rejects/`, with the rules that they broke.
    """
    schema = output_schema(model)
    n_read = n_rejected = 0
    rejects: Counter[str] = Counter()
    profile = empty(model.reference.bins)
    with (
        _Part(output.uri, output.part(plan.id, number), schema) as scores,
        _Part(output.uri, output.aside(plan.id, f"rejects/{number:05d}.parquet"), QUARANTINE) as refused,
    ):
        for raw in batches:
            numbered = _with_keys(project, raw, f"{number}:", n_read)
            n_read += numbered.num_rows
            good, bad, why = _sorted(project, model, numbered)
            answered, part, bad_too = _scored(project, model, plan, good)
            scores.write(answered)
            refused.write(pa.concat_tables([bad, bad_too]))
            n_rejected += bad.num_rows + bad_too.num_rows
            rejects += why + Counter({NO_ANSWER: bad_too.num_rows})
            profile += part
    file = scores.file
    block = Block(number, n_read, file.n_rows if file else 0, n_rejected, dict(rejects), file, profile)
    output.write(plan.id, f"blocks/{number:05d}.json", block.to_dict())
    return block


def _with_keys(project: Project, raw: pa.Table, prefix: str, start: int) -> pa.Table:
    """`raw` with a key in every row; where the input has none, it is the row's place."""
    if project.key in raw.column_names:
        return raw
    return raw.append_column(project.key, pa.array([f"{prefix}{start + i}" for i in range(raw.num_rows)]))


def _sorted(project: Project, model: Model, raw: pa.Table) -> tuple[pa.Table, pa.Table, Counter[str]]:
    """Good rows with the columns of a request, bad ones as in quarantine, and how many broke which rule."""
    columns = columns_of(project, model)
    if project.event_time not in raw.column_names and project.event_time not in model.features.inputs:
        columns = tuple(c.model_copy(update={"nullable": True}) if c.name == project.event_time else c for c in columns)
    rows, uncast = conform(raw, columns)
    lax = project.model_copy(update={"columns": columns})
    rules = dict(broken(lax, rows))
    for name, mask in uncast.items():  # null because it could not be cast: one rule broken, not two
        missing = rules.pop(f"{name.removesuffix('.dtype')}.null", None)
        if missing is not None and (missing & ~mask).any():
            rules[f"{name.removesuffix('.dtype')}.null"] = missing & ~mask
        rules[name] = mask
    if project.serving.request_rules == "types":
        rules = {rule: mask for rule, mask in rules.items() if rule.endswith(_TYPE_RULES)}
    if not rules:
        return rows, QUARANTINE.empty_table(), Counter()
    bad = np.logical_or.reduce(list(rules.values()))
    where = np.flatnonzero(bad)
    why = [[rule for rule, mask in sorted(rules.items()) if mask[row]] for row in where]
    counts = Counter({rule: int(mask.sum()) for rule, mask in rules.items()})
    return rows.filter(pa.array(~bad)), quarantined(project, raw.take(where), why), counts


def _scored(project: Project, model: Model, plan: Plan, rows: pa.Table) -> tuple[pa.Table, Profile, pa.Table]:
    """The answers to good rows, the profile of inputs and scores as collectors make it, rows without an answer."""
    columns = to_columns(model.features, rows)
    scores = model.score(columns)
    mute = ~np.isfinite(scores) if scores.ndim == 1 else ~np.isfinite(scores).all(axis=1)
    silent = QUARANTINE.empty_table()
    if mute.any():
        where = np.flatnonzero(mute)
        silent = quarantined(project, rows.take(where), [[NO_ANSWER]] * len(where))
        rows, scores = rows.filter(pa.array(~mute)), scores[~mute]
        columns = {name: values[~mute] for name, values in columns.items()}
    n = rows.num_rows
    threshold = project.serving.threshold if model.threshold is None else model.threshold
    nobody, versions = np.zeros(n, dtype=bool), np.full(n, plan.version)
    labels = Answer("", model.task, model.classes, threshold, scores, versions, nobody).labels()
    likeliest = scores if scores.ndim == 1 else scores.max(axis=1) if n else np.empty(0)
    time = rows[project.event_time]
    found: dict[str, Any] = {
        "key": rows[project.key].cast(pa.string()),
        "event_time": time.fill_null(pa.scalar(int(plan.at * 1e6)).cast(_TIME)) if time.null_count else time,
        "version": versions,
        "score": likeliest,
        "label": labels if model.task == "binary" else [str(label) for label in labels],
        "scores": list(scores) if scores.ndim == 2 else None,
    }
    schema = output_schema(model)
    answered = pa.table([_as(found[f.name], f.type) for f in schema], schema=schema)
    shown = None if model.task == "regression" else likeliest
    return answered, fold(model.reference.bins, columns, shown), silent


def _as(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind)


class _Part:
    """A file of a block, which is there whole when the `with` block ends, or not at all. Without rows there is none."""

    def __init__(self, uri: str, path: str, schema: pa.Schema) -> None:
        self._filesystem, self._root = filesystem_of(uri)
        self._path, self._schema, self._n_rows = path, schema, 0
        folder, _, name = path.rpartition("/")
        local = isinstance(self._filesystem, fs.LocalFileSystem)  # elsewhere an object appears whole
        self._aside = f"{folder}/.{uuid.uuid4().hex[:8]}-{name}".lstrip("/") if local else path
        self._writer: pq.ParquetWriter | None = None
        self.file: DataFile | None = None

    def __enter__(self) -> _Part:
        return self

    def write(self, rows: pa.Table) -> None:
        """Adds rows."""
        if not rows.num_rows:
            return
        if self._writer is None:
            full = f"{self._root}/{self._aside}"
            self._filesystem.create_dir(full.rpartition("/")[0], recursive=True)
            self._writer = pq.ParquetWriter(full, self._schema, filesystem=self._filesystem, compression="zstd")
        self._writer.write_table(rows)
        self._n_rows += rows.num_rows

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.close()
        aside, full = f"{self._root}/{self._aside}", f"{self._root}/{self._path}"
        if kind is not None:
            self._filesystem.delete_file(aside)
            return
        if aside != full:
            self._filesystem.move(aside, full)
        self.file = DataFile(self._path, self._filesystem.get_file_info(full).size, self._n_rows)
