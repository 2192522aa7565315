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
from mlops_ray.rollout.canary import Move
from mlops_ray.state import Tx, canonical

REQUEST = "request"
"""Key of an entry's evidence under which a `Request` stands."""
_KINDS = ("rollout started", *(f"rollout {move}" for move in Move))


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
    for entry in ledger.entries(tx, project, kinds=_KINDS):
        found = entry.evidence.get(REQUEST)
        if entry.who == who and isinstance(found, dict) and found.get("key") == request.key:
            if found.get("sha256") != request.sha256:
                raise KeyReused(request.key, f"{entry.kind} {entry.subject} (ledger {entry.seq})")
            return entry
    return None
