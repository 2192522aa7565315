"""The `source:` block: where rows come from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import unquote, unquote_plus, urlsplit

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
HIDDEN = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_ENDS = (
    *(
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "secret",
        "secrets",
        "token",
        "apikey",
        "accesskey",
        "secretkey",
    ),
    *("credential", "credentials", "authorization", "signature"),
)
"""Ends of words (`pgpassword`, `authToken`) that make a name a secret's, wherever in the name the word stands."""
_SECRET_LAST = ("pass", "pwd", "auth", "sig", "sas")
"""Words that do only at the end: `db_pass`, but not `pass_rate`."""
_KEYS_OF = (
    *("api", "access", "account", "private", "secret", "storage", "shared", "master", "encryption", "signing", "ssh"),
    *("subscription", "service"),
)
"""Whose key is a secret; that of a sort, a join or a shard is none."""
_NAME = re.compile(r"([A-Za-z][\w.-]*)\s*=\s*")
_VALUE = re.compile(r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|\{[^}]*\}|[^\s&;'\"]+")
_USER = re.compile(r"(?<=://)(?:[^/?#\s]*|[^:/?#\s@]*:(?!\d+[/?#])[^@\s]*)@")
"""User and password of an address; a password with an unencoded slash in it is one too, for SQLAlchemy takes it."""


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

        Values of headers are left out, and of options and parameters whose name is a secret's; addresses lose user,
        password and the values of such parameters. What else stands in a query is kept: it decides which rows come.
        """
        body: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude={"sources"})
        for field in ("url", "path", "query", "options", "params"):
            if field in body:
                body[field] = hidden(body[field], of_query=field == "params")
        if "headers" in body:
            body["headers"] = dict.fromkeys(body["headers"], HIDDEN)
        if self.sources:
            body["sources"] = [source.public() for source in self.sources]
        return body

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that no message may hold: what `public` hides."""
        found = {*self.headers.values(), *(word for value in self.headers.values() for word in value.split())}
        found |= _secrets_in(self.options) | _secrets_in(self.params, of_query=True)
        for address in (*self.paths, *([self.url] if self.url else [])):
            within = _secrets_in(address)
            found |= {address, *within} if within else set()
        found |= {secret for source in self.sources for secret in source.secrets}
        return frozenset(text for text in found if len(text) > 3)

    def scrub(self, text: str) -> str:
        """`text` without this source's secrets, for what drivers and servers complain."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return str(hidden(text))


def without_secrets(address: str) -> str:
    """A path as it is; an address without user, password, query and fragment."""
    if "://" not in address:
        return address
    # By hand: `urlsplit` refuses some addresses, and forgets slashes of sqlite:////place.
    return re.split(r"[?#]", _USER.sub("", address), maxsplit=1)[0]


def is_secret(name: str) -> bool:
    """Whether a field or parameter of that name holds a secret: `db_password`, `X-Amz-Signature`, `apiKey`.

    Whole words decide, so `author`, `sort_key` and `max_tokens` hold none.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return (
        any(word.endswith(_SECRET_ENDS) for word in words)
        or words[-1:] in [[word] for word in _SECRET_LAST]
        or any(of in _KEYS_OF and word in ("key", "keys") for of, word in pairwise(words))
    )


def hidden(value: Any, *, of_query: bool = False) -> Any:
    """`value` (JSON) without its secrets: passwords in addresses and connection strings, and fields named like one.

    Args: of_query: the fields of `value` are parameters of an address, where a bare `key` is a secret too.

    >>> hidden({"url": "postgresql://me:geheim@db/x", "api_key": "k", "dsn": "host=db password='ge heim'"})
    {'url': 'postgresql://***@db/x', 'api_key': '***', 'dsn': 'host=db password=***'}
    """
    if isinstance(value, Mapping):
        secret = {k for k, v in value.items() if v is not None and _holds_secret(str(k), of_query)}
        return {k: HIDDEN if k in secret else hidden(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(item) for item in value]
    return _hidden_text(value) if isinstance(value, str) else value


def _hidden_text(text: str) -> str:
    text = _USER.sub(f"{HIDDEN}@", text)
    for start, end in reversed(_secret_spans(text)):
        text = text[:start] + HIDDEN + text[end:]
    return text


def _holds_secret(name: str, of_query: bool) -> bool:
    return is_secret(name) or (of_query and name.lower() == "key")


def _secret_spans(text: str) -> list[tuple[int, int]]:
    """Where in `text` the values of `name=value` stand whose name is a secret's."""
    spans: list[tuple[int, int]] = []
    for found in _NAME.finditer(text):
        value = _VALUE.match(text, found.end())
        of_query = text[max(0, found.start() - 1) : found.start()] in ("?", "&")
        inside = spans and found.start() < spans[-1][1]
        if value is not None and not inside and _holds_secret(found[1], of_query):
            spans.append(value.span())
    return spans


def _secrets_in(value: Any, *, of_query: bool = False) -> set[str]:
    """What `hidden` hides, as it is written and as servers repeat it."""
    if isinstance(value, Mapping):
        named = {str(v) for k, v in value.items() if v is not None and _holds_secret(str(k), of_query)}
        return named.union(*(_secrets_in(v) for v in value.values()))
    if isinstance(value, list | tuple):
        return {text for item in value for text in _secrets_in(item)}
    if not isinstance(value, str):
        return set()
    users = [found[0][:-1].partition(":")[2] for found in _USER.finditer(value)]
    found = {*users, *(value[start:end].strip("'\"{}") for start, end in _secret_spans(value))} - {""}
    return found | {unquote_plus(text) for text in found} | {unquote(text) for text in found}
