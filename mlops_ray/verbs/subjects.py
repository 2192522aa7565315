"""Who gives an order: a token's subject where the project asks for tokens, else the user of the operating system.

The user is the one that the kernel knows (`getuid`), and not what `USER` or `LOGNAME` say, which anybody may set.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from mlops_ray.config import Project
from mlops_ray.errors import ApprovalRefused, BadRequest

if TYPE_CHECKING:
    from mlops_ray.serving.access import Access
    from mlops_ray.state import Store
    from mlops_ray.verbs import Env

TOKEN_VARIABLE = "MLOPS_RAY_TOKEN"
"""Environment variable with the bearer token, unless a command names another."""


def os_user() -> str:
    """Name of the process's user; its number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def orderer(project: Project, store: Store, env: Env) -> str:
    """Whose order it is, for the ledger: the subject of a valid token in the environment where the project asks for
    tokens, else the user."""
    return token_subject(project, store, env) or os_user()


def proposer(project: Project, store: Store, env: Env, *, trains: bool = False) -> str:
    """Whose order it is to start or to promote a rollout, or to make a version (`trains`), whom its approvals then do
    without.

    Raises: ApprovalRefused where people must approve by token and the order shows none: a login and a token's subject
        may be one person, whom nothing would tell apart.
    """
    subject, asks = token_subject(project, store, env), None
    if trains and project.gates.approval is not False:
        asks = "gates.approval"
    elif project.rollout.approval != "none":
        asks = "rollout.approval"
    if subject is None and project.serving.auth == "token" and asks is not None:
        says = f"{asks} asks for people by their tokens, so put yours into {TOKEN_VARIABLE} for this too"
        raise ApprovalRefused(project.project, f"{says}; `mlops-ray token create --help` makes one")
    return subject or os_user()


def token_subject(project: Project, store: Store, env: Env) -> str | None:
    """The subject of the token in `MLOPS_RAY_TOKEN`, whatever its roles; None without one that is valid, and where the
    project asks for none."""
    from mlops_ray.serving.access import Role

    if project.serving.auth == "off" or not (token := env.get(TOKEN_VARIABLE)):
        return None
    access = _access(project, store)
    for role in Role:
        with suppress(BadRequest):
            return access.demand(f"Bearer {token}", role, now=time.time())
    return None


def approver(project: Project, store: Store, env: Env, variable: str = TOKEN_VARIABLE) -> str:
    """The authenticated subject of an approval.

    With `serving.auth: token` that is the subject of the token in the environment variable `variable`, which must have
    the role `approve`. Without, it is the user of this machine, who counts only where the state database is on it.
    Raises: ApprovalRefused.
    """
    from mlops_ray.serving.access import Role

    if project.serving.auth == "off":
        if _is_here(project.storage.state):
            return os_user()
        says = (
            "the state database is on another machine, which does not know this one's users; set serving.auth: token"
            " and make a token with `mlops-ray token create --help`, role approve"
        )
        raise ApprovalRefused(project.project, says)
    if not (token := env.get(variable)):
        says = f"serving.auth is token: put a token with the role approve into the environment variable {variable}"
        raise ApprovalRefused(project.project, f"{says}; `mlops-ray token create --help` makes one")
    try:
        return _access(project, store).demand(f"Bearer {token}", Role.APPROVE, now=time.time())
    except BadRequest as exc:
        raise ApprovalRefused(project.project, f"the token in {variable} is refused: {exc.detail}") from exc


def _access(project: Project, store: Store) -> Access:
    from mlops_ray.serving import tokens
    from mlops_ray.serving.access import Access

    with store.read() as tx:
        return Access(tokens.grants(tx, project.project))


def _is_here(url: str) -> bool:
    """Whether the database at `url` is a file, or a server behind a Unix socket or a loopback address."""
    address = make_url(url)
    host = address.host or str(address.query.get("host", ""))
    if address.get_backend_name() == "sqlite" or host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
