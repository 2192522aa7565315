"""Decision time: the event watermark, which drives windows, waits and cooldowns, never the machine's own speed.

A replay at a thousand times life therefore decides as life would.
"""

from __future__ import annotations

import math

from mlops_ray.config import Project
from mlops_ray.state import Cursor, Tx

DECISION_TIME = "decision time"
"""Cursor: what decision time has reached."""


def decision_time(watermark: float, seen: float, machine_now: float, *, idle_s: float) -> float:
    """Seconds since the epoch that decisions are taken at.

    Args: watermark: the latest event time known to be complete; seen: machine time when it was learnt. Without news
        for longer than `idle_s`, decision time goes on at the pace of the machine's clock.
    >>> decision_time(100.0, 5.0, 6.0, idle_s=60.0)
    100.0
    >>> decision_time(100.0, 5.0, 75.0, idle_s=60.0)
    110.0
    """
    return watermark + max(0.0, machine_now - seen - idle_s)


def decision_now(tx: Tx, project: Project, machine_now: float) -> float | None:
    """Decision time of the project (seconds since the epoch), which never goes back; None before any traffic."""
    name = project.project
    watermark, seen, reached = (tx.cursor(name, cursor) for cursor in ("watermark", "seen", DECISION_TIME))
    if watermark == Cursor():
        return None
    idle_s = project.monitoring.idle_s
    return max(reached.at, decision_time(watermark.at, seen.at, machine_now, idle_s=idle_s))


def passed(after: float, until: float, *, every_s: float) -> list[float]:
    """Multiples of `every_s` in (after, until], oldest first: the instants at which something is judged.

    >>> passed(10.0, 30.0, every_s=10.0)
    [20.0, 30.0]
    """
    first = math.floor(after / every_s) + 1
    return [k * every_s for k in range(first, math.floor(until / every_s) + 1)]
