"""The course of an order through real tables, on this machine's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.content import row_hash
from mlops_ray.data.rules.expectations import quarantined
from mlops_ray.data.traces import Needles
from mlops_ray.monitoring.labels import addressed
from mlops_ray.serving.log import erasure, forget
from mlops_ray.serving.log.history import History, Question
from mlops_ray.serving.places import labels_uri, log_uri, values_uri
from tests import fakes
from tests.logs import DAY_S, START, append, labels, predictions, values

KEY, SECRET = "customer-17", b"s" * 32
NEEDLES = Needles((KEY,))


def commit(uri: str, table: pa.Table, *, append: bool = False) -> lake.DatasetVersion:
    content = erasure_content(table)
    file = lake.write_file(uri, f"files-{content[:6]}/part-0.parquet", table)
    facts = {"columns": {"who": {"values": "packed"}, "x": {"n": 1}}, "orders": {}}
    lake.write_sidecar(uri, content, "facts.json", json.dumps(facts).encode())
    lake.write_sidecar(uri, content, "validation.html", f"<td>{KEY}: x=1</td>".encode())
    return lake.commit(uri, [file], table.schema, content, {}, append=append)


def erasure_content(table: pa.Table) -> str:
    if "rules" in table.column_names:
        table = table.set_column(1, "rules", pc.binary_join(table["rules"], ","))
    return row_hash(table).hex()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Somebody stands in every table: in two days of the log, in labels, in two dataset versions, in quarantine."""
    project = fakes.project(storage={"root": str(tmp_path)})
    append(log_uri(project), predictions(project, "r1", [KEY, "customer-170"], at=START), 0)
    append(log_uri(project), predictions(project, "r2", ["other", KEY], at=START + DAY_S, canary=True), 1)
    append(labels_uri(project), labels(project, ["r1:0", "r1:1"], [0.0, 1.0], at=START + DAY_S), 0)
    append(labels_uri(project), labels(project, ["r1:0", "r2:1", "r2:0"], [1.0, 1.0, 0.0], at=START + 2 * DAY_S), 1)
    told = values(["r1:0", "r1:1", None], "revenue", [1.0, 2.0, 3.0], at=START + DAY_S, keys=[None, None, KEY])
    append(values_uri(project), told, 0)
    rows = pa.table({"who": [KEY, "other", "third"], "x": [1.0, 2.0, 3.0]})
    data, bad = project.storage.path("data", "small"), project.storage.path("quarantine", "small")
    commit(data, rows)
    commit(data, rows.slice(1))
    commit(data, rows.slice(0, 2))
    broken = pa.table({"who": [KEY, None, "other"], "x": [9.0, 8.0, 7.0]})
    commit(bad, quarantined(project, broken, [["x.range"], ["who.null", "x.range"], ["x.range"]]), append=True)
    return project


def order(project: Project, *keys: str, now: float = START + 9 * DAY_S) -> forget.Order:
    return forget.opened(project, SECRET, keys or (KEY,), who="clerk", why="asked to", now=now)


def run(project: Project, wanted: forget.Order, flush: Callable[[], None] = lambda: None) -> erasure.Outcome:
    silent = {"now": wanted.at, "on_progress": lambda stage, done, total: None}
    return erasure.run(project, wanted, NEEDLES, SECRET, flush=flush, **silent)


def everything(folder: str) -> bytes:
    return b"".join(p.read_bytes() for p in Path(folder).rglob("*") if p.is_file())


def test_an_order_reaches_every_table_and_proves_it(project: Project, tmp_path: Path) -> None:
    assert erasure.count(project, NEEDLES) == {
        "labels": 3,
        "predictions": 2,
        "values": 2,
        "dataset versions": 2,
        "quarantine": 1,
    }
    outcome = run(project, order(project))
    assert outcome.proven
    assert outcome.found == ()
    removed = {name: (r.rows, r.versions) for name, r in outcome.order.removed.items()}
    assert removed == {
        "labels": (3, ()),
        "predictions": (2, ()),
        "values": (2, ()),
        "dataset versions": (2, (1, 3)),
        "quarantine": (1, (1,)),
    }
    assert KEY.encode() not in everything(str(tmp_path)).replace(b"customer-170", b"")
    left = History(project, addressed).newest(Question())
    assert sorted(left["key"].to_pylist()) == ["customer-170", "other"]
    assert sorted(left["label"].to_pylist()) == [0.0, 1.0]
    assert History(project, addressed).values(left)["value"].to_pylist() == [2.0]
    bad = lake.dataset(project.storage.path("quarantine", "small"), 1)
    assert lake.read(bad)["key"].to_pylist() == [None, "other"]
    assert erasure_content(lake.read(bad)) == bad.content_hash
    data = lake.dataset(project.storage.path("data", "small"), 3)
    facts = lake.read_sidecar(data.uri, data.content_hash, "facts.json")
    assert facts is not None
    assert json.loads(facts)["columns"] == {"x": {"n": 1}}
    assert "[forgotten]: x=1" in str(lake.read_sidecar(data.uri, data.content_hash, "validation.html"))


def test_the_same_order_again_finds_nothing_more(project: Project) -> None:
    first = run(project, order(project))
    forget.save(project, erasure.finished(first.order, now=1e9))
    again = run(project, order(project, now=START + 10 * DAY_S))
    assert again.order.id != first.order.id
    assert again.proven
    assert all(removed.rows == 0 for removed in again.order.removed.values())


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", range(6))
def test_an_order_that_was_killed_goes_on_where_it_was(
    project: Project, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """It dies at its `step`th note of itself, or in front of a table."""
    left = [step]
    real = forget.save

    def save(project: Project, order: forget.Order) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(project, order)

    monkeypatch.setattr(forget, "save", save)
    begun = order(project)
    with pytest.raises(Killed):
        run(project, begun)
    monkeypatch.undo()
    resumed = order(project, now=START + 11 * DAY_S)
    assert (resumed.id == begun.id) is (step > 0)
    outcome = run(project, resumed)
    assert outcome.proven
    assert outcome.order.ids == tuple(sorted(forget.pseudonym(SECRET, i) for i in ("r1:0", "r2:1")))
    assert History(project, addressed).newest(Question())["key"].to_pylist() == ["other", "customer-170"]


def test_rows_that_come_while_it_runs_are_gone_at_the_end(project: Project) -> None:
    came = []

    def flush() -> None:
        if len(came) < 2:
            came.append(1)
            append(log_uri(project), predictions(project, f"late{len(came)}", [KEY], at=START), 1 + len(came))

    outcome = run(project, order(project), flush)
    assert outcome.proven
    assert outcome.order.removed["predictions"].rows == 4 - (len(came) < 2)


def test_what_is_written_down_holds_neither_key_nor_prediction_id(project: Project) -> None:
    outcome = run(project, order(project))
    forget.save(project, outcome.order)
    folder = Path(log_uri(project), "_mlops_ray", "forgotten")
    content = everything(str(folder))
    assert len(outcome.order.ids) == 2
    assert KEY.encode() not in content
    assert b"r1:0" not in content
    assert forget.orders(project) == [outcome.order]
    assert KEY not in json.dumps(erasure.evidence(outcome))


def test_housekeeping_of_the_log_keeps_orders_and_brings_nothing_back(project: Project) -> None:
    outcome = run(project, order(project))
    forget.save(project, outcome.order)
    lake.tidy(log_uri(project), before_day=None, litter_s=0.0)
    assert forget.orders(project) == [outcome.order]
    assert erasure.search(project, NEEDLES) == ()
    assert lake.committed(log_uri(project), "spool") == 1


def test_a_key_that_is_another_rows_word_is_told_and_left(project: Project) -> None:
    needles = Needles(("other",))
    rows = pa.table({"who": ["fourth"], "x": [1.0], "c": ["other"]})
    commit(project.storage.path("data", "small"), rows)
    outcome = erasure.run(
        project, order(project, "other"), needles, SECRET, flush=lambda: None, now=1e9, on_progress=lambda *_: None
    )
    assert outcome.proven
    assert {(f.table, f.trace.column) for f in outcome.found} == {("dataset versions", "c")}


def test_what_still_stands_in_this_nodes_spool_is_no_proof(project: Project, tmp_path: Path) -> None:
    spool = tmp_path / "spool" / "small"
    spool.mkdir(parents=True)
    (spool / "torn.bad").write_bytes(b"\x0b\x00\x00\x00" + KEY.encode() + b"\x00")
    outcome = run(project, order(project))
    assert not outcome.proven
    assert [(f.table, f.trace.file) for f in outcome.found] == [("spool", "torn.bad")]


# what arrives later ---


def forgotten(*ids: str, at: float = START + 5) -> forget.Forgotten:
    key, hashed = forget.pseudonym(SECRET, KEY), tuple(forget.pseudonym(SECRET, i) for i in ids)
    return forget.Forgotten(SECRET, [forget.Order("o", at, "w", "y", (key,), hashed)])


def test_late_rows_are_sieved_and_those_of_a_new_start_are_not() -> None:
    project = fakes.project()
    early = predictions(project, "a", [KEY, "other"], at=START)
    later = predictions(project, "b", [KEY, "other"], at=START + 60)
    kept = forgotten().kept(pa.concat_tables([early, later]))
    assert kept["prediction_id"].to_pylist() == ["a:1", "b:0", "b:1"]


def test_late_labels_of_predictions_that_are_gone_are_sieved_whenever_they_come() -> None:
    project = fakes.project()
    kept = forgotten("a:0").kept(labels(project, ["a:0", "a:1"], [1.0, 0.0], at=START + 9 * DAY_S))
    assert kept["prediction_id"].to_pylist() == ["a:1"]


def test_labels_by_key_are_sieved_as_long_as_they_may_be_about_what_was() -> None:
    rows = [labels(fakes.project(), [None], [1.0], at=START + hours * 3600.0, keys=[KEY]) for hours in (1, 47, 49)]
    kept = forgotten().kept(pa.concat_tables(rows), grace_s=2 * DAY_S)
    assert kept.num_rows == 1
    assert kept["time"][0].as_py().hour == 1


def test_business_numbers_that_come_late_are_sieved_as_labels_are(project: Project) -> None:
    forget.save(project, replace(order(project), at=START, ids=(forget.pseudonym(SECRET, "r1:0"),)))
    late = START + DAY_S
    told = values(["r1:0", "r1:1", None], "revenue", [1.0, 2.0, 3.0], at=late, keys=[None, None, KEY])
    nothing = predictions(project, "r9", [], at=late)
    sieved = forget.Register(project, lambda: SECRET).sieved({"predictions": {0: nothing}, "values": {0: told}})
    assert sieved["values"][0]["value"].to_pylist() == [2.0]


def test_a_register_looks_again_only_when_there_is_something_new(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    register = forget.Register(project, lambda: asked.append(1) or SECRET)
    rows = predictions(project, "r", [KEY, "other"], at=START)
    assert register.now().kept(rows) is rows
    assert not asked
    forget.save(project, order(project))
    assert register.now().kept(rows)["key"].to_pylist() == ["other"]
    assert register.now() is register.now()
    assert asked == [1]


def test_without_orders_nothing_is_looked_at() -> None:
    rows = labels(fakes.project(), ["a:0"], [1.0], at=START)
    assert forget.Forgotten(SECRET, []).kept(rows) is rows


def test_two_keys_of_one_order_are_one_order_in_any_sequence(project: Project) -> None:
    first = order(project, "k1", "k2")
    forget.save(project, first)
    assert order(project, "k2", "k1", now=START + 20 * DAY_S) == first
    assert order(project, "k1").id != first.id
