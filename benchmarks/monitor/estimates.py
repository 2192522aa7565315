"""How often the intervals of estimates without labels hold what is realised later: in made worlds, and on flights.

    python benchmarks/monitor/estimates.py [--holdouts 1000]

Made worlds: holdouts of 40 days x 100 rows, and for each three windows of 7 days. Flights: a model of the first 47 days
of 2013 with the next 12 as its holdout, then week by week to the end of June. About five minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measure import show
from mlops_ray.config import Task, load_project
from mlops_ray.data import profile
from mlops_ray.data.features.statistics import fold, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.estimation import estimate, realised
from mlops_ray.monitoring.importance import weigh
from mlops_ray.training import calibration
from mlops_ray.training.evaluation.intervals import blocks

ROOT = Path(__file__).parents[2]
DAYS, ROWS, WINDOW = 40, 100, 7
BINS = Bins({"x": tuple(np.linspace(-2, 2, 19))}, {})
Drawn = tuple[Any, Any, dict[str, Any]]
World = Callable[[np.random.Generator, int, float], Drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--holdouts", type=int, default=1000)
    options = parser.parse_args()
    worlds: tuple[tuple[str, Task, World, float], ...] = (
        ("binary, rows independent", "binary", binary, 0.0),
        ("binary, rows of a day alike", "binary", alike, 0.0),
        ("binary, inputs move by a sigma", "binary", binary, 1.0),
        ("multiclass", "multiclass", multiclass, 0.0),
        ("regression", "regression", regression, 0.0),
        ("regression, inputs move by 0.7 sigma", "regression", regression, 0.7),
    )
    lines = [[name, coverage(task, world, shift, options.holdouts)] for name, task, world, shift in worlds]
    show(
        f"Windows whose interval (95 %) held what was realised; {options.holdouts} holdouts", ("world", "share"), lines
    )
    flights()


# Made worlds ----------------------------------------------------------------------------------------------------------


def coverage(task: Task, world: World, shift: float, holdouts: int) -> str:
    inside: dict[str, list[bool]] = {}
    for seed in range(holdouts):
        rng = np.random.default_rng(seed)
        y, scores, columns = world(rng, DAYS, 0.0)
        known = calibration.fit(task, y, scores, blocks(np.arange(len(y)), ROWS), BINS, columns)
        for _ in range(3):
            later, said, moved = world(rng, WINDOW, shift)
            truth = realised(task, later, said, threshold=0.5)
            for name, found in estimate(known, said, profile.codes(BINS, moved), threshold=0.5).items():
                inside.setdefault(name, []).append(found.low <= truth[name] <= found.high)
    return ", ".join(f"{name} {np.mean(each):.1%}" for name, each in inside.items())


def binary(rng: np.random.Generator, days: int, shift: float, shock: float = 0.0) -> Drawn:
    """Scores that say too much; `shock` leans all outcomes of a day to one side."""
    x = rng.normal(shift, 1, days * ROWS)
    logit = 0.8 * x - 0.5 + np.repeat(rng.normal(0, shock, days), ROWS)
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return y, 1 / (1 + np.exp(-1.5 * x)), {"x": x.astype(np.float32)}


def alike(rng: np.random.Generator, days: int, shift: float) -> Drawn:
    return binary(rng, days, shift, shock=0.4)


def multiclass(rng: np.random.Generator, days: int, shift: float) -> Drawn:
    truth = rng.dirichlet([2.0, 1.0, 0.5], days * ROWS)
    y = (rng.random((len(truth), 1)) > truth.cumsum(axis=1)).sum(axis=1)
    said = truth**1.6 + 1e-4
    columns = {"x": rng.normal(shift, 1, len(y)).astype(np.float32)}
    return y, said / said.sum(axis=1, keepdims=True), columns


def regression(rng: np.random.Generator, days: int, shift: float) -> Drawn:
    """Errors grow with x."""
    x = rng.normal(shift, 1, days * ROWS)
    return 2 * x + rng.normal(0, 1, len(x)) * np.exp(0.5 * x), 2 * x, {"x": x.astype(np.float32)}


# Flights --------------------------------------------------------------------------------------------------------------


def flights() -> None:
    """Weeks of March to June, estimated and realised."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from mlops_ray.demo.flights import history

    features = load_project([ROOT / "configs/flights.yaml"], env={}).features
    rows = history("2013-01-01", "2013-07-01").sort_by("event_time")
    times, y = rows["event_time"].cast("int64").to_numpy() / 1e6, rows["late"].to_numpy()
    day, columns = np.floor((times - times[0]) / 86_400.0), to_columns(features, rows)
    train, holdout = day < 47, (day >= 47) & (day < 59)
    seen = fold(features, rows.filter(train))
    steps, edges = transformer(features, seen), bins(features, seen)
    matrix = steps.transform(to_frame(features, columns))
    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=100, early_stopping=False, random_state=0
    ).fit(matrix[train], y[train])
    scores, codes = model.predict_proba(matrix)[:, 1], profile.codes(edges, columns)
    mine = {name: values[holdout] for name, values in columns.items()}
    known = calibration.fit("binary", y[holdout], scores[holdout], blocks(times[holdout], 86_400.0), edges, mine)
    before = realised("binary", y[holdout], scores[holdout], threshold=0.5)["log_loss"]
    lines: list[tuple[str, ...]] = []
    errors: dict[str, list[tuple[float, float, bool]]] = {"direct": [], "weighted": []}
    for week in range(17):
        rows_of = (day >= 59 + 7 * week) & (day < 66 + 7 * week)
        said, bins_of = scores[rows_of], codes[rows_of]
        truth = realised("binary", y[rows_of], said, threshold=0.5)["log_loss"]
        weighed = weigh(known, known.place(said, bins_of), bins_of, min_rows=500, rng=np.random.default_rng(week))
        again = {"direct": known} | ({} if weighed.weights is None else {"weighted": known.reweighted(weighed.weights)})
        cells = dict.fromkeys(errors, "refused")
        for method, each in again.items():
            found = estimate(each, said, bins_of, threshold=0.5)["log_loss"]
            errors[method].append((found.value - truth, before - truth, found.low <= truth <= found.high))
            cells[method] = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        line = (str(week), f"{y[rows_of].mean():.1%}", f"{truth:.3f}", *cells.values(), f"{weighed.effective:.0f}")
        lines.append(line)
    names = ("week", "late", "log-loss", "direct", "weighted", "effective rows of 5,000")
    show(f"Flights, log-loss estimated before labels; the holdout's was {before:.3f}", names, lines)
    for method, told in errors.items():
        ours, none = (math.sqrt(float(np.mean([gap[i] ** 2 for gap in told]))) for i in (0, 1))
        held = sum(each[2] for each in told)
        print(f"{method}: {held} of {len(told)} intervals held; error {ours:.3f}, of 'as on the holdout' {none:.3f}")


if __name__ == "__main__":
    main()
