"""The walk over an ONNX file beside what the `onnx` package says of it."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlops_ray.errors import ArtifactRefused
from mlops_ray.training.artifact import inspection


def made(*initializers: TensorProto, **attributes: object) -> onnx.ModelProto:
    """A graph with these tensors, and an operator with these attributes."""
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], list(initializers))
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(ArtifactRefused) as found:
        inspection.check(model.SerializeToString(), "a")
    return str(found.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_, np.float16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 300)])
def test_tensors_of_every_kind_and_form_are_counted(dtype: type, shape: tuple[int, ...]) -> None:
    values = np.ones(shape, dtype=dtype)
    raw = numpy_helper.from_array(values, "raw")
    apart = helper.make_tensor("apart", raw.data_type, shape, values.ravel().tolist())
    inspection.check(made(raw, apart).SerializeToString(), "a")
    for tensor in (raw, apart):
        tensor.dims.append(2)
        if values.size:
            assert "declares a tensor" in refusal(made(tensor))


def test_texts_are_counted() -> None:
    tensor = helper.make_tensor("t", TensorProto.STRING, [3], [b"", b"\x3d\x40\x4a", "é".encode()])
    inspection.check(made(tensor).SerializeToString(), "a")
    tensor.string_data.append(b"more")
    assert "declares a tensor" in refusal(made(tensor))


def test_runs_of_numbers_are_skipped_and_nothing_behind_them_is_missed() -> None:
    rng = random.Random(0)
    numbers = [rng.choice([0, 1, -1, 127, 128, 1 << 62, -(1 << 62), 0x3D, 0x40]) for _ in range(5000)]
    modes = [rng.choice(["LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE"]) for _ in range(5000)]
    floats = [rng.gauss(0, 1) for _ in range(5000)]
    model = made(ids=numbers, modes=modes, values=floats)
    inspection.check(model.SerializeToString(), "a")
    outside = TensorProto(dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    model.graph.node[0].attribute[0].t.CopyFrom(outside)
    assert "from another file" in refusal(model)
    model.graph.node[0].attribute[0].ClearField("t")
    model.graph.node[0].attribute[2].graphs.append(onnx.GraphProto())
    assert "inside an operator" in refusal(model)


def test_whatever_is_cut_or_flipped_ends_in_a_refusal_or_is_read_to_its_end() -> None:
    content = made(numpy_helper.from_array(np.ones(50), "t"), ids=list(range(300))).SerializeToString()
    rng = random.Random(1)
    refused = 0
    for _ in range(600):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            inspection.check(bytes(broken[: rng.randint(1, len(broken))]), "a")
        except ArtifactRefused:
            refused += 1
    assert refused > 300
