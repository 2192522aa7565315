"""The year of flights: four policies on the same flights, March to December 2013 in time order, labels when landed.

    OMP_NUM_THREADS=1 python -m benchmarks.loop.flights --until 2013-07-01  # July to December is never looked at
    OMP_NUM_THREADS=1 python -m benchmarks.loop.flights --json year.json    # the year

* never: the version that January and February make.
* monthly: on the first of each month a search on the newest 60 days of labelled flights; always accepted. It keeps back
  one flight in fifty for no gate, since it has none.
* naive: when a week's accuracy, two days later, lies more than 0.02 below what the holdout promised, the first
  version's choice is fitted anew on the newest 60 days, and replaces if its accuracy on the newest fifth is higher.
* ours: `mlops-ray simulate` with configs/flights.yaml and configs/overlays/year.yaml.

All four start from the same version, know a label when the flight has landed, and score with the same ONNX graphs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from mlops_ray.config import DAY_S, Project
from mlops_ray.demo.flights import flights
from mlops_ray.monitoring.performance import losses
from mlops_ray.simulation import loop as simulated
from mlops_ray.simulation import training
from mlops_ray.simulation.history import History, history
from mlops_ray.simulation.training import Candidate
from mlops_ray.state import Store
from mlops_ray.verbs.simulate import load_with

FILES = (Path("configs/flights.yaml"), Path("configs/overlays/year.yaml"))
RESAMPLES = 2000
LAG_S = 2 * DAY_S
"""All labels of a flight are known after so long: the year's last comes 33 hours after departure."""


@dataclass
class Outcome:
    """What a policy came to: the score that each flight got (n,), its retrains, and seconds of computing."""

    scores: np.ndarray
    retrains: int = 0
    promoted: int = 0
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)


def at(day: str) -> float:
    """Midnight UTC, seconds since the epoch."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def day(at_s: float) -> str:
    """The day of a time."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True)
class Year:
    """What all policies are given."""

    project: Project
    flights: History
    start: float
    end: float
    folder: Path
    first: Candidate

    def known(self, now: float, span_s: float) -> pa.Table:
        """Labelled flights of the `span_s` before `now - LAG_S`."""
        h = self.flights
        inside = (h.times >= now - span_s) & (h.times < now - LAG_S) & (h.labelled <= now)
        return h.table.filter(pa.array(inside))


def never(year: Year) -> Outcome:
    rows = year.flights.between(year.start, year.end)
    scores = np.full(len(year.flights.times), np.nan)
    scores[rows] = year.first.model.score(year.flights.inputs(rows))
    return Outcome(scores)


def monthly(year: Year) -> Outcome:
    found, began = never(year), time.perf_counter()
    split = year.project.split.model_copy(update={"holdout_share": 0.02})
    project = year.project.model_copy(update={"split": split})
    for number, first in enumerate(months(year)[1:], 2):
        table = year.known(first, 60 * DAY_S)
        made = training.train(project, table, folder=year.folder / "monthly", number=number, rival=None, now=first)
        rows = year.flights.between(first, year.end)
        found.scores[rows] = made.model.score(year.flights.inputs(rows))
        found.retrains += 1
        found.told.append(f"{day(first)} {made.choice.estimator.split(':')[-1]}")
    found.promoted, found.seconds = found.retrains, time.perf_counter() - began
    return found


def naive(year: Year) -> Outcome:
    found, began, h = never(year), time.perf_counter(), year.flights
    search = year.project.search
    fixed = next(c for i, c in enumerate(search.candidates) if i == year.first.choice.candidate)
    fixed = fixed.model_copy(update={"params": dict(year.first.choice.params), "space": {}})
    project = year.project.model_copy(
        update={"search": search.model_copy(update={"candidates": (fixed,), "trials": 1})}
    )
    promised, now = year.first.metrics["accuracy"], year.start + 7 * DAY_S + LAG_S
    serving = year.first.model
    while now < year.end:
        week = h.between(now - LAG_S - 7 * DAY_S, now - LAG_S)
        labelled = h.labelled[week] <= now
        right = ((found.scores[week] >= 0.5) == (h.y[week] > 0.5))[labelled].mean()
        if right < promised - 0.02:
            table = year.known(now, 60 * DAY_S)
            made = training.train(project, table, folder=year.folder / "naive", number=int(now), rival=serving, now=now)
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
    found.seconds = time.perf_counter() - began
    return found


def ours(year: Year) -> Outcome:
    began = time.perf_counter()
    folder = year.folder / "ours"
    folder.mkdir()
    store = Store.open(f"sqlite:///{folder}/state.db")
    loop = simulated.Loop(year.project, year.flights, store, folder, year.first, start=year.start)
    loop.until(year.end)
    told = [f"{day(e.at)} {e.kind} {e.subject}: {e.why}" for e in simulated.entries(loop)]
    n = len(simulated.retrains(loop))
    promoted = sum("rollout promoted" in line for line in told)
    seconds = time.perf_counter() - began
    found = Outcome(loop.answers.served, n, promoted, seconds, told)
    store.close()
    return found


POLICIES: dict[str, Callable[[Year], Outcome]] = {"never": never, "monthly": monthly, "naive": naive, "ours": ours}


def months(year: Year) -> list[float]:
    """The first of each month in [start, end)."""
    firsts, moment = [], datetime.fromtimestamp(year.start, UTC)
    while moment.timestamp() < year.end:
        firsts.append(moment.timestamp())
        moment = moment.replace(year=moment.year + moment.month // 12, month=moment.month % 12 + 1)
    return firsts


def table(year: Year, found: dict[str, Outcome]) -> dict[str, Any]:
    """Log-loss and AUC per month and in all, and differences from `never` with block-bootstrap intervals by day."""
    h, firsts = year.flights, [*months(year), year.end]
    spans = [(day(a)[:7], a, b) for a, b in itertools.pairwise(firsts)] + [("all", year.start, year.end)]
    rows: list[dict[str, Any]] = []
    for name, since, until in spans:
        inside = (h.times >= since) & (h.times < until) & np.isfinite(h.labelled)
        y, of_day = h.y[inside], (h.times[inside] // DAY_S).astype(np.int64)
        n_days, of_day = len(np.unique(of_day)), np.unique(of_day, return_inverse=True)[1]
        row: dict[str, Any] = {"month": name, "flights": int(inside.sum())}
        base = losses(y, found["never"].scores[inside])
        rng = np.random.default_rng(13)
        drawn = rng.integers(0, n_days, (RESAMPLES, n_days))
        size = np.bincount(of_day, minlength=n_days)
        for policy, outcome in found.items():
            loss = losses(y, outcome.scores[inside])
            gaps = np.bincount(of_day, loss - base, n_days)
            means = gaps[drawn].sum(axis=1) / size[drawn].sum(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            row[policy] = {
                "log_loss": float(loss.mean()),
                "auc": float(roc_auc_score(y, outcome.scores[inside])),
                "gap": float((loss - base).mean()),
                "low": float(low),
                "high": float(high),
            }
        rows.append(row)
    policies = {
        name: {"retrains": o.retrains, "promoted": o.promoted, "seconds": round(o.seconds, 1), "told": o.told}
        for name, o in found.items()
    }
    return {"rows": rows, "policies": policies}


def show(result: dict[str, Any]) -> None:
    """The table in Markdown."""
    names = list(result["policies"])
    print("| month | flights | " + " | ".join(f"{n} log-loss (AUC)" for n in names) + " |")
    print("|---|---|" + "---|" * len(names))
    for row in result["rows"]:
        cells = []
        for name in names:
            c = row[name]
            gap = "" if name == "never" else f" {c['gap']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]"
            cells.append(f"{c['log_loss']:.4f} ({c['auc']:.3f}){gap}")
        print(f"| {row['month']} | {row['flights']:,} | " + " | ".join(cells) + " |")
    for name, said in result["policies"].items():
        print(f"{name}: {said['retrains']} retrains, {said['promoted']} served, {said['seconds']:g} s of computing")
        for line in said["told"]:
            print(f"    {line[:240]}")


def main() -> None:
    """Run the policies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", default="2014-01-01", help="first day that is not lived through")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all; `never` always runs")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    project = load_with(FILES, {}, asked.settings)
    start, end = at("2013-03-01"), at(asked.until)
    lived = flights()
    lived = lived.filter(pa.array(lived["event_time"].cast("int64").to_numpy() < end * 1e6))
    rows = history(project, lived, label_time="landed")
    with tempfile.TemporaryDirectory() as folder:
        first = simulated.first_version(project, rows, Path(folder), start=start)
        year = Year(project, rows, start, end, Path(folder), first)
        wanted = dict.fromkeys(["never", *(asked.policy or POLICIES)])
        result = table(year, {name: POLICIES[name](year) for name in wanted})
    show(result)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
