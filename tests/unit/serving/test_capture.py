from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.serving import capture
from mlops_ray.serving.capture import SpoolWriter, claim, claimed, lock_folder
from tests.fakes import eventually, spooled


@pytest.fixture
def writer(tmp_path: Path) -> SpoolWriter:
    return SpoolWriter(tmp_path, fsync=False)


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [r["i"] for r in records]


def test_what_was_appended_is_read_back(writer: SpoolWriter, tmp_path: Path) -> None:
    record = {
        "text": 'line\nbreak, "quotes", \u2603 \x00',
        "floats": np.array([0.1, np.nan], dtype=np.float32),
        "strings": np.array(["a", ""], dtype=object),
        "tuple": ("k1", "k2"),
        "none": None,
    }
    writer.append(record)
    assert spooled(tmp_path) == [
        {
            "text": 'line\nbreak, "quotes", \u2603 \x00',
            "floats": [0.1, None],
            "strings": ["a", ""],
            "tuple": ["k1", "k2"],
            "none": None,
        }
    ]


def test_what_is_no_json_is_refused_before_anything_is_written(writer: SpoolWriter, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        writer.append({"i": object()})
    assert spooled(tmp_path) == []


def test_a_file_that_was_claimed_is_left_and_a_new_one_begun(writer: SpoolWriter, tmp_path: Path) -> None:
    writer.append({"i": 0})
    (first,) = claim(tmp_path, 7)
    writer.append({"i": 1})
    assert numbers(list(first.records())) == [0]
    (second,) = claim(tmp_path, 8)
    assert numbers(list(second.records())) == [1]


def test_a_file_that_was_replaced_by_another_is_noticed(writer: SpoolWriter, tmp_path: Path) -> None:
    writer.append({"i": 0})
    (file,) = tmp_path.glob("*.open")
    claim(tmp_path, 0)
    file.write_bytes(b"")  # the same name, another inode
    writer.append({"i": 1})
    assert file.read_bytes() == b""
    assert numbers(spooled(tmp_path)) == [0, 1]


def test_segments_are_numbered_from_the_given_number_in_order(tmp_path: Path) -> None:
    for i in range(12):
        SpoolWriter(tmp_path, fsync=False).append({"i": i})
    given = claim(tmp_path, 95)
    assert [s.number for s in given] == list(range(95, 107))
    assert claimed(tmp_path) == given
    assert sorted(numbers(spooled(tmp_path))) == list(range(12))


def test_empty_files_are_not_claimed(writer: SpoolWriter, tmp_path: Path) -> None:
    assert claim(tmp_path, 0) == []
    writer.append({"i": 0})
    assert len(claim(tmp_path, 0)) == 1


def test_files_of_others_are_no_segments(tmp_path: Path) -> None:
    for name in ("1-ab.claimed", "000000000001-AB.claimed", "x.claimed", "spool.id"):
        (tmp_path / name).write_bytes(b"{}\n")
    assert claimed(tmp_path) == []


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "000000000003-ab.claimed").write_bytes(b'{"i":0}\n{"i":1}\n{"i":2')
    assert numbers(spooled(tmp_path)) == [0, 1]


def test_a_full_disk_leaves_no_part_of_a_line(
    writer: SpoolWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    writer.append({"i": 0})
    with monkeypatch.context() as full:
        full.setattr(capture.os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(OSError, match="disk is full"):
            writer.append({"i": 1})
    (file,) = tmp_path.glob("*.open")
    assert file.read_bytes() == b'{"i":0}\n'
    writer.append({"i": 2})
    assert numbers(spooled(tmp_path)) == [0, 2]


def test_a_refused_write_lets_go_of_the_lock(writer: SpoolWriter, tmp_path: Path, monkeypatch: Any) -> None:
    writer.append({"i": 0})
    with monkeypatch.context() as broken:
        broken.setattr(capture.os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            writer.append({"i": 1})
    assert numbers(spooled(tmp_path)) == [0]  # the collector did not wait for the lock


def test_a_writer_that_cannot_open_a_new_file_closes_nobody_elses(
    writer: SpoolWriter, tmp_path: Path, monkeypatch: Any
) -> None:
    """Found: the old file was closed first, and its number, soon another file's, was closed again later."""
    writer.append({"i": 0})
    claim(tmp_path, 0)
    with monkeypatch.context() as broken:
        broken.setattr(capture.os, "open", lambda *_: (_ for _ in ()).throw(OSError(24, "too many open files")))
        with pytest.raises(OSError, match="too many"):
            writer.append({"i": 1})
    with (tmp_path / "bystander").open("w") as bystander:
        writer.append({"i": 2})
        bystander.write("still open")
    assert (tmp_path / "bystander").read_text() == "still open"
    assert numbers(spooled(tmp_path)) == [0, 2]


def test_durability_disk_syncs_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(capture.os, "fsync", synced.append)
    SpoolWriter(tmp_path, fsync=False).append({"i": 0})
    assert synced == []
    SpoolWriter(tmp_path, fsync=True).append({"i": 1})
    assert len(synced) == 1


def test_one_owner_per_folder(tmp_path: Path) -> None:
    first = lock_folder(tmp_path / "spool")
    assert first is not None
    assert lock_folder(tmp_path / "spool") is None
    other = lock_folder(tmp_path / "another")
    os.close(first)
    again = lock_folder(tmp_path / "spool")
    assert again is not None
    for fd in (again, other):
        os.close(fd)


def test_writers_and_a_claiming_collector_lose_and_double_nothing(tmp_path: Path) -> None:
    n, n_writers = 1500, 3
    done = threading.Event()
    read: list[int] = []

    def collect() -> None:
        number, last = 0, False
        while not last:
            last = done.is_set()
            for segment in claim(tmp_path, number):
                number = segment.number + 1
                read.extend(numbers(list(segment.records())))

    def write(start: int) -> None:
        mine = SpoolWriter(tmp_path, fsync=False)
        for i in range(start, start + n):
            mine.append({"i": i})
        mine.close()

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
from mlops_ray.serving.capture import SpoolWriter
writer = SpoolWriter(Path(sys.argv[1]), fsync=False)
real, i = os.write, 0
def torn(fd, data):
    real(fd, data[: len(data) // 2])
    real(1, b"torn\\n")
    while True: pass  # holding the lock, half a line in the file
while True:
    if i == int(sys.argv[2]): os.write = torn
    writer.append({"i": i, "padding": "x" * 200})
    real(1, b"%d\\n" % i)  # the acknowledgement
    i += 1
"""


def start_writer(folder: Path, tears_at: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(tears_at)], stdout=subprocess.PIPE)


def test_a_writer_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    process = start_writer(tmp_path, 25)
    assert process.stdout
    acknowledged = [int(line) for line in iter(process.stdout.readline, b"torn\n")]
    process.kill()
    process.wait()
    process.stdout.close()
    (file,) = tmp_path.glob("*.open")
    assert not file.read_bytes().endswith(b"\n")
    assert numbers(spooled(tmp_path)) == acknowledged == list(range(25))


def test_a_writer_killed_at_any_moment_while_segments_are_claimed(tmp_path: Path) -> None:
    """Every acknowledged record is read once; one more may stand there whose acknowledgement was cut off."""
    process = start_writer(tmp_path, -1)
    assert process.stdout
    acknowledged: list[int] = []
    reader = threading.Thread(target=lambda: acknowledged.extend(int(i) for i in process.stdout or ()))
    reader.start()
    for number in range(10):
        eventually(lambda number=number: bool(claim(tmp_path, number)))
    process.kill()
    process.wait()
    reader.join()
    process.stdout.close()
    read = numbers(spooled(tmp_path))
    assert acknowledged[:1] == read[:1] == [0]
    assert read == list(range(len(read)))
    assert len(acknowledged) <= len(read) <= len(acknowledged) + 1
