"""A tracking store of each kind: SQLite, PostgreSQL, and an MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from mlops_ray.config import Project
from mlops_ray.state import Store
from tests.mlflow_server import Server, running
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]

_numbers = count(1)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session", params=["sqlite", "server", pytest.param("postgres", marks=pytest.mark.slow)])
def tracking_uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of each kind, kept for the session: making its tables takes seconds."""
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        return server.new_database()
    if request.param == "server":
        found: Server = request.getfixturevalue("mlflow_server")
        return found.uri
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@dataclass(frozen=True)
class Room:
    """A project that nobody has run yet, with its state database."""

    project: Project
    store: Store


def body(name: str, root: Path, tracking_uri: str | None, **blocks: object) -> dict[str, object]:
    """A small project file."""
    return {
        "project": name,
        "task": "binary",
        "target": "y",
        "key": "id",
        "event_time": "at",
        "seed": 3,
        "storage": {"root": str(root), "tracking_uri": tracking_uri},
        "source": {"kind": "sql", "url": "postgresql://me:geheim@db/rows", "query": "SELECT 1"},
        "columns": [
            {"name": "y", "dtype": "int"},
            {"name": "id", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "x", "dtype": "float"},
            {"name": "kind", "dtype": "string"},
        ],
        "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["kind"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        **blocks,
    }


@pytest.fixture
def make_room(tracking_uri: str, tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Makes rooms of projects of their own, in the store that the test is run on."""
    stores: list[Store] = []

    def make(**blocks: object) -> Room:
        project = Project.model_validate(body(f"tracked{next(_numbers)}", tmp_path, tracking_uri, **blocks))
        stores.append(Store.open(project.storage.state))
        return Room(project, stores[-1])

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    return make_room()
