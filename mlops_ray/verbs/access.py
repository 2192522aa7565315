"""Tokens of a project: made, listed, ended, replaced. Each is an entry of the ledger; no secret is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlops_ray.verbs import Env, Paths, load, open_store
from mlops_ray.verbs.subjects import orderer

if TYPE_CHECKING:
    from mlops_ray.config import Project
    from mlops_ray.serving.access import Grant
    from mlops_ray.state import Tx

_DAY_S = 86_400.0


def token_create(
    paths: Paths, env: Env, name: str, roles: Sequence[str], *, expires_days: float | None = None
) -> dict[str, Any]:
    """A new token; `token` in the result is shown this once. Raises: BackendUnavailable, DataError."""
    from mlops_ray.serving.access import Role, new_token

    project = load(paths, env).project
    now = time.time()
    expires = None if expires_days is None else now + expires_days * _DAY_S
    token, grant = new_token(name, [Role(role) for role in roles], now=now, expires=expires)
    store = open_store(project)
    who = orderer(project, store, env)
    store.run(lambda tx: _save(tx, project, grant, "token created", who))
    return _shown(grant, now) | {"token": token}


def token_list(paths: Paths, env: Env) -> dict[str, Any]:
    """The tokens that there are, oldest first, without their secrets."""
    from mlops_ray.serving import tokens

    project = load(paths, env).project
    with open_store(project).read() as tx:
        found = tokens.grants(tx, project.project)
    return {"auth": project.serving.auth, "tokens": [_shown(grant, time.time()) for grant in found]}


def token_revoke(paths: Paths, env: Env, token: str) -> dict[str, Any]:
    """The token ends now. Raises: DataError for an unknown id."""
    project = load(paths, env).project
    now, store = time.time(), open_store(project)
    who = orderer(project, store, env)
    return store.run(lambda tx: _shown(_end(tx, project, token, now, now, who), now))


def token_rotate(paths: Paths, env: Env, token: str, *, overlap_s: float) -> dict[str, Any]:
    """A new token with the name and roles of an old one, which ends `overlap_s` from now.

    Raises: DataError for an unknown id."""
    from mlops_ray.serving.access import new_token

    project = load(paths, env).project
    now, store = time.time(), open_store(project)
    who = orderer(project, store, env)

    def replace(tx: Tx) -> dict[str, Any]:
        old = _end(tx, project, token, now + overlap_s, now, who)
        secret, grant = new_token(old.name, old.roles, now=now, expires=None)
        _save(tx, project, grant, "token created", who)
        return _shown(grant, now) | {"token": secret, "replaces": old.id}

    return store.run(replace)


def _save(tx: Tx, project: Project, grant: Grant, kind: str, who: str) -> None:
    from mlops_ray import ledger
    from mlops_ray.serving import tokens

    tokens.save(tx, project.project, grant)
    evidence = {"name": grant.name, "roles": list(grant.roles), "expires": grant.expires}
    ledger.append(tx, project.project, kind, grant.id, who, "ordered by hand", evidence, grant.created)


def _end(tx: Tx, project: Project, token: str, at: float, now: float, who: str) -> Grant:
    from mlops_ray import ledger
    from mlops_ray.serving import tokens

    grant = tokens.expire(tx, project.project, token, at)
    evidence = {"name": grant.name, "expires": grant.expires}
    ledger.append(tx, project.project, "token ended", grant.id, who, "ordered by hand", evidence, now)
    return grant


def _shown(grant: Grant, now: float) -> dict[str, Any]:
    return {
        "id": grant.id,
        "name": grant.name,
        "roles": [str(role) for role in grant.roles],
        "created": grant.created,
        "expires": grant.expires,
        "valid": grant.expires is None or now < grant.expires,
    }
