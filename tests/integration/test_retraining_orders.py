"""An operator's retrain: what the state database says of it when it cannot be carried out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlops_ray import ledger
from mlops_ray.config import Project, Retraining, load_project
from mlops_ray.errors import DataError, IllegalMove
from mlops_ray.retraining import deciding
from mlops_ray.retraining import on_ray as retraining
from mlops_ray.state import RolloutRow, Store, Tx

ROOT = Path(__file__).parents[2]


def test_an_order_waits_for_the_open_rollout_and_retrain(tmp_path: Path) -> None:
    project = load_project(ROOT / "configs/quickstart.yaml", env={})
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    open_rollout = RolloutRow("r1", "quickstart", 2, 1, {}, {"phase": "ramping"}, 0.0)
    with store.begin() as tx:
        tx.save_rollout(open_rollout)
    alone = project.model_copy(update={"rollout": project.rollout.model_copy(update={"supersede": False})})
    with pytest.raises(IllegalMove, match="promote, abort"):
        retraining.order(store, alone, "why not", who="ann")
    with store.begin() as tx:
        tx.save_rollout(replace(open_rollout, state={"phase": "promoting"}))  # too late to take its place
    with pytest.raises(IllegalMove, match="abort"):
        retraining.order(store, project, "why not", who="ann")
    with store.begin() as tx:
        assert tx.open_retrain("quickstart") is None
        assert ledger.entries(tx, "quickstart") == []
        tx.save_rollout(RolloutRow("r1", "quickstart", 2, 1, {}, {"phase": "promoted"}, 0.0, ended=1.0))
    first = retraining.order(store, project, "new scanner", who="ann")
    with pytest.raises(DataError, match="still submitted"):
        retraining.order(store, project, "again", who="bob")
    with store.read() as tx:
        assert tx.open_retrain("quickstart") == first
        assert [(e.kind, e.who, e.why) for e in ledger.entries(tx, "quickstart")] == [
            ("retrain decided", "ann", "new scanner")
        ]
    store.close()


HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield found
    found.close()


def project_of(**retraining: object) -> Project:
    """The quickstart, retrained as said."""
    project = load_project(ROOT / "configs/quickstart.yaml", env={})
    return project.model_copy(update={"retraining": Retraining.model_validate(retraining)})


def consider(store: Store, project: Project, now: float, n_labels: int = 0) -> None:
    brain = retraining.brain("", dashboard="")
    store.run(lambda tx: brain.consider(tx, project, now, n_labels))


def rows(store: Store) -> list[tuple[str, str, float, str]]:
    with store.read() as tx:
        return [(r.trigger, r.status, r.decided, r.reason) for r in reversed(tx.retrains("quickstart"))]


def end(store: Store, status: str) -> None:
    def run(tx: Tx) -> None:
        row = tx.open_retrain("quickstart")
        assert row is not None
        deciding.close(tx, row, status, {}, f"retrain {status}", "a test", machine_now=time.time())

    store.run(run)


def test_a_schedule_asks_once_for_each_instant_and_is_made_up_for(store: Store) -> None:
    project = project_of(triggers=["schedule"], schedule="0 3 * * *")
    consider(store, project, 100 * DAY + HOUR)  # the first look: nobody had missed yesterday's
    assert rows(store) == []
    consider(store, project, 100 * DAY + 3 * HOUR)
    why = 'schedule "0 3 * * *": 1970-04-11 03:00 UTC'
    assert rows(store) == [("schedule", "decided", 100 * DAY + 3 * HOUR, why)]
    consider(store, project, 100 * DAY + 4 * HOUR)
    consider(store, project, 101 * DAY + 4 * HOUR)  # held back by the one that is open
    assert len(rows(store)) == 1
    end(store, "failed")
    consider(store, project, 101 * DAY + 5 * HOUR)
    assert rows(store)[1][2:] == (101 * DAY + 5 * HOUR, 'schedule "0 3 * * *": 1970-04-12 03:00 UTC')
    end(store, "succeeded")
    consider(store, project, 101 * DAY + 6 * HOUR)
    assert len(rows(store)) == 2
    with store.read() as tx:
        kinds = [e.kind for e in ledger.entries(tx, "quickstart")]
    assert kinds == ["retrain decided", "retrain failed", "retrain decided", "retrain succeeded"]


def test_new_labels_ask_within_the_cooldown_of_the_plan(store: Store) -> None:
    project = project_of(triggers=["new_rows"], new_rows=500, cooldown_s=2 * DAY)
    consider(store, project, 10 * DAY, 499)
    assert rows(store) == []
    consider(store, project, 10 * DAY, 500)
    assert rows(store)[0][::3] == ("new_rows", "500 new labels of 500")
    end(store, "succeeded")
    consider(store, project, 11 * DAY, 600)
    assert len(rows(store)) == 1
    consider(store, project, 12 * DAY, 600)
    assert len(rows(store)) == 2


def test_a_dry_run_writes_what_it_would_have_done_and_does_nothing(store: Store) -> None:
    dry = project_of(triggers=["new_rows"], new_rows=500, cooldown_s=2 * DAY, dry_run=True)
    for day in (10, 11, 12):
        consider(store, dry, day * DAY, 700)
    assert [(status, at / DAY) for _, status, at, _ in rows(store)] == [("proposed", 10.0), ("proposed", 12.0)]
    with store.read() as tx:
        assert tx.open_retrain("quickstart") is None
        assert [e.kind for e in ledger.entries(tx, "quickstart")] == ["retrain proposed", "retrain proposed"]
    # What was only proposed holds nothing back once decisions count.
    consider(store, project_of(triggers=["new_rows"], new_rows=500, cooldown_s=2 * DAY), 12.5 * DAY, 700)
    assert rows(store)[-1][1] == "decided"


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"triggers": ["schedule"]}, "triggers names schedule, which needs"),
        ({"new_rows": 100}, "new_rows does nothing unless `triggers` names it"),
        ({"triggers": ["schedule"], "schedule": "3 in the morning"}, "no cron expression"),
        ({"triggers": ["schedule"], "schedule": "0 0 3 * * mon"}, "write five fields"),
        ({"triggers": ["schedule"], "schedule": "0 3 31 2 *"}, "Bad day-of-month"),
        ({"triggers": ["schedule"], "schedule": "0 3 * * *", "timezone": "Mars"}, "no time zone"),
    ],
)
def test_a_plan_that_says_too_little_or_too_much_is_refused(block: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Retraining.model_validate(block)
