from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from mlops_ray.data import lake, redaction
from mlops_ray.data.content import row_hash
from mlops_ray.data.redaction import Removed, Sought
from mlops_ray.data.traces import Needles, traces
from mlops_ray.errors import DataError

KEY = "customer-17"
NEEDLES = Needles((KEY,))


def sought(mark: str = "f1", key: str = KEY) -> Sought:
    def match(rows: pa.Table) -> np.ndarray:
        return np.array([cell == key for cell in rows["who"].to_pylist()], dtype=bool)

    return Sought(("who",), match, mark, lambda name, content: NEEDLES.without(content))


def rows(*keys: str) -> pa.Table:
    return pa.table({"who": list(keys), "x": [float(i) for i in range(len(keys))]})


def commit(uri: str, *parts: pa.Table, append: bool = False) -> lake.DatasetVersion:
    content = row_hash(pa.concat_tables(parts)).hex()
    files = [lake.write_file(uri, f"files-{content[:6]}/part-{i}.parquet", part) for i, part in enumerate(parts)]
    lake.write_sidecar(
        uri, content, "report.json", json.dumps({"examples": [f"{KEY}: x=1", "customer-170: x"]}).encode()
    )
    return lake.commit(uri, files, parts[0].schema, content, {"made_by": "a test"}, append=append)


def content_of(uri: str, version: int) -> list[str]:
    """As any reader of Delta has it."""
    return sorted(DeltaTable(uri, version=version).to_pyarrow_table()["who"].to_pylist())


@pytest.fixture
def versioned(tmp_path: Path) -> str:
    uri = str(tmp_path / "data")
    commit(uri, rows(KEY, "a", "customer-170"), rows("b"))
    commit(uri, rows("a", "c"))
    commit(uri, rows(KEY, KEY, "d"))
    return uri


def test_every_version_loses_the_rows_and_says_so(versioned: str) -> None:
    before = {v.version: v for v in lake.versions(versioned)}
    assert traces(versioned, NEEDLES, ["who"])
    removed = redaction.redact(versioned, sought(), now=1e9)
    assert removed == Removed(3, 2, (1, 3))
    assert content_of(versioned, 1) == ["a", "b", "customer-170"]
    assert content_of(versioned, 2) == ["a", "c"]
    assert content_of(versioned, 3) == ["d"]
    for version in lake.versions(versioned):
        table = lake.read(version)
        assert row_hash(table).hex() == version.content_hash
        assert table.num_rows == version.n_rows
        assert sum(Path(versioned, path).stat().st_size for path in lake.files(version)) == version.n_bytes
        assert bool(version.redacted) is (version.version != 2)
        assert version.contents[-1] == before[version.version].content_hash
    assert before[1].content_hash in lake.dataset(versioned, 1).redacted
    assert traces(versioned, NEEDLES, ["who"]) == []
    assert redaction.redact(versioned, sought("f2"), now=2e9) == Removed()


def test_what_is_kept_beside_moves_along_without_the_key(versioned: str) -> None:
    redaction.redact(versioned, sought(), now=1e9)
    version = lake.dataset(versioned, 1)
    kept = lake.read_sidecar(versioned, version.content_hash, "report.json")
    assert kept is not None
    assert json.loads(kept) == {"examples": ["[forgotten]: x=1", "customer-170: x"]}


def test_content_that_was_redacted_is_not_found_but_committed_anew(versioned: str) -> None:
    was = lake.dataset(versioned, 3).content_hash
    redaction.redact(versioned, sought(), now=1e9)
    assert lake.find(versioned, was) is None
    again = commit(versioned, rows(KEY, KEY, "d"))
    assert (again.version, again.content_hash, again.redacted) == (4, was, "")
    assert lake.find(versioned, was) == again


def test_a_version_can_be_redacted_twice(versioned: str) -> None:
    was = lake.dataset(versioned, 1).content_hash
    redaction.redact(versioned, sought("f1"), now=1e9)
    redaction.redact(versioned, sought("f2", "a"), now=2e9)
    version = lake.dataset(versioned, 1)
    assert [r.n_rows for r in version.redactions] == [1, 1]
    assert version.contents[-1] == was
    assert content_of(versioned, 1) == ["b", "customer-170"]
    assert all(path.count("redacted") <= 1 for path in lake.files(version))


def test_a_file_without_other_rows_goes_whole(tmp_path: Path) -> None:
    uri = str(tmp_path / "data")
    commit(uri, rows(KEY), rows("a"))
    redaction.redact(uri, sought(), now=1e9)
    assert content_of(uri, 1) == ["a"]
    assert len(lake.files(lake.dataset(uri, 1))) == 1


def test_appended_commits_are_redacted_too(tmp_path: Path) -> None:
    uri = str(tmp_path / "quarantine")
    commit(uri, rows(KEY, "a"), append=True)
    commit(uri, rows("b", KEY), append=True)
    assert redaction.redact(uri, sought(), now=1e9) == Removed(2, 2, (1, 2))
    assert content_of(uri, 2) == ["a", "b"]
    assert content_of(uri, 1) == ["a"]


def test_a_checkpoint_does_not_bring_back_what_went(versioned: str) -> None:
    DeltaTable(versioned).create_checkpoint()
    redaction.redact(versioned, sought(), now=1e9)
    assert content_of(versioned, 3) == ["d"]
    assert not list(Path(versioned, "_delta_log").glob("*checkpoint*"))


def test_what_a_dead_run_left_goes_when_it_holds_the_key(versioned: str) -> None:
    lake.write_file(versioned, "files-dead/part-0.parquet", rows(KEY))
    lake.write_file(versioned, "files-live/part-0.parquet", rows("z"))
    redaction.redact(versioned, sought(), now=1e9)
    assert not Path(versioned, "files-dead/part-0.parquet").exists()
    assert Path(versioned, "files-live/part-0.parquet").exists()


class Killed(Exception):
    pass


def dying(monkeypatch: pytest.MonkeyPatch, deeds: int) -> Callable[[], None]:
    """The process dies at the deed number `deeds` on files: a write, a move or a removal. Returns what revives it."""
    left = [deeds]

    def counted(name: str) -> None:
        real = getattr(lake if name == "put" else redaction, name)

        def deed(*args: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **named)

        monkeypatch.setattr(lake if name == "put" else redaction, name, deed)

    for name in ("put", "_put_commit", "_rest", "_delete", "_delete_checkpoints"):
        counted(name)
    return monkeypatch.undo


@pytest.mark.parametrize("deeds", range(16))
def test_killed_anywhere_it_is_finished_by_the_next(
    versioned: str, monkeypatch: pytest.MonkeyPatch, deeds: int
) -> None:
    was = {v.version: v.content_hash for v in lake.versions(versioned)}
    revive = dying(monkeypatch, deeds)
    try:
        redaction.redact(versioned, sought(), now=1e9)
    except Killed:
        pass
    finally:
        revive()
    assert content_of(versioned, 2) == ["a", "c"]  # at no moment does a version gain rows
    assert "b" not in content_of(versioned, 3)
    redaction.redact(versioned, sought(), now=1e9)
    assert [content_of(versioned, v) for v in (1, 2, 3)] == [["a", "b", "customer-170"], ["a", "c"], ["d"]]
    for version in lake.versions(versioned):
        assert row_hash(lake.read(version)).hex() == version.content_hash
        assert version.contents[-1] == was[version.version]
    assert traces(versioned, NEEDLES, ["who"]) == []


def test_a_table_whose_beginning_is_gone_is_not_redacted(versioned: str) -> None:
    Path(versioned, "_delta_log", f"{0:020d}.json").unlink()
    with pytest.raises(DataError, match="begins at 1"):
        redaction.redact(versioned, sought(), now=1e9)


# logs ---


@pytest.fixture
def log(tmp_path: Path) -> str:
    uri = str(tmp_path / "log")
    for number, keys in enumerate(([KEY, "a"], ["b", "zz"], ["a", KEY])):
        day = [f"2026-01-0{1 + number // 2}"] * 2
        lake.append_once(uri, rows(*keys).append_column("day", [day]), "spool", number, partition_by=("day",))
    return uri


def test_a_log_loses_rows_files_and_the_history_that_tells_of_them(log: str) -> None:
    assert any(KEY in entry.read_text() for entry in Path(log, "_delta_log").glob("*.json"))
    assert redaction.purge(log, sought(), NEEDLES.tells, by=["who"]) == Removed(2, 2)
    table = DeltaTable(log)
    assert sorted(table.to_pyarrow_table()["who"].to_pylist()) == ["a", "a", "b", "zz"]
    assert lake.committed(log, "spool") == 2
    assert traces(log, NEEDLES, ["who"]) == []
    assert redaction.purge(log, sought(), NEEDLES.tells, by=["who"]) == Removed()
    lake.append_once(log, rows("new").append_column("day", [["2026-01-03"]]), "spool", 3, partition_by=("day",))
    assert lake.scan(log, "2026-01-03", "2026-01-03", ["who"])["who"].to_pylist() == ["new"]


def test_rows_that_delta_itself_deleted_go_from_files_and_log(log: str) -> None:
    DeltaTable(log).delete(f"who = '{KEY}'")  # leaves the files, and the key in the commit's predicate
    assert traces(log, NEEDLES, ["who"])
    redaction.purge(log, sought(), NEEDLES.tells, by=["who"])
    assert traces(log, NEEDLES, ["who"]) == []


def test_the_log_of_a_log_without_the_key_stays(log: str) -> None:
    entries = sorted(Path(log, "_delta_log").glob("*.json"))
    assert redaction.purge(log, sought(key="nobody"), Needles(("nobody",)).tells, by=["who"]) == Removed()
    assert sorted(Path(log, "_delta_log").glob("*.json")) == entries


@pytest.mark.parametrize("meets", ["compaction", "append"])
def test_a_commit_that_meets_another_is_tried_again(log: str, monkeypatch: pytest.MonkeyPatch, meets: str) -> None:
    """As on an object store, where no lock keeps two writers apart."""
    real = DeltaTable.delete
    met: list[str] = []

    def delete(table: DeltaTable, predicate: str) -> object:
        if not met:
            met.append(meets)
            if meets == "compaction":
                DeltaTable(log).optimize.compact()
            else:
                late = rows("late", KEY).append_column("day", [["2026-01-01"] * 2])
                write_deltalake(log, late, mode="append", partition_by=["day"])
        return real(table, predicate)

    monkeypatch.setattr(DeltaTable, "delete", delete)
    removed = redaction.purge(log, sought(), NEEDLES.tells, by=["who"])
    assert met == [meets]
    late = ["late"] if meets == "append" else []
    assert sorted(DeltaTable(log).to_pyarrow_table()["who"].to_pylist()) == sorted(["a", "a", "b", "zz", *late])
    assert removed.rows == 2 + len(late)
    assert traces(log, NEEDLES, ["who"]) == []


def test_writers_that_always_come_first_are_named(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete(table: DeltaTable, predicate: str) -> object:
        raise CommitFailedError("a concurrent transaction added new data")

    monkeypatch.setattr(DeltaTable, "delete", delete)
    with pytest.raises(DataError, match="other writers came first 20 times; run again"):
        redaction.purge(log, sought(), NEEDLES.tells, by=["who"])


def test_a_key_with_a_quote_is_quoted(tmp_path: Path) -> None:
    uri, key = str(tmp_path / "log"), 'O\'Neil "x" \\ é'
    lake.append_once(uri, rows(key, "a").append_column("day", [["2026-01-01"] * 2]), "spool", 0, partition_by=("day",))
    needles = Needles((key,))
    assert any(needles.tells(entry.read_bytes()) for entry in Path(uri, "_delta_log").glob("*.json"))
    assert redaction.purge(uri, sought(key=key), needles.tells, by=["who"]).rows == 1
    assert traces(uri, needles, ["who"]) == []


def test_a_table_that_is_not_there_has_nothing_to_lose(tmp_path: Path) -> None:
    uri = str(tmp_path / "none")
    assert redaction.redact(uri, sought(), now=1e9) == Removed()
    assert redaction.purge(uri, sought(), NEEDLES.tells, by=["who"]) == Removed()
    assert fs.LocalFileSystem().get_file_info(uri).type == fs.FileType.NotFound
