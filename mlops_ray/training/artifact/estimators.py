"""ONNX operators of fitted estimators, in float64.

Linear models, forests, boosting of three libraries and calibration over them are written here, to the last bits of what
they answer in Python; whatever else skl2onnx can convert is converted by it, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.training.artifact import trees

OPSET = {"": 21, "ai.onnx.ml": 5}
OLD_OPSET = {"": 21, "ai.onnx.ml": 3}  # the last one with tree operators that skl2onnx 1.20 and `trees` also write
IR_VERSION = 10  # of May 2024: what opset 21 came with; onnx writes newer ones than ONNX Runtime reads
INPUT, PROBABILITIES, PREDICTION = "features", "probabilities", "prediction"


def estimator_model(estimator: Any, width: int, rough: NDArray[np.bool_] | None = None) -> Any:
    """ModelProto of a fitted classifier or regressor.

    Args: rough: features that ONNX computes to the last bits only, shape (width,); see `trees.tolerant`.
    Returns: input `features` float64 (n, width); output `probabilities` float64 (n, classes), or `prediction` (n, 1).
    Raises: NotImplementedError, or what skl2onnx raises, for estimators without a form in ONNX.
    """
    from onnx import TensorProto, helper

    if not _known(estimator):
        return _converted(estimator, width)
    graph = Graph(np.zeros(width, dtype=bool) if rough is None else rough)
    out = graph.answer(estimator, INPUT)
    name, columns = _named(estimator)
    graph.add("Identity", out, out=name)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "estimator",
            [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, [None, width])],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, columns])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid(*item) for item in graph.opset.items()],
        ir_version=IR_VERSION,
    )


def _converted(estimator: Any, width: int) -> Any:
    """By skl2onnx, in float32."""
    from onnx import TensorProto, helper
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    name, columns = _named(estimator)
    model = convert_sklearn(
        estimator,
        initial_types=[("single", FloatTensorType([None, width]))],
        options={id(estimator): {"zipmap": False}} if name == PROBABILITIES else None,
        target_opset=OLD_OPSET,
    )
    graph = model.graph
    found = next((o.name for o in graph.output if o.name in (PROBABILITIES, "variable")), None)
    if found is None:
        raise NotImplementedError(f"{_class_of(estimator)} answers {[o.name for o in graph.output]}")
    for node in graph.node:
        for i, out in enumerate(node.output):
            node.output[i] = f"single_{out}" if out == found else out
        for i, used in enumerate(node.input):
            node.input[i] = f"single_{used}" if used == found else used
    graph.node.insert(0, helper.make_node("Cast", [INPUT], ["single"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Cast", [f"single_{found}"], [name], to=TensorProto.DOUBLE))
    del graph.input[:], graph.output[:], model.opset_import[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, [None, width]))
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, columns]))
    model.opset_import.extend(helper.make_opsetid(*item) for item in OLD_OPSET.items())
    return model


def _named(estimator: Any) -> tuple[str, int]:
    """The output's name and columns."""
    known = getattr(estimator, "classes_", None)
    return (PREDICTION, 1) if known is None else (PROBABILITIES, len(known))


def _class_of(estimator: Any) -> str:
    kind = type(estimator)
    return f"{kind.__module__.split('.')[0]}.{kind.__name__}"


def _known(estimator: Any) -> bool:
    """Whether the estimator's class is written here; else skl2onnx may know it."""
    return _class_of(estimator) in (*_WRITERS, _CALIBRATED)


class Graph:
    """Operators one after the other, all over float64."""

    def __init__(self, rough: NDArray[np.bool_]) -> None:
        self._rough = rough
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.opset = OPSET

    def add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """The name of the operator's result."""
        from onnx import helper

        out = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, values: Any, dtype: Any = np.float64) -> str:
        """The name of a tensor."""
        from onnx import numpy_helper

        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def cast(self, name: str, *, single: bool) -> str:
        """As float32 or float64."""
        from onnx import TensorProto

        return self.add("Cast", name, to=TensorProto.FLOAT if single else TensorProto.DOUBLE)

    def rounded(self, name: str) -> str:
        """The nearest float32, as float64."""
        return self.cast(self.cast(name, single=True), single=False)

    def column(self, name: str, index: int) -> str:
        """Column `index`, shape (n, 1)."""
        return self.add("Gather", name, self.constant([index], np.int64), axis=1)

    def both(self, positive: str) -> str:
        """Two columns of probabilities of P(1), shape (n, 1)."""
        return self.add("Concat", self.add("Sub", self.constant(1.0), positive), positive, axis=1)

    def trees(self, ensemble: trees.Ensemble, name: str) -> str:
        """The sum of an ensemble, shape (n, outputs)."""
        if ensemble.single:
            name = self.cast(name, single=True) if ensemble.strict else self.rounded(name)
        elif self._rough.any():
            ensemble = trees.tolerant(ensemble, self._rough)
        if ensemble.vector:
            self.opset = OLD_OPSET
        out = f"trees_{len(self.nodes)}"
        self.nodes.append(trees.operator(ensemble, name, out))
        if ensemble.vector or ensemble.strict:
            out = self.cast(out, single=False)
        return self.add("Add", out, self.constant(ensemble.base)) if ensemble.base.any() else out

    def linked(self, name: str, link: str) -> str:
        """Answers of sums: what `link` makes of them."""
        if link == "sigmoid":
            return self.both(self.add("Sigmoid", name))
        if link == "softmax":
            return self.add("Softmax", name, axis=1)
        return self.add("Exp", name) if link == "exp" else name

    def answer(self, estimator: Any, name: str) -> str:
        """Probabilities (n, classes) or predictions (n, 1) of `estimator` over features `name`."""
        if _class_of(estimator) == _CALIBRATED:
            return _calibrated(self, estimator, name)
        return self.linked(*_WRITERS[_class_of(estimator)](self, estimator, name))

    def response(self, estimator: Any, name: str) -> str:
        """What scikit-learn calibrates: the decision function where there is one, else probabilities; (n, 1) of two
        classes, else (n, classes).

        Raises: NotImplementedError for estimators that are not written here."""
        while type(estimator).__name__ == "FrozenEstimator":
            estimator = estimator.estimator
        found = _class_of(estimator)
        if found not in _WRITERS:
            raise NotImplementedError(f"calibration of {found}")
        margin, link = _WRITERS[found](self, estimator, name)
        if hasattr(estimator, "decision_function"):
            return margin
        answer = self.linked(margin, link)
        return self.column(answer, 1) if len(estimator.classes_) == 2 else answer


# A writer gives the sums that an estimator's link is applied to, and the link.
Writer = Callable[[Graph, Any, str], tuple[str, str]]


def _linear(graph: Graph, estimator: Any, name: str) -> tuple[str, str]:
    """Raises: NotImplementedError for several targets."""
    coefficients = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))
    classes = getattr(estimator, "classes_", None)
    if classes is None and len(coefficients) > 1:
        raise NotImplementedError("linear models with several targets")
    product = graph.add("MatMul", name, graph.constant(coefficients.T))
    margin = graph.add("Add", product, graph.constant(np.atleast_1d(estimator.intercept_)))
    if classes is None:
        return margin, "none"
    return margin, "sigmoid" if len(coefficients) == 1 else "softmax"


def _forest(graph: Graph, estimator: Any, name: str) -> tuple[str, str]:
    mean = graph.trees(trees.of_forest(estimator), name)
    return (graph.both(mean), "none") if len(getattr(estimator, "classes_", ())) == 2 else (mean, "none")


def _histogram(graph: Graph, estimator: Any, name: str) -> tuple[str, str]:
    links = {
        "HalfBinomialLoss": "sigmoid",
        "HalfMultinomialLoss": "softmax",
        "HalfPoissonLoss": "exp",
        "HalfGammaLoss": "exp",
    }
    margin = graph.trees(trees.of_histogram(estimator), name)
    return margin, links.get(type(estimator._loss).__name__, "none")


def _xgboost(graph: Graph, estimator: Any, name: str) -> tuple[str, str]:
    ensemble, link = trees.of_xgboost(estimator)
    return graph.trees(ensemble, name), link


def _lightgbm(graph: Graph, estimator: Any, name: str) -> tuple[str, str]:
    ensemble, link = trees.of_lightgbm(estimator)
    return graph.trees(ensemble, name), link


def _calibrated(graph: Graph, estimator: Any, name: str) -> str:
    """The mean over its calibrated classifiers, as `CalibratedClassifierCV.predict_proba`.

    Raises: NotImplementedError for temperature scaling, and estimators that are not written here."""
    classes = len(estimator.classes_)
    found = []
    for each in estimator.calibrated_classifiers_:
        if each.method not in ("sigmoid", "isotonic") or len(each.estimator.classes_) != classes:
            raise NotImplementedError(f"calibration by {each.method}, or of folds that lack a class")
        response = graph.response(each.estimator, name)
        parts = [
            _calibrator(graph, calibrator, response if classes == 2 else graph.column(response, i))
            for i, calibrator in enumerate(each.calibrators)
        ]
        found.append(graph.both(parts[0]) if classes == 2 else _normalised(graph, parts))
    total = found[0]
    for other in found[1:]:
        total = graph.add("Add", total, other)
    return total if len(found) == 1 else graph.add("Div", total, graph.constant(float(len(found))))


def _normalised(graph: Graph, parts: list[str]) -> str:
    """Columns that add up to 1 in each row; all alike where all are 0."""
    joined = graph.add("Concat", *parts, axis=1)
    total = graph.add("ReduceSum", joined, graph.constant([1], np.int64), keepdims=1)
    nothing = graph.add("Equal", total, graph.constant(0.0))
    share = graph.add("Div", joined, graph.add("Where", nothing, graph.constant(1.0), total))
    return graph.add("Where", nothing, graph.constant(1.0 / len(parts)), share)


def _calibrator(graph: Graph, calibrator: Any, response: str) -> str:
    """P of one class, shape (n, 1)."""
    if type(calibrator).__name__ == "_SigmoidCalibration":
        scaled = graph.add("Mul", response, graph.constant(float(calibrator.a_)))
        return graph.add("Sigmoid", graph.add("Neg", graph.add("Add", scaled, graph.constant(float(calibrator.b_)))))
    x = np.asarray(calibrator.X_thresholds_)
    y = np.asarray(calibrator.y_thresholds_, dtype=np.float64)
    if x.dtype == np.float32:
        response = graph.rounded(response)
    x = x.astype(np.float64)
    low, high = graph.constant(calibrator.X_min_), graph.constant(calibrator.X_max_)
    inside = graph.add("Min", graph.add("Max", response, low), high)
    if len(y) == 1:
        return graph.add("Add", graph.add("Mul", inside, graph.constant(0.0)), graph.constant(y))
    # Linear between thresholds: each row's piece is the number of inner thresholds that it has reached.
    reached = graph.cast(graph.add("GreaterOrEqual", inside, graph.constant(x[1:-1][None, :])), single=False)
    piece = graph.add("ReduceSum", reached, graph.constant([1], np.int64), keepdims=1)
    piece = graph.add("Cast", piece, to=7)  # int64
    start, value = graph.constant(x[:-1]), graph.constant(y[:-1])
    slope = graph.constant(np.diff(y) / np.diff(x))
    beyond = graph.add("Sub", inside, graph.add("Gather", start, piece))
    rise = graph.add("Mul", beyond, graph.add("Gather", slope, piece))
    return graph.add("Add", graph.add("Gather", value, piece), rise)


_CALIBRATED = "sklearn.CalibratedClassifierCV"
_TASKS = ("Classifier", "Regressor")
_WRITERS: dict[str, Writer] = {
    **dict.fromkeys(
        (f"sklearn.{kind}" for kind in ("LogisticRegression", "LinearRegression", "Ridge", "Lasso", "ElasticNet")),
        _linear,
    ),
    **dict.fromkeys(
        (f"sklearn.{kind}{task}" for kind in ("DecisionTree", "RandomForest", "ExtraTrees") for task in _TASKS),
        _forest,
    ),
    **dict.fromkeys((f"sklearn.HistGradientBoosting{task}" for task in _TASKS), _histogram),
    **dict.fromkeys((f"xgboost.XGB{task}" for task in _TASKS), _xgboost),
    **dict.fromkeys((f"lightgbm.LGBM{task}" for task in _TASKS), _lightgbm),
}
