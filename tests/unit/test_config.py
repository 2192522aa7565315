"""The project file: what is right loads, and everything that is wrong is said at once, with place, value and remedy."""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_ray.config import Project, load_project, load_source, parse_portable, portable
from mlops_ray.errors import ConfigError

GOOD = """\
project: flights
task: binary
target: late
key: id
event_time: when
source: {kind: parquet, path: data/rows.parquet}
columns:
  - {name: id, dtype: string}
  - {name: when, dtype: timestamp}
  - {name: late, dtype: int, min: 0, max: 1}
  - {name: distance, dtype: float, min: 0}
  - {name: carrier, dtype: string}
features:
  numeric: {columns: [distance]}
  categorical: {columns: [carrier]}
search:
  candidates:
    - estimator: json.decoder.JSONDecoder
      space: {C: {kind: log_uniform, low: 0.01, high: 10}}
"""


def write(folder: Path, text: str, name: str = "p.yaml") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def load(folder: Path, text: str, env: Mapping[str, str] | None = None) -> Project:
    return load_project(write(folder, text), env=env or {})


def problems(folder: Path, text: str, env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The lines of the ConfigError that `text` deserves, with the folder cut off."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, env)
    assert caught.value.exit_code == 2
    return tuple(p.replace(f"{folder}/", "") for p in caught.value.problems)


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_good_file_loads_with_defaults(tmp_path: Path) -> None:
    project = load(tmp_path, GOOD)
    assert project.features.columns == ("distance", "carrier")
    assert [c.name for c in project.columns_in("serving")] == ["id", "when", "distance", "carrier"]
    assert project.rollout.shares == (0.1, 0.5)
    assert project.storage.state.startswith("sqlite:////")
    assert project.storage.path("data", "x").endswith("/.mlops_ray/data/x")


def test_serving_has_no_target_and_training_has_every_column(tmp_path: Path) -> None:
    project = load(tmp_path, GOOD)
    assert project.columns_in("training") == project.columns
    assert project.target not in {c.name for c in project.columns_in("serving")}


def test_the_source_of_a_file_that_has_just_been_begun(tmp_path: Path) -> None:
    begun = write(tmp_path, "source: {kind: csv, path: '${DATA}/rows.csv'}\ncolumns: [{name: x}]")
    found = load_source([begun], env={"DATA": "there"})
    assert (found.kind, found.path) == ("csv", "there/rows.csv")
    moved = write(tmp_path, "source: {path: other.csv}", "overlay.yaml")
    assert load_source([begun, moved], env={}).path == "other.csv"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("target: late", "p.yaml:1: source: is missing; add it"),
        ("target: late\nsource: {kind: csv}", "p.yaml:2: source: kind: csv needs `path:`"),
        ("source: {kind: csv, path: '${NOWHERE}/x'}", "p.yaml:1: source.path: environment variable NOWHERE is not set"),
        ("source: {kind: csv, pth: x}", "p.yaml:1: source.pth: unknown field 'pth'; did you mean 'path'?"),
    ],
)
def test_mistakes_in_a_source_are_said_and_no_others(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_source([write(tmp_path, text)], env={})
    found = [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
    assert all(p.split(": ")[1].startswith("source") for p in found), found
    assert any(p.startswith(line) for p in found), found


def test_values_do_not_change_after_loading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, GOOD).seed = 3  # type: ignore[misc]


# One mistake each: what replaces what in the good file, and the one line that must come out.
MISTAKES = [
    ("project: flights", "project: My Flights", "p.yaml:1: project: 'My Flights' does not match ^[a-z]"),
    (
        "task: binary",
        "task: ranking",
        "p.yaml:2: task: should be 'binary', 'multiclass' or 'regression'; got 'ranking'",
    ),
    ("task: binary\n", "", "p.yaml:1: task: is missing; add it"),
    ("task: binary", "task: binary\nseeed: 3", "p.yaml:3: seeed: unknown field 'seeed'; did you mean 'seed'?"),
    ("task: binary", "task: binary\nzzz: 3", "p.yaml:3: zzz: unknown field 'zzz'; remove it"),
    ("task: binary", "task: binary\nseed: x", "p.yaml:3: seed: should be a valid integer"),
    ("task: binary", "task: binary\ntask: binary", "p.yaml:3: task: stands twice; remove one"),
    ("target: late", "target: lat", "p.yaml:3: target: 'lat' is not one of the columns; did you mean 'late'?"),
    ("target: late", "target: id", "p.yaml:3: target: column 'id' is string; this place takes int or bool or float"),
    ("key: id", "key: qqq", "p.yaml:4: key: 'qqq' is not one of the columns; add it to `columns:`"),
    ("key: id", "key: when", "p.yaml:4: key: column 'when' is timestamp; this place takes string or int"),
    ("event_time: when", "event_time: id", "p.yaml:5: event_time: column 'id' is string; this place takes timestamp"),
    ("kind: parquet,", "kind: qqq,", "p.yaml:6: source.kind: unknown kind; choose one of audio, avro"),
    ("kind: parquet,", "kind: parqet,", "p.yaml:6: source.kind: unknown kind; did you mean parquet?"),
    ("kind: parquet, path: data/rows.parquet", "kind: csv", "p.yaml:6: source: kind: csv needs `path:`"),
    ("kind: parquet, path: data/rows.parquet", "kind: python", "p.yaml:6: source: kind: python needs `function: mod"),
    ("path: data/rows.parquet", "path: 3", "p.yaml:6: source.path: should be text (put it in quotes); got 3"),
    (
        "kind: parquet, path: data/rows.parquet",
        "kind: python, function: nowhere_at_all:rows",
        "p.yaml:6: source.function: package 'nowhere_at_all' cannot be found; fix the path or install it",
    ),
    ("{name: id, dtype: string}", "{name: id, dtype: text}", "p.yaml:8: columns.0.dtype: should be 'float', 'int',"),
    ("{name: id, dtype: string}", "{name: id}", "p.yaml:8: columns.0.dtype: is missing; add it"),
    (
        "dtype: float, min: 0}",
        "dtype: float, required: false}",
        "p.yaml:11: columns.3: a column that is not required is",
    ),
    (
        "late, dtype: int,",
        "late, dtype: int, nullable: true, required: false,",
        "p.yaml:10: columns.2.required: the target cannot be absent; remove it",
    ),
    ("dtype: timestamp}", "dtype: timestamp, min: 3}", "p.yaml:9: columns.1: min and max do not fit dtype timestamp"),
    ("min: 0, max: 1}", "min: 2, max: 1}", "p.yaml:10: columns.2: min 2 is above max 1; swap them"),
    ("dtype: float, min: 0}", "dtype: float, values: [a]}", "p.yaml:11: columns.3: values and pattern fit dtype str"),
    ("dtype: float, min: 0}", "dtype: float, min: .inf}", "p.yaml:11: columns.3.min: should be a finite number"),
    ("carrier, dtype: string}", "carrier, dtype: string, values: [NO]}", "columns.4.values.0: should be text (put it"),
    ("carrier, dtype: string}", "carrier, dtype: string, pattern: '('}", "columns.4.pattern: not a regular expression"),
    ("{name: carrier,", "{name: distance,", "p.yaml:12: columns.4.name: column 'distance' is listed twice; remove one"),
    ("columns: [distance]}", "columns: [distanc]}", "p.yaml:14: features.numeric.columns.0: 'distanc' is not one of"),
    ("columns: [distance]}", "columns: [late]}", "features.numeric.columns.0: the target cannot be a feature; remove"),
    ("columns: [distance]}", "columns: [distance, distance]}", "features.numeric.columns.1: feature 'distance' is"),
    ("columns: [distance]}", "columns: distance}", "features.numeric.columns: should be a list; got 'distance'"),
    ("columns: [distance]}", "columns: [carrier]}", "column 'carrier' is string; this place takes float or int or b"),
    ("columns: [carrier]}", "colums: [carrier]}", "features.categorical.colums: unknown field 'colums'; did you mean"),
    *(
        ("numeric: {columns: [distance]}", new, line)
        for new, line in (
            (
                "numeric: [{columns: [distance]}, {columns: [nothing]}]",
                "features.numeric.1.columns.0: 'nothing' is not on",
            ),
            (
                "numeric: [{columns: [distance], scal: none}]",
                "features.numeric.0.scal: unknown field 'scal'; did you mean",
            ),
            ("numeric: {columns: [distance], clip: [2, 1]}", "features.numeric: clip: [2.0, 1.0] must rise; swap them"),
            ("numeric: {columns: [distance], clip: {quantiles: [1, 0]}}", "features.numeric.clip: quantiles must rise"),
            ("numeric: {columns: [distance], clip: 3}", "features.numeric.clip: should be a block of fields; got 3"),
            (
                "numeric: {columns: [distance], bins: {n: 3}, scale: power}",
                "bins: stand instead of a scale; remove one",
            ),
            ("numeric: {columns: [distance], log: true, clip: [-1, 1]}", "log: true takes values of at least 0; clip"),
            (
                "expressions: {r: distanc * 2}",
                "features.expressions.r: distanc at position 1 is not one of the columns",
            ),
            ("expressions: {r: carrier}", "features.expressions.r: gives a string; a feature is a number"),
            (
                "expressions: {r: late + 1}",
                "features.expressions.r: reads the target, which no request has; take it out",
            ),
            (
                "expressions: {r: id == at_home}",
                "features.expressions.r: at_home at position 7 is not one of the columns",
            ),
            ("expressions: {distance: distance * 2}", "derived column 'distance' has the name of a column; rename"),
            ("datetime: {columns: [carrier]}", "column 'carrier' is string; this place takes timestamp"),
            (
                "datetime: {columns: [when], zone: Mars}",
                "features.datetime.zone: is no time zone of the IANA database; write one such as",
            ),
            (
                "datetime: {columns: [when], elapsed_since: soon}",
                "features.datetime.elapsed_since: 'soon' is not one of",
            ),
            (
                "datetime: [{columns: [when], parts: [day]}, {columns: [when], parts: [day]}]",
                "'when_day' is made twice; give",
            ),
            (
                "custom: {transformer: nowhere.At, columns: [distance]}",
                "features.custom.transformer: package 'nowhere'",
            ),
            (
                "custom: {transformer: json.At, columns: [carrier]}",
                "column 'carrier' is string; this place takes float",
            ),
        )
    ),
    ("json.decoder.JSONDecoder", "sklearnn.svm.SVC", "p.yaml:18: search.candidates.0.estimator: package 'sklearnn' is"),
    (
        "json.decoder.JSONDecoder",
        "SVC",
        "p.yaml:18: search.candidates.0.estimator: 'SVC' is no estimator; presets are lin",
    ),
    (
        "json.decoder.JSONDecoder",
        "xgbost",
        "p.yaml:18: search.candidates.0.estimator: 'xgbost' is no estimator; did you mean 'xgboost'? presets are "
        "linear, random_forest, extra_trees, hist_gradient_boosting, xgboost, lightgbm, or an import path module:Class",
    ),
    ("kind: log_uniform, low: 0.01", "kind: log_uniform, low: 0", "p.yaml:19: search.candidates.0.space.C: log_uni"),
    ("low: 0.01", "low: 11", "p.yaml:19: search.candidates.0.space.C: low 11 must be below high 10"),
    ("low: 0.01", "lo: 0.01", "p.yaml:19: search.candidates.0.space.C.low: is missing; add it"),
    ("log_uniform", "loguniform", "p.yaml:19: search.candidates.0.space.C: kind should be one of 'uniform', 'log_un"),
    ("{kind: log_uniform, low: 0.01, high: 10}", "[1, 10]", "p.yaml:19: search.candidates.0.space.C: "),
    ("{kind: log_uniform, low: 0.01, high: 10}", "{kind: categorical, values: []}", "p.yaml:19: search.candidates.0"),
    ("{kind: log_uniform, low: 0.01, high: 10}", "{kind: categorical, values: [[1]]}", "search.candidates.0.space.C.v"),
]


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES, ids=[m[2][:60] for m in MISTAKES])
def test_each_mistake_is_said_with_place_value_and_remedy(tmp_path: Path, old: str, new: str, line: str) -> None:
    found = problems(tmp_path, edited(old, new))
    assert any(line in p for p in found), found
    # An unknown name also misses where it should stand: nothing but the mistake and what directly follows from it.
    assert len(found) <= 2, found


BLOCKS = [
    (
        "storage: {root: 's3://bucket/x'}",
        ["storage.state_url: SQLite serves one node, not a remote storage.root; give"],
    ),
    (
        "cluster: {nodes: 3}\nstorage: {tracking_uri: 'http://m'}",
        ["storage.state_url: SQLite serves one node, not 3 n"],
    ),
    ("cluster: {http_port: 99999}", ["cluster.http_port: should be less than or equal to 65535; got 99999"]),
    ("validation: {unique: [idd]}", ["validation.unique.0: 'idd' is not one of the columns; did you mean 'id'?"]),
    ("validation: {max_bad_share: 2}", ["validation.max_bad_share: should be less than or equal to 1; got 2"]),
    ("split: {holdout_share: 0.6, validation_share: 0.6}", ["split: holdout_share + validation_share leave no rows"]),
    ("split: {by: group}", ["split: `by: group` and a list `group: [column, ...]` go together; give both or neither"]),
    ("split: {by: group, group: [idd]}", ["split.group.0: 'idd' is not one of the columns; did you mean 'id'?"]),
    ("split: {by: group, group: [distance]}", ["split.group.0: column 'distance' is float; this place takes string"]),
    (
        "gates: {limits: [{metric: auc, max: 1}]}",
        ["gates.limits.0.metric: should be 'log_loss', 'brier', 'calibration_error', 'roc_auc'"],
    ),
    ("gates: {limits: [{metric: roc_auc}]}", ["gates.limits.0: give min, max or both"]),
    ("rollout: {shares: [0.5, 0.1]}", ["rollout.shares: shares must rise strictly, for example [0.1, 0.5]; got [0.5"]),
    ("rollout: {shares: []}", ["rollout.shares: give at least one share"]),
    ("rollout: {step_min_s: 9, step_max_s: 1}", ["rollout: step_min_s is above step_max_s"]),
    ("rollout: {margins: {log_loss: -1}}", ["rollout: margins.log_loss should be a number greater than 0; got -1"]),
    ("rollout: {margins: {brier: 1}}", ["rollout: unknown field margins.brier; margins became `analyses`"]),
    ("rollout: {clip: 0.1, analyses: [{metric: failures}]}", ["rollout: `margins` and `clip` became `analyses`; keep"]),
    ("rollout: {analyses: []}", ["rollout.analyses: would promote without evidence; give one, leave it out, or set"]),
    (
        "rollout: {analyses: [{metric: failures, margin: 2}]}",
        ["rollout.analyses.0.margin: should be less than 1; got 2"],
    ),
    (
        "rollout: {analyses: [{metric: absolute_error}]}",
        ["rollout.analyses.0.metric: 'absolute_error' is no metric of a binary task; take log_loss"],
    ),
    (
        "rollout: {analyses: [{metric: failures, where: {column: carier, values: [AA]}}]}",
        ["rollout.analyses.0.where.column: 'carier' is not one of the columns; did you mean 'carrier'?"],
    ),
    (
        "rollout: {analyses: [{metric: failures, where: {column: id, values: [AA]}}]}",
        ["rollout.analyses.0.where.column: 'id' is no input of the model, so the prediction log does not know it"],
    ),
    (
        "rollout: {mode: shadow, analyses: [{metric: business, name: a, low: 0, high: 9, better: lower, margin: 1}]}",
        ["rollout: mode shadow cannot judge 'a': a shadow answers nobody, so nothing comes of its answers"],
    ),
    (
        "rollout: {mode: shadw}",
        ["rollout.mode: should be 'canary', 'shadow', 'shadow_then_canary', 'ab' or 'immediate'"],
    ),
    (
        "rollout: {mode: shadow, prediction_affects_outcome: true}",
        ["rollout: mode shadow cannot judge what a shadow's answers would have changed"],
    ),
    ("rollout: {min_requests: 9, max_requests: 1}", ["rollout: min_requests 9 is above max_requests 1; raise that"]),
    (
        "rollout: {schedule: {timezone: Mars/Olympus}}",
        ["rollout.schedule.timezone: is no time zone of the IANA database"],
    ),
    (
        "rollout: {schedule: {hours: [16, 9]}}",
        ["rollout.schedule.hours: should rise within one day, for example [9, 16]"],
    ),
    ("rollout: {schedule: {days: []}}", ["rollout.schedule.days: give at least one day, for example [mon, tue"]),
    (
        "rollout: {schedule: {freezes: [{since: 2026-12-24, until: 2026-12-24}]}}",
        ["rollout.schedule.freezes.0: since 2026-12-24 00:00:00 is not before until 2026-12-24 00:00:00; swap them"],
    ),
    ("monitoring: {window_s: 100, block_s: 33}", ["monitoring: window_s 100 must be a multiple of block_s 33"]),
    (
        "retraining: {triggers: [drift, perf]}",
        [
            "retraining.triggers.1: should be 'drift', 'performance', 'estimated_performance', 'schedule' or "
            "'new_rows'; got 'perf'"
        ],
    ),
    ("serving: 3", ["serving: should be a block of fields; got 3"]),
    ("serving:", ["serving: should be a block of fields; got None"]),
    ("capture: {durability: disc}", ["capture.durability: should be 'process' or 'disk'; got 'disc'"]),
    ("storage: {root: '${NOWHERE}/x'}", ["storage.root: environment variable NOWHERE is not set; export NOWHERE=..."]),
    ("storage: {root: '${EMPTY}'}", ["storage.root: environment variable EMPTY is empty; export EMPTY=..."]),
    ("storage: {root: '${HOME:-/tmp}'}", ["storage.root: '${HOME:-/tmp}' is not understood; write ${NAME}"]),
]


@pytest.mark.parametrize(("block", "lines"), BLOCKS, ids=[b[0] for b in BLOCKS])
def test_blocks_with_defaults_are_as_strict(tmp_path: Path, block: str, lines: list[str]) -> None:
    found = problems(tmp_path, GOOD + block + "\n", env={"EMPTY": ""})
    for line in lines:
        assert any(re.match(rf"p.yaml:2[01]: {re.escape(line)}", p) for p in found), found


def test_all_mistakes_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = edited("target: late", "target: lat").replace("{name: id, dtype: string}", "{name: id, dtype: text}")
    found = problems(
        tmp_path, text + "sede: 1\nrollout: {shares: [0.5, 0.1], step_mins_s: 3}\nstorage: {root: '${NO}'}\n"
    )
    assert [p.split(": ")[:2] for p in found] == [
        ["p.yaml:3", "target"],
        ["p.yaml:8", "columns.0.dtype"],
        ["p.yaml:20", "sede"],
        ["p.yaml:21", "rollout.shares"],
        ["p.yaml:21", "rollout.step_mins_s"],
        ["p.yaml:22", "storage.root"],
    ]


def test_a_blocks_own_rule_speaks_beside_wrong_fields(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "rollout: {step_min_s: 9, step_max_s: 1, alpha: 7}\n")
    assert [p.split(": ", 1)[1] for p in found] == [
        "rollout: step_min_s is above step_max_s",
        "rollout.alpha: should be less than 1; got 7",
    ]


def test_a_wrong_item_does_not_make_its_list_too_short(tmp_path: Path) -> None:
    found = problems(tmp_path, edited("json.decoder.JSONDecoder", "3"))
    assert [p.split(": ")[1] for p in found] == ["search.candidates.0.estimator"]


def test_overlays_merge_blocks_and_replace_lists(tmp_path: Path) -> None:
    base = write(tmp_path, GOOD + "rollout: {shares: [0.1, 0.2, 0.5], alpha: 0.1}\n")
    over = write(tmp_path, "rollout: {shares: [0.3]}\nstorage: {root: elsewhere}\n", "over.yaml")
    project = load_project([base, over], env={})
    assert project.rollout.shares == (0.3,)
    assert project.rollout.alpha == 0.1
    assert project.storage.root == "elsewhere"


def test_a_mistake_is_placed_in_the_file_it_stands_in(tmp_path: Path) -> None:
    base = write(tmp_path, GOOD.replace("task: binary\n", "") + "rollout: {alpha: 3}\n")
    over = write(tmp_path, "# overlay\nrollout: {sharess: [0.3]}\nsplit: {holdout_share: 2}\n", "over.yaml")
    with pytest.raises(ConfigError) as caught:
        load_project([base, over], env={})
    assert [p.split(": ")[0].removeprefix(f"{tmp_path}/") for p in caught.value.problems] == [
        "p.yaml:1",  # the missing task is missing from the base
        "p.yaml:19",
        "over.yaml:2",
        "over.yaml:3",
    ]


def test_every_unreadable_file_is_named(tmp_path: Path) -> None:
    bad = write(tmp_path, "a: [1\n", "bad.yaml")
    with pytest.raises(ConfigError) as caught:
        load_project([tmp_path / "none.yaml", bad, tmp_path], env={})
    said = " | ".join(caught.value.problems)
    assert "none.yaml: cannot be read (No such file or directory); check the path" in said
    assert "bad.yaml:2: not YAML" in said
    assert "(Is a directory)" in said


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1\n", b"3\n", b"a: \x01\n", b"a: \xff\n", b"a: 1\n---\nb: 2\n", b"? [1]\n: 2\n", b"\ta: 1", b"a: *b\n"],
)
def test_what_is_no_mapping_in_yaml_is_a_config_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_project(path, env={})
    assert re.fullmatch(re.escape(str(path)) + r":\d+: [^\n]+", caught.value.problems[0])


def test_environment_values_fill_strings_anywhere(tmp_path: Path) -> None:
    text = GOOD + "storage: {state_url: '${URL}'}\ncluster: {http_port: '${PORT}'}\n"
    project = load(tmp_path, text, env={"URL": "postgresql://u:p@db/x", "PORT": "8123"})
    assert project.storage.state == "postgresql://u:p@db/x"
    assert project.cluster.http_port == 8123


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "seed: '${TOKEN}'\n", env={"TOKEN": "hunter2"})
    assert "hunter2" not in "".join(found)
    assert "got '${TOKEN}'" in found[0]


def test_several_nodes_with_servers_are_accepted(tmp_path: Path) -> None:
    servers = "storage: {root: 's3://b/x', state_url: 'postgresql://db/x', tracking_uri: 'http://mlflow:5000'}\n"
    project = load(tmp_path, GOOD + servers + "cluster: {nodes: 3}\n")
    assert project.storage.path("data") == "s3://b/x/data"


def test_the_error_survives_pickling(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, edited("target: late", "target: lat"))
    again = copy.copy(caught.value)
    assert str(again) == str(caught.value)
    assert str(again).splitlines()[0].endswith("p.yaml: 1 problem")


def test_portable_places_sources_in_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    several = """{kind: concat, sources: [{kind: csv, path: a.csv}, {kind: delta, path: "s3://b/t"},
      {kind: join, keys: [id], sources: [{kind: json, path: [b.json, "${ROOT}/c"]},
      {kind: sql, url: "${DB}", query: x}]}]}"""
    base = write(tmp_path, edited("{kind: parquet, path: data/rows.parquet}", several))
    env = {"ROOT": "/r", "DB": "postgresql://u:hush@h/d"}
    text = portable([base])
    assert "hush" not in text
    outer = parse_portable(text, env=env).source.sources
    assert [part.path for part in outer] == [f"{tmp_path}/a.csv", "s3://b/t", None]
    assert outer[2].sources[0].path == (f"{tmp_path}/b.json", "/r/c")


def test_an_overlay_of_another_kind_starts_afresh(tmp_path: Path) -> None:
    base = write(tmp_path, GOOD)
    over = write(tmp_path, "source: {kind: python, function: builtins:dict}\n", "over.yaml")
    assert load_project([base, over], env={}).source.path is None
    more = write(tmp_path, "source: {options: {a: 1}}\n", "more.yaml")
    merged = load_project([base, over, more], env={}).source
    assert (merged.function, merged.options) == ("builtins:dict", {"a": 1})


SOURCES = [
    ("{kind: csv, path: a, url: x}", "source: kind: csv takes no url; remove it"),
    ("{kind: sql, url: x}", "source: kind: sql needs `query:`"),
    ("{kind: iceberg}", "source: kind: iceberg needs `options:`"),
    ("{kind: http, url: ftp://x}", "source: kind: http needs a url that starts with http://"),
    ("{kind: http, url: http://x, paging: {kind: cursor, param: p}}", "source.paging: kind: cursor needs `field:`"),
    ("{kind: http, url: http://x, paging: {kind: page}}", "source.paging: kind: page needs `param:`"),
    ("{kind: join, keys: [a], sources: [{kind: csv, path: a}]}", "source: kind: join needs at least two sources"),
    ("{kind: concat, sources: [{kind: cvs, path: a}]}", "source.sources.0.kind: unknown kind; did you mean csv"),
    ("{kind: concat, sources: [{kind: python, function: no_such:x}]}", "source.sources.0.function: package 'no_such'"),
    ("{kind: join, on: [a]}", "True is no field's name; YAML reads on, off, yes and no as truth values (a join takes"),
    ("{kind: csv, path: a, time_range: {column: at}}", "source.time_range: give start, end or both"),
    (
        "{kind: csv, path: a, time_range: {column: at, start: '2024-01-02', end: 2024-01-01}}",
        "source.time_range: start 2024-01-02T00:00:00+00:00 must be before end 2024-01-01T00:00:00+00:00",
    ),
]


@pytest.mark.parametrize(("source", "says"), SOURCES, ids=[s[1][:50] for s in SOURCES])
def test_a_source_that_cannot_be_is_explained(tmp_path: Path, source: str, says: str) -> None:
    found = problems(tmp_path, edited("{kind: parquet, path: data/rows.parquet}", source))
    assert any(says in line for line in found), found


def test_portable_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = write(tmp_path, GOOD + "storage: {root: here, state_url: '${URL}'}\n")
    over = write(tmp_path, "seed: 5\n", "over.yaml")
    text = portable([base, over])
    assert "${URL}" in text
    before = load_project([base, over], env={"URL": "sqlite:///x.db"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    after = load(elsewhere, text, env={"URL": "sqlite:///x.db"})
    assert after.seed == before.seed == 5
    assert after.storage.path() == f"{tmp_path}/here"
    assert after.source.path == f"{tmp_path}/data/rows.parquet"


# --- whatever stands in the file, the answer is a project or a ConfigError ---

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, inner in items for p in places(inner, (*at, key)))]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.sampled_from(places(yaml.safe_load(GOOD))[1:]), value=junk)
def test_any_value_anywhere_gives_a_project_or_a_config_error(tmp_path: Path, at: tuple[Any, ...], value: Any) -> None:
    content = yaml.safe_load(GOOD)
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    found: tuple[str, ...] = ()
    try:
        load_project(path, env={})
    except ConfigError as exc:
        found = exc.problems
    for problem in found:
        assert re.match(re.escape(str(path)) + r":\d+: ", problem), problem


def test_a_retraining_window_inside_the_label_horizon_and_a_shared_port_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "overlay.yaml"
    file.write_text("retraining: {window_s: 10}\nmonitoring: {metrics_port: 8000}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_project([Path(__file__).parents[2] / "configs/flights.yaml", file], env={})
    problems = "\n".join(caught.value.problems)
    assert f"{file}:1: retraining.window_s: 10 s hold no row older" in problems
    assert f"{file}:2: monitoring.metrics_port: 8000 is cluster.http_port too" in problems


def test_groups_of_a_split_are_part_of_every_request(tmp_path: Path) -> None:
    text = GOOD.replace("  - {name: carrier", "  - {name: tail, dtype: string}\n  - {name: carrier")
    assert load(tmp_path, text + "split: {by: group, group: [carrier, id]}\n").split.group == ("carrier", "id")
    (found,) = problems(tmp_path, text + "split: {by: group, group: [tail]}\n")
    assert "split.group.0: 'tail' is no part of a request, so a retrain could not split by it" in found


@pytest.mark.parametrize(
    ("candidates", "more", "line"),
    [
        (
            "[{estimator: xgboost, workers: 4}, linear]",
            "",
            "search.candidates.1: one process holds all rows for it, candidate 0 has workers: 4; give each",
        ),
        (
            "[{estimator: xgboost, workers: 1}, {estimator: xgboost, workers: 2}]",
            "",
            "search.candidates.0: one process holds all rows for it, candidate 1 has workers: 2; give each",
        ),
        (
            "[{estimator: xgboost, workers: 2}]",
            "cross_validation: {folds: 3}",
            "search.cross_validation: needs all rows in",
        ),
        (
            "[{estimator: xgboost, workers: 2}]",
            "calibrate: isotonic",
            "search.calibrate: 'isotonic' needs all rows in one",
        ),
        (
            "[{estimator: xgboost, workers: 2}]",
            "threshold: {metric: f1}",
            "search.threshold: needs all rows in one process",
        ),
        (
            "[{estimator: xgboost, workers: 2}]",
            "half_life_s: 86400",
            "search.half_life_s: needs all rows in one process",
        ),
    ],
)
def test_what_does_not_go_with_data_parallel_candidates_is_refused(
    tmp_path: Path, candidates: str, more: str, line: str
) -> None:
    text = re.sub(r"(?s)\nsearch:.*?(?=\n\w|\Z)", f"\nsearch:\n  candidates: {candidates}\n  {more}", GOOD)
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert line in found[0]
    assert "remove" in found[0] or "give" in found[0]


def test_data_parallel_candidates_alone_are_accepted(tmp_path: Path) -> None:
    both = "[{estimator: xgboost, workers: 2}, {estimator: xgboost, workers: 4}]"
    wide = f"\nsearch:\n  calibrate: none\n  candidates: {both}"
    text = re.sub(r"(?s)\nsearch:.*?(?=\n\w|\Z)", wide, GOOD)
    assert load(tmp_path, text).search.is_parallel
    assert not load(tmp_path, GOOD).search.is_parallel


def test_a_refit_needs_rows_in_one_process_and_a_rollout_that_judges_it(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "retraining: {refit: true}\n").retraining.refit
    (found,) = problems(tmp_path, GOOD + "retraining: {refit: true}\nrollout: {mode: immediate}\n")
    assert "retraining.refit: what is refitted is judged by its rollout" in found
    wide = "\nsearch:\n  candidates: [{estimator: xgboost, workers: 2}]\nretraining: {refit: true}\n"
    (found,) = problems(tmp_path, re.sub(r"(?s)\nsearch:.*?(?=\n\w|\Z)", wide, GOOD))
    assert "retraining.refit: needs all rows in one process" in found
