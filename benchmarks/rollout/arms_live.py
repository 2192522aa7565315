"""Several versions side by side on a live cluster under load: who is dropped, who wins, and that no request fails.

    python benchmarks/rollout/arms_live.py

A project of its own on a cluster of its own, 160 rows a second, a key each, whose labels come a second later; stable is
a version that is six per cent worse in log-loss than it could be. Three versions answer a fifth of the keys each: one
that is better, one that answers a constant, one that throws in three calls of ten. First the winner is promoted by
itself; then, with stable worse again, by command once the other two are out. `wrong`: rows of the log that another
version answered than their key says; `gone`: seconds from the drop of an arm until its application was gone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlops_ray.cluster import on_ray as cluster
from tests import side_by_side, trials
from tests.loop.conftest import ROOT, brought_up

ARMS = ("", "constant", "raise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # The cluster's processes import this checkout: the type of troubled versions stands in it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryDirectory(prefix="mlops_ray-arms-") as scratch,
        brought_up(trials.project(Path(scratch))) as live,
        cluster.connected(live.project),
    ):
        print("| winner | ended | dropped | shares of the keys | rows, wrong | gone, s | requests failed |")
        print("|---|---|---|---|---|---|---|")
        for name in ("automatic", "by command"):
            folder = Path(scratch, name)
            folder.mkdir()
            worse, *arms = trials.registered(live, folder, "shift", *ARMS)
            trials.promoted_at_once(live, worse, folder)
            found = side_by_side.experiment(live, arms, folder, by_command=arms[0] if name == "by command" else None)
            print(line(name, found), flush=True)


def line(name: str, found: side_by_side.Experiment) -> str:
    """Of the table."""
    dropped = ", ".join(f"v{v} ({why})" for v, why in found.dropped.items())
    shares = ", ".join(f"v{v} {share:.3f}" for v, share in sorted(found.shares.items()))
    gone = ", ".join(f"{s:.1f}" for s in found.gone_s.values())
    failed = found.load.statuses.total() - found.load.statuses["200"]
    ended = f"v{found.chosen} {found.ended.phase} ({found.ended.reason})"
    cells = [name, ended, dropped, f"{shares} of {found.n_keys:,}", f"{found.wrong}", gone, f"{failed}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
