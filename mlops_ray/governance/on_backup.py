"""MLflow's side of a backup: the versions and aliases of a project's registered model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# First of all that imports MLflow: it sets what MLflow reads when it is imported.
from mlops_ray.training.on_connection import Connection, short_tags  # isort: skip
from mlflow.exceptions import MlflowException

from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.state import VersionRow
from mlops_ray.training.on_registry import BEGUN, CHALLENGER, CHAMPION, versions_of

GIVEN_UP = "mlops_ray.given_up"
"""Tag of versions that MLflow has and a restored state does not."""
DERIVED = (CHAMPION, CHALLENGER)
"""Aliases that follow from what is served."""


def registry_of(project: Project, rows: Collection[VersionRow]) -> dict[str, Any]:
    """MLflow's entries of the versions in `rows`, and all aliases that point at one of them.

    Raises: BackendUnavailable, DataError."""
    connection, known = Connection(project), {row.version: row.run_id for row in rows}
    found = connection.write(lambda: versions_of(connection))
    versions = [
        {
            "version": int(each.version),
            "run_id": each.run_id,
            "source": each.source,
            "description": each.description or "",
            "tags": {name: value for name, value in each.tags.items() if name != BEGUN},
        }
        for each in sorted(found, key=lambda each: int(each.version))
        if known.get(int(each.version)) == each.run_id
    ]
    with connection.mapped():
        aliases = {alias: number for alias, number in _aliases(connection).items() if number in known}
    return {"versions": versions, "aliases": aliases}


def put_back_registry(project: Project, body: Mapping[str, Any], aliases: Mapping[str, int]) -> dict[str, Any]:
    """Make MLflow's versions and aliases those of `registry_of`; doing it again changes nothing.

    Args: aliases: those that follow from what the state serves; the backup's others are set beside them.
    Versions that MLflow has and the backup does not are left, with the tag `GIVEN_UP`: their numbers stay taken, and
    the heads of the ledger that they keep stay there.
    Raises: DataError when a number is another run's or cannot be given any more; BackendUnavailable.
    """
    connection = Connection(project)
    there = {int(each.version): each for each in connection.write(lambda: versions_of(connection))}
    wanted = {int(each["version"]): each for each in body["versions"]}
    for number, each in wanted.items():
        if number in there and there[number].run_id != each["run_id"]:
            detail = f"v{number} is of run {there[number].run_id} there and of run {each['run_id']} in the backup"
            raise DataError(connection.name, f"{detail}; restore MLflow's own database, or use an empty one")
    missing = sorted(wanted.keys() - there.keys())
    if missing:
        connection.write(lambda: _ensure_model(connection))
    for number in missing:
        _make(connection, wanted[number])
    for number, each in wanted.items():
        has = there[number].tags if number in there else {}
        for tag, value in each["tags"].items():
            if has.get(tag) != value:
                _tag(connection, number, tag, value)
    given_up = sorted(there.keys() - wanted.keys())
    for number in given_up:
        _tag(connection, number, GIVEN_UP, "a restored backup does not know it")
    others = {alias: number for alias, number in body["aliases"].items() if alias not in DERIVED}
    _set_aliases(connection, others | dict(aliases))
    return {"versions": len(wanted), "made": missing, "given_up": given_up}


def _tag(connection: Connection, number: int, tag: str, value: str) -> None:
    name, client = connection.project.project, connection.client
    connection.write(lambda: client.set_model_version_tag(name, str(number), tag, value))


def _ensure_model(connection: Connection) -> None:
    try:
        connection.client.create_registered_model(connection.project.project)
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _make(connection: Connection, wanted: Mapping[str, Any]) -> None:
    """The version with its number: MLflow counts, so numbers that were given up before are used up again."""
    client, name, number = connection.client, connection.project.project, int(wanted["version"])
    while True:
        with connection.mapped():  # not repeated: each attempt takes a number
            made = client.create_model_version(
                name,
                wanted["source"],
                wanted["run_id"],
                tags=short_tags(wanted["tags"]),
                description=wanted["description"],
                await_creation_for=0,
            )
        if int(made.version) == number:
            return
        with connection.mapped():
            client.delete_model_version(name, made.version)
        if int(made.version) > number:
            detail = f"v{number} was deleted there, and a number is never given twice; restore MLflow's own database"
            raise DataError(connection.name, f"{detail}, or use an empty one")


def _aliases(connection: Connection) -> dict[str, int]:
    try:
        found = connection.client.get_registered_model(connection.project.project)
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(number) for alias, number in found.aliases.items()}


def _set_aliases(connection: Connection, wanted: Mapping[str, int]) -> None:
    client, name = connection.client, connection.project.project
    with connection.mapped():
        there = _aliases(connection)
    for alias in there.keys() - wanted.keys():
        connection.write(lambda a=alias: client.delete_registered_model_alias(name, a))  # type: ignore[misc]
    for alias, number in wanted.items():
        if there.get(alias) != number:
            connection.write(lambda a=alias, n=number: client.set_registered_model_alias(name, a, str(n)))  # type: ignore[misc]
