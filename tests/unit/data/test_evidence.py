"""Evidence about columns: the same for the same rows, however these are ordered and cut; exact, or bounded."""

from __future__ import annotations

import dataclasses
import itertools
import random
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.data import evidence
from mlops_ray.data.evidence import Evidence, Spread, fold, gather
from mlops_ray.errors import DataError


def plain(value: Any) -> Any:
    """A value that `==` compares, whatever arrays are in it."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | pa.Array) else value


texts = st.text(max_size=6) | st.sampled_from(
    ["", "NA", "7", "007", "-3", "2.5", "1e3", "true", "2013-01-01", "ab-12", "cd-7", "99999999999999999999", "x" * 70]
)
columns = st.fixed_dictionaries(
    {
        "text": st.lists(st.none() | texts, min_size=8, max_size=16),
        "int": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=16),
        "float": st.lists(st.none() | st.floats(), min_size=8, max_size=16),
        "time": st.lists(st.none() | st.datetimes(datetime(1900, 1, 1)), min_size=8, max_size=16),
        "flag": st.lists(st.none() | st.booleans(), min_size=8, max_size=16),
    }
)
TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "time": pa.timestamp("us"), "flag": pa.bool_()}


@pytest.mark.parametrize("small", [False, True])
@settings(max_examples=20)
@given(columns, st.randoms(use_true_random=False), st.lists(st.integers(0, 16), max_size=3))
def test_evidence_does_not_depend_on_order_or_sharding(
    small: bool, lists: dict[str, list[Any]], rng: random.Random, cuts: list[int]
) -> None:
    """`small`: so little room that everything is sampled, bucketed or given up."""
    n = min(map(len, lists.values()))
    table = pa.table({name: pa.array(cells[:n], TYPES[name]) for name, cells in lists.items()})
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for bound in ("SAMPLE", "BUCKETS", "EXACT_KEYS"):
                patch.setattr(evidence, bound, 5)
        whole = plain(fold(table))
        order = list(range(n))
        rng.shuffle(order)
        edges = [0, *sorted(min(c, n) for c in cuts), n]
        parts = [table.take(pa.array(order[a:b], pa.int64())) for a, b in itertools.pairwise(edges)]
        assert plain(gather(parts)) == whole
        found = [fold(part) for part in parts]
        before = [plain(part) for part in found]
        rng.shuffle(found)
        total = Evidence()
        for part in found:
            total = part + total
        assert plain(total) == whole
        assert [plain(part) for part in found] == [before[i] for i in map(before.index, map(plain, found))]


def test_what_is_counted_is_counted_exactly() -> None:
    rows = pa.table(
        {
            "x": [1.5, None, float("nan"), float("inf"), 3.0],
            "t": ["7", "", " na", "2013-01-01", "007"],
            "n": [2**63 - 1, 2**53 + 1, 2**53, None, -(2**63)],
            "at": pa.array([datetime(2013, 1, 1)] * 5, pa.timestamp("ns")),
        }
    )
    found = gather([rows, rows.slice(0, 2)]).columns
    x, t, n, at = (found[name] for name in ("x", "t", "n", "at"))
    assert (x.n, x.nulls, x.infinite, x.numbers.n, x.numbers.whole) == (7, 3, 1, 3, 1)
    assert (x.numbers.low, x.numbers.high) == (1.5, 3.0)
    assert (t.text.n, t.text.empty, t.text.missing, t.text.numbers, t.text.integers) == (7, 2, 3, 3, 3)
    assert (t.text.codes, t.text.times, t.text.no_numbers) == (1, 1, ("2013-01-01",))
    assert (n.numbers.low, n.numbers.high, n.values.n, n.keys.repeats) == (-(2**63), 2**63 - 1, 4, True)
    assert n.values.most_frequent()[0] == (str(2**53 + 1), 2)
    assert (at.values.n, at.times.low) == (1, int(datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1e6))


def test_an_integer_and_a_float_of_one_value_are_one_value() -> None:
    found = gather([pa.table({"x": [1, 2]}), pa.table({"x": [2.0, 2.5]})]).columns["x"]
    assert (found.values.n, found.families) == (3, {"integer", "number"})


def test_memory_is_bounded_and_estimates_are_near() -> None:
    rng = np.random.default_rng(5)
    n, parts = 30_000, 10
    tables = [
        pa.table({"k": np.arange(i * n, (i + 1) * n), "x": rng.normal(size=n), "s": rng.integers(0, 50_000, n)})
        for i in range(parts)
    ]
    whole = pa.concat_tables(tables)
    found = gather(tables)
    for name in whole.column_names:
        column, cells = found.columns[name], whole[name].to_numpy()
        assert column.values.hashes.size == evidence.SAMPLE
        assert column.numbers.spread.keys.size <= evidence.BUCKETS
        assert abs(column.values.n / np.unique(cells).size - 1) < 5 * 0.016
        for share in (0.01, 0.5, 0.99):
            assert abs((cells < column.numbers.spread.quantile(share)).mean() - share) < 0.002
    k = found.columns["k"]
    assert (k.keys.n, k.keys.hashes.size, k.keys.repeats) == (n * parts, n * parts, False)
    twice = found + gather([tables[0].slice(0, 1)])
    assert twice.columns["k"].keys.repeats


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
@settings(max_examples=40)
def test_a_spread_with_room_is_exact(values: list[float]) -> None:
    cells = np.array(values)
    spread = Spread.of(cells, np.ones(len(cells), dtype=np.int64))
    rising = np.sort(cells)
    assert spread.quantile(0.5) == rising[len(cells) // 2]
    assert (spread.quantile(0.0), spread.quantile(1.0)) == (rising[0], rising[-1])
    for value in values[:3]:
        assert spread.below(value) == (cells < value).sum()
        assert spread.above(value) == (cells > value).sum()


def test_a_part_without_a_column_adds_nothing_to_it() -> None:
    found = pa.table({"a": [1], "b": [2]}), pa.table({"a": [3]})
    total = gather(found)
    assert (total.n, total.columns["a"].n, total.columns["b"].n) == (2, 2, 1)
    assert plain(gather(reversed(found))) == plain(total)


def test_a_column_that_stands_twice_is_named() -> None:
    with pytest.raises(DataError, match=r"^x: stands twice"):
        fold(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]))


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        (["2013-01-01-UA1545-EWR", "2013-01-02-9E3-JFK"], r"\d{4}-\d{2}-\d{2}-[A-Z0-9]+-[A-Z]{3}"),
        (["sample-01", "sample-02"], r"sample-\d{2}"),
        (["a.b", "c.d"], r"[a-z]{1}\.[a-z]{1}"),
        (["Ab1", "cD2"], "[A-Za-z0-9]{3}"),
        (["a1@x.org", "bcd@yz.com"], r"[a-z0-9]+@[a-z]+\.[a-z]{3}"),
        (["anna", "berta"], None),
        (["ab", "a b"], None),
        (["ab-1", ""], None),
        (["---", "---"], None),
        (["köln", "kern"], None),
        (["y" * 65, "y" * 65], None),
    ],
)
def test_the_shape_of_texts(texts: list[str], pattern: str | None) -> None:
    shape = gather(pa.table({"x": [text]}) for text in texts).columns["x"].text.shape
    assert (shape.pattern() if shape is not None else None) == pattern
    assert plain(fold(pa.table({"x": texts})).columns["x"].text.shape) == plain(shape)
