from __future__ import annotations

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mlops_ray.data.profile import Bins, Moments, Profile, empty, fold, moments
from mlops_ray.errors import DataError

BINS = Bins({"x": (0.0, 1.5), "flat": ()}, {"c": ("a", "b")})

number = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
row = st.tuples(number, number, st.sampled_from(["", "a", "b", "zebra"]), st.floats(0, 1))
rows = st.lists(row, max_size=30)


def columns(batch: list[tuple[float, float, str, float]]) -> dict[str, np.ndarray]:
    return {
        "x": np.array([r[0] for r in batch], dtype=np.float32),
        "flat": np.array([r[1] for r in batch], dtype=np.float32),
        "c": np.array([r[2] for r in batch], dtype=object),
    }


def folded(batch: list[tuple[float, float, str, float]]) -> Profile:
    return fold(BINS, columns(batch), np.array([r[3] for r in batch]))


def same(a: Profile, b: Profile) -> bool:
    """Counts exactly, moments to rounding of the values' scale."""
    left, right = a.to_dict(), b.to_dict()
    close = all(
        left["moments"][k][0] == right["moments"][k][0]
        and np.isclose(left["moments"][k][1], right["moments"][k][1], rtol=1e-9, atol=1e-6)
        and np.isclose(left["moments"][k][2], right["moments"][k][2], rtol=1e-6, atol=1e-3)
        for k in left["moments"]
    )
    del left["moments"], right["moments"]
    return close and left == right


@given(rows, rows, rows)
def test_merging_is_associative_and_commutative_and_leaves_operands_alone(a, b, c):
    pa, pb, pc = folded(a), folded(b), folded(c)
    before = [p.to_dict() for p in (pa, pb, pc)]
    assert same((pa + pb) + pc, pa + (pb + pc))
    assert same(pa + pb, pb + pa)
    assert same(pa + pb + pc, folded(a + b + c))
    assert [p.to_dict() for p in (pa, pb, pc)] == before


@given(rows)
def test_the_empty_profile_changes_nothing(batch):
    profile = folded(batch)
    assert (profile + empty(BINS)).to_dict() == profile.to_dict() == (empty(BINS) + profile).to_dict()
    assert folded([]).to_dict() == empty(BINS).to_dict()


@given(rows)
def test_every_row_is_counted_once_per_feature(batch):
    profile = folded(batch)
    assert all(counts.sum() == len(batch) for counts in profile.counts.values())
    assert profile.n == profile.scores.sum() == len(batch)


@given(rows)
def test_survives_json(batch):
    profile = folded(batch)
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))).to_dict() == profile.to_dict()


def test_places_values_at_edges_unseen_categories_and_missing_ones():
    batch = {
        "x": np.array([-1, 0, 1.5, np.inf, -np.inf, np.nan], dtype=np.float32),
        "flat": np.zeros(6, dtype=np.float32),
        "c": np.array(["a", "b", "b", "zebra", "", ""], dtype=object),
    }
    profile = fold(BINS, batch, np.array([0.0, 0.049, 0.05, 0.5, 0.999, 1.0]))
    assert profile.counts["x"].tolist() == [2, 1, 2, 1]
    assert profile.counts["flat"].tolist() == [6, 0]
    assert profile.counts["c"].tolist() == [1, 2, 1, 2]
    assert profile.moments["x"].n == 3
    assert profile.scores.nonzero()[0].tolist() == [0, 1, 10, 19]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.integers(0, 50))
def test_moments_agree_with_numpy_and_merge(values, at):
    whole = np.array(values)
    merged = moments(whole[:at]) + moments(whole[at:])
    assert merged.n == len(values)
    assert merged.mean == pytest.approx(whole.mean(), abs=1e-9)
    assert merged.variance == pytest.approx(whole.var(), abs=1e-6)
    assert Moments() + merged == merged == merged + Moments()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": None}, "lacks"),
        ({"x": np.zeros(1, dtype=np.float32)}, "different lengths"),
    ],
)
def test_refuses_incomplete_batches(change, says):
    batch = {k: v for k, v in (columns([(1, 1, "a", 0.5)] * 2) | change).items() if v is not None}
    with pytest.raises(DataError, match=says):
        fold(BINS, batch)


@pytest.mark.parametrize("score", [1.5, -0.1, np.nan])
def test_refuses_scores_that_are_no_probabilities(score):
    with pytest.raises(DataError, match="probabilities"):
        fold(BINS, columns([(1, 1, "a", 0.5)]), np.array([score]))


def test_refuses_to_merge_other_bins():
    with pytest.raises(DataError, match="features differ"):
        _ = empty(BINS) + empty(Bins({"x": ()}, {}))
    with pytest.raises(DataError, match="2 and 3 bins"):
        _ = empty(Bins({"x": ()}, {})) + empty(Bins({"x": (1.0,)}, {}))


def test_bins_survive_json_and_are_recognised_by_digest():
    again = Bins.from_dict(json.loads(json.dumps(BINS.to_dict())))
    assert again == BINS
    assert again.digest() == BINS.digest() != Bins({"x": (0.0,)}, {}).digest()


@pytest.mark.parametrize(
    ("numeric", "categorical"),
    [({"x": (1.0, 1.0)}, {}), ({"x": (2.0, 1.0)}, {}), ({}, {"c": ("",)}), ({}, {"c": "aa"})],
)
def test_bins_refuse_nonsense(numeric, categorical):
    with pytest.raises(DataError):
        Bins(numeric, categorical)
