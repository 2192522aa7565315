"""ONNX beside Python: each default estimator x each feature option x each task, with missing and unseen values.

A graph is two graphs put together at `features`, float64 (n, width): the transformer's and the estimator's, each made
without looking at the other. So the product is covered by its factors, where each is compared on all the values that
the other may hand it: the transformer to the last bits (1e-9 of its value, for every option), and the estimator on
matrices with ties, zeros, missing values and far outliers (every estimator, task and calibration). That the factors fit
together is then shown through `save` for every option x task, the estimators taking turns.

What cannot be converted is in `served_by_sklearn.md`, which this test writes down anew and compares.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from xgboost import XGBClassifier, XGBRegressor

from mlops_ray.config import Features
from mlops_ray.data.features import statistics as statistics_of
from mlops_ray.data.features import transformer as feature_room
from mlops_ray.data.features.derive import derive
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.profile import Bins, empty
from mlops_ray.training.artifact import engines, model
from mlops_ray.training.artifact.estimators import estimator_model
from mlops_ray.training.artifact.graph import transformer_model
from mlops_ray.training.artifact.model import Reference

N = 600
TABLE = Path(__file__).with_name("served_by_sklearn.md")
TASKS = ("binary", "multiclass", "regression")
CLASSES: dict[str, tuple[int, ...]] = {"binary": (0, 1), "multiclass": (0, 1, 2), "regression": ()}

CLASSIFIERS: dict[str, Any] = {
    "linear": LogisticRegression(max_iter=300),
    "random_forest": RandomForestClassifier(12, random_state=0),
    "extra_trees": ExtraTreesClassifier(12, max_depth=8, random_state=0),
    "hist_gradient_boosting": HistGradientBoostingClassifier(max_iter=12, early_stopping=False),
    "xgboost": XGBClassifier(n_estimators=12, n_jobs=1),
    "lightgbm": LGBMClassifier(n_estimators=12, n_jobs=1, verbose=-1),
}
REGRESSORS: dict[str, Any] = {
    "linear": Ridge(),
    "elastic net": ElasticNet(alpha=0.01),
    "random_forest": RandomForestRegressor(12, random_state=0),
    "extra_trees": ExtraTreesRegressor(12, max_depth=8, random_state=0),
    "hist_gradient_boosting": HistGradientBoostingRegressor(max_iter=12, early_stopping=False),
    "xgboost": XGBRegressor(n_estimators=12, n_jobs=1),
    "lightgbm": LGBMRegressor(n_estimators=12, n_jobs=1, verbose=-1),
}
FAMILIES = {"binary": CLASSIFIERS, "multiclass": CLASSIFIERS, "regression": REGRESSORS}
IMPUTED = ("linear", "elastic net")
"""They have no answer to a missing value."""


def numeric(**options: Any) -> dict[str, Any]:
    return {"numeric": {"columns": ["x", "z", "k"], **options}}


def categorical(**options: Any) -> dict[str, Any]:
    return {"categorical": {"columns": ["c", "d"], **options}, "numeric": {"columns": ["x"]}}


OPTIONS: dict[str, dict[str, Any]] = {
    **{f"impute: {how}": numeric(impute=how) for how in ("mean", "median", "most_frequent")},
    "impute: constant": numeric(impute="constant", fill_value=7.5),
    "impute: none": numeric(impute="none", scale="none"),
    "impute: none, scale: standard": numeric(impute="none"),
    "impute: none, scale: robust": numeric(impute="none", scale="robust"),
    "impute: none, scale: power": numeric(impute="none", scale="power"),
    "indicator": numeric(indicator=True),
    **{f"scale: {how}": numeric(scale=how) for how in ("standard", "robust", "min_max", "power", "none")},
    "scale: quantile": numeric(scale="quantile"),
    "clip": numeric(clip=[-1, 3]),
    "clip: quantiles": numeric(clip={"quantiles": [0.05, 0.9]}),
    "log": {"numeric": {"columns": ["x", "k"], "log": True}},
    "clip, log, impute: median, indicator": numeric(clip=[0, 9], log=True, impute="median", indicator=True),
    **{
        f"bins: {strategy}, {encode}": numeric(bins={"n": 4, "strategy": strategy, "encode": encode})
        for strategy, encode in itertools.product(("quantile", "uniform"), ("onehot", "ordinal"))
    },
    "encode: one_hot": categorical(),
    "min_frequency": categorical(min_frequency=60),
    "max_categories": categorical(max_categories=2),
    "encode: ordinal": categorical(encode="ordinal"),
    "encode: target": categorical(encode="target"),
    "encode: target, smooth": categorical(encode="target", smooth=5.0),
    "encode: hash": categorical(encode="hash", n_buckets=8),
    "encode: hash, unsigned": categorical(encode="hash", n_buckets=8, signed=False),
    "datetime: parts": {"datetime": {"columns": ["at"], "parts": ["weekday", "hour", "is_weekend", "year"]}},
    "datetime: cyclic": {"datetime": {"columns": ["at"], "cyclic": ["hour", "dayofyear"], "zone": "Europe/Vienna"}},
    "datetime: elapsed_since": {"datetime": {"columns": ["at"], "elapsed_since": "2026-01-01"}},
    "text: words": {"text": {"columns": ["t"], "n_buckets": 16}},
    "text: chars": {"text": {"columns": ["t"], "n_buckets": 16, "tokens": "chars", "ngrams": [2, 3], "signed": False}},
    "expressions": {"numeric": {"columns": ["x"]}, "expressions": {"ratio": "x / (k + 1)", "late": "hour(at) >= 12"}},
    "custom: scikit-learn's": {
        "custom": {"transformer": "sklearn.preprocessing:MaxAbsScaler", "columns": ["k"]},
        "numeric": {"columns": ["x"]},
    },
    "custom: categories": {
        "custom": {
            "transformer": "sklearn.preprocessing:OrdinalEncoder",
            "params": {"handle_unknown": "use_encoded_value", "unknown_value": -1},
            "columns": ["c"],
            "kind": "categorical",
        },
        "numeric": {"columns": ["x"]},
    },
    "everything": {
        "numeric": [
            {"columns": ["x"], "impute": "median", "indicator": True, "scale": "robust"},
            {"columns": ["z"], "bins": {"n": 5}},
            {"columns": ["k"], "log": True},
        ],
        "categorical": [{"columns": ["c"], "max_categories": 2}, {"columns": ["d"], "encode": "ordinal"}],
        "datetime": {"columns": ["at"], "cyclic": ["hour"]},
        "text": {"columns": ["t"], "n_buckets": 4},
        "expressions": {"ratio": "x / (k + 1)"},
    },
}
BINARY_ONLY = ("encode: target", "encode: target, smooth")
"""The project file allows them for a binary target."""


@functools.cache
def generated() -> pa.Table:
    """Ties, zeros, outliers, nulls, rare categories; labels of each task that the columns tell something about."""
    rng = np.random.default_rng(0)
    x, z = np.round(rng.lognormal(1, 1, N), 3), rng.normal(-3, 2, N)
    k = rng.integers(0, 6, N).astype(np.float64)
    c = rng.choice(["a", "b", "é", "rare"], N, p=[0.5, 0.3, 0.19, 0.01])
    signal = np.log(x) + 0.5 * k - (c == "a") + 0.3 * z + rng.normal(0, 1, N)
    return pa.table(
        {
            "x": pa.array(x, mask=rng.random(N) < 0.1),
            "z": pa.array(z, mask=rng.random(N) < 0.1),
            "k": pa.array(k, mask=rng.random(N) < 0.05),
            "c": pa.array(c, mask=rng.random(N) < 0.1),
            "d": rng.choice(["u", "v"], N),
            "t": rng.choice(["late again", "on time", "", "very late"], N),
            "at": pa.array(rng.integers(1_700_000_000, 1_780_000_000, N) * 1_000_000, pa.timestamp("us", "UTC")),
            "key": [f"key-{i}" for i in range(N)],
            "binary": (signal > np.median(signal)).astype(np.int64),
            "multiclass": np.digitize(signal, np.quantile(signal, [0.4, 0.7])).astype(np.int64),
            "regression": 250.0 + 40 * signal,
        }
    )


@functools.cache
def fitted(option: str) -> tuple[Features, Any, dict[str, Any]]:
    """Features, their transformer, and rows: those of the table, and some of what training never saw."""
    features = Features.model_validate(OPTIONS[option])
    table = generated()
    partial = statistics_of.fold(features, table, target="binary", key="key")
    columns = dict(statistics_of.to_columns(features, table))
    odd: dict[str, list[Any]] = {
        "number": [np.nan, 0.0, 0.0, 1e6, 1e-30],
        "string": ["", "never seen", "a ", "ｌａｔｅ", "🛬" * 50],
        "time": [np.nan, 0.0, 4e9, 1.7e9, 1.75e9],
    }
    for name, kind in features.kinds.items():
        columns[name] = np.concatenate([columns[name], np.array(odd[kind], dtype=columns[name].dtype)])
    return features, feature_room.transformer(features, partial), columns


def run(graph: Any, feed: dict[str, Any]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feed)[
        0
    ]


def in_onnx(option: str) -> np.ndarray:
    features, steps, columns = fitted(option)
    cells = derive(features, columns)
    feed: dict[str, Any] = {}
    if features.numbers:
        feed["numeric"] = np.stack([cells[name] for name in features.numbers], axis=1, dtype=np.float32)
    if features.texts:
        feed["categorical"] = np.stack([cells[name] for name in features.texts], axis=1)
    return run(transformer_model(steps, features), feed)


NOT_CONVERTED = {"scale: quantile": "skl2onnx takes 40 s per column"}


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in NOT_CONVERTED])
def test_each_feature_option_to_the_last_bits(option: str) -> None:
    features, steps, columns = fitted(option)
    expected = np.asarray(steps.transform(statistics_of.to_frame(features, columns)), dtype=np.float64)
    found = in_onnx(option)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@functools.cache
def matrices() -> tuple[np.ndarray, np.ndarray]:
    """What estimators may be handed: with and without missing values; ties, one-hot columns, outliers, fine values."""
    whole = np.concatenate([matrix_of("everything"), matrix_of("scale: power")], axis=1)
    gaps = np.concatenate([whole, matrix_of("impute: none")], axis=1)
    return whole, gaps


def matrix_of(option: str) -> np.ndarray:
    features, steps, columns = fitted(option)
    return np.asarray(transformed(features, steps, columns))


@functools.cache
def estimator(task: str, family: str, gaps: bool) -> Any:
    rows = matrices()[gaps][: N - 100]
    y = generated()[task].to_numpy()[: N - 100]
    return clone(FAMILIES[task][family]).fit(rows, y)


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "missing values"])
@pytest.mark.parametrize(("task", "family"), [(t, f) for t in TASKS for f in FAMILIES[t]])
def test_each_estimator_on_every_row(task: str, family: str, gaps: bool) -> None:
    if gaps and family in IMPUTED:
        pytest.skip("has no answer to missing values, in neither engine")
    chosen, rows = estimator(task, family, gaps), matrices()[gaps]
    expected = chosen.predict(rows)[:, None] if task == "regression" else chosen.predict_proba(rows)
    found = run(estimator_model(chosen, rows.shape[1]), {"features": rows})
    assert found.shape == expected.shape
    assert found.dtype == np.float64
    # XGBoost and forests of several classes add in float32, the others agree to 1e-12.
    np.testing.assert_allclose(found, expected, atol=3e-7, rtol=1e-7)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize(("task", "family"), [(t, f) for t in TASKS[:2] for f in FAMILIES[t]])
def test_each_calibration(task: str, family: str, method: str) -> None:
    """One calibrator over a frozen estimator, fitted on rows that it did not see."""
    gaps = family not in IMPUTED
    rows, y = matrices()[gaps], generated()[task].to_numpy()
    frozen = FrozenEstimator(estimator(task, family, gaps))
    calibrated = CalibratedClassifierCV(frozen, method=method).fit(rows[N - 100 : N], y[N - 100 :])
    expected = calibrated.predict_proba(rows)
    found = run(estimator_model(calibrated, rows.shape[1]), {"features": rows})
    gaps_found = np.abs(found - expected).max(axis=1)
    assert np.mean(gaps_found <= engines.PARITY_TOLERANCE) >= engines.PARITY_SHARE
    # Isotonic steps are steep: float32 sums show, of XGBoost and of forests of several classes.
    assert gaps_found.max() <= (1e-3 if method == "isotonic" else 1e-6)


def turns() -> list[tuple[str, str, str]]:
    """Option, task and estimator: every option x task, the estimators taking turns."""
    found = []
    for task in TASKS:
        families = itertools.cycle(FAMILIES[task])
        for option in OPTIONS:
            if task != "binary" and option in BINARY_ONLY:
                continue
            gaps = option.startswith(("impute: none", "custom: scikit"))
            family = next(f for f in families if not (gaps and f in IMPUTED))
            found.append((option, task, family))
    return found


def test_the_turns_take_every_estimator_of_every_task() -> None:
    assert {(task, family) for _, task, family in turns()} == {(t, f) for t in TASKS for f in FAMILIES[t]}


@functools.cache
def served(option: str, task: str, family: str) -> tuple[str, str]:
    """Engine and why, of a version that was saved, loaded and asked."""
    import tempfile

    features, steps, columns = fitted(option)
    rows = matrix_of(option)[:N]
    fit = clone(FAMILIES[task][family]).fit(rows, generated()[task].to_numpy())
    pipeline = Pipeline([("features", steps), ("model", fit)])
    nothing = Bins({}, {})
    with tempfile.TemporaryDirectory() as root:
        sha256 = model.save(
            Path(root) / "a",
            pipeline,
            task=task,  # type: ignore[arg-type]  # one of TASKS
            classes=CLASSES[task],
            features=features,
            target="y",
            reference=Reference(nothing, 86400.0, ((0.0, empty(nothing)),), ()),
            holdout=columns,
            lock={},
            recipe={},
        )
        loaded = model.load(Path(root) / "a", sha256)
        assert loaded.replay() <= 1e-6
        frame = statistics_of.to_frame(features, columns)
        if task == "regression":
            expected = pipeline.predict(frame)
        else:
            expected = pipeline.predict_proba(frame)
            expected = expected[:, 1] if task == "binary" else expected
        scores = loaded.score(columns)
        assert scores.shape == expected.shape
        gaps = np.abs(scores - expected).reshape(len(scores), -1).max(axis=1) / loaded.golden.scale
        assert np.mean(gaps <= engines.PARITY_TOLERANCE) >= engines.PARITY_SHARE
        return loaded.engine, loaded.manifest["reason"]


@pytest.mark.parametrize(("option", "task", "family"), turns())
def test_each_option_and_task_through_the_artifact(option: str, task: str, family: str) -> None:
    engine, reason = served(option, task, family)
    assert engine == ("sklearn" if option in NOT_CONVERTED else "onnx"), reason


def test_what_scikit_learn_serves_is_written_down() -> None:
    """Of features and estimators: the rows of the table that the documents show."""
    rows = ["| features or estimator | with | why |", "|---|---|---|"]
    for option in OPTIONS:
        engines_of = {task: served(option, task, family) for o, task, family in turns() if o == option}
        if any(engine == "sklearn" for engine, _ in engines_of.values()):
            assert all(engine == "sklearn" for engine, _ in engines_of.values()), engines_of
            rows.append(f"| `{option}` | every estimator, every task | {NOT_CONVERTED[option]} |")
    for name, (made, why) in OTHERS.items():
        width = matrices()[0].shape[1]
        with pytest.raises(NotImplementedError):
            estimator_model(made().fit(matrices()[0][:N], generated()["binary"].to_numpy()), width)
        rows.append(f"| {name} | every feature | {why} |")
    assert "\n".join(rows) + "\n" == TABLE.read_text(encoding="utf-8")


OTHERS: dict[str, tuple[Any, str]] = {
    "`xgboost` with `booster: gblinear`": (
        lambda: XGBClassifier(n_estimators=2, booster="gblinear", updater="coord_descent"),
        "no trees; use `linear`",
    ),
    "`lightgbm` with `boosting_type: rf`, `linear_tree` or `zero_as_missing`": (
        lambda: LGBMClassifier(n_estimators=2, boosting_type="rf", subsample=0.5, subsample_freq=1, verbose=-1),
        "ONNX has no form of them",
    ),
    "`hist_gradient_boosting` with `categorical_features`": (
        lambda: HistGradientBoostingClassifier(max_iter=2, categorical_features=[1]),
        "ONNX has no sets of categories; encode them as features",
    ),
    "calibration of estimators that are not presets": (
        lambda: CalibratedClassifierCV(_gradient_boosting(), cv=2),
        "their scores before calibration are known in Python only",
    ),
    "calibration by `temperature`": (
        lambda: CalibratedClassifierCV(LogisticRegression(max_iter=300), method="temperature", cv=2),
        "use `sigmoid` or `isotonic`",
    ),
}


def _gradient_boosting() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(n_estimators=2)
