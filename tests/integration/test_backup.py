"""`mlops-ray backup` and `restore` from the command line: state, MLflow's registry, artifacts, tables. No cluster."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray import ledger
from mlops_ray.cli import app
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.errors import ArtifactRefused, DataError
from mlops_ray.governance.on_backup import registry_of
from mlops_ray.rollout.orders import begin, first_version
from mlops_ray.state import Store, VersionRow
from mlops_ray.training.artifact import model
from mlops_ray.training.on_registry import Registry, versions_of
from tests import fakes

ARTIFACT = Path(__file__).parents[1] / "data/release-0002/artifact"
SHA = "73b6674661af059237493c3e7219fef19966ed2b08cdfa82c18a422283de5cad"


class Place:
    """A project in a folder, with versions in MLflow, an artifact and a Delta table."""

    def __init__(self, folder: Path, mlflow: str = "mlflow.db") -> None:
        self.folder, self.file = folder, folder / "small.yaml"
        # Beside the root: MLflow holds on to its databases, also to one that is removed.
        storage = {"root": str(folder / "root"), "tracking_uri": f"sqlite:///{folder}/{mlflow}"}
        self.project: Project = fakes.project(storage=storage)
        body = self.project.model_dump(mode="json", exclude_unset=True)
        self.file.write_text(yaml.safe_dump(body), encoding="utf-8")

    @property
    def store(self) -> Store:
        return Store.open(self.project.storage.state)

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(app, [words[0], "-c", str(self.file), *words[1:]])

    def told(self, *words: str, code: int = 0) -> dict[str, Any]:
        result = self.call(*words, "--json")
        assert result.exit_code == code, (result.output, result.exception)
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def fill(self) -> None:
        shutil.copytree(ARTIFACT, self.project.storage.path("models", "small", "run1"))
        store = self.store
        registry = Registry(self.project, store)
        registry.client.create_registered_model("small")
        for number in (1, 2, 3):  # MLflow gave 2 away and took it back
            registry.client.create_model_version("small", f"/runs/{number}", f"run{number}", tags={"engine": "onnx"})
        registry.client.delete_model_version("small", "2")
        for number in (1, 3):
            address = self.project.storage.path("models", "small", "run1")
            row = VersionRow(
                "small", number, f"run{number}", address, SHA, "/d@1", "registered", 1.0, {"engine": "onnx"}
            )
            store.run(lambda tx, row=row: tx.save_version(row))  # type: ignore[misc]
        first_version(store, self.project, now=time.time(), version=1)
        registry.set_alias("champion", 1)
        registry.client.set_registered_model_alias("small", "favourite", "3")
        now = time.time()
        store.run(
            lambda tx: begin(tx, self.project, 3, supersede=False, who="ann", why="try", now=now, machine_now=now)
        )
        uri = self.project.storage.path("log", "small", "predictions")
        rows = pa.table({"x": [1.0, 2.0]})
        lake.commit(uri, [lake.write_file(uri, "part-0.parquet", rows)], rows.schema, "a" * 64, {})
        store.close()

    def seen(self) -> dict[str, Any]:
        """What must be the same after a restore."""
        store = self.store
        with store.read() as tx:
            rows, served = tx.versions("small"), tx.serving("small")
            assert served is not None
            found = {
                "versions": rows,
                "serving": served.spec,
                "rollouts": tx.rollouts("small"),
                "ledger": [e for e in ledger.entries(tx, "small") if e.kind != ledger.RESTORED],
            }
        registry = registry_of(self.project, rows)
        store.close()
        return found | {"mlflow": registry}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.fill()
    return made


def test_everything_is_as_it_was(place: Place, tmp_path: Path) -> None:
    before = place.seen()
    assert before["mlflow"]["aliases"] == {"champion": 1, "favourite": 3}
    written = place.told("backup", "-o", str(tmp_path / "x.tar.gz"), "--data")
    assert (written["versions"], written["models"], written["tables"]) == (2, 1, 1)

    store = place.store
    registry = Registry(place.project, store)
    with store.begin() as tx:
        row = tx.version("small", 1)
        tx.save_version(replace(row, version=4, run_id="run4"))
        tx.save_version(replace(row, tags={}, status="rejected"))
        ledger.append(tx, "small", "promoted", "v4", "x", "y", {}, 9.0)
    registry.client.create_model_version("small", "/runs/4", "run4")
    registry.set_alias("champion", 4)  # leaves an anchor of an entry that the backup does not have
    registry.client.delete_registered_model_alias("small", "favourite")
    store.close()

    refused = place.call("restore", str(tmp_path / "x.tar.gz"))
    assert isinstance(refused.exception, DataError)
    assert "--force replaces it" in str(refused.exception)
    found = place.told("restore", str(tmp_path / "x.tar.gz"), "--force", "--reason", "a bad day")
    assert (found["ok"], found["registry"]["given_up"], found["registry"]["made"]) == (True, [4], [])
    assert "are not met, and whoever asked accepts that" in found["says"]
    assert place.seen() == before
    verified = CliRunner().invoke(app, ["ledger", "verify", "-c", str(place.file), "--json"])
    assert verified.exit_code == 3, verified.output  # that a backup was restored is what the ledger claims
    lost = [f"--accept-loss={seq}:{sealed}" for seq, sealed in json.loads(verified.output)["claimed"]]
    known = CliRunner().invoke(app, ["ledger", "verify", "-c", str(place.file), *lost])
    assert known.exit_code == 0, known.output
    store = place.store
    assert first_version(store, place.project, now=2e9) == 1
    store.close()


def test_a_machine_that_lost_everything_has_it_back(place: Place, tmp_path: Path) -> None:
    before = place.seen()
    place.told("backup", "-o", str(tmp_path / "x.tar.gz"), "--data")
    shutil.rmtree(tmp_path / "root")
    place = Place(tmp_path, "new.db")
    found = place.told("restore", str(tmp_path / "x.tar.gz"))
    assert (found["models"], found["tables"], found["registry"]["made"]) == (1, ["log/small/predictions"], [1, 3])
    assert found["ok"]
    after = place.seen()
    assert after.pop("mlflow")["versions"] == before.pop("mlflow")["versions"]
    assert after == before
    row = after["versions"][0]
    assert model.load(Path(row.artifact), row.sha256).task == "binary"
    assert lake.committed(place.project.storage.path("log", "small", "predictions"), "x") == -1


def test_a_restore_changes_nothing_while_the_project_is_up(place: Place, tmp_path: Path) -> None:
    place.told("backup", "-o", str(tmp_path / "x.tar.gz"), "--no-models")
    store = place.store
    lease = store.acquire("rollout:small", "controller-9", 20.0, time.time())
    refused = place.call("restore", str(tmp_path / "x.tar.gz"), "--force")
    assert "controller-9 acts on it; `mlops-ray down` first" in str(refused.exception)
    store.release(lease)
    store.close()
    assert place.told("restore", str(tmp_path / "x.tar.gz"), "--force")["models"] == 0


def test_what_makes_no_backup(place: Place, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    assert "is there already" in str(place.call("backup", "-o", str(tmp_path / "there")).exception)
    named = place.told("backup", "-o", str(tmp_path))["file"]
    assert Path(named).name.startswith("small-")
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    body = yaml.safe_load(other.file.read_text()) | {"project": "another"}
    other.file.write_text(yaml.safe_dump(body))
    assert "is of 'small', and the project file is of 'another'" in str(other.call("restore", named).exception)
    (tmp_path / "root/models/small/run1/model.onnx").write_bytes(b"altered")
    assert isinstance(place.call("backup", "-o", str(tmp_path / "y.tar.gz")).exception, ArtifactRefused)
    assert not (tmp_path / "y.tar.gz").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_number_of_another_run_in_mlflow_stops_it_before_the_state(place: Place, tmp_path: Path) -> None:
    place.told("backup", "-o", str(tmp_path / "x.tar.gz"))
    shutil.rmtree(tmp_path / "root")
    (tmp_path / "root").mkdir()
    place = Place(tmp_path, "new.db")
    store = place.store
    registry = Registry(place.project, store)
    registry.client.create_registered_model("small")
    registry.client.create_model_version("small", "/runs/9", "run9")
    refused = place.call("restore", str(tmp_path / "x.tar.gz"))
    assert "v1 is of run run9 there and of run run1 in the backup" in str(refused.exception)
    with store.read() as tx:
        assert tx.versions("small") == []
    assert [each.run_id for each in versions_of(registry)] == ["run9"]
    store.close()
