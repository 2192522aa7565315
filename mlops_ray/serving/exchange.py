"""What protocols and service hand each other: a request as columns, an answer as arrays. No bytes, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns


@dataclass(frozen=True)
class Batch:
    """Rows of one request: model inputs as columns of shape (n,), keys, and event times in seconds since the epoch.

    columns: numbers float32 (missing NaN), strings as objects (missing ""), times float64 seconds (missing NaN).
    keys: None where the client sent none: then the request id and the row's place make one.
    """

    keys: tuple[str, ...] | None
    times: NDArray[np.float64]
    columns: Columns

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.times)


@dataclass(frozen=True)
class Options:
    """What a request may ask for beyond an answer."""

    threshold: float | None = None
    """Probability from which the label of this request's rows is 1 (binary only)."""
    version: int | None = None
    """The version that is to answer, for operators; it must be loaded."""
    explain: int = 0
    """How many contributions of features to tell for each row, largest first."""


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Asked:
    """A parsed request: what to score, under which options, and what its protocol needs to shape the reply.

    echo: the protocol's own, untouched by the service (V2's id and requested outputs, the reply's format).
    """

    batch: Batch
    options: Options = NO_OPTIONS
    echo: Any = None


@dataclass(frozen=True)
class Answer:
    """What a request's rows got.

    scores: binary P(1), shape (n,); multiclass P(class), shape (n, classes); regression the prediction, shape (n,).
    versions: who answered each row, shape (n,). canary: rows that were the canary's by their key, shape (n,); a row of
    the canary that stable had to answer has stable's version.
    threshold: one for all rows, or one for each, shape (n,), where the canary has another than stable.
    captured: False when the rows stand in no log (overflow or sampling), which the client is told.
    contributions: per row (feature, contribution) pairs, largest first, when asked for.
    """

    request_id: str
    task: Task
    classes: tuple[str | int, ...]
    threshold: float | NDArray[np.float64]
    scores: NDArray[np.float64]
    versions: NDArray[np.int64]
    canary: NDArray[np.bool_]
    captured: bool = True
    contributions: tuple[tuple[tuple[str, float], ...], ...] | None = field(default=None)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.versions)

    def prediction_id(self, row: int) -> str:
        """Under which the row stands in the log, and its label is sent.

        >>> Answer("r", "regression", (), 0.5, np.zeros(1), np.ones(1, int), np.zeros(1, bool)).prediction_id(0)
        'r:0'
        """
        return f"{self.request_id}:{row}"

    def labels(self) -> NDArray[Any]:
        """The decision for each row, shape (n,): 0 or 1 (int64), the class (object), or the prediction (float64)."""
        if self.task == "binary":
            return (self.scores >= self.threshold).astype(np.int64)
        if self.task == "regression":
            return self.scores
        places = np.argmax(self.scores, axis=1)
        named: NDArray[Any] = np.array(self.classes, dtype=object)[places]
        return named


@dataclass(frozen=True)
class Reply:
    """An HTTP answer in full, but for the headers that every answer has."""

    body: bytes
    media_type: str = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Labels:
    """What became known late, one entry for each prediction: its label, numbers by name, or both.

    ids: prediction ids; "" where the entry came by entity key. keys: entity keys; "" where it came by prediction id.
    values: binary 0.0 or 1.0 and regression numbers as float64 (NaN: no label), multiclass classes as objects (None: no
    label); shape (n,). times: when each became known, seconds since the epoch, shape (n,).
    numbers: business numbers by name, shape (n,); NaN where the entry tells none.
    """

    ids: tuple[str, ...]
    keys: tuple[str, ...]
    values: NDArray[Any]
    times: NDArray[np.float64]
    numbers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
