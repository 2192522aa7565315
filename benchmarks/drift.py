"""Drift of 200,000 x 12 rows against 200,000 (10 numeric, 2 categorical) beside Evidently 0.7 and NannyML 0.13.

    python benchmarks/drift.py

The peers need pandas 2, so each gets an environment of its own below .bench/, made by the first run (some minutes and
2 GB). All run in turn on the same rows in memory, one process each, warm; then statistics with the same definition are
compared.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import peers  # noqa: E402

NUMERIC = tuple(f"x{i}" for i in range(10))
CATEGORICAL = ("carrier", "destination")
Results = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="for environments and rows")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.folder / f"drift-{options.rows}.npz"
    if options.serve:
        peers.serve(CONTESTANTS[options.serve](data))
        return
    generate(data, options.rows)
    pythons = {name: peers.environment(options.folder, name) for name in peers.REQUIREMENTS}
    more = ["--folder", str(options.folder), "--rows", str(options.rows)]
    commands = {
        name: [pythons.get(name.split()[0], sys.executable), __file__, "--serve", name, *more] for name in CONTESTANTS
    }
    seconds, found = peers.in_turn(commands, options.rounds)
    report(seconds, found, options.rows)


def generate(path: Path, n: int) -> None:
    """Two sets of rows, the second one shifted a little further for each feature; a finished file stays."""
    import numpy as np

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    arrays = {}
    for side, moved in (("reference", 0.0), ("current", 1.0)):
        for i, name in enumerate(NUMERIC):
            arrays[f"{side}/{name}"] = rng.normal(moved * i / 20, 1 + moved * i / 50, n)
        for name, kinds in zip(CATEGORICAL, (16, 100), strict=True):
            names = np.array([f"{name[:3]}-{i:03d}" for i in range(kinds)])
            weights = 1 / (np.arange(kinds) + 2 + 2 * moved)
            arrays[f"{side}/{name}"] = rng.choice(names, n, p=weights / weights.sum())
    np.savez(path, **arrays)


# Contestants ----------------------------------------------------------------------------------------------------------


def sides(data: Path) -> Iterator[dict[str, Any]]:
    import numpy as np

    arrays = np.load(data)
    for side in ("reference", "current"):
        yield {name: arrays[f"{side}/{name}"] for name in (*NUMERIC, *CATEGORICAL)}


def frames(data: Path) -> list[Any]:
    import pandas as pd

    return [
        pd.DataFrame({k: v if v.dtype.kind == "f" else v.astype(object) for k, v in s.items()}) for s in sides(data)
    ]


def ours(mode: str) -> Callable[[Path], Callable[[], Results]]:
    def prepare(data: Path) -> Callable[[], Results]:
        import pyarrow as pa

        from mlops_ray.data.comparison import compare

        one, two = (pa.table(dict(side)) for side in sides(data))

        def once() -> Results:
            features = compare(one, two, mode)["features"]  # type: ignore[arg-type]
            errors = {f["name"]: {f"{k} error": v for k, v in f["errors"].items()} for f in features}
            return {f["name"]: f["statistics"] | errors[f["name"]] for f in features}

        return once

    return prepare


def evidently(data: Path) -> Callable[[], Results]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    one, two = frames(data)
    definition = DataDefinition(numerical_columns=list(NUMERIC), categorical_columns=list(CATEGORICAL))

    def once() -> Results:
        reference, current = (Dataset.from_pandas(rows, data_definition=definition) for rows in (one, two))
        metrics = json.loads(Report([DataDriftPreset()]).run(current, reference).json())["metrics"]
        values = {m["config"]["column"]: m["value"] for m in metrics if "column" in m["config"]}
        found: Results = {name: {"wasserstein_normed": values[name]} for name in NUMERIC}
        # To base e; ours is to base 2.
        return found | {name: {"jensen_shannon": values[name] / math.sqrt(math.log(2))} for name in CATEGORICAL}

    return once


def nannyml(chunks: int, exact: bool) -> Callable[[Path], Callable[[], Results]]:
    def prepare(data: Path) -> Callable[[], Results]:
        from nannyml import UnivariateDriftCalculator

        one, two = frames(data)
        # The methods must be named for the parameters to be read, which then stand beside and not below them.
        params = {"kolmogorov_smirnov": {}, "wasserstein": {}, "calculation_method": "exact"} if exact else None

        def once() -> Results:
            calculator = UnivariateDriftCalculator(
                column_names=[*NUMERIC, *CATEGORICAL],
                treat_as_categorical=list(CATEGORICAL),
                continuous_methods=["kolmogorov_smirnov", "jensen_shannon", "wasserstein"],
                categorical_methods=["chi2", "jensen_shannon", "l_infinity"],
                chunk_number=chunks,
                computation_params=params,
            )
            rows = calculator.fit(one).calculate(two).filter(period="analysis").to_df()
            names = {"chi2": "chi_square"}
            found: Results = {}
            for column, method, *_ in (c for c in rows.columns if c[-1] == "value"):
                found.setdefault(column, {})[names.get(method, method)] = float(rows[column, method, "value"].iloc[0])
            return found

        return once

    return prepare


CONTESTANTS: dict[str, Callable[[Path], Callable[[], Results]]] = {
    "mlops-ray exact": ours("exact"),
    "mlops-ray profile": ours("profile"),
    "evidently DataDriftPreset": evidently,
    "nannyml one chunk, exact": nannyml(1, True),
    "nannyml ten chunks, defaults": nannyml(10, False),
}


# Report ---------------------------------------------------------------------------------------------------------------


def report(seconds: dict[str, list[float]], found: dict[str, Results], rows: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=110)
    ours_s = statistics.median(seconds["mlops-ray exact"])
    table = Table(title=f"{rows:,} x {len(NUMERIC) + len(CATEGORICAL)} rows against {rows:,}", title_justify="left")
    for name in ("", "median s", "fastest s", "x ours, exact"):
        table.add_column(name, justify="right" if name else "left")
    for name, took in seconds.items():
        middle = statistics.median(took)
        table.add_row(name, f"{middle:.3f}", f"{min(took):.3f}", f"{middle / ours_s:.1f}")
    console.print(table)
    mine = found["mlops-ray exact"]
    table = Table(title="Largest difference from ours (exact) over all features", title_justify="left")
    for name in ("", "statistic", "features", "difference"):
        table.add_column(name, justify="right" if name in ("features", "difference") else "left")
    worst = 0.0
    for peer in ("evidently DataDriftPreset", "nannyml one chunk, exact"):
        kinds = [("numeric", NUMERIC), ("categorical", CATEGORICAL)]
        for kind, names in kinds:
            for statistic in sorted({s for name in names for s in found[peer][name]}):
                # Chi-square grows with the rows: relative.
                scale = {n: abs(mine[n][statistic]) if statistic == "chi_square" else 1.0 for n in names}
                gap = max(abs(found[peer][n][statistic] - mine[n][statistic]) / scale[n] for n in names)
                worst = max(worst, gap)
                table.add_row(peer, f"{statistic}, {kind}", str(len(names)), f"{gap:.1e}")
    folded = found["mlops-ray profile"]
    for statistic in ("kolmogorov_smirnov", "wasserstein"):
        gap = max(abs(folded[n][statistic] - mine[n][statistic]) for n in NUMERIC)
        stated = max(folded[n][f"{statistic} error"] for n in NUMERIC)
        kept = all(abs(folded[n][statistic] - mine[n][statistic]) <= folded[n][f"{statistic} error"] for n in NUMERIC)
        says = f"{gap:.1e} (stated: {stated:.1e})" if kept else f"{gap:.1e} MORE THAN STATED"
        table.add_row("mlops-ray profile", f"{statistic}, numeric", str(len(NUMERIC)), says)
    console.print(table)
    if worst > 1e-6:
        raise SystemExit(f"a statistic differs by {worst:.1e}")


if __name__ == "__main__":
    main()
