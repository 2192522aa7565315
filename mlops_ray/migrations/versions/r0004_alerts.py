"""Alerts, what silences them, and the messages about them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def _real(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "alerts",
        _text("project", key=True),
        _text("id", key=True),
        _text("rule"),
        _text("subject"),
        _text("phase"),
        _real("since"),
        _real("ended", nullable=True),
        _text("body"),
    )
    is_open = sa.text("phase IN ('pending', 'firing')")
    op.create_index(
        "one_open_alert",
        "alerts",
        ["project", "rule", "subject"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "silences",
        _text("project", key=True),
        _text("id", key=True),
        _text("rule"),
        _text("subject"),
        _text("who"),
        _text("why"),
        _real("created"),
        _real("ends"),
    )
    op.create_table(
        "alert_messages",
        _text("project", key=True),
        _text("id", key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        _text("channel"),
        _text("status"),
        _real("created"),
        _real("due"),
        _text("body"),
    )
    op.create_index("alert_messages_by_status", "alert_messages", ["project", "status", "channel"])
