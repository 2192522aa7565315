from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import Task
from mlops_ray.data.profile import Bins, fold
from mlops_ray.monitoring.parts import described, mean, parts
from mlops_ray.monitoring.realised import shown
from mlops_ray.training import calibration
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import blocks
from tests import fakes
from tests.logs import DAY_S, START, micros

BINS = Bins({"x": (-2.0, -0.7, 0.0, 0.7, 2.0)}, {"c": ("red", "blue")})
N = 2_000


def inputs(rng: np.random.Generator, n: int = N) -> dict[str, Any]:
    return {"x": rng.normal(0, 1, n).astype(np.float32), "c": rng.choice(["red", "blue"], n).astype(object)}


def reference(task: Task = "binary") -> Reference:
    rng = np.random.default_rng(0)
    columns = inputs(rng)
    y = rng.random(N) < 0.2
    scores = np.stack([np.full(N, 0.8), np.full(N, 0.2)], axis=1) if task == "multiclass" else np.full(N, 0.2)
    holdout = tuple((i * DAY_S, 100, 50.0, 20.0) for i in range(20))
    times = np.repeat(np.arange(20), 100) * DAY_S
    known = calibration.fit(task, y.astype(np.int64), scores, blocks(times, DAY_S), BINS, columns)
    return Reference(BINS, DAY_S, ((0.0, fold(BINS, columns)),), holdout, known)


def test_every_row_is_in_one_part_of_each_column() -> None:
    rng = np.random.default_rng(1)
    columns = inputs(rng)
    columns["x"][:5], columns["c"][:3], columns["c"][3:5] = np.nan, "", "green"
    found = parts(reference(), columns)
    for name in ("x", "c"):
        assert (np.stack([p.rows for p in found if p.column == name]).sum(axis=0) == 1).all()
    labels = {(p.column, p.label) for p in found}
    assert {("c", "= red"), ("c", "= blue"), ("c", "other"), ("c", "missing"), ("x", "missing")} < labels
    assert {label for column, label in labels if column == "x"} == {
        "< -0.7",
        ">= -0.7 and < 0",
        ">= 0 and < 0.7",
        ">= 0.7",
        "missing",
    }


def test_the_interval_of_a_mean_holds_the_truth_in_95_percent_also_where_rows_of_a_block_are_alike() -> None:
    rng, inside = np.random.default_rng(2), []
    day = np.repeat(np.arange(7), 50)
    for _ in range(600):
        found = mean(rng.normal(0, 1, 350) + rng.normal(0, 0.5, 7)[day], day)
        inside.append(found.low < 0 < found.high)
    assert 0.93 < np.mean(inside) < 0.975


def test_a_mean_of_two_blocks_has_no_interval() -> None:
    found = mean(np.array([0.0, 1.0]), np.array([3, 4]))
    assert found.value == 0.5
    assert np.isnan(found.low)


def test_parts_are_described_by_their_loss_and_by_what_was_said() -> None:
    losses, red = np.array([1.0, np.nan, 3.0, 5.0]), np.array([True, True, False, False])
    found = parts(reference(), {"c": np.where(red, "red", "blue").astype(object)})
    told = described(found, losses, np.zeros(4, dtype=np.int64), np.array([0.0, 1.0, 1.0, 1.0]))
    assert [(t["label"], t["rows"], t["loss"]["value"], t["loss"]["n"], t["said_1"]) for t in told] == [
        ("= red", 2, 1.0, 1, 0.5),
        ("= blue", 2, 4.0, 2, 1.0),
    ]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_a_mature_window_shows(task: Task) -> None:
    gates = {"slices": {"columns": ["c", "x"]}, "fairness": {"columns": ["d"]}}
    project = fakes.project(gates=gates)
    project = project.model_copy(update={"task": task})
    rng = np.random.default_rng(3)
    columns, n = inputs(rng, 700), 700
    y = (rng.random(n) < 0.4).astype(float)
    y[::7] = np.nan
    times = START + np.linspace(0, 7 * DAY_S - 1, n)
    rows = pa.table(
        {
            "event_time": micros(times.tolist()),
            "label_time": pa.array([None if np.isnan(v) else t + 3600 for v, t in zip(y, times, strict=True)]).cast(
                pa.float64()
            ),
            "x_c": columns["c"],
            "x_x": columns["x"],
            "x_d": ["a"] * n,
        }
    )
    stamps = [None if v is None else int(v * 1e6) for v in rows["label_time"].to_pylist()]
    rows = rows.set_column(1, "label_time", pa.array(stamps).cast(pa.timestamp("us", tz="UTC")))
    scores = np.stack([np.full(n, 0.8), np.full(n, 0.2)], axis=1) if task == "multiclass" else np.full(n, 0.2)
    found = shown(project, reference(task), 0.5, rows, y, scores)
    assert found["interval"]["low"] < found["interval"]["value"] < found["interval"]["high"]
    assert {s["column"] for s in found["slices"]} == {"c", "x"}
    assert found["groups"] == []  # d has no bins in this reference
    assert found["lag_s"]["p50"] == pytest.approx(3600.0, abs=1)
    assert ("said_1" in found["slices"][0]) == (task == "binary")
    if task == "multiclass":
        assert found["labels"]["now"][1] == pytest.approx(0.4, abs=0.06)
        assert found["labels"]["holdout"][1] == pytest.approx(0.2, abs=0.03)
    else:
        assert found["labels"]["now"]["value"] == pytest.approx(0.4, abs=0.06)
        assert found["labels"]["holdout"] == 0.2


def test_without_labels_nothing_is_shown() -> None:
    rows = pa.table({"event_time": micros([START]), "label_time": pa.nulls(1, pa.timestamp("us", tz="UTC"))})
    assert shown(fakes.project(), reference(), 0.5, rows, np.array([np.nan]), np.array([0.5])) == {}
