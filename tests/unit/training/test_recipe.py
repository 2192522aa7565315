from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlops_ray.config import load_project
from mlops_ray.errors import ArtifactRefused
from mlops_ray.training import recipe
from mlops_ray.training.recipe import Recipe

ROOT = Path(__file__).parents[3]


def made() -> tuple[Recipe, object]:
    project = load_project(ROOT / "configs/quickstart.yaml", env={})
    choice = {"candidate": 0, "estimator": "sklearn.linear_model:LogisticRegression", "params": {"C": 0.5}}
    body = Recipe(recipe.shaping(project), "uri", 3, "ab" * 16, choice, 0.4, False, "c" * 40, False, "0" * 64)
    return body, project


def test_a_recipe_survives_json_and_gives_the_project_back() -> None:
    body, project = made()
    again = Recipe.from_dict(json.loads(json.dumps(body.to_dict())), "here")
    assert again == body
    assert again.project_of(project) == project  # type: ignore[arg-type]  # a Project
    assert again.winner.params == {"C": 0.5}
    with pytest.raises(ArtifactRefused, match="recipe is not readable"):
        Recipe.from_dict({"project": {}}, "here")


def test_an_edited_project_file_is_said_and_the_recorded_one_used() -> None:
    body, project = made()
    edited = project.model_copy(update={"seed": 99})  # type: ignore[attr-defined]  # a Project
    assert body.project_of(edited).seed == project.seed  # type: ignore[attr-defined]  # a Project
    said = recipe.project_differences(body.project, edited)
    assert said == ("the project file's `seed` is not what it was; the recorded one was used",)


def test_predictions_are_bit_equal_near_or_different() -> None:
    then = np.random.default_rng(0).uniform(size=50)
    recorded = recipe.digest(then)
    assert recipe.compare("binary", recorded, then, then.copy()) == ("bit-equal", 0.0)
    near = then + 1e-9
    assert recipe.compare("binary", recorded, then, near)[0] == "equal within tolerance"
    assert recipe.compare("binary", recorded, then, then + 1e-3)[0] == "different"
    # A regression's tolerance follows its spread.
    assert recipe.compare("regression", recipe.digest(then * 1e6), then * 1e6, then * 1e6 + 1e-2)[0].startswith("equal")
    assert recipe.compare("multiclass", recorded, np.ones((50, 2)), np.ones((50, 3))) == ("different", float("inf"))


@pytest.mark.parametrize(
    ("commit", "dirty", "now", "says"),
    [
        ("a" * 40, False, ("a" * 40, False), ()),
        ("a" * 40, False, ("b" * 40, False), ("the code is at bbbbbbbbbbbb, the version was made at",)),
        ("a" * 40, True, ("a" * 40, True), ("made with uncommitted changes", "the code that runs has uncommitted")),
        ("a" * 40, False, None, ("the code runs outside a checkout",)),
        (None, None, ("a" * 40, False), ("which code made the version is not recorded",)),
    ],
)
def test_code_that_differs_is_named(
    commit: str | None, dirty: bool | None, now: tuple[str, bool] | None, says: tuple[str, ...]
) -> None:
    found = recipe.code_differences(commit, dirty, now)
    assert len(found) == len(says)
    for line, expected in zip(found, says, strict=True):
        assert expected in line


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (("c" * 40, False), ()),
        (None, ()),  # outside a checkout nothing is known of the code
        (("d" * 40, False), ("the code, from cccccccccccc to dddddddddddd",)),
        (("c" * 40, True), ("uncommitted changes of the code",)),
    ],
)
def test_what_would_make_another_model_is_named(code: tuple[str, bool] | None, says: tuple[str, ...]) -> None:
    body, project = made()
    assert recipe.changed(body, project, code) == says  # type: ignore[arg-type]  # a Project
    edited = project.model_copy(update={"seed": 99})  # type: ignore[attr-defined]  # a Project
    assert recipe.changed(body, edited, code) == ("`seed` of the project file", *says)
    prints = {recipe.made_of(p, c) for p in (project, edited) for c in (None, ("c" * 40, None), ("c" * 40, "e" * 64))}  # type: ignore[arg-type]  # Projects
    assert len(prints) == 6
    assert recipe.made_of(project, None) == recipe.made_of(made()[1], None)  # type: ignore[arg-type]  # Projects
