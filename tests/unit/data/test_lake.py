from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from hypothesis import given, settings
from pyarrow.fs import LocalFileSystem

from mlops_ray.data import lake
from mlops_ray.data.content import NO_ROWS, RowHash, row_hash, row_hashes
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


STORED = [
    (pa.array(["a", None, "", "ä" * 40, "12345678", "a"]), [pa.large_string(), pa.string_view()]),
    (pa.array([b"a", None, b"", b"\x00" * 70, b"\x00", b"a"]), [pa.large_binary()]),
    (pa.array([1, None, 3, -4, 5, 1], pa.int8()), [pa.int16(), pa.int64()]),
    (pa.array([0.5, None, 0.0, 1e30, float("nan"), 0.5], pa.float32()), [pa.float64()]),
    (pa.array([1, None, 0, 86_400, 7, 1], pa.timestamp("s", "UTC")), [pa.timestamp("ns", "UTC")]),
    (pa.array([1, None, 0, 365, 7, 1], pa.date32()), [pa.date64()]),
    (pa.array([1, None, 0, 365, 7, 1], pa.time32("s")), [pa.time64("us"), pa.time64("ns")]),
    (pa.array([1, None, 0, 365, 7, 1], pa.duration("s")), [pa.duration("us")]),
    (pa.array([Decimal("1.50"), None, Decimal("-2"), Decimal(0), Decimal(7), Decimal("1.50")], pa.decimal128(12, 2)),
     [pa.decimal128(38, 2), pa.decimal256(50, 2)]),
    (pa.array([True, None, False, True, True, True]), []),
]  # fmt: skip


@pytest.mark.parametrize(("column", "others"), STORED, ids=lambda c: str(getattr(c, "type", "")))
def test_hash_hangs_on_values_and_not_on_their_storage(column, others):
    def of(found: pa.Array | pa.ChunkedArray) -> RowHash:
        return row_hash(pa.table({"x": found}))

    whole = of(column)
    assert of(pa.chunked_array([column.slice(0, 2), column.slice(2, 0), column.slice(2)])) == whole
    assert of(column.slice(1, 3)) + of(column.slice(4)) + of(column.slice(0, 1)) == whole
    for other in others:
        assert of(column.cast(other)) == whole
    encoded = column.dictionary_encode()
    nulls_inside = pa.DictionaryArray.from_arrays(pa.array(range(6), pa.int32()), column)
    for coded in (encoded, nulls_inside, pa.chunked_array([encoded.slice(0, 3), nulls_inside.slice(3)])):
        assert of(coded) == whole
    cells = [of(column.slice(i, 1)).hex() for i in range(6)]
    assert len(set(cells)) == len(set(map(repr, column.to_pylist())))


def test_hash_tells_kinds_of_value_apart():
    one = [pa.array([1]), pa.array([1.0]), pa.array(["1"]), pa.array([b"1"]), pa.array([True])]
    one += [pa.array([1]).cast(t) for t in (pa.timestamp("us"), pa.duration("us"), pa.time64("us"))]
    one += [pa.array([Decimal(1)], pa.decimal128(5, scale)) for scale in (0, 2)]
    assert len({row_hash(pa.table({"x": x})).hex() for x in one}) == len(one)


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_hash_tells_texts_apart_whatever_their_length(texts):
    cells = [row_hash(pa.table({"x": pa.array([text])})).hex() for text in texts]
    assert len(set(cells)) == len(set(texts))
    together = sum((row_hash(pa.table({"x": pa.array([text])})) for text in texts), RowHash())
    assert row_hash(pa.table({"x": pa.array(texts)})) == together


def test_hash_of_more_rows_than_are_hashed_together():
    table = pa.table({"x": range(20_001), "s": [f"text {i}" for i in range(20_001)]})
    lanes = row_hashes(table)
    one_by_one = [row_hashes(table.slice(i, 1)) for i in (0, 8191, 8192, 16_384, 20_000)]
    for (a, b), i in zip(one_by_one, (0, 8191, 8192, 16_384, 20_000), strict=True):
        assert (lanes[0][i], lanes[1][i]) == (a[0], b[0])
    assert len(np.unique(lanes[0])) == len(np.unique(lanes[1])) == 20_001


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
    assert all(row_hash(lake.read(v)).hex() == v.content_hash for v in made)


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


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path):
    uri = str(tmp_path)
    version = put(uri, pa.table({"x": [1]}), "one")
    commit = tmp_path / f"_delta_log/{version.version:020d}.json"
    for text in (commit.read_text().replace("n_bytes", "n_bites"), commit.read_text()[:40]):
        commit.write_text(text)
        with pytest.raises(DataError, match="commit 1 cannot be read"):
            lake.dataset(uri, 1)


def test_a_version_without_rows_says_so(tmp_path: Path):
    version = lake.commit(str(tmp_path), [], pa.schema({"x": pa.int64()}), NO_ROWS.hex(), {})
    with pytest.raises(DataError, match="holds no rows"):
        lake.read(version)


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


APPENDER = """
import sys, os
import pyarrow as pa
from mlops_ray.data import lake
uri, app, start, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
real = lake.appending.write_deltalake
def told(*args, **kwargs):
    if "stall" in sys.argv:
        print("about to commit", flush=True)
        sys.stdin.readline()
    return real(*args, **kwargs)
lake.appending.write_deltalake = told
for i in range(start, stop):
    rows = pa.table({"day": [f"2013-01-0{1 + i % 3}"] * 2, "x": [i, i]})
    print(int(lake.append_once(uri, rows, app, i, ("day",))), flush=True)
"""


def appender(uri: str, app: str, start: int, stop: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDER, uri, app, str(start), str(stop), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def numbers(uri: str) -> list[int]:
    return sorted(lake.scan(uri, "2013-01-01", "2013-12-31", ["x"])["x"].to_pylist())


@pytest.mark.parametrize("meanwhile", ["the same", "more", "compaction", "a deletion"])
def test_a_writer_that_was_stopped_before_its_commit_adds_nothing_twice(tmp_path: Path, meanwhile: str):
    """Between looking its number up and committing, with a real process: whatever has happened since is seen."""
    uri = str(tmp_path / "log")
    lake.append_once(uri, pa.table({"day": ["2013-01-01"] * 2, "x": [0, 0]}), "spool", 0, ("day",))
    lake.append_once(uri, pa.table({"day": ["2013-01-01"] * 2, "x": [1, 1]}), "spool", 1, ("day",))
    stalled = appender(uri, "spool", 2, 3, "stall")
    assert stalled.stdout
    assert stalled.stdout.readline() == "about to commit\n"
    os.kill(stalled.pid, signal.SIGSTOP)
    if meanwhile in ("the same", "more"):
        other = appender(uri, "spool", 2, 3 if meanwhile == "the same" else 5)
        assert other.communicate(timeout=60)[0].split() == ["1"] * (1 if meanwhile == "the same" else 3)
    elif meanwhile == "compaction":
        DeltaTable(uri).optimize.compact()
    else:
        DeltaTable(uri).delete("x = 0")
    os.kill(stalled.pid, signal.SIGCONT)
    said = stalled.communicate("\n\n\n", timeout=60)[0].split("\n")
    expected = {"the same": [0, 1, 2], "more": [0, 1, 2, 3, 4], "compaction": [0, 1, 2], "a deletion": [1, 2]}[
        meanwhile
    ]
    assert numbers(uri) == sorted(expected * 2)
    # It wrote nothing, or looked again and found that its number was still free.
    assert said[-2] == ("0" if meanwhile in ("the same", "more") else "1")
    assert ("about to commit" in said) == (said[-2] == "1")


def test_writers_of_one_name_beside_others_and_maintenance_write_each_number_once(tmp_path: Path):
    uri = str(tmp_path / "log")
    writers = [appender(uri, "spool", 0, 12) for _ in range(2)] + [appender(uri, "other", 100, 112)]
    merged = 0
    while any(writer.poll() is None for writer in writers):
        if lake.exists(uri):
            merged += lake.tidy(uri, before_day=None, litter_s=3600)["merged"]
    written = [writer.communicate()[0].split() for writer in writers]
    assert [int(a) + int(b) for a, b in zip(written[0], written[1], strict=True)] == [1] * 12
    assert written[2] == ["1"] * 12
    assert numbers(uri) == sorted([*range(12), *range(100, 112)] * 2)


def test_tidying_merges_deletes_and_removes_and_forgets_no_number(tmp_path: Path):
    uri = str(tmp_path / "log")
    for i in range(30):
        day = f"2013-01-{1 + i % 3:02d}"
        lake.append_once(uri, pa.table({"day": [day], "x": [i]}), "spool", i, ("day",))
    litter = tmp_path / "log/day=2013-01-03/part-of-a-writer-that-died.parquet"
    litter.write_bytes(b"?")
    os.utime(litter, (1, 1))
    done = lake.tidy(uri, before_day="2013-01-02", litter_s=3600)
    assert done == {"days": 1, "merged": 20, "removed": 1}  # what was merged or deleted rests for an hour
    assert not litter.exists()
    assert numbers(uri) == sorted(i for i in range(30) if i % 3)
    assert len(DeltaTable(uri).file_uris()) == 2
    assert lake.committed(uri, "spool") == 29
    assert not lake.append_once(uri, pa.table({"day": ["2013-01-03"], "x": [99]}), "spool", 29, ("day",))
    assert lake.tidy(uri, before_day="2013-01-02", litter_s=3600) == {"days": 0, "merged": 0, "removed": 0}
    assert lake.tidy(uri, before_day=None, litter_s=0)["removed"] == 30
    assert numbers(uri) == sorted(i for i in range(30) if i % 3)


def test_columns_that_an_older_log_lacks_are_null(tmp_path: Path):
    uri = str(tmp_path / "log")
    lake.append_once(uri, pa.table({"day": ["2013-01-01"], "x": [1]}), "a", 0, ("day",))
    wanted = pa.schema([("key", pa.string()), ("x", pa.int64())])
    found = lake.scan(uri, "2013-01-01", "2013-01-01", wanted)
    assert found.schema == wanted
    assert found.to_pylist() == [{"key": None, "x": 1}]


# --- finding, keeping, removing ---


def test_a_version_is_found_without_reading_the_log(tmp_path: Path, monkeypatch):
    uri = str(tmp_path / "data")
    made = [put(uri, pa.table({"x": [i]}), f"run-{i}") for i in range(30)]
    looks: list[int] = []
    entry = lake.log.commit_at
    monkeypatch.setattr(lake.log, "commit_at", lambda uri, version: looks.append(version) or entry(uri, version))
    assert lake.find(uri, made[3].content_hash) == made[3]
    assert lake.find(uri, "?") is None
    assert lake.latest(uri) == made[-1]
    assert lake.dataset(uri, made[7].version) == made[7]
    assert looks == [made[3].version, made[-1].version, made[7].version]


def test_a_number_that_another_writer_took_is_looked_up(tmp_path: Path):
    uri = str(tmp_path / "data")
    first, second = put(uri, pa.table({"x": [1]}), "one"), put(uri, pa.table({"x": [2]}), "two")
    table = DeltaTable(uri)
    wrong = CommitProperties(app_transactions=[Transaction(first.content_hash, second.version)])
    schema = Schema.from_arrow(pa.schema({"x": pa.int64()}))
    table.create_write_transaction([], "append", schema, commit_properties=wrong)
    assert lake.find(uri, first.content_hash) == first


def test_the_same_content_is_committed_once(tmp_path: Path):
    uri = str(tmp_path / "data")
    table = pa.table({"x": [1, 2]})
    first = put(uri, table, "one")
    assert put(uri, table.take([1, 0]), "two") == first
    assert [v.version for v in lake.versions(uri)] == [first.version]


def test_a_file_that_went_before_its_commit_is_named(tmp_path: Path):
    uri, table = str(tmp_path), pa.table({"x": [1]})
    file = lake.write_file(uri, "one/part.parquet", table)
    (tmp_path / file.path).unlink()
    with pytest.raises(DataError, match=r"one/part\.parquet was removed"):
        lake.commit(uri, [file], table.schema, "?", {})
    assert lake.latest(uri) is None


def test_what_is_kept_beside_a_version_is_neither_rows_nor_litter(tmp_path: Path):
    uri, table = str(tmp_path / "data"), pa.table({"x": [1]})
    content = row_hash(table).hex()
    assert lake.read_sidecar(uri, content, "profile.json") is None
    lake.write_sidecar(uri, content, "profile.json", b"{}")
    lake.write_sidecar(uri, content, "profile.json", b"{1}")
    lake.write_sidecar(uri, content, "facts.bin", bytes(100))
    version = put(uri, table, "one")
    assert lake.sidecars(uri, content) == {"profile.json": 3, "facts.bin": 100}
    DeltaTable(uri).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    assert lake.read_sidecar(uri, content, "profile.json") == b"{1}"
    assert DeltaTable(uri).to_pyarrow_table().num_rows == 1
    assert lake.read(version).num_rows == 1
    assert not lake.garbage(uri, now=time.time() + 1e6, older_than_s=1).files


def test_only_what_died_is_garbage_and_only_after_a_rest(tmp_path: Path):
    uri, now = str(tmp_path / "data"), time.time()
    assert not lake.garbage(uri, now=now, older_than_s=0).files
    version = put(uri, pa.table({"x": [1]}), "one")
    lake.write_file(uri, "one/stray.parquet", pa.table({"x": [9]}))
    lake.write_file(uri, "died/part.parquet", pa.table({"x": [9]}))
    lake.write_sidecar(uri, "nobody", "profile.json", b"{}")
    (tmp_path / "data/died/half.parquet").write_bytes(b"PAR1")
    (tmp_path / "data/died/half.parquet.keys").write_bytes(b"")
    (tmp_path / "data/died/.gitkeep").write_bytes(b"")  # not ours
    for name in ("_commit_1.json.tmp", "00000000000000000002.json#1"):
        (tmp_path / "data/_delta_log" / name).write_bytes(b"{")
    assert not lake.garbage(uri, now=now, older_than_s=3600).files
    found = lake.garbage(uri, now=now + 7200, older_than_s=3600)
    assert found.files == (
        "_delta_log/00000000000000000002.json#1",
        "_delta_log/_commit_1.json.tmp",
        "_mlops_ray/nobody/profile.json",
        "died/half.parquet",
        "died/half.parquet.keys",
        "died/part.parquet",
        "one/stray.parquet",
    )
    lake.collect(found, now=now)
    assert lake.read(version).to_pydict() == {"x": [1]}
    assert not (tmp_path / "data/_mlops_ray/nobody").exists()
    assert not lake.garbage(uri, now=now + 7200, older_than_s=3600).files
    # A run that still writes keeps its first files, however old.
    lake.write_file(uri, "long/first.parquet", pa.table({"x": [9]}))
    os.utime(tmp_path / "data/long/first.parquet", (now - 1e6, now - 1e6))
    lake.write_file(uri, "long/second.parquet", pa.table({"x": [9]}))
    assert not lake.garbage(uri, now=now, older_than_s=3600).files


def test_old_versions_go_but_not_those_in_use(tmp_path: Path):
    uri = str(tmp_path / "data")
    made = []
    for i in range(5):
        lake.write_sidecar(uri, row_hash(pa.table({"x": [i]})).hex(), "profile.json", b"{}")
        made.append(put(uri, pa.table({"x": [i]}), f"run-{i}"))
    later = made[-1].committed + 100
    ask = {"now": later, "older_than_s": 10.0}
    found = lake.garbage(uri, **ask, keep=2, in_use={made[1].content_hash: "model v3 was trained on it"})
    assert found.versions == (made[2], made[0])
    assert found.kept == ((made[1], "model v3 was trained on it"),)
    assert len(found.files) == 4
    assert lake.garbage(uri, now=later, older_than_s=1e6, keep=2).versions == ()
    assert lake.garbage(uri, **ask, before=made[2].committed).versions == (made[1], made[0])
    assert lake.garbage(uri, **ask, keep=4, before=later).versions == (made[0],)
    assert [why for _, why in lake.garbage(uri, **ask, before=later).kept] == ["it is the newest"]
    lake.collect(found, now=later)
    assert list(lake.versions(uri)) == [made[4], made[3], made[1]]
    for version in found.versions:
        assert lake.find(uri, version.content_hash) is None
        for look in (lambda v: lake.dataset(uri, v.version), lake.read, lake.files):
            with pytest.raises(DataError, match=r"was removed on .* by `mlops-ray data gc`"):
                look(version)
    assert lake.read(made[1]).to_pydict() == {"x": [1]}
    again = put(uri, pa.table({"x": [2]}), "again")
    assert again.version > made[4].version
    assert lake.find(uri, again.content_hash) == again
    assert lake.read(again).to_pydict() == {"x": [2]}


def test_a_collection_that_was_killed_is_finished_by_the_next(tmp_path: Path, monkeypatch):
    uri = str(tmp_path / "data")
    made = [put(uri, pa.table({"x": [i]}), f"run-{i}") for i in range(3)]
    later = made[-1].committed + 100
    found = lake.garbage(uri, now=later, older_than_s=10, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(lake.cleaning, "filesystem_of", lambda uri: (Dying(), uri))
        with pytest.raises(KeyboardInterrupt):
            lake.collect(found, now=later)
    assert list(lake.versions(uri)) == made[-1:]
    with pytest.raises(DataError, match="was removed"):
        lake.read(made[0])
    rest = lake.garbage(uri, now=later, older_than_s=10)
    assert set(rest.files) == {"run-0/part.parquet", "run-1/part.parquet"}
    lake.collect(rest, now=later)
    assert not lake.garbage(uri, now=later, older_than_s=10).files


class Dying:
    """The local file system of a process that dies at its first deletion."""

    def __getattr__(self, name: str) -> object:
        if name == "delete_file":
            raise KeyboardInterrupt
        return getattr(LocalFileSystem(), name)


def test_what_is_the_newest_by_now_is_not_removed(tmp_path: Path):
    uri = str(tmp_path / "data")
    made = [put(uri, pa.table({"x": [i]}), f"run-{i}") for i in range(2)]
    stale = replace(lake.garbage(uri, now=0, older_than_s=0), versions=(made[-1],))
    with pytest.raises(DataError, match="is the newest"):
        lake.collect(stale, now=0)
    assert lake.latest(uri) == made[-1]


def test_a_log_that_was_cut_off_names_no_garbage(tmp_path: Path):
    uri = str(tmp_path / "data")
    for i in range(3):
        put(uri, pa.table({"x": [i]}), f"run-{i}")
    DeltaTable(uri).create_checkpoint()
    (tmp_path / "data/_delta_log/00000000000000000001.json").unlink()
    with pytest.raises(DataError, match="its log begins at 2"):
        lake.garbage(uri, now=time.time() + 1e6, older_than_s=0)
