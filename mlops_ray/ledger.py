"""The ledger: every decision and operator move of a project, append-only, each entry sealed with the hash of the last.

`append` stands in the transaction of the state change that it records. `verify` finds edits, insertions, inner removals
and reordering; a tail that was cut off, or a chain rewritten from some point on, shows only against an *anchor*, a
(seq, hash) kept outside the database (a registry tag, an export).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Double, RowMapping, Table, Text, insert, select

from mlops_ray.errors import DataError
from mlops_ray.state import METADATA, Tx, canonical, storable

GENESIS = "0" * 64
"""`prev` of a project's first entry."""

LEDGER = Table(
    "ledger",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("prev", Text, nullable=False),
    Column("hash", Text, nullable=False),
)


@dataclass(frozen=True)
class Entry:
    """One sealed line: `seq` counts from 1, `hash` is the SHA-256 of the canonical JSON of all other fields."""

    project: str
    seq: int
    at: float
    kind: str
    subject: str
    who: str
    why: str
    evidence: dict[str, Any]
    prev: str
    hash: str


@dataclass(frozen=True)
class Verification:
    """What `verify` can say. `head` is (seq, hash) of the last entry that holds: keep it as the next anchor.

    `problem` is None when nothing is wrong; `anchored` tells whether an anchor was given and met.
    """

    ok: bool
    n: int
    head: tuple[int, str]
    problem: str | None
    anchored: bool

    def __str__(self) -> str:
        if self.problem is not None:
            return f"ledger is broken: {self.problem}"
        sealed = f"{self.n} entries, unbroken up to {self.head[0]}:{self.head[1]}"
        if self.anchored:
            return f"{sealed}, and they hold the anchor"
        return f"{sealed}; without an anchor a cut tail or a rewritten chain would not show"


def append(
    tx: Tx,
    project: str,
    kind: str,
    subject: str,
    who: str,
    why: str,
    evidence: Mapping[str, Any],
    at: float,
) -> Entry:
    """Seal one more entry onto the project's chain, in the write transaction `tx` of what it records.

    Args: `kind` of decision ("promote"), `subject` it is about ("v7"), `who` decided, `why` in a sentence, `evidence`
    as JSON values, `at` seconds since the epoch.
    Raises: DataError when the evidence has no JSON form, a text cannot be stored or `at` is not finite.
    """
    if not math.isfinite(at):
        raise DataError(f"ledger of {project}", f"time {at} is not finite")
    texts = {"project": project, "kind": kind, "subject": subject, "who": who, "why": why}
    for name, value in texts.items():
        storable(value, f"ledger.{name}")
    body = canonical(evidence, f"ledger.evidence of {kind}")
    last = select(LEDGER.c.seq, LEDGER.c.hash).where(LEDGER.c.project == project).order_by(LEDGER.c.seq.desc()).limit(1)
    seq, prev = tx.connection.execute(last).one_or_none() or (0, GENESIS)
    # + 0.0 turns -0.0, which SQLite does not keep, into 0.0.
    fields = {**texts, "seq": seq + 1, "at": float(at) + 0.0, "evidence": json.loads(body), "prev": prev}
    entry = Entry(**fields, hash=_seal(fields))
    tx.connection.execute(insert(LEDGER).values({**asdict(entry), "evidence": body}))
    return entry


def entries(tx: Tx, project: str, since_seq: int = 0, kinds: Collection[str] | None = None) -> list[Entry]:
    """Entries with seq above `since_seq`, oldest first; only those of `kinds` when given."""
    query = select(LEDGER).where(LEDGER.c.project == project, LEDGER.c.seq > since_seq).order_by(LEDGER.c.seq)
    if kinds is not None:
        query = query.where(LEDGER.c.kind.in_(kinds))
    found = tx.connection.execute(query).mappings()
    return [Entry(**{**row, "evidence": json.loads(row["evidence"])}) for row in found]


def verify(tx: Tx, project: str, anchor: tuple[int, str] | None = None) -> Verification:
    """Walk the chain from its first entry. `anchor` is a (seq, hash) that was noted outside the database earlier."""
    n, head, anchored, problem = 0, (0, GENESIS), False, None
    if anchor == head:
        anchor = None  # the empty chain: it vouches for nothing
    query = select(LEDGER).where(LEDGER.c.project == project).order_by(LEDGER.c.seq).execution_options(yield_per=500)
    for row in tx.connection.execute(query).mappings():
        n += 1
        if problem is None:
            problem = _flaw(row, head)
        if problem is None:
            head = (row["seq"], row["hash"])
            if anchor is not None and head[0] == anchor[0]:
                anchored = head == anchor
                problem = None if anchored else f"entry {head[0]} is not the anchored one: the chain was rewritten"
    if problem is None and anchor is not None and not anchored:
        problem = f"the anchor names entry {anchor[0]}, the chain ends at {head[0]}: its tail was cut"
    return Verification(problem is None, n, head, problem, anchored)


def _flaw(row: RowMapping, head: tuple[int, str]) -> str | None:
    """What is wrong with the entry that stands after `head`, or None."""
    seq = row["seq"]
    if seq != head[0] + 1:
        return f"entry {seq} stands where {head[0] + 1} should: entries were removed or inserted"
    if row["prev"] != head[1]:
        return f"entry {seq} does not continue entry {head[0]}: one of them was replaced"
    try:
        evidence = json.loads(row["evidence"])
        same_text = canonical(evidence, "evidence") == row["evidence"]
        sealed = _seal({**{k: v for k, v in row.items() if k != "hash"}, "evidence": evidence})
    except (ValueError, TypeError, DataError):
        return f"entry {seq} was edited: it cannot be read any more"
    if not same_text or sealed != row["hash"]:
        return f"entry {seq} was edited: its hash does not fit its content"
    return None


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields, "ledger entry").encode()).hexdigest()
