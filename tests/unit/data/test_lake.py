from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given

from mlops_ray.data import lake
from mlops_ray.data.lake import RowHash, row_hash
from mlops_ray.errors import DataError

cells = st.tuples(
    st.none() | st.floats(width=64),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(max_size=4),
    st.none() | st.booleans(),
    st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
SCHEMA = pa.schema(
    [
        ("f", pa.float64()),
        ("i", pa.int64()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us", tz="UTC")),
    ]
)


def rows(listed: list[tuple]) -> pa.Table:
    return pa.table([list(c) for c in zip(*listed, strict=True)] if listed else [[]] * 5, schema=SCHEMA)


@given(st.lists(cells, max_size=12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_hash_is_of_the_bag_of_rows(listed, cut, random):
    whole = row_hash(rows(listed))
    shuffled = list(listed)
    random.shuffle(shuffled)
    assert row_hash(rows(shuffled)) == whole
    assert row_hash(rows(listed[:cut])) + row_hash(rows(listed[cut:])) == whole
    assert row_hash(rows(listed).select(["t", "s", "f", "b", "i"])) == whole
    assert RowHash() + whole == whole
    assert len(whole.hex()) == 48


@given(st.lists(cells, min_size=1, max_size=8), st.integers(0, 7), st.integers(0, 4), cells)
def test_hash_sees_any_changed_cell_and_doubled_row(listed, at, column, other):
    at %= len(listed)
    changed = [list(r) for r in listed]
    changed[at][column] = other[column]
    before, after = rows(listed), rows([tuple(r) for r in changed])
    same = repr(before.slice(at, 1).to_pylist()) == repr(after.slice(at, 1).to_pylist())  # NaN equals NaN here
    assert (row_hash(before) == row_hash(after)) == same or column == 0
    assert row_hash(rows([*listed, listed[at]])) != row_hash(before)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (pa.array([None], pa.float64()), pa.array([0.0]), False),
        (pa.array([None], pa.string()), pa.array([""]), False),
        (pa.array([None], pa.bool_()), pa.array([False]), False),
        (pa.array([0.0]), pa.array([-0.0]), True),
        (pa.array([np.nan]), pa.array([-np.nan]), True),
        (pa.array([np.nan]), pa.array([None], pa.float64()), False),
        (pa.array([1]), pa.array([1.0]), False),
        (pa.array(["x"]), pa.array(["x"], pa.large_string()), True),
        (pa.array(["x"]), pa.array(["x"]).dictionary_encode(), True),
        (pa.array([1], pa.timestamp("s", "UTC")), pa.array([1_000_000], pa.timestamp("us", "UTC")), True),
    ],
)
def test_hash_of_special_values(a, b, equal):
    assert (row_hash(pa.table({"x": a})) == row_hash(pa.table({"x": b}))) is equal


def test_hash_is_stable_over_releases():
    found = row_hash(rows([(1.5, 2, "x", True, datetime(2013, 1, 1, tzinfo=UTC)), (None, None, None, None, None)]))
    assert found.hex() == "c98cf2049192930a8354ef3e74ef35dc0000000000000002"


def test_values_that_swap_columns_or_rows_change_the_hash():
    a = pa.table({"x": [1, 2], "y": [2, 1]})
    assert row_hash(a) != row_hash(pa.table({"x": [1, 2], "y": [1, 2]}))
    assert row_hash(a) != row_hash(pa.table({"y": [1, 3], "x": [2, 0]}))
    assert row_hash(a) != row_hash(a.rename_columns(["x", "z"]))


def test_refuses_dtypes_that_it_cannot_hash():
    with pytest.raises(DataError, match="no content hash"):
        row_hash(pa.table({"x": [[1]]}))


def put(uri: str, table: pa.Table, name: str, **how: bool) -> lake.DatasetVersion:
    file = lake.write_file(uri, f"{name}/part.parquet", table)
    return lake.commit(uri, [file], table.schema, row_hash(table).hex(), {"from": name}, **how)


def test_versions_are_found_and_read_exactly(tmp_path: Path):
    uri = str(tmp_path / "data")
    assert lake.latest(uri) is None
    assert lake.find(uri, "?") is None
    first, second = pa.table({"x": [1, 2], "s": ["a", None]}), pa.table({"x": [3], "s": ["c"]})
    a, b = put(uri, first, "one"), put(uri, second, "two")
    assert (a.version, a.n_rows, a.lineage) == (1, 2, {"from": "one"})
    assert lake.latest(uri) == b
    assert lake.dataset(uri, 1) == a == lake.find(uri, a.content_hash)
    assert lake.read(a).equals(first)
    assert lake.read(b, ["s"]).to_pydict() == {"s": ["c"]}
    assert row_hash(lake.read(a)).hex() == a.content_hash
    assert lake.files(b) == ["two/part.parquet"]
    with pytest.raises(DataError, match="no dataset version 7"):
        lake.dataset(uri, 7)


def test_versions_stay_when_the_log_is_checkpointed(tmp_path: Path):
    uri = str(tmp_path / "data")
    made = [put(uri, pa.table({"x": [i]}), f"run-{i}") for i in range(4)]
    table = DeltaTable(uri)
    table.create_checkpoint()
    table.cleanup_metadata()
    made += [put(uri, pa.table({"x": [i]}), f"run-{i}") for i in range(4, 6)]
    assert [lake.find(uri, v.content_hash) for v in made] == made
    assert [lake.read(v).to_pydict() for v in made] == [{"x": [i]} for i in range(6)]


def test_writers_that_commit_at_once_leave_whole_versions(tmp_path: Path):
    uri, start, made = str(tmp_path / "data"), threading.Barrier(4), []

    def write(i: int) -> None:
        start.wait()
        with contextlib.suppress(DataError):  # told to run again
            made.append(put(uri, pa.table({"x": [i]}), f"run-{i}"))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made
    assert len({v.version for v in made}) == len(made)
    assert all(lake.row_hash(lake.read(v)).hex() == v.content_hash for v in made)


def test_an_appended_commit_keeps_what_was_there(tmp_path: Path):
    uri = str(tmp_path / "quarantine")
    put(uri, pa.table({"x": [1]}), "one", append=True)
    put(uri, pa.table({"x": [2]}), "two", append=True)
    assert lake.files(lake.dataset(uri, 2)) == ["one/part.parquet", "two/part.parquet"]


def test_removes_only_what_no_commit_names(tmp_path: Path):
    uri = str(tmp_path / "data")
    version = put(uri, pa.table({"x": [1]}), "one")
    lake.write_file(uri, "one/stray.parquet", pa.table({"x": [9]}))
    lake.write_file(uri, "two/part.parquet", pa.table({"x": [9]}))
    put(uri, pa.table({"x": [5]}), "three")
    for folder in ("one", "two", "never"):
        lake.remove_uncommitted(uri, folder)
    assert lake.read(version).to_pydict() == {"x": [1]}
    assert not (tmp_path / "data/one/stray.parquet").exists()
    assert not (tmp_path / "data/two").exists()


def test_a_lost_file_is_named(tmp_path: Path):
    version = put(str(tmp_path), pa.table({"x": [1]}), "one")
    (tmp_path / "one/part.parquet").unlink()
    with pytest.raises(DataError, match="lost a file"):
        lake.read(version)


def test_append_once_writes_each_number_once(tmp_path: Path):
    uri = str(tmp_path / "log")
    batch = pa.table({"day": ["2013-01-01", "2013-01-02"], "x": [1, 2]})
    assert lake.append_once(uri, batch, "spool-a", 0, ("day",))
    assert not lake.append_once(uri, batch, "spool-a", 0, ("day",))
    assert lake.append_once(uri, batch, "spool-b", 0, ("day",))
    assert lake.append_once(uri, batch, "spool-a", 5, ("day",))
    assert not lake.append_once(uri, batch, "spool-a", 3, ("day",))
    assert lake.scan(uri, "2013-01-01", "2013-12-31", ["x"]).num_rows == 6


def test_new_columns_are_added_to_a_log(tmp_path: Path):
    uri = str(tmp_path / "log")
    lake.append_once(uri, pa.table({"day": ["2013-01-01"], "x": [1]}), "a", 0, ("day",))
    lake.append_once(uri, pa.table({"day": ["2013-01-01"], "x": [2], "y": [3.0]}), "a", 1, ("day",))
    found = lake.scan(uri, "2013-01-01", "2013-01-01", ["x", "y"]).sort_by("x")
    assert found.to_pydict() == {"x": [1, 2], "y": [None, 3.0]}


def test_scan_reads_only_the_days_asked_for(tmp_path: Path):
    uri = str(tmp_path / "log")
    schema = pa.schema([("x", pa.int64()), ("day", pa.string())])
    assert lake.scan(uri, "2013-01-01", "2013-01-02", schema).schema == schema
    assert lake.scan(uri, "2013-01-01", "2013-01-02", ["x"]).column_names == ["x"]
    batch = pa.table({"day": [f"2013-01-0{i}" for i in range(1, 6)], "x": list(range(1, 6))})
    lake.append_once(uri, batch, "a", 0, ("day",))
    for file in (tmp_path / "log/day=2013-01-05").iterdir():
        file.write_bytes(b"not Parquet: opening it would fail")
    found = lake.scan(uri, "2013-01-02", "2013-01-03", schema)
    assert found.schema == schema
    assert sorted(found["x"].to_pylist()) == [2, 3]


def test_writers_that_create_a_log_at_once_lose_nothing(tmp_path: Path):
    uri, start, failed = str(tmp_path / "log"), threading.Barrier(4), []

    def write(i: int) -> None:
        start.wait()
        try:
            lake.append_once(uri, pa.table({"day": ["2013-01-01"], "x": [i]}), f"spool-{i}", 0, ("day",))
        except Exception as exc:  # noqa: BLE001 - reported below, in the test's own thread
            failed.append(exc)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sorted(lake.scan(uri, "2013-01-01", "2013-01-01", ["x"])["x"].to_pylist()) == [0, 1, 2, 3]
