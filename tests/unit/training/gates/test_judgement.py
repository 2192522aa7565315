from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlops_ray.config import Gates, Limit
from mlops_ray.errors import DataError
from mlops_ray.training.gates import judgement
from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict

DAY_S = 86_400.0
GATES = Gates(min_rows=200, margin=0.01, resamples=1000)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def world(n: int = 4000, days: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a signal: matrix, label, time."""
    random = rng(seed)
    x = random.normal(size=(n, 3))
    y = (random.random(n) < 1 / (1 + np.exp(-1.5 * x[:, 0] - x[:, 1]))).astype(int)
    return x, y, np.sort(random.uniform(0, days * DAY_S, n))


def fitted(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    return LogisticRegression().fit(x, y)


def check(result: GateResult, name: str) -> CheckResult:
    return next(c for c in result.checks if c.name == name)


def test_a_model_of_shuffled_labels_is_refused_and_a_good_one_accepted() -> None:
    x, y, times = world()
    good = fitted(x[:2000], y[:2000]).predict_proba(x[2000:])[:, 1]
    bad = fitted(x[:2000], rng().permutation(y[:2000])).predict_proba(x[2000:])[:, 1]
    for champion in (None, good):
        accepted = judgement.judge(GATES, y[2000:], good, champion, times[2000:], rng=rng())
        refused = judgement.judge(GATES, y[2000:], bad, champion, times[2000:], rng=rng())
        assert accepted.verdict is Verdict.PASS
        assert accepted.reasons == ()
        assert refused.verdict is not Verdict.PASS
        assert refused.reasons
    against_good = check(judgement.judge(GATES, y[2000:], bad, good, times[2000:], rng=rng()), "no_worse_than_champion")
    assert against_good.verdict is Verdict.FAIL
    assert "above margin" in against_good.detail


def test_a_model_that_is_sure_and_wrong_fails_against_the_base_rate() -> None:
    x, y, times = world()
    upside_down = 1 - fitted(x, y).predict_proba(x)[:, 1]
    result = judgement.judge(GATES, y, upside_down, None, times, rng=rng())
    assert check(result, "better_than_base_rate").verdict is Verdict.FAIL


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, Verdict.PASS), (0.1, Verdict.FAIL), (0.02, Verdict.INCONCLUSIVE)])
def test_the_comparison_knows_three_answers(shift: float, verdict: Verdict) -> None:
    """Loss differences are noise around `shift`; the margin is 0.02."""
    random = rng()
    n = 600
    y, times = random.integers(0, 2, n), np.linspace(0, 20 * DAY_S, n)
    champion_loss = random.uniform(0.3, 0.6, n)
    candidate_loss = champion_loss + shift + random.normal(0, 0.01, n)

    def scores(losses: np.ndarray) -> np.ndarray:
        return np.where(y == 1, np.exp(-losses), 1 - np.exp(-losses))

    result = judgement.judge(
        Gates(min_rows=100, margin=0.02), y, scores(candidate_loss), scores(champion_loss), times, rng=rng()
    )
    found = check(result, "no_worse_than_champion")
    assert found.verdict is verdict
    assert found.evidence["difference"] == pytest.approx(shift, abs=0.002)
    assert found.evidence["lower"] <= found.evidence["difference"] <= found.evidence["upper"]
    assert result.verdict is verdict


def test_few_rows_or_few_days_never_pass() -> None:
    x, y, times = world(n=400)
    p = fitted(x, y).predict_proba(x)[:, 1]
    few_rows = judgement.judge(Gates(min_rows=500), y, p, None, times, rng=rng())
    assert few_rows.verdict is Verdict.INCONCLUSIVE
    assert few_rows.reasons == ("rows: 400 holdout rows, 500 are needed",)
    few_days = judgement.judge(GATES, y, p, None, times / 10, rng=rng())
    assert check(few_days, "better_than_base_rate").verdict is Verdict.INCONCLUSIVE
    assert few_days.verdict is Verdict.INCONCLUSIVE


def test_one_label_only_never_passes() -> None:
    times = np.linspace(0, 20 * DAY_S, 600)
    demanded = Gates(min_rows=100, limits=(Limit(metric="roc_auc", min=0.5),))
    result = judgement.judge(demanded, np.ones(600), np.full(600, 0.99), None, times, rng=rng())
    assert result.verdict is not Verdict.PASS
    assert check(result, "limit.roc_auc").verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        (Limit(metric="roc_auc", min=0.7), Verdict.PASS),
        (Limit(metric="roc_auc", min=0.99), Verdict.FAIL),
        (Limit(metric="log_loss", max=0.1), Verdict.FAIL),
        (Limit(metric="brier", min=0.0, max=0.25), Verdict.PASS),
    ],
)
def test_limits(limit: Limit, verdict: Verdict) -> None:
    x, y, times = world()
    p = fitted(x, y).predict_proba(x)[:, 1]
    result = judgement.judge(Gates(min_rows=100, limits=(limit,)), y, p, None, times, rng=rng())
    assert check(result, f"limit.{limit.metric}").verdict is verdict
    assert result.verdict is verdict


def test_checks_handed_in_count() -> None:
    x, y, times = world()
    p = fitted(x, y).predict_proba(x)[:, 1]

    def slow() -> CheckResult:
        return CheckResult("latency", Verdict.FAIL, "12 ms, 5 ms are allowed", {"p99_ms": 12.0})

    result = judgement.judge(GATES, y, p, None, times, extra_checks=[slow], rng=rng())
    assert result.verdict is Verdict.FAIL
    assert result.reasons == ("latency: 12 ms, 5 ms are allowed",)


def test_the_same_seed_gives_the_same_evidence() -> None:
    x, y, times = world()
    p = fitted(x, y).predict_proba(x)[:, 1]
    first, second = (judgement.judge(GATES, y, p, p * 0.9, times, rng=rng(3)) for _ in range(2))
    assert first == second


def test_equal_models_are_rarely_refused_and_worse_ones_rarely_accepted() -> None:
    """Day effects in the difference, 12 days: the promised 5 % must hold though the days are few."""
    accepted, runs = 0, 300
    random = rng(11)
    for _ in range(runs):
        days = np.repeat(np.arange(12), 40)
        y = random.integers(0, 2, len(days))
        champion = random.uniform(0.3, 0.6, len(days))
        candidate = champion + 0.01 + random.normal(0, 0.01, 12)[days]  # exactly the margin: passing is an error
        both = [np.where(y == 1, np.exp(-v), 1 - np.exp(-v)) for v in (candidate, champion)]
        result = judgement.judge(Gates(min_rows=100, resamples=500), y, both[0], both[1], days * DAY_S, rng=random)
        accepted += result.verdict is Verdict.PASS
    assert accepted / runs <= 0.085  # 5 % nominal, two standard errors of 300 runs above


def test_shapes_must_agree() -> None:
    with pytest.raises(DataError):
        judgement.judge(GATES, [0, 1], [0.1, 0.2], [0.1], [0.0, 1.0], rng=rng())
