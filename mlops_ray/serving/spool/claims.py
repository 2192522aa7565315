"""Who may record a request id that its client chose, and the secret that a project's keys are hashed with.

A client that retries after a lost connection sends the same Idempotency-Key again, maybe to another replica on another
node: the first segment that claims the id has its rows in the log, and no other has. Both tables stand in the state
database, so the answer survives every process.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from sqlalchemy import BigInteger, Column, Double, Index, Table, Text, select

from mlops_ray.state import METADATA, Tx, insert_of, storable

REQUEST_IDS = Table(
    "request_ids",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)
Index("request_ids_by_age", REQUEST_IDS.c.project, REQUEST_IDS.c.at)
SECRETS = Table(
    "project_secrets", METADATA, Column("project", Text, primary_key=True), Column("secret", Text, nullable=False)
)

# Ids that are asked for at once: SQLite takes 32,766 parameters.
_AT_ONCE = 2_000


def claim(tx: Tx, project: str, ids: Sequence[str], owner: str, number: int, at: float) -> set[str]:
    """Those of `ids` that are this segment's: claimed now, or by the same segment before.

    Args: owner, number: the spool and the segment's number in it. at: seconds since the epoch, see `forget`.
    """
    mine: set[str] = set()
    c = REQUEST_IDS.c
    for some in _batches(sorted(set(ids))):
        rows = [
            {"project": project, "id": storable(i, "request id"), "owner": owner, "number": number, "at": at}
            for i in some
        ]
        # One statement of all rows is compiled anew with its ten thousand parameters: half of a collector's time.
        claimed = insert_of(REQUEST_IDS, tx.connection.dialect.name)
        tx.connection.execute(claimed.on_conflict_do_nothing(index_elements=["project", "id"]), rows)
        held = select(c.id).where(c.project == project, c.id.in_(some), c.owner == owner, c.number == number)
        mine.update(tx.connection.execute(held).scalars())
    return mine


def forget(tx: Tx, project: str, before: float) -> int:
    """Let go of claims older than `before` (seconds since the epoch); how many. No client retries for days."""
    c = REQUEST_IDS.c
    return int(tx.connection.execute(REQUEST_IDS.delete().where(c.project == project, c.at < before)).rowcount)


def secret(tx: Tx, project: str) -> bytes:
    """The project's 32 secret bytes, made at the first ask (in a write transaction)."""
    found = select(SECRETS.c.secret).where(SECRETS.c.project == project)
    known = tx.connection.execute(found).scalar_one_or_none()
    if known is None:
        known = secrets.token_hex(32)
        tx.connection.execute(SECRETS.insert().values(project=project, secret=known))
    return bytes.fromhex(known)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
