"""What is judged when: instants of decision time, each of which comes once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mlops_ray.config import Monitoring
from mlops_ray.monitoring import clock
from mlops_ray.state import Cursor

# Instants of each kind that one look deals with: a row dated decades ago must not make it judge every week since.
_MOST = 520


class Kind(IntEnum):
    """What is judged at one instant, in this order; the numbers stand in the cursor `judged`."""

    DRIFT = 0
    QUALITY = 1
    SEQUENTIAL = 2


ENTRIES = {Kind.DRIFT: "drift", Kind.QUALITY: "quality", Kind.SEQUENTIAL: "sequential"}
"""Key of each judgement in a window's result."""


@dataclass(frozen=True, order=True)
class Due:
    """The window [start, end), or the sequential detector's block, is to be judged at the decision time `at`; all in
    seconds since the epoch."""

    at: float
    kind: Kind
    start: float
    end: float


def due(plan: Monitoring, *, first: float, judged: Cursor, now: float) -> list[Due]:
    """What has become due by the decision time `now` and is not judged yet, in order.

    Args: first: start of the first block that has rows; judged: `at` and `kind` of what was judged last.
    """
    after = max(judged.at, first) - plan.block_s  # what is due at the cursor's own instant may be half done
    horizon_s = plan.label_horizon_s
    closed = clock.passed(after, now, every_s=plan.window_s)
    mature = clock.passed(after - horizon_s, now - horizon_s, every_s=plan.window_s)
    blocks = clock.passed(after - horizon_s, now - horizon_s, every_s=plan.block_s)
    found = [Due(end, Kind.DRIFT, end - plan.window_s, end) for end in closed[-_MOST:]]
    found += [Due(end + horizon_s, Kind.QUALITY, end - plan.window_s, end) for end in mature[-_MOST:]]
    found += [Due(end + horizon_s, Kind.SEQUENTIAL, end - plan.block_s, end) for end in blocks[-_MOST:]]
    # A window that began before the traffic did is a part of one, no fair sample of its hours and weekdays.
    return [d for d in sorted(found) if d.start >= first and not is_judged(d, judged)]


def is_judged(one: Due, judged: Cursor) -> bool:
    """Whether the cursor stands at or behind it."""
    return (one.at, one.kind) <= (judged.at, judged.number)
