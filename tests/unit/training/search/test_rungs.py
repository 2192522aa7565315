from __future__ import annotations

from mlops_ray.config import SearchMetric
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.rungs import Climb
from mlops_ray.training.search.trials import Order

CHOICE = Choice(0, "xgboost:XGBClassifier", {"max_depth": 3})


def climb(*cutoffs: tuple[float, float | None], metric: SearchMetric = "log_loss", early: bool = True) -> Climb:
    return Climb(Order(4, CHOICE, cutoffs, 60.0), metric, total=100, early=early)


def test_a_trial_that_is_behind_at_a_rung_is_stopped_there() -> None:
    one = climb((0.1, None), (0.3, 0.5))
    assert [one.round(done, 0.9 - done / 100) for done in range(1, 31)] == [False] * 29 + [True]
    ended = one.ended(2.0)
    assert (ended.number, ended.status, ended.rounds, ended.refit) == (4, "stopped", 30, {"n_estimators": 30})
    assert [(share, round(at, 6)) for share, at in ended.rungs] == [(0.1, 0.8), (0.3, 0.6)]
    assert ended.fitting.params == {"max_depth": 3, "n_estimators": 30}


def test_a_trial_that_is_ahead_runs_to_its_end_and_counts_where_it_was_best() -> None:
    one = climb((0.1, 0.9), (0.3, 0.7), metric="roc_auc")
    stops = [one.round(done, 0.5 + min(done, 80) / 200 - max(done - 80, 0) / 200) for done in range(1, 101)]
    assert not any(stops)
    ended = one.ended(2.0)
    assert (ended.status, ended.score, ended.rounds) == ("done", 0.9, 80)
    assert [share for share, _ in ended.rungs] == [0.1, 0.3, 1.0]
    assert len(ended.steps) <= 52


def test_a_curve_that_turned_in_its_first_half_has_ended() -> None:
    one = climb((0.1, None), (0.3, None))
    told = [(done, 0.5 + abs(done - 4) / 10) for done in range(1, 101)]
    stopped = next(done for done, at in told if one.round(done, at))
    assert stopped == 10
    ended = one.ended(1.0)
    assert (ended.status, ended.score, ended.rounds, ended.rungs) == (
        "done",
        0.5,
        4,
        ((0.1, 0.5), (0.3, 0.5), (1.0, 0.5)),
    )


def test_rounds_told_again_after_a_checkpoint_change_nothing() -> None:
    one = climb((0.5, 0.1))
    for done in (1, 2, 3, 2, 3, 4):
        assert not one.round(done, 1.0 / done)
    assert one.steps == [(2, 0.5), (4, 0.25)]


def test_without_early_stopping_the_last_round_counts() -> None:
    one = climb((0.1, 0.0), early=False)
    assert not any(one.round(done, 0.2 if done == 50 else 0.3) for done in range(1, 101))
    assert (one.ended(1.0).score, one.ended(1.0).rounds, one.ended(1.0).refit) == (0.3, None, {})


def test_a_metric_that_is_no_number_fails_the_trial() -> None:
    one = climb(metric="roc_auc")
    for done in range(1, 101):
        one.round(done, float("nan"))
    ended = one.ended(1.0)
    assert (ended.status, ended.score) == ("failed", None)
    assert "two classes" in (ended.error or "")
