"""The standing of a version from its approvals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.ledger import Entry
from mlops_ray.rollout.approval import PROPOSER, PROPOSER_TOKEN, Policy, proposers, standing
from mlops_ray.state import ApprovalRow, VersionRow

NAMES = ("ann", "ben", "eve")
VERSION = VersionRow("p", 3, "run", "/m", "s", "/d@1", "pending", 1.0, {})


def row(subject: str, decision: str = "approve", at: float = 0.0, expires: float | None = None) -> ApprovalRow:
    return ApprovalRow("p", 3, "", subject, decision, "why", at, expires)


def entry(kind: str, subject: str, who: str, rollout: str | None = None) -> Entry:
    evidence = {"rollout": rollout} if rollout else {}
    return Entry("p", 1, 1.0, kind, subject, who, "", evidence, "0" * 64, "1" * 64)


@pytest.mark.parametrize(
    ("rows", "policy", "said"),
    [
        ([], None, (True, False, 0)),
        ([], Policy(), (False, False, 1)),
        ([row("ann")], Policy(), (True, False, 0)),
        ([row("ann")], Policy(2), (False, False, 1)),
        ([row("ann"), row("ann", at=1.0)], Policy(2), (False, False, 1)),
        ([row("boss")], Policy(), (False, False, 1)),
        ([row("ann", expires=9.9)], Policy(), (True, False, 0)),
        ([row("ann", expires=5.0)], Policy(), (False, False, 1)),
        ([row("ann"), row("ben", "reject")], Policy(), (False, True, 0)),
        ([row("boss", "reject")], None, (False, True, 0)),
        ([row("ann", "reject", 1.0), row("ann", at=2.0)], Policy(), (True, False, 0)),
        ([row("ann", at=2.0), row("ann", "reject", 1.0)], Policy(), (True, False, 0)),
    ],
)
def test_what_decisions_come_to(rows: list[ApprovalRow], policy: Policy | None, said: tuple[bool, bool, int]) -> None:
    found = standing(rows, policy=policy, proposer="boss", now=5.0)
    assert (found.approved, found.rejected, found.missing) == said


decisions = st.builds(
    row,
    st.sampled_from(NAMES),
    st.sampled_from(["approve", "reject"]),
    st.floats(0, 10),
    st.none() | st.floats(0, 20),
)


@given(st.lists(decisions, max_size=8), st.integers(1, 3), st.sampled_from(NAMES), st.floats(0, 20))
def test_no_approval_without_so_many_others(rows: list[ApprovalRow], n: int, proposer: str, now: float) -> None:
    found = standing(rows, policy=Policy(n), proposer=proposer, now=now)
    assert proposer not in found.approvers
    assert len(set(found.approvers)) == len(found.approvers)
    if found.approved:
        assert len(found.approvers) >= n
        assert not found.rejecters
    more = standing([*rows, row(proposer, at=99.0)], policy=Policy(n), proposer=proposer, now=now)
    assert set(more.approvers) <= set(found.approvers)  # one's own approval never helps


def test_who_proposed_it() -> None:
    assert proposers(VERSION, []) == frozenset()
    trained = replace(VERSION, tags={PROPOSER: "root", PROPOSER_TOKEN: "ann of sales", "decision": "d1"})
    entries = [
        entry("retrain decided", "d1", "ben"),
        entry("retrain decided", "d2", "eve"),
        entry("rollout started", "v3", "kim", "r1"),
        entry("rollout pause", "v3", "lea", "r1"),
    ]
    assert proposers(trained, entries) == {"root", "ann of sales", "ben", "kim"}
    assert proposers(trained, entries, rollout="r1") == {"root", "ann of sales", "ben", "kim"}


def test_what_a_stored_plan_asks_for() -> None:
    assert Policy.of_plan({"shares": [0.1]}) is None
    assert Policy.of_plan({"approval": "none", "approvers": 3}) is None
    plan = {"approval": "before_start", "approvers": 2, "approval_expiry_s": 60.0}
    assert Policy.of_plan(plan) == Policy(2, 60.0)
