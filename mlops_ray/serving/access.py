"""Who may ask what: bearer tokens with roles (RFC 6750).

A token reads `mr_<id>_<secret>`. The database keeps the id and the SHA-256 of the secret: 256 random bits cannot be
guessed, so no slow hash is needed to hide them (NIST SP 800-63B, 5.1.2.2, on look-up secrets). The id is no secret and
finds the row; the secret is compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mlops_ray.errors import BadRequest

_TOKEN = re.compile(r"mr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
# Compared with when the id is unknown, so that the time of an answer does not tell which ids there are.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


class Role(StrEnum):
    """What a token allows. Roles do not include each other: a token names all it is for."""

    PREDICT = "predict"
    """Ask for predictions."""
    FEEDBACK = "feedback"
    """Send labels and watermarks."""
    READ = "read"
    """Health, metadata and documents."""
    OPERATE = "operate"
    """Choose the version that answers, and steer rollouts."""
    APPROVE = "approve"
    """Approve or reject a version that waits for it, or a rollout."""


@dataclass(frozen=True)
class Grant:
    """One token, without its secret. expires: seconds since the epoch, or None for never."""

    id: str
    name: str
    sha256: str
    roles: tuple[Role, ...]
    created: float
    expires: float | None


def new_token(name: str, roles: Iterable[Role], *, now: float, expires: float | None) -> tuple[str, Grant]:
    """A token, to be shown once, and what is kept of it."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    grant = Grant(identity, name, _digest(secret), tuple(sorted(set(roles))), now, expires)
    return f"mr_{identity}_{secret}", grant


class Access:
    """The grants of a project as a replica knows them. `replace` may be called from another thread at any time."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self._grants = {grant.id: grant for grant in grants}

    def replace(self, grants: Iterable[Grant]) -> None:
        """These grants from now on."""
        self._grants = {grant.id: grant for grant in grants}

    def demand(self, authorization: str | None, role: Role, *, now: float) -> str:
        """The name of the token in an `Authorization` header, which allows `role`.

        Raises: BadRequest: 401 without a token that is known and valid, 403 for one without the role."""
        if authorization is None:
            raise BadRequest(
                401, "no token", "send `Authorization: Bearer mr_...`; see `mlops-ray token create --help`"
            )
        scheme, _, token = authorization.partition(" ")
        found = _TOKEN.fullmatch(token.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise BadRequest(401, "no token", "the Authorization header must read `Bearer mr_<id>_<secret>`")
        grant = self._grants.get(found[1])
        same = hmac.compare_digest(_digest(found[2]), grant.sha256 if grant else _NOBODY)
        if grant is None or not same:
            raise BadRequest(401, "unknown token", "it was revoked, or never was one of this project's")
        if grant.expires is not None and now >= grant.expires:
            raise BadRequest(401, "expired token", f"token {grant.id} has expired; ask for a new one")
        if role not in grant.roles:
            has = ", ".join(grant.roles)
            raise BadRequest(403, "role missing", f"token {grant.id} allows {has}; this needs {role}")
        return grant.name


class Open:
    """Access where `serving.auth` is off: everybody who reaches the port may do everything."""

    def demand(self, authorization: str | None, role: Role, *, now: float) -> str:
        """Nobody's name."""
        return "anonymous"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
