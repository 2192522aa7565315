"""What is gathered of a version is what was recorded, on each kind of store."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from mlops_ray.config import About
from mlops_ray.data import lake
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.lineage import Code, lineage
from mlops_ray.errors import ModelNotFound
from mlops_ray.governance.approvals import approve
from mlops_ray.governance.card import card
from mlops_ray.governance.lineage import lineage as lineage_of
from mlops_ray.governance.on_mlflow import gather
from mlops_ray.retraining.on_ray import decided
from mlops_ray.rollout.orders import begin, first_version
from mlops_ray.state import VersionRow
from mlops_ray.training.on_mlflow import Tracker
from mlops_ray.training.on_registry import Registry
from tests.integration.training.conftest import Room
from tests.integration.training.test_registry import register
from tests.unit.governance.conftest import GATES, PIXEL


def commit(room: Room, content: str, *parents: DatasetVersion) -> DatasetVersion:
    uri = room.project.storage.path("data", room.project.project)
    table = pa.table({"y": [0, 1]})
    file = lake.write_file(uri, f"{content[:4]}/rows.parquet", table)
    made_by = {"verb": "retrain", "decision": "d1"} if parents else {"verb": "prepare"}
    origin = lineage(room.project, made_by=made_by, uris=["/data/a.csv"], code=Code("c" * 40, False), parents=parents)
    return lake.commit(uri, [file], table.schema, content, origin)


def trained(room: Room, dataset: DatasetVersion, decision: str | None = None) -> VersionRow:
    tracker, registry = Tracker(room.project, room.store), Registry(room.project, room.store)
    tags = {"dataset": f"{dataset.uri}@{dataset.version}", "dataset.content_hash": dataset.content_hash}
    tags |= {"decision": decision} if decision is not None else {}
    with tracker.run("train", tags) as run:
        tracker.dataset(run, dataset)
        for number, status in enumerate(("done", "stopped", "failed")):
            tracker.trial(
                run,
                number,
                "LogisticRegression",
                params={"C": number},
                status=status,  # type: ignore[arg-type]
                metric="log_loss",
                score=0.5 if status != "failed" else None,
                started=1.0,
                ended=2.0,
                error="boom" if status == "failed" else None,
            )
        tracker.files(run, "gates", {"gates.json": json.dumps(GATES)})
        tracker.files(run, "plots", {"roc.png": PIXEL, "notes.txt": "no picture"})
        tracker.log(run, params={"C": 1.0}, metrics={"seconds.search": 1.5}, at=time.time())
        return register(registry, run, dataset=tags["dataset"], tags=tags | {"engine": "onnx"})


def test_a_versions_record_is_gathered_from_everywhere(make_room: Callable[..., Room]) -> None:
    room = make_room(gates={"approval": True})
    name, store = room.project.project, room.store
    base = commit(room, "a" * 64)
    first = trained(room, base)
    store.run(lambda tx: approve(tx, name, 1, who="ann", why="read the card", now=9.0))
    assert first_version(store, room.project, now=10.0) == first.version
    decision = decided(name, "drift", "x drifted", 11.0)
    store.run(lambda tx: tx.save_retrain(decision))
    second = trained(room, commit(room, "b" * 64, base), decision.id)
    store.run(lambda tx: approve(tx, name, 2, who="ben", why="fine", now=12.0))
    with store.begin() as tx:
        begin(tx, room.project, second.version, supersede=False, who="ann", why="x drifted", now=20.0, machine_now=20.0)

    facts = gather(room.project, store, 2, plots=True)
    assert facts.missing == {}
    assert facts.run is not None
    assert facts.run.trials == {"done": 1, "stopped early": 1, "failed": 1}
    assert facts.run.plots == {"roc": PIXEL}
    assert facts.run.config is not None
    assert facts.run.config["project"] == name
    found = lineage_of(facts)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert found.data is not None
    assert [parent["content_hash"] for parent in found.data["parents"]] == [base.content_hash]
    assert found.decision is not None
    assert found.decision["reason"] == "x drifted"
    assert [given["who"] for given in found.approvals["given"]] == ["ben"]
    assert [rollout["phase"] for rollout in found.rollouts] == ["starting"]
    assert [move["what"] for move in found.rollouts[0]["moves"]] == ["rollout started"]
    assert found.environment is not None
    assert found.environment["distributions"]["scikit-learn"]
    assert found.gates is not None
    assert found.gates["verdict"] == "pass"
    page = card(facts, About(owner="Ops")).html()
    assert "data:image/png;base64," in page
    assert "ben" in page

    old = gather(room.project, store, 1)
    assert (old.serves, old.retrain, old.rollouts) == ("stable", None, ())
    assert [entry.kind for entry in old.entries] == ["approved", "promoted"]
    with pytest.raises(ModelNotFound):
        gather(room.project, store, 3)


def test_what_has_gone_is_named(room: Room) -> None:
    base = commit(room, "a" * 64)
    row = trained(room, base)
    Registry(room.project, room.store).client.delete_run(row.run_id)
    shutil.rmtree(base.uri)
    facts = gather(room.project, room.store, row.version)
    # A deleted run is only hidden in MLflow, and still says what it said.
    assert facts.run is not None
    assert facts.dataset is None
    assert "dataset" in facts.missing
    gone = VersionRow(room.project.project, 9, "0" * 32, "/m", "a" * 64, "nonsense", "registered", 1.0, {})
    room.store.run(lambda tx: tx.save_version(gone))
    nothing = gather(room.project, room.store, 9)
    assert (nothing.run, nothing.dataset) == (None, None)
    assert set(nothing.missing) == {"run", "dataset"}
    text = "\n".join(lineage_of(nothing).tree().lines())
    assert f"not recorded: MLflow has no run {'0' * 32}" in text


def test_other_rows_under_the_same_number_are_not_taken_for_the_datas(room: Room) -> None:
    base = commit(room, "a" * 64)
    row = trained(room, base)
    shutil.rmtree(Path(base.uri))
    commit(room, "b" * 64)
    facts = gather(room.project, room.store, row.version)
    assert facts.dataset is None
    assert "other rows than were trained on" in facts.missing["dataset"]
