"""The OpenAPI document and the page: that they are valid, teach what is so, and can hold no script."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from mlops_ray.config import Project, load_project
from mlops_ray.serving.protocols import feedback, inference, invocations, native, page, parts, schemas
from mlops_ray.serving.protocols.document import openapi
from mlops_ray.serving.protocols.form import Form, batch_of_rows
from tests import fakes
from tests.unit.serving.protocols.test_feedback import SALES
from tests.unit.serving.protocols.test_form import RULED

NOW = 1_800_000_000.0
BINARY = fakes.project(serving={"explain": 3})
PROJECTS = {
    "binary": BINARY,
    "multiclass": fakes.project(task="multiclass", serving={"auth": "token"}),
    "regression": fakes.project(task="regression"),
    "business": fakes.project(rollout={"analyses": SALES}),
    "ruled": fakes.project(columns=RULED, serving={"request_rules": "all"}),
    "quickstart": load_project(Path("configs/quickstart.yaml"), env={}),
    "flights": load_project(Path("configs/flights.yaml"), env={}),
}
projects = pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)


def document(project: Project) -> Any:
    """As a client reads it."""
    return orjson.loads(page.json_document(project, release="1.2.3").body)


def within(found: Any, **ref: Any) -> Any:
    """A validator of one of the document's schemas, which refer to each other."""
    return Draft202012Validator({**ref, "components": found["components"]})


def named(found: Any, name: str) -> Any:
    return within(found, **{"$ref": f"#/components/schemas/{name}"})


@projects
def test_the_document_is_valid(project: Project) -> None:
    found = document(project)
    OpenAPIV31SpecValidator(found).validate()
    assert found["openapi"].startswith("3.1")
    assert found["servers"] == [{"url": f"/{project.project}"}]
    for schema in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    identities = [op["operationId"] for methods in found["paths"].values() for op in methods.values()]
    assert len(set(identities)) == len(identities)


@projects
def test_examples_keep_their_schemas_and_are_taken(project: Project) -> None:
    form, found = Form.of(project), document(project)

    def examples(path: str) -> list[Any]:
        content = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        shown = [each["value"] for each in content.get("examples", {}).values()] or [content["example"]]
        for each in shown:
            within(found, **content["schema"]).validate(each)
        return [orjson.dumps(each) for each in shown]

    for body in examples("/predict"):
        assert native.parse(body, {}, form, now=NOW).batch.n_rows
    for body in examples("/feedback"):
        assert feedback.parse(body, form, now=NOW).ids
    for body in examples("/watermark"):
        assert feedback.parse_watermark(body, now=NOW)
    for body in examples("/v2/models/{model}/infer"):
        assert inference.parse(body, {}, form, now=NOW).batch.n_rows == 1
    for body in examples("/invocations"):
        assert invocations.parse(body, {}, form, now=NOW).batch.n_rows == 1


def test_an_example_keeps_the_rules() -> None:
    for project in PROJECTS.values():
        strict = project.model_copy(update={"serving": project.serving.model_copy(update={"request_rules": "all"})})
        form = Form.of(strict)
        assert batch_of_rows([schemas.example(form)], form, now=NOW).n_rows == 1


def test_roles_and_refusals_stand_in_it_where_there_are_tokens() -> None:
    found, held = document(BINARY), document(PROJECTS["multiclass"])
    assert "securitySchemes" not in found["components"]
    assert "401" not in found["paths"]["/predict"]["post"]["responses"]
    assert held["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    predict = held["paths"]["/predict"]["post"]
    assert predict["security"] == [{"bearer": ["predict"]}]
    wanted = {"200", "400", "401", "403", "404", "408", "413", "415", "422", "500", "503"}
    assert set(predict["responses"]) == wanted
    for status in wanted - {"200"}:
        response = held["components"]["responses"][status]
        assert list(response["content"]) == ["application/problem+json"]


def test_classes_stand_in_it_once_they_are_known() -> None:
    found = openapi(PROJECTS["multiclass"], release="0", classes=("cat", "dog"))
    assert found["components"]["schemas"]["Prediction"]["properties"]["label"] == {"enum": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("row", "fits"),
    [
        ({}, True),
        ({"x": None, "c": None}, True),
        ({"x": 1e39}, False),
        ({"x": "1"}, False),
        ({"n": 1.5}, False),
        ({"n": None}, False),
        ({"flag": 1}, False),
        ({"who": ""}, False),
        ({"late": 1}, False),
        ({"at": -1}, False),
        ({"n": 2.0}, True),
    ],
)
def test_a_rows_schema_says_what_is_taken(row: dict[str, Any], fits: bool) -> None:
    validator = named(document(BINARY), "Row")
    assert validator.is_valid(fakes.row() | row) == fits


def test_rules_stand_in_the_schema_where_requests_are_held_to_them() -> None:
    properties = document(PROJECTS["ruled"])["components"]["schemas"]["Row"]["properties"]
    assert properties["c"]["enum"] == ["red", "green", None]
    assert properties["who"]["pattern"] == r"^(?:k\d+)$"
    assert (properties["n"]["minimum"], properties["n"]["maximum"]) == (0, 10)
    loose = document(fakes.project(columns=RULED))["components"]["schemas"]["Row"]["properties"]
    assert "enum" not in loose["c"]
    assert loose["c"]["description"] == "Usually one of red, green."
    assert properties["c"]["description"] == "One of red, green."


def test_a_keys_rules_stand_in_the_schema() -> None:
    """Found by Schemathesis: the bounds of all integers stood there instead."""
    columns = [{"name": "who", "dtype": "int", "min": 0}, *(c.model_dump() for c in BINARY.columns[1:])]
    found = document(fakes.project(columns=columns, serving={"request_rules": "all"}))
    validator = named(found, "Row")
    assert validator.is_valid(fakes.row(who=7))
    assert not validator.is_valid(fakes.row(who=-1))


# --- the page ---


class Outline(HTMLParser):
    """What a page holds: its tags, the texts of its code, its links, and whether each tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.identities: set[str] = set()
        self.blocks: list[str] = []
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on") or name in ("src", "style")]
        self.tags.append(tag)
        self.links += [found["href"] or ""] if "href" in found else []
        self.identities |= {found["id"] or ""} if "id" in found else set()
        if tag == "pre":
            self.blocks.append("")
        if tag == "td":
            self.cells.append("")
        if tag not in ("meta", "!doctype"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self._open:
            self.blocks[-1] += data
        if "td" in self._open:
            self.cells[-1] += data


def shown(project: Project) -> Outline:
    return Outline(page.docs(project, release="1.2.3").body.decode())


@projects
def test_the_page_needs_nothing_from_elsewhere(project: Project) -> None:
    found = shown(project)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.tags)
    outside = [link for link in found.links if not link.startswith("#")]
    assert outside == ["openapi.json", "https://www.rfc-editor.org/rfc/rfc9457"]
    assert {link[1:] for link in found.links if link.startswith("#")} <= found.identities


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    reply = page.docs(BINARY, release="1.2.3")
    policy = dict(reply.headers)["Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", reply.body.decode(), flags=re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert reply.media_type == "text/html; charset=utf-8"


@projects
def test_code_between_backquotes_is_code_on_the_page(project: Project) -> None:
    assert "`" not in page.docs(project, release="1.2.3").body.decode()


@projects
def test_the_page_names_every_column_route_and_status(project: Project) -> None:
    found = shown(project)
    assert {spec.name for spec in Form.of(project).columns} <= set(found.cells)
    assert set(document(project)["paths"]) <= set(found.cells)
    statuses = {str(s) for s in parts.STATUSES if project.serving.auth == "token" or s not in (401, 403)}
    assert statuses <= set(found.cells)
    assert ("predict" in found.cells) == (project.serving.auth == "token")  # the role, beside the route


@projects
def test_its_commands_are_requests_that_are_taken(project: Project) -> None:
    form = Form.of(project)
    commands = [block for block in shown(project).blocks if block.startswith("curl ")]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)
        body = words[words.index("-d") + 1].encode()
        if "/predict" in command:
            assert native.parse(body, {}, form, now=NOW).batch.n_rows == 1
        else:
            assert feedback.parse(body, form, now=NOW).ids
        assert ("Authorization: Bearer $TOKEN" in words) == (project.serving.auth == "token")


def test_a_quote_in_a_value_stays_in_its_command() -> None:
    columns = [c.model_dump() for c in BINARY.columns]
    columns[6] |= {"values": ["it's $HOME; `id`", "<script>alert(1)</script>"]}
    project = fakes.project(columns=columns)
    command = next(block for block in shown(project).blocks if "/predict" in block)
    words = shlex.split(command)
    assert orjson.loads(words[words.index("-d") + 1])["rows"][0]["c"] == "it's $HOME; `id`"


def test_texts_of_the_project_file_are_no_markup() -> None:
    about = {"intended_use": "<script>alert(1)</script>", "owner": "<b>us</b> & 'co'"}
    columns = [c.model_dump() for c in BINARY.columns]
    columns[3] |= {"name": "<img src=x onerror=alert(1)>"}
    features = {"numeric": {"columns": ["<img src=x onerror=alert(1)>"]}}
    found = shown(fakes.project(about=about, columns=columns, features=features))
    assert not {"script", "img"} & set(found.tags)
    assert found.tags.count("b") == 1  # the page's own
    assert "<img src=x onerror=alert(1)>" in found.cells


def test_the_script_for_many_rows_compiles() -> None:
    script = next(block for block in shown(BINARY).blocks if block.startswith("import httpx"))
    assert compile(script.replace(", ...}", "}"), "page", "exec")
