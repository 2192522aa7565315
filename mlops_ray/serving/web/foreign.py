"""Routes of the protocols that others defined: Open Inference Protocol V2, and MLflow's scoring protocol."""

from __future__ import annotations

import functools
import importlib.metadata

from mlops_ray.errors import BadRequest
from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Answer, Asked, Reply
from mlops_ray.serving.protocols import inference, invocations, metadata
from mlops_ray.serving.web.calls import Call, Route, scored

_MODEL = "/v2/models/{model}"
_VERSION = f"{_MODEL}/versions/{{version}}"


def routes() -> tuple[Route, ...]:
    """What clients of Triton, MLServer, KServe and MLflow ask for."""
    return (
        Route("GET", "/v2", Role.READ, _server, measured=False),
        Route("GET", "/v2/health/live", Role.READ, _live, measured=False),
        Route("GET", "/v2/health/ready", Role.READ, _ready, measured=False),
        *(Route("GET", path, Role.READ, _model, measured=False) for path in (_MODEL, _VERSION)),
        *(Route("GET", f"{path}/ready", Role.READ, _model_ready, measured=False) for path in (_MODEL, _VERSION)),
        *(Route("POST", f"{path}/infer", Role.PREDICT, _infer) for path in (_MODEL, _VERSION)),
        Route("POST", "/invocations", Role.PREDICT, _invocations),
        Route("GET", "/ping", Role.READ, _ping, measured=False),
        Route("GET", "/health", Role.READ, _ping, measured=False),
        Route("GET", "/version", Role.READ, _release, measured=False),
    )


def members(error: BadRequest, path: str) -> dict[str, object]:
    """What the clients of a path's protocol read in an error, beside the problem details."""
    if path == "/v2" or path.startswith("/v2/"):
        return inference.error_members(error)
    return invocations.error_members(error) if path in _MLFLOWS else {}


_MLFLOWS = frozenset(("/invocations", "/ping", "/health", "/version"))


# Open Inference Protocol ---------------------------------------------------------------------------------------------


async def _server(call: Call) -> Reply:
    return metadata.server_metadata(installed("mlops-ray"))


async def _live(call: Call) -> Reply:
    return metadata.live()


async def _ready(call: Call) -> Reply:
    return metadata.ready(loaded(call))


async def _model(call: Call) -> Reply:
    return model(call, _version_of(call))


def model(call: Call, version: str | None) -> Reply:
    """What the model, or a version of it, takes and gives. Raises: BadRequest (404) for one that is not loaded."""
    models = call.service.models()
    n_classes = len(models[0].classes) if models else 0
    return metadata.model_metadata(call.service.form, loaded(call), n_classes, version)


async def _model_ready(call: Call) -> Reply:
    return metadata.model_ready(call.service.form, loaded(call), _version_of(call))


async def _infer(call: Call) -> Reply:
    form = call.service.form

    def reply(asked: Asked, answer: Answer) -> Reply:
        return inference.reply(asked, answer, form)

    wanted = _version_of(call)
    asked = inference.parse(call.body, call.headers, form, now=call.now, version=wanted)
    return await scored(call, asked, reply)


def _version_of(call: Call) -> str | None:
    """The version in the path, if any. Raises: BadRequest (404) when the model in it is not this project's."""
    params = call.params or {}
    metadata.demand_known(params["model"], call.service.form)
    return params.get("version")


def loaded(call: Call) -> tuple[int, ...]:
    """The versions that a request may ask for."""
    return tuple(model.version for model in call.service.models())


# MLflow --------------------------------------------------------------------------------------------------------------


async def _invocations(call: Call) -> Reply:
    asked = invocations.parse(call.body, call.headers, call.service.form, now=call.now)
    return await scored(call, asked, invocations.reply)


async def _ping(call: Call) -> Reply:
    return invocations.ping(ready=call.service.ready())


async def _release(call: Call) -> Reply:
    return invocations.version(installed("mlflow"))


@functools.cache
def installed(distribution: str) -> str:
    """Its release; "0" for one that runs from a checkout. Reads the file system once."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "0"
