"""Fixtures of the unit tests: a PostgreSQL server, and a state database of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mlops_ray.ledger import LEDGER
from mlops_ray.state import METADATA, Store
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]

# A busy machine is no failure.
settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db"


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Address of a state database of each kind, kept for the session; `store` empties it."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty state database of each kind."""
    assert LEDGER.metadata is METADATA
    opened = Store.open(url)
    with opened.begin() as tx:
        for table in METADATA.tables.values():
            tx.connection.execute(table.delete())
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a database of each kind that nobody has opened yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/below/state.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()
