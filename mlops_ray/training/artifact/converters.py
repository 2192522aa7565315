"""ONNX operators for steps of the transformer that skl2onnx cannot convert, or not in float64.

Each is a pair of functions: the shape of what comes out, and the operators. They are handed to one conversion and
change nothing of skl2onnx itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Converter = Callable[[Any, Any, Any], None]


def shapes() -> dict[type, Callable[[Any], None]]:
    """Shape calculator per scikit-learn class: as many columns come out as go in."""
    return dict.fromkeys(converters(), _same_width)


def converters() -> dict[type, Converter]:
    """Converter per scikit-learn class."""
    from sklearn.impute import MissingIndicator
    from sklearn.preprocessing import FunctionTransformer, PowerTransformer, QuantileTransformer, TargetEncoder

    return {
        MissingIndicator: _missing_indicator,
        FunctionTransformer: _function,
        PowerTransformer: _power,
        QuantileTransformer: _quantile,
        TargetEncoder: _target,
    }


def _same_width(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType

    width = sum(each.type.shape[1] for each in operator.inputs)
    operator.outputs[0].type = DoubleTensorType([operator.inputs[0].get_first_dimension(), width])


class _Graph:
    """Adds operators one after the other, over float64."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self._scope, self._container = scope, container
        self.start: str = operator.inputs[0].full_name
        if len(operator.inputs) > 1:
            self.start = self.add("Concat", *(each.full_name for each in operator.inputs), axis=1)
        self._end: str = operator.outputs[0].full_name

    def add(self, kind: str, *inputs: str, domain: str = "", op_version: int = 13, **attributes: Any) -> str:
        """The name of the operator's result. 13 is the newest form of all of ONNX's operators here."""
        out: str = self._scope.get_unique_variable_name(kind.lower())
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(
            kind, list(inputs), out, op_domain=domain, op_version=op_version, name=name, **attributes
        )
        return out

    def constant(self, values: Any) -> str:
        """The name of a float64 tensor."""
        from onnx import TensorProto

        array = np.asarray(values, dtype=np.float64)
        name: str = self._scope.get_unique_variable_name("constant")
        self._container.add_initializer(name, TensorProto.DOUBLE, list(array.shape), array.ravel().tolist())
        return name

    def whole(self, values: Any) -> str:
        """The name of an int64 tensor."""
        from onnx import TensorProto

        name: str = self._scope.get_unique_variable_name("whole")
        self._container.add_initializer(name, TensorProto.INT64, [len(values)], list(values))
        return name

    def end(self, name: str) -> None:
        """`name` is what comes out."""
        self._container.add_node(
            "Identity", [name], self._end, op_version=13, name=self._scope.get_unique_operator_name("end")
        )


def _missing_indicator(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto

    graph = _Graph(scope, operator, container)
    graph.end(graph.add("Cast", graph.add("IsNaN", graph.start), to=TensorProto.DOUBLE))


def _function(scope: Any, operator: Any, container: Any) -> None:
    """Raises: NotImplementedError for a function that is none of ours."""
    step, graph = operator.raw_operator, _Graph(scope, operator, container)
    if step.func is None:
        graph.end(graph.start)
    elif step.func is np.log1p:
        graph.end(graph.add("Log", graph.add("Add", graph.start, graph.constant(1.0))))
    elif step.func is np.clip:
        # Not by Clip: it makes a limit of NaN.
        found = graph.start
        for limit, worse in ((step.kw_args["a_min"], "Less"), (step.kw_args["a_max"], "Greater")):
            if limit is not None:
                bound = graph.constant(limit)
                found = graph.add("Where", graph.add(worse, found, bound), bound, found)
        graph.end(found)
    else:
        raise NotImplementedError(f"no ONNX form of {step.func}")


def _power(scope: Any, operator: Any, container: Any) -> None:
    """Yeo and Johnson's four cases, then the standardisation that is part of the step."""
    step, graph = operator.raw_operator, _Graph(scope, operator, container)
    power, one, zero = np.asarray(step.lambdas_, dtype=np.float64), graph.constant(1.0), graph.constant(0.0)

    def branch(size: str, power: Any) -> str:
        """((size + 1) ** power - 1) / power, and its limit, the logarithm, where the power is 0."""
        log = graph.add("Log", graph.add("Add", size, one))
        flat = np.abs(power) < np.spacing(1.0)
        lifted = graph.add("Exp", graph.add("Mul", log, graph.constant(power)))
        found = graph.add("Div", graph.add("Sub", lifted, one), graph.constant(np.where(flat, 1.0, power)))
        if not flat.any():
            return found
        chosen = graph.add("Greater", graph.constant(flat.astype(np.float64)), zero)
        return graph.add("Where", chosen, log, found)

    up = branch(graph.add("Max", graph.start, zero), power)
    down = graph.add("Neg", branch(graph.add("Max", graph.add("Neg", graph.start), zero), 2 - power))
    found = graph.add("Where", graph.add("Less", graph.start, zero), down, up)
    found = graph.add("Where", graph.add("IsNaN", graph.start), graph.start, found)
    if step.standardize:
        scaler = step._scaler
        found = graph.add("Sub", found, graph.constant(scaler.mean_))
        found = graph.add("Div", found, graph.constant(scaler.scale_))
    graph.end(found)


def _quantile(scope: Any, operator: Any, container: Any) -> None:
    """Raises: NotImplementedError. skl2onnx has a form of it, but takes forty seconds per column to write it down
    (measured), and a graph that compares each value with a thousand quantiles needs 4 kB per cell."""
    raise NotImplementedError("scale: quantile is served by scikit-learn")


def _target(scope: Any, operator: Any, container: Any) -> None:
    """Each category's encoding in float64, which skl2onnx has in float32.

    Raises: NotImplementedError for several classes: one encoding per class."""
    step, graph = operator.raw_operator, _Graph(scope, operator, container)
    if step.target_type_ == "multiclass":
        raise NotImplementedError("target encoding of several classes")
    columns = []
    for i, (known, encodings) in enumerate(zip(step.categories_, step.encodings_, strict=True)):
        cells = graph.add("Gather", graph.start, graph.whole([i]), axis=1)
        place = graph.add(
            "LabelEncoder",
            cells,
            domain="ai.onnx.ml",
            op_version=2,
            keys_strings=[str(each) for each in known],
            values_int64s=list(range(len(known))),
            default_int64=len(known),
        )
        columns.append(graph.add("Gather", graph.constant([*encodings, step.target_mean_]), place, axis=0))
    graph.end(graph.add("Concat", *columns, axis=1))
