"""What a window is held against: which blocks of the reference, cut into which windows. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlops_ray.config import DAY_S, HOUR_S, Monitoring
from mlops_ray.data.profile import Profile
from mlops_ray.monitoring import budget, drift
from mlops_ray.monitoring.yardstick import Gathering, Tiling
from mlops_ray.training.artifact.model import Reference

# Of a season: its length, and that of its phases, in seconds. The epoch began on a Thursday.
_SEASONS = {"weekday": (7 * DAY_S, DAY_S), "hour_of_week": (7 * DAY_S, HOUR_S)}
_WEEKDAYS = ("Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday")


@dataclass(frozen=True, eq=False)
class Against:
    """Limits for a window, and the rows that they are about; `phase`: in words, "" for all of the reference."""

    total: Profile
    thresholds: drift.Thresholds
    tiling: Tiling
    phase: str = ""


def against(plan: Monitoring, reference: Reference, start: float, end: float) -> Against:
    """What the window [start, end) is held against (seconds since the epoch), at drift's part of the budget.

    By rows, windows are as long as it takes, and the budget is divided over the time that passes.
    """
    if plan.seasonal is not None:
        season_s, phase_s = _SEASONS[plan.seasonal]
        number = math.floor(start % season_s / phase_s)
        found = _same_phase(plan, reference, start % season_s, season_s)
        if found is not None:
            day, hour = divmod(number, 24) if plan.seasonal == "hour_of_week" else (number, None)
            phase = f"{_WEEKDAYS[day]}s" + ("" if hour is None else f" at {hour:02}:00")
            return Against(found[0], found[1], _tiling(plan, reference), phase)
    tiling = _tiling(plan, reference)
    return Against(reference.total, _whole(plan, reference, tiling, end - start), tiling)


def gathering(plan: Monitoring, reference: Reference) -> tuple[Mapping[str, Gathering] | None, str]:
    """How evidence about each feature is gathered between the ends of windows, and why so or not.

    Windows by rows are held to last as long as those of the reference."""
    tiling = _tiling(plan, reference)
    if not len(tiling):
        return None, f"the {len(reference.blocks)} blocks of the reference are too few for two windows"
    span_s = plan.window_s if plan.window_rows is None else float(np.diff(tiling).mean()) * reference.block_s
    found = _whole(plan, reference, tiling, span_s)
    return found.gathering, found.why


def _whole(plan: Monitoring, reference: Reference, tiling: Tiling, span_s: float) -> drift.Thresholds:
    """Limits from all of the reference, for windows of `span_s` seconds."""
    return drift.calibrate(
        [profile for _, profile in reference.blocks],
        tiling,
        drift.level(budget.share(plan, "drift"), span_s),
        block_s=reference.block_s,
        min_blocks=plan.min_blocks,
        per=1 if plan.slide_s is None else round(plan.window_s / plan.slide_s),
        gather=plan.seasonal is None,
    )


def _tiling(plan: Monitoring, reference: Reference) -> Tiling:
    """The reference's blocks cut into windows like the live ones."""
    if plan.window_rows is not None:
        return drift.by_rows(np.array([p.n for _, p in reference.blocks], dtype=np.int64), plan.window_rows)
    n_blocks, window = len(reference.blocks), round(plan.window_s / reference.block_s)
    if plan.slide_s is not None:
        return drift.sliding(n_blocks, window, round(plan.slide_s / reference.block_s))
    return drift.by_time(n_blocks, window)


def _same_phase(
    plan: Monitoring, reference: Reference, offset: float, season_s: float
) -> tuple[Profile, drift.Thresholds] | None:
    """The windows of the reference that begin at `offset` in their season; None where they are too few."""
    window = round(plan.window_s / reference.block_s)
    profiles = dict(reference.blocks)
    starts = [start for start in profiles if start % season_s == offset]
    whole = [[profiles.get(start + k * reference.block_s) for k in range(window)] for start in starts]
    blocks = [block for each in whole if None not in each for block in each if block is not None]
    if len(blocks) < max(2, plan.min_blocks) * window:
        return None
    thresholds = drift.calibrate(
        blocks,
        drift.by_time(len(blocks), window),
        drift.level(budget.share(plan, "drift"), plan.window_s),
        block_s=reference.block_s,
        min_blocks=plan.min_blocks,
        together=window,
    )
    return sum(blocks[1:], blocks[0]), thresholds
