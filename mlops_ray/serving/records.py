"""What stands in the spool: scored requests, a shadow's later scores, labels, watermarks, and counts of what does not.

A record is a plain value; `capture` turns it into bytes and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlops_ray.data.profile import Columns
from mlops_ray.serving.exchange import Labels


@dataclass(frozen=True)
class Trial:
    """Rows of a request that a version on trial was asked as well.

    rows: their places in the request, shape (k,). scores: its answers, in the task's shape for k rows; None where it
    failed. failure: why ("", "deadline", "error", "nonsense", "open": not asked, because it kept failing).
    share: of the keys that were its by chance; None where it was asked as stable and failed while it baked.
    row_us: microseconds that its scoring took for each row inside its own process; None where it did not say.
    """

    version: int
    rollout: str
    share: float | None
    rows: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    failure: str = ""
    row_us: float | None = None


@dataclass(frozen=True)
class Scored:
    """One answered request. at: seconds since the epoch. repeatable: the id is the client's, so it may come again.

    scores: stable's, in the task's shape; score_us: microseconds that its scoring took for all rows together.
    trials: paired evidence of the rows that were a canary's, one of each version that had any; no row is in two.
    places: which rows of the request these are, shape (n,), when sampling left others out; None: all of them, in order.
    """

    id: str
    at: float
    keys: tuple[str, ...]
    times: NDArray[np.float64]
    columns: Columns
    stable: int
    scores: NDArray[np.float64]
    score_us: float
    repeatable: bool = False
    trials: tuple[Trial, ...] = ()
    places: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Shadowed:
    """A shadow's scores of rows that were answered before: `stable_scores` are those that their client got."""

    id: str
    at: float
    stable: int
    stable_scores: NDArray[np.float64]
    trial: Trial


@dataclass(frozen=True)
class Labelled:
    """Labels and business numbers that arrived together; `at` is when, in seconds since the epoch."""

    at: float
    labels: Labels


@dataclass(frozen=True)
class Watermark:
    """No event before `time` will come any more; both in seconds since the epoch."""

    at: float
    time: float


@dataclass(frozen=True)
class Uncaptured:
    """Rows that were answered but stand in no log, since the last such record; `why`: "overflow", "sampled",
    "disk"; or rows that a shadow never saw: "shadow"."""

    at: float
    why: str
    n_rows: int


Record = Scored | Shadowed | Labelled | Watermark | Uncaptured
