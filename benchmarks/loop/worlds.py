"""Generated drift: the same policies as on the flights, in worlds whose drift is known. Settings may be chosen here.

    OMP_NUM_THREADS=1 python -m benchmarks.loop.worlds
    OMP_NUM_THREADS=1 python -m benchmarks.loop.worlds --world sudden --variant refit --seeds 3

Every world has 300 days of `PER_DAY` rows, four numbers and a category that tell a label by a logistic rule, and days
that are better or worse than others for no reason (as with weather: a day's rows share it). Traffic begins at day 60.

* none: the rule stays.
* sudden: on day 150 two weights change places.
* gradual: one weight moves to its opposite between days 100 and 250, and the base rate rises.
* seasonal: inputs and base rate follow a wave of 240 days; the rule in the inputs stays.
* storms: the rule stays, and weeks come now and then in which the base rate is far higher.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.loop.kept import Kept
from benchmarks.loop.policies import POLICIES, Year, live, unweighted
from mlops_ray.config import DAY_S, Project
from mlops_ray.monitoring.performance import losses
from mlops_ray.simulation import loop as simulated
from mlops_ray.simulation.history import history

DAYS, BEGINS, PER_DAY = 300, 60, 80
FIRST = 1_704_067_200.0  # 2024-01-01
WORLDS = ("none", "sudden", "gradual", "seasonal", "storms")
BODY: dict[str, Any] = {
    "project": "world",
    "task": "binary",
    "target": "y",
    "key": "id",
    "event_time": "at",
    "storage": {"root": "never-made"},
    "source": {"kind": "parquet", "path": "nowhere"},
    "columns": [
        {"name": "id", "dtype": "string"},
        {"name": "at", "dtype": "timestamp"},
        {"name": "y", "dtype": "int"},
        *({"name": f"x{i}", "dtype": "float"} for i in range(4)),
        {"name": "kind", "dtype": "string"},
    ],
    "validation": {"min_rows": 500},
    "features": {
        "numeric": {"columns": ["x0", "x1", "x2", "x3"], "scale": "standard"},
        "categorical": {"columns": ["kind"]},
    },
    "search": {
        "trials": 2,
        "candidates": [
            {
                "estimator": "sklearn.linear_model:LogisticRegression",
                "space": {"C": {"kind": "log_uniform", "low": 0.001, "high": 1}},
            }
        ],
    },
    "gates": {"min_rows": 300, "margin": 0.02, "gain": 0.001, "resamples": 500, "leakage": None},
    "monitoring": {"min_rows": 200, "min_blocks": 8, "label_horizon_s": 2 * DAY_S, "false_alarms_per_month": 2},
    "rollout": {"shares": [0.2, 0.5], "look_s": DAY_S, "step_min_s": DAY_S, "step_max_s": 14 * DAY_S, "min_keys": 50},
    "retraining": {"cooldown_s": 21 * DAY_S},
}
LOOSE: dict[str, Any] = {"gates": {"margin": 0.1, "power": 0.05}}
QUICK: dict[str, Any] = LOOSE | {"rollout": {"shares": [0.5]}}
ALL: dict[str, Any] = QUICK | {"retraining": {"refit": True, "least_new_rows": 40 * PER_DAY, "train_on": "all"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "strict": {},
    "loose": LOOSE,
    "quick": QUICK,
    "refit": QUICK | {"retraining": {"refit": True}},
    "waits": QUICK | {"retraining": {"refit": True, "least_new_rows": 40 * PER_DAY}},
    "all": ALL,
    "fades": ALL | {"search": {"half_life_s": 60 * DAY_S}},
}
"""Settings of the loop, each beside those before: gates as the file of flights has them; gates that leave the judgement
to the canary; a canary of one step; a refit on the holdout; drift that waits for 40 days of rows; all rows; older
ones for less."""


def project(variant: str) -> Project:
    """The project with these settings of the loop."""
    body = {k: dict(v) if isinstance(v, dict) else v for k, v in BODY.items()}
    for block, changes in VARIANTS[variant].items():
        body[block] |= changes
    return Project.model_validate(body)


def generated(world: str, seed: int) -> pa.Table:
    """The rows of a world; `known` is when the label came, within a day."""
    rng = np.random.default_rng([seed, WORLDS.index(world)])
    n = DAYS * PER_DAY
    day = np.repeat(np.arange(DAYS), PER_DAY)
    at = FIRST + day * DAY_S + rng.random(n) * DAY_S
    x, kind = rng.normal(size=(n, 4)), rng.choice(["a", "b", "c"], n)
    weights = np.tile([1.0, -0.6, 0.4, 0.0], (n, 1))
    base = -1.2 + rng.normal(0, 0.35, DAYS)[day] + 0.3 * (kind == "b")
    if world == "sudden":
        weights[day >= 150] = [-0.6, 1.0, 0.4, 0.0]
    if world == "gradual":
        moved = np.clip((day - 100) / 150, 0, 1)
        weights[:, 0] = 1 - 2 * moved
        base = base + 0.6 * moved
    if world == "seasonal":
        wave = np.sin(2 * np.pi * day / 240)
        x[:, 2] += 1.5 * wave
        base = base + 0.6 * wave
    if world == "storms":
        weeks = rng.random(DAYS // 7 + 1) < 0.12
        base = base + 1.5 * weeks[day // 7]
    y = rng.random(n) < 1 / (1 + np.exp(-(base + (x * weights).sum(axis=1))))
    order = np.argsort(at, kind="stable")
    stamp = pa.timestamp("us", tz="UTC")
    known = at + rng.random(n) * DAY_S
    columns: dict[str, Any] = {
        "id": [f"r{i}" for i in range(n)],
        "at": pa.array((at[order] * 1e6).astype(np.int64)).cast(stamp),
        "known": pa.array((known[order] * 1e6).astype(np.int64)).cast(stamp),
        "y": pa.array(y[order].astype(np.int64)),
        "kind": pa.array(kind[order]),
    }
    return pa.table(columns | {f"x{i}": pa.array(x[order, i]) for i in range(4)})


def lived(world: str, seed: int, variant: str, policies: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Log-loss, retrains and versions that served of each policy in one world."""
    plan = project(variant)
    rows = history(plan, generated(world, seed), label_time="known")
    start, end = FIRST + BEGINS * DAY_S, FIRST + DAYS * DAY_S
    kept = Kept(folder / "kept")
    first = simulated.first_version(unweighted(plan), rows, folder, start=start, train=kept.train)
    year = Year(plan, rows, start, end, folder / f"{world}-{seed}-{variant}", first, kept)
    inside = rows.between(start, end)
    found = {}
    for name in policies:
        outcome = live(year, name)
        loss = float(losses(rows.y[inside], outcome.scores[inside]).mean())
        found[name] = {"loss": loss, "retrains": outcome.retrains, "promoted": outcome.promoted}
    return found


def main() -> None:
    """Live through the worlds and print means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", action="append", choices=WORLDS)
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    names = asked.variant or list(VARIANTS)
    print("log-loss (retrains, of them served), means over seeds\n")
    print("| world | never | monthly | naive | " + " | ".join(f"ours: {n}" for n in names) + " |")
    print("|---|---|---|---|" + "---|" * len(names))
    for world in asked.world or WORLDS:
        cells: dict[str, list[dict[str, Any]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(asked.seeds):
                for number, variant in enumerate(names):
                    policies = tuple(POLICIES) if number == 0 else ("ours",)
                    for policy, said in lived(world, seed, variant, policies, Path(folder)).items():
                        cells.setdefault(variant if policy == "ours" else policy, []).append(said)
        shown = [_shown(cells[name]) for name in ("never", "monthly", "naive", *names)]
        print(f"| {world} | " + " | ".join(shown) + " |", flush=True)


def _shown(runs: list[dict[str, Any]]) -> str:
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    return f"{mean['loss']:.4f} ({mean['retrains']:g}, {mean['promoted']:g})"


if __name__ == "__main__":
    main()
