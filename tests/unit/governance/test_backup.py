"""A backup's rows, its file, and putting it back, without MLflow."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, select

from mlops_ray import ledger, state
from mlops_ray.errors import DataError
from mlops_ray.governance import backup
from mlops_ray.governance.approvals import approve
from mlops_ray.monitoring import standing
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase, Silence
from mlops_ray.rollout.orders import begin, first_version
from mlops_ray.serving import access, tokens
from mlops_ray.serving.spool import claims
from mlops_ray.state import RetrainRow, Store, Tx, VersionRow, WindowRow
from tests.fakes import project


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/other.db")
    yield opened
    opened.close()


def filled(store: Store, name: str = "small") -> None:
    """Something of everything."""
    rows = [
        VersionRow(
            name, n, f"run{n}", f"/m/{n}", "ab" * 32, "/d@1", status, 1.0 + n / 3, {"engine": "onnx", "x": [0.1]}
        )
        for n, status in ((1, "registered"), (2, "registered"), (3, "pending"))
    ]
    own = project(project=name)
    with store.begin() as tx:
        for row in rows:
            tx.save_version(row)
        tx.save_project(name, f"project: {name} # ä", 2.0)
        tx.save_retrain(RetrainRow(f"{name}-t1", name, "drift", "why", 3.0, "s1", "succeeded", {"version": 2}, 3.0))
        tx.save_window(WindowRow(name, 0.0, 7.0, 1, {"drift": {"alarm": False}}))
        tx.save_profile(name, 1, 0.0, {"n": 0.1 + 0.2})
        tx.save_cursor(name, "watermark", 3, 1.5)
        standing.save(tx, name, standing.Standing(1, 0.1, 5))
        claims.claim(tx, name, ["a", "b"], "spool", 1, 2.0)
        claims.secret(tx, name)
        tokens.save(tx, name, access.new_token("ann", [access.Role.READ], now=1.0, expires=None)[1])
        alert = Alert("a1", "drift", "v1", "warning", Phase.FIRING, 1.0, "why", 1.0)
        book.save(tx, name, alert)
        book.save_silence(tx, name, Silence("s1", "", "v1", "ann", "known", 1.0, 9.0))
        book.post(tx, name, [Message("m1", "team", ((Kind.FIRING, alert),))], 1.0)
    first_version(store, own, now=4.0, version=1)
    store.run(lambda tx: begin(tx, own, 2, supersede=False, who="ann", why="try", now=4.0, machine_now=4.0))
    store.run(lambda tx: approve(tx, name, 3, who="ben", why="ok", now=5.0))
    store.acquire(f"rollout:{name}", "controller", 20.0, 5.0)


def everything(tx: Tx, name: str = "small") -> dict[str, list[dict[str, Any]]]:
    found = {}
    for table in backup.tables():
        key = table.c.name if table is state.PROJECTS else table.c.project
        query = select(table).where(key == name).order_by(*table.primary_key)
        found[table.name] = [dict(row) for row in tx.connection.execute(query).mappings()]
    return found


def copied(source: Store, target: Store, name: str = "small") -> dict[str, int]:
    with source.read() as old, target.begin() as new:
        return backup.copy_rows(old, new, name)


def put_back(source: Store, target: Store, since: tuple[ledger.Anchor, ...] = ()) -> dict[str, Any]:
    with source.read() as saved, target.begin() as tx:
        return backup.put_back(saved, tx, "small", who="eve", why="disk lost", now=9.0, since=since)


def test_every_table_of_the_database_is_copied_but_the_leases(store: Store) -> None:
    with store.read() as tx:
        there = set(inspect(tx.connection).get_table_names()) - {state.VERSION_TABLE, "leases"}
    assert {table.name for table in backup.tables()} == there


def test_a_projects_rows_go_over_exactly_and_no_others(store: Store, other: Store) -> None:
    filled(store)
    filled(store, "neighbour")
    counts = copied(store, other)
    assert all(counts[table.name] for table in backup.tables()), counts  # `filled` leaves none out
    with store.read() as old, other.read() as new:
        assert everything(new) == everything(old)
        assert backup.is_empty(new, "neighbour")
        assert not backup.is_empty(new, "small")
        assert new.lease("rollout:small") is None
        assert ledger.verify(new, "small", ledger.head(old, "small")).proven == counts["ledger"]


def test_a_state_is_put_back_as_it_was_and_says_so(store: Store, other: Store) -> None:
    filled(store)
    filled(store, "neighbour")
    copied(store, other)
    with store.begin() as tx:
        before, neighbour = everything(tx), everything(tx, "neighbour")
        head = ledger.head(tx, "small")
        tx.save_version(replace(tx.version("small", 3), status="rejected"))
        tx.save_version(replace(tx.version("small", 3), version=4))
        tx.save_cursor("small", "watermark", 99, 99.0)
        spec = tx.serving("small").spec  # type: ignore[union-attr]
        tx.save_serving("small", {**spec, "share": 0.9}, 7)
        lost = [ledger.append(tx, "small", "promoted", "v4", "x", "y", {"n": n}, 8.0) for n in range(2)]
    evidence = put_back(other, store, since=((1, "no" * 32), (head[0] + 9, "fe" * 32)))
    assert evidence["gave_up"] == [*([e.seq, e.hash] for e in lost), [head[0] + 9, "fe" * 32]]
    with store.read() as tx:
        after = everything(tx)
        assert everything(tx, "neighbour") == neighbour
        anchor = (lost[-1].seq, lost[-1].hash)
        found = ledger.verify(tx, "small", anchor, head, accepted=[anchor])
        assert ledger.verify(tx, "small", anchor, head).claimed == (anchor,)
        assert not ledger.verify(tx, "small", anchor, head).ok
    restored = after["ledger"].pop()
    assert (restored["kind"], restored["who"], restored["why"]) == ("restored", "eve", "disk lost")
    (serving,), (was,) = after.pop("serving"), before.pop("serving")
    assert (serving["spec"], serving["fence"]) == (was["spec"], 7)
    assert serving["seq"] > was["seq"] + 1  # higher than what replicas may hold
    assert after == before
    assert (found.ok, found.proven, found.accepted) == (True, head[0], (anchor,))


def test_an_anchor_that_the_backup_contradicts_is_never_given_up(store: Store, other: Store) -> None:
    filled(store)
    copied(store, other)
    forged = (2, "ab" * 32)
    put_back(other, store, since=(forged,))
    with store.read() as tx:
        assert "entry 2 is not the anchored one" in str(ledger.verify(tx, "small", forged))


def test_a_broken_backup_leaves_everything_as_it_is(store: Store, other: Store) -> None:
    filled(store)
    copied(store, other)
    with other.begin() as tx:
        tx.connection.execute(ledger.LEDGER.update().where(ledger.LEDGER.c.seq == 1).values(who="nobody"))
    with store.read() as tx:
        before = everything(tx)
    with pytest.raises(DataError, match=r"entry 1 was edited: .*; nothing was restored"):
        put_back(other, store)
    with store.read() as tx:
        assert everything(tx) == before


def test_a_copy_that_is_made_while_others_write_is_of_one_instant(url: str, store: Store, tmp_path: Path) -> None:
    """Each writer's transaction saves a version, a cursor and an entry: a copy has all three or none."""
    stop = threading.Event()
    row = VersionRow("small", 1, "run", "/m", "ab" * 32, "/d@1", "registered", 1.0, {})

    def write() -> None:
        mine, n = Store.open(url), 0
        while not stop.is_set():
            n += 1

            def work(tx: Tx, n: int = n) -> None:
                tx.save_version(replace(row, version=n))
                tx.save_cursor("small", "versions", n, 0.0)
                ledger.append(tx, "small", "registered", f"v{n}", "writer", "x", {}, float(n))

            mine.run(work)
        mine.close()

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    try:
        for n in range(6):
            copy = Store.open(f"sqlite:///{tmp_path}/copy{n}.db")
            counts.append(copied(store, copy)["ledger"])
            with copy.read() as tx:
                found = ledger.verify(tx, "small")
                assert found.ok
                assert found.n == len(tx.versions("small")) == tx.cursor("small", "versions").number or found.n == 0
            copy.close()
    finally:
        stop.set()
        writer.join()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


# The file


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "models").mkdir(parents=True)
    (folder / "state.db").write_bytes(b"rows")
    (folder / "models" / "a").write_bytes(b"model" * 99)
    contents = backup.pack(
        folder, tmp_path / "x.tar.gz", project="small", created=1.0, head=(3, "ab" * 32), rows={"ledger": 3}
    )
    assert set(contents.files) == {"state.db", "models/a"}
    return tmp_path / "x.tar.gz"


def test_a_file_comes_back_and_is_its_users_alone(packed: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(packed.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    out = tmp_path / "out"
    out.mkdir()
    contents = backup.unpack(packed, out)
    assert (contents.project, contents.head, contents.schema_revision) == ("small", (3, "ab" * 32), state.HEAD)
    assert (out / "models/a").read_bytes() == b"model" * 99


def rewritten(packed: Path, change: Any) -> Path:
    """The file with its members changed by `change(name, bytes)`: a list of (name, bytes, type)."""
    made = packed.with_name("changed.tar.gz")
    with tarfile.open(packed) as source, tarfile.open(made, "w:gz") as target:
        for member in source:
            read = source.extractfile(member)
            assert read is not None
            for name, content, kind in change(member.name, read.read()):
                info = tarfile.TarInfo(name)
                plain = kind == tarfile.REGTYPE
                info.size, info.type, info.linkname = (len(content) if plain else 0), kind, "/etc/passwd"
                target.addfile(info, io.BytesIO(content) if plain else None)
    return made


REG = tarfile.REGTYPE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n, b: [(n, b.replace(b"rows", b"ROWS") if n == "state.db" else b, REG)], "SHA-256 is another"),
        (lambda n, b: [(n, b, REG)] if n != "state.db" else [], "'state.db' is missing"),
        (lambda n, b: [(n, b + b"!" if n == "state.db" else b, REG)], "not as its list says"),
        (lambda n, b: [(n, b, REG), ("../evil", b, REG)], "which its list does not name"),
        (lambda n, b: [(n, b, tarfile.SYMTYPE if n == "state.db" else REG)], "not as its list says"),
        (lambda n, b: [(n, b, REG)] if n != "backup.json" else [], "does not begin with backup.json"),
        (lambda n, b: [(n, b"{}" if n == "backup.json" else b, REG)], "is no backup of this package"),
        (lambda n, b: [(n, b.replace(b'"format":1', b'"format":2') if n == "backup.json" else b, REG)], "format"),
    ],
    ids=["edited", "missing", "longer", "one more", "a link", "no list", "another list", "another format"],
)
def test_a_file_that_was_changed_is_refused(packed: Path, tmp_path: Path, change: Any, says: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=says):
        backup.unpack(rewritten(packed, change), out)


def test_a_file_that_is_none_or_was_cut_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "cut").write_bytes(packed.read_bytes()[:-40])
    for name in ("text", "cut"):
        with pytest.raises(DataError, match="is no backup of this package, or is damaged"):
            backup.unpack(tmp_path / name, tmp_path)


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    body = b"evil"
    sha = hashlib.sha256(body).hexdigest()
    about = backup.Contents(
        project="small", created=1.0, head=(0, "0" * 64), rows={}, files={"../evil": backup.Listed(sha256=sha, bytes=4)}
    )
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name, content in ((backup.ABOUT, about.model_dump_json().encode()), ("../evil", body)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError):
        backup.unpack(tmp_path / "x.tar.gz", out)
    assert not (tmp_path / "evil").exists()


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        backup.pack(tmp_path / "in", tmp_path / "no" / "x", project="p", created=1.0, head=(0, "0" * 64), rows={})


def test_a_table_is_copied_log_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table"
    for name in ("a.parquet", "_delta_log/00.json", "_delta_log/01.checkpoint.parquet", "_delta_log/_last_checkpoint"):
        (table / name).parent.mkdir(parents=True, exist_ok=True)
        (table / name).write_text(name)
    order: list[str] = []
    real = backup.shutil.copyfile
    monkeypatch.setattr(
        backup.shutil, "copyfile", lambda a, b: (order.append(os.path.relpath(a, table)), real(a, b))[1]
    )
    backup.copy_table(table, tmp_path / "copy")
    assert order[0] == "_delta_log/_last_checkpoint"
    assert order[-1] == "a.parquet"
    assert sorted(p.read_text() for p in (tmp_path / "copy").rglob("*") if p.is_file()) == sorted(order)
