"""The ledger: every decision and operator move of a project, append-only, each entry sealed with the hash of the last.

`append` stands in the transaction of the state change that it records. `verify` finds edits, insertions, inner removals
and reordering; a tail that was cut off, or a chain rewritten from some point on, shows only against an *anchor*, a
(seq, hash) kept outside the database (a tag of the registry, an export). An anchor vouches for everything up to its
entry and for nothing after it. Nothing that the ledger says excuses an anchor: who can cut it can write into it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Double, RowMapping, Table, Text, insert, select

from mlops_ray.errors import DataError, NoAnchor
from mlops_ray.state import METADATA, Tx, canonical, storable

GENESIS = "0" * 64
"""`prev` of a project's first entry."""

RESTORED = "restored"
"""Kind of the entry that a restored backup adds; its evidence names under `GAVE_UP` the anchors, [seq, hash] each, of
entries that came after the backup and that the restored chain does not hold. That is a claim: it excuses nothing."""
GAVE_UP = "gave_up"

WRITTEN = "written"
"""Key of an entry's evidence: the machine's time at which it was written, where `at` is decision time."""

Anchor = tuple[int, str]
_ANCHOR = re.compile(r"(\d{1,18}):([0-9a-f]{64})")

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

    @property
    def written(self) -> float:
        """When it was written by the machine's clock, as far as it says so; else `at`. Seconds since the epoch."""
        found = self.evidence.get(WRITTEN)
        return found if isinstance(found, float) and math.isfinite(found) else self.at


@dataclass(frozen=True)
class Verification:
    """What `verify` can say. `head` is (seq, hash) of the last entry that holds: keep it as the next anchor.

    `problem` is None when nothing is wrong; `anchored` tells whether an anchor was given and met, `proven` up to which
    entry anchors vouch. `unmet` are the anchors that an otherwise unbroken chain does not hold and nobody has accepted,
    `claimed` those of them that an entry `restored` says a backup gave up; `accepted`: those that a person has.
    """

    ok: bool
    n: int
    head: Anchor
    problem: str | None
    anchored: bool
    proven: int = 0
    unmet: tuple[Anchor, ...] = ()
    claimed: tuple[Anchor, ...] = ()
    accepted: tuple[Anchor, ...] = ()

    def __str__(self) -> str:
        if self.problem is not None:
            return f"ledger is broken: {self.problem}"
        said = [f"{self.n} entries, unbroken up to {self.head[0]}:{self.head[1]}"]
        if self.anchored:
            said.append(f"anchors vouch for entries 1 to {self.proven}")
            said.append(f"whether entries after {self.proven} were cut off or rewritten, nothing here can say")
        else:
            said.append("without an anchor a cut tail or a rewritten chain would not show")
        if self.accepted:
            names = ", ".join(str(seq) for seq, _ in self.accepted)
            said.append(f"anchors of entries {names} are not met, and whoever asked accepts that")
        return "; ".join(said)


def append(
    tx: Tx,
    project: str,
    kind: str,
    subject: str,
    who: str,
    why: str,
    evidence: Mapping[str, Any],
    at: float,
    *,
    written: float | None = None,
) -> Entry:
    """Seal one more entry onto the project's chain, in the write transaction `tx` of what it records.

    Args: `kind` of decision ("promote"), `subject` it is about ("v7"), `who` decided, `why` in a sentence, `evidence`
    as JSON values, `at` seconds since the epoch. written: the machine's time, where `at` is decision time; it is sealed
        with the evidence.
    Raises: DataError when the evidence has no JSON form, a text cannot be stored or `at` is not finite.
    """
    if written is not None:
        evidence = {**evidence, WRITTEN: float(written)}
    if not math.isfinite(at):
        raise DataError(f"ledger of {project}", f"time {at} is not finite")
    texts = {"project": project, "kind": kind, "subject": subject, "who": who, "why": why}
    for name, value in texts.items():
        storable(value, f"ledger.{name}")
    body = canonical(evidence, f"ledger.evidence of {kind}")
    seq, prev = head(tx, project)
    # + 0.0 turns -0.0, which SQLite does not keep, into 0.0.
    fields = {**texts, "seq": seq + 1, "at": float(at) + 0.0, "evidence": json.loads(body), "prev": prev}
    entry = Entry(**fields, hash=_seal(fields))
    tx.connection.execute(insert(LEDGER).values({**asdict(entry), "evidence": body}))
    return entry


def entries(tx: Tx, project: str, since_seq: int = 0, kinds: Collection[str] | None = None) -> list[Entry]:
    """Entries with seq above `since_seq`, oldest first; only those of `kinds` when given.

    Raises: DataError naming the entry that cannot be read any more."""
    query = select(LEDGER).where(LEDGER.c.project == project, LEDGER.c.seq > since_seq).order_by(LEDGER.c.seq)
    if kinds is not None:
        query = query.where(LEDGER.c.kind.in_(kinds))
    with _any_text(tx):
        found = tx.connection.execute(query).mappings().all()
    return [_entry(row) for row in found]


def entry(tx: Tx, project: str, seq: int) -> Entry | None:
    """The entry with this number. Raises: DataError when it cannot be read any more."""
    query = select(LEDGER).where(LEDGER.c.project == project, LEDGER.c.seq == seq)
    with _any_text(tx):
        row = tx.connection.execute(query).mappings().one_or_none()
    return None if row is None else _entry(row)


def head(tx: Tx, project: str) -> Anchor:
    """(seq, hash) of the last entry, as it stands and unverified; (0, `GENESIS`) of an empty ledger."""
    last = select(LEDGER.c.seq, LEDGER.c.hash).where(LEDGER.c.project == project).order_by(LEDGER.c.seq.desc()).limit(1)
    seq, sealed = tx.connection.execute(last).one_or_none() or (0, GENESIS)
    return int(seq), str(sealed)


def verify(
    tx: Tx,
    project: str,
    *anchors: Anchor,
    accepted: Collection[Anchor] = (),
    heard: Callable[[Entry], object] | None = None,
) -> Verification:
    """Walk the chain from its first entry. `anchors` are heads that were noted outside the database earlier; the empty
    chain's vouches for nothing. Those that the chain does not hold are a problem, unless they are among `accepted`: a
    person names these, and never the ledger. heard: is told each entry that holds, so that nobody reads it again."""
    n, at, problem, claimed = 0, (0, GENESIS), None, set[Anchor]()
    waiting: dict[int, set[str]] = {}
    for seq, sealed in anchors:
        if seq > 0:
            waiting.setdefault(seq, set()).add(sealed)
    proven, unmet = 0, set[Anchor]()
    query = select(LEDGER).where(LEDGER.c.project == project).order_by(LEDGER.c.seq).execution_options(yield_per=500)
    with _any_text(tx):
        for row in tx.connection.execute(query).mappings():
            n += 1
            if problem is not None:
                continue
            entry, problem = _sound(row, at)
            if entry is not None:
                if heard is not None:
                    heard(entry)
                at = (entry.seq, entry.hash)
                wanted = waiting.pop(at[0], set())
                proven = at[0] if at[1] in wanted else proven
                unmet |= {(at[0], sealed) for sealed in wanted - {at[1]}}
                if entry.kind == RESTORED:
                    claimed |= _gave_up(entry)
    lost, missing = set[Anchor](), list[Anchor]()
    if problem is None:
        unmet |= {(seq, sealed) for seq, hashes in waiting.items() for sealed in hashes}
        lost, missing = unmet & set(accepted), sorted(unmet - set(accepted))
        problem = _unmet(missing, at, claimed)
    return Verification(
        problem is None,
        n,
        at,
        problem,
        problem is None and proven > 0,
        proven,
        tuple(missing),
        tuple(anchor for anchor in missing if anchor in claimed),
        tuple(sorted(lost)),
    )


def parse_anchor(text: str) -> Anchor:
    """The anchor that `SEQ:HASH` names. Raises: NoAnchor."""
    found = _ANCHOR.fullmatch(text.strip())
    if found is None:
        raise NoAnchor(
            f"anchor {text.strip()[:90]!r}", "write SEQ:HASH, such as 17:6e3f..., as `mlops-ray ledger verify` prints"
        )
    return int(found[1]), found[2]


def parse_anchors(text: str, name: str) -> list[Anchor]:
    """The anchors of a file called `name`: a line each, as SEQ:HASH or as JSON with `seq` and `hash`, so that an export
    of the ledger is one. Empty lines and those that begin with # say nothing.

    Raises: NoAnchor naming file and line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if line.startswith("{"):
                body = json.loads(line)
                line = f"{body['seq']}:{body['hash']}"
            found.append(parse_anchor(line))
        except (ValueError, KeyError, DataError) as exc:
            raise NoAnchor(f"{name}, line {number}", "is no anchor; write SEQ:HASH, or an exported entry") from exc
    return found


def _unmet(anchors: list[Anchor], head: Anchor, claimed: Collection[Anchor]) -> str | None:
    """What the first anchor that the chain does not hold shows, and what the ledger claims of it."""
    if not anchors:
        return None
    seq, _ = anchors[0]
    if seq <= head[0]:
        says = f"entry {seq} is not the anchored one: the chain was rewritten"
    else:
        says = f"the anchor names entry {seq}, the chain ends at {head[0]}: its tail was cut"
    given_up = [anchor for anchor in anchors if anchor in claimed]
    if anchors[0] not in given_up:
        return says
    lost = " ".join(f"--accept-loss {seq}:{sealed}" for seq, sealed in given_up)
    what = "it" if len(given_up) == 1 else f"it and {len(given_up) - 1} more"
    return (
        f"{says}. An entry `{RESTORED}` claims that a restored backup gave {what} up, which proves nothing: whoever "
        f"cuts a ledger can write that too. If you know of that restore, say so: {lost}"
    )


def _gave_up(entry: Entry) -> set[Anchor]:
    listed = entry.evidence.get(GAVE_UP)
    pairs = [pair for pair in listed if isinstance(pair, list)] if isinstance(listed, list) else []
    return {(pair[0], pair[1]) for pair in pairs if [type(part) for part in pair] == [int, str]}


def _sound(row: RowMapping, head: tuple[int, str]) -> tuple[Entry, None] | tuple[None, str]:
    """The entry that stands after `head`, or what is wrong with it."""
    seq = row["seq"]
    if type(seq) is not int:
        return None, f"an entry after {head[0]} was edited: its number is none"
    if seq != head[0] + 1:
        return None, f"entry {seq} stands where {head[0] + 1} should: entries were removed or inserted"
    if row["prev"] != head[1]:
        return None, f"entry {seq} does not continue entry {head[0]}: one of them was replaced"
    try:
        entry = _entry(row)
        same_text = canonical(entry.evidence, "evidence") == row["evidence"]
        sealed = _seal({k: v for k, v in vars(entry).items() if k != "hash"})
    except DataError:
        return None, f"entry {seq} was edited: it cannot be read any more"
    if not same_text or sealed != row["hash"]:
        return None, f"entry {seq} was edited: its hash does not fit its content"
    return entry, None


def _entry(row: RowMapping) -> Entry:
    """Raises: DataError naming an entry that no release wrote so."""
    try:
        for name, value in row.items():
            if isinstance(LEDGER.c[name].type, Text):
                storable(value, f"ledger.{name}")
        evidence = json.loads(row["evidence"])
        if not isinstance(evidence, dict) or not isinstance(row["at"], float):
            raise TypeError("of another type")
    except (ValueError, TypeError, RecursionError, DataError) as exc:
        says = f"entry {row['seq']} was edited: it cannot be read any more; `mlops-ray ledger verify` says what holds"
        raise DataError(f"ledger of {row['project']!r}", says) from exc
    return Entry(**{**row, "evidence": evidence})


@contextmanager
def _any_text(tx: Tx) -> Iterator[None]:
    """Read texts that are no UTF-8 as lone surrogates (PEP 383), which nothing of ours holds. SQLite keeps any bytes
    and its driver fails at the whole query; PostgreSQL refuses them when they are written."""
    driver: Any = tx.connection.connection.dbapi_connection
    if tx.connection.dialect.name != "sqlite":
        yield
        return
    was = driver.text_factory
    driver.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = was


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields, "ledger entry").encode()).hexdigest()
