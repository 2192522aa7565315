"""Records of the spool as rows of the prediction log's tables, and as profiles of the same rows.

| table | a row is | `day`, the partition, is that of |
|---|---|---|
| predictions | an answered row | its event time |
| labels | a label that arrived, by prediction id or by entity key | when it became known |
| values | a business number that arrived, in the same way | when it became known |
| shadow | a row that a shadow scored as well | when it was answered |
| uncaptured | a number of rows that were answered but not recorded | when they were counted |

Days are UTC. Nothing is overwritten. Everything here works on many records at once, column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.config import DAY_S, Project
from mlops_ray.data.features.statistics import seconds
from mlops_ray.data.profile import Bins, Profile, fold
from mlops_ray.serving.records import Labelled, Record, Scored, Shadowed, Trial, Uncaptured, Watermark

_TIME = pa.timestamp("us", tz="UTC")
_LIST = pa.list_(pa.float64())
_KINDS = {"string": pa.string(), "number": pa.float32(), "time": _TIME}
_DTYPES = {"string": np.dtype(object), "number": np.dtype(np.float32), "time": np.dtype(np.float64)}
# Records that become one table at once: enough that what a table costs is little for each of them, few enough that
# their arrays do not outweigh the segment that they came from.
_AT_ONCE = 4096


@dataclass(frozen=True)
class Repeatable:
    """A request whose id its client chose: rows [start, stop) of its segment's predictions. `at` is when it was
    answered, seconds since the epoch."""

    id: str
    at: float
    start: int
    stop: int


@dataclass(frozen=True)
class Arrivals:
    """What a segment holds: new rows of each table, the latest watermark and event time (None without)."""

    predictions: pa.Table
    labels: pa.Table
    values: pa.Table
    shadow: pa.Table
    uncaptured: pa.Table
    watermark: float | None
    newest: float | None
    repeatable: tuple[Repeatable, ...]


def prediction_schema(project: Project) -> pa.Schema:
    """Columns of the prediction log; the model's inputs carry the prefix `x_`.

    A multiclass row has the probability of the likeliest class as its score, and all of them in `..._scores`.
    """
    inputs = [(f"x_{name}", _KINDS[kind]) for name, kind in project.features.kinds.items()]
    return pa.schema(
        [
            ("prediction_id", pa.string()),
            ("day", pa.string()),
            ("at", _TIME),
            ("event_time", _TIME),
            ("key", pa.string()),
            *inputs,
            ("stable", pa.int64()),
            *_score_fields(project, "stable"),
            ("score_us", pa.float32()),
            ("canary", pa.int64()),
            *_score_fields(project, "canary"),
            ("canary_score_us", pa.float32()),
            ("rollout", pa.string()),
            ("share", pa.float64()),
            ("failure", pa.string()),
        ]
    )


def label_schema(project: Project) -> pa.Schema:
    """Columns of the labels. One of `prediction_id` and `key` is null. Classes are texts, other labels numbers."""
    label = pa.string() if project.task == "multiclass" else pa.float64()
    names = ["prediction_id", "key", "day"]
    return pa.schema([*((name, pa.string()) for name in names), ("at", _TIME), ("time", _TIME), ("label", label)])


def shadow_schema(project: Project) -> pa.Schema:
    """Columns of the shadows' answers beside those that the clients got; a score is null where the shadow failed."""
    return pa.schema(
        [
            ("prediction_id", pa.string()),
            ("day", pa.string()),
            ("at", _TIME),
            ("stable", pa.int64()),
            *_score_fields(project, "stable"),
            ("version", pa.int64()),
            *_score_fields(project, "shadow"),
            ("shadow_score_us", pa.float32()),
            ("rollout", pa.string()),
            ("failure", pa.string()),
        ]
    )


VALUES_SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("key", pa.string()),
        ("day", pa.string()),
        ("at", _TIME),
        ("time", _TIME),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)
"""Columns of the business numbers. One of `prediction_id` and `key` is null."""
UNCAPTURED_SCHEMA = pa.schema([("day", pa.string()), ("at", _TIME), ("why", pa.string()), ("n_rows", pa.int64())])


def _score_fields(project: Project, whose: str) -> list[tuple[str, pa.DataType]]:
    found: list[tuple[str, pa.DataType]] = [(f"{whose}_score", pa.float64())]
    return [*found, (f"{whose}_scores", _LIST)] if project.task == "multiclass" else found


def day_of(time_s: float) -> str:
    """UTC day of a time, `YYYY-MM-DD`: the partition that holds it."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d")


# Records to tables ----------------------------------------------------------------------------------------------------


def arrivals(project: Project, records: Iterable[Record]) -> Arrivals:
    """The records of one segment as tables, all that stand there: see `settled` for requests that came twice.

    Rows assigned to a canary have `canary` set; `canary_score` is null where it failed to answer, and `failure` says
    why. Inputs that a record lacks, because the project had no such feature then, are missing values.
    """
    scored: list[Scored] = []
    shadowed: list[Shadowed] = []
    labelled: list[Labelled] = []
    uncaptured: list[Uncaptured] = []
    watermark: float | None = None
    for record in records:
        if isinstance(record, Scored):
            scored.extend([record] if record.keys else [])
        elif isinstance(record, Shadowed):
            shadowed.append(record)
        elif isinstance(record, Labelled):
            labelled.append(record)
        elif isinstance(record, Watermark):
            watermark = record.time if watermark is None else max(watermark, record.time)
        else:
            uncaptured.append(record)
    parts = [_predictions(project, scored[i : i + _AT_ONCE]) for i in range(0, len(scored), _AT_ONCE)]
    stops = np.cumsum([len(r.keys) for r in scored])
    return Arrivals(
        predictions=pa.concat_tables(parts) if parts else prediction_schema(project).empty_table(),
        labels=_labels(project, labelled) if labelled else label_schema(project).empty_table(),
        values=_values(labelled) if any(r.labels.numbers for r in labelled) else VALUES_SCHEMA.empty_table(),
        shadow=_shadow(project, shadowed) if shadowed else shadow_schema(project).empty_table(),
        uncaptured=_uncaptured(uncaptured),
        watermark=watermark,
        newest=max((float(r.times.max()) for r in scored), default=None),
        repeatable=tuple(
            Repeatable(r.id, r.at, int(stop) - len(r.keys), int(stop))
            for r, stop in zip(scored, stops, strict=True)
            if r.repeatable
        ),
    )


def settled(arrived: Mapping[int, Arrivals], claim: Callable[[Sequence[str], int], set[str]]) -> dict[int, pa.Table]:
    """The predictions of each segment, by its number, without the requests whose rows are another's to record.

    Of a request that stands here more than once the answer that left last is recorded, unless another was before.
    Args: claim(ids, number): those of the ids that the segment may record, now and whenever it is asked again.
    """
    waiting: dict[str, list[tuple[int, Repeatable]]] = {}
    for number, segment in arrived.items():
        for one in segment.repeatable:
            waiting.setdefault(one.id, []).append((number, one))
    for several in waiting.values():
        several.sort(key=lambda found: (found[1].at, found[0], found[1].start))
    kept = {number: np.ones(a.predictions.num_rows, dtype=np.bool_) for number, a in arrived.items()}
    while waiting:
        asked: dict[int, list[Repeatable]] = {}
        for several in waiting.values():
            number, last = several.pop()
            asked.setdefault(number, []).append(last)
        for number, ones in sorted(asked.items()):
            mine = claim([one.id for one in ones], number)
            for one in ones:
                rest = waiting[one.id]
                losers = rest if one.id in mine else [(number, one)]
                for where, lost in losers:
                    kept[where][lost.start : lost.stop] = False
                if one.id in mine or not rest:
                    del waiting[one.id]
    return {
        number: a.predictions if kept[number].all() else a.predictions.filter(pa.array(kept[number]))
        for number, a in arrived.items()
    }


def _predictions(project: Project, records: Sequence[Scored]) -> pa.Table:
    sizes = np.array([len(r.keys) for r in records])
    starts = np.cumsum(sizes) - sizes
    record_of = np.repeat(np.arange(len(records)), sizes)
    times = np.concatenate([r.times for r in records])
    columns: dict[str, Any] = {
        "prediction_id": _prediction_ids(records, sizes, starts),
        "day": _days(times),
        "at": _micros(np.array([r.at for r in records])[record_of]),
        "event_time": _micros(times),
        "key": pa.array([key for r in records for key in r.keys], pa.string()),
        "stable": np.array([r.stable for r in records], np.int64)[record_of],
        "score_us": (np.array([r.score_us for r in records]) / sizes).astype(np.float32)[record_of],
        **_inputs(project, records),
        **_scores(project, "stable", [r.scores for r in records]),
        **_trials(project, len(record_of), starts, [r.trials for r in records]),
    }
    schema = prediction_schema(project)
    return pa.Table.from_arrays([_as(columns[f.name], f.type) for f in schema], schema=schema)


def _prediction_ids(records: Sequence[Scored], sizes: NDArray[np.int64], starts: NDArray[np.int64]) -> pa.Array:
    """`<request id>:<row>` for each row."""
    places = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    for record, start, size in zip(records, starts, sizes, strict=True):
        if record.places is not None:
            places[start : start + size] = record.places
    return _joined_ids([r.id for r in records], np.repeat(np.arange(len(records)), sizes), places)


def _joined_ids(ids: Sequence[str], record_of: NDArray[np.int64], places: NDArray[np.int64]) -> pa.Array:
    requests = pa.array(ids, pa.string()).take(pa.array(record_of))
    return pc.binary_join_element_wise(requests, pa.array(places).cast(pa.string()), ":")


def _inputs(project: Project, records: Sequence[Scored]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in project.features.kinds.items():
        wanted = _DTYPES[kind]
        parts: list[Any] = [r.columns.get(name) for r in records]
        if any(part is None or part.dtype != wanted for part in parts):  # the project was another one then
            missing = "" if kind == "string" else np.nan
            parts = [
                np.full(len(r.keys), missing, wanted) if part is None or part.dtype != wanted else part
                for r, part in zip(records, parts, strict=True)
            ]
        values = np.concatenate(parts)
        found[f"x_{name}"] = _micros(values) if kind == "time" else values
    return found


def _trials(
    project: Project, n_rows: int, starts: NDArray[np.int64], trials: Sequence[tuple[Trial, ...]]
) -> dict[str, Any]:
    """What the log says of the canary, for each row; null where the row was no canary's."""
    asked = [(start, t) for start, of_record in zip(starts, trials, strict=True) for t in of_record if len(t.rows)]
    if not asked:
        names = [
            "canary",
            "canary_score_us",
            "rollout",
            "share",
            "failure",
            *(name for name, _ in _score_fields(project, "canary")),
        ]
        return {name: pa.nulls(n_rows) for name in names}
    rows = np.concatenate([start + t.rows for start, t in asked])
    trial_of = np.repeat(np.arange(len(asked)), [len(t.rows) for _, t in asked])
    # Where each row of the table stands among those on trial; null for the others.
    place = np.full(n_rows, -1)
    place[rows] = np.arange(len(rows))
    spread = pa.array(place, mask=place < 0)
    found = {
        "canary": pa.array([t.version for _, t in asked], pa.int64()).take(pa.array(trial_of)),
        "canary_score_us": _row_us([t for _, t in asked]).take(pa.array(trial_of)),
        "rollout": pa.array([t.rollout for _, t in asked], pa.string()).take(pa.array(trial_of)),
        "share": pa.array([t.share for _, t in asked], pa.float64()).take(pa.array(trial_of)),
        "failure": pa.array([t.failure or None for _, t in asked], pa.string()).take(pa.array(trial_of)),
        **_trial_scores(project, "canary", [t for _, t in asked]),
    }
    return {name: values.take(spread) for name, values in found.items()}


def _row_us(trials: Sequence[Trial]) -> pa.Array:
    """Microseconds for each row of a trial; null where the version did not say."""
    return pa.array([t.row_us for t in trials], pa.float32())


def _trial_scores(project: Project, whose: str, trials: Sequence[Trial]) -> dict[str, pa.Array]:
    """Scores of the rows of these trials; null for those of one that failed."""
    answered = np.concatenate([np.full(len(t.rows), t.scores is not None) for t in trials])
    scores = [t.scores for t in trials if t.scores is not None]
    if not scores:
        return {name: pa.nulls(len(answered), kind) for name, kind in _score_fields(project, whose)}
    place = np.cumsum(answered) - 1
    spread = pa.array(place, mask=~answered)
    return {name: pa.array(v).take(spread) for name, v in _scores(project, whose, scores).items()}


def _scores(project: Project, whose: str, scores: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Columns of scores, one array of each record: (n,), or (n, classes), whose likeliest class is the row's score.

    Raises: ValueError when their shape is not the task's."""
    if project.task != "multiclass":
        return {f"{whose}_score": np.concatenate(scores)}
    widths = np.repeat([s.shape[1] for s in scores], [len(s) for s in scores])  # versions may know other classes
    offsets = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
    flat = np.concatenate([s.ravel() for s in scores])
    return {
        f"{whose}_score": np.concatenate([s.max(axis=1) for s in scores]),
        f"{whose}_scores": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
    }


def _shadow(project: Project, records: Sequence[Shadowed]) -> pa.Table:
    record_of = np.repeat(np.arange(len(records)), [len(r.trial.rows) for r in records])
    at = np.array([r.at for r in records])[record_of]
    places = np.concatenate([r.trial.rows for r in records])
    columns: dict[str, Any] = {
        "prediction_id": _joined_ids([r.id for r in records], record_of, places),
        "day": _days(at),
        "at": _micros(at),
        "stable": np.array([r.stable for r in records], np.int64)[record_of],
        "version": np.array([r.trial.version for r in records], np.int64)[record_of],
        "shadow_score_us": _row_us([r.trial for r in records]).take(pa.array(record_of)),
        "rollout": pa.array([r.trial.rollout for r in records], pa.string()).take(pa.array(record_of)),
        "failure": pa.array([r.trial.failure or None for r in records], pa.string()).take(pa.array(record_of)),
        **_scores(project, "stable", [r.stable_scores for r in records]),
        **_trial_scores(project, "shadow", [r.trial for r in records]),
    }
    schema = shadow_schema(project)
    return pa.Table.from_arrays([_as(columns[f.name], f.type) for f in schema], schema=schema)


def _labels(project: Project, records: Sequence[Labelled]) -> pa.Table:
    times = np.concatenate([r.labels.times for r in records])
    at = np.repeat([r.at for r in records], [len(r.labels.times) for r in records])
    # None and NaN, which is not itself: entries that tell numbers only.
    values = [value if value == value else None for r in records for value in r.labels.values.tolist()]
    written = str if project.task == "multiclass" else float
    columns: dict[str, Any] = {
        "prediction_id": pa.array([i or None for r in records for i in r.labels.ids], pa.string()),
        "key": pa.array([k or None for r in records for k in r.labels.keys], pa.string()),
        "day": _days(times),
        "at": _micros(at),
        "time": _micros(times),
        "label": [None if v is None else written(v) for v in values],
    }
    schema = label_schema(project)
    found = pa.Table.from_arrays([_as(columns[f.name], f.type) for f in schema], schema=schema)
    return found.filter(pc.is_valid(found["label"])) if None in values else found


def _values(records: Sequence[Labelled]) -> pa.Table:
    """The business numbers of these records, name by name."""
    named = [(r, name, values) for r in records for name, values in r.labels.numbers.items()]
    told = [(r, name, values, np.flatnonzero(~np.isnan(values))) for r, name, values in named]
    times = np.concatenate([r.labels.times[rows] for r, _, _, rows in told])
    columns: dict[str, Any] = {
        "prediction_id": pa.array([r.labels.ids[i] or None for r, _, _, rows in told for i in rows], pa.string()),
        "key": pa.array([r.labels.keys[i] or None for r, _, _, rows in told for i in rows], pa.string()),
        "day": _days(times),
        "at": _micros(np.repeat([r.at for r, _, _, _ in told], [len(rows) for _, _, _, rows in told])),
        "time": _micros(times),
        "name": [name for _, name, _, rows in told for _ in rows],
        "value": np.concatenate([values[rows] for _, _, values, rows in told]),
    }
    return pa.Table.from_arrays([_as(columns[f.name], f.type) for f in VALUES_SCHEMA], schema=VALUES_SCHEMA)


def _uncaptured(records: Sequence[Uncaptured]) -> pa.Table:
    at = np.array([r.at for r in records], dtype=np.float64)
    columns = [_days(at), _micros(at), [r.why for r in records], [r.n_rows for r in records]]
    return pa.Table.from_arrays(
        [_as(c, f.type) for c, f in zip(columns, UNCAPTURED_SCHEMA, strict=True)], schema=UNCAPTURED_SCHEMA
    )


def _as(values: Any, kind: pa.DataType) -> pa.Array:
    """As an Arrow array of that type; NaN is null."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, kind, from_pandas=True)


def _micros(times: NDArray[np.float64]) -> pa.Array:
    """Seconds since the epoch as Arrow times; NaN as null."""
    micros = np.round(times * 1e6)
    missing = np.isnan(micros)
    return pa.array(np.where(missing, 0, micros).astype(np.int64), type=pa.int64(), mask=missing).cast(_TIME)


def _days(times: NDArray[np.float64]) -> pa.Array:
    days, place = np.unique(np.floor(times / DAY_S), return_inverse=True)
    return pa.array([day_of(day * DAY_S) for day in days.tolist()], pa.string()).take(pa.array(place))


# Rows to profiles -----------------------------------------------------------------------------------------------------


def profiles(project: Project, bins: Bins, predictions: pa.Table) -> dict[tuple[int, float], Profile]:
    """Profiles of the rows by (version that answered, start of the time block in seconds), with the scores that the
    reference of a version counts: of 1, of the likeliest class; none for a regression."""
    if predictions.num_rows == 0:
        return {}
    block_s = project.monitoring.block_s
    times = predictions["event_time"].cast(pa.int64()).to_numpy() / 1e6
    blocks = np.floor(times / block_s) * block_s
    versions, scores = answered(predictions)
    columns = inputs(project, predictions)
    out: dict[tuple[int, float], Profile] = {}
    for version, block in sorted(set(zip(versions.tolist(), blocks.tolist(), strict=True))):
        rows = (versions == version) & (blocks == block)
        shown = None if project.task == "regression" else scores[rows]
        out[version, block] = fold(bins, {n: v[rows] for n, v in columns.items()}, shown)
    return out


def answered(predictions: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Version and score that each row's client got: the canary's where it answered, else stable's. Shapes (n,)."""
    stable = predictions["stable"].to_numpy()
    canary_scores = predictions["canary_score"].to_numpy(zero_copy_only=False).astype(np.float64)
    theirs = ~np.isnan(canary_scores)
    canary = predictions["canary"].fill_null(-1).to_numpy()
    return np.where(theirs, canary, stable), np.where(theirs, canary_scores, predictions["stable_score"].to_numpy())


def inputs(project: Project, predictions: pa.Table) -> dict[str, NDArray[Any]]:
    """The model's inputs of logged rows, as they were scored: float32 with NaN, strings with "" for missing, times as
    float64 seconds since the epoch with NaN."""
    columns = {}
    for name, kind in project.features.kinds.items():
        column = predictions[f"x_{name}"]
        if kind == "string":
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif kind == "time":
            columns[name] = seconds(column)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return columns
