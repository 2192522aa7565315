"""When a rollout may start and step: allowed days and hours, and freezes. No clock: decision time comes in."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

from mlops_ray.config.rollout import WEEK, Freeze, Schedule

# How far ahead an opening is looked for: a year and a day of freezes and closed hours.
_AHEAD_DAYS = 367


def closed(schedule: Schedule, at: float) -> str | None:
    """Why a rollout may not start or step at decision time `at` (seconds since the epoch), or None when it may.

    >>> closed(Schedule(hours=(9, 16)), 8 * 3600.0)
    'only from 9:00 to 16:00 UTC'
    """
    zone = zoneinfo.ZoneInfo(schedule.timezone)
    here = datetime.fromtimestamp(at, UTC).astimezone(zone)
    for freeze in schedule.freezes:
        since, until = _span(freeze, zone)
        if since <= here < until:
            return f"frozen until {until:%Y-%m-%d %H:%M} {schedule.timezone}" + (
                f": {freeze.why}" if freeze.why else ""
            )
    if WEEK[here.weekday()] not in schedule.days:
        return f"only on {', '.join(schedule.days)}"
    since_hour, until_hour = schedule.hours
    if not since_hour <= here.hour < until_hour:
        return f"only from {since_hour}:00 to {until_hour}:00 {schedule.timezone}"
    return None


def opens(schedule: Schedule, at: float) -> float | None:
    """The first time from `at` on (seconds since the epoch) at which a rollout may step; None: not within a year.

    >>> opens(Schedule(hours=(9, 16)), 8 * 3600.0) == 9 * 3600.0
    True
    """
    if closed(schedule, at) is None:
        return at
    zone = zoneinfo.ZoneInfo(schedule.timezone)
    here = datetime.fromtimestamp(at, UTC).astimezone(zone)
    # It can only open where an allowed hour begins or a freeze ends.
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
    begins = [midnight + timedelta(days=n, hours=schedule.hours[0]) for n in range(_AHEAD_DAYS)]
    ends = [_span(freeze, zone)[1] for freeze in schedule.freezes]
    candidates = sorted(moment.timestamp() for moment in [*begins, *ends])
    return next((moment for moment in candidates if moment > at and closed(schedule, moment) is None), None)


def _span(freeze: Freeze, zone: zoneinfo.ZoneInfo) -> tuple[datetime, datetime]:
    if freeze.since.tzinfo is None:
        return freeze.since.replace(tzinfo=zone), freeze.until.replace(tzinfo=zone)
    return freeze.since.astimezone(zone), freeze.until.astimezone(zone)
