"""Sources without Ray: files as shards, text cell by cell, pages of an API, queries, joins, ranges of time."""

from __future__ import annotations

import gzip
import json
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.config import Column, Paging, Source, TimeRange
from mlops_ray.data.sources import joins, on_http, on_sql, pages, text_files
from mlops_ray.data.sources import shards as sources
from mlops_ray.errors import DataError
from tests.postgres import Postgres

START = datetime(2024, 1, 1, tzinfo=UTC)


def rows(n: int = 100) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(n)),
            "at": pa.array([START + timedelta(hours=i) for i in range(n)], pa.timestamp("us", "UTC")),
            "x": pa.array([None if i % 7 == 0 else i / 3 for i in range(n)], pa.float64()),
            "c": pa.array([["a", "b", None][i % 3] for i in range(n)]),
        }
    )


def whole(tables: Iterator[pa.Table]) -> pa.Table:
    return pa.concat_tables(list(tables), promote_options="permissive").combine_chunks()


def read(shards: list[Any], names: list[str] | None = None) -> pa.Table:
    return whole(table for shard in shards for table in sources.read(pickle.loads(pickle.dumps(shard)), names))


def text_shards(kind: str, path: Path, **options: Any) -> list[sources.TextShard]:
    return [sources.TextShard(kind, file, options) for file in sources.find_files([str(path)], kind)]


# --- which files ---


def test_paths_folders_and_patterns_mean_the_same_files(tmp_path: Path) -> None:
    for name in ("b/2.parquet", "a.parquet", "b/c/3.parquet", "_hidden/9.parquet", "b/.part.parquet", "b/note.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(1), file)

    def names(*paths: str) -> list[str]:
        found = sources.find_files([str(tmp_path / path) for path in paths], "parquet")
        return [str(Path(file.uri).relative_to(tmp_path)) for file in found]

    every = ["a.parquet", "b/2.parquet", "b/c/3.parquet"]
    assert names(".") == names("**/*.parquet") == every
    assert names("b/*.parquet") == ["b/2.parquet"]
    assert names("b/**") == ["b/2.parquet", "b/c/3.parquet", "b/note.txt"]
    assert names("b/[0-2].parquet", "a.parquet") == ["b/2.parquet", "a.parquet"]
    assert names("b/[!0-1].parquet") == ["b/2.parquet"]
    address = f"file://{tmp_path}/b"
    assert [f.uri for f in sources.find_files([address], "parquet")] == [
        f"{address}/2.parquet",
        f"{address}/c/3.parquet",
    ]
    assert [f.uri for f in sources.find_files([f"{address}/2*"], "parquet")] == [f"{address}/2.parquet"]


@pytest.mark.parametrize(
    ("path", "says"),
    [("nowhere", "nothing at this place"), ("empty", "holds no .parquet file"), ("x*", "no file fits this pattern")],
)
def test_a_place_without_files_is_named(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=says) as failure:
        sources.find_files([str(tmp_path / path)], "parquet")
    assert str(tmp_path / path) in str(failure.value)


# --- Parquet and Delta ---


def test_shards_of_parquet_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS_PER_SHARD", 30)
    monkeypatch.setattr(sources, "ROWS_PER_BATCH", 7)
    for name, part in (("1", rows(100)), ("2", rows(5)), ("3", rows(0))):
        pq.write_table(part, tmp_path / f"{name}.parquet", row_group_size=10)
    shards = sources.parquet_shards(sources.find_files([str(tmp_path)], "parquet"), None)
    assert [s.n_rows for s in shards] == [30, 30, 30, 10, 5, 0]
    assert read(shards).equals(pa.concat_tables([rows(100), rows(5)]).combine_chunks())
    assert max(t.num_rows for s in shards for t in sources.read(s, None)) == 7
    assert read(shards, ["x", "nobody", "id"]).column_names == ["x", "id"]


def test_folders_name_columns(tmp_path: Path) -> None:
    for year in ("2013", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / f"year={year}"
        folder.mkdir()
        pq.write_table(rows(2), folder / "0.parquet")
    found = read(sources.parquet_shards(sources.find_files([str(tmp_path)], "parquet"), None))
    assert found["year"].to_pylist() == ["2013", "2013", None, None]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_folders_name_values_of_any_signs(tmp_path: Path, scheme: str) -> None:
    values = ["50%", "a b", "x=y", "ü/x"]
    ds.write_dataset(
        pa.table({"id": range(4), "c": values}),
        tmp_path,
        format="parquet",
        partitioning=["c"],
        partitioning_flavor="hive",
    )
    found = read(sources.parquet_shards(sources.find_files([f"{scheme}{tmp_path}"], "parquet"), None))
    assert sorted(found["c"].to_pylist()) == values


def test_a_file_that_several_paths_mean_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "y=1"
    folder.mkdir()
    for name in ("b", "a"):
        pq.write_table(rows(3), folder / f"{name}.parquet")
    b, a = f"{folder}/b.parquet", f"{folder}/a.parquet"
    paths = [b, f"{tmp_path}/y=1/../y=1/b.parquet", str(folder), f"{tmp_path}/**/*.parquet", f"file://{a}"]
    found = sources.find_files(paths, "parquet")
    assert [file.uri for file in found] == [b, a]
    assert {file.fixed for file in found} == {(("y", "1"),)}  # as the path that knows the folder says


def test_a_name_with_brackets_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "w[1].csv").write_text("a\n1\n")
    (tmp_path / "w1.csv").write_text("a\n2\n")
    (tmp_path / "d[2]").mkdir()
    (tmp_path / "d[2]" / "0.csv").write_text("a\n3\n")
    assert read(text_shards("csv", tmp_path / "w[1].csv"))["a"].to_pylist() == ["1"]
    assert read(text_shards("csv", tmp_path / "w[1-2].csv"))["a"].to_pylist() == ["2"]
    assert read(text_shards("csv", tmp_path / "d[2]"))["a"].to_pylist() == ["3"]
    assert sources.described(str(tmp_path / "w[1].csv")).kind == "csv"


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(rows(2000), tmp_path / "0.parquet")
    content = (tmp_path / "0.parquet").read_bytes()
    for part in (content[: len(content) // 2], b"", b"id,x\n1,2\n"):
        (tmp_path / "0.parquet").write_bytes(part)
        with pytest.raises(DataError, match=r"0\.parquet: is no whole Parquet file: .*copy it again"):
            sources.parquet_shards(sources.find_files([str(tmp_path)], "parquet"), None)
    broken = bytearray(content)
    broken[100:400] = b"\xff" * 300  # its footer is sound, a page is not
    (tmp_path / "0.parquet").write_bytes(broken)
    shards = sources.parquet_shards(sources.find_files([str(tmp_path)], "parquet"), None)
    with pytest.raises(DataError, match=r"0\.parquet: cannot be read: "):
        read(shards)


def test_delta_gives_back_partitions_versions_and_added_columns(tmp_path: Path) -> None:
    first, second = rows(60), rows(10).append_column("extra", pa.array(range(10)))
    write_deltalake(tmp_path, first, partition_by=["c"])
    write_deltalake(tmp_path, second, mode="append", schema_mode="merge")
    table = DeltaTable(tmp_path)
    found = read(sources.delta_shards(str(tmp_path), {}))
    expected = table.to_pyarrow_table()
    order = [("id", "ascending"), ("extra", "ascending")]
    assert found.select(expected.column_names).sort_by(order).equals(expected.sort_by(order).combine_chunks())
    old = sources.delta_shards(str(tmp_path), {"version": 0})
    assert sum(s.n_rows for s in old) == 60
    assert sorted(read(old, ["c", "id"])["id"].to_pylist()) == list(range(60))
    table.delete("id >= 0")
    assert read(sources.delta_shards(str(tmp_path), {})).num_rows == 0


def test_what_is_no_delta_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no Delta table"):
        sources.delta_shards(str(tmp_path), {})
    write_deltalake(tmp_path, rows(3))
    for options in (
        {"version": "x"},
        {"version": -1},
        {"version": 1.5},
        {"storage_options": "x"},
        {"storage_options": {"password": 1}},
    ):
        with pytest.raises(DataError, match=r"^source.options: version must be a whole number"):
            sources.delta_shards(str(tmp_path), options)
    with pytest.raises(DataError, match=r"cannot be read as a Delta table: .*7"):
        sources.delta_shards(str(tmp_path), {"version": 7})
    for file in tmp_path.glob("*.parquet"):
        file.write_bytes(b"gone")
    with pytest.raises(DataError, match="a file of the table cannot be read"):
        sources.delta_shards(str(tmp_path), {})


@pytest.mark.parametrize("feature", ["deletionVectors", "columnMapping", "columnMapping by property"])
def test_a_delta_table_that_needs_another_reader_is_refused(tmp_path: Path, feature: str) -> None:
    write_deltalake(tmp_path, rows(3))
    first = (tmp_path / "_delta_log" / f"{0:020}.json").read_text(encoding="utf-8").splitlines()
    if feature.endswith("property"):
        actions = [json.loads(line) for line in first if "metaData" in line]
        actions[0]["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
        schema = json.loads(actions[0]["metaData"]["schemaString"])
        for i, field in enumerate(schema["fields"]):
            field["metadata"] = {"delta.columnMapping.id": i, "delta.columnMapping.physicalName": f"col-{i}"}
        actions[0]["metaData"]["schemaString"] = json.dumps(schema)
        actions.append({"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}})
    else:
        features = {"readerFeatures": [feature], "writerFeatures": [feature]}
        actions = [{"protocol": {"minReaderVersion": 3, "minWriterVersion": 7} | features}]
    log = tmp_path / "_delta_log" / f"{1:020}.json"
    log.write_text("\n".join(map(json.dumps, actions)), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"cannot be read: .*(deletionVectors|column ?[mM]apping).*; write a plain copy"
    ):
        sources.delta_shards(str(tmp_path), {})


# --- a range of time ---


@settings(max_examples=15)
@given(
    st.integers(-3, 103),
    st.integers(1, 60),
    st.sampled_from(["us", "ns", "ms", "naive", "text", "date"]),
    st.booleans(),
)
def test_rows_outside_the_range_are_never_read_and_those_inside_always(
    tmp_path_factory: pytest.TempPathFactory, first: int, n: int, unit: str, as_delta: bool
) -> None:
    folder = tmp_path_factory.mktemp("range")
    table = rows(100)
    kinds = {"naive": pa.timestamp("us"), "text": pa.string(), "date": pa.date32()}
    kind = kinds.get(unit) or pa.timestamp(unit, "UTC")
    stored = table.set_column(1, "at", table["at"].cast(kind, safe=False))
    span = TimeRange(column="at", start=START + timedelta(hours=first), end=START + timedelta(hours=first + n))
    if as_delta and unit != "ns":
        write_deltalake(folder, stored.slice(0, 40))
        write_deltalake(folder, stored.slice(40), mode="append")
        shards: list[Any] = list(sources.delta_shards(str(folder), {}, span))
        everything: list[Any] = list(sources.delta_shards(str(folder), {}))
    else:
        pq.write_table(stored, folder / "0.parquet", row_group_size=10)
        files = sources.find_files([str(folder)], "parquet")
        shards, everything = list(sources.parquet_shards(files, None, span)), list(sources.parquet_shards(files, None))
        if unit in ("us", "ns", "ms", "naive"):
            assert sum(s.n_rows for s in shards) <= n + 20
    pushed = sources.within(read(shards), span)
    filtered = sources.within(read(everything), span)
    assert sorted(pushed["id"].to_pylist()) == sorted(filtered["id"].to_pylist())
    if unit != "date":
        assert sorted(pushed["id"].to_pylist()) == [i for i in range(100) if first <= i < first + n]


def test_a_time_that_cannot_be_read_stays_and_none_is_outside() -> None:
    table = pa.table({"at": ["2024-01-01", "2024-06-01T00:00:00+02:00", "soon", None]})
    span = TimeRange.model_validate({"column": "at", "start": "2024-05-31T22:00:00"})
    assert sources.within(table, span)["at"].to_pylist() == ["2024-06-01T00:00:00+02:00", "soon"]
    with pytest.raises(DataError, match="column is missing"):
        sources.within(table, TimeRange(column="on", start=START))


# --- CSV ---


def test_csv_is_text_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 200)
    lines = ["id,at,note"] + [f'{i},2024-01-01,"say ""{i}"",\nplease"' for i in range(50)] + ["word,,"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    found = read(text_shards("csv", tmp_path / "a.csv"))
    assert found.column_names == ["id", "at", "note"]
    assert found["id"].to_pylist() == [*map(str, range(50)), "word"]
    assert found["note"].to_pylist()[7] == 'say "7",\nplease'
    assert found.slice(50).to_pylist() == [{"id": "word", "at": None, "note": None}]
    with gzip.open(tmp_path / "b.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines))
    assert read(text_shards("csv", tmp_path / "b.csv.gz"), ["note"]).equals(found.select(["note"]))
    (tmp_path / "c.csv").write_bytes("id;at\n1;größer\n".encode("latin1"))
    assert read(text_shards("csv", tmp_path / "c.csv", delimiter=";", encoding="latin1"))["at"].to_pylist() == [
        "größer"
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n3\n", r"row 3 has 1 fields where the header has 2: '3'; mend"),
        ("a,b\n1,2\n3,4,5\n", r"row 3 has 3 fields where the header has 2: '3,4,5'"),
        ("a,b\n" + "1,2\n" * 500 + "3,4,5\n", r"row 502 has 3 fields"),
        ("a,a\n1,2\n", r"columns \['a'\] stand twice"),
        ("", "is empty: there are no bytes"),
        ("\n\n", "is empty: not even a header"),
        (b"a,b\n1,\xe9\n", r"UTF8.*options: \{encoding: latin1\}"),
    ],
)
def test_a_broken_csv_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, says: str
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 500)
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says) as failure:
        read(text_shards("csv", tmp_path / "a.csv"))
    assert str(tmp_path / "a.csv") in str(failure.value)


def test_a_header_alone_is_no_row(tmp_path: Path) -> None:
    for content in ("a,b\n", "a,b", "\n\na,b\n\n", "\ufeffa,b"):
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        assert read(text_shards("csv", tmp_path / "a.csv")).to_pydict() == {"a": [], "b": []}
        assert read(text_shards("csv", tmp_path / "a.csv"), ["b"]).to_pydict() == {"b": []}
    assert read(text_shards("csv", tmp_path / "a.csv", skip_rows=1, column_names=["x"])).to_pydict() == {"x": []}
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write("a,b")
    (tmp_path / "c.csv").write_text("a,b\n1,2")
    assert read(text_shards("csv", tmp_path)).to_pylist() == [{"a": "1", "b": "2"}]


# --- JSON ---

OBJECTS = [{"a": 1, "b": "x"}, {"a": "two", "b": None}, {"a": 2.5, "c": {"z": [1]}}, {}, {"a": True, "b": "é"}]


def test_json_of_mixed_types_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 16)
    (tmp_path / "lines.json").write_text("\n\n" + "\n".join(map(json.dumps, OBJECTS)), encoding="utf-8")
    (tmp_path / "list.json").write_text(json.dumps(OBJECTS, indent=1), encoding="utf-8")
    for name in ("lines", "list"):
        found = read(text_shards("json", tmp_path / f"{name}.json"), ["a", "b", "nobody"])
        assert found["a"].to_pylist() == ["1", "two", "2.5", None, "true"]
        assert found["b"].to_pylist() == ["x", None, None, None, "é"]
        assert found["nobody"].null_count == 5


@settings(max_examples=40)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1) | st.none()))
def test_numbers_survive_their_way_through_json(numbers: list[float | int | None]) -> None:
    found = text_files.objects("here", [{"a": v} for v in numbers], ["a"])["a"].to_pylist()
    assert [None if v is None else float(v) for v in found] == [None if v is None else float(v) for v in numbers]


LONG = (12345678901234567890123, 12345678901234567890124, -(2**63) - 1, 2**64, 2**64 - 1, -(2**63), 7)


def test_integers_of_any_length_stay_exact(tmp_path: Path) -> None:
    items = [{"a": n} for n in LONG]
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, items)) + "\n")
    (tmp_path / "list.json").write_text(json.dumps(items))
    expected = list(map(str, LONG))
    for name in ("lines", "list"):
        assert read(text_shards("json", tmp_path / f"{name}.json"), ["a"])["a"].to_pylist() == expected
        found = read(text_shards("json", tmp_path / f"{name}.json"))
        assert text_files.kinds(found, quoted=True) == {"a": "string"}
        assert found["a"].to_pylist() == expected
    assert text_files.parsed(
        b'{"n": 12345678901234567890, "x": 0.1234567890123456789, "t": "12345678901234567890123"}'
    ) == {
        "n": 12345678901234567890,
        "x": 0.1234567890123456789,
        "t": "12345678901234567890123",
    }


def test_a_byte_order_mark_is_no_part_of_json(tmp_path: Path) -> None:
    for content in ('{"a": 1}\n{"a": 2}\n', '[{"a": 1}, {"a": 2}]'):
        (tmp_path / "a.json").write_text(content, encoding="utf-8-sig")
        assert read(text_shards("json", tmp_path / "a.json"), ["a"])["a"].to_pylist() == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', r"line 2 is no JSON .*'\{\"a\": 2'"),
        ('{"a": 1}\n' * 90 + "[1, 2]\n", "line 91 is no object of named values"),
        ("[1, 2]", "item 0 is '1', not an object"),
        ("[{]", "is no JSON"),
        ("<html>", "line 1 is no JSON"),
        ("", "is empty"),
    ],
)
def test_a_broken_json_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, says: str) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=says) as failure:
        read(text_shards("json", tmp_path / "a.json"), ["a"])
    assert str(tmp_path / "a.json") in str(failure.value)


# --- dtypes of what nobody declared ---


def test_dtypes_are_those_that_all_cells_can_have() -> None:
    table = pa.table(
        {
            "int": ["1", "-2", None],
            "float": ["1", "2.5e3", "NaN"],
            "code": ["007", "1", "2"],
            "bool": ["true", "False", None],
            "time": ["2024-01-01", "2024-01-01T10:00:00Z", None],
            "text": ["1", "x", ""],
            "none": pa.array([None] * 3, pa.string()),
        }
    )
    found = text_files.kinds(table)
    expected = ["int", "float", "string", "bool", "timestamp", "string", "null"]
    assert list(found.values()) == expected
    halves = [text_files.kinds(table.slice(0, 1)), text_files.kinds(table.slice(1))]
    assert text_files.merged(*halves) == text_files.merged(*reversed(halves)) == found
    assert text_files.typed(table, found)["float"].to_pylist() == [1.0, 2500.0, None]
    assert text_files.typed(table.select(["int"]), found).column_names == list(found)
    assert text_files.kinds(pa.table({"x": ["1"]}), quoted=True) == {"x": "string"}


# --- joins ---


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, None]), st.sampled_from(["p", "q", None])), max_size=8),
    st.lists(st.tuples(st.sampled_from([1, 2, 4, None]), st.sampled_from(["p", "q", None])), max_size=8),
    st.sampled_from(["inner", "left"]),
)
def test_a_join_is_what_sql_says(left: list[Any], right: list[Any], how: Any) -> None:
    kinds = [pa.int64(), pa.string()]

    def table(listed: list[Any], third: str) -> pa.Table:
        keys = {name: pa.array([row[i] for row in listed], kinds[i]) for i, name in enumerate(("k", "c"))}
        return pa.table(keys | {third: pa.array(range(len(listed)), pa.int64())})

    found = joins.join(table(left, "l"), table(right, "r"), ["k", "c"], how)
    expected = []
    for i, a in enumerate(left):
        matches = [j for j, b in enumerate(right) if a == b and None not in a]
        expected += [(*a, i, j) for j in matches] or ([(*a, i, None)] if how == "left" else [])
    assert list(zip(*found.to_pydict().values(), strict=True)) == expected
    assert found.column_names == ["k", "c", "l", "r"]


def test_keys_are_compared_as_what_they_are_declared() -> None:
    left, right = pa.table({"k": ["7", "x", "08"]}), pa.table({"k": [7, 8, None], "v": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="the join's key is string in one source and int64 in another"):
        joins.join(left, right, ["k"], "left")
    found = joins.join(left, right, ["k"], "left", [Column(name="k", dtype="int")])
    assert found.to_pydict() == {"k": ["7", "x", "08"], "v": [1.0, None, 2.0]}
    nan = pa.table({"k": [float("nan"), 1.0]})
    assert joins.join(nan, nan.append_column("v", pa.array([1, 2])), ["k"], "inner")["v"].to_pylist() == [2]
    with pytest.raises(DataError, match=r"^k: the join's key is missing in the second source; it has \['v'\]"):
        joins.join(left, right.drop(["k"]), ["k"], "left")
    with pytest.raises(DataError, match=r"^k: the join's key is missing in the first source; it has \['v'\]"):
        joins.join(right.drop(["k"]), right, ["k"], "left")
    with pytest.raises(DataError, match=r"columns \['v'\] stand in several"):
        joins.join(right, right, ["k"], "left")


# --- pages ---


def test_the_next_page_of_every_kind() -> None:
    def follow(paging: dict[str, Any], body: Any, link: str = "", n_rows: int = 2) -> str | None:
        page = pages.first_page(Source(kind="http", url="http://h/api", params={"q": True}, paging=Paging(**paging)))
        found = pages.next_page(Paging(**paging), page, body, link, n_rows)
        return None if found is None else found.url

    link = '<http://h/api?page=1>; rel="first", </api?page=3>; title="a, b"; rel="last next"'
    assert follow({"kind": "link"}, [], link) == "http://h/api?page=3"
    assert follow({"kind": "link"}, [], '<http://h/x>; rel="prev"') is None
    assert follow({"kind": "next", "field": "links.next"}, {"links": {"next": "?p=2"}}) == "http://h/api?p=2"
    assert follow({"kind": "next", "field": "links.next"}, {"links": None}) is None
    cursor = {"kind": "cursor", "field": "meta.c", "param": "after"}
    assert follow(cursor, {"meta": {"c": "a b&"}}) == "http://h/api?q=true&after=a+b%26"
    assert follow({"kind": "page", "param": "p"}, []) == "http://h/api?q=true&p=2"
    assert follow({"kind": "page", "param": "p", "first": 0}, [], n_rows=0) is None
    repeated = Source(kind="http", url="http://h/r?a=1&a=2&empty=&n=9", params={"n": 5})
    assert pages.first_page(repeated).url == "http://h/r?a=1&a=2&empty=&n=5"
    assert follow({"kind": "offset", "param": "o"}, [], n_rows=50) == "http://h/api?q=true&o=50"
    with pytest.raises(DataError, match="on another server, http://evil/x; begin there"):
        follow({"kind": "next", "field": "n"}, {"n": "http://evil/x?y=1"})
    with pytest.raises(DataError, match="names itself as the next one"):
        follow({"kind": "next", "field": "n"}, {"n": "http://h/api?q=true"})


# --- a real server that fails ---


class Api(BaseHTTPRequestHandler):
    """Two rows a page. Page 2 answers 429, then 500, then breaks off; after that it is well."""

    protocol_version = "HTTP/1.1"
    tries: dict[str, int]
    seen: list[str]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.seen.append(self.path)
        n = self.tries[path + query] = self.tries.get(path + query, 0) + 1
        at = int(dict(p.split("=") for p in query.split("&") if p).get("page", "1"))
        if path == "/rows" and at == 2 and n <= 3:
            if n == 3:
                return self.answer(200, b'{"data": {"items": [', cut=True)
            return self.answer(429 if n == 1 else 500, b"", **({"Retry-After": "0"} if n == 1 else {}))
        if path == "/down":
            return self.answer(503, b"down for api-key-123")
        if path == "/html":
            return self.answer(200, b"<html>Please log in</html>", **{"Content-Type": "text/html"})
        if path == "/private" and self.headers["X-Key"] != "api-key-123":
            return self.answer(401, b"no api-key-12 given")
        if path not in ("/rows", "/private", "/endless"):
            return self.answer(404, b"nothing here")
        items = [{"id": 2 * at + i, "v": "x" if at == 3 else at / 2} for i in range(2)]
        more = f'</rows?page={at + 1}>; rel="next"' if at < 4 else ""
        if path == "/endless":
            more = f'</endless?page={at + 1}>; rel="next"'
        return self.answer(200, json.dumps({"data": {"items": items if at < 5 else []}}).encode(), Link=more)

    def answer(self, status: int, body: bytes, cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (10 if cut else 0)))
        self.end_headers()
        self.wfile.write(body)
        if cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@pytest.fixture
def api() -> Iterator[str]:
    handler = type("Fresh", (Api,), {"tries": {}, "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def http(url: str, **fields: Any) -> Source:
    return Source.model_validate(
        {"kind": "http", "url": url, "rows": "data.items", "paging": {"kind": "link"}} | fields
    )


def test_an_api_that_throttles_fails_and_breaks_off_is_read_whole(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_http, "ROWS_PER_TABLE", 3)
    for paging in ({"kind": "link"}, {"kind": "page", "param": "page"}):
        found = list(on_http.tables(http(f"{api}/rows", paging=paging), ["id", "v"], backoff_s=0.001))
        assert [t.num_rows for t in found] == [4, 4]
        assert whole(iter(found))["id"].to_pylist() == list(map(str, range(2, 10)))
        assert whole(iter(found))["v"].to_pylist() == ["0.5", "0.5", "1", "1", "x", "x", "2", "2"]


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("/nothing", {}, r"page 1 was answered 404 Not Found \('nothing here'\); check `url:`"),
        ("/down", {"retries": 1}, r"page 1 was answered 503 .* after 2 attempts \('down for \*\*\*'\)"),
        ("/html", {}, "page 1 is no JSON but text/html: '<html>Please log in"),
        ("/private", {"headers": {"X-Key": "wrong"}}, "answered 401 Unauthorized.*; check `headers:`"),
        ("/rows", {"rows": "data"}, r"has no list at `rows: data`; it has fields \['data'\]"),
        ("/endless", {"max_pages": 3}, "there are more than 3 pages"),
    ],
)
def test_what_an_api_will_not_give_is_said_without_secrets(
    api: str, path: str, fields: dict[str, Any], says: str
) -> None:
    given = {"params": {"api_key": "api-key-123"}, "headers": {"X-Key": "api-key-123"}} | fields
    with pytest.raises(DataError, match=says) as failure:
        list(on_http.tables(http(api + path, **given), None, backoff_s=0.001))
    assert api + path in str(failure.value)
    assert "api-key-123" not in str(failure.value)


def test_a_server_that_is_not_there_is_named() -> None:
    source = http("http://127.0.0.1:9/rows?token=hushhush", retries=1)
    with pytest.raises(DataError, match=r"^http://127.0.0.1:9/rows: page 1 cannot be had after 2 attempts") as failure:
        list(on_http.tables(source, None, backoff_s=0.001))
    assert "hushhush" not in str(failure.value)


# --- SQL ---


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    url = postgres.new_database()
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT i AS id, TIMESTAMPTZ '2024-01-01Z' + i * INTERVAL '1 hour' AS at, "
            "TIMESTAMP '2024-01-01' + i * INTERVAL '1 hour' AS naive, (i / 8.0)::numeric AS x, "
            "CASE WHEN i % 3 = 0 THEN NULL ELSE 'a%' || i END AS c, i % 2 = 0 AS even, ARRAY[i] AS odd "
            "FROM generate_series(0, 99) AS i"
        )
    return url


def sql(url: str, query: str = "SELECT * FROM t ORDER BY id;", **fields: Any) -> Source:
    return Source.model_validate({"kind": "sql", "url": url, "query": query} | fields)


def test_a_query_is_read_in_parts_with_its_dtypes(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_sql, "ROWS_PER_FETCH", 30)
    found = list(on_sql.tables(pickle.loads(pickle.dumps(on_sql.shard(sql(database), None)))))
    assert [t.num_rows for t in found] == [30, 30, 30, 10]
    table = whole(iter(found))
    assert list(map(str, table.schema.types))[:6] == [
        "int64",
        "timestamp[us, tz=UTC]",
        "timestamp[us, tz=UTC]",
        "double",
        "string",
        "bool",
    ]
    assert table["at"].equals(table["naive"])
    assert table["x"].to_pylist() == [i / 8 for i in range(100)]
    some = on_sql.shard(sql(database, "SELECT * FROM t WHERE c LIKE 'a%1' -- comment"), ["x", "nobody", "c"])
    assert whole(on_sql.tables(some)).to_pydict() == {
        "x": [i / 8 for i in (1, 11, 31, 41, 61, 71, 91)],
        "c": [f"a%{i}" for i in (1, 11, 31, 41, 61, 71, 91)],
    }
    assert whole(on_sql.tables(on_sql.shard(sql(database, "SELECT id FROM t WHERE false"), None))).schema.names == [
        "id"
    ]


@pytest.mark.parametrize("column", ["at", "naive"])
def test_the_server_judges_the_range_of_time(database: str, column: str) -> None:
    span = {"column": column, "start": "2024-01-01T12:00:00+02:00", "end": "2024-01-02"}
    source = sql(database, time_range=span)
    shard = on_sql.shard(source, ["id", column])
    assert "WHERE" in shard.query
    assert source.time_range is not None
    pushed = whole(on_sql.tables(shard))
    filtered = sources.within(whole(on_sql.tables(on_sql.shard(sql(database), None))), source.time_range)
    assert pushed["id"].to_pylist() == filtered["id"].to_pylist() == list(range(10, 24))


def test_another_database_gives_the_same_rows(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE t (id INTEGER, at TEXT, x)")
        listed = [(i, f"2024-01-01T0{i}:00:00", "word" if i == 3 else i / 2) for i in range(5)]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", listed)
    connection.close()
    source = sql(f"sqlite:///{tmp_path}/a.db", time_range={"column": "at", "start": "2024-01-01T02:00:00"})
    assert source.time_range is not None
    found = sources.within(whole(on_sql.tables(on_sql.shard(source, None))), source.time_range)
    assert found.to_pydict()["id"] == [2, 3, 4]
    assert found["x"].to_pylist() == ["1.0", "word", "2.0"]
    with pytest.raises(DataError, match=f"^sqlite:///{tmp_path}/typo.db: there is no such file"):
        on_sql.shard(sql(f"sqlite:///{tmp_path}/typo.db"), None)
    assert not (tmp_path / "typo.db").exists()
    assert whole(on_sql.tables(on_sql.shard(sql("sqlite://", "SELECT 1 AS a"), None))).to_pydict() == {"a": [1]}


@pytest.mark.parametrize(
    ("change", "query", "says"),
    [
        ("", "SELECT nobody FROM t", 'column "nobody" does not exist'),
        ("", "SELEC 1", "syntax error"),
        ("/nowhere", "SELECT 1", 'database "nowhere" does not exist'),
        ("@127.0.0.1:9/", "SELECT 1", "127.0.0.1"),
        ("oracle", "SELECT 1", "no driver for this address"),
    ],
)
def test_what_a_database_refuses_is_said_without_secrets(database: str, change: str, query: str, says: str) -> None:
    url = database.replace("postgres@", "postgres:hushhush@")
    if change.startswith("@"):
        url = "postgresql://postgres:hushhush@127.0.0.1:9/db"
    elif change == "oracle":
        url = "oracle://u:hushhush@h/db"
    elif change:
        url = url.replace(url[url.rindex("/", 0, url.index("?")) : url.index("?")], change)
    with pytest.raises(DataError, match=says) as failure:
        list(on_sql.tables(on_sql.shard(sql(url, query), None)))
    assert "hushhush" not in str(failure.value) + repr(failure.value.args)


# --- what a source says of itself ---


def test_a_source_says_where_it_is_without_its_secrets() -> None:
    source = Source.model_validate(
        {
            "kind": "concat",
            "sources": [
                sql("postgresql://me:hush-1@h/db?password=hush-2&sslmode=require", "SELECT 1").model_dump(),
                http(
                    "https://h/api?key=hush-3", headers={"Authorization": "Bearer hush-4"}, params={"token": "hush-5"}
                ),
                {
                    "kind": "delta",
                    "path": "s3://k:hush-6@b/t",
                    "options": {"storage_options": {"SECRET_KEY": "hush-7"}},
                },
            ],
        }
    )
    shown = json.dumps(source.public()) + source.where
    assert "hush" not in shown
    assert "https://h/api" in shown
    assert "SELECT 1" in shown
    said = "me:hush-1 hush-2 password=hush-2 Bearer hush-4 ?token=hush-5 hush-7 k:hush-6"
    scrubbed = source.scrub(said.replace("hush-2 ", "").replace("  ", " "))
    assert "hush" not in scrubbed
    assert sql("postgresql://me:h%40sh@h/d", "SELECT 1").scrub("no h@sh, no h%40sh") == "no ***, no ***"
    assert Source.model_validate(source.model_dump(mode="json")) == source


@pytest.mark.parametrize("seed", range(3))
def test_shards_of_any_sharding_hold_the_same_rows(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    table = rows(200)
    cuts = sorted({0, 200, *map(int, rng.integers(0, 200, 3))})
    for i, (a, b) in enumerate(pairwise(cuts)):
        pq.write_table(table.slice(a, b - a), tmp_path / f"{i}.parquet", row_group_size=int(rng.integers(1, 60)))
    monkeypatch.setattr(sources, "ROWS_PER_SHARD", int(rng.integers(1, 90)))
    shards = sources.parquet_shards(sources.find_files([str(tmp_path)], "parquet"), None)
    assert read(shards).equals(table)
    assert sum(s.n_rows for s in shards) == 200
