"""Robustness: brittle models are trained here, each in its own way, and each is refused for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlops_ray.config import RobustnessGate
from mlops_ray.training.gates.robustness import DISTURBANCES
from mlops_ray.training.gates.verdict import CheckResult, Verdict
from tests.unit.training.gates.worlds import World, check, judged, matrix, trained, world


def only(name: str, most: float = 0.1, **options: Any) -> dict[str, Any]:
    return {"robustness": {**dict.fromkeys(DISTURBANCES), name: most, **options}}


def found(rows: World, model: Any, name: str, most: float = 0.1, **changes: Any) -> CheckResult:
    return check(judged(only(name, most), rows.case(model, **changes)), f"robustness.{name}")


def test_a_smooth_model_passes_them_all() -> None:
    rows = world()
    result = judged({"robustness": {}}, rows.case(trained(rows)))
    checks = [c for c in result.checks if c.name.startswith("robustness.")]
    assert len(checks) == 5
    assert {c.verdict for c in checks} == {Verdict.PASS}
    assert all(c.evidence["lower"] < c.evidence["value"] < c.evidence["upper"] for c in checks)


def test_a_model_of_fine_ripples_fails_by_noise() -> None:
    """The label follows the sign of sin(20 a), which a tree can learn and a tenth of a standard deviation destroys."""

    def ripples(columns: Any, rng: np.random.Generator) -> np.ndarray:
        return (np.sin(20 * columns["a"]) > 0).astype(np.int64)

    rows = world(truth=ripples, n=12_000)
    brittle = trained(rows, RandomForestClassifier(30, min_samples_leaf=10, random_state=0))
    assert np.mean((brittle(rows.part(rows.held)) > 0.5) == rows.y[rows.held]) > 0.9
    refused = found(rows, brittle, "noise")
    assert refused.verdict is Verdict.FAIL
    assert "surely above 0.1" in refused.detail


def test_a_model_that_takes_no_missing_value_fails_unless_none_may_come() -> None:
    rows = world()

    def strict(columns: Any) -> np.ndarray:
        return np.stack([columns["a"], columns["b"]], axis=1).astype(float)

    brittle = trained(rows, encode=strict)
    refused = found(rows, brittle, "missing")
    assert refused.verdict is Verdict.FAIL
    assert "gives no answer" in refused.detail
    assert "NaN" in refused.evidence["error"]
    assert found(rows, brittle, "missing", nullable=frozenset({"colour"})).verdict is Verdict.PASS
    nothing = found(rows, brittle, "missing", nullable=frozenset())
    assert nothing.verdict is Verdict.PASS
    assert "no input can be disturbed" in nothing.detail


@pytest.mark.parametrize("name", ["unseen_category", "category_swap"])
def test_a_model_that_hangs_on_one_category_fails_when_it_changes(name: str) -> None:
    def by_colour(columns: Any, rng: np.random.Generator) -> np.ndarray:
        return ((columns["colour"] == "red") ^ (rng.random(len(columns["a"])) < 0.01)).astype(np.int64)

    rows = world(truth=by_colour)
    refused = judged(only(name, swap_share=0.3), rows.case(trained(rows)))
    assert check(refused, f"robustness.{name}").verdict is Verdict.FAIL
    steady = world()
    assert found(steady, trained(steady), name).verdict is Verdict.PASS


def test_a_polynomial_fails_out_of_range() -> None:
    """Degree nine fits well and explodes a tenth of the range beyond it; a straight line does not."""
    rows = world("regression")

    def wild_in_a(columns: Any) -> np.ndarray:
        return np.hstack([np.vander(np.nan_to_num(columns["a"].astype(float)), 10), matrix(columns)])

    wild = trained(rows, LinearRegression(), encode=wild_in_a)
    assert found(rows, wild, "out_of_range").verdict is Verdict.FAIL
    assert found(rows, trained(rows, LinearRegression()), "out_of_range", most=3.0).verdict is Verdict.PASS


def test_a_bound_on_either_side_is_inconclusive() -> None:
    rows = world()
    model = trained(rows)
    growth = found(rows, model, "noise").evidence["value"]
    assert found(rows, model, "noise", most=growth).verdict is Verdict.INCONCLUSIVE


def test_disturbances_touch_what_they_say_and_leave_the_rows_alone() -> None:
    rows = world()
    case = rows.case(trained(rows))
    before = {name: values.copy() for name, values in case.columns.items()}
    gate, n = RobustnessGate(swap_share=0.2, missing_share=0.3), len(case.y)
    made = {name: how(gate, case, np.random.default_rng(0)) for name, how in DISTURBANCES.items()}
    assert set(made["noise"]) == set(made["out_of_range"]) == {"a", "b"}
    assert set(made["missing"]) == {"a", "b", "colour"}
    assert set(made["unseen_category"]) == set(made["category_swap"]) == {"colour"}
    assert {values.dtype for values in made["noise"].values()} == {np.dtype(np.float32)}
    assert np.isnan(made["missing"]["a"]).mean() == pytest.approx(0.3, abs=0.03)
    assert (made["missing"]["colour"] == "").mean() == pytest.approx(0.3, abs=0.03)
    assert (made["unseen_category"]["colour"] == "never seen").mean() == pytest.approx(0.2, abs=0.03)
    assert set(made["category_swap"]["colour"]) == set(before["colour"])
    known = rows.columns["a"][rows.train]
    outside = (made["out_of_range"]["a"] < known.min()) | (made["out_of_range"]["a"] > known.max())
    assert outside.sum() == pytest.approx(0.2 * n, rel=0.2)
    assert all((case.columns[name] == values).all() for name, values in before.items())


def test_flags_are_not_given_noise() -> None:
    rows = world()
    flag = (rows.columns["a"] > 0).astype(np.float32)
    flagged = World(rows.task, {**rows.columns, "a": flag}, rows.y, rows.times, rows.group, rows.train, rows.held)
    checked = check(judged(only("noise"), flagged.case(trained(flagged))), "robustness.noise")
    assert checked.evidence["columns"] == ["b"]


def monotonic(rows: World, model: Any, column: str, direction: str, max_share: float = 0.0) -> CheckResult:
    rule = {"column": column, "direction": direction, "max_share": max_share}
    plan = {"robustness": {**dict.fromkeys(DISTURBANCES), "monotonic": [rule]}}
    return check(judged(plan, rows.case(model)), f"robustness.monotonic.{column}")


def test_a_model_that_bends_back_is_refused_where_it_must_rise() -> None:
    rows = world(n=2000)
    straight, bent = trained(rows), trained(rows, HistGradientBoostingClassifier(max_iter=60, random_state=0))
    assert monotonic(rows, straight, "a", "rising").verdict is Verdict.PASS
    assert monotonic(rows, straight, "a", "falling").verdict is Verdict.FAIL
    refused = monotonic(rows, bent, "a", "rising")
    assert refused.verdict is Verdict.FAIL
    assert refused.evidence["share"] > 0
    assert monotonic(rows, bent, "a", "rising", max_share=0.999).verdict is Verdict.PASS
    constrained = HistGradientBoostingClassifier(max_iter=60, random_state=0, monotonic_cst=[1, 0, 0, 0, 0])
    assert monotonic(rows, trained(rows, constrained), "a", "rising").verdict is Verdict.PASS


def test_what_has_no_direction_is_not_judged() -> None:
    rows = world(n=4000)
    assert monotonic(rows, trained(rows), "colour", "rising").verdict is Verdict.INCONCLUSIVE
    several = world("multiclass", n=4000)
    assert monotonic(several, trained(several, LogisticRegression()), "a", "rising").verdict is Verdict.INCONCLUSIVE


def test_the_matrix_of_these_tests_takes_missing_values() -> None:
    rows = world(n=400)
    columns = {**rows.columns, "a": np.full(400, np.nan, dtype=np.float32)}
    assert np.isfinite(matrix(columns)).all()
