from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving.records import Labelled, Scored, Shadowed, Uncaptured, Watermark
from mlops_ray.serving.spool import capture
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.capture import Capture, key_keeper
from tests import fakes
from tests.spooling import labelled, same, scored, spooled, trial


def made(folder: Path, secret: bytes | None = None, **plan: Any) -> Capture:
    return Capture(fakes.project(capture=plan), folder, secret)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Capture]:
    found = made(tmp_path)
    yield found
    found.close()


def refuse(monkeypatch: pytest.MonkeyPatch, calls: str = "pwrite") -> None:
    monkeypatch.setattr(spool.os, calls, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))


def ids(folder: Path) -> list[str]:
    return [r.id for r in spooled(folder) if isinstance(r, Scored)]


def counts(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for r in spooled(folder):
        if isinstance(r, Uncaptured):
            found[r.why] = found.get(r.why, 0) + r.n_rows
    return found


def test_every_kind_of_record_is_kept(kept: Capture, tmp_path: Path) -> None:
    many = [
        scored("a", 3, trials=(trial([0, 2], [0.7, 0.9]),)),
        Shadowed("a", 2e9, 10, np.array([0.5]), trial([0], [0.6])),
        labelled(("a:0", "", 1.0, 5.0), ("", "k1", 0.0, 6.0)),
        Watermark(2e9, 1e9),
    ]
    assert all(kept.append(r) for r in many)
    assert all(same(a, b) for a, b in zip(spooled(tmp_path), many, strict=True))


def test_a_new_file_when_the_old_one_was_claimed_or_is_full(
    kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.append(scored("a"))
    spool.claim(tmp_path, 0)
    kept.append(scored("b"))
    monkeypatch.setattr(capture, "SEGMENT_BYTES", 1)
    kept.append(scored("c"))
    assert len(list(tmp_path.iterdir())) == 3
    assert sorted(ids(tmp_path)) == ["a", "b", "c"]


def test_a_file_that_cannot_be_begun_closes_nobody_elses(
    kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: the old file was closed first, and its number, soon another file's, was closed again later."""
    kept.append(scored("a"))
    spool.claim(tmp_path, 0)
    with monkeypatch.context() as broken:
        refuse(broken, "open")
        assert not kept.append(scored("b"))
    with (tmp_path / "bystander").open("w") as bystander:
        kept.append(scored("c"))
        bystander.write("still open")
    assert (tmp_path / "bystander").read_text() == "still open"
    assert ids(tmp_path) == ["a", "c"]
    assert counts(tmp_path) == {"disk": 1}


# --- rounds ---


def test_requests_of_one_round_share_a_write(kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    write = os.pwrite
    monkeypatch.setattr(spool.os, "pwrite", lambda *a: writes.append(len(a[1])) or write(*a))

    async def run() -> list[bool]:
        return await asyncio.gather(*(kept.keep(scored(f"r{i}")) for i in range(5)))

    assert asyncio.run(run()) == [True] * 5
    assert ids(tmp_path) == [f"r{i}" for i in range(5)]
    assert len(writes) == 1


def test_a_round_does_not_grow_without_end(kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_ROUND_BYTES", 1)
    keeping = kept.keep(scored("a"))
    with pytest.raises(StopIteration) as ended:
        keeping.send(None)  # it does not wait for the others
    assert ended.value.value is True
    assert ids(tmp_path) == ["a"]


def test_a_round_that_cannot_be_written_is_told_to_all_and_counted(
    kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[bool]:
        return await asyncio.gather(*(kept.keep(scored(f"r{i}", 2)) for i in range(3)))

    with monkeypatch.context() as broken:
        refuse(broken)
        assert asyncio.run(run()) == [False] * 3
    assert asyncio.run(run()) == [True] * 3
    assert ids(tmp_path) == ["r0", "r1", "r2"]
    assert counts(tmp_path) == {"disk": 6}


@pytest.mark.parametrize("gone", [{0}, {1}, {0, 2}, {0, 1, 2}])
def test_who_hangs_up_takes_no_record_along(kept: Capture, tmp_path: Path, gone: set[int]) -> None:
    """The others' stand, and its own may: it was answered, only nobody listened."""

    async def run() -> list[Any]:
        tasks = [asyncio.create_task(kept.keep(scored(f"r{i}"))) for i in range(3)]
        await asyncio.sleep(0)
        for i in gone:
            tasks[i].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    told = asyncio.run(run())
    assert [i for i, each in enumerate(told) if each is True] == sorted({0, 1, 2} - gone)
    assert ids(tmp_path) == ["r0", "r1", "r2"]


# --- durability ---


def test_process_durability_waits_for_no_disk(kept: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture.os, "fdatasync", lambda fd: pytest.fail("synced"))
    kept.append(scored("a"))
    assert asyncio.run(kept.durable())


def test_requests_that_wait_share_an_fsync_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = made(tmp_path, durability="disk")
    go, synced, real = threading.Event(), list[str](), os.fdatasync

    def slow(fd: int) -> None:
        go.wait(10)
        synced.append(threading.current_thread().name)
        real(fd)

    monkeypatch.setattr(capture.os, "fdatasync", slow)

    async def request(i: int) -> bool:
        mine.append(scored(f"r{i}"))
        return await mine.durable()

    async def traffic() -> list[bool]:
        waiting = [asyncio.create_task(request(i)) for i in range(50)]
        await asyncio.sleep(0)  # the loop goes on while the disk does not
        assert not any(task.done() for task in waiting)
        go.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(traffic()) == [True] * 50
    assert 1 <= len(synced) <= 2
    assert all("spool-sync" in name for name in synced)
    mine.close()
    assert len(ids(tmp_path)) == 50


def test_what_was_claimed_meanwhile_is_synced_as_well_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, synced, real = made(tmp_path, durability="disk"), list[int](), os.fdatasync

    def note(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(capture.os, "fdatasync", note)
    mine.append(scored("a"))
    (first,), _ = spool.claim(tmp_path, 0)
    mine.append(scored("b"))
    n_open = len(list(Path("/proc/self/fd").iterdir()))
    assert asyncio.run(mine.durable())
    assert first.path.stat().st_ino in synced
    assert len(set(synced)) == 2
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open - 1
    mine.close()


def test_the_name_of_a_new_file_is_synced_before_its_records_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, folders = made(tmp_path, durability="disk"), list[Path]()
    monkeypatch.setattr(capture, "sync_folder", folders.append)
    for name in ("a", "b"):
        mine.append(scored(name))
        assert asyncio.run(mine.durable())
    assert folders == [tmp_path]
    spool.claim(tmp_path, 0)
    mine.append(scored("c"))
    assert asyncio.run(mine.durable())
    assert folders == [tmp_path] * 2
    mine.close()


def test_a_failed_fsync_is_told_and_its_file_trusted_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel reports a page that it could not write once, and takes it for clean from then on."""
    mine = made(tmp_path, durability="disk")
    mine.append(scored("a"))
    with monkeypatch.context() as broken:
        broken.setattr(capture.os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert not asyncio.run(mine.durable())
    assert "Input/output error" in caplog.text
    mine.append(scored("b"))
    assert asyncio.run(mine.durable())
    assert len(list(tmp_path.glob("*.open"))) == 2
    assert sorted(ids(tmp_path)) == ["a", "b"]
    mine.close()


# --- what is kept ---


def test_all_rows_of_a_key_or_none_are_sampled(tmp_path: Path) -> None:
    mine = made(tmp_path, sample=0.3)
    n, left_out = 0, 0
    for i in range(200):
        keys = tuple(f"customer-{(i * 7 + k) % 100}" for k in range(4))
        request = scored(f"r{i}", 4, keys=keys, trials=(trial([1, 3], [0.5 + i / 1000, 0.6]),))
        whole = mine.append(request)
        n += 4
        left_out += 0 if whole else 1
    rows = [(r, i) for r in spooled(tmp_path) if isinstance(r, Scored) for i in range(len(r.keys))]
    sampled = {r.keys[i] for r, i in rows}
    assert 15 <= len(sampled) <= 45
    assert left_out > 0
    for r, i in rows:
        place = r.places[i] if r.places is not None else i
        assert r.keys[i] == f"customer-{(int(r.id[1:]) * 7 + place) % 100}"
        assert r.scores[i] == pytest.approx(0.1 * (place + 1))
        for tried in r.trials:
            if i not in tried.rows:
                continue
            assert place in (1, 3)
            answered = tried.scores[tried.rows.tolist().index(i)] if tried.scores is not None else None
            assert answered == pytest.approx(0.5 + int(r.id[1:]) / 1000 if place == 1 else 0.6)
    assert len([1 for r, i in rows]) == sum(
        (i * 7 + k) % 100 in {int(s[9:]) for s in sampled} for i in range(200) for k in range(4)
    )
    assert counts(tmp_path) == {"sampled": n - len(rows)}
    mine.close()


def test_labels_and_watermarks_are_never_sampled_away(tmp_path: Path) -> None:
    mine = made(tmp_path, sample=1e-9)
    assert not mine.append(scored("a"))
    assert mine.append(labelled(("a:0", "", 1.0, 5.0)))
    assert mine.append(Watermark(2e9, 1e9))
    assert [type(r) for r in spooled(tmp_path)] == [Uncaptured, Labelled, Watermark]
    mine.close()


def test_keys_are_hashed_alike_in_rows_and_labels(tmp_path: Path) -> None:
    mine = made(tmp_path, b"s" * 32, hash=["who"])
    mine.append(scored("a", 2, keys=("ann", "bob")))
    mine.append(labelled(("", "ann", 1.0, 5.0), ("a:1", "", 0.0, 5.0)))
    row, label = spooled(tmp_path)
    assert isinstance(row, Scored)
    assert isinstance(label, Labelled)
    assert label.labels.keys == (row.keys[0], "")
    assert row.keys[0] != row.keys[1]
    assert b"ann" not in b"".join(path.read_bytes() for path in tmp_path.glob("*.claimed"))
    other = key_keeper(fakes.project(capture={"hash": ["who"]}), b"t" * 32)
    assert other is not None
    assert other("ann") != row.keys[0]
    with pytest.raises(ValueError, match="secret"):
        made(tmp_path, None, hash=["who"])
    mine.close()


def test_dropped_keys_leave_no_trace_and_take_no_labels(tmp_path: Path) -> None:
    mine = made(tmp_path, drop=["who"])
    mine.append(scored("a", keys=("ann",)))
    with pytest.raises(BadRequest, match="send prediction_id"):
        mine.append(labelled(("", "ann", 1.0, 5.0)))
    assert mine.append(labelled(("a:0", "", 1.0, 5.0)))
    row, _ = spooled(tmp_path)
    assert isinstance(row, Scored)
    assert row.keys == ("",)
    mine.close()


def test_above_the_limit_one_request_in_n_is_kept_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capture, "_LOOK_S", 0.0)
    mine = made(tmp_path, spool_mb=0.05, overflow_keep=5)
    kept_ids = [f"r{i}" for i in range(1000) if mine.append(scored(f"r{i}", 2))]
    full = next(i for i in range(1000) if f"r{i}" not in kept_ids)
    beyond = [name for name in kept_ids if int(name[1:]) > full]
    assert len(beyond) == pytest.approx((1000 - full) / 5, rel=0.35)
    assert caplog.text.count("above capture.spool_mb") == 1
    assert mine.append(labelled(("r1:0", "", 1.0, 5.0)))
    shadow = Shadowed("?", 2e9, 10, np.array([0.5]), trial([0], [0.6]))
    for name in ("r1", *kept_ids[-2:]):  # a shadow's scores go the way of the request
        assert mine.append(Shadowed(name, *list(vars(shadow).values())[1:])) == (zlib.crc32(name.encode()) % 5 == 0)
    assert ids(tmp_path) == kept_ids
    lost = 2 * (1000 - len(kept_ids))
    assert lost <= counts(tmp_path)["overflow"] <= lost + 3
    for segment in spool.claimed(tmp_path):  # the store is back
        segment.path.unlink()
    assert all(mine.append(scored(f"s{i}")) for i in range(50))
    assert caplog.text.count("no longer so: the spool is above") == 1
    mine.close()


def test_a_full_disk_costs_records_that_are_counted_but_no_label(
    kept: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept.append(scored("a"))
    with monkeypatch.context() as full:
        refuse(full)
        assert not kept.append(scored("b", 3))
        assert not kept.append(scored("c", 2))
        for record in (labelled(("a:0", "", 1.0, 5.0)), Watermark(2e9, 1e9)):
            with pytest.raises(BackendUnavailable, match="No space left"):
                kept.append(record)
    assert caplog.text.count("answered unrecorded") == 1
    assert kept.append(scored("d"))
    assert ids(tmp_path) == ["a", "d"]
    assert counts(tmp_path) == {"disk": 5}


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_file_that_was_collected_fills_the_disk_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    """Found on a full disk: the writer kept the claimed file open, so that removing it made no room for a new one."""
    mine = made(tmp_path, durability=durability)
    mine.append(scored("a"))
    assert asyncio.run(mine.durable())
    (segment,), _ = spool.claim(tmp_path, 0)
    inode = segment.path.stat().st_ino
    with monkeypatch.context() as full:
        refuse(full)
        assert not mine.append(scored("b"))
    links = [fd.stat().st_ino for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    assert inode not in links
    assert mine.append(scored("c"))
    mine.close()


def test_a_replica_that_finds_no_spool_answers_and_recovers(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("in the way")
    mine = made(folder)
    assert not mine.append(scored("a", 2))
    folder.unlink()
    assert mine.append(scored("b"))
    assert ids(folder) == ["b"]
    assert counts(folder) == {"disk": 2}
    mine.close()


def test_rows_that_a_shadow_missed_are_counted(kept: Capture, tmp_path: Path) -> None:
    assert kept.append(Uncaptured(5.0, "shadow", 3))
    assert kept.append(Uncaptured(6.0, "shadow", 4))
    assert spooled(tmp_path) == [Uncaptured(6.0, "shadow", 7)]


LIMITED = """
import os, resource, signal, sys
from pathlib import Path
from mlops_ray.serving.spool.capture import Capture
from tests import fakes
from tests.spooling import labelled, scored
from mlops_ray.errors import BackendUnavailable
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
capture = Capture(fakes.project(), Path(sys.argv[1]), None)
n = 0
capture.append(labelled(("a:0", "", 1.0, 5.0), revenue=[12.5]))
while capture.append(scored(f"r{n}")):
    n += 1
lost = sum(not capture.append(scored(f"lost{i}", 2)) for i in range(10))
try:
    capture.append(labelled(*[("a:0", "", 1.0, 5.0)] * 500))
except BackendUnavailable as exc:
    print(n, lost, "refused")
    sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_limit_of_the_kernel_and_kill_9_leave_records_and_counts(tmp_path: Path) -> None:
    """A real refusal in the middle of a write; then the process dies without another word."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    n, lost, refused = done.stdout.split()
    assert (int(lost), refused) == (10, "refused")
    assert ids(tmp_path) == [f"r{i}" for i in range(int(n))]
    assert counts(tmp_path) == {"disk": 21}
    (told,) = [record for record in spooled(tmp_path) if isinstance(record, Labelled)]
    assert same(told, labelled(("a:0", "", 1.0, 5.0), revenue=[12.5]))
