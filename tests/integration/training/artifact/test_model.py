from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from mlops_ray.config import Features
from mlops_ray.data.features import statistics as statistics_of
from mlops_ray.data.features import transformer as feature_room
from mlops_ray.errors import ArtifactRefused, DataError
from mlops_ray.training.artifact import engines, graph, lock, model, packing
from mlops_ray.training.artifact.graph import to_onnx

FEATURES = Features.model_validate(
    {"numeric": {"columns": ["pressure", "hour", "rain"]}, "categorical": {"columns": ["carrier", "origin"]}}
)


def save(folder: Path, rows: Any, pipeline: Any = None) -> str:
    pipeline = pipeline or rows.fit()
    return model.save(
        folder,
        pipeline,
        task="binary",
        classes=(0, 1),
        features=FEATURES,
        target="late",
        reference=rows.reference,
        holdout=rows.columns,
        lock=lock.environment_lock(lock.distributions_of(pipeline)),
        recipe={},
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("saved") / "artifact"
    return folder, save(folder, rows)


@pytest.fixture
def artifact(tmp_path: Path, saved: tuple[Path, str]) -> tuple[Path, str]:
    """A copy that a test may spoil."""
    shutil.copytree(saved[0], tmp_path / "artifact")
    return tmp_path / "artifact", saved[1]


def rewritten(folder: Path, **changes: Any) -> str:
    """The manifest with other fields, and its new hash: what somebody who controls the registry could write."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return sha256(path.read_bytes()).hexdigest()


def in_both_engines(pipeline: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    graph = to_onnx(pipeline, FEATURES)
    frame = statistics_of.to_frame(FEATURES, rows.columns)
    return engines.onnx_scorer(graph, FEATURES, "binary", 2, "a")(rows.columns), pipeline.predict_proba(frame)[:, 1]


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingClassifier(max_iter=60, early_stopping=False),
        LogisticRegression(),
        RandomForestClassifier(8, max_depth=6),
        ExtraTreesClassifier(8, max_depth=6),
        GradientBoostingClassifier(n_estimators=8),
        DecisionTreeClassifier(max_depth=5),
    ],
    ids=lambda e: type(e).__name__,
)
def test_the_graph_agrees_with_scikit_learn_on_every_row(rows: Any, estimator: Any) -> None:
    # Training rows on purpose: boosting takes thresholds from them, so each tie that float32 breaks shows.
    got, expected = in_both_engines(rows.fit(estimator), rows)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("kept", [("numeric",), ("categorical",)])
def test_features_of_one_kind_suffice(tmp_path: Path, rows: Any, kept: tuple[str, ...]) -> None:
    features = Features.model_validate({k: v for k, v in FEATURES.model_dump().items() if k in kept})
    statistics = statistics_of.fold(features, rows.table)
    fitted = feature_room.transformer(features, statistics)
    matrix = fitted.transform(statistics_of.to_frame(features, rows.columns))
    pipeline = Pipeline([("features", fitted), ("model", LogisticRegression().fit(matrix, rows.y))])
    found = model.save(
        tmp_path / "a",
        pipeline,
        task="binary",
        classes=(0, 1),
        features=features,
        target="y",
        reference=rows.reference,
        holdout=rows.columns,
        lock={},
        recipe={},
    )
    loaded = model.load(tmp_path / "a", found)
    assert loaded.engine == "onnx"
    np.testing.assert_allclose(
        loaded.score(rows.columns),
        pipeline.predict_proba(statistics_of.to_frame(features, rows.columns))[:, 1],
        atol=1e-6,
    )


def test_saved_and_loaded_it_scores_as_before(artifact: tuple[Path, str], rows: Any) -> None:
    loaded = model.load(*artifact)
    assert loaded.engine == "onnx"
    assert loaded.target == "late"
    assert loaded.features == FEATURES
    assert loaded.manifest["parity"]["share_within"] == 1.0
    scores = loaded.score(rows.columns)
    assert scores.dtype == np.float64
    assert scores.shape == rows.y.shape
    frame = statistics_of.to_frame(FEATURES, rows.columns)
    np.testing.assert_allclose(scores, loaded.pipeline().predict_proba(frame)[:, 1], atol=1e-6)
    assert loaded.replay() <= 1e-7


def test_one_row_scores_as_in_a_batch(artifact: tuple[Path, str], rows: Any) -> None:
    loaded = model.load(*artifact)
    batch = loaded.score(rows.columns)
    for i in (0, 7, 100):
        one = {name: values[i : i + 1] for name, values in rows.columns.items()}
        assert loaded.score(one)[0] == pytest.approx(batch[i], abs=1e-7)
    assert loaded.score({name: values[:0] for name, values in rows.columns.items()}).shape == (0,)


def test_unseen_and_missing_categories_are_scored(artifact: tuple[Path, str], rows: Any) -> None:
    columns = {name: values[:2].copy() for name, values in rows.columns.items()}
    columns["carrier"][:] = ["Zeppelin", ""]
    loaded = model.load(*artifact)
    expected = loaded.pipeline().predict_proba(statistics_of.to_frame(FEATURES, columns))[:, 1]
    np.testing.assert_allclose(loaded.score(columns), expected, atol=1e-6)


def test_requests_that_no_engine_should_see_are_named(artifact: tuple[Path, str], rows: Any) -> None:
    loaded = model.load(*artifact)
    with pytest.raises(DataError, match="'rain' is missing"):
        loaded.score({name: values for name, values in rows.columns.items() if name != "rain"})
    columns = {name: values[:3].copy() for name, values in rows.columns.items()}
    columns["hour"][2] = np.inf
    with pytest.raises(DataError, match="row 2: hour is infinite"):
        loaded.score(columns)


@pytest.mark.parametrize("estimator", [HistGradientBoostingClassifier(max_iter=5), LogisticRegression()])
def test_where_the_graph_does_not_agree_scikit_learn_serves(
    tmp_path: Path, rows: Any, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = to_onnx(rows.fit(DecisionTreeClassifier(max_depth=1)), FEATURES)
    monkeypatch.setattr(graph, "to_onnx", lambda pipeline, features: other)
    pipeline = rows.fit(estimator)
    loaded = model.load(tmp_path / "a", save(tmp_path / "a", rows, pipeline))
    assert loaded.engine == "sklearn"
    assert "99.9% are needed" in loaded.manifest["reason"]
    assert not (tmp_path / "a" / "model.onnx").exists()
    frame = statistics_of.to_frame(FEATURES, rows.columns)
    np.testing.assert_array_equal(loaded.score(rows.columns), pipeline.predict_proba(frame)[:, 1])
    assert loaded.replay() == 0.0


def test_what_cannot_be_converted_is_served_by_scikit_learn(tmp_path: Path, rows: Any) -> None:
    calibrated = CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2)
    for i, estimator in enumerate((calibrated, LinearDiscriminantAnalysis(), GaussianNB(), KNeighborsClassifier())):
        pipeline = rows.fit(estimator)
        try:
            found = save(tmp_path / str(i), rows, pipeline)
        except ArtifactRefused as exc:
            assert "not a type that we load" in str(exc)  # noqa: PT017
            continue
        loaded = model.load(tmp_path / str(i), found)
        expected = pipeline.predict_proba(statistics_of.to_frame(FEATURES, rows.columns))[:, 1]
        assert (
            np.mean(np.abs(loaded.score(rows.columns) - expected) <= engines.PARITY_TOLERANCE) >= engines.PARITY_SHARE
        )


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.skops", "reference.json", "golden.json", "signature.json", "manifest.json"]
)
def test_an_altered_missing_or_linked_file_is_refused(artifact: tuple[Path, str], name: str) -> None:
    folder, found = artifact
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactRefused, match=name):
        model.load(folder, found)
    path.unlink()
    with pytest.raises(ArtifactRefused, match=f"{name} is missing"):
        model.load(folder, found)
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(content)
    path.symlink_to(elsewhere)
    with pytest.raises(ArtifactRefused, match=f"{name} is a symbolic link"):
        model.load(folder, found)


@pytest.mark.parametrize("name", ["../secrets", "/etc/passwd", "extra.json"])
def test_a_manifest_that_names_other_files_is_refused(artifact: tuple[Path, str], name: str) -> None:
    folder, _ = artifact
    files = json.loads((folder / "manifest.json").read_text())["files"]
    for odd in (files | {name: files["model.onnx"]}, {k: v for k, v in files.items() if k != "golden.json"}):
        with pytest.raises(ArtifactRefused, match="other files"):
            model.load(folder, rewritten(folder, files=odd))


def test_another_format_or_another_hash_is_refused(artifact: tuple[Path, str]) -> None:
    folder, found = artifact
    with pytest.raises(ArtifactRefused, match="registered is"):
        model.load(folder, "0" * 64)
    with pytest.raises(ArtifactRefused, match=r"format 1, and this release reads 2: train"):
        model.load(folder, rewritten(folder, format=1))
    with pytest.raises(ArtifactRefused, match=r"manifest\.json is missing"):
        model.load(folder.parent, found)


class Foreign(LogisticRegression):
    pass


def test_a_foreign_type_is_refused_when_saving_and_when_loading(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = rows.fit(Foreign())
    with pytest.raises(ArtifactRefused, match="Foreign"):
        save(tmp_path / "a", rows, pipeline)
    monkeypatch.setattr(packing, "TRUSTED_TYPES", (*packing.TRUSTED_TYPES, f"{Foreign.__module__}.Foreign"))
    found = save(tmp_path / "b", rows, pipeline)
    monkeypatch.undo()
    with pytest.raises(ArtifactRefused, match="Foreign"):
        model.load(tmp_path / "b", found).pipeline()


def test_golden_answers_that_changed_are_refused(artifact: tuple[Path, str]) -> None:
    folder, _ = artifact
    golden = json.loads((folder / "golden.json").read_text())
    golden["scores"][3] += 0.01
    (folder / "golden.json").write_text(json.dumps(golden))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    content = (folder / "golden.json").read_bytes()
    files["golden.json"] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    loaded = model.load(folder, rewritten(folder, files=files))
    with pytest.raises(ArtifactRefused, match=r"golden answers differ by 0\.01"):
        loaded.replay()


def test_golden_requests_hold_a_row_of_missing_values(artifact: tuple[Path, str]) -> None:
    golden = model.load(*artifact).golden
    assert len(golden.scores) == 17
    assert np.isnan(golden.columns["rain"][-1])
    assert golden.columns["carrier"][-1] == ""
    assert golden.columns["origin"][-1] == "never seen"


def test_the_reference_survives(artifact: tuple[Path, str], rows: Any) -> None:
    loaded = model.load(*artifact).reference
    assert loaded.to_dict() == rows.reference.to_dict()
    assert loaded.bins == rows.reference.bins
    assert loaded.total.n == len(rows.y)
    assert loaded.total.scores.sum() == len(rows.y)


def test_a_serving_replica_imports_little(artifact: tuple[Path, str]) -> None:
    folder, found = artifact
    program = (
        "import sys, numpy as np\n"
        "from mlops_ray.training.artifact import model\n"
        f"loaded = model.load({str(folder)!r}, {found!r})\n"
        "loaded.replay(); loaded.reference.total\n"
        "heavy = {'ray', 'mlflow', 'sklearn', 'skops', 'skl2onnx', 'onnx', 'pandas', 'scipy', 'pyarrow', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_published_and_fetched_it_is_the_same(artifact: tuple[Path, str], tmp_path: Path, rows: Any) -> None:
    folder, found = artifact
    remote = (tmp_path / "bucket" / "run").as_uri()
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    model.publish(folder, remote)
    copy = model.fetch(remote, tmp_path / "cache", found)
    assert model.fetch(remote, tmp_path / "cache", found) == copy
    assert model.load(copy, found).score(rows.columns) == pytest.approx(model.load(folder, found).score(rows.columns))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [found]
    with pytest.raises(ArtifactRefused, match="is missing"):
        model.fetch((tmp_path / "nowhere").as_uri(), tmp_path / "cache", "0" * 64)
    local = str(tmp_path / "models" / "run")
    model.publish(folder, local)
    assert not folder.exists()
    assert model.load(model.fetch(local, tmp_path / "cache", found), found).engine == "onnx"
