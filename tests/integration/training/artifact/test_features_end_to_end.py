"""Features of many kinds at once: statistics, training, artifact, request, log, and the rows of a retrain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from mlops_ray.config import Features, Project
from mlops_ray.data import profile
from mlops_ray.data.features.statistics import fold, folds, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, training_matrix, transformer
from mlops_ray.data.schema import conform
from mlops_ray.demo.flights import flights
from mlops_ray.errors import ArtifactRefused
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.protocols.form import Form, batch_of_rows
from mlops_ray.serving.records import Scored
from mlops_ray.serving.spool import encoding
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Reference

NOW = 1_400_000_000.0
BLOCKS: dict[str, Any] = {
    "numeric": [
        {"columns": ["temp", "dewp", "speed"], "impute": "median", "indicator": True, "scale": "robust"},
        {"columns": ["distance"], "log": True},
        {"columns": ["wind_speed", "humid"], "clip": {"quantiles": [0.01, 0.99]}, "scale": "min_max"},
        {"columns": ["sched_dep_min"], "bins": {"n": 8}},
        {"columns": ["pressure", "visib"], "scale": "power"},
    ],
    "categorical": [
        {"columns": ["carrier"], "encode": "target"},
        {"columns": ["origin"], "max_categories": 2},
        {"columns": ["dest"], "encode": "ordinal"},
        {"columns": ["flight_key"], "encode": "hash", "n_buckets": 8},
    ],
    "datetime": {"columns": ["event_time"], "parts": ["weekday"], "cyclic": ["hour"], "zone": "America/New_York"},
    "text": {"columns": ["dest"], "n_buckets": 4, "tokens": "chars", "ngrams": [2, 2]},
    "expressions": {"speed": "distance / (sched_arr_min + 1)", "late_hour": "hour(event_time) >= 20"},
}


def project(blocks: dict[str, Any], root: Path) -> Project:
    from mlops_ray.config import load_project

    flights_project = load_project("configs/flights.yaml", env={})
    body = flights_project.model_dump(mode="json")
    body["storage"] = {"root": str(root)}
    body["features"] = blocks
    return Project.model_validate(body)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rows = flights().slice(0, 40_000)
    return rows.filter(rows["late"].is_valid()).take(pa.array(np.arange(0, 30_000, 12)))


def trained(features: Features, table: pa.Table, estimator: Any) -> tuple[Pipeline, dict[str, Any]]:
    partial = sum(
        (fold(features, table.slice(i, 800), target="late", key="flight_key") for i in range(800, table.num_rows, 800)),
        start=fold(features, table.slice(0, 800), target="late", key="flight_key"),
    )
    fitted = transformer(features, partial)
    columns = to_columns(features, table)
    matrix = training_matrix(features, partial, fitted, columns, folds(table["flight_key"]))
    y = table["late"].cast(pa.int64()).to_numpy()
    edges = bins(features, partial)
    reference = Reference(edges, 86400.0, ((0.0, profile.fold(edges, columns, np.full(len(y), 0.5))),), ())
    return Pipeline([("features", fitted), ("model", estimator.fit(matrix, y))]), {
        "task": "binary",
        "classes": (0, 1),
        "target": "late",
        "reference": reference,
        "holdout": columns,
        "lock": {},
        "recipe": {},
    }


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(C=0.01, tol=0.01, max_iter=2000), HistGradientBoostingClassifier(max_iter=20)]
)
def test_one_row_scores_alike_from_statistics_to_the_log(tmp_path: Path, table: pa.Table, estimator: Any) -> None:
    made = project(BLOCKS, tmp_path)
    features = made.features
    rows, _ = conform(table, made.columns)
    pipeline, given = trained(features, rows, estimator)
    sha256 = model.save(tmp_path / "a", pipeline, features=features, **given)
    loaded = model.load(tmp_path / "a", sha256)
    assert loaded.engine == "onnx", loaded.manifest["reason"]
    assert loaded.features == features
    assert loaded.replay() <= 1e-6
    columns = given["holdout"]
    batch = loaded.score(columns)
    np.testing.assert_allclose(batch, pipeline.predict_proba(to_frame(features, columns))[:, 1], atol=1e-5)

    # The same rows as a request: JSON, parsed, scored.
    form = Form.of(made)
    names = list(form.names)
    few = rows.select(names).slice(0, 40)
    sent = orjson.loads(orjson.dumps({"rows": few.to_pylist()}))
    parsed = batch_of_rows(sent["rows"], form, now=NOW)
    assert list(parsed.columns) == list(features.inputs)
    np.testing.assert_allclose(loaded.score(parsed.columns), batch[:40], atol=1e-7)
    for i in (0, 7, 39):
        alone = batch_of_rows([sent["rows"][i]], form, now=NOW)
        assert loaded.score(alone.columns)[0] == pytest.approx(batch[i], abs=1e-7)

    # As the spool keeps it, in the log, read back: the inputs are what was scored.
    assert parsed.keys is not None
    record = Scored("r", NOW, parsed.keys, parsed.times, dict(parsed.columns), 1, batch[:40], 1.0)
    (kept,) = encoding.frames(encoding.framed(record, 7), 0, 7)
    assert isinstance(kept, Scored)
    predictions = log.arrivals(made, [kept]).predictions
    assert predictions.schema == log.prediction_schema(made)
    back = log.inputs(made, predictions)
    for name in features.inputs:
        np.testing.assert_array_equal(back[name], parsed.columns[name], err_msg=name)
    np.testing.assert_allclose(loaded.score(back), batch[:40], atol=1e-7)
    profiles = log.profiles(made, loaded.reference.bins, predictions)
    assert sum(p.n for p in profiles.values()) == 40

    # As rows of the next training set: under the data's names and dtypes, with the same features.
    renamed = {f"x_{name}": name for name in features.inputs if name not in (made.key, made.event_time)}
    renamed |= {"key": made.key}
    live = pl.DataFrame(pl.from_arrow(predictions)).select(
        *(pl.col(old).alias(new) for old, new in renamed.items()), pl.col("event_time")
    )
    again, broken = conform(live.to_arrow(), [made.column(name) for name in names])
    assert not broken
    np.testing.assert_array_equal(
        pipeline.predict_proba(to_frame(features, to_columns(features, again))),
        pipeline.predict_proba(to_frame(features, {n: v[:40] for n, v in columns.items()})),
    )


def test_a_model_without_an_answer_to_missing_values_has_no_such_golden_request(
    tmp_path: Path, table: pa.Table
) -> None:
    features = Features.model_validate({"numeric": {"columns": ["distance"], "impute": "none"}})
    pipeline, given = trained(features, table, LogisticRegression())
    loaded = model.load(tmp_path / "a", model.save(tmp_path / "a", pipeline, features=features, **given))
    assert len(loaded.golden.scores) == 16
    assert loaded.replay() <= 1e-7


class Doubled(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer that is not scikit-learn's."""

    def fit(self, X: Any, y: Any = None) -> Doubled:  # noqa: N803
        self.mean_ = np.nanmean(np.asarray(X), axis=0)
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803
        return 2 * np.nan_to_num(np.asarray(X)) - self.mean_

    def get_feature_names_out(self, names: Any = None) -> Any:
        return np.asarray(names, dtype=object)


def test_a_custom_transformers_types_are_trusted_for_its_own_version_only(tmp_path: Path, table: pa.Table) -> None:
    path = f"{Doubled.__module__}:Doubled"
    blocks = {"numeric": {"columns": ["distance"]}, "custom": {"transformer": path, "columns": ["temp", "humid"]}}
    rows = {}
    for trusted in ([], [path.replace(":", ".")]):
        features = Features.model_validate({**blocks, "trusted_types": trusted})
        pipeline, given = trained(features, table, LogisticRegression())
        rows[len(trusted)] = (features, pipeline, given)
    with pytest.raises(ArtifactRefused, match=r"Doubled, not a type that we load; .* features.trusted_types"):
        model.save(tmp_path / "a", rows[0][1], features=rows[0][0], **rows[0][2])
    features, pipeline, given = rows[1]
    sha256 = model.save(tmp_path / "b", pipeline, features=features, **given)
    # The artifact records the project's list, and is not believed: the caller says what it trusts.
    with pytest.raises(ArtifactRefused, match=r"Doubled, not a type that we load"):
        model.load(tmp_path / "b", sha256)
    loaded = model.load(tmp_path / "b", sha256, trusted=features.trusted_types)
    assert loaded.engine == "sklearn"
    assert loaded.pipeline()[-1].classes_.tolist() == [0, 1]
    assert "Doubled" in json.dumps(loaded.manifest["trusted"])
    expected = pipeline.predict_proba(to_frame(features, given["holdout"]))[:, 1]
    np.testing.assert_array_equal(loaded.score(given["holdout"]), expected)
    # Whoever adds a type to the signature afterwards changes the artifact's hash.
    signature = tmp_path / "b" / "signature.json"
    signature.write_text(signature.read_text().replace("Doubled", "Doubled2"))
    with pytest.raises(ArtifactRefused, match=r"signature.json was altered"):
        model.load(tmp_path / "b", sha256)
