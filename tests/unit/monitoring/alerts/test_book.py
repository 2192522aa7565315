"""Alerts, silences and messages in either kind of database."""

from __future__ import annotations

import secrets
from functools import partial

import pytest
from sqlalchemy.exc import IntegrityError

from mlops_ray.errors import DataError
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert, Condition, Kind, Message, Phase, Silence
from mlops_ray.monitoring.alerts.observed import Conditions
from mlops_ray.monitoring.alerts.watching import Watcher
from mlops_ray.state import Store, Tx
from tests.fakes import project

SMALL = project(
    alerts={
        "channels": {"team": {"kind": "command", "argv": ["true"]}},
        "rules": [{"name": "broken", "when": "retrain_failed"}],
    }
)


def alert(
    identity: str = "abc1", subject: str = "v3", phase: Phase = Phase.FIRING, ended: float | None = None
) -> Alert:
    return Alert(identity, "drift", subject, "warning", phase, 1.0, "why", 1.0, ended)


def message(identity: str, *alerts: Alert) -> Message:
    return Message(identity, "team", tuple((Kind.FIRING, each) for each in alerts))


def watcher(store: Store, conditions: Conditions) -> Watcher:
    return Watcher(store, SMALL, conditions, new_id=partial(secrets.token_hex, 6))


def test_alerts_come_back_as_they_were_saved(store: Store) -> None:
    with store.begin() as tx:
        book.save(tx, "small", alert())
        book.save(tx, "other", alert())
        book.save(tx, "small", alert("abd2", phase=Phase.RESOLVED, ended=2.0))
    with store.read() as tx:
        assert book.opened(tx, "small") == [alert()]
        assert book.resolved(tx, "small") == [alert("abd2", phase=Phase.RESOLVED, ended=2.0)]
        assert book.alert(tx, "small", "abc").id == "abc1"
        for which in ("ab", "", "zz", "%"):
            with pytest.raises(DataError, match="alerts list"):
                book.alert(tx, "small", which)


def test_the_database_allows_one_open_alert_of_a_rule_and_subject(store: Store) -> None:
    with store.begin() as tx:
        book.save(tx, "small", alert("a1"))
    with store.begin() as tx, pytest.raises(IntegrityError):
        book.save(tx, "small", alert("a2"))


def test_messages_keep_their_order(store: Store) -> None:
    with store.begin() as tx:
        book.post(tx, "small", [message("m1", alert("a1"))], 1.0)
        book.post(tx, "small", [message("m2", alert("a2"))], 1.0)
        book.post(tx, "small", [], 1.0)
    with store.read() as tx:
        found = book.waiting(tx, "small", "team")
        assert [(one.message, one.number, one.due) for one in found] == [
            (message("m1", alert("a1")), 1, 1.0),
            (message("m2", alert("a2")), 2, 1.0),
        ]
        assert [one.message.id for one in book.posted(tx, "small", "a2")] == ["m2"]
        assert book.counts(tx, "small") == {("team", "waiting"): 2}
        assert book.waiting(tx, "other", "team") == []


def test_silences_end(store: Store) -> None:
    made = Silence("s1", "drift", "", "ann", "why", 1.0, 50.0)
    with store.begin() as tx:
        book.save_silence(tx, "small", made)
        assert book.silences(tx, "small", 49.0) == [made]
        assert book.silences(tx, "small", 50.0) == []
        assert book.end_silence(tx, "small", "s1", 20.0).ends == 20.0
        with pytest.raises(DataError, match="none that lasts"):
            book.end_silence(tx, "small", "s1", 21.0)


def test_what_is_long_over_is_forgotten_and_nothing_else(store: Store) -> None:
    late = book.KEEP_S + 10
    with store.begin() as tx:
        book.save(tx, "small", alert("a1"))
        book.save(tx, "small", alert("a2", phase=Phase.RESOLVED, ended=5.0))
        book.save(tx, "small", alert("a3", phase=Phase.RESOLVED, ended=15.0))
        book.save_silence(tx, "small", Silence("s1", "", "", "ann", "", 1.0, 5.0))
        book.post(tx, "small", [message("m1", alert("a2"))], 1.0)
        book.forget_old(tx, "small", late)
        assert [a.id for a in book.opened(tx, "small")] == ["a1"]
        assert [a.id for a in book.resolved(tx, "small")] == ["a3"]
        assert book.silences(tx, "small", 2.0) == []
        assert len(book.waiting(tx, "small", "team")) == 1


def test_a_look_saves_alert_and_message_together_and_writes_nothing_when_nothing_is_new(store: Store) -> None:
    holding = [Condition("retrain_failed", "retraining", "it broke")]
    assert watcher(store, lambda *_: holding).look(10.0)

    class ReadOnly(Store):
        def begin(self) -> object:  # type: ignore[override]
            raise AssertionError("nothing is new")

    reader = ReadOnly(store._engine, store.name)
    assert not watcher(reader, lambda *_: holding).look(11.0)
    with store.read() as tx:
        (one,), (told,) = book.opened(tx, "small"), book.waiting(tx, "small", "team")
    assert told.message.notices == ((Kind.FIRING, one),)


def test_a_look_that_cannot_be_saved_whole_is_not_saved_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> None:
        raise OSError("killed")

    holding = [Condition("retrain_failed", "retraining", "it broke")]
    with monkeypatch.context() as patched:
        patched.setattr(book, "post", torn)
        with pytest.raises(OSError, match="killed"):
            watcher(store, lambda *_: holding).look(10.0)
    with store.read() as tx:
        assert book.opened(tx, "small") == []
    assert watcher(store, lambda *_: holding).look(11.0)


def test_an_acknowledgement_between_look_and_save_is_kept(store: Store) -> None:
    from dataclasses import replace

    from mlops_ray.monitoring.alerts.alerting import Ack

    said = "it broke"

    def conditions(tx: Tx, *_: object) -> list[Condition]:
        return [Condition("retrain_failed", "retraining", said)]

    watcher(store, conditions).look(10.0)
    calls = []

    def acknowledged_meanwhile(tx: Tx, *_: object) -> list[Condition]:
        if not calls:  # between the look that reads and the one that saves
            with store.begin() as other:
                (one,) = book.opened(other, "small")
                book.save(other, "small", replace(one, ack=Ack("ann", "on it", 11.0)))
        calls.append(1)
        return conditions(tx)

    said = "worse"
    watcher(store, acknowledged_meanwhile).look(12.0)
    with store.read() as tx:
        (one,) = book.opened(tx, "small")
    assert one.ack is not None
    assert one.why == "worse"
