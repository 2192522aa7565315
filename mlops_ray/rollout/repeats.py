"""Orders that may come twice: a client that heard no answer sends again, and must neither order twice nor guess.

What was asked stands under the client's key in the evidence of the entry that the order made, so that it is saved with
it or not at all; the answer is told again from the same entry. Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlops_ray import ledger
from mlops_ray.errors import KeyReused
from mlops_ray.ledger import Entry
from mlops_ray.state import Tx, canonical

REQUEST = "request"
"""Key of an entry's evidence under which a `Request` stands."""


@dataclass(frozen=True)
class Request:
    """What a client asked under which Idempotency-Key; sha256: of the order in canonical form."""

    key: str
    sha256: str

    @staticmethod
    def of(key: str, asked: Mapping[str, Any]) -> Request:
        """Args: asked: all that the order says, as JSON values."""
        return Request(key, hashlib.sha256(canonical(asked, "order").encode()).hexdigest())

    @property
    def note(self) -> dict[str, Any]:
        """As evidence."""
        return {REQUEST: asdict(self)}


def answered(tx: Tx, project: str, who: str, request: Request | None) -> Entry | None:
    """The entry of the order that `who` gave with this request before; None where it is new, or has no key.

    Raises: KeyReused where that order was another."""
    if request is None:
        return None
    entry = ledger.entry(tx, project, tx.cursor(project, _place(who, request.key)).number)
    found = None if entry is None else entry.evidence.get(REQUEST)
    if entry is None or entry.who != who or not isinstance(found, dict) or found.get("key") != request.key:
        return None
    if found.get("sha256") != request.sha256:
        raise KeyReused(request.key, f"{entry.kind} {entry.subject} (ledger {entry.seq})")
    return entry


def remember(tx: Tx, project: str, who: str, request: Request | None) -> None:
    """Note where the order stands that was given with this request: it made the ledger's last entry, in `tx`."""
    if request is not None:
        last, _ = ledger.head(tx, project)
        tx.save_cursor(project, _place(who, request.key), last, 0.0)


def _place(who: str, key: str) -> str:
    """Cursor of an order's entry: it is looked up by an index, however long the ledger is."""
    return f"request:{hashlib.sha256(canonical({'who': who, 'key': key}, 'key').encode()).hexdigest()}"
