"""Claims of request ids, the project's secret, and its tokens: on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlops_ray.errors import DataError
from mlops_ray.serving import tokens
from mlops_ray.serving.access import Role, new_token
from mlops_ray.serving.spool import claims
from mlops_ray.state import Store


@pytest.fixture
def store(fresh_url: str) -> Iterator[Store]:
    opened = Store.open(fresh_url)
    yield opened
    opened.close()


def test_the_first_segment_that_claims_an_id_has_it_however_often_it_asks(store: Store) -> None:
    ids = [f"r{i}" for i in range(4_500)]
    with store.begin() as tx:
        assert claims.claim(tx, "p", ids[:3_000], "spool-a", 7, 1.0) == set(ids[:3_000])
    with store.begin() as tx:
        assert claims.claim(tx, "p", ids, "spool-b", 0, 2.0) == set(ids[3_000:])
        assert claims.claim(tx, "p", ids, "spool-a", 7, 3.0) == set(ids[:3_000])
        assert claims.claim(tx, "p", ids[:1], "spool-a", 8, 3.0) == set()
        assert claims.claim(tx, "other", ids[:1], "spool-b", 0, 3.0) == {"r0"}
        assert claims.claim(tx, "p", [], "spool-b", 0, 3.0) == set()


def test_old_claims_are_let_go(store: Store) -> None:
    with store.begin() as tx:
        claims.claim(tx, "p", ["old"], "a", 1, 1.0)
        claims.claim(tx, "p", ["new"], "a", 1, 9.0)
        assert claims.forget(tx, "p", 5.0) == 1
        assert claims.claim(tx, "p", ["old", "new"], "b", 1, 9.0) == {"old"}


def test_a_project_has_one_secret(store: Store) -> None:
    with store.begin() as tx:
        mine = claims.secret(tx, "p")
    with store.read() as tx:
        assert claims.secret(tx, "p") == mine
    with store.begin() as tx:
        assert claims.secret(tx, "q") != mine
    assert len(mine) == 32


def test_tokens_are_kept_listed_and_ended(store: Store) -> None:
    _, first = new_token("ci", [Role.PREDICT, Role.READ], now=1.0, expires=None)
    _, second = new_token("ops", [Role.OPERATE], now=2.0, expires=50.0)
    with store.begin() as tx:
        tokens.save(tx, "p", first)
        tokens.save(tx, "p", second)
    with store.begin() as tx:
        assert tokens.grants(tx, "p") == [first, second]
        assert tokens.grants(tx, "q") == []
        assert tokens.expire(tx, "p", first.id, 10.0).expires == 10.0
        assert tokens.expire(tx, "p", second.id, 99.0).expires == 50.0
        assert [g.expires for g in tokens.grants(tx, "p")] == [10.0, 50.0]
        with pytest.raises(DataError, match="token list"):
            tokens.expire(tx, "q", first.id, 10.0)
