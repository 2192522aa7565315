"""Orders on rollouts against a real state database; no cluster runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray import ledger
from mlops_ray.config import Project, load_project
from mlops_ray.errors import IllegalMove
from mlops_ray.rollout import on_ray as rollout
from mlops_ray.rollout.canary import CanaryState, Move, Phase
from mlops_ray.serving.service import Held, Wanted
from mlops_ray.state import Store, VersionRow

FLIGHTS = Path(__file__).parents[2] / "configs" / "flights.yaml"


@pytest.fixture
def project() -> Project:
    return load_project(FLIGHTS, env=os.environ)


@pytest.fixture
def store(tmp_path: Path, project: Project) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    for version in (1, 2, 3):
        row = VersionRow("flights", version, f"run-{version}", f"/models/{version}", "0" * 64, "d@1", "ok", 1.0, {})
        opened.run(lambda tx, row=row: tx.save_version(row))  # type: ignore[misc]
    with opened.begin() as tx:
        tx.save_serving("flights", Wanted(stable=Held(1, "/models/1", "0" * 64)).spec(), 0)
    yield opened
    opened.close()


def start(store: Store, project: Project, version: int) -> str:
    return rollout.begin(store, project, version, who="ann", why="test")


def order(store: Store, project: Project, move: Move) -> CanaryState:
    return rollout.order(store, project, move, who="ann", why="test")


def stable(store: Store) -> int:
    """What the controller wants as stable now."""
    with store.read() as tx:
        served = tx.serving("flights")
        assert served is not None
        wanted = rollout.wanted_configuration(Wanted.parse(served.spec, served.seq), tx.open_rollout("flights"), tx)
    assert wanted.stable is not None
    return wanted.stable.version


def promoted(store: Store, rollout_id: str) -> None:
    """What the controller does once every replica answers with the new version."""

    def finish(tx) -> None:  # type: ignore[no-untyped-def]
        row, served = tx.rollout(rollout_id), tx.serving("flights")
        new = tx.version("flights", row.version)
        wanted = replace(Wanted.parse(served.spec, served.seq), stable=Held(new.version, new.artifact, new.sha256))
        tx.save_serving("flights", wanted.spec(), served.fence)
        state = replace(CanaryState.from_dict(row.state), phase=Phase.PROMOTED)
        tx.save_rollout(replace(row, state=state.to_dict(), ended=row.created))

    store.run(finish)


def test_an_aborted_rollout_of_the_same_instant_never_undoes_a_promotion(store: Store, project: Project) -> None:
    start(store, project, 2)
    order(store, project, Move.ABORT)
    second = start(store, project, 3)
    assert stable(store) == 1
    promoted(store, second)
    assert stable(store) == 3


def test_every_trial_has_an_id_of_its_own(store: Store, project: Project) -> None:
    ids = []
    for _ in range(3):
        ids.append(start(store, project, 2))
        order(store, project, Move.ABORT)
    assert len(set(ids)) == 3
    with store.read() as tx:
        assert {r.id for r in tx.rollouts("flights")} == set(ids)
        assert ledger.verify(tx, "flights").ok


def test_a_rollback_finds_the_promotion_behind_a_later_trial_that_failed(store: Store, project: Project) -> None:
    first = start(store, project, 2)
    promoted(store, first)
    start(store, project, 3)
    order(store, project, Move.ABORT)
    assert stable(store) == 2
    assert order(store, project, Move.ROLLBACK).phase is Phase.ROLLED_BACK
    assert stable(store) == 1
    with pytest.raises(IllegalMove):
        order(store, project, Move.ROLLBACK)


def test_stable_is_no_canary_of_itself(store: Store, project: Project) -> None:
    with pytest.raises(IllegalMove, match="against itself"):
        start(store, project, 1)


def test_an_abort_between_the_look_and_the_flip_wins(store: Store, project: Project) -> None:
    """Orders are not given under the controller's lease."""
    trial = start(store, project, 2)
    with store.begin() as tx:
        row = tx.rollout(trial)
        assert row is not None
        state = replace(CanaryState.from_dict(row.state), phase=Phase.PROMOTING)
        tx.save_rollout(replace(row, state=state.to_dict()))
    order(store, project, Move.ABORT)
    store.run(lambda tx: rollout.flip(tx, trial))
    assert stable(store) == 1


def test_the_flip_keeps_the_old_version_warm_and_an_abort_brings_it_back(store: Store, project: Project) -> None:
    trial = start(store, project, 2)
    with store.begin() as tx:
        row = tx.rollout(trial)
        assert row is not None
        state = replace(CanaryState.from_dict(row.state), phase=Phase.PROMOTING)
        tx.save_rollout(replace(row, state=state.to_dict()))
    store.run(lambda tx: rollout.flip(tx, trial))
    with store.read() as tx:
        served = tx.serving("flights")
    assert served is not None
    assert (served.spec["stable"]["version"], [h["version"] for h in served.spec["warm"]]) == (2, [1])
    order(store, project, Move.ABORT)
    assert stable(store) == 1


def test_a_shadow_stays_one_until_its_rollout_ends_and_the_next_rollout_is_none(store: Store, project: Project) -> None:
    def served() -> Wanted:
        with store.read() as tx:
            row = tx.serving("flights")
        assert row is not None
        return Wanted.of(row)

    start(store, project, 2)
    on_trial = replace(served(), shadow=True)
    store.run(lambda tx: tx.save_serving("flights", on_trial.spec(), 0))
    with store.read() as tx:
        assert rollout.wanted_configuration(on_trial, tx.open_rollout("flights"), tx).shadow
    order(store, project, Move.ABORT)
    assert not served().shadow
