from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.data import changes, lake
from mlops_ray.data.changes import compare
from mlops_ray.data.content import row_hash
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.errors import DataError


def put(uri: str, *files: pa.Table) -> DatasetVersion:
    run, whole = uuid.uuid4().hex, pa.concat_tables(files)
    written = [lake.write_file(uri, f"{run}/{i}.parquet", table) for i, table in enumerate(files)]
    return lake.commit(uri, written, whole.schema, row_hash(whole).hex(), {})


rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 3)), min_size=1, max_size=14)


@given(rows, rows, st.integers(0, 14), st.sampled_from([1, 7, 1000]))
@settings(max_examples=25, deadline=None)
def test_counts_are_those_of_two_bags_of_rows(left, right, cut, rows_at_once):
    def table(listed: list[tuple[str, int | None]]) -> pa.Table:
        return pa.table(
            {"k": pa.array([k for k, _ in listed], pa.string()), "x": pa.array([x for _, x in listed], pa.int64())}
        )

    with tempfile.TemporaryDirectory() as folder:
        before = put(folder, table(left[:cut]), table(left[cut:]))
        after = put(folder, table(right))
        found = compare(before, after, ["k"], n_examples=3, rows_at_once=rows_at_once)
        whole = compare(before, after, ["absent"], rows_at_once=rows_at_once)
    a, b = Counter(left), Counter(right)
    gone, come = Counter(k for k, _ in (a - b).elements()), Counter(k for k, _ in (b - a).elements())
    changed = gone & come
    assert found.n_changed == changed.total()
    assert (found.n_removed, found.n_added) == ((gone - changed).total(), (come - changed).total())
    assert found.n_same == (a & b).total()
    assert (whole.key, whole.n_changed, whole.n_same) == ((), 0, found.n_same)
    assert (whole.n_removed, whole.n_added) == ((a - b).total(), (b - a).total())
    assert all(row in [{"k": k, "x": x} for k, x in a - b] for row in found.removed)
    assert all(row in [{"k": k, "x": x} for k, x in b - a] for row in found.added)
    for old, new in found.changed:
        assert old["k"] == new["k"]
        assert (old["k"], old["x"]) in a - b
        assert (new["k"], new["x"]) in b - a
    assert len(found.removed) == min(3, len(gone - changed))
    assert len(found.changed) == min(3, len(changed))


def test_columns_that_came_went_and_changed_are_said_and_not_compared(tmp_path: Path):
    before = put(str(tmp_path), pa.table({"k": ["a", "b"], "x": [1, 2], "old": [0, 0]}))
    after = put(str(tmp_path), pa.table({"k": ["a", "b"], "x": [1.0, 2.0], "new": ["", ""]}))
    found = compare(before, after, ["k"])
    assert found.columns_added == {"new": "string"}
    assert found.columns_removed == {"old": "int64"}
    assert found.columns_retyped == {"x": ("int64", "double")}
    assert (found.n_same, found.n_added, found.n_removed, found.n_changed) == (2, 0, 0, 0)


def test_examples_are_the_rows_themselves_from_any_file_and_row_group(tmp_path: Path):
    first = pa.table({"k": range(1000), "x": [0.5] * 1000})
    before = put(str(tmp_path), first.slice(0, 300), first.slice(300))
    writer = lake.FileWriter(str(tmp_path), "run/part.parquet")
    for start in (0, 400, 900):
        piece = first.slice(start, 250)
        writer.write(piece.set_column(1, "x", pa.array([0.5 + (k == 920) for k in piece["k"].to_pylist()])))
    file = writer.close()
    assert file is not None
    after = lake.commit(str(tmp_path), [file], first.schema, "other", {})
    found = compare(before, after, ["k"], n_examples=2, rows_at_once=100)
    assert (found.n_added, found.n_removed, found.n_changed, found.n_same) == (0, 400, 1, 599)
    assert found.changed == (({"k": 920, "x": 0.5}, {"k": 920, "x": 1.5}),)
    assert all(250 <= row["k"] < 400 or 650 <= row["k"] < 900 for row in found.removed)


def test_columns_bounds_come_from_the_files_footers(tmp_path: Path):
    day = [datetime(2026, 1, d, tzinfo=UTC) for d in (1, 2, 3)]
    one = pa.table({"x": [3.5, None, -1.0], "s": ["b", "a", None], "t": pa.array(day, pa.timestamp("us", "UTC"))})
    version = put(str(tmp_path), one, one.slice(0, 1))
    found = changes.column_ranges(version)
    assert found["x"] == {"dtype": "double", "nulls": 1, "min": -1.0, "max": 3.5}
    assert found["s"] == {"dtype": "string", "nulls": 1, "min": "a", "max": "b"}
    assert (found["t"]["min"], found["t"]["max"]) == (day[0], day[2])


def test_a_removed_version_cannot_be_compared(tmp_path: Path):
    before, after = put(str(tmp_path), pa.table({"k": [1]})), put(str(tmp_path), pa.table({"k": [2]}))
    later = after.committed + 100
    lake.collect(lake.garbage(str(tmp_path), now=later, older_than_s=10, keep=1), now=later)
    with pytest.raises(DataError, match="version 1 was removed"):
        compare(before, after, ["k"])
