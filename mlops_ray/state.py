"""The state database: what the loop has decided and where it stands, in SQLite or PostgreSQL with the same code.

`Store.open(url)` creates or migrates the schema. All changes go through `with store.begin() as tx:` or `store.run(fn)`.
There is **one writer at a time** on either database: SQLite's `BEGIN IMMEDIATE`, on PostgreSQL an advisory lock held
to the end of the transaction. A writer therefore sees everything that writers before it committed, which makes "read,
decide, write" race free, the ledger one chain and a lease's guard conclusive, without serialization failures. The price
is that a write transaction must be short: no network call, no computation, and none inside another.

JSON bodies (`spec`, `plan`, `state`, `outcome`, `result`, ...) are plain dicts, stored as canonical JSON text, so that
both databases return the same floats, bit for bit. NaN and infinity are refused; None says "missing".
Times are float seconds since the epoch, handed in by the caller.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    MetaData,
    RowMapping,
    Select,
    Table,
    Text,
    cast,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
    type_coerce,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlops_ray.errors import BackendUnavailable, DataError, IllegalMove, LeaseLost, ModelNotFound

HEAD = "0005"
"""Revision of the schema that this code reads and writes: the newest script in `migrations/versions`."""

VERSION_TABLE = "mlops_ray_schema"
"""Where Alembic keeps the revision. Not its default name: MLflow and Optuna use that one, maybe in this database."""

LOCK_WAIT_S = 30
"""How long a writer waits for the one before it: far above the milliseconds that a transaction takes."""

IDLE_S = 15
"""PostgreSQL ends a transaction that its client left idle for so long: half of `LOCK_WAIT_S`, so that a stalled writer
falls before those who wait for it give up."""

_WRITE_LOCK = 0x6D6C6F70735F7261  # "mlops_ra": key of the advisory lock, PostgreSQL's counterpart of BEGIN IMMEDIATE
_AGAIN = ("40001", "40P01")  # SQLSTATE of a serialization failure and of a deadlock: rolled back, to be run again
_CUT = "25P03"  # a transaction that idled too long; psycopg counts it as an internal error and not an operational one

T = TypeVar("T")


@dataclass(frozen=True)
class ProjectRow:
    """A project file as it was last loaded; `config_sha256` is the hex digest of its text."""

    name: str
    config_text: str
    config_sha256: str
    updated: float


@dataclass(frozen=True)
class VersionRow:
    """One registered model: where its artifact lies, which hash it must have, what data it saw.

    `status` is `REGISTERED`, `PENDING` while it waits for approvals, or `REJECTED` when an approver refused it."""

    REGISTERED: ClassVar[str] = "registered"
    PENDING: ClassVar[str] = "pending"
    REJECTED: ClassVar[str] = "rejected"

    project: str
    version: int
    run_id: str
    artifact: str
    sha256: str
    dataset: str
    status: str
    created: float
    tags: dict[str, Any]

    @property
    def may_serve(self) -> bool:
        """Whether it may get traffic."""
        return self.status not in (self.PENDING, self.REJECTED)


@dataclass(frozen=True)
class ServingRow:
    """What a project should serve. (fence, seq) orders all configurations; who holds a higher one ignores this."""

    project: str
    seq: int
    fence: int
    spec: dict[str, Any]


@dataclass(frozen=True)
class RolloutRow:
    """One rollout of `version` against `stable`; open while `ended` is None."""

    id: str
    project: str
    version: int
    stable: int
    plan: dict[str, Any]
    state: dict[str, Any]
    created: float
    ended: float | None = None


@dataclass(frozen=True)
class Glimpse:
    """What changes of a project when there is something to do: its file, (fence, seq) of what it should serve (-1
    before anything), and its open rollout, None without one."""

    config_sha256: str
    order: tuple[int, int]
    rollout: str | None
    state: dict[str, Any]


@dataclass(frozen=True)
class RetrainRow:
    """One decision to retrain and what became of it; open while `status` is "decided" or "submitted"."""

    OPEN: ClassVar[tuple[str, ...]] = ("decided", "submitted")
    PROPOSED: ClassVar[str] = "proposed"
    """What a dry run would have decided: nobody acts on it."""

    id: str
    project: str
    trigger: str
    reason: str
    decided: float
    submission_id: str
    status: str
    outcome: dict[str, Any]
    updated: float


@dataclass(frozen=True)
class WindowRow:
    """The judgement of one window [start, end) of a version's traffic."""

    project: str
    start: float
    end: float
    version: int
    result: dict[str, Any]


@dataclass(frozen=True)
class ApprovalRow:
    """What a subject last decided about a version (`rollout` is ""), or about one rollout of it.

    `expires`: seconds since the epoch from which on it no longer counts, or None."""

    APPROVE: ClassVar[str] = "approve"
    REJECT: ClassVar[str] = "reject"

    project: str
    version: int
    rollout: str
    subject: str
    decision: str
    reason: str
    at: float
    expires: float | None = None


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come: the last number it took in, and the time it stood for."""

    number: int = -1
    at: float = 0.0


@dataclass(frozen=True)
class Lease:
    """The right to act under `name` until `expires`. `fence` grows with every new holder and never falls."""

    name: str
    holder: str
    fence: int
    expires: float


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


class Row(Protocol):
    """Any of the frozen row classes above."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Tx:
    """One transaction; made by `Store.begin` (reads and writes) and `Store.read` (a consistent snapshot, no writes)."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        """For statements of other modules on their own tables."""

    # projects

    def save_project(self, name: str, config_text: str, now: float) -> ProjectRow:
        """Keep the project file's text under the project's name, replacing an older one."""
        config = storable(config_text, f"project file of {name}").encode()
        row = ProjectRow(name, config_text, hashlib.sha256(config).hexdigest(), now)
        self._save(PROJECTS, row)
        return row

    def forget_project(self, name: str) -> None:
        """Take the project file out: the project is no longer to be served. Versions, ledger and log stay."""
        self.connection.execute(PROJECTS.delete().where(PROJECTS.c.name == name))

    def project_text(self, name: str) -> str | None:
        """The project file as last saved, or None."""
        row = self._one(ProjectRow, select(PROJECTS).where(PROJECTS.c.name == name))
        return None if row is None else row.config_text

    def projects(self) -> list[ProjectRow]:
        """All projects, by name."""
        return self._all(ProjectRow, select(PROJECTS).order_by(PROJECTS.c.name))

    def glimpses(self) -> dict[str, Glimpse]:
        """Of every project, what tells whether somebody has something to do; cheap enough for ten times a second."""
        p, s, r = PROJECTS.c, SERVING.c, ROLLOUTS.c
        tables = PROJECTS.outerjoin(SERVING, p.name == s.project).outerjoin(
            ROLLOUTS, (p.name == r.project) & r.ended.is_(None)
        )
        found = self.connection.execute(
            select(p.name, p.config_sha256, s.fence, s.seq, r.id, r.state).select_from(tables).order_by(p.name)
        )
        return {
            name: Glimpse(sha256, (-1, -1) if seq is None else (fence, seq), rollout, _parsed(state) if state else {})
            for name, sha256, fence, seq, rollout, state in found
        }

    # versions

    def save_version(self, row: VersionRow) -> None:
        """Insert or replace a version."""
        self._save(VERSIONS, row)

    def version(self, project: str, version: int) -> VersionRow:
        """Raises: ModelNotFound."""
        c = VERSIONS.c
        row = self._one(VersionRow, select(VERSIONS).where(c.project == project, c.version == int(version)))
        if row is None:
            raise ModelNotFound(project, str(version))
        return row

    def versions(self, project: str) -> list[VersionRow]:
        """All versions of a project, oldest first."""
        c = VERSIONS.c
        return self._all(VersionRow, select(VERSIONS).where(c.project == project).order_by(c.version))

    # serving

    def serving(self, project: str) -> ServingRow | None:
        """The wanted configuration, or None when nothing was ever served."""
        return self._one(ServingRow, select(SERVING).where(SERVING.c.project == project))

    def save_serving(self, project: str, spec: Mapping[str, Any], fence: int) -> ServingRow:
        """Want `spec` from now on. `seq` grows by one when the spec changes and stays when it does not.

        Raises: LeaseLost when a holder with a newer fence has saved since; replicas would ignore this one.
        """
        old = self.serving(project)
        if old is not None and fence < old.fence:
            raise LeaseLost(f"serving of {project}", f"the holder of fence {old.fence}")
        subject = f"serving configuration of {project}"
        body = canonical(spec, subject)
        seq = 1 if old is None else old.seq + (canonical(old.spec, subject) != body)
        row = ServingRow(project, seq, int(fence), json.loads(body))
        self._save(SERVING, row)
        return row

    # rollouts

    def save_rollout(self, row: RolloutRow) -> None:
        """Insert or replace a rollout.

        Raises: IllegalMove when another rollout of the project is still open.
        """
        if row.ended is None:
            other = self.open_rollout(row.project)
            if other is not None and other.id != row.id:
                raise IllegalMove("be followed by another", f"open ({other.id})", ("promote", "abort"))
        self._save(ROLLOUTS, row)

    def rollout(self, rollout_id: str) -> RolloutRow | None:
        """The rollout with this id, or None."""
        return self._one(RolloutRow, select(ROLLOUTS).where(ROLLOUTS.c.id == rollout_id))

    def rollouts(self, project: str) -> list[RolloutRow]:
        """All rollouts of a project, newest first."""
        c = ROLLOUTS.c
        return self._all(RolloutRow, select(ROLLOUTS).where(c.project == project).order_by(c.created.desc(), c.id))

    def open_rollout(self, project: str) -> RolloutRow | None:
        """The rollout that has not ended, or None; the database allows one at most."""
        c = ROLLOUTS.c
        return self._one(RolloutRow, select(ROLLOUTS).where(c.project == project, c.ended.is_(None)))

    # retrains

    def save_retrain(self, row: RetrainRow) -> None:
        """Insert or replace a retrain.

        Raises: DataError when another retrain of the project is still open.
        """
        if row.status in RetrainRow.OPEN:
            other = self.open_retrain(row.project)
            if other is not None and other.id != row.id:
                detail = f"{other.id} of {row.project} is still {other.status}; let it end or save its failure first"
                raise DataError(f"retrain {row.id}", detail)
        self._save(RETRAINS, row)

    def retrain(self, retrain_id: str) -> RetrainRow | None:
        """The retrain with this id, or None."""
        return self._one(RetrainRow, select(RETRAINS).where(RETRAINS.c.id == retrain_id))

    def retrains(self, project: str) -> list[RetrainRow]:
        """All retrains of a project, newest decision first."""
        c = RETRAINS.c
        return self._all(RetrainRow, select(RETRAINS).where(c.project == project).order_by(c.decided.desc(), c.id))

    def open_retrain(self, project: str) -> RetrainRow | None:
        """The retrain that is decided or submitted, or None; the database allows one at most."""
        c = RETRAINS.c
        return self._one(RetrainRow, select(RETRAINS).where(c.project == project, c.status.in_(RetrainRow.OPEN)))

    # approvals

    def save_approval(self, row: ApprovalRow) -> None:
        """Insert a subject's decision, or replace the one it had made."""
        self._save(APPROVALS, row)

    def approvals(self, project: str, version: int, rollout: str = "") -> list[ApprovalRow]:
        """The subjects' last decisions about a version, or about one rollout of it, oldest first."""
        c = APPROVALS.c
        where = (c.project == project, c.version == int(version), c.rollout == rollout)
        return self._all(ApprovalRow, select(APPROVALS).where(*where).order_by(c.at, c.subject))

    def all_approvals(self, project: str) -> list[ApprovalRow]:
        """The subjects' last decisions about all of a project's versions and rollouts, by version, oldest first."""
        c = APPROVALS.c
        query = select(APPROVALS).where(c.project == project).order_by(c.version, c.at, c.subject)
        return self._all(ApprovalRow, query)

    # monitoring

    def profile(self, project: str, version: int, block: float) -> dict[str, Any] | None:
        """The profile of one block of time (named by its start), or None."""
        c = PROFILES.c
        where = (c.project == project, c.version == int(version), c.block == float(block))
        body = self.connection.execute(select(c.body).where(*where)).scalar_one_or_none()
        return None if body is None else _parsed(body)

    def save_profile(self, project: str, version: int, block: float, body: Mapping[str, Any]) -> None:
        """Insert or replace the profile of one block."""
        self.upsert(PROFILES, {"project": project, "version": version, "block": block, "body": dict(body)})

    def first_block(self, project: str) -> float | None:
        """Start of the earliest block that has a profile, or None."""
        c = PROFILES.c
        found = self.connection.execute(select(func.min(c.block)).where(c.project == project)).scalar_one()
        return None if found is None else float(found)

    def last_block(self, project: str) -> float | None:
        """Start of the latest block that has a profile, or None."""
        c = PROFILES.c
        found = self.connection.execute(select(func.max(c.block)).where(c.project == project)).scalar_one()
        return None if found is None else float(found)

    def traffic(self, project: str, since: float) -> list[tuple[int, float, int]]:
        """(version, block, rows) of the blocks that start at `since` or later, by block, then version.

        The database takes the number out of the profile: of the rest, a hundred times as much, nothing is read."""
        c = PROFILES.c
        body = cast(c.body, JSON) if self.connection.dialect.name == "postgresql" else type_coerce(c.body, JSON)
        query = select(c.version, c.block, body["n"].as_float()).where(c.project == project, c.block >= since)
        return [(v, block, int(n)) for v, block, n in self.connection.execute(query.order_by(c.block, c.version))]

    def profiles(
        self, project: str, since: float, until: float, version: int | None = None
    ) -> list[tuple[int, float, dict[str, Any]]]:
        """(version, block, body) of the blocks that start in [since, until), by block, then version."""
        c = PROFILES.c
        query = select(c.version, c.block, c.body).where(c.project == project, c.block >= since, c.block < until)
        if version is not None:
            query = query.where(c.version == int(version))
        found = self.connection.execute(query.order_by(c.block, c.version))
        return [(v, block, _parsed(body)) for v, block, body in found]

    def save_window(self, row: WindowRow) -> None:
        """Insert or replace the judgement of one window of one version."""
        self._save(WINDOWS, row)

    def windows(self, project: str, limit: int = 100) -> list[WindowRow]:
        """The last `limit` windows, newest first."""
        c = WINDOWS.c
        query = select(WINDOWS).where(c.project == project).order_by(c.start.desc(), c.end.desc(), c.version)
        return self._all(WindowRow, query.limit(limit))

    def n_windows(self, project: str) -> int:
        """How many judgements of windows there are."""
        query = select(func.count()).select_from(WINDOWS).where(WINDOWS.c.project == project)
        return int(self.connection.execute(query).scalar_one())

    def cursor(self, project: str, name: str) -> Cursor:
        """Where this reader stands; `Cursor()` when it never was saved."""
        c = CURSORS.c
        return self._one(Cursor, select(c.number, c.at).where(c.project == project, c.name == name)) or Cursor()

    def cursors(self, project: str, prefix: str) -> dict[str, Cursor]:
        """All readers' places whose names begin with `prefix`, by the rest of their names."""
        c = CURSORS.c
        query = select(c.name, c.number, c.at).where(c.project == project, c.name.startswith(prefix, autoescape=True))
        found = self.connection.execute(query.order_by(c.name))
        return {name.removeprefix(prefix): Cursor(number, at) for name, number, at in found}

    def save_cursor(self, project: str, name: str, number: int, at: float) -> None:
        """Set a reader's place, in the transaction of what it has read."""
        self.upsert(CURSORS, {"project": project, "name": name, "number": number, "at": at})

    def save_cursors(self, project: str, places: Mapping[str, Cursor]) -> None:
        """Set several readers' places in one statement."""
        if not places:
            return
        rows = [
            {n: _stored(CURSORS, n, v) for n, v in ({"project": project, "name": name} | vars(place)).items()}
            for name, place in places.items()
        ]
        new = insert_of(CURSORS, self.connection.dialect.name).values(rows)
        changed = {name: new.excluded[name] for name in ("number", "at")}
        self.connection.execute(new.on_conflict_do_update(index_elements=["project", "name"], set_=changed))

    # leases

    def lease(self, name: str) -> Lease | None:
        """The lease as it stands (its holder is "" after a release), or None when nobody ever took it."""
        return self._one(Lease, select(LEASES).where(LEASES.c.name == name))

    def guard(self, lease: Lease) -> None:
        """Return if `lease` is still the newest; time plays no part: a holder that is late but unrivalled may go on.

        Call it in the write transaction that acts under the lease: until that commits, nobody can take it.
        Raises: LeaseLost.
        """
        now_held = self.lease(lease.name)
        if now_held is None or (now_held.fence, now_held.holder) != (lease.fence, lease.holder):
            raise LeaseLost(lease.name, (now_held.holder if now_held else "") or "nobody")

    # how

    def _save(self, table: Table, row: Row) -> None:
        self.upsert(table, {f.name: getattr(row, f.name) for f in fields(row)})

    def upsert(self, table: Table, values: Mapping[str, Any]) -> None:
        """Insert or replace the row with these values' primary key. Args: values: by column, JSON bodies as dicts.

        Raises: DataError for what both databases would not keep alike."""
        stored = {name: _stored(table, name, value) for name, value in values.items()}
        keys = [column.name for column in table.primary_key]
        new = insert_of(table, self.connection.dialect.name).values(stored)
        changed = {name: new.excluded[name] for name in stored if name not in keys}
        self.connection.execute(new.on_conflict_do_update(index_elements=keys, set_=changed))

    def _one(self, kind: Callable[..., T], query: Select[Any]) -> T | None:
        found = self.connection.execute(query).mappings().one_or_none()
        return None if found is None else _row(kind, found)

    def _all(self, kind: Callable[..., T], query: Select[Any]) -> list[T]:
        return [_row(kind, found) for found in self.connection.execute(query).mappings()]


def insert_of(table: Table, dialect: str) -> Any:
    """The dialect's INSERT with ON CONFLICT, imported when used: each dialect costs some 50 ms."""
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table)
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert(table)


def _row(kind: Callable[..., T], found: RowMapping) -> T:
    return kind(**{name: _parsed(value) if name in _JSON else value for name, value in found.items()})


def _parsed(body: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(body)
    return value


def _stored(table: Table, name: str, value: Any) -> Any:
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


class Store:
    """A state database. Safe to share between threads; every process opens its own."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        """The database's URL without its password."""

    @classmethod
    def open(cls, url: str) -> Store:
        """The database at `url` (`sqlite:///file` or `postgresql://...`), created or migrated to this code's schema.

        Any number of processes may open a fresh database at once.
        Raises: BackendUnavailable naming the URL without its password, and the remedy.
        """
        address, name = _address(url)
        store = cls(_engine(address), name)
        try:
            store._migrate(address)
        except BaseException as exc:
            store.close()
            if isinstance(exc, DBAPIError):  # no rights to create tables, not a database file, ...
                raise store._unavailable(exc) from exc
            raise
        return store

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Tx]:
        """One write transaction: committed when the block ends, rolled back when it raises. Keep it short.

        Raises: BackendUnavailable when the database is gone, or another writer has held it for `LOCK_WAIT_S`.
        """
        with self._mapped(), self._engine.connect() as plain:
            connection = plain.execution_options(mlops_ray_write=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    # Isolation stays READ COMMITTED: a snapshot would be taken before the lock is granted.
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITE_LOCK})
                yield Tx(connection)

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """One read-only transaction over a single snapshot; it neither waits for writers nor holds them up.

        PostgreSQL ends it, like a write, after `IDLE_S` without a statement: take the rows out, then compute.

        Raises: BackendUnavailable when the database is gone.
        """
        with self._mapped(), self._engine.connect() as plain:
            connection = plain
            if plain.dialect.name == "postgresql":
                connection = plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield Tx(connection)

    def run(self, fn: Callable[[Tx], T]) -> T:
        """`fn(tx)` in a write transaction, three times at most while the database gives up before the commit.

        That is a deadlock, a serialization failure, or a lost connection; one lost *during* the commit may have
        committed and is not repeated. `fn` must leave no trace outside `tx`.
        Raises: what `fn` raises; BackendUnavailable.
        """
        for last in (False, False, True):
            done = False
            try:
                with self.begin() as tx:
                    result = fn(tx)
                    done = True
                return result
            except BackendUnavailable as exc:
                if done or last or not _repeatable(exc.__cause__):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def acquire(self, name: str, holder: str, ttl_s: float, now: float) -> Lease:
        """Take the lease if it is free, expired or ours. `holder` must be unique to a process's life, not to its host.

        A new holder gets the next fence; the same holder keeps its own.
        Raises: LeaseLost naming who holds it.
        """

        def take(tx: Tx) -> Lease:
            old = tx.lease(name)
            if old is None:
                new = Lease(name, holder, 1, now + ttl_s)
            elif old.holder == holder:
                new = Lease(name, holder, old.fence, now + ttl_s)
            elif not old.holder or old.expires <= now:
                new = Lease(name, holder, old.fence + 1, now + ttl_s)
            else:
                raise LeaseLost(name, old.holder)
            tx._save(LEASES, new)
            return new

        if not holder:
            raise DataError(f"lease {name}", "a holder needs a name")
        return self.run(take)

    def renew(self, lease: Lease, ttl_s: float, now: float) -> Lease:
        """The same lease for another `ttl_s`; late is fine as long as nobody took it. Raises: LeaseLost."""

        def extend(tx: Tx) -> Lease:
            tx.guard(lease)
            new = Lease(lease.name, lease.holder, lease.fence, now + ttl_s)
            tx._save(LEASES, new)
            return new

        return self.run(extend)

    def release(self, lease: Lease) -> None:
        """Give the lease up; its fence stays on record. Nothing happens when it was lost already."""

        def free(tx: Tx) -> None:
            if tx.lease(lease.name) is not None:
                try:
                    tx.guard(lease)
                except LeaseLost:
                    return
                tx._save(LEASES, Lease(lease.name, "", lease.fence, 0.0))

        self.run(free)

    def _migrate(self, address: URL) -> None:
        with _opening(address, self.name):
            if self._revision() == HEAD:
                return
            if address.get_backend_name() == "sqlite":
                with self._engine.connect() as connection:
                    connection.connection.cursor().execute("PRAGMA journal_mode = WAL")  # kept in the file
            from mlops_ray.migrations import upgrade

            with self.begin() as tx:
                if _revision(tx.connection) != HEAD:
                    upgrade(tx.connection, self.name, VERSION_TABLE)

    def _revision(self) -> str | None:
        with self.read() as tx:
            return _revision(tx.connection)

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Driver errors that mean "the database is not there" as ours; mistakes in statements pass unchanged."""
        try:
            yield
        except PoolTimeoutError as exc:
            raise BackendUnavailable(
                self.name, "all connections of this process are in use; end a transaction"
            ) from exc
        except DBAPIError as exc:
            gone = isinstance(exc, OperationalError | InterfaceError) or exc.connection_invalidated
            if not gone and _sqlstate(exc) != _CUT:
                raise
            raise self._unavailable(exc) from exc

    def _unavailable(self, exc: DBAPIError) -> BackendUnavailable:
        said = (str(exc.orig).strip().splitlines() or [type(exc.orig).__name__])[0]
        if "lock" in said.lower():
            remedy = f"another process has held the write lock for {LOCK_WAIT_S} s; find it and let it end"
        elif self._engine.dialect.name == "sqlite":
            remedy = "check that the file is a database, writable, on a disk with room, or set another storage.root"
        else:
            remedy = "check that PostgreSQL runs, has this database and lets this user in, and storage.state_url"
        return BackendUnavailable(self.name, f"{said}; {remedy}")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()


def _sqlstate(exc: BaseException | None) -> str | None:
    return getattr(getattr(exc, "orig", None), "sqlstate", None)


def _repeatable(exc: BaseException | None) -> bool:
    return _sqlstate(exc) in _AGAIN or (isinstance(exc, DBAPIError) and exc.connection_invalidated)


def _address(url: str) -> tuple[URL, str]:
    """The URL with its driver, and its printable name. Raises: BackendUnavailable for what we cannot open."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as exc:
        detail = "not a database URL; write sqlite:///file or postgresql://user:password@host/database"
        raise BackendUnavailable("the state database", detail) from exc
    shown = address.difference_update_query(["password", "sslpassword"])
    name = shown.render_as_string(hide_password=True)
    backend = address.get_backend_name()
    if backend == "sqlite":
        if not address.database or address.database == ":memory:" or address.query:
            detail = "a state database must outlive its process and be a plain file: write sqlite:///file"
            raise BackendUnavailable(name, detail)
        return address.set(drivername="sqlite+pysqlite"), name
    if backend in ("postgresql", "postgres"):
        return address.set(drivername="postgresql+psycopg"), name
    raise BackendUnavailable(
        name, "the state database is SQLite or PostgreSQL: write sqlite:///... or postgresql://..."
    )


def _engine(address: URL) -> Engine:
    if address.get_backend_name() == "sqlite":
        engine = create_engine(address, connect_args={"timeout": LOCK_WAIT_S})
        event.listen(engine, "connect", _connected_sqlite)
        event.listen(engine, "begin", _begun_sqlite)
        return engine
    # tcp_user_timeout: an unplugged network shows after 30 s, not after the kernel's quarter of an hour.
    limits = {"connect_timeout": 5, "tcp_user_timeout": 30_000}
    engine = create_engine(address, pool_pre_ping=True, connect_args=limits)
    event.listen(engine, "connect", _connected_postgresql)
    return engine


def _connected_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late and is not IMMEDIATE: we begin ourselves
    connection.execute("PRAGMA synchronous = FULL")  # in WAL mode the default of NORMAL may lose the last commits


def _begun_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("mlops_ray_write", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {0 if write else 1}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _connected_postgresql(connection: Any, _record: object) -> None:
    connection.autocommit = True
    connection.execute(f"SET lock_timeout = '{LOCK_WAIT_S}s'")
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_S}s'")
    connection.autocommit = False


@contextmanager
def _opening(address: URL, name: str) -> Iterator[None]:
    """One process at a time opens an SQLite file: switching to WAL does not always wait for others (of 1200 processes
    that opened fresh files in eights, 6 failed with "database is locked" at once, on SQLite 3.40).

    The lock is a file of its own: closing a handle on the database itself would drop SQLite's locks.
    """
    if address.get_backend_name() != "sqlite":
        yield  # there the write lock is enough
        return
    file = Path(f"{address.database}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = file.open("w")
    except OSError as exc:
        detail = f"{file.parent} cannot be written ({exc.strerror}); change its owner or set another storage.root"
        raise BackendUnavailable(name, detail) from exc
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
