"""A detector that looks after every row: has the mean of a bounded loss risen above what was promised?

Windows see a jump when they close, and a slow change perhaps never. This keeps, for each of a few sizes of change, the
evidence for a change since the instant at which it is greatest (CUSUM), and averages it. As long as the expected loss
of the next row, given all before, is at most the baseline, the mean number of rows until the average reaches A is at
least A: no approximation, whatever the distribution. Source: Shin, Ramdas and Rinaldo, "E-detectors" (2023).

The state is a few numbers, whatever the traffic, and does not depend on how rows were cut into batches.

Rows of an hour or a day are alike, though, and a bad day is no change: `update_blocks` looks at whole blocks instead,
whose evidence is divided by how much more their sums vary than those of independent rows would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.errors import DataError

# Changes that are bet on, as the odds of a loss over those of the baseline: a factor of 1.5 from one to the next costs
# little delay between two of them, and beyond 8 any detector is quick.
_ODDS = (1.2, 1.5, 2.2, 3.3, 5.0, 8.0)


@dataclass(frozen=True)
class Watch:
    """What to look for: a mean above `baseline`, in (0, 1), with a mean of at least `run_length` rows between false
    alarms.

    The baseline is the highest mean that is still well: the upper end of the holdout's interval, not its middle.
    design_effect: variance of the sum of a block's losses over what independent rows would have, at least 1. Rows of a
    day are alike, so a block's evidence is divided by it: for a sum of variance d times n the expectation of
    exp(evidence / d) is at most 1, to second order, where that of exp(evidence) is beyond all bounds.
    """

    baseline: float
    run_length: float
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.baseline < 1:
            raise DataError("baseline", f"must lie between 0 and 1, got {self.baseline}; divide losses by their bound")
        if not self.run_length >= 1:
            raise DataError("run_length", f"must be at least 1 row, got {self.run_length}")
        if not self.design_effect >= 1:
            raise DataError("design_effect", f"must be at least 1, got {self.design_effect}")


@dataclass(frozen=True)
class State:
    """Where a detector stands after `n` steps: rows (`update`) or blocks of them (`update_blocks`).

    evidence: per size of change, natural logarithm of its CUSUM. since: steps since each one's evidence began.
    alarm: number of the step, from 1, at which it first was enough; None before. After an alarm begin anew.
    """

    n: int = 0
    evidence: tuple[float, ...] = field(default=(0.0,) * len(_ODDS))
    since: tuple[int, ...] = field(default=(0,) * len(_ODDS))
    alarm: int | None = None

    @property
    def began(self) -> int:
        """Number of the step, from 1, with which the change that there is most evidence for seems to have begun."""
        return self.n - self.since[int(np.argmax(self.evidence))] + 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss."""
        return {"n": self.n, "evidence": list(self.evidence), "since": list(self.since), "alarm": self.alarm}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> State:
        """The state that `to_dict` wrote. Raises: DataError when it is of another release's grid."""
        if not len(body["evidence"]) == len(body["since"]) == len(_ODDS):
            raise DataError("sequential detector", f"its state has no {len(_ODDS)} sizes of change; begin it anew")
        alarm = body["alarm"]
        return State(
            int(body["n"]),
            tuple(map(float, body["evidence"])),
            tuple(map(int, body["since"])),
            None if alarm is None else int(alarm),
        )


def run_length(false_alarms_per_month: float, steps_per_month: float) -> float:
    """Steps between two false alarms that a detector with this part of the budget may not fall below in the mean.

    >>> run_length(0.5, 30_000)
    60000.0
    """
    return max(1.0, steps_per_month / false_alarms_per_month)


def update(watch: Watch, state: State, losses: NDArray[Any]) -> State:
    """The state after these rows, looked at one by one.

    Args: losses: shape (n,), in [0, 1], oldest first: 0 or 1, or a loss clipped to its bound and divided by it.
    Raises: DataError when one is not in [0, 1].
    """
    return step(watch, state, gains(watch, losses) / watch.design_effect)


def update_blocks(watch: Watch, state: State, blocks: Sequence[NDArray[Any]]) -> State:
    """The state after these blocks of rows, each looked at as a whole: so rows of a block may be as alike as they like.

    Args: blocks: oldest first, each of losses as in `update`; one without rows is a step too, without evidence.
    Raises: DataError when a loss is not in [0, 1].
    """
    of_blocks = [gains(watch, block).sum(axis=1) for block in blocks]
    return step(watch, state, np.array(of_blocks).reshape(-1, len(_ODDS)).T / watch.design_effect)


def gains(watch: Watch, losses: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithm of what each row multiplies each size's evidence by, shape (sizes, n)."""
    x = np.asarray(losses, dtype=np.float64)
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise DataError("losses", "must lie in [0, 1] without NaN; clip them to a bound and divide by it")
    odds, m = np.array(_ODDS)[:, None], watch.baseline
    # For 0 and 1 the likelihood ratio of the raised odds; for losses between, a bet with mean 1 at the baseline.
    bet = (odds - 1) / (1 - m + odds * m)
    return np.asarray(np.log1p(bet * (x - m)))


def step(watch: Watch, state: State, gained: NDArray[np.float64]) -> State:
    """The state after steps that gained so much evidence, shape (sizes, steps)."""
    n = gained.shape[1]
    if not n:
        return state
    rises = gained.cumsum(axis=1)
    # Evidence goes on from before while it was any, or begins at the lowest point so far.
    before = np.array(state.evidence)
    lows = np.concatenate([-np.maximum(before, 0)[:, None], rises[:, :-1]], axis=1)
    evidence = rises - np.minimum.accumulate(lows, axis=1)
    alarm = state.alarm
    if alarm is None:
        enough = np.logaddexp.reduce(evidence, axis=0) - math.log(len(_ODDS)) >= math.log(watch.run_length)
        alarm = state.n + int(enough.argmax()) + 1 if enough.any() else None
    lowest = n - 1 - lows[:, ::-1].argmin(axis=1)  # the last of equals
    carried = np.where((lowest == 0) & (before > 0), np.array(state.since), 0)
    since = n - lowest + carried
    return State(state.n + n, tuple(evidence[:, -1].tolist()), tuple(since.tolist()), alarm)
