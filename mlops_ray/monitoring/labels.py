"""Late, repeated and corrected labels joined to predictions.

A label names its prediction, or the entity: then it is that key's newest prediction's before the label's time. Both
are joined when they are read, so a label may come before its prediction.
The first prediction of an id counts (a retried request is one prediction). Of its labels, `known` takes the newest
that had arrived by a given time, and `first` the earliest to arrive: levels want corrections, sequential tests must not
see an outcome change after they have bet on it.
"""

from __future__ import annotations

from typing import Literal

import polars as pl
import pyarrow as pa

from mlops_ray.data import lake
from mlops_ray.serving.log import tables as log


def joined(
    predictions: pa.Table, labels: pa.Table, *, known_by: float, take: Literal["known", "first"] = "known"
) -> pa.Table:
    """Each prediction once, with `label` (null while none is known) and `label_time`.

    Args: both tables as in the log; known_by: seconds since the epoch, later labels are not seen. With labels by entity
        key, `predictions` must hold those keys' rows of all versions up to `known_by`: see `addressed`.
    Returns: the predictions' columns plus `label` and `label_time` (timestamp), ordered by event time and id.
    """
    unique = pl.DataFrame(pl.from_arrow(predictions)).sort("at", "prediction_id").unique("prediction_id", keep="first")
    arrived = pl.DataFrame(pl.from_arrow(addressed(labels, predictions)))
    arrived = arrived.filter(pl.col("time").dt.epoch("us") <= round(known_by * 1e6))
    keep: Literal["first", "last"] = "first" if take == "first" else "last"
    order = ("at", "time", "label") if take == "first" else ("time", "at", "label")
    chosen = (
        arrived.sort(order)
        .unique("prediction_id", keep=keep, maintain_order=True)
        .select("prediction_id", "label", pl.col("time").alias("label_time"))
    )
    return unique.join(chosen, on="prediction_id", how="left").sort("event_time", "prediction_id").to_arrow()


def addressed(labels: pa.Table, predictions: pa.Table) -> pa.Table:
    """The labels, those by entity key with the id of the prediction that they are about: the key's newest whose event
    time is not after the label's time. A label of a key without one is left out; it is joined once there is one.

    Args: predictions: at least `prediction_id`, `key` and `event_time` of all rows, of whatever version, up to the
        latest of the labels.
    """
    found = pl.DataFrame(pl.from_arrow(labels))
    by_key = found.filter(pl.col("prediction_id").is_null())
    if by_key.is_empty():
        return labels
    rows = pl.DataFrame(pl.from_arrow(predictions.select(["prediction_id", "key", "event_time"])))
    # Of rows of one instant the last id: whichever is taken, it must be the same at every look.
    rows = rows.sort("event_time", "prediction_id").rename({"event_time": "time"})
    theirs = by_key.drop("prediction_id").sort("time").join_asof(rows, on="time", by="key", check_sortedness=False)
    theirs = theirs.filter(pl.col("prediction_id").is_not_null()).select(found.columns)
    return pl.concat([found.filter(pl.col("prediction_id").is_not_null()), theirs]).to_arrow()


def arrived(uri: str, since: float) -> int:
    """How many labels of the log's table at `uri` became known after `since`, seconds since the epoch, repeats and
    corrections among them. Of whole days the commits tell the number; only the first day's files are opened."""
    first = log.day_of(since)
    later = sum(n for day, n in lake.rows_by_day(uri).items() if day > first)
    times = lake.scan(uri, first, first, pa.schema([("time", pa.timestamp("us", tz="UTC"))]))["time"]
    return later + int((times.cast(pa.int64()).to_numpy() > round(since * 1e6)).sum())
