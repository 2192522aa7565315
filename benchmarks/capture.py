"""What capture costs: appending a request of 1 and of 10,000 rows under both durabilities, and how many requests a
collector takes from spool to log and monitor in a second of CPU.

    python benchmarks/capture.py [--requests N]

Prints one JSON line per figure. The goal: 3,000 requests/s on half a core, a bulk request in a few ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.folding import fold
from mlops_ray.serving.log.collecting import Drain
from mlops_ray.serving.records import Scored
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.state import Store

NUMERIC = [f"f{i}" for i in range(10)]
TEXTS = ["origin", "carrier"]


def project(root: Path, durability: str) -> Project:
    """Ten numeric and two categorical columns."""
    columns = [{"name": name, "dtype": "float", "nullable": True} for name in NUMERIC]
    columns += [{"name": name, "dtype": "string"} for name in [*TEXTS, "who"]]
    columns += [{"name": "at", "dtype": "timestamp"}, {"name": "late", "dtype": "int"}]
    return Project.model_validate(
        {
            "project": "bench",
            "task": "binary",
            "target": "late",
            "key": "who",
            "event_time": "at",
            "source": {"kind": "csv", "path": "rows.csv"},
            "columns": columns,
            "features": {"numeric": {"columns": NUMERIC}, "categorical": {"columns": TEXTS}},
            "search": {"candidates": [{"estimator": "sklearn.linear_model.LogisticRegression"}]},
            "storage": {"root": str(root)},
            "capture": {"durability": durability},
        }
    )


def request(name: str, n: int, rng: np.random.Generator) -> Scored:
    """A request of n rows, its id the client's."""
    columns: dict[str, Any] = {f: rng.normal(size=n).astype(np.float32) for f in NUMERIC}
    columns |= {t: rng.choice(np.array(["EWR", "JFK", "LGA"], object), n) for t in TEXTS}
    keys = tuple(f"customer-{k}" for k in rng.integers(0, 10**6, n))
    at = 1.76e9 + rng.uniform(0, 3600)
    return Scored(name, at, keys, np.full(n, at), columns, 3, rng.uniform(size=n), 40.0, repeatable=True)


def per_call(call: Callable[[int], Any], n: int) -> dict[str, float]:
    """Microseconds of one call: median and 99th percentile."""
    took = []
    for i in range(n):
        began = time.perf_counter()
        call(i)
        took.append((time.perf_counter() - began) * 1e6)
    cuts = statistics.quantiles(took, n=100)
    return {"p50_us": round(cuts[49], 1), "p99_us": round(cuts[98], 1)}


def appending(root: Path, rng: np.random.Generator) -> None:
    """One request after another; with `disk`, also 16 at a time, which share an fsync."""
    for durability in ("process", "disk"):
        capture = Capture(project(root, durability), root / f"spool-{durability}", None)
        loop = asyncio.new_event_loop()
        for n_rows, n in ((1, 3000), (10_000, 50)):
            some = [request(f"r{i}", n_rows, rng) for i in range(min(n, 100))]

            def one(i: int, some: list[Scored] = some, capture: Capture = capture) -> None:
                capture.append(some[i % len(some)])

            def to_disk(i: int, some: list[Scored] = some, capture: Capture = capture, loop: Any = loop) -> None:
                capture.append(some[i % len(some)])
                loop.run_until_complete(capture.durable())

            show(
                what="append",
                durability=durability,
                rows=n_rows,
                **per_call(one if durability == "process" else to_disk, n),
            )
        if durability == "disk":
            show(
                what="append, 16 at a time",
                durability=durability,
                rows=1,
                **loop.run_until_complete(together(capture, rng)),
            )
        capture.close()
        loop.close()


async def together(capture: Capture, rng: np.random.Generator) -> dict[str, float]:
    """Requests per second of 16 clients that wait for the disk."""
    some, n = [request(f"r{i}", 1, rng) for i in range(100)], 2000

    async def client(i: int) -> None:
        for k in range(n // 16):
            capture.append(some[(i + k) % 100])
            await capture.durable()

    began = time.perf_counter()
    await asyncio.gather(*(client(i) for i in range(16)))
    return {"per_s": round(n / (time.perf_counter() - began))}


def collecting(root: Path, rng: np.random.Generator, n: int) -> None:
    """From spool to log, state database and profiles: requests per second of this process's CPU time."""
    made = project(root / "log", "process")
    store = Store.open(made.storage.state)
    folder = root / "spool-collect"
    capture = Capture(made, folder, None)
    some = [request("", 1, rng) for _ in range(1000)]
    for i in range(n):
        one = some[i % 1000]
        capture.append(Scored(f"{i:032x}", *list(vars(one).values())[1:]))
    capture.close()
    edges = Bins({name: tuple(np.linspace(-3, 3, 21)) for name in NUMERIC}, dict.fromkeys(TEXTS, ("EWR", "JFK")))

    def push(pushed: Any) -> bool:
        return store.run(lambda tx: fold(tx, "bench", pushed, 2e9))

    drain = Drain(made, folder, store, push, lambda: edges, lambda: 2e9)
    wall, cpu = time.perf_counter(), time.process_time()
    drain.run()
    took, used = time.perf_counter() - wall, time.process_time() - cpu
    show(
        what="collect",
        requests=n,
        per_s=round(n / took),
        per_cpu_s=round(n / used),
        core_at_3000=round(3000 * used / n, 2),
    )


def show(**figure: Any) -> None:
    """One line of JSON."""
    print(json.dumps(figure))


def main() -> None:
    """All figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=15_000, help="that the collector takes: 5 s at 3,000/s")
    parser.add_argument("--folder", default=None, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rng = np.random.default_rng(0)
        show(what="machine", cores=os.cpu_count())
        appending(Path(folder), rng)
        collecting(Path(folder), rng, args.requests)


if __name__ == "__main__":
    main()
