from __future__ import annotations

import logging
import threading
import time

import pytest

from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.training.outbox import Outbox

GONE = BackendUnavailable("MLflow", "nothing answers")


def test_work_is_done_in_order_and_not_by_the_caller() -> None:
    box, done = Outbox("box"), list[tuple[int, bool]]()
    here = threading.get_ident()
    for number in range(50):
        box.put(f"trial {number}", lambda number=number: done.append((number, threading.get_ident() == here)))  # type: ignore[misc]
    box.drain(5.0)
    assert done == [(number, False) for number in range(50)]


def test_what_waits_is_tried_again_before_what_comes_after(caplog: pytest.LogCaptureFixture) -> None:
    box, done, failures = Outbox("box"), list[str](), [GONE, GONE]

    def first() -> None:
        if failures:
            raise failures.pop()
        done.append("first")

    with caplog.at_level(logging.WARNING):
        box.put("trial 0", first)
        box.put("trial 1", lambda: done.append("second"))
        box.drain(10.0)
    assert done == ["first", "second"]
    assert [r.message for r in caplog.records] == [f"trial 0 waits for {GONE} and is tried again; the work goes on"]


def test_putting_never_waits_and_draining_not_for_ever() -> None:
    box, open_again, done = Outbox("MLflow, for trials,"), threading.Event(), list[int]()

    def work() -> None:
        if not open_again.is_set():
            raise GONE
        done.append(1)

    began = time.monotonic()
    for number in range(3):
        box.put(f"trial {number}", work)
    assert time.monotonic() - began < 0.5
    with pytest.raises(BackendUnavailable, match=r"3 records still wait after 0\.5 s; .*nothing answers"):
        box.drain(0.5)
    open_again.set()
    box.drain(5.0)  # they stayed
    assert done == [1, 1, 1]


def test_work_that_never_ends_is_not_waited_for() -> None:
    box, end = Outbox("box"), threading.Event()
    box.put("trial 0", lambda: bool(end.wait(10.0)) and None)
    with pytest.raises(BackendUnavailable, match=r"1 records still wait after 0\.2 s; it is slow"):
        box.drain(0.2)
    end.set()


@pytest.mark.parametrize("error", [DataError("MLflow", "it refuses"), ValueError("a bug")])
def test_what_cannot_be_done_is_left_out(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    box, done = Outbox("box"), list[int]()

    def refused() -> None:
        raise error

    with caplog.at_level(logging.WARNING):
        box.put("trial 0", refused)
        box.put("trial 1", lambda: done.append(1))
        box.drain(5.0)
    assert done == [1]
    assert f"trial 0 is not recorded: {error}" in caplog.text


def test_what_waits_can_be_forgotten() -> None:
    box, done, began, end = Outbox("box"), list[int](), threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        end.wait(5.0)
        done.append(0)

    box.put("trial 0", slow)
    for number in (1, 2):
        box.put(f"trial {number}", lambda number=number: done.append(number))  # type: ignore[misc]
    began.wait(5.0)
    assert box.clear() == 2
    end.set()
    box.put("trial 3", lambda: done.append(3))
    box.drain(5.0)
    assert done == [0, 3]
    assert box.clear() == 0


def test_forgetting_ends_the_tries() -> None:
    box, tries = Outbox("box"), list[int]()

    def work() -> None:
        tries.append(1)
        raise GONE

    box.put("trial 0", work)
    while not tries:
        time.sleep(0.01)
    time.sleep(0.1)
    assert box.clear() == 1
    box.drain(2.0)
    time.sleep(1.5)
    assert len(tries) == 1


def test_what_is_being_done_when_all_is_forgotten_is_not_repeated() -> None:
    box, tries, end = Outbox("box"), list[int](), threading.Event()

    def work() -> None:
        tries.append(1)
        end.wait(5.0)
        raise GONE

    box.put("trial 0", work)
    while not tries:
        time.sleep(0.01)
    assert box.clear() == 0
    end.set()
    box.drain(2.0)
    time.sleep(1.5)
    assert len(tries) == 1


def test_an_empty_box_is_drained_at_once() -> None:
    Outbox("box").drain(0.0)
