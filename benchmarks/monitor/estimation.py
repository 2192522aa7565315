"""Quality estimated without labels beside NannyML 0.13 (CBPE): its own `synthetic_car_loan`, chunks of 5,000 rows.

    python benchmarks/monitor/estimation.py

NannyML needs pandas 2, so it gets an environment of its own below the system's folder for temporary files, made by the
first run (two minutes, 1 GB); the rows come with its package. Both run in turn on the same rows in memory, one process
each, warm. Ours estimates eight metrics with intervals, NannyML is asked for ROC AUC alone. Ends with 1 when an
estimate is more than 0.002 away from NannyML's, or ours is less than five times as fast.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import peers  # noqa: E402

CHUNK = 5000
BLOCK = 1000
"""Rows of one block of the reference: fifty blocks carry an interval."""
MOST_APART, TIMES_FASTER = 0.002, 5.0
Found = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "mlops-ray-bench")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.folder / "synthetic_car_loan.npz"
    if options.serve:
        peers.serve(CONTESTANTS[options.serve](data))
        return
    if options.export:
        export(data)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    theirs = peers.environment(options.folder, "nannyml")
    if not data.exists():
        export_there = [theirs, __file__, "--export", "--folder", options.folder]
        subprocess.run(export_there, check=True, env=peers.silent())
    pythons = {"mlops-ray": sys.executable, "nannyml": theirs}
    more = ["--folder", str(options.folder)]
    commands = {name: [python, __file__, "--serve", name, *more] for name, python in pythons.items()}
    seconds, found = peers.in_turn(commands, options.rounds)
    report(seconds, found, data)


# Contestants ----------------------------------------------------------------------------------------------------------


def export(data: Path) -> None:
    import nannyml
    import numpy as np

    reference, analysis, target = nannyml.load_synthetic_car_loan_dataset()
    analysis = analysis.merge(target, on="id")
    sides = {"reference": reference, "analysis": analysis}
    columns = {"score": "y_pred_proba", "label": "repaid"}
    np.savez(data, **{f"{s}/{name}": rows[c].to_numpy() for s, rows in sides.items() for name, c in columns.items()})


def ours(data: Path) -> Callable[[], Found]:
    import numpy as np

    from mlops_ray.data.profile import Bins
    from mlops_ray.monitoring import estimation
    from mlops_ray.training import calibration
    from mlops_ray.training.evaluation.intervals import blocks

    rows = dict(np.load(data))
    labels, scores = rows["reference/label"].astype(np.int64), rows["reference/score"]
    times, nothing = blocks(np.arange(len(labels)), BLOCK), Bins({}, {})
    live, no_codes = rows["analysis/score"], np.empty((0, 0), dtype=np.uint16)

    def once() -> Found:
        known = calibration.fit("binary", labels, scores, times, nothing, {})
        return [
            {
                name: each.to_dict()
                for name, each in estimation.estimate(known, live[i : i + CHUNK], no_codes, threshold=0.5).items()
            }
            for i in range(0, len(live), CHUNK)
        ]

    return once


def nannyml(_: Path) -> Callable[[], Found]:
    import nannyml as nml

    reference, analysis, _target = nml.load_synthetic_car_loan_dataset()

    def once() -> Found:
        estimator = nml.CBPE(
            y_pred_proba="y_pred_proba",
            y_pred="y_pred",
            y_true="repaid",
            problem_type="classification_binary",
            metrics=["roc_auc"],
            chunk_size=CHUNK,
        )
        estimator.fit(reference)
        rows = estimator.estimate(analysis).filter(period="analysis").to_df()
        return [{"roc_auc": {"value": float(v)}} for v in rows["roc_auc", "value"]]

    return once


CONTESTANTS: dict[str, Callable[[Path], Callable[[], Found]]] = {"mlops-ray": ours, "nannyml": nannyml}


# Report ---------------------------------------------------------------------------------------------------------------


def report(seconds: dict[str, list[float]], found: dict[str, Found], data: Path) -> None:
    import numpy as np

    from benchmarks.measure import show
    from mlops_ray.monitoring.estimation import realised

    rows = dict(np.load(data))
    labels, scores = rows["analysis/label"].astype(np.int64), rows["analysis/score"]
    lines, apart, inside = [], [], {"roc_auc": 0, "log_loss": 0}
    for i, (mine, theirs) in enumerate(zip(found["mlops-ray"], found["nannyml"], strict=True)):
        chunk = slice(i * CHUNK, (i + 1) * CHUNK)
        truth = realised("binary", labels[chunk], scores[chunk], threshold=0.5)
        gap = mine["roc_auc"]["value"] - theirs["roc_auc"]["value"]
        apart.append(abs(gap))
        line = [str(i), f"{theirs['roc_auc']['value']:.4f}"]
        for name in inside:
            said = mine[name]
            inside[name] += said["low"] <= truth[name] <= said["high"]
            line += [f"{said['value']:.4f} ({said['low']:.4f} to {said['high']:.4f})", f"{truth[name]:.4f}"]
        lines.append([*line[:3], f"{gap:+.5f}", *line[3:]])
    columns = ("chunk", "NannyML's AUC", "our AUC, 95 %", "apart", "realised", "our log-loss, 95 %", "realised")
    show(f"Estimates without labels, chunks of {CHUNK:,} rows", columns, lines)
    middle = {name: statistics.median(took) for name, took in seconds.items()}
    faster = middle["nannyml"] / middle["mlops-ray"]
    show(
        "Fit and estimate, 50,000 rows each",
        ("", "median s", "fastest s"),
        [(name, f"{middle[name]:.3f}", f"{min(took):.3f}") for name, took in seconds.items()],
    )
    held = ", ".join(f"{n} of {len(lines)} ({name})" for name, n in inside.items())
    print(f"furthest apart {max(apart):.5f}; {faster:.1f} times as fast; intervals that held what was realised: {held}")
    if max(apart) > MOST_APART or faster < TIMES_FASTER:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
