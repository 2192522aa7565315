"""What rows show about each column: the evidence that a schema is inferred from, and that two datasets differ by.

`gather` folds tables into an `Evidence`; evidence of disjoint rows adds up. Every part of it depends on the rows alone,
never on their order or on how they were cut into shards, and none grows with the number of rows: counts, extremes,
buckets of values (`Spread`), and a sample of the distinct values with their exact counts (`Values`).
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.data.content import row_hashes
from mlops_ray.data.schema import MISSING_WORDS, from_text
from mlops_ray.errors import DataError

SAMPLE = 4096
"""Distinct values that are kept: counts are exact up to so many, and estimated to 1.6 % (one sigma) beyond."""
BUCKETS = 4096
"""Buckets of a `Spread`: a quantile is off by some hundredths of a per cent of the rows."""
EXACT_KEYS = 2**19
"""Rows up to which a key's uniqueness is proven: 4 MB of hashes a column."""
EXAMPLES = 3
LONGEST = 200
"""Characters of a value that are kept."""
_LONGEST_SHAPE = 64


@dataclass(frozen=True, eq=False)
class Values:
    """The distinct values with the smallest hashes, at most `SAMPLE`, and the exact number of rows of each.

    `hashes` uint64 rising, `counts` int64, `texts` the values as text, all of shape (m,). While `whole`, these are all
    the distinct values. Else they are a uniform sample of them: what is among the smallest of all hashes is among the
    smallest of any part, so nothing that stays was ever left out of a count.
    Source: k minimum values, Bar-Yossef et al. 2002; its unbiased estimate, Beyer et al. 2007.
    """

    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    texts: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    whole: bool = True

    @classmethod
    def of(cls, distinct: pa.Array, hashes: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> Values:
        """Of the distinct values of one block, shape (m,) each."""
        smallest = np.argsort(hashes)[:SAMPLE]
        texts = pc.utf8_slice_codeunits(_as_text(distinct.take(pa.array(smallest))), 0, LONGEST + 1)
        return cls(hashes[smallest], counts[smallest], texts, len(hashes) <= SAMPLE)

    def __add__(self, other: Values) -> Values:
        if not other.hashes.size and other.whole:
            return self
        if not self.hashes.size and self.whole:
            return other
        hashes = np.concatenate([self.hashes, other.hashes])
        found, first, where = np.unique(hashes, return_index=True, return_inverse=True)
        counts = np.zeros(found.size, dtype=np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        whole = self.whole and other.whole and found.size <= SAMPLE
        texts = pa.concat_arrays([self.texts, other.texts]).take(pa.array(first[:SAMPLE]))
        return Values(found[:SAMPLE], counts[:SAMPLE], texts, whole)

    @property
    def n(self) -> int:
        """Number of distinct values: exact while `whole`, else an estimate."""
        if self.whole:
            return int(self.hashes.size)
        return round((SAMPLE - 1) * 2.0**64 / float(self.hashes[-1]))

    def most_frequent(self) -> list[tuple[str, int]]:
        """The values with their rows, the most frequent first, ties by text."""
        pairs = zip(self.texts.to_pylist(), self.counts.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _as_text(values: pa.Array) -> pa.Array:
    return values.cast(pa.string())


@dataclass(frozen=True, eq=False)
class Spread:
    """How many rows lie where: buckets of float64 values, `keys` uint64 strictly rising, `counts` int64.

    A key is the value's bit pattern, mapped so that keys order as values do, without its `level` lowest bits. The level
    is the smallest that leaves at most `BUCKETS` buckets, which depends on the set of all values and on nothing else.
    """

    keys: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    level: int = 0

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> Spread:
        """Of finite values and the rows of each, shape (m,); values may repeat."""
        return _bucketed(_ordered(values), counts, 0)

    def __add__(self, other: Spread) -> Spread:
        level = max(self.level, other.level)
        keys = [part.keys >> np.uint64(level - part.level) for part in (self, other)]
        return _bucketed(np.concatenate(keys), np.concatenate([self.counts, other.counts]), level)

    def quantile(self, share: float) -> float:
        """Lower edge of the bucket that holds the row at `share` of all rows."""
        rank = min(int(share * self.counts.sum()), int(self.counts.sum()) - 1)
        at = int(np.searchsorted(np.cumsum(self.counts), rank, "right"))
        return float(self._lowest()[at])

    def below(self, value: float) -> int:
        """Rows in buckets before that of `value`: those below it, but for the ones that share its bucket."""
        key = _ordered(np.array([value]))[0] >> np.uint64(self.level)
        return int(self.counts[self.keys < key].sum())

    def above(self, value: float) -> int:
        """Rows in buckets after that of `value`."""
        key = _ordered(np.array([value]))[0] >> np.uint64(self.level)
        return int(self.counts[self.keys > key].sum())

    def _lowest(self) -> npt.NDArray[np.float64]:
        keys = self.keys << np.uint64(self.level)
        top = np.uint64(1 << 63)
        return np.where(keys & top, keys ^ top, ~keys).view(np.float64)


def _ordered(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    bits = (values + 0.0).view(np.uint64)  # + 0.0 turns -0.0 into 0.0
    top = np.uint64(1 << 63)
    return np.where(bits & top, ~bits, bits | top)


def _bucketed(keys: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], level: int) -> Spread:
    found, where = np.unique(keys, return_inverse=True)
    if found.size > BUCKETS:
        # Neighbours fall together once the highest bit in which they differ is dropped: the gaps say at which level how
        # many buckets are left, without trying each. (frexp gives the number of bits; rounding up cannot pass a power
        # of two unnoticed, for the check below would then find too many.)
        bits = np.sort(np.frexp((found[1:] ^ found[:-1]).astype(np.float64))[1])[::-1]
        drop = int(bits[BUCKETS - 1])
        while np.count_nonzero(np.diff(found >> np.uint64(drop))) >= BUCKETS:
            drop += 1
        while drop and np.count_nonzero(np.diff(found >> np.uint64(drop - 1))) < BUCKETS:
            drop -= 1
        return _bucketed(keys >> np.uint64(drop), counts, level + drop)
    summed = np.zeros(found.size, dtype=np.int64)
    np.add.at(summed, where, counts)
    return Spread(found, summed, level)


@dataclass(frozen=True, eq=False)
class Numbers:
    """`n` finite numbers, `whole` of them without a fraction; extremes exact (integers of any size), else None.

    Times are numbers too: microseconds since the epoch.
    """

    n: int = 0
    whole: int = 0
    low: int | float | None = None
    high: int | float | None = None
    spread: Spread = field(default_factory=Spread)

    def __add__(self, other: Numbers) -> Numbers:
        lows = [x for x in (self.low, other.low) if x is not None]
        highs = [x for x in (self.high, other.high) if x is not None]
        return Numbers(
            self.n + other.n,
            self.whole + other.whole,
            min(lows, default=None),
            max(highs, default=None),
            self.spread + other.spread,
        )


@dataclass(frozen=True)
class Token:
    """One run of letters and digits: which of them occur, how long it is, and its text where that never varies."""

    digits: bool
    upper: bool
    lower: bool
    shortest: int
    longest: int
    text: str | None

    def __add__(self, other: Token) -> Token:
        return Token(
            self.digits or other.digits,
            self.upper or other.upper,
            self.lower or other.lower,
            min(self.shortest, other.shortest),
            max(self.longest, other.longest),
            self.text if self.text == other.text else None,
        )

    def pattern(self) -> str:
        """A regular expression that fits it: a length only where it never varies, letters that never vary as such."""
        if self.text is not None and not self.digits:
            return self.text
        kinds = ("A-Z" * self.upper) + ("a-z" * self.lower) + ("0-9" * self.digits)
        return (r"\d" if kinds == "0-9" else f"[{kinds}]") + (
            f"{{{self.shortest}}}" if self.shortest == self.longest else "+"
        )


@dataclass(frozen=True)
class Shape:
    """What texts have in common: `frame` is the text with "w" for each run of letters and digits, then the runs."""

    frame: str
    tokens: tuple[Token, ...]

    def pattern(self) -> str | None:
        """A regular expression that fits all the texts; None when it would say next to nothing."""
        if len(self.tokens) == 1 and self.frame == "w" and self.tokens[0].shortest != self.tokens[0].longest:
            return None
        if not self.tokens:
            return None
        between = self.frame.split("w")
        parts = [re.escape(between[0])]
        for token, after in zip(self.tokens, between[1:], strict=True):
            parts += [token.pattern(), re.escape(after)]
        return "".join(parts).replace("\\-", "-")


@dataclass(frozen=True, eq=False)
class Text:
    """Of the `n` cells that came as text: how many are what. Without cells it is the identity."""

    n: int = 0
    empty: int = 0
    missing: int = 0
    """Words for "no value" (`schema.MISSING_WORDS`), the empty text among them."""
    numbers: int = 0
    integers: int = 0
    """Digits with or without a sign, within 64 bits."""
    codes: int = 0
    """Digits with a leading zero, or too many for 64 bits: names made of digits."""
    times: int = 0
    truths: int = 0
    shape: Shape | None = None
    """The one shape of all texts, or None where they have none in common."""
    no_numbers: tuple[str, ...] = ()
    """The first texts, by order, that are neither numbers nor missing; of times likewise."""
    no_times: tuple[str, ...] = ()

    def __add__(self, other: Text) -> Text:
        if not other.n:
            return self
        if not self.n:
            return other
        shape = None
        if self.shape and other.shape and self.shape.frame == other.shape.frame:
            shape = Shape(self.shape.frame, tuple(map(operator.add, self.shape.tokens, other.shape.tokens)))
        return Text(
            n=self.n + other.n,
            empty=self.empty + other.empty,
            missing=self.missing + other.missing,
            numbers=self.numbers + other.numbers,
            integers=self.integers + other.integers,
            codes=self.codes + other.codes,
            times=self.times + other.times,
            truths=self.truths + other.truths,
            shape=shape,
            no_numbers=tuple(sorted({*self.no_numbers, *other.no_numbers}))[:EXAMPLES],
            no_times=tuple(sorted({*self.no_times, *other.no_times}))[:EXAMPLES],
        )

    @property
    def said(self) -> int:
        """Cells with more than a word for "no value"."""
        return self.n - self.missing


@dataclass(frozen=True, eq=False)
class Keys:
    """Whether `n` values are all different: proven up to `EXACT_KEYS` of them, by their sorted hashes."""

    n: int = 0
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    repeats: bool = False

    @classmethod
    def of(cls, hashes: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]) -> Keys:
        """Of the distinct values of one block."""
        return cls._kept(int(counts.sum()), np.sort(hashes), bool((counts > 1).any()))

    @classmethod
    def _kept(cls, n: int, hashes: npt.NDArray[np.uint64], repeats: bool) -> Keys:
        if n > EXACT_KEYS:  # not known any more, even where a part has seen a repeat: parts are cut differently
            return cls(n)
        return cls(n, np.zeros(0, np.uint64), True) if repeats else cls(n, hashes)

    def __add__(self, other: Keys) -> Keys:
        n, repeats = self.n + other.n, self.repeats or other.repeats
        if n > EXACT_KEYS or repeats:
            return self._kept(n, self.hashes, repeats)
        hashes = np.sort(np.concatenate([self.hashes, other.hashes]), kind="stable")
        return self._kept(n, hashes, bool((hashes[1:] == hashes[:-1]).any()))


@dataclass(frozen=True, eq=False)
class ColumnEvidence:
    """What `n` rows show about one column. `nulls` counts NaN too; `kinds` has the rows of each Arrow type.

    `families` are what these types are: bool, integer, number, time, text, null, other (no dtype of ours).
    `keys` counts only integers and texts: floats and times are no keys.
    """

    position: int
    n: int
    nulls: int
    kinds: dict[str, int]
    families: frozenset[str]
    infinite: int = 0
    numbers: Numbers = field(default_factory=Numbers)
    times: Numbers = field(default_factory=Numbers)
    text: Text = field(default_factory=Text)
    values: Values = field(default_factory=Values)
    keys: Keys = field(default_factory=Keys)

    def __add__(self, other: ColumnEvidence) -> ColumnEvidence:
        kinds = {k: self.kinds.get(k, 0) + other.kinds.get(k, 0) for k in sorted(self.kinds | other.kinds)}
        return ColumnEvidence(
            position=min(self.position, other.position),
            n=self.n + other.n,
            nulls=self.nulls + other.nulls,
            kinds=kinds,
            families=self.families | other.families,
            infinite=self.infinite + other.infinite,
            numbers=self.numbers + other.numbers,
            times=self.times + other.times,
            text=self.text + other.text,
            values=self.values + other.values,
            keys=self.keys + other.keys,
        )

    @property
    def valid(self) -> int:
        """Cells that are not null."""
        return self.n - self.nulls


@dataclass(frozen=True, eq=False)
class Evidence:
    """What `n` rows show. Evidence of disjoint rows adds up, in any order; `Evidence()` adds nothing."""

    n: int = 0
    columns: dict[str, ColumnEvidence] = field(default_factory=dict)
    """In the order of the source, where its parts agree on one."""

    def __add__(self, other: Evidence) -> Evidence:
        both = dict(self.columns)
        for name, theirs in other.columns.items():
            both[name] = both[name] + theirs if name in both else theirs
        ordered = sorted(both, key=lambda name: (both[name].position, name))
        return Evidence(self.n + other.n, {name: both[name] for name in ordered})


def gather(tables: Iterable[pa.Table]) -> Evidence:
    """Evidence of all rows of `tables`, one table in memory at a time. Raises: DataError for a column name twice."""
    return functools.reduce(lambda total, table: total + fold(table), tables, Evidence())


def fold(table: pa.Table) -> Evidence:
    """Evidence of the rows of one table. Raises: DataError when two of its columns share a name."""
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise DataError(name, "stands twice in the source; rename one of the two columns")
    columns = {name: _column(i, table[name]) for i, name in enumerate(table.column_names)}
    return Evidence(table.num_rows, columns)


_COUNTABLE: tuple[tuple[str, Callable[[pa.DataType], bool]], ...] = (
    ("bool", pa.types.is_boolean),
    ("integer", pa.types.is_integer),
    ("number", lambda kind: pa.types.is_floating(kind) or pa.types.is_decimal(kind)),
    ("time", lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind)),
    ("text", lambda k: pa.types.is_string(k) or pa.types.is_large_string(k) or pa.types.is_string_view(k)),
    ("null", pa.types.is_null),
)


def _family(kind: pa.DataType) -> str:
    return next((name for name, belongs in _COUNTABLE if belongs(kind)), "other")


def _column(position: int, cells: pa.ChunkedArray) -> ColumnEvidence:
    if pa.types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    family, kinds = _family(cells.type), {str(cells.type): len(cells)}
    if family in ("null", "other"):
        return ColumnEvidence(position, len(cells), cells.null_count, kinds, frozenset({family}))
    if family == "time":
        # As `schema.conform` takes them: without a zone they are UTC.
        cells = cells.cast(pa.timestamp("us", getattr(cells.type, "tz", None)), safe=False).cast(pa.int64())
    elif family == "number":
        cells = cells.cast(pa.float64(), safe=False)
    elif family == "text":
        cells = cells.cast(pa.string())
    whole = pa.concat_arrays([*cells.chunks, pa.array([], cells.type)]).drop_null()
    infinite = 0
    if family == "number":
        finite = pc.is_finite(whole)
        not_a_number = pc.sum(pc.is_nan(whole)).as_py() or 0
        infinite = len(whole) - (pc.sum(finite).as_py() or 0) - not_a_number
        nulls = cells.null_count + not_a_number
        whole = whole.filter(finite)
    else:
        nulls = cells.null_count
    shown, distinct, counts = _distinct(family, whole)
    hashes = _hashes(shown, distinct)
    text = Text()
    numbers, times = Numbers(), Numbers()
    if family == "text":
        text, numbers, times = _text(distinct, counts)
    elif family == "time":
        times = _numbers(distinct, counts)
    else:
        numbers = _numbers(distinct, counts)
    keys = Keys.of(hashes, counts) if family in ("integer", "text") else Keys()
    values = Values.of(shown, hashes, counts)
    return ColumnEvidence(
        position, len(cells), nulls, kinds, frozenset({family}), infinite, numbers, times, text, values, keys
    )


def _distinct(family: str, cells: pa.Array) -> tuple[pa.Array, Any, npt.NDArray[np.int64]]:
    """The distinct cells as they are shown, as one counts with them (text: the same), and the rows of each."""
    if family == "text":
        found = cells.value_counts()
        return found.field("values"), found.field("values"), found.field("counts").to_numpy()
    numbers = cells.cast(pa.int8()) if family == "bool" else cells
    values = numbers.to_numpy(zero_copy_only=False)
    values, counts = np.unique(values + 0.0 if family == "number" else values, return_counts=True)
    shown = pa.array(values)
    if family == "bool":
        shown = shown.cast(pa.bool_())
    elif family == "time":
        shown = shown.cast(pa.timestamp("us"))
    return shown, values, counts.astype(np.int64)


def _hashes(shown: pa.Array, distinct: Any) -> npt.NDArray[np.uint64]:
    """64 bits per value; a whole number has the same ones as an integer and as a float."""
    hashes = row_hashes(pa.table({"value": shown}))[0]
    if pa.types.is_floating(shown.type):
        whole = (distinct == np.floor(distinct)) & (np.abs(distinct) < 2.0**63)
        integers = pa.array(distinct[whole].astype(np.int64))
        hashes[whole] = row_hashes(pa.table({"value": integers}))[0]
    return hashes


def _numbers(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Numbers:
    """Of rising distinct values with the rows of each."""
    if not values.size:
        return Numbers()
    whole = _rows(counts, values == np.floor(values))
    spread = Spread.of(values.astype(np.float64), counts)
    return Numbers(int(counts.sum()), whole, values[0].item(), values[-1].item(), spread)


def _text(distinct: pa.Array, counts: npt.NDArray[np.int64]) -> tuple[Text, Numbers, Numbers]:
    """What distinct texts with the rows of each are, and the numbers and times among them."""
    if not len(distinct):
        return Text(), Numbers(), Numbers()
    texts = pl.Series(pl.from_arrow(distinct), dtype=pl.String)
    words = texts.str.strip_chars().str.to_lowercase()
    missing = words.is_in(MISSING_WORDS).to_numpy()
    as_float = from_text(pa.chunked_array([distinct]), "float").to_numpy()
    is_number = ~np.isnan(as_float) & ~missing
    digits = (words.str.contains(r"^[+-]?\d+$")).to_numpy()
    as_int = words.filter(digits).cast(pl.Int64, strict=False)
    too_long = np.zeros(len(texts), dtype=bool)
    too_long[digits] = as_int.is_null().to_numpy()
    codes = too_long | words.str.contains(r"^[+-]?0\d+$").to_numpy()
    # Parsing times costs more than all the rest: what does not begin like a date is none.
    others = np.flatnonzero(words.str.contains(r"^[+-]?\d+-\d").to_numpy())
    times = from_text(pa.chunked_array([distinct.take(pa.array(others))]), "timestamp").cast(pa.int64())
    is_time = np.zeros(len(texts), dtype=bool)
    is_time[others] = times.is_valid().to_numpy()
    integers = digits & ~too_long
    found = Text(
        n=int(counts.sum()),
        empty=_rows(counts, (texts == "").to_numpy()),
        missing=_rows(counts, missing),
        numbers=_rows(counts, is_number),
        integers=_rows(counts, integers),
        codes=_rows(counts, codes),
        times=_rows(counts, is_time),
        truths=_rows(counts, words.is_in(["true", "false"]).to_numpy()),
        shape=_shape(texts),
        no_numbers=_first(texts, ~is_number & ~missing),
        no_times=_first(texts, ~is_time & ~missing),
    )
    whole = _numbers(*_sorted(as_int.drop_nulls().to_numpy(), counts[integers]))
    rest = is_number & ~integers
    return (
        found,
        whole + _numbers(*_sorted(as_float[rest], counts[rest])),
        _numbers(*_sorted(times.drop_null().to_numpy(), counts[is_time])),
    )


def _rows(counts: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> int:
    return int(counts[mask].sum())


def _sorted(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    order = np.argsort(values)
    return values[order], counts[order]


def _first(texts: pl.Series, mask: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    cut = texts.filter(pl.Series(mask)).str.slice(0, LONGEST)
    return tuple(cut.unique().bottom_k(EXAMPLES).sort().to_list())


def _shape(texts: pl.Series) -> Shape | None:
    """The shape that all texts share, or None."""
    if int(texts.str.len_chars().max() or 0) > _LONGEST_SHAPE:  # type: ignore[arg-type]
        return None
    frames = texts.str.replace_all("[A-Za-z0-9]+", "w").unique()
    if len(frames) > 1:
        return None
    frame = str(frames[0])
    names = [str(i) for i in range(frame.count("w"))]
    between = map(re.escape, frame.split("w"))
    groups = (
        texts.str.extract_groups("^(?s:" + "([A-Za-z0-9]+)".join(between) + ")$").struct.unnest() if names else None
    )
    tokens = []
    for i in range(len(names)):
        assert groups is not None
        run = groups.to_series(i)
        tokens.append(
            Token(
                bool(run.str.contains("[0-9]").any()),
                bool(run.str.contains("[A-Z]").any()),
                bool(run.str.contains("[a-z]").any()),
                int(run.str.len_chars().min()),  # type: ignore[arg-type]
                int(run.str.len_chars().max()),  # type: ignore[arg-type]
                run[0] if run.n_unique() == 1 else None,
            )
        )
    return Shape(frame, tuple(tokens))
