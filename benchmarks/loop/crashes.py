"""Retrains under crashes, and repeated, late, lost and reordered messages: one for each drift episode, none else.

    python benchmarks/loop/crashes.py                  # 500 seeded runs, some hours of one core
    python benchmarks/loop/crashes.py --runs 20 --from 100

A run is one or two drift episodes, lived through by the real monitor, policy and controller on a state database of its
own (an SQLite file); jobs, log and Serve only remember (`tests/retrains.py`). Monitor, launcher, job and controller die
at each of their steps, inside transactions and right after them; monitors are overtaken by a second one in the middle
of a tick; pushes of collectors, labels, and what jobs say come twice, late, out of order or not at all. Nothing but the
order of steps keeps retrains apart: there is no cooldown. A decision whose job died or hung fails, and another one
follows: both are counted, and an episode must come to exactly one retrain that succeeds.

Printed: what went wrong and how often; retrains and jobs; what was doubled or lost. Exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from threadpoolctl import threadpool_limits

from tests.retrains import RATE, Life


def lived(seed: int) -> dict[str, Any]:
    """What became of one run."""
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        life = Life(seed, f"sqlite:///{folder}/state.db", put=setattr, episodes=1 + seed % 2)
        try:
            return life.live()
        finally:
            life.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    seeds, total, struck, wrong = range(asked.first, asked.first + asked.runs), Counter[str](), Counter[str](), 0
    with ProcessPoolExecutor(asked.workers) as pool:
        for seed, told in zip(seeds, pool.map(lived, seeds), strict=True):
            total.update({name: n for name, n in told.items() if isinstance(n, int)})
            total.update({"runs": 1, "doubled": len(told["doubled"]), "lost": len(told["lost"])})
            struck.update(told["counted"])
            for what in (*told["doubled"], *told["lost"]):
                wrong += 1
                print(f"seed {seed}: {what}", flush=True)
            if sys.stderr.isatty() or seed % 20 == 0:
                print(f"{total['runs']} of {asked.runs} runs", file=sys.stderr, flush=True)
    print(f"\n{'what went wrong, each with a probability of multiples of ' + format(RATE, 'g'):<64} times")
    for what, n in sorted(struck.items()):
        print(f"{what:<64} {n:5d}")
    print(
        f"\nruns {total['runs']}, episodes {total['episodes']}, retrains decided {total['retrains']}, of which failed"
    )
    print(f"because their job died or hung {total['spoilt']}; jobs launched {total['jobs']}")
    print(f"doubled {total['doubled']}, lost {total['lost']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
