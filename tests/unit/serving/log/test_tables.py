from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import DAY_S
from mlops_ray.data.profile import Bins, fold
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.records import Record, Shadowed, Uncaptured, Watermark
from mlops_ray.training import target
from tests import fakes
from tests.spooling import labelled, scored, trial

PROJECT = fakes.project()
BINS = Bins({"x": (0.0, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red",), "d": ("blue",)})
COLOURS = fakes.project(
    task="multiclass",
    columns=[*PROJECT.model_dump(mode="json")["columns"], {"name": "colour", "dtype": "string"}],
    target="colour",
)
SPEED = fakes.project(
    task="regression",
    columns=[*PROJECT.model_dump(mode="json")["columns"], {"name": "delay", "dtype": "float"}],
    target="delay",
)


def at(*times: float) -> Any:
    return np.array(times, np.float64)


def rows(*records: Record, project: Any = PROJECT) -> pa.Table:
    return log.arrivals(project, records).predictions


def test_a_row_per_prediction() -> None:
    table = rows(scored("a", 3, times=at(0, DAY_S, DAY_S + 0.25)), scored("b", 1, places=np.array([7])))
    assert table.schema == log.prediction_schema(PROJECT)
    found = table.to_pylist()
    assert [r["prediction_id"] for r in found] == ["a:0", "a:1", "a:2", "b:7"]
    assert [r["day"] for r in found[:3]] == ["1970-01-01", "1970-01-02", "1970-01-02"]
    assert [r["event_time"].timestamp() for r in found[:3]] == [0.0, DAY_S, DAY_S + 0.25]
    assert {r["at"].timestamp() for r in found} == {2e9}
    assert [r["key"] for r in found] == ["k0", "k1", "k2", "k0"]
    assert [r["x_x"] for r in found] == [None, 0.5, 0.5, None]
    assert [r["x_c"] for r in found] == ["", "red", "red", ""]
    assert [r["stable_score"] for r in found] == pytest.approx([0.1, 0.2, 0.3, 0.1])
    assert [r["score_us"] for r in found] == [20.0, 20.0, 20.0, 60.0]
    assert {(r["canary"], r["canary_score"], r["rollout"], r["share"]) for r in found} == {(None, None, None, None)}


def test_assigned_rows_carry_their_rollout_also_where_the_canary_failed() -> None:
    answered = scored("a", 3, trials=(trial([0, 2], [0.7, 0.9], row_us=7.5),))
    failed = scored("b", 2, trials=(trial([1], None, "deadline"),))
    found = rows(answered, failed).to_pylist()
    assert [r["canary_score_us"] for r in found] == [7.5, None, 7.5, None, None]
    on_trial = [(r["canary"], r["canary_score"], r["rollout"], r["share"], r["failure"]) for r in found]
    none = (None,) * 5
    theirs = (20, 0.7, "r1", 0.5, None), (20, 0.9, "r1", 0.5, None), (20, None, "r1", 0.5, "deadline")
    assert on_trial == [theirs[0], none, theirs[1], none, theirs[2]]


def test_rows_of_several_arms_each_carry_their_own() -> None:
    other = replace(trial([1, 3], [0.8, 0.6]), version=30, share=0.2)
    failed = replace(trial([2], None, "error"), version=40, share=0.1)
    found = rows(scored("a", 5, trials=(trial([4], [0.7]), other, failed)), scored("b", 1)).to_pylist()
    assert [(r["canary"], r["canary_score"], r["share"], r["failure"]) for r in found] == [
        (None, None, None, None),
        (30, 0.8, 0.2, None),
        (40, None, 0.1, "error"),
        (30, 0.6, 0.2, None),
        (20, 0.7, 0.5, None),
        (None, None, None, None),
    ]


def test_the_client_got_the_canarys_score_where_there_is_one() -> None:
    table = rows(
        scored("a", 3, trials=(trial([0, 2], [0.7, 0.9]),)), scored("b", 2, trials=(trial([1], None, "error"),))
    )
    versions, scores = log.answered(table)
    assert versions.tolist() == [20, 10, 20, 10, 10]
    assert scores.tolist() == pytest.approx([0.7, 0.2, 0.9, 0.1, 0.2])


def test_classes_have_all_their_probabilities() -> None:
    """Versions may know other numbers of classes; a failed canary has neither score nor scores."""
    three = scored("a", 2, scores=np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0]]), trials=(trial([1], [[0.1, 0.2, 0.7]]),))
    two = scored("b", 1, scores=np.array([[0.8, 0.2]]), trials=(trial([0], None, "nonsense"),))
    table = rows(three, two, project=COLOURS)
    assert table.schema == log.prediction_schema(COLOURS)
    assert table["stable_score"].to_pylist() == [0.5, 0.6, 0.8]
    assert table["stable_scores"].to_pylist() == [[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.8, 0.2]]
    assert table["canary_score"].to_pylist() == [None, 0.7, None]
    assert table["canary_scores"].to_pylist() == [None, [0.1, 0.2, 0.7], None]
    assert log.answered(table)[1].tolist() == [0.5, 0.7, 0.8]


def test_more_requests_than_become_one_table_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [scored(f"r{i}", 1 + i % 3, repeatable=i % 2 == 0) for i in range(20)]
    whole = log.arrivals(PROJECT, many)
    monkeypatch.setattr(log, "_AT_ONCE", 7)
    parts = log.arrivals(PROJECT, many)
    assert parts.predictions.to_pylist() == whole.predictions.to_pylist()
    assert parts.repeatable == whole.repeatable
    for one in whole.repeatable:
        ids = whole.predictions["prediction_id"][one.start : one.stop].to_pylist()
        assert ids == [f"{one.id}:{i}" for i in range(len(ids))]
    assert [one.id for one in whole.repeatable] == [f"r{i}" for i in range(0, 20, 2)]


def test_records_of_an_older_project_lack_its_new_features() -> None:
    old = scored("a", 2)
    columns = {n: v for n, v in old.columns.items() if n not in ("x", "c")}
    columns["n"] = np.array(["two", "two"], object)  # it was a text then
    table = rows(scored("a", 2, columns=columns), scored("b", 2))
    assert table["x_x"].to_pylist() == [None, None, None, 0.5]
    assert table["x_c"].to_pylist() == ["", "", "", "red"]
    assert table["x_n"].to_pylist() == [None, None, 2, 2]


def test_labels_watermark_and_newest_event() -> None:
    records = [
        labelled(("a:0", "", 1.0, 5.0), ("", "k1", 0.0, DAY_S)),
        Watermark(2e9, 70.0),
        scored("a", 2, times=at(30, 90)),
        Watermark(2e9, 60.0),
        scored("b", times=at(40)),
    ]
    found = log.arrivals(PROJECT, records)
    assert found.labels.schema == log.label_schema(PROJECT)
    labels = [
        (r["prediction_id"], r["key"], r["day"], r["time"].timestamp(), r["label"]) for r in found.labels.to_pylist()
    ]
    assert labels == [("a:0", None, "1970-01-01", 5.0, 1.0), (None, "k1", "1970-01-02", DAY_S, 0.0)]
    assert (found.watermark, found.newest) == (70.0, 90.0)


def test_business_numbers_have_a_table_of_their_own() -> None:
    records = [
        labelled(("a:0", "", 1.0, 5.0), ("", "k1", np.nan, DAY_S), revenue=[12.5, np.nan], clicks=[0.0, 3.0]),
        labelled(("a:1", "", 0.0, 6.0)),
        labelled(("a:0", "", np.nan, 7.0), at=1e9, revenue=[10.0]),
    ]
    found = log.arrivals(PROJECT, records)
    assert found.labels["prediction_id"].to_pylist() == ["a:0", "a:1"]
    assert found.labels["label"].to_pylist() == [1.0, 0.0]
    assert found.values.schema == log.VALUES_SCHEMA
    told = [
        (r["prediction_id"], r["key"], r["day"], r["at"].timestamp(), r["time"].timestamp(), r["name"], r["value"])
        for r in found.values.to_pylist()
    ]
    assert told == [
        ("a:0", None, "1970-01-01", 2e9, 5.0, "revenue", 12.5),
        ("a:0", None, "1970-01-01", 2e9, 5.0, "clicks", 0.0),
        (None, "k1", "1970-01-02", 2e9, DAY_S, "clicks", 3.0),
        ("a:0", None, "1970-01-01", 1e9, 7.0, "revenue", 10.0),
    ]
    classes = labelled(("a:0", "", "red", 5.0), ("a:1", "", None, 5.0), revenue=[1.0, 2.0])
    found = log.arrivals(COLOURS, [classes])
    assert found.labels["label"].to_pylist() == ["red"]
    assert found.values["value"].to_pylist() == [1.0, 2.0]


def test_labels_of_classes_are_texts() -> None:
    table = log.arrivals(COLOURS, [labelled(("a:0", "", "red", 5.0)), labelled(("a:1", "", 3.0, 5.0))]).labels
    assert table["label"].to_pylist() == ["red", "3.0"]
    whole = labelled(("a:0", "", "x", 5.0))
    whole.labels.values[0] = 3  # a class that is a whole number
    assert log.arrivals(COLOURS, [whole]).labels["label"].to_pylist() == ["3"]


def test_what_a_shadow_answered() -> None:
    good = Shadowed("a", 2e9, 10, np.array([0.5, 0.4]), trial([1, 3], [0.6, 0.7]))
    bad = Shadowed("b", DAY_S, 10, np.array([0.5]), trial([0], None, "error"))
    table = log.arrivals(PROJECT, [good, bad]).shadow
    assert table.schema == log.shadow_schema(PROJECT)
    found = [
        (r["prediction_id"], r["version"], r["stable_score"], r["shadow_score"], r["failure"])
        for r in table.to_pylist()
    ]
    assert found == [("a:1", 20, 0.5, 0.6, None), ("a:3", 20, 0.4, 0.7, None), ("b:0", 20, 0.5, None, "error")]
    assert table["day"].to_pylist() == ["2033-05-18", "2033-05-18", "1970-01-02"]
    classes = Shadowed("a", 2e9, 10, np.array([[0.5, 0.5]]), trial([0], [[0.25, 0.75]]))
    assert log.arrivals(COLOURS, [classes]).shadow["shadow_scores"].to_pylist() == [[0.25, 0.75]]


def test_what_was_not_captured() -> None:
    table = log.arrivals(PROJECT, [Uncaptured(5.0, "overflow", 3), Uncaptured(DAY_S, "disk", 4)]).uncaptured
    assert table.schema == log.UNCAPTURED_SCHEMA
    found = [(r["day"], r["why"], r["n_rows"]) for r in table.to_pylist()]
    assert found == [("1970-01-01", "overflow", 3), ("1970-01-02", "disk", 4)]


@pytest.mark.parametrize("project", [PROJECT, COLOURS, SPEED], ids=lambda p: p.task)
def test_nothing_arrived(project: Any) -> None:
    found = log.arrivals(project, [])
    assert (found.watermark, found.newest, found.repeatable) == (None, None, ())
    assert found.predictions.schema == log.prediction_schema(project)
    assert found.labels.schema == log.label_schema(project)
    assert found.shadow.schema == log.shadow_schema(project)
    assert found.values.schema == log.VALUES_SCHEMA
    assert found.uncaptured.schema == log.UNCAPTURED_SCHEMA
    parts = (found.predictions, found.labels, found.values, found.shadow, found.uncaptured)
    assert sum(part.num_rows for part in parts) == 0
    assert log.profiles(project, BINS, found.predictions) == {}


# --- requests that came twice ---


class Claims:
    """Ids and who has them, as the state database keeps them."""

    def __init__(self, **taken: Any) -> None:
        self.owners: dict[str, Any] = dict(taken)

    def __call__(self, ids: Sequence[str], number: int) -> set[str]:
        return {i for i in ids if self.owners.setdefault(i, number) == number}


def settle(segments: dict[int, list[Record]], claims: Claims) -> dict[int, list[str]]:
    tables = log.settled({n: log.arrivals(PROJECT, records) for n, records in segments.items()}, claims)
    return {n: t["prediction_id"].to_pylist() for n, t in tables.items()}


def test_of_a_request_that_came_twice_the_last_answer_is_recorded() -> None:
    """It was acknowledged; the one before may not have been."""
    first, again = (scored("a", 2, at=t, repeatable=True) for t in (10.0, 20.0))
    others = [scored("b", at=5.0, repeatable=True), scored("c", at=5.0)]
    assert settle({1: [first, *others], 2: [again]}, Claims()) == {1: ["b:0", "c:0"], 2: ["a:0", "a:1"]}
    assert settle({1: [again, *others], 2: [first]}, Claims()) == {1: ["a:0", "a:1", "b:0", "c:0"], 2: []}
    assert settle({1: [first, others[1], again]}, Claims()) == {1: ["c:0", "a:0", "a:1"]}


def test_what_another_spool_has_recorded_is_not_recorded_again() -> None:
    request = scored("a", 2, repeatable=True)
    assert settle({1: [request, scored("b")]}, Claims(a="elsewhere")) == {1: ["b:0"]}


def test_a_repeated_pass_settles_as_the_one_that_was_cut_off() -> None:
    """Whatever has come since: the first pass may have committed its rows."""
    first, again, third = (scored("a", at=t, repeatable=True) for t in (10.0, 20.0, 30.0))
    claims = Claims()
    assert settle({1: [first], 2: [again]}, claims) == {1: [], 2: ["a:0"]}
    assert settle({1: [first], 2: [again]}, claims) == {1: [], 2: ["a:0"]}
    assert settle({1: [first], 2: [again], 3: [third]}, claims) == {1: [], 2: ["a:0"], 3: []}


def test_an_id_that_the_server_chose_is_claimed_by_nobody() -> None:
    claims = Claims()
    assert settle({1: [scored("a")]}, claims) == {1: ["a:0"]}
    assert claims.owners == {}


# --- profiles ---


def test_profiles_by_answering_version_and_block_add_up_to_the_rows() -> None:
    table = rows(
        scored("a", 3, times=at(0, DAY_S - 1, DAY_S), trials=(trial([0, 1], [0.7, 0.9]),)),
        scored("b", times=at(3 * DAY_S + 5)),
    )
    found = log.profiles(PROJECT, BINS, table)
    assert {group: p.n for group, p in found.items()} == {(10, DAY_S): 1, (10, 3 * DAY_S): 1, (20, 0.0): 2}
    assert np.flatnonzero(found[20, 0.0].scores).tolist() == [14, 18]
    whole = fold(BINS, log.inputs(PROJECT, table), log.answered(table)[1])
    merged = sum(list(found.values())[1:], next(iter(found.values())))
    assert {k: v.tolist() for k, v in merged.counts.items()} == {k: v.tolist() for k, v in whole.counts.items()}
    assert merged.scores.tolist() == whole.scores.tolist()


@pytest.mark.parametrize("project", [PROJECT, COLOURS, SPEED], ids=lambda p: p.task)
def test_profiles_count_the_scores_that_the_reference_counts(project: Any) -> None:
    scores = (
        np.random.default_rng(0).dirichlet([1, 1, 1], 40) if project.task == "multiclass" else np.linspace(0, 1, 40)
    )
    request = scored("a", 40, scores=scores)
    (profile,) = log.profiles(project, BINS, rows(request, project=project)).values()
    expected = fold(BINS, request.columns, target.counted(project.task, scores))
    assert profile.to_dict() == expected.to_dict()


def test_logged_inputs_are_what_was_scored() -> None:
    """From a record through the table back to the model's inputs: the same types, the same missing values."""
    timed = fakes.project(
        columns=[*PROJECT.model_dump(mode="json")["columns"], {"name": "booked", "dtype": "timestamp"}],
        features={
            "numeric": {"columns": ["x"]},
            "categorical": {"columns": ["c"]},
            "datetime": {"columns": ["booked"], "parts": ["hour"]},
        },
    )
    columns = {
        "x": np.array([0.1, np.nan, -0.0, 1e30], np.float32),
        "c": np.array(["", "red", "\u2603", "a"], object),
        "booked": np.array([0.0, np.nan, 1.5e9 + 0.25, 4e9]),
    }
    table = rows(scored("a", 4, columns=columns), project=timed)
    for name, values in log.inputs(timed, table).items():
        assert values.dtype == columns[name].dtype
        np.testing.assert_array_equal(values, columns[name])
