"""What a version keeps of its holdout to estimate quality from."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.isotonic import IsotonicRegression

from mlops_ray.config import Task
from mlops_ray.data import profile
from mlops_ray.data.profile import Bins
from mlops_ray.training import calibration
from mlops_ray.training.calibration import MAX_BLOCKS, Calibration
from mlops_ray.training.evaluation.intervals import blocks

BINS = Bins({"x": (-1.0, 0.0, 1.0)}, {"c": ("red", "blue")})
DAY_S = 86_400.0


def columns(rng: np.random.Generator, n: int) -> dict[str, Any]:
    return {
        "x": rng.normal(0, 1, n).astype(np.float32),
        "c": rng.choice(["red", "blue", "never seen", ""], n).astype(object),
    }


def fitted(task: Task, n: int = 3000, days: int = 30, seed: int = 0) -> tuple[Calibration, Any, Any, Any]:
    """The calibration of rows whose scores say too much (the truth lies nearer to the middle)."""
    rng = np.random.default_rng(seed)
    inputs = columns(rng, n)
    if task == "regression":
        scores = rng.normal(0, 3, n)
        y = scores + rng.normal(0, 1, n) * np.where(inputs["c"] == "red", 4.0, 1.0)
    elif task == "binary":
        scores = rng.random(n)
        y = (rng.random(n) < 0.25 + 0.5 * scores).astype(np.int64)
    else:
        scores = rng.dirichlet([1.0, 1.0, 1.0], n)
        y = np.array([rng.choice(3, p=row) for row in 0.5 * scores + 0.5 / 3])
    times = blocks(np.sort(rng.uniform(0, days * DAY_S, n)), DAY_S)
    return calibration.fit(task, y, scores, times, BINS, inputs), y, scores, inputs


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_it_comes_back_from_json_as_it_was(task: Task) -> None:
    found, _, scores, inputs = fitted(task)
    body = json.loads(json.dumps(found.to_dict()))
    back = Calibration.from_dict(body, BINS)
    assert back.to_dict() == found.to_dict()
    codes = profile.codes(BINS, inputs)
    assert (back.place(scores, codes) == found.place(scores, codes)).all()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_row_counts_once_in_each_map_and_block(task: Task) -> None:
    found, y, _, _ = fitted(task, days=30)
    assert found.n_blocks == 30
    maps = 3 if task == "multiclass" else 1
    assert found.cells.n.sum() == maps * len(y)
    if task == "binary":
        assert found.cells.sums.sum() == y.sum()
    if task == "multiclass":
        assert found.cells.sums.sum() == len(y)


def test_a_long_holdout_is_kept_in_spans_of_neighbouring_blocks() -> None:
    found, y, _, _ = fitted("binary", days=200)
    assert found.n_blocks == MAX_BLOCKS
    assert found.cells.n.sum() == len(y)


def test_the_map_is_scikit_learns_isotonic_regression_but_for_spans_of_few_rows() -> None:
    found, y, scores, _ = fitted("binary")
    rates = found.cells.rates[0]
    assert (np.diff(rates) > 0).all()
    assert found.cells.n.sum(axis=0).min() >= 25
    said = rates[found.place(scores, np.empty((len(scores), 2), dtype=np.uint16))[:, 0]]
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, y).predict(scores)
    assert np.mean(np.abs(said - theirs)) < 0.005


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=400))
def test_a_map_rises_whatever_the_rows(rows: list[tuple[int, bool]]) -> None:
    scores, y = np.array([s / 20 for s, _ in rows]), np.array([int(hit) for _, hit in rows])
    nothing = Bins({}, {})
    found = calibration.fit("binary", y, scores, blocks(np.arange(len(y)), 50.0), nothing, {})
    assert (np.diff(found.cells.rates[0]) >= 0).all()
    assert found.cells.sums.sum() == y.sum()
    back = Calibration.from_dict(json.loads(json.dumps(found.to_dict())), nothing)
    assert (back.cells.rates == found.cells.rates).all()


def test_the_tree_finds_where_a_regression_errs() -> None:
    found, y, scores, inputs = fitted("regression")
    codes = profile.codes(BINS, inputs)
    said = found.cells.rates[0][found.place(scores, codes)[:, 0]]
    red = inputs["c"] == "red"
    assert said[red].mean() == pytest.approx(np.abs(y - scores)[red].mean(), rel=0.05)
    assert said[red].mean() > 3 * said[~red].mean()
    variances = found.cells.variances
    assert (variances > 0).all()
    assert variances[0][found.place(scores, codes)[red, 0]].mean() == pytest.approx(16 * (1 - 2 / np.pi), rel=0.2)


def test_rows_weighed_by_one_are_the_rows() -> None:
    found, y, _, _ = fitted("binary")
    again = found.reweighted(np.ones(len(found.sample.block)))
    assert len(found.sample.block) == len(y)
    assert again.cells.rates == pytest.approx(found.cells.rates)
    assert (again.cells.n == found.cells.n).all()


def test_weighed_rates_rise_too() -> None:
    found, _, _, _ = fitted("multiclass")
    rng = np.random.default_rng(1)
    weights = rng.exponential(1, len(found.sample.block)) * (found.sample.codes[:, 1] == 0)
    cells = found.reweighted(weights).cells
    for start, stop in zip(found.offsets, found.offsets[1:], strict=False):
        assert (np.diff(cells.rates[0][start:stop]) >= -1e-12).all()
    assert cells.squares.sum() == pytest.approx(3 * (weights**2).sum())


def test_the_sample_of_a_large_holdout_is_bounded() -> None:
    found, _, _, _ = fitted("binary", n=12_000)
    assert len(found.sample.block) == 5000
    assert len(json.dumps(found.to_dict())) < 250_000


def _broken(**changes: Any) -> dict[str, Any]:
    return fitted("regression", n=300)[0].to_dict() | changes


@pytest.mark.parametrize(
    "body",
    [
        _broken(task="ranking"),
        _broken(task="binary"),
        _broken(n=[[1, 2]]),
        _broken(sums=[]),
        _broken(edges=[[0.5]]),
        _broken(tree=None),
        _broken(tree=_broken()["tree"] | {"left": [0] * len(_broken()["tree"]["left"])}),
        _broken(tree=_broken()["tree"] | {"feature": [9] * len(_broken()["tree"]["left"])}),
        _broken(tree=_broken()["tree"] | {"orders": {"1": [0.0]}}),
        _broken(sample=_broken()["sample"] | {"block": [99] * 300}),
        _broken(sample=_broken()["sample"] | {"features": 1}),
        _broken(sample=_broken()["sample"] | {"codes": "no base64"}),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Calibration.from_dict(body, BINS)
