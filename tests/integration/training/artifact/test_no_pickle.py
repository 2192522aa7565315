"""No pickle is read on the serving path, and other tools read what we wrote without this package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

import mlops_ray
from mlops_ray.data.features.statistics import to_frame
from mlops_ray.training.artifact import engines, model

from .conftest import FEATURES, Rows

ROOT = Path(mlops_ray.__file__).parent

# What is forbidden is replaced before anything of ours, or anything that might keep a reference, is imported.
FORBID = """
import pickle, _pickle, sys
def refuse(*args, **named):
    raise SystemExit("a pickle was read")
class Refuse(pickle._Unpickler):
    def __init__(self, *args, **named):
        refuse()
pickle.load = pickle.loads = _pickle.load = _pickle.loads = refuse
pickle.Unpickler = pickle._Unpickler = _pickle.Unpickler = Refuse
"""
# joblib's own unpickler derives from the class that was replaced; its entry points too are closed.
FORBID_MORE = """
import joblib, cloudpickle, numpy
joblib.load = cloudpickle.load = cloudpickle.loads = refuse
"""


@pytest.mark.parametrize("engine", ["onnx", "sklearn"])
def test_loading_and_scoring_reads_no_pickle(
    tmp_path: Path, rows: Rows, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "sklearn":
        monkeypatch.setattr(engines, "PARITY_SHARE", 2.0)
    found = saved(tmp_path / "a", rows.fit(), rows)
    program = (
        FORBID
        + ("" if engine == "onnx" else FORBID_MORE)
        + "from mlops_ray.training.artifact import model\n"
        + f"loaded = model.load({str(tmp_path / 'a')!r}, {found!r})\n"
        + "assert loaded.replay() <= 1e-6\n"
        + "assert loaded.reference.total.n\n"
        + f"assert loaded.engine == {engine!r}\n"
        + "for forbidden in (pickle.loads, pickle.Unpickler):\n"
        + "    try:\n        forbidden(b'')\n    except SystemExit:\n        continue\n    raise AssertionError\n"
        + "print('scored')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=_env())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "scored"


def _env(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT.parent), **more}


def saved(folder: Path, pipeline: Any, rows: Rows) -> str:
    return model.save(
        folder,
        pipeline,
        task="binary",
        classes=(0, 1),
        features=FEATURES,
        target="late",
        reference=rows.reference,
        holdout=rows.columns,
        lock={},
        recipe={},
    )


def calls(path: Path) -> set[str]:
    """Dotted names of everything that a file calls or takes an attribute of."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_nothing_of_ours_loads_by_mlflow_or_by_pickle() -> None:
    """MLflow believes a model's own list of types (GHSA-w582-9x45-8mpx), and unpickles by default."""
    refused = ("load_model", "pyfunc.load", "download_artifacts")
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        for name in calls(path)
        if name.startswith("mlflow.") and name.endswith(refused)
    ]
    serving = ("training/artifact", "serving", "monitoring")
    wrong += [
        f"{path.relative_to(ROOT)}: {alias.name}"
        for room in serving
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if {alias.name, getattr(node, "module", None)}
        & {"pickle", "joblib", "cloudpickle", "dill", "marshal", "shelve"}
    ]
    assert not wrong, wrong


# --- other tools ---


def calibrated(rows: Rows, estimator: Any, method: str) -> Any:
    pipeline = rows.fit(estimator)
    matrix = pipeline[0].transform(to_frame(FEATURES, rows.columns))
    made = CalibratedClassifierCV(FrozenEstimator(pipeline[-1]), method=method).fit(matrix, rows.y)
    pipeline.steps[-1] = ("model", made)
    return pipeline


PIPELINES: dict[str, Any] = {
    "linear": lambda rows: rows.fit(LogisticRegression()),
    "forest": lambda rows: rows.fit(RandomForestClassifier(3, max_depth=4)),
    "boosting": lambda rows: rows.fit(HistGradientBoostingClassifier(max_iter=3)),
    "sigmoid": lambda rows: calibrated(rows, HistGradientBoostingClassifier(max_iter=3), "sigmoid"),
    "isotonic": lambda rows: calibrated(rows, RandomForestClassifier(3, max_depth=4), "isotonic"),
    "xgboost": lambda rows: rows.fit(XGBClassifier(n_estimators=3, n_jobs=1)),
    "lightgbm": lambda rows: rows.fit(LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1)),
}


def test_the_packed_pipelines_come_back(tmp_path: Path, rows: Rows) -> None:
    """By skops alone, also those of XGBoost and LightGBM, and answer as before, to the bit."""
    frame = to_frame(FEATURES, rows.columns)
    for name, make in PIPELINES.items():
        pipeline = make(rows)
        loaded = model.load(tmp_path / name, saved(tmp_path / name, pipeline, rows))
        assert loaded.engine == "onnx", (name, loaded.manifest["reason"])
        np.testing.assert_array_equal(loaded.pipeline().predict_proba(frame), pipeline.predict_proba(frame), name)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
def test_mlflow_loads_a_version_without_this_package(tmp_path: Path, rows: Rows) -> None:
    """`mlflow.sklearn.load_model` in a process that cannot import `mlops_ray`."""
    import mlflow.sklearn

    frame = to_frame(FEATURES, rows.columns)
    frame.to_parquet(tmp_path / "rows.parquet")
    for name, make in PIPELINES.items():
        pipeline = make(rows)
        loaded = model.load(tmp_path / "ours" / name, saved(tmp_path / "ours" / name, pipeline, rows))
        mlflow.sklearn.save_model(
            pipeline,
            tmp_path / name,
            serialization_format="skops",
            skops_trusted_types=list(loaded.manifest["trusted"]),
            pip_requirements=["scikit-learn"],
        )
        np.save(tmp_path / f"{name}.npy", pipeline.predict_proba(frame))
    program = (
        "import sys\n"
        "sys.modules['mlops_ray'] = None\n"
        "import mlflow.sklearn, numpy as np, pandas as pd\n"
        "rows = pd.read_parquet('rows.parquet')\n"
        f"for name in {list(PIPELINES)!r}:\n"
        "    found = mlflow.sklearn.load_model(name).predict_proba(rows)\n"
        "    np.testing.assert_array_equal(found, np.load(name + '.npy'))\n"
        "print('loaded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=_env(PYTHONPATH="", MLFLOW_DISABLE_TELEMETRY="true"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("loaded")
