"""Reads the pages of a JSON API.

urllib3 retries by itself what is worth it, and knows Retry-After, waits that double, and bodies that end too early.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry, Timeout

from mlops_ray.config import Source
from mlops_ray.config.sources import without_secrets
from mlops_ray.data.sources import pages, text_files
from mlops_ray.data.sources.pages import Page
from mlops_ray.errors import DataError

AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may better (RFC 9110, RFC 6585, RFC 8470)."""
LONGEST_WAIT_S = 300
"""Of a Retry-After: longer, and the run fails now rather than then."""
ROWS_PER_TABLE = 10_000
"""Pages are small; the work on a table has fixed costs."""
_SHOWN = 80


def tables(source: Source, names: Sequence[str] | None, *, backoff_s: float = 1.0) -> Iterator[pa.Table]:
    """The rows of all pages, one after the other, as `text_files.objects` gives them; at least one table.

    Raises: DataError naming the address (without its query) and the page that cannot be had or read.
    """
    held: list[object] = []
    page: Page | None = pages.first_page(source)
    seen = False
    with _pool(source) as pool:
        while page is not None:
            where = without_secrets(page.url)
            if page.number > source.max_pages:
                says = f"there are more than {source.max_pages} pages; raise `max_pages:`, or look for a loop"
                raise DataError(where, says)
            body, link = _get(pool, source, page, backoff_s)
            rows = pages.rows_in(source, page, body)
            held += rows
            page = pages.next_page(source.paging, page, body, link, len(rows))
            if len(held) >= ROWS_PER_TABLE or (page is None and (held or not seen)):
                yield text_files.objects(where, held, names)
                held, seen = [], True


def _pool(source: Source) -> urllib3.PoolManager:
    parts = urlsplit(source.url or "")
    proxy = urllib.request.getproxies().get(parts.scheme)
    timeout = Timeout(connect=source.timeout_s, read=source.timeout_s)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, timeout=timeout)
    return urllib3.PoolManager(timeout=timeout)


def _get(pool: urllib3.PoolManager, source: Source, page: Page, backoff_s: float) -> tuple[object, str]:
    where, page_is = without_secrets(page.url), f"page {page.number}"
    headers = {"Accept": "application/json", "User-Agent": "mlops-ray", **source.headers}
    retry = Retry(
        total=source.retries,
        status_forcelist=AGAIN,
        backoff_factor=backoff_s,
        backoff_jitter=backoff_s / 2,
        raise_on_status=False,
        retry_after_max=LONGEST_WAIT_S,
        # A redirect to another host takes none of our headers along, whatever their names.
        remove_headers_on_redirect=frozenset(source.headers),
    )
    try:
        # Read whole: what breaks off in the middle of its body is tried again too.
        answer = pool.request("GET", page.url, headers=headers, retries=retry, preload_content=True)
    except MaxRetryError as exc:
        why = source.scrub(str(exc.reason).rpartition(">: ")[2])
        raise DataError(where, f"{page_is} cannot be had after {source.retries + 1} attempts: {why}") from exc
    except HTTPError as exc:
        raise DataError(where, f"{page_is} cannot be had: {source.scrub(str(exc))}") from exc
    text = source.scrub(answer.data[:_SHOWN].decode(errors="replace"))
    if answer.status != 200:
        hint = {401: "check `headers:`", 403: "check `headers:`", 404: "check `url:`"}.get(answer.status, "")
        tried = f" after {source.retries + 1} attempts" if answer.status in AGAIN else ""
        says = f"{page_is} was answered {answer.status} {answer.reason or ''}".rstrip() + tried
        raise DataError(where, f"{says} ({text!r})" + (f"; {hint}" if hint else ""))
    try:
        return text_files.parsed(answer.data), ", ".join(answer.headers.getlist("Link"))
    except orjson.JSONDecodeError as exc:
        kind = answer.headers.get("Content-Type", "of no stated type")
        raise DataError(where, f"{page_is} is no JSON but {kind}: {text!r}; check `url:` and `headers:`") from exc
