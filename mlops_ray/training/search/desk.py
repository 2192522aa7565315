"""Who runs which trial: orders for lanes, the budget of seconds, and what became of a lane that died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlops_ray import config
from mlops_ray.training.search import measures
from mlops_ray.training.search.lane import Steps
from mlops_ray.training.search.study import Study
from mlops_ray.training.search.trials import Order, TrialEnded


@dataclass
class _Running:
    order: Order
    started: float
    steps: Steps = field(default_factory=tuple)


class Desk:
    """Hands out the points of a study, one at a time to each lane. Times are seconds of one clock, `now`.

    `deadline` is when the search's seconds are used up.
    """

    def __init__(self, plan: config.Search, study: Study, finished: Sequence[TrialEnded], *, deadline: float) -> None:
        self._plan, self._study, self._deadline = plan, study, deadline
        self._metric = study.metric
        self._running: dict[str, _Running] = {}
        self._ended: set[int] = set()
        self._next = 0
        for trial in finished:
            self._end(trial)

    def take(self, lane: str, now: float) -> Order | Literal[False] | None:
        """The next trial for `lane`; None when there is none left, False when one may come once others have ended."""
        while True:
            number = self._next
            if now >= self._deadline or number >= self._study.planned:
                return None
            if not self._study.ready(number):
                return False
            choice = self._study.choice(number)
            if choice is None:
                return None
            self._next += 1
            if number not in self._ended:
                break
        left = self._deadline - now
        order = Order(number, choice, self._study.cutoffs(number), min(left, self._plan.trial_max_s or left))
        self._running[lane] = _Running(order, now)
        return order

    def prepare(self) -> None:
        """Think of the next point before anybody asks for it."""
        if self._next < self._study.planned and self._study.ready(self._next):
            self._study.choice(self._next)

    def step(self, lane: str, steps: Steps) -> None:
        """What the trial of `lane` has shown so far."""
        if lane in self._running:
            self._running[lane].steps = steps

    def end(self, lane: str, trial: TrialEnded) -> None:
        """The trial of `lane` has ended."""
        self._running.pop(lane, None)
        self._end(trial)

    def lost(self, lane: str, reason: str, now: float, last: TrialEnded | None = None) -> TrialEnded | None:
        """`lane` died: what its trial counts as, or None when it was running none.

        Past the deadline the trial was cut short by the budget; past its own limit it took too long; else it died of
        `reason`. last: the last trial of this lane that is known to have ended.
        """
        running = self._running.pop(lane, None)
        if running is None:
            return None
        order, spent = running.order, now - running.started
        if last is not None and last.number == order.number:
            self._end(last)
            return None
        if now >= self._deadline:
            best = None
            if running.steps:
                best = measures.best(self._metric, [score for _, score in running.steps])
            why = "the search's time was up (search.max_s)"
            return TrialEnded(
                order.number, order.choice, "stopped", best, tuple(running.steps), spent, error=why, cut_short=True
            )
        if spent >= order.limit_s:
            reason = f"took longer than search.trial_max_s = {self._plan.trial_max_s:g} s"
        failed = TrialEnded(order.number, order.choice, "failed", None, tuple(running.steps), spent, error=reason)
        self._end(failed)
        return failed

    def rest(self, now: float) -> list[TrialEnded]:
        """What still runs when the search is over counts as cut short."""
        ended = [self.lost(lane, "", max(now, self._deadline)) for lane in list(self._running)]
        return [trial for trial in ended if trial is not None]

    def _end(self, trial: TrialEnded) -> None:
        if trial.number not in self._ended:
            self._ended.add(trial.number)
            self._study.result(trial)
