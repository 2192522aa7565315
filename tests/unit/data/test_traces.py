from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_ray.data.traces import Needles, Trace, traces


def whats(found: list[Trace]) -> set[tuple[str, str | None]]:
    return {(trace.what, trace.column) for trace in found}


@pytest.mark.parametrize(
    ("text", "stands"),
    [
        ("sample-1", True),
        ("sample-1: x=2", True),
        ("(sample-1)", True),
        ("it was sample-1.", True),
        ("sample-1:0", True),
        ("sample-10", False),
        ("a-sample-1", False),
        ("sample-1.5", False),
        ("sample-1@there", False),
        ("", False),
    ],
)
def test_a_value_stands_as_a_whole_or_is_another_one(text: str, stands: bool) -> None:
    needles = Needles(("sample-1",))
    assert needles.in_text(text) is stands
    assert bool(needles.in_bytes(text.encode())) is stands


@pytest.mark.parametrize("value", ["a.b+c", "O'Neil", 'say "x"', "back\\slash", "Zoë", "x & <y>", "日本", "two words"])
def test_values_are_found_however_they_are_written(tmp_path: Path, value: str) -> None:
    import html

    needles = Needles((value,))
    (tmp_path / "a.json").write_text(json.dumps({"k": value}))
    (tmp_path / "b.json").write_text(json.dumps({"k": json.dumps({"min": value})}, ensure_ascii=False))
    (tmp_path / "c.html").write_text(f"<td>{html.escape(value)}</td>", encoding="utf-8")
    pq.write_table(pa.table({"k": [value, "other"]}), tmp_path / "d.parquet")
    found = traces(str(tmp_path), needles, ["k"])
    assert {trace.file for trace in found} == {"a.json", "b.json", "c.html", "d.parquet"}
    for name in ("a.json", "b.json", "c.html"):
        clean = needles.without((tmp_path / name).read_bytes())
        assert b"[forgotten]" in clean
        assert not list(needles.traces(name, clean, ()))


def test_cells_statistics_and_nested_values(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "key": ["sample-1", "b"],
            "rules": [["sample-1"], []],
            "more": [{"inner": "x"}, {"inner": "sample-1"}],
            "stats": [json.dumps({"minValues": {"who": "sample-1"}}), None],
        }
    )
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=1)
    found = whats(traces(str(tmp_path), Needles(("sample-1",)), ["key"]))
    assert {("column key", "key"), ("column rules", "rules"), ("column more", "more"), ("column who", "who")} <= found
    assert ("statistics of key", "key") in found


def test_numbers_are_compared_where_they_are_keys(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [17, 18], "n": [17, 17]}), tmp_path / "a.parquet")
    assert whats(traces(str(tmp_path), Needles(("17",)), ["id"])) >= {("column id", "id")}
    assert ("column n", "n") not in whats(traces(str(tmp_path), Needles(("17",)), ["id"]))


def test_raw_bytes_of_a_file_that_no_cell_explains(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"key": ["b"]}), path)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:footer] + b"customer-17" + content[footer:])  # between what the footer points to and it
    assert whats(traces(str(tmp_path), Needles(("customer-17",)), ["key"])) == {("bytes", None)}
    pq.write_table(pa.table({"key": ["customer-170"]}), path, compression="none")
    assert traces(str(tmp_path), Needles(("customer-17",)), ["key"]) == []


def test_a_file_that_cannot_be_read_is_no_proof(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert whats(traces(str(tmp_path), Needles(("k",)), [])) == {("a Parquet file that cannot be read", None)}


def test_a_name_of_a_file_is_a_trace_that_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "key=customer-17").mkdir()
    (tmp_path / "key=customer-17" / "x.bin").write_bytes(b"1")
    found = traces(str(tmp_path), Needles(("customer-17",)), [])
    assert {trace.file for trace in found} == {"[forgotten]"}
    assert traces(str(tmp_path / "none"), Needles(("customer-17",)), []) == []
