from __future__ import annotations

from typing import Any

import pytest

from mlops_ray.config import Retraining
from mlops_ray.retraining.policy import Decision, History, Judged, decide

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
        ({"last_decided": NOW - 13 * DAY}, "cooldown for 1.0 more days"),
        ({"last_decided": NOW - 14 * DAY}, None),
        ({"last_decided": NOW - 14 * DAY, "endings": ("failed", "rejected")}, None),
        ({"last_decided": NOW - 14 * DAY, "endings": ("failed", "rejected", "failed")}, "circuit open after 3"),
        ({"last_decided": NOW - 27 * DAY, "endings": ("failed",) * 5}, "circuit open after 5"),
        ({"last_decided": NOW - 28 * DAY, "endings": ("failed",) * 5}, None),  # one more try
        ({"last_decided": NOW - 14 * DAY, "endings": ("failed", "failed", "succeeded", "failed")}, None),
        ({"last_decided": NOW - 14 * DAY, "endings": ("succeeded", "failed", "failed", "failed")}, None),
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


@pytest.mark.parametrize("history", [{"open_retrain": True}, {"last_decided": NOW}])
def test_without_an_alarm_there_is_nothing_to_hold_back(history: dict[str, Any]) -> None:
    assert decision(*judged("drift", 0, 0), **history) == Decision(False)
