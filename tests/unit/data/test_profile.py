from __future__ import annotations

import json
import random
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mlops_ray.data.profile import (
    MAX_UNSEEN,
    Bins,
    Moments,
    Profile,
    Sums,
    codes,
    empty,
    exact_sums,
    fold,
)
from mlops_ray.errors import DataError

BINS = Bins({"x": (0.0, 1.5), "flat": ()}, {"c": ("a", "b")})

number = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf")])
text = st.sampled_from(["", "a", "b", "zebra"]) | st.text(max_size=3)
row = st.tuples(number, number, text, st.floats(0, 1))
rows = st.lists(row, max_size=20)
wide = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20)


def columns(batch: list[tuple[float, float, str, float]]) -> dict[str, np.ndarray]:
    return {
        "x": np.array([r[0] for r in batch], dtype=np.float32),
        "flat": np.array([r[1] for r in batch], dtype=np.float32),
        "c": np.array([r[2] for r in batch], dtype=object),
    }


def folded(batch: list[tuple[float, float, str, float]]) -> Profile:
    return fold(BINS, columns(batch), np.array([r[3] for r in batch]))


@settings(max_examples=40)
@given(rows, rows, rows)
def test_merging_is_associative_and_commutative_and_leaves_operands_alone(a, b, c):
    pa, pb, pc = folded(a), folded(b), folded(c)
    before = [p.to_bytes() for p in (pa, pb, pc)]
    assert ((pa + pb) + pc).to_bytes() == (pa + (pb + pc)).to_bytes()
    assert (pa + pb).to_bytes() == (pb + pa).to_bytes()
    assert [p.to_bytes() for p in (pa, pb, pc)] == before


@settings(max_examples=40)
@given(rows, st.data())
def test_the_content_hangs_neither_on_order_nor_on_shards(batch, data):
    shuffled = data.draw(st.permutations(batch))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=4)))
    shards = [shuffled[i:j] for i, j in zip([0, *cuts], [*cuts, len(batch)], strict=True)]
    assert sum(map(folded, shards), empty(BINS)).to_bytes() == folded(batch).to_bytes()


def test_the_sample_of_many_unseen_categories_hangs_on_no_order_either():
    values = [f"new {i}" for i in range(500) for _ in range(1 + i % 3)]
    whole = folded([(0.0, 0.0, v, 0.5) for v in values])
    random.shuffle(values)
    parts = [folded([(0.0, 0.0, v, 0.5) for v in values[i : i + 100]]) for i in range(0, len(values), 100)]
    random.shuffle(parts)
    assert sum(parts, empty(BINS)).to_bytes() == whole.to_bytes()
    assert len(whole.unseen["c"]) == MAX_UNSEEN
    assert all(u.n == 1 + int(u.text.split()[1]) % 3 for u in whole.unseen["c"])
    assert whole.distinct("c") == pytest.approx(500, rel=5 * 0.046)


@settings(max_examples=40)
@given(rows)
def test_the_empty_profile_changes_nothing(batch):
    profile = folded(batch)
    assert (profile + empty(BINS)).to_bytes() == profile.to_bytes() == (empty(BINS) + profile).to_bytes()
    assert folded([]).to_bytes() == empty(BINS).to_bytes()


@settings(max_examples=40)
@given(rows)
def test_every_row_is_counted_once_per_feature(batch):
    profile = folded(batch)
    assert all(counts.sum() == len(batch) for counts in profile.counts.values())
    assert profile.n == profile.scores.sum() == len(batch)
    finite = [r[0] + 0.0 for r in batch if np.isfinite(r[0])]
    assert profile.ranges["x"] == ((min(finite), max(finite)) if finite else (np.inf, -np.inf))
    others = {r[2] for r in batch} - {"", "a", "b"}
    assert {u.text for u in profile.unseen["c"]} == others
    assert profile.distinct("c") == len({r[2] for r in batch} - {""})


@settings(max_examples=40)
@given(rows)
def test_survives_bytes_and_json(batch):
    profile = folded(batch)
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again.to_bytes() == Profile.from_bytes(profile.to_bytes()).to_bytes() == profile.to_bytes()
    assert (again + profile).n == 2 * profile.n


def test_reads_the_first_format():
    body = {
        "n": 4,
        "counts": {"x": [1, 1, 1, 1], "flat": [4, 0], "c": [1, 1, 1, 1]},
        "moments": {"x": [3, 0.1, 1.5], "flat": [4, 2.0, 0.0]},
        "scores": [0] * 20,
    }
    old = Profile.from_dict(body)
    assert (old.moments["x"].n, old.moments["x"].mean, old.moments["x"].variance) == (3, 0.1, 0.5)
    assert (old + empty(BINS)).to_bytes() == old.to_bytes()
    assert (old + folded([(1.0, 1.0, "a", 0.5)])).counts["c"].tolist() == [2, 1, 1, 1]


def test_refuses_bytes_that_are_no_profile_of_ours():
    data = folded([(1.0, 1.0, "a", 0.5)]).to_bytes()
    for wrong, says in [
        (b"PAR1", "are no profile"),
        (data[:4] + bytes([3]) + data[5:], "version is 3"),
        (data[:4], "cut off"),
        (data[:-9], "damaged"),
    ]:
        with pytest.raises(DataError, match=says):
            Profile.from_bytes(wrong)
    with pytest.raises(DataError, match="damaged"):
        Profile.from_dict({"n": 1, "packed": "?"})


def test_stays_below_4_kb_per_feature():
    rng = np.random.default_rng()
    n, names = 20_000, [f"f{i}" for i in range(6)]
    # The worst of everything: full counts, values of all magnitudes, and long names of characters of three bytes.
    bins = Bins(
        {k: tuple(np.sort(rng.normal(size=50))) for k in names[:3]}, {k: tuple(map(str, range(50))) for k in names[3:]}
    )
    words = np.array(["".join(map(chr, rng.integers(0x4E00, 0x9FFF, 60))) for _ in range(2000)], dtype=object)
    batch = {k: (rng.normal(size=n) * 10.0 ** rng.integers(-40, 38, n)).astype(np.float32) for k in names[:3]}
    batch |= {k: words[rng.integers(0, 2000, n)] for k in names[3:]}
    assert len(fold(bins, batch).to_bytes()) < 4096 * len(names)
    for name in names:
        alone = Bins(
            {k: v for k, v in bins.numeric.items() if k == name},
            {k: v for k, v in bins.categorical.items() if k == name},
        )
        assert len(fold(alone, batch).to_bytes()) < 4096


@settings(max_examples=40)
@given(wide)
def test_sums_are_exact_for_any_float(values):
    ((total, squares),) = exact_sums(np.array([values], dtype=np.float64))
    found = Sums(len(values), total, squares)
    assert Fraction(total, 2**1074) == sum(map(Fraction, values))
    assert Fraction(squares, 2**2148) == sum(Fraction(v) ** 2 for v in values)
    if values and max(map(abs, values)) < 1e150:
        mean = sum(map(Fraction, values)) / len(values)
        assert found.mean == float(mean)
        assert found.variance == float(sum((Fraction(v) - mean) ** 2 for v in values) / len(values))
        assert found.std**2 == pytest.approx(found.variance)


def test_a_variance_beyond_floats_is_infinite():
    (sums,) = exact_sums(np.array([[1e300, -1e300]]))
    assert Sums(2, *sums).variance == np.inf
    assert Sums().mean == Sums().variance == 0.0


@pytest.mark.parametrize("n", [1, 20, 300, 3000, 50_000])
def test_distinct_values_are_estimated(n):
    values = np.random.default_rng().permutation(np.repeat(np.arange(n, dtype=np.float32), 2))
    profile = fold(Bins({"x": ()}, {}), {"x": np.append(values, np.float32("nan"))})
    assert profile.distinct("x") == pytest.approx(n, rel=5 * 0.046)
    assert profile.missing("x") == 1


def test_refuses_categories_that_are_no_text():
    with pytest.raises(DataError, match="c: categories must be text"):
        folded([(1.0, 1.0, None, 0.5)])


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
    parts = [Moments(p.size, float(p.mean()), float(p.var()) * p.size) for p in (whole[:at], whole[at:]) if p.size]
    merged = sum(parts, Moments())
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


@given(rows)
def test_the_bins_of_rows_are_those_that_are_counted(batch):
    found, counts = codes(BINS, columns(batch)), folded(batch).counts
    assert found.shape == (len(batch), 3)
    for i, name in enumerate(BINS.widths):
        assert np.bincount(found[:, i], minlength=len(counts[name])).tolist() == counts[name].tolist()


def test_bins_of_rows_without_a_feature_or_beyond_two_bytes():
    assert codes(Bins({}, {}), {}).shape == (0, 0)
    with pytest.raises(DataError, match="lacks"):
        codes(BINS, {"x": np.zeros(1, dtype=np.float32)})
    many = Bins({}, {"c": tuple(str(i) for i in range(1 << 16))})
    with pytest.raises(DataError, match="at most 65536 are numbered"):
        codes(many, {"c": np.array(["1"], dtype=object)})
