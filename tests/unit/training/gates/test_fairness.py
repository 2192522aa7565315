"""Fairness: rates are fairlearn's, a model trained on prejudiced labels is refused, small groups prove nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from fairlearn import metrics as fairlearn

from mlops_ray.config import Gates
from mlops_ray.training.evaluation.intervals import blocks
from mlops_ray.training.gates.fairness import decided, fairness
from mlops_ray.training.gates.verdict import CheckResult, Verdict
from tests.unit.training.gates.worlds import World, check, judged, trained, world

PLAN: dict[str, Any] = {"fairness": {"columns": ["group"], "max_demographic_parity": 0.1, "max_equalized_odds": 0.12}}
PARITY, ODDS = "fairness.group.demographic_parity", "fairness.group.equalized_odds"


def knowing(rows: World) -> Any:
    """A model that is told the group (which rides in the colours here), trained on labels that wronged women."""
    group = np.concatenate([rows.group[rows.train], rows.group[rows.held]])
    columns = {**rows.columns, "colour": np.where(group == "f", "green", "red").astype(object)}
    wronged = (group[rows.train] == "f") & (np.random.default_rng(0).random(len(rows.y[rows.train])) < 0.6)
    told = World(rows.task, columns, rows.y, rows.times, rows.group, rows.train, rows.held)
    return told, trained(told, y=np.where(wronged, 0, rows.y[rows.train]))


@pytest.fixture(scope="module")
def rows() -> World:
    return world(n=12_000)


def test_a_fair_model_passes_and_one_of_prejudiced_labels_is_refused(rows: World) -> None:
    fair = judged(PLAN, rows.case(trained(rows)))
    assert check(fair, PARITY).verdict is Verdict.PASS
    assert check(fair, ODDS).verdict is Verdict.PASS
    told, unfair = knowing(rows)
    result = judged(PLAN, told.case(unfair))
    for name in (PARITY, ODDS):
        found = check(result, name)
        assert found.verdict is Verdict.FAIL, found.detail
        assert found.evidence["max"] < found.evidence["lower"] < found.evidence["value"] < found.evidence["upper"]
        assert found.evidence["lowest"] == "= f"
    assert check(result, ODDS).evidence["rate"] == "true_positive_rate"


def test_the_values_are_fairlearns(rows: World) -> None:
    told, unfair = knowing(rows)
    case = told.case(unfair, threshold=0.4)
    result = judged(PLAN, case)
    given = (case.y, decided(case))
    parity = fairlearn.demographic_parity_difference(*given, sensitive_features=case.groups["group"])
    odds = fairlearn.equalized_odds_difference(*given, sensitive_features=case.groups["group"])
    assert check(result, PARITY).evidence["value"] == pytest.approx(parity, abs=1e-12)
    assert check(result, ODDS).evidence["value"] == pytest.approx(odds, abs=1e-12)


def test_of_several_classes_the_worst_counts() -> None:
    """Group m is never told class r."""
    rows = world("multiclass", n=12_000)
    good = trained(rows)
    fair = judged(PLAN, rows.case(good))
    assert check(fair, PARITY).verdict is Verdict.PASS
    scores = good(rows.part(rows.held))
    hidden = np.where((rows.group[rows.held] == "m")[:, None], [1.0, 1.0, 0.0], 1.0) * scores
    case = rows.case(good, scores=hidden / hidden.sum(axis=1, keepdims=True))
    found = check(judged(PLAN, case), PARITY)
    assert found.verdict is Verdict.FAIL
    assert found.evidence["class"] == "r"
    worst = max(
        fairlearn.demographic_parity_difference(
            case.y == k, decided(case) == k, sensitive_features=case.groups["group"]
        )
        for k in range(3)
    )
    assert found.evidence["value"] == pytest.approx(worst)


def verdict_of(case: Any, least: int, name: str = PARITY) -> CheckResult:
    return check(judged({"fairness": {**PLAN["fairness"], "min_rows": least}}, case), name)


def test_groups_that_are_too_small_prove_nothing(rows: World) -> None:
    told, unfair = knowing(rows)
    found = verdict_of(told.case(unfair), 5_000)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "fewer than two groups" in found.detail
    assert all(not g["selection_rate"]["judged"] for g in found.evidence["groups"])
    one_day = rows.case(trained(rows), groups={"group": np.where(rows.times[rows.held] < 21 * 86_400, "f", "m")})
    assert verdict_of(one_day, 100).verdict is Verdict.INCONCLUSIVE  # a group of one day has one block


def test_a_third_small_group_is_named_and_not_judged(rows: World) -> None:
    group = rows.group[rows.held].copy()
    group[::500] = "x"
    found = verdict_of(rows.case(trained(rows), groups={"group": group}), 100)
    assert found.verdict is Verdict.PASS
    assert "too small to judge (100 rows in 5 blocks): = x: 12 rows" in found.detail


def test_too_few_positives_leave_equalised_odds_open(rows: World) -> None:
    """Of 4,000 rows 40 are positive: their rate is not measured, and half an answer is no pass."""
    y = rows.y[rows.held].copy()
    y[np.flatnonzero(y == 1)[40:]] = 0
    found = verdict_of(rows.case(trained(rows), y=y), 100, ODDS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert re.match(
        r"fewer than two groups of group have 100 rows in 5 blocks to measure true positive rate by "
        r"\(= f: \d\d positives in \d blocks, = m: \d\d positives in \d blocks\); "
        r"lower gates.fairness.min_rows or give more rows; ",
        found.detail,
    )


def test_equal_groups_are_rarely_refused_however_many_and_small() -> None:
    """Twelve groups of 170 rows and no difference at all: the largest of 66 differences is about 0.12, far above 0.03,
    and no pair is surely above."""
    rows, failed, above = world(n=4_000), 0, 0
    n, model = len(rows.y[rows.held]), trained(rows)
    gates = Gates.model_validate(
        {
            "resamples": 600,
            "fairness": {"columns": ["group"], "max_demographic_parity": 0.03, "max_equalized_odds": None},
        }
    )
    assert gates.fairness is not None
    for seed in range(30):
        rng = np.random.default_rng(seed)
        group = np.array([f"g{i}" for i in rng.integers(0, 12, n)], dtype=object)
        case = rows.case(model, scores=rng.uniform(0.01, 0.99, n), y=rng.integers(0, 2, n), groups={"group": group})
        (found,) = fairness(gates.fairness, gates, case, blocks(case.times, gates.block_s), rng)
        failed += found.verdict is Verdict.FAIL
        above += found.evidence["value"] > 0.03
    assert above == 30
    assert failed <= 4  # 5 % of 30, and three standard errors
