"""The artifact of a training run: a folder that serving, monitoring and audits read without Ray or MLflow.

`save` writes the folder and returns the SHA-256 of its manifest, which names every file with its own hash: that one
hash pins the whole artifact. `load` believes nothing that does not lead back to it, never unpickles, and for a model
whose engine is `onnx` imports neither scikit-learn nor skops, so that a serving replica stays small and starts quickly.
Whatever is wrong with a file, also one that was registered in bad faith, ends in `ArtifactRefused`.

    model.skops     the fitted scikit-learn Pipeline
    model.onnx      the same pipeline as a graph (absent when it could not be converted)
    reference.json  what the training rows and their scores looked like, per block of time, and what scores meant
    golden.json     a few requests with the answers that any replica must reproduce
    signature.json  task, classes, decision threshold, features and target
    manifest.json   hashes, engine, why that engine, parity of the two engines, versions of what it was made with
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Features, Task
from mlops_ray.data.profile import Bins, Columns, Profile, empty
from mlops_ray.errors import ArtifactRefused, DataError
from mlops_ray.training.artifact import engines, files, packing
from mlops_ray.training.artifact.engines import Engine, Scorer, Scores
from mlops_ray.training.artifact.files import fetch, publish
from mlops_ray.training.artifact.packing import types_in
from mlops_ray.training.calibration import Calibration

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from mlops_ray.training.target import Classes

__all__ = ["Golden", "Model", "Reference", "fetch", "load", "publish", "save", "types_in"]

T = TypeVar("T")
GOLDEN_TOLERANCE = 1e-5
"""Of a probability, or of a regression's spread: another processor may add floats in another order."""


@dataclass(frozen=True)
class Reference:
    """What a version was trained and tested on: the monitor's yardstick.

    blocks: start of each block of time (seconds since epoch, a multiple of the block's length) and the profile of its
    rows, oldest first. Their scores come from models that did not see those rows.
    holdout: per block of the holdout its start, rows, summed loss (`target.losses`: nats, or squared errors) and summed
    labels: the positives (binary), the target's sum (regression), 0 (multiclass, whose labels do not add up).
    calibration: what its scores meant on the holdout; None in versions of releases that did not keep it.
    """

    bins: Bins
    block_s: float
    blocks: tuple[tuple[float, Profile], ...]
    holdout: tuple[tuple[float, int, float, float], ...]
    calibration: Calibration | None = None

    @property
    def total(self) -> Profile:
        """All blocks as one profile."""
        return sum((profile for _, profile in self.blocks), empty(self.bins))

    def to_dict(self) -> dict[str, Any]:
        """The reference as JSON-friendly values."""
        body = {
            "bins": self.bins.to_dict(),
            "block_s": self.block_s,
            "blocks": [[start, profile.to_dict()] for start, profile in self.blocks],
            "holdout": [list(block) for block in self.holdout],
        }
        return body if self.calibration is None else body | {"calibration": self.calibration.to_dict()}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Reference:
        """The reference that `to_dict` described."""
        bins, kept = Bins.from_dict(body["bins"]), body.get("calibration")
        return Reference(
            bins,
            float(body["block_s"]),
            tuple((float(start), Profile.from_dict(profile)) for start, profile in body["blocks"]),
            tuple((float(t), int(n), float(loss), float(labels)) for t, n, loss, labels in body["holdout"]),
            None if kept is None else Calibration.from_dict(kept, bins),
        )


@dataclass(frozen=True)
class Golden:
    """Requests with the answers that were right when the model was packaged.

    scores: (n,), or (n, classes). scale: the unit in which answers are compared (`engines.spread`)."""

    columns: Columns
    scores: Scores
    scale: float


@dataclass(frozen=True)
class Model:
    """A loaded artifact. `score` may be called from several threads at once.

    threshold: of a binary model's score, from which on it says 1; None where the project's file decides.
    lock: distribution -> version of what the version was made with."""

    folder: Path
    sha256: str
    engine: Engine
    task: Task
    classes: Classes
    threshold: float | None
    features: Features
    target: str
    lock: Mapping[str, str]
    manifest: Mapping[str, Any]
    _score: Scorer = field(repr=False)
    _trusted: tuple[str, ...] = field(repr=False, default=())

    def score(self, columns: Columns) -> Scores:
        """The model's answers.

        Args: columns as in a batch: every input, shape (n,), numbers float32 (missing NaN), strings as objects
            (missing ""), times float64 seconds since the epoch (missing NaN). Further columns are ignored.
        Returns: float64. Binary: P(target = 1), shape (n,). Multiclass: P(class), shape (n, classes), in the order of
            `classes`. Regression: the prediction, shape (n,).
        Raises: DataError when a feature is missing or a number is infinite.
        """
        missing = [name for name in self.features.inputs if name not in columns]
        if missing:
            raise DataError("request", f"feature {missing[0]!r} is missing; the model takes {self.features.inputs}")
        if len(columns[self.features.inputs[0]]) == 0:
            return np.empty((0, len(self.classes)) if self.task == "multiclass" else 0)
        return self._score(columns)

    @cached_property
    def reference(self) -> Reference:
        """Read, checked and parsed at the first call. Raises: ArtifactRefused."""
        return self._parsed("reference.json", Reference.from_dict)

    @cached_property
    def golden(self) -> Golden:
        """Read, checked and parsed at the first call. Raises: ArtifactRefused."""
        return self._parsed("golden.json", self._golden)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What the version was made of; read at the first call. Raises: ArtifactRefused."""
        return self._parsed("recipe.json", dict)

    def replay(self) -> float:
        """Largest difference between the golden answers and today's, in units of `golden.scale`.

        Raises: ArtifactRefused when it is above `GOLDEN_TOLERANCE`: this machine does not run the model we tested."""
        golden, artifact = self.golden, str(self.folder)
        try:
            found = self.score(golden.columns)
        except ArtifactRefused:
            raise
        except Exception as exc:
            # The graph or pipeline is anybody's until its answers are right, and so is what it raises.
            raise ArtifactRefused(artifact, f"golden requests fail: {type(exc).__name__}: {exc}"[:500]) from exc
        gap = float(np.abs(found - golden.scores).max() / golden.scale)
        if not gap <= GOLDEN_TOLERANCE:
            raise ArtifactRefused(artifact, f"golden answers differ by {gap:.2g}, above {GOLDEN_TOLERANCE:g}")
        return gap

    def pipeline(self) -> Pipeline:
        """The scikit-learn Pipeline, whatever engine scores; imports scikit-learn and skops.

        Raises: ArtifactRefused when the file has changed or holds a type that we do not load."""
        packed = files.read(self.folder, "model.skops", self.manifest)
        return packing.unpack(packed, str(self.folder), self._trusted)

    def _parsed(self, name: str, make: Callable[[Any], T]) -> T:
        return files.parsed(str(self.folder), name, files.read(self.folder, name, self.manifest), make)

    def _golden(self, body: Mapping[str, Any]) -> Golden:
        columns = {n: np.array(v, dtype=np.float32) for n, v in body["numeric"].items()}
        columns |= {n: np.array([str(t) for t in v], dtype=object) for n, v in body["categorical"].items()}
        columns |= {n: np.array(v, dtype=np.float64) for n, v in body["times"].items()}
        scores, scale = np.array(body["scores"], dtype=np.float64), float(body["scale"])
        lengths = {len(values) for values in columns.values()}
        shape = (len(scores), len(self.classes)) if self.task == "multiclass" else (len(scores),)
        if set(columns) != set(self.features.inputs) or lengths != {len(scores)} or scores.shape != shape:
            raise ValueError("its requests are not this model's")
        if not np.isfinite(scores).all() or not 0 < scale < np.inf or not len(scores):
            raise ValueError("its answers are no numbers")
        return Golden(columns, scores, scale)


def save(
    folder: Path,
    pipeline: Pipeline,
    *,
    task: Task,
    classes: Classes,
    features: Features,
    target: str,
    reference: Reference,
    holdout: Columns,
    lock: Mapping[str, str],
    recipe: Mapping[str, Any],
    threshold: float | None = None,
    n_golden: int = 16,
) -> str:
    """Write the artifact of `pipeline` (fitted: `features` step, `model` step) into the new directory `folder`.

    Args: classes: as `target.classes` finds them; the estimator was fitted on their places 0 .. K-1.
        holdout: rows (n >= 1) that choose the engine: ONNX where it agrees with scikit-learn, else scikit-learn.
        lock: `lock.environment_lock(lock.distributions_of(pipeline))`.
        recipe: what the version was made of (JSON), kept as it is. threshold: see `Model`.
        n_golden: how many of the rows become golden requests, besides one of missing values and unknown categories,
            where the model answers to that.
    Returns: SHA-256 of the manifest, the hash to register and to hand to `load`.
    Raises: ArtifactRefused when the pipeline holds a type that `load` would refuse, or its signature does not fit;
        DataError when it answers no number to a row of the holdout.
    """
    artifact = str(folder)
    signature = files.dump(
        {
            "task": task,
            "classes": list(classes),
            "threshold": threshold,
            "features": features.model_dump(mode="json"),
            "target": target,
        }
    )
    files.parsed(artifact, "signature.json", signature, files.Signature.model_validate)
    packed, trusted = packing.pack(pipeline, artifact, features.trusted_types)
    score = engines.sklearn_scorer(pipeline, features, task)
    expected = score(holdout)
    if not np.isfinite(expected).all():
        raise DataError("holdout", f"the model answers no number to {int((~np.isfinite(expected)).sum())} rows")
    engine, reason, parity, graph = engines.choose(pipeline, features, task, len(classes), holdout, expected)
    if graph is not None:
        score = engines.onnx_scorer(graph, features, task, len(classes), artifact)
    contents = {
        "model.skops": packed,
        "reference.json": files.dump(reference.to_dict()),
        "golden.json": files.dump(_golden(score, features, holdout, n_golden, engines.spread(task, expected))),
        "signature.json": signature,
        "recipe.json": files.dump(dict(recipe)),
    }
    if graph is not None:
        contents[files.GRAPH] = graph
    manifest = {
        "format": files.FORMAT,
        "engine": engine,
        "reason": reason,
        "parity": parity,
        "trusted": trusted,
        "estimator": f"{type(pipeline[-1]).__module__}.{type(pipeline[-1]).__name__}",
        "lock": dict(lock),
        "files": {name: {"sha256": files.digest(b), "bytes": len(b)} for name, b in sorted(contents.items())},
    }
    contents[files.MANIFEST] = files.dump(manifest)
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return files.digest(contents[files.MANIFEST])


def load(folder: str | Path, sha256: str, *, trusted: Sequence[str] = ()) -> Model:
    """The model in the local directory `folder`, whose manifest has the hash `sha256`.

    Every file is hashed, and what is used is the bytes that were hashed. Cost: about 10 ms for 1 MB of trees.
    Args: trusted: `features.trusted_types` of the project's file: types beyond scikit-learn's that its versions may
        hold. The artifact does not say it for itself, for whoever can register a version could then name any type.
        Needed where scikit-learn scores, and by `pipeline`.
    Raises: ArtifactRefused when a file is missing, altered, a symbolic link, not one of ours, or of a foreign type.
    """
    folder, artifact = Path(folder), str(folder)
    content = files.regular(folder, files.MANIFEST)
    if (found := files.digest(content)) != sha256:
        raise ArtifactRefused(artifact, f"manifest.json has SHA-256 {found}, registered is {sha256}")
    manifest = files.parsed(artifact, files.MANIFEST, content, _manifest)
    bodies = {name: files.read(folder, name, manifest) for name in sorted(manifest["files"])}
    signature = files.parsed(artifact, "signature.json", bodies["signature.json"], files.Signature.model_validate)
    task, features, known = signature.task, signature.features, signature.classes
    if manifest["engine"] == "onnx":
        score = engines.onnx_scorer(bodies[files.GRAPH], features, task, len(known), artifact)
    else:
        score = engines.sklearn_scorer(packing.unpack(bodies["model.skops"], artifact, trusted), features, task)
    return Model(
        folder=folder,
        sha256=sha256,
        engine=manifest["engine"],
        task=task,
        classes=known,
        threshold=signature.threshold,
        features=features,
        target=signature.target,
        lock=manifest["lock"],
        manifest=manifest,
        _score=score,
        _trusted=tuple(trusted),
    )


def _manifest(body: Any) -> dict[str, Any]:
    """The manifest as it stands, checked."""
    if not isinstance(body, dict) or body.get("format") != files.FORMAT:
        found = body.get("format") if isinstance(body, dict) else None
        raise ValueError(f"format {found!r}, and this release reads {files.FORMAT}: train the version again")
    files.Manifest.model_validate(body)
    return body


def _answers(score: Scorer, columns: Columns) -> bool:
    """Whether the model has an answer to these rows: one whose features are not all imputed has none where a value is
    missing that never was, and no request may leave it out."""
    try:
        return bool(np.isfinite(score(columns)).all())
    except ValueError:
        return False


def _golden(score: Scorer, features: Features, holdout: Columns, n_golden: int, scale: float) -> dict[str, Any]:
    n = len(holdout[features.inputs[0]])
    rows = np.unique(np.linspace(0, n - 1, min(n, n_golden)).astype(np.int64))
    columns: dict[str, NDArray[Any]] = {}
    strings = 0
    for name, kind in features.kinds.items():
        if kind == "string":
            odd = "" if strings % 2 == 0 else "never seen"
            columns[name] = np.append(holdout[name][rows], np.array([odd], dtype=object))
            strings += 1
        else:
            dtype = np.float32 if kind == "number" else np.float64
            columns[name] = np.append(holdout[name][rows].astype(dtype), dtype("nan"))
    if not _answers(score, {name: values[-1:] for name, values in columns.items()}):
        columns = {name: values[:-1] for name, values in columns.items()}
    told: dict[str, dict[str, list[Any]]] = {"numeric": {}, "categorical": {}, "times": {}}
    for name, kind in features.kinds.items():
        if kind == "string":
            told["categorical"][name] = [str(v) for v in columns[name]]
        else:
            values = [None if np.isnan(v) else float(v) for v in columns[name]]
            told["numeric" if kind == "number" else "times"][name] = values
    return {**told, "scores": score(columns).tolist(), "scale": scale}
