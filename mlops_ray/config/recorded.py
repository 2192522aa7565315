"""The plan of `mlops-ray analyze`: how a canary that ran elsewhere was recorded, and what it is judged by."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator, model_validator

from mlops_ray.config.analyses import (
    AbsoluteError,
    Accuracy,
    Brier,
    Business,
    Disagreement,
    Failures,
    LoggedAnalyses,
    LoggedAnalysis,
    LoggedErrors,
    LoggedLatency,
    LogLoss,
)
from mlops_ray.config.base import DAY_S, Config, Share

LEAST_SHARE = 1e-6
"""With less, a hundred million keys give the canary a hundred; and odds between the two lose their digits."""
_OF_LABELS = (LogLoss, Brier, Accuracy, AbsoluteError)
_OF_CLASSES = (LogLoss, Brier, Accuracy, Disagreement)


class Variants(Config):
    """What the log's variant column says of the two."""

    stable: str = "stable"
    canary: str = "canary"

    @model_validator(mode="after")
    def _two(self) -> Variants:
        if self.stable == self.canary:
            raise ValueError(f"stable and canary are both {self.stable!r}; name the two that are compared")
        return self


class LogColumns(Config):
    """Names of the log's columns. Those that an analysis reads by itself stand there."""

    time: str = "time"
    """When a row was answered: a time with its offset (UTC without one), or seconds since the epoch. Never falling."""
    key: str = "key"
    """By which variants were assigned: a customer, a device, a session."""
    variant: str = "variant"
    share: str = "share"
    """The canary's share that was in force. A log of one share needs no such column: say `share:` in the plan."""
    label: str | None = None
    """What came true: 0 or 1, or the number that `absolute_error` is about. Empty where it is not known yet."""
    score: str | None = None
    """Of the variant that answered: the probability of 1, or the number. Quality is compared by assignment then."""
    stable_score: str | None = None
    canary_score: str | None = None
    """Where stable scored the canary's rows as well: quality is compared on the same row. Empty: it did not answer."""

    @model_validator(mode="after")
    def _fits(self) -> LogColumns:
        if (self.stable_score is None) != (self.canary_score is None):
            raise ValueError("stable_score and canary_score go together; give both, or `score`, what the client got")
        if self.score is not None and self.stable_score is not None:
            raise ValueError("give score (what the client got), or stable_score and canary_score (both of each row)")
        return self


class LogPlan(Config):
    """What stands in the file that `--plan` names."""

    columns: LogColumns = LogColumns()
    variants: Variants = Variants()
    share: Annotated[float, Field(ge=LEAST_SHARE, le=1 - LEAST_SHARE)] | None = None
    """The canary's share, where it was the same in the whole log."""
    analyses: LoggedAnalyses
    """As in a project's `rollout:`; each that is not about labels and scores names its column."""
    alpha: Annotated[Share, Field(ge=1e-9)] = 0.05
    min_keys: PositiveInt = 100
    """Below so many keys with an outcome every verdict is inconclusive."""
    min_requests: PositiveInt = 1
    """Below so many of the canary's rows every verdict is inconclusive."""
    max_requests: PositiveInt | None = None
    """Rows after so many of the canary's are not looked at."""
    look_s: Annotated[float, Field(ge=0.001, le=366 * DAY_S)] = 60.0
    """Time between two looks at the evidence; looking often costs no error probability."""
    prediction_affects_outcome: bool = False
    """Whether what happens depends on the answer. Quality is compared by assignment then, though both scores are
    there."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which a row is labelled 1, for `accuracy` and `disagreement`."""

    @property
    def both(self) -> bool:
        """Whether the log has the scores of both on a row."""
        return self.columns.stable_score is not None

    @property
    def paired(self) -> bool:
        """Whether quality is compared on the same row."""
        return self.both and not self.prediction_affects_outcome

    @property
    def by_assignment(self) -> bool:
        """Whether anything is compared between keys of the canary and keys of stable, so that shares matter."""
        return not all(compared_on_the_same_row(self, one) for one in self.analyses)

    @property
    def numeric(self) -> bool:
        """Whether labels and scores are numbers, and not 0 or 1 and a probability."""
        return any(isinstance(one, AbsoluteError) for one in self.analyses)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Columns of numbers that analyses read by themselves."""
        by_column = [one.column for one in self.analyses if isinstance(one, LoggedErrors | LoggedLatency)]
        return tuple(dict.fromkeys([*by_column, *(one.name for one in self.analyses if isinstance(one, Business))]))

    @field_validator("analyses", mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if value in ([], ()):
            raise ValueError("judges nothing; give one, such as { metric: errors, column: failed, margin: 0.01 }")
        return value

    @model_validator(mode="after")
    def _fits(self) -> LogPlan:
        for one in self.analyses:
            if isinstance(one, _OF_LABELS) and (self.columns.label is None or not (self.columns.score or self.both)):
                scores = "columns.score, or columns.stable_score and columns.canary_score"
                raise ValueError(f"{one.title} needs columns.label, and {scores}")
            if isinstance(one, AbsoluteError) and one.bound is None:
                raise ValueError("absolute_error needs margin and bound, in the label's unit; only its unit tells them")
            if isinstance(one, Failures | Disagreement) and not self.both:
                instead = "; errors of both variants are `metric: errors`" if isinstance(one, Failures) else ""
                raise ValueError(f"{one.title} needs columns.stable_score and canary_score{instead}")
        if self.numeric and (classes := [one.title for one in self.analyses if isinstance(one, _OF_CLASSES)]):
            raise ValueError(f"absolute_error is about numbers, {classes[0]} about labels of 0 and 1; make two plans")
        if self.prediction_affects_outcome and not self.both:
            raise ValueError("prediction_affects_outcome changes nothing without both scores; leave it out")
        if self.max_requests is not None and self.min_requests > self.max_requests:
            raise ValueError(f"min_requests {self.min_requests} is above max_requests {self.max_requests}; raise that")
        return self


def compared_on_the_same_row(plan: LogPlan, one: LoggedAnalysis) -> bool:
    """Whether an analysis is about two scores of one row; else it is about keys of the canary and keys of stable."""
    return isinstance(one, Failures | Disagreement) or (isinstance(one, _OF_LABELS) and plan.paired)
