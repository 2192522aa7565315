"""Profiles: mergeable summaries of rows, over bins that are fixed beforehand so that counts add exactly.

Training, the live collectors, batch scoring and `mlops-ray profile` all use `fold`. A batch of columns is a mapping
from name to an array of shape (n,): numeric features float32 with NaN for missing, categorical ones objects of str with
"" for missing.

The laws, which tests hold bit for bit: `+` is associative and commutative, the empty profile changes nothing, operands
stay as they were, and the content does not depend on the order of rows or on how they were cut into batches. They are
why every part is what it is:

- Counts are integers. Sums are exact integers too (`Sums`): floating point sums would hang on the order.
- Extremes are minima and maxima, with -0.0 counted as 0.0.
- Distinct values are estimated by HyperLogLog registers, whose merge is a maximum. The registers are our own: those of
  Apache DataSketches switch between modes and keep an estimator of the order of arrival (two orders of 2,560 values
  serialise differently and say 2,478 and 2,463), and take one Python call per value (232 microseconds for a batch of
  256 x 10 values; all of `fold` may take 200).
- Categories outside the bins are sampled by the smallest hashes ("bottom-k"), with exact counts: what is among the
  smallest of all rows was among the smallest of every part, so no part has dropped it. A frequent-items sketch drops by
  order of arrival and breaks the law.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from mlops_ray.errors import DataError

Columns = Mapping[str, npt.NDArray[Any]]
Counts = npt.NDArray[np.int64]
Registers = npt.NDArray[np.uint8]
V = TypeVar("V")

SCORE_BINS = 20
"""Equal bins of a probability: 0.05 wide, fine enough for calibration curves and score drift."""
REGISTERS = 512
"""Of a distinct estimate: a standard error of 1.04 / sqrt(512) = 4.6 %, in some 200 bytes."""
MAX_UNSEEN = 24
"""Categories outside the bins that a profile can name; beyond, it knows how many rows and about how many categories."""
MAX_TEXT = 48
"""UTF-8 bytes of such a category's name that are kept, so that a profile stays below 4 KB per feature."""

_MAGIC, _VERSION = b"MRPF", 2
# Units of `Sums`: the smallest positive float64 is 2**-1074, its square 2**-2148.
_UNIT = 1074
# Bits of one limb, and rows whose products of two limbs add up within int64: (2**26 - 1)**2 * 2**11 < 2**63.
_LIMB, _LIMB_ROWS = 26, 2048


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
        # A product overflows to infinity, where Python's power raises.
        return Moments(n, self.mean + gap * other.n / n, self.m2 + other.m2 + gap * gap * self.n * other.n / n)

    @property
    def variance(self) -> float:
        """Population variance (divided by n, as scikit-learn's scaler does); 0 without rows."""
        return self.m2 / self.n if self.n else 0.0


@dataclass(frozen=True)
class Sums:
    """Exact sums of the finite values of one numeric feature, so that they add in any order to the same.

    `total` is the sum in units of 2**-1074 (every float64 is a whole number of them), `squares` the sum of the squares
    in units of 2**-2148. Mean and variance are rounded once, when they are asked for.
    """

    n: int = 0
    total: int = 0
    squares: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean, correctly rounded; 0 without rows."""
        return self.total / (self.n << _UNIT) if self.n else 0.0

    @property
    def variance(self) -> float:
        """Population variance (divided by n), correctly rounded; 0 without rows, infinite beyond what a float holds."""
        if not self.n:
            return 0.0
        try:
            return (self.n * self.squares - self.total**2) / (self.n**2 << 2 * _UNIT)
        except OverflowError:
            return math.inf

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.variance)

    @classmethod
    def of(cls, moments: Moments) -> Sums:
        """The sums that have these moments."""
        mean, m2 = _units(moments.mean), _units(moments.m2) << _UNIT
        return cls(moments.n, moments.n * mean, m2 + moments.n * mean**2)


def _units(value: float) -> int:
    above, below = value.as_integer_ratio()
    return (above << _UNIT) // below


def exact_sums(matrix: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """`total` and `squares` of each row's `Sums`; `matrix` is finite and has shape (features, n).

    Values are cut into limbs of 26 bits, relative to the largest of their row: products of two limbs are integers that
    add in int64. Two limbs hold float32 values that lie within 2**28 of each other, three most float64 columns.
    """
    totals, squares = [0] * len(matrix), [0] * len(matrix)
    for start in range(0, matrix.shape[1], _LIMB_ROWS):
        rest = matrix[:, start : start + _LIMB_ROWS]
        unit = np.frexp(np.abs(rest).max(axis=1))[1][:, None] - _LIMB
        limbs: list[npt.NDArray[np.int64]] = []
        lowest, highest = int(unit.min()), int(unit.max())
        while rest.any():
            # A product is three times faster than `ldexp`, where the factor is a float.
            plain = lowest > -1000 and highest < 1000
            whole = np.trunc(rest * np.ldexp(1.0, -unit) if plain else np.ldexp(rest, -unit))
            limbs.append(whole.astype(np.int64))
            rest = rest - (whole * np.ldexp(1.0, unit) if plain else np.ldexp(whole, unit))
            unit -= _LIMB
            lowest -= _LIMB
        if not limbs:
            continue
        n = len(limbs)
        sums = [(limb.sum(axis=1), (n - 1 - i) * _LIMB) for i, limb in enumerate(limbs)]
        products = [
            (np.einsum("ij,ij->i", limbs[i], limbs[j]), (2 * n - 2 - i - j) * _LIMB + (i != j))
            for i in range(n)
            for j in range(i, n)
        ]
        for row, (total, square, bits) in enumerate(
            zip(_joined(sums), _joined(products), unit[:, 0].tolist(), strict=True)
        ):
            # What the last limb counts in, in units of `Sums`.
            up = bits + _LIMB + _UNIT
            totals[row] += _shifted(total, up)
            squares[row] += _shifted(square, 2 * up)
    return list(zip(totals, squares, strict=True))


def _joined(parts: list[tuple[npt.NDArray[np.int64], int]]) -> list[int]:
    """Sum over `parts`, each shifted left by its number of bits, per row."""
    shifted = [[value << bits for value in part.tolist()] for part, bits in parts]
    return [sum(row) for row in zip(*shifted, strict=True)]


def _shifted(value: int, bits: int) -> int:
    return value << bits if bits >= 0 else value >> -bits


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
    def _marks(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Of each numeric feature: what to look up in its sorted values, where NaN stands behind infinity.

        Where finite ones begin and end, then where each bin begins, and where the missing do.
        """
        return tuple(
            np.array([-sys.float_info.max, math.inf, -math.inf, *edges, math.nan]) for edges in self.numeric.values()
        )

    @cached_property
    def _stops(self) -> list[int]:
        """Where each numeric feature's marks and its number of rows stand among all of them, and where the last end."""
        return list(accumulate((len(marks) + 1 for marks in self._marks), initial=0))

    @cached_property
    def _codes(self) -> tuple[dict[str, int], ...]:
        return tuple({c: i for i, c in enumerate(v)} | {"": len(v) + 1} for v in self.categorical.values())

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        """Of each numeric feature's first register among all of them, shape (features, 1)."""
        return np.arange(len(self.numeric), dtype=np.int64)[:, None] * REGISTERS


class Range(NamedTuple):
    """Smallest and largest finite value seen; (inf, -inf) before any."""

    low: float = math.inf
    high: float = -math.inf


class Unseen(NamedTuple):
    """A category outside the bins: hash of its text, the text (its first `MAX_TEXT` bytes), and its rows."""

    hash: int
    text: str
    n: int


@dataclass(frozen=True, eq=False)
class Profile:
    """Summary of `n` rows over some `Bins`.

    `counts` per feature, int64: numeric shape (edges + 1 + missing,), categorical (categories + other + missing,).
    `moments` and `ranges` per numeric feature. `scores` int64 shape (20,): probabilities in equal bins of [0, 1], all
    zero when the rows were not scored. `registers` per feature, uint8 shape (512,): HyperLogLog of numeric values, and
    of the categories outside the bins. `unseen` per categorical feature: up to 24 of the latter, by rising hash, with
    exact counts; all of them when there are fewer. Profiles over the same bins add: `+` makes a new one and leaves its
    operands alone.
    """

    n: int
    counts: dict[str, Counts]
    moments: dict[str, Sums]
    scores: Counts
    ranges: dict[str, Range] = field(default_factory=dict)
    registers: dict[str, Registers] = field(default_factory=dict)
    unseen: dict[str, tuple[Unseen, ...]] = field(default_factory=dict)

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
        return Profile(
            self.n + other.n,
            counts,
            {name: mine + other.moments[name] for name, mine in self.moments.items()},
            self.scores + other.scores,
            _both(self.ranges, other.ranges, lambda a, b: Range(min(a.low, b.low), max(a.high, b.high))),
            _both(self.registers, other.registers, np.maximum),
            _both(self.unseen, other.unseen, _merged),
        )

    def fits(self, other: Profile) -> bool:
        """Whether the two can be added: they are over the same features, with as many bins."""
        shapes = ({name: counts.shape for name, counts in each.counts.items()} for each in (self, other))
        return next(shapes) == next(shapes) and self.moments.keys() == other.moments.keys()

    def missing(self, name: str) -> int:
        """Rows without a value of this feature."""
        return int(self.counts[name][-1])

    def distinct(self, name: str) -> float:
        """Distinct values of a feature: exact for categories while at most `MAX_UNSEEN` - 1 stand outside the bins.

        Else an estimate with a standard error of 4.6 % (of the categories outside the bins, of all numeric values).
        """
        registers = self.registers.get(name)
        estimate = cardinality(registers) if registers is not None else 0.0
        if name in self.moments:
            return estimate
        outside = self.unseen.get(name, ())
        others = len(outside) if len(outside) < MAX_UNSEEN else max(estimate, len(outside))
        return int(np.count_nonzero(self.counts[name][:-2])) + others

    def to_bytes(self) -> bytes:
        """Compact form with a versioned header, read back by `from_bytes`: below 4 KB per feature of up to 52 counts.

        Equal profiles have equal bytes.
        """
        body = {
            "n": self.n,
            "counts": {k: v.tolist() for k, v in self.counts.items()},
            "moments": {k: [v.n, _pack(v.total), _pack(v.squares)] for k, v in self.moments.items()},
            "scores": self.scores.tolist(),
            "ranges": {k: list(v) if v.low <= v.high else [] for k, v in self.ranges.items()},
            "registers": {k: (v + 48).tobytes().decode("ascii") for k, v in self.registers.items()},
            "unseen": {k: [[f"{u.hash:x}", u.text, u.n] for u in v] for k, v in self.unseen.items()},
        }
        text = json.dumps(body, separators=(",", ":"), sort_keys=True)
        return _MAGIC + bytes([_VERSION]) + zlib.compress(text.encode("ascii"), 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """The profile that `to_bytes` wrote. Raises: DataError when it is none, damaged or of another version."""
        if data[:4] != _MAGIC:
            raise DataError("profile", f"these {len(data)} bytes are no profile: the header is {data[:4]!r}")
        if data[4:5] != bytes([_VERSION]):
            version = data[4] if len(data) > 4 else "cut off"
            raise DataError("profile", f"its version is {version}, this release reads {_VERSION}; upgrade mlops-ray")
        try:
            body = json.loads(zlib.decompress(data[5:]))
        except (zlib.error, ValueError) as exc:
            raise DataError("profile", f"it is damaged ({exc}); fold its rows again") from exc
        return cls(
            int(body["n"]),
            {k: np.asarray(v, dtype=np.int64) for k, v in body["counts"].items()},
            {k: Sums(n, _unpack(total), _unpack(squares)) for k, (n, total, squares) in body["moments"].items()},
            np.asarray(body["scores"], dtype=np.int64),
            {k: Range(*v) for k, v in body["ranges"].items()},
            {k: np.frombuffer(v.encode("ascii"), dtype=np.uint8) - 48 for k, v in body["registers"].items()},
            {k: tuple(Unseen(int(h, 16), text, n) for h, text, n in v) for k, v in body["unseen"].items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss: the number of rows, and the bytes as text."""
        return {"n": self.n, "packed": base64.b64encode(self.to_bytes()).decode("ascii")}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Profile:
        """The profile that `to_dict` wrote, now or in release 0.1.0.

        The first format held counts, moments and scores: such a profile has seen no extremes and no distinct values.
        Raises: DataError as `from_bytes` does.
        """
        if "packed" in body:
            try:
                return cls.from_bytes(base64.b64decode(body["packed"], validate=True))
            except binascii.Error as exc:
                raise DataError("profile", f"it is damaged ({exc}); fold its rows again") from exc
        counts = {k: np.asarray(v, dtype=np.int64) for k, v in body["counts"].items()}
        moments = {k: Sums.of(Moments(int(n), float(mean), float(m2))) for k, (n, mean, m2) in body["moments"].items()}
        return cls(
            int(body["n"]),
            counts,
            moments,
            np.asarray(body["scores"], dtype=np.int64),
            dict.fromkeys(moments, Range()),
            {name: np.zeros(REGISTERS, dtype=np.uint8) for name in counts},
            {name: () for name in counts if name not in moments},
        )


def _both(mine: dict[str, V], theirs: dict[str, V], merge: Callable[[V, V], V]) -> dict[str, V]:
    """Both by name, merged where both know it."""
    return {k: merge(mine[k], theirs[k]) if k in mine and k in theirs else v for k, v in (theirs | mine).items()}


def _merged(mine: tuple[Unseen, ...], theirs: tuple[Unseen, ...]) -> tuple[Unseen, ...]:
    if not mine or not theirs:
        return mine or theirs
    found = {u.hash: u for u in mine}
    for u in theirs:
        found[u.hash] = u._replace(n=u.n + found[u.hash].n) if u.hash in found else u
    return tuple(sorted(found.values())[:MAX_UNSEEN])


def _pack(value: int) -> str:
    """Hexadecimal without the zeros at the end, and how many bits those were."""
    zeros = (value & -value).bit_length() - 1 if value else 0
    return f"{value >> zeros:x}:{zeros}"


def _unpack(text: str) -> int:
    digits, _, zeros = text.partition(":")
    return int(digits, 16) << int(zeros)


def empty(bins: Bins) -> Profile:
    """The profile of no rows: adding it changes nothing."""
    return Profile(
        0,
        {name: np.zeros(width, dtype=np.int64) for name, width in bins.widths.items()},
        dict.fromkeys(bins.numeric, Sums()),
        np.zeros(SCORE_BINS, dtype=np.int64),
        dict.fromkeys(bins.numeric, Range()),
        {name: np.zeros(REGISTERS, dtype=np.uint8) for name in bins.widths},
        dict.fromkeys(bins.categorical, ()),
    )


def fold(bins: Bins, columns: Columns, scores: npt.NDArray[np.floating[Any]] | None = None) -> Profile:
    """Profile of one batch.

    Args: `columns` holds every feature of `bins`, shape (n,) each (others are ignored); `scores` are P(1), shape (n,).
    Infinite values count in the outermost bins and as distinct values; they stay out of moments and extremes.
    Raises: DataError when a feature is absent, lengths differ, a category is no text, or a score is not in [0, 1].
    """
    absent = [name for name in bins.widths if name not in columns]
    if absent:
        raise DataError("profile", f"batch lacks {absent}; it has {sorted(columns)}")
    arrays = [columns[name] for name in bins.widths]
    lengths = {len(a) for a in arrays} | ({len(scores)} if scores is not None else set())
    if len(lengths) > 1:
        raise DataError("profile", f"columns of one batch have different lengths: {sorted(lengths)}")
    n = lengths.pop() if lengths else 0
    if not n:
        return empty(bins)
    counts: dict[str, Counts] = {}
    moments: dict[str, Sums] = {}
    ranges: dict[str, Range] = {}
    registers: dict[str, Registers] = {}
    unseen: dict[str, tuple[Unseen, ...]] = {}
    n_numeric = len(bins.numeric)
    if n_numeric:
        matrix = np.concatenate(arrays[:n_numeric], dtype=np.float64).reshape(n_numeric, n)
        # Turns -0.0 into 0.0: equal values must have equal bits, and one of the two be the minimum.
        matrix += 0.0
        in_order = np.sort(matrix, axis=1)
        cuts = np.full(bins._stops[-1], n, dtype=np.int64)
        for row, marks, start in zip(in_order, bins._marks, bins._stops, strict=False):
            cuts[start : start + len(marks)] = row.searchsorted(marks)
        rows_in = cuts[1:] - cuts[:-1]
        n_finite = []
        for name, row, start, stop in zip(bins.numeric, in_order, bins._stops, bins._stops[1:], strict=False):
            first, last = cuts[start], cuts[start + 1]
            counts[name] = rows_in[start + 2 : stop - 1]
            ranges[name] = Range(row.item(first), row.item(last - 1)) if first < last else Range()
            n_finite.append(int(last - first))
        registers = dict(zip(bins.numeric, _registers(bins, matrix), strict=True))
        safe = matrix if sum(n_finite) == matrix.size else np.where(np.isfinite(matrix), matrix, 0.0)
        for name, finite, sums in zip(bins.numeric, n_finite, exact_sums(safe), strict=True):
            moments[name] = Sums(finite, *sums)
    for name, lookup, cells in zip(bins.categorical, bins._codes, arrays[n_numeric:], strict=True):
        counts[name], registers[name], unseen[name] = _categories(name, lookup, Counter(cells.tolist()))
    return Profile(n, counts, moments, _score_counts(scores), ranges, registers, unseen)


def codes(bins: Bins, columns: Columns) -> npt.NDArray[np.uint16]:
    """Bin of each value, shape (n, features), features in the order of `bins.widths`: its place among the `counts`.

    Args: columns: as in `fold`. Raises: DataError when a feature is absent, or has more bins than two bytes number.
    """
    absent = [name for name in bins.widths if name not in columns]
    if absent:
        raise DataError("profile", f"batch lacks {absent}; it has {sorted(columns)}")
    if wide := [name for name, width in bins.widths.items() if width > 1 << 16]:
        raise DataError(wide[0], f"has {bins.widths[wide[0]]} bins; at most {1 << 16} are numbered")
    placed = []
    for name, edges in bins.numeric.items():
        values = np.asarray(columns[name], dtype=np.float64)
        places = np.searchsorted(np.array(edges), values, "right")
        placed.append(np.where(np.isnan(values), len(edges) + 1, places))
    for name, lookup in zip(bins.categorical, bins._codes, strict=True):
        other = len(lookup) - 1
        placed.append(np.array([lookup.get(text, other) for text in columns[name].tolist()], dtype=np.int64))
    return np.stack(placed, axis=1).astype(np.uint16) if placed else np.empty((0, 0), dtype=np.uint16)


# Distinct values ------------------------------------------------------------------------------------------------------

_INDEX_BITS = REGISTERS.bit_length() - 1
# Of the rest of a hash, as many bits as a float64 holds exactly: their logarithm counts the leading zeros.
_RANK_BITS = 53


def _registers(bins: Bins, matrix: npt.NDArray[np.float64]) -> Registers:
    """HyperLogLog registers of each row's values that are not NaN, shape (features, REGISTERS)."""
    hashes = matrix.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    # Steele, Lea and Flood 2014, the finaliser of SplitMix64: every bit of the result hangs on every bit of the value.
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    where = (hashes >> np.uint64(64 - _INDEX_BITS)).astype(np.int64) + bins._offsets
    tail = (hashes & np.uint64((1 << _RANK_BITS) - 1)) | np.uint64(1)
    ranks = (_RANK_BITS + 1 - np.frexp(tail.astype(np.float64))[1]).astype(np.uint8)
    ranks[np.isnan(matrix)] = 0
    out = np.zeros(len(matrix) * REGISTERS, dtype=np.uint8)
    np.maximum.at(out, where.ravel(), ranks.ravel())
    return out.reshape(len(matrix), REGISTERS)


def cardinality(registers: Registers) -> float:
    """Estimated number of distinct values behind HyperLogLog registers, shape (REGISTERS,).

    Source: Flajolet et al. 2007; estimator without bias by Ertl 2017 (arXiv:1702.01284, algorithm 6). His correction
    for full registers is left out: it begins at some 2**53 values.
    """
    count = np.bincount(registers, minlength=_RANK_BITS + 1).tolist()
    if count[0] == REGISTERS:
        return 0.0
    total = 0.0
    for rank in range(_RANK_BITS, 0, -1):
        total = 0.5 * (total + count[rank])
    zero = x = count[0] / REGISTERS
    weight, before = 1.0, -1.0
    while zero != before:
        before, x = zero, x * x
        zero += x * weight
        weight *= 2.0
    return float(REGISTERS**2 / (2.0 * math.log(2.0) * (total + REGISTERS * zero)))


def _categories(
    name: str, lookup: Mapping[str, int], cells: Mapping[str, int]
) -> tuple[Counts, Registers, tuple[Unseen, ...]]:
    """Counts, registers and sample of one categorical feature, from its rows per category."""
    counts = [0] * (len(lookup) + 1)
    registers = np.zeros(REGISTERS, dtype=np.uint8)
    other = len(lookup) - 1
    found = []
    for text, n in cells.items():
        code = lookup.get(text, other)
        counts[code] += n
        if code == other:
            if not isinstance(text, str):
                raise DataError(name, f'categories must be text ("" for missing), got {text!r}')
            raw = text.encode("utf-8", "surrogatepass")
            key = xxhash.xxh3_64_intdigest(raw)
            where = key >> (64 - _INDEX_BITS)
            rank = _RANK_BITS + 1 - (key & ((1 << _RANK_BITS) - 1) | 1).bit_length()
            registers[where] = max(int(registers[where]), rank)
            found.append(Unseen(key, raw[:MAX_TEXT].decode("utf-8", "ignore"), n))
    return np.array(counts, dtype=np.int64), registers, tuple(sorted(found)[:MAX_UNSEEN])


def _score_counts(scores: npt.NDArray[np.floating[Any]] | None) -> Counts:
    if scores is None or not len(scores):
        return np.zeros(SCORE_BINS, dtype=np.int64)
    if not (scores.min() >= 0.0 and scores.max() <= 1.0):
        raise DataError("scores", "must be probabilities in [0, 1] without NaN")
    bins = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    return np.bincount(bins, minlength=SCORE_BINS)
