from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlops_ray import ledger
from mlops_ray.errors import ApprovalPending, ModelNotFound
from mlops_ray.governance.approvals import approve
from mlops_ray.retraining.on_ray import _conclude, decided
from mlops_ray.rollout.on_ray import begin, first_version
from mlops_ray.state import Store, VersionRow
from mlops_ray.training.gates.verdict import GateResult, Verdict
from mlops_ray.training.on_ray import Trained
from mlops_ray.training.report import Pages
from mlops_ray.training.search.candidates import Choice
from mlops_ray.verbs import models
from tests.fakes import project


def save(store: Store, number: int, status: str) -> VersionRow:
    row = VersionRow("small", number, f"run{number}", f"/m/{number}", f"sha{number}", "/d@1", status, 1.0, {})
    store.run(lambda tx: tx.save_version(row))
    return row


def test_an_approval_is_on_record_once(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    for _ in range(2):
        row = store.run(lambda tx: approve(tx, "small", 1, who="ann", why="read the card", now=5.0))
        assert row.may_serve
    with store.read() as tx:
        assert tx.version("small", 1) == row
        (entry,) = ledger.entries(tx, "small")
    assert (entry.kind, entry.subject, entry.who, entry.why) == ("approved", "v1", "ann", "read the card")
    with pytest.raises(ModelNotFound):
        store.run(lambda tx: approve(tx, "small", 2, who="ann", why="", now=5.0))


def test_a_second_approval_is_told_and_leaves_no_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, VersionRow.PENDING)
    monkeypatch.setattr(models, "load", lambda paths, env: SimpleNamespace(project=SimpleNamespace(project="small")))
    monkeypatch.setattr(models, "known_store", lambda project: store)
    told = [models.approve((), {}, 1, "read the card") for _ in range(2)]
    assert [(each["status"], each["already"]) for each in told] == [("registered", False), ("registered", True)]
    with store.read() as tx:
        assert len(list(ledger.entries(tx, "small"))) == 1
    with pytest.raises(ModelNotFound):
        models.approve((), {}, 2, "read the card")


def test_a_pending_version_never_becomes_the_first(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    assert first_version(store, project(), now=2.0) is None
    save(store, 2, VersionRow.REGISTERED)
    save(store, 3, VersionRow.PENDING)
    assert first_version(store, project(), now=2.0) == 2


def test_no_rollout_of_a_pending_version(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    with pytest.raises(ApprovalPending, match=r"v1 of small is pending: `gates.approval`"):
        begin(store, project(), 1, who="ann", why="try")
    save(store, 2, VersionRow.REGISTERED)
    first_version(store, project(), now=2.0)
    with pytest.raises(ApprovalPending):
        begin(store, project(), 1, who="ann", why="try")
    store.run(lambda tx: approve(tx, "small", 1, who="ann", why="ok", now=5.0))
    assert begin(store, project(), 1, who="ann", why="try") == "small-v1-r1"


def test_a_retrain_ends_without_a_rollout_when_its_version_waits(store: Store) -> None:
    save(store, 1, VersionRow.REGISTERED)
    first_version(store, project(), now=2.0)
    row = decided("small", "drift", "x drifted", 3.0)
    store.run(lambda tx: tx.save_retrain(row))
    trained = Trained(
        "run2",
        Verdict.PASS,
        GateResult(Verdict.PASS, (), {}),
        save(store, 2, VersionRow.PENDING),
        "/m/2",
        "sha2",
        Choice(0, "sklearn.linear_model:LogisticRegression", {}),
        {},
        {},
        Pages("", "", "", {}),
    )
    result = store.run(lambda tx: _conclude(tx, project(), row, trained))
    assert (result["status"], result["approval"], result["version"]) == ("succeeded", "pending", 2)
    with store.read() as tx:
        assert tx.open_rollout("small") is None
        assert tx.open_retrain("small") is None
