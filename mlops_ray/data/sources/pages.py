"""Pages of a JSON API: which rows a body holds, and which request comes next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from mlops_ray.config import Paging, Source
from mlops_ray.config.sources import without_secrets
from mlops_ray.errors import DataError

_LINK = re.compile(r'<([^>]*)>\s*((?:;\s*[\w*!#$&+.^`|~-]+\s*(?:=\s*(?:"[^"]*"|[^",;\s]+))?\s*)*)')
_REL = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^",;\s]+))', re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """One request: the `number`th from 1, its whole address, and how many rows the pages before it held."""

    number: int
    url: str
    n_before: int = 0


def first_page(source: Source) -> Page:
    """The request that begins: the source's address with its parameters."""
    params = {k: str(v).lower() if isinstance(v, bool) else v for k, v in source.params.items()}
    paging = source.paging
    if paging is not None and paging.param is not None and paging.kind in ("page", "offset"):
        params.setdefault(paging.param, paging.first if paging.kind == "page" else 0)
    return Page(1, _with_params(source.url or "", params))


def next_page(paging: Paging | None, page: Page, body: Any, link: str, n_rows: int) -> Page | None:
    """The request after `page`, whose answer had the body `body`, the header `Link: link` and `n_rows` rows; or None.

    Raises: DataError when the next page lies on another server (whoever answers must not send our headers elsewhere),
    or is the page itself.
    """
    if paging is None:
        return None
    if paging.kind in ("page", "offset"):
        if not n_rows:
            return None
        seen = page.n_before + n_rows
        at = dict(parse_qsl(urlsplit(page.url).query)).get(str(paging.param), "0")
        following = int(at) + (1 if paging.kind == "page" else n_rows)
        return Page(page.number + 1, _with_params(page.url, {str(paging.param): following}), seen)
    found = next_link(link) if paging.kind == "link" else value_at(body, paging.field or "")
    if found in (None, "", False):
        return None
    if paging.kind == "cursor":
        url = _with_params(page.url, {str(paging.param): found})
    else:
        url = urljoin(page.url, str(found))
    where = without_secrets(page.url)
    if urlsplit(url)[:2] != urlsplit(page.url)[:2]:
        raise DataError(
            where, f"page {page.number} names the next one on another server, {without_secrets(url)}; begin there"
        )
    if url == page.url:
        raise DataError(where, f"page {page.number} names itself as the next one; check `paging:`")
    return Page(page.number + 1, url, page.n_before + n_rows)


def next_link(header: str) -> str | None:
    """The target of `rel="next"` in a Link header (RFC 8288)."""
    for target, attributes in _LINK.findall(header):
        rel = _REL.search(attributes)
        if rel is not None and "next" in (rel[1] or rel[2] or "").lower().split():
            return str(target)
    return None


def value_at(body: Any, place: str) -> Any:
    """What stands at `place` ("meta.next"; "" is the body itself); None where there is nothing."""
    for name in filter(None, place.split(".")):
        body = body.get(name) if isinstance(body, Mapping) else None
    return body


def rows_in(source: Source, page: Page, body: Any) -> list[Any]:
    """The page's rows. Raises: DataError when there is no list at the source's `rows:`."""
    found = value_at(body, source.rows)
    if isinstance(found, list):
        return found
    place = f"`rows: {source.rows}`" if source.rows else "the top of the body (`rows:` is not given)"
    there = f"fields {sorted(body)[:10]}" if isinstance(body, Mapping) else f"a {type(body).__name__}"
    lists = [name for name, value in body.items() if isinstance(value, list)] if isinstance(body, Mapping) else []
    hint = f"; did you mean rows: {lists[0]}?" if lists else ""
    raise DataError(without_secrets(page.url), f"page {page.number} has no list at {place}; it has {there}{hint}")


def _with_params(url: str, params: Mapping[str, Any]) -> str:
    parts = urlsplit(url)
    # A list: a name may stand several times (`a=1&a=2`), and only those that are set here are replaced.
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in params]
    query = [*kept, *((name, str(value)) for name, value in params.items())]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))
