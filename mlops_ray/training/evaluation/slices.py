"""Where a model is weak: slices of the rows by input, declared ones and those that a search finds.

A slice is tested for a loss above that of all rows. With d its loss less that of all rows, the sum over its rows falls
apart into one contribution per block, u_b = (sum over the slice's rows in b of the loss's distance from the mean) minus
the slice's share of the same sum over all rows in b; t = sum(u_b) / sqrt(sum(u_b ** 2)). Under the null hypothesis
blocks are independent with mean zero, and flipping their signs at random gives the distribution of t (the wild cluster
bootstrap with Rademacher weights: Cameron, Gelbach and Miller 2008). The same flips serve all slices, so the largest t
of each flip is the distribution of the largest of all, however the slices overlap (Westfall and Young 1993; for many
more hypotheses than rows: Chernozhukov, Chetverikov and Kato 2013). p values adjusted by it keep the probability of
naming *any* slice that is none at alpha.

A slice of hard rows is weak in this sense too: where the answer is a coin's toss every model has a high loss. Hand in
the difference of two models' losses, and only that is searched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import intervals
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats

MISSING = "missing"
MAX_VALUES = 50
"""Of a category, the most frequent; the others are in no slice of it."""
MAX_PAIRED = 40
"""Features whose pairs are searched, in the order given: 780 pairs take a second or two on 10,000 rows."""
MAX_TRIED = 1000
"""Slices, by falling t, that are looked at for standing apart from those already named."""
_FEW = 5
"""Up to so many distinct numbers are slices one by one."""
_BLOCKS = 200
"""Blocks of the search; more are bundled. Each costs a column of every slice."""
_CELLS = 8_000_000
"""Flips times slices at a time, 32 MB."""


@dataclass(frozen=True)
class Partition:
    """The slices of one column: codes (n,) is the slice of each row, -1 for rows in none."""

    column: str
    labels: tuple[str, ...]
    codes: NDArray[np.int64]

    def rows(self, i: int) -> NDArray[np.bool_]:
        """Which rows are in slice `i`, shape (n,)."""
        inside: NDArray[np.bool_] = self.codes == i
        return inside


@dataclass(frozen=True)
class Slice:
    """Rows that meet all `conditions` (column and what is said of it), and how the model does there.

    loss: mean loss inside. difference: that minus the mean loss of all rows. effect: the difference over the standard
    deviation of all losses. p: one-sided probability of so high a t if no slice of those looked at were weak (NaN for
    one that is too small to judge). Intervals are two-sided 1 - 2 alpha for each slice alone.
    """

    conditions: tuple[tuple[str, str], ...]
    loss: Estimate
    difference: Estimate
    effect: float
    p: float

    @property
    def name(self) -> str:
        """For people: "carrier = UA and distance < 500"."""
        return " and ".join(f"{column} {label}" for column, label in self.conditions)

    @property
    def n(self) -> int:
        """Rows inside."""
        return self.loss.n

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        return {
            "name": self.name,
            "conditions": [list(c) for c in self.conditions],
            "loss": self.loss.to_dict(),
            "difference": self.difference.to_dict(),
            "effect": self.effect,
            "p": None if np.isnan(self.p) else self.p,
        }


# --- partitions ----------------------------------------------------------------------------------------------------


def partition(column: str, values: ArrayLike, *, parts: int = 4, max_values: int = MAX_VALUES) -> Partition:
    """Each value of a category, or each of `parts` equally large ranges of a number; what is missing is a last slice.

    Args: values: shape (n,), numbers (missing NaN), or objects (missing None, "" or NaN; objects that are all numbers
        count as numbers). Numbers of at most five distinct values are sliced by value. Ties stay together, so ranges
        can be fewer. Labels: "= UA", "< 500", ">= 500 and < 900", "missing".
    Raises: DataError when `values` has not one dimension.
    """
    cells = np.asarray(values)
    if cells.ndim != 1:
        raise DataError(column, f"values of a slice have shape {cells.shape}, one per row is needed")
    if cells.dtype.kind not in "biuf":
        listed = [None if v is None or v != v or v == "" else v for v in cells.tolist()]
        if not all(v is None or isinstance(v, int | float) for v in listed):
            return _categories(column, listed, max_values)
        cells = np.array([np.nan if v is None else v for v in listed])
    return _numbers(column, cells.astype(np.float64), parts)


def _categories(column: str, listed: list[Any], max_values: int) -> Partition:
    place: dict[str, int] = {}
    codes = np.array([-1 if v is None else place.setdefault(str(v), len(place)) for v in listed], dtype=np.int64)
    missing = codes < 0
    counts = np.bincount(codes[~missing], minlength=len(place))
    names = np.array(list(place), dtype=object)
    often = sorted(np.argsort(-counts, kind="stable")[:max_values], key=lambda i: str(names[i]))
    new = np.full(len(place) + 1, -1)
    new[often] = np.arange(len(often))
    codes = new[codes]
    return _with_missing(column, [f"= {names[i]}" for i in often], codes, missing)


def _numbers(column: str, numbers: Floats, parts: int) -> Partition:
    missing = np.isnan(numbers)
    known = numbers[~missing]
    distinct = np.unique(known) if len(known) else known
    codes = np.full(len(numbers), -1)
    if len(distinct) <= _FEW:
        codes[~missing] = np.searchsorted(distinct, known)
        return _with_missing(column, [f"= {v:.6g}" for v in distinct], codes, missing)
    edges = np.unique(np.quantile(known, np.arange(1, parts) / parts, method="closest_observation"))
    edges = edges[edges > distinct[0]]  # a value that fills the lowest part begins it
    if len(edges) == 0:  # one value fills nearly all of it
        edges = distinct[1:2]
    codes[~missing] = np.searchsorted(edges, known, "right")
    says = [f"{v:.6g}" for v in edges]
    between = [f">= {a} and < {b}" for a, b in pairwise(says)]
    return _with_missing(column, [f"< {says[0]}", *between, f">= {says[-1]}"], codes, missing)


def _with_missing(column: str, labels: list[str], codes: NDArray[np.int64], missing: NDArray[np.bool_]) -> Partition:
    if missing.any():
        codes = np.where(missing, len(labels), codes)
        labels = [*labels, MISSING]
    return Partition(column, tuple(labels), codes)


# --- tests ---------------------------------------------------------------------------------------------------------


Where = tuple[tuple[int, int], ...]
"""Conditions as (place of the partition, code)."""


@dataclass(frozen=True)
class _Cells:
    """Slices under test: their conditions, rows, and contributions per block (slices,
    blocks)."""

    conditions: list[Where]
    n: Floats
    contributions: Floats


@dataclass(frozen=True)
class _Rows:
    """What is known of the rows: losses, those less their mean and summed per block, blocks before and after
    bundling."""

    losses: Floats
    centred: Floats
    unbundled: Blocks
    given: Blocks
    all_sums: Floats

    @classmethod
    def of(cls, losses: Floats, unbundled: Blocks, rng: np.random.Generator) -> _Rows:
        centred, given = losses - losses.mean(), intervals.bundled(unbundled, rng, _BLOCKS)
        return cls(losses, centred, unbundled, given, given.sums(centred))

    def contributions(self, n: Floats, sums: Floats) -> Floats:
        """Of slices with `n` (slices,) rows and centred losses `sums` (slices, blocks)."""
        return sums - (n / len(self.losses))[:, None] * self.all_sums


def _t(contributions: Floats) -> Floats:
    """Student's t of each slice, shape (slices,); 0 where all contributions are 0."""
    norms = np.sqrt((contributions**2).sum(axis=1))
    t: Floats = np.divide(contributions.sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 1e-12)
    return t


def _cells(rows: _Rows, partitions: Sequence[Partition], which: tuple[int, ...], min_rows: int) -> _Cells:
    """The slices of one partition, or the crossings of two, with at least `min_rows` rows and not all of them."""
    codes, width, inside = np.zeros(len(rows.losses), dtype=np.int64), 1, np.ones(len(rows.losses), dtype=bool)
    for i in which:
        codes = codes * len(partitions[i].labels) + partitions[i].codes
        width *= len(partitions[i].labels)
        inside &= partitions[i].codes >= 0
    if not inside.all():
        codes = np.where(inside, codes, width)
    counts = np.bincount(codes, minlength=width + 1)[:width]
    kept = np.flatnonzero((counts >= min_rows) & (counts < len(codes)))
    place = np.full(width + 1, len(kept))
    place[kept] = np.arange(len(kept))
    cells = place[codes] * len(rows.given) + rows.given.index
    added = np.bincount(cells, weights=rows.centred, minlength=(len(kept) + 1) * len(rows.given))
    sums = added.astype(np.float64, copy=False).reshape(len(kept) + 1, len(rows.given))[: len(kept)]
    n = counts[kept].astype(np.float64)
    if len(which) == 1:
        found: list[Where] = [((which[0], int(k)),) for k in kept]
    else:
        second = len(partitions[which[1]].labels)
        found = [((which[0], int(k) // second), (which[1], int(k) % second)) for k in kept]
    return _Cells(found, n, rows.contributions(n, sums))


def _joined(parts: Sequence[_Cells], n_blocks: int) -> _Cells:
    return _Cells(
        [c for part in parts for c in part.conditions],
        np.concatenate([np.zeros(0), *(part.n for part in parts)]),
        np.concatenate([np.zeros((0, n_blocks)), *(part.contributions for part in parts)]),
    )


def _largest(contributions: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """The largest t over all slices under each of `resamples` random flips of the blocks' signs, sorted."""
    n_slices, n_blocks = contributions.shape
    norms = np.sqrt((contributions**2).sum(axis=1))
    unit = np.divide(contributions, norms[:, None], out=np.zeros_like(contributions), where=norms[:, None] > 1e-12)
    flips = rng.integers(0, 2, size=(resamples, n_blocks)).astype(np.float32) * 2 - 1
    largest = np.full(resamples, -np.inf)
    step = max(_CELLS // resamples, 1)
    narrow = unit.astype(np.float32).T
    for start in range(0, n_slices, step):
        np.maximum(largest, (flips @ narrow[:, start : start + step]).max(axis=1), out=largest)
    return np.sort(largest)


def _p(t: Floats, largest: Floats) -> Floats:
    """Adjusted p of each t: the share of flips, the rows as they are included, with a largest t that is no smaller."""
    above = len(largest) - np.searchsorted(largest, t - 1e-5)  # single precision in `largest`
    return np.asarray((1 + above) / (1 + len(largest)), dtype=np.float64)


# --- declared and searched -----------------------------------------------------------------------------------------


def declared(
    columns: Mapping[str, ArrayLike],
    names: Sequence[str],
    losses: ArrayLike,
    given: Blocks,
    *,
    min_rows: int,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Slice, ...]:
    """All slices of the columns `names`, in their order; those below `min_rows` rows have p NaN.

    Args: columns: at least these, shape (n,) each; losses: any loss per row, or a paired difference, shape (n,).
    Raises: DataError when a column is not there, or is not as long as `losses`; for a loss that is not finite."""
    rows, parts = _prepared({name: _column(columns, name) for name in names}, losses, given, rng)
    tested = _joined([_cells(rows, parts, (i,), min_rows) for i in range(len(parts))], len(rows.given))
    p = {}
    if tested.conditions:
        adjusted = _p(_t(tested.contributions), _largest(tested.contributions, resamples, rng))
        p = dict(zip(tested.conditions, adjusted, strict=True))
    every: list[Where] = [
        ((i, k),) for i, part in enumerate(parts) for k in range(len(part.labels)) if part.rows(k).any()
    ]
    return _described(rows, parts, every, [float(p.get(where, np.nan)) for where in every], resamples, alpha, rng)


def weak(
    columns: Mapping[str, ArrayLike],
    losses: ArrayLike,
    given: Blocks,
    *,
    min_rows: int,
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
    limit: int = 10,
) -> tuple[Slice, ...]:
    """Search single columns and pairs of the first `MAX_PAIRED` for slices with a loss above that of all rows.

    Only slices of at least `min_rows` rows with an adjusted p of at most `alpha` are named, at most `limit`, largest
    effect first: on rows without a weak slice there is one in at most `alpha` of the cases. A slice that is weak only
    because it overlaps one with a higher t (a refinement, a correlated column) is not named: its remaining rows must
    reach the same critical t.

    Args: columns: inputs, shape (n,) each; losses: any loss per row, or a paired difference, shape (n,).
    Raises: DataError when a column is not as long as `losses`; for a loss that is not finite."""
    rows, parts = _prepared(columns, losses, given, rng)
    singles = [_cells(rows, parts, (i,), min_rows) for i in range(len(parts))]
    paired = min(len(parts), MAX_PAIRED)
    pairs = [_cells(rows, parts, (i, j), min_rows) for i in range(paired) for j in range(i + 1, paired)]
    tested = _joined([*singles, *pairs], len(rows.given))
    if not tested.conditions:
        return ()
    t, largest = _t(tested.contributions), _largest(tested.contributions, resamples, rng)
    p = _p(t, largest)
    named: list[int] = []
    free = np.ones(len(rows.losses), dtype=bool)
    for place in np.argsort(-t, kind="stable")[:MAX_TRIED]:
        if p[place] > alpha or len(named) == limit:
            break
        inside = _inside(parts, tested.conditions[place])
        if not named or _stands_apart(rows, inside & free, min_rows, largest, alpha):
            named.append(int(place))
            free &= ~inside
    where, adjusted = [tested.conditions[i] for i in named], [float(p[i]) for i in named]
    found = _described(rows, parts, where, adjusted, resamples, alpha, rng)
    return tuple(sorted(found, key=lambda s: -s.effect))


def _column(columns: Mapping[str, ArrayLike], name: str) -> ArrayLike:
    if name not in columns:
        raise DataError(name, f"no such column to slice by; there are {', '.join(sorted(columns))}")
    return columns[name]


def _prepared(
    columns: Mapping[str, ArrayLike], losses: ArrayLike, given: Blocks, rng: np.random.Generator
) -> tuple[_Rows, list[Partition]]:
    values = np.asarray(losses, dtype=np.float64)
    parts = [partition(name, cells) for name, cells in columns.items()]
    if not np.isfinite(values).all():
        raise DataError("losses", f"row {int(np.argmin(np.isfinite(values)))} is no finite number; leave such rows out")
    for part in parts:
        if len(part.codes) != len(values):
            raise DataError(part.column, f"has {len(part.codes)} rows and the losses have {len(values)}")
    return _Rows.of(values, given, rng), parts


def _inside(parts: Sequence[Partition], where: Where) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.logical_and.reduce([parts[i].rows(k) for i, k in where])
    return inside


def _stands_apart(rows: _Rows, rest: NDArray[np.bool_], min_rows: int, largest: Floats, alpha: float) -> bool:
    n = int(rest.sum())
    if n < min_rows:
        return False
    sums = rows.given.sums(np.where(rest, rows.centred, 0.0))[None, :]
    return bool(_p(_t(rows.contributions(np.array([float(n)]), sums)), largest)[0] <= alpha)


def _described(
    rows: _Rows,
    parts: Sequence[Partition],
    every: Sequence[Where],
    p: Sequence[float],
    resamples: int,
    alpha: float,
    rng: np.random.Generator,
) -> tuple[Slice, ...]:
    """The slices with their intervals; resamples serve them all, and leave out those that draw no row of a slice."""
    weights = np.vstack([np.ones(len(rows.given)), intervals.resample(len(rows.given), resamples, rng)])
    all_means = (weights @ rows.all_sums) / (weights @ rows.given.sums(np.ones(len(rows.losses))))
    mean, sd = float(rows.losses.mean()), float(rows.losses.std())

    def described(where: Where, adjusted: float) -> Slice:
        inside = _inside(parts, where)
        n, n_blocks = int(inside.sum()), len(np.unique(rows.unbundled.index[inside]))
        below = weights @ rows.given.sums(inside)
        above = weights @ rows.given.sums(np.where(inside, rows.centred, 0.0))
        means = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
        # Both means of one resample: what moves all rows cancels in their difference.
        loss, difference = (
            intervals.interval(float(drawn[0]), drawn[1:], n=n, n_blocks=n_blocks, alpha=alpha)
            for drawn in (mean + means, means - all_means)
        )
        labels = tuple((parts[i].column, parts[i].labels[k]) for i, k in where)
        return Slice(labels, loss, difference, difference.value / sd if sd else 0.0, adjusted)

    return tuple(described(where, adjusted) for where, adjusted in zip(every, p, strict=True))
