"""Four ways to keep a model fresh, on the same history: never, monthly, a naive script, and the loop.

* never: the first version answers throughout.
* monthly: on the first of each month a search on the newest 60 days of labelled rows; always accepted. It keeps back
  one row in fifty for no gate, since it has none.
* naive: when a week's accuracy, a label horizon later, lies more than 0.02 below what the holdout promised, the first
  version's choice is fitted anew on the newest 60 days, and replaces if its accuracy on the newest fifth is higher.
* ours: the loop of `mlops-ray simulate`.

All four start from the same version, know a label when it comes, and score with the same ONNX graphs. What the loop's
settings say of retrains (`retraining`, `gates`, `rollout`, `search.half_life_s`) is its own; the rest of the search is
everybody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.loop.kept import Kept
from mlops_ray.config import DAY_S, Project
from mlops_ray.simulation import loop as simulated
from mlops_ray.simulation.history import History, history
from mlops_ray.simulation.training import Candidate
from mlops_ray.state import Store

SPAN_S = 60 * DAY_S


@dataclass
class Outcome:
    """What a policy came to: the score that each row got (n,), its retrains, and seconds of computing."""

    scores: np.ndarray
    retrains: int = 0
    promoted: int = 0
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)


def day(at_s: float) -> str:
    """The day of a time."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True)
class Year:
    """What all policies are given: the project, its rows, and the span in which there is traffic."""

    project: Project
    rows: History
    start: float
    end: float
    folder: Path
    first: Candidate
    kept: Kept

    @property
    def plain(self) -> Project:
        """The project without what is the loop's own: rows of any age count alike."""
        return unweighted(self.project)

    @property
    def lag_s(self) -> float:
        """All labels of a row are known after so long."""
        return self.project.monitoring.label_horizon_s

    def known(self, now: float) -> pa.Table:
        """Labelled rows of the `SPAN_S` before `now`, older than the label horizon."""
        h = self.rows
        inside = (h.times >= now - SPAN_S) & (h.times < now - self.lag_s) & (h.labelled <= now)
        return h.table.filter(pa.array(inside))

    def months(self) -> list[float]:
        """The first of each month in [start, end)."""
        firsts, moment = [], datetime.fromtimestamp(self.start, UTC).replace(day=1)
        while moment.timestamp() < self.end:
            firsts.append(max(moment.timestamp(), self.start))
            moment = moment.replace(year=moment.year + moment.month // 12, month=moment.month % 12 + 1)
        return firsts


def unweighted(project: Project) -> Project:
    """The project without `search.half_life_s`, which is the loop's way of choosing rows."""
    return project.model_copy(update={"search": project.search.model_copy(update={"half_life_s": None})})


def never(year: Year) -> Outcome:
    """The first version answers throughout."""
    rows = year.rows.between(year.start, year.end)
    scores = np.full(len(year.rows.times), np.nan)
    scores[rows] = year.first.model.score(year.rows.inputs(rows))
    return Outcome(scores)


def monthly(year: Year) -> Outcome:
    """A search on the first of each month, always accepted."""
    found = never(year)
    split = year.project.split.model_copy(update={"holdout_share": 0.02})
    project = year.plain.model_copy(update={"split": split})
    for number, first in enumerate(year.months()[1:], 2):
        table = year.known(first)
        made = year.kept.train(project, table, folder=year.folder / "monthly", number=number, rival=None, now=first)
        rows = year.rows.between(first, year.end)
        found.scores[rows] = made.model.score(year.rows.inputs(rows))
        found.retrains += 1
        found.told.append(f"{day(first)} {made.choice.estimator.split(':')[-1]}")
    found.promoted = found.retrains
    return found


def naive(year: Year) -> Outcome:
    """Fixed parameters when a week's accuracy falls, replaced if better on one split."""
    found, h = never(year), year.rows
    search = year.plain.search
    fixed = search.candidates[year.first.choice.candidate]
    fixed = fixed.model_copy(update={"params": dict(year.first.choice.params), "space": {}})
    project = year.project.model_copy(
        update={"search": search.model_copy(update={"candidates": (fixed,), "trials": 1})}
    )
    promised, now = year.first.metrics["accuracy"], year.start + 7 * DAY_S + year.lag_s
    serving = year.first.model
    while now < year.end:
        week = h.between(now - year.lag_s - 7 * DAY_S, now - year.lag_s)
        labelled = h.labelled[week] <= now
        right = ((found.scores[week] >= 0.5) == (h.y[week] > 0.5))[labelled].mean()
        if right < promised - 0.02:
            table = year.known(now)
            made = year.kept.train(
                project, table, folder=year.folder / "naive", number=int(now), rival=serving, now=now
            )
            found.retrains += 1
            newest = history(project, table)
            judged = slice(round(0.8 * len(newest.y)), len(newest.y))
            columns, y = newest.inputs(judged), newest.y[judged] > 0.5
            ours, theirs = (((m.score(columns) >= 0.5) == y).mean() for m in (made.model, serving))
            if ours > theirs:
                rows = h.between(now, year.end)
                serving, promised = made.model, ours
                found.scores[rows] = serving.score(h.inputs(rows))
                found.promoted += 1
            found.told.append(f"{day(now)} accuracy {right:.3f}: {'replaced' if ours > theirs else 'kept'}")
        now += 7 * DAY_S
    return found


def ours(year: Year) -> Outcome:
    """The loop, in virtual time."""
    folder = year.folder / "ours"
    folder.mkdir(parents=True)
    store = Store.open(f"sqlite:///{folder}/state.db")
    loop = simulated.Loop(year.project, year.rows, store, folder, year.first, start=year.start, train=year.kept.train)
    loop.until(year.end)
    told = [f"{day(e.at)} {e.kind} {e.subject}: {e.why}" for e in simulated.entries(loop)]
    n = len(simulated.retrains(loop))
    promoted = sum("rollout promoted" in line for line in told)
    found = Outcome(loop.answers.served, n, promoted, told=told)
    store.close()
    return found


POLICIES: dict[str, Callable[[Year], Outcome]] = {"never": never, "monthly": monthly, "naive": naive, "ours": ours}


def live(year: Year, name: str) -> Outcome:
    """A policy lived through. Its seconds count what was read of the kept versions as if it had been trained."""
    began, saved = time.perf_counter(), year.kept.saved
    found = POLICIES[name](year)
    found.seconds = time.perf_counter() - began + year.kept.saved - saved
    return found
