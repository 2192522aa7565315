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
        doing = keep_doing(work, every_s=0.001, what="monitor of small")
        assert third.wait(30.0)
        assert doing.end(30.0)  # or it would fill the log, and the heap, of all tests that follow in this process
    assert all(thread.daemon and thread.name == "monitor of small" for thread in turns)
    assert "monitor of small: the store is away" in caplog.text


def test_a_turn_that_is_wanted_soon_does_not_wait() -> None:
    turns: list[int] = []
    done = threading.Event()

    def work() -> None:
        turns.append(len(turns))
        done.set()

    doing = keep_doing(work, every_s=lambda: 3600.0, what="controller")
    for n in (1, 2):
        done.clear()
        doing.soon()
        assert done.wait(30.0)
        assert len(turns) == n
    assert doing.end(30.0)
    doing.soon()
    assert len(turns) == 2


def test_a_turn_that_hangs_is_not_waited_for() -> None:
    began, go_on, turns = threading.Event(), threading.Event(), []

    def hang() -> None:
        turns.append(1)
        began.set()
        go_on.wait(30.0)

    doing = keep_doing(hang, every_s=0.001, what="controller")
    assert began.wait(30.0)
    assert not doing.end(0.01)
    go_on.set()
    assert doing.end(30.0)
    assert turns == [1]
