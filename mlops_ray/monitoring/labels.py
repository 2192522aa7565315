"""Late, repeated and corrected labels joined to predictions.

The first prediction of an id counts (a retried request is one prediction). Of its labels, `known` takes the newest
that had arrived by a given time, and `first` the earliest to arrive: levels want corrections, sequential tests must not
see an outcome change after they have bet on it.
"""

from __future__ import annotations

from typing import Literal

import polars as pl
import pyarrow as pa


def joined(
    predictions: pa.Table, labels: pa.Table, *, known_by: float, take: Literal["known", "first"] = "known"
) -> pa.Table:
    """Each prediction once, with `label` (null while none is known) and `label_time`.

    Args: both tables as in the log; known_by: seconds since the epoch, later labels are not seen.
    Returns: the predictions' columns plus `label` (float64) and `label_time` (timestamp), ordered by event time and id.
    """
    unique = pl.DataFrame(pl.from_arrow(predictions)).sort("at", "prediction_id").unique("prediction_id", keep="first")
    arrived = pl.DataFrame(pl.from_arrow(labels)).filter(pl.col("time").dt.epoch("us") <= round(known_by * 1e6))
    keep: Literal["first", "last"] = "first" if take == "first" else "last"
    order = ("at", "time", "label") if take == "first" else ("time", "at", "label")
    chosen = (
        arrived.sort(order)
        .unique("prediction_id", keep=keep, maintain_order=True)
        .select("prediction_id", "label", pl.col("time").alias("label_time"))
    )
    return unique.join(chosen, on="prediction_id", how="left").sort("event_time", "prediction_id").to_arrow()
