"""The two ways to answer, ONNX Runtime and scikit-learn, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Features, Task
from mlops_ray.data.features.derive import derive
from mlops_ray.data.profile import Columns
from mlops_ray.errors import ArtifactRefused, DataError
from mlops_ray.training.artifact import inspection

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Engine = Literal["onnx", "sklearn"]
Scores = NDArray[np.float64]

PARITY_TOLERANCE = 1e-5
"""Of a probability, or of a regression's spread (`spread`). Float32 sums of 150 trees differ from float64 ones by about
1e-7; 1e-5 is another model."""
PARITY_SHARE = 0.999
"""Of the holdout's rows. A value that ties with a split's threshold in float32 may fall on its other side."""


class Scorer(Protocol):
    """Scores of columns: binary (n,) P(1), multiclass (n, classes), regression (n,)."""

    def __call__(self, columns: Columns) -> Scores:
        """Scores, float64."""
        ...


def spread(task: Task, scores: Scores) -> float:
    """The unit in which answers are compared: 1 for probabilities, the standard deviation of the predictions for
    regression, which is no larger than the target's where a model is any good. Answers that hardly vary are compared
    to a millionth of their size, at which float32 ends."""
    if task != "regression":
        return 1.0
    return float(max(np.std(scores), 1e-6 * np.abs(scores).max(initial=0.0))) or 1.0


def sklearn_scorer(pipeline: Pipeline, features: Features, task: Task) -> Scorer:
    """Scores by scikit-learn."""
    from mlops_ray.data.features.statistics import to_frame

    def score(columns: Columns) -> Scores:
        _matrix(columns, features.raw_numbers)
        frame = to_frame(features, columns)
        if task == "regression":
            return np.asarray(pipeline.predict(frame), dtype=np.float64).reshape(len(frame))
        found = np.asarray(pipeline.predict_proba(frame), dtype=np.float64)
        return found[:, 1] if task == "binary" else found

    return score


def onnx_scorer(graph: bytes, features: Features, task: Task, n_classes: int, artifact: str) -> Scorer:
    """Scores by ONNX Runtime.

    Raises: ArtifactRefused when the graph is more than a graph, cannot run, or takes or answers something else."""
    import onnxruntime as ort

    inspection.check(graph, artifact)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # more, and the replicas of one machine fight over its cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        # ONNX Runtime has a dozen unrelated classes for what can be wrong with a graph, some only `RuntimeError`.
        reason = str(exc).strip().splitlines()[0][:300]
        raise ArtifactRefused(artifact, f"ONNX Runtime refuses model.onnx: {type(exc).__name__}: {reason}") from exc
    numeric, categorical, raw = features.numbers, features.texts, features.raw_numbers
    width = 1 if task == "regression" else n_classes
    output = "prediction" if task == "regression" else "probabilities"
    _check_ends(session, features, output, artifact)

    def score(columns: Columns) -> Scores:
        feed: dict[str, NDArray[Any]] = {}
        if numeric != raw:
            _matrix(columns, raw)
        columns = derive(features, columns)
        if numeric:
            feed["numeric"] = _matrix(columns, numeric)
        if categorical:
            feed["categorical"] = _beside([columns[c] for c in categorical], np.dtype(object))
        found = session.run([output], feed)[0]
        if found.shape != (len(next(iter(feed.values()))), width):
            raise ArtifactRefused(artifact, f"model.onnx answers shape {found.shape}, not (n, {width})")
        scores: Scores = found.astype(np.float64, copy=False)
        return scores if task == "multiclass" else scores[:, -1]

    return score


def _check_ends(session: Any, features: Features, output: str, artifact: str) -> None:
    wanted = {
        "numeric": ("tensor(float)", len(features.numbers)),
        "categorical": ("tensor(string)", len(features.texts)),
    }
    wanted = {name: (kind, width) for name, (kind, width) in wanted.items() if width}
    found = {each.name: (each.type, each.shape[-1] if each.shape else None) for each in session.get_inputs()}
    if found != wanted:
        raise ArtifactRefused(artifact, f"model.onnx takes {found}; the signature's features are {wanted}")
    answers = {each.name: each.type for each in session.get_outputs()}
    if answers != {output: "tensor(double)"}:
        raise ArtifactRefused(artifact, f"model.onnx answers {answers}, not {output!r} in float64")


def _matrix(columns: Columns, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Columns side by side, shape (n, names). Raises: DataError for an infinite value: the engines differ on those."""
    if not names:
        return np.empty((0, 0), dtype=np.float32)
    matrix = _beside([columns[name] for name in names], np.dtype(np.float32))
    infinite = np.isinf(matrix)
    if np.count_nonzero(infinite):  # half of what `any` takes
        row, column = np.argwhere(infinite)[0]
        raise DataError(
            "request", f"row {row}: {names[column]} is infinite; send a number, or null where it is missing"
        )
    return matrix


def _beside(columns: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Columns of shape (n,) side by side, shape (n, columns), row after row in memory."""
    if len(columns[0]) == 1:  # a request of one row: a third of what `stack` takes, and that was a fifth of the scoring
        return np.concatenate(columns, dtype=dtype, casting="same_kind").reshape(1, -1)
    return np.stack(columns, axis=1, dtype=dtype, casting="same_kind")


def choose(
    pipeline: Pipeline, features: Features, task: Task, n_classes: int, holdout: Columns, expected: Scores
) -> tuple[Engine, str, dict[str, Any] | None, bytes | None]:
    """Engine, why, how far the engines are apart on the holdout, and the graph if it is the engine.

    Args: expected: scikit-learn's scores of the holdout."""
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    from mlops_ray.training.artifact.graph import to_onnx

    try:
        graph = to_onnx(pipeline, features)
        got = onnx_scorer(graph, features, task, n_classes, "of this pipeline")(holdout)
    except (
        ArtifactRefused,
        AttributeError,
        MissingConverter,
        MissingShapeCalculator,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as exc:
        return "sklearn", f"no ONNX graph: {type(exc).__name__}: {str(exc).strip().splitlines()[0][:300]}", None, None
    scale = spread(task, expected)
    gaps = np.abs(got - expected).reshape(len(expected), -1).max(axis=1) / scale
    share = float(np.mean(gaps <= PARITY_TOLERANCE))
    parity = {
        "n": len(gaps),
        "share_within": share,
        "tolerance": PARITY_TOLERANCE,
        "scale": scale,
        "max_gap": float(gaps.max()) if np.isfinite(gaps).all() else None,
    }
    if share < PARITY_SHARE:
        return "sklearn", f"ONNX agrees on {share:.2%} of the holdout, {PARITY_SHARE:.1%} are needed", parity, None
    return "onnx", f"ONNX agrees on {share:.2%} of the holdout", parity, graph
