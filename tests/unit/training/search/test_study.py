from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest

from mlops_ray.config import Search
from mlops_ray.training.search import candidates
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.study import LAG, Study
from mlops_ray.training.search.trials import TrialEnded

N = 24
TREE = {
    "estimator": "sklearn.tree:DecisionTreeClassifier",
    "space": {"max_depth": {"kind": "int", "low": 1, "high": 3}},
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def plan(*listed: Any, **more: Any) -> Search:
    named = listed or ("linear", "random_forest", "hist_gradient_boosting")
    return Search.model_validate({"trials": N, "candidates": named, **more})


def study(wanted: Search, seed: int = 1, metric: Any = "log_loss") -> Study:
    return Study(wanted, candidates.resolved(wanted.candidates, "binary"), metric, seed=seed)


def ended(number: int, choice: Choice) -> TrialEnded:
    """A result that follows from the point alone, as of estimators that are seeded; every fifth trial is stopped."""
    score = choice.candidate * 0.1 + sum(abs(v) for v in choice.params.values() if isinstance(v, float)) % 1
    if number % 7 == 6:
        return TrialEnded(number, choice, "failed", None, error="no")
    if number % 5 == 4:
        return TrialEnded(number, choice, "stopped", score + 0.1, rungs=((0.1, score + 0.1),))
    return TrialEnded(number, choice, "done", score, rungs=((0.1, score + 0.1), (1.0, score)))


def run(wanted: Study, *, shuffle: int = 0) -> list[TrialEnded]:
    """All trials, `LAG * concurrency` at a time, whose results come in some order."""
    order = random.Random(shuffle)
    found: dict[int, TrialEnded] = {}
    asked: dict[int, Choice] = {}
    while len(found) < N:
        while len(asked) < N and wanted.ready(len(asked)):
            choice = wanted.choice(len(asked))
            assert choice is not None
            asked[len(asked)] = choice
        number = order.choice([n for n in asked if n not in found])
        found[number] = ended(number, asked[number])
        wanted.result(found[number])
    return [found[n] for n in range(N)]


def test_points_do_not_depend_on_the_order_in_which_trials_end() -> None:
    first = run(study(plan()))
    assert run(study(plan()), shuffle=5) == first
    assert run(study(plan(), seed=2)) != first
    assert [t.choice.candidate for t in first[:3]] == [0, 1, 2]
    assert first[0].choice.params["C"] == 1.0  # a preset's own default comes first


def test_a_study_that_is_resumed_goes_on_as_it_would_have() -> None:
    whole = run(study(plan()))
    resumed = study(plan())
    for trial in whole[:12]:
        if trial.number not in (3, 9):  # were running when the driver died
            resumed.result(trial)
    found = []
    for number in range(N):
        assert resumed.ready(number)
        choice = resumed.choice(number)
        assert choice is not None
        found.append(ended(number, choice))
        resumed.result(found[-1])
    assert found == whole


def test_a_point_waits_for_the_results_that_it_depends_on() -> None:
    wanted = study(plan(concurrency=2))
    lag = 2 * LAG
    points = [wanted.choice(n) for n in range(lag)]
    assert wanted.ready(lag - 1)
    assert not wanted.ready(lag)
    for number in range(1, lag):
        wanted.result(ended(number, points[number]))  # type: ignore[arg-type]
    assert not wanted.ready(lag)
    wanted.result(ended(0, points[0]))  # type: ignore[arg-type]
    assert wanted.ready(lag)


def test_the_sampler_learns() -> None:
    """Of a function of one parameter later trials are better than the first ones by far."""
    wanted = study(plan("linear", trials=40))
    scores = []
    for number in range(40):
        choice = wanted.choice(number)
        assert choice is not None
        scores.append(abs(math.log(choice.params["C"] / 0.02)))
        wanted.result(TrialEnded(number, choice, "done", scores[-1]))
    assert sorted(scores[20:])[10] < 0.5 * sorted(scores[1:13])[6]


def test_no_point_is_tried_twice_and_a_space_that_is_used_up_ends_the_search() -> None:
    wanted = study(plan(TREE))
    points = []
    while (choice := wanted.choice(len(points))) is not None:
        points.append(choice.params["max_depth"])
        wanted.result(TrialEnded(len(points) - 1, choice, "done", 0.5))
    assert sorted(points) == [1, 2, 3]
    assert wanted.planned == 3


def test_cutoffs_are_the_best_third_of_the_same_candidates_rungs() -> None:
    wanted = study(plan("linear", "random_forest", concurrency=1), metric="roc_auc")
    for number in range(12):
        choice = wanted.choice(number)
        assert choice is not None
        mine = Choice(number % 2, choice.estimator, choice.params)
        wanted.result(TrialEnded(number, mine, "done", 0.9, rungs=((0.1, number / 100), (1.0, 0.9))))
    last = wanted.choice(11)
    assert last is not None
    known = [n for n in range(11 - LAG + 1) if n % 2 == last.candidate]
    kept = (len(known) + 1) // 3
    (share, cutoff), (_, second) = wanted.cutoffs(11)
    assert share == 0.1
    assert cutoff == -sorted(n / 100 for n in known)[-kept]
    assert second is None  # nobody reached it


def test_a_candidate_that_always_fails_is_left() -> None:
    wanted = study(plan("linear", "random_forest", trials=40))
    for number in range(40):
        choice = wanted.choice(number)
        assert choice is not None
        bad = choice.candidate == 1
        wanted.result(TrialEnded(number, choice, "failed" if bad else "done", None if bad else 0.5))
    late = [wanted._asked[n].choice.candidate for n in range(20, 40)]
    assert late.count(1) < 8


def test_a_warm_search_takes_the_points_it_is_given_first_and_its_own_afterwards() -> None:
    wanted = plan()
    best = [t.choice for t in sorted(run(study(wanted)), key=lambda t: t.score or 9.0) if t.status == "done"][:3]
    listed = candidates.resolved(wanted.candidates, "binary")
    warm = run(Study(wanted, listed, "log_loss", seed=2, warm=best))
    assert [t.choice.params for t in warm[:3]] == [choice.params for choice in best]
    assert [t.choice.candidate for t in warm[3:6]] == [0, 1, 2]
    assert [t.choice for t in run(Study(wanted, listed, "log_loss", seed=2, warm=best), shuffle=5)] == [
        t.choice for t in warm
    ]
