"""What the monitor costs: pushes of many projects folded, and their windows judged, in one process.

    python benchmarks/monitor/scale.py                     # 100 projects x 50 features, 1,000 requests/s in all
    python benchmarks/monitor/scale.py --projects 20 --minutes 5

There is one monitoring actor for each project, so on a cluster the cost is spread over as many processes; here all run
in one, over one state database in a file, through the same functions: `folding.fold` for each push, and
`judge_drift` when a window closes (estimates read the log, which a collector's commit dwarfs); and `Loop.tick` when
nothing is due, as it is after a push and every ten seconds. A collector pushes what it commits every `--commit`
seconds, the profile of the rows that came since. Printed: processor time of each, and the share of a core that they
make at that rate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlops_ray.config import Monitoring
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring import folding
from mlops_ray.monitoring.brain import Brain
from mlops_ray.monitoring.judgement import judge_drift
from mlops_ray.monitoring.loop import Loop
from mlops_ray.monitoring.sources import Sources
from mlops_ray.state import Store
from mlops_ray.training.artifact.model import Reference
from tests import fakes

DAY_S = 86_400.0
REST_S = 10.0
EDGES = tuple(np.linspace(-2, 2, 19).tolist())


def _nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is due")


NOBODY = Brain(_nothing, _nothing, _nothing, None)  # type: ignore[arg-type]
NOWHERE = Sources(_nothing, _nothing, _nothing)


def drawn(bins: Bins, n: int, rng: np.random.Generator) -> Profile:
    """A profile of `n` rows."""
    columns = {name: rng.normal(size=n).astype(np.float32) for name in bins.numeric}
    kinds = np.array([*("abcdefgh"), ""], dtype=object)
    columns |= {name: kinds[rng.integers(0, len(kinds), n)] for name in bins.categorical}
    return fold(bins, columns, rng.random(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", type=int, default=100)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--requests", type=float, default=1_000.0, help="a second, over all projects")
    parser.add_argument("--commit", type=float, default=60.0, help="seconds between two pushes of a project")
    parser.add_argument("--minutes", type=int, default=3, help="of traffic to fold")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    n_categories = given.features // 5
    numeric = {f"x{i}": EDGES for i in range(given.features - n_categories)}
    bins = Bins(numeric, {f"c{i}": tuple("abcdefgh") for i in range(n_categories)})
    plan = Monitoring(min_rows=100)
    rows = max(1, round(given.requests / given.projects * given.commit))
    body = drawn(bins, rows, rng).to_dict()
    days = [drawn(bins, 500, rng) for _ in range(60)]
    reference = Reference(bins, DAY_S, tuple((i * DAY_S, day) for i, day in enumerate(days)), ())
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{folder}/state.db")
        pushes = round(60 * given.minutes / given.commit)
        started, wall = time.process_time(), time.perf_counter()
        for number in range(pushes):
            for project in range(given.projects):
                pushed = {"spool": "s", "base": number - 1, "number": number, "profiles": [(1, 0.0, body)]}
                pushed |= {"watermark": None, "newest": 1.0 + number, "node": None, "passed": None, "nodes": ()}
                store.run(lambda tx, p=project, what=pushed: folding.fold(tx, f"p{p}", what, 1e9))
        folded, wall = time.process_time() - started, time.perf_counter() - wall
        with store.begin() as tx:
            tx.save_cursor("small", "watermark", 0, 1e9)
            tx.save_cursor("small", "seen", 0, 1e9)
            tx.save_profile("small", 1, 1e9, body)
        world = Loop(fakes.project(), store, NOBODY, NOWHERE, lambda: 1e9)
        world.tick()
        started = time.process_time()
        for _ in range(100):
            world.tick()
        ticked = (time.process_time() - started) / 100
        store.close()
    week = sum(days[:7], empty(bins))
    started = time.process_time()
    judged = 5
    for i in range(judged):
        judge_drift(plan, reference, week, start=i * plan.window_s, end=(i + 1) * plan.window_s)
    each = (time.process_time() - started) / judged
    n = pushes * given.projects
    share = folded / n * given.projects / given.commit
    windows = given.projects * each / plan.window_s, given.projects * each / 3600.0
    print(f"{given.projects} projects x {given.features} features, {given.requests:g} requests/s in all")
    print(f"push of {rows} rows: {1e3 * folded / n:.2f} ms of a core ({1e3 * wall / n:.2f} ms of time); {n} of them")
    print(f"judgement of a window's drift, 60 days of reference: {1e3 * each:.0f} ms")
    print(f"tick with nothing due: {1e3 * ticked:.2f} ms, every {REST_S:g} s and after a push")
    print(f"cores: {share:.4f} folding, {given.projects * ticked * (1 / REST_S + 1 / given.commit):.4f} ticking")
    print(f"cores: {windows[0]:.5f} judging windows of a week, {windows[1]:.4f} of an hour")


if __name__ == "__main__":
    main()
