"""A version as a folder that serves or embeds elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlops_ray.errors import DataError
from mlops_ray.training.artifact import files, standalone
from mlops_ray.training.artifact.lock import PYTHON
from mlops_ray.training.artifact.model import Model

_ALONE = ("numpy", "onnxruntime")
_PACKAGE = "mlops-ray"
_DOCKERFILE = """\
FROM python:{python}-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt && useradd --uid 10001 --no-create-home app
COPY . .
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \\
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["python", "predict.py", "--serve", "--host", "0.0.0.0", "--port", "8080"]
"""
_CONDA = """\
name: {name}
channels:
  - conda-forge
dependencies:
  - python={python}
  - pip
  - pip:
{packages}
"""


def export(
    loaded: Model,
    into: Path,
    *,
    onnx: bool = False,
    dockerfile: bool = False,
    conda: bool = False,
    requirements: bool = False,
    threshold: float | None = None,
) -> list[Path]:
    """Write the version into the new folder `into`: its files, `predict.py`, and what is asked for beside them.

    Args: onnx: the graph alone, which NumPy and ONNX Runtime answer; without it the whole artifact, which this package
        answers. dockerfile: an image that answers POST /predict, as no privileged user; brings requirements along.
        conda, requirements: environments with the versions that the model version was made with. threshold: from which
        score on a binary answer is 1, where the version has none of its own (`serving.threshold`).
    Returns: the files, sorted.
    Raises: DataError when `into` exists, or `onnx` is asked of a version that has no graph or derives columns.
    """
    features = loaded.features
    if into.exists():
        raise DataError("export", f"{into} exists; name a new folder")
    if onnx and loaded.engine != "onnx":
        reason = loaded.manifest["reason"]
        raise DataError("export", f"this version has no ONNX graph that may serve ({reason}); leave --onnx out")
    if onnx and features.derived:
        raise DataError(
            "export",
            f"this version derives {len(features.derived)} columns ({', '.join(features.derived[:3])} ...) before its "
            "graph, which only mlops_ray computes; leave --onnx out, and the folder needs that package",
        )
    into.mkdir(parents=True)
    hashes = {files.MANIFEST: loaded.sha256}
    if onnx:
        graph = files.read(loaded.folder, files.GRAPH, loaded.manifest)
        (into / files.GRAPH).write_bytes(graph)
        hashes[files.GRAPH] = files.digest(graph)
    else:
        (into / "artifact").mkdir()
        for name in (*loaded.manifest["files"], files.MANIFEST):
            shutil.copyfile(loaded.folder / name, into / "artifact" / name)
    (into / "golden.json").write_bytes(files.read(loaded.folder, "golden.json", loaded.manifest))
    (into / "signature.json").write_text(json.dumps(_signature(loaded, hashes, threshold), indent=1), encoding="utf-8")
    shutil.copyfile(standalone.__file__, into / "predict.py")
    needed = _needed(loaded.lock, alone=onnx)
    python = ".".join(loaded.lock.get(PYTHON, "3.11").split(".")[:2])
    if requirements or dockerfile:
        (into / "requirements.txt").write_text("".join(f"{each}\n" for each in needed), encoding="utf-8")
    if dockerfile:
        (into / "Dockerfile").write_text(_DOCKERFILE.format(python=python), encoding="utf-8")
    if conda:
        packages = "\n".join(f"      - {each}" for each in needed)
        name = f"model-{loaded.sha256[:8]}"
        text = _CONDA.format(name=name, python=loaded.lock.get(PYTHON, python), packages=packages)
        (into / "conda.yaml").write_text(text, encoding="utf-8")
    return sorted(path for path in into.rglob("*") if path.is_file())


def _signature(loaded: Model, hashes: Mapping[str, str], threshold: float | None) -> dict[str, Any]:
    """What `predict.py` reads: graphs take numbers, then texts, in this order."""
    features = loaded.features
    return {
        "task": loaded.task,
        "classes": list(loaded.classes),
        "threshold": threshold if loaded.threshold is None else loaded.threshold,
        "target": loaded.target,
        "inputs": [{"name": name, "kind": features.kinds[name]} for name in _in_order(loaded)],
        "trusted_types": list(features.trusted_types),
        "sha256": dict(hashes),
        "lock": dict(loaded.lock),
    }


def _in_order(loaded: Model) -> list[str]:
    """Inputs, those of the graph first and in its order."""
    features = loaded.features
    graph = [name for name in features.columns if name in features.kinds]
    return [*graph, *(name for name in features.inputs if name not in graph)]


def _needed(lock: Mapping[str, str], *, alone: bool) -> list[str]:
    """Requirements, pinned where a version is recorded."""
    names = _ALONE if alone else sorted({*lock, _PACKAGE} - {PYTHON})
    return [f"{name}=={lock[name]}" if name in lock else name for name in names]
