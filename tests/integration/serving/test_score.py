"""Batches scored on a local Ray: what comes out, what a killed driver leaves, and the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_ray.config import Project, Source, load_project
from mlops_ray.data import profile
from mlops_ray.data.features import statistics, transformer
from mlops_ray.data.profile import fold
from mlops_ray.data.sources.shards import described
from mlops_ray.errors import DataError
from mlops_ray.serving.bulk.batch import Output
from mlops_ray.serving.bulk.on_score import Scored, score
from mlops_ray.state import Store, VersionRow
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Model, Reference
from tests.fakes import eventually

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
DAY_S = 86_400.0
TARGETS = {"binary": "int", "multiclass": "string", "regression": "float"}


def table(n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "who": [f"k{i}" for i in range(n)],
            "at": pa.array((rng.uniform(0, DAY_S, n) * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            "x": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.1),
            "c": rng.choice(["a", "b"], n),
        }
    )


def source_of(root: Path, task: str, **blocks: Any) -> Path:
    body: dict[str, Any] = {
        "project": "small",
        "task": task,
        "target": "y",
        "key": "who",
        "event_time": "at",
        "storage": {"root": str(root / "root")},
        "source": {"kind": "parquet", "path": str(root / "rows")},
        "columns": [
            {"name": "who", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "y", "dtype": TARGETS[task]},
            {"name": "x", "dtype": "float", "nullable": True, "max": 10},
            {"name": "c", "dtype": "string"},
        ],
        "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["c"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        **blocks,
    }
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path


@dataclass(frozen=True)
class World:
    """A project with a version."""

    folder: Path
    path: Path
    project: Project
    row: VersionRow

    @property
    def model(self) -> Model:
        return model.load(self.row.artifact, self.row.sha256)

    def score(self, data: str | Source, output: str, **more: Any) -> Scored:
        source = described(data) if isinstance(data, str) else data
        how = {"now": 1.7e9, "on_progress": lambda stage, done, total: None, **more}
        return score(self.project, source, self.row, Output.parse(output), **how)


def made(folder: Path, task: str = "binary", **blocks: Any) -> World:
    path = source_of(folder, task, **blocks)
    project = load_project([path], env={})
    rows = table(400)
    columns = statistics.to_columns(project.features, rows)
    partial = statistics.fold(project.features, rows)
    fitted = transformer.transformer(project.features, partial)
    signal = np.nan_to_num(columns["x"]) + (columns["c"] == "a")
    classes: tuple[str | int, ...] = {"binary": (0, 1), "multiclass": ("lo", "mid", "hi"), "regression": ()}[task]
    y = signal if task == "regression" else np.digitize(signal, [0.0, 1.0]) if task == "multiclass" else signal > 0.5
    estimator = LinearRegression() if task == "regression" else LogisticRegression()
    matrix = fitted.transform(statistics.to_frame(project.features, columns))
    pipeline = Pipeline([("features", fitted), ("model", estimator.fit(matrix, np.asarray(y, dtype=float)))])
    bins = transformer.bins(project.features, partial)
    shown = None if task == "regression" else np.linspace(0, 1, 400)
    reference = Reference(bins, DAY_S, ((0.0, profile.fold(bins, columns, shown)),), ((0.0, 400, 1.0, 0.0),))
    about = {"task": task, "classes": classes, "features": project.features, "target": "y", "lock": {}, "recipe": {}}
    sha256 = model.save(folder / "artifact", pipeline, reference=reference, holdout=columns, **about)
    row = VersionRow("small", 3, "run", str(folder / "artifact"), sha256, "/d@1", "registered", 1.0, {})
    (folder / "root").mkdir()
    Store.open(project.storage.state).run(lambda tx: tx.save_version(row))
    return World(folder, path, project, row)


def parts(folder: Path, n_files: int, n_rows: int) -> str:
    (folder / "rows").mkdir()
    whole = table(n_files * n_rows, seed=1)
    for i in range(n_files):
        pq.write_table(whole.slice(i * n_rows, n_rows), folder / f"rows/{i}.parquet")
    return str(folder / "rows")


def expected(world: World, rows: pa.Table) -> np.ndarray:
    return world.model.score(statistics.to_columns(world.project.features, rows))


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("task", list(TARGETS))
def test_scores_are_those_of_a_request_whatever_the_task(tmp_path: Path, task: str) -> None:
    world = made(tmp_path, task)
    data = parts(tmp_path, 3, 500)
    done = world.score(data, f"{tmp_path}/out")
    rows = pq.read_table(data)
    found = pq.read_table(tmp_path / "out")
    assert found["key"].to_pylist() == rows["who"].to_pylist()
    assert found["event_time"] == rows["at"]
    answers = expected(world, rows)
    shown = answers.max(axis=1) if task == "multiclass" else answers
    np.testing.assert_array_equal(found["score"].to_numpy(), shown)
    if task == "multiclass":
        np.testing.assert_array_equal(np.array(found["scores"].to_pylist()), answers)
        assert set(found["label"].to_pylist()) <= {"lo", "mid", "hi"}
    elif task == "binary":
        assert found["label"].to_pylist() == (answers >= 0.5).astype(int).tolist()
    columns = statistics.to_columns(world.project.features, rows)
    whole = fold(world.model.reference.bins, columns, None if task == "regression" else shown)
    assert done.profile.to_dict() == whole.to_dict()
    assert (done.manifest["read"], done.manifest["scored"], done.manifest["blocks"]) == (1500, 1500, 3)


@pytest.mark.usefixtures("ray_local")
def test_bad_rows_stand_aside_with_their_reasons(tmp_path: Path) -> None:
    rows = [
        '{"who": "a", "at": "2026-01-01", "x": 0.5, "c": "a"}',
        '{"who": null, "at": "2026-01-01", "x": 0.5, "c": "a"}',
        '{"who": "b", "at": "someday", "x": "big", "c": "a"}',
        '{"who": "far", "at": "2026-01-01", "x": 11, "c": "b"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    for name, rule, refused in (("types", "types", 2), ("all", "all", 3)):
        folder = tmp_path / name
        folder.mkdir()
        world = made(folder, serving={"request_rules": rule})
        done = world.score(str(tmp_path / "rows.jsonl"), f"{folder}/out").manifest
        assert (done["read"], done["scored"], done["rejected"]) == (4, 4 - refused, refused)
        aside = pq.read_table(folder / f"out/_mlops_ray/score-{done['batch']}/rejects")
        reasons = dict(zip(aside["key"].to_pylist(), aside["rules"].to_pylist(), strict=True))
        assert reasons[None] == ["who.null"]
        assert reasons["b"] == ["at.dtype", "x.dtype"]
        assert ("far" in reasons) is (rule == "all")
        assert '"someday"' in next(row for row in aside["row"].to_pylist() if '"b"' in row)


@pytest.mark.usefixtures("ray_local")
def test_key_and_time_may_be_missing_where_the_model_takes_neither(tmp_path: Path) -> None:
    world = made(tmp_path)
    (tmp_path / "rows.csv").write_text("x,c\n0.5,a\n,b\n")
    world.score(str(tmp_path / "rows.csv"), f"{tmp_path}/out")
    found = pq.read_table(tmp_path / "out")
    assert found["key"].to_pylist() == ["0:0", "0:1"]
    assert {t.timestamp() for t in found["event_time"].to_pylist()} == {1.7e9}
    (tmp_path / "other.csv").write_text("who,at,x\na,2026-01-01,0.5\n")
    with pytest.raises(DataError, match="column is missing"):
        world.score(str(tmp_path / "other.csv"), f"{tmp_path}/other")


@pytest.mark.usefixtures("ray_local")
def test_a_delta_table_gets_a_batch_once(tmp_path: Path) -> None:
    world = made(tmp_path)
    data = parts(tmp_path, 2, 100)
    output = f"delta:{tmp_path}/scores"
    world.score(data, output)
    with pytest.raises(DataError, match="was begun there; add --resume"):
        world.score(data, output)
    again = world.score(data, output, resume=True).manifest
    assert again["resumed"] == 2
    assert DeltaTable(tmp_path / "scores").to_pyarrow_table().num_rows == 200
    write_deltalake(tmp_path / "rows-table", table(50))
    world.score(str(tmp_path / "rows-table"), output)  # another batch comes on top
    assert DeltaTable(tmp_path / "scores").to_pyarrow_table().num_rows == 250


@pytest.mark.usefixtures("ray_local")
def test_blocks_of_ray_data_are_scored_too(tmp_path: Path) -> None:
    world = made(tmp_path)
    source = Source(kind="python", function="tests.integration.serving.test_score:dataset")
    done = world.score(source, f"{tmp_path}/out").manifest
    found = pq.read_table(tmp_path / "out")
    assert sorted(found["key"].to_pylist()) == sorted(f"k{i}" for i in range(300))
    assert done["blocks"] == 3
    again = world.score(source, f"{tmp_path}/out", resume=True).manifest  # begins anew, and doubles nothing
    assert again["resumed"] == 0
    assert pq.read_table(tmp_path / "out").num_rows == 300


def dataset() -> Any:
    import ray.data

    return ray.data.from_arrow([table(300).slice(i, 100) for i in (0, 100, 200)])


@pytest.mark.usefixtures("ray_local")
def test_another_input_or_output_is_not_taken_up(tmp_path: Path) -> None:
    world = made(tmp_path)
    data = parts(tmp_path, 2, 100)
    world.score(data, f"{tmp_path}/out")
    pq.write_table(table(10), tmp_path / "rows/1.parquet")
    with pytest.raises(DataError, match="input or version is another one than was begun there"):
        world.score(data, f"{tmp_path}/out", resume=True)
    with pytest.raises(DataError, match="is there already; name another output"):
        world.score(data, f"{tmp_path}/out")


@pytest.mark.usefixtures("ray_local")
def test_a_batch_that_was_cut_off_is_taken_up(tmp_path: Path) -> None:
    world = made(tmp_path)
    data = parts(tmp_path, 12, 200)

    def cut(stage: str, done: int, total: int) -> None:
        if done >= 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.score(data, f"{tmp_path}/out", on_progress=cut)
    torn = tmp_path / "out" / ".1f-part-00011.parquet"
    torn.write_bytes(b"half")
    done = world.score(data, f"{tmp_path}/out", resume=True).manifest
    assert 2 <= done["resumed"] < 12
    assert (done["scored"], done["blocks"]) == (2400, 12)
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == pq.read_table(data)["who"].to_pylist()
    assert not torn.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_killed_driver_is_taken_up_and_doubles_nothing(tmp_path: Path) -> None:
    """`kill -9` of the command in the middle of ten blocks; the local Ray that it had started dies with it."""
    world = made(tmp_path)
    data = parts(tmp_path, 10, 40_000)
    command = [
        sys.executable,
        "-m",
        "mlops_ray",
        "score",
        "-c",
        str(world.path),
        "-i",
        data,
        "-o",
        str(tmp_path / "out"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([*command, "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    blocks = tmp_path / "out" / "_mlops_ray"
    eventually(lambda: bool(list(blocks.glob("score-*/blocks/[0-9]*.json"))) or driver.poll() is not None, within_s=90)
    driver.kill()
    driver.communicate()
    left = len(list(blocks.glob("score-*/blocks/[0-9]*.json")))
    assert not list(blocks.glob("score-*/manifest.json"))
    done = world.score(data, str(tmp_path / "out"), resume=True).manifest
    assert 0 < done["resumed"] == left < 10
    found = pq.read_table(tmp_path / "out")
    assert found["key"].to_pylist() == pq.read_table(data)["who"].to_pylist()
    assert not [p for p in (tmp_path / "out").rglob(".*") if p.suffix == ".parquet"]
    untouched = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.parquet")}
    assert world.score(data, str(tmp_path / "out"), resume=True).manifest["resumed"] == 10
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


def test_the_command_scores_and_says_so(tmp_path: Path) -> None:
    world = made(tmp_path)
    parts(tmp_path, 2, 100)
    command = [sys.executable, "-m", "mlops_ray", "score", "-c", str(world.path), "-i", "source"]
    command += ["-o", "out", "--profile", "profile.json", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    result = json.loads(ran.stdout)
    assert (result["version"], result["scored"]) == (3, 200)
    assert json.loads((tmp_path / "profile.json").read_text())["rows"] == 200
    shutil.rmtree(tmp_path / "out")
