"""State that was changed behind the ledger's back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlops_ray import ledger
from mlops_ray.governance.approvals import approve, reject
from mlops_ray.governance.unrecorded import unrecorded
from mlops_ray.rollout import orders, traffic
from mlops_ray.rollout.approval import Policy
from mlops_ray.rollout.canary import CanaryState, Move, Phase
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import ApprovalRow, Store, Tx, VersionRow
from tests.fakes import held, project


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two of three have approved version 3, and eve has rejected it."""
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    asked = Policy(approvers=3, expires_s=100.0)
    with opened.begin() as tx:
        tx.save_version(VersionRow("small", 3, "run", "/m/3", "ab", "/d@1", "pending", 1.0, {}))
        approve(tx, "small", 3, who="ben", why="ok", now=2.0, policy=asked)
        approve(tx, "small", 3, who="cas", why="ok", now=3.0, policy=asked)
        reject(tx, "small", 3, who="eve", why="no", now=4.0, policy=asked)
    yield opened
    opened.close()


def found(store: Store) -> tuple[str, ...]:
    with store.read() as tx:
        return unrecorded(tx, "small", ledger.entries(tx, "small"))


def row_of(store: Store, who: str) -> ApprovalRow:
    with store.read() as tx:
        return next(row for row in tx.approvals("small", 3) if row.subject == who)


def test_what_people_decided_is_recorded(store: Store) -> None:
    assert found(store) == ()


def test_a_rejection_that_was_turned_into_an_approval_is_none_of_the_ledgers(store: Store) -> None:
    turned = replace(row_of(store, "eve"), decision="approve")
    store.run(lambda tx: tx.save_approval(turned))
    assert found(store) == ("that eve decided to approve v3",)


def test_an_approval_that_holds_longer_than_was_said_is_none(store: Store) -> None:
    longer = replace(row_of(store, "ben"), expires=1e9)
    store.run(lambda tx: tx.save_approval(longer))
    assert found(store) == ("that ben decided to approve v3",)


def test_a_rejection_that_is_gone_is_missed(store: Store) -> None:
    with store.begin() as tx:
        tx.connection.exec_driver_sql("DELETE FROM approvals WHERE subject = 'eve'")
    assert found(store) == ("that eve no longer decides about v3",)


def test_somebody_else_in_an_approvers_place_is_both(store: Store) -> None:
    with store.begin() as tx:
        tx.connection.exec_driver_sql("UPDATE approvals SET subject = 'dan' WHERE subject = 'cas'")
    assert found(store) == ("that dan decided to approve v3", "that cas no longer decides about v3")


NOW = 1000.0


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Store]:
    """Version 1 was the first, 2 and then 3 were promoted, and 4 is on trial."""
    opened = Store.open(f"sqlite:///{tmp_path}/trial.db")
    for version in (1, 2, 3, 4, 5):
        row = VersionRow("small", version, "run", f"/m/{version}", "ab", "/d@1", "registered", 1.0, {})
        opened.run(lambda tx, row=row: tx.save_version(row))  # type: ignore[misc]
    orders.first_version(opened, project(), now=NOW, version=1)
    for version in (2, 3, 4):
        start(opened, version)
        for phase in (Phase.RAMPING, Phase.PROMOTING, Phase.PROMOTED) if version < 4 else (Phase.RAMPING,):
            step(opened, phase)
            if phase is Phase.PROMOTING:
                opened.run(lambda tx, v=version: traffic.flip(tx, f"small-v{v}-r{v - 1}"))  # type: ignore[misc]
                assert found(opened) == ()  # it is stable already, and the promotion under way
    yield opened
    opened.close()


def start(store: Store, version: int) -> str:
    def run(tx: Tx) -> str:
        return orders.begin(
            tx, project(), version, supersede=False, who="ann", why="", now=NOW + version, machine_now=NOW
        )

    return store.run(run)


def step(store: Store, phase: Phase) -> None:
    def run(tx: Tx) -> None:
        row = tx.open_rollout("small")
        assert row is not None
        after = replace(CanaryState.from_dict(row.state), phase=phase, since=row.created + 1)
        orders.transition(tx, row, after, kind=f"rollout {phase}", who="us", why="", machine_now=NOW, evidence={})

    store.run(run)


def edit(store: Store, rollout: str, **fields: Any) -> None:
    def run(tx: Tx) -> None:
        row = tx.rollout(rollout)
        assert row is not None
        plan, state = fields.pop("plan", {}), fields.pop("state", {})
        tx.save_rollout(replace(row, plan=row.plan | plan, state=row.state | state, **fields))

    store.run(run)


OPEN = "small-v4-r3"


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        ({"plan": {"alpha": 0.5}}, f"the plan of rollout {OPEN}"),
        ({"plan": {"approval": "before_promotion"}}, f"the plan of rollout {OPEN}"),
        ({"plan": {"analyses": []}}, f"the plan of rollout {OPEN}"),
        ({"state": {"step": 1}}, f"that rollout {OPEN} is ramping as its row says"),
        ({"state": {"since": 0.0}}, f"that rollout {OPEN} is ramping as its row says"),
        ({"state": {"phase": "baking"}}, f"that rollout {OPEN} is baking"),
        ({"ended": 9.0}, f"that rollout {OPEN} is ramping as its row says"),
        ({"version": 5}, f"that rollout {OPEN} is of v5 against v3"),
        ({"stable": 1}, f"that rollout {OPEN} is of v4 against v1"),
        ({"created": 1.0}, f"that rollout {OPEN} is of v4 against v3, since 1.0"),
    ],
)
def test_a_rollout_that_was_edited_is_not_what_was_started(trial: Store, edited: dict[str, Any], says: str) -> None:
    assert found(trial) == ()
    edit(trial, OPEN, **edited)
    (told,) = found(trial)
    assert told.startswith(says)


@pytest.mark.parametrize("mode", ["canary", "ab"])
def test_a_rollout_that_has_only_started_is_compared_too(trial: Store, mode: str) -> None:
    edit(trial, OPEN)
    with trial.begin() as tx:
        orders.order(tx, project(), Move.ABORT, who="ann", why="", now=NOW, machine_now=NOW)
        beside = (5,) if mode == "ab" else ()
        asked = project(rollout={"mode": mode})
        name = orders.begin(tx, asked, 4, beside=beside, supersede=False, who="ann", why="", now=NOW, machine_now=NOW)
    assert found(trial) == ()
    edit(trial, name, state={"step": 1})
    assert found(trial)[0].startswith(f"that rollout {name} is starting as its row says")


def test_a_stable_version_that_only_once_was_stable_is_none(trial: Store) -> None:
    for version in (1, 2, 4):
        with trial.begin() as tx:
            tx.save_serving("small", Wanted(stable=held(version)).spec(), 0)
        assert found(trial) == (f"that v{version} is stable (but that v3 is)",)
    with trial.begin() as tx:
        tx.save_serving("small", Wanted(stable=held(3)).spec(), 0)
    assert found(trial) == ()


def test_a_way_back_and_an_abort_after_the_flip_are_the_last_word(trial: Store) -> None:
    step(trial, Phase.PROMOTING)
    trial.run(lambda tx: traffic.flip(tx, OPEN))
    assert found(trial) == ()
    trial.run(lambda tx: orders.order(tx, project(), Move.ABORT, who="ann", why="", now=NOW + 9, machine_now=NOW))
    assert found(trial) == ()
    back = orders.go_back
    trial.run(lambda tx: back(tx, project(), 1, who="ann", why="", now=NOW + 10, machine_now=NOW))
    assert found(trial) == ()
    with trial.read() as tx:
        served = tx.serving("small")
    assert served is not None
    step(trial, Phase.PROMOTED)
    trial.run(lambda tx: tx.save_serving("small", Wanted(stable=held(1)).spec(), 0))
    assert found(trial) == ()


def test_entries_of_the_releases_before_plans_were_sealed_raise_no_alarm(trial: Store) -> None:
    """Their ledgers hold, and what they did not seal is not compared."""
    with trial.begin() as tx:
        written = ledger.entries(tx, "small")
        tx.connection.exec_driver_sql("DELETE FROM ledger")
        for one in written:
            kept = {k: v for k, v in one.evidence.items() if k not in (orders.PLAN, ledger.WRITTEN)}
            ledger.append(tx, "small", one.kind, one.subject, one.who, one.why, kept, one.at)
    edit(trial, OPEN, plan={"alpha": 0.5}, created=1.0)
    assert found(trial) == ()
    with trial.read() as tx:
        assert ledger.verify(tx, "small").ok
