"""One trial, as a worker runs it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlops_ray.config import EarlyStopping
from mlops_ray.training.search import candidates, measures
from mlops_ray.training.search.stages import Stages, staged, wants_single
from mlops_ray.training.search.trials import FoldData, Job, Order, Status, TrialEnded

Steps = Sequence[tuple[int, float]]


@dataclass
class Outcome:
    """What a trial showed; scores in the metric's own unit, see `TrialEnded`."""

    status: Status
    score: float | None
    steps: list[tuple[int, float]] = field(default_factory=list)
    rungs: list[tuple[float, float]] = field(default_factory=list)
    rounds: int | None = None
    refit: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def shares(plan: EarlyStopping | None) -> tuple[float, ...]:
    """Rungs below the full length, as shares of it: `min_share`, then times `reduction`.

    One that is nearer to the end than half a step (on the scale of logarithms) would save too little to be worth it."""
    found: list[float] = []
    share = plan.min_share if plan is not None else 1.0
    while plan is not None and share * math.sqrt(plan.reduction) <= 1:
        found.append(share)
        share *= plan.reduction
    return tuple(found)


def evaluate(
    order: Order, folds: Sequence[FoldData], job: Job, *, on_step: Callable[[Steps], None] = lambda steps: None
) -> Outcome:
    """Fit and score one point on every fold; the mean over folds counts.

    An estimator that can be fitted step by step is looked at on each rung: it is stopped where its loss is above the
    order's cut-off, and has ended where the best point of its curve lies in the first half, so that doubling its
    rounds brought nothing (Prechelt 1998 calls for such a rule; half is the point at which the rest cannot be noise of
    a few rounds). on_step: called with (rounds, score) after each rung.
    Raises: whatever the estimator raises; DataError for scores that cannot be measured.
    """
    parts = [staged(order.choice, fold, job) for fold in folds] if job.early_stopping is not None else [None]
    steps = [part for part in parts if part is not None]
    if len(steps) < len(folds):
        return Outcome("done", float(np.mean([_plain(order, fold, job) for fold in folds])))
    try:
        return _climb(order, steps, job, on_step)
    finally:
        for part in steps:
            part.close()


def ended(
    order: Order,
    folds: Sequence[FoldData],
    job: Job,
    *,
    clock: Callable[[], float],
    on_step: Callable[[Steps], Any] = lambda steps: None,
) -> TrialEnded:
    """What became of one point; a point that raises has failed. Args: clock: seconds since the epoch."""
    started, began = clock(), time.perf_counter()
    try:
        outcome = evaluate(order, folds, job, on_step=on_step)
    except Exception as exc:  # noqa: BLE001 - an estimator raises what it likes, and the search goes on
        said = f"{type(exc).__name__}: {str(exc).strip()}"[:500]
        outcome = Outcome("failed", None, error=said)
    return TrialEnded(
        number=order.number,
        choice=order.choice,
        status=outcome.status,
        score=outcome.score,
        steps=tuple(outcome.steps),
        seconds=time.perf_counter() - began,
        started=started,
        ended=clock(),
        error=outcome.error,
        rungs=tuple(outcome.rungs),
        rounds=outcome.rounds,
        refit=outcome.refit,
    )


def _plain(order: Order, fold: FoldData, job: Job) -> float:
    train, others = fold.rows(single=wants_single(order.choice.estimator))
    estimator = candidates.fit(
        order.choice, train, fold.y, seed=job.seed, weights=fold.weights, task=job.task, class_weight=job.class_weight
    )
    said = candidates.scores(estimator, others, job.task, n_classes=job.n_classes)
    return measures.measure(job.metric, job.task, fold.y[fold.n_train :], said, fold.other_weights)


def _climb(order: Order, parts: Sequence[Stages], job: Job, on_step: Callable[[Steps], None]) -> Outcome:
    total, picks_best = parts[0].total, parts[0].picks_best
    curve: dict[int, float] = {}
    rungs: list[tuple[float, float]] = []
    status: Status = "done"
    best = 0
    for share, cutoff in (*order.cutoffs, (1.0, None)):
        upto = max(1, round(share * total))
        if upto > parts[0].done:
            found = [part.advance(upto) for part in parts]
            curve |= {rounds: float(np.mean([f[rounds] for f in found])) for rounds in found[0]}
        best = min(curve, key=lambda rounds: (curve[rounds], rounds)) if picks_best else upto
        rungs.append((share, curve[best]))
        on_step([(rounds, measures.loss(job.metric, at)) for rounds, at in curve.items()])
        if picks_best and upto >= 4 and best <= upto // 2:
            later = [s for s, _ in order.cutoffs if s > share]
            rungs += [(s, curve[best]) for s in (*later, 1.0) if s > share]
            break
        if cutoff is not None and curve[best] > cutoff:
            status = "stopped"
            break
    return Outcome(
        status,
        measures.loss(job.metric, curve[best]),
        [(rounds, measures.loss(job.metric, at)) for rounds, at in curve.items()],
        [(share, measures.loss(job.metric, at)) for share, at in rungs],
        best,
        parts[0].refit(best),
    )
