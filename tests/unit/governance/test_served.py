"""What served when, from the ledger alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlops_ray.governance.served import Served, served
from mlops_ray.ledger import Entry


class Book:
    """A ledger, written line by line."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, at: float, kind: str, version: int, who: str = "mlops_ray", **evidence: Any) -> Book:
        seq = len(self.entries) + 1
        self.entries.append(Entry("p", seq, at, kind, f"v{version}", who, "because", evidence, "0" * 64, "1" * 64))
        return self

    def move(self, at: float, kind: str, version: int, phase: str, who: str = "mlops_ray", **evidence: Any) -> Book:
        found = {"rollout": f"r{version}", "state": {"phase": phase}} | evidence
        return self.add(at, f"rollout {kind}", version, who, **found)

    def start(self, at: float, version: int, against: int, who: str = "mlops_ray") -> Book:
        return self.add(at, "rollout started", version, who, rollout=f"r{version}", against=against)

    def at(self, at: float) -> Served:
        return served(self.entries, at)


def promoted(book: Book, version: int, against: int, at: float) -> Book:
    book.start(at, version, against).move(at + 1, "ramping at 0.1", version, "ramping")
    return book.move(at + 5, "promoting", version, "promoting").move(at + 6, "promoted", version, "promoted")


@pytest.fixture
def book() -> Book:
    return promoted(Book().add(10.0, "promoted", 1), 2, 1, 100.0)


def test_nothing_before_the_first() -> None:
    assert served([], 5.0).stable is None
    found = Book().add(10.0, "promoted", 1).at(9.9)
    assert found.stable is None
    assert "nothing served" in found.lines()[0]


@pytest.mark.parametrize(
    ("at", "stable", "canary", "since"),
    [
        (10.0, 1, None, 10.0),
        (100.5, 1, None, 10.0),
        (101.0, 1, 2, 10.0),
        (105.0, 1, None, 10.0),
        (106.0, 2, None, 106.0),
    ],
)
def test_stable_and_canary_through_a_rollout(
    book: Book, at: float, stable: int, canary: int | None, since: float
) -> None:
    found = book.at(at)
    assert (found.stable, found.canary, found.since) == (stable, canary, since)
    assert found.share == (0.1 if canary else 0.0)
    assert any("was being promoted" in note for note in found.notes) == (at == 105.0)
    assert json.loads(json.dumps(found.to_dict()))["stable"] == stable


def test_shares_hold_through_a_pause_and_a_wait_for_approval() -> None:
    book = Book().add(1.0, "promoted", 1).start(2.0, 2, 1).move(2.5, "pending", 2, "pending")
    book.move(3.0, "ramping at 0.1", 2, "ramping").move(4.0, "ramping at 0.5", 2, "ramping")
    book.move(5.0, "pause", 2, "paused", "ann").move(6.0, "resume", 2, "ramping", "ann")
    book.move(7.0, "pending", 2, "pending").move(8.0, "abort", 2, "aborted", "ann")
    assert [(book.at(t).canary, book.at(t).share) for t in (2.6, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)] == [
        (None, 0.0),
        (2, 0.1),
        *[(2, 0.5)] * 4,
        (None, 0.0),
    ]
    assert {book.at(t).stable for t in (2.6, 5.0, 8.0)} == {1}


def test_versions_side_by_side_and_the_one_that_won() -> None:
    def arms(*dropped: int) -> list[dict[str, Any]]:
        return [{"version": v, "out": "evidence" if v in dropped else "", "since": None} for v in (2, 3, 4)]

    book = Book().add(1.0, "promoted", 1).start(2.0, 2, 1)
    book.move(3.0, "ramping at 0.2", 2, "ramping", state={"phase": "ramping", "arms": arms()})
    book.move(4.0, "ramping at 0.2", 2, "ramping", state={"phase": "ramping", "arms": arms(3)})
    ended = {"phase": "promoted", "arms": arms(3), "chosen": 4}
    book.move(5.0, "promoted", 4, "promoted", rollout="r2", state=ended)
    found = [book.at(t) for t in (2.5, 3.5, 4.5, 5.5)]
    assert [(one.stable, one.canary, one.arms, one.share) for one in found] == [
        (1, None, (), 0.0),
        (1, None, (2, 3, 4), 0.2),
        (1, None, (2, 4), 0.2),
        (4, None, (), 0.0),
    ]
    assert "beside it v2, v4 answered, each 0.2 of the keys" in found[2].lines()


def test_a_rollback_gives_back_what_was_stable_before(book: Book) -> None:
    promoted(book, 3, 2, 200.0)
    book.move(300.0, "rollback", 3, "rolled back", "ann")
    found = book.at(300.0)
    assert (found.stable, found.since, found.promotion) == (2, 300.0, book.entries[-1])
    assert (book.at(299.0).stable, book.at(150.0).stable) == (3, 2)
    book.move(400.0, "rollback", 2, "rolled back", "ann", to=1)
    assert book.at(400.0).stable == 1


def test_baking_is_stable_and_one_that_fails_goes_back() -> None:
    book = Book().add(1.0, "promoted", 1).start(2.0, 2, 1)
    book.move(3.0, "promoting", 2, "promoting").move(4.0, "baking", 2, "baking")
    assert book.at(4.0).stable == 2
    book.move(5.0, "promoted", 2, "promoted")
    assert (book.at(5.0).stable, book.at(5.0).since) == (2, 4.0)
    other = Book().add(1.0, "promoted", 1).start(2.0, 2, 1).move(4.0, "baking", 2, "baking")
    assert other.move(5.0, "rolled back", 2, "rolled back").at(6.0).stable == 1


def test_who_approved_it_and_who_ordered_it() -> None:
    book = Book().add(1.0, "promoted", 1).add(2.0, "approved", 2, "ann").add(2.5, "approved", 3, "kim")
    book.start(3.0, 2, 1).add(4.0, "approved", 2, "ben", rollout="r2").add(4.5, "approved", 2, "lea", rollout="r9")
    book.move(5.0, "promote", 2, "promoting", "eve").move(6.0, "promoted", 2, "promoted")
    book.add(7.0, "approved", 2, "late")
    found = book.at(8.0)
    assert [entry.who for entry in found.approvals] == ["ann", "ben"]
    assert found.order is not None
    assert found.order.who == "eve"
    said = "\n".join(found.lines())
    assert "v2 was stable" in said
    assert "approved v2 by ann" in said
    assert "ordered: rollout promote v2 by eve" in said
    first = book.at(2.0)
    assert (first.approvals, first.order) == ((), None)
    assert "approved by nobody" in "\n".join(first.lines())


def test_replayed_traffic_is_older_than_the_first_promotion() -> None:
    book = promoted(Book().add(1.7e9, "promoted", 1), 2, 1, 100.0)
    assert book.at(101.0).stable == 1
    assert any("the traffic was replayed" in note for note in book.at(101.0).notes)
    assert book.at(107.0).stable == 2
    assert book.at(107.0).notes == ()


def test_other_entries_change_nothing(book: Book) -> None:
    before = book.at(500.0)
    book.add(200.0, "token created", 9).add(210.0, "retrain decided", 7).add(220.0, "alias put back", 2)
    assert book.at(500.0) == before


def test_orders_are_dated_by_the_machines_clock_where_it_was_sealed() -> None:
    """Nothing came for an hour, so decision time stood still when ann promoted; or traffic of years ago is replayed."""
    book = Book().add(1000.0, "promoted", 1).start(100.0, 2, 1)
    book.move(100.0, "promote", 2, "promoting", "ann", written=4600.0)
    book.move(100.0, "promoted", 2, "promoted", written=4610.0)
    assert [book.at(at).stable for at in (1500.0, 4605.0, 4610.0)] == [1, 1, 2]
    found = book.at(5000.0)
    assert (found.since, found.notes) == (4610.0, ())
    assert "ordered: rollout promote v2 by ann, 1970-01-01 01:16:40" in "\n".join(found.lines())
    book.entries[-1].evidence["written"] = "soon"  # nobody of ours wrote that
    assert book.entries[-1].written == 100.0
