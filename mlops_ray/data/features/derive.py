"""Columns computed from a row's inputs before the transformer: date parts, hashed texts, expressions.

One function for training rows, requests and the log, so that they cannot differ. NumPy alone, but for expressions,
which Arrow evaluates. A row has the same result alone and within a batch.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops_ray.config import Features
from mlops_ray.config.features import Categorical, Datetime, Text, hashed_names
from mlops_ray.data.profile import Columns

Floats = npt.NDArray[np.float64]
_DAY_S = 86_400
_PERIOD = {"month": 12.0, "day": 31.0, "weekday": 7.0, "hour": 24.0, "minute": 60.0, "dayofyear": 366.0}
"""Longest year and month, so that no two days share a place on the circle."""
_WORD = re.compile(r"\w+")
_BLANKS = re.compile(r"\s\s+")


def derive(features: Features, columns: Columns) -> Columns:
    """`columns` with the derived ones beside them, float32 of shape (n,), NaN where an input is missing.

    Args: columns: every input of `features`: numbers float32 (missing NaN), strings as objects (missing ""), times as
    float64 seconds since the epoch (missing NaN).
    """
    if all(name in columns for name in features.derived):
        return columns
    out: dict[str, npt.NDArray[Any]] = dict(columns)
    for times in features.datetime_blocks:
        for column in times.columns:
            out |= _dates(times, column, columns)
    for block in features.categorical_blocks:
        if block.encode == "hash":
            for column in block.columns:
                whole = ([value] if value else [] for value in columns[column])
                out |= _hashed(column, whole, len(columns[column]), block.n_buckets, block.signed)
    for text in features.text_blocks:
        for column in text.columns:
            pieces = (_pieces(text, value) for value in columns[column])
            out |= _hashed(column, pieces, len(columns[column]), text.n_buckets, text.signed)
    if features.expressions:
        out |= _expressions(features, columns)
    return out


def texts_read(features: Features) -> frozenset[str]:
    """The strings among the inputs that `derive` reads; it needs no others."""
    read = {name for _, types in features.parsed.values() for name in types}
    blocks: list[Categorical | Text] = [b for b in features.categorical_blocks if b.encode == "hash"]
    read |= {name for block in (*blocks, *features.text_blocks) for name in block.columns}
    return frozenset(name for name in read if features.kinds.get(name) == "string")


# Times ----------------------------------------------------------------------------------------------------------------


def _dates(block: Datetime, column: str, columns: Columns) -> dict[str, npt.NDArray[np.float32]]:
    seconds = np.asarray(columns[column], dtype=np.float64)
    missing = np.isnan(seconds)
    whole = np.floor(np.where(missing, 0.0, seconds)).astype(np.int64)
    parts = _parts(whole + _offsets(whole, block.zone)) if block.parts or block.cyclic else {}
    found = {f"{column}_{part}": parts[part].astype(np.float64) for part in block.parts}
    for part in block.cyclic:
        angle = 2 * np.pi * (parts[part] - (part in ("month", "day", "dayofyear"))) / _PERIOD[part]
        found |= {f"{column}_{part}_sin": np.sin(angle), f"{column}_{part}_cos": np.cos(angle)}
    if block.elapsed_since is not None:
        since = block.since_s if block.since_s is not None else columns[block.elapsed_since]
        found[f"{column}_elapsed_days"] = (seconds - since) / _DAY_S
    return {name: np.where(missing, np.nan, values).astype(np.float32) for name, values in found.items()}


def _parts(local: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Parts of local times, seconds since the local epoch; weekday 0 is Monday, months and days count from 1."""
    day_number, second = np.divmod(local, _DAY_S)
    days = day_number.astype("datetime64[D]")
    months, years = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
    weekday = (day_number + 3) % 7  # 1 January 1970 was a Thursday
    return {
        "year": years.astype(np.int64) + 1970,
        "month": months.astype(np.int64) % 12 + 1,
        "day": (days - months.astype("datetime64[D]")).astype(np.int64) + 1,
        "weekday": weekday,
        "hour": second // 3600,
        "minute": second % 3600 // 60,
        "dayofyear": (days - years.astype("datetime64[D]")).astype(np.int64) + 1,
        "is_weekend": (weekday >= 5).astype(np.int64),
    }


def _offsets(seconds: npt.NDArray[np.int64], zone: str) -> npt.NDArray[np.int64]:
    """Seconds by which the zone's clock is ahead of UTC at each instant."""
    if zone == "UTC":
        return np.zeros_like(seconds)
    days, place = np.unique(seconds // _DAY_S, return_inverse=True)
    ends = np.array([[_offset(zone, day * _DAY_S), _offset(zone, (day + 1) * _DAY_S)] for day in days.tolist()])
    offsets = ends.reshape(-1, 2)[place, 0]
    # On the one or two days of a year when the clock is moved, each instant is looked up by itself.
    moved = np.flatnonzero(offsets != ends.reshape(-1, 2)[place, 1])
    offsets[moved] = [_offset(zone, second) for second in seconds[moved].tolist()]
    return np.asarray(offsets, dtype=np.int64)


@functools.lru_cache(maxsize=65_536)
def _offset(zone: str, second: int) -> int:
    try:
        instant = datetime.fromtimestamp(second, UTC)
        ahead = instant.astimezone(zoneinfo.ZoneInfo(zone)).utcoffset()
    except (OverflowError, ValueError):
        return 0  # before year 1 or after 9999 no clock was or will be moved
    return int(ahead.total_seconds()) if ahead is not None else 0


# Hashes ---------------------------------------------------------------------------------------------------------------


def _pieces(block: Text, text: str) -> Iterator[str]:
    """Words or characters of a text, in lower case, and runs of them: scikit-learn's `word` and `char` analysers."""
    low, high = block.ngrams
    units: str | list[str]
    if block.tokens == "words":
        units, join = _WORD.findall(text.lower()), " ".join
    else:
        units, join = _BLANKS.sub(" ", text.lower()), "".join
    for size in range(low, min(high, len(units)) + 1):
        for start in range(len(units) - size + 1):
            yield join(units[start : start + size])


def _hashed(
    column: str, rows: Iterable[Iterable[str]], n: int, n_buckets: int, signed: bool
) -> dict[str, npt.NDArray[np.float32]]:
    """Count of each row's pieces per bucket; signed, a piece counts 1 or -1 by its hash.

    Source: Weinberger et al. 2009; bucket and sign as in scikit-learn's FeatureHasher.
    """
    known: dict[str, int] = {}
    at: list[int] = []
    owner: list[int] = []
    for i, pieces in enumerate(rows):
        for piece in pieces:
            at.append(known.setdefault(piece, len(known)))
            owner.append(i)
    counts = np.zeros((n_buckets, n), dtype=np.float32)
    if at:
        hashes = murmur3(list(known)).astype(np.int64)[at]
        # The one hash without an absolute value goes where scikit-learn puts it.
        bucket = np.where(hashes == -(2**31), 2**31 - 1 - (n_buckets - 1), np.abs(hashes)) % n_buckets
        np.add.at(counts, (bucket, np.array(owner)), np.where(hashes < 0, -1.0, 1.0) if signed else 1.0)
    return dict(zip(hashed_names(column, n_buckets), counts, strict=True))


def murmur3(texts: list[str]) -> npt.NDArray[np.int32]:
    """MurmurHash3 (32 bits, seed 0) of each text's UTF-8 bytes, shape (n,). Source: Appleby 2011, x86_32."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    hashes = np.zeros(len(encoded), dtype=np.uint32)
    order = np.argsort(sizes, kind="stable")
    # Texts of about one length together: one long text must not blow up the table of all.
    for rows in np.split(order, np.flatnonzero(np.diff((sizes[order] + 3) // 4)) + 1) if len(encoded) else []:
        width = max(4, int(-(-sizes[rows].max() // 4) * 4))
        padded = b"".join(encoded[i].ljust(width, b"\0") for i in rows.tolist())
        words = np.frombuffer(padded, "<u4").reshape(len(rows), -1)
        hashes[rows] = _murmur3(words, sizes[rows])
    return hashes.view(np.int32)


def _murmur3(words: npt.NDArray[np.uint32], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    hashes = np.zeros(len(words), dtype=np.uint32)
    for i in range(words.shape[1]):
        k = _rotated(words[:, i] * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
        full = sizes >= 4 * (i + 1)
        mixed = _rotated(hashes ^ k, 13) * np.uint32(5) + np.uint32(0xE6546B64)
        hashes = np.where(full, mixed, np.where(sizes > 4 * i, hashes ^ k, hashes))
    hashes ^= sizes.astype(np.uint32)
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


def _rotated(values: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))


# Expressions ----------------------------------------------------------------------------------------------------------


def _expressions(features: Features, columns: Columns) -> dict[str, npt.NDArray[np.float32]]:
    # Imported here: a replica whose version has no expressions needs no Arrow.
    import pyarrow as pa

    from mlops_ray.data.rules.row_expressions import evaluate

    dtypes = {name: dtype for _, types in features.parsed.values() for name, dtype in types.items()}
    n = len(columns[features.inputs[0]])
    arrays: dict[str, Any] = {}
    for name, dtype in dtypes.items():
        values = columns[name]
        if dtype == "string":
            arrays[name] = pa.array(values, pa.string(), mask=values == "")
        elif dtype == "timestamp":
            micros = np.round(np.nan_to_num(values) * 1e6).astype(np.int64)
            arrays[name] = pa.array(micros, mask=np.isnan(values)).cast(pa.timestamp("us", tz="UTC"))
        else:
            arrays[name] = pa.array(values.astype(np.float64), mask=np.isnan(values))
            if dtype == "bool":
                arrays[name] = arrays[name].cast(pa.bool_())
    table = pa.table({**arrays, "": pa.nulls(n)})  # the unnamed column says how many rows there are
    found = {}
    for name, (expression, _) in features.parsed.items():
        value = evaluate(expression, table).cast(pa.float64())
        with np.errstate(over="ignore"):
            narrow = value.to_numpy(zero_copy_only=False).astype(np.float32)
        found[name] = np.where(np.isfinite(narrow), narrow, np.float32("nan"))
    return found
