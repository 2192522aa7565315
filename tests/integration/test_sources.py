"""Sources on a local Ray: every kind through `open_source` and `each`, and the same rows as Ray Data's own readers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import ray.data
from deltalake import DeltaTable, write_deltalake

from mlops_ray.config import Column, Source
from mlops_ray.config.sources import FILE_READERS, SERVICE_READERS
from mlops_ray.data.on_evidence import observe
from mlops_ray.data.schema import conform
from mlops_ray.data.sources import shards as sources
from mlops_ray.data.sources.on_ray import each, open_source
from mlops_ray.errors import DataError
from tests.postgres import Postgres, postgres
from tests.unit.data.sources.test_sources import api

__all__ = ["api", "postgres"]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = [
    Column(name="id", dtype="int"),
    Column(name="at", dtype="timestamp"),
    Column(name="x", dtype="float", nullable=True),
    Column(name="c", dtype="string", nullable=True),
]


def rows(n: int = 300) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(n)),
            "at": pa.array([START + timedelta(hours=i) for i in range(n)], pa.timestamp("us", "UTC")),
            "x": pa.array([None if i % 7 == 0 else i / 4 for i in range(n)], pa.float64()),
            "c": pa.array([["a", "é,\n", None][i % 3] for i in range(n)]),
            "unused": pa.array([b"x"] * n),
        }
    )


def gathered(batches: Iterator[pa.Table]) -> list[pa.Table]:
    return list(batches)


def tables(source: Source, columns: list[Column] | None = COLUMNS) -> list[pa.Table]:
    return [table for found in each(open_source(source, columns), gathered) for table in found if table.num_rows]


def read(source: Source, columns: list[Column] = COLUMNS) -> pa.Table:
    """The declared columns in their dtypes, in the source's order."""
    return pa.concat_tables([conform(t, columns)[0] for t in tables(source, columns)]).combine_chunks()


def by_id(table: pa.Table) -> pa.Table:
    return table.sort_by("id").combine_chunks()


AS_TEXT = pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
EXPECTED = conform(rows(), COLUMNS)[0].combine_chunks()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The same 300 rows in every form that we can write here, as fields of a source."""
    from pyiceberg.catalog import load_catalog

    root = tmp_path_factory.mktemp("places")
    listed = rows()
    for kind in ("parquet", "csv", "json", "orc"):
        (root / kind).mkdir()
    for i, part in enumerate((listed.slice(0, 120), listed.slice(120))):
        pq.write_table(part, root / "parquet" / f"{i}.parquet", row_group_size=50)
        frame = part.drop(["unused"]).to_pandas()
        frame.to_csv(root / "csv" / f"{i}.csv", index=False)
        frame.to_json(root / "json" / f"{i}.jsonl", orient="records", lines=True, date_format="iso")
        pa.orc.write_table(part, root / "orc" / f"{i}.orc")
        write_deltalake(root / "delta", part, mode="append", partition_by=["c"])
    kwargs = {"name": "c", "type": "sql", "uri": f"sqlite:///{root}/catalog.db", "warehouse": f"file://{root}/ice"}
    (root / "ice").mkdir()
    catalog = load_catalog(**kwargs)
    catalog.create_namespace("n")
    iceberg = catalog.create_table("n.t", schema=listed.schema)
    iceberg.append(listed.slice(0, 120))
    iceberg.append(listed.slice(120))
    server: Postgres = request.getfixturevalue("postgres")
    url = server.new_database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t (id int, at timestamptz, x float8, c text, unused bytea)")
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for row in listed.to_pylist():
                copy.write_row(list(row.values()))
    return {
        **{kind: {"kind": kind, "path": str(root / kind)} for kind in ("parquet", "csv", "json", "delta", "orc")},
        "iceberg": {"kind": "iceberg", "options": {"table_identifier": "n.t", "catalog_kwargs": kwargs}},
        "sql": {"kind": "sql", "url": url, "query": "SELECT * FROM t ORDER BY id"},
        "sql in shards": {
            "kind": "sql",
            "url": url,
            "query": "SELECT * FROM t",
            "options": {"shard_keys": ["id::text"], "shard_hash_fn": "hashtext", "override_num_blocks": 3},
        },
        "python": {"kind": "python", "function": f"{__name__}:rows"},
    }


def source(place: dict[str, Any], **more: Any) -> Source:
    return Source.model_validate(place | more)


KINDS = ("parquet", "csv", "json", "delta", "orc", "iceberg", "sql", "sql in shards", "python")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(places: dict[str, Any], kind: str) -> None:
    found = read(source(places[kind]))
    assert by_id(found).equals(EXPECTED)
    if kind in ("parquet", "csv", "json", "sql", "python", "orc"):
        assert found.equals(EXPECTED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_time_gives_the_same_rows_wherever_it_is_applied(places: dict[str, Any], kind: str) -> None:
    span = {"column": "at", "start": "2024-01-05T03:00:00+01:00", "end": "2024-01-08"}
    some = [COLUMNS[0], COLUMNS[2]]  # the time itself is not asked for
    found = by_id(read(source(places[kind], time_range=span), some))
    assert found["id"].to_pylist() == list(range(4 * 24 + 2, 7 * 24))
    assert found["x"].equals(EXPECTED["x"].slice(4 * 24 + 2, 7 * 24 - 4 * 24 - 2))


def test_only_columns_that_are_asked_for_are_read(places: dict[str, Any]) -> None:
    for kind in ("parquet", "delta", "iceberg", "sql", "csv", "json"):
        assert {tuple(t.column_names) for t in tables(source(places[kind]), COLUMNS[:1])} == {("id",)}, kind


def test_what_is_free_is_known_beforehand(places: dict[str, Any]) -> None:
    assert open_source(source(places["parquet"]), COLUMNS).n_rows == 300
    assert open_source(source(places["delta"]), COLUMNS).n_rows == 300
    assert open_source(source(places["csv"]), COLUMNS).n_rows == 0
    opened = open_source(source(places["sql"], url=places["sql"]["url"].replace("@", ":hush@")), COLUMNS)
    assert "hush" not in "".join(opened.uris)


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "delta"])
def test_shards_hold_the_rows_that_ray_datas_reader_finds(
    places: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROWS_PER_SHARD", 60)
    opened = open_source(source(places[kind]), COLUMNS)
    assert sum(len(part.shards) for part in opened.parts) >= 2
    path = places[kind]["path"]
    reader = getattr(ray.data, f"read_{kind}")
    options: dict[str, Any] = {"json": {"lines": True}, "csv": {"convert_options": AS_TEXT}}.get(kind, {})
    theirs = [conform(pa.Table.from_pylist([row]), COLUMNS)[0] for row in reader(path, **options).take_all()]
    assert by_id(read(source(places[kind]))).equals(by_id(pa.concat_tables(theirs)))


def test_dtypes_of_what_nobody_declared(places: dict[str, Any]) -> None:
    for kind in ("csv", "json"):
        found = tables(source(places[kind]), None)
        assert {str(t.schema.types) for t in found} == {str(EXPECTED.schema.types)}
        assert conform(pa.concat_tables(found), COLUMNS)[0].combine_chunks().equals(EXPECTED)


def test_names_of_readers_are_those_of_ray_data() -> None:
    theirs = {name.removeprefix("read_") for name in dir(ray.data) if name.startswith("read_")}
    assert set(FILE_READERS + SERVICE_READERS) == theirs - {"api", "datasource"}


# --- other readers, and several sources ---


def test_a_reader_without_a_name_of_its_own_here(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    text = Source(kind="text", path=str(tmp_path / "a.txt"), options={"drop_empty_lines": True})
    assert [line for t in tables(text, None) for line in t["text"].to_pylist()] == ["one", "two"]
    with pytest.raises(DataError, match=r"source.options: do not fit ray.data.read_text: .*'lines'"):
        tables(Source(kind="text", path=str(tmp_path / "a.txt"), options={"lines": 3}), None)
    with pytest.raises(DataError, match="source topic: cannot be read as kafka: ImportError"):
        tables(Source(kind="kafka", options={"topics": "topic", "bootstrap_servers": "127.0.0.1:9"}), None)


def test_an_api_is_a_source(api: str) -> None:
    fields = {"kind": "http", "url": f"{api}/private", "rows": "data.items", "headers": {"X-Key": "api-key-123"}}
    given = Source.model_validate(fields)
    assert [t["id"].to_pylist() for t in tables(given, None)] == [[2, 3]]
    assert [t["id"].to_pylist() for t in tables(given, COLUMNS)] == [["2", "3"]]
    with pytest.raises(DataError, match="answered 401") as failure:
        tables(given.model_copy(update={"headers": {"X-Key": "wrong-key"}}), None)
    assert "wrong-key" not in str(failure.value)


def test_several_sources_are_one(places: dict[str, Any]) -> None:
    both = source({"kind": "concat", "sources": [places["csv"], places["sql"], places["python"]]})
    assert read(both).equals(pa.concat_tables([EXPECTED] * 3).combine_chunks())
    span = {"column": "at", "start": "2024-01-02", "end": "2024-01-03"}
    narrowed = source({"kind": "concat", "sources": [places["parquet"], places["iceberg"]], "time_range": span})
    for columns in (COLUMNS, COLUMNS[:1]):  # the time itself need not be asked for
        assert sorted(read(narrowed, columns)["id"].to_pylist()) == sorted([*range(24, 48)] * 2)
    assert open_source(both, COLUMNS).uris[-1] == f"python:{__name__}:rows"


@pytest.mark.parametrize("left", ["parquet", "csv", "iceberg"])
def test_sources_are_joined_on_keys(places: dict[str, Any], tmp_path: Path, left: str) -> None:
    ids = [5, 7, 7, 400, None]
    pq.write_table(pa.table({"id": pa.array(ids), "label": [f"l{i}" for i in range(5)]}), tmp_path / "r.parquet")
    (tmp_path / "names.csv").write_text("label,name\nl1,one\nl2,two\n")
    right, names = {"kind": "parquet", "path": str(tmp_path)}, {"kind": "csv", "path": str(tmp_path / "names.csv")}
    wanted = [COLUMNS[0], COLUMNS[2], Column(name="label", dtype="string")]
    inner = read(source({"kind": "join", "sources": [places[left], right], "keys": ["id"]}), wanted)
    assert inner["id"].to_pylist() == [5, 7, 7]
    assert inner["label"].to_pylist() == ["l0", "l1", "l2"]
    outer = read(source({"kind": "join", "sources": [places[left], right], "keys": ["id"], "how": "left"}), wanted)
    assert outer.num_rows == 301
    assert outer["label"].null_count == 298
    nested = {
        "kind": "join",
        "keys": ["label"],
        "sources": [{"kind": "join", "sources": [places[left], right], "keys": ["id"]}, names],
    }
    found = read(source(nested), [COLUMNS[0], Column(name="name", dtype="string")])
    assert found.to_pydict() == {"id": [7, 7], "name": ["one", "two"]}


def test_a_join_that_would_not_fit_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(200_000), "y": range(200_000)}), tmp_path / "r.parquet")
    right = {"kind": "parquet", "path": str(tmp_path)}
    joined = source({"kind": "join", "sources": [right, right], "keys": ["id"], "max_join_mb": 1})
    with pytest.raises(DataError, match=r"is larger than max_join_mb \(1\); put the largest source first"):
        open_source(joined, COLUMNS)


# --- what cannot be read ---


def test_bad_input_names_its_place(tmp_path: Path, postgres: Postgres) -> None:
    pq.write_table(rows(), tmp_path / "good.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:999])
    (tmp_path / "broken.csv").write_text("id,at\n" + "1,2024-01-01\n" * 50 + "1,2,3\n")
    (tmp_path / "mixed.json").write_text('{"id": 1}\n{"id": "two"}\n{"id": \n')
    (tmp_path / "empty").mkdir()
    url = postgres.url("postgres").replace("postgres@", "nobody:hush-hush@")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "parquet", "path": str(tmp_path / "*.parquet")}, r"cut\.parquet: is no whole Parquet file"),
        ({"kind": "parquet", "path": str(tmp_path / "empty")}, "empty: the directory holds no .parquet file"),
        ({"kind": "parquet", "path": "nosuch://host/x"}, "nosuch"),
        ({"kind": "csv", "path": str(tmp_path / "broken.csv")}, r"broken\.csv: row 52 has 3 fields"),
        ({"kind": "json", "path": str(tmp_path / "mixed.json")}, r"mixed\.json: line 3 is no JSON"),
        ({"kind": "delta", "path": str(tmp_path / "empty")}, "is no Delta table"),
        ({"kind": "hudi", "path": str(tmp_path / "empty")}, "cannot be read as hudi"),
        ({"kind": "iceberg", "options": {"table_identifier": "n.t"}}, "source n.t: cannot be read as iceberg"),
        ({"kind": "sql", "url": url, "query": "SELECT 1"}, 'role "nobody" does not exist'),
        ({"kind": "sql", "url": url, "query": "SELECT 1", "options": {"shard_keys": ["a"]}}, "nobody"),
    ]
    for fields, says in cases:
        with pytest.raises(DataError, match=says) as failure:
            tables(Source.model_validate(fields))
        assert "hush-hush" not in str(failure.value)


def test_an_error_of_the_work_itself_arrives_as_it_is(places: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^x: says so \(in /.*/0\.parquet\)$"):
        list(each(open_source(source(places["parquet"]), COLUMNS), functools.partial(_refuse, says="says so")))


PRICE = Column(name="price", dtype="float", nullable=True)


@pytest.mark.parametrize("kind", ["parquet", "csv", "delta"])
def test_a_column_that_a_file_lacks_is_named_with_the_file_and_what_is_like_it(tmp_path: Path, kind: str) -> None:
    some = rows(5).select(["id", "at", "x"])
    whole, without = some.rename_columns(["id", "at", "price"]), some.rename_columns(["id", "at", "Price"])
    if kind == "delta":
        write_deltalake(tmp_path, without)
    for name, table in (("0", whole), ("1", without)) if kind != "delta" else ():
        if kind == "csv":
            pyarrow.csv.write_csv(table, tmp_path / f"{name}.csv")
        else:
            pq.write_table(table, tmp_path / f"{name}.parquet")
    given = Source(kind=kind, path=str(tmp_path))
    place = rf"{tmp_path}/.*" + ("" if kind == "delta" else kind)
    says = rf"^price: column is missing; there are \['id', 'at', 'Price'\]; did you mean 'Price'\? \(in {place}\)$"
    with pytest.raises(DataError, match=says):
        list(each(open_source(given, [*COLUMNS[:2], PRICE]), _conformed))
    with pytest.raises(DataError, match=says):
        list(each(open_source(given, [COLUMNS[0], PRICE]), _conformed))
    nobody = {"kind": "concat", "sources": [given, {"kind": "python", "function": f"{__name__}:rows"}]}
    with pytest.raises(DataError, match=rf"^nobody: column is missing; .* \(in {tmp_path}"):
        list(each(open_source(source(nobody), [Column(name="nobody", dtype="int")]), _nobody))


def _conformed(batches: Iterator[pa.Table]) -> None:
    for batch in batches:
        conform(batch, [COLUMNS[0], PRICE])


def _nobody(batches: Iterator[pa.Table]) -> None:
    conform(next(batches), [Column(name="nobody", dtype="int")])


def test_options_and_functions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    pq.write_table(rows(5), tmp_path / "a.parquet")
    typo = Source(kind="parquet", path=str(tmp_path), options={"colums": ["id"]})
    with pytest.raises(DataError, match=r"^source.options: colums: kind parquet knows no such option"):
        tables(typo)
    for name, says in (
        ("_of_tuples", r"not named by text, such as \('x', 'a'\)"),
        ("_of_twins", r"columns \['x'\] twice"),
    ):
        with pytest.raises(DataError, match=rf"^source.function: .*:{name} returns .*{says}"):
            open_source(Source(kind="python", function=f"{__name__}:{name}"), COLUMNS)


def _of_tuples() -> pd.DataFrame:
    return pd.DataFrame({("x", "a"): pd.to_datetime(["2024-01-01"], utc=True)})


def _of_twins() -> pd.DataFrame:
    return pd.DataFrame([[1, 2]], columns=["x", "x"])


def test_csv_stays_as_it_is_written_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code;n\n007;1\n")
    given = Source(kind="csv", path=str(tmp_path / "a.csv"), options={"delimiter": ";"})
    opened = open_source(given, None, csv_typed=False)
    assert [part.dataset for part in opened.parts] == [None]
    assert [t.to_pylist() for ts in each(opened, gathered) for t in ts if t.num_rows] == [[{"code": "007", "n": "1"}]]
    both = open_source(Source(kind="concat", sources=(given, given)), None, csv_typed=False)
    assert [str(t["n"].type) for ts in each(both, gathered) for t in ts if t.num_rows] == ["string", "string"]
    for content, says in (("a,a\n1,2\n", "stand twice in the header"), ("a,b\n1,2\n3\n", "row 3 has 1 fields")):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(DataError, match=rf"a\.csv: .*{says}"):
            observe(Source(kind="csv", path=str(tmp_path / "a.csv")))


def _refuse(batches: Iterator[pa.Table], says: str) -> None:
    next(batches)
    raise DataError("x", says)


def test_results_come_in_order_and_a_taker_may_leave(places: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS_PER_SHARD", 1)
    opened = open_source(source(places["parquet"]), COLUMNS[:1])
    found = list(each(opened, _first_id))
    assert found == sorted(found)
    assert next(each(opened, _first_id)) == 0


def _first_id(batches: Iterator[pa.Table]) -> int:
    return int(next(batches)["id"][0].as_py())


def test_json_in_json_and_nulls_only(tmp_path: Path) -> None:
    lines = [{"id": i, "x": None, "c": {"deep": [i]}} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = pa.concat_tables(tables(Source(kind="json", path=str(tmp_path / "a.jsonl")), None))
    assert found.to_pydict() == {
        "id": [0, 1, 2],
        "x": [None] * 3,
        "c": [f'{{"deep": [{i}]}}' for i in range(3)],
    }


def test_a_delta_table_that_changes_meanwhile_is_read_as_it_was(tmp_path: Path) -> None:
    write_deltalake(tmp_path, rows(10).drop(["unused"]))
    opened = open_source(Source(kind="delta", path=str(tmp_path)), COLUMNS)
    DeltaTable(tmp_path).delete("id > 3")
    assert sum(t.num_rows for ts in each(opened, gathered) for t in ts) == 10


def stumbling(batches: Iterator[pa.Table]) -> int:
    return sum(len(batch["no such column"]) for batch in batches)


def test_a_fault_of_the_work_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    opened = open_source(Source(kind="parquet", path=str(tmp_path / "a.parquet")), None)
    with pytest.raises(KeyError, match="no such column"):
        list(each(opened, stumbling))
