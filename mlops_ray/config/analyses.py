"""The `analyses:` of a rollout plan: what a canary is judged by, and by how much it may be worse.

Every metric is a loss: the canary's minus stable's, positive is worse. All are bounded, because the tests that may be
looked at for ever need a bound that is known beforehand; the bound stands here, so that it is part of the plan.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from mlops_ray.config.base import Config, Share

LARGEST = 1e12
"""Bounds and limits of a metric go so far: the tests square them, divided by a share, and squares of more than 1e150
are infinite to a computer. Who needs more takes a larger unit."""
Bounded = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Bound = Annotated[float, Field(gt=0, le=LARGEST)]


class Where(Config):
    """A slice: the rows whose input `column` holds one of `values`."""

    column: str
    values: tuple[str | float, ...] = Field(min_length=1)

    def __str__(self) -> str:
        """As in the name of a metric, for example `carrier=AA,DL`."""
        return f"{self.column}={','.join(f'{v:g}' if isinstance(v, float) else v for v in self.values)}"


_A = TypeVar("_A", bound="_Judged")


class _Judged(Config):
    """What all analyses have in common."""

    where: Where | None = None
    """Only these rows; None judges all."""

    @property
    def title(self) -> str:
        """How reports, the ledger and the monitor call it, for example `log_loss[carrier=AA]`."""
        return f"{self._what}[{self.where}]" if self.where else self._what

    @property
    def _what(self) -> str:
        return str(self.metric)  # type: ignore[attr-defined]  # each analysis declares its own literal


class Failures(_Judged):
    """Share of its rows that the canary failed to answer in time, or failed as stable while it bakes. What the version
    that it is compared with fails stands in no log, so the canary is called worse above the margin."""

    metric: Literal["failures"] = "failures"
    margin: Share = 0.01


class LogLoss(_Judged):
    """Log-loss of labelled rows, in nats; for binary and multiclass projects."""

    metric: Literal["log_loss"] = "log_loss"
    margin: PositiveFloat = 0.02
    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Probabilities are clipped to [clip, 1 - clip] before the log, which bounds the loss. A tail that matters less
    than how soon one knows is clipped more: the keys needed grow with log((1 - clip) / clip)."""

    @property
    def bound(self) -> float:
        """Largest difference of two losses, in nats."""
        return math.log((1 - self.clip) / self.clip)

    @model_validator(mode="after")
    def _demands(self) -> LogLoss:
        return _demanding(self, self.margin, self.bound, f"with clip {self.clip:g} two losses")


class Brier(_Judged):
    """Squared error of the probabilities of labelled rows, in [0, 1]: of class 1, or half the sum over all classes."""

    metric: Literal["brier"] = "brier"
    margin: Share = 0.01


class Accuracy(_Judged):
    """Share of labelled rows whose label was missed (1 - accuracy)."""

    metric: Literal["accuracy"] = "accuracy"
    margin: Share = 0.01


class AbsoluteError(_Judged):
    """Absolute error of labelled rows, in the target's unit; for regressions."""

    metric: Literal["absolute_error"] = "absolute_error"
    margin: PositiveFloat | None = None
    bound: Bound | None = None
    """Errors above it count as this much. Choose what few errors exceed: the keys needed grow with it. Nothing but the
    target's unit can tell it, so there is no default: without `bound` and `margin` the metric stays inconclusive, and
    the canary is promoted by order only."""

    @model_validator(mode="after")
    def _demands(self) -> AbsoluteError:
        if (self.margin is None) != (self.bound is None):
            raise ValueError("margin and bound go together, both in the target's unit; give both or neither")
        if self.margin is None or self.bound is None:
            return self
        return _demanding(self, self.margin, self.bound, f"with bound {self.bound:g} two errors")


class Latency(_Judged):
    """Share of rows whose scoring, inside the predictor, took longer than `above_ms`."""

    metric: Literal["latency"] = "latency"
    above_ms: PositiveFloat
    margin: Share = 0.02


class Disagreement(_Judged):
    """Share of rows whose predicted label is another than stable's. Not worse in itself, so the canary is called worse
    above the margin: a guard against a canary that is another model than was meant. No labels needed."""

    metric: Literal["disagreement"] = "disagreement"
    margin: Share


class Business(_Judged):
    """A number that `/feedback` sends by name. What happened followed one answer only, so canary and stable are
    compared by assignment, not on the same row."""

    metric: Literal["business"] = "business"
    name: str = Field(min_length=1, max_length=100)
    """Under which `/feedback` sends it."""
    low: Bounded
    high: Bounded
    """Values outside [low, high] count as the nearer end."""
    better: Literal["higher", "lower"]
    margin: PositiveFloat
    """In the number's own unit."""

    @property
    def _what(self) -> str:
        return f"business:{self.name}"

    @model_validator(mode="after")
    def _demands(self) -> Business:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return _demanding(self, self.margin, self.high - self.low, "values in [low, high]")


def _demanding(analysis: _A, margin: float, bound: float, what: str) -> _A:
    if margin >= bound:
        says = f"{what} never differ by more than {bound:.2f}; lower it"
        raise ValueError(f"margin {margin:g} of {analysis.title} is no demand: {says}")
    return analysis


Analysis = Annotated[
    Failures | LogLoss | Brier | Accuracy | AbsoluteError | Latency | Disagreement | Business,
    Field(discriminator="metric"),
]


class LoggedErrors(_Judged):
    """Share of rows with an error: canary's keys against stable's, of a log that was recorded elsewhere."""

    metric: Literal["errors"] = "errors"
    column: str
    """Which holds 1 (or true) where there was one, else 0."""
    margin: Share = 0.01

    @property
    def _what(self) -> str:
        return f"errors:{self.column}"


class LoggedLatency(Latency):
    """Share of rows that took longer than `above_ms`: canary's keys against stable's, of a log that was recorded
    elsewhere. As in a project the canary is called worse above the margin only."""

    column: str
    """Which holds the milliseconds."""

    @property
    def _what(self) -> str:
        return f"latency:{self.column}"


LoggedAnalysis = Annotated[
    LoggedErrors | Failures | LogLoss | Brier | Accuracy | AbsoluteError | LoggedLatency | Disagreement | Business,
    Field(discriminator="metric"),
]


_Distinct = TypeVar("_Distinct", bound=tuple[_Judged, ...])


def _distinct(analyses: _Distinct) -> _Distinct:
    names = [a.title for a in analyses]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} stands there twice; give each metric and slice once")
    return analyses


Analyses = Annotated[tuple[Analysis, ...], Field(min_length=1), AfterValidator(_distinct)]
LoggedAnalyses = Annotated[tuple[LoggedAnalysis, ...], Field(min_length=1), AfterValidator(_distinct)]


_CLASSES = ("binary", "multiclass")
OF_TASK: dict[str, tuple[str, ...]] = {
    "log_loss": _CLASSES,
    "brier": _CLASSES,
    "accuracy": _CLASSES,
    "disagreement": _CLASSES,
    "absolute_error": ("regression",),
}
"""Tasks of the metrics that say nothing about others."""


def default_analyses(task: Literal["binary", "multiclass", "regression"]) -> tuple[Analysis, ...]:
    """What a canary is judged by where the plan does not say: its failures, and the loss of its task.

    A regression's absolute error is inconclusive until the plan states its bound."""
    return (AbsoluteError(), Failures()) if task == "regression" else (LogLoss(), Failures())
