"""What is counted of the rows that a collector commits, beside their profiles: for people who watch, for no decision.

A count is named by words between colons, and has a time with it (0 where that means nothing):

    score:3:4         rows of version 3 whose scoring took at most SCORE_S[4], and more than SCORE_S[3]
    score_us:3        microseconds that all of them took
    tried:4           rows that version 4, on trial, was asked
    failed:4:error    those that it failed, by why
    uncaptured:disk   rows that were answered and not recorded, by why
    labels            labels that have arrived, with the time at which the newest became known

All grow only, whoever collects: the monitor adds them up in the transaction that folds the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlops_ray.serving.log import tables as log

SCORE_S = (25e-6, 50e-6, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 1.0, 10.0)
"""Upper bounds, in seconds a row: ONNX takes some tens of microseconds, scikit-learn milliseconds; then a last span
without an end. A change of them makes new counts, since old ones cannot be split."""

Counts = dict[str, tuple[int, float]]
"""Name to (how many more, time)."""


def tally(predictions: pa.Table, labels: pa.Table, uncaptured: pa.Table) -> Counts:
    """The counts of rows of the log's tables of these names, see `tables`. Zero is left out."""
    found: Counts = {}
    for name, n in (*_scored(predictions), *_tried(predictions), *_uncaptured(uncaptured)):
        found[name] = (found.get(name, (0, 0.0))[0] + n, 0.0)
    if labels.num_rows:
        newest = pc.max(labels["time"]).cast(pa.int64()).as_py() / 1e6
        found["labels"] = (labels.num_rows, newest)
    return {name: each for name, each in found.items() if each[0]}


def _scored(predictions: pa.Table) -> Iterator[tuple[str, int]]:
    """Of the version that answered each row: the canary's own time where it answered, else stable's."""
    versions, _ = log.answered(predictions)
    stable = _floats(predictions["score_us"])
    canary = _floats(predictions["canary_score_us"])
    micros = np.where(versions == predictions["stable"].to_numpy(), stable, canary)
    for version in np.unique(versions).tolist():
        mine = micros[(versions == version) & ~np.isnan(micros)]
        places = np.searchsorted(SCORE_S, mine / 1e6)
        for place, n in enumerate(np.bincount(places, minlength=len(SCORE_S) + 1).tolist()):
            yield f"score:{version}:{place}", n
        yield f"score_us:{version}", round(float(mine.sum()))


def _tried(predictions: pa.Table) -> Iterator[tuple[str, int]]:
    asked = predictions.select(["canary", "failure"]).filter(pc.is_valid(predictions["canary"]))
    counted = asked.group_by(["canary", "failure"]).aggregate([([], "count_all")]).to_pylist()
    for one in counted:
        yield f"tried:{one['canary']}", one["count_all"]
        if one["failure"] is not None:
            yield f"failed:{one['canary']}:{one['failure']}", one["count_all"]


def _uncaptured(uncaptured: pa.Table) -> Iterator[tuple[str, int]]:
    for one in uncaptured.select(["why", "n_rows"]).to_pylist():
        yield f"uncaptured:{one['why']}", one["n_rows"]


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64()).fill_null(float("nan")).to_numpy())
