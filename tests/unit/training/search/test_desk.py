from __future__ import annotations

from typing import Any

import optuna
import pytest

from mlops_ray.config import Search
from mlops_ray.training.search import candidates
from mlops_ray.training.search.desk import Desk
from mlops_ray.training.search.study import LAG, Study
from mlops_ray.training.search.trials import Order, TrialEnded


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def desk(*finished: TrialEnded, deadline: float = 100.0, **more: Any) -> Desk:
    plan = Search.model_validate({"trials": 6, "concurrency": 1, "candidates": ("linear",), **more})
    listed = candidates.resolved(plan.candidates, "binary")
    return Desk(plan, Study(plan, listed, "log_loss", seed=0), finished, deadline=deadline)


def take(found: Desk, lane: str, now: float = 0.0) -> Order:
    order = found.take(lane, now)
    assert isinstance(order, Order)
    return order


def done(order: Order) -> TrialEnded:
    return TrialEnded(order.number, order.choice, "done", 0.5)


def test_lanes_get_points_in_order_until_the_budget_of_trials_is_used_up() -> None:
    found = desk()
    for number in range(6):
        order = take(found, "a")
        assert order.number == number
        found.prepare()
        found.end("a", done(order))
    assert found.take("a", 0.0) is None


def test_a_lane_waits_for_another_that_is_far_behind() -> None:
    found = desk()
    slow = take(found, "slow")
    for _ in range(LAG - 1):
        found.end("quick", done(take(found, "quick")))
    assert found.take("quick", 0.0) is False
    found.end("slow", done(slow))
    assert take(found, "quick").number == LAG


def test_the_budget_of_seconds_ends_the_search_and_bounds_each_trial() -> None:
    found = desk(trial_max_s=30)
    assert take(found, "a", 10.0).limit_s == 30
    assert take(found, "b", 90.0).limit_s == 10
    assert found.take("c", 100.0) is None


def test_what_a_dead_lane_ran_counts_as_failed_with_the_reason() -> None:
    found = desk(trial_max_s=30)
    order = take(found, "a", 0.0)
    lost = found.lost("a", "its process died", 5.0)
    assert lost is not None
    assert (lost.number, lost.status, lost.error, lost.seconds) == (order.number, "failed", "its process died", 5.0)
    assert found.lost("a", "again", 6.0) is None
    take(found, "a", 10.0)
    late = found.lost("a", "its process died", 40.5)
    assert late is not None
    assert late.error == "took longer than search.trial_max_s = 30 s"


def test_a_trial_that_had_ended_before_its_lane_died_is_not_lost() -> None:
    found = desk()
    order = take(found, "a")
    assert found.lost("a", "its process died", 1.0, done(order)) is None
    assert take(found, "a").number == 1


def test_what_still_runs_at_the_end_is_cut_short_where_it_stood() -> None:
    found = desk()
    take(found, "a", 90.0)
    found.step("a", [(3, 0.7), (9, 0.6), (12, 0.65)])
    (cut,) = found.rest(100.0)
    assert (cut.status, cut.score, cut.cut_short) == ("stopped", 0.6, True)
    assert "search.max_s" in (cut.error or "")
    assert found.rest(100.0) == []


def test_a_resumed_search_runs_what_is_missing_only() -> None:
    first = desk()
    kept = []
    for _ in range(4):
        order = take(first, "a")
        first.end("a", done(order))
        kept.append(done(order))
    resumed = desk(kept[0], kept[3])
    numbers = []
    while isinstance(order := resumed.take("a", 0.0), Order):  # type: ignore[assignment]
        numbers.append(order.number)
        assert order.number > 3 or order.choice == kept[order.number].choice
        resumed.end("a", done(order))
    assert numbers == [1, 2, 4, 5]
