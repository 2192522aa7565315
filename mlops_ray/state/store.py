"""Opening the state database, and its transactions: one writer at a time, readers on a snapshot."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mlops_ray.errors import BackendUnavailable, DataError, LeaseLost
from mlops_ray.state.rows import Lease
from mlops_ray.state.tables import LEASES
from mlops_ray.state.transaction import Tx

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
            tx.save(LEASES, new)
            return new

        if not holder:
            raise DataError(f"lease {name}", "a holder needs a name")
        return self.run(take)

    def renew(self, lease: Lease, ttl_s: float, now: float) -> Lease:
        """The same lease for another `ttl_s`; late is fine as long as nobody took it. Raises: LeaseLost."""

        def extend(tx: Tx) -> Lease:
            tx.guard(lease)
            new = Lease(lease.name, lease.holder, lease.fence, now + ttl_s)
            tx.save(LEASES, new)
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
                tx.save(LEASES, Lease(lease.name, "", lease.fence, 0.0))

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
                if revision(tx.connection) != HEAD:
                    upgrade(tx.connection, self.name, VERSION_TABLE)

    def _revision(self) -> str | None:
        with self.read() as tx:
            return revision(tx.connection)

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


def revision(connection: Connection) -> str | None:
    """The schema's revision as the database says, or None before the first migration."""
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
