from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.pipeline import Pipeline

from mlops_ray.config import Features
from mlops_ray.data.features import statistics as statistics_of
from mlops_ray.data.features import transformer as feature_room
from mlops_ray.data.profile import Bins, empty
from mlops_ray.errors import DataError
from mlops_ray.training.artifact import lock, model, standalone
from mlops_ray.training.artifact.export import export
from mlops_ray.training.artifact.model import Model, Reference

from .conftest import FEATURES, Rows

ROOT = Path(model.__file__).parents[3]


def version(folder: Path, rows: Rows, task: str, features: Features = FEATURES) -> Model:
    """A version of each task over the same rows."""
    estimators = {
        "binary": RandomForestClassifier(3, max_depth=4, random_state=0),
        "multiclass": RandomForestClassifier(3, max_depth=4, random_state=0),
        "regression": HistGradientBoostingRegressor(max_iter=5),
    }
    hour = rows.columns["hour"]
    labels = {"binary": rows.y, "multiclass": np.digitize(hour, [8, 16]), "regression": 1000.0 + 3 * hour}
    fitted = feature_room.transformer(features, statistics_of.fold(features, rows.table))
    matrix = fitted.transform(statistics_of.to_frame(features, rows.columns))
    pipeline = Pipeline([("features", fitted), ("model", estimators[task].fit(matrix, labels[task]))])
    nothing = Bins({}, {})
    sha256 = model.save(
        folder,
        pipeline,
        task=task,  # type: ignore[arg-type]  # one of the three
        classes={"binary": (0, 1), "multiclass": ("early", "noon", "late"), "regression": ()}[task],
        features=features,
        target="y",
        reference=Reference(nothing, 86400.0, ((0.0, empty(nothing)),), ()),
        holdout=rows.columns,
        lock=lock.environment_lock(lock.distributions_of(pipeline)),
        recipe={},
        threshold=0.3 if task == "binary" else None,
    )
    return model.load(folder, sha256)


def as_json(loaded: Model) -> list[dict[str, Any]]:
    """The golden requests as somebody would send them."""
    names = list(loaded.features.inputs)
    cells = [loaded.golden.columns[name].tolist() for name in names]
    return [
        {k: None if v == "" or v != v else v for k, v in zip(names, row, strict=True)}
        for row in zip(*cells, strict=True)
    ]


def run(folder: Path, *arguments: str, sent: str = "", alone: bool = True) -> subprocess.CompletedProcess[str]:
    """predict.py; when `alone`, in a process that can import neither this package nor what trains and packs."""
    (folder.parent / "sitecustomize.py").write_text(
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({['mlops_ray', 'sklearn', 'pandas', 'onnx', 'skops', 'ray', 'mlflow']!r}))\n"
        if alone
        else ""
    )
    env = {**os.environ, "PYTHONPATH": f"{folder.parent}:{ROOT}"}
    command = [sys.executable, str(folder / "predict.py"), *arguments]
    return subprocess.run(command, input=sent, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_an_exported_graph_answers_alone(tmp_path: Path, rows: Rows, task: str) -> None:
    loaded = version(tmp_path / "a", rows, task)
    made = export(loaded, tmp_path / "out", onnx=True, requirements=True, conda=True, dockerfile=True)
    assert [path.name for path in made] == [
        "Dockerfile",
        "conda.yaml",
        "golden.json",
        "model.onnx",
        "predict.py",
        "requirements.txt",
        "signature.json",
    ]
    assert json.loads(run(tmp_path / "out", "--check").stdout)["golden"] <= 1e-6
    done = run(tmp_path / "out", sent=json.dumps({"rows": as_json(loaded)}))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    np.testing.assert_allclose(told["scores"], loaded.golden.scores, rtol=1e-9)
    if task == "binary":
        assert told["answers"] == (loaded.golden.scores >= 0.3).astype(int).tolist()
    if task == "multiclass":
        assert set(told["answers"]) <= {"early", "noon", "late"}
        assert len(set(told["answers"])) > 1
    (tmp_path / "rows.json").write_text(json.dumps(as_json(loaded)))
    assert json.loads(run(tmp_path / "out", str(tmp_path / "rows.json")).stdout) == told


def test_what_is_needed_is_written_down(tmp_path: Path, rows: Rows) -> None:
    loaded = version(tmp_path / "a", rows, "binary")
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    export(loaded, alone, onnx=True, requirements=True, conda=True, dockerfile=True)
    export(loaded, whole, requirements=True)
    held = loaded.lock
    pins = [f"numpy=={held['numpy']}", f"onnxruntime=={held['onnxruntime']}"]
    assert (alone / "requirements.txt").read_text().split() == pins
    conda = yaml.safe_load((alone / "conda.yaml").read_text())
    assert conda["dependencies"][0] == f"python={held['python']}"
    assert conda["dependencies"][-1] == {"pip": pins}
    docker = (alone / "Dockerfile").read_text()
    assert docker.startswith(f"FROM python:{held['python'].rpartition('.')[0]}-slim\n")
    assert "USER 10001" in docker
    assert "HEALTHCHECK" in docker
    needed = (whole / "requirements.txt").read_text().split()
    assert any(each.startswith("mlops-ray") for each in needed)
    assert f"scikit-learn=={held['scikit-learn']}" in needed
    assert not (whole / "Dockerfile").exists()


def test_a_version_that_derives_columns_is_exported_with_this_package(tmp_path: Path, rows: Rows) -> None:
    features = Features.model_validate(
        {
            "numeric": {"columns": ["pressure", "hour"]},
            "categorical": {"columns": ["carrier"], "encode": "hash", "n_buckets": 4},
            "expressions": {"high": "pressure / (hour + 1)"},
        }
    )
    loaded = version(tmp_path / "a", rows, "regression", features)
    with pytest.raises(DataError, match=r"derives 5 columns .* leave --onnx out"):
        export(loaded, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()
    export(loaded, tmp_path / "out")
    assert json.loads(run(tmp_path / "out", "--check", alone=False).stdout)["golden"] <= 1e-6
    done = run(tmp_path / "out", sent=json.dumps(as_json(loaded)), alone=False)
    np.testing.assert_allclose(json.loads(done.stdout)["scores"], loaded.golden.scores, rtol=1e-9)
    assert "mlops_ray" in run(tmp_path / "out", "--check", alone=True).stderr
    with pytest.raises(DataError, match="exists; name a new folder"):
        export(loaded, tmp_path / "out")


def test_an_altered_graph_and_wrong_rows_are_refused(tmp_path: Path, rows: Rows) -> None:
    loaded = version(tmp_path / "a", rows, "binary")
    export(loaded, tmp_path / "out", onnx=True)
    good = as_json(loaded)[0]
    for sent, complaint in (
        ("[", "Expecting value"),
        ("[]", "at least one object"),
        ("7", "at least one object"),
        (json.dumps([{k: v for k, v in good.items() if k != "rain"}]), "row 0: 'rain' is missing"),
        (json.dumps([good, {**good, "hour": "noon"}]), "row 1: 'hour' must be a number"),
        (json.dumps([{**good, "hour": 1e300}]), "row 0: 'hour' must be a number that float32 holds"),
        (json.dumps([{**good, "carrier": 7}]), "row 0: 'carrier' must be a string"),
    ):
        done = run(tmp_path / "out", sent=sent)
        assert done.returncode == 2
        assert complaint in done.stderr
        assert "Traceback" not in done.stderr
    graph = tmp_path / "out" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    assert "model.onnx was altered" in run(tmp_path / "out", "--check").stderr


def test_it_answers_over_http(tmp_path: Path, rows: Rows) -> None:
    loaded = version(tmp_path / "a", rows, "multiclass")
    export(loaded, tmp_path / "out", onnx=True)
    predictor = standalone.Predictor(tmp_path / "out")
    with standalone.server(predictor, "127.0.0.1", 0) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{served.server_port}"
        try:
            assert json.load(urllib.request.urlopen(f"{base}/healthz", timeout=5)) == {"ok": True}
            body = json.dumps(as_json(loaded)).encode()
            with urllib.request.urlopen(f"{base}/predict", body, timeout=5) as answer:
                np.testing.assert_allclose(json.load(answer)["scores"], loaded.golden.scores, rtol=1e-9)
            for path, sent, status in (("/predict", b"[" * 100_000, 422), ("/predict", b"[{}]", 422), ("/", b"", 404)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(base + path, sent, timeout=5)
                assert refused.value.code == status
                assert json.load(refused.value)["error"]
                refused.value.close()
        finally:
            served.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "sent", "says"),
    [
        ("nofile.json", "", "nofile.json: cannot be read (No such file or directory); give JSON: a list of objects"),
        ("-", "", "standard input: holds nothing; give JSON"),
        ("-", "{rows", "standard input: is no JSON (Expecting property name"),
        ("-", "[1]", "standard input: send a list of at least one object"),
        ("bad.json", "", "bad.json: is no JSON ("),
    ],
)
def test_rows_that_are_none_end_in_a_sentence(tmp_path: Path, rows: Rows, name: str, sent: str, says: str) -> None:
    export(version(tmp_path / "a", rows, "regression"), tmp_path / "out", onnx=True)
    (tmp_path / "bad.json").write_bytes(b"\xff")
    done = run(tmp_path / "out", name if name == "-" else str(tmp_path / name), sent=sent)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
