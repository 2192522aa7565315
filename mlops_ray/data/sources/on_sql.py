"""Reads the rows of a query through SQLAlchemy, whose drivers know the databases."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from mlops_ray.config import Source, TimeRange
from mlops_ray.config.sources import without_secrets
from mlops_ray.data.sources.shards import SqlShard
from mlops_ray.errors import DataError

ROWS_PER_FETCH = 50_000
"""Rows that the server sends at a time, and so what the reader holds as Python values: some 100 MB at 20 columns."""

_UTC = pa.timestamp("us", tz="UTC")
# Type numbers of PostgreSQL's catalogue pg_type.
_POSTGRES = {
    **dict.fromkeys((20, 21, 23, 26), pa.int64()),
    **dict.fromkeys((700, 701, 1700), pa.float64()),
    **dict.fromkeys((18, 19, 25, 1042, 1043), pa.string()),
    16: pa.bool_(),
    1082: pa.date32(),
    1114: _UTC,
    1184: _UTC,
}
_POSTGRES_TIMES = (1082, 1114, 1184)


def shard(source: Source, names: Sequence[str] | None) -> SqlShard:
    """The source's query narrowed to `names` (None: all columns) and its time range; asks the server for its columns.

    Raises: DataError when the server cannot be reached, refuses us, or does not understand the query.
    """
    engine = _engine(source)
    inner = (source.query or "").strip().rstrip(";")
    with _said(source), engine.connect() as connection:
        found = _run(connection, f"SELECT * FROM (\n{inner}\n) AS q WHERE 1 = 0").cursor
        described = {} if found is None else {str(c[0]): c[1] for c in found.description or ()}
    quote = engine.dialect.identifier_preparer.quote_identifier
    listed = list(described) if names is None else [name for name in described if name in names]
    # None of them there: all are fetched, so that the message can name what there is.
    query = f"SELECT {', '.join(map(quote, listed)) or '*'} FROM (\n{inner}\n) AS q"
    rule = source.time_range
    if rule is not None and engine.dialect.name == "postgresql" and described.get(rule.column) in _POSTGRES_TIMES:
        query += " WHERE " + " AND ".join(_bounds(rule, quote(rule.column)))
    return SqlShard(source, query)


def _bounds(rule: TimeRange, column: str) -> list[str]:
    signs = ((">=", rule.start), ("<", rule.end))
    return [f"{column} {sign} TIMESTAMPTZ '{at.isoformat()}'" for sign, at in signs if at is not None]


def tables(part: SqlShard) -> Iterator[pa.Table]:
    """The query's rows through one server-side cursor: one consistent state, a bounded number of them held.

    Raises: DataError without the address's secrets.
    """
    with _said(part.source), _engine(part.source).connect() as connection:
        stream = connection.execution_options(stream_results=True, yield_per=ROWS_PER_FETCH)
        result = _run(stream, part.query)
        codes = [c[1] for c in result.cursor.description] if result.cursor is not None else []
        known = _POSTGRES if connection.dialect.name == "postgresql" else {}
        names = list(result.keys())
        kinds = [known.get(code) for code in codes]
        seen = False
        for rows in result.partitions(ROWS_PER_FETCH):
            yield pa.table(dict(zip(names, map(_column, zip(*rows, strict=True), kinds), strict=True)))
            seen = True
        if not seen:
            yield pa.table({n: pa.array([], k or pa.null()) for n, k in zip(names, kinds, strict=True)})


def connector(source: Source) -> Any:
    """A factory of DB-API connections for `ray.data.read_sql`; what it holds stays out of messages."""
    return functools.partial(_connect, source)


def _connect(source: Source) -> Any:
    with _said(source):
        pooled = _engine(source).raw_connection()
        connection = pooled.dbapi_connection
        pooled.detach()
        return connection


def _run(connection: sqlalchemy.Connection, query: str) -> sqlalchemy.CursorResult[Any]:
    # Without parameters at all, so that % in the query is just that.
    return connection.execution_options(no_parameters=True).exec_driver_sql(query)


def _engine(source: Source) -> Engine:
    try:
        url = make_url(source.url or "")
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        options = {}
        if url.get_backend_name() == "sqlite" and _no_such_file(url.database):
            # SQLite would make an empty database of it.
            raise DataError(
                without_secrets(source.url or ""), "there is no such file; check `url:` (four slashes: /root)"
            )
        if url.get_backend_name() == "postgresql":
            # Times without a zone are UTC here; so the server must compare, and answer, in UTC.
            options = {"options": f"{url.query.get('options', '')} -c timezone=UTC".strip(), "connect_timeout": 10}
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
    except (ArgumentError, NoSuchModuleError, ImportError) as exc:
        says = "is no database address; write dialect://user:password@host/database"
        if not isinstance(exc, ArgumentError):
            says = f"no driver for this address: {exc}; install it"
        raise DataError("source.url", source.scrub(says)) from exc


def _no_such_file(database: str | None) -> bool:
    return bool(database) and not str(database).startswith((":memory:", "file:")) and not Path(str(database)).exists()


@contextlib.contextmanager
def _said(source: Source) -> Iterator[None]:
    """Turns the drivers' errors into ours, without secrets."""
    try:
        yield
    except SQLAlchemyError as exc:
        cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
        says = f"{source.scrub(' '.join(lines[:3]))}; check `url:` and `query:`"
        raise DataError(without_secrets(source.url or ""), says) from exc


def _column(values: tuple[Any, ...], kind: pa.DataType | None) -> pa.Array:
    """One column of fetched values; what Arrow does not take together becomes text."""
    if kind is None:
        kind = _guess(values)
    if kind == pa.float64():
        return pa.array([None if v is None else float(v) for v in values], kind)
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _guess(values: tuple[Any, ...]) -> pa.DataType | None:
    first = next((v for v in values if v is not None), None)
    if isinstance(first, Decimal):
        return pa.float64()
    if isinstance(first, datetime):
        return _UTC if first.tzinfo is not None else pa.timestamp("us")
    if isinstance(first, date):
        return pa.date32()
    return pa.string() if isinstance(first, str) else None
