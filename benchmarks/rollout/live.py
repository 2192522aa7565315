"""Live rollouts under a steady load, with labels that come late: how each ends, by what, and how soon.

    python benchmarks/rollout/live.py

A project of its own on a cluster of its own. 480 rows a second, 80 or 160 for versions that are found out without
labels, 800 for those that follow each other; the version on trial answers a tenth of them, then half. Its looks are
half a second apart, and so are the collector's commits. Seconds count from the commit of the last row that the last
look saw: until what follows was decided and saved, and until a client got the last answer of the version on trial.
`--equal` is how many rollouts of stable's own artifact follow, one after the other.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlops_ray.cluster import on_ray as cluster
from tests import trials
from tests.loop.conftest import ROOT, brought_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", type=int, default=20, help="rollouts of an equal version (default 20)")
    parser.add_argument("--only", choices=trials.KINDS, action="append", metavar="KIND", help="may be repeated")
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # The cluster's processes import this checkout: the type of troubled versions stands in it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    rows, failed = [], 0
    with (
        tempfile.TemporaryDirectory(prefix="mlops_ray-live-") as scratch,
        brought_up(trials.project(Path(scratch))) as live,
        cluster.connected(live.project),
    ):
        for name in options.only or trials.KINDS:
            trial = trials.trial(live, trials.KINDS[name], Path(scratch, name))
            rows += [line(name, trial, ended) for ended in trial.ended]
            failed += trial.failed
        if options.equal:
            trial = trials.equals(live, options.equal)
            rows += [line(f"equal, {i}", trial, ended) for i, ended in enumerate(trial.ended, start=1)]
            failed += trial.failed
    print("\n| version on trial | ended | by | after, its rows | decided, s | last answer, s |")
    print("\n".join(["|---|---|---|---:|---:|---:|", *rows]))
    print(f"\nfailed requests: {failed}")


def line(name: str, trial: trials.Trial, ended: trials.Ended) -> str:
    """Of the table."""
    by = ", ".join(ended.failed) or ended.reason
    seconds = f"{ended.decided - ended.committed:.2f} | {trial.delay_s(ended):.2f}"
    return f"| {name} | {ended.phase} | {by} | {ended.n_rows:,} | {seconds} |"


if __name__ == "__main__":
    main()
