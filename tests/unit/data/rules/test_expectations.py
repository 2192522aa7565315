from __future__ import annotations

import json

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.config import Project
from mlops_ray.config.validation import Validation
from mlops_ray.data.rules.expectations import EXAMPLES, QUARANTINE, Report, about, broken, check, examples, quarantined
from mlops_ray.data.rules.facts import Facts
from mlops_ray.data.rules.findings import conclude
from mlops_ray.data.schema import conform
from mlops_ray.errors import DataError

PROJECT = Project.model_validate(
    {
        "project": "tiny",
        "task": "binary",
        "target": "y",
        "key": "id",
        "event_time": "at",
        "source": {"kind": "parquet", "path": "nowhere"},
        "columns": [
            {"name": "id", "dtype": "string", "pattern": r"k\d+"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "y", "dtype": "int", "nullable": True},
            {"name": "x", "dtype": "float", "nullable": True, "min": 0, "max": 10},
            {"name": "low", "dtype": "int", "min": 1},
            {"name": "c", "dtype": "string", "values": ["a", "b"]},
        ],
        "features": {"numeric": {"columns": ["x", "low"]}, "categorical": {"columns": ["c"]}},
        "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
    }
)
GOOD = {"id": "k1", "at": "2013-01-01", "y": 1, "x": 5.0, "low": 3, "c": "a"}


def table(*changes: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([{**GOOD, **change} for change in changes])


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({}, []),
        ({"x": None, "y": None}, []),
        ({"x": 0.0}, []),
        ({"x": 10.0}, []),
        ({"x": -0.1}, ["x.range"]),
        ({"x": 10.1}, ["x.range"]),
        ({"low": 0}, ["low.range"]),
        ({"low": None}, ["low.null"]),
        ({"c": "z"}, ["c.set"]),
        ({"c": None}, ["c.null"]),
        ({"id": "k1x"}, ["id.pattern"]),
        ({"id": "k1\n"}, ["id.pattern"]),
        ({"id": None}, ["id.null"]),
        ({"y": 2}, ["y.set"]),
        ({"at": None}, ["at.null"]),
        ({"at": "soon"}, ["at.dtype"]),
        ({"x": 11.0, "c": "z", "low": None}, ["c.set", "low.null", "x.range"]),
    ],
)
def test_each_rule_by_name(change, rules):
    checked = check(PROJECT, table({}, change))
    assert sorted(checked.report.broken) == rules
    assert checked.good.num_rows == 2 - bool(rules)
    assert checked.bad["rules"].to_pylist() == ([rules] if rules else [])
    assert checked.bad.schema == QUARANTINE


def test_masks_are_per_row():
    rows, _ = conform(table({}, {"x": 11.0}, {"c": None}), PROJECT.columns)
    assert {k: v.tolist() for k, v in broken(PROJECT, rows).items()} == {
        "x.range": [False, True, False],
        "c.null": [False, False, True],
    }
    assert broken(PROJECT, rows.drop_columns(["x", "c"])) == {}


def test_quarantine_holds_the_row_as_it_came_and_the_report_says_which():
    checked = check(PROJECT, table({}, {"id": "k2", "at": "soon", "x": -1.0}))
    (row,) = checked.bad.to_pylist()
    assert (row["key"], row["rules"]) == ("k2", ["at.dtype", "x.range"])
    assert json.loads(row["row"]) == {**GOOD, "id": "k2", "at": "soon", "x": -1.0}
    assert checked.report.examples == {"at.dtype": ("k2: soon",), "x.range": ("k2: -1.0",)}
    assert "x.range: 1 (for example k2: -1.0)" in str(checked.report)
    assert checked.report.bad_share == 0.5


FAR = 10**18
"""Microseconds after 1970: far beyond the year 9999."""


def test_times_beyond_the_calendar_go_to_quarantine_like_any_other():
    rules = [
        {"expect": "between", "column": "at", "max": "2014-01-01T00:00:00Z"},
        {"expect": "distinct_count", "column": "at", "max": 9},
    ]
    project = PROJECT.model_copy(update={"validation": Validation.model_validate({"expectations": rules})})
    times = pa.array([0, FAR, -FAR, None], pa.timestamp("us", "UTC"))
    raw = table({}, {"id": "k2"}, {"id": "k3"}, {"id": "k4"})
    raw = raw.set_column(1, "at", times).append_column("seen", pa.array([[time] for time in times]))
    checked = check(project, raw)
    assert checked.report.broken == {"at.between": 1, "at.null": 1}
    assert checked.report.examples["at.between"] == (f"k2: {FAR} us after 1970",)
    rows = [json.loads(row) for row in checked.bad["row"].to_pylist()]
    assert [(row["at"], row["seen"]) for row in rows] == [
        (f"{FAR} us after 1970", [f"{FAR} us after 1970"]),
        (None, [None]),
    ]
    found = checked.facts.columns["at"].values
    assert sorted(label for _, label in found.counts.values()) == [f"-{FAR} us after 1970", "1970-01-01 00:00:00+00:00"]


def strict(text: str) -> object:
    """Raises: ValueError where a reader of JSON that keeps to the standard would."""

    def refused(word: str) -> object:
        raise ValueError(word)

    return json.loads(text, parse_constant=refused)


def test_quarantined_rows_are_valid_json():
    raw = table({"x": float("nan"), "c": "z"}, {"x": 11.0}, {"x": float("inf"), "c": "z"})
    raw = raw.append_column("parts", pa.array([None, [1.0], [1.0, float("-inf")]]))
    rows = [strict(row) for row in check(PROJECT, raw).bad["row"].to_pylist()]
    assert [(row["x"], row["parts"]) for row in rows] == [(None, None), (11.0, [1.0]), (None, [1.0, None])]


@pytest.mark.parametrize("kind", ["mean", "std", "sum"])
def test_figures_larger_than_a_number_are_not_judged(kind):
    expectation = Validation.model_validate({"expectations": [{"expect": kind, "column": "x", "min": 1}]})
    x = [c.model_copy(update={"max": None, "min": None}) if c.name == "x" else c for c in PROJECT.columns]
    project = PROJECT.model_copy(update={"validation": expectation, "columns": tuple(x)})
    facts = sum((check(project, table({"x": sign * 1.7e308}, {"x": 1.7e308})).facts for sign in (1, -1)), Facts())
    facts += check(project, table({"x": -1.7e308}, {"x": -1.7e308})).facts
    (finding,) = conclude(project, Report(), facts, previous=None, now=0)
    assert (finding.passed, finding.observed) == (None, "larger than a number can be")
    strict(json.dumps(finding.to_dict()))
    again = Facts.from_dict(strict(json.dumps(facts.to_dict())))
    assert json.dumps(again.to_dict()) == json.dumps(facts.to_dict())
    assert conclude(project, Report(), again, previous=None, now=0) == (finding,)


def test_a_key_may_be_a_time_beyond_the_calendar():
    rows = pa.table({"id": pa.array([FAR + i for i in range(9)] + [0], pa.timestamp("us", "UTC")), "x": [1.0] * 10})
    assert examples(PROJECT, rows, "x") == tuple(f"{FAR + i} us after 1970: 1.0" for i in range(3))
    assert quarantined(PROJECT, rows, [["x.range"]] * 10)["key"][0].as_py() == f"{FAR} us after 1970"


def test_no_rows_is_no_error():
    checked = check(PROJECT, table({}).slice(0, 0))
    assert checked.report == Report()
    assert (checked.good.num_rows, checked.bad.num_rows, checked.report.bad_share) == (0, 0, 0.0)


def test_a_missing_column_stops():
    with pytest.raises(DataError, match="c: column is missing"):
        check(PROJECT, table({}).drop_columns(["c"]))


changes = st.lists(
    st.fixed_dictionaries({}, optional={"x": st.sampled_from([None, -1.0, 3.0, 99.0]), "c": st.sampled_from("abz")}),
    max_size=15,
)


@settings(max_examples=40)
@given(changes, st.integers(0, 15))
def test_every_row_is_kept_or_quarantined_and_reports_add(rows, cut):
    numbered = [{**row, "id": f"k{i:02d}"} for i, row in enumerate(rows)]
    whole = table({}, *numbered)
    checked = check(PROJECT, whole)
    report = checked.report
    assert report.n_read == report.n_kept + report.n_quarantined == whole.num_rows
    assert (checked.good.num_rows, checked.bad.num_rows) == (report.n_kept, report.n_quarantined)
    parts = [check(PROJECT, whole.slice(0, cut)).report, check(PROJECT, whole.slice(cut)).report]
    merged = parts[0] + parts[1]
    assert merged.to_dict() == (parts[1] + parts[0]).to_dict() == (merged + Report()).to_dict()
    assert (merged.n_read, merged.broken) == (report.n_read, report.broken)
    assert all(len(found) <= EXAMPLES for found in merged.examples.values())
    assert json.loads(json.dumps(merged.to_dict()))["n_read"] == whole.num_rows


def test_rules_see_all_of_several_chunks():
    chunked = pa.concat_tables([table({}), table({"id": "bad"}), table({"x": 11.0}).slice(0, 1)])
    assert check(PROJECT, chunked).report.broken == {"id.pattern": 1, "x.range": 1}
    assert np.array_equal(broken(PROJECT, conform(chunked, PROJECT.columns)[0])["id.pattern"], [False, True, False])


def test_rows_that_lack_columns_are_held_to_the_expectations_about_the_rest():
    expectations = [
        {"expect": "between", "column": "x", "max": 5},
        {"expect": "row", "row": "x < low"},
        {"expect": "not_null", "column": "x", "when": "c == 'a'"},
        {"expect": "row_count", "min": 1_000_000},
    ]
    body = PROJECT.model_dump(mode="json") | {"validation": {"expectations": expectations}}
    whole = Project.model_validate(body)
    rows = table({"x": 2.0}, {"x": 6.0}, {"x": None})
    assert check(whole, rows).report.broken == {"x.between": 1, "x.not_null": 1, "row: x < low": 1}
    some = about(whole, [column for column in whole.columns if column.name not in ("low", "c")])
    assert check(some, rows.drop_columns(["low", "c"])).report.broken == {"x.between": 1}


@pytest.mark.parametrize(
    ("column", "breaks"),
    [
        ({"min": 0}, [-5]),
        ({"max": 1}, [2**60, 2**53 + 1, 2**63 - 1, 3]),
        ({"min": 1.5, "max": 2.0**60}, [1, -5, 2**63 - 1]),
        ({"min": -1e30, "max": 1e30}, []),
        ({"min": 1e19}, [-5, 1, 3, 2**53 + 1, 2**60, 2**63 - 1]),
    ],
)
def test_ranges_of_whole_numbers_beyond_2_to_the_53(column: dict[str, float], breaks: list[int]):
    cells = [-5, 1, 3, 2**53 + 1, 2**60, 2**63 - 1]
    body = PROJECT.model_dump(mode="json")
    body["columns"] = [
        {"name": "low", "dtype": "int"} | column if one["name"] == "low" else one for one in body["columns"]
    ]
    given, rows = Project.model_validate(body), table(*({"low": cell} for cell in cells))
    assert check(given, rows).report.broken.get("low.range", 0) == len(breaks)
    found = broken(given, conform(rows, given.columns)[0])
    assert [cells[i] for i in np.flatnonzero(found.get("low.range", np.zeros(6, dtype=bool)))] == sorted(breaks)
