"""A small project lived through: what it decides, when, and that nothing of the future is known to it."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from mlops_ray.cli.simulate import view
from mlops_ray.config import DAY_S, load_project
from mlops_ray.data.profile import Profile, empty
from mlops_ray.data.profile import fold as folded
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.monitoring.judgement import judge_drift
from mlops_ray.simulation import training
from mlops_ray.simulation.history import history
from mlops_ray.simulation.page import page
from mlops_ray.training.target import counted
from mlops_ray.verbs.simulate import load_with, simulate

PER_DAY = 60
FIRST = 1_704_067_200.0  # 2024-01-01


def project() -> dict[str, Any]:
    return {
        "project": "shop",
        "task": "binary",
        "target": "late",
        "key": "order",
        "event_time": "at",
        "storage": {"root": "never-made"},
        "source": {"kind": "parquet", "path": "nowhere"},
        "columns": [
            {"name": "order", "dtype": "string"},
            {"name": "at", "dtype": "timestamp"},
            {"name": "late", "dtype": "int"},
            {"name": "weight", "dtype": "float"},
            {"name": "city", "dtype": "string"},
        ],
        "validation": {"min_rows": 300},
        "features": {"numeric": {"columns": ["weight"], "scale": "standard"}, "categorical": {"columns": ["city"]}},
        "search": {
            "trials": 2,
            "candidates": [
                {
                    "estimator": "sklearn.linear_model:LogisticRegression",
                    "space": {"C": {"kind": "log_uniform", "low": 0.1, "high": 10}},
                }
            ],
        },
        "gates": {"min_rows": 100, "margin": 0.2, "power": 0.5, "resamples": 500},
        # So few false alarms that the first alarm is the true one.
        "monitoring": {"min_rows": 100, "min_blocks": 5, "label_horizon_s": DAY_S, "false_alarms_per_month": 0.02},
        "rollout": {"shares": [0.5], "look_s": DAY_S, "step_min_s": DAY_S, "min_keys": 50},
        "retraining": {"window_s": 30 * DAY_S, "cooldown_s": 21 * DAY_S},
    }


def orders(n_days: int, *, turns: int, seed: int = 3) -> pa.Table:
    """Orders whose lateness follows their weight; from day `turns` on the other way round."""
    rng = np.random.default_rng(seed)
    n = n_days * PER_DAY
    at = FIRST + np.arange(n) * DAY_S / PER_DAY
    weight = rng.normal(size=n)
    turned = np.where(np.arange(n) < turns * PER_DAY, 1.0, -1.0)
    late = rng.random(n) < 1 / (1 + np.exp(-2 * turned * weight))
    micros = pa.array((at * 1e6).astype(np.int64), pa.int64())
    return pa.table(
        {
            "order": [f"o{i}" for i in range(n)],
            "at": micros.cast(pa.timestamp("us", tz="UTC")),
            "known": pa.array((at * 1e6 + 3600e6).astype(np.int64), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "late": pa.array(late.astype(np.int64)),
            "weight": pa.array(weight),
            "city": pa.array(rng.choice(["a", "b"], n)),
        }
    )


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shop")
    file, data = folder / "shop.yaml", folder / "orders.parquet"
    file.write_text(yaml.safe_dump(project()))
    pyarrow.parquet.write_table(orders(110, turns=60), data)
    settings = ["retraining.triggers=[performance],[]"]
    result = simulate([file], {}, data=str(data), label_time="known", start="2024-02-01", settings=settings)
    return {"result": result, "file": file, "data": data}


def test_a_turned_meaning_is_noticed_learnt_and_served(lived: dict[str, Any]) -> None:
    loop, never = lived["result"]["runs"]
    kinds = [d["kind"] for d in loop["decisions"]]
    for kind in ("retrain decided", "rollout started", "rollout promoted"):
        assert kind in kinds
    assert loop["loss"] < loop["loss_never"]
    assert never["retrains"] == 0
    assert never["loss"] == pytest.approx(never["loss_never"])
    assert loop["loss_never"] == pytest.approx(never["loss_never"])
    assert loop["times_life"] > 1000


def test_it_is_not_noticed_before_its_labels_can_be_known(lived: dict[str, Any]) -> None:
    decided = next(d["at"] for d in lived["result"]["runs"][0]["decisions"] if d["kind"] == "retrain decided")
    assert FIRST + 61 * DAY_S <= decided <= FIRST + 76 * DAY_S


def test_the_future_changes_nothing(lived: dict[str, Any], tmp_path: Path) -> None:
    """Lived through until a day with and without the rows after it: the same decisions and windows."""
    cut = tmp_path / "cut.parquet"
    until = "2024-03-20"
    pyarrow.parquet.write_table(orders(110, turns=60).slice(0, 79 * PER_DAY), cut)
    given = {"label_time": "known", "start": "2024-02-01", "until": until}
    whole = simulate([lived["file"]], {}, data=str(lived["data"]), **given)["runs"][0]
    short = simulate([lived["file"]], {}, data=str(cut), **given)["runs"][0]
    for name in ("decisions", "windows", "months"):
        assert json.dumps(whole[name]) == json.dumps(short[name])


def test_a_retrain_that_learns_from_its_holdout_is_judged_without_it(lived: dict[str, Any], tmp_path: Path) -> None:
    """The gates, the threshold and the monitor's reference know nothing of the second fit; the answers do."""
    plan = load_project([lived["file"]], env={})
    table = orders(50, turns=99).drop_columns(["known"])
    given: dict[str, Any] = {"number": 1, "rival": None, "now": FIRST}
    without, with_all = (
        training.train(plan, table, folder=tmp_path / str(refit), refit=refit, **given) for refit in (False, True)
    )
    assert without.result.to_dict() == with_all.result.to_dict()
    assert without.model.reference.to_dict() == with_all.model.reference.to_dict()
    assert without.choice == with_all.choice
    rows = history(plan, table)
    said = with_all.model.score(rows.inputs(slice(0, 500)))
    assert not np.allclose(said, without.model.score(rows.inputs(slice(0, 500))), atol=1e-4)
    # By hand: one weight per city and the standardised weight, on all rows.
    weight, city = rows.columns["weight"].astype(np.float64), rows.columns["city"] == "b"
    by_hand = np.column_stack([(weight - weight.mean()) / weight.std(), ~city, city]).astype(np.float64)
    fitted = LogisticRegression(C=with_all.choice.params["C"]).fit(by_hand, rows.y.astype(int))
    assert said == pytest.approx(fitted.predict_proba(by_hand)[:500, 1], abs=1e-3)


def test_a_window_in_bulk_is_the_sum_of_its_blocks(lived: dict[str, Any]) -> None:
    """The simulation folds a window at once, collectors block by block, and the monitor adds: the same verdict."""
    from mlops_ray.simulation.loop import first_version

    plan = load_project([lived["file"]], env={})
    rows = history(plan, orders(50, turns=99), label_time="known")
    with_model = first_version(plan, rows, lived["file"].parent / "first", start=FIRST + 31 * DAY_S).model
    week = [FIRST + (31 + day) * DAY_S for day in range(8)]
    bins = with_model.reference.bins

    def profile(since: float, until: float) -> Profile:
        columns = rows.inputs(rows.between(since, until))
        return folded(bins, columns, counted("binary", with_model.score(columns)))

    parts = [Profile.from_dict(profile(a, b).to_dict()) for a, b in itertools.pairwise(week)]
    judged = [
        judge_drift(plan.monitoring, with_model.reference, window, start=week[0], end=week[-1])
        for window in (sum(parts, empty(bins)), profile(week[0], week[-1]))
    ]
    assert judged[0] == judged[1]


def test_the_page_tells_it(lived: dict[str, Any]) -> None:
    told = page(lived["result"])
    assert "rollout promoted" in told
    assert "retraining.triggers" in told
    assert "<script" not in told


def test_the_page_draws_what_its_tables_say(lived: dict[str, Any]) -> None:
    told = page(lived["result"])
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", told, re.S)]
    assert len(drawn) == 2 * len(lived["result"]["runs"])  # for a desk and for a phone
    run, svg = lived["result"]["runs"][0], drawn[0]
    marks = [mark.get("class") for mark in svg.iter("circle")]
    assert marks.count("loud") == sum(w["alarm"] for w in run["windows"])
    assert len(marks) == len(run["windows"])
    kinds = [d["kind"] for d in run["decisions"]]
    assert len([line for line in svg.iter("line") if line.get("class") == "decided"]) == kinds.count("retrain decided")
    assert len([p for p in svg.iter("polygon") if p.get("class") == "went"]) == kinds.count("rollout promoted")
    for month in run["months"]:
        assert f"{month['loss']:.4f}" in "".join(svg.itertext())
    width, height = (float(n) for n in svg.get("viewBox", "").split()[2:])
    for bar in svg.iter("rect"):
        x, y, w, h = (float(bar.get(name, "")) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    answered = sum(n for day in run["served"] for n in day["rows"].values())
    assert answered == run["rows"]


def test_people_see_the_settings_side_by_side_and_each_decision(lived: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(view(lived["result"]))
    told = console.export_text()
    for words in ("retraining.triggers", "never retrained", "2024-03", "rollout promoted v"):
        assert words in told


def test_what_cannot_be_simulated_is_said(lived: dict[str, Any]) -> None:
    asked = {"data": str(lived["data"]), "label_time": "known", "start": "2024-02-01"}
    with pytest.raises(ConfigError, match="not shadow"):
        simulate([lived["file"]], {}, **asked, settings=["rollout.mode=shadow"])
    with pytest.raises(DataError, match="begin earlier"):
        simulate([lived["file"]], {}, **(asked | {"start": "2025-01-01"}))
    with pytest.raises(DataError, match="no such column"):
        simulate([lived["file"]], {}, **(asked | {"label_time": "landed"}))
    with pytest.raises(DataError, match="mlops-ray prepare"):
        simulate([lived["file"]], {})
    with pytest.raises(ConfigError, match="is no setting"):
        load_with([lived["file"]], {}, ["monitoring"])
