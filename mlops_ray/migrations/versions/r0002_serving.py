"""Serving: tokens, ids that clients chose for their requests, the secret that keys are hashed with."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def _real(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tokens",
        _text("project", key=True),
        _text("id", key=True),
        _text("name"),
        _text("sha256"),
        _text("roles"),
        _real("created"),
        _real("expires", nullable=True),
    )
    op.create_table(
        "request_ids",
        _text("project", key=True),
        _text("id", key=True),
        _text("owner"),
        sa.Column("number", sa.BigInteger, nullable=False),
        _real("at"),
    )
    op.create_index("request_ids_by_age", "request_ids", ["project", "at"])
    op.create_table("project_secrets", _text("project", key=True), _text("secret"))
