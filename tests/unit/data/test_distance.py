from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from mlops_ray.data import distance
from mlops_ray.data.comparison import compare, describe
from mlops_ray.data.distance import Sample, distances, psi
from mlops_ray.data.profile import Bins, fold
from mlops_ray.errors import DataError

counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any).map(np.array)
# Few distinct values, so that ties are common, and any others.
values = st.lists(st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6), min_size=2, max_size=12).map(np.array)


# --- histograms ---


@pytest.mark.parametrize(
    ("reference", "current", "expected"),
    [
        # By hand: p = (9.5 + 0.5) / 20 and so on; here (60, 40) + 1/2 against (40, 60) + 1/2, each over 101.
        ([60, 40], [40, 60], 2 * (20 / 101) * math.log(60.5 / 40.5)),
        # An empty bin: 0.5 / 11 and 10.5 / 11 against 5.5 / 11 twice.
        ([10, 0], [5, 5], (5 / 11) * math.log(10.5 / 5.5) + (5 / 11) * math.log(5.5 / 0.5)),
        # Different totals: (3, 1) + 1/2 over 5 against (1, 1) + 1/2 over 3.
        ([3, 1], [1, 1], (0.7 - 0.5) * math.log(0.7 / 0.5) + (0.3 - 0.5) * math.log(0.3 / 0.5)),
        ([7], [1], 0.0),
    ],
)
def test_golden_values(reference: list[int], current: list[int], expected: float) -> None:
    assert float(psi(np.array(reference), np.array(current))) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=20)
@given(counts, counts)
def test_it_is_a_symmetric_divergence(a: Any, b: Any) -> None:
    assert float(psi(a, b)) >= 0
    assert float(psi(a, b)) == pytest.approx(float(psi(b, a)))
    assert float(psi(a, a)) == 0


@settings(max_examples=20)
@given(st.lists(counts, min_size=1, max_size=5), counts)
def test_side_by_side_is_one_by_one(many: list[Any], one: Any) -> None:
    np.testing.assert_allclose(psi(one, np.stack(many)), [psi(one, m) for m in many])


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2, 3]), ([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_what_cannot_be_compared_is_refused(a: list[int], b: list[int]) -> None:
    with pytest.raises(DataError):
        psi(np.array(a), np.array(b))


@settings(max_examples=30)
@given(counts, counts)
def test_distances_of_histograms_are_scipys(a: Any, b: Any) -> None:
    p, q = a / a.sum(), b / b.sum()
    assert distance.jensen_shannon(a, b) == pytest.approx(np.nan_to_num(jensenshannon(p, q, base=2)), abs=1e-7)
    assert distance.l_infinity(a, b) == pytest.approx(np.abs(p - q).max())
    assert distance.total_variation(a, b) == pytest.approx(np.abs(p - q).sum() / 2)
    assert distance.hellinger(a, b) == pytest.approx(np.sqrt(max(0.0, 1 - np.sqrt(p * q).sum())), abs=1e-7)
    seen = (a + b) > 0
    if seen.sum() > 1:
        golden = stats.chi2_contingency(np.stack([a, b])[:, seen])
        found = distance.chi_square(a, b)
        assert found.statistic == pytest.approx(golden.statistic, abs=1e-9)
        assert found.p_value == pytest.approx(golden.pvalue, abs=1e-12)
    else:
        assert distance.chi_square(a, b) == (0.0, 1.0)


def test_a_histogram_without_rows_has_no_shares() -> None:
    with pytest.raises(DataError, match="without rows"):
        distance.l_infinity(np.zeros(2), np.ones(2))


# --- values ---


@settings(max_examples=30)
@given(values, values)
def test_distances_of_values_are_scipys(a: Any, b: Any) -> None:
    found = distances(Sample.of(np.append(a, np.nan)), Sample.of(b))
    golden = stats.ks_2samp(a, b, method="exact" if max(len(a), len(b)) <= distance.EXACT_ROWS else "asymp")
    assert found.kolmogorov_smirnov.statistic == pytest.approx(golden.statistic, abs=1e-12)
    assert found.kolmogorov_smirnov.p_value == pytest.approx(golden.pvalue, abs=1e-12)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 2), (7, 3), (40, 25), (100, 99), (100, 1)])
def test_few_values_have_exact_p_values(n: int, m: int) -> None:
    """One value against another says nothing: whatever they are, the CDFs lie 1 apart."""
    rng = np.random.default_rng()
    a, b = rng.normal(size=n), rng.normal(size=m) + rng.uniform(0, 2)
    for first, second in ((a, b), (b, a)):
        p = distances(Sample.of(first), Sample.of(second)).kolmogorov_smirnov.p_value
        assert p == pytest.approx(stats.ks_2samp(first, second, method="exact").pvalue, rel=1e-9, abs=1e-300)
    if (n, m) == (1, 1):
        assert p == 1.0


@pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy"])
def test_many_values_too(draw: str) -> None:
    rng = np.random.default_rng()
    a, b = getattr(rng, draw)(size=20_000), getattr(rng, draw)(size=7_000) * 1.1 + 0.2
    found, golden = distances(Sample.of(a), Sample.of(b)), stats.ks_2samp(a, b, method="asymp")
    assert found.kolmogorov_smirnov == pytest.approx((golden.statistic, golden.pvalue), rel=1e-9, abs=1e-12)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance(a, b), rel=1e-9)


def test_infinite_values_count_for_ranks_and_not_for_areas() -> None:
    a, b = np.array([-np.inf, 0, 1, np.nan]), np.array([0, 2, np.inf, np.inf])
    found = distances(Sample.of(a), Sample.of(b))
    assert found.kolmogorov_smirnov.statistic == pytest.approx(stats.ks_2samp(a[:3], b).statistic)
    assert found.wasserstein == pytest.approx(stats.wasserstein_distance([0, 1], [0, 2]))
    assert math.isnan(distances(Sample.of(b[2:]), Sample.of(a)).wasserstein)
    with pytest.raises(DataError, match="without values"):
        distances(Sample.of(np.array([np.nan])), Sample.of(a))


@settings(max_examples=30)
@given(values)
def test_doanes_edges_are_numpys(a: Any) -> None:
    np.testing.assert_allclose(distance.doane_edges(Sample.of(a)), np.histogram_bin_edges(np.sort(a), bins="doane"))


@settings(max_examples=30)
@given(values, values)
def test_rows_in_and_outside_of_edges_are_numpys(a: Any, b: Any) -> None:
    edges = distance.doane_edges(Sample.of(a))
    inside = np.histogram(b, edges)[0]
    assert distance.outside_and_in(Sample.of(b), edges).tolist() == [*inside, b.size - inside.sum()]


@settings(max_examples=30)
@given(values, st.integers(2, 12))
def test_bins_are_about_equally_full_or_hold_one_value(a: Any, n_bins: int) -> None:
    sample = Sample.of(a)
    edges = sample.edges(n_bins)
    assert list(edges) == sorted(set(edges))
    rows = sample.histogram(edges)
    assert rows.sum() == a.size
    assert rows.tolist() == np.histogram(a, [-np.inf, *edges, np.inf])[0].tolist()
    for code in np.flatnonzero(rows > a.size / n_bins + 1):
        inside = a[np.searchsorted(edges, a, "right") == code]
        # The most that a bin between two quantiles can hold, or a value that cannot be cut.
        assert np.unique(inside).size == 1 or inside.size <= 2 * a.size / n_bins + 1


# --- profiles ---


@settings(max_examples=50)
@given(values, values, st.lists(st.floats(-5, 5), max_size=5, unique=True).map(sorted))
def test_what_profiles_say_lies_within_the_error_they_state(a: Any, b: Any, edges: list[float]) -> None:
    bins = Bins({"x": tuple(edges)}, {})
    ks, area = distance.between(bins, fold(bins, {"x": a}), fold(bins, {"x": b}), "x")
    true = distances(Sample.of(a), Sample.of(b))
    assert ks.value <= true.kolmogorov_smirnov.statistic + 1e-12
    assert true.kolmogorov_smirnov.statistic <= ks.value + ks.error + 1e-12
    slack = 1e-9 * (1 + np.abs(np.append(a, b)).max())
    assert abs(true.wasserstein - area.value) <= area.error + slack


def test_profiles_of_infinite_values_know_no_area() -> None:
    bins = Bins({"x": (0.0,)}, {})
    whole, part = (fold(bins, {"x": np.array(v)}) for v in ([1.0, np.inf], [0.5, -1.0]))
    ks, area = distance.between(bins, whole, part, "x")
    assert ks.value == 0.5
    assert math.isnan(area.value)


def test_fine_bins_leave_little_error() -> None:
    rng = np.random.default_rng()
    a, b = rng.normal(size=50_000), rng.normal(0.3, 1.2, size=50_000)
    bins = Bins({"x": Sample.of(a).fine_edges()}, {})
    ks, area = distance.between(bins, fold(bins, {"x": a}), fold(bins, {"x": b}), "x")
    assert ks.error < 0.03
    assert area.error < 0.15


# --- tables ---


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def feature(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(f for f in found["features"] if f["name"] == name)


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_a_table_like_the_reference_lies_at_distance_zero(mode: Any) -> None:
    rows = table(x=[1.0, 2.0, None, 4.0], c=["a", "b", "", None], b=[True, False, True, None], d=[1, 1, 1, 1])
    found = compare(rows, rows, mode)
    assert {f["name"] for f in found["features"]} == {"x", "c", "b", "d"}
    for f in found["features"]:
        p = {k: v for k, v in f["statistics"].items() if k.endswith("_p")}
        assert set(p.values()) == {1.0}
        assert not any(v for k, v in f["statistics"].items() if k not in p)
        assert not f["words"]
        assert f["reference"] == f["current"]
    assert feature(found, "c")["missing"] == [0.5, 0.5]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_what_differs_is_said(mode: Any) -> None:
    one = table(c=["a"] * 6 + ["b"] * 4, x=[1.0] * 10, gone=[1] * 10, t=[1] * 10, never=pa.nulls(10, pa.string()))
    two = table(c=["a"] * 5 + ["z", "y", "y", None, None], x=[7.0] * 10, t=["w"] * 10, never=["w"] * 10, new=[1] * 10)
    found = compare(one, two, mode)
    assert feature(found, "c")["words"] == [
        "missing 0.0 % → 20.0 %",
        "2 categories new (y, z), 37.5 % of rows",
        "1 category vanished (b), 40.0 % of rows",
    ]
    # A constant that is another constant now.
    moved = feature(found, "x")["statistics"]
    assert moved["psi"] > 1
    assert (moved["kolmogorov_smirnov"], moved["wasserstein"], moved["wasserstein_normed"]) == (1.0, 6.0, None)
    assert found["notes"] == [
        "only the reference has `gone`",
        "only the current data has `new`",
        "`t` is numeric in the reference and categorical in the current data",
        "`never` has no values in the reference",
    ]


def test_both_modes_agree_where_the_definition_is_the_same() -> None:
    rng = np.random.default_rng()
    one = table(x=rng.normal(size=3000), c=rng.choice(list("abcd"), 3000))
    two = table(x=rng.normal(0.2, 1, size=2000), c=rng.choice(list("abcd"), 2000, p=[0.4, 0.3, 0.2, 0.1]))
    exact, folded = compare(one, two), compare(one, two, "profile")
    assert feature(exact, "x")["statistics"]["psi"] == pytest.approx(
        feature(folded, "x")["statistics"]["psi"], rel=1e-12
    )
    for name, value in feature(exact, "c")["statistics"].items():
        assert feature(folded, "c")["statistics"][name] == pytest.approx(value, rel=0.05, abs=2e-3), name
    for name, error in feature(folded, "x")["errors"].items():
        gap = feature(exact, "x")["statistics"][name] - feature(folded, "x")["statistics"][name]
        assert abs(gap) <= error + 1e-12, name


def test_names_times_and_lists_are_described_and_not_compared() -> None:
    names = [f"n{i}" for i in range(3000)]
    times = pa.array(range(3000), pa.timestamp("s"))
    rows = table(name=names, at=times, items=[[1]] * 3000, x=range(3000))
    found = compare(rows, rows)
    assert [f["name"] for f in found["features"]] == ["x"]
    assert [note.split()[0] for note in found["notes"]] == ["`name`", "`at`", "`items`"]
    described = {c["name"]: c for c in describe(rows)}
    assert {name: c["kind"] for name, c in described.items()} == {
        "name": "text",
        "at": "time",
        "items": "other",
        "x": "numeric",
    }
    assert described["at"]["high"] == "1970-01-01T00:49:59"


def test_times_beyond_the_calendar_are_described() -> None:
    """Python's own times end with the year 9999."""
    far = table(at=pa.array([0, 10**18, None], pa.timestamp("us", "UTC")), day=pa.array([0, 10**7, 1], pa.date32()))
    at, day = describe(far)
    assert (at["low"], at["high"]) == ("1970-01-01T00:00:00+00:00", f"{10**18} us after 1970")
    assert (day["low"], day["high"]) == ("1970-01-01", f"{10**7} days after 1970")


def test_distinct_values_beyond_what_a_float_tells_apart() -> None:
    ids = [2**60 + i for i in range(200)]
    money = pa.array([Decimal(f"{2**60 + i}.{i:03}") for i in range(200)], pa.decimal128(30, 3))
    found = describe(
        table(id=pa.array(ids), minus=pa.array([-i for i in ids]), big=pa.array(ids, pa.uint64()), m=money)
    )
    assert [column["distinct"] for column in found] == [200] * 4


def test_a_description_says_what_there_is() -> None:
    rows = table(x=pa.array([1.0, 2.0, 3.0, 4.0, 5.0, None, math.inf]), c=["a", "b", "a", None, "a", "", "z"])
    x, c = describe(rows)
    assert (x["low"], x["median"], x["high"], x["mean"], x["infinite"]) == (1.0, 3.0, 5.0, 3.0, 1)
    assert (x["missing"], x["distinct"], sum(x["counts"])) == (1 / 7, 6, 6)
    assert (c["distinct"], c["top"], c["rest"]) == (3, [["a", 3], ["b", 1], ["z", 1]], 0)
    assert c["missing"] == 2 / 7
    json.dumps([x, c], allow_nan=False)


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        (table(x=[1]), table(y=[1]), "no column can be compared: only the reference has `x`"),
        (table(x=[1]), table(x=pa.array([], pa.int64())), "the current data: it has no rows"),
        (table(x=pa.array([None], pa.float64())), table(x=[1.0]), "`x` has no values in the reference"),
    ],
)
def test_what_has_nothing_to_compare_is_refused(one: pa.Table, two: pa.Table, says: str) -> None:
    with pytest.raises(DataError, match=says):
        compare(one, two)


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("scale", [sys.float_info.max, sys.float_info.min])
def test_the_largest_and_the_smallest_floats_do_no_harm(mode: Any, scale: float) -> None:
    one, two = (table(x=[scale * v for v in values]) for values in ([-1.0, 0.0, 1.0], [0.0, 1.0, 0.5]))
    json.dumps(compare(one, two, mode), allow_nan=False)
    json.dumps(describe(one), allow_nan=False)
