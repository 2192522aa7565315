"""The `source:` block: where rows come from."""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from mlops_ray.config.base import Config, ImportPath

FILE_READERS = (
    *("audio", "avro", "binary_files", "csv", "delta", "hudi", "images", "json", "lance", "lerobot", "mcap", "numpy"),
    *("orc", "parquet", "text", "tfrecords", "videos", "webdataset", "zarr"),
)
"""Readers of Ray Data that take `path:`; their names stand here because reading a project file imports no Ray."""
SERVICE_READERS = (
    *("bigquery", "clickhouse", "databricks_tables", "delta_sharing_tables", "iceberg", "kafka", "mongo", "snowflake"),
    *("sql", "unity_catalog"),
)
"""Readers of Ray Data that are told everything by `options:`; `sql` has `url:` and `query:` besides."""
OWN_KINDS = ("python", "http", "concat", "join")
KINDS = (*FILE_READERS, *SERVICE_READERS, *OWN_KINDS)

_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(FILE_READERS, (("path",), ("options",))),
    **dict.fromkeys(SERVICE_READERS, (("options",), ())),
    "sql": (("url", "query"), ("options",)),
    "python": (("function",), ("options",)),
    "http": (("url",), ("params", "headers", "rows", "paging", "timeout_s", "retries", "max_pages")),
    "concat": (("sources",), ()),
    "join": (("sources", "keys"), ("how", "max_join_mb")),
}
"""Per kind: the fields that it needs, and those that it takes besides; every kind takes `time_range`."""
_SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|credential|auth|signature|sas|account|dsn|conn", re.IGNORECASE)
_PASSWORD = re.compile(r"(?i)\b(password|passwd|pwd|secret|token|sig|signature|\w*key)=([^&\s'\"]+)")
HIDDEN = "***"


class TimeRange(Config):
    """Rows whose `column` lies in [start, end). Instants are ISO 8601; without an offset they are UTC."""

    column: str = Field(min_length=1)
    start: datetime | None = None
    end: datetime | None = None

    @field_validator("start", "end")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @model_validator(mode="after")
    def _ordered(self) -> TimeRange:
        if self.start is None and self.end is None:
            raise ValueError("give start, end or both")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"start {self.start.isoformat()} must be before end {self.end.isoformat()}")
        return self


class Paging(Config):
    """How a JSON API hands out its pages.

    `link`: the header `Link: <...>; rel="next"` (RFC 8288). `next`: the body's `field` holds the next page's address.
    `cursor`: the body's `field` goes into the parameter `param`. `page`: `param` counts pages from `first`. `offset`:
    `param` counts rows. The last two end with the first page without rows, the others with a page that names no next.
    """

    kind: Literal["link", "next", "cursor", "page", "offset"]
    field: str | None = None
    """Where in the body: names with dots between."""
    param: str | None = None
    first: int = 1

    @model_validator(mode="after")
    def _complete(self) -> Paging:
        if self.kind in ("next", "cursor") and not self.field:
            raise ValueError(f"kind: {self.kind} needs `field:`, the place in the body, such as meta.next")
        if self.kind in ("cursor", "page", "offset") and not self.param:
            raise ValueError(f"kind: {self.kind} needs `param:`, the name of the parameter")
        return self


class Source(Config):
    """Where rows come from: a Ray Data reader by name, an HTTP API, a Python function, or several of these."""

    kind: str
    """A reader of Ray Data (`parquet` calls `ray.data.read_parquet`), or python, http, concat, join."""
    path: str | tuple[str, ...] | None = None
    function: ImportPath | None = None
    """`module:function`, for `kind: python`; called with `options` as keywords."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords for the reader or the function."""
    time_range: TimeRange | None = None
    """Only these rows are read; files, row groups and database rows outside are skipped where the reader can."""
    url: str | None = None
    """Of a database (as SQLAlchemy writes it) or an API. Passwords come from the environment: `${NAME}`."""
    query: str | None = None
    """For `kind: sql`: a SELECT."""
    params: dict[str, str | int | float | bool] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    rows: str = ""
    """Where in an API's body the list of rows stands, names with dots between; "" is the body itself."""
    paging: Paging | None = None
    timeout_s: PositiveFloat = 30.0
    retries: Annotated[int, Field(ge=0)] = 5
    """Per page, after 429, 5xx and broken connections, with doubling waits: five of them span half a minute."""
    max_pages: PositiveInt = 10_000
    """More pages are an error: a server that repeats itself would be read for ever."""
    sources: tuple[Source, ...] = ()
    """For `concat` and `join`."""
    keys: tuple[str, ...] = ()
    """For `join`: the columns that must be equal. (Not `on:`, which YAML reads as "true".)"""
    how: Literal["inner", "left"] = "inner"
    max_join_mb: PositiveInt = 512
    """What the sources after the first may take in memory; every worker sees one shared copy."""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KINDS:
            near = difflib.get_close_matches(value, KINDS, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(KINDS)}"
            raise ValueError(f"unknown kind; {hint}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Source:
        needs, takes = _FIELDS[self.kind]
        missing = [name for name in needs if not getattr(self, name)]
        if missing:
            what = "`function: module:function`" if self.kind == "python" else " and ".join(f"`{m}:`" for m in missing)
            raise ValueError(f"kind: {self.kind} needs {what}")
        set_here = {
            name
            for name, value in self
            if value != type(self).model_fields[name].get_default(call_default_factory=True)
        }
        foreign = sorted(set_here - {"kind", "time_range", *needs, *takes})
        if foreign:
            raise ValueError(f"kind: {self.kind} takes no {', '.join(foreign)}; remove it")
        if self.kind == "join" and len(self.sources) < 2:
            raise ValueError("kind: join needs at least two sources")
        if self.kind == "http" and urlsplit(self.url or "").scheme not in ("http", "https"):
            raise ValueError("kind: http needs a url that starts with http:// or https://")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple, empty without one."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @property
    def where(self) -> str:
        """What messages call this source; without secrets."""
        if self.sources:
            return f"{self.kind} of " + ", ".join(source.where for source in self.sources)
        name = self.options.get("table_identifier") or self.options.get("topics") or ""
        return ", ".join(map(without_secrets, self.paths)) or str(
            self.function or without_secrets(self.url or "") or name or self.kind
        )

    def public(self) -> dict[str, Any]:
        """JSON-friendly description without secrets and defaults, for lineage.

        Values of headers, and of options and parameters whose name sounds like a secret, are left out; addresses lose
        user, password and query.
        """
        body: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude={"sources"})
        if "url" in body:
            body["url"] = without_secrets(body["url"])
        if "path" in body:
            shown = [without_secrets(path) for path in self.paths]
            body["path"] = shown[0] if isinstance(self.path, str) else shown
        for field in ("options", "params"):
            if field in body:
                body[field] = _hide(body[field])
        if "headers" in body:
            body["headers"] = dict.fromkeys(body["headers"], HIDDEN)
        if self.sources:
            body["sources"] = [source.public() for source in self.sources]
        return body

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message may hold: what `public` hides."""
        found = {*self.headers.values(), *(word for value in self.headers.values() for word in value.split())}
        found |= _hidden_in(self.options) | _hidden_in(self.params)
        for address in (*self.paths, *([self.url] if self.url else [])):
            within = _secrets_of(address)
            found |= {address, *within} if within else set()
        found |= {secret for source in self.sources for secret in source.secrets}
        return frozenset(text for text in found if len(text) > 3)

    def scrub(self, text: str) -> str:
        """`text` without this source's secrets, for what drivers and servers complain."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return _PASSWORD.sub(rf"\1={HIDDEN}", text)


def without_secrets(address: str) -> str:
    """A path as it is; an address without user, password, query and fragment."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _secrets_of(address: str) -> set[str]:
    """Password and secret parameters of an address, as written and as servers repeat them."""
    if "://" not in address:
        return set()
    parts = urlsplit(address)
    found = {value for name, value in parse_qsl(parts.query) if _SECRET_NAME.search(name)}
    if parts.password:
        found |= {parts.password, unquote(parts.password)}
    return found


def _hide(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _hide(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(v, name) for v in value]
    if name and _SECRET_NAME.search(name) and value is not None:
        return HIDDEN
    return without_secrets(value) if isinstance(value, str) else value


def _hidden_in(value: Any, name: str = "") -> set[str]:
    if isinstance(value, dict):
        return {text for k, v in value.items() for text in _hidden_in(v, str(k))}
    if isinstance(value, list | tuple):
        return {text for v in value for text in _hidden_in(v, name)}
    found = _secrets_of(value) if isinstance(value, str) else set()
    return found | {str(value)} if name and _SECRET_NAME.search(name) and value is not None else found
