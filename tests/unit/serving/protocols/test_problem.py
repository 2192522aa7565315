from __future__ import annotations

import pickle

import orjson
import pytest

from mlops_ray.errors import BadRequest
from mlops_ray.serving.protocols.bodies import media_type, preferred
from mlops_ray.serving.protocols.problem import pointed, problem


def test_a_problem_is_rfc_9457() -> None:
    assert orjson.loads(problem(BadRequest(422, "wrong value", "row 0"), "/small/predict")) == {
        "type": "about:blank",
        "title": "wrong value",
        "status": 422,
        "detail": "row 0",
        "instance": "/small/predict",
    }


def test_what_programs_read_stands_in_errors() -> None:
    members = {"row": 0, "column": "x", "expected": "float", "received": "'big'"}
    error = pointed(BadRequest(422, "wrong value", "row 0", members), "rows", 0, "x")
    assert orjson.loads(problem(error, "/"))["errors"] == [{"pointer": "#/rows/0/x", **members}]


def test_an_error_crosses_processes_whole() -> None:
    error = BadRequest(422, "wrong value", "row 0", {"row": 0})
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.status, copied.members) == (str(error), 422, {"row": 0})


@pytest.mark.parametrize(
    ("path", "pointer"),
    [(("rows", 3, "a/b"), "#/rows/3/a~1b"), (("a~b",), "#/a~0b"), (("a b", "\u00e4"), "#/a%20b/%C3%A4"), ((), "#")],
)
def test_pointers_are_uri_fragments(path: tuple[str | int, ...], pointer: str) -> None:
    assert pointed(BadRequest(422, "t", "d"), *path).members["pointer"] == pointer


@pytest.mark.parametrize(
    ("header", "media"),
    [
        (None, "a/b"),
        ("text/CSV; charset=utf-8", "text/csv"),
        (" application/json ;x", "application/json"),
        ("", ""),
    ],
)
def test_media_types(header: str | None, media: str) -> None:
    assert media_type(header, "a/b") == media


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "a/x"),
        ("", "a/x"),
        ("*/*", "a/x"),
        ("a/y", "a/y"),
        ("A/Y ; q=0.9", "a/y"),
        ("a/x;q=0.2, a/y;q=0.3", "a/y"),
        ("a/y;q=0", "a/x"),
        ("a/y;q=2", "a/x"),
        ("a/y;q=", "a/x"),
        ("z/z", "a/x"),
    ],
)
def test_what_the_client_prefers(accept: str | None, chosen: str) -> None:
    assert preferred(accept, ["a/x", "a/y"], "a/x") == chosen
