"""How fast the flights are replayed changes no decision."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.cluster.processes import free_port
from tests.loop.conftest import ROOT, overlay

# Two replays of four weeks; `make demo-fast` replays once in CI, and tests/unit/monitoring holds the clock to its words.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

# A process each: Ray Serve keeps what it knows of a cluster until the process ends.
RUN = """
import json, os, sys
from pathlib import Path
from mlops_ray.demo.on_ray import run_demo
speed = json.loads(sys.argv[1])
print(json.dumps(run_demo(os.environ, config=[Path(p) for p in sys.argv[2:]], until="2013-03-26", speed=speed)))
"""


def decisions(folder: Path, speed: float | None) -> list[tuple[Any, ...]]:
    folder.mkdir()
    # A generous budget for alarms and wrong promotions, so that a stretch of four weeks holds a retrain and a canary.
    paths = overlay(
        folder,
        monitoring={"metrics_port": free_port(), "false_alarms_per_month": 4.0},
        gates={"alpha": 0.4},
        rollout={"shares": [0.4]},
    )
    command = [sys.executable, "-c", RUN, json.dumps(speed), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["failed_requests"] == 0, summary["troubles"]
    names = {d["subject"]: d["subject"].rsplit("-", 1)[0] for d in summary["decisions"]}  # ids end in random digits
    # The time at which the first version was trained is the machine's; everything after it is decision time.
    return [(d["at"], d["kind"], names[d["subject"]], d["why"]) for d in summary["decisions"][1:]]


def test_two_speeds_one_history(tmp_path: Path, clean_environment: None) -> None:
    quick = decisions(tmp_path / "quick", None)
    slow = decisions(tmp_path / "slow", 120_000.0)
    assert quick == slow
    kinds = [kind for _, kind, _, _ in quick]
    assert "retrain decided" in kinds
    assert any(kind.startswith("rollout ramping") for kind in kinds)
