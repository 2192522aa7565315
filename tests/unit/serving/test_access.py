"""Tokens: what lets a caller in, and what every refusal says."""

from __future__ import annotations

import pytest

from mlops_ray.errors import BadRequest
from mlops_ray.serving.access import Access, Grant, Open, Role, new_token

NOW = 1_000.0


def issued(*roles: Role, expires: float | None = None) -> tuple[str, Grant]:
    return new_token("ci", roles, now=NOW, expires=expires)


def refused(access: Access, header: str | None, role: Role = Role.PREDICT, *, now: float = NOW) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        access.demand(header, role, now=now)
    return caught.value


def test_a_token_opens_what_its_roles_say() -> None:
    token, grant = issued(Role.PREDICT, Role.READ)
    access = Access([grant])
    assert access.demand(f"Bearer {token}", Role.PREDICT, now=NOW) == "ci"
    assert access.demand(f"bearer  {token} ", Role.READ, now=NOW) == "ci"
    error = refused(access, f"Bearer {token}", Role.OPERATE)
    assert error.status == 403
    assert "this needs operate" in error.detail


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwYXNz",
        "Bearer mr_000000000000_" + "A" * 43,
        "Bearer mr_\N{DEVANAGARI DIGIT ONE}",
    ],
)
def test_what_is_no_token_of_the_project_is_refused(header: str | None) -> None:
    _, grant = issued(Role.PREDICT)
    assert refused(Access([grant]), header).status == 401


def test_the_right_id_with_another_secret_is_refused() -> None:
    token, grant = issued(Role.PREDICT)
    other, _ = issued(Role.PREDICT)
    forged = token[: len("mr_000000000000_")] + other[len("mr_000000000000_") :]
    assert refused(Access([grant]), f"Bearer {forged}").status == 401


def test_a_token_ends_when_it_expires() -> None:
    token, grant = issued(Role.PREDICT, expires=NOW + 1)
    access = Access([grant])
    assert access.demand(f"Bearer {token}", Role.PREDICT, now=NOW) == "ci"
    assert "expired" in refused(access, f"Bearer {token}", now=NOW + 1).title


def test_a_rotation_takes_effect_in_place() -> None:
    (old, first), (new, second) = issued(Role.PREDICT), issued(Role.PREDICT)
    access = Access([first])
    access.replace([second])
    assert access.demand(f"Bearer {new}", Role.PREDICT, now=NOW) == "ci"
    assert refused(access, f"Bearer {old}").status == 401


def test_the_secret_is_not_kept() -> None:
    token, grant = issued(Role.PREDICT)
    secret = token.split("_", 2)[2]  # it may hold more of them
    assert secret not in repr(grant)
    assert len(grant.sha256) == 64


def test_where_access_is_off_everybody_may() -> None:
    assert Open().demand(None, Role.OPERATE, now=NOW) == "anonymous"


def test_the_command_offers_exactly_these_roles() -> None:
    from mlops_ray.cli import access as command

    assert [role.value for role in command.Role] == [role.value for role in Role]
