"""Orders that come twice, in a ledger of any length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from mlops_ray import ledger
from mlops_ray.errors import KeyReused
from mlops_ray.rollout import steering
from mlops_ray.rollout.canary import Move
from mlops_ray.rollout.repeats import Request
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store, VersionRow
from tests.fakes import held, project

PAST = 300
"""Orders in the ledger already."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    with opened.begin() as tx:
        for version in (1, 2, 3):
            tx.save_version(VersionRow("small", version, "run", f"/m/{version}", "ab", "/d@1", "registered", 1.0, {}))
        tx.save_serving("small", Wanted(stable=held(1)).spec(), 0)
        for n in range(PAST):
            note = Request.of(f"old-{n}", {"n": n}).note
            ledger.append(tx, "small", "rollout pause", "v9", "ann", "", note, float(n))
    yield opened
    opened.close()


def start(store: Store, request: Request, who: str = "ann", version: int = 2) -> str:
    found = steering.start(
        store, project(), [version], supersede=True, who=who, why="", machine_now=9.0, request=request
    )
    return str(found["rollout"])


def test_the_same_order_is_found_without_reading_the_ledger(store: Store) -> None:
    request = Request.of("k", {"version": 2})
    first = start(store, request)
    read = []
    event.listen(store._engine, "before_cursor_execute", lambda *told: read.append(told[2]))
    assert start(store, request) == first
    assert not [text for text in read if "FROM ledger" in text and "ledger.seq = " not in text]
    with store.read() as tx:
        assert len(ledger.entries(tx, "small")) == PAST + 1


def test_a_key_is_its_senders_own_and_of_one_order(store: Store) -> None:
    first = start(store, Request.of("k", {"version": 2}))
    with pytest.raises(KeyReused, match="rollout started v2"):
        start(store, Request.of("k", {"version": 3}))
    other = start(store, Request.of("k", {"version": 3}), who="ben", version=3)
    assert other != first
    abort = Request.of("a", {"abort": other})

    def order() -> object:
        return steering.move(store, project(), Move.ABORT, who="ben", why="", machine_now=9.0, request=abort)

    assert order() == order()
    assert start(store, Request.of("k", {"version": 2})) == first
