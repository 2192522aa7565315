"""Our search beside scikit-learn's RandomizedSearchCV(n_jobs=2), on flights of January and February, in turns.

    python benchmarks/search.py fixed      # the same 64 fits on the same split: what the framework costs
    python benchmarks/search.py quality    # time to the best validation log-loss that 64 of theirs reach

`fixed`: 30,000 rows, the newest quarter validates; both run a list of 64 small boosting models, each fitted once. Ray
runs already, as a cluster does; joblib's workers are started anew in each round, as a script that searches once does
(`--warm` keeps them). `quality`: theirs is HistGradientBoostingClassifier over distributions as its documentation would
have them; ours is the project file's presets with their defaults, and stops as soon as it is as good.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PRESETS = ("linear", "random_forest", "extra_trees", "hist_gradient_boosting")


def rows(n: int, n_train: int) -> Any:
    """The oldest `n` flights as a fold, features fitted on the first `n_train` of them."""
    import pyarrow as pa

    from mlops_ray.config import load_project
    from mlops_ray.data.features.statistics import fold, to_columns, to_frame
    from mlops_ray.data.features.transformer import transformer
    from mlops_ray.demo.flights import history
    from mlops_ray.training.search.trials import FoldData

    features = load_project(ROOT / "configs/flights.yaml", env={}).features
    table = history("2013-01-01", "2013-03-01")
    table = table.take(pa.array(np.argsort(table["event_time"].cast(pa.int64()).to_numpy(), kind="stable")[:n]))
    fitted = transformer(features, fold(features, table.slice(0, n_train)))
    matrix = fitted.transform(to_frame(features, to_columns(features, table)))
    return FoldData(np.ascontiguousarray(matrix, dtype=np.float64), n_train, table["late"].to_numpy().astype(np.int64))


def theirs(fold: Any, distributions: Any, n: int, seed: int, *, warm: bool) -> tuple[float, float]:
    """Seconds and best log-loss of RandomizedSearchCV."""
    from joblib.externals.loky import get_reusable_executor
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import PredefinedSplit, RandomizedSearchCV

    if not warm:
        get_reusable_executor().shutdown(wait=True)
    side = np.where(np.arange(len(fold.y)) < fold.n_train, -1, 0)
    model = HistGradientBoostingClassifier(early_stopping=False, random_state=seed)
    search = RandomizedSearchCV(
        model, distributions, n_iter=n, scoring="neg_log_loss", n_jobs=2, cv=PredefinedSplit(side), refit=False,
        random_state=seed, error_score="raise",
    )  # fmt: skip
    began = time.perf_counter()
    search.fit(fold.matrix, fold.y)
    return time.perf_counter() - began, -float(search.best_score_)


class Reached(Exception):
    """The search is as good as it was asked to be."""


def ours(fold: Any, plan: Any, seed: int, *, target: float | None = None) -> tuple[float, float, int]:
    """Seconds, best log-loss and trials of our search; with `target`, until that is reached."""
    from mlops_ray.training.search.on_tune import search

    began = time.perf_counter()
    seen: list[tuple[float, float]] = []

    def on_trial(trial: Any) -> None:
        if trial.score is not None and trial.status == "done":
            seen.append((time.perf_counter() - began, trial.score))
            if target is not None and trial.score <= target:
                raise Reached

    with tempfile.TemporaryDirectory() as folder:
        try:
            found = search(plan, "binary", [fold], seed=seed, storage=folder, name="bench", on_trial=on_trial)
        except Reached:
            return seen[-1][0], seen[-1][1], len(seen)
    return time.perf_counter() - began, found.score, len(found.trials)


def points(n: int) -> list[dict[str, Any]]:
    """Small boosting models, drawn once: a third of a second each."""
    rng = np.random.default_rng(0)
    return [
        {
            "learning_rate": float(np.exp(rng.uniform(np.log(0.05), np.log(0.3)))),
            "max_iter": int(rng.integers(20, 61)),
            "max_leaf_nodes": int(rng.integers(8, 32)),
            "l2_regularization": float(np.exp(rng.uniform(np.log(0.01), np.log(10)))),
        }
        for _ in range(n)
    ]


def fixed(args: argparse.Namespace) -> None:
    """The same fits on both sides."""
    from benchmarks.measure import show
    from mlops_ray.config import Search

    fold = rows(30_000, 22_500)
    listed = points(args.trials)
    path = "sklearn.ensemble:HistGradientBoostingClassifier"
    plan = Search.model_validate(
        {
            "trials": args.trials,
            "max_s": 3600,
            "concurrency": 2,
            "early_stopping": None,
            "candidates": [{"estimator": path, "params": {**point, "random_state": args.seed}} for point in listed],
        }
    )
    grid = [{name: [value] for name, value in point.items()} for point in listed]
    times: dict[str, list[float]] = {"RandomizedSearchCV(n_jobs=2)": [], "ours": []}
    for number in range(args.rounds):
        their_s, their_loss = theirs(fold, grid, args.trials, args.seed, warm=args.warm)
        our_s, our_loss, n = ours(fold, plan, args.seed)
        assert n == args.trials
        assert abs(their_loss - our_loss) < 1e-9, (their_loss, our_loss)
        times["RandomizedSearchCV(n_jobs=2)"].append(their_s)
        times["ours"].append(our_s)
        print(
            f"round {number + 1}: theirs {their_s:.1f} s, ours {our_s:.1f} s, ratio {our_s / their_s:.2f}", flush=True
        )
    medians = {name: statistics.median(found) for name, found in times.items()}
    base = medians["RandomizedSearchCV(n_jobs=2)"]
    lines = [(name, f"{seconds:.2f}", f"{seconds / base:.2f}") for name, seconds in medians.items()]
    title = f"{args.trials} equal fits, {len(fold.y):,} rows x {fold.matrix.shape[1]}, {args.rounds} rounds in turns"
    show(title, ("", "median s", "ratio"), lines)


def quality(args: argparse.Namespace) -> None:
    """Time to equal validation log-loss."""
    from scipy.stats import loguniform, randint, uniform

    from benchmarks.measure import show
    from mlops_ray.config import Search

    fold = rows(40_000, 30_000)
    distributions = {
        "learning_rate": loguniform(0.01, 0.3),
        "max_iter": randint(50, 301),
        "max_leaf_nodes": randint(4, 129),
        "min_samples_leaf": randint(5, 501),
        "l2_regularization": loguniform(1e-3, 1e2),
        "max_features": uniform(0.3, 0.7),
    }
    presets = tuple(args.candidates.split(","))
    plan = Search.model_validate({"trials": 4 * args.trials, "max_s": 3600, "concurrency": 2, "candidates": presets})
    lines, ratios = [], []
    for number in range(args.rounds):
        seed = args.seed + number
        their_s, their_loss = theirs(fold, distributions, args.trials, seed, warm=args.warm)
        our_s, our_loss, n = ours(fold, plan, seed, target=their_loss)
        reached = our_loss <= their_loss
        ratios.append(our_s / their_s if reached else float("inf"))
        said = f"{our_s:.1f}" if reached else f"not in {our_s:.1f}"
        lines.append((str(seed), f"{their_loss:.5f}", f"{their_s:.1f}", f"{our_loss:.5f}", said, f"{ratios[-1]:.2f}"))
        print(*lines[-1], f"after {n} full trials", flush=True)
    lines.append(("median", "", "", "", "", f"{statistics.median(ratios):.2f}"))
    title = f"To the best of {args.trials} random candidates; {len(fold.y):,} rows x {fold.matrix.shape[1]}; {presets}"
    show(title, ("seed", "their log-loss", "their s", "our log-loss", "our s", "ratio"), lines)


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fixed", "quality"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64, help="of theirs (and of ours in `fixed`)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="keep joblib's workers between rounds")
    parser.add_argument("--candidates", default=",".join(PRESETS), help="presets of ours, in `quality`")
    args = parser.parse_args()

    from benchmarks.measure import start_ray

    started = start_ray()
    print(f"Ray started in {started:.1f} s (not counted)")
    {"fixed": fixed, "quality": quality}[args.what](args)


if __name__ == "__main__":
    main()
