"""What the dashboard says of a history that is told by the project's own code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.dashboard import gathered, parts
from mlops_ray.dashboard.document import document, to_json
from mlops_ray.dashboard.gathered import gather
from mlops_ray.dashboard.parts import SCHEMA, Document
from mlops_ray.monitoring.alerts import alerting, book
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.state import RetrainRow, Store, VersionRow, WindowRow
from tests import histories
from tests.histories import BEGAN, DAY, WEEK

PROJECT = histories.project()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Store]:
    """A state database of the quick kind."""
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


def made(store: Store, machine_now: float = 1e9) -> Document:
    return document(gather(store, PROJECT, machine_now=machine_now), release="0.1.0")


def stage(of: Document, name: str) -> parts.Stage:
    return next(s for s in of.loop.stages if s.id == name)


def test_before_anything_it_says_what_will_come(one: Store) -> None:
    found = made(one)
    assert (found.loop.stage, found.now) == ("ingest", None)
    assert "mlops-ray run" in found.loop.says
    assert found.serving.stable is None
    for part in (found.traffic, found.quality, found.drift):
        assert part.empty
    histories.register(one, PROJECT, 1, 5.0)
    assert "mlops-ray up" in made(one).loop.says


def test_before_the_first_window_it_says_when_that_closes(one: Store) -> None:
    histories.serve(one, PROJECT)
    assert made(one).loop.says == "v1 answers all requests; none has come yet."
    histories.live(one, PROJECT, 2, 4, (1, 1.0))  # began within a week: that one is a part and is not judged
    found = made(one)
    closes = round(BEGAN + 2 * WEEK)
    assert found.drift.next == closes
    assert found.drift.empty == f"No window has closed yet: they span 7 days, and the first closes at {{@{closes}}}."
    assert (found.loop.stage, stage(found, "monitor").says) == ("monitor", found.drift.empty)
    assert found.traffic.blocks == ((BEGAN + 2 * DAY, (700,)), (BEGAN + 3 * DAY, (700,)))


def test_a_whole_history(store: Store) -> None:
    rollout = histories.history(store, PROJECT)
    found = made(store)
    assert (found.schema, found.now) == (SCHEMA, BEGAN + 83 * DAY)
    assert found.loop.stage == "rollout"
    assert found.loop.says == (
        "Canary v3 at 20 %: 412 of about 900 keys; log-loss difference −0.0040 to +0.0110, margin 0.02"
    )
    assert [s.state for s in found.loop.stages].count("now") == 1
    assert (found.serving.stable, found.serving.canary, found.serving.share) == (2, 3, 0.2)
    assert found.serving.rows == {"1": 30 * 700 + 6 * 560, "2": 6 * 140 + 44 * 700 + 3 * 560, "3": 3 * 140}

    now, before = found.rollouts
    assert (now.id, now.open, now.share, now.against) == (rollout, True, 0.2, 2)
    assert (before.phase, before.open) == ("promoted", False)
    assert before.says.startswith("v2 was promoted on the evidence: 950 keys")
    loss = now.metrics[0]
    assert (loss.title, loss.verdict, loss.margin, loss.needed) == ("log-loss", "inconclusive", 0.02, 488)
    assert [look.n_keys for look in loss.looks] == [130, 270, 412]
    assert [look.n_keys for look in before.metrics[0].looks] == [150, 300, 450, 600, 750, 950]
    assert [s.kind for s in before.steps][:2] == ["rollout started", "rollout ramping at 0.2"]

    assert len(found.quality.points) == 10
    assert [p.realised is None for p in found.quality.points] == [False] * 9 + [True]
    assert found.quality.points[0].estimated is not None
    assert found.quality.points[0].estimated.low == pytest.approx(0.5)
    alarmed = [w for w in found.drift.windows if w.alarm]
    assert [w.start for w in alarmed] == [BEGAN + 3 * WEEK]
    assert found.drift.features[0] == "x"  # what drifted most comes first
    place = found.drift.features.index("x")
    assert (alarmed[0].psi[place] or 0) > (alarmed[0].limit[place] or 0)
    assert found.alerts == ()

    assert [r.status for r in found.retrains] == ["succeeded", "rejected", "succeeded"]
    assert found.retrains[1].says.startswith("The gates refused its candidate: limit.roc_auc: 0.51 is below 0.55.")
    assert [(o.version, o.became, o.parent) for o in found.lineage] == [
        (3, "on trial", 2),
        (2, "stable", 1),
        (1, "was stable", None),
    ]
    assert found.lineage[1].cause.startswith("drift: x: PSI")
    assert found.ledger.n == len(found.ledger.entries)
    assert found.ledger.head.startswith(found.ledger.entries[0].hash)


def test_the_document_is_frozen_and_json_and_names_its_shape(one: Store) -> None:
    histories.history(one, PROJECT)
    found = made(one)
    _frozen(found)
    body = json.loads(to_json(found))
    assert body["schema"] == "mlops_ray.dashboard/1"
    assert set(body) == {field.name for field in fields(Document)}
    assert to_json(made(one)) == to_json(found)


def _frozen(value: Any) -> None:
    if is_dataclass(value):
        assert type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        for field in fields(value):
            _frozen(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            _frozen(one)
    else:
        assert not isinstance(value, list | set)


def test_a_retrain_and_an_approval_are_where_the_loop_stands(one: Store) -> None:
    histories.serve(one, PROJECT)
    histories.live(one, PROJECT, 0, 8, (1, 1.0))
    row = RetrainRow("r1", PROJECT.project, "drift", "x: PSI 0.4", BEGAN, "job", "decided", {}, 1.0)
    with one.begin() as tx:
        tx.save_retrain(row)
    assert made(one).loop.stage == "retrain"
    with one.begin() as tx:
        tx.save_retrain(RetrainRow(**{**vars(row), "status": "submitted"}))
    found = made(one)
    assert (found.loop.stage, found.loop.says) == (
        "train",
        "A candidate is being trained and judged, because of drift.",
    )
    with one.begin() as tx:
        tx.save_retrain(RetrainRow(**{**vars(row), "status": "failed", "outcome": {"error": "no rows"}}))
    assert stage(made(one), "train").state == "trouble"
    with one.begin() as tx:
        version = histories.version(PROJECT, 2, BEGAN)
        tx.save_version(VersionRow(**{**vars(version), "status": VersionRow.PENDING}))
    assert made(one).loop.stage == "gates"


def test_an_alarm_of_stable_shows_until_a_window_is_calm(one: Store) -> None:
    histories.serve(one, PROJECT)
    histories.live(one, PROJECT, 0, 22, (1, 1.0), shift=0.9)
    for week, shift in enumerate((0.0, 0.9, 0.9)):
        histories.judge(one, PROJECT, week, 1, loss=0.5, mature=False, shift=shift)
    found = made(one)
    assert [(a.trigger, a.since) for a in found.alerts] == [("drift", BEGAN + 2 * WEEK)]
    assert (found.loop.stage, stage(found, "monitor").state) == ("monitor", "now")
    assert found.loop.says == "v1 answers all requests; drift alarms."
    assert found.alerts[0].says.startswith("x: PSI")
    histories.judge(one, PROJECT, 3, 1, loss=0.5, mature=False)
    assert made(one).alerts == ()


def test_open_alerts_are_shown_with_the_worst_first(one: Store) -> None:
    histories.serve(one, PROJECT)
    with one.begin() as tx:
        for at, (rule, severity, phase) in enumerate(
            (("drift", "warning", "firing"), ("quality", "critical", "firing"), ("old", "critical", "resolved"))
        ):
            stands = alerting.Phase(phase)
            book.save(tx, PROJECT.project, alerting.Alert(rule, rule, "v1", severity, stands, at, f"{rule} says"))
    assert [(n.rule, n.state, n.since, n.says) for n in made(one).notices] == [
        ("quality", "firing", 1.0, "quality says"),
        ("drift", "firing", 0.0, "drift says"),
    ]


def test_the_detector_after_every_block_alarms_until_a_whole_window_is_well(one: Store) -> None:
    histories.serve(one, PROJECT)
    histories.live(one, PROJECT, 0, 22, (1, 1.0))
    entry = {"alarm": True, "why": "the loss has risen", "at": BEGAN + WEEK}
    with one.begin() as tx:
        tx.save_window(WindowRow(PROJECT.project, BEGAN, BEGAN + DAY, 1, {"sequential": entry}))
    assert [(a.trigger, a.says) for a in made(one).alerts] == [("loss after every block", "the loss has risen")]
    histories.judge(one, PROJECT, 1, 1, loss=0.5, mature=True)
    assert made(one).alerts == ()


def test_windows_without_known_keys_and_with_new_ones_are_shown(one: Store) -> None:
    """Other releases leave keys out, and add some."""
    histories.serve(one, PROJECT)
    histories.judge(one, PROJECT, 0, 1, loss=0.5)
    with one.begin() as tx:
        (row,) = tx.windows(PROJECT.project)
        drift = {"features": [{"feature": "x", "psi": 0.1, "p": 0.3}, {"feature": "n"}], "news": 1}
        tx.save_window(
            type(row)(**{**vars(row), "result": {"drift": drift, "sequential": {"alarm": True}, "other": 3}})
        )
    found = made(one)
    assert found.drift.features == ("x",)
    assert found.drift.windows[0].limit == (None,)
    assert found.quality.points == ()


@pytest.mark.parametrize("phase", list(Phase))
def test_each_phase_has_its_sentence(one: Store, phase: Phase) -> None:
    histories.serve(one, PROJECT)
    histories.register(one, PROJECT, 2, BEGAN)
    rollout = histories.started(one, PROJECT, 2, BEGAN)
    histories.look(one, rollout, histories.seen(BEGAN + DAY, 100, 0.001, 0.05))

    def run(tx: Any) -> None:
        after = CanaryState(phase, 0, BEGAN + DAY)
        orders.transition(
            tx, histories.row_of(tx, rollout), after, kind="x", who="ann", why="y", machine_now=1.0, evidence={}
        )

    one.run(run)
    (told,) = made(one).rollouts
    assert "v2" in told.says
    assert told.says == told.says.strip()


def test_it_stays_small_however_long_a_project_lives(one: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "MOST_BLOCKS", 10)
    monkeypatch.setattr(gathered, "MOST_WINDOWS", 2)
    monkeypatch.setattr(gathered, "MOST_ENTRIES", 5)
    histories.history(one, PROJECT)
    found = made(one)
    assert len(found.traffic.blocks) == 10
    assert len(found.drift.windows) == 2
    assert len(found.ledger.entries) == 5
    assert found.ledger.n > 5


def test_the_page_of_a_hostile_project_holds_no_markup_of_its(tmp_path: Path) -> None:
    from mlops_ray.dashboard import page

    evil = b'{"why": "</script><script>alert(1)</script><!--"}'
    text = page.snapshot("small", evil, taken=1.0)
    assert "alert(1)</script>" not in text
    assert text.count("</script>") == 2  # the data and the page's own
    assert page.live("small").count("</script>") == 1
    assert "unsafe" not in page.policy()


def test_versions_side_by_side_are_all_named_and_a_dropped_one_was_never_stable(one: Store) -> None:
    histories.serve(one, PROJECT)
    for number in (2, 3, 4):
        histories.register(one, PROJECT, number, BEGAN)
    at = BEGAN + DAY
    rollout = histories.side_by_side(one, (2, 3, 4), at)
    now = made(one)
    assert now.rollouts[0].versions == (2, 3, 4)
    assert now.loop.says.startswith("Versions side by side, at 20 % of the keys each")
    assert {o.version: o.became for o in now.lineage} == {4: "was dropped", 3: "on trial", 2: "on trial", 1: "stable"}
    histories.won(one, rollout, 3, at + DAY)
    after = made(one)
    assert after.rollouts[0].says.startswith("v3 was promoted on the evidence")
    became = {o.version: o.became for o in after.lineage}
    assert became == {4: "was dropped", 3: "stable", 2: "lost to another", 1: "was stable"}
