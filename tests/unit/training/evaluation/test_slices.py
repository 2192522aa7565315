from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import intervals, slices
from mlops_ray.training.evaluation.slices import partition


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def inputs(n: int, random: np.random.Generator, numbers: int = 4, texts: int = 3) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {f"x{i}": random.normal(size=n).astype(np.float32) for i in range(numbers)}
    return columns | {f"c{i}": random.choice(list("abcde"), n).astype(object) for i in range(texts)}


SETTINGS: dict[str, Any] = {"min_rows": 50, "resamples": 500, "alpha": 0.05}


@pytest.mark.parametrize(
    ("values", "labels", "codes"),
    [
        (np.array(["b", "a", "", "b"], dtype=object), ("= a", "= b", "missing"), [1, 0, 2, 1]),
        (np.array([None, "a", float("nan")], dtype=object), ("= a", "missing"), [1, 0, 1]),
        (np.array(["x", "x"]), ("= x",), [0, 0]),
        (np.array([1, 0, np.nan, 1]), ("= 0", "= 1", "missing"), [1, 0, 2, 1]),
        (np.array([True, False]), ("= 0", "= 1"), [1, 0]),
        (np.array([2.0, None, 3.0], dtype=object), ("= 2", "= 3", "missing"), [0, 2, 1]),
        (np.arange(8.0), ("< 1", ">= 1 and < 3", ">= 3 and < 5", ">= 5"), [0, 1, 1, 2, 2, 3, 3, 3]),
        (np.array([0.0] * 94 + [1, 2, 3, 4, 5, 6]), ("< 1", ">= 1"), [0] * 94 + [1] * 6),
        (np.full(3, np.nan), ("missing",), [0, 0, 0]),
        (np.zeros(0), (), []),
    ],
)
def test_partitions(values: np.ndarray, labels: tuple[str, ...], codes: list[int]) -> None:
    found = partition("x", values)
    assert found.labels == labels
    assert found.codes.tolist() == codes


def test_quarters_are_of_equal_size_and_rare_values_are_left_out() -> None:
    quarters = partition("x", rng().lognormal(size=4000))
    assert np.ptp(np.bincount(quarters.codes)) <= 2
    values = np.array(["a"] * 5 + ["b"] * 3 + ["c"], dtype=object)
    few = partition("x", values, max_values=2)
    assert few.labels == ("= a", "= b")
    assert few.codes.tolist() == [0] * 5 + [1] * 3 + [-1]
    assert few.rows(1).sum() == 3


def test_without_a_weak_slice_one_is_named_in_few_cases() -> None:
    """Losses share a day's effect, some features move with the day, and slices number some 300."""
    random, named, runs = rng(), 0, 200
    for _ in range(runs):
        day = random.integers(0, 20, 1000)
        columns = inputs(1000, random)
        columns["x0"] = columns["x0"] + random.normal(size=20)[day]
        losses = random.normal(size=20)[day] + random.normal(size=1000)
        named += bool(slices.weak(columns, losses, intervals.grouped(day), rng=random, **SETTINGS))
    assert named / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("losses", ["exponential", "rare"])
def test_skewed_losses_do_not_name_more(losses: str) -> None:
    random, named = rng(), 0
    for _ in range(100):
        value = random.exponential(size=1000) if losses == "exponential" else 3.0 * (random.random(1000) < 0.05)
        given = intervals.grouped(random.integers(0, 12, 1000))
        named += bool(slices.weak(inputs(1000, random), value, given, rng=random, **SETTINGS))
    assert named <= 9  # 5 promised, standard error 2.2


def test_a_planted_slice_is_found() -> None:
    random = rng()
    columns = inputs(4000, random)
    columns["x2"][:600] = np.nan
    given = intervals.grouped(random.integers(0, 30, 4000))
    noise = random.exponential(size=4000)
    for condition, names in (
        (columns["c1"] == "b", {("c1", "= b")}),
        (np.isnan(columns["x2"]), {("x2", "missing")}),
        ((columns["c0"] == "a") & (columns["c2"] == "d"), {("c0", "= a"), ("c2", "= d")}),
    ):
        found = slices.weak(columns, noise + 1.2 * condition, given, rng=random, **SETTINGS)
        assert [set(s.conditions) for s in found] == [names]
        assert found[0].n == condition.sum()
        assert found[0].p <= 0.01
        assert found[0].loss.low < noise.mean() + 1.2 < found[0].loss.high
        assert found[0].difference.low < 1.2 * (1 - condition.mean()) < found[0].difference.high
        assert found[0].difference.low > 0
        json.dumps(found[0].to_dict(), allow_nan=False)
    assert found[0].name == "c0 = a and c2 = d"


def test_two_planted_slices_are_named_by_effect_and_their_overlaps_are_not() -> None:
    random = rng()
    columns = inputs(6000, random)
    columns["copy"] = columns["c1"].copy()
    losses = random.exponential(size=6000) + 0.8 * (columns["c1"] == "b") + 1.6 * (columns["x3"] > 0.8)
    given = intervals.grouped(random.integers(0, 40, 6000))
    found = slices.weak(columns, losses, given, rng=random, **SETTINGS)
    assert len(found) == 2
    assert found[0].conditions[0][0] == "x3"
    assert found[1].conditions[0] in {("c1", "= b"), ("copy", "= b")}
    assert found[0].effect > found[1].effect
    assert slices.weak(columns, losses, given, rng=random, limit=1, **SETTINGS)[0].conditions[0][0] == "x3"


def test_few_blocks_name_nothing() -> None:
    """Three days cannot show that more than chance is at work, however large the difference."""
    random = rng()
    columns = inputs(1000, random)
    losses = random.normal(size=1000) + 5 * (columns["c0"] == "a")
    assert not slices.weak(columns, losses, intervals.grouped(np.arange(1000) % 3), rng=random, **SETTINGS)


def test_declared_slices_are_all_listed() -> None:
    random = rng()
    columns = inputs(2000, random)
    columns["c0"][:20] = ""
    losses = random.exponential(size=2000) + 1.0 * (columns["c0"] == "b")
    given = intervals.grouped(random.integers(0, 25, 2000))
    found = slices.declared(columns, ["x0", "c0"], losses, given, rng=random, **SETTINGS)
    assert [s.name for s in found][4:] == ["c0 = a", "c0 = b", "c0 = c", "c0 = d", "c0 = e", "c0 missing"]
    assert sum(s.n for s in found) == 4000
    by_name = {s.name: s for s in found}
    assert by_name["c0 = b"].p <= 0.01
    assert by_name["c0 = a"].p > 0.05
    assert np.isnan(by_name["c0 missing"].p)  # 20 rows
    assert by_name["c0 missing"].to_dict()["p"] is None
    weighted = sum(s.difference.value * s.n for s in found[4:])
    assert weighted == pytest.approx(0, abs=1e-9)


def test_many_blocks_are_bundled_and_counted_as_they_are() -> None:
    random = rng()
    columns = inputs(3000, random)
    patient = random.integers(0, 900, 3000)
    bad = columns["c0"] == "a"
    losses = random.exponential(size=3000) + bad
    found = slices.weak(columns, losses, intervals.grouped(patient), rng=random, **SETTINGS)
    assert [s.name for s in found] == ["c0 = a"]
    assert found[0].loss.n_blocks == len(np.unique(patient[bad]))
    assert found[0].difference.low < 1 - bad.mean() < found[0].difference.high


def test_nothing_to_search() -> None:
    given = intervals.grouped(np.arange(100) % 10)
    assert slices.weak({}, np.ones(100), given, rng=rng(), **SETTINGS) == ()
    assert slices.weak({"x": np.arange(100.0)}, np.ones(100), given, rng=rng(), **SETTINGS) == ()  # too small
    assert (
        slices.weak(
            {"x": np.arange(400.0)}, np.ones(400), intervals.grouped(np.arange(400) % 10), rng=rng(), **SETTINGS
        )
        == ()
    )
    same = slices.declared({"x": np.full(100, "a")}, ["x"], np.ones(100), given, rng=rng(), **SETTINGS)
    assert same[0].effect == 0


def test_mistakes_are_named() -> None:
    given = intervals.grouped(np.arange(10))
    with pytest.raises(DataError, match="there are x"):
        slices.declared({"x": np.ones(10)}, ["y"], np.ones(10), given, rng=rng(), **SETTINGS)
    with pytest.raises(DataError, match="row 1 is no finite number"):
        slices.weak({"x": np.ones(2)}, [1.0, np.nan], intervals.grouped([1, 2]), rng=rng(), **SETTINGS)
    with pytest.raises(DataError, match="has 9 rows and the losses have 10"):
        slices.weak({"x": np.ones(9)}, np.ones(10), given, rng=rng(), **SETTINGS)


def test_ten_thousand_rows_of_thirty_features_are_quick() -> None:
    random = rng()
    columns = inputs(10_000, random, numbers=20, texts=10)
    given = intervals.grouped(random.integers(0, 60, 10_000))
    began = time.perf_counter()
    slices.weak(columns, random.exponential(size=10_000), given, rng=random, min_rows=100, resamples=2000, alpha=0.05)
    assert time.perf_counter() - began < 8.0  # 0.7 s on an idle core
