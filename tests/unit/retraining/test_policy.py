from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config import Retraining
from mlops_ray.retraining.policy import Decision, Due, History, Judged, decide, decide_due, new_labels, scheduled

DAY = 86_400.0
PLAN = Retraining(debounce_windows=2, cooldown_s=14 * DAY, max_failures=3, backoff_s=28 * DAY)
NOW = 100 * DAY


def judged(trigger: str, *alarms: int) -> list[Judged]:
    """Windows of a week each, the last one ending now; `alarms` are 0 or 1, oldest first."""
    n = len(alarms)
    return [Judged(trigger, NOW - (n - 1 - i) * 7 * DAY, bool(a), f"{trigger} {i}") for i, a in enumerate(alarms)]


def decision(*windows: Judged, plan: Retraining = PLAN, **history: Any) -> Decision:
    return decide(plan, windows, History(**history), now=NOW)


FIRING = judged("drift", 1, 1)


@pytest.mark.parametrize(
    ("alarms", "fires"),
    [
        ([], False),
        ([0], False),
        ([1], False),
        ([1, 1], True),
        ([1, 1, 1], True),
        ([1, 1, 0], False),
        ([1, 0, 1], False),
        ([0, 1, 1], True),
    ],
)
def test_debounce(alarms: list[int], fires: bool) -> None:
    found = decision(*judged("drift", *alarms))
    assert found.retrain is fires
    assert (found.trigger, found.reason) == (("drift", f"drift {len(alarms) - 1}") if fires else ("", ""))


def test_one_window_is_enough_where_the_plan_says_so() -> None:
    assert decision(*judged("drift", 1), plan=PLAN.model_copy(update={"debounce_windows": 1})).retrain


def test_alarms_of_two_triggers_do_not_make_one_run() -> None:
    assert decision(*judged("drift", 0, 1), *judged("performance", 1, 0)) == Decision(False)


def test_all_that_fires_is_in_the_reason() -> None:
    found = decision(*judged("performance", 1, 1), *judged("drift", 1, 1))
    assert found == Decision(True, "drift", "drift 1; performance 1")


def test_only_listed_triggers_fire() -> None:
    plan = PLAN.model_copy(update={"triggers": ("performance",)})
    assert decision(*FIRING, plan=plan) == Decision(False)
    assert decision(*FIRING, *judged("performance", 1, 1), plan=plan) == Decision(True, "performance", "performance 1")
    assert decision(*FIRING, plan=PLAN.model_copy(update={"triggers": ()})) == Decision(False)


@pytest.mark.parametrize(
    ("history", "held_back"),
    [
        ({}, None),
        ({"open_retrain": True}, "a retrain is under way"),
        ({"open_rollout": True}, "a rollout is under way"),
        ({"decided": (NOW - 13 * DAY,)}, "cooldown for 1.0 more days"),
        ({"decided": (NOW - 14 * DAY,)}, None),
        ({"decided": (NOW - 14 * DAY,), "endings": ("failed", "rejected")}, None),
        ({"decided": (NOW - 14 * DAY,), "endings": ("failed", "rejected", "failed")}, "circuit open after 3"),
        ({"decided": (NOW - 27 * DAY,), "endings": ("failed",) * 5}, "circuit open after 5"),
        ({"decided": (NOW - 28 * DAY,), "endings": ("failed",) * 3}, None),  # one more try
        ({"decided": (NOW - 55 * DAY,), "endings": ("failed",) * 4}, "circuit open after 4"),  # twice as long
        ({"decided": (NOW - 56 * DAY,), "endings": ("failed",) * 4}, None),
        ({"decided": (NOW - 111 * DAY,), "endings": ("failed",) * 9}, "circuit open after 9"),  # four times, at most
        ({"decided": (NOW - 112 * DAY,), "endings": ("failed",) * 9}, None),
        ({"decided": (NOW - 14 * DAY,), "endings": ("failed", "failed", "succeeded", "failed")}, None),
        ({"decided": (NOW - 14 * DAY,), "endings": ("succeeded", "failed", "failed", "failed")}, None),
    ],
)
def test_what_holds_a_firing_trigger_back(history: dict[str, Any], held_back: str | None) -> None:
    found = decision(*FIRING, **history)
    assert found.retrain is (held_back is None)
    assert found.trigger == "drift"
    assert "drift 1" in found.reason
    if held_back:
        assert found.reason.startswith("held back: ")
        assert held_back in found.reason


@pytest.mark.parametrize(
    ("new_rows", "held_back"),
    [(0, "0 new rows of 9,000"), (8_999, "8,999 new rows of 9,000"), (9_000, None), (None, None)],
)
def test_drift_waits_for_something_new_to_learn(new_rows: int | None, held_back: str | None) -> None:
    plan = PLAN.model_copy(update={"least_new_rows": 9_000})
    found = decision(*FIRING, plan=plan, new_rows=new_rows)
    assert found.retrain is (held_back is None)
    assert (held_back or "drift 1") in found.reason


def test_a_loss_that_has_risen_does_not_wait_for_new_rows_but_for_the_cooldown() -> None:
    plan = PLAN.model_copy(update={"least_new_rows": 9_000})
    both = (*FIRING, *judged("performance", 1, 1))
    found = decision(*both, plan=plan, new_rows=10)
    assert found == Decision(True, "performance", "drift 1; performance 1")
    held = decision(*both, plan=plan, new_rows=10, decided=(NOW - DAY,))
    assert not held.retrain
    assert held.trigger == "drift"


@pytest.mark.parametrize("history", [{"open_retrain": True}, {"decided": (NOW,)}])
def test_without_an_alarm_there_is_nothing_to_hold_back(history: dict[str, Any]) -> None:
    assert decision(*judged("drift", 0, 0), **history) == Decision(False)


MONDAYS = Retraining(triggers=("schedule",), schedule="0 3 * * mon", timezone="Europe/Berlin", cooldown_s=14 * DAY)
MONDAY = 1_364_864_400.0 - DAY  # Monday 2013-04-01 03:00 in Berlin, the day after the clocks changed


@pytest.mark.parametrize(
    ("after", "now", "due"),
    [
        (MONDAY - DAY, MONDAY - 1, False),
        (MONDAY - DAY, MONDAY, True),
        (MONDAY, MONDAY + 6 * DAY, False),
        (MONDAY - 1, MONDAY + 30, True),
        (MONDAY, MONDAY, False),
        (MONDAY + 1, MONDAY, False),
    ],
)
def test_a_schedule_is_due_from_its_instant_on(after: float, now: float, due: bool) -> None:
    found = scheduled(MONDAYS, after=after, now=now)
    assert found == (Due("schedule", 'schedule "0 3 * * mon": 2013-04-01 03:00 Europe/Berlin') if due else None)


def test_instants_that_were_missed_are_due_once_and_as_the_newest() -> None:
    found = scheduled(MONDAYS, after=MONDAY - 100 * DAY, now=MONDAY + 15 * DAY)
    assert found is not None
    assert "2013-04-15" in found.why


@given(start=st.integers(0, 2**31), span=st.integers(1, 40 * 86_400), cut=st.integers(0, 40 * 86_400))
def test_however_often_one_looks_each_instant_is_seen_once(start: int, span: int, cut: int) -> None:
    plan = Retraining(triggers=("schedule",), schedule="30 2 * * *", timezone="America/New_York")
    middle = min(start + cut, start + span)
    seen = [scheduled(plan, after=start, now=middle), scheduled(plan, after=middle, now=start + span)]
    whole = scheduled(plan, after=start, now=start + span)
    assert whole == (seen[1] or seen[0])


def test_a_schedule_that_no_plan_has_is_never_due() -> None:
    assert scheduled(PLAN, after=0.0, now=NOW) is None


def test_new_labels_are_due_in_number() -> None:
    plan = Retraining(triggers=("new_rows",), new_rows=1000)
    assert new_labels(plan, n=999) is None
    assert new_labels(plan, n=1000) == Due("new_rows", "1,000 new labels of 1,000")
    assert new_labels(PLAN, n=10**6) is None


def test_what_is_due_is_decided_with_all_reasons() -> None:
    due = [Due("schedule", "monday"), Due("new_rows", "many")]
    assert decide_due(PLAN, due, History(), now=NOW) == Decision(True, "schedule", "monday; many")
    assert decide_due(PLAN, [], History(), now=NOW) == Decision(False)


def test_a_schedule_knows_no_cooldown_but_the_days_budget_and_what_is_open() -> None:
    due, labels = [Due("schedule", "monday")], [Due("new_rows", "many")]
    lately = History(decided=(NOW - DAY,))
    assert decide_due(PLAN, due, lately, now=NOW).retrain
    assert "cooldown for 13.0 more days" in decide_due(PLAN, labels, lately, now=NOW).reason
    plan = PLAN.model_copy(update={"most_per_day": 2})
    often = History(decided=(NOW - 1, NOW - 2))
    assert decide_due(plan, due, often, now=NOW) == Decision(
        False, "schedule", "held back: 2 retrains in 24 hours are the most (monday)"
    )
    assert decide_due(plan, due, History(decided=(NOW - 1, NOW - DAY)), now=NOW).retrain
    assert "rollout" in decide_due(PLAN, due, History(open_rollout=True), now=NOW).reason


def test_a_decision_says_since_when_it_has_been_so() -> None:
    first, second = (Judged("drift", NOW - w * 7 * DAY, True, "x", began=NOW - (w + 1) * 7 * DAY) for w in (1, 0))
    calm = Judged("drift", NOW - 14 * DAY, False, "x", began=0.0)
    assert decision(calm, first, second).began == NOW - 14 * DAY
    assert decision(*FIRING).began is None
