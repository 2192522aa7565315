"""How a rollout's evidence came to be what it is: a few of its looks, for those who watch. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# The trail stands in the rollout's row, which is read ten times a second: a few points, of a few metrics.
MOST = 16
"""Looks that are kept."""
MOST_METRICS = 12
"""Metrics of each."""
POINT = ("name", "arm", "n_keys", "estimate", "low", "high")
"""What is kept of a metric, in this order."""

Point = list[Any]
"""Decision time of a look, and its metrics, each as POINT says."""


def trailed(trail: Sequence[Point], look: Mapping[str, Any]) -> list[Point]:
    """The trail with one more look: `at` and `analysis`. The first and the last always stay; when there are too many,
    the one between goes whose neighbours are nearest to each other, so that the trail spans the rollout at about an
    even pace however long it takes.

    >>> one = trailed([], {"at": 1.0, "analysis": {"metrics": [{"name": "brier", "n_keys": 9, "estimate": 0.1}]}})
    >>> one
    [[1.0, [['brier', None, 9, 0.1, None, None]]]]
    >>> len(trailed(one, {"at": 1.0, "analysis": {"metrics": []}})), len(trailed(one, {"at": 2.0, "analysis": {}}))
    (1, 2)
    """
    metrics = (look.get("analysis") or {}).get("metrics", ())
    point = [look["at"], [[metric.get(name) for name in POINT] for metric in metrics[:MOST_METRICS]]]
    kept = [before for before in trail if before[0] < look["at"]]  # a look that is repeated takes its own place
    if len(kept) >= MOST:
        least = min(range(1, len(kept) - 1), key=lambda k: kept[k + 1][0] - kept[k - 1][0])
        kept = kept[:least] + kept[least + 1 :]
    return [*kept, point]
