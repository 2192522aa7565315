"""State that was changed behind the ledger's back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray.governance.approvals import approve, reject
from mlops_ray.governance.unrecorded import unrecorded
from mlops_ray.rollout.approval import Policy
from mlops_ray.state import ApprovalRow, Store, VersionRow


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
        return unrecorded(tx, "small")


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
