"""When a rollout may start and step: allowed days and hours, and freezes. No clock: decision time comes in."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime

from mlops_ray.config.rollout import WEEK, Freeze, Schedule


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


def _span(freeze: Freeze, zone: zoneinfo.ZoneInfo) -> tuple[datetime, datetime]:
    if freeze.since.tzinfo is None:
        return freeze.since.replace(tzinfo=zone), freeze.until.replace(tzinfo=zone)
    return freeze.since.astimezone(zone), freeze.until.astimezone(zone)
