"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, primary_key=key, nullable=False)


def _int(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, primary_key=key, autoincrement=False, nullable=False)


def _real(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, primary_key=key, nullable=nullable)


def upgrade() -> None:
    """Create all tables."""
    op.create_table("projects", _text("name", key=True), _text("config_text"), _text("config_sha256"), _real("updated"))
    op.create_table(
        "versions",
        _text("project", key=True),
        _int("version", key=True),
        _text("run_id"),
        _text("artifact"),
        _text("sha256"),
        _text("dataset"),
        _text("status"),
        _real("created"),
        _text("tags"),
    )
    op.create_table("serving", _text("project", key=True), _int("seq"), _int("fence"), _text("spec"))
    op.create_table(
        "rollouts",
        _text("id", key=True),
        _text("project"),
        _int("version"),
        _int("stable"),
        _text("plan"),
        _text("state"),
        _real("created"),
        _real("ended", nullable=True),
    )
    op.create_table(
        "retrains",
        _text("id", key=True),
        _text("project"),
        _text("trigger"),
        _text("reason"),
        _real("decided"),
        _text("submission_id"),
        _text("status"),
        _text("outcome"),
        _real("updated"),
    )
    for table, is_open in (("rollouts", "ended IS NULL"), ("retrains", "status IN ('decided', 'submitted')")):
        where = sa.text(is_open)
        op.create_index(
            f"one_open_{table}", table, ["project"], unique=True, sqlite_where=where, postgresql_where=where
        )
    op.create_table(
        "profiles", _text("project", key=True), _real("block", key=True), _int("version", key=True), _text("body")
    )
    op.create_table(
        "windows",
        _text("project", key=True),
        _real("start", key=True),
        _real("end", key=True),
        _int("version", key=True),
        _text("result"),
    )
    op.create_table("cursors", _text("project", key=True), _text("name", key=True), _int("number"), _real("at"))
    op.create_table("leases", _text("name", key=True), _text("holder"), _int("fence"), _real("expires"))
    op.create_table(
        "ledger",
        _text("project", key=True),
        _int("seq", key=True),
        _real("at"),
        _text("kind"),
        _text("subject"),
        _text("who"),
        _text("why"),
        _text("evidence"),
        _text("prev"),
        _text("hash"),
    )
