"""One trial of boosting that tells every round: when it is stopped, and what it counts as."""

from __future__ import annotations

import math

from mlops_ray.config import SearchMetric
from mlops_ray.training.search import measures
from mlops_ray.training.search.stages import POINTS
from mlops_ray.training.search.trials import Order, Status, TrialEnded


class Climb:
    """Follows a trial over its rungs, by the rules of `lane.evaluate`: at a rung it is stopped where its loss is above
    the order's cut-off, and has ended where the best round lies in the first half.

    `early` False: the trial runs to its end, and its last round counts.
    """

    def __init__(self, order: Order, metric: SearchMetric, *, total: int, early: bool) -> None:
        self._order, self._metric, self._total, self._early = order, metric, total, early
        self._every = -(-total // POINTS)
        self._best, self._best_round, self._last, self._done = float("inf"), 0, float("nan"), 0
        self._left = list(order.cutoffs) if early else []
        self._rungs: list[tuple[float, float]] = []
        self.steps: list[tuple[int, float]] = []
        self.status: Status = "done"

    def round(self, done: int, score: float) -> bool:
        """After a round: whether to stop. A round that was told before (after a checkpoint) changes nothing."""
        if done <= self._done:
            return False
        self._done, self._last = done, measures.loss(self._metric, score)
        if self._last < self._best:
            self._best, self._best_round = self._last, done
        share, cutoff = self._left[0] if self._left else (1.0, None)
        at_rung = done >= max(1, round(share * self._total))
        if done % self._every == 0 or at_rung:
            self.steps.append((done, score))
        if not (self._early and at_rung):
            return False
        self._left = self._left[1:]
        self._rungs.append((share, self._best))
        if done >= 4 and self._best_round <= done // 2:
            self._rungs += [(later, self._best) for later, _ in (*self._left, (1.0, None)) if later > share]
            return True
        if cutoff is not None and self._best > cutoff:
            self.status = "stopped"
            return True
        return False

    def ended(self, seconds: float) -> TrialEnded:
        """The trial, after its fit; failed when its metric was no number, of validation rows of one class, say."""
        loss, rounds = (self._best, self._best_round) if self._early else (self._last, None)
        if not math.isfinite(loss):
            why = f"{self._metric} cannot be computed; it may need two classes among the validation rows"
            return TrialEnded(self._order.number, self._order.choice, "failed", None, seconds=seconds, error=why)
        return TrialEnded(
            number=self._order.number,
            choice=self._order.choice,
            status=self.status,
            score=measures.loss(self._metric, loss),
            steps=tuple(self.steps),
            seconds=seconds,
            rungs=tuple((share, measures.loss(self._metric, at)) for share, at in self._rungs),
            rounds=rounds,
            refit={"n_estimators": rounds} if rounds is not None else {},
        )
