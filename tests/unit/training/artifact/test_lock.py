from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np
from lightgbm import LGBMRegressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from mlops_ray.training.artifact.lock import ALWAYS, differences, distributions_of, environment_lock


def test_the_lock_names_what_is_installed_here() -> None:
    found = environment_lock([*ALWAYS, "xgboost", "no-such-distribution"])
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["scikit-learn"] == version("scikit-learn")
    assert found["xgboost"]
    assert "no-such-distribution" not in found


def test_optional_libraries_are_locked_where_they_are_used_also_inside_a_calibration() -> None:
    x, y = np.arange(40.0)[:, None], np.arange(40) % 2
    assert distributions_of(make_pipeline(StandardScaler(), LogisticRegression())) == ALWAYS
    assert distributions_of(make_pipeline(StandardScaler(), LGBMRegressor())) == (*ALWAYS, "lightgbm")
    frozen = FrozenEstimator(XGBClassifier(n_estimators=1, n_jobs=1).fit(x, y))
    calibrated = CalibratedClassifierCV(frozen, method="sigmoid").fit(x, y)
    assert distributions_of(make_pipeline(StandardScaler(), calibrated)) == (*ALWAYS, "xgboost")


def test_differences_are_told_by_name() -> None:
    recorded = {"numpy": "2.4.6", "python": "3.11.7", "xgboost": "3.2.0"}
    assert differences(recorded, dict(reversed(recorded.items()))) == ()
    assert differences(recorded, {"numpy": "2.5.0", "python": "3.11.7", "scipy": "1.17.1"}) == (
        "numpy 2.4.6 was recorded, 2.5.0 runs here",
        "scipy 1.17.1 runs here, and none was recorded",
        "xgboost 3.2.0 was recorded, and is not installed here",
    )
