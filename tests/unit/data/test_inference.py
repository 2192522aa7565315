"""A schema from data: it loads, its own data pass it, and it claims no more than the rows carry."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings

from mlops_ray.config import Column, Project
from mlops_ray.data.evidence import fold, gather
from mlops_ray.data.inference import Inferred, Ranges, diff, infer, padded, to_yaml
from mlops_ray.data.rules.expectations import check
from mlops_ray.demo.quickstart import samples
from mlops_ray.errors import DataError
from tests import fakes

N = 2000
FRAME = {"who": [f"k{i}" for i in range(N)], "at": [datetime(2024, 1, 1)] * N, "late": [i % 2 for i in range(N)]}


def one(cells: Any, ranges: Ranges = "none") -> Inferred:
    """What follows for one column of `cells`."""
    return infer(fold(pa.table({"x": cells})), ranges)[0]


def cycled(*values: Any, n: int = N) -> list[Any]:
    return [values[i % len(values)] for i in range(n)]


def written(table: pa.Table, ranges: Ranges = "none") -> tuple[Project, str]:
    """A project with the inferred block of `table`, as it loads from the text, and the text."""
    found = fold(table)
    text = to_yaml(infer(found, ranges), "the test", found.n, ranges)
    block = yaml.safe_load(text)
    assert block.keys() == {"columns"}
    names = {c["name"] for c in block["columns"]}
    frame = [c.model_dump() for c in fakes.project().columns if c.name in FRAME and c.name not in names]
    features = {"numeric": {"columns": [c["name"] for c in block["columns"] if c["dtype"] == "float"] or ["late2"]}}
    extra = [{"name": "late2", "dtype": "int", "nullable": True, "required": False}]
    return fakes.project(columns=[*frame, *block["columns"], *extra], features=features), text


NASTY: dict[str, tuple[Any, str, int]] = {
    # cells, dtype, rows that go to quarantine
    "nothing": (pa.nulls(N), "string", 0),
    "null text": (pa.nulls(N, pa.string()), "string", 0),
    "null ints": (pa.nulls(N, pa.int32()), "int", 0),
    "constant": (["same"] * N, "string", 0),
    "constant number": ([3.5] * N, "float", 0),
    "almost numbers": (["warm", *map(str, range(1, N))], "int", 1),
    "mixed": (cycled("1", "b"), "string", 0),
    "unicode": ([f"Zürich ☃ {i}" for i in range(N)], "string", 0),
    "huge": ([2**53 + 1 + i for i in range(N)], "int", 0),
    "beyond 64 bits": (pa.array([2**64 - 1 - i for i in range(N)], pa.uint64()), "string", 0),
    "text beyond 64 bits": ([str(10**20 + i) for i in range(N)], "string", 0),
    "empty": ([""] * N, "string", 0),
    "some empty": (cycled("a", "", "b"), "string", 0),
    "words": (cycled("1", "NA", "2", ""), "int", 0),
    "gaps": (cycled("1.0", None, "2.0"), "float", 0),
    "zip": (cycled("01234", "99999", "00001"), "string", 0),
    "flags": (cycled("true", "False", ""), "bool", 0),
    "zero one": (cycled(0, 1, None), "int", 0),
    "dates": ([date(2024, 1, 1)] * N, "timestamp", 0),
    "naive": (pa.array([datetime(2024, 1, 1)] * N, pa.timestamp("ns")), "timestamp", 0),
    "times": (cycled("2024-01-01", "2024-01-01 10:00", "2024-01-01T10:00:00.5+02:00"), "timestamp", 0),
    "decimals": ([Decimal("1.25")] * N, "float", 0),
    "float32": (pa.array(cycled(1.5, float("nan"), 0.1), pa.float32(), from_pandas=False), "float", 0),
    "infinite": ([float("inf"), *[1.0] * (N - 1)], "float", 1),
    "extreme": (cycled(-1.7e308, 1.7e308, 5e-324), "float", 0),
    "coded": (pa.array(cycled("a", "b")).dictionary_encode(), "string", 0),
    "lines": (cycled("a\nb", "# c", "d: e", "\x07", "\u2028", "'", '"'), "string", 0),
    "yaml words": (cycled("yes", "null", "1.5", "~", "off"), "string", 0),
    "a: b # c": (cycled("x", "y"), "string", 0),
    "é\n": (cycled(1, 2), "int", 0),
    "1": (cycled(True, False), "bool", 0),
    "plates": ([f"AB-{i:04d}" for i in range(N)], "string", 0),
}


@pytest.mark.parametrize("ranges", ["none", "observed", "padded"])
def test_nasty_columns_get_a_schema_that_loads_and_that_they_pass(ranges: Ranges) -> None:
    table = pa.table({**FRAME, **{name: cells for name, (cells, _, _) in NASTY.items()}})
    project, text = written(table, ranges)
    assert {name: project.column(name).dtype for name in NASTY} == {name: d for name, (_, d, _) in NASTY.items()}
    report = check(project, table).report
    bad = {f"{name}.dtype": n for name, (_, _, n) in NASTY.items() if n}
    assert report.broken == bad
    assert text.count("will go to quarantine") == len(bad)
    assert max(map(len, text.splitlines())) < 200
    # Offline and online: what was read from the text is what was inferred.
    assert all(c in project.columns for i in infer(fold(table), ranges) if (c := i.column) is not None)


cells = st.one_of(
    *(
        st.lists(st.none() | strategy, min_size=1, max_size=30)
        for strategy in (
            st.text(max_size=5),
            st.sampled_from(["", "NA", "7", "007", "2.5", "true", "2013-01-01", "a-1", "b-2", "inf", "+5", " 7 "]),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(),
            st.booleans(),
            st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)),
        )
    )
)


@settings(max_examples=60)
@given(cells, st.sampled_from(["none", "observed", "padded"]))
def test_any_column_passes_its_own_schema(values: list[Any], ranges: Ranges) -> None:
    """But for cells that are counted in its notes."""
    table = pa.table({"x": values * 10, **{name: filled[: len(values) * 10] for name, filled in FRAME.items()}})
    project, text = written(table, ranges)
    refused = re.search(r"# ([\d,]+) rows? \(.*\) will go to quarantine", text.split("- { name: x,")[0])
    report = check(project, table).report
    assert report.n_quarantined == (int(refused[1].replace(",", "")) if refused else 0)
    assert set(report.broken) <= {"x.dtype"}


def test_the_quickstarts_rows_pass_their_own_schema() -> None:
    table = samples()
    found = {i.name: i for i in infer(gather([table]))}
    assert found["sample_id"].column == Column(name="sample_id", dtype="string", pattern=r"sample-\d{4}")
    assert found["sample_id"].key == "exact"
    assert found["malignant"].column == Column(name="malignant", dtype="int", min=0, max=1)
    assert found["size"].column == Column(name="size", dtype="string", values=("large", "medium", "small"))
    assert found["mean_radius"].column == Column(name="mean_radius", dtype="float")
    assert any("from 6.981 to 28.11" in note for note in found["mean_radius"].notes)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([[1.0]], "list<.*one column of each item"),
        ([{"a": 1}], "struct<.*column of each field"),
        ([timedelta(1)], "duration.*number of seconds"),
        ([time(1)], "time64.*minutes of the day"),
        ([b"a"], "binary.*decode"),
    ],
)
def test_what_no_dtype_takes_is_named_with_a_way_out(cells: list[Any], says: str) -> None:
    found = infer(fold(pa.table({"x": cells, "y": [1]})))
    assert found[0].column is None
    text = to_yaml(found, "the test", 1)
    assert re.search(says, " ".join(re.sub(r"\n *#", "", text).split()))
    assert [c["name"] for c in yaml.safe_load(text)["columns"]] == ["y"]
    with pytest.raises(DataError, match="no column that a dtype takes"):
        to_yaml(found[:1], "the test", 1)


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        (([1], [2.5]), "float"),
        (([1], [True]), "int"),
        (([1], ["2"]), "int"),
        (([1], ["2.5"]), "float"),
        (([1], ["NA"]), "int"),
        (([1.5], ["2"]), "float"),
        (([1], ["x"]), "string"),
        (([None], [1]), "int"),
        (([datetime(2024, 1, 1)], ["2024-01-02"]), "timestamp"),
        (([1.5], ["x"]), None),
        (([datetime(2024, 1, 1)], [5]), None),
        (([datetime(2024, 1, 1)], ["x"]), None),
        (([True], ["x"]), None),
        (([1], [[2]]), None),
    ],
)
def test_parts_of_different_types(parts: tuple[list[Any], list[Any]], dtype: str | None) -> None:
    tables = [pa.table({"x": part, "y": [0]}) for part in parts]
    found = infer(gather(tables))[0]
    assert (found.column.dtype if found.column else None) == dtype
    if found.column is not None:
        from mlops_ray.data.schema import conform

        assert not any(conform(table, [found.column])[1] for table in tables)


def test_a_column_that_some_files_lack_is_optional() -> None:
    found = infer(gather([pa.table({"x": [1], "y": [1]}), pa.table({"y": [2]})]))[0]
    assert found.column == Column(name="x", dtype="int", nullable=True, required=False)
    assert any("absent from the files of 1 row (50.00 %)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (cycled("a", "b"), ("a", "b")),
        (["c", *cycled("a", "b")], None),  # one row is no proof that there is no fourth
        ([f"v{i % 30}" for i in range(N)], None),  # an open list
        (cycled("a"), None),
        (cycled("a", "b", n=8), None),
    ],
)
def test_a_closed_set_is_small_and_saturated(cells: list[str], values: tuple[str, ...] | None) -> None:
    column = one(cells).column
    assert column is not None
    assert column.values == values


@pytest.mark.parametrize(
    ("cells", "key"),
    [
        (list(range(N)), "exact"),
        ([str(i) for i in range(N)], "exact"),
        ([f"k{i}" for i in range(N)], "exact"),
        ([*range(N), 5], None),
        ([*range(N), None], None),
        ([float(i) for i in range(N)], None),
        (["5", " 5"], None),
        (["-5", "5"], None),
        ([1], None),
    ],
)
def test_candidate_keys(cells: list[Any], key: str | None) -> None:
    assert one(cells).key == key


def test_a_key_beyond_the_bound_is_called_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ray.data.evidence.EXACT_KEYS", 100)
    monkeypatch.setattr("mlops_ray.data.inference.EXACT_KEYS", 100)
    assert one(list(range(N))).key == "estimate"
    found = fold(pa.table({"x": range(N)}))
    assert "fewer than 0.07% do (95 % confidence)" in to_yaml(infer(found), "the test", N)
    assert one([*range(N), *range(N)]).key is None


@given(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
)
@settings(max_examples=60)
def test_a_padded_range_holds_the_observed_one(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = padded(low, high)
    assert found.get("min", -np.inf) <= low <= high <= found.get("max", np.inf)
    assert low < 0 or found["min"] >= 0
    assert high > 0 or found["max"] <= 0


# --- difference ---


def changes(before: Any, after: Any) -> list[str]:
    found = diff(fold(pa.table({"x": before})), fold(pa.table({"x": after})))
    return [f"{c.what}: {c.detail}" for c in found]


def test_equal_schemas_do_not_differ() -> None:
    table = samples()
    assert diff(gather([table]), gather([table.slice(300), table.slice(0, 300)])) == ()
    assert diff(gather([table]), gather([table.slice(100, 300)])) == ()  # a smaller sample says nothing


def test_columns_that_came_and_went() -> None:
    found = diff(fold(pa.table({"a": [1], "b": [1]})), fold(pa.table({"c": ["x"], "b": [1]})))
    assert [(c.column, c.what, c.before, c.after) for c in found] == [
        ("c", "added", None, "string"),
        ("a", "removed", "int", None),
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1, 2], [1.0, 2.0], ["dtype: int64 was in the source, double is"]),
        ([1, 2] * 9, ["1", "2"] * 9, ["dtype: int64 was in the source, string is"]),
        ([1, 2] * 9, [1, None] * 9, ["nullability: 0 rows (0 %) were null, 9 rows (50.00 %) are"]),
        ([1, 5] * 9, [1, 5, 7, -1] * 9, ["range: 9 rows (25.00 %) below, 9 rows (25.00 %) above"]),
        ([1, 5] * 9, [2, 4] * 9, []),
        (
            ["a", "b"] * 9,
            ["a", "c", "c"] * 9,
            ["categories: 1 new: 'c' 18; 1 vanished: 'b' 9"],
        ),
        (["a1", "b2", "c3"], ["d4", "e5", "f6"], []),  # names, not categories
        (["a1", "b2", "c3"], ["d4", "e5", "e5"], ["uniqueness: all values were different, now some repeat"]),
        ([datetime(2024, 1, 1)] * 2, [datetime(2024, 1, 2)] * 2, ["range: 2 rows (100 %) above"]),
        ([1.0, None], [None, None], []),
    ],
)
def test_changes_of_a_column(before: list[Any], after: list[Any], expected: list[str]) -> None:
    assert changes(before, after) == expected


def test_presence_changes_when_files_begin_to_lack_a_column() -> None:
    both = pa.table({"x": [1, 1], "y": [1, 1]})
    found = diff(gather([both]), gather([both, both.select(["y"])]))
    assert [(c.column, c.what, c.before, c.after) for c in found] == [("x", "presence", 0, 2)]


def test_no_more_values_are_claimed_than_there_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: the estimate of a key's distinct values passed the number of rows."""
    monkeypatch.setattr("mlops_ray.data.evidence.SAMPLE", 16)
    for seed in range(5):
        found = one([seed + i / N for i in range(N)])
        claimed = re.search(r"about ([\d,]+) distinct", found.notes[0])
        assert claimed is not None
        assert int(claimed[1].replace(",", "")) <= N
