"""Orders on rollouts against a real state database; no cluster runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray import ledger
from mlops_ray.config import Project, RolloutPlan, load_project
from mlops_ray.errors import DataError, IllegalMove
from mlops_ray.rollout import orders, traffic
from mlops_ray.rollout.canary import CanaryState, Move, Phase, Reason
from mlops_ray.serving.versions import Arm, Before, Held, Wanted
from mlops_ray.state import RolloutRow, Store, Tx, VersionRow

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


NOW = 1e9


def start(store: Store, project: Project, version: int, *, supersede: bool = False) -> str:
    def run(tx: Tx) -> str:
        return orders.begin(tx, project, version, supersede=supersede, who="ann", why="test", now=NOW, machine_now=NOW)

    return store.run(run)


def order(store: Store, project: Project, move: Move, *, to: int | None = None) -> CanaryState:
    return store.run(lambda tx: orders.order(tx, project, move, to=to, who="ann", why="test", now=NOW, machine_now=NOW))


def stable(store: Store) -> int:
    """What the controller wants as stable now."""
    with store.read() as tx:
        wanted = traffic.wanted_configuration(tx, "flights", now=NOW)
    assert wanted is not None
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
    with pytest.raises(DataError, match=r"v1 of flights: it is stable already.* against itself"):
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
    store.run(lambda tx: traffic.flip(tx, trial))
    assert stable(store) == 1


def test_the_flip_keeps_the_old_version_warm_and_an_abort_brings_it_back(store: Store, project: Project) -> None:
    trial = start(store, project, 2)
    with store.begin() as tx:
        row = tx.rollout(trial)
        assert row is not None
        state = replace(CanaryState.from_dict(row.state), phase=Phase.PROMOTING)
        tx.save_rollout(replace(row, state=state.to_dict()))
    store.run(lambda tx: traffic.flip(tx, trial))
    with store.read() as tx:
        served = tx.serving("flights")
    assert served is not None
    assert (served.spec["stable"]["version"], [h["version"] for h in served.spec["warm"]]) == (2, [1])
    order(store, project, Move.ABORT)
    assert stable(store) == 1


def wanted(store: Store) -> Wanted:
    with store.read() as tx:
        found = traffic.wanted_configuration(tx, "flights", now=NOW)
    assert found is not None
    return found


def test_while_it_bakes_the_version_before_it_sees_copies_and_takes_no_other_place(
    store: Store, project: Project
) -> None:
    trial = start(store, project, 2)
    become(store, trial, Phase.PROMOTING)
    store.run(lambda tx: traffic.flip(tx, trial))
    assert wanted(store).before is None
    become(store, trial, Phase.BAKING)
    baking = wanted(store)
    assert baking.before == Before(1, 1.0, trial)
    assert [one.version for one in baking.warm] == [1]
    assert (baking.on_trial, baking.share, baking.canary) == ((), 0.0, None)
    become(store, trial, Phase.PROMOTED)
    assert wanted(store).before is None
    become(store, trial, Phase.BAKING)
    order(store, project, Move.ROLLBACK)
    assert (wanted(store).before, stable(store)) == (None, 1)


def become(store: Store, trial: str, phase: Phase, *, step: int = 0) -> None:
    with store.begin() as tx:
        row = tx.rollout(trial)
        assert row is not None
        tx.save_rollout(replace(row, state=CanaryState(phase, step, NOW).to_dict()))


def planned(project: Project, **rollout: object) -> Project:
    plan = RolloutPlan.model_validate(project.rollout.model_dump(mode="json") | rollout)
    return project.model_copy(update={"rollout": plan})


def test_a_shadow_sees_copies_and_then_answers_a_share_under_the_same_salt(store: Store, project: Project) -> None:
    trial = start(store, planned(project, mode="shadow_then_canary", shadow_share=0.7), 2)
    for phase, share, shadow in (
        (Phase.STARTING, 0.0, True),
        (Phase.SHADOWING, 0.7, True),
        (Phase.RAMPING, project.rollout.shares[0], False),
    ):
        become(store, trial, phase)
        found = wanted(store)
        assert (found.canary, found.share, found.shadow, found.salt) == (2, share, shadow, trial)
    order(store, project, Move.ABORT)
    assert (wanted(store).canary, wanted(store).shadow) == (None, False)


def test_an_immediate_rollout_has_no_replica_of_its_own(store: Store, project: Project) -> None:
    trial = start(store, planned(project, mode="immediate"), 2)
    assert wanted(store).canary is None
    become(store, trial, Phase.PROMOTING)
    assert [h.version for h in wanted(store).warm] == [2]


def test_one_that_waits_for_people_or_the_schedule_has_no_traffic(store: Store, project: Project) -> None:
    freeze = {"since": "2001-09-09T00:00:00Z", "until": "2001-09-10T00:00:00Z"}  # NOW lies in it
    for plan in ({"approval": "before_start"}, {"schedule": {"freezes": [freeze]}}):
        start(store, planned(project, **plan), 2)
        with store.read() as tx:
            row = tx.open_rollout("flights")
        assert row is not None
        assert row.state["phase"] == "pending"
        assert wanted(store).canary is None
        order(store, project, Move.ABORT)


def test_a_rollout_that_the_release_before_left_open_goes_on(store: Store, project: Project) -> None:
    plan = {
        "shares": [0.1, 0.5], "look_s": 60.0, "step_min_s": 86400.0, "step_max_s": 1209600.0, "min_keys": 100,
        "alpha": 0.05, "margins": {"log_loss": 0.03, "failures": 0.02}, "clip": 0.02, "on_inconclusive": "rollback",
    }  # fmt: skip
    state = {"phase": "ramping", "step": 1, "since": 5.0, "reason": ""}
    store.run(lambda tx: tx.save_rollout(RolloutRow("flights-v2-r1", "flights", 2, 1, plan, state, 1.0)))
    assert (wanted(store).canary, wanted(store).share) == (2, 0.5)
    with store.read() as tx:
        row = tx.open_rollout("flights")
    assert row is not None
    judged = {one.metric: one.margin for one in orders.plan_of(row).judged_by("binary")}
    assert judged == {"log_loss": 0.03, "failures": 0.02}
    assert [one.metric for one in orders.plan_of(row).judged_by("regression")] == ["absolute_error", "failures"]
    assert order(store, project, Move.PAUSE).phase is Phase.PAUSED


def test_a_newer_candidate_takes_the_place_and_both_are_on_record(store: Store, project: Project) -> None:
    first = start(store, project, 2)
    with pytest.raises(IllegalMove, match="start --supersede"):
        start(store, project, 3)
    second = start(store, project, 3, supersede=True)
    with store.read() as tx:
        entries = ledger.entries(tx, "flights")
        old, new = tx.rollout(first), tx.rollout(second)
    assert [e.kind for e in entries] == ["rollout started", "rollout superseded", "rollout started"]
    assert entries[1].evidence["by"] == second
    assert old is not None
    assert new is not None
    assert (old.state["phase"], old.ended, new.ended) == ("superseded", NOW, None)
    become(store, second, Phase.PROMOTING)
    with pytest.raises(IllegalMove, match="possible now: abort"):
        start(store, project, 2, supersede=True)


def test_a_rollback_goes_to_any_version_that_was_stable_and_to_no_other(store: Store, project: Project) -> None:
    for version in (2, 3):
        promoted(store, start(store, project, version))
    with pytest.raises(DataError, match=r"v3 of flights: it is stable.*these were: v1, v2"):
        order(store, project, Move.ROLLBACK, to=3)
    assert order(store, project, Move.ROLLBACK, to=1).phase is Phase.PROMOTING
    assert (stable(store), [held.version for held in wanted(store).warm]) == (3, [1])
    with store.read() as tx:
        assert ledger.entries(tx, "flights")[-1].evidence["to"] == 1
        row = tx.open_rollout("flights")
    assert row is not None
    store.run(lambda tx: traffic.flip(tx, row.id))
    assert stable(store) == 1


def test_a_rollback_to_an_older_version_ends_what_bakes_first(store: Store, project: Project) -> None:
    promoted(store, start(store, project, 2))
    baking = start(store, planned(project, bake_s=60), 3)
    become(store, baking, Phase.PROMOTING)
    store.run(lambda tx: traffic.flip(tx, baking))
    become(store, baking, Phase.BAKING)
    assert order(store, project, Move.ROLLBACK, to=1).phase is Phase.PROMOTING
    assert (stable(store), [held.version for held in wanted(store).warm]) == (2, [1])  # at once, until v1 is loaded
    with store.read() as tx:
        ended = tx.rollout(baking)
    assert ended is not None
    assert ended.state["phase"] == "rolled back"


def test_what_bakes_goes_back_at_once(store: Store, project: Project) -> None:
    trial = start(store, planned(project, bake_s=60), 2)
    become(store, trial, Phase.PROMOTING)
    store.run(lambda tx: traffic.flip(tx, trial))
    become(store, trial, Phase.BAKING)
    assert (stable(store), [h.version for h in wanted(store).warm]) == (2, [1])
    assert order(store, project, Move.ROLLBACK).phase is Phase.ROLLED_BACK
    assert stable(store) == 1
    with store.read() as tx:
        assert tx.open_rollout("flights") is None


# Several versions at once ---------------------------------------------------------------------------------------------


def side_by_side(project: Project, **plan: object) -> Project:
    return project.model_copy(update={"rollout": RolloutPlan.model_validate({"mode": "ab", **plan})})


def test_several_versions_answer_side_by_side_and_one_of_them_is_promoted_by_order(
    store: Store, project: Project
) -> None:
    ab = side_by_side(project, ab={"share": 0.2, "winner": "by_command"})

    def begin(tx: Tx) -> str:
        return orders.begin(tx, ab, 2, beside=(3,), supersede=False, who="ann", why="which?", now=NOW, machine_now=NOW)

    trial = store.run(begin)
    assert trial == "flights-v2-v3-r1"

    def now_wanted() -> Wanted:
        with store.read() as tx:
            found = traffic.wanted_configuration(tx, "flights", now=NOW)
        assert found is not None
        return found

    assert now_wanted().arms == (Arm(2, 0.0, 0.0), Arm(3, 0.0, 0.0))  # they start, and answer nobody

    def become(change: Callable[[CanaryState], CanaryState]) -> None:
        def run(tx: Tx) -> None:
            row = tx.rollout(trial)
            assert row is not None
            after = change(CanaryState.from_dict(row.state))
            orders.transition(tx, row, after, kind="rollout ramping", who="us", why="", machine_now=NOW, evidence={})

        store.run(run)

    become(lambda state: replace(state, phase=Phase.RAMPING))
    wanted = now_wanted()
    assert (wanted.canary, wanted.share, wanted.salt) == (None, 0.4, trial)
    assert wanted.arms == (Arm(2, 0.0, 0.2), Arm(3, 0.2, 0.2))
    become(lambda state: replace(state, arms=(replace(state.arms[0], out=Reason.EVIDENCE, since=NOW), state.arms[1])))
    assert now_wanted().arms == (Arm(3, 0.2, 0.2),)  # where it was
    for named, says in ((2, "it is not on trial; v3 can be promoted"), (1, "it is not on trial")):
        with pytest.raises(DataError, match=says):
            store.run(
                lambda tx, named=named: orders.order(  # type: ignore[misc]
                    tx, ab, Move.PROMOTE, version=named, who="ann", why="", now=NOW, machine_now=NOW
                )
            )
    after = order(store, ab, Move.PROMOTE)
    assert (after.phase, after.chosen) == (Phase.PROMOTING, 3)
    store.run(lambda tx: traffic.flip(tx, trial))
    assert stable(store) == 3
    assert (now_wanted().arms, now_wanted().share) == ((), 0.0)
    become(lambda state: replace(state, phase=Phase.PROMOTED))
    order(store, ab, Move.ROLLBACK)
    assert stable(store) == 1
    with store.read() as tx:
        entries = ledger.entries(tx, "flights")
        row = tx.rollout(trial)
    assert row is not None
    assert orders.versions_of(row) == (2, 3)
    assert entries[0].evidence["beside"] == {"v3": "run-3"}
    assert [(e.kind, e.subject) for e in entries[-3:]] == [
        ("rollout promote", "v3"),
        ("rollout ramping", "v3"),
        ("rollout rollback", "v3"),
    ]


def test_a_plan_for_one_version_starts_one(store: Store, project: Project) -> None:
    with pytest.raises(DataError, match="tries one version at a time"):
        store.run(
            lambda tx: orders.begin(
                tx, project, 2, beside=(3,), supersede=False, who="ann", why="", now=NOW, machine_now=NOW
            )
        )
    with store.read() as tx:
        assert tx.open_rollout("flights") is None
