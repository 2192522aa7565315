from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mlops_ray import ledger
from mlops_ray.errors import ApprovalPending, ApprovalRefused, DataError, ModelNotFound
from mlops_ray.governance.approvals import Decided, approve, reject
from mlops_ray.governance.unrecorded import unrecorded
from mlops_ray.retraining.on_ray import _conclude, decided, order
from mlops_ray.rollout import orders
from mlops_ray.rollout.approval import PROPOSER, PROPOSER_TOKEN, Policy
from mlops_ray.rollout.canary import Arm, CanaryState, Phase
from mlops_ray.rollout.orders import first_version
from mlops_ray.state import RolloutRow, Store, Tx, VersionRow
from mlops_ray.training.gates.verdict import GateResult, Verdict
from mlops_ray.training.on_ray import Trained
from mlops_ray.training.report import Pages
from mlops_ray.training.search.candidates import Choice
from tests.fakes import project


def begin(store: Store, number: int) -> str:
    def run(tx: Tx) -> str:
        return orders.begin(tx, project(), number, supersede=False, who="ann", why="try", now=3.0, machine_now=3.0)

    return store.run(run)


def save(store: Store, number: int, status: str) -> VersionRow:
    row = VersionRow("small", number, f"run{number}", f"/m/{number}", f"sha{number}", "/d@1", status, 1.0, {})
    store.run(lambda tx: tx.save_version(row))
    return row


def test_an_approval_is_on_record_once(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    for _ in range(2):
        row = store.run(lambda tx: approve(tx, "small", 1, who="ann", why="read the card", now=5.0)).version
        assert row.may_serve
    with store.read() as tx:
        assert tx.version("small", 1) == row
        (entry,) = ledger.entries(tx, "small")
    assert (entry.kind, entry.subject, entry.who, entry.why) == ("approved", "v1", "ann", "read the card")
    with pytest.raises(ModelNotFound):
        store.run(lambda tx: approve(tx, "small", 2, who="ann", why="", now=5.0))


def test_so_many_different_people_as_the_policy_says(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    two = Policy(approvers=2, expires_s=100.0)

    def approved(who: str, now: float) -> Decided:
        return store.run(lambda tx: approve(tx, "small", 1, who=who, why="ok", now=now, policy=two))

    first = approved("ann", 5.0)
    assert (first.version.status, first.standing.missing, first.recorded) == ("pending", 1, True)
    assert approved("ann", 6.0).recorded is False
    late = approved("ben", 105.0)  # ann's has expired, to the second
    assert (late.version.status, late.standing.approvers) == ("pending", ("ben",))
    again = approved("ann", 106.0)
    assert (again.version.status, again.standing.approvers) == ("registered", ("ben", "ann"))
    assert approved("eve", 107.0).recorded is False  # nothing waits any more
    with store.read() as tx:
        entries = ledger.entries(tx, "small")
        assert ledger.verify(tx, "small").ok
    assert [(e.who, e.evidence["missing"]) for e in entries] == [("ann", 1), ("ben", 1), ("ann", 0)]


def test_a_rejection_holds_until_its_subject_approves(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)

    def say(what: Callable[..., Decided], who: str, now: float) -> str:
        return store.run(lambda tx: what(tx, "small", 1, who=who, why="looked", now=now)).version.status

    assert say(reject, "ann", 1.0) == "rejected"
    assert say(approve, "ben", 2.0) == "rejected"
    with store.read() as tx:
        assert not tx.version("small", 1).may_serve
    assert say(approve, "ann", 3.0) == "registered"
    with pytest.raises(ApprovalRefused, match="waits for no approval; take it out with `mlops-ray rollout abort`"):
        say(reject, "ann", 4.0)
    with store.read() as tx:
        assert [(e.kind, e.who) for e in ledger.entries(tx, "small")] == [
            ("rejected", "ann"),
            ("approved", "ben"),
            ("approved", "ann"),
        ]


@pytest.mark.parametrize("tag", [PROPOSER, PROPOSER_TOKEN])
def test_nobody_approves_what_they_had_trained(store: Store, tag: str) -> None:
    row = save(store, 1, VersionRow.PENDING)
    store.run(lambda tx: tx.save_version(replace(row, tags={tag: "ann"})))
    with pytest.raises(ApprovalRefused, match="v1 of small: ann proposed it, so another must approve it"):
        store.run(lambda tx: approve(tx, "small", 1, who="ann", why="mine", now=5.0))
    with store.read() as tx:
        assert (ledger.entries(tx, "small"), tx.approvals("small", 1)) == ([], [])
    assert store.run(lambda tx: approve(tx, "small", 1, who="ben", why="read it", now=6.0)).version.may_serve


def test_nobody_approves_the_version_of_a_retrain_that_they_ordered(store: Store) -> None:
    ordered = order(store, project(), "more data", who="ann")
    row = save(store, 1, VersionRow.PENDING)
    store.run(lambda tx: tx.save_version(replace(row, tags={"decision": ordered.id})))
    with pytest.raises(ApprovalRefused, match="ann proposed it"):
        store.run(lambda tx: approve(tx, "small", 1, who="ann", why="mine", now=5.0))
    assert (
        store.run(lambda tx: reject(tx, "small", 1, who="ann", why="a mistake", now=6.0)).version.status == "rejected"
    )


def test_an_open_rollout_is_approved_by_another_than_who_started_it(store: Store) -> None:
    for number in (1, 2):
        save(store, number, VersionRow.REGISTERED)
    first_version(store, project(), now=2.0, version=1)
    rollout = begin(store, 2)
    idle = store.run(lambda tx: approve(tx, "small", 2, who="ben", why="ok", now=3.0))
    assert (idle.recorded, idle.standing.approved) == (False, True)  # its plan asks for nobody

    def ask(tx: Tx) -> None:
        row = tx.open_rollout("small")
        assert row is not None
        plan = {**row.plan, "approval": "before_promotion", "approvers": 1, "approval_expiry_s": 10.0}
        tx.save_rollout(replace(row, plan=plan))

    store.run(ask)
    with pytest.raises(ApprovalRefused, match="small-v2-r1 of small: ann proposed it"):
        store.run(lambda tx: approve(tx, "small", 2, who="ann", why="mine", now=4.0))
    found = store.run(lambda tx: approve(tx, "small", 2, who="ben", why="ok", now=4.0))
    assert (found.rollout, found.standing.approved, found.version.status) == (rollout, True, "registered")
    with store.read() as tx:
        (row,), (entry,) = tx.approvals("small", 2, rollout), ledger.entries(tx, "small", kinds=["approved"])
        assert (row.subject, row.expires, tx.approvals("small", 2)) == ("ben", 14.0, [])
    assert (entry.evidence["rollout"], entry.subject) == (rollout, "v2")


def test_a_decision_and_its_entry_stand_or_fall_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, VersionRow.PENDING)
    with pytest.raises(DataError):
        store.run(lambda tx: approve(tx, "small", 1, who="ann", why="nul \0", now=5.0))
    with store.read() as tx:
        assert tx.approvals("small", 1) == []
        assert tx.version("small", 1).status == "pending"


def test_a_pending_version_never_becomes_the_first(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    assert first_version(store, project(), now=2.0) is None
    save(store, 2, VersionRow.REGISTERED)
    save(store, 3, VersionRow.PENDING)
    assert first_version(store, project(), now=2.0) == 2


def test_no_rollout_of_a_pending_version(store: Store) -> None:
    save(store, 1, VersionRow.PENDING)
    with pytest.raises(ApprovalPending, match=r"v1 of small is not approved: .* `mlops-ray approve 1`"):
        begin(store, 1)
    save(store, 2, VersionRow.REGISTERED)
    first_version(store, project(), now=2.0)
    with pytest.raises(ApprovalPending):
        begin(store, 1)
    store.run(lambda tx: approve(tx, "small", 1, who="ann", why="ok", now=5.0))
    assert begin(store, 1) == "small-v1-r1"


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


def asking(store: Store, when: str, mode: str, versions: tuple[int, ...] = (2, 3)) -> RolloutRow:
    """An open rollout of two versions, or of one, whose plan asks for a person."""
    for number in (1, 2, 3, 4):
        save(store, number, VersionRow.REGISTERED)
    first_version(store, project(), now=2.0, version=1)
    asked = project(rollout={"approval": when, "mode": mode, "approval_expiry_s": 100.0})
    first, *beside = versions

    def run(tx: Tx) -> RolloutRow:
        orders.begin(
            tx, asked, first, beside=beside, supersede=False, who="ann", why="which?", now=1e9, machine_now=10.0
        )
        row = tx.open_rollout("small")
        assert row is not None
        return row

    return store.run(run)


@pytest.mark.parametrize("named", [2, 3])
def test_versions_side_by_side_are_approved_by_any_of_their_names_before_they_start(store: Store, named: int) -> None:
    row = asking(store, "before_start", "ab")
    found = store.run(lambda tx: approve(tx, "small", named, who="ben", why="ok", now=11.0))
    assert (found.rollout, found.standing.approved, found.recorded) == (row.id, True, True)
    again = store.run(lambda tx: approve(tx, "small", 5 - named, who="ben", why="ok", now=12.0))
    assert (again.recorded, again.standing.approved) == (False, True)
    with store.read() as tx:
        assert orders.standing(tx, row, machine_now=12.0).approved
        assert unrecorded(tx, "small", ledger.entries(tx, "small")) == ()
    with pytest.raises(ApprovalRefused, match="ann proposed it"):
        store.run(lambda tx: approve(tx, "small", named, who="ann", why="mine", now=13.0))
    assert store.run(lambda tx: approve(tx, "small", 4, who="eve", why="ok", now=13.0)).recorded is False
    rejected = store.run(lambda tx: reject(tx, "small", 5 - named, who="ben", why="no", now=14.0))
    assert rejected.standing.rejected
    with store.read() as tx:
        assert orders.standing(tx, row, machine_now=14.0).rejected


def test_before_a_promotion_an_approval_is_of_the_arm_that_it_names(store: Store) -> None:
    row = asking(store, "before_promotion", "ab")
    store.run(lambda tx: approve(tx, "small", 3, who="ben", why="ok", now=11.0))
    waits = CanaryState(Phase.PENDING, 0, 2e9, arms=(Arm(2), Arm(3)))
    with store.read() as tx:
        of = {v: replace(row, version=v, state=replace(waits, chosen=v).to_dict()) for v in (2, 3)}
        assert [orders.standing(tx, of[v], machine_now=12.0).approved for v in (2, 3)] == [False, True]


def test_approvals_are_given_and_expire_by_the_machines_clock(store: Store) -> None:
    """Decision time is far away: last year's traffic is replayed, or there is none."""
    row = asking(store, "before_promotion", "canary", (2,))
    store.run(lambda tx: approve(tx, "small", 2, who="ben", why="ok", now=50.0))
    with store.read() as tx:
        assert [orders.standing(tx, row, machine_now=now).approved for now in (50.0, 149.0, 150.0)] == [
            True,
            True,
            False,
        ]
        (entry,) = ledger.entries(tx, "small", kinds=["approved"])
    assert entry.evidence["phase"] == "starting"  # it was given before there was any evidence
