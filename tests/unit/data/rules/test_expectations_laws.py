"""Laws of validation over generated rows: every row is counted, and no sharding changes a finding."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.config import Project
from mlops_ray.data.rules.expectations import Report, check
from mlops_ray.data.rules.facts import KEPT_VALUES, Facts, Histogram, Values, histogram
from mlops_ray.data.rules.findings import conclude, distance
from mlops_ray.data.rules.key_rules import breaks, in_holdout, key_rules, keyed
from mlops_ray.errors import DataError

EXPECTATIONS: list[dict[str, Any]] = [
    {"expect": "not_null", "column": "x", "mostly": 0.5},
    {"expect": "is_null", "column": "x", "when": "c == 'b'", "mostly": 0.5},
    {"expect": "between", "column": "x", "min": -2, "max": 3, "strict": True, "mostly": 0.5},
    {"expect": "in_set", "column": "c", "values": ["a", "b", "é"], "mostly": 0.5},
    {"expect": "matches", "column": "c", "pattern": r"\w", "mostly": 0.5},
    {"expect": "length_between", "column": "c", "max": 1, "when": "x > 0"},
    {"expect": "row", "row": "x < 2 or c in ('a', 'b') or n % 2 == 0"},
    {"expect": "unique", "columns": ["n", "c"]},
    {"expect": "no_duplicate_rows"},
    {"expect": "no_conflicting_labels"},
    {"expect": "no_leakage", "columns": ["c"]},
    {"expect": "columns", "names": ["x", "y"]},
    {"expect": "dtype", "column": "n", "dtype": "int"},
    {"expect": "null_share", "column": "c", "max": 0.5},
    {"expect": "increasing", "column": "n"},
    {"expect": "freshness", "max_age_s": 5},
    {"expect": "row_count", "min": 1},
    {"expect": "row_count_change", "min": 0.5},
    {"expect": "mean", "column": "x", "max": 0},
    {"expect": "std", "column": "x", "max": 1},
    {"expect": "sum", "column": "n", "max": 1},
    {"expect": "median", "column": "x", "max": 0},
    {"expect": "quantile", "column": "n", "q": 0.9, "max": 3},
    {"expect": "distinct_count", "column": "c", "max": 2},
    {"expect": "most_common_share", "column": "c", "max": 0.5},
    {"expect": "label_share", "max": 0.5},
    {"expect": "covers", "column": "c", "values": ["a", "z"]},
    {"expect": "distribution", "column": "x", "max": 0.5},
    {"expect": "distribution", "column": "c", "distance": "js", "max": 0.5},
]
PROJECT = Project.model_validate(
    {
        "project": "tiny",
        "task": "binary",
        "target": "y",
        "key": "id",
        "event_time": "at",
        "source": {"kind": "parquet", "path": "nowhere"},
        "columns": [
            {"name": "id", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "y", "dtype": "int", "nullable": True},
            {"name": "x", "dtype": "float", "nullable": True, "min": -100},
            {"name": "n", "dtype": "int"},
            {"name": "c", "dtype": "string", "nullable": True},
        ],
        "validation": {"expectations": EXPECTATIONS},
        "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["c"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
    }
)
CUT = 1_500_000_000_000_000 + 5_000_000

rows = st.lists(
    st.fixed_dictionaries(
        {
            "x": st.sampled_from([None, -200.0, -1.5, -0.0, 0.25, 2.0, 7.0, float("inf"), float("nan")]),
            "n": st.integers(0, 9),
            "c": st.sampled_from([None, "a", "b", "é", "<b>", "two\nlines", "\u0663"]),
            "y": st.sampled_from([None, 0, 1, 2]),
            "t": st.integers(0, 9),
        }
    ),
    max_size=24,
)


def table(found: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([f"k{i % 20:02d}" for i in range(len(found))], pa.string()),
            "at": pa.array([1_500_000_000_000_000 + 1_000_000 * row["t"] for row in found], pa.timestamp("us", "UTC")),
            "y": pa.array([row["y"] for row in found], pa.int64()),
            "x": pa.array([row["x"] for row in found], pa.float64()),
            "n": pa.array([row["n"] for row in found], pa.int64()),
            "c": pa.array([row["c"] for row in found], pa.string()),
        }
    )


def validated(shards: list[pa.Table]) -> tuple[Report, Facts]:
    """One pass and the key rules, as the engine runs them."""
    parts = [check(PROJECT, shard) for shard in shards]
    report = sum((part.report for part in parts), Report())
    for part in parts:
        assert part.report.n_read == part.report.n_kept + part.report.n_quarantined
        assert (part.good.num_rows, part.bad.num_rows) == (part.report.n_kept, part.report.n_quarantined)
    for rule in key_rules(PROJECT):
        found = [keyed(rule, part.good) for part in parts]
        a, b = (np.concatenate([lanes[i] for lanes, _ in found]) for i in range(2))
        payload = np.concatenate([each for _, each in found])
        order = np.lexsort((payload, b, a))
        first = np.ones(len(a), dtype=bool)
        first[1:] = (np.diff(a[order]) != 0) | (np.diff(b[order]) != 0)
        gone = breaks(rule, first, payload[order], CUT)
        n = int(in_holdout(payload, CUT).sum()) if rule.needs_cut else len(a)
        report += Report(broken={rule.id: int(gone.sum())}, judged={rule.id: n})
    return report, sum((part.facts for part in parts), Facts())


@settings(max_examples=15)
@given(rows, st.lists(st.integers(0, 24), max_size=4), rows)
def test_any_sharding_has_the_same_findings(found, cuts, before):
    whole = table(found)
    bounds = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
    report, facts = validated([whole])
    cut_report, cut_facts = validated([whole.slice(a, b - a) for a, b in pairwise(bounds)])
    assert cut_report == report
    assert report.n_read == report.n_kept + report.n_quarantined == len(found)
    previous = check(PROJECT, table(before)).facts
    said = conclude(PROJECT, report, facts, previous=previous, now=1_500_000_010.0)
    again = conclude(PROJECT, cut_report, cut_facts, previous=previous, now=1_500_000_010.0)
    assert len(said) == len(EXPECTATIONS)
    for one, other in zip(said, again, strict=True):
        assert {**one.to_dict(), "observed": 0} == {**other.to_dict(), "observed": 0}
        assert other.observed == (pytest.approx(one.observed, abs=1e-12) if one.expect == "std" else one.observed)
    restored = Facts.from_dict(json.loads(json.dumps(facts.to_dict())))
    assert restored.to_dict() == facts.to_dict()
    assert conclude(PROJECT, report, restored, previous=previous, now=1_500_000_010.0) == said
    assert (Facts() + facts).to_dict() == facts.to_dict() == (facts + Facts()).to_dict()


def test_facts_of_another_release_are_refused():
    with pytest.raises(DataError, match="another release"):
        Facts.from_dict({**Facts().to_dict(), "format": 0})


# Histograms and values ------------------------------------------------------------------------------------------------

numbers = st.lists(
    st.floats(allow_nan=False, allow_infinity=False, width=64) | st.integers(-3000, 3000).map(float), max_size=30
)


@settings(max_examples=40)
@given(numbers, numbers)
def test_histograms_add_and_keep_order_and_a_thousandth(a, b):
    whole = histogram(np.array(a + b, dtype=np.float64))
    parts = histogram(np.array(a, dtype=np.float64)) + histogram(np.array(b, dtype=np.float64))
    assert np.array_equal(parts.keys, whole.keys)
    assert np.array_equal(parts.counts, whole.counts)
    ordered = sorted(a + b)
    assert whole.n == len(ordered)
    assert (np.diff(whole.edges) >= 0).all()
    for q in (0.0, 0.1, 0.5, 0.99, 1.0):
        if ordered:
            exact = ordered[max(int(np.ceil(q * len(ordered))), 1) - 1]
            near = whole.quantile(q)
            assert near == pytest.approx(exact, rel=2**-10, abs=1e-300)
            if float(exact).is_integer() and abs(exact) < 2048:
                assert near == exact


def test_empty_histograms_have_no_quantile():
    nothing = histogram(np.zeros(0))
    assert np.isnan(nothing.quantile(0.5))
    assert isinstance(nothing + nothing, Histogram)


def test_many_distinct_values_are_estimated_alike_for_any_order():
    project = PROJECT.model_copy(
        update={
            "validation": PROJECT.validation.model_validate(
                {
                    "expectations": [
                        {"expect": "distinct_count", "column": "id", "min": 1},
                        {"expect": "most_common_share", "column": "id", "max": 1},
                    ]
                }
            )
        }
    )
    n = 3 * KEPT_VALUES
    ids = pa.array([f"k{i}" for i in range(n)])
    one = table([{"x": 1.0, "n": 1, "c": "a", "y": 1, "t": 1}])
    wide = one.take([0] * n).set_column(0, "id", ids)
    shuffled = wide.take(np.random.default_rng(0).permutation(n))
    results = []
    for rows_ in (wide, shuffled):
        parts = [check(project, rows_.slice(i, 5000)) for i in range(0, n, 5000)]
        facts = sum((part.facts for part in parts), Facts())
        report = sum((part.report for part in parts), Report())
        results.append(conclude(project, report, facts, previous=None, now=0))
    assert results[0] == results[1]
    distinct, common = results[0]
    assert distinct.observed == pytest.approx(n, rel=0.06)
    assert common.passed is None, "nobody knows which value is the most frequent"


def test_distances_by_hand():
    def column(values):
        project_facts = check(PROJECT, table([{"x": v, "n": 1, "c": "a", "y": 1, "t": 1} for v in values])).facts
        return project_facts.columns["x"]

    same = column([0.25, 2.0])
    assert {kind: distance(same, same, kind) for kind in ("psi", "js", "linf", "ks")} == dict.fromkeys(
        ("psi", "js", "linf", "ks"), 0.0
    )
    low, high = column([0.25] * 4), column([1.5] * 4)
    assert distance(low, high, "js") == pytest.approx(1.0)
    assert distance(low, high, "ks") == distance(low, high, "linf") == 1.0
    values = np.random.default_rng(0).normal(size=2000).tolist()
    usual, moved = column(values), column([value + 1 for value in values])
    # The distance, as `mlops-ray drift` has it, and not the divergence, which is its square.
    assert distance(usual, moved, "js") == pytest.approx(0.393, abs=0.02)
    # Half a row is added to both bins of both sides: shares 0.9 and 0.1.
    assert distance(low, high, "psi") == pytest.approx(2 * 0.8 * np.log(9))


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [r"k\d+", r"[a-z]\d{1,5}", r"\w+", r"k(?:\d|x)+?", r"(k)\d*+", r"k[^x]+", r"k.*$", r"(?i)K\d+", r"(?>k|k1)\d*"],
)
def test_patterns_are_pythons_whoever_matches(pattern):
    texts = [f"k{i}" for i in range(4000)] + ["k\u0663", "kxx", "k1\n", "", "K1", "ké", None]
    raw = {**PROJECT.model_dump(mode="json"), "validation": {}}
    raw["columns"] = [c if c["name"] != "c" else {**c, "pattern": pattern} for c in raw["columns"]]
    found = table([{"x": 1.0, "n": 1, "c": c, "y": 1, "t": 1} for c in texts])
    checked = check(Project.model_validate(raw), found)
    wrong = [c for c in texts if c is not None and re.fullmatch(pattern, c) is None]
    assert [json.loads(row)["c"] for row in checked.bad["row"].to_pylist()] == wrong
    assert checked.report.n_read == checked.report.n_kept + len(wrong)


def test_values_add_up_to_a_bound():
    half = Values({i: (1, str(i)) for i in range(0, 2 * KEPT_VALUES, 2)})
    other = Values({i: (2, str(i)) for i in range(0, 2 * KEPT_VALUES, 3)})
    both = half + other
    assert len(both.counts) == KEPT_VALUES
    assert both.more
    assert both.counts[6] == (3, "6")
    assert (other + half).counts == both.counts
