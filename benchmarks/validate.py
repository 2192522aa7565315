"""Validation and feature statistics over many rows: `prepare --dry-run` beside one pandas + scikit-learn process.

    python benchmarks/validate.py --rows 10 50

Both read the same Parquet files (20 columns, see payments.py), hold every row to the same rules (nulls, ranges, a
closed set, a pattern, unique ids), and learn means, variances and categories from the rows that are left. Both may hold
6 GiB in all their processes together; who needs more is ended. Generated files are kept below --folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMIT_GIB = 6.0


def ours(folder: Path) -> None:
    """`prepare --dry-run` on a Ray of two CPUs; its start is timed apart."""
    import ray

    from benchmarks import payments
    from benchmarks.measure import start_ray
    from mlops_ray.config import load_project
    from mlops_ray.data.on_ray import examine

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "payments.yaml")
        file.write_text(payments.project_text(folder, Path(scratch, "root")))
        project = load_project(file, env={})
        start_s = start_ray(object_store_memory=256 * 1024**2)
        started = time.perf_counter()
        seen = examine(project, now=time.time())
        done = time.perf_counter()
        ray.shutdown()
    moments = seen.statistics.numeric["f01"].moments
    _say(start_s, done - started, seen.report.n_read, seen.report.n_kept, moments.mean, moments.variance)


def peer(folder: Path) -> None:
    """What a data scientist writes: everything in one frame, masks, then `fit`."""
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from benchmarks import payments

    start = time.perf_counter()
    frame = pd.read_parquet(folder)
    floats = [f"f{i:02d}" for i in range(payments.N_FLOATS)]
    bad = np.zeros(len(frame), dtype=bool)
    for name in ("id", "at", "fraud", "items", "age_days", "card", "country", "shop"):
        bad |= frame[name].isna().to_numpy()
    for name in floats:
        bad |= ((frame[name] < -50) | (frame[name] > 50)).to_numpy()
    for name, high in (("items", 100), ("age_days", 10_000)):
        bad |= ((frame[name] < 0) | (frame[name] > high)).to_numpy()
    bad |= (frame["id"] < 0).to_numpy() | ~frame["fraud"].isin([0, 1]).to_numpy()
    bad |= ~frame["card"].isin(payments.CARDS).to_numpy()
    bad |= ~frame["country"].str.fullmatch("[A-Z]{2}").to_numpy(dtype=bool)
    bad |= frame["id"].duplicated().to_numpy()
    good = frame[~bad]
    numeric = [*floats, "items", "age_days"]
    fitted = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(), StandardScaler()), numeric),
            ("categorical", OneHotEncoder(handle_unknown="ignore"), ["card", "country", "shop"]),
        ]
    ).fit(good)
    done = time.perf_counter()
    at = numeric.index("f01")
    imputer, scaler = fitted.named_transformers_["numeric"]
    n = int(good["f01"].notna().sum())
    _say(
        0.0, done - start, len(frame), len(good), float(imputer.statistics_[at]), float(scaler.var_[at]) * len(good) / n
    )


def _say(start_s: float, work_s: float, n_read: int, n_kept: int, mean: float, variance: float) -> None:
    said = {"start_s": start_s, "work_s": work_s, "read": n_read, "kept": n_kept, "mean": mean, "variance": variance}
    sys.stdout.write(json.dumps(said) + "\n")


def main() -> None:
    """Generates the rows, runs both, prints the table; fails when they disagree about the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 5, 10], help="millions of rows (default 2 5 10)")
    parser.add_argument("--folder", type=Path, default=Path(".bench/payments"), help="where generated files are kept")
    parser.add_argument("--only", choices=["ours", "peer"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        {"ours": ours, "peer": peer}[args.only](args.folder)
        return
    from benchmarks import payments
    from benchmarks.measure import show, watched

    lines = []
    for millions in args.rows:
        folder = (args.folder / f"{millions}m").absolute()
        payments.generate(folder, millions * 1_000_000)
        runs = {
            who: watched([sys.executable, __file__, "--only", who, "--folder", str(folder)], limit_gib=LIMIT_GIB)
            for who in ("ours", "peer")
        }
        mine, theirs = runs["ours"], runs["peer"]
        if not mine.said:
            sys.exit(f"ours failed with exit code {mine.exit_code}")
        if theirs.said:
            for field in ("read", "kept"):
                assert mine.said[field] == theirs.said[field], (field, mine.said, theirs.said)
            for field in ("mean", "variance"):
                assert abs(mine.said[field] - theirs.said[field]) <= 1e-6 * abs(theirs.said[field]), (mine, theirs)
        for who, run in runs.items():
            work = f"{run.said['work_s']:.1f} s" if run.said else "ended: over 6 GiB" if run.too_large else "failed"
            ratio = f"{mine.said['work_s'] / theirs.said['work_s']:.2f}" if theirs.said and who == "ours" else ""
            start = f"{run.said['start_s']:.1f} s" if run.said else ""
            lines.append(
                (
                    f"{millions} M x 20",
                    "mlops_ray" if who == "ours" else "pandas",
                    start,
                    work,
                    ratio,
                    f"{run.peak_gib:.2f} GiB",
                )
            )
    show(
        "validation and feature statistics",
        ("rows", "who", "start of Ray", "work", "ours / pandas", "peak memory, all processes"),
        lines,
    )


if __name__ == "__main__":
    main()
