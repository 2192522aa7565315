"""Routes of the documents about the interface itself: the OpenAPI document and the page for people."""

from __future__ import annotations

from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.protocols import page
from mlops_ray.serving.web.calls import NOTHING, Call, Extension, Route
from mlops_ray.serving.web.foreign import installed


def routes(extension: Extension = NOTHING) -> tuple[Route, ...]:
    """`/openapi.json` and `/docs`, which describe the routes of `extension` too."""
    also = extension.tags, extension.operations

    async def openapi(call: Call) -> Reply:
        classes = sorted({name for model in call.service.models() for name in model.classes}, key=str)
        return page.json_document(call.service.project, release=installed("mlops-ray"), classes=classes, also=also)

    async def docs(call: Call) -> Reply:
        return page.docs(call.service.project, release=installed("mlops-ray"), also=also)

    return (
        Route("GET", "/openapi.json", Role.READ, openapi, measured=False),
        Route("GET", "/docs", Role.READ, docs, measured=False),
    )
