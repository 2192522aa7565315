"""The gates on whole cases: what passes, what is refused, and that too little never passes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlops_ray.config import Gates, Task
from mlops_ray.errors import DataError
from mlops_ray.training.gates.judgement import judge
from mlops_ray.training.gates.verdict import CheckResult, Verdict
from tests.unit.training.gates.worlds import DAY_S, check, judged, trained, world

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def model_for(task: Task) -> LogisticRegression | LinearRegression:
    return LinearRegression() if task == "regression" else LogisticRegression()


@pytest.mark.parametrize("task", TASKS)
def test_a_good_model_passes_and_one_of_shuffled_labels_is_refused(task: Task) -> None:
    rows = world(task)
    good = trained(rows, model_for(task))
    shuffled = np.random.default_rng(1).permutation(rows.y[rows.train])
    bad = trained(rows, model_for(task), y=shuffled)
    for rival, name in ((None, "better_than_constant"), (good, "no_worse_than_champion")):
        accepted = judged({}, rows.case(good, rival))
        assert accepted.verdict is Verdict.PASS, accepted.reasons
        assert accepted.reasons == ()
        refused = judged({}, rows.case(bad, rival))
        assert refused.verdict is not Verdict.PASS
        assert refused.reasons
        assert check(refused, name).verdict is (Verdict.FAIL if rival else refused.verdict)


def test_a_model_that_is_sure_and_wrong_fails_against_the_constant() -> None:
    rows = world()
    upside_down = trained(rows, y=1 - rows.y[rows.train])
    found = check(judged({}, rows.case(upside_down)), "better_than_constant")
    assert found.verdict is Verdict.FAIL
    assert found.evidence["lower"] > -0.03


@pytest.mark.parametrize(
    ("shift", "margin", "verdict"),
    [
        (0.0, 0.02, Verdict.PASS),
        (0.1, 0.02, Verdict.FAIL),
        (0.02, 0.02, Verdict.INCONCLUSIVE),
        (-0.1, 0.02, Verdict.PASS),
    ],
)
def test_the_comparison_knows_three_answers(shift: float, margin: float, verdict: Verdict) -> None:
    """Loss differences are noise around `shift`."""
    rows = world(days=60)
    rng, n = np.random.default_rng(2), len(rows.y[rows.held])
    y = rows.y[rows.held]
    rival = rng.uniform(0.3, 0.6, n)
    noise = rng.normal(0, 0.01, n)
    own = rival + shift + noise - noise.mean()

    def scores(losses: np.ndarray) -> np.ndarray:
        return np.where(y == 1, np.exp(-losses), 1 - np.exp(-losses))

    case = rows.case(trained(rows), scores=scores(own), rival=scores(rival))
    found = check(judged({"margin": margin}, case), "no_worse_than_champion")
    assert found.verdict is verdict
    assert found.evidence["value"] == pytest.approx(shift, abs=1e-6)
    assert found.evidence["lower"] <= found.evidence["value"] <= found.evidence["upper"]
    assert found.evidence["power"] > 0.99


def test_without_planned_power_a_lucky_candidate_does_not_pass_and_a_bad_one_still_fails() -> None:
    """Day effects of 0.3 against a margin of 0.03: an equal candidate would hardly ever pass."""
    rows = world(days=40)
    y, days = rows.y[rows.held], np.floor(rows.times[rows.held] / DAY_S).astype(int) - 20
    rival = np.full(len(y), 1.5)

    def scores(losses: np.ndarray) -> np.ndarray:
        return np.where(y == 1, np.exp(-losses), 1 - np.exp(-losses))

    effect = np.random.default_rng(3).normal(0, 0.3, 20)
    effect -= np.average(effect, weights=np.bincount(days, minlength=20))

    def compared(shift: float, **changes: float) -> CheckResult:
        case = rows.case(trained(rows), scores=scores(rival + shift + effect[days]), rival=scores(rival))
        return check(judged(changes, case), "no_worse_than_champion")

    lucky = 0.015 - compared(0.0).evidence["upper"]  # its bound alone would let it pass
    found = compared(lucky)
    assert found.verdict is Verdict.INCONCLUSIVE, found.detail
    assert 0 < found.evidence["upper"] < 0.03
    assert found.evidence["power"] < 0.8
    assert found.evidence["blocks_needed"] > 20
    assert f"about {found.evidence['blocks_needed']} blocks" in found.detail
    assert compared(lucky, power=0.001).verdict is Verdict.PASS
    assert compared(0.6).verdict is Verdict.FAIL
    # Surely better is more than was asked.
    assert compared(-0.6).verdict is Verdict.PASS


def test_few_rows_or_few_days_never_pass() -> None:
    rows = world(n=600)
    few_rows = judged({"min_rows": 500}, rows.case(trained(rows)))
    assert check(few_rows, "rows").verdict is Verdict.INCONCLUSIVE
    assert "500 are needed" in check(few_rows, "rows").detail
    rows = world(days=8)
    for rival, name in ((None, "better_than_constant"), (trained(rows), "no_worse_than_champion")):
        found = check(judged({}, rows.case(trained(rows), rival)), name)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "5 or more are needed" in found.detail


@pytest.mark.parametrize("task", TASKS)
def test_one_label_only_never_passes(task: Task) -> None:
    rows = world(task)
    model = trained(rows, model_for(task))
    metric = {"binary": "roc_auc", "multiclass": "roc_auc", "regression": "r2"}[task]
    case = rows.case(model, y=np.full_like(rows.y[rows.held], 1))
    result = judged({"limits": [{"metric": metric, "min": 0.5}]}, case)
    assert result.verdict is not Verdict.PASS
    assert check(result, "rows").verdict is Verdict.INCONCLUSIVE
    assert check(result, f"limit.{metric}").verdict is Verdict.INCONCLUSIVE


def test_a_class_without_rows_is_named() -> None:
    rows = world("multiclass")
    y = np.where(rows.y[rows.held] == 2, 0, rows.y[rows.held])
    found = check(judged({}, rows.case(trained(rows), y=y)), "rows")
    assert "class r" in found.detail
    assert found.evidence["rows_of_class"]["r"] == 0


@pytest.mark.parametrize(
    ("task", "limit", "verdict"),
    [
        ("binary", {"metric": "roc_auc", "min": 0.7}, Verdict.PASS),
        ("binary", {"metric": "roc_auc", "min": 0.99}, Verdict.FAIL),
        ("binary", {"metric": "log_loss", "max": 0.1}, Verdict.FAIL),
        ("multiclass", {"metric": "balanced_accuracy", "min": 0.4, "max": 0.9}, Verdict.PASS),
        ("regression", {"metric": "r2", "min": 0.5}, Verdict.PASS),
        ("regression", {"metric": "mae", "max": 0.01}, Verdict.FAIL),
    ],
)
def test_limits(task: Task, limit: dict[str, float], verdict: Verdict) -> None:
    rows = world(task)
    result = judged({"limits": [limit]}, rows.case(trained(rows, model_for(task))))
    found = check(result, f"limit.{limit['metric']}")
    assert found.verdict is verdict
    assert found.evidence["low"] < found.evidence["value"] < found.evidence["high"]
    assert result.verdict is verdict


def test_blocks_of_a_group_replace_blocks_of_time() -> None:
    """A patient's rows share an effect that days do not see: by days it is hidden."""
    rows = world()
    n = len(rows.y[rows.held])
    patient = np.random.default_rng(5).integers(0, 12, n)
    rival = np.full(n, 0.5)
    own = 0.5 + np.random.default_rng(6).normal(0.0, 0.08, 12)[patient]
    y = rows.y[rows.held]
    case = rows.case(
        trained(rows),
        scores=np.where(y == 1, np.exp(-own), 1 - np.exp(-own)),
        rival=np.where(y == 1, np.exp(-rival), 1 - np.exp(-rival)),
        groups={"patient": patient},
    )
    by_day = check(judged({"margin": 0.05}, case), "no_worse_than_champion")
    by_patient = check(judged({"margin": 0.05, "block_group": "patient"}, case), "no_worse_than_champion")
    assert by_patient.evidence["n_blocks"] == 12
    assert by_patient.evidence["se"] > 4 * by_day.evidence["se"]
    unknown = judged({"margin": 0.05, "block_group": "nurse"}, case)
    assert check(unknown, "blocks").verdict is Verdict.INCONCLUSIVE
    assert "nurse" in unknown.reasons[0]


def test_checks_handed_in_count() -> None:
    rows = world()

    def slow() -> CheckResult:
        return CheckResult("latency", Verdict.FAIL, "12 ms, 5 ms are allowed", {"p99_ms": 12.0})

    result = judged({}, rows.case(trained(rows)), extra_checks=[slow])
    assert result.verdict is Verdict.FAIL
    assert result.reasons == ("latency: 12 ms, 5 ms are allowed",)


def test_the_same_seed_gives_the_same_evidence_and_a_further_gate_changes_no_other() -> None:
    rows = world()
    case = rows.case(trained(rows), trained(rows, LogisticRegression(C=0.01)))
    first, second = (judged({"slices": {"columns": ["colour"]}}, case, seed=3) for _ in range(2))
    assert first == second
    without = judged({}, case, seed=3)
    assert check(without, "no_worse_than_champion") == check(first, "no_worse_than_champion")
    assert without.metrics == first.metrics


@pytest.mark.parametrize("task", TASKS)
def test_a_result_of_all_gates_is_json(task: Task) -> None:
    rows = world(task)
    model = trained(rows, model_for(task))
    plan: dict[str, object] = {
        "limits": [{"metric": "r2" if task == "regression" else "log_loss", "min": -5}],
        "slices": {"columns": ["colour", "a", "absent"]},
        "robustness": {"monotonic": [{"column": "a", "direction": "rising"}]},
        "overfit": {},
        "leakage": {},
    }
    if task != "regression":
        plan |= {"fairness": {"columns": ["group", "absent"]}, "calibration": {}}
    result = judged(plan, rows.case(model, model))
    body = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(body) == {"verdict", "checks", "metrics", "information"}
    assert [c["name"] for c in body["checks"]] == [c.name for c in result.checks]
    assert len({c.name for c in result.checks}) == len(result.checks)
    assert check(result, "slices.absent").verdict is Verdict.INCONCLUSIVE
    assert all(c.detail for c in result.checks)


def test_weak_slices_are_information_and_no_verdict() -> None:
    rows = world()
    good = trained(rows)

    def broken(columns: dict[str, np.ndarray]) -> np.ndarray:
        return np.where(columns["colour"] == "red", 0.5, good(columns))

    result = judged({"margin": 0.3}, rows.case(broken, good))
    assert result.verdict is Verdict.PASS
    found = result.information["weak_slices"]
    assert found[0]["name"] == "colour = red"
    assert judged({}, rows.case(good, good)).information["weak_slices"] == []


def test_what_does_not_fit_is_refused() -> None:
    rows = world()
    case = rows.case(trained(rows), trained(rows))
    for wrong in (
        replace(case, scores=case.scores[:-1]),
        replace(case, rival=case.scores[:-1]),
        replace(case, times=case.times[:-1]),
        replace(case, scores=case.scores + 2),
    ):
        with pytest.raises(DataError):
            judge(Gates(), wrong, rng=np.random.default_rng(0))
