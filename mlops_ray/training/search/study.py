"""Which point is tried next: Optuna's TPE, made to depend on the numbers of trials and not on when they end.

Trial n is suggested from the results of the trials up to n - `lag`, and from the points (not the results) of those in
between, whichever of them have ended by then. The same holds for the losses that its rungs are compared with. So a
search is the same on every machine and after every crash, as long as no time limit cuts in. What it costs: suggestions
know a few results less, and a lane waits when another is `lag` trials behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray import config
from mlops_ray.training.search import lane, measures, spaces
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.presets import Searched
from mlops_ray.training.search.trials import TrialEnded

if TYPE_CHECKING:
    import optuna

LAG = 3
"""Results that a suggestion does not wait for, per lane. Simulated for two lanes, 64 trials and four families whose
fits take half a second to half a minute: lanes idle 30 % of the time at 1, 11 % at 2, 5 % at 3, 2 % at 4, and the best
loss is the same to the third digit."""
RANDOM = 8
"""Most trials before the sampler learns (beyond each candidate's first), a quarter of the budget where that is less:
TPE's own ten would leave a search of twelve to chance."""
TRIES = 10
"""Suggestions of points that were tried already, until the spaces count as exhausted."""


@dataclass(frozen=True)
class _Asked:
    """A point, the values that Optuna knows it by, and the number of the running trial that stands for it there."""

    choice: Choice
    values: dict[str, Any]
    running: int


class Study:
    """The points of one search in their order. Trials are numbered from 0."""

    def __init__(
        self,
        plan: config.Search,
        listed: Sequence[Searched],
        metric: config.SearchMetric,
        *,
        seed: int,
        warm: Sequence[Choice] = (),
    ) -> None:
        """Args: warm: points to begin with, the best of another search; those that the spaces do not hold are left
        out."""
        import optuna

        self._starts = spaces.starts(listed, warm)
        self._plan, self._listed, self.metric, self._seed = plan, tuple(listed), metric, seed
        self._shares = lane.shares(plan.early_stopping)
        self._lag = LAG * plan.concurrency
        with _quiet():
            self._study = optuna.create_study(sampler=self._sampler(0, 0))
        self._asked: list[_Asked] = []
        self._told = 0
        self._results: dict[int, TrialEnded] = {}
        self._known: set[str] = set()
        self._exhausted = False

    @property
    def planned(self) -> int:
        """How many trials there will be, as far as is known."""
        return len(self._asked) if self._exhausted else self._plan.trials

    def ready(self, number: int) -> bool:
        """Whether all that the point of trial `number` depends on is there."""
        return number < len(self._asked) or all(n in self._results for n in range(self._told, number - self._lag + 1))

    def result(self, trial: TrialEnded) -> None:
        """Remember how a trial ended; results may come in any order, and before their points were asked for."""
        self._results[trial.number] = trial

    def choice(self, number: int) -> Choice | None:
        """The point of trial `number`, for numbers asked in order; None when every point was tried.

        A trial whose result is known already keeps the point that it had."""
        while len(self._asked) <= number and not self._exhausted:
            self._ask(len(self._asked))
        return self._asked[number].choice if number < len(self._asked) else None

    def cutoffs(self, number: int) -> tuple[tuple[float, float | None], ...]:
        """For each rung its share, and the loss above which trial `number` is not among the best 1 / reduction there.

        It is compared with trials of its own candidate only: a tenth of a forest's trees is nearly as good as all, a
        tenth of slow boosting is not, and to compare the two would always stop the latter.
        Source: Li et al. 2020, algorithm 2 (`top_k` of the rung's trials so far).
        """
        choice = self._asked[number].choice
        before = [self._results[n] for n in range(number - self._lag + 1) if n in self._results]
        family = [dict(t.rungs) for t in before if t.choice.candidate == choice.candidate and t.status != "failed"]
        found: list[tuple[float, float | None]] = []
        for share in self._shares:
            there = sorted(measures.loss(self.metric, rungs[share]) for rungs in family if share in rungs)
            kept = (len(there) + 1) // self._reduction
            found.append((share, there[kept - 1] if kept else None))
        return tuple(found)

    @property
    def _reduction(self) -> int:
        return self._plan.early_stopping.reduction if self._plan.early_stopping is not None else 1

    def _ask(self, number: int) -> None:
        while self._told <= number - self._lag:
            self._tell(self._told)
            self._told += 1
        for attempt in range(TRIES):
            self._study.sampler = self._sampler(number, attempt)
            kept = self._results.get(number)
            start = self._starts[number] if attempt == 0 and number < len(self._starts) else None
            if kept is not None:
                start = spaces.point(kept.choice, self._listed[kept.choice.candidate])
            if start is not None:
                self._study.enqueue_trial(start)
            with _quiet():
                trial = self._study.ask()
                choice = spaces.sample(trial, self._listed)
            # What is left of the trial are its values. Optuna keeps with a running one what it would have drawn for
            # the other candidates, and lets later suggestions depend on it.
            self._study.tell(trial, state=_states().FAIL)
            name = repr((choice.candidate, sorted(choice.params.items())))
            if kept is not None or name not in self._known:  # the same fit again would show the same
                self._known.add(name)
                values = {"params": trial.params, "distributions": trial.distributions}
                self._add(state=_states().RUNNING, **values)
                running = len(self._study.get_trials(deepcopy=False)) - 1
                self._asked.append(_Asked(kept.choice if kept is not None else choice, values, running))
                return
        self._exhausted = True

    def _tell(self, number: int) -> None:
        """Hand a result to the sampler: a stopped trial by its rungs, a failed one as worse than all, lest a
        candidate that always fails keeps being tried."""
        asked, ended, states = self._asked[number], self._results[number], _states()
        self._study.tell(asked.running, state=states.FAIL)
        if ended.status == "failed" or ended.score is None:
            done = [t.value for t in self._study.get_trials(deepcopy=False) if t.value is not None]
            if done:
                self._add(state=states.COMPLETE, value=float(np.nextafter(max(done), np.inf)), **asked.values)
        elif ended.status == "done":
            self._add(state=states.COMPLETE, value=measures.loss(self.metric, ended.score), **asked.values)
        else:
            seen = {round(1000 * share): measures.loss(self.metric, score) for share, score in ended.rungs}
            self._add(state=states.PRUNED, intermediate_values=seen, **asked.values)

    def _add(self, **what: Any) -> None:
        import optuna

        with _quiet():
            self._study.add_trial(optuna.trial.create_trial(**what))

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        """A sampler of its own for each trial, so that its draws depend on no other trial's.

        `group` learns each candidate's parameters jointly and apart from the others' (Falkner et al. 2018 for the
        joint density); `constant_liar` keeps it away from points that are being tried."""
        import optuna

        seed = int(np.random.SeedSequence([self._seed, number, attempt]).generate_state(1)[0])
        random = len(self._starts) + min(RANDOM, self._plan.trials // 4)
        with _quiet():
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=random, multivariate=True, group=True, constant_liar=True
            )


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a verb, like the context managers of contextlib
    """Optuna calls what we use of TPE experimental, at every use."""

    def __enter__(self) -> Any:
        from optuna.exceptions import ExperimentalWarning

        entered = super().__enter__()
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        return entered
