"""Open Inference Protocol V2 over gRPC: its messages, and what they are in the protocol's JSON.

The messages are those of the protocol's `grpc_predict_v2.proto`, described here as tables and made by protobuf when
first asked for: no generated code, no compiler. Requests and answers are translated to and from what `inference` reads
and writes, so that both ways in have the same rules and the same words for what is wrong.

Source: Open Inference Protocol, gRPC (github.com/kserve/open-inference-protocol); the field numbers are Triton's too.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols.cells import shown

PACKAGE, SERVICE = "inference", "GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""The service's calls; each takes its `<name>Request` and answers `<name>Response`."""

# Message: its fields as name and type, in the order of their numbers. `*` repeats, `?` is one of the message's only
# choice, `%` is a map from strings; a type with a capital letter is a message.
_NAMED = "name:string version:string"
_TENSOR = "name:string datatype:string shape:int64* parameters:InferParameter%"
_MODEL = "model_name:string model_version:string id:string parameters:InferParameter%"
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "ready:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_NAMED} extensions:string*",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": "name:string versions:string* platform:string inputs:TensorMetadata* "
    "outputs:TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": "name:string datatype:string shape:int64*",
    "InferParameter": "bool_param:bool? int64_param:int64? string_param:string? double_param:double? "
    "uint64_param:uint64?",
    "InferTensorContents": "bool_contents:bool* int_contents:int32* int64_contents:int64* uint_contents:uint32* "
    "uint64_contents:uint64* fp32_contents:float* fp64_contents:double* bytes_contents:bytes*",
    "ModelInferRequest": f"{_MODEL} inputs:InferInputTensor* outputs:InferRequestedOutputTensor* "
    "raw_input_contents:bytes*",
    "ModelInferRequest.InferInputTensor": f"{_TENSOR} contents:InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name:string parameters:InferParameter%",
    "ModelInferResponse": f"{_MODEL} outputs:InferOutputTensor* raw_output_contents:bytes*",
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR} contents:InferTensorContents",
}


@functools.cache
def messages() -> dict[str, Any]:
    """The protocol's message classes by name. In a pool of their own: others in the process may have them as well."""
    from google.protobuf import (  # type: ignore[import-untyped]  # comes without types
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="mlops_ray/grpc_predict_v2.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for path, fields in _MESSAGES.items():
        outer, _, name = path.rpartition(".")
        made[path] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for number, field in enumerate(fields.split(), 1):
            _field(made[path], path, field, number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = ((path, pool.FindMessageTypeByName(f"{PACKAGE}.{path}")) for path in _MESSAGES)
    classes = {path: message_factory.GetMessageClass(descriptor) for path, descriptor in found}
    for path, made_class in classes.items():  # Serve's fallback proxy sends requests to replicas by pickle
        copyreg.pickle(made_class, functools.partial(_reduced, path))
    return classes


def _reduced(path: str, message: Any) -> tuple[Callable[[str, bytes], Any], tuple[str, bytes]]:
    return _restored, (path, message.SerializeToString())


def _restored(path: str, content: bytes) -> Any:
    return messages()[path].FromString(content)


def _field(message: Any, path: str, text: str, number: int) -> None:
    """Add one field of the tables to its message's description."""
    name, _, kind = text.partition(":")
    field = message.field.add(name=name, number=number, label=3 if kind[-1] in "*%" else 1)  # repeated, or optional
    bare = kind.rstrip("*?%")
    if kind.endswith("%"):
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _field(entry, path, "key:string", 1)
        _field(entry, path, f"value:{bare}", 2)
        field.type, field.type_name = 11, f".{PACKAGE}.{path}.{entry.name}"
    elif bare[0].isupper():
        inner = f"{path}.{bare}" if f"{path}.{bare}" in _MESSAGES else bare
        field.type, field.type_name = 11, f".{PACKAGE}.{inner}"
    else:
        field.type = _SCALARS[bare]
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0


# descriptor.proto's numbers of types; 11 is a message.
_SCALARS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}


def document(request: Any) -> tuple[dict[str, Any], memoryview]:
    """A ModelInferRequest as `inference.understood` takes it. Raises: BadRequest (400, 422)."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        says = f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; send one for each, or none"
        raise BadRequest(400, "wrong size", says)
    inputs = []
    for i, tensor in enumerate(request.inputs):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        parameters = _parameters(tensor.parameters)
        if raw:
            parameters["binary_data_size"] = len(raw[i])
        else:
            entry["data"] = _contents(tensor, f"inputs[{i}]")
        inputs.append(entry | {"parameters": parameters})
    # An answer's numbers travel as bytes here, whatever was asked for: gRPC has no JSON.
    outputs = [
        {"name": output.name, "parameters": _parameters(output.parameters) | {"binary_data": True}}
        for output in request.outputs
    ]
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    found = {"id": request.id or None, "parameters": parameters, "inputs": inputs, "outputs": outputs}
    return found, memoryview(b"".join(raw))


def _parameters(given: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param") for name, value in given.items()
    }


def _contents(tensor: Any, place: str) -> list[Any]:
    """A tensor's typed contents, of which there is one kind."""
    filled = tensor.contents.ListFields()
    if len(filled) > 1:
        names = " and ".join(field.name for field, _ in filled)
        raise BadRequest(422, "data given twice", f"{place} has {names}; send the one of its datatype")
    values = list(filled[0][1]) if filled else []
    if values and isinstance(values[0], bytes):
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as exc:
            raise BadRequest(422, "wrong value", f"{place} ({shown(tensor.name)}): a string is not UTF-8") from exc
    return values


def answered(reply: Reply) -> Any:
    """A ModelInferResponse of the reply that `inference` made, all of whose outputs are bytes."""
    length = int(dict(reply.headers)["Inference-Header-Content-Length"])
    head = orjson.loads(reply.body[:length])
    response = messages()["ModelInferResponse"](model_name=head["model_name"], id=head.get("id", ""))
    response.model_version = head.get("model_version", "")
    _fill(response.parameters, head.get("parameters", {}))
    at = length
    for output in head["outputs"]:
        size = output["parameters"].pop("binary_data_size")
        made = response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        _fill(made.parameters, output["parameters"])
        response.raw_output_contents.append(reply.body[at : at + size])
        at += size
    return response


def _fill(parameters: Any, values: dict[str, bool | str]) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        else:
            parameters[name].string_param = value


def described(name: str, reply: Reply) -> Any:
    """The response `name` of a reply of `metadata`: fields that the message has not are left out."""
    from google.protobuf import json_format

    return json_format.ParseDict(orjson.loads(reply.body), messages()[name](), ignore_unknown_fields=True)


def header_pairs(metadata: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """A call's metadata as headers by name in lower case; those in bytes are passed over."""
    return {str(name).lower(): value for name, value in metadata if isinstance(value, str)}
