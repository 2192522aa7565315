"""Drift episodes under crashes, and repeated, late and lost messages: `benchmarks/loop/crashes.py` in short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from tests.retrains import Life


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def test_each_episode_comes_to_one_retrain_whatever_dies_or_is_said_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck: Counter[str] = Counter()
    for seed in range(3):
        life = Life(seed, f"sqlite:///{tmp_path}/{seed}.db", put=monkeypatch.setattr, episodes=1)
        told = life.live()
        life.close()
        assert (told["doubled"], told["lost"]) == ([], []), seed
        struck += told["counted"]
    # Launchers are few and die in some runs only; `benchmarks/loop/crashes.py` counts them.
    assert "monitor" in {what.split()[1] for what, n in struck.items() if n and what.startswith("killed")}


def test_an_uninterrupted_life_has_one_retrain_for_each_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(0, f"sqlite:///{tmp_path}/state.db", put=monkeypatch.setattr, rate=0.0, episodes=1)
    told = life.live()
    life.close()
    assert (told["episodes"], told["retrains"], told["jobs"], told["lost"], told["doubled"]) == (1, 1, 1, [], [])
