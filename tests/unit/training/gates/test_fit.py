"""Overfitting, leakage and calibration: each with a model that is really so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlops_ray.config import Task
from mlops_ray.training.gates.case import Fitted
from mlops_ray.training.gates.verdict import Verdict
from tests.unit.training.gates.worlds import World, check, judged, matrix, trained, world


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_tree_that_knows_every_row_overfits_and_a_line_does_not(task: Task) -> None:
    rows = world(task)
    line = LinearRegression() if task == "regression" else None
    tree = DecisionTreeRegressor(random_state=0) if task == "regression" else DecisionTreeClassifier(random_state=0)
    accepted = check(judged({"overfit": {}}, rows.case(trained(rows, line))), "overfit")
    assert accepted.verdict is Verdict.PASS, accepted.detail
    refused = check(judged({"overfit": {}}, rows.case(trained(rows, tree))), "overfit")
    assert refused.verdict is Verdict.FAIL
    assert refused.evidence["fitted"]["value"] < 0.01


def test_a_gap_around_its_limit_and_unknown_rows_are_inconclusive() -> None:
    rows = world()
    case = rows.case(trained(rows))
    gap = check(judged({"overfit": {"max_gap": 0.1}}, case), "overfit").evidence["difference"]
    limit = max(gap["value"], 0.5 * gap["high"])
    assert check(judged({"overfit": {"max_gap": limit}}, case), "overfit").verdict is Verdict.INCONCLUSIVE
    unknown = judged({"overfit": {}, "leakage": {}}, replace(case, fitted=None))
    assert check(unknown, "overfit").verdict is Verdict.INCONCLUSIVE
    leaks = [c for c in unknown.checks if c.name.startswith("leakage.")]
    assert len(leaks) == 3
    assert {c.verdict for c in leaks} == {Verdict.INCONCLUSIVE}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_feature_that_is_the_answer_is_refused(task: Task) -> None:
    """`b` becomes the label itself, and noise: the model trained on it looks perfect."""
    rows = world(task)
    honest = judged({"leakage": {}}, rows.case(trained(rows, LinearRegression() if task == "regression" else None)))
    for name in ("feature", "duplicates", "time_order"):
        assert check(honest, f"leakage.{name}").verdict is Verdict.PASS
    told = (rows.y == 2 if task == "multiclass" else rows.y) + np.random.default_rng(0).normal(0, 0.01, len(rows.y))
    leaky = World(
        task, {**rows.columns, "b": told.astype(np.float32)}, rows.y, rows.times, rows.group, rows.train, rows.held
    )
    model = trained(leaky, LinearRegression() if task == "regression" else None)
    found = check(judged({"leakage": {}}, leaky.case(model)), "leakage.feature")
    assert found.verdict is Verdict.FAIL
    assert "b (" in found.detail
    assert found.evidence["probes"][0]["column"] == "b"


def test_missing_values_that_tell_the_answer_are_refused() -> None:
    """`b` is filled in only once the outcome is known."""
    rows = world()
    b = np.where(rows.y == 1, rows.columns["b"], np.nan).astype(np.float32)
    leaky = World("binary", {**rows.columns, "b": b}, rows.y, rows.times, rows.group, rows.train, rows.held)
    found = check(judged({"leakage": {}}, leaky.case(trained(leaky))), "leakage.feature")
    assert found.verdict is Verdict.FAIL
    assert "b being missing" in found.detail


def test_a_model_that_has_seen_the_holdout_is_refused() -> None:
    rows = world()
    seen = World("binary", rows.columns, rows.y, rows.times, rows.group, slice(2000, 8000), rows.held)
    result = judged({"leakage": {}}, seen.case(trained(seen)))
    copies = check(result, "leakage.duplicates")
    assert copies.verdict is Verdict.FAIL
    assert copies.evidence["share"] == 1.0
    order = check(result, "leakage.time_order")
    assert order.verdict is Verdict.FAIL
    assert order.evidence["share"] == pytest.approx(1.0, abs=0.01)
    by_group = judged({"leakage": {}}, replace(seen.case(trained(seen)), newest=False))
    assert "leakage.time_order" not in {c.name for c in by_group.checks}


def test_coarse_inputs_are_told_from_copies_in_words() -> None:
    rows = world()
    coarse = {**rows.columns, "a": np.sign(rows.columns["a"]), "b": np.sign(rows.columns["b"])}
    few = World("binary", coarse, rows.y, rows.times, rows.group, rows.train, rows.held)
    refused = check(judged({"leakage": {}}, few.case(trained(few))), "leakage.duplicates")
    assert refused.verdict is Verdict.FAIL
    assert "raise max_duplicates" in refused.detail
    assert check(
        judged({"leakage": {"max_duplicates": 1.0}}, few.case(trained(few))), "leakage.duplicates"
    ).verdict is (Verdict.PASS)


def test_a_model_that_counts_one_witness_eight_times_is_badly_calibrated() -> None:
    """Naive Bayes takes copies of a feature for independent evidence, and is far too sure."""
    rows = world()

    def copied(columns: Any) -> np.ndarray:
        return np.hstack([matrix(columns)] * 8)

    plan = {"calibration": {"max_error": 0.05}}
    assert check(judged(plan, rows.case(trained(rows))), "calibration").verdict is Verdict.PASS
    sure = trained(rows, GaussianNB(), encode=copied)
    refused = check(judged(plan, rows.case(sure)), "calibration")
    assert refused.verdict is Verdict.FAIL
    assert refused.evidence["low"] > 0.05
    barely = check(
        judged({"calibration": {"max_error": refused.evidence["value"] - 1e-4}}, rows.case(sure)), "calibration"
    )
    assert barely.verdict is Verdict.INCONCLUSIVE


def test_constant_features_and_tiny_samples_prove_no_absence_of_leaks() -> None:
    rows = world()
    case = rows.case(trained(rows))
    assert case.fitted is not None
    few = Fitted(
        {name: values[:20] for name, values in case.fitted.columns.items()},
        case.fitted.y[:20],
        case.fitted.scores[:20],
        case.fitted.times[:20],
    )
    found = check(judged({"leakage": {}}, replace(case, fitted=few)), "leakage.feature")
    assert found.verdict is Verdict.INCONCLUSIVE
