"""What a V2 client asks about the server and the project's model: is it live, is it ready, what does it take.

Source: Open Inference Protocol, REST (github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from mlops_ray.config import Column
from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols.cells import shown
from mlops_ray.serving.protocols.form import Form
from mlops_ray.serving.protocols.inference import output_names, version_of
from mlops_ray.serving.protocols.tensors import TOLD

EXTENSIONS = ("binary_tensor_data", "classification")
"""What of Triton's extensions there is."""


def server_metadata(release: str) -> Reply:
    """`GET /v2`. Args: release: ours."""
    return Reply(orjson.dumps({"name": "mlops-ray", "version": release, "extensions": EXTENSIONS}))


def live() -> Reply:
    """`GET /v2/health/live`."""
    return Reply(b'{"live":true}')


def ready(loaded: Sequence[int]) -> Reply:
    """`GET /v2/health/ready`: 200 once a version is loaded, 400 before; the protocol says not-ready by a 4xx."""
    return Reply(orjson.dumps({"ready": bool(loaded)}), status=200 if loaded else 400)


def demand_known(name: str, form: Form) -> None:
    """Raises: BadRequest (404) for a model that is not this project's."""
    if name != form.project:
        raise BadRequest(404, "no such model", f"there is no model {shown(name)} here; this is {form.project!r}")


def model_ready(form: Form, loaded: Sequence[int], version: str | None = None) -> Reply:
    """`GET /v2/models/{name}[/versions/{version}]/ready`: of the version, or of any. Raises: BadRequest (404)."""
    there = bool(loaded) if version is None else version_of(version, form) in loaded
    return Reply(orjson.dumps({"name": form.project, "ready": there}), status=200 if there else 400)


def model_metadata(form: Form, loaded: Sequence[int], n_classes: int, version: str | None = None) -> Reply:
    """`GET /v2/models/{name}[/versions/{version}]`.

    Args: n_classes: of a multiclass model. Raises: BadRequest (404) for a version that is not loaded."""
    versions = sorted(loaded)
    if version is not None:
        if version_of(version, form) not in loaded:
            there = ", ".join(map(str, versions)) or "none yet"
            raise BadRequest(
                404, "no such version", f"version {version} of {form.project!r} is not loaded; loaded: {there}"
            )
        versions = [int(version)]
    types = {"probability": "FP64", "probabilities": "FP64", "prediction": "FP64", "version": "INT64"}
    types |= {"label": "INT64" if form.task == "binary" else "BYTES", "prediction_id": "BYTES"}
    shapes = {"probabilities": [-1, n_classes]}
    document = {
        "name": form.project,
        "versions": [str(v) for v in versions],
        "platform": "mlops_ray",
        "inputs": [_input(spec, form) for spec in form.columns],
        "outputs": [
            {"name": name, "datatype": types[name], "shape": shapes.get(name, [-1])} for name in output_names(form)
        ],
    }
    return Reply(orjson.dumps(document))


def _input(spec: Column, form: Form) -> dict[str, Any]:
    about: dict[str, Any] = {"dtype": spec.dtype, "nullable": spec.nullable, "required": form.needs(spec)}
    if spec.name in form.features:
        about["feature"] = form.features.index(spec.name)  # its place in a tensor of all features
    return {"name": spec.name, "datatype": TOLD[spec.dtype], "shape": [-1], "parameters": about}
