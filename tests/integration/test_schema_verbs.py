"""`schema infer` and `schema diff` on a real Ray cluster, real files, Delta versions and the real flights."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from typer.testing import CliRunner

from mlops_ray.cli import app
from mlops_ray.config import Source, load_project
from mlops_ray.data.evidence import gather
from mlops_ray.data.inference import diff, infer, to_yaml
from mlops_ray.data.on_evidence import observe
from mlops_ray.data.on_ray import snapshot
from mlops_ray.data.rules.expectations import check
from mlops_ray.demo.flights import history
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.verbs import schema as verbs

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "configs/flights.yaml"
QUICKSTART = ROOT / "configs/quickstart.yaml"


@pytest.fixture
def on_local_ray(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs join the cluster that the tests share, instead of starting one."""

    @contextlib.contextmanager
    def connected(project: Any, *, start_local: bool = False) -> Iterator[str]:
        yield ""

    monkeypatch.setattr("mlops_ray.cluster.on_ray.connected", connected)


def only_source(folder: Path, source: dict[str, Any]) -> Path:
    """A project file with nothing but a source."""
    path = folder / "begun.yaml"
    path.write_text(yaml.safe_dump({"source": source}), encoding="utf-8")
    return path


@pytest.mark.usefixtures("on_local_ray")
@pytest.mark.parametrize("ranges", ["none", "padded"])
def test_flights_pass_the_schema_that_their_source_alone_gives(tmp_path: Path, ranges: Any) -> None:
    source = yaml.safe_load(FLIGHTS.read_text(encoding="utf-8"))["source"]
    found = verbs.infer([only_source(tmp_path, source)], {}, ranges=ranges)
    assert found["rows"] == 49_855
    (tmp_path / "columns.yaml").write_text(found["yaml"], encoding="utf-8")
    project = load_project([FLIGHTS, tmp_path / "columns.yaml"], env={})
    written = load_project(FLIGHTS, env={})
    assert {c.name: (c.dtype, c.nullable) for c in project.columns} == {
        c.name: (c.dtype, c.nullable) for c in written.columns
    }
    assert [c["name"] for c in found["columns"] if c["key"] == "exact"] == ["flight_key"]
    assert project.column("origin").values == ("EWR", "JFK", "LGA")
    assert project.column("carrier").values is None  # one of them has flown once
    table = history(**source["options"])
    assert check(project, table).report.n_quarantined == 0
    # The cluster's blocks and one table in this process show the same.
    here = gather([table])
    assert to_yaml(infer(here, ranges), found["source"], here.n, ranges) == found["yaml"]


@pytest.mark.usefixtures("on_local_ray")
def test_any_file_by_its_name_and_csv_as_it_is_written(tmp_path: Path) -> None:
    n = 3000
    table = pa.table(
        {
            "zip": [f"{i % 90:05d}" for i in range(n)],
            "amount": ["n/a?" if i == 1500 else f"{i}.5" for i in range(n)],
            "at": ["2024-01-01 00:00:00"] * n,
            "note": ["", "x, y"] * (n // 2),
        }
    )
    csv.write_csv(table.slice(0, 1000), tmp_path / "a.csv")
    csv.write_csv(table.slice(1000), tmp_path / "b.csv")
    found = verbs.infer((), {}, data=str(tmp_path))
    assert found["rows"] == n
    columns = {c["name"]: c["column"] for c in found["columns"]}
    assert columns["zip"] == {"name": "zip", "dtype": "string", "pattern": r"\d{5}"}
    assert columns["amount"] == {"name": "amount", "dtype": "float"}
    assert columns["at"] == {"name": "at", "dtype": "timestamp"}
    assert columns["note"]["nullable"]
    assert "99.97 % parse as numbers" in found["yaml"]
    assert "1 row (0.03 %) will go to quarantine: not a float, such as 'n/a?'" in found["yaml"]
    pq.write_table(table, tmp_path / "c.parquet")
    write_deltalake(str(tmp_path / "table"), table)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table.to_pylist()), encoding="utf-8")
    same = [verbs.infer((), {}, data=str(tmp_path / name)) for name in ("c.parquet", "table", "d.jsonl")]
    for other in same:
        assert {c["name"]: c["column"] for c in other["columns"]}["zip"] == columns["zip"]
    with pytest.raises(DataError, match=r"add --kind, one of parquet, csv, json, delta"):
        verbs.infer((), {}, data="rows.dat")
    with pytest.raises(DataError, match="nowhere"):
        verbs.infer((), {}, data=str(tmp_path / "nowhere.parquet"))
    pq.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        verbs.infer((), {}, data=str(tmp_path / "empty.parquet"))
    with pytest.raises(ConfigError, match=r"begun.yaml:\d: source.kind"):
        verbs.infer([only_source(tmp_path, {"kind": "abacus"})], {})


@pytest.mark.usefixtures("on_local_ray")
def test_two_versions_of_a_dataset_differ_where_their_rows_do(tmp_path: Path) -> None:
    overlay = tmp_path / "here.yaml"
    overlay.write_text(f"storage: {{ root: {tmp_path / 'lake'} }}", encoding="utf-8")
    project = load_project([FLIGHTS, overlay], env={})
    paths = [FLIGHTS, overlay]
    with pytest.raises(DataError, match="0 dataset versions; two are needed"):
        verbs.diff(paths, {})
    january, march = history("2013-01-01", "2013-02-01"), history("2013-03-01", "2013-04-01")
    versions = [snapshot(project, rows, {}) for rows in (january, march)]
    found = verbs.diff(paths, {}, versions=(versions[0].version, versions[1].version))
    assert verbs.diff(paths, {}) == found
    assert found["rows"] == [january.num_rows, march.num_rows]
    changes = {(c["column"], c["what"]): c for c in found["changes"]}
    assert changes["event_time", "range"]["detail"].endswith("(100 %) above")
    assert changes["carrier", "categories"]["before"] == {"OO": 1}
    assert changes["dest", "categories"]["after"]["CHO"] == 22
    gone = set(march["dest"].unique().to_pylist()) - set(january["dest"].unique().to_pylist())
    assert set(changes["dest", "categories"]["after"]) == gone
    same = verbs.diff(paths, {}, versions=(versions[0].version, versions[0].version))
    assert (same["changed"], same["changes"]) == (False, [])
    # The same as in one process, whatever the files.
    assert [vars(c) for c in diff(gather([january]), gather([march]))] == found["changes"]
    with pytest.raises(DataError, match="has no dataset version 99"):
        verbs.diff(paths, {}, versions=(1, 99))


@pytest.mark.usefixtures("on_local_ray")
def test_parts_that_lack_a_column_make_it_optional(tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "at": [datetime(2024, 1, 1)] * 2}
    pq.write_table(pa.table(rows | {"x": [1.0, 2.0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table(rows), tmp_path / "2.parquet")
    found = infer(observe(Source(kind="parquet", path=str(tmp_path))))
    column = next(i.column for i in found if i.name == "x")
    assert column is not None
    assert (column.required, column.nullable) == (False, True)


@pytest.mark.usefixtures("on_local_ray")
def test_the_command_prints_yaml_or_a_table(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{i}.parquet") for i in (1, 2)]
    for i, file in enumerate(files, start=1):
        pq.write_table(pa.table({"k": [f"k{j}" for j in range(50)], "x": [i] * 50}), file)
    runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})
    done = runner.invoke(app, ["schema", "infer", files[0]])
    assert done.exit_code == 0, done.stderr
    assert [c["name"] for c in yaml.safe_load(done.stdout)["columns"]] == ["k", "x"]
    written = tmp_path / "columns.yaml"
    assert runner.invoke(app, ["schema", "infer", files[0], "-o", str(written)]).exit_code == 0
    assert written.read_text(encoding="utf-8") == done.stdout
    again = runner.invoke(app, ["schema", "infer", files[0], "-o", str(written)])
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
    table = runner.invoke(app, ["schema", "diff", *files])
    assert (table.exit_code, "50 rows (100 %) above" in table.stdout) == (0, True)
    assert "the same schema" in runner.invoke(app, ["schema", "diff", files[0], files[0], "--exit-code"]).stdout


def test_the_command_needs_no_project_and_no_cluster(tmp_path: Path) -> None:
    """A Ray of its own; exit code 3 says that the two differ."""
    for i in (1, 2):
        pq.write_table(pa.table({"x": [i] * 50}), tmp_path / f"{i}.parquet")
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env = {**kept, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mlops_ray", "schema", "diff", "1.parquet", "2.parquet", "--exit-code", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 3, done.stderr
    (change,) = json.loads(done.stdout)["changes"]
    assert (change["column"], change["what"], change["after"]) == ("x", "range", ["2", "2"])
