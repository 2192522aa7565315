"""Estimates of quality without labels: by hand, against NannyML's definition, and by simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from mlops_ray.data import profile
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.estimation import estimate, realised, thinned, trust
from mlops_ray.training import calibration
from mlops_ray.training.calibration import Calibration, Cells, Sample
from mlops_ray.training.evaluation.intervals import Estimate, blocks

NOTHING = Bins({}, {})
NO_CODES = np.empty((0, 0), dtype=np.uint16)


def by_hand(hits: list[list[float]], edges: tuple[float, ...] = (0.5,)) -> Calibration:
    """Ten rows per block and cell, of which so many were positive."""
    yes = np.array(hits, dtype=np.float64)
    cells = Cells(np.full(yes.shape, 10.0), np.full(yes.shape, 10.0), yes[None], yes.sum(axis=0)[None])
    none = np.empty(0, dtype=np.int64)
    return Calibration("binary", (np.array(edges),), None, cells, Sample(none, none, none, NO_CODES))


def estimated(known: Calibration, scores: Any, threshold: float = 0.5, codes: Any = NO_CODES) -> dict[str, Estimate]:
    return estimate(known, np.asarray(scores), codes, threshold=threshold)


# --- by hand ---

FOUR = [0.1, 0.1, 0.9, 0.9]


def test_a_window_of_four_rows() -> None:
    """Scores of 0.1 were right for 2 of 10, scores of 0.9 for 7 of 10."""
    found = estimated(by_hand([[1, 8], [3, 6]]), FOUR)
    low, high = -0.2 * math.log(0.1) - 0.8 * math.log(0.9), -0.7 * math.log(0.9) - 0.3 * math.log(0.1)
    # Pairs that the scores order rightly, half of those that tie, over all pairs of a positive and a negative.
    area = (2 * 0.2 * 0.8 + 2 * 0.7 * 1.9) / (1.8 * 2.2)
    wanted = {
        "log_loss": (low + high) / 2,
        "brier": (0.2 * 0.81 + 0.8 * 0.01 + 0.7 * 0.01 + 0.3 * 0.81) / 2,
        "accuracy": 0.75,
        "roc_auc": area,
        "tn": 1.6,
        "fn": 0.4,
        "fp": 0.6,
        "tp": 1.4,
    }
    assert {name: each.value for name, each in found.items()} == pytest.approx(wanted)
    assert estimated(by_hand([[1, 8], [3, 6]]), FOUR, threshold=0.95)["accuracy"].value == pytest.approx(0.55)


def test_where_blocks_agree_only_the_labels_are_uncertain() -> None:
    """The variance of a mean of independent draws: (2 x 0.2 x 0.8 + 2 x 0.7 x 0.3) / 16."""
    found = estimated(by_hand([[2, 7]] * 12), FOUR)
    half = stats.t.ppf(0.975, 11) * math.sqrt(0.74 / 16)
    assert found["accuracy"].value - found["accuracy"].low == pytest.approx(half)
    assert found["accuracy"].high == 1.0  # what a share cannot exceed its interval does not either
    tp = found["tp"]
    assert tp.low == 0.0
    assert tp.high - tp.value == pytest.approx(stats.t.ppf(0.975, 11) * math.sqrt(2 * 0.7 * 0.3))


def test_blocks_that_stray_further_than_chance_widen_the_interval() -> None:
    """Ten rows of rate 0.5 stray by 1.6 hits; these blocks stray by 5."""
    calm, wild = (
        estimated(by_hand(hits), [0.1] * 50 + [0.9] * 50)["accuracy"]
        for hits in ([[2, 5], [2, 5]] * 6, [[2, 0], [2, 10]] * 6)
    )
    assert calm.value == pytest.approx(wild.value) == 0.65
    assert wild.high - wild.low > 2.5 * (calm.high - calm.low)


def test_one_block_has_no_interval() -> None:
    found = estimated(by_hand([[2, 7]]), FOUR)["log_loss"]
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.to_dict()["low"] is None


def test_what_is_not_defined_is_left_out() -> None:
    certain = estimated(by_hand([[10, 10]] * 3), FOUR)
    assert "roc_auc" not in certain
    assert certain["accuracy"].value == 0.5


def test_realised_is_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(500), 2).clip(0.01, 0.99)
    y = (rng.random(500) < scores).astype(np.int64)
    found = realised("binary", y, scores, threshold=0.5)
    assert found["log_loss"] == pytest.approx(log_loss(y, scores))
    assert found["roc_auc"] == pytest.approx(roc_auc_score(y, scores))
    assert found["tp"] == ((scores >= 0.5) & (y == 1)).sum()
    many = rng.dirichlet([1, 1, 1], 500)
    labels = np.array([rng.choice(3, p=row) for row in many])
    found = realised("multiclass", labels, many, threshold=0.5)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, many, multi_class="ovr"))
    assert found["log_loss"] == pytest.approx(log_loss(labels, many))
    assert "tp" not in found
    assert realised("regression", np.array([1.0, 4.0]), np.array([2.0, 2.0]), threshold=0.5) == {"mae": 1.5, "mse": 2.5}


def test_the_influence_of_each_label_on_the_auc_gives_its_variance() -> None:
    """Against 4,000 draws of the labels; their standard deviation is known to 1.1 %, the first order to a few."""
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    hits = np.round(10 * np.linspace(0.1, 0.9, 9))
    found = estimated(by_hand([hits.tolist()] * 64, tuple(np.linspace(0.1, 0.9, 8))), scores)["roc_auc"]
    p = (hits / 10)[np.searchsorted(np.linspace(0.1, 0.9, 8), scores, "right")]
    labels = rng.random((4000, 400)) < p
    n = labels.sum(axis=1)
    drawn = (labels @ stats.rankdata(scores) - n * (n + 1) / 2) / (n * (400 - n))  # Mann-Whitney
    assert found.value == pytest.approx(np.mean(drawn), abs=0.002)
    assert (found.high - found.low) / 2 / stats.t.ppf(0.975, 63) == pytest.approx(np.std(drawn), rel=0.06)


# --- simulations ---


def binary(rng: np.random.Generator, days: int, rows: int, shock: float, turn: float = 0.0) -> tuple[Any, Any, Any]:
    """Scores that say too much, and days on which all outcomes lean to one side (`shock`). `turn`: concept drift."""
    day = np.repeat(np.arange(days), rows)
    x = rng.normal(0, 1, len(day))
    logit = 0.8 * x - 0.5 + rng.normal(0, shock, days)[day] + turn
    return (rng.random(len(day)) < 1 / (1 + np.exp(-logit))).astype(np.int64), 1 / (1 + np.exp(-1.5 * x)), day


@pytest.mark.parametrize("shock", [0.0, 0.4], ids=["independent rows", "days alike"])
def test_intervals_hold_the_realised_value_about_as_often_as_they_say(shock: float) -> None:
    """95 % of weeks, over 120 holdouts of 40 days and 3 weeks each. Tolerance: 90 to 99.5 %, three standard errors of
    360 weeks that share holdouts, and what the first order leaves out."""
    inside: dict[str, list[bool]] = {}
    for seed in range(120):
        rng = np.random.default_rng(seed)
        y, scores, day = binary(rng, 40, 100, shock)
        known = calibration.fit("binary", y, scores, blocks(day, 1.0), NOTHING, {})
        for _ in range(3):
            later, said, _ = binary(rng, 7, 100, shock)
            for name, found in estimated(known, said).items():
                value = realised("binary", later, said, threshold=0.5)[name]
                inside.setdefault(name, []).append(found.low <= value <= found.high)
    shares = {name: np.mean(each) for name, each in inside.items()}
    assert all(0.90 <= share <= 0.995 for share in shares.values()), shares


def test_inputs_that_move_are_seen_and_a_meaning_that_moves_is_not() -> None:
    """Concept drift: the same inputs and scores, other outcomes. Nothing without labels can tell."""
    rng = np.random.default_rng(0)
    y, scores, day = binary(rng, 40, 250, 0.0)
    known = calibration.fit("binary", y, scores, blocks(day, 1.0), NOTHING, {})
    later, said, _ = binary(rng, 20, 250, 0.0, turn=3.0)
    found, truth = estimated(known, said)["log_loss"], realised("binary", later, said, threshold=0.5)["log_loss"]
    before = realised("binary", y, scores, threshold=0.5)["log_loss"]
    assert found.value == pytest.approx(before, abs=0.03)
    assert truth > found.high + 0.1
    sure = said[np.abs(said - 0.5) > 0.25]  # covariate shift: the rows that the model is surer of than it should be
    assert estimated(known, sure)["log_loss"].value != pytest.approx(before, abs=0.03)


def multiclass(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    truth = rng.dirichlet([2.0, 1.0, 0.5], n)
    y = (rng.random((n, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    said = truth**1.6 + 1e-4
    return y, said / said.sum(axis=1, keepdims=True)


def test_several_classes() -> None:
    """Coverage over 60 holdouts of 4,000 rows and a window each; tolerance: at least 85 % (three standard errors)."""
    inside: dict[str, list[bool]] = {}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, scores = multiclass(rng, 4000)
        known = calibration.fit("multiclass", y, scores, blocks(np.arange(4000), 100.0), NOTHING, {})
        later, said = multiclass(rng, 700)
        truth = realised("multiclass", later, said, threshold=0.5)
        found = estimated(known, said)
        assert set(found) == {"log_loss", "brier", "accuracy", "roc_auc"} == set(truth)
        for name, each in found.items():
            inside.setdefault(name, []).append(each.low <= truth[name] <= each.high)
    assert min(np.mean(each) for each in inside.values()) >= 0.85


BINS = Bins({"x": tuple(np.linspace(-2, 2, 19))}, {"c": ("a", "b")})


def numbers(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[Any, Any, dict[str, Any]]:
    """A regression whose errors grow with x."""
    x = rng.normal(shift, 1, n)
    columns = {"x": x.astype(np.float32), "c": rng.choice(["a", "b"], n).astype(object)}
    return 2 * x + rng.normal(0, 1, n) * np.exp(0.5 * x), 2 * x, columns


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_loss_of_a_regression(shift: float) -> None:
    """Coverage of the mean absolute error over 60 holdouts; tolerance as above. What the shift makes of the error
    (a third more) the tree knows from the inputs."""
    inside, ratio = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, scores, columns = numbers(rng, 4000)
        known = calibration.fit("regression", y, scores, blocks(np.arange(4000), 100.0), BINS, columns)
        later, said, moved = numbers(rng, 700, shift)
        found = estimated(known, said, codes=profile.codes(BINS, moved))
        truth = realised("regression", later, said, threshold=0.5)
        assert found["mse"].low >= 0
        inside.append(found["mae"].low <= truth["mae"] <= found["mae"].high)
        ratio.append(found["mae"].value / truth["mae"])
    assert np.mean(inside) >= 0.85
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.05)


# --- the rest ---


def test_more_numbers_than_are_looked_at_are_thinned_evenly() -> None:
    assert thinned(5, 5).tolist() == [0, 1, 2, 3, 4]
    some = thinned(10_000, 10_000_000)
    assert len(some) == 4_000
    assert (some[0], some[-1]) == (0, 9_999)


def test_trust_is_earned() -> None:
    assert trust([]) == 0.0
    assert trust([True]) == pytest.approx(1 / 3)
    assert trust([True] * 100) == pytest.approx(20 / 22)
    assert trust([True] * 18 + [False] * 2) == pytest.approx(18 / 22)
    assert trust([False] * 30) == 0.0
    assert trust([False] * 30 + [True] * 20) == pytest.approx(20 / 22)  # what is long ago is forgiven
