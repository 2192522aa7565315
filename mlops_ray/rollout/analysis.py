"""Sequential evidence about a canary, valid however often one looks.

Each row of the canary was scored by stable too, so quality is compared by paired differences of the same row. The
unit is the assignment key: a key enters once, with the mean over its rows of the first look that saw it, because rows
of a key are correlated and tests on rows reject equal canaries far too often.

Two capital processes per metric bet against the canary and for it. A process that starts at 1 and cannot grow in
expectation under its hypothesis exceeds 1/a with probability at most a, whenever one looks (Ville 1939):

* rollback: hypothesis "not worse than tolerated", at alpha shared over the metrics;
* promotion: hypothesis "worse by the margin", each metric at full alpha, and all must pass.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B, 2024), with a
mixture over a fixed grid of bets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import RolloutPlan
from mlops_ray.monitoring.performance import losses
from mlops_ray.training.gates.verdict import Verdict

# Fractions of the largest bet that can never lose everything, and the share of the capital that each plays with.
# Margins are small against the bounds, so the boldest bet is nearly always the best: the mixture costs it log(2) nats.
_BETS = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.99])
_SHARES = np.array([1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 2])


@dataclass(frozen=True)
class Outcomes:
    """Rows that were assigned to the canary, all arrays of shape (n,).

    keys; looks: index of the look that first saw the outcome; label: 0, 1 or NaN; stable and canary: P(1), the
    canary's NaN where it failed to answer in time.
    """

    keys: NDArray[Any]
    seen: NDArray[np.int64]
    labelled: NDArray[np.int64]
    label: NDArray[np.float64]
    stable: NDArray[np.float64]
    canary: NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """Evidence on one metric: canary minus stable, per key; positive is worse."""

    name: str
    margin: float
    n_keys: int
    estimate: float
    evidence_worse: float
    evidence_fine: float
    verdict: Verdict

    def in_words(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: {self.estimate:+.4f} over {self.n_keys} keys (margin {self.margin:g}), evidence worse "
            f"{self.evidence_worse:.3g}, fine {self.evidence_fine:.3g}: {self.verdict.value}"
        )


@dataclass(frozen=True)
class Analysis:
    """One look: the verdict over all metrics, and each metric."""

    verdict: Verdict
    metrics: tuple[Metric, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the ledger: exactly what was seen."""
        metrics = [vars(m) | {"verdict": m.verdict.value} for m in self.metrics]
        return {"verdict": self.verdict.value, "metrics": metrics}


def analyse(plan: RolloutPlan, outcomes: Outcomes) -> Analysis:
    """Verdict on the canary from all its outcomes so far.

    FAIL when any metric is proven worse, PASS when every metric is proven no worse than its margin and at least
    `min_keys` labelled keys were seen, else INCONCLUSIVE.
    """
    bound = math.log((1 - plan.clip) / plan.clip)
    failed = np.isnan(outcomes.canary).astype(np.float64)
    labelled = ~np.isnan(outcomes.label)
    # Where the canary failed the client got stable's answer: no difference in loss, but one failure.
    theirs = np.where(np.isnan(outcomes.canary), outcomes.stable, outcomes.canary)
    gaps = losses(outcomes.label, theirs, clip=plan.clip) - losses(outcomes.label, outcomes.stable, clip=plan.clip)
    columns: Mapping[str, tuple[NDArray[np.float64], float, float, float]] = {
        # metric: difference per key, bound of |difference|, tolerated, margin. Stable's own failures are no records
        # of the log, so a canary is called worse on failures only above the margin.
        "log_loss": (
            per_key(outcomes.keys[labelled], outcomes.labelled[labelled], gaps[labelled]),
            bound,
            0.0,
            plan.margins.log_loss,
        ),
        "failures": (
            per_key(outcomes.keys, outcomes.seen, failed),
            1.0,
            plan.margins.failures,
            plan.margins.failures,
        ),
    }
    n_labelled = len(columns["log_loss"][0])
    metrics = []
    for name, (gap, limit, tolerated, margin) in columns.items():
        worse = capital(gap / limit, tolerated / limit)
        fine = capital(-gap / limit, -margin / limit)
        verdict = Verdict.INCONCLUSIVE
        if worse.max() >= len(columns) / plan.alpha:
            verdict = Verdict.FAIL
        elif fine[-1] >= 1 / plan.alpha and n_labelled >= plan.min_keys:
            verdict = Verdict.PASS
        estimate = float(gap.mean()) if len(gap) else 0.0
        metrics.append(
            Metric(name, margin, len(gap), estimate, float(min(worse.max(), 1e9)), float(min(fine[-1], 1e9)), verdict)
        )
    verdicts = {m.verdict for m in metrics}
    overall = Verdict.INCONCLUSIVE
    if Verdict.FAIL in verdicts:
        overall = Verdict.FAIL
    elif verdicts == {Verdict.PASS}:
        overall = Verdict.PASS
    return Analysis(overall, tuple(metrics))


def per_key(keys: NDArray[Any], looks: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value per key, in the order in which keys were first seen: the mean over the rows of the key's first look.

    Args: all shape (n,). Returns: shape (number of keys,); ties of a look are ordered by key.
    """
    if not len(keys):
        return np.empty(0)
    unique, index = np.unique(keys, return_inverse=True)
    first = np.full(len(unique), np.iinfo(np.int64).max)
    np.minimum.at(first, index, looks)
    counted = looks == first[index]
    sums = np.bincount(index[counted], values[counted], len(unique))
    means = sums / np.bincount(index[counted], minlength=len(unique))
    return np.asarray(means[np.lexsort((unique, first))])


def capital(x: NDArray[np.float64], bar: float) -> NDArray[np.float64]:
    """Capital over time of a gambler who bets that the mean of `x` lies above `bar`.

    Args: x shape (n,), each in [-1, 1]; bar in (-1, 1).
    Returns: shape (n + 1,), starting at 1. Under "mean at most `bar`, whatever came before", a nonnegative
        supermartingale: it ever reaches 1/a with probability at most a.
    """
    bets = _BETS / (1 + bar)
    with np.errstate(over="ignore"):
        paths = np.cumsum(np.log1p(bets[:, None] * (x - bar)[None, :]), axis=1)
        return np.concatenate([[1.0], _SHARES @ np.exp(np.minimum(paths, 700.0))])
