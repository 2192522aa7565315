"""Dataset versions under processes that die, and the verbs that show, compare and remove them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from mlops_ray.cli import app
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.content import row_hash
from mlops_ray.state import Store, VersionRow

HOUR_US = 3_600_000_000


def table(n: int, seed: int = 3) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table(
        {
            "id": [f"k{i:06d}" for i in range(n)],
            "at": pa.array(np.arange(n) * HOUR_US).cast(pa.timestamp("us", "UTC")),
            "y": draw.integers(0, 2, n),
            "x": np.round(draw.normal(5, 1, n), 6),
        }
    )


def project_file(root: Path, source: list[str]) -> Path:
    described = {
        "project": "tiny",
        "task": "binary",
        "target": "y",
        "key": "id",
        "event_time": "at",
        "storage": {"root": str(root / "lake")},
        "source": {"kind": "parquet", "path": source},
        "columns": [
            {"name": "id", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "y", "dtype": "int"},
            {"name": "x", "dtype": "float", "nullable": True, "min": 0},
        ],
        "validation": {"max_bad_share": 0.5, "min_rows": 1, "unique": ["id"]},
        "features": {"numeric": {"columns": ["x"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
    }
    path = root / "project.yaml"
    path.write_text(json.dumps(described))  # JSON is YAML
    return path


def on_disk(uri: str) -> set[str]:
    """Data files and what is kept beside versions, whole or not."""
    root = Path(uri)
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    tables_own = ("_delta_log/0", "_mlops_ray/removed/", "_mlops_ray/current.json", "_writer.lock")
    return {p for p in found if not p.startswith(tables_own)}


def named(uri: str) -> set[str]:
    """What the versions that stand refer to."""
    found = set()
    for version in lake.versions(uri):
        found.update(lake.files(version))
        found.update(f"_mlops_ray/{version.content_hash}/{name}" for name in lake.sidecars(uri, version.content_hash))
    return found


# --- processes that die ---

BUTCHER = """
import os, random, signal, sys, time
import pyarrow as pa
from mlops_ray.data import lake
from mlops_ray.data.content import NO_ROWS, row_hash
from deltalake import DeltaTable
from mlops_ray.errors import DataError

uri, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def check():
    whole = list(lake.versions(uri))
    for version in whole[:4]:
        rows = lake.read(version)
        assert row_hash(rows).hex() == version.content_hash, version
        assert lake.read_sidecar(uri, version.content_hash, "n") == str(rows.num_rows).encode(), version
        assert lake.find(uri, version.content_hash) == version
    assert [v.version for v in whole] == sorted((v.version for v in whole), reverse=True)
    if whole:
        assert row_hash(DeltaTable(uri).to_pyarrow_table()).hex() == whole[0].content_hash
    with open(uri + ".litter", "a") as file:
        file.write("".join(lake.garbage(uri, now=time.time() + 1, older_than_s=0).files))

def work(run):
    # Versions of two files each; every third time also a collection that keeps two versions.
    for i in range(10_000):
        tables = [pa.table({"x": [run, i, part]}) for part in (0, 1)]
        content = sum((row_hash(t) for t in tables), NO_ROWS).hex()
        files = [lake.write_file(uri, f"run-{run}-{i}/{part}.parquet", t) for part, t in enumerate(tables)]
        lake.write_sidecar(uri, content, "n", b"6")
        lake.commit(uri, files, tables[0].schema, content, {"run": run})
        if i % 3 == 2:
            now = time.time() + 1
            lake.collect(lake.garbage(uri, now=now, older_than_s=0, keep=2), now=now)

draw = random.Random(seed)
for run in range(kills):
    pid = os.fork()  # this process never opens a table, so it has no threads to lose
    if pid == 0:
        try:
            check()
            work(run)
        except BaseException as exc:
            import traceback
            traceback.print_exc()
        os._exit(1)
    time.sleep(draw.uniform(0.01, 0.15))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(f"run {run} failed by itself")
"""


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_whole_versions_and_litter_that_can_be_removed(tmp_path: Path, kills: int):
    uri, seed = str(tmp_path / "data"), random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-c", BUTCHER, uri, str(kills), str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (seed, done.stderr)
    standing = list(lake.versions(uri))
    assert standing
    assert all(row_hash(lake.read(v)).hex() == v.content_hash for v in standing)
    assert Path(f"{uri}.litter").read_text(), "no kill left anything: they came too late or too early"
    later = time.time() + 10
    lake.collect(lake.garbage(uri, now=later, older_than_s=1), now=later)
    assert list(lake.versions(uri)) == standing
    assert on_disk(uri) == named(uri)


VICTIM = """
import sys
import ray
from mlops_ray.config import load_project
from mlops_ray.data import lake, on_ray

def say(what):
    print(what, flush=True)

project = load_project(sys.argv[2], env={})
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
commit, keep = lake.commit, lake.write_sidecar
lake.commit = lambda *args, **named: say("commit") or commit(*args, **named)
lake.write_sidecar = lambda *args: say("beside") or keep(*args)
say("start")
print(on_ray.prepare(project, now=0.0, on_progress=lambda done, total: say("rows")).dataset.content_hash, flush=True)
"""

POINTS = [("rows", 0.3), ("commit", 0.03), ("beside", 0.02), ("start", 1.0)]
"""What the process says when it gets there, and within how many seconds from then it is killed."""


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended in any case."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("kills", [2, pytest.param(32, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_a_killed_prepare_leaves_a_version_or_none_and_the_next_one_is_undisturbed(
    tmp_path: Path, victims: list[subprocess.Popen[str]], kills: int
):
    import ray

    from mlops_ray.data.on_ray import prepare

    whole = table(60_000).set_column(3, "x", pa.array(np.r_[np.full(100, -1.0), np.ones(59_900)]))
    for part in range(6):
        pq.write_table(whole.slice(part * 10_000, 10_000), tmp_path / f"part-{part}.parquet", row_group_size=5_000)
    file = project_file(tmp_path, [str(tmp_path / "part-*.parquet")])
    project = load(file)
    undisturbed = prepare(load(file, tmp_path / "other"), now=0.0).dataset
    assert undisturbed.n_rows == 59_900
    uri, litter = project.storage.path("data", "tiny"), project.storage.path("quarantine", "tiny")
    address = ray.get_runtime_context().gcs_address
    for i in range(kills):
        command = [sys.executable, "-c", VICTIM, address, str(file)]
        victims.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        kill_at(victims[-1], *POINTS[i % len(POINTS)])
    found = list(lake.versions(uri))
    assert len(found) <= 1
    assert all(row_hash(lake.read(v)).hex() == undisturbed.content_hash for v in found)
    again = prepare(project, now=0.0).dataset
    assert (again.content_hash, again.n_rows) == (undisturbed.content_hash, undisturbed.n_rows)
    assert found in ([], [again])
    assert lake.read_sidecar(uri, again.content_hash, "validation.json") is not None
    ended = time.monotonic() + 20
    while on_disk(uri) != named(uri) or on_disk(litter) != named(litter):
        assert time.monotonic() < ended, on_disk(uri) ^ named(uri)
        for where in (uri, litter):  # what a dead driver's tasks write last comes a moment after it
            lake.collect(lake.garbage(where, now=time.time() + 1, older_than_s=0), now=time.time())
        time.sleep(0.2)
    assert row_hash(lake.read(again)).hex() == undisturbed.content_hash


def load(file: Path, root: Path | None = None) -> Project:
    described = json.loads(file.read_text())
    if root is not None:
        described["storage"]["root"] = str(root)
    return Project.model_validate(described)


def kill_at(process: subprocess.Popen[str], point: str, within_s: float) -> None:
    """SIGKILL at a random moment after the process has said `point`, unless it was quicker."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == point:
            time.sleep(random.uniform(0, within_s))
            break
    process.kill()
    process.wait()


# --- the verbs ---


def call(*args: object) -> Any:
    done = CliRunner().invoke(app, ["data", *map(str, args), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def put(project: Project, rows: pa.Table, **made_by: Any) -> lake.DatasetVersion:
    uri, content = project.storage.path("data", project.project), row_hash(rows).hex()
    file = lake.write_file(uri, f"run-{content[:8]}/part.parquet", rows)
    lineage = {"made_by": made_by or {"verb": "prepare"}, "uris": ["/source"], "parents": []}
    return lake.commit(uri, [file], rows.schema, content, lineage)


def test_versions_are_listed_shown_compared_and_removed(tmp_path: Path):
    file = project_file(tmp_path, ["unused"])
    project, whole = load(file), table(100)
    where = ("-c", file)
    assert call("list", *where)["versions"] == []
    first = put(project, whole)
    lake.write_sidecar(first.uri, first.content_hash, "validation.json", b'{"n_read": 100}')
    second = put(project, whole.slice(10).set_column(3, "x", pa.array([9.0, *whole["x"].to_pylist()[11:]])))
    third = put(project, whole.slice(50), verb="retrain", decision="tiny-1")

    listed = call("list", *where)["versions"]
    assert [v["version"] for v in listed] == [third.version, second.version, first.version]
    assert [v["rows"] for v in listed] == [50, 90, 100]
    assert listed[0]["made_by"] == {"verb": "retrain", "decision": "tiny-1"}
    human = CliRunner().invoke(app, ["data", "list", "-c", str(file)]).output
    assert "retrain tiny-1" in human

    shown = call("show", first.version, *where)
    assert shown["columns"]["id"] == {"dtype": "string", "nulls": 0, "min": "k000000", "max": "k000099"}
    assert shown["columns"]["at"]["min"] == "1970-01-01T00:00:00+00:00"
    assert (shown["report"], shown["beside"]) == ({"n_read": 100}, {"validation.json": 15})
    assert "n_read 100" in CliRunner().invoke(app, ["data", "show", "1", "-c", str(file)]).output

    changed = call("diff", first.version, second.version, *where)
    assert (changed["n_added"], changed["n_removed"], changed["n_changed"], changed["n_same"]) == (0, 10, 1, 89)
    ((old, new),) = changed["changed"]
    assert (old["id"], new["x"]) == ("k000010", 9.0)
    human = CliRunner().invoke(app, ["data", "diff", "1", "2", "-c", str(file)]).output
    assert "10 removed, 1 changed" in human
    assert "-> 9.0" in human

    fourth = put(project, whole.slice(0, 20))
    ask = ("gc", *where, "--keep", 1, "--older-than", "0s")
    time.sleep(0.01)  # a version must be older than that
    planned = call(*ask)
    assert not planned["removed"]
    assert [v["version"] for v in planned["tables"][0]["versions"]] == [third.version, second.version, first.version]
    assert len(call("list", *where)["versions"]) == 4

    Path(project.storage.path()).mkdir(exist_ok=True)
    store = Store.open(project.storage.state)
    tags = {"dataset.content_hash": second.content_hash}
    trained = VersionRow("tiny", 7, "run", "artifact", "sha", "label", "registered", 0.0, tags)
    store.run(lambda tx: tx.save_version(trained))
    (kept,) = call(*ask, "--yes")["tables"][0]["kept"]
    assert kept == {"version": second.version, "why": "model v7 was trained on it"}
    assert [v["version"] for v in call("list", *where)["versions"]] == [fourth.version, second.version]
    assert call("list", *where)["versions"][1]["models"] == [7]
    gone = CliRunner().invoke(app, ["data", "show", "1", "-c", str(file)])
    assert "was removed on" in str(gone.exception)
    with pytest.raises(FileNotFoundError):
        DeltaTable(first.uri, version=first.version).to_pyarrow_table()


def test_the_set_that_retraining_builds_on_stays(tmp_path: Path):
    file = project_file(tmp_path, ["unused"])
    project, whole = load(file), table(30)
    for n in (10, 20):
        put(project, whole.slice(0, n))
    for n in (5, 6, 7):
        put(project, whole.slice(0, n), verb="retrain", decision=f"tiny-{n}")
    time.sleep(0.01)
    data, _ = call("gc", "-c", file, "--before", "2999-01-01", "--older-than", "0s", "--yes")["tables"]
    why = {entry["version"]: entry["why"] for entry in data["kept"]}
    assert why == {5: "it is the newest", 2: "training and retraining build on it: it is what the source said last"}


@pytest.mark.parametrize("args", [("--older-than", "soon"), ("--before", "yesterday"), ("--keep", "0")])
def test_what_is_no_time_or_number_is_refused(tmp_path: Path, args: tuple[str, str]):
    done = CliRunner().invoke(app, ["data", "gc", "-c", str(project_file(tmp_path, ["unused"])), *args])
    assert done.exit_code == 2


def test_a_retrains_version_names_its_decision_and_its_parent(tmp_path: Path):
    from mlops_ray.data.lineage import last_prepared
    from mlops_ray.retraining.on_ray import training_set
    from mlops_ray.serving.log import tables as log
    from mlops_ray.serving.places import labels_uri, log_uri

    file = project_file(tmp_path, ["unused"])
    project, whole = load(file), table(400)
    base = put(project, whole.slice(0, 200))
    live = whole.slice(200)
    n, hours = live.num_rows, live["at"].cast(pa.int64()).to_numpy() // HOUR_US
    days = [log.day_of(float(hour) * 3600) for hour in hours]
    same = {"prediction_id": [f"p{i}" for i in range(n)], "day": days, "at": live["at"]}
    schema = log.prediction_schema(project)
    filled = same | {"event_time": live["at"], "key": live["id"], "x_x": live["x"].cast(pa.float32())}
    columns = [filled.get(field.name, pa.nulls(n, field.type)) for field in schema]
    lake.append_once(log_uri(project), pa.table(columns, schema=schema), "spool", 0, ("day",))
    sent = same | {"time": live["at"], "label": live["y"].cast(pa.float64())}
    columns = [sent.get(field.name, pa.nulls(n, field.type)) for field in log.label_schema(project)]
    labels = pa.table(columns, schema=log.label_schema(project))
    lake.append_once(labels_uri(project), labels, "spool", 0, ("day",))

    made = training_set(project, 500 * 3600.0, "tiny-1")
    assert made.lineage["made_by"] == {"verb": "retrain", "decision": "tiny-1", "decided": 500 * 3600.0}
    assert made.lineage["parents"] == [{"version": base.version, "content_hash": base.content_hash}]
    assert made.lineage["uris"] == [log_uri(project), labels_uri(project)]
    assert (made.lineage["live_rows"], made.n_rows) == (200, 400)
    assert last_prepared(base.uri) == base
    assert training_set(project, 500 * 3600.0, "tiny-2") == made
    assert call("list", "-c", file)["versions"][0]["parents"] == made.lineage["parents"]
