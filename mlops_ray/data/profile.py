"""Profiles: mergeable summaries of rows, over bins that are fixed beforehand so that counts add exactly.

Training, the live collectors and batch scoring all use `fold`. A batch of columns is a mapping from name to an
array of shape (n,): numeric features float32 with NaN for missing, categorical ones objects of str with "" for missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops_ray.errors import DataError

Columns = Mapping[str, npt.NDArray[Any]]
Counts = npt.NDArray[np.int64]

SCORE_BINS = 20
"""Equal bins of a probability: 0.05 wide, fine enough for calibration curves and score drift."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of the finite values of one numeric feature."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows together. Source: Chan, Golub and LeVeque 1979, pairwise update."""
        if other.n == 0:
            return self
        if self.n == 0:
            return other
        n = self.n + other.n
        gap = other.mean - self.mean
        return Moments(n, self.mean + gap * other.n / n, self.m2 + other.m2 + gap**2 * self.n * other.n / n)

    @property
    def variance(self) -> float:
        """Population variance (divided by n, as scikit-learn's scaler does); 0 without rows."""
        return self.m2 / self.n if self.n else 0.0


def moments(values: npt.NDArray[np.floating[Any]]) -> Moments:
    """Moments of the finite values in `values`, shape (n,), summed in float64."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return Moments()
    mean = float(finite.mean())
    return Moments(int(finite.size), mean, float(np.square(finite - mean).sum()))


@dataclass(frozen=True)
class Bins:
    """Where to count: inner edges per numeric feature, categories per categorical feature.

    A numeric value x falls into bin i with edges[i-1] <= x < edges[i]. Edges are strictly rising.
    Raises: DataError when edges do not rise strictly, or a category is "" or listed twice.
    """

    numeric: dict[str, tuple[float, ...]]
    categorical: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for name, edges in self.numeric.items():
            if not all(a < b for a, b in pairwise(edges)):
                raise DataError(name, f"bin edges must rise strictly, got {edges}")
        for name, categories in self.categorical.items():
            if "" in categories or len(set(categories)) != len(categories):
                raise DataError(name, 'categories must be distinct and never "" (which means missing)')

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict`."""
        return {
            "numeric": {k: list(v) for k, v in self.numeric.items()},
            "categorical": {k: list(v) for k, v in self.categorical.items()},
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Bins:
        """The bins that `to_dict` wrote."""
        return cls(
            {k: tuple(map(float, v)) for k, v in body["numeric"].items()},
            {k: tuple(map(str, v)) for k, v in body["categorical"].items()},
        )

    def digest(self) -> str:
        """SHA-256 over the canonical JSON: equal digests mean that profiles add."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def widths(self) -> dict[str, int]:
        """Length of each feature's counts: bins or categories + other, and last the missing."""
        numeric = {k: len(v) + 2 for k, v in self.numeric.items()}
        return numeric | {k: len(v) + 2 for k, v in self.categorical.items()}

    @cached_property
    def _edges(self) -> tuple[npt.NDArray[np.float64], ...]:
        return tuple(np.asarray(v, dtype=np.float64) for v in self.numeric.values())

    @cached_property
    def _codes(self) -> tuple[dict[str, int], ...]:
        return tuple({c: i for i, c in enumerate(v)} | {"": len(v) + 1} for v in self.categorical.values())

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate(self.widths.values(), initial=0))


@dataclass(frozen=True, eq=False)
class Profile:
    """Summary of `n` rows over some `Bins`.

    `counts` per feature, int64: numeric shape (edges + 1 + missing,), categorical (categories + other + missing,).
    `moments` per numeric feature. `scores` int64 shape (20,): probabilities in equal bins of [0, 1], all zero when
    the rows were not scored. Profiles over the same bins add: `+` makes a new one and leaves its operands alone.
    """

    n: int
    counts: dict[str, Counts]
    moments: dict[str, Moments]
    scores: Counts

    def __add__(self, other: Profile) -> Profile:
        """Profile of both sets of rows. Raises: DataError when the bins cannot be the same."""
        if self.counts.keys() != other.counts.keys() or self.moments.keys() != other.moments.keys():
            raise DataError("profile", f"features differ: {sorted(self.counts)} and {sorted(other.counts)}")
        counts: dict[str, Counts] = {}
        for name, mine in self.counts.items():
            theirs = other.counts[name]
            if mine.shape != theirs.shape:
                raise DataError(name, f"profiles have {mine.size} and {theirs.size} bins; use the same Bins for both")
            counts[name] = mine + theirs
        moments = {name: mine + other.moments[name] for name, mine in self.moments.items()}
        return Profile(self.n + other.n, counts, moments, self.scores + other.scores)

    def to_dict(self) -> dict[str, Any]:
        """Compact JSON-friendly form, read back by `from_dict` without loss."""
        return {
            "n": self.n,
            "counts": {k: v.tolist() for k, v in self.counts.items()},
            "moments": {k: [v.n, v.mean, v.m2] for k, v in self.moments.items()},
            "scores": self.scores.tolist(),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Profile:
        """The profile that `to_dict` wrote."""
        return cls(
            int(body["n"]),
            {k: np.asarray(v, dtype=np.int64) for k, v in body["counts"].items()},
            {k: Moments(int(n), float(mean), float(m2)) for k, (n, mean, m2) in body["moments"].items()},
            np.asarray(body["scores"], dtype=np.int64),
        )


def empty(bins: Bins) -> Profile:
    """The profile of no rows: adding it changes nothing."""
    return Profile(
        0,
        {name: np.zeros(width, dtype=np.int64) for name, width in bins.widths.items()},
        dict.fromkeys(bins.numeric, Moments()),
        np.zeros(SCORE_BINS, dtype=np.int64),
    )


def fold(bins: Bins, columns: Columns, scores: npt.NDArray[np.floating[Any]] | None = None) -> Profile:
    """Profile of one batch.

    Args: `columns` holds every feature of `bins`, shape (n,) each (others are ignored); `scores` are P(1), shape (n,).
    Infinite values count in the outermost bins and stay out of the moments.
    Raises: DataError when a feature is absent, lengths differ, or a score is not in [0, 1].
    """
    absent = [name for name in bins.widths if name not in columns]
    if absent:
        raise DataError("profile", f"batch lacks {absent}; it has {sorted(columns)}")
    arrays = [columns[name] for name in bins.widths]
    lengths = {len(a) for a in arrays} | ({len(scores)} if scores is not None else set())
    if len(lengths) > 1:
        raise DataError("profile", f"columns of one batch have different lengths: {sorted(lengths)}")
    n = lengths.pop() if lengths else 0
    n_numeric = len(bins.numeric)
    codes = np.empty((len(arrays), n), dtype=np.int64)
    summed = dict.fromkeys(bins.numeric, Moments())
    if n_numeric and n:
        matrix = np.stack(arrays[:n_numeric]).astype(np.float64)
        missing = np.isnan(matrix)
        for i, edges in enumerate(bins._edges):
            codes[i] = edges.searchsorted(matrix[i], "right")
            codes[i][missing[i]] = len(edges) + 1
        summed = dict(zip(bins.numeric, _row_moments(matrix), strict=True))
    for i, lookup in enumerate(bins._codes, start=n_numeric):
        codes[i] = np.fromiter(map(lookup.get, arrays[i], repeat(len(lookup) - 1)), np.int64, n)
    starts = bins._starts
    codes += np.asarray(starts[:-1], dtype=np.int64)[:, None]
    flat = np.bincount(codes.ravel(), minlength=starts[-1])
    counts = {name: flat[a:b] for name, a, b in zip(bins.widths, starts, starts[1:], strict=False)}
    return Profile(n, counts, summed, _score_counts(scores))


def _row_moments(matrix: npt.NDArray[np.float64]) -> Sequence[Moments]:
    """Moments of each row's finite values; `matrix` has shape (features, n)."""
    finite = np.isfinite(matrix)
    n = finite.sum(axis=1)
    safe = np.where(finite, matrix, 0.0)
    mean = safe.sum(axis=1) / np.maximum(n, 1)
    gap = np.where(finite, safe - mean[:, None], 0.0)
    m2 = np.einsum("ij,ij->i", gap, gap)
    return [Moments(*row) for row in zip(n.tolist(), mean.tolist(), m2.tolist(), strict=True)]


def _score_counts(scores: npt.NDArray[np.floating[Any]] | None) -> Counts:
    if scores is None or not len(scores):
        return np.zeros(SCORE_BINS, dtype=np.int64)
    if not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise DataError("scores", "must be probabilities in [0, 1] without NaN")
    bins = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    return np.bincount(bins, minlength=SCORE_BINS)
