"""Slices: a model that learnt one slice upside down is refused there, whatever it is elsewhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import Gates
from mlops_ray.training.evaluation.intervals import blocks
from mlops_ray.training.gates.slices import _holm, slices
from mlops_ray.training.gates.verdict import CheckResult, Verdict
from tests.unit.training.gates.worlds import World, check, judged, trained, world

PLAN = {"slices": {"columns": ["colour"], "margin": 0.1, "min_rows": 200}}


def interacting(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Enough freedom to learn another slope for every colour."""
    flags = [(columns["colour"] == c).astype(float) for c in ("blue", "green", "red")]
    numbers = [np.nan_to_num(columns[name].astype(float)) for name in ("a", "b")]
    return np.stack([*flags, *(n * f for n in numbers for f in flags)], axis=1)


def upside_down_where(rows: World, colour: str) -> Any:
    """A model trained on labels that are turned round in one slice, as a broken join does."""
    y = rows.y[rows.train]
    return trained(rows, encode=interacting, y=np.where(rows.columns["colour"][rows.train] == colour, 1 - y, y))


def verdicts(found: CheckResult) -> dict[str, str]:
    return {s["slice"]: s["verdict"] for s in found.evidence["slices"]}


@pytest.mark.parametrize("first", [True, False])
def test_a_good_model_passes_and_one_that_is_broken_in_a_slice_is_refused(first: bool) -> None:
    rows = world()
    good, bad = trained(rows, encode=interacting), upside_down_where(rows, "green")
    champion = None if first else good
    accepted = check(judged(PLAN, rows.case(good, champion)), "slices.colour")
    assert accepted.verdict is Verdict.PASS
    assert set(verdicts(accepted).values()) == {"pass"}
    assert accepted.evidence["against"] == ("constant" if first else "champion")
    refused = check(judged(PLAN, rows.case(bad, champion)), "slices.colour")
    assert refused.verdict is Verdict.FAIL
    assert verdicts(refused) == {"colour = blue": "pass", "colour = green": "fail", "colour = red": "pass"}
    assert "colour = green" in refused.detail


def test_a_harder_slice_does_not_refuse_a_first_version() -> None:
    """Red rows are a coin's toss, so their loss is far above the others'; a model that says so is as good as can be."""

    def truth(columns: Any, rng: np.random.Generator) -> np.ndarray:
        chance = np.where(columns["colour"] == "red", 0.5, np.where(columns["a"] > 0, 0.98, 0.02))
        return (rng.random(len(chance)) < chance).astype(np.int64)

    rows = world(truth=truth)
    found = check(judged(PLAN, rows.case(trained(rows, encode=interacting))), "slices.colour")
    assert found.verdict is Verdict.PASS


def test_quarters_of_a_number_and_what_is_missing_are_slices() -> None:
    rows = world()
    model = trained(rows)
    a = rows.columns["a"][rows.held].copy()
    a[:500] = np.nan
    found = check(
        judged({"slices": {"columns": ["a"], "margin": 0.2}}, rows.case(model, model, groups={"a": a})), "slices.a"
    )
    assert found.verdict is Verdict.PASS
    assert len(found.evidence["slices"]) == 5
    assert found.evidence["slices"][-1] | {"slice": "a missing", "n": 500} == found.evidence["slices"][-1]


def test_what_is_too_small_is_shown_and_not_judged() -> None:
    rows = world()
    good, bad = trained(rows, encode=interacting), upside_down_where(rows, "green")
    least = int((rows.columns["colour"][rows.held] == "green").sum()) + 1
    plan = {"slices": {**PLAN["slices"], "min_rows": least}}
    found = check(judged(plan, rows.case(bad, good)), "slices.colour")
    assert found.verdict is Verdict.PASS
    assert verdicts(found)["colour = green"] == "not judged"
    assert re.search(
        r"; [12] too small to judge \([\d,]+ rows in 5 blocks are asked of each\): colour = blue \([\d,]+ in 20\)",
        found.detail,
    )
    none = check(judged({"slices": {**PLAN["slices"], "min_rows": 9999}}, rows.case(good, good)), "slices.colour")
    assert none.verdict is Verdict.INCONCLUSIVE


def test_many_slices_of_an_equal_candidate_rarely_fail() -> None:
    """Noise around the margin itself in 20 slices: without Holm's correction one in two runs would fail."""
    rows, failed, runs = world(n=4000), 0, 40
    y, model = rows.y[rows.held], trained(rows)
    colour = np.array([f"c{i % 20:02d}" for i in range(len(y))], dtype=object)
    gates = Gates.model_validate({"resamples": 1000, "slices": {"columns": ["colour"], "margin": 0.1, "min_rows": 50}})
    assert gates.slices is not None
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        own = 0.5 + 0.1 + rng.normal(0, 0.05, len(y))
        case = rows.case(
            model,
            scores=np.where(y == 1, np.exp(-own), 1 - np.exp(-own)),
            rival=np.where(y == 1, np.exp(-0.5), 1 - np.exp(-0.5)),
            groups={"colour": colour},
        )
        (found,) = slices(gates.slices, gates, case, blocks(case.times, gates.block_s), rng)
        failed += found.verdict is Verdict.FAIL
    assert failed <= 5


def test_holm_steps_down() -> None:
    """0.01 x 4, 0.02 x 3 > 0.05: the first alone; with 0.013 the second as well."""
    assert _holm([0.02, 0.01, 0.5, 0.9], 0.05) == [1]
    assert sorted(_holm([0.013, 0.01, 0.5, 0.9], 0.05)) == [0, 1]
    assert _holm([], 0.05) == []
