"""The artifact of a training run: a folder that serving, monitoring and audits read without Ray or MLflow.

`save` writes the folder and returns the SHA-256 of its manifest, which names every file with its own hash: that one
hash pins the whole artifact. `load` believes nothing that does not lead back to it, never unpickles, and for a model
whose engine is `onnx` imports neither scikit-learn nor skops, so that a serving replica stays small and starts quickly.

    model.skops     the fitted scikit-learn Pipeline
    model.onnx      the same pipeline as a graph (absent when it could not be converted)
    reference.json  what the training rows and their scores looked like, per block of time
    golden.json     a few requests with the answers that any replica must reproduce
    signature.json  features and target
    manifest.json   hashes, engine, why that engine, parity of the two engines
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Features
from mlops_ray.data.features.derive import derive
from mlops_ray.data.profile import Bins, Columns, Profile, empty
from mlops_ray.errors import ArtifactRefused, DataError
from mlops_ray.training.artifact import converters

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Engine = Literal["onnx", "sklearn"]

TRUSTED_TYPES = (
    # What skops does not trust by itself and we do, once the file's hash is right. Everything else is refused, but for
    # the types that the project's file names for a version (`features.trusted_types`).
    "numpy.clip",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)
PARITY_TOLERANCE = 1e-5  # float32 sums of 150 trees differ from float64 ones by about 1e-7; 1e-5 is another model
PARITY_SHARE = 0.999  # a value that ties with a split's threshold in float32 may fall on its other side
GOLDEN_TOLERANCE = 1e-5  # another processor may add floats in another order
_FORMAT = 1
_OPSET = {"": 21, "ai.onnx.ml": 3}  # 3: the last one whose tree operators skl2onnx 1.20 writes
_ALWAYS = ("model.skops", "reference.json", "golden.json", "signature.json")


@dataclass(frozen=True)
class Reference:
    """What a version was trained and tested on: the monitor's yardstick.

    blocks: start of each block of time (seconds since epoch, a multiple of the block's length) and the profile of its
    rows, oldest first. Their scores come from models that did not see those rows.
    holdout: per block of the holdout its start, rows, summed log-loss (nats) and number of positives.
    """

    bins: Bins
    block_s: float
    blocks: tuple[tuple[float, Profile], ...]
    holdout: tuple[tuple[float, int, float, int], ...]

    @property
    def total(self) -> Profile:
        """All blocks as one profile."""
        return sum((profile for _, profile in self.blocks), empty(self.bins))

    def to_dict(self) -> dict[str, Any]:
        """The reference as JSON-friendly values."""
        return {
            "bins": self.bins.to_dict(),
            "block_s": self.block_s,
            "blocks": [[start, profile.to_dict()] for start, profile in self.blocks],
            "holdout": [list(block) for block in self.holdout],
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Reference:
        """The reference that `to_dict` described."""
        return Reference(
            Bins.from_dict(body["bins"]),
            float(body["block_s"]),
            tuple((float(start), Profile.from_dict(profile)) for start, profile in body["blocks"]),
            tuple((float(t), int(n), float(loss), int(positives)) for t, n, loss, positives in body["holdout"]),
        )


@dataclass(frozen=True)
class Golden:
    """Requests with the answers that were right when the model was packaged."""

    columns: Columns
    scores: NDArray[np.float64]


class _Scorer(Protocol):
    def __call__(self, columns: Columns) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Model:
    """A loaded artifact. `score` may be called from several threads at once."""

    folder: Path
    sha256: str
    engine: Engine
    features: Features
    target: str
    manifest: Mapping[str, Any]
    _score: _Scorer = field(repr=False)

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """P(target = 1) for each row.

        Args: columns as in a batch: every input, shape (n,), numbers float32 (missing NaN), strings as objects
            (missing ""), times float64 seconds since the epoch (missing NaN). Further columns are ignored.
        Returns: shape (n,), float64 in [0, 1].
        Raises: DataError when a feature is missing or a number is infinite.
        """
        missing = [name for name in self.features.inputs if name not in columns]
        if missing:
            raise DataError("request", f"feature {missing[0]!r} is missing; the model takes {self.features.inputs}")
        if len(columns[self.features.inputs[0]]) == 0:
            return np.empty(0)
        return self._score(columns)

    @cached_property
    def reference(self) -> Reference:
        """Read, checked and parsed at the first call."""
        return Reference.from_dict(self._json("reference.json"))

    @cached_property
    def golden(self) -> Golden:
        """Read, checked and parsed at the first call."""
        body = self._json("golden.json")
        columns = {n: np.array(v, dtype=np.float32) for n, v in body["numeric"].items()}
        columns |= {n: np.array(v, dtype=object) for n, v in body["categorical"].items()}
        columns |= {n: np.array(v, dtype=np.float64) for n, v in body.get("times", {}).items()}
        return Golden(columns, np.array(body["scores"], dtype=np.float64))

    def replay(self) -> float:
        """Largest difference between the golden answers and today's.

        Raises: ArtifactRefused when it is above `GOLDEN_TOLERANCE`: this machine does not run the model we tested."""
        gap = float(np.abs(self.score(self.golden.columns) - self.golden.scores).max())
        if not gap <= GOLDEN_TOLERANCE:
            raise ArtifactRefused(str(self.folder), f"golden answers differ by {gap:.2g}, above {GOLDEN_TOLERANCE:g}")
        return gap

    def pipeline(self) -> Pipeline:
        """The scikit-learn Pipeline, whatever engine scores; imports scikit-learn and skops.

        Raises: ArtifactRefused when the file has changed or holds a type that we do not load."""
        return _unpack(_read(self.folder, "model.skops", self.manifest), str(self.folder), self.features)

    def _json(self, name: str) -> Any:
        return json.loads(_read(self.folder, name, self.manifest))


def save(
    folder: Path,
    pipeline: Pipeline,
    *,
    features: Features,
    target: str,
    reference: Reference,
    holdout: Columns,
    n_golden: int = 16,
) -> str:
    """Write the artifact of `pipeline` (fitted: `features` step, `model` step) into the new directory `folder`.

    Args: holdout: rows (n >= 1) that choose the engine: ONNX where it agrees with scikit-learn, else scikit-learn.
        n_golden: how many of them become golden requests, besides one of missing values and unknown categories, where
            the model answers to that.
    Returns: SHA-256 of the manifest, the hash to register and to hand to `load`.
    Raises: ArtifactRefused when the pipeline holds a type that `load` would refuse.
    """
    folder.mkdir(parents=True)
    packed, trusted = _pack(pipeline, str(folder), features)
    expected = _sklearn_scorer(pipeline, features)(holdout)
    engine, reason, parity, graph = _choose_engine(pipeline, features, holdout, expected)
    score = _onnx_scorer(graph, features) if graph is not None else _sklearn_scorer(pipeline, features)
    files = {
        "model.skops": packed,
        "reference.json": _dump(reference.to_dict()),
        "golden.json": _dump(_golden(score, features, holdout, n_golden)),
        "signature.json": _dump({"features": features.model_dump(mode="json"), "target": target}),
    }
    if graph is not None:
        files["model.onnx"] = graph
    manifest = {
        "format": _FORMAT,
        "engine": engine,
        "reason": reason,
        "parity": parity,
        "trusted": trusted,
        "estimator": f"{type(pipeline[-1]).__module__}.{type(pipeline[-1]).__name__}",
        "files": {n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in sorted(files.items())},
    }
    files["manifest.json"] = _dump(manifest)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return hashlib.sha256(files["manifest.json"]).hexdigest()


def load(folder: str | Path, sha256: str) -> Model:
    """The model in the local directory `folder`, whose manifest has the hash `sha256`.

    Every file is hashed, and what is used is the bytes that were hashed. Cost: about 10 ms for 1 MB of trees.
    Raises: ArtifactRefused when a file is missing, altered, a symbolic link, not one of ours, or of a foreign type.
    """
    folder = Path(folder)
    content = _regular(folder, "manifest.json")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ArtifactRefused(str(folder), f"manifest.json has SHA-256 {found}, registered is {sha256}")
    manifest = json.loads(content)
    if manifest.get("format") != _FORMAT:
        raise ArtifactRefused(str(folder), f"format {manifest.get('format')!r}; this release reads {_FORMAT}")
    engine: Engine = "onnx" if manifest["engine"] == "onnx" else "sklearn"
    wanted = {*_ALWAYS, "model.onnx"} if engine == "onnx" else {*_ALWAYS}
    if set(manifest["files"]) != wanted:
        odd = sorted(set(manifest["files"]) ^ wanted)
        raise ArtifactRefused(str(folder), f"manifest lists other files than {sorted(wanted)}: {odd}")
    bodies = {name: _read(folder, name, manifest) for name in sorted(wanted)}
    signature = json.loads(bodies["signature.json"])
    features = Features.model_validate(signature["features"])
    if engine == "onnx":
        score = _onnx_scorer(bodies["model.onnx"], features)
    else:
        score = _sklearn_scorer(_unpack(bodies["model.skops"], str(folder), features), features)
    return Model(folder, sha256, engine, features, signature["target"], manifest, score)


def publish(folder: Path, address: str) -> None:
    """Put the artifact in local `folder` at `address`: a local path (moved there in one rename) or an object store.

    On an object store the manifest is copied last, so that a half-written artifact has none."""
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        folder.rename(address)
        return
    from pyarrow import fs

    remote, root = fs.FileSystem.from_uri(address)
    for path in sorted(folder.iterdir(), key=lambda p: p.name == "manifest.json"):
        with remote.open_output_stream(f"{root}/{path.name}") as out:
            out.write(path.read_bytes())


def fetch(address: str, cache: Path, sha256: str) -> Path:
    """A local directory with the artifact at `address`: the place itself, or a copy in `cache` named by `sha256`.

    Raises: ArtifactRefused when the address holds no artifact. The copy is not verified here: `load` does that."""
    if "://" not in address:
        return Path(address)
    target = cache / sha256
    if target.is_dir():
        return target
    from pyarrow import fs

    remote, root = fs.FileSystem.from_uri(address)
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache))
    try:
        for name in (*_ALWAYS, "model.onnx", "manifest.json"):
            info = remote.get_file_info(f"{root}/{name}")
            if info.type == fs.FileType.File:
                with remote.open_input_stream(info.path) as stream:
                    (partial / name).write_bytes(stream.read())
            elif name != "model.onnx":
                raise ArtifactRefused(address, f"{name} is missing")
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker, with the same files
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


# --- files ---------------------------------------------------------------------------------------------------------


def _dump(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _regular(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ArtifactRefused(str(folder), f"{name} is {'a symbolic link' if path.is_symlink() else 'missing'}")
    return path.read_bytes()


def _read(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    content = _regular(folder, name)
    found = hashlib.sha256(content).hexdigest()
    if found != manifest["files"][name]["sha256"]:
        raise ArtifactRefused(str(folder), f"{name} was altered: its SHA-256 is {found}")
    return content


def _pack(pipeline: Pipeline, artifact: str, features: Features) -> tuple[bytes, list[str]]:
    import skops.io

    packed: bytes = skops.io.dumps(pipeline)
    return packed, _refuse_foreign(packed, artifact, features)


def _unpack(packed: bytes, artifact: str, features: Features) -> Pipeline:
    import skops.io

    try:
        pipeline: Pipeline = skops.io.loads(packed, trusted=_refuse_foreign(packed, artifact, features))
    except (ImportError, AttributeError) as exc:
        raise ArtifactRefused(artifact, f"holds a type that cannot be imported here: {exc}; install it") from exc
    return pipeline


def _refuse_foreign(packed: bytes, artifact: str, features: Features) -> list[str]:
    """The types in `packed` that skops leaves to us to trust, all of them on our list or on the project's.

    The project's list stands in the artifact's signature, whose hash leads back to the registered one: no version can
    be given types that its project did not name when it was trained."""
    types, foreign = types_in(packed, features)
    if foreign:
        way = "use scikit-learn's own classes, or name it in features.trusted_types"
        raise ArtifactRefused(artifact, f"holds {foreign[0]}, not a type that we load; {way}")
    return types


def types_in(packed: bytes, features: Features) -> tuple[list[str], list[str]]:
    """The types in what skops packed that it leaves to us to trust, sorted, and those of them that nobody trusts:
    neither our list nor the project's `features.trusted_types`."""
    import skops.io

    types = set(skops.io.get_untrusted_types(data=packed))
    return sorted(types), sorted(types - set(TRUSTED_TYPES) - set(features.trusted_types))


def _answers(score: _Scorer, columns: Columns) -> bool:
    """Whether the model has an answer to these rows: one whose features are not all imputed has none where a value is
    missing that never was, and no request may leave it out."""
    try:
        return bool(np.isfinite(score(columns)).all())
    except ValueError:
        return False


def _golden(score: _Scorer, features: Features, holdout: Columns, n_golden: int) -> dict[str, Any]:
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
    return {
        **told,
        "scores": score(columns).tolist(),
    }


# --- engines -------------------------------------------------------------------------------------------------------


def _sklearn_scorer(pipeline: Pipeline, features: Features) -> _Scorer:
    from mlops_ray.data.features.statistics import to_frame

    def score(columns: Columns) -> NDArray[np.float64]:
        _matrix(columns, features.raw_numbers)
        scores: NDArray[np.float64] = pipeline.predict_proba(to_frame(features, columns))[:, 1].astype(np.float64)
        return scores

    return score


def _matrix(columns: Columns, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Columns side by side, shape (n, names). Raises: DataError for an infinite value: the engines differ on those."""
    if not names:
        return np.empty((0, 0), dtype=np.float32)
    matrix = np.stack([columns[name] for name in names], axis=1, dtype=np.float32, casting="same_kind")
    infinite = np.isinf(matrix)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise DataError(
            "request", f"row {row}: {names[column]} is infinite; send a number, or null where it is missing"
        )
    return matrix


def _onnx_scorer(graph: bytes, features: Features) -> _Scorer:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # more, and the replicas of one machine fight over its cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    numeric, categorical, raw = features.numbers, features.texts, features.raw_numbers

    def score(columns: Columns) -> NDArray[np.float64]:
        feed: dict[str, NDArray[Any]] = {}
        if numeric != raw:
            _matrix(columns, raw)
        columns = derive(features, columns)
        if numeric:
            feed["numeric"] = _matrix(columns, numeric)
        if categorical:
            feed["categorical"] = np.stack([columns[c] for c in categorical], axis=1)
        scores: NDArray[np.float64] = session.run(["probabilities"], feed)[0][:, 1].astype(np.float64)
        return scores

    return score


def _choose_engine(
    pipeline: Pipeline, features: Features, holdout: Columns, expected: NDArray[np.float64]
) -> tuple[Engine, str, dict[str, Any] | None, bytes | None]:
    """Engine, why, how far the engines are apart on the holdout, and the graph if it is the engine."""
    import onnxruntime as ort
    from skl2onnx.common.exceptions import (
        MissingConverter,
        MissingShapeCalculator,
    )

    try:
        graph = to_onnx(pipeline, features)
        got = _onnx_scorer(graph, features)(holdout)
    except (
        MissingConverter,
        MissingShapeCalculator,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
        ort.capi.onnxruntime_pybind11_state.Fail,
        ort.capi.onnxruntime_pybind11_state.InvalidGraph,
        ort.capi.onnxruntime_pybind11_state.InvalidArgument,
        ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ) as exc:
        return "sklearn", f"no ONNX graph: {type(exc).__name__}: {str(exc).strip().splitlines()[0][:200]}", None, None
    gaps = np.abs(got - expected)
    share = float(np.mean(gaps <= PARITY_TOLERANCE))
    parity = {"n": len(gaps), "share_within": share, "tolerance": PARITY_TOLERANCE, "max_gap": float(gaps.max())}
    if share < PARITY_SHARE:
        return "sklearn", f"ONNX agrees on {share:.2%} of the holdout, {PARITY_SHARE:.1%} are needed", parity, None
    return "onnx", f"ONNX agrees on {share:.2%} of the holdout", parity, graph


def to_onnx(pipeline: Pipeline, features: Features) -> bytes:
    """The whole fitted pipeline as one serialised ONNX graph.

    Inputs `numeric` float32 (n, k) and `categorical` string (n, m), in the order of `features`; output `probabilities`
    float32 (n, 2). Imputing and scaling run in float64, as in scikit-learn, and are rounded once: rounding keeps order,
    so a value that equals a split's threshold (boosting takes many thresholds from the rows) stays on its side. With
    the whole graph in float32 one row in fifteen fell on the wrong one.
    Raises: what skl2onnx raises for estimators that it cannot convert.
    """
    from onnx import TensorProto, compose, helper
    from skl2onnx import convert_sklearn as convert
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    k, m = len(features.numbers), len(features.texts)
    transformer, estimator = _by_position(pipeline[0], features), pipeline[-1]
    inputs = [("raw", DoubleTensorType([None, k]))] if k else []
    inputs += [("categorical", StringTensorType([None, m]))] if m else []
    width = len(transformer.get_feature_names_out(features.columns))
    before = convert(
        transformer,
        initial_types=inputs,
        target_opset=_OPSET,
        custom_conversion_functions=converters.converters(),
        custom_shape_calculators=converters.shapes(),
    )
    _spell_out_imputers(before.graph, transformer)
    graph = before.graph
    _widen(graph)
    inner = graph.output[0].name
    if k:
        graph.node.insert(0, helper.make_node("Cast", ["numeric"], ["raw"], to=TensorProto.DOUBLE))
        kept = [i for i in graph.input if i.name != "raw"]
        del graph.input[:]
        graph.input.extend([helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, k]), *kept])
    graph.node.append(helper.make_node("Cast", [inner], ["features"], to=TensorProto.FLOAT))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, width]))
    with _plain_integers():
        after = convert(
            estimator,
            initial_types=[("features", FloatTensorType([None, width]))],
            options={id(estimator): {"zipmap": False}},
            target_opset=_OPSET,
        )
    before, after = compose.add_prefix(before, "before_", rename_inputs=False, rename_outputs=False), after
    after.ir_version = before.ir_version
    for part in (before, after):  # each names the sets that it needs itself; both were made for these
        del part.opset_import[:]
        part.opset_import.extend(helper.make_opsetid(*item) for item in _OPSET.items())
    merged = compose.merge_models(before, after, io_map=[("features", "features")], outputs=["probabilities"])
    serialised: bytes = merged.SerializeToString()
    return serialised


def _by_position(transformer: Any, features: Features) -> Any:
    """A copy of a ColumnTransformer that takes columns by position: two wide inputs instead of one per column."""
    position = {name: i for i, name in enumerate(features.columns)}
    moved = copy.copy(transformer)
    moved.transformers_ = [
        (name, step, [position[c] for c in columns])
        for name, step, columns in transformer.transformers_
        if name != "remainder"
    ]
    return moved


def _widen(graph: Any) -> None:
    """Every part of the transformer gives float64 to the operator that puts them side by side: encoders of categories
    answer in other types, and ONNX has no such operator over several."""
    from onnx import TensorProto, helper

    made = {out: node for node in graph.node for out in node.output}
    last = made.get(graph.output[0].name)
    while last is not None and last.op_type in ("Identity", "Cast"):
        last = made.get(last.input[0])
    if last is None or last.op_type != "Concat":
        return
    at = list(graph.node).index(last)
    for i, name in enumerate(list(last.input)):
        last.input[i] = f"wide_{i}"
        graph.node.insert(at, helper.make_node("Cast", [name], [f"wide_{i}"], to=TensorProto.DOUBLE))


def _spell_out_imputers(graph: Any, transformer: Any) -> None:
    """Replace each `Imputer` by `IsNaN` and `Where`: ONNX Runtime has no Imputer for float64.

    The node holds its fill value in float32, so the float64 one is looked up in `transformer`."""
    from onnx import helper, numpy_helper
    from sklearn.impute import SimpleImputer

    steps = [step for _, outer, _ in transformer.transformers_ for step in (outer, *_steps(outer))]
    fills = [np.asarray(s.statistics_, dtype=np.float64) for s in steps if isinstance(s, SimpleImputer)]
    for i, node in enumerate(list(graph.node)):
        if node.op_type != "Imputer":
            continue
        rounded = np.array(next(a.floats for a in node.attribute if a.name == "imputed_value_floats"), dtype=np.float32)
        fill = next(f for f in fills if f.shape == rounded.shape and np.array_equal(f.astype(np.float32), rounded))
        graph.initializer.append(numpy_helper.from_array(fill, f"fill_{i}"))
        at = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(at, helper.make_node("Where", [f"nan_{i}", f"fill_{i}", node.input[0]], [node.output[0]]))
        graph.node.insert(at, helper.make_node("IsNaN", [node.input[0]], [f"nan_{i}"]))


def _steps(step: Any) -> tuple[Any, ...]:
    return tuple(inner for _, inner in getattr(step, "steps", ()))


@contextlib.contextmanager
def _plain_integers() -> Iterator[None]:
    """While it lasts skl2onnx hands tree nodes on as Python integers.

    skl2onnx 1.20 passes NumPy's unsigned integers and booleans of HistGradientBoosting, which protobuf 7 refuses."""
    from skl2onnx.common import tree_ensemble

    original = tree_ensemble.add_node

    def add_node(
        attributes: Any, is_classifier: Any, tree: Any, weight: Any, node: Any, feature: Any, *rest: Any, **named: Any
    ) -> None:
        if "nodes_missing_value_tracks_true" in named:
            named["nodes_missing_value_tracks_true"] = int(named["nodes_missing_value_tracks_true"])
        original(attributes, is_classifier, tree, weight, node, int(feature), *rest, **named)

    tree_ensemble.add_node = add_node
    try:
        yield
    finally:
        tree_ensemble.add_node = original
