"""Rules, conditions and time to alerts and notices: cases by hand, and laws under whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlops_ray.config.alerts import Alerts, Rule
from mlops_ray.monitoring.alerts.alerting import (
    Ack,
    Alert,
    Condition,
    Kind,
    Notice,
    Phase,
    Silence,
    grouped,
    step,
)

CHANNELS = ("team", "oncall", "boss")
DRIFT = Condition("drift", "v3", "dest: PSI 0.4 against a limit of 0.1")


def a_rule(**fields: Any) -> Rule:
    return Rule.model_validate({"name": "drift", "when": "drift", "notify": ["team"], "repeat_s": None} | fields)


class World:
    """Alerts as they would stand in the state database."""

    def __init__(self, *rules: Rule, channels: Sequence[str] = CHANNELS) -> None:
        self.rules, self.channels = rules, channels
        self.alerts: dict[str, Alert] = {}
        self.silences: list[Silence] = []
        self.ids = itertools.count()

    def new_id(self) -> str:
        return f"id{next(self.ids)}"

    @property
    def open(self) -> list[Alert]:
        return [a for a in self.alerts.values() if a.phase is not Phase.RESOLVED]

    def look(self, now: float, *conditions: Condition) -> list[Notice]:
        found = step(self.rules, self.channels, conditions, self.open, self.silences, new_id=self.new_id, now=now)
        for alert in found.changed:
            self.alerts[alert.id] = alert
        for identity in found.forgotten:
            del self.alerts[identity]
        return list(found.notices)

    def heard(self, now: float, *conditions: Condition) -> list[tuple[str, str]]:
        return [(n.channel, str(n.kind)) for n in self.look(now, *conditions)]

    def ack(self, now: float) -> None:
        (alert,) = self.open
        self.alerts[alert.id] = Alert(**{**vars(alert), "ack": Ack("ann", "on it", now)})


def test_it_fires_once_and_resolves_once() -> None:
    world = World(a_rule())
    assert world.heard(0.0, DRIFT) == [("team", "firing")]
    assert world.heard(1.0, DRIFT) == []
    assert world.heard(2.0) == [("team", "resolved")]
    assert world.heard(3.0) == []
    (alert,) = world.alerts.values()
    assert (alert.phase, alert.fired, alert.ended, alert.why) == (Phase.RESOLVED, 0.0, 2.0, DRIFT.why)
    assert world.heard(4.0, DRIFT) == [("team", "firing")]
    assert len(world.alerts) == 2


def test_its_words_follow_the_condition_without_another_notice() -> None:
    world = World(a_rule())
    world.look(0.0, DRIFT)
    assert world.heard(1.0, Condition("drift", "v3", "worse")) == []
    assert world.open[0].why == "worse"


def test_subjects_are_apart() -> None:
    world = World(a_rule())
    world.look(0.0, DRIFT)
    assert world.heard(1.0, Condition("drift", "v4", "x")) == [("team", "resolved"), ("team", "firing")]


@pytest.mark.parametrize(("n", "fires"), [(1, False), (2, True), (3, True)])
def test_so_many_windows_in_a_row(n: int, fires: bool) -> None:
    world = World(a_rule(for_windows=2))
    assert bool(world.look(0.0, Condition("drift", "v3", "x", n))) is fires


def test_a_condition_must_hold_for_a_while_and_leaves_no_trace_before() -> None:
    world = World(a_rule(for_s=60))
    assert world.heard(0.0, DRIFT) == []
    assert world.open[0].state == "pending"
    assert world.heard(59.0) == []
    assert world.alerts == {}
    world.look(100.0, DRIFT)
    assert world.heard(159.0, DRIFT) == []
    assert world.heard(160.0, DRIFT) == [("team", "firing")]
    assert (world.open[0].since, world.open[0].fired) == (100.0, 160.0)


def test_it_is_repeated_until_somebody_acknowledges() -> None:
    world = World(a_rule(repeat_s=100))
    world.look(0.0, DRIFT)
    assert world.heard(99.0, DRIFT) == []
    assert world.heard(100.0, DRIFT) == [("team", "repeated")]
    assert world.heard(199.0, DRIFT) == []
    world.ack(150.0)
    assert world.heard(1000.0, DRIFT) == []
    assert world.open[0].state == "acknowledged"
    assert world.heard(1001.0) == [("team", "resolved")]


def test_it_escalates_step_by_step_until_somebody_acknowledges() -> None:
    world = World(a_rule(escalate_to=["oncall", "boss"], escalate_after_s=10))
    world.look(0.0, DRIFT)
    assert world.heard(9.9, DRIFT) == []
    assert world.heard(10.0, DRIFT) == [("oncall", "escalated")]
    assert world.heard(11.0, DRIFT) == []
    world.ack(12.0)
    assert world.heard(30.0, DRIFT) == []
    assert world.heard(31.0) == [("team", "resolved"), ("oncall", "resolved")]


def test_all_steps_come_after_a_long_time_without_a_look() -> None:
    world = World(a_rule(notify=[], escalate_to=["oncall", "boss"], escalate_after_s=10))
    assert world.heard(0.0, DRIFT) == []
    assert world.heard(500.0, DRIFT) == [("oncall", "escalated"), ("boss", "escalated")]


def test_what_is_silenced_is_recorded_and_told_once_the_silence_is_over() -> None:
    world = World(a_rule(escalate_to=["oncall"], escalate_after_s=10))
    world.silences = [Silence("s", "drift", "", "ann", "known", 0.0, 50.0)]
    assert world.heard(0.0, DRIFT) == []
    assert (world.open[0].state, world.open[0].silence) == ("silenced", "s")
    assert world.heard(49.0, DRIFT) == []
    assert world.heard(50.0, DRIFT) == [("team", "firing")]
    assert world.heard(59.0, DRIFT) == []  # escalation counts from then
    assert world.heard(60.0, DRIFT) == [("oncall", "escalated")]


def test_what_resolves_under_a_silence_is_recorded_and_not_told() -> None:
    world = World(a_rule())
    world.look(0.0, DRIFT)
    world.silences = [Silence("s", "", "v3", "ann", "known", 1.0, 50.0)]
    assert world.heard(2.0) == []
    (alert,) = world.alerts.values()
    assert (alert.phase, alert.silence) == (Phase.RESOLVED, "s")


@pytest.mark.parametrize(
    ("rule", "subject", "now", "covered"),
    [
        ("drift", "v3", 5.0, True),
        ("", "", 5.0, True),
        ("", "v3", 5.0, True),
        ("drift", "v4", 5.0, False),
        ("quality", "", 5.0, False),
        ("", "", 10.0, False),
        ("", "", 0.9, False),
    ],
)
def test_what_a_silence_covers(rule: str, subject: str, now: float, covered: bool) -> None:
    assert Silence("s", rule, subject, "ann", "", 1.0, 10.0).covers("drift", "v3", now) is covered


def test_a_rule_that_is_taken_out_of_the_file_resolves_its_alerts() -> None:
    world = World(a_rule())
    world.look(0.0, DRIFT)
    world.rules = ()
    assert world.heard(1.0, DRIFT) == [("team", "resolved")]


def test_a_channel_that_is_taken_out_of_the_file_is_told_nothing() -> None:
    world = World(a_rule(notify=["team", "oncall"]))
    world.look(0.0, DRIFT)
    world.channels = ("team",)
    assert world.heard(1.0) == [("team", "resolved")]


def test_two_rules_of_one_condition() -> None:
    world = World(a_rule(), a_rule(name="again", severity="critical", notify=["boss"], for_windows=2))
    assert world.heard(0.0, DRIFT) == [("team", "firing")]
    assert world.heard(1.0, Condition("drift", "v3", "x", 2)) == [("boss", "firing")]


def test_the_default_rules_tell_everybody_of_every_condition() -> None:
    channels = {"team": {"kind": "command", "argv": ["true"]}, "oncall": {"kind": "command", "argv": ["true"]}}
    rules = Alerts.model_validate({"channels": channels}).in_force
    world = World(*rules, channels=("team", "oncall"))
    for one in rules:
        # Data quality in flight has no part of the budget of false alarms: it is recorded, and nobody is told.
        times = 0 if one.when == "data_quality" else 1
        assert world.heard(0.0, Condition(one.when, "s", "why")).count(("team", "firing")) == times


def test_a_hundred_at_once_are_one_message_for_each_channel() -> None:
    world = World(a_rule(notify=["team", "boss"]))
    notices = world.look(0.0, *(Condition("drift", f"v{i}", "x") for i in range(100)))
    messages = grouped(notices, new_id=world.new_id)
    assert [(m.channel, len(m.notices)) for m in messages] == [("team", 100), ("boss", 100)]
    assert messages[0].id != messages[1].id


@pytest.mark.parametrize("ack", [None, Ack("ann", "on it", 3.0)])
def test_alerts_survive_their_json(ack: Ack | None) -> None:
    alert = Alert("id", "drift", "v3", "warning", Phase.FIRING, 1.0, "why", 2.0, None, ack, {"team": 2.0}, 2.0, "s")
    assert Alert.from_dict(alert.to_dict()) == alert


SUBJECTS = ("a", "b")


class Whatever(RuleBasedStateMachine):
    """Conditions come and go, people acknowledge and silence, time goes on; then a look."""

    def __init__(self) -> None:
        super().__init__()
        rules = (
            a_rule(notify=["team"], escalate_to=["oncall", "boss"], escalate_after_s=50, repeat_s=70),
            a_rule(name="slow", for_s=30, notify=["team", "oncall"]),
        )
        self.world, self.now, self.holding = World(*rules), 0.0, set[str]()
        self.told: list[tuple[float, Notice]] = []

    @rule(subject=st.sampled_from(SUBJECTS))
    def flips(self, subject: str) -> None:
        self.holding ^= {subject}

    @rule(seconds=st.sampled_from([1.0, 20.0, 49.0, 100.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule(subject=st.sampled_from(("", *SUBJECTS)), seconds=st.sampled_from([10.0, 60.0]))
    def silenced(self, subject: str, seconds: float) -> None:
        self.world.silences.append(Silence("s", "", subject, "ann", "", self.now, self.now + seconds))

    @rule(subject=st.sampled_from(SUBJECTS))
    def acknowledged(self, subject: str) -> None:
        for alert in self.world.open:
            if alert.subject == subject and alert.phase is Phase.FIRING:
                self.world.alerts[alert.id] = Alert(**{**vars(alert), "ack": Ack("ann", "", self.now)})

    @rule()
    def looked_at(self) -> None:
        conditions = [Condition("drift", subject, "x") for subject in sorted(self.holding)]
        notices = self.world.look(self.now, *conditions)
        for notice in notices:
            alert = notice.alert
            assert not any(s.covers(alert.rule, alert.subject, self.now) for s in self.world.silences)
            before = [n.kind for _, n in self.told if (n.alert.id, n.channel) == (alert.id, notice.channel)]
            assert Kind.RESOLVED not in before  # nothing after that
            if notice.kind is Kind.RESOLVED:
                assert alert.subject not in self.holding
                assert before  # nobody hears of the end of what they have not heard of
            else:
                assert alert.subject in self.holding
                assert alert.ack is None
                assert bool(before) is (notice.kind is Kind.REPEATED)
            self.told.append((self.now, notice))
        # once saved, another look at the same time sees nothing new
        assert self.world.look(self.now, *conditions) == []
        # level-triggered: alerts that are open are those of what holds, whatever happened before
        assert {a.subject for a in self.world.open} == self.holding
        for alert in self.world.open:
            assert (alert.phase is Phase.FIRING) or alert.rule == "slow"

    @invariant()
    def one_alert_of_a_rule_and_subject_is_open(self) -> None:
        keys = [(a.rule, a.subject) for a in self.world.open]
        assert len(keys) == len(set(keys))


TestWhatever = Whatever.TestCase
TestWhatever.settings = settings(max_examples=60, stateful_step_count=30)
