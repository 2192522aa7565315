from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlops_ray import ledger
from mlops_ray.errors import DataError
from mlops_ray.ledger import GAVE_UP, GENESIS, LEDGER, RESTORED, Entry, append, entries, verify
from mlops_ray.state import Store, Tx, canonical

N = 6
each_database = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def _fill(tx: Tx, project: str = "p", n: int = N) -> list[Entry]:
    return [
        append(tx, project, "advance" if i % 2 else "retrain", f"v{i}", "controller", "because", {"loss": i / 7}, i / 3)
        for i in range(n)
    ]


def _put(tx: Tx, entry: Entry, **changed: Any) -> None:
    """Overwrite one row as somebody with database access would."""
    tx.connection.execute(
        LEDGER.update().where(LEDGER.c.project == entry.project, LEDGER.c.seq == entry.seq).values(**changed)
    )


def _remove(tx: Tx, entry: Entry) -> None:
    tx.connection.execute(LEDGER.delete().where(LEDGER.c.project == entry.project, LEDGER.c.seq == entry.seq))


def _resealed(entry: Entry, **changed: Any) -> Entry:
    """The entry changed, with a hash that fits: what a careful forger writes."""
    forged = replace(entry, **changed)
    content = {k: v for k, v in forged.__dict__.items() if k != "hash"}
    return replace(forged, hash=ledger._seal(content))


def test_entries_are_chained_from_genesis_and_come_back_equal(store: Store) -> None:
    with store.begin() as tx:
        written = _fill(tx)
        append(tx, "q", "other", "chain", "me", "test", {}, 0.0)
    with store.read() as tx:
        assert entries(tx, "p") == written
        assert entries(tx, "p", since_seq=4) == written[4:]
        assert entries(tx, "p", kinds=["retrain"]) == written[::2]
        assert [e.prev for e in written] == [GENESIS, *(e.hash for e in written[:-1])]
        found = verify(tx, "p", (3, written[2].hash))
    assert (found.ok, found.n, found.head, found.problem, found.anchored) == (
        True,
        N,
        (N, written[-1].hash),
        None,
        True,
    )


def test_the_hash_is_that_of_the_canonical_json_on_every_database(store: Store) -> None:
    evidence = {"p": 0.1 + 0.2, "n": 3, "xs": (1, None)}
    with store.begin() as tx:
        entry = append(tx, "p", "promote", "v2", "ünal", "p < α", evidence, 1e9 + 1 / 3)
    assert entry.evidence == {"p": 0.30000000000000004, "n": 3, "xs": [1, None]}
    sealed = (
        r'{"at":1000000000.3333334,"evidence":{"n":3,"p":0.30000000000000004,"xs":[1,null]},"kind":"promote","prev":"'
        rf'{GENESIS}","project":"p","seq":1,"subject":"v2","who":"\u00fcnal","why":"p < \u03b1"}}'
    )
    assert entry.hash == hashlib.sha256(sealed.encode()).hexdigest()


def test_an_empty_chain_holds_and_an_anchor_on_it_does_not(store: Store) -> None:
    with store.read() as tx:
        empty = verify(tx, "p")
        assert (empty.ok, empty.n, empty.head) == (True, 0, (0, GENESIS))
        assert not verify(tx, "p", (0, GENESIS)).anchored
        assert "tail was cut" in str(verify(tx, "p", (1, "ab" * 32)))


def test_without_an_anchor_verify_says_what_it_cannot_prove(store: Store) -> None:
    with store.begin() as tx:
        written = _fill(tx)
        anchor = (N, written[-1].hash)
        _remove(tx, written[-1])
        unanchored = verify(tx, "p")
        assert unanchored.ok
        assert "without an anchor a cut tail" in str(unanchored)
        cut = verify(tx, "p", anchor)
        assert (cut.ok, cut.anchored) == (False, False)
        assert "its tail was cut" in str(cut)


def test_a_rewritten_end_shows_against_the_anchor_only(store: Store) -> None:
    with store.begin() as tx:
        last = _fill(tx)[-1]
        forged = _resealed(last, who="somebody else")
        _put(tx, last, who=forged.who, hash=forged.hash)
        assert verify(tx, "p").ok
        assert "the chain was rewritten" in str(verify(tx, "p", (N, last.hash)))


def test_an_anchor_vouches_up_to_its_entry_and_that_is_said(store: Store) -> None:
    with store.begin() as tx:
        written = _fill(tx)
        found = verify(tx, "p", (2, written[1].hash), (4, written[3].hash), (0, GENESIS))
        assert (found.ok, found.anchored, found.proven) == (True, True, 4)
        assert "anchors vouch for entries 1 to 4; whether entries after 4 were cut off or rewritten" in str(found)
        cut = verify(tx, "p", (2, written[1].hash), (N + 2, "ab" * 32))
        assert (cut.ok, cut.anchored, cut.proven) == (False, False, 2)
        twice = verify(tx, "p", (3, written[2].hash), (3, "ab" * 32))
        assert "entry 3 is not the anchored one" in str(twice)


def test_an_entry_that_claims_a_loss_excuses_nothing_and_a_person_does_by_name(store: Store) -> None:
    """Whoever cuts the tail can write the entry of a restored backup as well."""
    with store.begin() as tx:
        written = _fill(tx)
        lost = [(e.seq, e.hash) for e in written[3:]]
        for entry in written[3:]:
            _remove(tx, entry)
        assert not verify(tx, "p", lost[-1]).ok
        listed = [list(lost[-1]), ["4", 4], 7, ["5"]]  # and what no release writes
        append(tx, "p", RESTORED, "backup", "eve", "the disk was lost", {GAVE_UP: listed}, 9.0)
        forged = verify(tx, "p", lost[-1], (2, written[1].hash))
        assert (forged.ok, forged.unmet, forged.claimed, forged.proven) == (False, (lost[-1],), (lost[-1],), 2)
        assert "its tail was cut. An entry `restored` claims that a restored backup gave it up" in str(forged)
        assert f"--accept-loss 6:{lost[-1][1]}" in str(forged)
        assert not verify(tx, "p", lost[0]).ok
        assert "gave it up" not in str(verify(tx, "p", lost[0]))
        known = verify(tx, "p", lost[-1], (2, written[1].hash), accepted=[lost[-1]])
        assert (known.ok, known.accepted, known.unmet, known.proven) == (True, (lost[-1],), (), 2)
        assert "anchors of entries 6 are not met, and whoever asked accepts that" in str(known)
        assert not verify(tx, "p", *lost, accepted=[lost[-1]]).ok
        assert not verify(tx, "p", lost[-1], accepted=[(6, "ab" * 32)]).ok


@pytest.mark.parametrize(
    "damage",
    [
        {"evidence": "[" * 50_000},
        {"evidence": '{"a":' * 50_000},
        {"evidence": "[]"},
        {"who": b"\xff\xfe"},
        {"evidence": b'{"a":"\xff"}'},
        {"at": "noon"},
    ],
)
def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    """On SQLite, which keeps whatever bytes it is given."""
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    with store.begin() as tx:
        _fill(tx)
        (name, value), *_ = damage.items()
        expression = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
        tx.connection.exec_driver_sql(f"UPDATE ledger SET {name} = {expression} WHERE seq = 3", (value,))
    with store.read() as tx:
        found = verify(tx, "p")
        assert (found.ok, found.head[0], found.problem) == (False, 2, "entry 3 was edited: it cannot be read any more")
        with pytest.raises(
            DataError, match=r"entry 3 was edited: it cannot be read any more; `mlops-ray ledger verify`"
        ):
            entries(tx, "p")
        assert len(tx.connection.exec_driver_sql("SELECT seq FROM ledger").all()) == N
    store.close()


@pytest.mark.parametrize("text", ["", "7", "7:abc", "x:" + "ab" * 32, "-1:" + "ab" * 32, "7:" + "AB" * 32])
def test_what_is_no_anchor_is_said(text: str) -> None:
    with pytest.raises(DataError, match="SEQ:HASH"):
        ledger.parse_anchor(text)


def test_anchors_stand_in_files_line_by_line(store: Store) -> None:
    with store.begin() as tx:
        written = _fill(tx, n=2)
    exported = "\n".join(canonical(vars(entry), "") for entry in written)
    wanted = [(entry.seq, entry.hash) for entry in written]
    assert ledger.parse_anchors(exported, "x") == wanted
    assert ledger.parse_anchors(f"# kept in May\n\n1:{written[0].hash}\n", "x") == wanted[:1]
    with pytest.raises(DataError, match=r"heads\.txt, line 2"):
        ledger.parse_anchors(f'1:{written[0].hash}\n{{"seq": 2}}\n', "heads.txt")


# The promise, on random chains: whatever is done to it, short of rewriting its end, shows.

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
chains = st.lists(
    st.tuples(words, words, words, words, st.dictionaries(words, st.integers() | words, max_size=2), st.floats(0, 1e9)),
    min_size=3,
    max_size=9,
)


def _rows(tx: Tx) -> list[dict[str, Any]]:
    return [dict(row) for row in tx.connection.execute(LEDGER.select().order_by(LEDGER.c.seq)).mappings()]


def _rewrite(tx: Tx, rows: list[dict[str, Any]]) -> None:
    tx.connection.execute(LEDGER.delete())
    if rows:
        tx.connection.execute(LEDGER.insert(), rows)


def _sealed(row: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in row.items() if name != "hash"}
    return {**row, "hash": ledger._seal({**content, "evidence": json.loads(row["evidence"])})}


@each_database
@given(chain=chains, data=st.data())
def test_edits_insertions_inner_removals_and_reorders_of_any_chain_are_found(
    store: Store, chain: list[Any], data: st.DataObject
) -> None:
    with store.begin() as tx:
        savepoint = tx.connection.begin_nested()
        for kind, subject, who, why, evidence, at in chain:
            append(tx, "p", kind, subject, who, why, evidence, at)
        rows, last = _rows(tx), len(chain) - 1
        honest = verify(tx, "p")
        assert (honest.ok, honest.n) == (True, len(chain))
        i = data.draw(st.integers(0, last), label="entry")
        how = data.draw(st.sampled_from(["edit", "edit and seal", "insert", "insert and number", "remove", "reorder"]))
        changed = [dict(row) for row in rows]
        if how == "edit":
            changed[i][data.draw(st.sampled_from(["kind", "subject", "who", "why"]))] += "!"
        elif how == "edit and seal":
            i = min(i, last - 1)  # a well sealed last entry is a rewritten end
            changed[i] = _sealed({**changed[i], "who": changed[i]["who"] + "!"})
        elif how.startswith("insert"):
            i = min(i, last - 1)
            forged = _sealed({**changed[i], "seq": i + 2, "prev": changed[i]["hash"], "why": "forged"})
            later = [{**row, "seq": row["seq"] + 1} for row in changed[i + 1 :]]
            if how.endswith("number"):
                later = [_sealed(row) for row in later]  # each fits its number, none the entry before it
            changed = [*changed[: i + 1], forged, *later]
        elif how == "remove":
            i = min(i, last - 1)
            changed = [{**row, "seq": n} for n, row in enumerate(changed[:i] + changed[i + 1 :], 1)]
        else:
            order = data.draw(st.permutations(range(last + 1)).filter(lambda p: list(p) != list(range(last + 1))))
            changed = [{**rows[place], "seq": n} for n, place in enumerate(order, 1)]
        _rewrite(tx, changed)
        found = verify(tx, "p")
        _rewrite(tx, rows[: data.draw(st.integers(0, last), label="kept")])
        cut = verify(tx, "p", honest.head)
        blind = verify(tx, "p")
        savepoint.rollback()
    assert not found.ok, how
    assert found.problem
    assert not cut.ok
    assert "its tail was cut" in str(cut)
    assert blind.ok
    assert "without an anchor a cut tail or a rewritten chain would not show" in str(blind)


TEXTS = ("kind", "subject", "who", "why", "prev", "hash")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@each_database
@given(st.data())
def test_every_tampering_is_found(store: Store, data: st.DataObject) -> None:
    with store.begin() as tx:
        written = entries(tx, "p") or _fill(tx)
        assert verify(tx, "p").ok
        savepoint = tx.connection.begin_nested()
        kind = data.draw(st.sampled_from(["text", "at", "evidence", "reseal", "remove", "swap", "insert", "move"]))
        i = data.draw(st.integers(0, N - 1), label="entry")
        entry = written[i]
        if kind == "text":
            name = data.draw(st.sampled_from(TEXTS))
            value = data.draw(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8))
            assume(value != getattr(entry, name))
            _put(tx, entry, **{name: value})
        elif kind == "at":
            at = data.draw(st.floats(allow_nan=False, allow_infinity=False))
            assume(at != entry.at)
            _put(tx, entry, at=at)
        elif kind == "evidence":
            original = canonical(entry.evidence, "")
            edits = [
                original + " ",
                "",
                "[]",
                '{"loss":1e999}',
                '{"loss":NaN}',
                original[:-1],
                '{"loss":0,' + original[1:],
            ]
            _put(tx, entry, evidence=data.draw(st.sampled_from(edits)))
        elif kind == "reseal":
            assume(i < N - 1)
            forged = _resealed(entry, why="another reason")
            _put(tx, entry, why=forged.why, hash=forged.hash)
        elif kind == "remove":
            assume(i < N - 1)
            _remove(tx, entry)
        elif kind == "swap":
            other = written[data.draw(st.integers(0, N - 1).filter(lambda j: j != i))]
            for to, source in ((entry, other), (other, entry)):
                _put(tx, to, **{n: getattr(source, n) for n in TEXTS}, at=source.at)
        elif kind == "insert":
            seq = data.draw(st.sampled_from([-1, 0, N + 2, N + 1]))
            prev = written[-1].hash if seq <= N else entry.hash
            assume(seq != N + 1 or i < N - 1)  # a well sealed next entry is an append, no tampering
            forged = _resealed(entry, seq=seq, prev=prev)
            row = {**forged.__dict__, "evidence": canonical(forged.evidence, "")}
            tx.connection.execute(LEDGER.insert().values(row))
        else:
            _put(tx, entry, seq=entry.seq + N)
            assume(i < N - 1 or N > 1)
        found = verify(tx, "p")
        savepoint.rollback()
        assert not found.ok
        assert found.problem
        assert found.head[0] <= N


@each_database
@given(evidence=st.dictionaries(st.text(), json_values, max_size=4), at=st.floats(-1e12, 1e12))
def test_any_json_survives_the_database(store: Store, evidence: dict[str, Any], at: float) -> None:
    with store.begin() as tx:
        savepoint = tx.connection.begin_nested()
        written = append(tx, "p", "kind", "subject", "who", "why", evidence, at)
        assert entries(tx, "p") == [written]
        assert written.evidence == evidence
        assert verify(tx, "p").ok
        savepoint.rollback()


@pytest.mark.parametrize(
    ("why", "evidence", "at"),
    [
        ("x", {"a": float("nan")}, 0.0),
        ("x", {"a": object()}, 0.0),
        ("x", {"a": 1, 2: 3}, 0.0),
        ("x", {}, float("inf")),
        ("nul \0", {}, 0.0),
        ("half a \ud800", {}, 0.0),
    ],
    ids=["nan", "object", "mixed keys", "infinite time", "nul", "surrogate"],
)
def test_what_cannot_be_sealed_is_refused(store: Store, why: str, evidence: dict[str, Any], at: float) -> None:
    with store.begin() as tx:
        with pytest.raises(DataError):
            append(tx, "p", "kind", "subject", "who", why, evidence, at)
        assert verify(tx, "p").n == 0


def test_four_appending_threads_make_one_chain(url: str, store: Store) -> None:
    stores = [Store.open(url) for _ in range(4)]

    def write(opened: Store) -> None:
        for i in range(8):
            opened.run(lambda tx, i=i: append(tx, "p", "kind", f"{i}", "who", "why", {"i": i}, float(i)))  # type: ignore[misc]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, stores))
    with store.read() as tx:
        found = verify(tx, "p")
        assert (found.ok, found.n) == (True, 32)
    for opened in stores:
        opened.close()


def test_the_ledger_goes_with_the_change_that_it_records(store: Store) -> None:
    def change_and_fail(tx: Tx) -> None:
        append(tx, "p", "promote", "v2", "me", "test", {}, 0.0)
        raise DataError("p", "stop")

    with pytest.raises(DataError):
        store.run(change_and_fail)
    with store.read() as tx:
        assert entries(tx, "p") == []
