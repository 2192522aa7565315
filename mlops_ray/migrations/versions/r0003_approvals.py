"""Approvals: who decided what about a version or a rollout of it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "approvals",
        _text("project", key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        _text("rollout", key=True),
        _text("subject", key=True),
        _text("decision"),
        _text("reason"),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=True),
    )
