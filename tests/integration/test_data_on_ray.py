"""The data room on a real Ray cluster, Delta tables and files."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from deltalake import DeltaTable

from mlops_ray import verbs
from mlops_ray.config import Project, Split, load_project
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.features import statistics
from mlops_ray.data.features.transformer import bins
from mlops_ray.data.lineage import last_prepared
from mlops_ray.data.on_ray import examine, fit_features, prepare, snapshot
from mlops_ray.data.splits import TRAIN, VALIDATION, TimeCut
from mlops_ray.errors import DataError, DataRefused

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

CONFIGS = Path(__file__).parents[2] / "configs"
START = 1_700_000_000
NOW = START + 86_400.0


def rows(n: int = 300) -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    return [
        {
            "id": f"k{i:05d}",
            "at": pd.Timestamp(START + 60 * i, unit="s", tz="UTC").as_unit("us"),
            "y": int(rng.random() < 0.4),
            "x": None if rng.random() < 0.1 else round(float(rng.normal(5, 1)), 6),
            "c": str(rng.choice(["a", "b", "c"])),
        }
        for i in range(n)
    ]


def table(listed: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(listed)


HANDED: dict[str, Any] = {}
"""What the source functions below return; they run in the driver, so a module's variable reaches them."""


def from_memory(name: str) -> Any:
    return HANDED[name]


def project(root: Path, source: dict[str, Any], **validation: Any) -> Project:
    return Project.model_validate(
        {
            "project": "tiny",
            "task": "binary",
            "target": "y",
            "key": "id",
            "event_time": "at",
            "storage": {"root": str(root / "lake")},
            "source": source,
            "columns": [
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "y", "dtype": "int"},
                {"name": "x", "dtype": "float", "nullable": True, "min": 0, "max": 10},
                {"name": "c", "dtype": "string", "values": ["a", "b", "c"]},
            ],
            "validation": {"max_bad_share": 0.1, "min_rows": 10, "unique": ["id"]} | validation,
            "features": {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["c"]}},
            "search": {"candidates": [{"estimator": "sklearn.linear_model:LogisticRegression"}]},
        }
    )


def parquet(root: Path, shards: list[list[dict[str, Any]]], name: str = "source") -> dict[str, Any]:
    folder = root / name
    folder.mkdir(parents=True)
    for i, shard in enumerate(shards):
        pq.write_table(table(shard), folder / f"{i}.parquet")
    return {"kind": "parquet", "path": str(folder)}


def on_disk(root: Path) -> set[tuple[str, int]]:
    return {(str(p), p.stat().st_size) for p in (root / "lake").rglob("*") if p.is_file()}


def quarantine(given: Project) -> list[dict[str, Any]]:
    uri = given.storage.path("quarantine", given.project)
    return DeltaTable(uri).to_pyarrow_table().to_pylist() if DeltaTable.is_deltatable(uri) else []


def test_the_same_rows_make_one_version_whatever_their_order_files_and_reader(tmp_path):
    listed = rows()
    seen: list[tuple[int, int]] = []
    first = prepare(
        project(tmp_path, parquet(tmp_path, [listed[:50], listed[50:]])),
        now=NOW,
        on_progress=lambda *at: seen.append(at),
    )
    assert first.dataset.version == 1
    assert (first.report.n_read, first.report.n_kept, first.report.n_quarantined) == (300, 300, 0)
    assert seen[-1][0] == 300
    before = on_disk(tmp_path)
    random.Random(1).shuffle(listed)
    table(listed).to_pandas().to_csv(tmp_path / "rows.csv", index=False)
    table(listed).to_pandas().to_json(tmp_path / "rows.json", orient="records", lines=True, date_format="iso")
    lake.append_once(str(tmp_path / "delta"), table(listed), "writer", 0)
    HANDED.update(arrow=table(listed), pandas=table(listed).to_pandas(), ray=ray.data.from_arrow(table(listed)))
    sources = [
        parquet(tmp_path, [listed[:7], listed[7:200], listed[200:]], "again"),
        {"kind": "csv", "path": str(tmp_path / "rows.csv")},
        {"kind": "json", "path": [str(tmp_path / "rows.json")]},
        {"kind": "delta", "path": str(tmp_path / "delta")},
        *({"kind": "python", "function": f"{__name__}:from_memory", "options": {"name": name}} for name in HANDED),
    ]
    for source in sources:
        again = prepare(project(tmp_path, source), now=NOW)
        assert again.dataset == first.dataset, source
        assert again.report.n_kept == 300
        assert on_disk(tmp_path) == before, source
    read = lake.read(first.dataset)
    assert row_hash(read).hex() == first.dataset.content_hash
    assert sorted(read["id"].to_pylist()) == [f"k{i:05d}" for i in range(300)]


def test_bad_rows_go_to_quarantine_and_no_row_vanishes(tmp_path):
    listed = rows()
    listed[3]["x"], listed[60]["c"], listed[61]["y"], listed[62]["id"] = -1.0, "zebra", None, None
    listed[120] |= {"x": 99.0, "c": None}
    given = project(tmp_path, parquet(tmp_path, [listed[:100], listed[100:]]))
    found = prepare(given, now=NOW)
    assert (found.report.n_read, found.report.n_kept, found.report.n_quarantined) == (300, 295, 5)
    assert found.report.broken == {"c.null": 1, "c.set": 1, "id.null": 1, "x.range": 2, "y.null": 1}
    held = quarantine(given)
    assert len(held) == 5
    assert {row["key"]: row["rules"] for row in held}["k00120"] == ["c.null", "x.range"]
    assert found.dataset.n_rows == lake.read(found.dataset).num_rows == 295
    before = on_disk(tmp_path)
    assert prepare(given, now=NOW).dataset == found.dataset
    assert on_disk(tmp_path) == before


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_of_rows_that_repeat_a_key_the_same_one_stays_in_any_order(tmp_path, cut):
    listed = rows(250)
    twice = [dict(listed[5]), {**listed[6], "x": 1.25}, {**listed[6], "x": 8.75}]
    kept = []
    for i, order in enumerate([[*listed, *twice], [*reversed(twice), *reversed(listed)]]):
        given = project(tmp_path / str(i), parquet(tmp_path, [order[:cut], order[cut:]], f"source{i}"))
        found = prepare(given, now=NOW)
        assert (found.report.n_read, found.report.n_kept, found.report.n_quarantined) == (253, 250, 3)
        assert found.report.broken == {"unique": 3}
        assert sorted(row["key"] for row in quarantine(given)) == ["k00005", "k00006", "k00006"]
        read = lake.read(found.dataset)
        assert len(set(read["id"].to_pylist())) == 250
        assert row_hash(read).hex() == found.dataset.content_hash
        kept.append(found.dataset.content_hash)
    assert kept[0] == kept[1]


def test_too_many_bad_rows_stop_before_the_dataset_is_touched(tmp_path):
    listed = rows(100)
    good = prepare(project(tmp_path, parquet(tmp_path, [listed], "good")), now=NOW)
    for row in listed[:40]:
        row["c"] = "zebra"
    given = project(tmp_path, parquet(tmp_path, [listed]))
    with pytest.raises(DataError, match=r"40\.00% of the rows are bad(.|\n)*c\.set: 40 \(for example k0000"):
        prepare(given, now=NOW)
    assert lake.latest(good.dataset.uri) == good.dataset
    assert {p.parent.name for p in Path(good.dataset.uri).rglob("*.parquet")} == {
        lake.files(good.dataset)[0].partition("/")[0]
    }
    assert len(quarantine(given)) == 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.slice(0, 9), "9 good rows, validation.min_rows asks for 10"),
        (lambda t: t.slice(0, 0), "0 good rows"),
        (lambda t: t.drop_columns(["x"]), "x: column is missing"),
        (lambda t: t.set_column(3, "x", t["at"]), "x: expected dtype float, found timestamp"),
    ],
)
def test_what_cannot_be_used_stops_and_leaves_nothing(tmp_path, change, says):
    HANDED["arrow"] = change(table(rows(50)))
    source = {"kind": "python", "function": f"{__name__}:from_memory", "options": {"name": "arrow"}}
    with pytest.raises(DataError, match=says):
        prepare(project(tmp_path, source), now=NOW)
    # The report of a refused run stays, for whoever wants to know why; no row does.
    assert {Path(path).name for path, _ in on_disk(tmp_path)} <= {"validation.json", "validation.html", "facts.json"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            {"kind": "parquet", "path": "/nowhere/rows.parquet"},
            "/nowhere/rows.parquet: there is nothing at this place",
        ),
        ({"kind": "python", "function": "mlops_ray.demo.flights:future"}, "cannot be imported"),
        ({"kind": "python", "function": "mlops_ray.demo.flights:LATE_MIN"}, "cannot be imported|not callable"),
        ({"kind": "python", "function": "builtins:dict"}, "must return a ray.data.Dataset"),
    ],
)
def test_an_unreadable_source_is_named(tmp_path, source, says):
    with pytest.raises(DataError, match=says):
        prepare(project(tmp_path, source), now=NOW)


def test_snapshots_are_versions_like_any_other(tmp_path):
    given = project(tmp_path, {"kind": "parquet", "path": "unused"})
    whole = table(rows(80))
    first = snapshot(given, whole.append_column("more", pa.array(range(80))), {"window": [0, 1]})
    assert (first.version, first.n_rows, first.lineage) == (1, 80, {"window": [0, 1]})
    assert snapshot(given, whole.take(list(reversed(range(80)))), {"other": True}) == first
    second = snapshot(given, whole.slice(0, 40), {})
    assert second.version == 2
    assert lake.read(first).num_rows == 80
    with pytest.raises(DataError, match=r"x\.dtype"):
        snapshot(given, table([{**row, "x": "warm"} for row in rows(3)]), {})


def test_feature_statistics_on_shards_equal_those_of_the_rows(tmp_path):
    listed = rows(200)
    given = project(tmp_path, parquet(tmp_path, [listed[:20], listed[20:]]))
    dataset = prepare(given, now=NOW).dataset
    cut = TimeCut("at", round((START + 60 * 10) * 1e6), round((START + 60 * 150) * 1e6))
    found, first = fit_features(given, dataset, cut, (VALIDATION, TRAIN))
    expected = statistics.fold(given.features, table(listed[10:150]))
    assert (first.n, found.n, expected.n) == (10, 140, 140)
    assert bins(given.features, found) == bins(given.features, expected)
    assert found.categorical == expected.categorical
    assert found.numeric["x"].moments.mean == pytest.approx(expected.numeric["x"].moments.mean, rel=1e-9)
    with pytest.raises(DataError, match="no row for train"):
        fit_features(given, dataset, replace(cut, validation=0), (TRAIN,))


def test_feature_statistics_of_a_split_by_hash_are_those_of_its_rows(tmp_path):
    listed = rows(400)
    given = project(tmp_path, parquet(tmp_path, [listed[:130], listed[130:]]))
    dataset = prepare(given, now=NOW).dataset
    split = Split(by="hash", validation_share=0.3, holdout_share=0.1)
    cut = splits.cut(split, event_time="at", key=given.key, salt="s", times=[])
    whole = lake.read(dataset)
    sides = splits.assign(cut, whole)
    for part, found in zip((TRAIN, VALIDATION), fit_features(given, dataset, cut, (TRAIN, VALIDATION)), strict=True):
        expected = statistics.fold(given.features, whole.filter(pa.array(sides == part)))
        assert found.n == expected.n > 0
        assert found.categorical == expected.categorical


def labelled(key: str, x: float, y: int, at: int) -> dict[str, Any]:
    return {**rows(1)[0], "id": key, "x": x, "y": y, "at": pd.Timestamp(START + at, unit="s", tz="UTC").as_unit("us")}


def test_rules_over_keys_look_at_all_shards_and_say_which_rows_broke_them(tmp_path):
    listed = rows(40)
    # Twice the same row; and two rows that differ in nothing but key, time and label.
    listed += [dict(listed[3]), labelled("a", 7.5, 0, 50), labelled("b", 7.5, 1, 60), dict(listed[3])]
    expectations = [
        {"expect": "no_duplicate_rows", "mostly": 0.9},
        {"expect": "no_conflicting_labels", "columns": ["x"], "mostly": 0.5, "quarantine": False},
        {"expect": "row_count", "min": 1000, "on_fail": "warn"},
    ]
    outcomes = []
    for cut in (1, 20, 41):
        given = project(
            tmp_path / str(cut), parquet(tmp_path / str(cut), [listed[:cut], listed[cut:]]), expectations=expectations
        )
        found = prepare(given, now=NOW)
        assert (found.report.n_read, found.report.n_kept, found.report.n_quarantined) == (44, 42, 2)
        assert [row["rules"] for row in quarantine(given)] == [["no_duplicate_rows", "unique"]] * 2
        passed = {finding.id: (finding.passed, finding.n_broken) for finding in found.validated.findings}
        kept = json.loads(lake.read_sidecar(found.dataset.uri, found.dataset.content_hash, "validation.json"))
        assert kept["n_kept"] == 42
        assert {finding["id"] for finding in kept["findings"]} == set(passed)
        dry = examine(given, now=NOW)
        assert (dry.report.n_kept, dry.report.broken) == (42, found.report.broken)
        outcomes.append((found.dataset.content_hash, passed))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    passed = outcomes[0][1]
    assert passed["no_duplicate_rows"] == (True, 2)
    assert passed["row_count"] == (False, None)
    assert passed["x.no_conflicting_labels"][1] >= 2


def test_an_expectation_that_stops_leaves_a_report_and_no_version(tmp_path):
    given = project(tmp_path, parquet(tmp_path, [rows(50)]), expectations=[{"expect": "row_count", "min": 1000}])
    with pytest.raises(DataRefused, match=r"row_count: broken: wanted .*; observed 50") as refused:
        prepare(given, now=NOW)
    assert "row_count" in Path(refused.value.page).read_text(encoding="utf-8")
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.report["n_kept"], again.exit_code) == (str(refused.value), 50, 3)
    assert lake.latest(given.storage.path("data", given.project)) is None
    dry = examine(given, now=NOW)
    assert [finding.passed for finding in dry.validated.findings] == [False]


def test_a_source_that_says_again_what_it_said_before_is_followed(tmp_path):
    listed = rows(100)
    given = [project(tmp_path, parquet(tmp_path, [part], name)) for name, part in (("a", listed), ("b", listed[50:]))]
    first, second = (prepare(each, now=NOW).dataset for each in given)
    assert last_prepared(first.uri) == second
    assert prepare(given[0], now=NOW).dataset == first
    assert last_prepared(first.uri) == first
    assert lake.latest(first.uri) == second
    snapshot(given[0], table(listed[:20]), {"made_by": {"verb": "retrain"}})
    assert last_prepared(first.uri) == first


def test_rows_that_one_rule_drops_break_no_other(tmp_path):
    # The same key again, later: in the holdout by its time, if it were not dropped.
    listed = rows(100)
    for i, row in enumerate(listed[:30]):
        listed.append({**row, "at": pd.Timestamp(START + 86_400 + i, unit="s", tz="UTC").as_unit("us")})
    given = project(
        tmp_path,
        parquet(tmp_path, [listed[:70], listed[70:]]),
        max_bad_share=0.5,
        expectations=[{"expect": "no_leakage", "columns": ["id"]}],
    )
    found = prepare(given, now=NOW)
    assert found.report.broken == {"unique": 30}
    assert [(finding.passed, finding.n) for finding in found.validated.findings] == [(True, 20)]


def test_rules_over_features_take_what_the_data_has_and_not_what_is_derived(tmp_path):
    made = project(tmp_path, parquet(tmp_path, [rows(100)]), expectations=[{"expect": "no_leakage", "max_share": 0.9}])
    derived = {"numeric": {"columns": ["x"]}, "expressions": {"twice": "x * 2"}, "datetime": {"columns": ["at"]}}
    given = Project.model_validate(made.model_dump(mode="json") | {"features": derived})
    assert [finding.passed for finding in prepare(given, now=NOW).validated.findings] == [True]


def test_a_dry_run_fits_the_features_and_commits_nothing(tmp_path, monkeypatch):
    # The session's Ray is up, and a process has one.
    monkeypatch.setattr("mlops_ray.cluster.on_ray.connected", lambda *_, **__: contextlib.nullcontext())
    given = project(tmp_path, parquet(tmp_path, [rows(100)]))
    file = tmp_path / "tiny.yaml"
    file.write_text(given.model_dump_json(exclude_defaults=True), encoding="utf-8")  # JSON is YAML
    done = verbs.prepare([file], {}, dry_run=True)
    assert (done["dataset"], done["refused"], done["report"]["n_kept"]) == (None, [], 100)
    assert done["inputs"] == 4  # x, and a column for each of three categories
    assert lake.latest(given.storage.path("data", given.project)) is None


def test_a_version_is_compared_with_the_one_before(tmp_path):
    first = rows(200)
    expectations = [{"expect": "row_count_change", "min": 0.9, "max": 1.1, "on_fail": "warn"}]
    found = prepare(project(tmp_path, parquet(tmp_path, [first], "a"), expectations=expectations), now=NOW)
    assert [finding.passed for finding in found.validated.findings] == [None]
    found = prepare(project(tmp_path, parquet(tmp_path, [first[:50]], "b"), expectations=expectations), now=NOW)
    assert [(finding.passed, finding.observed) for finding in found.validated.findings] == [(False, 0.25)]


def test_files_and_rows_from_memory_give_the_same_statistics_and_content(tmp_path):
    listed = rows(500)
    HANDED["ray"] = ray.data.from_arrow([table(listed[:123]), table(listed[123:])])
    sources = [
        parquet(tmp_path, [listed[:77], listed[77:78], listed[78:]]),
        {"kind": "python", "function": f"{__name__}:from_memory", "options": {"name": "ray"}},
    ]
    first, second = (examine(project(tmp_path, source), now=NOW) for source in sources)
    assert first.report == second.report
    for name, mine in first.statistics.numeric.items():
        theirs = second.statistics.numeric[name]
        assert (mine.missing, mine.low, mine.high, mine.moments.n) == (
            theirs.missing,
            theirs.low,
            theirs.high,
            theirs.moments.n,
        )
        assert mine.moments.mean == pytest.approx(theirs.moments.mean, rel=1e-12)
        assert np.array_equal(mine.values.keys, theirs.values.keys)
        assert np.array_equal(mine.values.counts, theirs.values.counts)
    assert first.statistics.categorical == second.statistics.categorical


def test_the_flights_end_to_end(tmp_path):
    base = load_project(CONFIGS / "flights.yaml", env={})
    given = base.model_copy(update={"storage": base.storage.model_copy(update={"root": str(tmp_path / "lake")})})
    found = prepare(given, now=NOW)
    assert (found.report.n_read, found.dataset.n_rows) == (49_855, 49_855)
    lineage = found.dataset.lineage
    assert (lineage["made_by"], lineage["parents"]) == ({"verb": "prepare"}, [])
    assert lineage["uris"] == ["python:mlops_ray.demo.flights:history"]
    assert lineage.keys() >= {"source", "config_sha256", "function_sha256", "mlops_ray"}
    before = on_disk(tmp_path)
    assert prepare(given, now=NOW).dataset == found.dataset
    assert on_disk(tmp_path) == before
    every = TimeCut(given.event_time, 1_362_096_000_000_000, 1_362_096_000_000_000)
    assert fit_features(given, found.dataset, every, (TRAIN,))[0].n == 49_855
