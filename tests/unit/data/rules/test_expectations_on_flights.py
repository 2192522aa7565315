"""Every expectation, kept and broken, on real flights; whatever the verdict, each row is kept or in quarantine."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import yaml

from mlops_ray.config import Project
from mlops_ray.config.expectations import AnyExpectation
from mlops_ray.data.content import row_hashes
from mlops_ray.data.rules.expectations import Report, check
from mlops_ray.data.rules.facts import Facts
from mlops_ray.data.rules.findings import Finding, conclude
from mlops_ray.data.rules.key_rules import breaks, in_holdout, key_rules, keyed
from mlops_ray.demo.flights import flights

ROOT = Path(__file__).parents[4]
N = 3000
"""The first days of January."""


@cache
def some() -> pa.Table:
    return flights().slice(0, N)


@cache
def others() -> pa.Table:
    """As many flights of July."""
    return flights().slice(170_000, N)


NOW = 1_357_344_000.0  # 2013-01-05


@cache
def raw_project() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "configs/flights.yaml").read_text(encoding="utf-8"))
    raw["columns"].append({"name": "landed", "dtype": "timestamp", "nullable": True})
    for column in raw["columns"]:
        column["nullable"] = column["name"] in ("late", "landed") or column.get("nullable", False)
    return raw


def project_with(*expectations: dict[str, Any]) -> Project:
    return Project.model_validate({**raw_project(), "validation": {"expectations": expectations}})


def keys_of(project: Project, shards: list[pa.Table], cut: int | None) -> Report:
    """What the engine does with key rules, in one process: gather the hashes, sort, ask, count."""
    report = Report()
    for rule in key_rules(project):
        found = [keyed(rule, shard) for shard in shards]
        a, b = (np.concatenate([lanes[i] for lanes, _ in found]) for i in range(2))
        payload = np.concatenate([each for _, each in found])
        order = np.lexsort((payload, b, a))
        a, b, payload = a[order], b[order], payload[order]
        first = np.ones(len(a), dtype=bool)
        first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        gone = int(breaks(rule, first, payload, cut).sum())
        n = int(in_holdout(payload, cut).sum()) if rule.needs_cut and cut is not None else len(a)
        report += Report(broken={rule.id: gone}, judged={rule.id: n})
    return report


def find(
    expectation: dict[str, Any],
    table: pa.Table,
    before: pa.Table | None = None,
    now: float = NOW,
    cut: int | None = None,
) -> Finding:
    project = project_with(expectation)
    checked = check(project, table)
    report = checked.report
    assert report.n_read == report.n_kept + report.n_quarantined == table.num_rows
    assert (checked.good.num_rows, checked.bad.num_rows) == (report.n_kept, report.n_quarantined)
    previous = check(project, before).facts if before is not None else None
    report += keys_of(project, [checked.good], cut)
    (finding,) = conclude(project, report, checked.facts, previous=previous, now=now)
    return finding


ROWS = [
    ({"expect": "not_null", "column": "carrier"}, {"expect": "not_null", "column": "wind_gust"}),
    (
        {"expect": "is_null", "column": "landed", "when": "isnull(late)"},
        {"expect": "is_null", "column": "wind_gust", "when": "wind_speed > 10"},
    ),
    (
        {"expect": "between", "column": "distance", "min": 50, "max": 5000},
        {"expect": "between", "column": "distance", "min": 200},
    ),
    (
        {"expect": "between", "column": "event_time", "min": "2013-01-01", "max": "2013-02-01T00:00:00Z"},
        {"expect": "between", "column": "event_time", "max": "2013-01-02"},
    ),
    (
        {"expect": "in_set", "column": "origin", "values": ["EWR", "JFK", "LGA"]},
        {"expect": "in_set", "column": "origin", "values": ["EWR", "JFK"]},
    ),
    (
        {"expect": "in_set", "column": "day_of_week", "values": [0, 1, 2, 3, 4, 5, 6]},
        {"expect": "in_set", "column": "day_of_week", "values": [0, 1, 2.5]},
    ),
    (
        {"expect": "not_in_set", "column": "dest", "values": ["EWR", "JFK"]},
        {"expect": "not_in_set", "column": "dest", "values": ["BOS", "BQN"]},
    ),
    (
        {"expect": "matches", "column": "flight_key", "pattern": r"\d{4}-\d{2}-\d{2}-\w{2}\d{1,4}-[A-Z]{3}-\d{4}"},
        {"expect": "matches", "column": "flight_key", "pattern": r"2013-01-0[12]-.*"},
    ),
    (
        {"expect": "not_matches", "column": "carrier", "pattern": r"\d+"},
        {"expect": "not_matches", "column": "carrier", "pattern": r"U."},
    ),
    (
        {"expect": "length_between", "column": "dest", "min": 3, "max": 3},
        {"expect": "length_between", "column": "flight_key", "max": 25},
    ),
    (
        {"expect": "column_pair", "columns": ["dewp", "temp"], "op": "<="},
        {"expect": "column_pair", "columns": ["sched_dep_min", "sched_arr_min"], "op": "<"},
    ),
    (
        {"expect": "row", "row": "sched_arr_min != sched_dep_min or distance > 0"},
        {"expect": "row", "row": "landed - event_time < 6 * 3600"},
    ),
    (
        {"expect": "row", "row": "weekday(event_time) in (0, 1, 2, 3, 4, 5, 6)", "when": "carrier == 'UA'"},
        {"expect": "row", "row": "hour(event_time) > 10 or origin != 'JFK'", "when": "carrier == 'UA'"},
    ),
]


@pytest.mark.parametrize(("kept", "broken"), ROWS)
def test_rows(kept, broken):
    good, bad = find(kept, some()), find(broken, some())
    assert good.passed is True, str(good)
    assert good.n_broken == 0
    assert bad.passed is False, str(bad)
    assert bad.stops
    assert bad.n is not None
    assert bad.n_broken is not None
    assert 0 < bad.n_broken <= bad.n <= N
    # Such a share may break it: the rows go to quarantine all the same, and the run goes on.
    tolerant = find({**broken, "mostly": (bad.n - bad.n_broken) / bad.n, "on_fail": "warn"}, some())
    assert (tolerant.passed, tolerant.n_broken) == (True, bad.n_broken)


TABLE = [
    ({"expect": "columns", "names": ["late", "temp"]}, {"expect": "columns", "names": ["late", "delay"]}),
    (
        {"expect": "columns", "names": [c["name"] for c in raw_project()["columns"]], "only": True},
        {"expect": "columns", "names": ["late"], "only": True},
    ),
    (
        {"expect": "dtype", "column": "distance", "dtype": "float"},
        {"expect": "dtype", "column": "distance", "dtype": "int"},
    ),
    (
        {"expect": "null_share", "column": "temp", "max": 0.05},
        {"expect": "null_share", "column": "wind_gust", "max": 0.05},
    ),
    (
        {"expect": "increasing", "column": "event_time"},
        {"expect": "increasing", "column": "event_time", "strict": True},
    ),
    ({"expect": "decreasing", "column": "distance", "mostly": 0.3}, {"expect": "decreasing", "column": "distance"}),
    ({"expect": "freshness", "max_age_s": 86400}, {"expect": "freshness", "max_age_s": 60, "column": "event_time"}),
    ({"expect": "not_in_future"}, {"expect": "not_in_future", "column": "landed"}),
    ({"expect": "row_count", "min": 2500, "max": 3000}, {"expect": "row_count", "max": 2999}),
    ({"expect": "row_count_change", "min": 0.9, "max": 1.1}, {"expect": "row_count_change", "min": 1.5}),
    (
        {"expect": "mean", "column": "distance", "min": 900, "max": 1200},
        {"expect": "mean", "column": "temp", "min": 60},
    ),
    (
        {"expect": "median", "column": "distance", "min": 800, "max": 1000},
        {"expect": "median", "column": "distance", "max": 800},
    ),
    (
        {"expect": "std", "column": "distance", "min": 600, "max": 800},
        {"expect": "std", "column": "distance", "max": 5},
    ),
    ({"expect": "sum", "column": "distance", "min": 3_000_000}, {"expect": "sum", "column": "distance", "max": 3_000}),
    ({"expect": "minimum", "column": "temp", "min": 10}, {"expect": "minimum", "column": "temp", "min": 32}),
    ({"expect": "maximum", "column": "temp", "max": 60}, {"expect": "maximum", "column": "temp", "max": 32}),
    (
        {"expect": "quantile", "column": "distance", "q": 0.9, "min": 2000, "max": 2600},
        {"expect": "quantile", "column": "distance", "q": 0.9, "max": 2000},
    ),
    (
        {"expect": "distinct_count", "column": "carrier", "min": 15, "max": 16},
        {"expect": "distinct_count", "column": "origin", "min": 4},
    ),
    (
        {"expect": "most_common_share", "column": "carrier", "max": 0.25},
        {"expect": "most_common_share", "column": "origin", "max": 0.3},
    ),
    ({"expect": "label_share", "min": 0.1, "max": 0.3}, {"expect": "label_share", "max": 0.1}),
    (
        {"expect": "covers", "column": "origin", "values": ["EWR", "JFK", "LGA"], "min_rows": 500},
        {"expect": "covers", "column": "dest", "values": ["LAX", "TXL"]},
    ),
    (
        {"expect": "distribution", "column": "carrier", "distance": "js", "max": 0.1},
        {"expect": "distribution", "column": "temp", "max": 0.2},
    ),
    (
        {"expect": "distribution", "column": "sched_dep_min", "distance": "psi", "max": 0.1},
        {"expect": "distribution", "column": "temp", "distance": "ks", "max": 0.1},
    ),
    (
        {"expect": "distribution", "column": "origin", "distance": "linf", "max": 0.1},
        {"expect": "distribution", "column": "temp", "distance": "linf", "max": 0.05},
    ),
]


@pytest.mark.parametrize(("kept", "broken"), TABLE)
def test_the_table(kept, broken):
    # The newest landing of the week is after its newest departure: just before it, one is in the future.
    newest = max(time for time in some()["landed"].to_pylist() if time is not None).timestamp()
    now = newest - 1 if kept["expect"] == "not_in_future" else NOW
    assert find(kept, some(), others(), now).passed is True
    finding = find(broken, some(), others(), now)
    assert finding.passed is False, str(finding)
    assert str(finding).startswith(f"{finding.id}: broken: wanted")
    assert not find({**broken, "on_fail": "warn"}, some(), others(), now).stops


def double(table: pa.Table, n: int) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, n)])


def relabelled(table: pa.Table, n: int) -> pa.Table:
    """`table`, and its first n flights again, with the other label."""
    again = table.slice(0, n)
    labels = pa.array([None if late is None else 1 - late for late in again["late"].to_pylist()], pa.int64())
    return pa.concat_tables([table, again.set_column(table.schema.get_field_index("late"), "late", labels)])


FEW = ["carrier", "origin", "dest", "sched_dep_min"]
CUT = int(1_357_171_200e6)  # 2013-01-03
KEYS = [
    ({"expect": "unique", "columns": ["flight_key"]}, some, lambda: double(some(), 7), 7),
    ({"expect": "unique", "columns": ["event_time", "flight_key"]}, some, lambda: relabelled(some(), 9), 9),
    ({"expect": "no_duplicate_rows"}, lambda: relabelled(some(), 3), lambda: double(some(), 5), 5),
    ({"expect": "no_conflicting_labels", "columns": ["flight_key"]}, lambda: double(some(), 5), None, 8),
    ({"expect": "no_leakage", "columns": ["flight_key"]}, some, None, 4),
]


@pytest.mark.parametrize(("expectation", "keeps", "breaks_it", "n"), KEYS)
def test_keys(expectation, keeps, breaks_it, n):
    kept = find(expectation, keeps(), cut=CUT)
    assert (kept.passed, kept.n_broken) == (True, 0)
    if breaks_it is not None:
        table = breaks_it()
    elif expectation["expect"] == "no_leakage":
        late = some().slice(N - n)  # flights of the holdout that training has seen, an instant before the cut
        time = pa.array([CUT - 1] * n, some().schema.field("event_time").type)
        table = pa.concat_tables([some(), late.set_column(1, "event_time", time)])
    else:
        table = relabelled(some().filter(some()["late"].is_valid()), n // 2)
    broken = find(expectation, table, cut=CUT)
    assert (broken.passed, broken.n_broken) == (False, n)


def test_features_of_real_flights_conflict_and_leak():
    conflicts = find({"expect": "no_conflicting_labels", "columns": FEW, "mostly": 0.9}, some())
    assert conflicts.passed is False
    leak = find({"expect": "no_leakage", "columns": FEW, "max_share": 0.2}, some(), cut=CUT)
    assert leak.passed is False
    assert leak.share is not None
    assert leak.share > 0.5, "the same flight leaves every day"
    assert find({"expect": "no_leakage", "columns": FEW, "max_share": 1}, some(), cut=CUT).passed is True


def test_every_kind_has_a_kept_and_a_broken_case():
    members = get_args(get_args(AnyExpectation)[0])
    kinds = {kind for model in members for kind in get_args(model.model_fields["expect"].annotation)}
    cases = {case[0]["expect"] for case in [*ROWS, *TABLE, *KEYS]}
    assert cases == kinds
    assert len(kinds) >= 25
    assert all(kept["expect"] == broken["expect"] for kept, broken in [*ROWS, *TABLE])


def test_what_cannot_be_judged_is_no_pass():
    none = some().slice(0, 0)
    unjudged = [find(e, none) for pair in [*ROWS, *TABLE] for e in pair if e["expect"] not in ("row_count", "columns")]
    assert {finding.passed for finding in unjudged if finding.expect != "dtype"} == {None}
    assert not any(finding.stops for finding in unjudged if finding.expect != "dtype")
    assert find({"expect": "distribution", "column": "temp", "max": 1}, some()).observed == "no previous version"
    assert find({"expect": "row", "row": "late == 1", "when": "carrier == 'none'"}, some()).passed is None
    project = project_with({"expect": "unique", "columns": ["flight_key"]})
    (finding,) = conclude(project, Report(), Facts(), previous=None, now=NOW)
    assert (finding.passed, finding.observed) == (None, "was not looked at")


EVERYTHING = [kept for kept, *_ in [*ROWS[2:10:2], *TABLE[3:]]]


def test_a_year_by_months_says_what_it_says_in_one_piece():
    """The whole of 2013, cut where months end (in rows), against one table."""
    named = [{**e, "id": f"e{i}"} for i, e in enumerate([*EVERYTHING, {"expect": "unique", "columns": ["flight_key"]}])]
    project = project_with(*named)
    year = flights()
    cuts = [0, *np.linspace(20_000, year.num_rows, 4).astype(int).tolist()]
    parts = [check(project, year.slice(a, b - a)) for a, b in pairwise(cuts)]
    facts = sum((part.facts for part in parts), Facts())
    report = sum((part.report for part in parts), Report())
    whole = check(project, year)
    assert report == whole.report
    assert report.n_read == report.n_kept + report.n_quarantined == year.num_rows
    ours = conclude(project, report, facts, previous=parts[0].facts, now=NOW)
    theirs = conclude(project, whole.report, whole.facts, previous=parts[0].facts, now=NOW)
    assert ours == theirs
    restored = Facts.from_dict(facts.to_dict())
    assert conclude(project, report, restored, previous=parts[0].facts, now=NOW) == ours


def test_of_repeated_keys_the_same_rows_stay_for_any_order():
    project = project_with({"expect": "unique", "columns": ["flight_key"]})
    (rule,) = key_rules(project)
    good = check(project, relabelled(some(), 20)).good
    content = row_hashes(good)[0]
    kept = []
    for order in (np.arange(len(good)), np.random.default_rng(1).permutation(len(good))):
        rows = good.take(order)
        (a, b), payload = keyed(rule, rows)
        assert np.array_equal(payload, content[order])
        sort = np.lexsort((payload, b, a))
        first = np.ones(len(a), dtype=bool)
        first[1:] = a[sort][1:] != a[sort][:-1]
        stays = np.sort(payload[sort][~breaks(rule, first, payload[sort])])
        kept.append(stays)
    assert np.array_equal(*kept)
    assert len(kept[0]) == N
