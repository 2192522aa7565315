"""Open Inference Protocol V2 over gRPC, by Ray Serve's own gRPC ingress, where `cluster.grpc_port` asks for it.

Serve calls the ingress's method of the same name for each call of the service; the metadata `application` says which
project is meant. Rules, roles and words are those of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]  # comes without types

from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Answer, Asked, Reply
from mlops_ray.serving.protocols import inference, metadata, rpc
from mlops_ray.serving.service import Service
from mlops_ray.serving.web import foreign
from mlops_ray.serving.web.calls import Access, Call, scored
from mlops_ray.serving.web.http import identify

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
}


def add_servicer(servicer: Any, server: Any) -> None:
    """Register the service with a gRPC server, as generated code would; Serve routes its calls to the ingress."""
    made = rpc.messages()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=made[f"{name}Request"].FromString,
            response_serializer=made[f"{name}Response"].SerializeToString,
        )
        for name in rpc.METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{rpc.PACKAGE}.{rpc.SERVICE}", handlers),))


class Rpc:
    """The calls of the service, for the ingress to inherit."""

    service: Service
    access: Access

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Whether the process lives."""
        return await self._described("ServerLive", grpc_context, lambda call: metadata.live())

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Whether a version is loaded."""
        return await self._described("ServerReady", grpc_context, lambda call: metadata.ready(foreign.loaded(call)))

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Name, release and extensions."""
        release = foreign.installed("mlops-ray")
        return await self._described("ServerMetadata", grpc_context, lambda call: metadata.server_metadata(release))

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Whether the model, or a version of it, is loaded."""

        def reply(call: Call) -> Reply:
            metadata.demand_known(request.name, call.service.form)
            return metadata.model_ready(call.service.form, foreign.loaded(call), request.version or None)

        return await self._described("ModelReady", grpc_context, reply)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """What the model takes and gives."""

        def reply(call: Call) -> Reply:
            metadata.demand_known(request.name, call.service.form)
            return foreign.model(call, request.version or None)

        return await self._described("ModelMetadata", grpc_context, reply)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Predictions."""

        async def infer(call: Call) -> Any:
            form, limit = call.service.form, call.service.project.serving.max_body_mb * 1024 * 1024
            if request.ByteSize() > limit:
                raise BadRequest(413, "body too large", f"the limit is {limit:.0f} bytes; send fewer rows at a time")
            metadata.demand_known(request.model_name, form)
            identify(call)
            call.body = request.SerializeToString(deterministic=True) if call.repeatable else b""
            document, data = rpc.document(request)
            version = request.model_version or None
            asked = inference.understood(document, data, form, now=call.now, version=version)

            def reply(asked: Asked, answer: Answer) -> Reply:
                return inference.reply(asked, answer, form)

            return rpc.answered(await scored(call, asked, reply))

        return await self._answered(grpc_context, Role.PREDICT, infer)

    async def _described(self, name: str, context: Any, reply: Callable[[Call], Reply]) -> Any:
        async def work(call: Call) -> Any:
            return rpc.described(f"{name}Response", reply(call))

        return await self._answered(context, Role.READ, work)

    async def _answered(self, context: Any, role: Role, work: Callable[[Call], Awaitable[Any]]) -> Any:
        """What `work` makes of the call; what it refuses becomes the call's status, by raising as Serve wants it."""
        headers = rpc.header_pairs(context.invocation_metadata())
        call = Call("/v2", headers, time.time(), self.service, self.access, os.urandom(16).hex(), False)
        try:
            call.demand(Role.OPERATE if "x-model-version" in headers and role is Role.PREDICT else role)
            return await work(call)
        except BadRequest as exc:
            context.set_code(_CODES.get(exc.status, grpc.StatusCode.INVALID_ARGUMENT))
            context.set_details(str(exc))
            raise
        except BackendUnavailable as exc:
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details(str(exc))
            raise
