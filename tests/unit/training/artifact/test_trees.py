"""Trees read from each library, walked in Python by the rules that the table in `trees` states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestClassifier
from threadpoolctl import threadpool_limits
from xgboost import XGBClassifier, XGBRegressor

from mlops_ray.training.artifact import trees


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """OpenMP's threads wait busily for each other where other work shares the cores."""
    with threadpool_limits(1):
        yield


def walked(ensemble: trees.Ensemble, rows: np.ndarray) -> np.ndarray:
    """The sums of an ensemble, shape (n, outputs)."""
    rows = rows.astype(np.float32).astype(np.float64) if ensemble.single else rows
    found = np.tile(ensemble.base, (len(rows), 1))
    for tree in ensemble.trees:
        for i, row in enumerate(rows):
            at = 0
            while not tree.leaf[at]:
                x, split = row[tree.feature[at]], tree.split[at]
                left = tree.missing_left[at] if np.isnan(x) else x < split if ensemble.strict else x <= split
                at = (tree.left if left else tree.right)[at]
            if ensemble.vector:
                found[i] += tree.values[at]
            else:
                found[i, tree.target] += tree.values[at]
    return found


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with ties at 0.1 (not a float32), zeros and gaps; labels of three classes; a target around 100."""
    rng = np.random.default_rng(0)
    rows = np.round(rng.normal(0, 0.3, (120, 3)), 1)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    signal = np.nan_to_num(rows[:, 0]) + rng.normal(0, 0.1, 120)
    return rows, np.digitize(signal, [-0.1, 0.15]), 100 + 10 * signal


def raw(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """What the library itself says before its link."""
    if isinstance(estimator, XGBClassifier | XGBRegressor):
        found = estimator.predict(rows, output_margin=True)
    elif isinstance(estimator, LGBMClassifier | LGBMRegressor):
        found = estimator.predict(rows, raw_score=True)
    elif isinstance(estimator, RandomForestClassifier):
        found = estimator.predict_proba(rows)
    else:
        found = estimator.predict(rows)
    return np.asarray(found).reshape(len(rows), -1)


@pytest.mark.parametrize(
    ("estimator", "reader", "target"),
    [
        (RandomForestClassifier(4, random_state=0), trees.of_forest, 1),
        (ExtraTreesRegressor(4, random_state=0), trees.of_forest, 2),
        (HistGradientBoostingRegressor(max_iter=4, min_samples_leaf=5), trees.of_histogram, 2),
        (XGBClassifier(n_estimators=4, n_jobs=1), trees.of_xgboost, 1),
        (XGBRegressor(n_estimators=4, n_jobs=1, booster="dart", rate_drop=0.5), trees.of_xgboost, 2),
        (LGBMClassifier(n_estimators=4, n_jobs=1, min_child_samples=5, verbose=-1), trees.of_lightgbm, 1),
        (LGBMRegressor(n_estimators=4, n_jobs=1, min_child_samples=5, verbose=-1), trees.of_lightgbm, 2),
    ],
    ids=lambda each: getattr(type(each), "__name__", each) if hasattr(each, "fit") else "",
)
def test_each_library_is_read_as_it_answers(estimator: Any, reader: Any, target: int, data: Any) -> None:
    rows, y = data[0], data[target]
    estimator.fit(rows, y)
    found = reader(estimator)
    ensemble = found[0] if isinstance(found, tuple) else found
    more = np.concatenate([rows, [[0.1, -0.1, np.nan], [1e-40, -1e-40, 0.0], [1e9, -1e9, 0.30000001]]])
    np.testing.assert_allclose(walked(ensemble, more), raw(estimator, more), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("objective", ["reg:tweedie", "count:poisson", "reg:absoluteerror", "binary:logistic"])
def test_xgboosts_base_score_is_read_on_its_scale(objective: str, data: Any) -> None:
    y = (data[2] > 100).astype(int) if objective == "binary:logistic" else data[2]
    made = XGBClassifier if objective == "binary:logistic" else XGBRegressor
    estimator = made(n_estimators=2, n_jobs=1, objective=objective).fit(data[0], y)
    ensemble, link = trees.of_xgboost(estimator)
    assert link == {"reg:absoluteerror": "none", "binary:logistic": "sigmoid"}.get(objective, "exp")
    np.testing.assert_allclose(walked(ensemble, data[0]), raw(estimator, data[0]), rtol=1e-6, atol=1e-6)


def test_lightgbm_takes_a_gap_that_training_never_saw_for_zero(data: Any) -> None:
    whole = np.nan_to_num(data[0], nan=0.2)
    estimator = LGBMRegressor(n_estimators=3, n_jobs=1, min_child_samples=5, verbose=-1).fit(whole, data[2])
    np.testing.assert_allclose(walked(trees.of_lightgbm(estimator)[0], data[0]), raw(estimator, data[0]), rtol=1e-12)
    np.testing.assert_array_equal(raw(estimator, data[0]), raw(estimator, np.nan_to_num(data[0])))


def test_only_rough_features_get_room_at_their_splits(data: Any) -> None:
    ensemble = trees.of_histogram(HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=5).fit(data[0], data[2]))
    found = trees.tolerant(ensemble, np.array([True, False, False]))
    for before, after in zip(ensemble.trees, found.trees, strict=True):
        inner = ~before.leaf & np.isfinite(before.split)
        moved = after.split[inner] != before.split[inner]
        np.testing.assert_array_equal(moved, before.feature[inner] == 0)
        np.testing.assert_allclose(after.split[inner], before.split[inner], atol=1e-11)


@pytest.mark.parametrize(
    ("estimator", "reader"),
    [
        (XGBRegressor(n_estimators=1, n_jobs=1, objective="reg:squaredlogerror"), trees.of_xgboost),
        (LGBMRegressor(n_estimators=1, n_jobs=1, zero_as_missing=True, verbose=-1), trees.of_lightgbm),
        (LGBMRegressor(n_estimators=1, n_jobs=1, reg_sqrt=True, verbose=-1), trees.of_lightgbm),
    ],
)
def test_what_has_no_such_form_says_so(estimator: Any, reader: Any, data: Any) -> None:
    estimator.fit(np.nan_to_num(data[0]), data[2])
    with pytest.raises(NotImplementedError):
        reader(estimator)
