from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from mlops_ray.config.rollout import Schedule
from mlops_ray.rollout.schedule import closed


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


OFFICE = Schedule(
    timezone="Europe/Berlin",
    days=("mon", "tue", "wed", "thu"),
    hours=(9, 16),
    freezes=({"since": "2026-12-21", "until": "2027-01-04", "why": "Christmas"},),
)


@pytest.mark.parametrize(
    ("now", "says", "opening"),
    [
        ("2026-11-24T08:30", None, "2026-11-24T08:30"),  # 9:30 in Berlin, a Tuesday
        ("2026-11-24T07:59", "only from 9:00 to 16:00 Europe/Berlin", "2026-11-24T08:00"),
        ("2026-11-24T15:00", "only from 9:00 to 16:00 Europe/Berlin", "2026-11-25T08:00"),
        ("2026-07-21T07:30", None, "2026-07-21T07:30"),  # in summer 9:00 comes an hour earlier
        ("2026-11-27T10:00", "only on mon, tue, wed, thu", "2026-11-30T08:00"),
        ("2026-12-20T23:00", "frozen until 2027-01-04 00:00 Europe/Berlin: Christmas", "2027-01-04T08:00"),
        ("2026-12-17T20:00", "only from 9:00 to 16:00 Europe/Berlin", "2027-01-04T08:00"),
    ],
)
def test_when_a_rollout_may_step(now: str, says: str | None, opening: str) -> None:
    assert closed(OFFICE, at(now)) == says
    assert closed(OFFICE, at(opening)) is None
    if opening != now:
        assert all(closed(OFFICE, t) is not None for t in np.arange(at(now), at(opening), 600.0))


def test_a_freeze_with_an_offset_is_meant_there_and_one_without_end_in_sight_is_said() -> None:
    freeze: dict[str, Any] = {"since": "2026-12-24T00:00:00+02:00", "until": "2029-01-01T00:00:00+02:00"}
    plan = Schedule.model_validate({"freezes": [freeze]})
    assert closed(plan, at("2026-12-23T21:59")) is None
    assert closed(plan, at("2026-12-23T22:00")) is not None
    assert closed(plan, at("2028-12-31T21:59")) is not None
    assert closed(plan, at("2028-12-31T22:00")) is None
    assert closed(Schedule(), 5.0) is None
