from __future__ import annotations

import zlib
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.records import Labelled, Scored, Shadowed, Trial, Watermark
from mlops_ray.serving.spool import encoding
from mlops_ray.serving.spool.encoding import MAGIC, Damage, framed, frames
from tests.spooling import labelled, same, scored, trial

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
seconds = st.floats(0, 4e9)
any_float = {"allow_nan": True, "allow_infinity": True}


@st.composite
def scores(draw: st.DrawFn, n: int, width: int) -> Any:
    return draw(hnp.arrays(np.float64, (n, width) if width else n, elements=st.floats(**any_float)))


@st.composite
def trials(draw: st.DrawFn, n: int, width: int) -> Trial:
    rows = np.array(sorted(draw(st.sets(st.integers(0, n - 1)))), np.int64)
    found = draw(st.one_of(st.none(), scores(len(rows), width)))
    return Trial(
        draw(st.integers(0, 2**40)),
        draw(text),
        draw(st.none() | st.floats(0, 1)),
        rows,
        found,
        draw(text),
        draw(st.none() | seconds),
    )


@st.composite
def records(draw: st.DrawFn) -> encoding.Framed:
    kind, n, width = draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([0, 2, 3]))
    if kind == 3:
        return Watermark(draw(seconds), draw(seconds))
    if kind == 2:
        ids, keys = (tuple(draw(st.lists(text, min_size=n, max_size=n))) for _ in range(2))
        classes = st.lists(st.one_of(text, st.integers(-9, 9)), min_size=n, max_size=n)
        values = draw(st.one_of(scores(n, 0), classes.map(lambda v: np.array(v, dtype=object))))
        times = draw(hnp.arrays(np.float64, n, elements=seconds))
        numbers = {name: draw(scores(n, 0)) for name in draw(st.sets(text, max_size=3))}
        return Labelled(draw(seconds), Labels(ids, keys, values, times, numbers))
    if kind == 1:
        tried = draw(trials(n, width))
        return Shadowed(
            draw(text), draw(seconds), draw(st.integers(0, 99)), draw(scores(len(tried.rows), width)), tried
        )
    columns: dict[str, Any] = {}
    for name in draw(st.sets(text, max_size=4)):
        how = draw(st.sampled_from(["number", "time", "string"]))
        if how == "string":
            columns[name] = np.array(draw(st.lists(text, min_size=n, max_size=n)), dtype=object)
        else:
            dtype = np.float32 if how == "number" else np.float64
            columns[name] = draw(
                hnp.arrays(dtype, n, elements=st.floats(width=np.dtype(dtype).itemsize * 8, **any_float))
            )
    return Scored(
        id=draw(text),
        at=draw(seconds),
        keys=tuple(draw(st.lists(text, min_size=n, max_size=n))),
        times=draw(hnp.arrays(np.float64, n, elements=seconds)),
        columns=columns,
        stable=draw(st.integers(0, 2**40)),
        scores=draw(scores(n, width)),
        score_us=draw(seconds),
        repeatable=draw(st.booleans()),
        trials=tuple(draw(st.lists(trials(n, width), max_size=3))),
        places=draw(st.one_of(st.none(), hnp.arrays(np.int64, n, elements=st.integers(0, 10**6)))),
    )


def read(data: bytes, seed: int = 7) -> list[encoding.Framed]:
    return [found for found in frames(data, 0, seed) if not isinstance(found, Damage)]


@given(st.lists(records(), max_size=4), st.integers(0, 2**32 - 1))
def test_records_come_back_bit_for_bit(many: list[encoding.Framed], seed: int) -> None:
    found = list(frames(b"".join(framed(r, seed) for r in many), 0, seed))
    assert len(found) == len(many)
    assert all(same(a, b) for a, b in zip(found, many, strict=True))


@given(st.lists(records(), min_size=1, max_size=4), st.data())
@settings(max_examples=400)
def test_corrupt_bytes_never_give_a_wrong_record(many: list[encoding.Framed], data: st.DataObject) -> None:
    """Bytes changed, cut out, put in, cut off: what comes back are some of the records, in order, each as it was."""
    whole = bytearray(b"".join(framed(r, 7) for r in many))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(whole) - 1)))
        stop = at + data.draw(st.integers(0, 30))
        whole[at:stop] = data.draw(st.binary(max_size=30))
    rest = iter(many)
    for record in read(bytes(whole)):
        assert any(same(record, original) for original in rest), "a record that was never written, or out of order"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_spool_are_no_records(data: bytes) -> None:
    assert read(data) == []


def test_one_bad_byte_costs_one_record() -> None:
    parts = [framed(scored(f"r{i}", 3), 7) for i in range(5)]
    for at in range(len(parts[2])):
        bad = bytearray(parts[2])
        bad[at] ^= 0x40
        data = b"".join([*parts[:2], bytes(bad), *parts[3:]])
        found = list(frames(data, 0, 7))
        assert [r.id for r in found if isinstance(r, Scored)] == ["r0", "r1", "r3", "r4"], at
        start = len(parts[0]) * 2
        assert [f for f in found if isinstance(f, Damage)] == [Damage(start, start + len(bad), torn=False)]


def test_a_torn_tail_is_told_from_damage() -> None:
    sound, last = framed(scored("a"), 7), framed(scored("b"), 7)
    for cut in range(1, len(last)):
        *records_there, damage = frames(sound + last[:cut], 0, 7)
        assert len(records_there) == 1
        assert damage == Damage(len(sound), len(sound) + cut, torn=True), cut
    zeroed = sound + last[:20] + bytes(len(last) - 20)  # what power loss may leave
    assert list(frames(zeroed, 0, 7))[-1] == Damage(len(sound), len(zeroed), torn=False)


def test_a_client_cannot_put_a_record_into_the_log() -> None:
    """A frame inside the numbers of another, found when that one is damaged, is no record: it lacks the file's seed."""
    forged = framed(scored("forged"), 0)
    forged += bytes(-len(forged) % 4)
    outer = scored("outer", len(forged) // 4, columns={"x": np.frombuffer(forged, np.float32)})
    data = bytearray(framed(outer, 7))
    assert data.count(MAGIC) == 2
    data[20] ^= 1
    assert read(bytes(data)) == []


def test_a_record_of_a_kind_to_come_is_passed_over() -> None:
    _, payload = encoding.encode(scored("a"))
    unknown = encoding._FRAME.pack(b"", len(payload), 0, 99)

    check = zlib.crc32(payload, zlib.crc32(unknown, 7))
    data = encoding._FRAME.pack(MAGIC, len(payload), check, 99) + payload + framed(scored("b"), 7)
    assert [r.id for r in read(data) if isinstance(r, Scored)] == ["b"]


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(TypeError):
        framed(scored("\ud800"), 7)


def test_examples_of_each_kind() -> None:
    many = [
        scored("a", 3, trials=(trial([0, 2], [0.7, 0.9]),), repeatable=True),
        scored("b", 2, scores=np.array([[0.2, 0.3, 0.5], [1, 0, 0]]), trials=(trial([1], [[0.1, 0.2, 0.7]]),)),
        scored("c", 2, trials=(trial([1], None, "deadline"),), places=np.array([3, 7])),
        Shadowed("a", 2e9, 10, np.array([0.5]), trial([0], [0.6])),
        labelled(("a:0", "", 1.0, 5.0), ("", "k1", 0.0, 6.0)),
        labelled(("a:0", "", "red", 5.0)),
        labelled(("a:0", "", 1.0, 5.0), ("", "k1", np.nan, 6.0), revenue=[np.nan, 12.5], clicks=[3.0, 0.0]),
        Watermark(2e9, 1e9),
    ]
    assert all(same(a, b) for a, b in zip(read(b"".join(framed(r, 7) for r in many)), many, strict=True))


WRITTEN_BEFORE = {
    b'9\x00\x00\x00{"at":2000000000.0,"i":["a:0",""],"k":["","k1"],"y":null}'
    + np.array([5.0, 6.0, 1.0, 0.0]).tobytes(): labelled(("a:0", "", 1.0, 5.0), ("", "k1", 0.0, 6.0)),
    b'4\x00\x00\x00{"at":2000000000.0,"i":["a:0"],"k":[""],"y":["red"]}' + np.array([5.0]).tobytes(): labelled(
        ("a:0", "", "red", 5.0)
    ),
}


@pytest.mark.parametrize("payload", WRITTEN_BEFORE)
def test_labels_of_the_release_before_business_numbers_are_read_and_still_written_so(payload: bytes) -> None:
    """A node's spool outlives an upgrade; what a replica of that release appends meanwhile does as well."""
    record = WRITTEN_BEFORE[payload]
    assert same(encoding.decode(3, memoryview(payload)), record)
    assert encoding.encode(record) == (3, payload)


def test_a_record_of_one_trial_is_as_releases_before_wrote_it() -> None:
    head = (
        b'{"id":"a","at":2000000000.0,"k":["k0","k1"],"n":["x"],"t":[],"s":{},"v":10,"w":0,"us":60.0,'
        b'"c":{"v":20,"r":"r1","s":0.5,"k":1,"a":true,"us":7.5}}'
    )
    eights, fours = np.array([1e9, 1e9, 0.1, 0.2]).tobytes(), np.array([0.5, 1.5], np.float32).tobytes()
    asked = np.array([1], np.int64).tobytes() + np.array([0.7]).tobytes()
    payload = len(head).to_bytes(4, "little") + head + eights + asked + fours
    columns = {"x": np.array([0.5, 1.5], np.float32)}
    record = scored("a", 2, columns=columns, trials=(trial([1], [0.7], row_us=7.5),))
    assert encoding.encode(record) == (1, payload)
    assert same(encoding.decode(1, memoryview(payload)), record)
