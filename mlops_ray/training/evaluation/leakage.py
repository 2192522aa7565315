"""Signs that inputs know the answer, or that the holdout has been seen: values, which the gates hold to their
limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mlops_ray.config import Task
from mlops_ray.data.content import row_hashes
from mlops_ray.data.profile import Columns
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import Labels

MIN_ROWS = 30
"""Rows that each side of an AUC must have: of two rows one is always above the other."""
MAX_CLASSES = 20
"""Classes probed one against the rest, the most frequent ones."""
BINS = 32
FOLDS = 5
SMOOTHING = 10.0
"""Rows of the mean of all that are added to a category's own: one seen twice says little."""


@dataclass(frozen=True)
class Probe:
    """How well one column alone orders the rows by their label.

    what: its `value` (rows where it is missing left out), or whether it is `missing`. strength: AUC from 0.5 to 1, for
    regression the absolute rank correlation (Spearman) from 0 to 1; NaN where there is nothing to compare. n: rows
    compared. label: place of the class that stands out most against the rest (multiclass), else None.
    """

    column: str
    what: Literal["value", "missing"]
    strength: float
    n: int
    label: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        strength = None if np.isnan(self.strength) else self.strength
        return {"column": self.column, "what": self.what, "strength": strength, "n": self.n, "label": self.label}


def probes(
    task: Task, columns: Columns, y: ArrayLike, *, rng: np.random.Generator, max_rows: int = 20_000
) -> tuple[Probe, ...]:
    """Both probes of each input, strongest first and undefined last; of rows beyond `max_rows` a random sample.

    Numbers order rows as they are, up or down, and by up to `BINS` ranges of theirs, taken as categories: a code may
    know without rising. The stronger of the two counts. Categories are ordered by the mean label of *other* rows (five
    folds, shrunk to the mean of all; a category that the other folds lack gets that mean): each value of a key is its
    own category, and ordered by its own rows it would know every answer.

    Args: columns: inputs, shape (n,) each; y: labels (n,), classes by their place.
    Raises: DataError when a column is not as long as `y`."""
    labels = np.asarray(y)
    for name, cells in columns.items():
        if len(cells) != len(labels):
            raise DataError(name, f"has {len(cells)} rows and there are {len(labels)} labels")
    kept = rng.permutation(len(labels))[:max_rows]  # in random order too: folds are cut from it
    labels = labels[kept]
    found = []
    for name, cells in columns.items():
        values = np.asarray(cells)[kept]
        missing = _missing(values)
        found.append(_probe(name, "value", task, values[~missing], labels[~missing]))
        found.append(_probe(name, "missing", task, missing.astype(np.float64), labels))
    return tuple(sorted(found, key=lambda p: -np.inf if np.isnan(p.strength) else p.strength, reverse=True))


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind in "biuf":
        return np.isnan(values.astype(np.float64))
    return np.array([v is None or v != v or v == "" for v in values.tolist()], dtype=bool)


def _probe(name: str, what: Literal["value", "missing"], task: Task, values: NDArray[Any], labels: Labels) -> Probe:
    n = len(labels)
    if n < 2 * MIN_ROWS:
        return Probe(name, what, float("nan"), n)
    orders = _orders(values)
    if task == "regression":
        response = labels.astype(np.float64)
        return Probe(name, what, max(_correlation(_ranks(order(response)), _ranks(response)) for order in orders), n)
    counts = np.bincount(labels)
    judged = [k for k in np.argsort(-counts, kind="stable")[:MAX_CLASSES] if min(counts[k], n - counts[k]) >= MIN_ROWS]
    strengths = {}
    for k in judged if task == "multiclass" else [k for k in judged if k == 1]:
        hit = labels == k
        strengths[int(k)] = max(_auc(hit, _ranks(order(hit.astype(np.float64)))) for order in orders)
    if not strengths:
        return Probe(name, what, float("nan"), n)
    best = max(strengths, key=lambda k: strengths[k])
    return Probe(name, what, strengths[best], n, best if task == "multiclass" else None)


def _orders(values: NDArray[Any]) -> list[Callable[[Floats], Floats]]:
    """Ways to order the rows, each from the response; the first says nothing, for what knows nothing has no
    strength."""
    orders: list[Callable[[Floats], Floats]] = [lambda response: np.zeros(len(response))]
    if values.dtype.kind not in "biuf":
        place: dict[str, int] = {}
        codes = np.array([place.setdefault(str(v), len(place)) for v in values.tolist()], dtype=np.int64)
    else:
        numbers = values.astype(np.float64)
        orders += [lambda _: numbers, lambda _: -numbers]
        distinct = np.unique(numbers)
        edges = distinct if len(distinct) <= BINS else np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS))
        codes = np.searchsorted(edges, numbers, "right").astype(np.int64)
    return [*orders, lambda response: _encoded(codes, response)]


def _encoded(codes: NDArray[np.int64], response: Floats) -> Floats:
    """Mean response of each row's category in the other folds, shape (n,); rows come in random order."""
    fold = np.arange(len(codes)) % FOLDS
    size = int(codes.max()) + 1
    centred, result = response - response.mean(), np.empty(len(codes))
    for i in range(FOLDS):
        # Summed over the others afresh: a total less the fold's own would carry the own label in its last bits, and
        # ranks see those.
        others, mine = codes[fold != i], fold == i
        n = np.bincount(others, minlength=size)
        sums = np.bincount(others, weights=centred[fold != i], minlength=size)
        result[mine] = (sums / (n + SMOOTHING))[codes[mine]]
    return result


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts + 1) / 2)[inverse], dtype=np.float64)


def _auc(hit: NDArray[np.bool_], ranks: Floats) -> float:
    """Mann-Whitney's U over its largest value."""
    n = int(hit.sum())
    return float((ranks[hit].sum() - n * (n - 1) / 2) / (n * (len(hit) - n)))


def _correlation(a: Floats, b: Floats) -> float:
    """Pearson's; 0 when one is constant, for that orders nothing."""
    a, b = a - a.mean(), b - b.mean()
    below = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / below if below else 0.0


# --- rows that were seen -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Duplicates:
    """Holdout rows whose inputs all equal those of a training row.

    share: of the holdout's rows. within: share of them that equal another row of the holdout: where inputs are few and
    coarse rows repeat by chance, and then both are high. n, n_train: rows of either side.
    """

    share: float
    within: float
    n: int
    n_train: int


def duplicates(train: Columns, holdout: Columns) -> Duplicates:
    """Compares rows by a 64-bit hash of all inputs; missing equals missing, and the order of columns does not matter.

    Raises: DataError when the sides have different columns, a column is ragged, or the holdout is empty."""
    if train.keys() != holdout.keys():
        raise DataError("leakage", f"the sides' inputs differ: {sorted(train)} and {sorted(holdout)}")
    seen, asked = _hashes(train), _hashes(holdout)
    if len(asked) == 0:
        raise DataError("leakage", "the holdout has no rows")
    _, inverse, counts = np.unique(asked, return_inverse=True, return_counts=True)
    return Duplicates(float(np.isin(asked, seen).mean()), float((counts[inverse] > 1).mean()), len(asked), len(seen))


def _hashes(columns: Columns) -> NDArray[np.uint64]:
    arrays = {}
    for name, cells in columns.items():
        values = np.asarray(cells)
        if values.dtype.kind not in "biuf":
            listed = [None if v is None or v != v or v == "" else str(v) for v in values.tolist()]
            arrays[name] = pa.array(listed, type=pa.large_string())
        else:
            arrays[name] = pa.array(values.astype(np.float64), type=pa.float64())
    if len({len(a) for a in arrays.values()}) > 1:
        raise DataError("leakage", f"columns have {sorted({len(a) for a in arrays.values()})} rows")
    return row_hashes(pa.table(arrays))[0]


@dataclass(frozen=True)
class TimeOrder:
    """How the sides lie in time.

    older: holdout rows that are older than the newest training row (0 after a split by time); share: of the holdout.
    gap_s: seconds from the newest training row to the oldest holdout row, negative when they overlap.
    """

    older: int
    share: float
    gap_s: float


def time_order(train_times: ArrayLike, holdout_times: ArrayLike) -> TimeOrder:
    """Args: seconds since the epoch, shapes (m,) and (n,). Raises: DataError when a side is empty or has no number."""
    train, holdout = (np.asarray(t, dtype=np.float64) for t in (train_times, holdout_times))
    for side, times in (("training", train), ("holdout", holdout)):
        if len(times) == 0 or not np.isfinite(times).all():
            raise DataError("leakage", f"times of the {side} side must be finite numbers, at least one")
    older = int((holdout < train.max()).sum())
    return TimeOrder(older, older / len(holdout), float(holdout.min() - train.max()))
