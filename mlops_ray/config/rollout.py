"""The `rollout:` block: how a new version reaches traffic, and by which evidence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from mlops_ray.config.analyses import (
    AbsoluteError,
    Analyses,
    Analysis,
    Business,
    Disagreement,
    Failures,
    LogLoss,
    default_analyses,
)
from mlops_ray.config.base import DAY_S, Config, Share, Zone

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEK: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""In the order of `datetime.weekday`."""
Mode = Literal["canary", "shadow", "shadow_then_canary", "ab", "immediate"]
SHADOWS: tuple[Mode, ...] = ("shadow", "shadow_then_canary")
# What the plans of the release before `analyses:` said in its place.
_BEFORE = ("margins", "clip")


class Freeze(Config):
    """A span in which no rollout starts or steps."""

    since: datetime
    """First moment of it; without an offset it is meant in the schedule's `timezone`."""
    until: datetime
    """First moment after it."""
    why: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Freeze:
        if (self.since.tzinfo is None) != (self.until.tzinfo is None):
            raise ValueError("since and until should both have an offset (2026-12-24T00:00:00Z), or neither")
        if self.since >= self.until:
            raise ValueError(f"since {self.since} is not before until {self.until}; swap them")
        return self


class Schedule(Config):
    """When a rollout may start, step and promote, in decision time. A rollback never waits for it."""

    timezone: Zone = "UTC"
    """A name of the IANA database, such as Europe/Berlin."""
    days: tuple[Weekday, ...] = WEEK
    hours: tuple[Annotated[int, Field(ge=0, le=24)], Annotated[int, Field(ge=0, le=24)]] = (0, 24)
    """Since which full hour, and until which, on each of `days`: [9, 16] is 9:00 to 15:59."""
    freezes: tuple[Freeze, ...] = ()

    @field_validator("days")
    @classmethod
    def _some(cls, value: tuple[Weekday, ...]) -> tuple[Weekday, ...]:
        if not value:
            raise ValueError("give at least one day, for example [mon, tue, wed, thu]")
        return value

    @field_validator("hours")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] >= value[1]:
            raise ValueError("should rise within one day, for example [9, 16]; [0, 24] is the whole day")
        return value


class Ab(Config):
    """What `mode: ab` does: several versions side by side, each against stable."""

    share: Share = 0.1
    """Share of keys that each version answers, for as long as it is on trial; stable has the rest."""
    winner: Literal["automatic", "by_command"] = "automatic"
    """Whether a version that is proven better is promoted by itself, or by `rollout promote --version`."""


class RolloutPlan(Config):
    """The path of a new version. Evidence runs through all steps of a rollout."""

    mode: Mode = "canary"
    """`canary`: answers a rising share of the keys. `shadow`: sees copies and answers nobody until it is promoted.
    `shadow_then_canary`: the one, then the other. `ab`: several versions at fixed shares, of which the best is promoted
    where it is proven better than stable. `immediate`: promoted as soon as it is loaded; bake it."""
    shares: tuple[Share, ...] = (0.1, 0.5)
    """Share of keys that the canary answers at each step, strictly rising."""
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of keys whose rows a shadow sees copies of."""
    ab: Ab = Ab()
    """Of `mode: ab`; its objective is the first of `analyses`."""
    look_s: PositiveFloat = 60.0
    """Decision time between two looks at the evidence; looking often costs no error probability."""
    step_min_s: NonNegativeFloat = DAY_S
    step_max_s: PositiveFloat = 14 * DAY_S
    schedule: Schedule = Schedule()
    analyses: Analyses | None = None
    """What is compared, with margins; None: what suits the task (`default_analyses`)."""
    min_keys: PositiveInt = 100
    """Below so many keys with an outcome every verdict is inconclusive."""
    min_requests: PositiveInt = 1
    """Below so many of the canary's rows every verdict is inconclusive."""
    max_requests: PositiveInt | None = None
    """A step that is undecided after so many of the canary's rows follows `on_inconclusive` without waiting longer."""
    alpha: Annotated[Share, Field(ge=1e-9)] = 0.05
    prediction_affects_outcome: bool = False
    """Whether what happens depends on the answer (an offer, a block). Then outcomes are compared between the keys of
    the canary and those of stable, not between two scores of one row."""
    on_inconclusive: Literal["rollback", "pause", "wait"] = "rollback"
    """What happens to a step that is still undecided after `step_max_s` or `max_requests`."""
    approval: Literal["none", "before_start", "before_promotion"] = "none"
    """Where the rollout waits for people. Who started it does not count."""
    approvers: PositiveInt = 1
    """How many of them."""
    approval_expiry_s: PositiveFloat = 7 * DAY_S
    """How long an approval holds."""
    bake_s: NonNegativeFloat = 0.0
    """How long the new stable version is watched, with automatic rollback; late labels count. 0: not at all."""
    keep_previous_warm_s: NonNegativeFloat = 7 * DAY_S
    """How long the previous version stays loaded after promotion and baking, so that a rollback is instant."""
    supersede: bool = True
    """Whether a newer candidate ends an open rollout that is not decided yet. An operator says so: `--supersede`."""

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, body: Any) -> Any:
        """Plans of the release before `analyses:`, in project files and in the state database."""
        if not isinstance(body, Mapping) or not any(name in body for name in _BEFORE):
            return body
        if body.get("analyses") is not None:
            raise ValueError("`margins` and `clip` became `analyses`; keep `analyses` and remove the others")
        return {name: value for name, value in body.items() if name not in _BEFORE} | {
            "analyses": _analyses_of(body.get("margins", {}), body.get("clip", 0.01))
        }

    @property
    def asks_before_start(self) -> bool:
        """Whether people must agree before the start. An immediate rollout is promoted as soon as it may start."""
        return self.approval == "before_start" or (self.mode == "immediate" and self.approval != "none")

    def judged_by(self, task: Literal["binary", "multiclass", "regression"]) -> tuple[Analysis, ...]:
        """What a rollout of a project with this task is judged by.

        A plan of the release before `analyses:` names a log-loss whatever the task: for a regression that stays what it
        was then, a loss that nobody knows, so that the canary can fail but is promoted by order only.
        """
        found = self.analyses or default_analyses(task)
        if task != "regression":
            return found
        return tuple(AbsoluteError() if isinstance(one, LogLoss) else one for one in found)

    @property
    def business(self) -> tuple[str, ...]:
        """Numbers that `/feedback` takes by name: those that some analysis reads, and no others."""
        named = (one.name for one in self.analyses or () if isinstance(one, Business))
        return tuple(dict.fromkeys(named))

    @field_validator("shares")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("give at least one share")
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("shares must rise strictly, for example [0.1, 0.5]")
        return value

    @field_validator("analyses", mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if value in ([], ()):
            raise ValueError("would promote without evidence; give one, leave it out, or set `mode: immediate`")
        return value

    @model_validator(mode="after")
    def _fits(self) -> RolloutPlan:
        if self.step_min_s > self.step_max_s:
            raise ValueError("step_min_s is above step_max_s")
        if self.max_requests is not None and self.min_requests > self.max_requests:
            raise ValueError(f"min_requests {self.min_requests} is above max_requests {self.max_requests}; raise that")
        if self.mode == "ab" and self.analyses and isinstance(self.analyses[0], Failures | Disagreement):
            raise ValueError(
                f"nobody can be better than stable in {self.analyses[0].title}; put first what a version is to win by, "
                "for example { metric: log_loss }"
            )
        if self.prediction_affects_outcome and self.mode in SHADOWS:
            raise ValueError(
                f"mode {self.mode} cannot judge what a shadow's answers would have changed "
                "(prediction_affects_outcome): set `mode: canary`"
            )
        if self.business and self.mode in SHADOWS:
            raise ValueError(
                f"mode {self.mode} cannot judge {self.business[0]!r}: a shadow answers nobody, so nothing comes "
                "of its answers; set `mode: canary`, or take the business metric out"
            )
        return self


def _analyses_of(margins: Any, clip: Any) -> list[dict[str, Any]]:
    """Raises: ValueError with the field as it was called then."""
    if not isinstance(margins, Mapping):
        raise ValueError(f"margins should be a block of fields; got {margins!r}")  # noqa: TRY004 - pydantic's
    if unknown := set(margins) - {"log_loss", "failures"}:
        raise ValueError(f"unknown field margins.{sorted(unknown)[0]}; margins became `analyses`, which knows more")
    numbers = {"margins.log_loss": margins.get("log_loss", 0.02), "margins.failures": margins.get("failures", 0.01)}
    for name, value in (numbers | {"clip": clip}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} should be a number greater than 0; got {value!r}")
    return [
        {"metric": "log_loss", "margin": numbers["margins.log_loss"], "clip": clip},
        {"metric": "failures", "margin": numbers["margins.failures"]},
    ]
