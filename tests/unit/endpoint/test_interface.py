"""The interface as its own document describes it: no request that Schemathesis makes of it finds a difference."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mlops_ray.endpoint import described, operation
from mlops_ray.serving.protocols.document import openapi
from mlops_ray.serving.service import Service, Wanted
from mlops_ray.serving.web.http import Application, routes
from mlops_ray.state import Store, VersionRow
from tests import fakes

REVENUE = {"metric": "business", "name": "revenue", "low": 0, "high": 9, "better": "higher", "margin": 1}
PROJECT = fakes.project(serving={"explain": 3, "max_body_mb": 1, "max_rows": 50}, rollout={"analyses": [REVENUE]})
PREFIX = f"/{PROJECT.project}"
ALSO = described.TAGS, described.operations()

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def mounted(store: Store) -> Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]:
    """The application below the project's name, as Ray Serve mounts it, with versions that may be tried."""
    first = Wanted(stable=fakes.held(70), warm=(fakes.held(30),))
    service = Service(PROJECT, fakes.FakeLog(), fakes.FakeLoader(), fakes.no_canary, first=first)
    fakes.eventually(lambda: len(service.models()) == 2)
    application = Application(lambda: service, extension=operation.extension(PROJECT, store))

    async def below(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await application({**scope, "root_path": PREFIX}, receive, send)

    return below


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    found = Store.open(f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db")
    with found.begin() as tx:
        for version in (1, 30, 70):
            row = VersionRow(PROJECT.project, version, "run", f"/m/{version}", "0" * 64, "d@1", "registered", 1.0, {})
            tx.save_version(row)
        tx.save_serving(PROJECT.project, Wanted(stable=fakes.held(70), warm=(fakes.held(30),)).spec(), 0)
    yield found
    found.close()


def test_every_route_stands_in_the_document_with_its_role(store: Store) -> None:
    project = fakes.project(serving={"auth": "token"})
    extension = operation.extension(project, store)
    told = {
        (method.upper(), path, described["security"][0]["bearer"][0] if described["security"] else "None")
        for path, methods in openapi(project, release="0", also=ALSO)["paths"].items()
        for method, described in methods.items()
    }
    assert told == {(route.method, route.path, str(route.role)) for route in routes(extension)}


def test_an_explanation_is_given(store: Store) -> None:
    """The arbitrary requests below ask for one now and then."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted(store)), base_url="http://a") as client:
            body = {"rows": [fakes.row()], "options": {"explain": 2}}
            return await client.post(f"{PREFIX}/predict", json=body)

    answer = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["contributions"] == []  # a constant has none


@pytest.fixture(scope="module")
def interface(store: Store) -> Any:
    # Its own list of good refusals lacks two that RFC 9110 has for bodies.
    refusals = {"negative_data_rejection": {"expected-statuses": ["400", "403", "404", "413", "415", "422"]}}
    config = SchemathesisConfig.from_dict({"checks": refusals})
    return schemathesis.openapi.from_asgi(f"{PREFIX}/openapi.json", mounted(store), config=config)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PATHS = openapi(PROJECT, release="0", also=ALSO)["paths"]
OPERATIONS = [
    pytest.param(path, method, said["tags"][0], mode, id=f"{method}-{path}-{mode.value}")
    for path, methods in PATHS.items()
    for method, said in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "parameters" in said or "requestBody" in said
]


def says_all(case: Any) -> bool:
    """Whether a request that keeps its schema must be taken: no schema can say the rest, so descriptions do."""
    body = case.body
    if not isinstance(body, dict) or "Idempotency-Key" in case.headers:  # a key may have been used before
        return "Idempotency-Key" not in case.headers
    rows, columns = body.get("rows", []), body.get("columns", {})
    times = [row["at"] for row in rows if "at" in row] + columns.get("at", [])
    times += [label.get("time") or 0 for label in body.get("labels", [])] + ([body["time"]] if "time" in body else [])
    together = all(len({name in row for row in rows}) < 2 for name in ("who", "at"))
    return together and len(set(map(len, columns.values()))) < 2 and all(map(is_past, times))


def is_past(time: Any) -> bool:
    """A time from 1970 to tomorrow that Python reads: it knows no leap seconds."""
    if not isinstance(time, str):
        return bool(time < datetime.now(UTC).timestamp())
    with contextlib.suppress(ValueError, OverflowError):
        return 0 <= datetime.fromisoformat(time).timestamp() < datetime.now(UTC).timestamp()
    return False


@pytest.mark.parametrize(("path", "method", "tag", "mode"), OPERATIONS)
def test_answers_are_what_the_document_says(
    interface: Any, path: str, method: str, tag: str, mode: GenerationMode
) -> None:
    checks = CHECKS
    if tag == "native":  # foreign schemas are wider than what is taken: no schema says that data fit a shape
        checks = [*CHECKS, negative_data_rejection, positive_data_acceptance]
    if tag == "operation":  # whether an order is possible depends on what came before it
        checks = [*CHECKS, negative_data_rejection]

    @given(case=interface[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=30, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    def ask(case: Any) -> None:
        sure = mode is GenerationMode.NEGATIVE or says_all(case)
        held = [check for check in checks if sure or check is not positive_data_acceptance]
        case.call_and_validate(checks=held)

    ask()
