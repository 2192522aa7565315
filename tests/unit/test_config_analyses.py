"""What a plan's analyses accept, and how they are called."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from mlops_ray.config import Task
from mlops_ray.config.analyses import AbsoluteError, Analyses, Business, LogLoss, default_analyses

ANALYSES: TypeAdapter[Any] = TypeAdapter(Analyses)


def test_a_plan_lists_metrics_with_their_margins_and_slices() -> None:
    found = ANALYSES.validate_python(
        [
            {"metric": "failures"},
            {"metric": "log_loss", "margin": 0.01, "clip": 0.05},
            {"metric": "log_loss", "where": {"column": "carrier", "values": ["AA", "DL"]}},
            {"metric": "accuracy", "where": {"column": "month", "values": [7.0]}},
            {"metric": "latency", "above_ms": 5},
            {"metric": "disagreement", "margin": 0.1},
            {"metric": "business", "name": "revenue", "low": 0, "high": 100, "better": "higher", "margin": 1},
        ]
    )
    assert [a.title for a in found] == [
        "failures",
        "log_loss",
        "log_loss[carrier=AA,DL]",
        "accuracy[month=7]",
        "latency",
        "disagreement",
        "business:revenue",
    ]
    assert found[1].bound == pytest.approx(math.log(19))
    assert ANALYSES.validate_json(ANALYSES.dump_json(found)) == found


@pytest.mark.parametrize(
    ("analyses", "says"),
    [
        ([], "at least 1 item"),
        ([{"metric": "auc"}], "does not match any of the expected tags"),
        ([{"metric": "failures"}, {"metric": "failures", "margin": 0.2}], "'failures' stands there twice"),
        ([{"metric": "log_loss", "margin": 4.6}], r"margin 4.6 of log_loss is no demand: with clip 0.01 two losses"),
        ([{"metric": "absolute_error", "margin": 1}], "margin and bound go together"),
        ([{"metric": "absolute_error", "margin": 5, "bound": 5}], "never differ by more than 5.00; lower it"),
        ([{"metric": "disagreement"}], "margin"),
        ([{"metric": "latency"}], "above_ms"),
        (
            [{"metric": "business", "name": "x", "low": 1, "high": 1, "better": "lower", "margin": 0.1}],
            "low 1 must be below high 1",
        ),
        ([{"metric": "failures", "margins": 0.1}], "Extra inputs"),
    ],
)
def test_what_is_no_demand_is_refused(analyses: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ANALYSES.validate_python(analyses)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_classifiers_have_analyses_without_being_told(task: Task) -> None:
    assert [a.title for a in default_analyses(task)] == ["log_loss", "failures"]


def test_a_regression_has_to_state_its_bound_before_a_canary_is_promoted_on_evidence() -> None:
    assert default_analyses("regression")[0] == AbsoluteError(margin=None, bound=None)


def test_titles_of_a_business_metric_name_it() -> None:
    found = Business(name="clicks", low=0, high=1, better="higher", margin=0.01)
    assert (found.title, found.metric) == ("business:clicks", "business")
    assert LogLoss().title == "log_loss"
