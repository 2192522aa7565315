"""How fast the flights are replayed changes no decision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlops_ray.demo.on_ray import run_demo
from tests.loop.conftest import overlay

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def decisions(folder: Path, speed: float | None) -> list[tuple[Any, ...]]:
    folder.mkdir()
    # Budget for alarms and waits so short that a stretch of two weeks holds a retrain and a canary.
    paths = overlay(folder, rollout={"shares": [0.3], "step_min_s": 86_400.0, "look_s": 86_400.0})
    summary = run_demo(os.environ, config=paths, until="2013-03-20", speed=speed)
    assert summary["failed_requests"] == 0, summary["troubles"]
    names = {d["subject"]: d["subject"].rsplit("-", 1)[0] for d in summary["decisions"]}
    # The time at which the first version was trained is the machine's; everything after it is decision time.
    return [(d["at"], d["kind"], names[d["subject"]], d["why"]) for d in summary["decisions"][1:]]


def test_two_speeds_one_history(tmp_path: Path, clean_environment: None) -> None:
    quick = decisions(tmp_path / "quick", None)
    slow = decisions(tmp_path / "slow", 120_000.0)
    assert quick == slow
    assert any(kind == "retrain decided" for _, kind, _, _ in quick)
