from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import DAY_S
from mlops_ray.data.profile import Bins, fold
from mlops_ray.serving import log, protocol
from mlops_ray.serving.capture import SpoolWriter
from mlops_ray.serving.service import Service, Wanted
from tests import fakes
from tests.fakes import FakeLoader, canary, held, row, spooled

PROJECT = fakes.project()
BINS = Bins({"x": (0.0, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red",), "d": ("blue",)})


def predict(request_id: str, times: list[float], **more: Any) -> dict[str, Any]:
    n = len(times)
    return {
        "kind": "predict",
        "id": request_id,
        "at": 2e9,
        "keys": [f"k{i}" for i in range(n)],
        "times": times,
        "columns": {
            "x": [None, *[0.5] * (n - 1)],
            "n": [2] * n,
            "flag": [1] * n,
            "c": ["", *["red"] * (n - 1)],
            "d": ["blue"] * n,
        },
        "stable": 10,
        "scores": [0.1 * (i + 1) for i in range(n)],
        "score_us": 60.0,
    } | more


TRIAL = {"canary": 20, "rollout": "r1", "share": 0.5}


def test_a_row_per_prediction() -> None:
    table = log.arrivals(PROJECT, [predict("a", [0.0, DAY_S, DAY_S + 0.25])]).predictions
    assert table.schema == log.prediction_schema(PROJECT)
    rows = table.to_pylist()
    assert [r["prediction_id"] for r in rows] == ["a:0", "a:1", "a:2"]
    assert [r["day"] for r in rows] == ["1970-01-01", "1970-01-02", "1970-01-02"]
    assert [r["event_time"].timestamp() for r in rows] == [0.0, DAY_S, DAY_S + 0.25]
    assert {r["at"].timestamp() for r in rows} == {2e9}
    assert [r["x_x"] for r in rows] == [None, 0.5, 0.5]
    assert [r["x_c"] for r in rows] == ["", "red", "red"]
    assert [r["stable_score"] for r in rows] == pytest.approx([0.1, 0.2, 0.3])
    assert {r["score_us"] for r in rows} == {20.0}
    assert {(r["canary"], r["canary_score"], r["rollout"], r["share"]) for r in rows} == {(None, None, None, None)}


def test_assigned_rows_carry_their_rollout_also_where_the_canary_failed() -> None:
    answered = predict("a", [0.0] * 3, rows=[0, 2], canary_scores=[0.7, 0.9], **TRIAL)
    failed = predict("b", [0.0] * 2, rows=[1], canary_scores=None, **TRIAL)
    rows = log.arrivals(PROJECT, [answered, failed]).predictions.to_pylist()
    on_trial = [(r["canary"], r["canary_score"], r["rollout"], r["share"]) for r in rows]
    none = (None, None, None, None)
    assert on_trial == [(20, 0.7, "r1", 0.5), none, (20, 0.9, "r1", 0.5), none, (20, None, "r1", 0.5)]


def test_the_client_got_the_canarys_score_where_there_is_one() -> None:
    records = [predict("a", [0.0] * 3, rows=[0, 2], canary_scores=[0.7, 0.9], **TRIAL)]
    records += [predict("b", [0.0] * 2, rows=[1], canary_scores=None, **TRIAL)]
    versions, scores = log.answered(log.arrivals(PROJECT, records).predictions)
    assert versions.tolist() == [20, 10, 20, 10, 10]
    assert scores.tolist() == pytest.approx([0.7, 0.2, 0.9, 0.1, 0.2])


def test_a_repeated_request_counts_once() -> None:
    records = [predict("a", [0.0]), predict("b", [0.0]), predict("a", [0.0], scores=[0.9])]
    table = log.arrivals(PROJECT, records).predictions
    assert table["prediction_id"].to_pylist() == ["a:0", "b:0"]
    assert table["stable_score"].to_pylist() == [0.1, 0.1]


def test_labels_watermark_and_newest_event() -> None:
    records = [
        {"kind": "label", "at": 2e9, "ids": ["a:0", "b:0"], "labels": [1.0, 0.0], "times": [5.0, DAY_S]},
        {"kind": "watermark", "at": 2e9, "time": 70.0},
        predict("a", [30.0, 90.0]),
        {"kind": "watermark", "at": 2e9, "time": 60.0},
        predict("b", [40.0]),
    ]
    found = log.arrivals(PROJECT, records)
    assert found.labels.schema == log.LABEL_SCHEMA
    labels = [(r["prediction_id"], r["day"], r["time"].timestamp(), r["label"]) for r in found.labels.to_pylist()]
    assert labels == [("a:0", "1970-01-01", 5.0, 1.0), ("b:0", "1970-01-02", DAY_S, 0.0)]
    assert (found.watermark, found.newest) == (70.0, 90.0)


def test_nothing_arrived() -> None:
    found = log.arrivals(PROJECT, [])
    assert found.predictions.num_rows == found.labels.num_rows == 0
    assert found.predictions.schema == log.prediction_schema(PROJECT)
    assert (found.watermark, found.newest) == (None, None)
    assert log.profiles(PROJECT, BINS, found.predictions) == {}


def test_profiles_by_answering_version_and_block_add_up_to_the_rows() -> None:
    records = [
        predict("a", [0.0, DAY_S - 1, DAY_S], rows=[0, 1], canary_scores=[0.7, 0.9], **TRIAL),
        predict("b", [3 * DAY_S + 5]),
    ]
    table = log.arrivals(PROJECT, records).predictions
    found = log.profiles(PROJECT, BINS, table)
    assert {group: p.n for group, p in found.items()} == {(10, DAY_S): 1, (10, 3 * DAY_S): 1, (20, 0.0): 2}
    assert np.flatnonzero(found[20, 0.0].scores).tolist() == [14, 18]
    whole = fold(BINS, log.inputs(PROJECT, table), log.answered(table)[1])
    merged = sum(list(found.values())[1:], next(iter(found.values())))
    assert {k: v.tolist() for k, v in merged.counts.items()} == {k: v.tolist() for k, v in whole.counts.items()}
    assert merged.scores.tolist() == whole.scores.tolist()


def test_logged_inputs_are_what_was_scored(tmp_path: Path) -> None:
    """From a request through spool and table back to the model's inputs: the same types, the same missing values."""
    first = Wanted(1, held(10), 20, 0.5, "r1")
    call = canary(lambda n: np.full(n, 0.6))
    service = Service(PROJECT, SpoolWriter(tmp_path, fsync=False), FakeLoader(), call, first=first)
    rows = [row(f"k{i}", x=None if i % 3 else 0.1 * i, c=None if i % 2 else "red") for i in range(9)]
    batch = protocol.parse_predict({"rows": rows}, protocol.Form.of(PROJECT), now=2e9)
    asyncio.run(service.predict("id", batch))
    table = log.arrivals(PROJECT, spooled(tmp_path)).predictions
    for name, values in log.inputs(PROJECT, table).items():
        assert values.dtype == batch.columns[name].dtype
        np.testing.assert_array_equal(values, batch.columns[name])
    assert table["key"].to_pylist() == list(batch.keys)
