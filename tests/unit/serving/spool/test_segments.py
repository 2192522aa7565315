from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from mlops_ray.serving.records import Scored, Uncaptured, Watermark
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.encoding import framed
from mlops_ray.serving.spool.segments import HEAD_BYTES, Segment, SegmentFile, claim, claimed, lock_folder, parsed
from tests.fakes import eventually
from tests.spooling import scored, spooled


def put(file: SegmentFile, *times: float) -> bool:
    """Append watermarks; whether the file was still its writer's."""
    with file.held() as ours:
        if ours:
            for time in times:
                file.append(framed(Watermark(0.0, time), file.seed))
        return ours


def times(folder: Path) -> list[float]:
    return [r.time for r in spooled(folder) if isinstance(r, Watermark)]


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    file = SegmentFile(tmp_path)
    assert put(file, 1, 2)
    assert put(file, 3)
    assert times(tmp_path) == [1, 2, 3]
    os.close(file.fd)


def test_a_claimed_file_is_its_writers_no_more(tmp_path: Path) -> None:
    file = SegmentFile(tmp_path)
    put(file, 1)
    (first,), whole = claim(tmp_path, 7)
    assert (first.number, whole) == (7, True)
    assert not put(file, 2)
    file.path.write_bytes(b"")  # the same name, another inode
    assert not put(file, 2)
    assert times(tmp_path) == [1]
    os.close(file.fd)


def test_segments_are_numbered_from_the_given_number_in_order(tmp_path: Path) -> None:
    files = [SegmentFile(tmp_path) for _ in range(12)]
    for i, file in enumerate(files):
        put(file, i)
        os.close(file.fd)
    given_out, _ = claim(tmp_path, 95)
    assert [s.number for s in given_out] == list(range(95, 107))
    assert claimed(tmp_path) == given_out
    assert sorted(times(tmp_path)) == list(range(12))


def test_files_that_say_nothing_are_not_claimed_but_counts_are(tmp_path: Path) -> None:
    file = SegmentFile(tmp_path)
    assert claim(tmp_path, 0) == ([], True)
    assert spool.waiting_bytes(tmp_path) == 0
    with file.held():
        file.count("overflow", 3, 5.0)
        file.count("sampled", 2, 6.0)
        file.count("overflow", 4, 7.0)
    assert spooled(tmp_path) == [Uncaptured(7.0, "overflow", 7), Uncaptured(7.0, "sampled", 2)]
    os.close(file.fd)


def test_neither_side_waits_for_the_other(tmp_path: Path) -> None:
    """Found by design: a process stopped (SIGSTOP) while it holds the lock would stop the other side as well."""
    file = SegmentFile(tmp_path)
    put(file, 1)
    other = os.open(file.path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)  # a collector, stopped right here
    assert not put(file, 2)
    os.close(other)
    with file.held() as ours:  # a writer, stopped right here
        assert ours
        assert claim(tmp_path, 0) == ([], False)
    assert [s.number for s in claim(tmp_path, 0)[0]] == [0]
    os.close(file.fd)


def test_files_of_others_are_no_segments(tmp_path: Path) -> None:
    for name in ("1-ab.claimed", "000000000001-AB.claimed", "x.claimed", "spool.id"):
        (tmp_path / name).write_bytes(b"{}\n")
    assert claimed(tmp_path) == []


def test_a_write_that_was_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, file = os.pwrite, SegmentFile(tmp_path)
    put(file, 1)
    with monkeypatch.context() as full:
        full.setattr(spool.os, "pwrite", lambda fd, data, at: real(fd, data[: len(data) // 2], at))
        with pytest.raises(OSError, match="disk is full"):
            put(file, 2)
    assert file.path.stat().st_size == file.size
    put(file, 3)
    assert times(tmp_path) == [1, 3]
    os.close(file.fd)


def test_a_file_that_cannot_be_begun_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(spool.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            SegmentFile(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="another user"):
        SegmentFile(tmp_path)


def test_a_new_folder_is_for_its_user_only(tmp_path: Path) -> None:
    os.close(SegmentFile(tmp_path / "below" / "spool").fd)
    assert (tmp_path / "below" / "spool").stat().st_mode & 0o777 == 0o700


@given(st.integers(0, HEAD_BYTES - 1), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_head_is_damage_and_no_error(tmp_path: Path, at: int, flip: int) -> None:
    file = SegmentFile(tmp_path)
    with file.held():
        file.append(framed(scored("a"), file.seed))
        file.count("disk", 9, 5.0)
    data = bytearray(file.path.read_bytes())
    os.close(file.fd)
    file.path.unlink()
    data[at] ^= flip
    records, damages = parsed(bytes(data))
    padding = at in (12, 13, 14, 15) or at >= HEAD_BYTES - 4
    assert bool(damages) != padding
    assert all(r == Uncaptured(5.0, "disk", 9) or isinstance(r, Scored) for r in records)


@given(st.binary(max_size=400))
def test_no_bytes_stop_a_reader(data: bytes) -> None:
    records, damages = parsed(data)
    assert records == []
    assert damages


def test_one_owner_per_folder_who_can_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    assert spool.owner(folder) is None
    first = lock_folder(folder, "node-a")
    assert first is not None
    assert lock_folder(folder, "node-b") is None
    assert spool.owner(folder) == spool.Owner(os.getpid(), "node-a")
    other = lock_folder(tmp_path / "another", "node-a")
    os.close(first)
    assert spool.owner(folder) is None
    again = lock_folder(folder, "b")
    assert again is not None
    assert spool.owner(folder) == spool.Owner(os.getpid(), "b")
    for fd in (again, other):
        assert fd is not None
        os.close(fd)


def test_a_lock_on_a_folder_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that wait for a folder while it is removed, one must not own the file that is gone."""
    folder, real = tmp_path / "spool", fcntl.flock
    removed: list[bool] = []

    def flock(fd: int, how: int) -> None:
        if not removed:
            removed.append(True)
            (folder / spool.LOCK).unlink()
            folder.rmdir()
        real(fd, how)

    monkeypatch.setattr(spool.fcntl, "flock", flock)
    fd = lock_folder(folder, "a")
    assert fd is not None
    assert os.fstat(fd).st_ino == (folder / spool.LOCK).stat().st_ino
    os.close(fd)


def test_a_spool_is_removed_when_nothing_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    fd = lock_folder(folder, "a")
    assert fd is not None
    name, file = spool.spool_id(folder), SegmentFile(folder)
    assert spool.spool_id(folder) == name
    put(file, 1)
    assert not spool.remove_if_done(folder)
    (segment,), _ = claim(folder, 0)
    assert not spool.remove_if_done(folder)
    segment.path.rename(folder / "aside.bad")
    assert not spool.remove_if_done(folder)
    (folder / "aside.bad").unlink()
    assert spool.spool_id(folder) == name
    assert spool.remove_if_done(folder)
    assert not folder.exists()
    assert not put(file, 2)
    for each in (fd, file.fd):
        os.close(each)


def test_writers_and_a_claiming_collector_lose_and_double_nothing(tmp_path: Path) -> None:
    n, n_writers = 1500, 3
    done = threading.Event()
    read: list[float] = []

    def collect() -> None:
        number, last = 0, False
        while not last:
            finished = done.is_set()
            segments, whole = claim(tmp_path, number)
            last = finished and whole  # not whole: a writer that stands still has its file's lock
            for segment in segments:
                number = segment.number + 1
                read.extend(r.time for r in segment.records() if isinstance(r, Watermark))

    def write(start: int) -> None:
        mine = SegmentFile(tmp_path)
        for i in range(start, start + n):
            while not put(mine, i):
                os.close(mine.fd)
                mine = SegmentFile(tmp_path)
        os.close(mine.fd)

    collector = threading.Thread(target=collect)
    writers = [threading.Thread(target=write, args=(k * n,)) for k in range(n_writers)]
    for thread in (collector, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    collector.join()
    assert sorted(read) == list(range(n * n_writers))
    for k in range(n_writers):  # and each writer's in its order
        assert [i for i in read if i // n == k] == list(range(k * n, k * n + n))


WRITER = """
import os, sys
from pathlib import Path
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.serving.records import Watermark
from tests import fakes
real, i = os.pwrite, 0
def torn(fd, data, at):
    real(fd, data[: len(data) // 2], at)
    os.write(1, b"torn\\n")
    while True: pass  # holding the lock, half a frame in the file
capture = Capture(fakes.project(), Path(sys.argv[1]), None)
while True:
    if i == int(sys.argv[2]): os.pwrite = torn
    assert capture.append(Watermark(0.0, i))
    os.write(1, b"%d\\n" % i)  # the acknowledgement
    i += 1
"""


def start_writer(folder: Path, tears_at: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(tears_at)], stdout=subprocess.PIPE)


def test_a_writer_killed_in_the_middle_of_a_frame(tmp_path: Path) -> None:
    process = start_writer(tmp_path, 25)
    assert process.stdout
    acknowledged = [int(line) for line in iter(process.stdout.readline, b"torn\n")]
    process.kill()
    process.wait()
    process.stdout.close()
    (file,) = tmp_path.glob("*.open")
    records, (damage,) = parsed(file.read_bytes())
    assert damage.torn
    assert len(records) == 25
    assert times(tmp_path) == acknowledged == list(range(25))


def test_a_writer_killed_at_any_moment_while_segments_are_claimed(tmp_path: Path) -> None:
    """Every acknowledged record is read once; one more may stand there whose acknowledgement was cut off."""
    process = start_writer(tmp_path, -1)
    assert process.stdout
    acknowledged: list[int] = []
    reader = threading.Thread(target=lambda: acknowledged.extend(int(i) for i in process.stdout or ()))
    reader.start()
    for number in range(10):
        eventually(lambda number=number: bool(claim(tmp_path, number)[0]))
    process.kill()
    process.wait()
    reader.join()
    process.stdout.close()
    read = times(tmp_path)
    assert acknowledged[:1] == read[:1] == [0]
    assert read == list(range(len(read)))
    assert len(acknowledged) <= len(read) <= len(acknowledged) + 1


def test_a_stopped_writer_holds_up_no_claim_and_goes_on_elsewhere(tmp_path: Path) -> None:
    process = start_writer(tmp_path, -1)
    assert process.stdout
    process.stdout.readline()
    os.kill(process.pid, signal.SIGSTOP)
    segments, whole = claim(tmp_path, 0)
    assert whole == bool(segments)  # it was stopped inside the lock, or outside
    os.kill(process.pid, signal.SIGCONT)
    acknowledged = [int(process.stdout.readline()) for _ in range(2000)]
    process.kill()
    process.wait()
    process.stdout.close()
    read = times(tmp_path)
    assert set(acknowledged) <= set(read)
    assert read == list(range(len(read)))


def test_a_segments_size(tmp_path: Path) -> None:
    (tmp_path / "000000000003-ab.claimed").write_bytes(b"12345")
    assert claimed(tmp_path) == [Segment(3, tmp_path / "000000000003-ab.claimed")]
    assert claimed(tmp_path)[0].n_bytes == 5


def test_a_lock_is_let_go_of_when_the_file_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = spool.SegmentFile(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"):
            file.lock()
    other = os.open(file.path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or it raises
    os.close(other)
    os.close(file.fd)
