"""What the releases before this one left behind is opened, goes on, and can be backed up. See tests/data/README.md."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mlops_ray import ledger, state
from mlops_ray.config import Features, Project, RolloutPlan, parse_portable
from mlops_ray.governance import backup
from mlops_ray.governance.approvals import approve
from mlops_ray.governance.served import served
from mlops_ray.governance.unrecorded import unrecorded
from mlops_ray.rollout import canary
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.orders import first_version, order
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store
from mlops_ray.training.artifact import model

DATA = Path(__file__).parents[1] / "data/release-0002"
HEAD = (6, "1b885700e28399e9c2305570c41467495f33d4e15e24a88aebf93c218410f048")


def left_behind(folder: Path, revision: str) -> str:
    """A state database as it was left, with the artifact's address as it is here."""
    connection = sqlite3.connect(folder / "state.db")
    connection.executescript(
        (DATA / "state.sql").read_text(encoding="utf-8").replace("ARTIFACT", str(DATA / "artifact"))
    )
    if revision == "0001":  # the same rows, and what came with 0002 taken away
        for table in ("tokens", "request_ids", "project_secrets"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("UPDATE mlops_ray_schema SET version_num = '0001'")
    connection.commit()
    connection.close()
    return f"sqlite:///{folder}/state.db"


@pytest.fixture(params=["0001", "0002"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open(left_behind(tmp_path, request.param))


def opened_project(store: Store) -> Project:
    with store.read() as tx:
        text = tx.project_text("small")
    assert text is not None
    return parse_portable(text, env={})


def test_its_rows_are_read_and_its_ledger_holds(store: Store) -> None:
    with store.read() as tx:
        assert state.revision(tx.connection) == state.HEAD
        assert [(row.version, row.status) for row in tx.versions("small")] == [
            (1, "registered"),
            (2, "registered"),
            (3, "pending"),
        ]
        found = ledger.verify(tx, "small", HEAD)
        assert (found.ok, found.proven) == (True, 6)
        wanted = tx.serving("small")
        assert wanted is not None
        assert (Wanted.of(wanted).canary, Wanted.of(wanted).share) == (2, 0.5)
        entries = ledger.entries(tx, "small")
        asked = served(entries, 1.76e9 + 4.5)
        assert asked.stable == 1
        # Its retrain was put there without its end; of rollouts and stable, which sealed less then, nothing is missed.
        assert unrecorded(tx, "small", entries) == ("that retrain small-1 is succeeded",)


def test_its_project_file_and_its_rollout_go_on(store: Store) -> None:
    project = opened_project(store)
    assert project.gates.approval is False
    with store.read() as tx:
        row = tx.open_rollout("small")
    assert row is not None
    assert RolloutPlan.model_validate(row.plan).shares == (0.1, 0.5)
    assert CanaryState.from_dict(row.state).phase is Phase.PAUSED
    resume, why = canary.Move.RESUME, "back from holiday"
    after = store.run(lambda tx: order(tx, project, resume, who="ann", why=why, now=2e9, machine_now=2e9))
    assert after.phase is Phase.RAMPING
    assert first_version(store, project, now=2e9) == 1
    with store.read() as tx:
        assert ledger.verify(tx, "small", HEAD).ok


def test_its_pending_version_is_approved(store: Store) -> None:
    found = store.run(lambda tx: approve(tx, "small", 3, who="ben", why="read it", now=2e9))
    assert found.version.may_serve


def test_its_artifact_is_loaded_and_gives_its_golden_answers(store: Store) -> None:
    with store.read() as tx:
        row = tx.version("small", 2)
    loaded = model.load(Path(row.artifact), row.sha256)
    assert isinstance(loaded.features, Features)
    assert loaded.reference.calibration is None  # no quality is estimated of it: `uncalibrated`
    golden = loaded.golden
    np.testing.assert_allclose(loaded.score(golden.columns), golden.scores, atol=model.GOLDEN_TOLERANCE)


def test_its_state_is_backed_up_and_put_back(store: Store, tmp_path: Path) -> None:
    copy = Store.open(f"sqlite:///{tmp_path}/copy.db")
    fresh = Store.open(f"sqlite:///{tmp_path}/fresh.db")
    with store.read() as old, copy.begin() as tx:
        backup.copy_rows(old, tx, "small")
    with copy.read() as saved, fresh.begin() as tx:
        backup.put_back(saved, tx, "small", who="ann", why="moved", now=2e9, since=())
    with fresh.read() as tx:
        assert ledger.verify(tx, "small", HEAD).n == 7


def test_a_backup_of_an_earlier_schema_is_migrated_when_it_is_opened(tmp_path: Path) -> None:
    """What `restore` opens is the state database in the file, as that release wrote it."""
    saved = Store.open(left_behind(tmp_path, "0002"))
    fresh = Store.open(f"sqlite:///{tmp_path}/fresh.db")
    with saved.read() as source, fresh.begin() as tx:
        backup.put_back(source, tx, "small", who="ann", why="moved", now=2e9, since=())
    with fresh.read() as tx:
        assert tx.approvals("small", 3) == []
        assert ledger.verify(tx, "small", HEAD).ok
