"""What policies came to, month by month, with block-bootstrap intervals of their differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.loop.policies import Outcome, Year, day
from mlops_ray.config import DAY_S
from mlops_ray.monitoring.performance import losses

RESAMPLES = 2000
Spans = Iterator[tuple[str, float, float]]


def table(year: Year, found: dict[str, Outcome]) -> dict[str, Any]:
    """Log-loss and AUC per month and in all; of each pair of policies the difference, its 95 % interval by bootstrap
    over days (`gaps`: of the first less the second)."""
    h = year.rows
    rows: list[dict[str, Any]] = []
    for name, since, until in _spans(year):
        inside = (h.times >= since) & (h.times < until) & np.isfinite(h.labelled)
        y, of_day = h.y[inside], np.unique((h.times[inside] // DAY_S).astype(np.int64), return_inverse=True)[1]
        loss = {policy: losses(y, outcome.scores[inside]) for policy, outcome in found.items()}
        row: dict[str, Any] = {"month": name, "flights": int(inside.sum()), "gaps": {}}
        for policy, outcome in found.items():
            auc = float(roc_auc_score(y, outcome.scores[inside])) if 0 < y.sum() < len(y) else None
            row[policy] = {"log_loss": float(loss[policy].mean()), "auc": auc}
        for other, policy in itertools.combinations(found, 2):
            row["gaps"][f"{policy} - {other}"] = _interval(loss[policy] - loss[other], of_day)
        rows.append(row)
    policies = {
        name: {"retrains": o.retrains, "promoted": o.promoted, "seconds": round(o.seconds, 1), "told": o.told}
        for name, o in found.items()
    }
    return {"rows": rows, "policies": policies}


def show(result: dict[str, Any]) -> None:
    """The tables in Markdown."""
    names = list(result["policies"])
    print(f"settings: {result['settings']}\n")
    print("| month | flights | " + " | ".join(f"{n} log-loss (AUC)" for n in names) + " |")
    print("|---|---|" + "---|" * len(names))
    for row in result["rows"]:
        cells = (f"{row[n]['log_loss']:.4f} ({row[n]['auc']:.3f})" for n in names)
        print(f"| {row['month']} | {row['flights']:,} | " + " | ".join(cells) + " |")
    pairs = list(result["rows"][0]["gaps"])
    if pairs:
        print("\n| month | " + " | ".join(pairs) + " |\n|---|" + "---|" * len(pairs))
    for row in result["rows"] if pairs else ():
        gaps = (row["gaps"][pair] for pair in pairs)
        print(f"| {row['month']} | " + " | ".join(f"{g[0]:+.4f} [{g[1]:+.4f}, {g[2]:+.4f}]" for g in gaps) + " |")
    print()
    for name, said in result["policies"].items():
        print(f"{name}: {said['retrains']} retrains, {said['promoted']} served, {said['seconds']:g} s of computing")
        for line in said["told"]:
            print(f"    {line[:240]}")


def _spans(year: Year) -> Spans:
    firsts = [*year.months(), year.end]
    yield from ((day(a)[:7], a, b) for a, b in itertools.pairwise(firsts))
    yield "all", year.start, year.end


def _interval(gaps: np.ndarray, of_day: np.ndarray) -> tuple[float, float, float]:
    """Mean of `gaps`, and its interval."""
    n_days = int(of_day.max()) + 1
    drawn = np.random.default_rng(13).integers(0, n_days, (RESAMPLES, n_days))
    sums, sizes = np.bincount(of_day, gaps, n_days), np.bincount(of_day, minlength=n_days)
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)
