"""What a table holds, and how far another lies from it: the values behind `mlops-ray profile` and `mlops-ray drift`.

Columns are taken for what they are: numbers are numeric, text and truth values categorical. Text with nearly as many
values as rows, and times, are described and not compared: a name or an instant is new by nature.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.data import distance
from mlops_ray.data.cells import value_of
from mlops_ray.data.distance import Sample
from mlops_ray.data.profile import MAX_UNSEEN, Bins, Profile, cardinality, fold
from mlops_ray.errors import DataError

Kind = Literal["numeric", "categorical", "text", "time", "other"]
Mode = Literal["exact", "profile"]

MAX_CATEGORIES = 50
"""Categories that get a bin of their own in a profile: those of the project's bins."""
MANY = 1000
"""Text with more distinct values than this, and more than half as many as rows, is names and not categories."""
SHOWN = 10
"""Categories that a description lists."""
PICTURE_BINS = 20
"""Bins of the histograms that people look at."""
NAMED = 5
"""Categories that a sentence names."""


class _Column(NamedTuple):
    """A column as numbers (`sample`), or as rows per category (`tally`); else only its extremes as text."""

    name: str
    kind: Kind
    rows: int
    missing: int
    sample: Sample | None = None
    tally: dict[str, int] | None = None
    low: str | None = None
    high: str | None = None
    distinct: int | None = None
    """Of numbers that differ where float64 does not tell them apart; else the sample says it."""


def describe(table: pa.Table) -> list[dict[str, Any]]:
    """Each column of `table` as JSON-friendly values: kind, missing, distinct, and by kind what it holds.

    Numeric: mean, standard deviation, extremes, quartiles, and a histogram with its inner `edges`. Categorical: the
    most frequent categories with their rows, and how many rows the rest has. Text: distinct values. Times: extremes.
    `distinct` is exact for categories, text and numbers that float64 cannot tell apart (whole ones beyond 2**53), else
    estimated (standard error 4.6 %).
    Raises: DataError when there are no rows.
    """
    columns = _columns(table, "the data")
    profile, _ = _profile(columns, columns, table, Sample.edges)
    return [_description(column, profile) for column in columns]


def compare(reference: pa.Table, current: pa.Table, mode: Mode = "exact") -> dict[str, Any]:
    """How far the rows of `current` lie from those of `reference`, per column that both have.

    Args: mode: `exact` compares the values; `profile` compares profiles over bins of the reference, which is
        what is left where rows are gone, and says by how much each statistic can be off.
    Returns: JSON-friendly `features` (statistics, shares of missing rows, histograms of both, and what to say in
        words), the one with the largest PSI first, and `notes` on columns that were not compared.
    Raises: DataError when a side has no rows, or no column can be compared.
    """
    ours, theirs = _columns(reference, "the reference"), _columns(current, "the current data")
    notes = list(_notes(ours, theirs))
    found = {column.name: column for column in theirs}
    pairs = [(a, found[a.name]) for a in ours if a.name in found and _comparable(a, found[a.name])]
    if not pairs:
        why = "; ".join(notes) or "there is none"
        raise DataError("drift", f"no column can be compared: {why}")
    # Distances beyond what a float holds are None.
    with np.errstate(over="ignore", invalid="ignore"):
        if mode == "exact":
            features = [_exact(a, b) for a, b in pairs]
        else:
            shared = [a for a, _ in pairs]
            one, bins = _profile(shared, ours, reference, Sample.fine_edges)
            two, _ = _profile(shared, theirs, current, Sample.fine_edges)
            features = [_by_profile(a, b, bins, one, two) for a, b in pairs]
    features.sort(key=lambda f: -f["statistics"]["psi"])
    return {"mode": mode, "features": features, "notes": notes}


# Columns --------------------------------------------------------------------------------------------------------------


def _columns(table: pa.Table, whose: str) -> list[_Column]:
    if not table.num_rows:
        raise DataError(whose, "it has no rows")
    return [_column(name, table[name]) for name in table.column_names]


def _column(name: str, cells: pa.ChunkedArray) -> _Column:
    kind, n = cells.type, len(cells)
    if pa.types.is_dictionary(kind):
        cells = cells.cast(kind.value_type)
        kind = cells.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        sample = Sample.of(_numbers(cells))
        distinct = None if _told_apart(cells, sample) else pc.count_distinct(cells).as_py()
        return _Column(name, "numeric", n, sample.missing, sample, distinct=distinct)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind) or _is_text(kind):
        tally = _tally(cells)
        present = sum(tally.values())
        names = len(tally) > MANY and 2 * len(tally) > present
        return _Column(name, "text" if names else "categorical", n, n - present, tally=tally)
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        ends = pc.min_max(cells)
        low, high = (_instant(value_of(ends[end])) for end in ("min", "max"))
        return _Column(name, "time", n, cells.null_count, low=low, high=high)
    return _Column(name, "other", n, cells.null_count)


def _instant(value: Any) -> str | None:
    """As ISO 8601 where Python knows the time, else as the text that it is."""
    if value is None or isinstance(value, str):
        return value
    return str(value.isoformat())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _told_apart(cells: pa.ChunkedArray, sample: Sample) -> bool:
    """Whether different cells are different float64 values."""
    if pa.types.is_decimal(cells.type):
        return bool(cells.type.precision <= sys.float_info.dig)
    ends = sample.values[[0, -1]] if sample.values.size else np.zeros(1)
    return pa.types.is_floating(cells.type) or bool(np.abs(ends).max() < 2**sys.float_info.mant_dig)


def _numbers(cells: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    if pa.types.is_decimal(cells.type):
        cells = cells.cast(pa.float64())
    return np.asarray(cells.to_numpy(), dtype=np.float64)


def _tally(cells: pa.ChunkedArray) -> dict[str, int]:
    """Rows per category; empty text is missing, as everywhere."""
    counted = pc.value_counts(cells.cast(pa.string()))
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return {value: n for value, n in pairs if value}


def _profile(
    columns: Sequence[_Column], mine: Sequence[_Column], table: pa.Table, edges: Callable[[Sample], tuple[float, ...]]
) -> tuple[Profile, Bins]:
    """Profile of `table`, whose columns are `mine`, over bins of `columns`."""
    numeric = {c.name: edges(c.sample) for c in columns if c.sample is not None}
    categorical = {c.name: _top(c.tally or {}, MAX_CATEGORIES) for c in columns if c.kind == "categorical"}
    bins = Bins(numeric, categorical)
    kinds = {c.name: c.kind for c in mine}
    values = {n: _numbers(table[n]) if kinds[n] == "numeric" else _texts(table[n]) for n in bins.widths}
    return fold(bins, values), bins


def _texts(cells: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """Text with "" for missing; one object per category and not per row."""
    coded = cells.cast(pa.string()).combine_chunks().dictionary_encode()
    words = np.array([*coded.dictionary.to_pylist(), ""], dtype=object)
    return np.asarray(words[coded.indices.fill_null(len(words) - 1).to_numpy()])


def _top(tally: dict[str, int], n: int) -> tuple[str, ...]:
    return tuple(sorted(tally, key=lambda c: (-tally[c], c))[:n])


# Descriptions ---------------------------------------------------------------------------------------------------------


def _description(column: _Column, profile: Profile) -> dict[str, Any]:
    name, rows = column.name, column.rows
    head: dict[str, Any] = {"name": name, "kind": column.kind, "missing": column.missing / rows}
    if column.sample is not None:
        finite = column.sample.finite
        at = (np.array([0.25, 0.5, 0.75]) * (finite.size - 1)).astype(int)
        quarter, median, three = finite[at].tolist() if finite.size else [None] * 3
        reach, moments = profile.ranges[name], profile.moments[name]
        return head | {
            "distinct": round(profile.distinct(name)) if column.distinct is None else column.distinct,
            "mean": moments.mean if moments.n else None,
            "std": _number(moments.std) if moments.n else None,
            "low": _number(reach.low),
            "q25": quarter,
            "median": median,
            "q75": three,
            "high": _number(reach.high),
            "infinite": column.sample.values.size - finite.size,
            **_picture(column.sample),
        }
    if column.kind == "categorical" and column.tally is not None:
        top = _top(column.tally, SHOWN)
        rest = sum(column.tally.values()) - sum(column.tally[c] for c in top)
        return head | {
            "distinct": len(column.tally),
            "top": [[c, column.tally[c]] for c in top],
            "rest": rest,
        }
    if column.tally is not None:
        return head | {"distinct": len(column.tally)}
    return head | {"low": column.low, "high": column.high}


# Comparisons ----------------------------------------------------------------------------------------------------------


def _comparable(a: _Column, b: _Column) -> bool:
    return a.kind == b.kind and a.kind in ("numeric", "categorical") and a.missing < a.rows and b.missing < b.rows


def _notes(ours: Sequence[_Column], theirs: Sequence[_Column]) -> Iterator[str]:
    mine, other = {c.name: c for c in ours}, {c.name: c for c in theirs}
    if gone := [f"`{name}`" for name in mine if name not in other]:
        yield f"only the reference has {', '.join(gone)}"
    if new := [f"`{name}`" for name in other if name not in mine]:
        yield f"only the current data has {', '.join(new)}"
    for name, a in mine.items():
        b = other.get(name)
        if b is None or _comparable(a, b):
            continue
        if empty := [whose for c, whose in ((a, "the reference"), (b, "the current data")) if c.missing == c.rows]:
            yield f"`{name}` has no values in {' and '.join(empty)}"
        elif a.kind != b.kind:
            yield f"`{name}` is {a.kind} in the reference and {b.kind} in the current data"
        elif a.kind == "text":
            yield f"`{name}` has too many values to compare ({len(a.tally or ()):,} distinct in {a.rows:,} rows)"
        elif a.kind == "time":
            yield f"`{name}` runs from {a.low} to {a.high} in the reference, from {b.low} to {b.high} now"
        else:
            yield f"`{name}` is neither a number, text nor a time"


def _exact(a: _Column, b: _Column) -> dict[str, Any]:
    if a.sample is None or b.sample is None:
        return _categories(a, b)
    edges = a.sample.edges()
    one, two = a.sample.histogram(edges), b.sample.histogram(edges)
    wide = distance.doane_edges(a.sample) if a.sample.finite.size else np.zeros(2)
    found = distance.distances(a.sample, b.sample)
    spread = float(a.sample.finite.std()) if a.sample.finite.size else math.nan
    statistics = {
        "psi": float(distance.psi(one, two)),
        "jensen_shannon": distance.jensen_shannon(*(distance.outside_and_in(s, wide) for s in (a.sample, b.sample))),
        "kolmogorov_smirnov": found.kolmogorov_smirnov.statistic,
        "kolmogorov_smirnov_p": found.kolmogorov_smirnov.p_value,
        "wasserstein": _number(found.wasserstein),
        "wasserstein_normed": _number(found.wasserstein / spread) if spread > 0 else None,
    }
    return _feature(a, b, statistics, {}, [])


def _categories(a: _Column, b: _Column) -> dict[str, Any]:
    before, now = a.tally or {}, b.tally or {}
    names = sorted(before.keys() | now.keys(), key=lambda c: (-before.get(c, 0), c))
    one = np.array([before.get(c, 0) for c in names], dtype=np.int64)
    two = np.array([now.get(c, 0) for c in names], dtype=np.int64)
    new = {c: n for c, n in now.items() if c not in before}
    gone = {c: n for c, n in before.items() if c not in now}
    words = []
    if new:
        words.append(_in_words("new", _plural(len(new)), list(_top(new, SHOWN)), sum(new.values()), two.sum()))
    if gone:
        words.append(_in_words("vanished", _plural(len(gone)), list(_top(gone, SHOWN)), sum(gone.values()), one.sum()))
    return _feature(a, b, _over_categories(one, two), {}, words)


def _over_categories(one: npt.NDArray[np.int64], two: npt.NDArray[np.int64]) -> dict[str, float]:
    test = distance.chi_square(one, two)
    return {
        "psi": float(distance.psi(one, two)),
        "jensen_shannon": distance.jensen_shannon(one, two),
        "chi_square": test.statistic,
        "chi_square_p": test.p_value,
        "l_infinity": distance.l_infinity(one, two),
        "total_variation": distance.total_variation(one, two),
        "hellinger": distance.hellinger(one, two),
    }


def _by_profile(a: _Column, b: _Column, bins: Bins, one: Profile, two: Profile) -> dict[str, Any]:
    name = a.name
    rows, others = one.counts[name][:-1], two.counts[name][:-1]
    if a.kind == "numeric":
        ks, area = distance.between(bins, one, two, name)
        assert a.sample is not None
        edges = a.sample.edges()
        starts = [0, *(np.flatnonzero(np.isin(bins.numeric[name], edges)) + 1)]
        rows, others = np.add.reduceat(rows, starts), np.add.reduceat(others, starts)
        spread = one.moments[name].std
        normed = [x / spread for x in area] if spread > 0 else [math.nan] * 2
        statistics = {
            "psi": float(distance.psi(rows, others)),
            "jensen_shannon": distance.jensen_shannon(one.counts[name][:-1], two.counts[name][:-1]),
            "kolmogorov_smirnov": ks.value,
            "kolmogorov_smirnov_p": distance.ks_p_value(ks.value, int(rows.sum()), int(others.sum())),
            "wasserstein": _number(area.value),
            "wasserstein_normed": _number(normed[0]),
        }
        errors = {
            "kolmogorov_smirnov": ks.error,
            "wasserstein": _number(area.error),
            "wasserstein_normed": _number(normed[1]),
        }
        return _feature(a, b, statistics, errors, [])
    words = [*_new_by_profile(name, one, two)]
    gone = np.flatnonzero((others[:-1] == 0) & (rows[:-1] > 0))
    if gone.size:
        listed = [bins.categorical[name][i] for i in gone[:SHOWN]]
        words.append(_in_words("vanished", _plural(gone.size), listed, int(rows[gone].sum()), rows.sum()))
    return _feature(a, b, _over_categories(rows, others), {}, words)


def _new_by_profile(name: str, one: Profile, two: Profile) -> Iterator[str]:
    """What categories are new, where the reference's profile knows all of its own."""
    known = {u.hash for u in one.unseen[name]}
    if len(known) >= MAX_UNSEEN:
        return
    of = two.n - two.missing(name)
    new = sorted((u for u in two.unseen[name] if u.hash not in known), key=lambda u: (-u.n, u.text))
    first = [u.text for u in new[:SHOWN]]
    if len(two.unseen[name]) < MAX_UNSEEN:
        if new:
            yield _in_words("new", _plural(len(new)), first, sum(u.n for u in new), of)
    elif not known:
        about = round(cardinality(two.registers[name]))
        yield _in_words("new", f"about {_plural(about)}", first, int(two.counts[name][-2]), of)


def _feature(
    a: _Column, b: _Column, statistics: dict[str, Any], errors: dict[str, Any], words: list[str]
) -> dict[str, Any]:
    missing = [a.missing / a.rows, b.missing / b.rows]
    if a.missing * b.rows != b.missing * a.rows:
        words = [f"missing {_percent(missing[0])} → {_percent(missing[1])}", *words]
    head = {"name": a.name, "kind": a.kind, "statistics": statistics, "errors": errors}
    return head | {"missing": missing, "words": words, **_pictures(a, b)}


def _pictures(a: _Column, b: _Column) -> dict[str, Any]:
    """Histograms of both: numbers in equally wide bins, or the reference's most frequent categories and all others."""
    if a.sample is not None and b.sample is not None:
        edges = a.sample.scale(PICTURE_BINS, b.sample)
        one, two = (s.histogram(edges).tolist() for s in (a.sample, b.sample))
        return {"edges": list(edges), "reference": one, "current": two}
    before, now = a.tally or {}, b.tally or {}
    kept = _top(before, SHOWN)
    bars = [[*(t.get(c, 0) for c in kept), sum(t.values()) - sum(t.get(c, 0) for c in kept)] for t in (before, now)]
    return {"categories": list(kept), "reference": bars[0], "current": bars[1]}


def _picture(sample: Sample) -> dict[str, Any]:
    edges = sample.scale(PICTURE_BINS)
    return {"edges": list(edges), "counts": sample.histogram(edges).tolist()}


def _in_words(what: str, how_many: str, first: list[str], rows: int, of: int) -> str:
    """One line on categories that are only on one side.

    >>> _in_words("new", "2 categories", ["a", "b"], 41, 1000)
    '2 categories new (a, b), 4.1 % of rows'
    """
    listed = ", ".join(first[:NAMED]) + (", ..." if len(first) > NAMED else "")
    return f"{how_many} {what} ({listed}), {_percent(rows / of)} of rows"


def _plural(n: int) -> str:
    return f"{n:,} categor{'y' if n == 1 else 'ies'}"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 or share == 0 else "under 0.1 %"


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
