"""The whole fitted pipeline as one ONNX graph."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Features
from mlops_ray.training.artifact import converters, estimators

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def to_onnx(pipeline: Pipeline, features: Features) -> bytes:
    """The whole fitted pipeline as one serialised ONNX graph.

    Inputs `numeric` float32 (n, k) and `categorical` string (n, m), in the order of `features`. Output: classifiers
    `probabilities` float64 (n, classes), regressors `prediction` float64 (n, 1). All runs in float64, as in Python,
    except in estimators that only skl2onnx converts: their features are rounded once, after imputing and scaling.
    Rounding keeps order, so a value that equals a split's threshold (boosting takes many from the rows) stays on its
    side. With a whole graph in float32 one row in fifteen fell on the wrong one.
    Raises: NotImplementedError, or what skl2onnx raises, for steps that have no form in ONNX.
    """
    from onnx import compose, helper

    width = len(pipeline[0].get_feature_names_out(features.columns))
    after = estimators.estimator_model(pipeline[-1], width, _rough(pipeline[0], width))
    before = transformer_model(pipeline[0], features)
    before = compose.add_prefix(before, "before_", rename_inputs=False, rename_outputs=False)
    opset = [helper.make_opsetid(each.domain, each.version) for each in after.opset_import]
    for part in (before, after):  # each names the sets that it needs itself; both were made for these
        part.ir_version = estimators.IR_VERSION
        del part.opset_import[:]
        part.opset_import.extend(opset)
    outputs = [after.graph.output[0].name]
    merged = compose.merge_models(before, after, io_map=[(estimators.INPUT, estimators.INPUT)], outputs=outputs)
    serialised: bytes = merged.SerializeToString()
    return serialised


def _rough(transformer: Any, width: int) -> NDArray[np.bool_]:
    """The outputs that ONNX computes to the last bits only, shape (width,): powers, logarithms, custom steps."""
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.preprocessing import (
        FunctionTransformer,
        KBinsDiscretizer,
        MinMaxScaler,
        OneHotEncoder,
        OrdinalEncoder,
        RobustScaler,
        StandardScaler,
        TargetEncoder,
    )

    exact: tuple[type, ...] = (
        MissingIndicator,
        SimpleImputer,
        KBinsDiscretizer,
        MinMaxScaler,
        OneHotEncoder,
        OrdinalEncoder,
    )
    exact += (RobustScaler, StandardScaler, TargetEncoder)
    found = np.zeros(width, dtype=bool)
    for name, step, _ in transformer.transformers_:
        inner = _steps(step) or (step,)
        plain = [type(s) in exact or (type(s) is FunctionTransformer and s.func in (None, np.clip)) for s in inner]
        if name != "remainder" and not all(plain):
            found[transformer.output_indices_[name]] = True
    return found


def transformer_model(transformer: Any, features: Features) -> Any:
    """ModelProto of the fitted ColumnTransformer: inputs as `to_onnx`, output `features` float64 (n, width)."""
    from onnx import TensorProto, helper
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, StringTensorType

    k, m = len(features.numbers), len(features.texts)
    moved = _by_position(transformer, features)
    inputs = [("raw", DoubleTensorType([None, k]))] if k else []
    inputs += [("categorical", StringTensorType([None, m]))] if m else []
    width = len(transformer.get_feature_names_out(features.columns))
    model = convert_sklearn(
        moved,
        initial_types=inputs,
        target_opset=estimators.OLD_OPSET,
        custom_conversion_functions=converters.converters(),
        custom_shape_calculators=converters.shapes(),
    )
    graph = model.graph
    _spell_out_imputers(graph, moved)
    _widen(graph)
    inner = graph.output[0].name
    if k:
        graph.node.insert(0, helper.make_node("Cast", ["numeric"], ["raw"], to=TensorProto.DOUBLE))
        kept = [i for i in graph.input if i.name != "raw"]
        del graph.input[:]
        graph.input.extend([helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, k]), *kept])
    graph.node.append(helper.make_node("Cast", [inner], [estimators.INPUT], to=TensorProto.DOUBLE))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(estimators.INPUT, TensorProto.DOUBLE, [None, width]))
    return model


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
