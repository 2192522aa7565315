"""The year of flights: four policies (`benchmarks.loop.policies`) on the same flights, March to December 2013 in time
order, labels when landed. The loop's settings are configs/flights.yaml with configs/overlays/year.yaml.

    OMP_NUM_THREADS=1 python -m benchmarks.loop.flights                # March to June, on which settings are chosen
    OMP_NUM_THREADS=1 python -m benchmarks.loop.flights --score-once   # March to December: once for frozen settings

`--score-once` refuses settings that are not committed and a year that was scored before, and keeps what it finds in
benchmarks/loop/year.json, with the commit of the settings. Nothing else here looks at July to December: those rows are
left out before any policy is given them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from benchmarks.loop.kept import Kept
from benchmarks.loop.policies import POLICIES, Year, live, unweighted
from benchmarks.loop.table import show, table
from mlops_ray.config import DAY_S
from mlops_ray.demo.flights import flights
from mlops_ray.simulation import loop as simulated
from mlops_ray.simulation.history import history
from mlops_ray.verbs.simulate import load_with

FILES = (Path("configs/flights.yaml"), Path("configs/overlays/year.yaml"))
SCORED = Path("benchmarks/loop/year.json")
CHOSEN_ON, WHOLE = "2013-07-01", "2014-01-01"
"""Until when settings may be chosen, and the year's end."""
LAG_S = 2 * DAY_S


def at(day: str) -> float:
    """Midnight UTC, seconds since the epoch."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def frozen() -> str:
    """The commit that the settings are of. Ends the program when they are not committed."""
    files = [str(file) for file in FILES]
    changed = subprocess.run(["git", "status", "--porcelain", *files], capture_output=True, text=True, check=True)
    if changed.stdout.strip():
        sys.exit(f"not committed, so not frozen:\n{changed.stdout}commit the settings first")
    said = ["git", "log", "-1", "--format=%h %ad %s", "--date=iso", "--", *files]
    return subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Run the policies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", default=CHOSEN_ON, help=f"first day that is not lived through, {CHOSEN_ON} at most")
    parser.add_argument("--score-once", action="store_true", help="the whole year; writes benchmarks/loop/year.json")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="default: all; `never` always runs")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--kept", type=Path, help="a folder where trained versions are kept between runs")
    asked = parser.parse_args()
    settings_of = "the command line"
    if asked.score_once:
        if asked.settings or asked.policy:
            sys.exit("--score-once takes all policies and the committed settings; leave --set and --policy out")
        if SCORED.exists():
            sys.exit(f"{SCORED} holds this release's score; it is scored once")
        asked.until, asked.json, settings_of = WHOLE, SCORED, frozen()
    elif asked.until > CHOSEN_ON:
        sys.exit(f"--until {asked.until}: settings are chosen on days before {CHOSEN_ON}; see --score-once")
    project = load_with(FILES, {}, asked.settings)
    start, end = at("2013-03-01"), at(asked.until)
    lived = flights()
    lived = lived.filter(pa.array(lived["event_time"].cast("int64").to_numpy() < end * 1e6))
    rows = history(project, lived, label_time="landed")
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(asked.kept or Path(folder) / "kept")
        first = simulated.first_version(unweighted(project), rows, Path(folder), start=start, train=kept.train)
        year = Year(project, rows, start, end, Path(folder), first, kept)
        wanted = dict.fromkeys(["never", *(asked.policy or POLICIES)])
        result = {"settings": settings_of, **table(year, {name: live(year, name) for name in wanted})}
    show(result)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
