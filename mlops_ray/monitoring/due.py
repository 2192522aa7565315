"""What is judged when: instants of decision time, each of which comes once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mlops_ray.config import Monitoring
from mlops_ray.monitoring import clock
from mlops_ray.state import Cursor

# Instants of each kind that one look deals with: a row dated decades ago must not make it judge every week since.
_MOST = 520

Window = tuple[float, float]
"""Start and end, seconds since the epoch: [start, end)."""


class Kind(IntEnum):
    """What is judged at one instant, in this order; the numbers stand in the cursor `judged`."""

    DRIFT = 0
    QUALITY = 1
    SEQUENTIAL = 2
    MULTIVARIATE = 3
    INPUTS = 4


ENTRIES = {
    Kind.DRIFT: "drift",
    Kind.QUALITY: "quality",
    Kind.SEQUENTIAL: "sequential",
    Kind.MULTIVARIATE: "multivariate",
    Kind.INPUTS: "inputs",
}
"""Key of each judgement in a window's result."""


@dataclass(frozen=True, order=True)
class Due:
    """The window [start, end), or the sequential detectors' block, is to be judged at the decision time `at`; all in
    seconds since the epoch."""

    at: float
    kind: Kind
    start: float
    end: float


def due(plan: Monitoring, *, first: float, judged: Cursor, now: float, filled: Sequence[Window] = ()) -> list[Due]:
    """What has become due by the decision time `now` and is not judged yet, in order.

    Args: first: start of the first block that has rows; judged: `at` and `kind` of what was judged last; filled: where
        windows are by rows, those of them that have closed (`by_rows`).
    """
    since = max(judged.at, first) - plan.block_s  # what is due at the cursor's own instant may be half done
    horizon_s = plan.label_horizon_s
    closed = _closed(plan, filled, since, now, every_s=plan.slide_s or plan.window_s)
    mature = _closed(plan, filled, since - horizon_s, now - horizon_s, every_s=plan.window_s)
    blocks = clock.passed(since - horizon_s, now - horizon_s, every_s=plan.block_s)
    found = [Due(end, Kind.DRIFT, start, end) for start, end in closed]
    found += [Due(end + horizon_s, Kind.QUALITY, start, end) for start, end in mature]
    found += [Due(end + horizon_s, Kind.SEQUENTIAL, end - plan.block_s, end) for end in blocks[-_MOST:]]
    if plan.seasonal is None:  # a season's windows are held against their like, which are no neighbours
        ends = clock.passed(since, now, every_s=plan.block_s)[-_MOST:]
        found += [Due(end, Kind.INPUTS, end - plan.block_s, end) for end in ends]
    # A window that began before the traffic did is a part of one, no fair sample of its hours and weekdays.
    return [d for d in sorted(found) if d.start >= first and not is_judged(d, judged)]


def told_apart(plan: Monitoring, *, first: float, told: Cursor, now: float) -> list[Due]:
    """The same for the classifier, whose answers come when they come. Args: told: `at` of what it answered last."""
    every_s = plan.multivariate_s
    if every_s is None:
        return []
    ends = clock.passed(max(told.at, first), now, every_s=every_s)[-_MOST:]
    return [Due(end, Kind.MULTIVARIATE, end - every_s, end) for end in ends if end - every_s >= first]


def after(plan: Monitoring, now: float) -> float:
    """The next decision time at which anything can become due: the end of a block, or when one is mature.

    >>> after(Monitoring(window_s=40.0, block_s=10.0, label_horizon_s=15.0), 31.0)
    35.0
    """
    block_s, horizon_s = plan.block_s, plan.label_horizon_s
    over = (now // block_s + 1) * block_s
    return min(over, ((now - horizon_s) // block_s + 1) * block_s + horizon_s)


def is_side_by_side(plan: Monitoring, window: Window) -> bool:
    """Whether the window is one of those that lie side by side: only of them is quality judged and estimated."""
    return plan.slide_s is None or window[1] % plan.window_s == 0


def by_rows(plan: Monitoring, rows: Sequence[tuple[float, int]], now: float) -> list[Window]:
    """Windows of `window_rows` rows, side by side, each ending with the block that fills it.

    Args: rows: start of each block and its rows, in order, from the first of a window on. Blocks that are not over by
        the decision time `now` are left out.
    """
    found: list[Window] = []
    start, n = None, 0
    for block, some in rows:
        if block + plan.block_s > now:
            break
        start, n = (block if start is None else start), n + some
        if plan.window_rows is not None and n >= plan.window_rows:
            found.append((start, block + plan.block_s))
            start, n = None, 0
    return found


def _closed(plan: Monitoring, filled: Sequence[Window], after: float, until: float, *, every_s: float) -> list[Window]:
    """Windows that end in (after, until]."""
    if plan.window_rows is not None:
        return [window for window in filled if after < window[1] <= until][-_MOST:]
    return [(end - plan.window_s, end) for end in clock.passed(after, until, every_s=every_s)[-_MOST:]]


def is_judged(one: Due, judged: Cursor) -> bool:
    """Whether the cursor stands at or behind it."""
    return (one.at, one.kind) <= (judged.at, judged.number)
