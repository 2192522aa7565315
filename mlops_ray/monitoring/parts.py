"""Realised quality of parts of a window: the slices and the groups that the project's gates look at. Pure.

Parts call nobody: there may be many of them, and the budget is for the whole. What is a part does not change from
window to window: a category of the reference, or a quarter of its rows by a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops_ray.data.profile import Profile
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import Estimate, Floats
from mlops_ray.training.target import Scores

OTHER, MISSING = "other", "missing"
_QUARTERS = (0.25, 0.5, 0.75)
# Of a column, the parts that are shown: the largest.
_MOST = 20
_ALPHA = 0.025


@dataclass(frozen=True)
class Part:
    """Rows of one part: `column` and what its values have in common, and which rows they are, shape (n,)."""

    column: str
    label: str
    rows: NDArray[np.bool_]


def parts(reference: Reference, columns: Mapping[str, NDArray[Any]]) -> list[Part]:
    """The parts of each column, the largest of a column first.

    Args: columns: inputs as they were scored, shape (n,) each; those without bins in the reference are left out."""
    total, found = reference.total, []
    for name, values in columns.items():
        if name in reference.bins.numeric:
            mine = _quarters(name, _edges(reference, total, name), np.asarray(values, dtype=np.float64))
        elif name in reference.bins.categorical:
            mine = _categories(name, reference.bins.categorical[name], values)
        else:
            continue
        found += sorted((part for part in mine if part.rows.any()), key=lambda p: -int(p.rows.sum()))[:_MOST]
    return found


def described(
    found: list[Part], losses: Floats, blocks: NDArray[np.int64], said: Scores | None
) -> list[dict[str, Any]]:
    """Of each part rows, labelled rows, mean loss with its interval, and the share of rows that the model said 1 to.

    Args: losses: (n,), NaN where no label is known; blocks: number of each row's block of time, shape (n,); said: 0 or
        1, shape (n,), of a binary model, else None.
    """
    there = ~np.isnan(losses)
    told = []
    for part in found:
        mine = part.rows & there
        body: dict[str, Any] = {"column": part.column, "label": part.label, "rows": int(part.rows.sum())}
        body["loss"] = mean(losses[mine], blocks[mine]).to_dict() if mine.any() else None
        if said is not None:
            body["said_1"] = float(said[part.rows].mean())
        told.append(body)
    return told


def mean(values: Floats, blocks: NDArray[np.int64]) -> Estimate:
    """The mean of values, shape (n,), n >= 1, with a two-sided 95 % interval by Student's t of their blocks; without
    one where they stand in fewer than three. Source: the ratio estimator of cluster samples (Cochran 1977, 2.11)."""
    place = np.unique(blocks, return_inverse=True)[1]
    sums, rows = np.bincount(place, values), np.bincount(place)
    found, n = float(values.mean()), len(rows)
    if n < 3:
        return Estimate(found, float("nan"), float("nan"), len(values), n)
    strayed = sums - found * rows
    half = float(stats.t.ppf(1 - _ALPHA, n - 1) * np.sqrt((strayed**2).sum() * n / (n - 1)) / rows.sum())
    return Estimate(found, found - half, found + half, len(values), n)


def _edges(reference: Reference, total: Profile, name: str) -> list[float]:
    """Edges of the bins that come nearest to a quarter, half and three quarters of the reference's rows."""
    edges, counts = reference.bins.numeric[name], total.counts[name][:-1]
    if not edges or not counts.sum():
        return []
    below = counts.cumsum()[:-1] / counts.sum()
    return sorted({edges[int(np.abs(below - share).argmin())] for share in _QUARTERS})


def _quarters(name: str, edges: list[float], values: Floats) -> list[Part]:
    place = np.where(np.isnan(values), -1, np.searchsorted(np.array(edges), values, "right"))
    bounds = [-math.inf, *edges, math.inf]
    labels = [
        " and ".join([f">= {low:g}"] * math.isfinite(low) + [f"< {high:g}"] * math.isfinite(high)) or "any"
        for low, high in pairwise(bounds)
    ]
    return [Part(name, label, place == i) for i, label in enumerate(labels)] + [Part(name, MISSING, place == -1)]


def _categories(name: str, known: tuple[str, ...], values: NDArray[Any]) -> list[Part]:
    found = [Part(name, f"= {text}", values == text) for text in known]
    none = values == ""
    return [
        *found,
        Part(name, OTHER, ~none & ~np.isin(values, np.array(known, dtype=object))),
        Part(name, MISSING, none),
    ]
