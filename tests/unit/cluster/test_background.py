from __future__ import annotations

import logging
import threading

import pytest

from mlops_ray.cluster.background import keep_doing


def test_a_turn_that_raises_is_said_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    turns, third = [], threading.Event()

    def work() -> None:
        turns.append(threading.current_thread())
        if len(turns) == 3:
            third.set()
        raise OSError("the store is away")

    with caplog.at_level(logging.WARNING):
        keep_doing(work, every_s=0.001, what="monitor of small")
        assert third.wait(30.0)
    assert all(thread.daemon and thread.name == "monitor of small" for thread in turns)
    assert "monitor of small: the store is away" in caplog.text
