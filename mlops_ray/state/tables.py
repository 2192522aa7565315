"""The tables of the state database, and how a value is stored so that SQLite and PostgreSQL return the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Column, Double, Index, MetaData, RowMapping, Table, Text, text

from mlops_ray.errors import DataError

T = TypeVar("T")

METADATA = MetaData()


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=options.pop("nullable", False), **options)


def _int(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, nullable=False, autoincrement=False, **options)


def _real(name: str, **options: Any) -> Column[float]:
    return Column(name, Double, nullable=options.pop("nullable", False), **options)


PROJECTS = Table(
    "projects",
    METADATA,
    _text("name", primary_key=True),
    _text("config_text"),
    _text("config_sha256"),
    _real("updated"),
)
VERSIONS = Table(
    "versions",
    METADATA,
    _text("project", primary_key=True),
    _int("version", primary_key=True),
    _text("run_id"),
    _text("artifact"),
    _text("sha256"),
    _text("dataset"),
    _text("status"),
    _real("created"),
    _text("tags"),
)
SERVING = Table("serving", METADATA, _text("project", primary_key=True), _int("seq"), _int("fence"), _text("spec"))
ROLLOUTS = Table(
    "rollouts",
    METADATA,
    _text("id", primary_key=True),
    _text("project"),
    _int("version"),
    _int("stable"),
    _text("plan"),
    _text("state"),
    _real("created"),
    _real("ended", nullable=True),
)
RETRAINS = Table(
    "retrains",
    METADATA,
    _text("id", primary_key=True),
    _text("project"),
    _text("trigger"),
    _text("reason"),
    _real("decided"),
    _text("submission_id"),
    _text("status"),
    _text("outcome"),
    _real("updated"),
)
for _table, _open in ((ROLLOUTS, "ended IS NULL"), (RETRAINS, "status IN ('decided', 'submitted')")):
    Index(
        f"one_open_{_table.name}",
        _table.c.project,
        unique=True,
        sqlite_where=text(_open),
        postgresql_where=text(_open),
    )
PROFILES = Table(
    "profiles",
    METADATA,
    _text("project", primary_key=True),
    _real("block", primary_key=True),
    _int("version", primary_key=True),
    _text("body"),
)
WINDOWS = Table(
    "windows",
    METADATA,
    _text("project", primary_key=True),
    _real("start", primary_key=True),
    _real("end", primary_key=True),
    _int("version", primary_key=True),
    _text("result"),
)
CURSORS = Table(
    "cursors",
    METADATA,
    _text("project", primary_key=True),
    _text("name", primary_key=True),
    _int("number"),
    _real("at"),
)
APPROVALS = Table(
    "approvals",
    METADATA,
    _text("project", primary_key=True),
    _int("version", primary_key=True),
    _text("rollout", primary_key=True),
    _text("subject", primary_key=True),
    _text("decision"),
    _text("reason"),
    _real("at"),
    _real("expires", nullable=True),
)
LEASES = Table("leases", METADATA, _text("name", primary_key=True), _text("holder"), _int("fence"), _real("expires"))
_JSON = frozenset({"tags", "spec", "plan", "state", "outcome", "body", "result"})


def canonical(value: Mapping[str, Any], subject: str) -> str:
    """The one JSON text of `value`: ASCII, keys sorted, no spaces, floats as their shortest exact decimal.

    Raises: DataError naming `subject` when the value has no JSON form (NaN, infinity, bytes, arrays, ...).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise DataError(
            subject, f"cannot be stored as JSON ({exc}); use str, int, float, bool, None, list, dict"
        ) from exc


def insert_of(table: Table, dialect: str) -> Any:
    """The dialect's INSERT with ON CONFLICT, imported when used: each dialect costs some 50 ms."""
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table)
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert(table)


def row_of(kind: Callable[..., T], found: RowMapping) -> T:
    """What was read of a table, as its row class; JSON texts as dicts."""
    return kind(**{name: parsed(value) if name in _JSON else value for name, value in found.items()})


def parsed(body: str) -> dict[str, Any]:
    """A JSON body as it was before `canonical`."""
    value: dict[str, Any] = json.loads(body)
    return value


def stored(table: Table, name: str, value: Any) -> Any:
    """`value` as both databases keep it alike: SQLite would store a NumPy integer as bytes, PostgreSQL refuses NUL."""
    subject = f"{table.name}.{name}"
    if name in _JSON:
        return canonical(value, subject)
    if value is None:
        return None
    if isinstance(table.c[name].type, BigInteger):
        return int(value)
    if isinstance(table.c[name].type, Double):
        return float(value)
    return storable(value, subject)


def storable(value: str, subject: str) -> str:
    """`value`, when both databases can keep it. Raises: DataError for a NUL character or a lone surrogate."""
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(subject, f"{value[:60]!r} holds a NUL character or a lone surrogate; clean the text")
    return value
