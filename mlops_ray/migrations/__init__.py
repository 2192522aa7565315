"""Alembic scripts of the state database; `upgrade` runs those that are missing. Imported only when one is."""

from __future__ import annotations

import threading

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from mlops_ray.errors import BackendUnavailable

_ONE = threading.Lock()  # Alembic hands the current migration to its scripts in module globals


def upgrade(connection: Connection, name: str, version_table: str) -> None:
    """Bring the database behind `connection` (in a write transaction) to the newest revision.

    Args: `name` of the database for messages; `version_table` holds its revision.
    Raises: BackendUnavailable when a newer mlops_ray has migrated it already.
    """
    config = Config()
    config.set_main_option("script_location", "mlops_ray:migrations")
    config.attributes.update(connection=connection, version_table=version_table)
    try:
        with _ONE:
            command.upgrade(config, "head")
    except CommandError as exc:
        raise BackendUnavailable(name, f"its schema is of a newer mlops_ray ({exc}); upgrade this package") from exc
