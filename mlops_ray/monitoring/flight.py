"""Data quality in flight: what is missing, unknown or out of range in a window, beside the reference's own. Pure.

It calls nobody by itself: missing values, unknown categories and the outermost bins are bins of the drift index, so
what is bad enough to call somebody for does so there, within the budget. Here it is named, by a calm rule: a share is a
finding when it is larger than in any window of the reference, and by a point of the rows at least.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mlops_ray.data.profile import Profile
from mlops_ray.monitoring.cause import percent
from mlops_ray.monitoring.yardstick import Tiling
from mlops_ray.training.artifact.model import Reference

# Of the rows: what is read off a heat map.
_SMALL_SHARE = 0.01
_WORDS = {
    "missing": "missing",
    "unknown": "of unknown categories",
    "low": "in the lowest bin",
    "high": "in the highest bin",
}
"""What may be found about a feature, and how it is said."""


def in_flight(reference: Reference, tiling: Tiling, window: Profile, *, first: bool) -> dict[str, Any]:
    """The window's entry: `findings` (feature, what, share, most of the reference) and `beyond`, with the extremes of
    numbers outside all that the reference saw; `why` in words; `skew`, where a version's `first` window has findings:
    what differs from the start is a difference of training and serving, and no drift.

    Args: tiling: of the reference's blocks into windows as long as the live ones."""
    total = reference.total
    findings: list[dict[str, Any]] = []
    for feature in window.counts:
        for what, place in _places(feature, window):
            share = float(window.counts[feature][place] / window.n) if window.n else 0.0
            most = _most(reference, tiling, feature, place)
            if share > most + _SMALL_SHARE:
                findings.append({"feature": feature, "what": what, "share": share, "most": most})
    beyond = [found for name in sorted(window.ranges) if (found := _beyond(name, total, window)) is not None]
    findings.sort(key=lambda f: f["most"] - f["share"])
    said = [
        f"{f['feature']}: {percent(f['share'])} {_WORDS[f['what']]}, before {percent(f['most'])} at most"
        for f in findings
    ]
    skew = first and bool(findings)
    why = "; ".join(said[:5]) or "nothing that the reference's windows do not show as well"
    if skew:
        why += "; so from the first window of the version on: look for a difference between training and serving"
    return {"findings": findings, "beyond": beyond, "skew": skew, "why": why}


def _places(feature: str, window: Profile) -> Iterator[tuple[str, int]]:
    """What the last and outermost counts of a feature mean."""
    yield "missing", -1
    if feature not in window.moments:
        yield "unknown", -2
    elif len(window.counts[feature]) > 3:  # of two bins both are outermost, and half of the rows each
        yield "low", 0
        yield "high", -2


def _most(reference: Reference, tiling: Tiling, feature: str, place: int) -> float:
    """Largest share among the reference's windows, or of all of it where there is none."""
    cells = np.array([profile.counts[feature][place] for _, profile in reference.blocks], dtype=np.float64)
    rows = np.array([profile.n for _, profile in reference.blocks], dtype=np.float64)
    until, filled = (np.concatenate([[0.0], each.cumsum()]) for each in (cells, rows))
    n = filled[tiling[:, 1]] - filled[tiling[:, 0]]
    shares = (until[tiling[:, 1]] - until[tiling[:, 0]])[n > 0] / n[n > 0]
    return float(shares.max() if len(shares) else cells.sum() / max(rows.sum(), 1.0))


def _beyond(name: str, total: Profile, window: Profile) -> dict[str, Any] | None:
    """Where numbers lie outside all that the reference saw: its extremes and the window's."""
    known, seen = total.ranges.get(name), window.ranges[name]
    if known is None or known.low > known.high or seen.low > seen.high:
        return None
    if seen.low >= known.low and seen.high <= known.high:
        return None
    return {"feature": name, "low": seen.low, "high": seen.high, "known_low": known.low, "known_high": known.high}
