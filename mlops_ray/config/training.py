"""The `split:`, `search:` and `gates:` blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mlops_ray.config.base import DAY_S, Config, ImportPath, Share


class Split(Config):
    """Which rows judge (the holdout), which choose among candidates (validation), and which train."""

    by: Literal["time", "group", "hash"] = "time"
    """`time`: the newest rows are the holdout, those before them validate. `group` and `hash` draw by a hash instead,
    of the `group` columns or of the project's key: rows that share them share a side."""
    group: tuple[str, ...] = ()
    """Columns whose values stay together, for `by: group`."""
    holdout_share: Share = 0.2
    validation_share: Share = 0.2

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if (self.by == "group") != bool(self.group):
            raise ValueError("`by: group` and a list `group: [column, ...]` go together; give both or neither")
        if self.holdout_share + self.validation_share >= 1:
            raise ValueError("holdout_share + validation_share leave no rows to train on; lower one")
        return self


class Uniform(Config):
    """A float between `low` and `high`."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.kind == "log_uniform" and self.low <= 0:
            raise ValueError("log_uniform needs low above 0")
        return self


class IntRange(Config):
    """An integer from `low` to `high`, both included; `log` samples its logarithm evenly."""

    kind: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("log needs low above 0")
        return self


class Choice(Config):
    """One of `values`."""

    kind: Literal["categorical"]
    values: tuple[str | float | int | bool | None, ...] = Field(min_length=1)


Space = Annotated[Uniform | IntRange | Choice, Field(discriminator="kind")]


class Candidate(Config):
    """An estimator by import path, its fixed parameters, and the space of those that are searched."""

    estimator: ImportPath
    params: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Space] = Field(default_factory=dict)


class Search(Config):
    """One budget over all candidates; the lowest validation log-loss wins."""

    trials: PositiveInt = 12
    max_s: PositiveFloat = 120.0
    concurrency: PositiveInt = 2
    """Trials at a time, one CPU each."""
    candidates: tuple[Candidate, ...] = Field(min_length=1)


Metric = Literal["log_loss", "brier", "roc_auc", "accuracy"]


class Limit(Config):
    """An absolute demand on a holdout metric."""

    metric: Metric
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Gates(Config):
    """What a candidate must show on the holdout before it may be registered."""

    min_rows: PositiveInt = 500
    limits: tuple[Limit, ...] = ()
    margin: PositiveFloat = 0.01
    """Non-inferiority margin: the largest log-loss (nats per row) by which a candidate may trail the champion."""
    alpha: Share = 0.05
    block_s: PositiveFloat = DAY_S
    """Rows of one block of time are resampled together: outcomes of an hour or a day are correlated."""
    resamples: Annotated[int, Field(ge=200)] = 2000
