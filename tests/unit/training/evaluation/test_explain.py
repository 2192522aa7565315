from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from mlops_ray.errors import MlopsRayError
from mlops_ray.training.evaluation import explain

NAMES = ["noise", "strong", "weak"]


def fitted(model: Any, kind: str = "binary") -> tuple[Pipeline, np.ndarray]:
    random = np.random.default_rng(7)
    x = random.normal(size=(400, 3))
    margin = 3 * x[:, 1] + 0.8 * x[:, 2]
    y = margin if kind == "regression" else (margin + random.logistic(size=400) > 0).astype(int)
    if kind == "multiclass":
        y = np.digitize(margin, [-1, 1])
    return Pipeline([("features", StandardScaler()), ("model", model)]).fit(x, y), x


@pytest.mark.parametrize(
    ("model", "kind", "unit"),
    [
        (LogisticRegression(), "binary", "log-odds"),
        (LogisticRegression(), "multiclass", "log-odds"),
        (Ridge(), "regression", "target's unit"),
        (RandomForestClassifier(10, random_state=0), "binary", "probability"),
        (RandomForestRegressor(10, random_state=0), "regression", "target's unit"),
        (HistGradientBoostingClassifier(max_iter=10, random_state=0), "multiclass", "log-odds"),
        (CalibratedClassifierCV(LogisticRegression(), cv=2), "binary", "log-odds"),
    ],
)
def test_features_are_ranked_by_what_they_move(model: Any, kind: str, unit: str) -> None:
    pytest.importorskip("shap")
    pipeline, x = fitted(model, kind)
    found = explain.explain(pipeline, x, rng=np.random.default_rng(7), names=NAMES, max_rows=60)
    assert [c.feature for c in found.contributions] == ["strong", "weak", "noise"]
    assert (found.n, found.unit) == (60, unit)
    assert found.contributions[0].mean_abs > 2 * found.contributions[1].mean_abs


def test_of_a_linear_model_they_are_its_terms_about_the_mean() -> None:
    pytest.importorskip("shap")
    pipeline, x = fitted(Ridge(), "regression")
    found = explain.explain(pipeline, x, rng=np.random.default_rng(7))
    terms = np.abs(pipeline[:-1].transform(x) * pipeline[-1].coef_).mean(axis=0)
    assert {c.feature: c.mean_abs for c in found.contributions} == pytest.approx(
        dict(zip(["x0", "x1", "x2"], terms, strict=True))
    )


def test_large_forests_are_explained_on_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("shap")
    pipeline, x = fitted(RandomForestClassifier(10, random_state=0))
    monkeypatch.setattr(explain, "_COST", 1.0)
    assert explain.explain(pipeline, x, rng=np.random.default_rng(7), names=NAMES).n == 50


def test_a_model_without_an_explainer_says_so() -> None:
    pytest.importorskip("shap")
    pipeline, x = fitted(KNeighborsClassifier())
    with pytest.raises(MlopsRayError, match=r"KNeighborsClassifier has no explainer .* use permutation importance"):
        explain.explain(pipeline, x, rng=np.random.default_rng(7), names=NAMES)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, x = fitted(Ridge(), "regression")
    monkeypatch.setitem(sys.modules, "shap", None)
    with pytest.raises(MlopsRayError, match=r"mlops-ray\[shap\]"):
        explain.explain(pipeline, x, rng=np.random.default_rng(7))


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(explain.NoExplanation("why")))
    assert str(error) == "no SHAP values: why"
