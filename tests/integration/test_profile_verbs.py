"""`mlops-ray profile` and `mlops-ray drift` on real files: flights, in every format that needs no cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mlops_ray.cli import app
from mlops_ray.config import load_project
from mlops_ray.data import lake
from mlops_ray.data.on_ray import snapshot
from mlops_ray.demo.flights import history
from mlops_ray.errors import MlopsRayError

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart.yaml"


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights")
    for name, start, end in (("january", "2013-01-01", "2013-02-01"), ("july", "2013-07-01", "2013-08-01")):
        rows = history(start=start, end=end)
        pq.write_table(rows, folder / f"{name}.parquet")
    return folder


def run(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    if result.exception is not None:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def by_name(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f["name"]: f for f in found}


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_july_is_not_january(flights: Path, mode: str) -> None:
    one, two = flights / "january.parquet", flights / "july.parquet"
    found = run("drift", "--reference", one, "--current", two, "--mode", mode)
    features = by_name(found["features"])
    assert found["rows"] == [pq.read_metadata(path).num_rows for path in (one, two)]
    psi = {name: f["statistics"]["psi"] for name, f in features.items()}
    # New York in July is warmer; the schedule is the same.
    assert psi["temp"] > 1 > 0.05 > psi["origin"]
    assert [f["name"] for f in found["features"]] == sorted(psi, key=lambda name: -psi[name])
    assert any(note.startswith("`") for note in found["notes"])


def test_every_format_says_the_same(flights: Path, tmp_path: Path) -> None:
    table = pq.read_table(flights / "january.parquet").select(["temp", "carrier", "distance"])
    pq.write_table(table.slice(0, 9000), tmp_path / "one.parquet")
    pq.write_table(table.slice(9000), tmp_path / "two.parquet")
    csv.write_csv(table, tmp_path / "all.csv")
    (tmp_path / "all.txt").write_bytes((tmp_path / "all.csv").read_bytes())
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_pylist()), encoding="utf-8")
    deltalake.write_deltalake(str(tmp_path / "delta"), table)
    whole = by_name(run("profile", tmp_path / "*.parquet")["columns"])
    for words in (("all.csv",), ("all.txt", "--kind", "csv"), ("all.jsonl",), ("delta",)):
        columns = by_name(run("profile", tmp_path / words[0], *words[1:])["columns"])
        assert columns.keys() == whole.keys()
        for name, column in columns.items():
            if column["kind"] == "categorical":
                assert column == whole[name]
            for fact in ("missing", "distinct", "low", "median", "high", "mean", "std") if "mean" in column else ():
                assert column[fact] == pytest.approx(whole[name][fact], rel=1e-12), (words, name, fact)


def test_people_see_a_table_and_get_a_page(flights: Path, tmp_path: Path) -> None:
    for verb in (
        ["profile", str(flights / "july.parquet")],
        ["drift", "--reference", str(flights / "january.parquet"), "--current", str(flights / "july.parquet")],
    ):
        page = tmp_path / f"{verb[0]}.html"
        result = CliRunner().invoke(app, [*verb, "--html", str(page)])
        assert result.exit_code == 0, result.output
        assert "distance" in result.stdout
        text = page.read_text(encoding="utf-8")
        assert text.count("<svg") >= 10
        # Nothing is fetched from anywhere.
        assert not re.findall(r'src=|href="[^#]|url\(|@import|https?://', text)


def test_names_of_columns_and_categories_are_text_and_no_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>[bold]"
    pq.write_table(pa.table({nasty: [nasty, "b"], "[red]x": [1, 2]}), tmp_path / "a.parquet")
    page = tmp_path / "page.html"
    path = str(tmp_path / "a.parquet")
    for words in (["profile", path], ["drift", "--reference", path, "--current", path]):
        result = CliRunner().invoke(app, [*words, "--html", str(page)])
        assert result.exit_code == 0, result.output
        assert "[red]x" in result.stdout
        assert "<script" not in page.read_text(encoding="utf-8")


def broken(folder: Path) -> dict[str, tuple[list[str], str]]:
    whole = pa.table({"x": list(range(1000))})
    pq.write_table(whole, folder / "good.parquet")
    cut = (folder / "good.parquet").read_bytes()[:-20]
    (folder / "cut.parquet").write_bytes(cut)
    (folder / "line.csv").write_text("a,b\n1,2\n3\n", encoding="utf-8")
    (folder / "none.csv").write_text("", encoding="utf-8")
    (folder / "head.csv").write_text("a,b\n", encoding="utf-8")
    (folder / "twice.csv").write_text("a,a\n1,2\n", encoding="utf-8")
    (folder / "bad.json").write_text('{"a": 1}\n{"a":\n', encoding="utf-8")
    (folder / "what.bin").write_text("?", encoding="utf-8")
    (folder / "empty").mkdir()
    return {
        "no file": (["profile", "nowhere.parquet"], "nowhere.parquet: there is nothing at this place"),
        "no pattern": (["profile", "zz*.csv"], "no file fits this pattern"),
        "no files": (["profile", "empty"], "the directory holds no file"),
        "truncated": (["profile", "cut.parquet"], "cut.parquet: is no whole Parquet file"),
        "a line": (["profile", "line.csv"], "line.csv: row 3 has 1 fields where the header has 2"),
        "no bytes": (["profile", "none.csv"], "none.csv: is empty"),
        "no rows": (["profile", "head.csv"], "it has no rows"),
        "columns twice": (["profile", "twice.csv"], r"columns \['a'\] stand twice"),
        "half a document": (["profile", "bad.json"], "bad.json: line 2 is no JSON"),
        "unknown": (["profile", "what.bin"], "add --kind"),
        "no delta": (["profile", "empty", "--kind", "delta"], "is no Delta table"),
        "nothing common": (
            ["drift", "--reference", "good.parquet", "--current", "line2.csv"],
            "no column can be compared: only the reference has `x`",
        ),
        "no project": (["profile", "version:1"], "add `-c FILE`"),
        "no version": (["profile", "version:latest", "-c", str(QUICKSTART)], "run `mlops-ray prepare` first"),
        "no number": (["profile", "version:first", "-c", str(QUICKSTART)], "give a number"),
        "no column of the project": (["profile", "good.parquet", "-c", str(QUICKSTART)], "none of its columns"),
    }


def test_bad_input_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line2.csv").write_text("y\n1\n", encoding="utf-8")
    for case, (words, says) in broken(tmp_path).items():
        with pytest.raises(MlopsRayError, match=says):
            run(*words)
        assert case


def test_a_page_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page, says in (("nope/x.html", "there is no directory nope; make it first"), (".", "is a directory")):
        for verb in (["profile", "nowhere.parquet"], ["drift", "--reference", "nowhere", "--current", "nowhere"]):
            result = CliRunner().invoke(app, [*verb, "--html", page])
            assert result.exit_code == 2, result.output
            said = re.sub(r"[\s│]+", " ", result.output)
            assert "--html" in said
            assert says in said


def test_versions_of_a_project_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = load_project(QUICKSTART, env={})
    rng = np.random.default_rng()
    for shift in (0.0, 1.0):
        rows = {c.name: pa.array(rng.normal(10 + shift, 1, 500)) for c in project.columns if c.dtype == "float"}
        others = {"string": ["a"] * 500, "int": [1] * 500, "timestamp": ["2024-01-01T00:00:00Z"] * 500}
        rows |= {c.name: pa.array(others[c.dtype]) for c in project.columns if c.dtype != "float"}
        snapshot(project, pa.table(rows), {})
    newest = lake.latest(project.storage.path("data", project.project))
    assert newest is not None
    words = ("--current", "version:latest", "-c", QUICKSTART)
    same = run("drift", "--reference", f"version:{newest.version}", *words)
    moved = run("drift", "--reference", f"version:{newest.version - 1}", *words)
    assert max(f["statistics"]["psi"] for f in same["features"]) == 0
    assert min(f["statistics"]["psi"] for f in moved["features"] if f["name"].startswith("mean")) > 0.5


def test_the_command_answers_in_a_moment_and_without_ray(flights: Path) -> None:
    program = (
        "import sys\nfrom mlops_ray.cli import main\nsys.argv[0] = 'mlops-ray'\nmain_done = None\n"
        "try: main()\nexcept SystemExit as exc: main_done = exc.code\n"
        "sys.stderr.write(f'exit {main_done}; ' + ('ray loaded' if 'ray' in sys.modules else 'no ray'))\n"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, "profile", str(flights / "july.parquet"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr.endswith("no ray"), done.stderr
    assert json.loads(done.stdout)["rows"] > 20_000
    # Two seconds on an idle machine.
    assert time.monotonic() - begun < 20


@pytest.mark.ray
def test_a_source_that_needs_a_cluster_is_read_on_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlops_ray", "profile", "source", "-c", QUICKSTART, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {c["name"] for c in found["columns"]} == {c.name for c in load_project(QUICKSTART, env={}).columns}
