"""The tokens of a project in the state database. Replicas read them again every few seconds, so nothing restarts."""

from __future__ import annotations

from sqlalchemy import Column, Double, RowMapping, Table, Text, select

from mlops_ray.errors import DataError
from mlops_ray.serving.access import Grant, Role
from mlops_ray.state import METADATA, Tx, storable

TOKENS = Table(
    "tokens",
    METADATA,
    Column("project", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=True),
)


def grants(tx: Tx, project: str) -> list[Grant]:
    """All tokens of a project, oldest first; those that have expired too."""
    query = select(TOKENS).where(TOKENS.c.project == project).order_by(TOKENS.c.created, TOKENS.c.id)
    return [_grant(row) for row in tx.connection.execute(query).mappings()]


def save(tx: Tx, project: str, grant: Grant) -> None:
    """Keep a new token. Raises: DataError when its name cannot be stored."""
    name = storable(grant.name, "name of the token")
    row = {**vars(grant), "name": name, "roles": " ".join(grant.roles), "project": project}
    tx.connection.execute(TOKENS.insert().values(row))


def expire(tx: Tx, project: str, token: str, at: float) -> Grant:
    """The token with this id, which ends at `at` (seconds since the epoch) or when it would have anyway, if earlier.

    Raises: DataError when there is none."""
    known = next((grant for grant in grants(tx, project) if grant.id == token), None)
    if known is None:
        raise DataError(f"token {token}", "is none of this project's; `mlops-ray token list` names them")
    ends = at if known.expires is None else min(at, known.expires)
    tx.connection.execute(TOKENS.update().where(TOKENS.c.project == project, TOKENS.c.id == token).values(expires=ends))
    return Grant(known.id, known.name, known.sha256, known.roles, known.created, ends)


def _grant(row: RowMapping) -> Grant:
    roles = tuple(Role(role) for role in row["roles"].split())
    return Grant(row["id"], row["name"], row["sha256"], roles, row["created"], row["expires"])
