"""Artifacts made in bad faith: no code runs, nothing is written, and each ends in `ArtifactRefused`.

Every attack is made twice: on a registered artifact whose file is exchanged afterwards (its hash betrays it), and by
somebody who can register versions, so that all hashes are right and the files themselves must be harmless.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import Pipeline

from mlops_ray.errors import ArtifactRefused
from mlops_ray.training.artifact import model

from .conftest import FEATURES, Rows

CANARY = "MLOPS_RAY_TEST_CANARY"
FILES = ("model.skops", "model.onnx", "reference.json", "golden.json", "signature.json", "manifest.json")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


# Each attack changes the files of a folder; it may use the canary's path.
Attack = Callable[[Path, Path], None]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def keep(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return keep


# Pickles --------------------------------------------------------------------------------------------------------------


def _pickled(how: str, canary: Path) -> bytes:
    if how == "joblib":
        stream = io.BytesIO()
        joblib.dump(Payload(canary), stream)
        return stream.getvalue()
    dump: Any = {"pickle": pickle.dumps, "cloudpickle": cloudpickle.dumps}[how]
    return bytes(dump(Payload(canary)))


for _how in ("pickle", "joblib", "cloudpickle"):
    for _name in FILES:

        def _exchanged(folder: Path, canary: Path, how: str = _how, name: str = _name) -> None:
            (folder / name).write_bytes(_pickled(how, canary))

        ATTACKS[f"{_how} as {_name}"] = _exchanged


@attack("a pickle as an array inside model.skops")
def _(folder: Path, canary: Path) -> None:
    rezip(folder, lambda members: members | {first(members, ".npy"): _pickled("pickle", canary)})


@attack("an array of pickled objects inside model.skops")
def _(folder: Path, canary: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    rezip(folder, lambda members: members | {first(members, ".npy"): stream.getvalue()})


# skops ----------------------------------------------------------------------------------------------------------------


def rezip(
    folder: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], method: int = zipfile.ZIP_STORED
) -> None:
    path = folder / "model.skops"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in change(members).items():
            archive.writestr(name, content)


def first(members: dict[str, bytes], ending: str) -> str:
    return next(name for name in members if name.endswith(ending))


_IDS = itertools.count(1)


def node(loader: str, module: str, name: str, **more: Any) -> dict[str, Any]:
    return {"__loader__": loader, "__module__": module, "__class__": name, "__id__": next(_IDS), **more}


def told(value: Any) -> dict[str, Any]:
    return node("JsonNode", "builtins", "str", content=json.dumps(value), is_json=True)


def tuple_of(*values: Any) -> dict[str, Any]:
    return node("TupleNode", "builtins", "tuple", content=[told(value) for value in values])


def as_step(estimator: dict[str, Any]) -> Attack:
    """The node as the pipeline's last step, in a file that also declares its types trusted."""

    def change(folder: Path, canary: Path) -> None:
        def inside(members: dict[str, bytes]) -> dict[str, bytes]:
            schema = json.loads(members["schema.json"])
            text = json.dumps(estimator).replace(CANARY, str(canary))
            steps = schema["content"]["content"]["steps"]["content"]
            steps[-1]["content"][1] = json.loads(text)
            schema["trusted"] = schema["__trusted__"] = True
            return members | {"schema.json": json.dumps(schema).encode()}

        rezip(folder, inside)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["trusted"] = [*manifest["trusted"], "os.mkdir", "posix.mkdir", "builtins.eval", "subprocess.Popen"]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


_EVAL = f"__import__('os').mkdir('{CANARY}')"
_MKDIR = node("FunctionNode", "os", "mkdir")
ATTACKS["skops: a function"] = as_step(_MKDIR)
ATTACKS["skops: a type beyond the list"] = as_step(node("TypeNode", "subprocess", "Popen"))
ATTACKS["skops: an object beyond the list"] = as_step(
    node(
        "ObjectNode",
        "subprocess",
        "Popen",
        content=node("DictNode", "builtins", "dict", content={}, key_types=told([])),
    )
)
ATTACKS["skops: a constructor"] = as_step(
    node("ConstructorFromReduceNode", "builtins", "eval", content=tuple_of(_EVAL))
)
ATTACKS["skops: a constructor that looks like a list"] = as_step(
    node("ListNode", "os", "mkdir", content=[told(CANARY)])
)
ATTACKS["skops: a partial"] = as_step(
    node(
        "PartialNode",
        "functools",
        "partial",
        content={"func": _MKDIR, "args": tuple_of(CANARY), "kwds": told({}), "namespace": told({})},
    )
)
ATTACKS["skops: a method"] = as_step(
    node(
        "MethodNode",
        "builtins",
        "str",
        content={"func": "format", "obj": node("JsonNode", "builtins", "str", content="1")},
    )
)
ATTACKS["skops: an operator that calls a method"] = as_step(
    node("OperatorFuncNode", "operator", "methodcaller", attrs=tuple_of("fit", CANARY))
)
ATTACKS["skops: a loss that is another class"] = as_step(
    node("LossNode", "os", "mkdir", __reduce__={"args": tuple_of(CANARY)}, content=told({}))
)
ATTACKS["skops: a tree that is another class"] = as_step(
    node("TreeNode", "sklearn.tree._tree", "Tree", __reduce__={"args": _MKDIR}, content=told({}))
)
ATTACKS["skops: a random generator of another function"] = as_step(
    node(
        "RandomGeneratorNode",
        "numpy.random",
        "Generator",
        content={
            "bit_generator": node(
                "DictNode",
                "builtins",
                "dict",
                content={"bit_generator": told("set_bit_generator")},
                key_types=node("ListNode", "builtins", "list", content=[node("TypeNode", "builtins", "str")]),
            ),
            "seed_seq": told({}),
        },
    )
)
ATTACKS["skops: a loader that does not exist"] = as_step(node("EvalNode", "builtins", "eval", content=_EVAL))
ATTACKS["skops: an object that refers to itself"] = as_step(
    {"__loader__": "CachedNode", "__module__": None, "__class__": None, "__id__": 12345}
)
ATTACKS["skops: a scikit-learn estimator with a function of another module"] = as_step(
    node(
        "ObjectNode",
        "sklearn.preprocessing._function_transformer",
        "FunctionTransformer",
        content=node(
            "DictNode",
            "builtins",
            "dict",
            content={"func": _MKDIR, "kw_args": told(None)},
            key_types=node("ListNode", "builtins", "list", content=[node("TypeNode", "builtins", "str")] * 2),
        ),
    )
)
ATTACKS["skops: no pipeline"] = as_step(told("nothing"))


@attack("skops: the whole is no pipeline")
def _(folder: Path, canary: Path) -> None:
    rezip(folder, lambda members: {"schema.json": json.dumps({**told([1]), "protocol": 2}).encode()})


@attack("skops: nested deeper than the stack")
def _(folder: Path, canary: Path) -> None:
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    rezip(folder, lambda members: members | {"schema.json": deep})


@attack("skops: no schema")
def _(folder: Path, canary: Path) -> None:
    rezip(folder, lambda members: {name: body for name, body in members.items() if name != "schema.json"})


for _member in ("../{c}", "/{c}", "a/../../{c}", "..\\{c}", "{c}.exe"):

    def _named(folder: Path, canary: Path, member: str = _member) -> None:
        rezip(folder, lambda members: members | {member.format(c=str(canary).strip("/")): b"\x93NUMPY"})

    ATTACKS[f"skops: a member called {_member.format(c='x')}"] = _named


@attack("skops: a zip bomb")
def _(folder: Path, canary: Path) -> None:
    rezip(folder, lambda members: members | {"1.npy": b"\0" * (300 << 20)}, zipfile.ZIP_DEFLATED)


@attack("skops: overlapping members")
def _(folder: Path, canary: Path) -> None:
    """The directory names the same bytes again and again."""
    path = folder / "model.skops"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        archive.close()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("1.npy", b"")
        for i in range(200):
            again = zipfile.ZipInfo(f"{i + 2}.npy")
            again.header_offset, again.CRC = largest.header_offset, largest.CRC
            again.file_size = again.compress_size = largest.file_size
            archive.filelist.append(again)


@attack("skops: an array that declares a terabyte")
def _(folder: Path, canary: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (137438953472,), }"
    header += b" " * (117 - len(header)) + b"\n"
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    rezip(folder, lambda members: members | {first(members, ".npy"): huge})


def spoilt_tree(change: Callable[[Any], None]) -> Attack:
    """A forest whose first tree's nodes are changed; only its numbers are odd."""

    def spoil(folder: Path, canary: Path) -> None:
        def inside(members: dict[str, bytes]) -> dict[str, bytes]:
            for name, content in members.items():
                if name.endswith(".npy"):
                    array = np.load(io.BytesIO(content), allow_pickle=False)
                    if array.dtype.names and "left_child" in array.dtype.names:
                        change(array)
                        stream = io.BytesIO()
                        np.save(stream, array, allow_pickle=False)
                        return members | {name: stream.getvalue()}
            raise AssertionError("there is no tree")

        rezip(folder, inside)

    return spoil


def _set(field: str, value: int) -> Callable[[Any], None]:
    def change(nodes: Any) -> None:
        nodes[field][0] = value

    return change


ATTACKS["skops: a tree that points beyond its nodes"] = spoilt_tree(_set("left_child", 1 << 40))
ATTACKS["skops: a tree that points back at itself"] = spoilt_tree(_set("left_child", 0))
ATTACKS["skops: a tree that reads beyond the features"] = spoilt_tree(_set("feature", 1 << 40))
ATTACKS["skops: a tree that reads before the features"] = spoilt_tree(_set("feature", -50))


@attack("skops: truncated")
def _(folder: Path, canary: Path) -> None:
    content = (folder / "model.skops").read_bytes()
    (folder / "model.skops").write_bytes(content[: len(content) // 2])


# ONNX -----------------------------------------------------------------------------------------------------------------


def regraph(change: Callable[[onnx.ModelProto], None]) -> Attack:
    def apply(folder: Path, canary: Path) -> None:
        graph = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
        change(graph)
        (folder / "model.onnx").write_bytes(graph.SerializeToString())

    return apply


def _outside(location: str) -> Attack:
    def change(graph: onnx.ModelProto) -> None:
        tensor = graph.graph.initializer[0]
        for field in ("raw_data", "float_data", "double_data", "int64_data", "int32_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="offset", value="0")

    return regraph(change)


ATTACKS["onnx: data at an absolute path"] = _outside("/etc/passwd")
ATTACKS["onnx: data at ../"] = _outside("../../secret.bin")
ATTACKS["onnx: data in a file beside it"] = _outside("model.skops")


@attack("onnx: data of an attribute at an absolute path")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        graph.graph.node.append(helper.make_node("Constant", [], ["odd"], value=tensor))

    regraph(change)(folder, canary)


def _append(*nodes: Any, domain: str = "") -> Attack:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.node.extend(nodes)
        if domain:
            graph.opset_import.append(helper.make_opsetid(domain, 1))

    return regraph(change)


_INNER = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, None)])
ATTACKS["onnx: an operator of another domain"] = _append(
    helper.make_node("PyOp", ["numeric"], ["odd"], domain="ai.onnx.contrib", module="os", name="system"),
    domain="ai.onnx.contrib",
)
ATTACKS["onnx: an operator of Microsoft's domain"] = _append(
    helper.make_node("Inverse", ["numeric"], ["odd"], domain="com.microsoft"), domain="com.microsoft"
)
ATTACKS["onnx: a program in an operator (If)"] = _append(
    helper.make_node("If", ["numeric"], ["odd"], then_branch=_INNER, else_branch=_INNER)
)
ATTACKS["onnx: an endless loop"] = _append(helper.make_node("Loop", ["", ""], ["odd"], body=_INNER))
ATTACKS["onnx: a scan"] = _append(helper.make_node("Scan", ["numeric"], ["odd"], body=_INNER, num_scan_inputs=1))
ATTACKS["onnx: a graph in an operator that takes none"] = _append(
    helper.make_node("Identity", ["numeric"], ["odd"], body=_INNER)
)
ATTACKS["onnx: a tensor as large as a number says"] = _append(helper.make_node("ConstantOfShape", ["numeric"], ["odd"]))


@attack("onnx: a function")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        body = [helper.make_node("Identity", ["a"], ["b"])]
        graph.functions.append(helper.make_function("", "Cast", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))

    regraph(change)(folder, canary)


@attack("onnx: a tensor of a terabyte that is not there")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.initializer.append(
            TensorProto(name="odd", dims=[1 << 37], data_type=TensorProto.DOUBLE, raw_data=b"\0" * 8)
        )

    regraph(change)(folder, canary)


@attack("onnx: a tensor of a negative size")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.initializer.append(TensorProto(name="odd", dims=[-1], data_type=TensorProto.DOUBLE))

    regraph(change)(folder, canary)


@attack("onnx: a sparse tensor")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        sparse = graph.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.zeros(1), "odd"))
        sparse.dims.append(1 << 40)

    regraph(change)(folder, canary)


@attack("onnx: other inputs")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.input.append(helper.make_tensor_value_info("secret", TensorProto.FLOAT, [None, 1]))

    regraph(change)(folder, canary)


@attack("onnx: other outputs")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.output[0].name = "answers"
        graph.graph.node.append(helper.make_node("Identity", ["probabilities"], ["answers"]))

    regraph(change)(folder, canary)


@attack("onnx: answers of another shape")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        for each in graph.graph.node:
            for i, name in enumerate(each.output):
                each.output[i] = "inner" if name == "probabilities" else name
        graph.graph.node.append(helper.make_node("Concat", ["inner", "inner"], ["probabilities"], axis=1))
        graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4

    regraph(change)(folder, canary)


@attack("onnx: trees that point beyond their nodes")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        trees = next(each for each in graph.graph.node if each.op_type == "TreeEnsemble")
        next(a for a in trees.attribute if a.name == "nodes_truenodeids").ints[0] = 1 << 40

    regraph(change)(folder, canary)


@attack("onnx: trees that point back at themselves")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        trees = next(each for each in graph.graph.node if each.op_type == "TreeEnsemble")
        for name, value in (("nodes_truenodeids", 0), ("nodes_trueleafs", 0)):
            next(a for a in trees.attribute if a.name == name).ints[0] = value

    regraph(change)(folder, canary)


@attack("onnx: trees that read beyond the features")
def _(folder: Path, canary: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        trees = next(each for each in graph.graph.node if each.op_type == "TreeEnsemble")
        ids = next(a for a in trees.attribute if a.name == "nodes_featureids").ints
        for i in range(len(ids)):
            ids[i] = 1 << 40

    regraph(change)(folder, canary)


for _label, _content in (
    ("no protobuf", b"\xff" * 4000),
    ("empty", b""),
    ("a text", b"GIF89a, or so"),
    ("fields without end", b"\x0a" * 10_000),
    ("a length of 2^63", b"\x3a" + b"\xff" * 9 + b"\x01"),
):

    def _replaced(folder: Path, canary: Path, content: bytes = _content) -> None:
        (folder / "model.onnx").write_bytes(content)

    ATTACKS[f"onnx: {_label}"] = _replaced


@attack("onnx: truncated")
def _(folder: Path, canary: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:-100])


# JSON -----------------------------------------------------------------------------------------------------------------


def rejson(name: str, **changes: Any) -> Attack:
    def apply(folder: Path, canary: Path) -> None:
        body = json.loads((folder / name).read_text())
        for place, value in changes.items():
            if value is DROP:
                del body[place]
            else:
                body[place] = value(body[place]) if callable(value) else value
        text = json.dumps(body).replace(CANARY, str(canary))
        (folder / name).write_text(text.replace('"HUGE"', "1e999").replace('"LONG"', "1" * 10_000))

    return apply


DROP = object()
for _name in FILES[2:]:
    for _label, _text in (
        ("no JSON", "{"),
        ("nested deeply", "[" * 500_000 + "]" * 500_000),
        ("a list", "[]"),
        ("no UTF-8", "\udcff\udcfe"),
        ("a YAML object", "!!python/object/apply:os.mkdir [x]"),
    ):

        def _written(folder: Path, canary: Path, name: str = _name, text: str = _text) -> None:
            (folder / name).write_bytes(text.encode(errors="surrogateescape"))

        ATTACKS[f"{_name}: {_label}"] = _written

for _label, _attack in {
    "golden.json: answers that are NaN": rejson("golden.json", scores=lambda s: [float("nan")] * len(s)),
    "golden.json: answers that are null": rejson("golden.json", scores=lambda s: [None] * len(s)),
    "golden.json: answers beyond any number": rejson("golden.json", scores=lambda s: ["HUGE"] * len(s)),
    "golden.json: other answers": rejson("golden.json", scores=lambda s: [1 - each for each in s]),
    "golden.json: no requests": rejson("golden.json", scores=[], numeric={}, categorical={}),
    "golden.json: a unit that hides all": rejson("golden.json", scale="HUGE"),
    "golden.json: another model's requests": rejson("golden.json", numeric={"weight": [1.0]}),
    "golden.json: answers of several classes": rejson("golden.json", scores=lambda s: [[each, each] for each in s]),
    "reference.json: no numbers": rejson("reference.json", blocks=[["x", {}]]),
    "reference.json: a number of ten thousand digits": rejson("reference.json", block_s="LONG"),
    "reference.json: a calibration without cells": rejson("reference.json", calibration={"task": "binary", "n": []}),
    "signature.json: no features": rejson("signature.json", features={}),
    "signature.json: features that are no configuration": rejson("signature.json", features={"numeric": 7}),
    "signature.json: unknown options": rejson("signature.json", features=lambda f: f | {"run": "os.mkdir"}),
    "signature.json: an expression that is code": rejson(
        "signature.json", features=lambda f: f | {"expressions": {"x": _EVAL}}
    ),
    "signature.json: a custom transformer that is code": rejson(
        "signature.json",
        features=lambda f: f | {"custom": {"transformer": f"os:mkdir('{CANARY}')", "columns": ["hour"]}},
    ),
    "signature.json: an unknown task": rejson("signature.json", task="ranking"),
    "signature.json: another task": rejson("signature.json", task="regression", classes=[]),
    "signature.json: other classes": rejson("signature.json", classes=[0, 1, 2]),
    "signature.json: classes that are objects": rejson("signature.json", classes=[{}, []]),
    "signature.json: a threshold beyond 1": rejson("signature.json", threshold=7),
    "signature.json: another feature": rejson("signature.json", features={"numeric": {"columns": ["weight"]}}),
    "signature.json: extra keys": rejson("signature.json", trusted_types=["os.mkdir"]),
    "signature.json: missing keys": rejson("signature.json", target=DROP),
    "manifest.json: missing keys": rejson("manifest.json", engine=DROP),
    "manifest.json: no files": rejson("manifest.json", files=DROP),
    "manifest.json: extra keys": rejson("manifest.json", run="os.mkdir"),
    "manifest.json: another format": rejson("manifest.json", format=3),
    "manifest.json: the format of the last release": rejson("manifest.json", format=1),
    "manifest.json: a format beyond any number": rejson("manifest.json", format="HUGE"),
    "manifest.json: an unknown engine": rejson("manifest.json", engine="pickle"),
    "manifest.json: a list of files that is a text": rejson("manifest.json", files="model.onnx"),
    "manifest.json: ../": rejson("manifest.json", files=lambda f: f | {"../x": f["model.skops"]}),
    "manifest.json: an absolute name": rejson("manifest.json", files=lambda f: f | {"/etc/passwd": f["model.skops"]}),
    "manifest.json: one file less": rejson(
        "manifest.json", files=lambda f: {name: each for name, each in f.items() if name != "golden.json"}
    ),
    "manifest.json: a size beyond any number": rejson(
        "manifest.json", files=lambda f: f | {"model.skops": {"sha256": "0" * 64, "bytes": "LONG"}}
    ),
    "manifest.json: digests swapped": rejson(
        "manifest.json", files=lambda f: f | {"golden.json": f["signature.json"], "signature.json": f["golden.json"]}
    ),
    "manifest.json: digests that are none": rejson(
        "manifest.json", files=lambda f: {name: {"sha256": "x", "bytes": 1} for name in f}
    ),
}.items():
    ATTACKS[_label] = _attack


# Files ----------------------------------------------------------------------------------------------------------------


def _linked(name: str, target: str) -> Attack:
    def apply(folder: Path, canary: Path) -> None:
        if target == "copy":
            shutil.copy(folder / name, folder.parent / "elsewhere")
        (folder / name).unlink()
        (folder / name).symlink_to(folder.parent / "elsewhere" if target == "copy" else target)

    return apply


for _name in FILES:
    ATTACKS[f"{_name}: a link to the same bytes"] = _linked(_name, "copy")
ATTACKS["model.skops: a link to a device without end"] = _linked("model.skops", "/dev/zero")
ATTACKS["golden.json: a link to nowhere"] = _linked("golden.json", "/nonexistent")
ATTACKS["golden.json: a link to a folder"] = _linked("golden.json", "/etc")


@attack("signature.json: a folder")
def _(folder: Path, canary: Path) -> None:
    (folder / "signature.json").unlink()
    (folder / "signature.json").mkdir()


@attack("reference.json: a pipe that nobody writes to")
def _(folder: Path, canary: Path) -> None:
    (folder / "reference.json").unlink()
    os.mkfifo(folder / "reference.json")


@attack("golden.json: missing")
def _(folder: Path, canary: Path) -> None:
    (folder / "golden.json").unlink()


@attack("manifest.json: as large as a disk")
def _(folder: Path, canary: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no room


# The test -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> dict[str, tuple[Path, str]]:
    """One artifact per engine."""
    root = tmp_path_factory.mktemp("honest")
    found = {}
    for engine in ("onnx", "sklearn"):
        pipeline = rows.fit() if engine == "onnx" else rows.fit(RandomForestClassifier(3, max_depth=3, random_state=0))
        with pytest.MonkeyPatch.context() as patch:
            if engine == "sklearn":
                patch.setattr(model.engines, "PARITY_SHARE", 2.0)
            found[engine] = (root / engine, saved(root / engine, pipeline, rows))
    return found


def saved(folder: Path, pipeline: Pipeline, rows: Rows) -> str:
    return model.save(
        folder,
        pipeline,
        task="binary",
        classes=(0, 1),
        features=FEATURES,
        target="late",
        reference=rows.reference,
        holdout=rows.columns,
        lock={"numpy": "1"},
        recipe={},
    )


def used(folder: Path, found: str) -> None:
    """Everything that serving, monitoring and audits do with an artifact."""
    loaded = model.load(folder, found)
    loaded.replay()
    assert loaded.reference.total.n >= 0
    assert isinstance(loaded.recipe, dict)
    loaded.pipeline()


def registered(folder: Path, name: str) -> str:
    """The hash of a manifest with the hashes of whatever lies there, as whoever registers versions could write it."""
    path = folder / "manifest.json"
    if path.is_symlink() or path.stat().st_size > 1 << 30:
        return "0" * 64
    if "manifest.json" not in name:
        manifest = json.loads(path.read_bytes())
        for file, listed in manifest["files"].items():
            if (folder / file).is_file() and not (folder / file).is_symlink():
                content = (folder / file).read_bytes()
                listed |= {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        path.write_text(json.dumps(manifest))
    return sha256(path.read_bytes()).hexdigest()


def listing(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*"))


REASONS = {  # of a registrar's attacks: which line of defence they meet
    r"skops: (a|an) (function|type|object beyond|constructor|partial|method|operator|loss|random|scikit)": (
        "not a type that we load"
    ),
    r"skops: a tree that (points|reads)": "points beyond its nodes or features",
    r"skops: a member": "odd members",
    r"skops: (a zip bomb|overlapping)": "is compressed, or its members overlap",
    r"skops: an array|an array": "which it does not hold",
    r"onnx: data": "from another file",
    r"onnx: an operator of": "only ONNX's own are run",
    r"onnx: (a program|an endless loop|a scan)": "which we do not run",
    r"onnx: trees": "ONNX Runtime refuses",
    r"onnx: other|signature.json: another": "model.onnx (takes|answers)",
    r".*: a link": "symbolic link",
    r"manifest.json: (\.\./|an absolute)": "lists other files",
    r"signature.json: an expression": "not a function of the language",
}


def test_the_honest_ones_are_taken(honest: dict[str, tuple[Path, str]]) -> None:
    for engine, (folder, found) in honest.items():
        used(folder, found)
        assert model.load(folder, found).engine == engine


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 25


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_artifact_does_nothing_and_is_refused(
    tmp_path: Path, honest: dict[str, tuple[Path, str]], name: str
) -> None:
    engine = "sklearn" if "skops" in name and "model.onnx" not in name else "onnx"
    canary = tmp_path / "canary"
    original, found = honest[engine]
    folder = tmp_path / "artifact"
    shutil.copytree(original, folder)
    ATTACKS[name](folder, canary)
    before = listing(tmp_path)
    with pytest.raises(ArtifactRefused):
        used(folder, found)
    by_registrar = registered(folder, name)
    with pytest.raises(ArtifactRefused) as refusal:
        used(folder, by_registrar)
    for attacks, reason in REASONS.items():
        if re.match(attacks, name):
            assert re.search(reason, str(refusal.value)), refusal.value
    assert not canary.exists()
    assert listing(tmp_path) == before


@pytest.mark.parametrize("sha", ["../../x", "/tmp/x", "", "Z" * 64, "0" * 63])
def test_a_hash_that_is_none_names_no_folder(tmp_path: Path, sha: str) -> None:
    (tmp_path / "bucket").mkdir()
    with pytest.raises(ArtifactRefused, match=r"is no SHA-256"):
        model.fetch((tmp_path / "bucket").as_uri(), tmp_path / "cache", sha)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_would_fill_the_disk_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    for name in FILES:
        with (tmp_path / "bucket" / name).open("wb") as file:
            file.truncate(1 << 40 if name == "golden.json" else 1)  # sparse: takes no room
    with pytest.raises(ArtifactRefused, match=r"golden\.json has 1099511627776 bytes; at most"):
        model.fetch((tmp_path / "bucket").as_uri(), tmp_path / "cache", "0" * 64)
    assert list((tmp_path / "cache").iterdir()) == []
