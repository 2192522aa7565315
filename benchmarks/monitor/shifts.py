"""Streams of rows that shift, and error rates that rise: what the benchmark of detection is about. NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

QUIET, JUMP = 20_000, 2_000
# Rows before a shift: a detector that has run for a while.
BEFORE = 10_000
WINDOW, HORIZON, SLOW_HORIZON = 200, 10_000, 4_000
NUMERIC, KINDS = 5, 4
MISSING_IS = 5.0

Floats = NDArray[np.float64]
Rng = np.random.Generator
Shift = Callable[[Rng, Floats, Floats], None]


def errors(seed: int, i: int, n: int, rate: float) -> NDArray[np.bool_]:
    return np.random.default_rng([seed, i, int(1000 * rate)]).random(n) < rate


def _mean(size: float) -> Shift:
    def shift(rng: Rng, x: Floats, done: Floats) -> None:
        x[:, 0] += size

    return shift


def _spread(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] *= 1.5


def _new_category(rng: Rng, x: Floats, done: Floats) -> None:
    x[rng.random(len(x)) < 0.04, NUMERIC] = KINDS


def _missing(rng: Rng, x: Floats, done: Floats) -> None:
    x[rng.random(len(x)) < 0.06, 0] = np.nan


def _gradual(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] += np.minimum(done / (20 * WINDOW), 1.0)


def _correlation(rng: Rng, x: Floats, done: Floats) -> None:
    x[:, 0] = 0.8 * x[:, 1] + 0.6 * x[:, 0]


# Name, the column that shifts, and what is done to rows after the change.
SHIFTS: dict[str, tuple[int, Shift]] = {
    "mean 0.1": (0, _mean(0.1)),
    "mean 0.25": (0, _mean(0.25)),
    "mean 0.5": (0, _mean(0.5)),
    "mean 1": (0, _mean(1.0)),
    "variance x 2.25": (0, _spread),
    "new category, 4 %": (NUMERIC, _new_category),
    "missing 0 to 6 %": (0, _missing),
    "mean 0 to 1 over 20 windows": (0, _gradual),
    "correlation 0 to 0.8": (0, _correlation),
}


def stream(seed: int, i: int, before: int, after: int, shift: Shift | None) -> Floats:
    """Rows of five standard normal columns and a category of four, shifted from row `before` on."""
    rng = np.random.default_rng([seed, i])
    x = rng.normal(size=(before + after, NUMERIC + 1))
    x[:, NUMERIC] = rng.choice(KINDS, before + after, p=(0.4, 0.3, 0.2, 0.1))
    if shift:
        shift(rng, x[before:], np.arange(after, dtype=np.float64))
    return x
