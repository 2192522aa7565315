"""Evaluation of 10,000 rows x 30 features: seconds of each part, and error rates of the search for weak slices.

    python benchmarks/evaluation.py

Metrics run beside what they replace: each resample's rows repeated and handed to scikit-learn, timed on some resamples
and multiplied. The search runs on rows without a weak slice, and on rows with one of rising size of effect.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from measure import show

from mlops_ray.training.evaluation import curves, importance, intervals, leakage, metrics, plots, slices
from mlops_ray.training.evaluation.intervals import Blocks

DAYS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=1000, help="of the search's error rates")
    options = parser.parse_args()
    timings(options.rows, options.features, options.resamples)
    errors(options.repetitions)


def seconds(once: Callable[[], Any], rounds: int = 3) -> float:
    """The fastest of some rounds, the first of which warms up."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
    return min(taken)


# Speed ----------------------------------------------------------------------------------------------------------------


def inputs(n: int, features: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Two thirds numbers, one third categories of ten values."""
    texts = features // 3
    columns: dict[str, np.ndarray] = {
        f"x{i}": random.normal(size=n).astype(np.float32) for i in range(features - texts)
    }
    return columns | {f"c{i}": random.choice(list("abcdefghij"), n).astype(object) for i in range(texts)}


def timings(n: int, features: int, resamples: int) -> None:
    random = np.random.default_rng(7)
    given = intervals.grouped(random.integers(0, DAYS, n))
    columns = inputs(n, features, random)
    p = random.beta(2, 3, n)
    y = (random.random(n) < p).astype(np.int64)
    several = random.dirichlet(np.ones(5), n)
    classes = np.array([random.choice(5, p=row) for row in several])
    number = random.normal(size=n)
    said = number + random.standard_t(3, n)
    losses = metrics.row_losses("binary", y, p, 1.0)
    common: dict[str, Any] = {"resamples": resamples, "alpha": 0.05, "rng": random}
    slow = seconds(lambda: by_rows(y, p, given, random), rounds=2) * resamples / 20
    parts: dict[str, Callable[[], Any]] = {
        "10 metrics, binary": lambda: metrics.evaluate("binary", y, p, given, **common),
        "10 metrics, 5 classes": lambda: metrics.evaluate("multiclass", classes, several, given, **common),
        "5 metrics, regression": lambda: metrics.evaluate("regression", number, said, given, **common),
        "weak slices, singles and pairs": lambda: slices.weak(columns, losses, given, min_rows=100, **common),
        "leakage probes": lambda: leakage.probes("binary", columns, y, rng=random),
        "duplicates": lambda: leakage.duplicates(columns, columns),
        "permutation importance, a model that answers at once": lambda: importance.permutation(
            "binary", columns, y, lambda c: np.full(len(c["x0"]), 0.4), given, **common
        ),
        "curves and their plots as SVG and PNG": lambda: [
            (plots.svg(f), plots.png(f)) for f in plots.figures(curves.curves("binary", y, p, (0, 1))).values()
        ],
    }
    rows = [("10 metrics, binary, row by row with scikit-learn", f"{slow:.1f}", "")]
    for name, once in parts.items():
        taken = seconds(once)
        rows.append((name, f"{taken:.2f}", f"{slow / taken:.0f} times faster" if name == "10 metrics, binary" else ""))
    show(f"{n:,} rows x {features} features, {resamples:,} resamples of {DAYS} days", ("part", "seconds", ""), rows)


def by_rows(y: np.ndarray, p: np.ndarray, given: Blocks, random: np.random.Generator) -> None:
    """Twenty resamples the plain way."""
    from sklearn import metrics as sk

    for weights in intervals.resample(len(given), 20, random):
        rows = np.repeat(np.arange(len(y)), weights.astype(np.int64)[given.index])
        labels, scores = y[rows], p[rows]
        decided = scores >= 0.5
        for metric in (sk.log_loss, sk.brier_score_loss, sk.roc_auc_score, sk.average_precision_score):
            metric(labels, scores)
        for metric in (sk.accuracy_score, sk.balanced_accuracy_score, sk.precision_score, sk.recall_score, sk.f1_score):
            metric(labels, decided)
        curves.calibration(labels, scores)


# Error rates ----------------------------------------------------------------------------------------------------------


def errors(repetitions: int) -> None:
    random = np.random.default_rng(7)
    rows = []
    for kind in ("normal", "day effects", "exponential", "log-normal", "rare mistakes"):
        named = sum(bool(search(random, kind, 0.0)) for _ in range(repetitions))
        bound = stats.beta.ppf(0.95, named + 1, repetitions - named)  # Clopper and Pearson 1934
        rows.append((kind, "none", f"{named / repetitions:.3f}", f"95 % bound {bound:.3f}; alpha 0.05"))
    for effect in (0.25, 0.5, 0.75, 1.0):
        found = [search(random, "exponential", effect) for _ in range(repetitions // 10)]
        right = np.mean([any(dict(s.conditions) == {"c0": "= a", "c1": "= b"} for s in each) for each in found])
        rows.append(("exponential", f"{effect:g} sd in one pair", f"{right:.2f}", "the pair itself was named"))
    title = f"search for weak slices: 3,000 rows x 9 features, 30 days, {repetitions} repetitions"
    show(title, ("losses", "planted", "named one", ""), rows)


def search(random: np.random.Generator, kind: str, effect: float) -> tuple[slices.Slice, ...]:
    n = 3000
    day = random.integers(0, 30, n)
    columns = inputs(n, 9, random)
    columns["x0"] = columns["x0"] + random.normal(size=30)[day]
    for name in ("c0", "c1"):
        columns[name] = random.choice(list("abcde"), n).astype(object)
    losses = {
        "normal": lambda: random.normal(size=n),
        "day effects": lambda: random.normal(size=n) + random.normal(size=30)[day],
        "exponential": lambda: random.exponential(size=n),
        "log-normal": lambda: random.lognormal(0, 1.2, size=n),
        "rare mistakes": lambda: 3.0 * (random.random(n) < 0.05),
    }[kind]()
    losses = losses + effect * ((columns["c0"] == "a") & (columns["c1"] == "b"))
    settings: dict[str, Any] = {"min_rows": 80, "resamples": 600, "alpha": 0.05}
    return slices.weak(columns, losses, intervals.grouped(day), rng=random, **settings)


if __name__ == "__main__":
    main()
