from __future__ import annotations

import fcntl
import hashlib
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from mlops_ray import ledger, state
from mlops_ray.errors import BackendUnavailable, DataError, IllegalMove, LeaseLost, ModelNotFound
from mlops_ray.monitoring import standing
from mlops_ray.monitoring.alerts import book
from mlops_ray.serving import tokens
from mlops_ray.serving.spool import claims
from mlops_ray.state import Cursor, Lease, RetrainRow, RolloutRow, Store, Tx, VersionRow, WindowRow
from tests.postgres import Postgres

ROOT = Path(__file__).parents[2]
AWKWARD = {"tenth": 0.1 + 0.2, "tiny": 5e-324, "none": None, "text": "naïve\0\n", "nested": [1, {"b": True, "a": -0.0}]}
VERSION = VersionRow("p", 3, "run", "/models/x", "ab" * 32, "lake@4", "registered", 1.7e9 + 1 / 3, AWKWARD)
ROLLOUT = RolloutRow("r1", "p", 3, 2, {"shares": [0.1, 0.5]}, {"phase": "ramping"}, 10.5)
RETRAIN = RetrainRow("t1", "p", "drift", "window 7 drifted", 10.5, "p-t1", "decided", AWKWARD, 11.0)


# Schema and opening


def test_head_is_the_newest_script_and_every_script_is_on_the_way_to_it() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "mlops_ray:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [state.HEAD]


def test_the_scripts_build_the_tables_that_the_code_declares(fresh_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    declared = (ledger.LEDGER, claims.REQUEST_IDS, claims.SECRETS, tokens.TOKENS, book.ALERTS, standing.DETECTORS)
    assert all(table.metadata is state.METADATA for table in declared)
    store = Store.open(fresh_url)
    with store.read() as tx:
        options = {"version_table": state.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(tx.connection, opts=options), state.METADATA) == []
    store.close()


OPENERS = """
import os, sys
import alembic.command, psycopg  # before the fork, so that all arrive together
from mlops_ray.state import Store
gate, door = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            os.close(door)
            os.read(gate, 1)  # until the parent, and so everyone, has closed the door
            with Store.open(sys.argv[1]).begin() as tx:
                tx.save_cursor("p", str(number), 1, 0.0)
            failed = 0
        finally:
            os._exit(failed)
    children.append(child)
os.close(door)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_eight_processes_open_a_fresh_database_at_once(fresh_url: str) -> None:
    ran = subprocess.run([sys.executable, "-c", OPENERS, fresh_url], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    store = Store.open(fresh_url)
    with store.read() as tx:
        assert {tx.cursor("p", str(n)).number for n in range(8)} == {1}
    store.close()


def test_whoever_opens_an_sqlite_file_waits_for_who_opens_it_already(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with (tmp_path / "state.db.lock").open("w") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            opening = pool.submit(Store.open, f"sqlite:///{tmp_path}/state.db")
            with pytest.raises(TimeoutError):
                opening.result(0.1)
        opening.result().close()


def test_threads_open_fresh_databases_of_both_kinds_at_once(tmp_path: Path, postgres: Postgres) -> None:
    urls = [f"sqlite:///{tmp_path}/a.db", postgres.new_database()] * 2
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(Store.open, urls):
            with opened.read() as tx:
                assert tx.projects() == []
            opened.close()


def test_sqlite_is_durable_and_waits_for_others(sqlite_url: str) -> None:
    store = Store.open(sqlite_url)
    with store.begin() as tx:
        found = [tx.connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert tx.connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000 * state.LOCK_WAIT_S
    store.close()


def test_importing_state_loads_neither_ray_nor_mlflow_nor_alembic() -> None:
    code = "import sys, mlops_ray.ledger; print(sorted({'ray', 'mlflow', 'alembic', 'pandas'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("secret", "write sqlite:///file"),
        ("mysql://me:secret@host/x", "write sqlite:///"),
        ("sqlite://", "write sqlite:///file"),
        ("sqlite:////proc/none/state.db", "set another storage.root"),
        ("postgresql://me:secret@127.0.0.1:1/x", "storage.state_url"),
        ("postgres://me@127.0.0.1:1/x?password=secret", "storage.state_url"),
    ],
)
def test_a_database_that_is_not_there_says_so_without_the_password(url: str, remedy: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        Store.open(url)
    assert remedy in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_database_on_a_running_server_is_named(postgres: Postgres) -> None:
    with pytest.raises(BackendUnavailable, match='"nowhere" does not exist; check that PostgreSQL'):
        Store.open(postgres.url("nowhere"))


def test_a_user_without_rights_is_told(postgres: Postgres) -> None:
    url = postgres.new_database()
    store = Store.open(url)
    with store.begin() as tx:
        tx.connection.execute(text("DROP TABLE mlops_ray_schema"))
        tx.connection.execute(text("CREATE ROLE guest LOGIN"))
    store.close()
    with pytest.raises(BackendUnavailable, match="permission denied"):
        Store.open(url.replace("postgres@", "guest@"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("not a database, but long enough to be looked at" * 9)
    with pytest.raises(BackendUnavailable, match="file is not a database; check"):
        Store.open(f"sqlite:///{tmp_path}/state.db")


def test_a_newer_schema_is_left_alone(fresh_url: str) -> None:
    store = Store.open(fresh_url)
    with store.begin() as tx:
        tx.connection.execute(text(f"UPDATE {state.VERSION_TABLE} SET version_num = '9999'"))
    store.close()
    with pytest.raises(BackendUnavailable, match="upgrade this package"):
        Store.open(fresh_url)


# Transactions


def test_a_block_that_raises_changes_nothing(store: Store) -> None:
    def interrupted() -> None:
        with store.begin() as tx:
            tx.save_version(VERSION)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        interrupted()
    with store.read() as tx:
        assert tx.versions("p") == []


def test_reading_transactions_cannot_write(store: Store) -> None:
    with pytest.raises((BackendUnavailable, DBAPIError), match=r"read-?only"), store.read() as tx:
        tx.save_version(VERSION)
    with store.begin() as tx:  # and the connection they used can, afterwards
        tx.save_version(VERSION)


def test_a_read_sees_one_snapshot_and_holds_nobody_up(store: Store) -> None:
    with store.read() as reader:
        assert reader.versions("p") == []
        with store.begin() as writer:
            writer.save_version(VERSION)
        assert reader.versions("p") == []
    with store.read() as reader:
        assert reader.versions("p") == [VERSION]


def _increment(tx: Tx) -> None:
    tx.save_cursor("p", "n", tx.cursor("p", "n").number + 1, 0.0)


def test_read_decide_write_loses_no_update(url: str, store: Store) -> None:
    stores = [store, *(Store.open(url) for _ in range(3))]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: [s.run(_increment) for _ in range(10)], stores))
    with store.read() as tx:
        assert tx.cursor("p", "n").number == 39  # from -1
    for other in stores[1:]:
        other.close()


def test_a_writer_that_waits_too_long_says_who_to_look_for(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state.store, "LOCK_WAIT_S", 0.1)
    hasty = Store.open(url)
    with store.begin(), pytest.raises(BackendUnavailable, match="another process has held the write lock"):
        hasty.run(_increment)
    hasty.close()


def test_a_stalled_writer_is_cut_off_and_does_not_commit(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.store, "IDLE_S", 0.1)
    stalled, other = Store.open(postgres_url), Store.open(postgres_url)

    def late() -> None:
        with stalled.begin() as tx:
            tx.save_cursor("p", "stalled", 7, 0.0)
            other.run(_increment)  # waits for the lock until the server has cut the first transaction off
            tx.save_cursor("p", "stalled", 8, 0.0)

    with pytest.raises(BackendUnavailable):
        late()
    with other.read() as tx:
        assert tx.cursor("p", "stalled") == Cursor()
    stalled.run(_increment)  # a new connection
    stalled.close()
    other.close()


def _cut(url: str, pid: int) -> None:
    other = Store.open(url)
    with other.read() as tx:
        tx.connection.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    other.close()


def test_run_repeats_after_a_lost_connection(postgres_url: str) -> None:
    store = Store.open(postgres_url)
    pids = []

    def unlucky(tx: Tx) -> int:
        pids.append(tx.connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        if len(pids) == 1:
            _cut(postgres_url, pids[0])
        return tx.cursor("p", "n").number

    store.run(unlucky)
    assert len(set(pids)) == 2
    _cut(postgres_url, pids[1])
    with store.read() as tx:  # a connection that died in the pool is replaced unseen
        tx.projects()
    store.close()


def test_run_does_not_repeat_what_failed_by_itself(store: Store) -> None:
    calls = []

    def fails(tx: Tx) -> None:
        calls.append(tx)
        raise LeaseLost("a", "b")

    with pytest.raises(LeaseLost):
        store.run(fails)
    assert len(calls) == 1


# Rows


def test_projects(store: Store) -> None:
    with store.begin() as tx:
        assert tx.project_text("p") is None
        tx.save_project("q", "project: q", 1.0)
        tx.save_project("p", "project: p", 1.0)
        row = tx.save_project("p", "project: p # ä", 2.0)
        assert tx.project_text("p") == "project: p # ä"
        assert [found.name for found in tx.projects()] == ["p", "q"]
        assert row == tx.projects()[0]
        assert row.config_sha256 == hashlib.sha256("project: p # ä".encode()).hexdigest()


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    with store.begin() as tx:
        tx.save_version(VERSION)
        tx.save_rollout(ROLLOUT)
        tx.save_retrain(RETRAIN)
    with store.read() as tx:
        assert tx.version("p", 3) == VERSION
        assert tx.rollout("r1") == tx.open_rollout("p") == ROLLOUT
        assert tx.retrain("t1") == tx.open_retrain("p") == RETRAIN
        assert (tx.rollout("t1"), tx.open_rollout("q"), tx.retrain("r1"), tx.open_retrain("q")) == (None,) * 4
        assert math.copysign(1, tx.version("p", 3).tags["nested"][1]["a"]) == -1


def test_versions(store: Store) -> None:
    with store.begin() as tx:
        for version in (10, 2):
            tx.save_version(replace(VERSION, version=version))
        tx.save_version(replace(VERSION, version=2, status="rejected"))
        assert [(row.version, row.status) for row in tx.versions("p")] == [(2, "rejected"), (10, "registered")]
        with pytest.raises(ModelNotFound):
            tx.version("p", 3)


def test_serving_counts_changes_and_refuses_an_older_fence(store: Store) -> None:
    with store.begin() as tx:
        assert tx.serving("p") is None
        assert tx.save_serving("p", {"stable": 1, "canary": None}, 4).seq == 1
        assert tx.save_serving("p", {"canary": None, "stable": 1}, 5).seq == 1
        changed = tx.save_serving("p", {"stable": 2}, 5)
        assert (changed.seq, changed.fence) == (2, 5)
        assert tx.serving("p") == changed
        with pytest.raises(LeaseLost):
            tx.save_serving("p", {"stable": 1}, 4)


def test_one_rollout_at_a_time(store: Store) -> None:
    second = replace(ROLLOUT, id="r2", created=20.0)
    with store.begin() as tx:
        tx.save_rollout(ROLLOUT)
        tx.save_rollout(replace(ROLLOUT, state={"phase": "paused"}))
        tx.save_rollout(replace(second, id="elsewhere", project="q"))
        with pytest.raises(IllegalMove):
            tx.save_rollout(second)
        tx.save_rollout(replace(ROLLOUT, ended=15.0))
        assert tx.open_rollout("p") is None
        tx.save_rollout(second)
        assert [row.id for row in tx.rollouts("p")] == ["r2", "r1"]


def test_one_retrain_at_a_time(store: Store) -> None:
    second = replace(RETRAIN, id="t2", decided=20.0)
    with store.begin() as tx:
        tx.save_retrain(RETRAIN)
        tx.save_retrain(replace(RETRAIN, status="submitted"))
        with pytest.raises(DataError, match="t1 of p is still submitted"):
            tx.save_retrain(second)
        tx.save_retrain(replace(RETRAIN, status="failed"))
        tx.save_retrain(second)
        assert [row.id for row in tx.retrains("p")] == ["t2", "t1"]


@pytest.mark.parametrize("row", [ROLLOUT, RETRAIN], ids=["rollout", "retrain"])
def test_the_database_itself_allows_one_open_row(store: Store, row: RolloutRow | RetrainRow) -> None:
    table = state.ROLLOUTS if isinstance(row, RolloutRow) else state.RETRAINS
    values: dict[str, Any] = {f.name: getattr(row, f.name) for f in fields(row)}
    values |= {name: "{}" for name, value in values.items() if isinstance(value, dict)}
    with pytest.raises(IntegrityError), store.begin() as tx:
        tx.connection.execute(table.insert(), [values, {**values, "id": "other"}])


def test_several_cursors_at_once(store: Store) -> None:
    with store.begin() as tx:
        tx.save_cursor("p", "counted:labels", 3, 1.0)
        tx.save_cursor("p", "counted_not", 9, 1.0)
        tx.save_cursor("other", "counted:labels", 8, 1.0)
        tx.save_cursors("p", {"counted:labels": Cursor(4, 2.0), "counted:a_b%": Cursor(1)})
        tx.save_cursors("p", {})
        assert tx.cursors("p", "counted:") == {"a_b%": Cursor(1), "labels": Cursor(4, 2.0)}
        assert tx.cursors("p", "counted:a_b%") == {"": Cursor(1)}  # taken as written, not as a pattern
        assert tx.cursors("p", "nothing") == {}
        for n in range(3):
            tx.save_window(WindowRow("p", 0.0, 7.0, n, {}))
        assert (tx.n_windows("p"), tx.n_windows("other")) == (3, 0)


def test_profiles_windows_and_cursors(store: Store) -> None:
    with store.begin() as tx:
        for version, block in ((2, 10.0), (1, 10.0), (1, 20.0)):
            tx.save_profile("p", version, block, {"n": block})
        tx.save_profile("p", 1, 20.0, {"n": 0.5})
        assert tx.profile("p", 1, 20.0) == {"n": 0.5}
        assert tx.profile("p", 2, 20.0) is None
        assert tx.profiles("p", 10.0, 20.0) == [(1, 10.0, {"n": 10.0}), (2, 10.0, {"n": 10.0})]
        assert tx.profiles("p", 0.0, 99.0, version=1) == [(1, 10.0, {"n": 10.0}), (1, 20.0, {"n": 0.5})]

        windows = [WindowRow("p", start, start + 7, 1, {"rows": start}) for start in (0.0, 7.0, 14.0)]
        for window in windows:
            tx.save_window(replace(window, result={"rows": -1}))
            tx.save_window(window)
        assert tx.windows("p", 2) == [windows[2], windows[1]]

        assert tx.cursor("p", "spool") == Cursor(-1, 0.0)
        tx.save_cursor("p", "spool", 2**40, 1.5)
        assert tx.cursor("p", "spool") == Cursor(2**40, 1.5)


def test_numpy_numbers_are_stored_as_numbers(store: Store) -> None:
    with store.begin() as tx:
        tx.save_cursor("p", "n", np.int64(5), np.float32(0.5))  # type: ignore[arg-type]
        assert tx.cursor("p", "n") == Cursor(5, 0.5)


@pytest.mark.parametrize(
    "save",
    [
        lambda tx: tx.save_profile("p", 1, 0.0, {"psi": math.nan}),
        lambda tx: tx.save_serving("p", {"spec": object()}, 1),
        lambda tx: tx.save_retrain(replace(RETRAIN, reason="binary \0 text")),
        lambda tx: tx.save_project("p", "\ud800", 1.0),
    ],
    ids=["nan", "object", "nul", "surrogate"],
)
def test_what_only_one_database_could_keep_is_refused(store: Store, save: Callable[[Tx], None]) -> None:
    with pytest.raises(DataError), store.begin() as tx:
        save(tx)


# Leases


def test_a_lease_is_held_renewed_taken_over_and_released(store: Store) -> None:
    first = store.acquire("loop", "a", 10, now=100.0)
    assert first == Lease("loop", "a", 1, 110.0)
    with pytest.raises(LeaseLost, match="'a'"):
        store.acquire("loop", "b", 10, now=109.9)
    assert store.acquire("loop", "a", 10, now=105.0) == Lease("loop", "a", 1, 115.0)
    assert store.renew(first, 10, now=112.0).expires == 122.0
    assert store.acquire("loop", "b", 10, now=122.0) == Lease("loop", "b", 2, 132.0)
    assert store.acquire("other", "a", 10, now=0.0).fence == 1
    with pytest.raises(DataError):
        store.acquire("loop", "", 10, now=0.0)


def test_fences_never_fall_also_after_a_release(store: Store) -> None:
    first = store.acquire("loop", "a", 10, now=0.0)
    store.release(first)
    with pytest.raises(LeaseLost, match="nobody"):
        store.renew(first, 10, now=1.0)
    again = store.acquire("loop", "a", 10, now=1.0)
    assert again.fence == 2
    store.release(first)  # a late release of what is not ours any more
    with store.begin() as tx:
        tx.guard(again)


def test_of_two_claimants_one_wins(url: str, store: Store) -> None:
    rival = Store.open(url)
    gate = threading.Barrier(2)

    def claim(who: Store, name: str, holder: str) -> Lease | None:
        gate.wait()
        try:
            return who.acquire(name, holder, 10, now=0.0)
        except LeaseLost:
            return None

    with ThreadPoolExecutor(2) as pool:
        for round_ in range(5):
            name = f"loop{round_}"
            leases = list(pool.map(claim, (store, rival), (name, name), ("a", "b")))
            assert sorted(lease is None for lease in leases) == [False, True]
    rival.close()


def test_a_stalled_holder_cannot_write_after_a_takeover(url: str, store: Store) -> None:
    """Its guard stands in the transaction of its write: late by the clock is fine, late by the fence is not."""

    def act(lease: Lease) -> Callable[[Tx], None]:
        def write(tx: Tx) -> None:
            tx.guard(lease)
            tx.save_serving("p", {"by": lease.holder}, lease.fence)

        return write

    stalled = store.acquire("loop", "stalled", 10, now=0.0)
    store.run(act(stalled))  # no clock in guard: expired or not, nobody else has it
    other = Store.open(url)
    taken = other.acquire("loop", "next", 10, now=60.0)
    other.run(act(taken))
    with pytest.raises(LeaseLost, match="'next'"):
        store.run(act(stalled))
    with pytest.raises(LeaseLost, match="'next'"):
        store.renew(stalled, 10, now=61.0)
    with store.read() as tx:
        found = tx.serving("p")
        assert found is not None
        assert (found.spec, found.fence) == ({"by": "next"}, 2)
    other.close()


def test_a_lease_cannot_be_taken_between_guard_and_commit(url: str, store: Store) -> None:
    held = store.acquire("loop", "a", 10, now=0.0)
    other = Store.open(url)
    with ThreadPoolExecutor(1) as pool:
        with store.begin() as tx:
            tx.guard(held)
            takeover = pool.submit(other.acquire, "loop", "b", 10, 60.0)
            tx.save_cursor("p", "acted", 1, 0.0)
            assert not takeover.done()
        assert takeover.result().fence == 2
    other.close()
